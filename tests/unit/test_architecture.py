"""The architecture: imports, modules, the public API, and artefacts that must match the code."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, read_variables

import learnflow.llm
from learnflow.llm import providers, settings, sync
from learnflow.llm.providers.registry import CLASSES, SPECS, build

PACKAGE = ROOT / "learnflow" / "llm"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Imports go one way: a package may import packages of earlier rows, and of its own row if that makes no cycle.
LAYERS = [
    ["process", "errors", "capabilities", "completion", "stream", "parameters", "base", "background"],
    ["provider_spec"],
    ["log", "events"],
    ["settings_sources", "settings", "timeouts", "journal"],
    ["transport"],
    ["replay"],
    ["servers"],
    ["adapter"],
    ["providers"],
    ["discovery", "routing"],
    ["factory"],
    ["integrations", "testing"],
    ["cli", "sync", "__main__", "__init__"],
]
# Imported only if the environment configures it.
ON_DEMAND = {("factory", "integrations")}
LAYER = {package: at for at, layer in enumerate(LAYERS) for package in layer}
# The packages and modules that may import a library.
IMPORTERS = {
    "langchain_core": {"integrations"},
    "opentelemetry": {"integrations"},
    "prometheus_client": {"integrations"},
    "litellm": {"adapter/_litellm.py"},
    "openai": set(),
    "httpx": {"transport", "replay", "providers/embedded.py", "cli/pull.py"},
    "xllamacpp": {"providers/embedded_server.py"},
    "httpcore": {"transport"},
}
ENVIRONMENT = re.compile(r"os\.environ|getenv|getproxies")
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(path: Path) -> set[str]:
    """Return the packages of ``learnflow.llm`` that a module imports, also inside functions."""
    depth = len(path.relative_to(PACKAGE).parts)
    froms = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.ImportFrom) and node.level == depth]
    names = {name for node in froms for name in ([node.module.split(".")[0]] if node.module else _names(node))}
    return names - {"__version__"}


def _names(node: ast.ImportFrom | ast.Import) -> list[str]:
    return [alias.name for alias in node.names]


def test_imports_go_one_way() -> None:
    wrong = []
    for path in MODULES:
        package = package_of(path)
        for other in imports_of(path) - {package}:
            beside = LAYER[other] == LAYER[package] and package in {
                o for m in MODULES if package_of(m) == other for o in imports_of(m)
            }
            upwards = LAYER[other] > LAYER[package] or other == "testing" or beside
            if upwards and path.name != "__init__.py" and (package, other) not in ON_DEMAND:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert wrong == []


def test_only_some_packages_import_libraries_or_read_the_environment() -> None:
    for path, tree in TREES.items():
        places = {package_of(path), path.relative_to(PACKAGE).as_posix()}
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += _names(node) if isinstance(node, ast.Import) else []
            for name in names:
                assert places & IMPORTERS.get(name.split(".")[0], places), f"{path.name} imports {name}"
        if path.name not in ("settings_sources.py", "_litellm.py"):  # _litellm.py writes variables for LiteLLM
            assert not ENVIRONMENT.search(ast.unparse(tree)), path


def test_no_folder_has_more_than_a_dozen_files() -> None:
    folders = {path.parent for path in MODULES if path.parent.name not in ("providers", "cli", "llm")}
    assert {folder: len(list(folder.glob("*.py"))) for folder in folders if len(list(folder.glob("*.py"))) > 12} == {}


# The names and titles of the vendors. Comments and docstrings may have them.
VENDORS = re.compile(
    "|".join(re.escape(word) for spec in SPECS.values() for word in (spec.name, spec.title) if spec.name != "custom")
    .replace("openai|", "")
    .replace("OpenAI|", "")
    .replace("anthropic|Anthropic|", ""),  # a variable of LiteLLM has this name
    re.IGNORECASE,
)


def test_packages_below_providers_name_no_vendor() -> None:
    below = LAYER["providers"]
    for path in MODULES:
        if LAYER[package_of(path)] >= below:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {
            node.body[0].value
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
                assert not VENDORS.search(node.value), (path, node.value)


def test_hints_install_published_packages_only() -> None:
    files = [*MODULES, *(ROOT / "examples").glob("*.py"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    commands = {path: re.findall(r"pip install [^`\n]*", path.read_text(encoding="utf-8")) for path in files}
    assert {path: found for path, found in commands.items() if "learnflow" in str(found)} == {}
    assert commands[PACKAGE / "providers" / "embedded_model.py"]


def test_every_module_has_a_docstring() -> None:
    assert [path for path, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_no_utils_module_and_no_init_of_the_namespace_exist() -> None:
    assert not [path for path in MODULES if path.stem in ("utils", "helpers", "common", "misc")]
    assert not (ROOT / "learnflow" / "__init__.py").exists()  # LearnFlow has its own


def test_every_module_can_be_imported_alone() -> None:
    for module in pkgutil.walk_packages(learnflow.llm.__path__, "learnflow.llm."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def test_public_names_can_be_imported() -> None:
    for name in learnflow.llm.__all__:
        assert getattr(learnflow.llm, name)
    assert sorted(learnflow.llm.__all__) == learnflow.llm.__all__
    with pytest.raises(AttributeError, match="nothing"):
        _ = learnflow.llm.nothing
    for name in providers.__all__:
        assert getattr(providers, name)


@pytest.mark.parametrize("method", ["generate", "stream", "complete"])
def test_call_of_a_provider_has_a_docstring_with_all_sections(method: str) -> None:
    calls = [learnflow.llm.get_provider("ollama"), providers.OllamaProvider(), sync.get_provider("ollama")]
    for provider in calls:
        text = inspect.getdoc(getattr(provider, method)) or ""
        for part in ("Args:", "prompt:", "model:", "temperature:", "max_tokens:", "more:", "Returns:", "Raises:"):
            assert part in text, (provider, part)


def test_every_spec_has_a_class_with_its_name() -> None:
    classes = {getattr(providers, name) for name in providers.__all__ if name.endswith("Provider")}
    assert {kind.spec.name for kind in classes} == set(SPECS)


def test_env_example_has_every_variable_that_is_read() -> None:
    text = (ROOT / "env.example").read_text(encoding="utf-8")
    others = re.findall(r"^# Also read: (.*)$", text, re.MULTILINE)
    names = re.findall(r"^([A-Z0-9_]+)=", text, re.MULTILINE) + [name for line in others for name in line.split(", ")]
    assert set(names) == read_variables()
    assert len(names) == len(set(names))


def test_copied_env_example_configures_ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text((ROOT / "env.example").read_text(encoding="utf-8"), encoding="utf-8")
    assert settings.load().chain == [("ollama",)]
    assert learnflow.llm.get_provider().name == "ollama"


def test_readmes_python_compiles() -> None:
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL):
        compile(block, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_folder_copied_into_learnflows_tree_works(tmp_path: Path) -> None:
    package = tmp_path / "learnflow"
    shutil.copytree(PACKAGE, package / "llm", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").write_text("GRAPH = 'LearnFlow has its own'\n", encoding="utf-8")
    code = (
        "import learnflow, learnflow.llm; from learnflow.llm.providers import OllamaProvider;"
        "print(learnflow.GRAPH, learnflow.llm.__file__, OllamaProvider().name)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert ran.stdout == f"LearnFlow has its own {package}/llm/__init__.py ollama\n", ran.stderr
    command = [sys.executable, "-m", "learnflow.llm", "ask", "--help"]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False, cwd=tmp_path).returncode == 0


def test_command_started_by_its_path_does_not_import_the_parent_package(tmp_path: Path) -> None:
    package = tmp_path / "learnflow"
    shutil.copytree(PACKAGE, package / "llm", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").write_text("raise ImportError('the graph is loaded')\n", encoding="utf-8")
    command = [sys.executable, "learnflow/llm", "ask", "--provider", "no-such", "hello"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert ran.returncode == 2
    assert "no-such" in ran.stderr
    assert "graph" not in ran.stderr


def test_registry_builds_a_provider_of_the_class_with_its_name() -> None:
    assert providers.build is build
    assert CLASSES.keys() == SPECS.keys()
    assert type(build("ollama", "http://127.0.0.1:1")) is providers.OllamaProvider
    unnamed = build("groq", "http://127.0.0.1:1", "m", "key")
    assert (unnamed.name, "groq" in CLASSES) == ("groq", False)
