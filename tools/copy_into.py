"""Copy ``learnflow.llm`` into LearnFlow's tree and print the other changes that LearnFlow needs.

    python tools/copy_into.py PATH [--check] [--diff] [--force]

It imports neither LearnFlow nor the package, and writes only into the copied folder. The copy has three more files:

- ``requirements.txt`` for ``uv add -r``,
- ``ruff.toml``, which excludes the copy from LearnFlow's ``ruff format``,
- ``VERSION`` with the checksums of the files in the format of ``sha256sum -c``.

Exit codes: 0 success, 1 ``--check`` found differences or remaining steps, 2 the path cannot be used.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGE: Final = ROOT / "learnflow" / "llm"
VERSION: Final = "VERSION"
REQUIREMENTS: Final = "requirements.txt"
# LearnFlow formats with ruff's defaults. Without this file, `ruff format learnflow/` would edit most of the copy.
RUFF: Final = b'cache-dir = "../../.ruff_cache"\nexclude = ["*"]\n'
# LearnFlow's Langfuse requires a version below 1. Without the bound, uv would choose the newest.
_LANGCHAIN: Final = "langchain-core<1,>=0.3.72"
IMPORT: Final = (
    "from ..llm.integrations.learnflow import "
    "ModelFactory, create_model_for_node, get_model_factory, initialize_model_factory  # noqa: F401"
)


class RefusedError(Exception):
    """The path cannot be used, or the copy would overwrite edits."""


def main(arguments: list[str] | None = None) -> int:
    """Run the tool. Return the exit code."""
    parser = argparse.ArgumentParser(
        description="Copy learnflow.llm into a checkout of LearnFlow, and print the other changes that LearnFlow "
        "needs. A second run updates the copy. It does not overwrite files that were edited in LearnFlow."
    )
    parser.add_argument("path", help="the folder of LearnFlow's checkout")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a change is needed")
    parser.add_argument(
        "--diff", action="store_true", help="change nothing; print the differences that copying would make"
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that were edited in LearnFlow")
    options = parser.parse_args(arguments)
    try:
        return _run(Path(options.path).resolve(), options)
    except RefusedError as error:
        print(f"copy_into: {error}.", file=sys.stderr)
        return 2


def _run(root: Path, options: argparse.Namespace) -> int:
    if not (root / "learnflow" / "__init__.py").is_file():
        raise RefusedError(f"{root} has no learnflow/__init__.py. Name the folder of LearnFlow's checkout")
    folder = root / "learnflow" / "llm"
    for path in (folder.parent, folder, *_walk(folder)):
        if path.is_symlink() and (path.is_dir() or path.name == VERSION):
            raise RefusedError(f"{path} is a symbolic link to another place. Remove it")
    copy = _read_copy(folder)
    list(_remaining_steps(root))  # raises before the first write if the layout is unknown
    if options.diff:
        print(copy.diff(), end="")
        return 1 if options.check and copy.changed else 0
    try:
        if not options.check:
            _write(copy, force=options.force)
    except OSError as error:
        name = error.filename or copy.folder
        raise RefusedError(f"{name} cannot be written ({error.strerror}). Make it writable, and copy again") from None
    steps = [*(copy.findings() if options.check else ()), *_remaining_steps(root)]
    print(f"Remaining steps in {root}:" if steps else f"{copy.folder} is complete. No step remains.")
    print("".join(f"- {step}\n" for step in steps), end="")
    return 1 if options.check and steps else 0


@dataclass(frozen=True)
class _Copy:
    """The copy in LearnFlow, compared with the package.

    Attributes:
        folder: the folder of the copy.
        package: the contents of the files to copy.
        package_sums: the checksums of the files to copy.
        folder_sums: the checksums of the files in the folder.
        recorded_sums: the checksums in the folder's ``VERSION``; empty before the first copy.
    """

    folder: Path
    package: Mapping[str, bytes]
    package_sums: Mapping[str, str]
    folder_sums: Mapping[str, str]
    recorded_sums: Mapping[str, str]

    @property
    def changed(self) -> list[str]:
        """Return the files that copying would write or remove."""
        names = self.package_sums.keys() | self.recorded_sums.keys()
        return sorted(name for name in names if self.package_sums.get(name) != self.folder_sums.get(name))

    @property
    def edited(self) -> list[str]:
        """Return the files that were edited in the folder after they were copied."""
        return [name for name in self.changed if self.folder_sums.get(name) not in (None, self.recorded_sums.get(name))]

    def findings(self) -> Iterator[str]:
        """Yield a sentence for each difference between the folder and this version."""
        if not self.recorded_sums:
            yield "learnflow/llm is not a copy. Run tools/copy_into.py without --check"
            return
        for name in self.changed:
            what = "was edited" if name in self.edited else "is from another version"
            yield f"learnflow/llm/{name} {what if name in self.folder_sums else 'is missing'}"
        for name in sorted(self.folder_sums.keys() - self.package_sums.keys() - self.recorded_sums.keys()):
            yield f"learnflow/llm/{name} is not part of learnflow-llm"

    def diff(self) -> str:
        """Return the differences between the folder and the package in the format of ``diff -u``."""
        return "".join(line for name in self.changed for line in self._diff(name))

    def _diff(self, name: str) -> Iterator[str]:
        file = self.folder / name
        is_file = file.is_file() and not file.is_symlink()
        old = file.read_text(encoding="utf-8", errors="replace") if is_file else ""
        new = self.package.get(name, b"").decode(errors="replace")
        path = f"learnflow/llm/{name}"
        lines = (old.splitlines(keepends=True), new.splitlines(keepends=True))
        yield from difflib.unified_diff(*lines, f"a/{path}", f"b/{path}")


def _read_copy(folder: Path) -> _Copy:
    requirements = "".join(f"{line}\n" for line in _requirements()).encode()
    package = {**_files(PACKAGE), REQUIREMENTS: requirements, "ruff.toml": RUFF}
    return _Copy(folder, package, _sums(package), _sums(_files(folder)), _recorded(folder))


def _files(folder: Path) -> dict[str, bytes]:
    """Return the contents of the files, except caches and ``VERSION``. A link has no content: it is not followed."""
    paths = [path for path in _walk(folder) if path.is_symlink() or path.is_file()]
    paths = [path for path in paths if path.parent.name != "__pycache__" and path.name != VERSION]
    return {path.relative_to(folder).as_posix(): b"" if path.is_symlink() else path.read_bytes() for path in paths}


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files and folders below a folder in order. Do not follow links."""
    for name, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(name) / entry for entry in sorted([*folders, *files]))


def _sums(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def _recorded(folder: Path) -> dict[str, str]:
    """Return the checksums in ``VERSION``, or an empty dict if there is no such file."""
    file = folder / VERSION
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    lines = re.findall(r"^([0-9a-f]{64})  (\S+)$", text, re.MULTILINE)
    return {name: digest for digest, name in lines if not name.startswith("/") and ".." not in Path(name).parts}


def _write(copy: _Copy, *, force: bool) -> None:
    """Write the folder. ``VERSION`` is written last, so that an interrupted copy fails the check."""
    if copy.edited and not force:
        raise RefusedError(
            f"files in {copy.folder} were edited: {', '.join(copy.edited)}. "
            "Use --diff to show the edits, and --force to overwrite them"
        )
    for name in copy.changed:
        file = copy.folder / name
        kind = "changed" if name in copy.folder_sums else "new"
        if name in copy.package:
            file.parent.mkdir(parents=True, exist_ok=True)
            _replace(file, copy.package[name])
        else:
            file.unlink(missing_ok=True)
            kind = "removed"
        if copy.recorded_sums:  # not in the first copy
            print(f"{kind}: learnflow/llm/{name}")
    title = _title()
    text = "\n".join([f"# {title}", *(f"{digest}  {name}" for name, digest in copy.package_sums.items()), ""])
    _replace(copy.folder / VERSION, text.encode())
    print(f"{title} is in {copy.folder}: {len(copy.changed)} of {len(copy.package_sums)} files changed")


def _replace(file: Path, content: bytes) -> None:
    """Write a file completely or not at all. A link is replaced, not followed."""
    temporary = file.with_name(f".{file.name}.new")
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _title() -> str:
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.+?)"', source, re.MULTILINE)
    return f"learnflow-llm {version}"


def _requirements() -> list[str]:
    """Return the dependencies of the copy: those of the package, and LangChain."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return sorted([*project["dependencies"], _LANGCHAIN])


def _remaining_steps(root: Path) -> Iterator[str]:
    """Yield the changes that LearnFlow needs outside the folder."""
    file = root / "learnflow" / "pyproject.toml"
    try:
        project = tomllib.loads(_read(file)).get("project")
    except tomllib.TOMLDecodeError as error:
        raise RefusedError(f"{file} is not valid TOML: {error}. Correct it") from None
    if not isinstance(project, dict) or not isinstance(project.get("name"), str):
        raise RefusedError(f"{file} has no table [project] with a name. Name the folder of LearnFlow's checkout")
    dependencies = project.get("dependencies", [])
    if not isinstance(dependencies, list) or not all(isinstance(line, str) for line in dependencies):
        raise RefusedError(f"{file}: project.dependencies is not a list of texts. Correct it")
    lock, factory = _read(root / "uv.lock"), _read(root / "learnflow" / "models" / "model_factory.py")
    present = {_parse_requirement(line) for line in dependencies}
    required = [_parse_requirement(line) for line in _copied_requirements(root)]
    if any(one not in present or f'name = "{one[0]}"' not in lock for one in required):
        yield (
            f"dependencies and lock: uv add --package {project['name']} -r learnflow/llm/{REQUIREMENTS}\n"
            "  then build the image again: docker compose build graph"
        )
    if "llm.integrations.learnflow" not in factory:
        yield f"learnflow/models/model_factory.py: replace the content by this line\n  {IMPORT}"


def _read(file: Path) -> str:
    """Return the text of a file in UTF-8, without a BOM."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RefusedError(f"{file} cannot be read ({error.strerror}). It is part of LearnFlow's checkout") from None
    except UnicodeDecodeError:
        raise RefusedError(f"{file} is not UTF-8. Convert it") from None


def _copied_requirements(root: Path) -> list[str]:
    file = root / "learnflow" / "llm" / REQUIREMENTS
    lines = _read(file).splitlines() if file.exists() else []
    return [line for line in lines if line.strip()]


def _parse_requirement(requirement: str) -> tuple[str, frozenset[str]]:
    """Return the name and the set of version bounds, because their order may differ."""
    found = re.search(r"^([\w.-]+?)\s*(?:\[.*\])?\s*([^\w.\[-].*)?$", requirement.partition(";")[0].strip())
    name, bounds = (found[1], found[2] or "") if found else (requirement, "")
    return name.lower().replace("_", "-"), frozenset(bound.strip() for bound in bounds.split(",") if bound)


if __name__ == "__main__":
    sys.exit(main())
