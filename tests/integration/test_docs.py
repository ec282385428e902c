"""What the documents say can be done: every snippet is checked against what there is."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import shlex
from collections.abc import Iterator

import pytest
import yaml
from support import ROOT, read_variables

from learnflow.llm.cli import main as cli
from learnflow.llm.providers.registry import OTHER, SPECS
from learnflow.llm.spec import named

DOCUMENTS = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
NAMES = [str(each.relative_to(ROOT)) for each in DOCUMENTS]
COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
# Programs of others, whose words are theirs.
OTHERS = {"ollama", "llama-server", "lms", "git", "cp", "cd", "pip", "python", "pytest"}


def blocks(name: str, *kinds: str) -> Iterator[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    for kind, block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
        if kind in kinds:
            yield block


def known_variables() -> set[str]:
    ours = set(re.findall(r"\$\{(\w+)", COMPOSE))
    script = set(re.findall(r"\b([A-Z]+_[A-Z_0-9]+)\b", (ROOT / "compose/pull-model.sh").read_text(encoding="utf-8")))
    own = {name for row in ("gpu1", "gpu2") for names in named(OTHER, row).variables for name in names}
    return read_variables() | ours | script | own


@pytest.mark.parametrize("name", NAMES)
def test_python_compiles_and_its_names_exist(name: str) -> None:
    for block in blocks(name, "python"):
        compile(block, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("learnflow"):
                module = __import__(str(node.module), fromlist=["*"])
                for alias in node.names:
                    assert hasattr(module, alias.name), alias.name


def commands(name: str) -> Iterator[list[str]]:
    for block in blocks(name, "console", "sh", "bash"):
        for line in block.splitlines():
            if line.startswith("$ "):
                yield shlex.split(line.removeprefix("$ "), comments=True)


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_there(name: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    profiles = {one for said in yaml.safe_load(COMPOSE)["services"].values() for one in said["profiles"]}
    variables = known_variables()
    for words in commands(name):
        while re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
            assert words[0].partition("=")[0] in variables, words[0]
            words = words[1:]  # noqa: PLW2901
        program = words[0]
        if program == "learnflow-llm":
            cli._parser().parse_args(words[1:])
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


@pytest.mark.parametrize("name", NAMES)
def test_variables_are_read(name: str) -> None:
    variables = known_variables()
    for block in blocks(name, "dotenv"):
        for line in block.splitlines():
            assert line.partition("=")[0] in variables, line


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert ((ROOT / name).parent / target).exists(), target


def test_every_provider_and_every_variable_of_compose_is_explained() -> None:
    text = (ROOT / "docs/providers.md").read_text(encoding="utf-8")
    for spec in SPECS.values():
        assert f"LLM_PROVIDER={spec.name}\n" in text, spec.name
    for variable in set(re.findall(r"(?<!\$)\$\{(\w+):-", COMPOSE)) - {"QUESTION"}:
        assert variable in text + (ROOT / "env.example").read_text(encoding="utf-8"), variable


def structure(name: str) -> list[tuple[str, int]]:
    """Headings by level, and blocks of code: what two languages must share."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = []
    marks = r"^(#+) .*$|^```(\w+)$|^(\||- )|(?<=\n\n)(?=[\w`*«])"
    for heading, kind, item in re.findall(marks, text, re.MULTILINE):
        found.append((kind or item or ("heading" if heading else "paragraph"), len(heading)))
    return found


@pytest.mark.parametrize("name", ["README.md", "docs/learnflow.md"])
def test_both_languages_have_one_structure(name: str) -> None:
    both = name, name.replace(".md", ".ru.md")
    assert structure(both[1]) == structure(both[0])
    code = [list(blocks(each, "python", "console", "dotenv", "text")) for each in both]
    bare = [[re.sub(r"\s*#.*", "", block) for block in each] for each in code]
    assert bare[0] == bare[1]  # the same commands; only what is said of them is translated


@pytest.mark.parametrize("name", ["docs/learnflow.md", "docs/learnflow.ru.md"])
def test_the_lines_that_learnflow_is_given_import_what_there_is(name: str) -> None:
    lines = re.findall(r"^from \.\.llm\.(\S+) import (.+)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == 2
    for place, names in lines:
        module = importlib.import_module(f"learnflow.llm.{place}")
        assert [each for each in names.split(", ") if not hasattr(module, each)] == []


def test_the_tables_of_the_documents_are_the_codes() -> None:
    """``make tables`` writes them."""
    written = runpy.run_path(str(ROOT / "docs" / "generate.py"))["written"]()
    assert [name for name, text in written.items() if (ROOT / name).read_text(encoding="utf-8") != text] == []
