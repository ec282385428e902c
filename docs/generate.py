"""Write the generated parts of the documents: ``make tables``. A test compares them with the documents."""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields as dataclass_fields
from pathlib import Path

import yaml
from pydantic import BaseModel

from learnflow.llm import errors, events, settings
from learnflow.llm.completion import Completion, ServedModel, Usage
from learnflow.llm.providers.registry import CLASSES, SPECS
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
VARIABLES = {
    "en": ("variable, with its default", "what it does"),
    "ru": ("переменная и значение по умолчанию", "что делает"),
}
SPELLINGS = {
    "en": ("provider", "address", "model", "key", "version of the API"),
    "ru": ("провайдер", "адрес", "модель", "ключ", "версия API"),
}
# The lines that are no events: they describe the process, not a request.
OTHER_LINES = {
    "llm.metrics_unavailable": "Prometheus's library is missing, or the port is in use.",
    "llm.telemetry_unavailable": "OpenTelemetry's library is missing.",
    "llm.sink_failed": "A sink of the application raised an exception.",
    "llm.env_lines_unreadable": "Lines of a `.env` file set no variable. Logged once.",
    "llm.embedded_log": "A line of the embedded server.",
    "llm.content": "A prompt and its answer, only with `LLM_LOG_CONTENT`.",
}
RUSSIAN = yaml.safe_load((ROOT / "docs/settings.ru.yaml").read_text(encoding="utf-8"))


def markdown(header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return (
        "".join("| " + " | ".join(line) + " |\n" for line in lines).replace("| --- ", "|---").replace("--- |", "---|")
    )


def code(*names: str) -> str:
    """Return names as code, separated by commas."""
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))


def class_of(name: str) -> type[object]:
    """Return the class of a vendor. Exit with a sentence if there is none."""
    if name not in CLASSES:
        sys.exit(f"{name} has no class in learnflow/llm/providers/__init__.py")
    return CLASSES[name]


def provider_table(language: str) -> str:
    """Return the table of providers."""
    *header, unset, starts, needed, none, no = PROVIDERS[language]
    rows = (
        (
            code(name),
            code(class_of(name).__name__),
            code(spec.api.default_url) if spec.api.default_url else starts if spec.starts_server else unset,
            none if spec.local else needed,
            spec.tested_versions or no,
        )
        for name, spec in SPECS.items()
    )
    return markdown(("`LLM_PROVIDER`", *header), rows)


def fields(of: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    """Yield each variable with its default and its entry in the docstring of the class."""
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", inspect.getdoc(of) or "", re.MULTILINE)
    texts = {name: " ".join(text.split()) for name, text in entries}
    for name, field in of.model_fields.items():
        if name not in texts:
            sys.exit(f"{name} has no entry in the docstring of {of.__name__} in learnflow/llm/settings.py")
        yield name.upper(), env_value(field.default), texts[name][0].upper() + texts[name][1:]


def env_value(default: object) -> str:
    """Return a default as it is written in .env."""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else "" if default in (None, ()) else str(default)


def variable_table(language: str, of: type[BaseModel], prefix: str = "") -> str:
    """Return the table of the variables of a settings class."""
    rows = (
        (
            code(f"{prefix}{name}={default}" if default else prefix + name),
            russian(prefix + name, description) if language == "ru" else description,
        )
        for name, default, description in fields(of)
    )
    return markdown(VARIABLES[language], rows)


def russian(variable: str, english: str) -> str:
    """Return the Russian text of a variable. If there is none, report it, and return the English text, marked."""
    if variable in RUSSIAN:
        return str(RUSSIAN[variable])
    print(
        f"docs/settings.ru.yaml has no text for {variable}. Add one; until then the Russian page has the English text"
    )
    return f"(по-английски) {english}"


def spelling_table(language: str) -> str:
    """Return the table of the names of each provider's variables. The first one that is set applies."""
    settings = ("base_url", "model", "api_key", "api_version")
    rows = (
        (code(name), *(code(*spec.variable_names(name)) if name in spec.settings else "" for name in settings))
        for name, spec in SPECS.items()
    )
    return markdown(SPELLINGS[language], rows)


def example() -> str:
    """Return env.example."""
    lines = comment(
        "Every variable that learnflow.llm reads, written by make tables. Copy what you need into .env or .env.local. "
        "If both files set a variable, .env wins. The process's environment wins over both. Empty means not set."
    )
    lines.append("")
    for name, default, description in fields(settings.Settings):
        lines += [*comment(description), f"{name}={'ollama' if name == 'LLM_PROVIDER' else default}"]
    lines += ["", *comment("Inside LearnFlow, LLM_MODEL_<NODE> is the model of one node."), ""]
    lines += comment("The variables of each provider:")
    for name, _, description in fields(settings.ProviderSettings):
        lines += comment(f"<NAME>_{name}: {description}")
    for spec in SPECS.values():
        lines += ["", f"# {spec.title}"]
        for setting in spec.settings:
            ours, *others = spec.variable_names(setting)
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
    """Return the tables of failures: rules, rules if no provider is left, and circuit breakers."""
    actions = {
        "change_prefill": "the same provider again, with a prefill of the whole text or a prompt to continue",
        "next_provider": "the next provider; if none is left, see below",
        "wait_for_load": "wait for the load",
        "retry": "after a pause, retry the providers with a transient failure",
        "restart": "those providers once more, from the beginning of the answer",
        "raise": "raise it",
    }
    lines: list[str] = []
    for title, rules in (("the first that fits", decision.RULES), ("no provider is left", decision.LAST_RULES)):
        lines += [f"| {title} | then | the text so far |", "|---|---|---|"]
        text = {True: "drop", False: "keep"}
        lines += [f"| {rule.description} | {actions[rule.action]} | {text[rule.drops_text]} |" for rule in rules]
        lines.append("")
    lines += ["| failure | breaker opens for | of | closed by |", "|---|---|---|---|"]
    for kind, rule in decision.BREAKER_RULES:
        if rule.period_s is None:
            lines.append(f"| `{kind.__name__}` | does not open | | |")
        else:
            of, by = "address" if rule.whole_address else "model", "a probe" if rule.probeable else "one request"
            lines.append(f"| `{kind.__name__}` | {rule.period_s:g} s, doubled each time | {of} | {by} |")
    return "\n".join(lines) + "\n"


def log_table() -> str:
    """Return the table of log lines: those of events, then the other ones."""
    rows = [
        (name, level, _logged_fields(event), (event.__doc__ or "").partition("\n")[0].replace("``", "`"))
        for event, (name, level) in events._LOGGED.items()  # noqa: SLF001
    ]
    rows += [(name, level, fields, OTHER_LINES[name]) for name, level, fields in sorted(set(_other_lines()))]
    return markdown(
        ("event, level", "fields", "meaning"),
        ((f"{code(name)} {level}", code(*fields), text) for name, level, fields, text in rows),
    )


def _logged_fields(kind: type[events.LogEvent]) -> list[str]:
    """Return the names of the fields of a line, from an event with a value in every field."""
    error = errors.RequestRefused("x", status=400)
    error.server_message = "x"
    usage = Usage(**dict.fromkeys((field.name for field in dataclass_fields(Usage)), 1))
    answer = Completion(
        text="", finish="stop", provider="x", model=ServedModel("x"), usage=usage, first_token_s=1.0, cost=1.0
    )
    values = {
        field.name: {"error": error, "completion": answer}.get(field.name, "x") for field in dataclass_fields(kind)
    }
    return [*events.log_fields(kind(**values))]


def _other_lines() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield the name, the level and the fields of each line that the code logs without an event."""
    for path in Path(errors.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="line"), args=[ast.Constant(level), ast.Constant(name)], keywords=given
                ):
                    yield name, level, tuple(str(keyword.arg) for keyword in given)
                case ast.Call(func=ast.Name("_log_once"), args=[ast.Constant(name), _]):
                    yield name, "error", ("hint",)


def error_tree(kind: type[errors.LLMError] = errors.LLMError, above: str = "", branch: str = "") -> Iterator[str]:
    """Yield the lines of the tree of errors. Each class has the first line of its docstring."""
    description = "" if kind is errors.LLMError else (kind.__doc__ or "").partition("\n")[0].rstrip(".")
    yield f"    {above}{branch}{kind.__name__}".ljust(33) + f" {description}"
    below = [error_class for error_class in kind.__subclasses__() if error_class.__module__ == errors.__name__]
    if branch:
        above += "    " if branch.startswith("└") else "│   "
    for error_class in below:
        yield from error_tree(error_class, above or " ", "└─ " if error_class is below[-1] else "├─ ")


def with_error_tree() -> str:
    """Return the module of errors with the tree in its docstring."""
    source = Path(errors.__file__).read_text(encoding="utf-8")
    tree = "".join(f"{line.rstrip()}\n" for line in error_tree())
    return re.sub(r"(?<=\n\n)    LLMError\n(?:     .*\n)*", tree, source, count=1)


def configuration(language: str) -> list[str]:
    """Return the tables of the page about configuration."""
    own = variable_table(language, settings.ProviderSettings, "<NAME>_")
    return [variable_table(language, settings.Settings), own, spelling_table(language)]


def written() -> dict[str, str]:
    """Return the required text of each document by its path."""
    blocks = {
        "README.md": [provider_table("en")],
        "README.ru.md": [provider_table("ru")],
        "docs/providers.md": [provider_table("en")],
        "docs/providers.ru.md": [provider_table("ru")],
        "docs/configuration.md": configuration("en"),
        "docs/configuration.ru.md": configuration("ru"),
        "docs/failover.md": [decision_tables()],
        "docs/logging.md": [log_table()],
    }
    documents = {name: _with((ROOT / name).read_text(encoding="utf-8"), tables) for name, tables in blocks.items()}
    return {**documents, "env.example": example(), "learnflow/llm/errors.py": with_error_tree()}


def _with(text: str, blocks: list[str]) -> str:
    if len(MARKS.findall(text)) != len(blocks):
        raise SystemExit("a document does not have its marks. Restore the comments around its generated tables")
    return MARKS.sub(lambda match: match[1] + blocks.pop(0) + match[3], text)


if __name__ == "__main__":
    for name, text in written().items():
        (ROOT / name).write_text(text, encoding="utf-8")
        print(name)
