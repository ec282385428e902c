"""The parser of OpenAI's API.

Events follow the HTML standard (section 9.2.6): lines end with LF, CR or both, and unknown fields are ignored.
"""

from __future__ import annotations

import re
from typing import Any, Final

from .. import errors
from ..completion import MESSAGE_FIELDS, ToolCallDelta, Usage
from ..errors import LLMError
from . import error_mapping
from .reasoning import Delta
from .stream_parser import BOM, MAX_NAME_CHARS, NO_FINISHES, StreamParser, dialect_error
from .tool_calls import collect_extra
from .untrusted import MAX_EVENT_BYTES, dollars, json_object, non_negative_int, parse_json, part, word

_FIELD: Final = re.compile(rb"[\w.-]{1,64}")
_THINKING_PARTS: Final = ("thinking", "reasoning")
_IGNORED_PARTS: Final = ("reference",)  # Mistral sends the sources of the text
_INDEX: Final = re.compile(r"-?[0-9]{1,9}(?:\.0)?")


class SSEParser(StreamParser):
    """A parser of server-sent events with a ``chat.completion.chunk`` each, or of one ``chat.completion``."""

    document_starts = b"{["
    answer_key = "choices"  # every document with an answer has it

    def __init__(self, max_tokens: int | None = None, *, finish_missing: bool = False) -> None:
        super().__init__(max_tokens, finish_missing=finish_missing)
        self._data: list[bytes] = []  # the data lines of the event
        self._size = 0  # the length of the event in bytes
        self._event = b""  # the type of the event
        self._notice: dict[str, Any] | None = None  # an object without choices that may describe an error
        self._text_choice: Any = None  # the index of the choice whose text is the answer; None before the text
        self._open_choices: set[Any] = set()  # the indices of the choices with content and without a finish reason
        self._uses_message = False  # the chunks have "message" instead of "delta"
        self._after_cr = False  # the last byte was a carriage return; a line feed after it ends no other line

    def feed(self, data: bytes) -> list[Delta]:
        """Parse bytes. Return the deltas that they complete. Lines end with LF, CR or both."""
        if self._after_cr:
            data = data.removeprefix(b"\n")
        self._after_cr = data.endswith(b"\r") or (self._after_cr and not data)
        return super().feed(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))

    def _parse_line(self, line: bytes) -> None:
        if line[:5] == b"data:":
            # some servers omit the empty line between events, or send comments as data
            if len(self._data) == 1 and json_object(self._data[0]) is not None:
                self._dispatch()
            value = line[6:] if line[5:6] == b" " else line[5:]
            self._data += [value] if self._data or value[:1] != b":" else []
            self._size += len(line)
            self._check_size(self._size, MAX_EVENT_BYTES)
            return
        if not line:
            self._dispatch()
            return
        name, _, value = line.partition(b":")
        if name == b"event":
            self._event = value.strip()
        elif name and not _FIELD.fullmatch(name):  # a line without a field name is a comment
            raise dialect_error("a line of the stream")

    def _dispatch(self) -> None:
        """Parse an event, which an empty line has ended."""
        data, self._data, self._size = b"\n".join(self._data), [], 0
        event, self._event = self._event, b""
        if not data.strip():
            return
        self._seen, seen = True, self._seen
        if data.strip() == b"[DONE]":
            self.ended = True
            if self.finish is None and self._finish_missing and seen:
                self.finish = "tool_calls" if self._calls else "stop"
            if self.finish is None:
                self.fail(self._no_finish_error())
            return
        chunk = self._parse_object(data, "an event of the stream")
        if event == b"error" or chunk.get("error") or chunk.get("object") == "error":
            raise error_mapping.map_error_object(chunk, began=True)
        self._parse_chunk(chunk, "delta")

    def _parse_chunk(self, chunk: dict[str, Any], key: str) -> None:
        """Parse a chunk of a stream, or a whole completion.

        Args:
            chunk: the JSON object.
            key: the key of the text in a choice: "delta", or "message" in a whole completion.
        """
        self.served_model = self.served_model or word(chunk.get("model"), MAX_NAME_CHARS) or None
        choices = [choice for choice in chunk.get("choices") or () if choice is not None]
        for place in (chunk, *choices, *chunk.values()):
            if isinstance(place, dict) and place.get("usage"):
                self._record_usage(place["usage"])
        if not choices and self._notice is None and error_mapping.message_of(chunk):
            self._notice = chunk
        if _is_loading_notice(chunk):
            return
        have_text = [self._parse_choice(choice, key) for choice in choices]
        for choice, has_text in zip(choices, have_text, strict=True):
            if choice.get("finish_reason") not in NO_FINISHES:
                self._open_choices.discard(_choice_index(choice))
                if not self._open_choices:
                    self._record_finish(choice["finish_reason"], with_text=has_text)

    def _parse_choice(self, choice: dict[str, Any], key: str) -> bool:
        """Parse a choice. Return whether it has text or tool calls.

        Some gateways send tool calls, or the text after them, in a choice of their own.
        """
        if choice.get("error"):
            raise error_mapping.map_error_object(choice, began=self._has_text)
        number, delta = _choice_index(choice), choice.get(key)
        if not delta and (self._uses_message or not self._has_text):
            delta = choice.get("message")
            self._uses_message = self._uses_message or bool(delta)
        delta = delta or {}
        if not isinstance(delta, dict):
            raise dialect_error("a choice of the answer")
        self._spend(collect_extra(self.extra, delta, MESSAGE_FIELDS))
        text, thinking, chars_left = "", "", self._chars_left
        if number == self._text_choice or (self._text_choice is None and (number == 0 or self._calls)):
            content_text, content_thinking = _split_content(delta.get("content"))
            text = self._parse_text(content_text, "text")
            thinking = self._parse_text(
                content_thinking or delta.get("reasoning_content") or delta.get("reasoning"), "thinking"
            )
            self._text_choice = number if text or thinking else self._text_choice
        calls = self._parse_calls(number, delta)
        self.refused = self.refused or bool(delta.get("refusal"))
        if self._chars_left == chars_left:
            return False
        self._open_choices.add(number)
        self._deltas.append(Delta(text, thinking, calls))
        return True

    def _parse_calls(self, choice: Any, delta: dict[str, Any]) -> tuple[ToolCallDelta, ...]:
        """Add pieces of tool calls, including the call of OpenAI's first API. Return their deltas."""
        first = delta.get("function_call")
        pieces = delta.get("tool_calls") or ([{"function": first}] if first else [])
        if not isinstance(pieces, list):
            raise dialect_error("a tool call")
        deltas: list[ToolCallDelta] = []
        for piece in pieces:
            if piece is not None:
                index = _index(piece)
                deltas += self._add_call(None if index is None else (choice, index), piece)
        return tuple(deltas)

    def _record_usage(self, usage: Any) -> None:
        """Record the token counts and the cost. Invalid values count as unknown, and are not a fault."""
        # the Responses API has "input_tokens" and "output_tokens"
        renamed = [name.replace("input", "prompt").replace("output", "completion") for name in part(usage)]
        usage = dict(zip(renamed, part(usage).values(), strict=True))
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        answer, prompt = part(usage, "completion_tokens_details"), part(usage, "prompt_tokens_details")
        counts = [usage.get(name) for name in names] + [answer.get("reasoning_tokens"), prompt.get("cached_tokens")]
        self.usage = Usage(*map(non_negative_int, counts))
        self.cost = dollars(usage.get("cost"))

    def _parse_rest(self, rest: bytes) -> None:
        """Parse the last event, which may lack its empty line. If it is incomplete, the fault is ``AnswerCut``."""
        for line in (rest, b"") if rest.strip() else (b"",):
            if not self.fault:
                self._parse(self._parse_line, line)
        if isinstance(self.fault, errors.MalformedAnswer):
            self.fault = None if self.is_complete else errors.AnswerCut("the stream ended in the middle of a line")

    def _parse_document(self, rest: bytes) -> None:
        try:
            chunk = parse_json(rest.removeprefix(BOM))
        except ValueError:
            self.fail(errors.BodyCut("the JSON of the response is cut off"))
            return
        self._seen = True
        if not isinstance(chunk, dict) or not chunk.get(self.answer_key):
            if isinstance(chunk, dict) and error_mapping.message_of(chunk):
                raise error_mapping.map_error_object(chunk, began=False)
            raise errors.MalformedAnswer("the response is JSON, but not a chat completion")
        self._parse_chunk(chunk, "message")
        if chunk.get("error"):
            self.fail(error_mapping.map_error_object(chunk, began=True))

    def _no_finish_error(self) -> LLMError:
        if self._notice:
            return error_mapping.map_error_object(self._notice, began=self._has_text)
        if self.ended:
            return errors.FinishMissing("the stream ended with [DONE], but no finish_reason came")
        if self._is_document and not self._text_after_finish:
            return errors.FinishMissing("the response has no finish_reason")
        return super()._no_finish_error()


def _index(value: dict[str, Any]) -> int | None:
    """Return the index of a choice or a tool call, also if it is a text or a float; None without a valid one."""
    text = str(value.get("index"))
    return int(float(text)) if _INDEX.fullmatch(text) else None


def _choice_index(choice: dict[str, Any]) -> int:
    """Return the index of a choice; 0 without one. Raise MalformedAnswer if it is no number."""
    index = _index(choice)
    if index is None and choice.get("index"):
        raise dialect_error("the index of a choice")
    return index or 0


def _is_loading_notice(chunk: dict[str, Any]) -> bool:
    """Return whether a chunk is a notice of llama-swap that a model is loading.

    A notice has only ``choices`` with ``reasoning_content`` (``internal/router/loading.go`` in 0bdb372). Chunks of a
    model have other fields, too.
    """
    match chunk:
        case {"choices": [{"delta": {"reasoning_content": _, **others}, **more}], **rest}:
            return not (others or more or rest)
    return False


def _split_content(content: Any) -> tuple[Any, str]:
    """Return the text and the thinking of a content, which is a text or a list of typed parts (Mistral, some gateways).

    Raises:
        TypeError: a part has an unknown type, so that the answer would be incomplete without the part.
    """
    if not isinstance(content, list):
        return content, ""
    texts, thoughts = [], []
    for item in content:
        kind, text = part(item).get("type"), item if isinstance(item, str) else part(item).get("text")
        if kind in _THINKING_PARTS:
            thought = _split_content(item.get(kind))[0]
            thoughts.append(thought if isinstance(thought, str) else "")
        elif isinstance(text, str):
            texts.append(text)
        elif kind not in _IGNORED_PARTS:
            raise TypeError("a part of the content has an unknown type")
    return "".join(texts), "".join(thoughts)
