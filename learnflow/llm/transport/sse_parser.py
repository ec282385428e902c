"""OpenAI's dialect on the wire: server-sent events of ``chat.completion.chunk``, or one ``chat.completion``.

Must never do I/O or know a provider.
Whoever listens feeds it what the transport reads.
"""

from __future__ import annotations

import json
from typing import Any, Final

from .. import errors
from ..base import Usage
from ..errors import LLMError
from . import error_mapping
from .reasoning import Delta
from .stream_parser import BOM, StreamParser, whole_number

_FIELDS: Final = (b"event", b"id", b"retry")
_MOST_LINES: Final = 1000  # of one event: servers send one


class SSEParser(StreamParser):
    """Server-sent events of ``chat.completion.chunk``, or one ``chat.completion``."""

    def __init__(self) -> None:
        super().__init__()
        self._data: list[bytes] = []
        self._event = b""

    def _is_document(self, start: bytes) -> bool:
        return start[:1] in b"{["

    def _line(self, line: bytes) -> Delta | None:
        line = line.removesuffix(b"\r")
        if line[:5] == b"data:":
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            if len(self._data) > _MOST_LINES:
                self._malformed("an event of so many lines")
            return None
        if not line:
            return self._dispatch() if self._data else None
        name, _, value = line.partition(b":")
        if name == b"event":
            self._event = value.strip()
        elif name and name not in _FIELDS:  # an empty name is a comment
            self._malformed("a line of the stream")
        return None

    def _dispatch(self) -> Delta | None:
        data, self._data = b"\n".join(self._data), []
        event, self._event = self._event, b""
        self._seen = True
        if data.strip() == b"[DONE]":
            self.ended = True
            if self.finish is None:
                self.fail(errors.FinishMissing("the stream ended with [DONE], but no finish_reason came"))
            return None
        said = self._object(data, "an event of the stream")
        if said is None:
            return None
        if event == b"error" or said.get("error") or said.get("object") == "error":
            self.fail(error_mapping.error_object(said, began=True))
            return None
        return self._chunk(said, "delta")

    def _chunk(self, said: dict[str, Any], where: str) -> Delta | None:
        """A chunk's ``delta``, or a whole answer's ``message``."""
        model = said.get("model")
        if model and not self.served and isinstance(model, str):
            self.served = model
        if said.get("usage"):
            self._count(said["usage"])
        choice = next((one for one in said.get("choices") or () if one.get("index") in (None, 0)), None)
        if choice is None:
            return None
        delta = choice.get(where) or {}
        if not isinstance(delta, dict):
            self._malformed("a choice of the answer")
            return None
        text = self._text(delta.get("content"), "text")
        thinking = self._text(delta.get("reasoning_content") or delta.get("reasoning"), "thinking")
        if delta.get("tool_calls"):
            self._collect(delta["tool_calls"])
        if delta.get("refusal"):
            self.refused = True
        self._closed(choice.get("finish_reason"))
        return Delta(text, thinking) if text or thinking or delta.get("tool_calls") else None

    def _collect(self, calls: Any) -> None:
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") or {}
            new = bool(call.get("id")) and all(call["id"] != known["id"] for known in self._calls.values())
            index = call.get("index")
            if index is None:  # some servers leave it out: a new id is a new call
                index = len(self._calls) if new or not self._calls else max(self._calls)
            known = self._calls.setdefault(index, {"id": "", "name": "", "arguments": ""})
            known["id"] = known["id"] or call.get("id") or ""
            known["name"] = known["name"] or function.get("name") or ""
            arguments = function.get("arguments") or ""
            known["arguments"] += arguments if isinstance(arguments, str) else json.dumps(arguments)

    def _count(self, usage: Any) -> None:
        """The tokens; an odd object leaves them unknown, and the answer as it is."""
        usage = _mapping(usage)
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        answer, prompt = _mapping(usage.get("completion_tokens_details")), _mapping(usage.get("prompt_tokens_details"))
        counts = [usage.get(name) for name in names] + [answer.get("reasoning_tokens"), prompt.get("cached_tokens")]
        self.usage = Usage(*(whole_number(count) for count in counts))
        cost = usage.get("cost")
        self.cost = float(cost) if isinstance(cost, (int, float)) else None

    def _last(self, rest: bytes) -> Delta | None:
        """The last event may lack its blank line; half an event is a cut, not a malformed one."""
        if rest.strip():
            self._read(rest)
        piece = self._read(b"") if self._data and not self.fault else None
        if isinstance(self.fault, errors.MalformedAnswer):
            self.fault = None if self.finish else errors.AnswerCut("the stream ended in the middle of a line")
        return piece

    def _whole(self, rest: bytes) -> Delta | None:
        try:
            said = json.loads(rest.removeprefix(BOM).decode("utf-8"))
        except (ValueError, RecursionError):
            self.fail(errors.BodyCut("the answer's JSON stops in the middle"))
            return None
        self._seen = True
        if not isinstance(said, dict) or not said.get("choices"):
            complains = isinstance(said, dict) and any(said.get(key) for key in ("error", "detail", "message"))
            self.fail(
                error_mapping.error_object(said, began=False)
                if complains
                else errors.MalformedAnswer("the server answered JSON that is no chat completion")
            )
            return None
        try:
            piece = self._chunk(said, "message")
        except (AttributeError, KeyError, TypeError):
            self._malformed("the answer")
            return None
        if said.get("error"):
            self.fail(error_mapping.error_object(said, began=True))
        return piece

    def _missing(self) -> LLMError:
        if self._document:
            return errors.FinishMissing("the answer came with finish_reason null")
        return super()._missing()


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
