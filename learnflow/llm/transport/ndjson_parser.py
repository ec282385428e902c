"""Ollama's dialect on the wire: lines of JSON objects, the last one with ``"done": true``."""

from __future__ import annotations

import json
from typing import Final

from .. import errors
from ..completion import ToolCallDelta, Usage
from ..errors import LLMError
from . import error_mapping
from .reasoning import Delta
from .stream_parser import MAX_NAME, StreamParser
from .untrusted import non_negative_int, word

# Ollama gives up after "30 picked as an arbitrary max token repeat limit" (llm/server.go, since 0.30
# llm/llama_server.go): 31 equal ones arrive.
_EQUAL: Final = 30


class NDJSONParser(StreamParser):
    """Lines of JSON objects, the last one with ``"done": true``; an answer in one piece is just one line."""

    def __init__(self, max_tokens: int | None = None, *, finish_missing: bool = False) -> None:
        super().__init__(max_tokens, finish_missing=finish_missing)
        self._repeated: tuple[str, int] = ("", 0)  # the last token, blanks around it aside, and how often

    def _is_document(self, start: bytes) -> bool:  # noqa: ARG002  # one document is one line here
        return False

    def _line(self, line: bytes) -> Delta | None:
        if not line.strip():
            return None
        said = self._object(line, "a line of the stream")
        if said is None:
            return None
        began, self._seen = self._seen, True
        if said.get("error"):
            self.fail(error_mapping.error_object(said, began=began))
            return None
        if not {"done", "message", "response"} & set(said):
            self._malformed("a line of the stream")
            return None
        message = said.get("message") or {}
        self.served = self.served or word(said.get("model"), MAX_NAME) or None
        content = message.get("content") if message else said.get("response")  # the latter of /api/generate
        text, thinking = self._text(content, "text"), self._text(message.get("thinking"), "thinking")
        token, times = (text or thinking).strip(), self._repeated[1]
        self._repeated = (token, times + 1 if token == self._repeated[0] else 1)
        calls: tuple[ToolCallDelta, ...] = ()
        for call in message.get("tool_calls") or ():
            function = call.get("function") or {}
            arguments = json.dumps(function.get("arguments") or {})
            own, name = word(call.get("id"), MAX_NAME), word(function.get("name"), MAX_NAME)
            calls += self._called(len(self._calls), own, name, arguments) or ()
        if said.get("done"):
            self.ended = True
            prompt, answer = non_negative_int(said.get("prompt_eval_count")), non_negative_int(said.get("eval_count"))
            total = prompt + answer if prompt is not None and answer is not None else None
            self.usage = Usage(prompt, answer, total)
            self._closed(said.get("done_reason") or "stop")  # before 0.3 there was no reason, only done
        return Delta(text, thinking, calls) if text or thinking or message.get("tool_calls") else None

    def _last(self, rest: bytes) -> Delta | None:
        piece = self._read(rest)
        if isinstance(self.fault, errors.MalformedAnswer):
            cut = "the stream ended in the middle of a line"
            self.fault = errors.AnswerCut(cut) if self._seen else errors.BodyCut(cut)
        return piece

    def _missing(self) -> LLMError:
        if self._repeated[1] > _EQUAL:
            return errors.TokenRepeated("the model wrote one token over and over, and the server gave up")
        if self._seen:
            return errors.AnswerNotDone('the server ended the answer with "done": false')
        return super()._missing()
