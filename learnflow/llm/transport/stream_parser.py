"""The base class of the response parsers. A parser receives bytes, and returns deltas. It does no I/O.

A delta is a part of the answer: text, thinking, or pieces of tool calls. ``feed`` and ``end`` set ``fault`` instead of
raising an error, and the caller checks ``fault``. An answer without a finish reason is incomplete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, ClassVar, Final

from .. import errors
from ..completion import CALL_FIELDS, CallId, Finish, ToolCall, ToolCallDelta, Usage
from ..errors import LLMError
from . import error_mapping
from .reasoning import Delta
from .tool_calls import Extra, PartialCall, collect_extra, find_or_add_call, join_extra
from .untrusted import MAX_EVENT_BYTES, MAX_JSON_BYTES, json_object, short_text

# Finish reasons, including those of other APIs that gateways pass on.
_FINISHES: Final[dict[str, Finish]] = {
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "eos", "eos_token"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_length"), "length"),
    **dict.fromkeys(("tool_calls", "function_call", "tool_use"), "tool_calls"),
}
_FILTERED: Final = ("content_filter", "sensitive", "safety", "recitation", "prohibited_content", "refusal")
NOT_FINISHED: Final = (None, "", "null")  # finish reasons that some servers send in every chunk before the last
_NO_ARGUMENTS: Final = ("", "null")
BOM: Final = b"\xef\xbb\xbf"
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
# Raised by code that reads JSON with an unexpected shape.
_SHAPE_ERRORS: Final = (AttributeError, KeyError, TypeError, ValueError, RecursionError)
MAX_NAME_CHARS: Final = 300  # limit for the name of a model or tool, and for the id of a tool call
_MAX_CALLS: Final = 1000  # in one answer
_MIN_LIMIT_CHARS: Final = 1024 * 1024  # the length limit of an answer with a small max_tokens, or without max_tokens
# Limit for the average over an answer. Most tokens have about four characters, some tokens of blanks have a hundred.
_MAX_CHARS_PER_TOKEN: Final = 64


def malformed_error(what: str) -> LLMError:
    """Return the error for a part of a response that breaks the API's format."""
    return errors.MalformedAnswer(f"{what} does not match the server's API")


def max_answer_chars(max_tokens: int | None) -> int:
    """Return the maximum length of an answer in characters. A longer answer counts as endless."""
    return max(_MIN_LIMIT_CHARS, _MAX_CHARS_PER_TOKEN * (max_tokens or 0))


class StreamParser:
    """A parser of one response. Lines end with LF, in ``SSEParser`` also with CR. U+2028 and U+0085 end no line.

    Args:
        max_tokens: the ``max_tokens`` of the request. A much longer answer is a fault.
        finish_optional: an end mark completes the answer even if no finish reason arrived. Operators configure this
            (``no-finish``) for servers that send no finish reasons.

    Attributes:
        document_starts: the possible first characters of a response that is one JSON document, not a stream.
        fault: the error that makes the answer incomplete; None if there is no error. Earlier deltas remain valid.
        finish: the finish reason; None until the server sends it.
        has_end_mark: the server sent its end mark, such as "[DONE]". Text after it is a fault.
        usage, served_model, cost: token counts, model name and US dollars, as the server reported them.
        is_forwarded: the server reported that another machine generated the answer.
        refused: the model refused to answer.
        extra: the pieces of fields that OpenAI's API does not define, see ``Completion.extra``.
    """

    document_starts: ClassVar[bytes] = b""

    def __init__(self, max_tokens: int | None = None, *, finish_optional: bool = False) -> None:
        self.fault: LLMError | None = None
        self.finish: Finish | None = None
        self.has_end_mark = False
        self.usage = Usage()
        self.served_model: str | None = None
        self.is_forwarded = False
        self.cost: float | None = None
        self.refused = False
        self.extra: Extra = {}
        self._buffer = bytearray()  # the bytes that are not parsed yet
        self._has_events = False  # an event or a line with JSON has arrived
        self._deltas: list[Delta] = []  # not returned yet
        self._calls: list[PartialCall] = []
        self._surrogates: dict[str, str] = {}  # the first halves of surrogate pairs, by field
        self._is_document: bool | None = None  # one JSON document instead of a stream; None before the first character
        self._finish_optional = finish_optional
        self._chars_left = max_answer_chars(max_tokens)
        self._has_content = False
        # Some gateways send a finish reason in every chunk. If text follows it, only an end mark completes the answer.
        self._finish_was_discarded = False
        self._finish_is_tentative = False  # a finish reason came with content or before any, so more content may follow

    @property
    def is_complete(self) -> bool:
        """Return whether the server sent a finish reason, and no further text is expected."""
        return self.finish is not None and (
            self.has_end_mark or not (self._finish_was_discarded or self._finish_is_tentative)
        )

    def feed(self, data: bytes) -> list[Delta]:
        """Parse bytes. Return the new deltas. After a fault, return an empty list."""
        if self.fault:
            return []
        self._buffer += data
        self._check_size(len(self._buffer), MAX_JSON_BYTES if self._is_document else MAX_EVENT_BYTES)
        if self._is_document is None:
            self._detect_format()
        if self._is_document is not False or self.fault or b"\n" not in data:
            return []
        *lines, rest = self._take_buffer().split(b"\n")
        self._buffer += rest
        for line in lines:
            self._parse_guarded(self._parse_line, line)
            if self.fault:
                break
        return self._take_deltas()

    def end(self) -> list[Delta]:
        """Parse the rest of the response. Return the last deltas. Set ``fault`` if the answer is incomplete."""
        if self.fault:
            return []
        rest = self._take_buffer()
        if self._is_document:
            self._parse_guarded(self._parse_document, rest)
        else:
            self._parse_rest(rest)
        if self._surrogates:  # the second half never arrived
            text, thinking = ("\ufffd" if field in self._surrogates else "" for field in ("text", "thinking"))
            self._deltas.append(Delta(text, thinking))
        # Calls without arguments are not emitted yet
        call_deltas = tuple(delta for call in self._calls for delta in call.start())
        self._deltas += [Delta(calls=call_deltas)] if call_deltas and not self.fault else []
        if not self.fault and (self.finish is None or (self._finish_was_discarded and not self.has_end_mark)):
            self.fail(self._no_finish_error())
        return self._take_deltas()

    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Return the tool calls with parsed arguments.

        Raises:
            MalformedAnswer: a call has no name, its arguments are not a JSON object, or the finish reason is
                "tool_calls" and there is no call.
        """
        calls = []
        for call in self._calls:
            text = call.values["arguments"]
            arguments = {} if text.strip() in _NO_ARGUMENTS else json_object(text)
            if not call.name:
                raise errors.MalformedAnswer("a tool call has no name")
            if arguments is None:
                raise errors.MalformedAnswer(
                    f"the arguments of the tool call {short_text(call.name)!r} are not a JSON object"
                )
            calls.append(ToolCall(CallId(call.id), call.name, arguments, join_extra(call.extra)))
        if self.finish == "tool_calls" and not calls:
            raise errors.MalformedAnswer("the finish_reason announces a tool call, but the answer has none")
        return tuple(calls)

    @property
    def partial_calls(self) -> tuple[dict[str, str], ...]:
        """Return "id", "name" and "arguments" (JSON text, perhaps incomplete) of each call that has begun."""
        return tuple(call.values for call in self._calls)

    def _add_call(self, call_key: Any, piece: dict[str, Any]) -> tuple[ToolCallDelta, ...]:
        """Add a piece of a tool call. Return the deltas.

        Args:
            call_key: (choice index, call index) in a chat completion, the item's key in the Responses API; None if the
                piece has no key.
            piece: the JSON object, in the format of a chat completion.
        """
        function, calls = piece.get("function") or {}, self._calls
        raw, count_before = function.get("arguments"), len(calls)
        arguments = "" if raw is None else raw if isinstance(raw, str) else json.dumps(raw)
        call_id, name = short_text(piece.get("id"), MAX_NAME_CHARS), short_text(function.get("name"), MAX_NAME_CHARS)
        if any(call.is_repeated_by(call_key, call_id, name, arguments) for call in calls):
            return ()
        call = find_or_add_call(calls, call_key, call_id, name, arguments)
        if len(calls) > _MAX_CALLS:
            raise errors.MalformedAnswer(f"the answer has more than {_MAX_CALLS} tool calls")
        if len(calls) > count_before and name:
            self._count_content(len(name))
        self._deduct_chars(collect_extra(call.extra, piece, CALL_FIELDS))
        return call.add(self._parse_text(arguments, f"call {call.index}"))

    def fail(self, fault: LLMError) -> None:
        """Set ``fault``, unless there is one already."""
        self.fault = self.fault or fault

    def _check_size(self, size: int, max_bytes: int) -> None:
        """Fail if a line, an event or a document is too large."""
        if size > max_bytes:
            self.fail(errors.MalformedAnswer(f"a line, an event or the body has more than {max_bytes >> 20} MiB"))

    def _count_content(self, characters: int) -> None:
        """Count new characters of text, thinking or tool calls. Discard a finish reason that arrived before them."""
        if self.finish:
            self.finish, self._finish_was_discarded = None, True
        self._has_content = True
        self._deduct_chars(characters)

    def _deduct_chars(self, characters: int) -> None:
        """Subtract from ``_chars_left``. Fail if the result is negative."""
        self._chars_left -= characters
        if self._chars_left < 0:
            self.fail(errors.AnswerTooLong("the answer is many times longer than max_tokens allows, and does not end"))

    def _take_buffer(self) -> bytes:
        """Empty the buffer, and return its bytes."""
        rest, self._buffer = bytes(self._buffer), bytearray()
        return rest

    def _take_deltas(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        return deltas

    def _detect_format(self) -> None:
        """Detect a stream or a document by the first character, because content types are unreliable."""
        if BOM.startswith(self._buffer):  # no bytes yet, or a part of a byte order mark
            return
        start = self._take_buffer().removeprefix(BOM).lstrip(b" \t\r\n")
        self._buffer += start
        if start[:1] == b"<":
            self.fail(error_mapping.no_model_api_error(200))
        if start:
            self._is_document = start[0] in self.document_starts

    def _parse_guarded(self, parse: Callable[[bytes], None], data: bytes) -> None:
        """Call a parsing method. Turn its exception into ``fault``."""
        try:
            parse(data)
        except LLMError as fault:
            self.fail(fault.with_traceback(None))
        except _SHAPE_ERRORS:
            self.fail(malformed_error("the answer" if self._is_document else "a line of the stream"))

    def _parse_object(self, data: bytes, what: str) -> dict[str, Any]:
        """Parse a JSON object. Raise a MalformedAnswer that names ``what`` if the bytes are anything else."""
        value = json_object(data)
        if value is None:
            raise malformed_error(what)
        return value

    def _parse_text(self, text: Any, field: str) -> str:
        """Check and count a piece of text. Hold the first half of a surrogate pair until the second arrives."""
        if text is None or text == "":
            return ""
        if self.has_end_mark or not isinstance(text, str):
            raise malformed_error("text after the end" if self.has_end_mark else "content that is not text")
        self._count_content(len(text))
        if not self._surrogates and (text.isascii() or not _SURROGATE.search(text)):
            return text
        text = self._surrogates.pop(field, "") + text
        if "\ud800" <= text[-1:] <= "\udbff":
            text, self._surrogates[field] = text[:-1], text[-1]
        return str(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))

    def _record_finish(self, reason: Any, *, with_text: bool = False) -> None:
        """Record a finish reason, or the fault that it stands for.

        If ``with_text``, the chunk of the finish reason also has content.
        """
        self._finish_is_tentative = self._finish_is_tentative or with_text or not self._has_content
        reason = short_text(reason)
        finish = _FINISHES.get(reason.lower())
        if reason.lower() in _FILTERED:
            self.fail(errors.ContentFiltered("the provider's content filter stopped the answer"))
        elif finish is None:
            self.fail(errors.UnknownFinish(f"unknown finish_reason “{reason}”: the answer may not be complete"))
        else:
            self.finish = self.finish or ("tool_calls" if self._calls and finish == "stop" else finish)

    def _no_finish_error(self) -> LLMError:
        """Return the error for a response that ended without a finish reason."""
        if not self._has_events:
            return errors.EmptyStream("the response has status 200 and an empty body")
        return errors.AnswerCut("the stream ended in the middle of the answer")

    def _parse_line(self, line: bytes) -> None:
        """Parse a line, given without its line feed."""
        raise NotImplementedError

    def _parse_rest(self, rest: bytes) -> None:
        """Parse the bytes after the last line feed."""
        raise NotImplementedError

    def _parse_document(self, rest: bytes) -> None:
        """Parse a response that is one document."""
        raise NotImplementedError
