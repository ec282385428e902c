"""Build the wheel and the sdist of a tagged version into ``dist/``, check them, and print their SHA-256.

    python tools/release.py

It uploads nothing. Before the build it checks the state of the checkout, and prints every fault. After the build it
installs the wheel into an empty virtual environment, with the package index that pip is configured for.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
_VERSION: Final = re.compile(r'^__version__ = "(.+?)"', re.MULTILINE)
# A lock file or a list of constraints may contain the index of the machine that wrote it. Brackets: not this line.
REGISTRY: Final = re.compile(rb"pypi[.]org|python[h]osted|index[-]url")
_NO_PROVIDER: Final = 3  # exit code of `status` if nothing is configured and no server responds
_OF_WINDOWS: Final = {"SYSTEMROOT"}  # Python does not start without it


class ReleaseError(Exception):
    """The version cannot be released."""


def main(root: Path = ROOT) -> int:
    """Run the checks and the build. Return the exit code."""
    try:
        version = read_version(root)
        require_no_faults(root, version)
        packages = build(root)
        check_wheel(next(path for path in packages if path.suffix == ".whl"), version)
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    for path in packages:
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(root)}")
    return 0


def read_version(root: Path) -> str:
    """Return the version of the package."""
    (version,) = _VERSION.findall((root / "learnflow" / "llm" / "__init__.py").read_text(encoding="utf-8"))
    return str(version)


def require_no_faults(root: Path, version: str) -> None:
    """Raise ReleaseError with every reason why the checkout cannot be released."""
    if found := list(faults(root, version)):
        raise ReleaseError("\nrelease: ".join(found))


def faults(root: Path, version: str) -> Iterator[str]:
    """Yield a sentence for each reason why the checkout cannot be released."""
    if changes := _git(root, "status", "--porcelain"):
        yield f"the tree has uncommitted changes: {', '.join(changes)}. Commit or remove them."
    if f"v{version}" not in _git(root, "tag", "--points-at", "HEAD"):
        yield f"the commit has no tag v{version}. Create it: git tag -a v{version} -m v{version}"
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        yield f"CHANGELOG.md has no entry `## {version} - YYYY-MM-DD`. Rename `## Unreleased`."
    elif re.search(r"^## Unreleased\n+(?!## )\S", changelog, re.MULTILINE):
        yield "CHANGELOG.md has changes under `## Unreleased`. Move them to a version, and raise `__version__`."
    for name in _git(root, "-c", "core.quotePath=false", "ls-files"):
        if match := REGISTRY.search((root / name).read_bytes()):
            yield f"{name} names a package registry ({match[0].decode()}). Remove the name."


def build(root: Path) -> list[Path]:
    """Return the paths of a new sdist and a new wheel. Other files of ``dist/`` are removed."""
    dist = root / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    _run([sys.executable, "-m", "hatchling", "build", "-d", str(dist)], root)
    return sorted(dist.iterdir())


def check_wheel(wheel: Path, version: str) -> None:
    """Install a wheel into an empty virtual environment, and run its commands. Raise ReleaseError if one fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "venv", with_pip=True)
        scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        _run([str(scripts / "python"), "-m", "pip", "install", "--quiet", str(wheel)], folder)
        check_commands(scripts, version)


def check_commands(scripts: Path, version: str) -> None:
    """Run the installed commands in an empty folder, without configuration. Raise ReleaseError if one fails."""
    command = str(scripts / "learnflow-llm")
    with tempfile.TemporaryDirectory() as folder:
        environment = {"PATH": str(scripts), "HOME": folder, "USERPROFILE": folder}
        environment |= {name: os.environ[name] for name in _OF_WINDOWS & set(os.environ)}
        printed = _run([command, "--version"], Path(folder), environment)
        if printed != f"learnflow-llm {version}\n":
            raise ReleaseError(f"`learnflow-llm --version` prints {printed!r} instead of the version {version}")
        _run([command, "status"], Path(folder), environment, allowed=(0, _NO_PROVIDER))


def _run(
    command: list[str], folder: Path, environment: dict[str, str] | None = None, allowed: tuple[int, ...] = (0,)
) -> str:
    """Return the output of a command. Raise ReleaseError if it fails."""
    ran = subprocess.run(  # noqa: S603  # constant commands
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", check=False
    )
    if ran.returncode not in allowed:
        raise ReleaseError(f"`{' '.join(command)}` failed with exit code {ran.returncode}:\n{ran.stdout}{ran.stderr}")
    return ran.stdout


def _git(root: Path, *words: str) -> list[str]:
    return _run(["git", *words], root).splitlines()


if __name__ == "__main__":
    sys.exit(main())
