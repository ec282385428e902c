"""The active cassettes: played, recorded or none, as ``LLM_REPLAY`` or a test sets them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, TypeVar

from .. import errors, events
from ..process import register
from .player import Player
from .recorder import Recorder
from .transport import Cassettes

Mode = Literal["play", "record"]


_C = TypeVar("_C", bound=Cassettes | None)
_HINT: Final = "Set LLM_REPLAY to a folder with cassettes, or record them with LLM_REPLAY_MODE=record"
_by_folder: Final = register("folders of cassettes", dict[tuple[Path, Mode], Cassettes](), learned=True)
_instead: Final = register("cassettes in place of the environment's", list[Cassettes | None]())


def current(folder: Path | None, mode: Mode) -> Cassettes | None:
    """Return the active cassettes, which all providers of this process share.

    Args:
        folder: the folder of ``LLM_REPLAY``; None if it is not set.
        mode: whether to play or to record.

    Returns:
        The cassettes, or None if requests go to servers and are not recorded.

    Raises:
        NotConfigured: the folder cannot be played or created.
    """
    if _instead:
        return _instead[-1]
    if folder is None:
        if mode == "record":
            raise errors.NotConfigured(
                "LLM_REPLAY_MODE=record, but LLM_REPLAY names no folder",
                hint="Set LLM_REPLAY to a folder, or unset both",
            )
        return None
    folder = folder.expanduser().absolute()
    if (folder, mode) not in _by_folder:
        _by_folder[folder, mode] = Player(cassettes(folder)) if mode == "play" else Recorder(folder)
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


def cassettes(folder: Path, hint: str = _HINT) -> dict[str, str]:
    """Read the cassettes of a folder, or a single one. Raise NotConfigured if no cassette can be read."""
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.yaml"), key=lambda file: str(file.with_suffix("")))
    try:
        texts = {str(file): file.read_text(encoding="utf-8") for file in files}
    except (OSError, UnicodeError) as error:
        texts, what = {}, f"the cassettes in {folder} cannot be read ({type(error).__name__})"
    else:
        what = f"there is no cassette in {folder}"
    if not folder.is_file():  # skip other YAML files
        texts = {name: text for name, text in texts.items() if "\ninteractions:" in f"\n{text}"}
    if not texts:
        raise errors.NotConfigured(what, hint=hint)
    return texts
