"""Join an interrupted answer and its continuation.

The emitted text is the text of the answer so far. The next attempt sends it as a prefill: a last assistant message
that the model continues. If the provider does not support prefill, the prompt instructs the model to continue.

Models often produce nonsense if the prefill ends inside a token. Tokenizers differ, so the router cannot detect that.
The prefill therefore ends before the last word, and the continuation must first repeat this word.

Measured in 2026-11 on three servers, with the same model before and after the interruption (ADR 4). If the prefill
ended before the last word, 3,021 of 3,027 answers had the same text as without an interruption. The other six failed
on a stale connection. If the prefill was the whole text, only 575 of 1,639 answers had the same text.
"""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from .. import errors, events
from ..base import Attempt, Call, Prompt
from ..completion import Completion, Event, Resumed, Source, TextDelta, ToolCallDelta
from ..errors import LLMError
from ..stream import Emit, Relay, Transcript, Work
from .context_window import estimate_max_tokens, estimate_min_tokens
from .options import messages_of

_MAX_LAST_WORD_CHARS: Final = 64  # a longer last "word" is text without spaces, like Chinese or base64
# Limits of the last words that a model without prefill must repeat.
_MIN_OVERLAP_WORDS: Final = 8
_MIN_OVERLAP_CHARS: Final = 24
_MAX_OVERLAP_CHARS: Final = 400
_MAX_COMPARED_SPACE_CHARS: Final = 1000  # ``new_text`` returns longer white space without waiting for a word

# Sent to a model without prefill.
_INSTRUCTION: Final = (
    "Your answer above was cut off by a broken connection. Go on with it: begin with its last words, copied exactly, "
    "and continue from there to its end. Write no introduction and no comment. Its last words, with which you begin:"
)
_QUOTES: Final = dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\uff02\u301d\u301e", '"') | dict.fromkeys(
    "\u2018\u2019\u201a\u201b\u2039\u203a\uff07\u0060\u00b4", "'"
)


@dataclass(frozen=True, slots=True)
class SplitText:
    """The emitted text in two parts.

    Attributes:
        prefix: the part to send to the provider.
        rest: the end, which is not sent. The continuation must repeat it before the new text.
    """

    prefix: str
    rest: str = ""

    @property
    def text(self) -> str:
        """Return the emitted text."""
        return self.prefix + self.rest


def split_last_word(text: str) -> SplitText:
    """Split a text before its last word, because an interruption may cut a word.

    The rest is the last word and the white space before it. If the text ends with white space, the rest is only that
    white space. The rest is empty if it would have more than 64 characters.
    """
    tail = text[-_MAX_LAST_WORD_CHARS - 1 :]
    last = "" if tail[-1:].isspace() else tail.rsplit(maxsplit=1)[-1]
    before = tail[: len(tail) - len(last)].rstrip()
    start = len(text) - len(tail) + len(before)
    if len(text) - start > _MAX_LAST_WORD_CHARS:
        return SplitText(text)
    return SplitText(text[:start], text[start:])


def split_text(text: str, *, at_last_word: bool, supports_prefill: bool) -> SplitText:
    """Split the emitted text for its continuation.

    ``at_last_word`` is False after a continuation that did not repeat the last word.
    """
    if not text.strip():
        return SplitText("", text)  # no prefill: the next attempt starts the answer again
    split = split_last_word(text)
    return split if at_last_word and (supports_prefill or split.prefix) else SplitText(text)


def instruct_to_continue(prompt: Prompt, prefix: str) -> list[Any]:
    """Return the messages that instruct a model without prefill to continue ``prefix``."""
    instruction = f"{_INSTRUCTION}\n\n{last_words(prefix)}"
    return [*messages_of(prompt), {"role": "assistant", "content": prefix}, {"role": "user", "content": instruction}]


def last_words(text: str) -> str:
    """Return the last words of a text, which a model without prefill must repeat.

    These are at least eight words and 24 characters, or the last 64 characters of a text without spaces. If the text
    also begins with these words, return more words, so that an answer that starts again does not look like a
    continuation. If the text has fewer than eight words, return all of it.
    """
    return _overlaps(text)[0]


def _overlaps(text: str) -> list[str]:
    """Return the ends of a text with which a continuation can begin, shortest first.

    The list has longer ends, too, because some models repeat a whole sentence.
    """
    starts, stripped = [word.start() for word in re.finditer(r"\S+", text)], text.lstrip()
    ends = list[str]()
    for start in reversed(starts[: -_MIN_OVERLAP_WORDS + 1] or starts[:1]):
        end = text[start:]
        if len(end) > (_MAX_OVERLAP_CHARS if len(starts) > 1 else _MAX_LAST_WORD_CHARS):
            break
        if start == starts[0] or (len(end) >= _MIN_OVERLAP_CHARS and not _begins_with(stripped, end)):
            ends.append(end)
    if not ends:
        end = text[-_MAX_LAST_WORD_CHARS:]
        ends.append(text if _begins_with(stripped, end) else end)
    return ends


def _begins_with(text: str, start: str) -> bool:
    """Return whether a text begins with ``start``, without regard to white space and the style of quotation marks."""
    match = _PrefixComparison(start)
    match.feed(text)
    return match.is_complete


class ContinuationFilter:
    """Removes the repeated text from a continuation.

    A continuation of a prefill must repeat ``SplitText.rest``. An instructed model must repeat the last words of
    ``SplitText.prefix``, and then ``rest``.

    Args:
        emitted: the emitted text.
        by_instruction: the prompt instructs the model to continue. Otherwise, the request has a prefill.
        source: the source of the emitted text, see ``Resumed``.

    Attributes:
        is_empty: the continuation has no text.
        matched: the continuation has repeated the required text. All later text is new.
        mismatched: the continuation does not repeat the required text. ``feed`` returned no text.
    """

    def __init__(self, emitted: SplitText, *, by_instruction: bool = False, source: Source = "stream") -> None:
        self.is_empty, self.matched, self.mismatched = True, False, False
        self.emitted, self.by_instruction, self.source = emitted, by_instruction, source
        expected = _expected_if_instructed(emitted) if by_instruction else _expected_if_prefilled(emitted)
        self._matches = [_PrefixComparison(text, exact=not by_instruction) for text in dict.fromkeys(expected)]

    def feed(self, text: str, *, ended: bool = False) -> str:
        """Add a piece of the continuation, and return the new text. ``ended`` means that this is the last piece."""
        self.is_empty = self.is_empty and not text
        if self.matched:
            return text
        for match in self._matches:
            match.feed(text)
        while self._matches:
            new_text = self._matches[0].new_text(ended=ended)
            if new_text is not None:
                self.matched = True
                return new_text
            if not self._matches[0].differs:
                return ""
            del self._matches[0]
        self.mismatched = True
        return ""

    def end(self) -> str:
        """End the continuation, and return the new text that was held back."""
        return self.feed("", ended=True)


def _expected_if_instructed(emitted: SplitText) -> list[str]:
    """Return the texts that an instructed model may repeat. Some models repeat more words, or the whole text."""
    return [end + emitted.rest for end in _overlaps(emitted.prefix)] + [emitted.text]


def _expected_if_prefilled(emitted: SplitText) -> list[str]:
    """Return the texts that a continuation of a prefill may begin with. The text "" matches every continuation.

    Most continuations begin with ``SplitText.rest``. Some servers echo the prefill before it.
    """
    rest, echo = emitted.rest, emitted.text
    if not echo.strip():
        return [echo, ""]
    if rest:
        return [rest, echo] if emitted.prefix and not echo.startswith(rest) else [rest]
    # The prefill is the whole text. If this text repeats its own start, expect no echo, because new text that begins
    # with the same words would look like an echo
    start = echo[: _MIN_OVERLAP_CHARS // 2]
    return [echo, ""] if len(echo) >= _MIN_OVERLAP_CHARS and start not in echo[len(start) :] else [""]


class _PrefixComparison:
    """Compares the start of a continuation with an expected text, and buffers the text after it.

    Args:
        text: the expected text.
        exact: compare exactly. Otherwise ignore white space, Unicode normalization and the style of quotation marks.

    Attributes:
        differs: the continuation does not begin with the expected text.
    """

    def __init__(self, text: str, *, exact: bool = False) -> None:
        self.differs = False
        self._normalize: Callable[[str], str] = str if exact else _normalize_character
        self._expected = "".join(map(self._normalize, text))
        self._trailing_space = "" if exact else text[len(text.rstrip()) :]
        self._position = 0
        self._after = ""

    @property
    def is_complete(self) -> bool:
        """Return whether the whole expected text was found."""
        return self._position == len(self._expected)

    def feed(self, piece: str) -> None:
        """Add a piece of the continuation."""
        if self.differs:
            return
        if self.is_complete:
            self._after += piece
            return
        for index, character in enumerate(piece):
            letters = self._normalize(character)
            for letter_index, letter in enumerate(letters):
                if self.is_complete:  # one character may normalize to a letter and an accent: the accent is new text
                    self._after = letters[letter_index:] + piece[index + 1 :]
                    return
                if letter != self._expected[self._position]:
                    self.differs = True
                    return
                self._position += 1
            if self.is_complete:
                self._after = piece[index + 1 :]
                return

    def new_text(self, *, ended: bool) -> str | None:
        r"""Return the text after the expected text. Return None if the texts differ, or until more text arrives.

        Omit the white space that the expected text ends with: if "a\n" is expected, and the continuation is
        "a\n\n  b", return "\n  b".
        """
        if not self.is_complete:
            self.differs = self.differs or ended
            return None
        after, stripped = self._after, self._after.lstrip()
        if not self._trailing_space:
            return after
        if not (stripped or ended or len(after) > _MAX_COMPARED_SPACE_CHARS):
            return None  # more white space may follow
        space = after[: len(after) - len(stripped)]
        if space.startswith(self._trailing_space):
            return after[len(self._trailing_space) :]
        if not space and self._expected[-1:].isalnum() and stripped[:1].isalnum():
            self.differs = True  # the last word goes on, although white space is expected after it
            return None
        # Subtract the line breaks and the indentation at the end of the expected text
        lines = space.count("\n") - self._trailing_space.count("\n")
        indent = space.rpartition("\n")[2] if "\n" in space else ""
        if lines <= 0:
            indent = indent.removeprefix(self._trailing_space.rpartition("\n")[2])
        return "\n" * lines + indent + stripped


@lru_cache(maxsize=4096)
def _normalize_character(character: str) -> str:
    """Decompose a character, remove white space, and replace quotation marks by ASCII ones."""
    letters = unicodedata.normalize("NFKD", _QUOTES.get(character, character))
    return "".join(_QUOTES.get(letter, letter) for letter in letters if not letter.isspace())


class _NewTextEmit(Relay):
    """Emits the new text of a continuation. Calls ``stop`` if the continuation does not repeat the required text.

    Tool calls that arrive before the new text are held back until the end.
    """

    def __init__(self, name: str, text_filter: ContinuationFilter, emit: Emit, stop: Callable[[], None]) -> None:
        super().__init__(emit)
        self._name, self._filter, self._stop = name, text_filter, stop
        self._skip_resumed_event = not text_filter.emitted.text.strip()  # the emitted text is only white space
        self._held_calls: list[ToolCallDelta] = []

    def __call__(self, event: Event) -> None:
        text_filter = self._filter
        if text_filter.mismatched:
            return
        if isinstance(event, TextDelta):
            self._emit_text(text_filter.feed(event.text))
            if text_filter.mismatched:
                self._stop()
        elif isinstance(event, ToolCallDelta) and (self._held_calls or not text_filter.matched):
            self._held_calls.append(event)
        else:
            self._emit(event)

    def end(self, completion: Completion | None) -> None:
        """Emit the text and the tool calls that were held back, or raise the errors of ``join_continuation``.

        A stopped attempt has no completion.
        """
        text_filter = self._filter
        text = text_filter.end()
        if text_filter.mismatched and not text_filter.is_empty:
            what = "the continuation does not repeat the end of the interrupted answer"
            raise errors.NotContinued(what, provider=self._name)
        if text_filter.mismatched and not (completion and completion.tool_calls):
            raise errors.EmptyAnswer("the continuation of the interrupted answer is empty", provider=self._name)
        self._emit_resumed()
        self._emit_text(text)
        for call in self._held_calls:
            self._emit(call)

    def _emit_text(self, text: str) -> None:
        if text:
            self._emit_resumed()
            self._emit(TextDelta(text))

    def _emit_resumed(self) -> None:
        if not self._skip_resumed_event:
            self._skip_resumed_event = True
            text_filter = self._filter
            characters = len(text_filter.emitted.text)
            event = Resumed(
                self._name, characters, by_instruction=text_filter.by_instruction, source=text_filter.source
            )
            events.emit(event)
            self._emit(event)


async def join_continuation(work: Work, text_filter: ContinuationFilter, name: str, emit: Emit) -> Completion:
    """Run an attempt that continues an interrupted text, and emit only the new text.

    Return the completion of the attempt.

    Raises:
        EmptyAnswer: the continuation is empty, although it must repeat text.
        NotContinued: the continuation does not repeat the required text.
        LLMError: the attempt failed.
    """
    completion: Completion | None = None
    try:
        # On a mismatch, ``stop`` lets this timeout expire, which cancels the attempt. ``stop`` raises no error,
        # because an error would count as a failure of the provider.
        async with asyncio.timeout(None) as scope:
            relay = _NewTextEmit(name, text_filter, emit, lambda: scope.reschedule(0))
            completion = await work(relay)
    except TimeoutError:
        if not text_filter.mismatched:
            raise
    relay.end(completion)
    assert completion  # noqa: S101  # otherwise ``end`` has raised
    return completion


def count_prior_tokens(call: Call) -> int:
    """Estimate the number of tokens of ``Call.prior_text``. Each piece in the journal counts as one token."""
    estimate = (estimate_min_tokens([call.after]) + estimate_max_tokens([call.after])) // 2
    return estimate + len(call.recorded or ())


def reduce_max_tokens(call: Call, tokens: int, repeated_chars: int) -> Call:
    """Return the call with the ``max_tokens`` that are left after ``tokens``.

    Each of the ``repeated_chars``, which the continuation must repeat first, adds one token.
    """
    return replace(call, max_tokens=type(call.max_tokens)(max(1, call.max_tokens - tokens + repeated_chars)))


async def run_with_prior_text(
    start: Callable[[Call, Attempt], Work], attempt: Attempt, name: str, call: Call, emit: Emit
) -> Completion:
    """Run a call at one provider, without a router. Emit only the new text.

    If the call continues a text (``Call.prior_text``), the provider must support prefill. ``start`` returns the
    coroutine function that runs an attempt.

    Raises:
        LLMError: the attempt failed. ``LLMError.partial`` is the whole text so far.
    """
    if not call.prior_text:
        return await start(call, attempt)(emit)
    emitted = split_text(call.prior_text, at_last_word=True, supports_prefill=True)
    text_filter, new = ContinuationFilter(emitted, source=call.prior_source), Transcript(emit)
    call = reduce_max_tokens(call, count_prior_tokens(call), len(emitted.rest))
    work = start(call, replace(attempt, prefix=emitted.prefix or None))
    try:
        completion = await join_continuation(work, text_filter, name, new)
    except LLMError as error:
        error.partial = call.prior_text + new.text
        raise
    return replace(completion, text=call.prior_text + new.text, resumed=1)
