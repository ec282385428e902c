"""``copy-into``: this package as a folder of LearnFlow's tree, and what else has to change there.

Must never import LearnFlow or a provider, nor write anything outside the copied folder.
The copy carries three files of its own: ``requirements.txt`` for ``uv add -r``, ``ruff.toml``, which excludes the copy
from LearnFlow's ``ruff format``, and ``VERSION`` with its sums, as ``sha256sum -c`` reads them.
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Final

from ..errors import InvalidRequest

HERE: Final = Path(__file__).resolve().parent.parent
NAME: Final = "learnflow-llm"
VERSION: Final = "VERSION"
REQUIREMENTS: Final = "requirements.txt"
# LearnFlow formats with ruff's defaults: without it, `ruff format learnflow/` would edit most files of the copy.
RUFF: Final = ("ruff.toml", b'cache-dir = "../../.ruff_cache"\nexclude = ["*"]\n')
# Below 1, as the Langfuse that LearnFlow has wants it: uv resolves the lock anew, and would take the newest.
_LANGCHAIN: Final = "langchain-core<1,>=0.3.72"
IMPORT: Final = (
    "from ..llm.integrations.learnflow import "
    "ModelFactory, create_model_for_node, get_model_factory, initialize_model_factory  # noqa: F401"
)


async def copy_into(options: SimpleNamespace) -> int:
    """Copy, or with ``--check`` and ``--diff`` only look. Returns 1 where a check finds something to do."""
    return await asyncio.to_thread(_copied, options)


def _copied(options: SimpleNamespace) -> int:
    root = Path(options.path).resolve()
    if not (root / "learnflow" / "__init__.py").is_file():
        raise InvalidRequest(f"{root} has no learnflow/__init__.py", hint="Name the folder of LearnFlow's checkout")
    copy = _look(root / "learnflow" / "llm")
    list(_steps(root))  # whether it is laid out as LearnFlow is, before anything is written
    if options.diff:
        print(copy.diff(), end="")
        return 1 if options.check and copy.changed else 0
    try:
        if not options.check:
            _write(copy, force=options.force)
    except OSError as error:
        what = f"{error.filename or copy.folder} cannot be written ({error.strerror})"
        raise InvalidRequest(what, hint="Mend that, and copy again: files that are there whole are kept") from None
    left = [*(copy.findings() if options.check else ()), *_steps(root)]
    print(f"To be done in {root}:" if left else f"{copy.folder} is whole, and nothing is left to do.")
    print("".join(f"- {step}\n" for step in left), end="")
    return 1 if options.check and left else 0


@dataclass(frozen=True)
class _Copy:
    """The folder of a copy: what belongs there, what lies there, and what ``VERSION`` says was copied (sums)."""

    folder: Path
    package: Mapping[str, bytes]
    ours: Mapping[str, str]
    there: Mapping[str, str]
    recorded: Mapping[str, str]

    @property
    def changed(self) -> list[str]:
        """What copying would write or remove."""
        names = self.ours.keys() | self.recorded.keys()
        return sorted(name for name in names if self.ours.get(name) != self.there.get(name))

    @property
    def edited(self) -> list[str]:
        """What was changed there since it was copied."""
        return [name for name in self.changed if self.there.get(name) not in (None, self.recorded.get(name))]

    def findings(self) -> Iterator[str]:
        """What a check has to say about the folder."""
        if not self.recorded:
            yield f"learnflow/llm is no copy of this command's: {NAME} copy-into makes it"
            return
        for name in self.changed:
            what = "was edited there" if name in self.edited else "is not the one of this version"
            yield f"learnflow/llm/{name} {what if name in self.there else 'is missing'}"
        for name in sorted(self.there.keys() - self.ours.keys() - self.recorded.keys()):
            yield f"learnflow/llm/{name} is not of {NAME}"

    def diff(self) -> str:
        """From what lies there to what belongs there, as ``diff -u`` has it."""
        return "".join(line for name in self.changed for line in self._diff(name))

    def _diff(self, name: str) -> Iterator[str]:
        file = self.folder / name
        old = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
        new = self.package.get(name, b"").decode(errors="replace")
        path = f"learnflow/llm/{name}"
        lines = (old.splitlines(keepends=True), new.splitlines(keepends=True))
        yield from difflib.unified_diff(*lines, f"a/{path}", f"b/{path}")


def _look(folder: Path) -> _Copy:
    package = _files(HERE)
    if REQUIREMENTS not in package:  # a copy has them, and may be where nothing of ours is installed
        package[REQUIREMENTS] = "".join(f"{each}\n" for each in _requirements()).encode()
        package.update([RUFF])
    recorded = _recorded(folder)
    ours = recorded if folder == HERE else _sums(package)
    return _Copy(folder, package, ours, _sums(_files(folder)), recorded)


def _files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name != "__pycache__"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.name != VERSION}


def _sums(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def _recorded(folder: Path) -> dict[str, str]:
    """The sums of ``VERSION``, of files below the folder; none where there is no such file."""
    file = folder / VERSION
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    lines = re.findall(r"^([0-9a-f]{64})  (\S+)$", text, re.MULTILINE)
    return {name: each for each, name in lines if not name.startswith("/") and ".." not in Path(name).parts}


def _write(copy: _Copy, *, force: bool) -> None:
    """Make the folder what it should be; ``VERSION`` last, so that a copy that was interrupted fails the check."""
    if copy.folder == HERE:
        raise InvalidRequest("this is the copy itself", hint="Run copy-into of a newer version, or --check here")
    linked = [each for each in (copy.folder.parent, copy.folder, *copy.folder.rglob("*/")) if each.is_symlink()]
    if linked:
        raise InvalidRequest(f"{linked[0]} is a link: what is copied would be written elsewhere", hint="Remove it")
    if copy.edited and not force:
        raise InvalidRequest(
            f"these were edited in {copy.folder} since they were copied: {', '.join(copy.edited)}",
            hint="--diff shows what would be lost; --force overwrites it",
        )
    for name in copy.changed:
        file = copy.folder / name
        kind = "changed" if name in copy.there else "new"
        if name in copy.package:
            file.parent.mkdir(parents=True, exist_ok=True)
            _replace(file, copy.package[name])
        else:
            file.unlink(missing_ok=True)
            kind = "removed"
        if copy.recorded:  # it was there before: show what differs
            print(f"{kind}: learnflow/llm/{name}")
    title = _title()
    text = "\n".join([f"# {title}", *(f"{each}  {name}" for name, each in copy.ours.items()), ""])
    _replace(copy.folder / VERSION, text.encode())
    print(f"{title} is in {copy.folder}: {len(copy.changed)} of {len(copy.ours)} files changed")


def _replace(file: Path, content: bytes) -> None:
    """Write it whole or not at all, in the place of what is there, which may be a link."""
    beside = file.with_name(f".{file.name}.new")
    try:
        beside.write_bytes(content)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def _title() -> str:
    own = HERE / VERSION
    return (
        own.read_text(encoding="utf-8").partition("\n")[0][2:] if own.exists() else f"{NAME} {metadata.version(NAME)}"
    )


def _requirements() -> list[str]:
    """What the package needs inside LearnFlow, its extra for LangChain included."""
    wanted = [each.partition(";") for each in metadata.requires(NAME) or ()]
    ours = (what.strip() for what, _, when in wanted if not when or "'langchain'" in when.replace('"', "'"))
    return sorted(_LANGCHAIN if each.startswith("langchain-core") else each for each in ours)


def _steps(root: Path) -> Iterator[str]:
    """What still has to change outside the folder."""
    file = root / "learnflow" / "pyproject.toml"
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        lock = (root / "uv.lock").read_text(encoding="utf-8")
        factory = (root / "learnflow" / "models" / "model_factory.py").read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError) as error:
        raise InvalidRequest(f"{root} is not laid out as LearnFlow is: {error}") from None
    has = {_parsed(each) for each in project.get("dependencies", ())}
    wanted = [_parsed(each) for each in _own_requirements(root)]
    if any(each not in has or f'name = "{each[0]}"' not in lock for each in wanted):
        yield (
            f"dependencies and lock: uv add --package {project['name']} -r learnflow/llm/{REQUIREMENTS}\n"
            "  Dockerfile needs no change; then build the image again: docker compose build graph"
        )
    if "llm.integrations.learnflow" not in factory:
        yield f"learnflow/models/model_factory.py: let it consist of this line\n  {IMPORT}"


def _own_requirements(root: Path) -> list[str]:
    file = root / "learnflow" / "llm" / REQUIREMENTS
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [line for line in lines if line.strip()]


def _parsed(requirement: str) -> tuple[str, frozenset[str]]:
    """The name and the bounds, whose order may differ."""
    name, bounds = re.findall(r"^([\w.-]+?)(?:\[.*\])?\s*([^\w.\[-].*)?$", requirement.partition(";")[0].strip())[0]
    return name.lower().replace("_", "-"), frozenset(each.strip() for each in bounds.split(",") if each)
