"""The wheel and sdist, built without a network, and files that must agree with each other."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import release
import yaml
from support import ROOT

import learnflow.llm

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True, capture_output=True
    )
    return folder


def test_wheel_contains_only_package(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name.startswith(f"learnflow_llm-{learnflow.llm.__version__}-")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "learnflow",
        f"learnflow_llm-{learnflow.llm.__version__}.dist-info",
    }
    assert {name.split("/")[1] for name in names if name.startswith("learnflow/")} == {"llm"}
    assert {"learnflow/llm/py.typed", "learnflow/llm/providers/vendors.json"} <= set(names)


def test_sdist_contains_files_of_tests(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    folders = ("tests", "cassettes", "compose", "docs", "benchmarks", ".github")
    here = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    tracked = {str(path.relative_to(ROOT)) for path in here if path.suffix not in (".pyc", ".gguf")}
    assert tracked - held == set()
    assert {"pyproject.toml", "Makefile", "docker-compose.yml", "env.example", "README.ru.md"} <= held


def test_no_file_names_a_package_registry(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        files = [(member.name, sdist.extractfile(member)) for member in sdist if member.isfile()]
        assert not [name for name, file in files if file and release.REGISTRY.search(file.read())]
    assert "uv.lock" in (ROOT / ".gitignore").read_text(encoding="utf-8")


def test_wheel_runs_in_empty_folder_without_checkout(built: Path, tmp_path: Path) -> None:
    """The requirements are those of this environment, because a test has no package index."""
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(install, cwd=tmp_path, check=True)
    # Only now, so that pip does not see the editable package. The .pth of that package is not read from here.
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    release.check_commands(python.parent, learnflow.llm.__version__)
    program = "import learnflow.llm; print(learnflow.llm.__file__)"
    printed = subprocess.check_output([python, "-P", "-c", program], cwd=tmp_path, env={}, text=True)
    assert Path(printed.strip()) == site / "learnflow" / "llm" / "__init__.py"


def test_sdist_builds_same_wheel_without_git(built: Path, tmp_path: Path) -> None:
    (archive,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(archive) as sdist:
        sdist.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_version_is_in_changelog_with_date() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(learnflow.llm.__version__)} - \d{{4}}-\d\d-\d\d$", text, re.MULTILINE)


def test_workflow_tests_every_supported_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    tested = workflow["jobs"]["oldest-litellm"]["strategy"]["matrix"]["python"]
    claimed = [
        classifier.rpartition(" ")[2] for classifier in PROJECT["project"]["classifiers"] if ":: 3." in classifier
    ]
    assert tested == claimed
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        assert set(re.findall(r"\bmake ([a-z-]+)", path.read_text(encoding="utf-8"))) <= targets
