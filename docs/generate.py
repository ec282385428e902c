"""Writes what the documents have from the code, between their marks: ``make tables``. A test compares them."""

from pathlib import Path

from learnflow.llm.providers.registry import CLASSES, SPECS, table
from learnflow.llm.routing import decision

ROOT = Path(__file__).parents[1]
WORDS = {
    "README.md": (
        "class",
        "where, if you say nothing",
        "key",
        "run against a real one",
        "say so",
        "needed",
        "none",
        "no",
    ),
    "README.ru.md": ("класс", "адрес по умолчанию", "ключ", "проверено на настоящем", "укажите", "нужен", "нет", "нет"),
}


def provider_table(name: str) -> str:
    """The rows by hand, in the words of this file."""
    of, where, key, real, say, needed, none, no = WORDS[name]
    lines = [f"| `LLM_PROVIDER` | {of} | {where} | {key} | {real} |", "|---|---|---|---|---|"]
    for row, spec in SPECS.items():
        address = f"`{spec.default_url}`" if spec.default_url else say
        wanted = none if spec.local else needed
        lines.append(f"| `{row}` | `{CLASSES[row].__name__}` | {address} | {wanted} | {spec.seen or no} |")
    return "\n".join(lines) + "\n"


def vendor_table() -> str:
    """LiteLLM's vendors, with the variables of their keys."""
    lines = ["| `LLM_PROVIDER` | where, if you say nothing | key |", "|---|---|---|"]
    for row, spec in table().items():
        keys = ", ".join(f"`{name}`" for name in dict.fromkeys(spec.env_key))
        lines.append(f"| `{row}` | {f'`{spec.default_url}`' if spec.default_url else 'say so'} | {keys} |")
    return "\n".join(lines) + "\n"


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


def written() -> dict[str, str]:
    """Each document as it must be."""
    blocks = {
        "README.md": provider_table("README.md"),
        "README.ru.md": provider_table("README.ru.md"),
        "docs/providers.md": vendor_table(),
        "docs/routing.md": decision_tables(),
    }
    return {name: _with((ROOT / name).read_text(encoding="utf-8"), block) for name, block in blocks.items()}


def _with(text: str, block: str) -> str:
    before, begin, rest = text.partition("<!-- from the code: make tables -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not (begin and end):
        raise SystemExit("a document has lost its marks")
    return f"{before}{begin}{block}{end}{after}"


if __name__ == "__main__":
    for name, text in written().items():
        (ROOT / name).write_text(text, encoding="utf-8")
        print(name)
