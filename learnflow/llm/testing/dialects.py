"""The wire formats of servers for ``FaultServer``: streams, complete responses, errors, and pages such as ``/health``.

The formats are recorded from real servers, or written from the servers' documentation. A *piece* is one streamed part
of the answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from ..completion import ToolCallDelta

DialectName = Literal["openai", "lmstudio", "vllm", "llamacpp", "ollama", "responses"]

MODEL: Final = "fault-model"
_ASSISTANT: Final = "<|assistant|>"

_ErrorResponse = tuple[int, Any]  # status and JSON body


def _error(status: int, /, **error: Any) -> _ErrorResponse:
    return status, {"error": error}


def _openai_error(
    status: int, message: str, error_type: str, code: str | None = None, param: str | None = None
) -> _ErrorResponse:
    return _error(status, message=message, type=error_type, param=param, code=code)


_OVERFLOW: Final = "This model's maximum context length is 2048 tokens. However, your messages resulted in 3007 tokens."
_LMSTUDIO_NO_MODEL: Final = "No models loaded. Please load a model in the developer page or use the 'lms load' command."
# ``_OPENAI_ERRORS`` and ``ERROR_RESPONSES`` map ``Fault.refusal`` to error responses. Those of llama.cpp 0c1e570,
# vLLM 0.32 and Ollama 0.33 are recorded. Those of OpenAI and LM Studio are written from their documentation.
# tests/contract/authored.py uses the responses, too.
_OPENAI_ERRORS: Final[Mapping[str, _ErrorResponse]] = {
    "key": _openai_error(401, "Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
    "model": _openai_error(
        404, "The model `no-such-model` does not exist.", "invalid_request_error", "model_not_found"
    ),
    "overflow": _openai_error(400, _OVERFLOW, "invalid_request_error", "context_length_exceeded", "messages"),
    "rate": _openai_error(429, "Rate limit reached.", "requests", "rate_limit_exceeded"),
    "quota": _error(429, message="You exceeded your quota.", type="insufficient_quota"),
    "busy": _openai_error(503, "The server is overloaded.", "service_unavailable_error", "server_is_overloaded"),
    "failed": _error(500, message="The server had an error.", type="server_error"),
    "request": _error(400, message="Invalid value: 'x'.", type="invalid_request_error"),
    "filter": _error(400, message="The response was filtered", code="content_filter", status=400),
}
ERROR_RESPONSES: Final[Mapping[DialectName, Mapping[str, _ErrorResponse]]] = {
    "openai": _OPENAI_ERRORS,
    "responses": _OPENAI_ERRORS,
    "lmstudio": {
        "key": _error(
            401, type="invalid_request", code="invalid_api_key", message="An LM Studio API token is required."
        ),
        "model": (404, {"error": _LMSTUDIO_NO_MODEL}),
        "overflow": (
            400,
            {"error": "The number of tokens to keep from the initial prompt is greater than the context length."},
        ),
        "request": (400, {"error": "'messages' field is required"}),
        "failed": (500, {"error": "The model has crashed."}),
    },
    "vllm": {
        "key": (401, {"error": "Unauthorized"}),
        "model": _error(404, message="The model `x` does not exist.", type="NotFoundError", param="model", code=404),
        "overflow": _error(
            400, message="This model's maximum context length is 8 tokens.", type="BadRequestError", code=400
        ),
        "busy": _error(503, message="The engine is currently busy.", type="ServiceUnavailableError", code=503),
        "request": _error(400, message="unknown field in messages", type="BadRequestError", code=400),
        "failed": _error(500, message="EngineCore encountered an issue.", type="InternalServerError", code=500),
    },
    "llamacpp": {
        "key": _error(401, message="Invalid API Key", type="authentication_error", code=401),
        "model": _error(400, message="model 'x' not found", type="invalid_request_error", code=400),
        "overflow": _error(
            400,
            code=400,
            message="request (9 tokens) exceeds the available context size (8 tokens)",
            type="exceed_context_size_error",
        ),
        "loading": _error(503, message="Loading model", type="unavailable_error", code=503),
        "request": _error(400, code=400, message="'messages' is required", type="invalid_request_error"),
        "failed": _error(500, code=500, message="something broke", type="server_error"),
    },
    "ollama": {
        "key": (401, {"error": "unauthorized"}),
        "model": (404, {"error": "model 'x' not found"}),
        "overflow": (400, {"error": "the input length exceeds the context length"}),
        "busy": (503, {"error": "server busy, please try again.  maximum pending requests exceeded"}),
        "request": (400, {"error": "invalid message content type"}),
        "failed": (500, {"error": "model runner has unexpectedly stopped"}),
    },
}


@dataclass(frozen=True)
class Dialect:
    """The wire format of one server."""

    name: DialectName

    @property
    def is_ndjson(self) -> bool:
        """Return whether streams are lines of JSON (Ollama) instead of server-sent events."""
        return self.name == "ollama"

    @property
    def chat_path(self) -> str:
        """Return the last part of the path of chat requests."""
        return "/api/chat" if self.is_ndjson else "/chat/completions"

    @property
    def content_type(self) -> str:
        """Return the content type of a stream."""
        return "application/x-ndjson" if self.is_ndjson else "text/event-stream; charset=utf-8"

    def piece(self, text: str = "", thinking: str = "") -> bytes:
        """Return the event, or Ollama's line, with a piece of the answer."""
        if self.is_ndjson:
            message = {"role": "assistant", "content": text} | ({"thinking": thinking} if thinking else {})
            return _line({"model": MODEL, "message": message, "done": False})
        key = "reasoning" if self.name == "vllm" else "reasoning_content"
        delta: dict[str, Any] = ({"content": text} if text else {}) | ({key: thinking} if thinking else {})
        return self._chunk(delta, None)

    def call(self, piece: ToolCallDelta) -> bytes:
        """Return the event, or Ollama's line, with a piece of a tool call. Only its first piece has the id and name."""
        function: dict[str, Any] = {"name": piece.name} if piece.name else {}
        if self.is_ndjson:
            function["arguments"] = json.loads(piece.arguments)
            message = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
            return _line({"model": MODEL, "message": message, "done": False})
        first = {"id": piece.id, "type": "function"} if piece.id else {}
        function["arguments"] = piece.arguments
        return self._chunk({"tool_calls": [{"index": piece.index, **first, "function": function}]}, None)

    def opening(self) -> bytes:
        """Return the beginning of a stream, before the first piece."""
        if self.is_ndjson:
            return b""
        comment = b": ping\n\n" if self.name in ("llamacpp", "vllm") else b""
        return comment + self._chunk({"role": "assistant", "content": ""}, None)

    def last_piece(self, finish: str | None = "stop", prompt_tokens: int = 5) -> bytes:
        """Return the last piece, with the finish reason if ``finish`` is not None.

        Ollama's last piece also has the token counts.
        """
        if not self.is_ndjson:
            return self._chunk({}, finish)
        done: dict[str, Any] = {"done": finish is not None}
        if finish:
            done |= {"done_reason": finish, "prompt_eval_count": prompt_tokens, "eval_count": 7}
        return _line({"model": MODEL, "message": {"role": "assistant", "content": ""}, **done})

    def terminator(self) -> bytes:
        """Return the line after the last piece; b"" for Ollama."""
        return b"" if self.is_ndjson else b"data: [DONE]\n\n"

    def usage(self, prompt_tokens: int = 5) -> bytes:
        """Return the event with the token counts; b"" for Ollama, which reports them in the last piece."""
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 7, "total_tokens": prompt_tokens + 7}
        return b"" if self.is_ndjson else _event({"model": MODEL, "choices": [], "usage": usage})

    def answer_body(self, text: str, finish: str | None = "stop", thinking: str = "") -> bytes:
        """Return the body of a response that is not streamed."""
        if self.is_ndjson:
            return self.last_piece(finish).replace(b'"content": ""', b'"content": ' + json.dumps(text).encode(), 1)
        message = {"role": "assistant", "content": text} | ({"reasoning_content": thinking} if thinking else {})
        return json.dumps(
            {
                "object": "chat.completion",
                "model": MODEL,
                "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            }
        ).encode()

    def error(self, message: str = "the engine died") -> bytes:
        """Return an error that the server sends inside a stream."""
        if self.is_ndjson:
            return _line({"error": message})
        name = b"event: error\n" if self.name == "lmstudio" else b""
        end = self.terminator() if self.name == "vllm" else b""
        return name + _event({"error": {"message": message, "type": "server_error", "code": 500}}) + end

    def error_body(self) -> bytes:
        """Return an error body for status 200, such as LM Studio's for an unknown path."""
        if self.name == "lmstudio":
            return b'{"error":"Unexpected endpoint or method. (POST /chat/completions)"}'
        error: Any = "the runner died" if self.is_ndjson else {"message": "the engine died", "code": 500}
        return json.dumps({"error": error}).encode()

    def prefill(self, body: Any) -> str | None:
        """Return the partial answer that a request continues; None if the request starts a new answer."""
        if "prompt" in body:  # Ollama's /api/generate: the rendered prompt ends with the partial answer
            partial = body["prompt"].rpartition(_ASSISTANT)[2]
        elif body.get("continue_final_message") and body["messages"][-1]["role"] == "assistant":
            partial = body["messages"][-1]["content"]
        elif len(body["messages"]) > 2 and "cut off" in str(body["messages"][-1]["content"]):
            # The last message quotes the end of the partial answer. The continuation repeats the quote: remove it here.
            overlap = str(body["messages"][-1]["content"]).partition("\n\n")[2]
            partial = str(body["messages"][-2]["content"]).removesuffix(overlap)
        else:
            return None
        return str(partial).rpartition("</think>")[2]

    def prompt_texts(self, body: Any) -> list[str]:
        """Return the text of each message."""
        messages = body.get("messages") or [{"content": body.get("prompt")}]
        return [str(message.get("content")) for message in messages]

    def rendered_prompt(self, messages: Any) -> bytes:
        """Return Ollama's response to a request with ``_debug_render_only``: the messages as one rendered prompt."""
        text = "".join(f"<|{message['role']}|>{message['content']}\n" for message in messages) + _ASSISTANT
        return json.dumps({"model": MODEL, "done": False, "_debug_info": {"rendered_template": text}}).encode()

    @property
    def headers(self) -> Mapping[str, str]:
        """Return the additional headers of all pages."""
        return {"server": "llama.cpp"} if self.name == "llamacpp" else {}

    def pages(self) -> Mapping[str, Any]:
        """Return the JSON of the server's pages other than chat, by path: models, version, health."""
        capabilities = ["completion", "vision", "tools", "thinking"]
        model: dict[str, Any] = {"id": MODEL, "object": "model"}
        pages: dict[DialectName, dict[str, Any]] = {
            "openai": {"/v1/models": {"object": "list", "data": [model]}},
            "lmstudio": {
                "/v1/models": {"object": "list", "data": [model | {"owned_by": "organization_owner"}]},
                "/api/v0/models": {
                    "data": [model | {"type": "llm", "state": "loaded", "max_context_length": 8192}],
                },
            },
            "vllm": {
                "/v1/models": {"object": "list", "data": [model | {"owned_by": "vllm", "max_model_len": 8192}]},
                "/version": {"version": "0.32.0"},
                "/health": {},
            },
            "llamacpp": {
                "/v1/models": {
                    "data": [model | {"owned_by": "llamacpp", "meta": {"n_ctx": 8192, "n_ctx_train": 8192}}],
                },
                "/props": {"default_generation_settings": {"n_ctx": 8192}, "build_info": "b1-0c1e570"},
                "/health": {"status": "ok"},
            },
            "ollama": {
                "/api/version": {"version": "0.33.0"},
                "/api/tags": {"models": [{"name": MODEL, "model": MODEL, "capabilities": capabilities}]},
                "/api/ps": {"models": [{"name": MODEL, "context_length": 8192}]},
                "/api/show": {
                    "capabilities": capabilities,
                    "model_info": {"llama.context_length": 8192},
                },
            },
        }
        return pages[self.name]

    def _chunk(self, delta: dict[str, Any], finish: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return _event({"object": "chat.completion.chunk", "model": MODEL, "choices": [choice]})


def _event(data: Any) -> bytes:
    return b"data: " + _line(data) + b"\n"


def _line(data: Any) -> bytes:
    return json.dumps(data, ensure_ascii=False).encode() + b"\n"
