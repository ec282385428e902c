"""Telling thinking from answer in a stream of pieces: inline ``<think>`` tags, split, unclosed, or closing only.

Must never know a server: pure text in, pure text out.
The adapter feeds it what ``wire`` read as content.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

_OPEN: Final = "<think>"
_CLOSE: Final = "</think>"
_QUOTES: Final = "`'\"«“"


class Piece(NamedTuple):
    """What arrived: a piece of the answer, a piece of the thinking, or both."""

    text: str = ""
    thinking: str = ""


class ThinkingSplitter:
    """Splits one answer, piece by piece.

    A tag counts where models put it: ``<think>`` before any answer text (an answer may mention it later), and
    ``</think>`` after it, or alone when nothing was opened, unless it is quoted. White space around the tags belongs to
    the format, not to the answer.

    Args:
        hold: nothing is given out before it is certain to be no thinking: for callers who want the whole text anyway,
            and for models that only close (``specs.OPENS_THINKING_ITSELF``).

    Attributes:
        leaked: a closing tag came alone, after text had been given out as answer.
    """

    def __init__(self, *, hold: bool = False) -> None:
        self.leaked = False
        self._hold = hold
        self._state: Literal["begin", "think", "answer"] = "begin"
        self._rest = ""  # seen, not yet told
        self._held: list[str] = []  # answer, unless a closing tag comes
        self._last = ""  # the character before the rest
        self._settled = False  # a tag was closed, or the answer speaks about tags: no lone closing tag counts any more

    def feed(self, piece: str) -> Piece:
        """What can be told of the text so far; the rest waits for the next piece."""
        if self._state == "answer" and not self._rest and "<" not in piece:  # most pieces
            self._last = piece[-1:] or self._last
            if not self._hold or self._settled:
                return Piece(piece)
            self._held.append(piece)
            return Piece()
        self._rest += piece
        text, thinking = "", ""
        before = None
        while before != (self._state, self._rest):
            before = (self._state, self._rest)
            got = {"begin": self._begin, "think": self._think, "answer": self._answer}[self._state]()
            text += got.text
            thinking += got.thinking
        return Piece(text, thinking)

    def separated(self) -> Piece:
        """The server separates thinking itself: nothing needs holding back any more."""
        self._hold = False
        return Piece(self._release())

    def end(self) -> Piece:
        """What was still waiting: thinking where a tag was left open, answer otherwise."""
        rest, self._rest = self._rest, ""
        if self._state == "think":
            return Piece(thinking=rest)
        if self._state == "begin" and self._settled:  # white space behind a closing tag is the format's
            return Piece(rest.lstrip())
        return Piece(self._release() + rest)

    def _release(self) -> str:
        held, self._held = "".join(self._held), []
        return held

    def _begin(self) -> Piece:
        """Nothing but white space so far: a tag may open."""
        start = self._rest.lstrip()
        if start.startswith(_OPEN):
            self._rest, self._state = start[len(_OPEN) :], "think"
        elif start and not _OPEN.startswith(start):
            self._rest = start if self._settled else self._rest
            self._state = "answer"
        return Piece()

    def _think(self) -> Piece:
        """Between the tags."""
        thought, found, rest = self._rest.partition(_CLOSE)
        if found:
            self._rest, self._state, self._settled = rest, "begin", True
            return Piece(thinking=thought)
        return Piece(thinking=self._take(len(self._rest) - _overlap(self._rest, _CLOSE)))

    def _answer(self) -> Piece:
        """Answer, until a closing tag comes that nothing opened."""
        if self._settled:
            return Piece(self._release() + self._take(len(self._rest)))
        at = self._lone_close()
        if at >= 0:
            self.leaked = not self._hold and bool(self._last)
            thought = self._release() + self._take(at)
            self._rest, self._state, self._settled = self._rest[len(_CLOSE) :], "begin", True
            return Piece(thinking=thought)
        self._settled = _OPEN in self._rest
        text = self._take(len(self._rest) - max(_overlap(self._rest, _CLOSE), _overlap(self._rest, _OPEN)))
        if self._hold and not self._settled:
            self._held.append(text)
            return Piece()
        return Piece(self._release() + text)

    def _take(self, length: int) -> str:
        taken, self._rest = self._rest[:length], self._rest[length:]
        self._last = taken[-1:] or self._last
        return taken

    def _lone_close(self) -> int:
        """Where a closing tag stands that is not quoted and that no opening one precedes, or -1."""
        end = self._rest.find(_OPEN)
        at = self._rest.find(_CLOSE, 0, end if end >= 0 else None)
        while at >= 0 and (self._rest[at - 1] if at else self._last) in _QUOTES and (at or self._last):
            at = self._rest.find(_CLOSE, at + 1)
        return at


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of the text may be the beginning of the tag."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
