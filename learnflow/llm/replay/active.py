"""Which cassettes are in force: none, those that are played, or a recorder's; by ``LLM_REPLAY``, or by a test."""

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


D = TypeVar("D", bound="Cassettes | None")
_MAKE: Final = "Set LLM_REPLAY to a folder with cassettes, or make them with LLM_REPLAY_MODE=record"
_known: Final = register("folders of cassettes", dict[tuple[Path, Mode], Cassettes](), learned=True)
_instead: Final = register("cassettes in place of the environment's", list[Cassettes | None]())


def current(folder: Path | None, mode: Mode) -> Cassettes | None:
    """The cassettes in the folder of ``LLM_REPLAY``, the same for everybody in this process; None for no folder.

    Raises:
        NotConfigured: it cannot be played, or made.
    """
    if _instead:
        return _instead[-1]
    if folder is None:
        if mode == "record":
            raise errors.NotConfigured(
                "LLM_REPLAY_MODE=record, and LLM_REPLAY names no folder", hint="Set LLM_REPLAY to one, or unset both"
            )
        return None
    folder = folder.expanduser().absolute()
    if (folder, mode) not in _known:
        _known[folder, mode] = Player(cassettes(folder)) if mode == "play" else Recorder(folder)
        events.emit(events.Replaying(folder=str(folder), mode=mode))
    return _known[folder, mode]


def plays(cassettes: Cassettes | None) -> bool:
    """Whether only recordings answer."""
    return cassettes is not None and cassettes.providers is not None


@contextmanager
def instead(cassettes: D) -> Iterator[D]:
    """Whatever the environment says, providers that are made inside use these, or none. For tests."""
    _instead.append(cassettes)
    try:
        yield cassettes
    finally:
        _instead.remove(cassettes)


def cassettes(folder: Path, hint: str = _MAKE) -> dict[str, str]:
    """The texts of the cassettes of a folder, or of the one that is named. Raises NotConfigured where there is none."""
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.yaml"), key=lambda file: str(file.with_suffix("")))
    try:
        found = {str(file): file.read_text(encoding="utf-8") for file in files}
    except (OSError, UnicodeError) as error:
        found, what = {}, f"the cassettes in {folder} cannot be read ({type(error).__name__})"
    else:
        what = f"there is no cassette in {folder}"
    if not folder.is_file():  # other YAML may lie about
        found = {
            name: text for name, text in found.items() if text.startswith("interactions:") or "\ninteractions:" in text
        }
    if not found:
        raise errors.NotConfigured(what, hint=hint)
    return found
