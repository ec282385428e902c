"""The active cassettes: those of ``LLM_REPLAY``, which are played or recorded, or those of a test."""

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
from .transport import Cassettes

_C = TypeVar("_C", bound=Cassettes | None)
_HINT: Final = "Set LLM_REPLAY to a folder with cassettes, or record them with LLM_REPLAY_MODE=record"
_by_folder: Final = register("folders of cassettes", dict[tuple[Path, str], Cassettes](), learned=True)
_instead: Final = register("cassettes in place of the environment's", list[Cassettes | None]())


def current(settings: Settings) -> Cassettes | None:
    """Return the cassettes that ``LLM_REPLAY`` or a test selects. All providers of this process share them.

    Returns:
        The cassettes. None if requests go to servers and are not recorded.

    Raises:
        NotConfigured: the folder has no cassettes to play, cannot be created to record, or is not set.
    """
    if _instead:
        return _instead[-1]
    folder, mode = settings.llm_replay, settings.llm_replay_mode
    if folder is None:
        if mode == "record":
            what = "LLM_REPLAY_MODE=record, but LLM_REPLAY names no folder"
            raise errors.NotConfigured(what, hint="Set LLM_REPLAY to a folder, or unset both")
        return None
    folder = folder.expanduser().absolute()
    if (folder, mode) not in _by_folder:
        _by_folder[folder, mode] = Player(read_cassettes(folder)) if mode == "play" else Recorder(folder)
        events.emit(events.Replaying(folder=str(folder), mode=mode))
    return _by_folder[folder, mode]


def plays(cassettes: Cassettes | None) -> bool:
    """Return whether cassettes answer instead of servers."""
    return cassettes is not None and cassettes.providers is not None


@contextmanager
def instead(cassettes: _C) -> Iterator[_C]:
    """Let providers that are created inside use these cassettes instead of those of the environment. For tests."""
    _instead.append(cassettes)
    try:
        yield cassettes
    finally:
        _instead.remove(cassettes)


def read_cassettes(path: Path, hint: str = _HINT) -> dict[str, str]:
    """Return the texts of the cassettes in a folder, or of a single one, by path.

    Args:
        path: the folder, or the file. Other YAML files in the folder are skipped.
        hint: the hint of the error.

    Raises:
        NotConfigured: a file cannot be read, or there is no cassette.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.yaml"), key=lambda file: str(file.with_suffix("")))
    texts, what = {}, f"there is no cassette in {path}"
    try:
        texts = {str(file): file.read_text(encoding="utf-8") for file in files}
    except (OSError, UnicodeError) as error:
        what = f"the cassettes in {path} cannot be read ({type(error).__name__})"
    if not path.is_file():
        texts = {name: text for name, text in texts.items() if "\ninteractions:" in f"\n{text}"}
    if not texts:
        raise errors.NotConfigured(what, hint=hint)
    return texts
