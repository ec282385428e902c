"""``tools/copy_into.py``: the package inside a tree like LearnFlow's, and what it says is left to do there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import copy_into
import pytest
from support import PYPROJECT, ROOT, learnflow_checkout

IMPORT = "from ..llm.integrations.learnflow import ModelFactory, create_model_for_node, get_model_factory"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What the command looks at in LearnFlow's checkout, in a folder of the test's."""
    learnflow_checkout(tmp_path)
    return tmp_path


def finish(root: Path) -> None:
    """Do by hand what the command says: the dependencies as ``uv add`` writes them, and the import."""
    wanted = (root / "learnflow" / "llm" / "requirements.txt").read_text(encoding="utf-8").split()
    turned = [
        each.replace("pyyaml", "PyYAML").replace("langchain-core<1,>=0.3.72", "langchain-core>=0.3.72,<1")
        for each in wanted
    ]
    (root / "learnflow" / "pyproject.toml").write_text(PYPROJECT.format(str(turned)[1:-1]), encoding="utf-8")
    names = [each.split("<")[0].split(">")[0].split("!")[0] for each in wanted]
    (root / "uv.lock").write_text("".join(f'[[package]]\nname = "{name}"\n' for name in names), encoding="utf-8")
    (root / "learnflow" / "models" / "model_factory.py").write_text(f"{IMPORT}\n", encoding="utf-8")


def test_it_copies_and_says_what_else_has_to_change(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert copy_into.main([str(root)]) == 0
    said = capsys.readouterr().out
    assert "uv add --package learnflow-core -r learnflow/llm/requirements.txt" in said
    assert IMPORT in said
    assert copy_into.main(["--check", str(root)]) == 1
    finish(root)
    capsys.readouterr()
    assert copy_into.main(["--check", str(root)]) == 0
    assert "No step remains" in capsys.readouterr().out
    sums = ["sha256sum", "--check", "--strict", "--quiet", "VERSION"]
    assert subprocess.run(sums, cwd=root / "learnflow" / "llm", check=False).returncode == 0


def test_the_command_needs_no_installed_package(root: Path) -> None:
    command = [sys.executable, "-I", "-S", str(ROOT / "tools" / "copy_into.py"), str(root)]
    assert subprocess.run(command, cwd=root, capture_output=True, check=False).returncode == 0
    finish(root)
    assert subprocess.run([*command, "--check"], capture_output=True, check=False).returncode == 0
    (root / "learnflow" / "llm" / "sync.py").write_text("edited = True\n", encoding="utf-8")
    ran = subprocess.run([*command, "--check"], capture_output=True, text=True, check=False)
    assert (ran.returncode, "sync.py was edited" in ran.stdout) == (1, True)


def test_an_option_that_does_not_exist_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        copy_into.main(["--forse", "."])
    assert "usage: " in capsys.readouterr().err


def test_what_was_edited_there_is_shown_and_kept(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy_into.main([str(root)])
    file = root / "learnflow" / "llm" / "errors.py"
    ours = file.read_text(encoding="utf-8")
    file.write_text(f"{ours}EDITED = True\n", encoding="utf-8")
    capsys.readouterr()
    assert copy_into.main([str(root)]) == 2
    assert "errors.py" in capsys.readouterr().err
    assert copy_into.main(["--diff", str(root)]) == 0
    assert "\n-EDITED = True\n" in capsys.readouterr().out
    assert copy_into.main(["--force", str(root)]) == 0
    assert "changed: learnflow/llm/errors.py" in capsys.readouterr().out
    assert file.read_text(encoding="utf-8") == ours


def test_a_newer_version_removes_what_it_no_longer_has(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy_into.main([str(root)])
    folder = root / "learnflow" / "llm"
    shutil.copy(folder / "base.py", folder / "gone.py")
    line = next(each for each in (folder / "VERSION").read_text("utf-8").splitlines() if each.endswith("  base.py"))
    with (folder / "VERSION").open("a", encoding="utf-8") as version:
        version.write(f"{line.replace('base.py', 'gone.py')}\n")
    (folder / "theirs.py").write_text("", encoding="utf-8")
    capsys.readouterr()
    assert copy_into.main([str(root)]) == 0
    assert "removed: learnflow/llm/gone.py" in capsys.readouterr().out
    assert not (folder / "gone.py").exists()
    assert (folder / "theirs.py").exists(), "what is not of the copy is left alone"


def test_a_version_file_reaches_nothing_outside_the_folder(root: Path) -> None:
    copy_into.main([str(root)])
    with (root / "learnflow" / "llm" / "VERSION").open("a", encoding="utf-8") as version:
        version.write(f"{'0' * 64}  ../__init__.py\n{'0' * 64}  {root / 'uv.lock'}\n")
    copy_into.main(["--force", str(root)])
    assert (root / "learnflow" / "__init__.py").exists()
    assert (root / "uv.lock").exists()


def test_what_cannot_be_written_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "learnflow" / "llm").write_text("a file in the folder's place", encoding="utf-8")
    assert copy_into.main([str(root)]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--check"], ["--diff"]])
def test_a_folder_that_is_not_learnflows_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert copy_into.main([*words, str(tmp_path)]) == 2
    assert "has no learnflow/__init__.py" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_check_before_the_copy_is_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert copy_into.main(["--check", str(root)]) == 1
    assert capsys.readouterr().out.count("Run tools/copy_into.py without --check") == 1
    assert not (root / "learnflow" / "llm").exists()


def test_nothing_is_written_where_it_is_no_learnflow(tmp_path: Path) -> None:
    (tmp_path / "learnflow").mkdir()
    (tmp_path / "learnflow" / "__init__.py").touch()
    assert copy_into.main([str(tmp_path)]) == 2
    assert [path.name for path in (tmp_path / "learnflow").iterdir()] == ["__init__.py"]


def test_a_link_is_not_written_through(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / "learnflow" / "llm").symlink_to(elsewhere)
    assert copy_into.main([str(root)]) == 2
    assert list(elsewhere.iterdir()) == []
    (root / "learnflow" / "llm").unlink()
    assert copy_into.main([str(root)]) == 0
    (elsewhere / "mine.py").write_text("mine", encoding="utf-8")
    (root / "learnflow" / "llm" / "errors.py").unlink()
    (root / "learnflow" / "llm" / "errors.py").symlink_to(elsewhere / "mine.py")
    assert copy_into.main(["--force", str(root)]) == 0
    assert (elsewhere / "mine.py").read_text(encoding="utf-8") == "mine"


def test_the_lock_of_learnflow_stays_below_langchain_1(root: Path) -> None:
    assert copy_into.main([str(root)]) == 0
    wanted = (root / "learnflow" / "llm" / "requirements.txt").read_text(encoding="utf-8").split()
    assert "langchain-core<1,>=0.3.72" in wanted


def test_diff_and_check_together_say_that_something_differs(root: Path) -> None:
    assert copy_into.main([str(root)]) == 0
    (root / "learnflow" / "llm" / "sync.py").write_text("edited = True\n", encoding="utf-8")
    assert copy_into.main(["--check", "--diff", str(root)]) == 1


def test_ruff_of_learnflow_leaves_the_copy_as_it_is(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its Makefile formats and fixes all of ``learnflow/`` with ruff's defaults."""
    pytest.importorskip("ruff", reason="the tests with the newest LiteLLM have no ruff")
    (root / "learnflow" / "theirs.py").write_text("import os\nx = 'one'\n", encoding="utf-8")
    assert copy_into.main([str(root)]) == 0
    for words in (["check", "--fix"], ["format"]):
        command = [sys.executable, "-m", "ruff", *words, "learnflow/"]
        assert subprocess.run(command, cwd=root, capture_output=True, check=False).returncode == 0
    assert (root / "learnflow" / "theirs.py").read_text(encoding="utf-8") == 'x = "one"\n'
    finish(root)
    assert copy_into.main(["--check", str(root)]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[tool.uv]\n", "has no table [project] with a name"),
        (b"project = 5\n", "has no table [project] with a name"),
        (b"[project]\nname = 5\n", "has no table [project] with a name"),
        (b"[project]\nname = 'x'\ndependencies = 'httpx'\n", "project.dependencies is not a list of texts"),
        (b"[project]\nname = 'x'\ndependencies = [5]\n", "project.dependencies is not a list of texts"),
        (b"[project]\nname = 'x'\nname = 'y'\n", "is not valid TOML"),
        ("[project]\nname = 'ключ'\n".encode("cp1251"), "is not UTF-8"),
        ("[project]\nname = 'x'\n".encode("utf-16"), "is not UTF-8"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
@pytest.mark.parametrize("words", [[], ["--check"]])
def test_pyproject_that_cannot_be_used_is_named(
    words: list[str], content: bytes | None, message: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = root / "learnflow" / "pyproject.toml"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    assert copy_into.main([*words, str(root)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert str(file) in err
    assert not (root / "learnflow" / "llm").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf[project]\r\nname = 'learnflow-core'\r\ndependencies = ['httpx>=0.28.1']\r\n",
        b"[project]\nname = 'learnflow-core'\n",
        b"[project]\nname = 'learnflow-core'\ndependencies = ['x @ https://host/x.whl', 'y [extra] >= 1', '???']\n",
    ],
)
def test_pyproject_with_bom_crlf_or_odd_requirements_is_read(
    content: bytes, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "learnflow" / "pyproject.toml").write_bytes(content)
    assert copy_into.main([str(root)]) == 0
    assert "uv add --package learnflow-core" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--check"], ["--diff"], ["--force"], []])
def test_link_in_copy_is_neither_read_nor_written_through(
    words: list[str], root: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_into.main([str(root)])
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "secret.py").write_text("SECRET", encoding="utf-8")
    for link, target in (("errors.py", elsewhere / "secret.py"), ("cli", elsewhere), ("VERSION", elsewhere / "gone")):
        path = root / "learnflow" / "llm" / link
        shutil.move(path, elsewhere / f"original-{link}")
        path.symlink_to(target)
        capsys.readouterr()
        code = copy_into.main([*words, str(root)])
        out, err = capsys.readouterr()
        assert "SECRET" not in out
        if link != "errors.py":
            assert (code, "is a symbolic link" in err) == (2, True), link
        path.unlink(missing_ok=True)
        shutil.move(elsewhere / f"original-{link}", path)
    assert (elsewhere / "secret.py").read_text(encoding="utf-8") == "SECRET"
    assert not (elsewhere / "gone").exists()
