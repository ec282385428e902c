"""The active player or recorder of cassettes (files of responses), selected by a test, else by ``LLM_REPLAY``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from .. import errors, events
from ..process import register
from ..settings import Settings
from .player import Player
from .recorder import Recorder
from .transport import CassetteBackend

_C = TypeVar("_C", bound=CassetteBackend | None)
_HINT: Final = "Set LLM_REPLAY to a folder with cassettes, or record them with LLM_REPLAY_MODE=record"
_MAX_CASSETTE_BYTES: Final = 64 * 1024 * 1024
_by_folder: Final = register("folders of cassettes", dict[tuple[Path, str], CassetteBackend](), learned=True)
_overrides: Final = register("cassettes that override the environment", list[CassetteBackend | None]())


def current(settings: Settings) -> CassetteBackend | None:
    """Return the player or the recorder that a test or ``LLM_REPLAY`` selects; None if neither does.

    All providers with the same ``LLM_REPLAY`` and mode share one player or recorder.

    Raises:
        NotConfigured: in play mode, the folder ``LLM_REPLAY`` has no readable cassettes. In record mode, the folder
            cannot be created, or the variable is not set.
    """
    if _overrides:
        return _overrides[-1]
    folder, mode = settings.llm_replay, settings.llm_replay_mode
    if folder is None:
        if mode == "record":
            what = "LLM_REPLAY_MODE=record, but LLM_REPLAY names no folder"
            raise errors.NotConfigured(what, hint="Set LLM_REPLAY to a folder, or unset both")
        return None
    if (folder, mode) not in _by_folder:
        _by_folder[folder, mode] = Player(read_cassettes(folder)) if mode == "play" else Recorder(folder)
        events.emit(events.Replaying(folder=str(folder), mode=mode))
    return _by_folder[folder, mode]


def is_replay(cassettes: CassetteBackend | None) -> bool:
    """Return whether responses come from cassettes instead of servers."""
    return cassettes is not None and cassettes.providers is not None


@contextmanager
def override(cassettes: _C) -> Iterator[_C]:
    """Use this player or recorder instead of ``LLM_REPLAY`` for providers that the block creates. For tests."""
    _overrides.append(cassettes)
    try:
        yield cassettes
    finally:
        _overrides.remove(cassettes)


def read_cassettes(path: Path, hint: str = _HINT) -> dict[str, str]:
    """Read a cassette, or all cassettes in a folder, and return their texts by path.

    Skip YAML files in the folder that are not cassettes.

    Raises:
        NotConfigured: a file cannot be read, or there is no cassette. The error has this ``hint``.
    """
    texts, what = {}, f"there is no cassette in {path}"
    try:
        files = [path] if path.is_file() else sorted(path.rglob("*.yaml"), key=lambda file: str(file.with_suffix("")))
        texts = {str(file): _read(file) for file in files if not file.is_dir()}
    except (OSError, ValueError) as error:  # ValueError: a file is too large or not UTF-8
        what = f"the cassettes in {path} cannot be read ({type(error).__name__})"
    if not path.is_file():
        texts = {name: text for name, text in texts.items() if "\ninteractions:" in f"\n{text}"}
    if not texts:
        raise errors.NotConfigured(what, hint=hint)
    return texts


def _read(file: Path) -> str:
    """Read a file. Raise OSError or ValueError if it is not a regular file, too large or not UTF-8."""
    if not file.is_file() and file.exists():
        raise OSError  # reading a pipe or a device would not end
    with file.open("rb") as stream:
        data = stream.read(_MAX_CASSETTE_BYTES + 1)
    if len(data) > _MAX_CASSETTE_BYTES:
        raise ValueError
    return data.decode()
