"""Joining a broken text: where to step back to, what comes again and is swallowed, what is an echo. Pure text.

Must never ask a server, or drop what a model honestly says twice.
The router makes a ``Cut`` of what was delivered, and feeds a ``Joiner`` what the next provider says.

A prefix that ends inside a token makes a model derail, and the next provider has another tokenizer: so the prefix that
is sent ends with the last whole word, and what comes back must first repeat the rest (measured with two tokenizers on
llama.cpp, 2026-11: 3,021 of 3,027 cuts gave the identical text, against 575 of 1,639 without).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_STEP: Final = 64  # characters: text without spaces (Chinese, base64) has no word to step back to
_MOST_OVERLAP: Final = 4096  # characters that are compared: longer ones would be looked for a million times
OVERLAP: Final = 24  # the least length of an overlap after a continuation in words


@dataclass(frozen=True, slots=True)
class Cut:
    """What was delivered, as the prefix to send and the rest that must come again."""

    prefix: str
    rest: str

    @property
    def delivered(self) -> str:
        """All of it."""
        return self.prefix + self.rest


def step_back(delivered: str) -> Cut:
    """The cut at the end of the last whole word; within the first word, the whole beginning must come again."""
    tail = delivered[-_STEP - 1 :]
    last = "" if tail[-1:].isspace() else tail.rsplit(maxsplit=1)[-1]
    before = tail[: len(tail) - len(last)].rstrip()
    start = len(delivered) - len(tail) + len(before)
    if len(delivered) - start > _STEP:
        return as_it_broke(delivered)
    return Cut(delivered[:start], delivered[start:])


def as_it_broke(delivered: str) -> Cut:
    """The cut where it broke: for text without words, and where what came again was something else."""
    return Cut(delivered, "")


class Joiner:
    """What follows a cut: feed it what the next provider says, and it gives what the caller has not seen.

    Args:
        cut: what was delivered.
        words: it was asked to continue in words, so that it may begin again, overlap, or leave out a space.

    Attributes:
        torn: what came is not what was delivered; nothing of it was given out. Send the prefix as it broke.
    """

    def __init__(self, cut: Cut, *, words: bool = False) -> None:
        self.torn = False
        self._cut = cut
        self.words = words
        self._held: str | None = ""  # None once the seam is behind us

    def feed(self, text: str) -> str:
        """A piece of what follows; returns what may be given out."""
        if self._held is None:
            return text
        self._held += text
        return self._settled(over=False)

    @property
    def silent(self) -> bool:
        """It has ended, and said nothing at all, not even what had to come again."""
        return self.torn and not self._held

    def end(self) -> str:
        """It has ended; returns what was still held back."""
        return "" if self._held is None else self._settled(over=True)

    def _settled(self, *, over: bool) -> str:
        assert self._held is not None  # noqa: S101  # asked only while something may be held
        if self.torn or not (self._held or over):
            return ""
        after = self._after_words(self._held, over=over) if self.words else self._after_prefix(self._held, over=over)
        if after is None:
            return ""
        self._held = None
        return after

    def _after_prefix(self, held: str, *, over: bool) -> str | None:
        """What follows the delivered text, after a prefill; None while that is open.

        An echo of the whole prefix is known as one only where it cannot be what must come again.
        """
        rest, echo = self._cut.rest, self._cut.delivered
        echoes = bool(self._cut.prefix and rest) and not echo.startswith(rest)
        if held.startswith(rest):
            return held[len(rest) :]
        if echoes and held.startswith(echo):
            return held[len(echo) :]
        if over or not (rest.startswith(held) or (echoes and echo.startswith(held))):
            self.torn = True
        return None

    def _after_words(self, held: str, *, over: bool) -> str | None:
        """What follows the delivered text, after a continuation in words; None while that is open."""
        rest, whole, said = self._cut.rest, self._cut.delivered, held.lstrip()
        begun = whole.lstrip()
        if begun and said.startswith(begun):
            return said[len(begun) :]  # it began again
        if not over and (not said or said in whole):
            return None  # a beginning again, or an overlap, whose end has not come
        for length in range(min(len(said), len(whole), _MOST_OVERLAP), OVERLAP - 1, -1):
            if whole.endswith(said[:length]):
                return said[length:]
        if not rest:
            return held
        space = rest[: len(rest) - len(rest.lstrip())]
        joined = held if held[:1].isspace() else space + held
        if joined.startswith(rest):
            return joined[len(rest) :]
        if over or not rest.startswith(joined):
            self.torn = True
        return None
