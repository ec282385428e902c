"""The wire format of OpenAI's Responses API for ``FaultServer``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..completion import ToolCallDelta
from .dialects import MODEL, Dialect, DialectName

_STATUSES = {"stop": "completed", "tool_calls": "completed", None: "in_progress"}


def event(kind: str, **fields: Any) -> bytes:
    """Return a server-sent event. The field ``event`` and the data both contain its type, ``kind``."""
    data = json.dumps({"type": kind, **fields}, ensure_ascii=False)
    return f"event: {kind}\ndata: {data}\n\n".encode()


@dataclass(frozen=True)
class ResponsesDialect(Dialect):
    """The wire format of the Responses API. A stream ends with ``response.completed``, without ``[DONE]``."""

    @property
    def chat_path(self) -> str:
        """Return the last part of the path of requests."""
        return "/responses"

    def piece(self, text: str = "", thinking: str = "") -> bytes:
        """Return the event with a piece of the answer."""
        if thinking:
            return event("response.reasoning_summary_text.delta", output_index=0, summary_index=0, delta=thinking)
        return event("response.output_text.delta", output_index=1, content_index=0, delta=text)

    def call(self, piece: ToolCallDelta) -> bytes:
        """Return the events with a piece of a tool call. Only its first piece has the id and name."""
        index = 2 + piece.index
        item = {"type": "function_call", "call_id": piece.id, "name": piece.name, "arguments": ""}
        added = event("response.output_item.added", output_index=index, item=item) if piece.id else b""
        return added + event("response.function_call_arguments.delta", output_index=index, delta=piece.arguments)

    def opening(self) -> bytes:
        """Return the beginning of a stream, before the first piece."""
        return event("response.created", response=self._response(None))

    def last_piece(self, finish: str | None = "stop", prompt_tokens: int = 5) -> bytes:
        """Return the last event. If ``finish`` is None, the event does not end the response."""
        response = self._response(finish, prompt_tokens)
        return event(f"response.{response['status']}", response=response)

    def terminator(self) -> bytes:
        """Return b"". This API has no line after the last event."""
        return b""

    def usage(self, prompt_tokens: int = 5) -> bytes:  # noqa: ARG002  # an argument of the base class
        """Return b"". The last event reports the tokens."""
        return b""

    def answer_body(self, text: str, finish: str | None = "stop", thinking: str = "") -> bytes:
        """Return the body of a response that is not streamed."""
        summary = [{"type": "summary_text", "text": thinking}] if thinking else []
        content = [{"type": "output_text", "text": text, "annotations": []}]
        items = [
            {"type": "reasoning", "id": "rs_0", "summary": summary},
            {"type": "message", "id": "msg_0", "role": "assistant", "content": content},
        ]
        return json.dumps({**self._response(finish), "output": items}).encode()

    def error(self, message: str = "the engine died") -> bytes:
        """Return an error that the server sends inside a stream."""
        return event("error", code="server_error", message=message, param=None)

    def prefill(self, body: Any) -> str | None:
        """Return the partial answer that a request continues; None if the request starts a new answer."""
        texts = self.prompt_texts(body)
        if len(texts) < 3 or "cut off" not in texts[-1]:
            return None
        # The last message quotes the end of the partial answer, which the continuation must repeat. Remove this end
        return texts[-2].removesuffix(texts[-1].partition("\n\n")[2])

    def prompt_texts(self, body: Any) -> list[str]:
        """Return the text of each message."""
        messages = [item for item in body["input"] if item.get("type") == "message"]
        return ["".join(part.get("text", "") for part in item["content"]) for item in messages]

    def pages(self) -> Mapping[str, Any]:
        """Return the JSON of the server's pages other than chat, by path. There is only the list of models."""
        return {"/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model"}]}}

    def _response(self, finish: str | None, prompt_tokens: int = 5) -> dict[str, Any]:
        status = _STATUSES.get(finish, "incomplete")
        reason = {"length": "max_output_tokens"}.get(str(finish), finish)
        usage = {"input_tokens": prompt_tokens, "output_tokens": 7, "total_tokens": prompt_tokens + 7}
        ended = status != "in_progress"
        return {
            "object": "response",
            "model": MODEL,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": reason} if status == "incomplete" else None,
            "output": [],
            "usage": usage if ended else None,
        }


def dialect_of(name: DialectName) -> Dialect:
    """Return the wire format with this name."""
    return ResponsesDialect(name) if name == "responses" else Dialect(name)
