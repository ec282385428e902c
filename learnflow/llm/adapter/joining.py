"""Join an interrupted answer and its continuation: cut the emitted text, check the overlap, and emit the new text.

The router splits the emitted text into a ``CutPoint``, and wraps the attempt that continues it with ``joined``. A
continuation is joined only if it begins with the end of the emitted text.

A model often derails if a prefill ends inside a token. Providers have different tokenizers, so the router cannot detect
that. It ends the prefill at the last whole word instead, and the continuation must first repeat the rest.

Measured in 2026-11 on three servers, with the same model before and after the interruption: 3,021 of 3,027 cuts at a
word gave the same text as an uninterrupted answer. The other six were broken connections. Of 1,639 cuts without the
step back, only 575 gave the same text (ADR 4).
"""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from .. import errors
from ..base import Prompt
from ..completion import Completion, Event, Resumed, TextDelta, ToolCallDelta
from ..stream import Emit, Relay, Work
from .options import messages_of

_MAX_STEP_CHARS: Final = 64  # text without spaces (Chinese, base64) has no word to step back to
# The overlap that a model without prefill must repeat.
_MIN_WORDS: Final = 8
_MIN_WORDS_CHARS: Final = 24
_MAX_WORDS_CHARS: Final = 400
_MAX_BLANK_CHARS: Final = 1000  # white space to compare; more of it counts as new text

# Sent to a model without prefill. ``Joiner`` checks that the continuation obeys it.
_INSTRUCTION: Final = (
    "Your answer above was cut off by a broken connection. Go on with it: begin with its last words, copied exactly, "
    "and continue from there to its end. Write no introduction and no comment. Its last words, with which you begin:"
)
_QUOTES: Final = dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\uff02\u301d\u301e", '"') | dict.fromkeys(
    "\u2018\u2019\u201a\u201b\u2039\u203a\uff07\u0060\u00b4", "'"
)


@dataclass(frozen=True, slots=True)
class CutPoint:
    """The emitted text, split into the prefix to send and the rest that the continuation must repeat."""

    prefix: str
    rest: str = ""

    @property
    def text(self) -> str:
        """Return the emitted text."""
        return self.prefix + self.rest


def step_back(text: str) -> CutPoint:
    """Cut before the last word of the text, which may be incomplete, or before white space at the end.

    The prefix is empty if the text is one word. It is the whole text if the last word is longer than 64 characters.
    """
    tail = text[-_MAX_STEP_CHARS - 1 :]
    last = "" if tail[-1:].isspace() else tail.rsplit(maxsplit=1)[-1]
    before = tail[: len(tail) - len(last)].rstrip()
    start = len(text) - len(tail) + len(before)
    if len(text) - start > _MAX_STEP_CHARS:
        return CutPoint(text)
    return CutPoint(text[:start], text[start:])


def cut_point(text: str, *, steps_back: bool, prefills: bool) -> CutPoint:
    """Return where to cut a text for its continuation.

    Args:
        text: the emitted text.
        steps_back: cut before the last word. False for a second try, after a continuation that did not repeat it.
        prefills: the provider supports a prefill.
    """
    if not text.strip():
        return CutPoint("", text)  # white space is not continued
    cut = step_back(text)
    return cut if steps_back and (prefills or cut.prefix) else CutPoint(text)


def in_words(prompt: Prompt, prefix: str) -> list[Any]:
    """Return the messages that instruct a model without prefill to continue a text."""
    instruction = f"{_INSTRUCTION}\n\n{end_of(prefix)}"
    return [*messages_of(prompt), {"role": "assistant", "content": prefix}, {"role": "user", "content": instruction}]


def end_of(text: str) -> str:
    """Return the last words of a text, which a model without prefill must repeat.

    Return at least eight words and 24 characters, 64 characters of a text without spaces, or all of a shorter text.
    Return more words if the text also begins with these: a model that starts over would repeat them, too.
    """
    return _ends_of(text)[0]


def _ends_of(text: str) -> list[str]:
    """Return the ends of a text that a continuation may repeat, shortest first. Some models repeat a whole sentence."""
    starts, stripped = [word.start() for word in re.finditer(r"\S+", text)], text.lstrip()
    ends = list[str]()
    for start in reversed(starts[: -_MIN_WORDS + 1] or starts[:1]):
        end = text[start:]
        if len(end) > (_MAX_WORDS_CHARS if len(starts) > 1 else _MAX_STEP_CHARS):
            break
        if start == starts[0] or (len(end) >= _MIN_WORDS_CHARS and not _begins(stripped, end)):
            ends.append(end)
    if not ends:
        end = text[-_MAX_STEP_CHARS:]
        ends.append(text if _begins(stripped, end) else end)
    return ends


def _begins(text: str, end: str) -> bool:
    """Return whether a text begins with ``end``, compared as in ``_Repetition``."""
    repetition = _Repetition(end)
    repetition.feed(text)
    return repetition.is_complete


class Joiner:
    """Splits a continuation into the repeated text and the new text.

    Args:
        cut: the emitted text.
        words: the prompt instructed the model to repeat the last words. Otherwise the prefix was sent as a prefill.

    Attributes:
        is_empty: the continuation has no text.
        settled: the repeated text has ended, so that all later text is new.
        mismatched: the continuation does not repeat the required text. ``feed`` returned none of it.
    """

    def __init__(self, cut: CutPoint, *, words: bool = False) -> None:
        self.is_empty, self.settled, self.mismatched = True, False, False
        self.words = words
        self.cut = cut
        expected = [end + cut.rest for end in _ends_of(cut.prefix)] + [cut.text] if words else _after_prefill(cut)
        self._repetitions = [_Repetition(text, exact=not words) for text in dict.fromkeys(expected)]

    def feed(self, text: str, *, over: bool = False) -> str:
        """Add a piece of the continuation. Return the text to emit. ``over``: the continuation has ended."""
        self.is_empty = self.is_empty and not text
        if self.settled:
            return text
        for repetition in self._repetitions:
            repetition.feed(text)
        while self._repetitions:
            new = self._repetitions[0].new_text(over=over)
            if new is not None:
                self.settled = True
                return new
            if not self._repetitions[0].differs:
                return ""
            del self._repetitions[0]
        self.mismatched = True
        return ""

    def end(self) -> str:
        """End the continuation. Return the text that was held back."""
        return self.feed("", over=True)


def _after_prefill(cut: CutPoint) -> list[str]:
    """Return the texts that a continuation of a prefill may begin with.

    Most continuations begin with the rest of the text. Some servers echo the prefill before it. A start that matches
    both counts as the rest. If there is no rest, an echo is recognised only by a start that occurs once in the text.
    """
    rest, echo = cut.rest, cut.text
    if not echo.strip():  # the emitted text was only white space
        return [echo, ""]
    if rest:
        return [rest, echo] if cut.prefix and not echo.startswith(rest) else [rest]
    start = echo[: _MIN_WORDS_CHARS // 2]  # if the text repeats its start, a continuation may, too
    return [echo, ""] if len(echo) >= _MIN_WORDS_CHARS and start not in echo[len(start) :] else [""]


class _Repetition:
    """Compares the start of a continuation with an expected text, and buffers the new text that follows.

    Args:
        text: the expected text.
        exact: compare exactly. Otherwise ignore white space, Unicode normalization and the style of quotation marks.

    Attributes:
        differs: the continuation does not begin with the expected text.
    """

    def __init__(self, text: str, *, exact: bool = False) -> None:
        self.differs = False
        self._normalize: Callable[[str], str] = str if exact else _plain
        self._expected = "".join(map(self._normalize, text))
        self._blank = "" if exact else text[len(text.rstrip()) :]
        self._position = 0
        self._after = ""

    @property
    def is_complete(self) -> bool:
        """Return whether the continuation has repeated the whole expected text."""
        return self._position == len(self._expected)

    def feed(self, piece: str) -> None:
        """Add a piece of the continuation."""
        if self.differs:
            return
        if self.is_complete:
            self._after += piece
            return
        for at, character in enumerate(piece):
            letters = self._normalize(character)
            for inner, letter in enumerate(letters):
                if self.is_complete:  # the expected text ends with the base letter, and an accent follows
                    self._after = letters[inner:] + piece[at + 1 :]
                    return
                if letter != self._expected[self._position]:
                    self.differs = True
                    return
                self._position += 1
            if self.is_complete:
                self._after = piece[at + 1 :]
                return

    def new_text(self, *, over: bool) -> str | None:
        """Return the text after the expected one; None if it is not known yet, or if the continuation differs."""
        if not self.is_complete:
            self.differs = self.differs or over
            return None
        after, bare = self._after, self._after.lstrip()
        if not self._blank:
            return after
        if not (bare or over or len(after) > _MAX_BLANK_CHARS):
            return None  # white space that may be part of the expected text
        blank = after[: len(after) - len(bare)]
        if blank.startswith(self._blank):
            return after[len(self._blank) :]
        if not blank and self._expected[-1:].isalnum() and bare[:1].isalnum():
            self.differs = True  # white space must follow the last word, but a letter does
            return None
        lines = blank.count("\n") - self._blank.count("\n")
        indent, before = blank.rpartition("\n")[2] if "\n" in blank else "", self._blank.rpartition("\n")[2]
        return "\n" * lines + (indent if lines > 0 else indent.removeprefix(before)) + bare


@lru_cache(maxsize=4096)
def _plain(character: str) -> str:
    """Normalize a character for comparison: decompose it, remove white space, replace quotation marks by ASCII ones."""
    letters = unicodedata.normalize("NFKD", _QUOTES.get(character, character))
    return "".join(_QUOTES.get(letter, letter) for letter in letters if not letter.isspace())


class _Joining(Relay):
    """Emits the new text of a continuation. Tool calls are held back until the repeated text has ended.

    Args:
        name: the provider that continues the text.
        joiner: splits the continuation.
        emit: receives the events of the request.
        stop: called if the continuation does not repeat the required text.
    """

    def __init__(self, name: str, joiner: Joiner, emit: Emit, stop: Callable[[], None]) -> None:
        super().__init__(emit)
        self._name, self._joiner, self._stop = name, joiner, stop
        self._resumed = (
            not joiner.cut.text.strip()
        )  # ``Resumed`` was emitted, or is not needed because no text was shown
        self._held_calls: list[ToolCallDelta] = []

    def __call__(self, event: Event) -> None:
        joiner = self._joiner
        if joiner.mismatched:
            return
        if isinstance(event, TextDelta):
            self._emit_text(joiner.feed(event.text))
            if joiner.mismatched:
                self._stop()
        elif isinstance(event, ToolCallDelta) and not joiner.settled:
            self._held_calls.append(event)
        else:
            self._emit(event)

    def end(self, completion: Completion | None) -> None:
        """Emit the text and the tool calls that were held back.

        Raises:
            EmptyAnswer: the continuation is empty.
            NotContinued: the continuation does not repeat the required text.
        """
        joiner = self._joiner
        text = joiner.end()
        if joiner.mismatched and not joiner.is_empty:
            what = "the continuation does not repeat the end of the interrupted answer"
            raise errors.NotContinued(what, provider=self._name)
        if joiner.mismatched and not (completion and completion.tool_calls):
            raise errors.EmptyAnswer("the continuation of the interrupted answer is empty", provider=self._name)
        self._emit_text(text, resume=True)
        for call in self._held_calls:
            self._emit(call)

    def _emit_text(self, text: str, *, resume: bool = False) -> None:
        if not self._resumed and (text or resume):
            self._resumed = True
            self._emit(Resumed(self._name, len(self._joiner.cut.text), in_words=self._joiner.words))
        if text:
            self._emit(TextDelta(text))


async def joined(work: Work, joiner: Joiner, name: str, emit: Emit) -> Completion:
    """Run an attempt that continues an interrupted text, and return its completion.

    Args:
        work: runs the attempt.
        joiner: splits the text of the continuation.
        name: the provider.
        emit: receives the new text.

    Raises:
        EmptyAnswer: the continuation is empty.
        NotContinued: the continuation does not repeat the required text.
        LLMError: the attempt failed.
    """
    completion: Completion | None = None
    try:
        # Stop the attempt with a timeout: an LLMError raised by ``emit`` would count as the provider's failure
        async with asyncio.timeout(None) as scope:
            relay = _Joining(name, joiner, emit, lambda: scope.reschedule(0))
            completion = await work(relay)
    except TimeoutError:
        if not joiner.mismatched:
            raise
    relay.end(completion)
    assert completion  # noqa: S101  # otherwise ``end`` has raised
    return completion
