"""Prints what the documents have from the code: ``python docs/generate.py``. A test compares them."""

from learnflow.llm.routing import decision


def decision_tables() -> str:
    """The tables as Markdown: rules, where nobody is left, and what opens a breaker."""
    does = {
        "otherwise": "the same provider again: the beginning as it broke, or asked in words",
        "next": "the next provider; where there is none, see below",
        "load": "wait for the load",
        "again": "wait a little, and ask again those whose failure may pass",
        "begin again": "ask those from the beginning, once",
        "give up": "raise it",
    }
    lines: list[str] = []
    for title, rules in (("the first that fits", decision.RULES), ("nobody is left to ask", decision.NOBODY_LEFT)):
        lines += [f"| {title} | then | the text so far |", "|---|---|---|"]
        lines += [f"| {rule.when} | {does[rule.action]} | {rule.text} |" for rule in rules]
        lines.append("")
    lines += ["| failure | breaker opens for | of | closed by |", "|---|---|---|---|"]
    for kind, meant in decision.VERDICTS:
        if meant.opens is None:
            lines.append(f"| `{kind.__name__}` | does not open | | |")
        else:
            of, by = "address" if meant.whole_address else "model", "a probe" if meant.visible else "one request"
            lines.append(f"| `{kind.__name__}` | {meant.opens:g} s, doubled each time | {of} | {by} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(decision_tables())
