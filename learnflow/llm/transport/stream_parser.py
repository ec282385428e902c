"""The base of the parsers: bytes in; text, thinking, tool calls, usage, and a finish reason or a fault out.

A parser does no I/O. An answer is complete only if the server reported so. The reader feeds a parser, and checks
``fault`` after every feed and at the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from .. import errors
from ..completion import Finish, ToolCall, ToolCallDelta, Usage
from ..errors import LLMError
from . import error_mapping
from .reasoning import Delta
from .untrusted import MAX_EVENT_BYTES, MAX_JSON_BYTES, json_object, word

_FINISHES: Final[dict[str, Finish]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
BOM: Final = b"\xef\xbb\xbf"
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_ODD: Final = (AttributeError, KeyError, TypeError, ValueError, RecursionError)  # raised by undocumented shapes
MAX_NAME_CHARS: Final = 300  # characters of a model's name
MAX_CALLS: Final = 1000  # tool calls of one answer
_MAX_CHARS: Final = 1024 * 1024  # of one answer, if max_tokens allows no more
_MAX_CHARS_PER_TOKEN: Final = 64  # most tokens have about four; a run of blanks may have a hundred


def malformed(what: str) -> LLMError:
    """Return the fault for a part of a response that its dialect does not have."""
    return errors.MalformedAnswer(f"{what} is not of the server's dialect")


def most_characters(max_tokens: int | None) -> int:
    """Return the maximum number of characters of an answer. A longer one is considered endless."""
    return max(_MAX_CHARS, _MAX_CHARS_PER_TOKEN * (max_tokens or 0))


class _Call:
    """A tool call while it arrives. It emits nothing before its name, and an emitted id or name does not change.

    Args:
        at: its index among the calls of the answer, from 0.
    """

    def __init__(self, at: int) -> None:
        self.at = at
        self.id = ""
        self.name = ""
        self._pieces: list[str] = []

    @property
    def values(self) -> dict[str, str]:
        """Return the call so far: id, name, and the arguments as JSON text."""
        return {"id": self.id or f"call_{self.at}", "name": self.name, "arguments": "".join(self._pieces)}

    def add(self, own: str, name: str, arguments: str) -> tuple[ToolCallDelta, ...] | None:
        """Add a piece. Return the deltas to emit, None if the piece is empty."""
        self._pieces.append(arguments)
        self.id = self.id or own
        if self.name:
            return (ToolCallDelta(self.at, self.id, self.name, arguments),) if arguments else None
        if not name:
            return () if arguments else None
        self.name = name
        self.id = self.values["id"]
        return (ToolCallDelta(self.at, **self.values),)


class StreamParser:
    """Parses one response. Lines end at line feeds only: U+2028 and U+0085 are characters of the text.

    Args:
        max_tokens: of the request, or None. An answer far longer than that is a fault.
        finish_missing: the operator configured that the server sends no finish reason. The end mark is enough.

    Attributes:
        fault: why the answer is incomplete. Deltas returned before it stay valid.
        finish: "stop", "length" or "tool_calls", after the server sent it.
        ended: the server sent the end mark. Only the end of the connection may follow.
        usage: tokens, as the server reported them.
        served: the model's name, as the server reported it.
        forwarded: the server reported that another machine answers.
        cost: US dollars, as the server reported them.
        refused: the model refused to answer.
    """

    def __init__(self, max_tokens: int | None = None, *, finish_missing: bool = False) -> None:
        self.fault: LLMError | None = None
        self.finish: Finish | None = None
        self.ended = False
        self.usage = Usage()
        self.served: str | None = None
        self.forwarded = False
        self.cost: float | None = None
        self.refused = False
        self._rest = bytearray()  # received, not yet a line
        self._seen = False  # anything in the dialect has arrived
        self._calls: dict[int, _Call] = {}  # by the server's index
        self._halves: dict[str, str] = {}  # first halves of surrogate pairs, by field
        self._document: bool | None = None  # one JSON document instead of a stream; None before the first byte
        self._finish_missing = finish_missing
        self._left = most_characters(max_tokens)
        self._early = False  # text followed a finish reason: some gateways send one with every chunk
        self._spoken = False  # the finish reason came with text, or before any: more text may follow
        self._silent = True  # no text has arrived

    @property
    def settled(self) -> bool:
        """Return whether the server reported the answer as complete, and no more text may follow."""
        return self.finish is not None and (self.ended or not (self._early or self._spoken))

    def feed(self, data: bytes) -> list[Delta]:
        """Return the deltas that these bytes complete. After a fault there are none."""
        if self.fault:
            return []
        data = self._normalize_newlines(data)
        self._rest += data
        self._check_size(len(self._rest), MAX_JSON_BYTES if self._document else MAX_EVENT_BYTES)
        if self._document is None:
            self._begin()
        if self._document is not False or self.fault or b"\n" not in data:
            return []
        *lines, rest = self._take().split(b"\n")
        self._rest += rest
        pieces: list[Delta] = []
        for line in lines:
            if piece := self._parse(self._parse_line, line):
                pieces.append(piece)
            if self.fault:
                break
        return pieces

    def end(self) -> list[Delta]:
        """End the response. Return the last deltas, and set ``fault`` unless the answer is complete."""
        if self.fault:
            return []
        rest = self._take()
        piece = self._parse(self._parse_document, rest) if self._document else self._parse_rest(rest)
        if self._halves:  # the second half never arrived
            text, thinking = ("\ufffd" if field in self._halves else "" for field in ("text", "thinking"))
            piece = piece or Delta()
            piece = Delta(piece.text + text, piece.thinking + thinking, piece.calls)
        if not self.fault and (self.finish is None or (self._early and not self.ended)):
            self.fail(self._missing_finish())
        return [piece] if piece else []

    def broken(self, why: str) -> None:
        """Record that the connection broke. A settled answer is complete anyway."""
        if not self.settled:
            self.fail(errors.AnswerCut(f"{why}, in the middle of the answer"))

    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Return the tool calls with parsed arguments.

        Raises:
            MalformedAnswer: a call has no name, or its arguments are not a JSON object.
        """
        calls = []
        for call in self.calls:
            arguments = json_object(call["arguments"] or "{}")
            if not call["name"]:
                raise errors.MalformedAnswer("a tool call has no name")
            if arguments is None:
                raise errors.MalformedAnswer(
                    f"the arguments of the tool call {word(call['name'])!r} are not a JSON object"
                )
            calls.append(ToolCall(id=call["id"], name=call["name"], arguments=arguments))
        return tuple(calls)

    @property
    def calls(self) -> tuple[dict[str, str], ...]:
        """Return the tool calls so far: id, name, and the arguments as JSON text."""
        return tuple(call.values for call in self._calls.values())

    def _add_call(self, index: int, own: str, name: str, arguments: str) -> tuple[ToolCallDelta, ...] | None:
        """Add a piece of the tool call with this server index; see ``_Call.add``."""
        call = self._calls.setdefault(index, _Call(len(self._calls)))
        arguments = self._parse_text(arguments, f"call {call.at}")
        if len(self._calls) > MAX_CALLS:
            raise malformed("an answer of so many tool calls")
        return call.add(own, name, arguments)

    def fail(self, fault: LLMError) -> None:
        """Record why the answer is not complete. The first reason stands."""
        self.fault = self.fault or fault

    def _normalize_newlines(self, data: bytes) -> bytes:
        """Return the bytes with each end of line as a line feed."""
        return data

    def _check_size(self, size: int, max_bytes: int) -> None:
        """Fail if a line, an event or a document has more bytes than allowed."""
        if size > max_bytes:
            self.fail(errors.MalformedAnswer(f"a line, an event or the body has more than {max_bytes >> 20} MiB"))

    def _count_characters(self, characters: int) -> None:
        """Count characters of the answer. A finish reason before them is ignored. Too many are a fault."""
        if self.finish:
            self.finish, self._early = None, True
        self._silent = False
        self._left -= characters
        if self._left < 0:
            self.fail(errors.AnswerTooLong("the answer is many times longer than max_tokens allows, and does not end"))

    def _take(self) -> bytes:
        """Remove and return the bytes that are not yet parsed."""
        rest, self._rest = bytes(self._rest), bytearray()
        return rest

    def _begin(self) -> None:
        """Distinguish a stream from one document by its first character: content types are unreliable."""
        if BOM.startswith(self._rest):  # nothing, or a part of a byte order mark
            return
        start = self._take().removeprefix(BOM).lstrip(b" \t\r\n")
        self._rest += start
        if start[:1] == b"<":
            self.fail(error_mapping.not_a_server(200))
        if start:
            self._document = self._is_document(start)

    def _parse(self, parse: Callable[[bytes], Delta | None], data: bytes) -> Delta | None:
        """Return the delta in these bytes. An undocumented shape is a fault of the answer, never an exception."""
        try:
            return parse(data)
        except LLMError as fault:
            self.fail(fault.with_traceback(None))
        except _ODD:
            self.fail(malformed("the answer" if self._document else "a line of the stream"))
        return None

    def _parse_object(self, data: bytes, what: str) -> dict[str, Any]:
        """Return the JSON object in these bytes. Raises MalformedAnswer for anything else."""
        value = json_object(data)
        if value is None:
            raise malformed(what)
        return value

    def _parse_text(self, text: Any, field: str) -> str:
        """Return a piece of text. The first half of a surrogate pair waits for the second."""
        if text is None or text == "":
            return ""
        if self.ended or not isinstance(text, str):
            raise malformed("text after the end" if self.ended else "a content that is not text")
        self._count_characters(len(text))
        if not self._halves and (text.isascii() or not _SURROGATE.search(text)):
            return text
        text = self._halves.pop(field, "") + text
        if "\ud800" <= text[-1:] <= "\udbff":
            text, self._halves[field] = text[:-1], text[-1]
        return str(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))

    def _record_finish(self, reason: Any, *, spoken: bool = False) -> None:
        """Record the finish reason. Some servers send "" before it. ``spoken``: text came with it."""
        if reason is None or reason == "":
            return
        self._spoken = self._spoken or spoken or self._silent
        reason = word(reason)
        if reason == "content_filter":
            self.fail(errors.ContentFiltered("the provider's content filter stopped the answer"))
        elif reason not in _FINISHES:
            self.fail(errors.UnknownFinish(f"unknown finish_reason “{reason}”: the answer may not be complete"))
        else:
            self.finish = self.finish or ("tool_calls" if self._calls and reason == "stop" else _FINISHES[reason])

    def _missing_finish(self) -> LLMError:
        """Return the error for a response without a finish reason."""
        if not self._seen:
            return errors.EmptyStream("the response has status 200 and an empty body")
        return errors.AnswerCut("the stream ended in the middle of the answer")

    def _is_document(self, start: bytes) -> bool:
        raise NotImplementedError

    def _parse_line(self, line: bytes) -> Delta | None:
        raise NotImplementedError

    def _parse_rest(self, rest: bytes) -> Delta | None:
        """Parse the bytes after the last end of line."""
        raise NotImplementedError

    def _parse_document(self, rest: bytes) -> Delta | None:
        """Parse a response that is one document."""
        raise NotImplementedError
