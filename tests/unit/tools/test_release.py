"""``tools/release.py``: what must be true before a version is built. test_package.py has the wheel itself."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
import release


def git(root: Path, *words: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *words], cwd=root, check=True, capture_output=True)


def commit(root: Path, files: dict[str, str], tag: str | None = None) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    git(root, "add", "-A")
    git(root, "commit", "-m", "Change")
    if tag:
        git(root, "tag", "-a", tag, "-m", tag)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with all that a release of version 1.2.0 needs."""
    git(tmp_path, "init")
    files = {
        "learnflow/llm/__init__.py": '__version__ = "1.2.0"\n',
        "CHANGELOG.md": "# Changelog\n\n## Unreleased\n\n## 1.2.0 - 2026-11-30\n\n- A change.\n",
        ".gitignore": "dist/\n",
    }
    commit(tmp_path, files, tag="v1.2.0")
    return tmp_path


def test_packages_of_tagged_version_are_printed_with_checksum(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(root: Path) -> list[Path]:
        (root / "dist").mkdir()
        for suffix in (".tar.gz", "-py3-none-any.whl"):
            (root / "dist" / f"learnflow_llm-1.2.0{suffix}").write_bytes(suffix.encode())
        return sorted((root / "dist").iterdir())

    checked = list[tuple[str, str]]()
    monkeypatch.setattr(release, "build", build)
    monkeypatch.setattr(release, "check_wheel", lambda wheel, version: checked.append((wheel.name, version)))
    assert release.main(checkout) == 0
    assert checked == [("learnflow_llm-1.2.0-py3-none-any.whl", "1.2.0")]
    sums = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [name for _, name in sums] == [
        "dist/learnflow_llm-1.2.0-py3-none-any.whl",
        "dist/learnflow_llm-1.2.0.tar.gz",
    ]
    assert [value for value, _ in sums] == [
        hashlib.sha256(name.encode()).hexdigest() for name in ("-py3-none-any.whl", ".tar.gz")
    ]


def test_every_fault_is_printed_and_nothing_is_built(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        "learnflow/llm/__init__.py": '__version__ = "1.3.0"\n',
        "constraints.txt": f"--{'index'}-url http://mirror.example/simple\n",
    }
    commit(checkout, files)
    (checkout / "new.py").write_text("")
    assert release.main(checkout) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.removeprefix("release: ").split(".")[0].split(":")[0] for line in lines] == [
        "the tree has uncommitted changes",
        "the commit has no tag v1",
        "CHANGELOG",
        "constraints",
    ]
    assert "## 1.3.0 - YYYY-MM-DD" in lines[2]
    assert not (checkout / "dist").exists()


def test_changes_under_unreleased_are_a_fault(checkout: Path) -> None:
    text = "# Changelog\n\n## Unreleased\n\n### Added\n\n- New.\n\n## 1.2.0 - 2026-11-30\n\n- A change.\n"
    commit(checkout, {"CHANGELOG.md": text})
    git(checkout, "tag", "-f", "v1.2.0")
    (fault,) = release.faults(checkout, "1.2.0")
    assert "changes under `## Unreleased`" in fault


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo learnflow-llm 1.1.0", "instead of the version 1.2.0"),
        (
            "echo learnflow-llm 1.2.0; [ $1 = --version ] || { echo Traceback >&2; exit 1; }",
            "exit code 1:\n(.|\n)*Trace",
        ),
    ],
)
def test_command_that_fails_is_a_fault(tmp_path: Path, script: str, message: str) -> None:
    command = tmp_path / "learnflow-llm"
    command.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    command.chmod(0o755)
    with pytest.raises(release.ReleaseError, match=message):
        release.check_commands(tmp_path, "1.2.0")
