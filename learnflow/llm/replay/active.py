"""What is put between us and the servers: nothing, tapes that are played, or a recorder.

Must never play or record itself.
The adapter inserts what ``LLM_REPLAY`` names; tests insert their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from .. import errors, events
from .cassette import Asked, Said
from .player import Player
from .recorder import Recorder, Take

Mode = Literal["play", "record"]


class Deck(Protocol):
    """What ``net`` asks before it asks a server.

    Attributes:
        providers: those that are on tape, where only tapes are played; None where servers are asked.
    """

    @property
    def providers(self) -> frozenset[str] | None:
        """Those that are on tape."""
        ...

    def play(self, asked: Asked) -> Said | None:
        """The answer that is on tape; None to ask the server. Raises NotOnTape."""
        ...

    def record(self, asked: Asked) -> Take:
        """Where the server's answer is to be kept."""
        ...


D = TypeVar("D", bound="Deck | None")
_decks: dict[tuple[Path, Mode], Deck] = {}
_instead: list[Deck | None] = []
_aside: ContextVar[bool] = ContextVar("learnflow_llm_aside", default=False)


def inserted(folder: Path | None, mode: Mode) -> Deck | None:
    """The deck for the folder of ``LLM_REPLAY``, the same one for everybody in this process; None for no folder.

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
    if (folder, mode) not in _decks:
        _decks[folder, mode] = Player(tapes(folder)) if mode == "play" else Recorder(folder)
        events.emit(events.Replaying(folder=str(folder), mode=mode))
    return _decks[folder, mode]


def plays(deck: Deck | None) -> bool:
    """Whether only tapes are played."""
    return deck is not None and deck.providers is not None


@contextmanager
def instead(deck: D) -> Iterator[D]:
    """Whatever the environment says, providers that are made inside use this deck, or none. For tests."""
    _instead.append(deck)
    try:
        yield deck
    finally:
        _instead.remove(deck)


@contextmanager
def aside() -> Iterator[None]:
    """What is asked inside is not recorded: it depends on the time, not on the application."""
    token = _aside.set(True)
    try:
        yield
    finally:
        _aside.reset(token)


def for_now(deck: Deck | None) -> Deck | None:
    """The deck to ask for this request."""
    return None if _aside.get() and not plays(deck) else deck


def forget() -> None:
    """The tapes are played from their beginning again. For tests."""
    _decks.clear()


def tapes(folder: Path) -> dict[str, str]:
    """The texts of the tapes of a folder, or of the one that is named. Raises NotConfigured where there is none."""
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.yaml"), key=lambda file: str(file.with_suffix("")))
    try:
        found = {str(file): file.read_text(encoding="utf-8") for file in files}
    except (OSError, UnicodeError) as error:
        found, what = {}, f"the tapes in {folder} cannot be read ({type(error).__name__})"
    else:
        what = f"there is no tape in {folder}"
    if not folder.is_file():  # other YAML may lie about
        found = {
            name: text for name, text in found.items() if text.startswith("interactions:") or "\ninteractions:" in text
        }
    if not found:
        raise errors.NotConfigured(
            what, hint="Set LLM_REPLAY to a folder with tapes, or make them with LLM_REPLAY_MODE=record"
        )
    return found
