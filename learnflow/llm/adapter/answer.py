"""Assemble an answer from the deltas of one response, and redact errors."""

from __future__ import annotations

import asyncio
import re
from contextlib import ExitStack
from typing import Final

from .. import errors
from ..completion import Completion, ReasoningDelta, ServedModel, TextDelta
from ..errors import LLMError
from ..stream import Emit, Transcript
from ..transport.endpoint import Endpoint
from ..transport.reasoning import Delta, ReasoningSplitter
from ..transport.stream_parser import StreamParser
from ..transport.tool_calls import join_extra
from .request import Request

_MIN_TEXT_LETTERS: Final = 4  # letters and digits. A shorter text is not compared, because any message may contain it
_MIN_QUOTE_LETTERS: Final = 16  # a message quotes a text if it repeats this many letters and digits in a row
_MAX_COMPARED_CHARS: Final = 200_000  # of each text, because the data URL of an image has millions
_ESCAPE: Final = re.compile(r"(?<!\\)\\+(?:u([0-9a-fA-F]{4})|[nrtbf])")


class Answer(Transcript):
    """One answer while it arrives. It receives the deltas of a response, emits events, and returns the completion.

    Args:
        hold_text: hold back text that may be thinking (the model's reasoning before its answer).
        only_closing_tag: the thinking begins without <think>, and ends with </think>.
        is_continuation: the response continues an answer. The response may be empty, and its text is not held back.

    Attributes:
        first_delta_at: the event loop's time of the first delta; None before the first delta.
        delta_count: the number of deltas. Most servers send one for each token.
        loading_context: an exit stack that is open while the server loads the model. The first delta closes the stack.
    """

    def __init__(
        self,
        request: Request,
        emit: Emit,
        parser: StreamParser,
        *,
        hold_text: bool,
        only_closing_tag: bool,
        is_continuation: bool,
    ) -> None:
        super().__init__(emit)
        self.parser = parser
        self.first_delta_at: float | None = None
        self.delta_count = 0
        self.loading_context = ExitStack()
        self._sent_at = self._ended_at = asyncio.get_running_loop().time()
        self._request, self._is_continuation = request, is_continuation
        self._splitter = ReasoningSplitter(
            hold=hold_text and not is_continuation, only_closing_tag=only_closing_tag and not is_continuation
        )

    def feed(self, delta: Delta) -> None:
        """Add a delta of the response. Raise ThinkingLeaked if emitted text turns out to be thinking."""
        self.delta_count += 1
        if self.first_delta_at is None:
            self.first_delta_at = asyncio.get_running_loop().time()
            self.loading_context.close()
        held = self._splitter.stop_splitting() if delta.thinking or delta.calls else ""
        split = self._splitter.feed(delta.text) if delta.text else Delta()
        self._emit_delta(Delta(held + split.text, delta.thinking + split.thinking, delta.calls))

    def end(self, *, broken: bool = False) -> None:
        """Emit the text that was held back. ``broken`` means that the response ended before the answer was complete."""
        self._ended_at = asyncio.get_running_loop().time()
        self._emit_delta(self._splitter.end(broken=broken))

    def _emit_delta(self, delta: Delta) -> None:
        if self._splitter.leaked and self.text:
            self.drop_text()
            self._thinking.append(delta.thinking)
            raise errors.ThinkingLeaked("the text so far was thinking: </think> arrived without <think>")
        if delta.thinking:
            self(ReasoningDelta(delta.thinking))
        if delta.text:
            self(TextDelta(delta.text))
        for call in delta.calls:
            self(call)

    def completion(self, provider: str, model: str) -> Completion:
        """Return the completion without ``parsed``. ``cost`` is set only if the server reports it.

        Raises:
            AnswerTruncated: thinking used all tokens, or a tool call ended at the token limit.
            ContentFiltered: the model refused to answer.
            EmptyAnswer: the response has neither text nor tool calls.
            MalformedAnswer: a tool call has no name, or its arguments are not a JSON object.
            SchemaMismatch: a required tool call is missing.
        """
        parser = self.parser
        calls, text, finish = parser.tool_calls(), self.text, parser.finish or "stop"
        if not text.strip() and not calls and not self._is_continuation:
            raise self._empty_error()
        if calls and finish == "length":
            raise errors.AnswerTruncated("the token limit was reached in a tool call, which may be incomplete")
        must_call = self._request.tool_choice not in (None, "auto", "none")
        if must_call and not calls:  # some servers ignore ``tool_choice``
            hint = "Use a model and a server that support tools"
            raise errors.SchemaMismatch("tool_choice= requires a tool call, but the answer has none", hint=hint)
        first = self.first_delta_at
        return Completion(
            text=text,
            reasoning=self.thinking or None,
            tool_calls=calls,
            extra=join_extra(parser.extra),
            finish="tool_calls" if calls and finish == "stop" else finish,
            provider=provider,
            model=ServedModel(model, parser.served_model),
            usage=parser.usage,
            cost=parser.cost,
            first_token_s=None if first is None else first - self._sent_at,
            total_s=self._ended_at - self._sent_at,
        )

    def add_details(self, error: LLMError) -> None:
        """Add the partial answer to an error."""
        error.partial, error.thinking, error.tokens = self.text, self.thinking, self.delta_count
        error.partial_calls, error.finished = self.parser.partial_calls, bool(self.parser.finish)

    def _empty_error(self) -> LLMError:
        if self.parser.refused:
            return errors.ContentFiltered("the model refused to answer")
        if self.thinking and self.parser.finish == "length":
            return errors.AnswerTruncated("thinking used all tokens", hint="Raise max_tokens=, or set reasoning=False")
        what = "the answer is empty after the thinking" if self.thinking else "the answer is empty"
        return errors.EmptyAnswer(what, hint="Retry. If it is empty again, check the server's log and context length")


def redact(error: LLMError, endpoint: Endpoint, request: Request | None = None, answer: str = "") -> None:
    """Mask secrets in an error's ``server_message``. Hide the message if it quotes the request or the answer.

    Args:
        error: the error to change in place.
        request: the request that failed; None for a probe, which sends no prompt.
        answer: the text received before the error.
    """
    if not error.server_message:
        return
    error.server_message = endpoint.mask(error.server_message)
    message = _normalize(error.server_message)
    conversation = [*request.texts, answer] if request else [answer]
    quotes = any(_quotes(message, text, is_strict=True) for text in conversation)
    quotes = quotes or any(_quotes(message, text) for text in (request.all_texts if request else ()))
    error.quotable = not quotes
    if not error.quotable:
        error.what += " (the server's message repeats the request and is left out)"
        error.args = (error.what,)


def _normalize(text: str) -> str:
    """Reduce a text to letters and digits in lower case.

    Case, white space, punctuation and escapes are ignored, because a quotation may change them.
    """
    plain = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)) if escape[1] else " ", text)
    return "".join(re.findall(r"[^\W_]+", plain)).lower()


def _quotes(message: str, text: str, *, is_strict: bool = False) -> bool:
    """Return whether a normalized message quotes a text.

    If ``is_strict``, also compare texts of 4 to 15 letters, and return True for a text that is too long to compare.
    """
    if is_strict and len(text) > _MAX_COMPARED_CHARS:
        return True
    letters = _normalize(text[:_MAX_COMPARED_CHARS])
    if len(letters) < _MIN_QUOTE_LETTERS:
        return is_strict and len(letters) >= _MIN_TEXT_LETTERS and letters in message
    return any(message[at : at + _MIN_QUOTE_LETTERS] in letters for at in range(len(message) - _MIN_QUOTE_LETTERS + 1))
