"""The documents: Python blocks run, commands run or exist, links have targets."""

from __future__ import annotations

import ast
import asyncio
import codeop
import hashlib
import importlib
import inspect
import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import Any

import click
import copy_into
import pytest
import yaml
from support import DIALECTS, ROOT, demo, learnflow_checkout, read_variables, serving, store_tiny_model

from learnflow.llm import settings
from learnflow.llm.cli import check, pull
from learnflow.llm.cli import main as cli
from learnflow.llm.integrations import prometheus
from learnflow.llm.provider_spec import endpoint_spec
from learnflow.llm.providers.registry import CUSTOM, SPECS, provider_of
from learnflow.llm.testing import FaultServer, replaying

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
NAMES = [str(item.relative_to(ROOT)) for item in DOCUMENTS]
# test_both_languages_have_same_structure holds that the Russian pages have the same code.
ENGLISH = [name for name in NAMES if ".ru." not in name]
COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
# Other programs. Their commands are not checked.
OTHERS = {".", "ollama", "llama-server", "lms", "git", "cp", "cd", "pip", "python", "python3", "pytest", "uv"}

STORED = hashlib.sha256(b"GGUF").hexdigest()  # of the model in the store
# Ollama's commands in the documents.
MODELS = ["fault-model", "llama3:latest", "qwen3:0.6b", "qwen3.5:4b", "qwen3.5:9b"]


def blocks(name: str, *kinds: str) -> Iterator[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    for kind, block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
        if kind in kinds:
            yield block


def known_variables() -> set[str]:
    ours = set(re.findall(r"\$\{(\w+)", COMPOSE))
    script = set(re.findall(r"\b([A-Z]+_[A-Z_0-9]+)\b", (ROOT / "compose/pull-model.sh").read_text(encoding="utf-8")))
    texts = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    endpoints = {"gpu1", "gpu2", *(name.lower() for name in re.findall(r"^([A-Z0-9]+)_KIND=", texts, re.MULTILINE))}
    specs = [endpoint_spec(CUSTOM, name) for name in endpoints]
    own = {spec.variable(setting) for spec in specs for setting in spec.settings}
    return read_variables() | ours | script | own


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch, usual: dict[str, str], tmp_path: Path) -> Iterator[dict[str, FaultServer]]:
    """Run a server for each provider, and set its variable; use a model store, so that nothing is downloaded."""
    made = {name: FaultServer(name) for name in DIALECTS}
    with serving(*made.values()):
        for name, server in made.items():
            monkeypatch.setenv(f"{name.upper()}_BASE_URL", server.base_url)
        made["ollama"].responses["/api/tags"] = {"models": [{"name": name} for name in MODELS]}
        made["ollama"].responses["/api/generate"] = {"done": True, "done_reason": "load"}
        monkeypatch.setitem(pull.PACKAGED, "smollm2", replace(pull.SMOLLM2, sha256=STORED))
        monkeypatch.setenv("LLM_MODELS_DIR", str(tmp_path / "store"))
        (tmp_path / "store").mkdir()
        (tmp_path / "store/smollm2.gguf").write_bytes(b"GGUF")
        monkeypatch.setenv("GPU1_BASE_URL", made["vllm"].base_url)
        monkeypatch.setenv("GPU1_KIND", "vllm")
        for name, value in {"LLM_PROVIDER": "ollama", "OPENAI_API_KEY": "none", "OPENAI_MODEL": "fault-model"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("builtins.input", lambda *_: "")  # "until Enter is pressed"
        yield made


def paste(block: str, names: dict[str, Any], runner: asyncio.Runner) -> None:
    """Run a block like ``python -m asyncio`` runs pasted text, statement by statement."""
    complete = codeop.CommandCompiler()
    complete.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    lines: list[str] = []
    for line in [*block.splitlines(), ""]:
        lines.append(line)
        code = complete("\n".join(lines), "<pasted>", "single")
        if code is not None:
            lines = []
            result = FunctionType(code, names)()
            if inspect.iscoroutine(result):
                runner.run(result)
    assert not lines, lines


@pytest.mark.parametrize(
    "name", [name for name in ENGLISH if any(blocks(name, "python")) and name != "docs/internals/development.md"]
)
def test_python_blocks_run(name: str, servers: dict[str, FaultServer], capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    with asyncio.Runner() as runner:
        for block in blocks(name, "python"):
            paste(block.replace("http://localhost:11434", servers["ollama"].base_url), names, runner)
    prometheus.attach()()  # one page attaches a file
    if any("print" in block for block in blocks(name, "python")):
        assert capsys.readouterr().out.strip()


async def test_example_vendor_of_documents_works() -> None:
    (block,) = blocks("docs/internals/development.md", "python")
    names: dict[str, Any] = {"__name__": "learnflow.llm.providers.acme", "__package__": "learnflow.llm.providers"}
    exec(block, names)  # noqa: S102
    async with FaultServer("openai") as server:
        acme = provider_of(names["SPEC"], server.base_url, "fault-model", "none")
        assert await acme.generate("Explain RSA") == "The quick brown fox jumps over the lazy dog."


def commands(name: str) -> Iterator[list[str]]:
    for block in blocks(name, "console", "sh", "bash"):
        for line in block.splitlines():
            if line.startswith("$ "):
                yield shlex.split(line.removeprefix("$ "), comments=True)


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    profiles = {one for service in yaml.safe_load(COMPOSE)["services"].values() for one in service["profiles"]}
    variables = known_variables()
    for words in commands(name):
        while re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
            assert words[0].partition("=")[0] in variables, words[0]
            words = words[1:]  # noqa: PLW2901
        program = words[0]
        if program == "learnflow-llm":
            name, command, rest = cli.group.resolve_command(click.Context(cli.group), words[1:])
            assert command
            command.make_context(name, rest)  # test_console_commands_run runs them
        elif program == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, words
        elif program == "docker":
            assert words[1] == "compose"
            assert {words[at + 1] for at, word in enumerate(words) if word == "--profile"} <= profiles
            assert all((ROOT / words[at + 1]).exists() for at, word in enumerate(words) if word == "-f")
        elif "/" in program:
            assert (ROOT / program).exists(), program
        else:
            assert program in OTHERS, program


@pytest.mark.parametrize("words", sorted({tuple(words) for name in NAMES for words in commands(name)}), ids=shlex.join)
def test_console_commands_run(
    words: tuple[str, ...], servers: dict[str, FaultServer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    learnflow_checkout(tmp_path / "learnflow-ai")
    settings = [word for word in words if re.fullmatch(r"[A-Z_0-9]+=.*", word)]
    for setting in settings:
        monkeypatch.setenv(*setting.split("=", 1))
    if words[len(settings)] == "learnflow-llm":
        command = list(words[len(settings) + 1 :])
        patience = ["--timeout", "20"] if command[0] in ("status", "doctor") else []  # a busy machine is not a fault
        assert cli.main(command + patience) == 0
    elif words[:2] == ("python", "tools/copy_into.py"):
        assert copy_into.main(list(words[2:])) == 0


def shown(name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each console command of a document with its printed lines, without omitted parts (...)."""
    for block in blocks(name, "console"):
        for match in re.finditer(r"^\$ (.+)\n((?:(?!\$ ).*\n)+)", block, re.MULTILINE):
            printed = [part.strip() for line in match[2].splitlines() for part in line.split("...")]
            yield match[1], [part for part in printed if part]


@pytest.mark.parametrize("name", [name for name in ENGLISH if any(shown(name))])
def test_console_output_matches_commands(
    name: str, usual: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = [ROOT / f"cassettes/llamacpp/{name}.yaml" for name in ("health", "stream")]
    for command, lines in shown(name):
        if command == "make test":
            continue  # the test itself runs it
        if command == "make demo":
            store_tiny_model(monkeypatch)
            assert demo().main() == 0
        else:
            monkeypatch.setenv("LLM_PROVIDER", "llamacpp")
            with replaying(*recorded):
                assert cli.main(shlex.split(command)[1:]) == 0
        printed = re.sub(r"\d\.\d\d s", "0.02 s", capsys.readouterr().out)
        assert [line for line in lines if line not in printed] == []


@pytest.mark.parametrize("name", ["README.md", "README.ru.md"])
def test_readme_is_short(name: str) -> None:
    """Rows of tables do not count: `make tables` writes them."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if not line.startswith("|")]) <= 105


@pytest.mark.parametrize("name", NAMES)
def test_documented_variables_are_read(name: str) -> None:
    variables = known_variables()
    for block in blocks(name, "dotenv"):
        for line in block.splitlines():
            assert line.partition("=")[0] in variables, line


@pytest.mark.parametrize("name", NAMES)
def test_links_have_targets(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    if name.startswith("docs/learnflow/"):
        return  # they link files of LearnFlow's docs/
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert ((ROOT / name).parent / target).exists(), target
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)", text):
        page = (ROOT / name).parent / target if target else ROOT / name
        assert anchor in anchors(page.read_text(encoding="utf-8")), f"{target}#{anchor}"


@pytest.mark.parametrize("name", ["README.md", "README.ru.md"])
def test_readme_links_every_page(name: str) -> None:
    """A page in Russian, if there is one, stands for the English page. README itself is the first page."""
    targets = re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
    linked = {Path(target.lower().replace(".ru.", ".")).name for target in targets}
    pages = {Path(page).name for page in ENGLISH if page.startswith("docs/") and "/adr/" not in page}
    pages -= {Path(page).name for page in ENGLISH if page.startswith("docs/learnflow/")}
    assert pages - linked == {"index.md"}


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings and those written as HTML: the same on the site and in a repository."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    written = set(re.findall(r'^<a id="([^"]+)"></a>$', text, re.MULTILINE))
    return written | {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_every_provider_and_compose_variable_is_documented() -> None:
    text = (ROOT / "docs/providers.md").read_text(encoding="utf-8")
    for spec in SPECS.values():
        assert f"LLM_PROVIDER={spec.name}\n" in text, (
            f"write a section with LLM_PROVIDER={spec.name} in docs/providers.md"
        )
    text += (ROOT / "docs/docker.md").read_text(encoding="utf-8")
    for variable in set(re.findall(r"(?<!\$)\$\{(\w+):-", COMPOSE)) - {"QUESTION"}:
        assert variable in text + (ROOT / "env.example").read_text(encoding="utf-8"), variable


def structure(name: str) -> list[tuple[str, int]]:
    """Return headings by level and blocks of code, which both languages must share."""
    text = (ROOT / name).read_text(encoding="utf-8")
    structure = []
    marks = r"^(#+) .*$|^```(\w+)$|^(\||- )|(?<=\n\n)(?=[\w`*«])"
    for heading, kind, item in re.findall(marks, text, re.MULTILINE):
        structure.append((kind or item or ("heading" if heading else "paragraph"), len(heading)))
    return structure


@pytest.mark.parametrize("name", [name.replace(".ru", "") for name in NAMES if ".ru." in name])
def test_both_languages_have_same_structure(name: str) -> None:
    both = name, name.replace(".md", ".ru.md")
    assert structure(both[1]) == structure(both[0])
    code = [list(blocks(item, "python", "console", "dotenv", "text")) for item in both]
    bare = [[re.sub(r"\s*#.*", "", block) for block in item] for item in code]
    assert bare[0] == bare[1]  # the same commands; only the comments are translated


@pytest.mark.parametrize("name", ["docs/learnflow.md", "docs/learnflow.ru.md"])
def test_lines_for_learnflow_import_existing_names(name: str) -> None:
    lines = re.findall(
        r"^from \.\.llm\.(\S+) import (.+?)(?:  #.*)?$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(lines) == 3
    for place, names in lines:
        module = importlib.import_module(f"learnflow.llm.{place}")
        assert [item for item in names.split(", ") if not hasattr(module, item)] == []


def test_tables_of_documents_match_code() -> None:
    """The fix is ``make tables``."""
    written = runpy.run_path(str(ROOT / "docs" / "generate.py"))["written"]()
    assert [name for name, text in written.items() if (ROOT / name).read_text(encoding="utf-8") != text] == []


def test_picture_of_check_names_every_check() -> None:
    texts = re.findall(r"<text[^>]*>([^<]*)", (ROOT / "docs" / "check.svg").read_text(encoding="utf-8"))
    shown = " ".join(texts).replace("&#160;", " ")
    checks = check._Checks(provider_of(SPECS["ollama"]), None, 0).all()
    assert [name for name, _ in checks if f" {name}  " not in shown] == [], "run docs/pictures.py"


def test_variable_without_russian_text_is_reported_and_has_marked_english(capsys: pytest.CaptureFixture[str]) -> None:
    names = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    del names["RUSSIAN"]["LLM_RETRIES"]
    table = names["variable_table"]("ru", settings.Settings)
    english = next(text for name, _, text in names["fields"](settings.Settings) if name == "LLM_RETRIES")
    assert f"| `LLM_RETRIES=2` | (по-английски) {english} |" in table
    assert table.count("(по-английски)") == 1
    assert capsys.readouterr().out == (
        "docs/settings.ru.yaml has no text for LLM_RETRIES. Add one; until then the Russian page has the English text\n"
    )


def test_russian_texts_are_those_of_existing_variables() -> None:
    written = yaml.safe_load((ROOT / "docs/settings.ru.yaml").read_text(encoding="utf-8"))
    own = {f"<NAME>_{name.upper()}" for name in settings.ProviderSettings.model_fields}
    common = {name.upper() for name in settings.Settings.model_fields}
    assert set(written) == own | common


def test_contributing_fits_one_screen() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 50
