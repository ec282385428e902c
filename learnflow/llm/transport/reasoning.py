"""Telling thinking from answer in a stream of pieces: inline ``<think>`` tags, split, unclosed, or closing only."""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

from ..completion import ToolCallDelta

_OPEN: Final = "<think>"
_CLOSE: Final = "</think>"
_QUOTES: Final = dict(zip("`'\"(*_|«“„\u2018", "`'\")*_|»”“\u2019", strict=True))
_GOES_ON: Final = re.compile(r" \S|[.,;:!?)…]|-\w")  # the sentence, behind the tag
_NEXT_LINE: Final = re.compile(r"\n[^\n]")  # the same, in the next line
_SENTENCE_ENDS: Final = ".!?…:;"
# Models whose template opens the thinking itself, so that the answer carries only a closing </think> when the server
# does not separate it (DeepSeek-R1's and Qwen3-Thinking's model cards). Their text is held back until it comes.
OPENS_THINKING_ITSELF: Final = re.compile(
    r"deepseek[-_]?r1|r1[-_]distill|qwq|qwen3.*thinking|-thinking-", re.IGNORECASE
)
_BLANKS: Final = 1000  # white space that is no tag's any more
_LOOK_AHEAD: Final = 2  # characters behind a closing tag that tell what it is


class Delta(NamedTuple):
    """What arrived: a piece of the answer, of the thinking, of tool calls, or several of them."""

    text: str = ""
    thinking: str = ""
    calls: tuple[ToolCallDelta, ...] = ()


class ReasoningSplitter:
    """Splits one answer, piece by piece.

    A tag counts where models put it: ``<think>`` before any answer text, ``</think>`` after it, or alone when nothing
    was opened. An answer may speak about the tags: quoted, in the middle of a sentence, in a code block, or after an
    opening one. White space around the tags belongs to the format, not to the answer.

    Args:
        hold: nothing is given out before it is certain to be no thinking, for callers who want the whole text anyway.
        closes: the model opens its thinking itself (``OPENS_THINKING_ITSELF``): held, and any closing tag counts.

    Attributes:
        leaked: a closing tag came alone, after text had been given out as answer.
    """

    def __init__(self, *, hold: bool = False, closes: bool = False) -> None:
        self.leaked = False
        self._hold = hold or closes
        self._closes = closes
        self._state: Literal["begin", "think", "answer"] = "begin"
        self._rest = ""  # seen, not yet told
        self._before: list[str] = []  # the answer before the rest, as long as a lone closing tag may come
        self._settled = False  # no lone closing tag counts any more

    def feed(self, piece: str) -> Delta:
        """What can be told of the text so far; the rest waits for the next piece."""
        if self._state == "answer" and not self._rest and "<" not in piece:  # most pieces
            return self._tell(piece)
        self._rest += piece
        text, thinking = "", ""
        before = None
        while before != (self._state, self._rest):
            before = (self._state, self._rest)
            got = {"begin": self._begin, "think": self._think, "answer": self._answer}[self._state]()
            text += got.text
            thinking += got.thinking
        return Delta(text, thinking)

    def separated(self) -> str:
        """The server separates thinking itself: what it calls answer is answer, tags and all. Returns what was held."""
        if self._state == "think":
            return ""
        self._state = "answer"
        return self._settle() + self._take(len(self._rest))

    def end(self, *, broken: bool = False) -> Delta:
        """Return what was still held back: thinking if a tag was left open, answer otherwise.

        Args:
            broken: the answer is incomplete. A part of an opening tag is dropped then: as text it could not be
                continued, because the rest of the tag and the thinking would follow it.
        """
        if broken and self._state == "begin" and self._rest.strip():
            return Delta()
        if self._state == "answer" and not self._settled and self._rest.startswith(_CLOSE):
            closed = self._close(0, over=True)
            return Delta(closed.text + self._take(len(self._rest)).lstrip(), closed.thinking)
        rest = self._take(len(self._rest))
        if self._state == "think":
            return Delta(thinking=rest)
        if self._state == "begin" and self._settled:  # white space behind a closing tag is the format's
            return Delta(rest.lstrip())
        return Delta(self._settle() + rest)

    def _tell(self, text: str) -> Delta:
        """Answer, given out now or held."""
        if self._settled:
            return Delta(text)
        self._before.append(text)
        return Delta() if self._hold else Delta(text)

    def _settle(self) -> str:
        """No lone closing tag counts from now on; returns what was held."""
        held = "".join(self._before) if self._hold and not self._settled else ""
        self._settled, self._before = True, []
        return held

    def _begin(self) -> Delta:
        """Nothing but white space so far: a tag may open."""
        start = self._rest.lstrip()
        if start.startswith(_OPEN):
            self._rest, self._state = start[len(_OPEN) :], "think"
        elif (start and not _OPEN.startswith(start)) or len(self._rest) > _BLANKS:
            self._rest = start if self._settled else self._rest
            self._state = "answer"
        return Delta()

    def _think(self) -> Delta:
        """Between the tags."""
        thought, found, rest = self._rest.partition(_CLOSE)
        if found:
            self._rest, self._state = rest, "begin"
            self._settle()
            return Delta(thinking=thought)
        return Delta(thinking=self._take(len(self._rest) - _overlap(self._rest, _CLOSE)))

    def _answer(self) -> Delta:
        """Answer, until a closing tag comes that nothing opened."""
        if self._settled:
            return Delta(self._take(len(self._rest)))
        at = self._rest.find(_CLOSE)
        opened = self._rest.find(_OPEN)
        if opened >= 0 and (at < 0 or opened < at):  # the answer speaks about the tags
            return Delta(self._settle() + self._take(len(self._rest)))
        if at < 0:
            unsure = max(_overlap(self._rest, _CLOSE), _overlap(self._rest, _OPEN))
            return self._tell(self._take(len(self._rest) - unsure))
        if len(self._rest) < at + len(_CLOSE) + _LOOK_AHEAD:  # what follows decides
            return self._tell(self._take(at)) if self._rest[:at].strip() or self._before else Delta()
        return self._close(at)

    def _close(self, at: int, *, over: bool = False) -> Delta:
        """A closing tag that nothing opened, at this place of the rest."""
        before, after = "".join(self._before) + self._rest[:at], self._rest[at + len(_CLOSE) :]
        if not self._closes and _mentioned(before, after, over=over):
            return Delta(self._settle() + self._take(len(self._rest)))
        self.leaked = not self._hold and any(told.strip() for told in self._before)
        self._settle()
        self._rest, self._state = after, "begin"
        return Delta(thinking=before)

    def _take(self, length: int) -> str:
        taken, self._rest = self._rest[:length], self._rest[length:]
        return taken


def _mentioned(before: str, after: str, *, over: bool = False) -> bool:
    """Whether an answer speaks about the closing tag, rather than a model ending its thinking.

    It does where the tag is quoted, in code, or inside a sentence, which may go on in the next line; a model's own
    stands alone on its line, or right behind what was thought.
    """
    begun = before.rpartition("\n")[2]
    quote = before[-1:]
    quoted = _QUOTES.get(quote) == after[:1] != ""
    opens = quote == '"' or (quote == "'" and not before[-2:-1].isalnum())  # an apostrophe opens nothing
    quoted = quoted or (opens and begun.count(quote) % 2 == 1 and not after.startswith("\n"))
    fenced = any(before.count(fence) % 2 for fence in ("```", "~~~")) and not after.startswith("\n\n")
    in_code = fenced or (begun.replace("```", "").count("`") % 2 == 1 and not after.startswith("\n"))
    unfinished = before.rstrip()[-1:] not in ("", *_SENTENCE_ENDS)
    in_sentence = before[-1:] == " " and bool(
        _GOES_ON.match(after) or (unfinished and begun.strip() and (over or _NEXT_LINE.match(after)))
    )
    return quoted or in_code or in_sentence


def _overlap(text: str, tag: str) -> int:
    """Return how many characters at the end of the text may be the beginning of the tag."""
    return next((length for length in range(len(tag) - 1, 0, -1) if text.endswith(tag[:length])), 0)
