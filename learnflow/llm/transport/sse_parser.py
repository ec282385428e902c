"""OpenAI's dialect on the wire: server-sent events of ``chat.completion.chunk``, or one ``chat.completion``.

Events as the HTML standard has them (section 9.2.6): lines end with LF, CR or both, unknown fields are ignored.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Any, Final

from .. import errors
from ..completion import ToolCallDelta, Usage
from ..errors import LLMError
from . import error_mapping
from .reasoning import Delta
from .stream_parser import BOM, MAX_NAME, StreamParser, malformed
from .untrusted import MAX_EVENT_BYTES, dollars, non_negative_int, parse_json, part, word

_FIELD: Final = re.compile(rb"[\w.-]{1,64}")
_THINKING_PARTS: Final = ("thinking", "reasoning")
_SILENT_PARTS: Final = ("reference",)  # Mistral's: where a piece of text is from


class SSEParser(StreamParser):
    """Server-sent events of ``chat.completion.chunk``, or one ``chat.completion``."""

    def __init__(self, max_tokens: int | None = None, *, finish_missing: bool = False) -> None:
        super().__init__(max_tokens, finish_missing=finish_missing)
        self._data: list[bytes] = []
        self._size = 0  # bytes of the event
        self._event = b""
        self._after_cr = False  # a line feed that comes now belongs to the carriage return before it

    def _normalised(self, data: bytes) -> bytes:
        if self._after_cr:
            data = data.removeprefix(b"\n")
        self._after_cr = data.endswith(b"\r") or (self._after_cr and not data)
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data

    def _is_document(self, start: bytes) -> bool:
        return start[:1] in b"{["

    def _line(self, line: bytes) -> Delta | None:
        if line[:5] == b"data:":
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            self._size += len(line)
            self._bound(self._size, MAX_EVENT_BYTES)
            return None
        if not line:
            if self._data:
                return self._dispatch()
            self._event = b""
            return None
        name, _, value = line.partition(b":")
        if name == b"event":
            self._event = value.strip()
        elif name and not _FIELD.fullmatch(name):  # no name is a comment; a name that is none was something else once
            raise malformed("a line of the stream")
        return None

    def _dispatch(self) -> Delta | None:
        data, self._data, self._size = b"\n".join(self._data), [], 0
        event, self._event = self._event, b""
        if data.strip() == b"[DONE]":
            self.ended = True
            if self.finish is None and self._finish_missing and self._seen:
                self.finish = "tool_calls" if self._calls else "stop"
            if self.finish is None:
                self.fail(errors.FinishMissing("the stream ended with [DONE], but no finish_reason came"))
            self._seen = True
            return None
        self._seen = True
        chunk = self._object(data, "an event of the stream")
        if event == b"error" or chunk.get("error") or chunk.get("object") == "error":
            raise error_mapping.error_object(chunk, began=True)
        return self._chunk(chunk, "delta")

    def _chunk(self, chunk: dict[str, Any], key: str) -> Delta | None:
        """Parse a chunk: its ``delta``, or the ``message`` of a complete answer."""
        self.served = self.served or word(chunk.get("model"), MAX_NAME) or None
        if chunk.get("usage"):
            self._count(chunk["usage"])
        if _is_notice(chunk):
            return None
        choice = next((one for one in chunk.get("choices") or () if one.get("index") in (None, 0)), None)
        if choice is None:
            return None
        delta = choice.get(key) or {}
        if not isinstance(delta, dict):
            raise malformed("a choice of the answer")
        content_text, content_thinking = _parts(delta.get("content"))
        text = self._text(content_text, "text")
        thinking = self._text(content_thinking or delta.get("reasoning_content") or delta.get("reasoning"), "thinking")
        calls = self._collect(delta["tool_calls"]) if delta.get("tool_calls") else None
        if delta.get("refusal"):
            self.refused = True
        spoken = bool(text or thinking or calls is not None)
        self._closed(choice.get("finish_reason"), spoken=spoken)
        return Delta(text, thinking, calls or ()) if spoken else None

    def _collect(self, calls: Any) -> tuple[ToolCallDelta, ...] | None:
        """Add pieces of tool calls. Returns the deltas to emit, None if the pieces are empty."""
        if not isinstance(calls, list):
            raise malformed("a tool call")
        pieces = [self._piece(call, call.get("function") or {}) for call in calls]
        visible = [piece for piece in pieces if piece is not None]
        return tuple(itertools.chain(*visible)) if visible else None

    def _piece(self, call: dict[str, Any], function: dict[str, Any]) -> tuple[ToolCallDelta, ...] | None:
        own, index = word(call.get("id"), MAX_NAME), call.get("index")
        if type(index) is not int:  # some servers leave it out: a new id is a new call
            new = bool(own) and all(own != known.id for known in self._calls.values())
            index = len(self._calls) if new or not self._calls else max(self._calls)
        arguments = function.get("arguments") or ""
        arguments = arguments if isinstance(arguments, str) else json.dumps(arguments)
        return self._called(index, own, word(function.get("name"), MAX_NAME), arguments)

    def _count(self, usage: Any) -> None:
        """Record the tokens. An invalid object leaves them unknown, and the answer as it is."""
        usage = part(usage)
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        answer, prompt = part(usage, "completion_tokens_details"), part(usage, "prompt_tokens_details")
        counts = [usage.get(name) for name in names] + [answer.get("reasoning_tokens"), prompt.get("cached_tokens")]
        self.usage = Usage(*map(non_negative_int, counts))
        self.cost = dollars(usage.get("cost"))

    def _last(self, rest: bytes) -> Delta | None:
        """Parse the last event, which may lack its blank line. Half an event is a cut, not malformed."""
        if rest.strip():
            self._parsed(self._line, rest)
        piece = self._parsed(self._line, b"") if self._data and not self.fault else None
        if isinstance(self.fault, errors.MalformedAnswer):
            self.fault = None if self.settled else errors.AnswerCut("the stream ended in the middle of a line")
        return piece

    def _whole(self, rest: bytes) -> Delta | None:
        try:
            chunk = parse_json(rest.removeprefix(BOM))
        except ValueError:
            self.fail(errors.BodyCut("the answer's JSON stops in the middle"))
            return None
        self._seen = True
        if not isinstance(chunk, dict) or not chunk.get("choices"):
            complains = isinstance(chunk, dict) and any(chunk.get(key) for key in ("error", "detail", "message"))
            if complains:
                raise error_mapping.error_object(chunk, began=False)
            raise errors.MalformedAnswer("the server answered JSON that is not a chat completion")
        piece = self._chunk(chunk, "message")
        if chunk.get("error"):
            self.fail(error_mapping.error_object(chunk, began=True))
        return piece

    def _missing(self) -> LLMError:
        if self._document and not self._early:
            return errors.FinishMissing("the answer came with finish_reason null")
        return super()._missing()


def _is_notice(chunk: dict[str, Any]) -> bool:
    """Return whether this is a notice of llama-swap while a model loads: reasoning, in an event without other fields.

    It writes no id, object, model or index (``internal/router/loading.go`` in 0bdb372); a model's chunk has them.
    """
    choices = chunk["choices"] if chunk.keys() == {"choices"} else None
    delta = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    for name in ("delta", "reasoning_content"):
        delta = delta[name] if isinstance(delta, dict) and delta.keys() == {name} else None
    return delta is not None


def _parts(content: Any) -> tuple[Any, str]:
    """Return the content and its thinking. Mistral and some gateways send a list of typed parts instead of a text.

    Raises:
        TypeError: the type of a part is unknown. Without the part, the answer would be incomplete.
    """
    if not isinstance(content, list):
        return content, ""
    texts, thoughts = [], []
    for one in content:
        kind, text = part(one).get("type"), one if isinstance(one, str) else part(one).get("text")
        if kind in _THINKING_PARTS:
            thought = _parts(one.get(kind))[0]
            thoughts.append(thought if isinstance(thought, str) else "")
        elif isinstance(text, str):
            texts.append(text)
        elif kind not in _SILENT_PARTS:
            raise TypeError("a part of a content that is no text")
    return "".join(texts), "".join(thoughts)
