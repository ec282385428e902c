"""The parser of OpenAI's chat completions.

Server-sent events follow the HTML standard (section 9.2.6): lines end with LF, CR or CRLF; unknown fields are ignored.
"""

from __future__ import annotations

import re
from typing import Any, Final

from .. import errors
from ..completion import MESSAGE_FIELDS, ToolCallDelta, Usage
from ..errors import LLMError
from . import error_mapping
from .reasoning import Delta
from .stream_parser import BOM, MAX_NAME_CHARS, NOT_FINISHED, StreamParser, malformed_error
from .tool_calls import collect_extra
from .untrusted import (
    MAX_EVENT_BYTES,
    dollars_or_none,
    json_object,
    non_negative_int,
    object_at,
    parse_json,
    short_text,
)

_FIELD_NAME: Final = re.compile(rb"[\w.-]{1,64}")
_THINKING_PARTS: Final = ("thinking", "reasoning")
_IGNORED_PARTS: Final = ("reference",)  # Mistral sends the sources of the text in such a part
_INDEX: Final = re.compile(r"-?[0-9]{1,9}(?:\.0)?")


class SSEParser(StreamParser):
    """A parser of a stream of ``chat.completion.chunk``, or of one ``chat.completion`` in a JSON document.

    ``feed`` and ``end`` of ``StreamParser`` call ``_parse_line`` and ``_parse_rest``, or ``_parse_document``.
    """

    document_starts = b"{["
    required_document_key = "choices"  # a document without this key is not an answer

    def __init__(self, max_tokens: int | None = None, *, finish_optional: bool = False) -> None:
        super().__init__(max_tokens, finish_optional=finish_optional)
        self._data_lines: list[bytes] = []  # data lines of the current event
        self._event_bytes = 0  # length of the data lines
        self._event_type = b""  # type of the current event
        self._possible_error: dict[str, Any] | None = None  # an object without choices, which may be an error
        self._text_choice_index: Any = None  # index of the choice that has the text; None before the first text
        self._open_choices: set[Any] = set()  # indexes of the choices with content and without a finish reason
        self._uses_message = False  # the chunks have "message" instead of "delta"
        self._after_cr = False  # the last byte was CR; an LF after it belongs to the same line end

    def feed(self, data: bytes) -> list[Delta]:
        """Parse bytes. Return the deltas that they complete."""
        if self._after_cr:
            data = data.removeprefix(b"\n")
        self._after_cr = data.endswith(b"\r") or (self._after_cr and not data)
        return super().feed(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))

    def _parse_line(self, line: bytes) -> None:
        if line[:5] == b"data:":
            # some servers omit the empty line between events, or send comments as data (": …")
            if len(self._data_lines) == 1 and json_object(self._data_lines[0]) is not None:
                self._dispatch()
            value = line[6:] if line[5:6] == b" " else line[5:]
            self._data_lines += [value] if self._data_lines or value[:1] != b":" else []
            self._event_bytes += len(line)
            self._check_size(self._event_bytes, MAX_EVENT_BYTES)
            return
        if not line:
            self._dispatch()
            return
        name, _, value = line.partition(b":")
        if name == b"event":
            self._event_type = value.strip()
        elif name and not _FIELD_NAME.fullmatch(name):  # a line without a field name is a comment
            raise malformed_error("a line of the stream")

    def _dispatch(self) -> None:
        """Parse the collected event."""
        data, self._data_lines, self._event_bytes = b"\n".join(self._data_lines), [], 0
        event_type, self._event_type = self._event_type, b""
        if not data.strip():
            return
        self._has_events, had_events = True, self._has_events
        if data.strip() == b"[DONE]":
            self.has_end_mark = True
            if self.finish is None and self._finish_optional and had_events:
                self.finish = "tool_calls" if self._calls else "stop"
            if self.finish is None:
                self.fail(self._no_finish_error())
            return
        chunk = self._parse_object(data, "an event of the stream")
        if event_type == b"error" or chunk.get("error") or chunk.get("object") == "error":
            raise error_mapping.map_error_object(chunk, answer_started=True)
        self._parse_chunk(chunk, "delta")

    def _parse_chunk(self, chunk: dict[str, Any], message_key: str) -> None:
        """Parse a chunk of a stream, or a whole completion.

        ``message_key`` is the key in a choice: "delta" in a chunk, "message" in a completion.
        """
        self.served_model = self.served_model or short_text(chunk.get("model"), MAX_NAME_CHARS) or None
        choices = [choice for choice in chunk.get("choices") or () if choice is not None]
        for place in (chunk, *choices, *chunk.values()):
            if isinstance(place, dict) and place.get("usage"):
                self._record_usage(place["usage"])
        if not choices and self._possible_error is None and error_mapping.error_message(chunk):
            self._possible_error = chunk
        if _is_loading_notice(chunk):
            return
        have_content = [self._parse_choice(choice, message_key) for choice in choices]
        for choice, has_content in zip(choices, have_content, strict=True):
            if choice.get("finish_reason") not in NOT_FINISHED:
                self._open_choices.discard(_choice_index(choice))
                if not self._open_choices:
                    self._record_finish(choice["finish_reason"], with_text=has_content)

    def _parse_choice(self, choice: dict[str, Any], message_key: str) -> bool:
        """Parse a choice. Return whether it has text, thinking or tool calls.

        Tool calls are read from every choice, because some gateways send them in another choice than 0. Text is read
        from choice 0. If tool calls arrived before any text, it is read from the first choice that has text, because
        some gateways send such text in another choice.
        """
        if choice.get("error"):
            raise error_mapping.map_error_object(choice, answer_started=self._has_content)
        choice_index, delta = _choice_index(choice), choice.get(message_key)
        if not delta and (self._uses_message or not self._has_content):
            delta = choice.get("message")
            self._uses_message = self._uses_message or bool(delta)
        delta = delta or {}
        if not isinstance(delta, dict):
            raise malformed_error("a choice of the answer")
        self._deduct_chars(collect_extra(self.extra, delta, MESSAGE_FIELDS))
        text, thinking, chars_left = "", "", self._chars_left
        if choice_index == self._text_choice_index or (
            self._text_choice_index is None and (choice_index == 0 or self._calls)
        ):
            content_text, content_thinking = _split_content(delta.get("content"))
            text = self._parse_text(content_text, "text")
            thinking = self._parse_text(
                content_thinking or delta.get("reasoning_content") or delta.get("reasoning"), "thinking"
            )
            self._text_choice_index = choice_index if text or thinking else self._text_choice_index
        calls = self._parse_calls(choice_index, delta)
        self.refused = self.refused or bool(delta.get("refusal"))
        if self._chars_left == chars_left:
            return False
        self._open_choices.add(choice_index)
        self._deltas.append(Delta(text, thinking, calls))
        return True

    def _parse_calls(self, choice_index: Any, delta: dict[str, Any]) -> tuple[ToolCallDelta, ...]:
        """Add the pieces of tool calls, or of the deprecated ``function_call``. Return their deltas."""
        legacy_call = delta.get("function_call")
        pieces = delta.get("tool_calls") or ([{"function": legacy_call}] if legacy_call else [])
        if not isinstance(pieces, list):
            raise malformed_error("a tool call")
        deltas: list[ToolCallDelta] = []
        for piece in pieces:
            if piece is not None:
                index = _index(piece)
                deltas += self._add_call(None if index is None else (choice_index, index), piece)
        return tuple(deltas)

    def _record_usage(self, usage: Any) -> None:
        """Record the token counts and the cost. An invalid value counts as unknown, not as a fault."""
        # Rename "input_tokens" and "output_tokens" of the Responses API
        renamed = [name.replace("input", "prompt").replace("output", "completion") for name in object_at(usage)]
        usage = dict(zip(renamed, object_at(usage).values(), strict=True))
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        answer, prompt = object_at(usage, "completion_tokens_details"), object_at(usage, "prompt_tokens_details")
        counts = [usage.get(name) for name in names] + [answer.get("reasoning_tokens"), prompt.get("cached_tokens")]
        self.usage = Usage(*map(non_negative_int, counts))
        self.cost = dollars_or_none(usage.get("cost"))

    def _parse_rest(self, rest: bytes) -> None:
        """Parse the last event, which may lack its empty line.

        If the event is malformed, the stream was cut off. ``fault`` is then AnswerCut, or None if the answer was
        already complete.
        """
        for line in (rest, b"") if rest.strip() else (b"",):
            if not self.fault:
                self._parse_guarded(self._parse_line, line)
        if isinstance(self.fault, errors.MalformedAnswer):
            self.fault = None if self.is_complete else errors.AnswerCut("the stream ended in the middle of a line")

    def _parse_document(self, rest: bytes) -> None:
        try:
            chunk = parse_json(rest.removeprefix(BOM))
        except ValueError:
            self.fail(errors.BodyCut("the JSON of the response is cut off"))
            return
        self._has_events = True
        if not isinstance(chunk, dict) or not chunk.get(self.required_document_key):
            if isinstance(chunk, dict) and error_mapping.error_message(chunk):
                raise error_mapping.map_error_object(chunk, answer_started=False)
            raise errors.MalformedAnswer("the response is JSON, but not a chat completion")
        self._parse_chunk(chunk, "message")
        if chunk.get("error"):
            self.fail(error_mapping.map_error_object(chunk, answer_started=True))

    def _no_finish_error(self) -> LLMError:
        if self._possible_error:
            return error_mapping.map_error_object(self._possible_error, answer_started=self._has_content)
        if self.has_end_mark:
            return errors.FinishMissing("the stream ended with [DONE], but without a finish_reason")
        if self._is_document and not self._finish_was_discarded:
            return errors.FinishMissing("the response has no finish_reason")
        return super()._no_finish_error()


def _index(value: dict[str, Any]) -> int | None:
    """Return the index of a choice or a tool call, even if it is a string or a float. None if missing or invalid."""
    text = str(value.get("index"))
    return int(float(text)) if _INDEX.fullmatch(text) else None


def _choice_index(choice: dict[str, Any]) -> int:
    """Return the index of a choice; 0 if it is missing. Raise MalformedAnswer if it is not an integer."""
    index = _index(choice)
    if index is None and choice.get("index"):
        raise malformed_error("the index of a choice")
    return index or 0


def _is_loading_notice(chunk: dict[str, Any]) -> bool:
    """Return whether a chunk is llama-swap's notice about the load of a model, instead of the model's thinking.

    A notice has only ``choices`` with ``reasoning_content`` (``internal/router/loading.go``, commit 0bdb372). The chunk
    of a model has other fields, too.
    """
    match chunk:
        case {"choices": [{"delta": {"reasoning_content": _, **others}, **more}], **rest}:
            return not (others or more or rest)
    return False


def _split_content(content: Any) -> tuple[Any, str]:
    """Return the text and the thinking of ``content``: a string, or a list of typed parts (Mistral, some gateways).

    Raises:
        TypeError: a part has an unknown type. It is not skipped, because the answer would be incomplete without it.
    """
    if not isinstance(content, list):
        return content, ""
    texts, thoughts = [], []
    for part in content:
        part_type, text = object_at(part).get("type"), part if isinstance(part, str) else object_at(part).get("text")
        if part_type in _THINKING_PARTS:
            thought = _split_content(part.get(part_type))[0]
            thoughts.append(thought if isinstance(thought, str) else "")
        elif isinstance(text, str):
            texts.append(text)
        elif part_type not in _IGNORED_PARTS:
            raise TypeError("a part of the content has an unknown type")
    return "".join(texts), "".join(thoughts)
