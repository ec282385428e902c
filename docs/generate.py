"""Write the tables of the documents from the code, between their marks: ``make tables``. A test compares them."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import yaml

from learnflow.llm import errors, settings
from learnflow.llm.providers import CLASSES
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.routing import decision

ROOT = Path(__file__).parents[1]
MARKS = re.compile(r"(<!-- from the code: make tables.*?\n)(.*?)(<!-- end\b)", re.DOTALL)
PROVIDERS = {
    "en": (
        "class",
        "default address",
        "key",
        "tested on a real server",
        "none: set it",
        "starts its own",
        "needed",
        "none",
        "no",
    ),
    "ru": (
        "класс",
        "адрес по умолчанию",
        "ключ",
        "проверено на реальном сервере",
        "укажите",
        "запускает сам",
        "нужен",
        "не нужен",
        "нет",
    ),
}
VARIABLES = {"en": ("variable", "default", "what it does"), "ru": ("переменная", "по умолчанию", "что делает")}
SPELLINGS = {
    "en": ("provider", "address", "model", "key", "version of the API"),
    "ru": ("провайдер", "адрес", "модель", "ключ", "версия API"),
}
RUSSIAN = yaml.safe_load((ROOT / "docs/settings.ru.yaml").read_text(encoding="utf-8"))


def markdown(header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return (
        "".join("| " + " | ".join(line) + " |\n" for line in lines).replace("| --- ", "|---").replace("--- |", "---|")
    )


def code(*names: str) -> str:
    """Return the names as code, separated by commas."""
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))


def provider_table(language: str) -> str:
    """Return the table of the providers under contract."""
    *header, unset, starts, needed, none, no = PROVIDERS[language]
    rows = (
        (
            code(name),
            code(CLASSES[name].__name__),
            code(spec.api.default_url) if spec.api.default_url else starts if spec.starts_server else unset,
            none if spec.local else needed,
            spec.tested_versions or no,
        )
        for name, spec in SPECS.items()
    )
    return markdown(("`LLM_PROVIDER`", *header), rows)


def fields(of: type[settings.BaseSettings]) -> Iterator[tuple[str, str, str]]:
    """Yield each variable with its default and its docstring."""
    for name, field in of.model_fields.items():
        yield name.upper(), shown(field.default), " ".join(str(field.description).split())


def shown(default: object) -> str:
    """Return a default as it is written in .env."""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else "" if default in (None, ()) else str(default)


def variable_table(language: str, of: type[settings.BaseSettings], prefix: str = "") -> str:
    """Return the table of the variables of one class of settings."""
    texts = RUSSIAN if language == "ru" else {}
    rows = (
        (code(prefix + name), code(default) if default else "", texts.get(prefix + name, text))
        for name, default, text in fields(of)
    )
    return markdown(VARIABLES[language], rows)


def spelling_table(language: str) -> str:
    """Return the table of the accepted names of each provider's variables; the first that is set counts."""
    settings = ("base_url", "model", "api_key", "api_version")
    rows = (
        (code(spec.name), *(code(*spec.spellings(name)) if name in spec.settings else "" for name in settings))
        for spec in SPECS.values()
    )
    return markdown(SPELLINGS[language], rows)


def example() -> str:
    """Return env.example."""
    lines = comment(
        "Every variable that learnflow.llm reads, written by make tables. Copy what you need into .env or .env.local. "
        "If both files set a variable, .env wins. The process's environment wins over both. Empty means not set."
    )
    lines.append("")
    for name, default, text in fields(settings.Settings):
        lines += [*comment(text), f"{name}={'ollama' if name == 'LLM_PROVIDER' else default}"]
    lines += ["", *comment("Inside LearnFlow, LLM_MODEL_<NODE> is the model of one node."), ""]
    lines += comment("The variables of each provider:")
    for name, _, text in fields(settings.ProviderSettings):
        lines += comment(f"<NAME>_{name}: {text}")
    for spec in SPECS.values():
        lines += ["", f"# {spec.title}"]
        for setting in spec.settings:
            ours, *others = spec.spellings(setting)
            values = {"base_url": (spec.api.default_url or "").removesuffix("/v1") if spec.local else ""}
            values |= {"model": spec.example_model or "", "api_version": spec.api.default_version or ""}
            if others:
                lines.append(f"# Also read: {', '.join(others)}")
            lines += [f"{ours}={values.get(setting, '')}"]
    return "\n".join(lines) + "\n"


def comment(text: str) -> list[str]:
    """Return the lines of a comment."""
    return textwrap.wrap(
        text.replace("`", ""), 118, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def decision_tables() -> str:
    """Return the tables of failures: the rules, the rules if no provider is left, and the breaker of each error."""
    does = {
        "otherwise": "the same provider again: the beginning as it broke, or a prompt to continue",
        "next": "the next provider; if none is left, see below",
        "load": "wait for the load",
        "again": "after a pause, those providers again whose failure may be transient",
        "begin again": "those providers again, from the beginning, once",
        "give up": "raise it",
    }
    lines: list[str] = []
    for title, rules in (("the first that fits", decision.RULES), ("no provider is left", decision.NOBODY_LEFT)):
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


def error_tree(kind: type[errors.LLMError] = errors.LLMError, above: str = "", branch: str = "") -> Iterator[str]:
    """Yield each class of errors with the first line of its docstring, below its base."""
    summary = "" if kind is errors.LLMError else (kind.__doc__ or "").partition("\n")[0].rstrip(".")
    yield f"    {above}{branch}{kind.__name__}".ljust(33) + f" {summary}"
    subclasses = [subclass for subclass in kind.__subclasses__() if subclass.__module__ == errors.__name__]
    if branch:
        above += "    " if branch.startswith("└") else "│   "
    for subclass in subclasses:
        yield from error_tree(subclass, above or " ", "└─ " if subclass is subclasses[-1] else "├─ ")


def with_error_tree() -> str:
    """Return the module of errors with the tree of its classes."""
    source = Path(errors.__file__).read_text(encoding="utf-8")
    tree = "".join(f"{line.rstrip()}\n" for line in error_tree())
    return re.sub(r"(?<=\n\n)    LLMError\n(?:     .*\n)*", tree, source, count=1)


def configuration(language: str) -> list[str]:
    """Return the tables of the page about configuration."""
    own = variable_table(language, settings.ProviderSettings, "<NAME>_")
    return [variable_table(language, settings.Settings), own, spelling_table(language)]


def written() -> dict[str, str]:
    """Return each document as it must be."""
    blocks = {
        "README.md": [provider_table("en")],
        "README.ru.md": [provider_table("ru")],
        "docs/providers.md": [provider_table("en")],
        "docs/providers.ru.md": [provider_table("ru")],
        "docs/configuration.md": configuration("en"),
        "docs/configuration.ru.md": configuration("ru"),
        "docs/failover.md": [decision_tables()],
    }
    documents = {name: _with((ROOT / name).read_text(encoding="utf-8"), tables) for name, tables in blocks.items()}
    return {**documents, "env.example": example(), "learnflow/llm/errors.py": with_error_tree()}


def _with(text: str, blocks: list[str]) -> str:
    if len(MARKS.findall(text)) != len(blocks):
        raise SystemExit("a document has lost its marks: restore 'from the code: make tables' and 'end'")
    return MARKS.sub(lambda found: found[1] + blocks.pop(0) + found[3], text)


if __name__ == "__main__":
    for name, text in written().items():
        (ROOT / name).write_text(text, encoding="utf-8")
        print(name)
