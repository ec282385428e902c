"""Authored responses of servers that are not available here, written from their documents.

``Author`` answers the requests of a real provider, so that the requests on authored cassettes are real. Every ``Voice``
names its source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from behaviours import ANSWERS, BEGUN, BROKEN

from learnflow.llm import errors
from learnflow.llm.replay import cassette
from learnflow.llm.replay.cassette import Interaction, RecordedRequest, RecordedResponse
from learnflow.llm.replay.transport import CassetteBackend
from learnflow.llm.testing.dialects import ERROR_RESPONSES

_SSE: Final = "text/event-stream"
_NDJSON: Final = "application/x-ndjson"
_JSON: Final = "application/json"
_USAGE: Final = {"prompt_tokens": 112, "completion_tokens": 34, "total_tokens": 146}
_THINKING: Final = "Is 17 prime? Think first."
_WAIT: Final = {"retry-after": "20"}


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _pieces(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)


def _openai_error(message: str, kind: str, code: str | None = None, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code, **more}}


def _google(code: int, message: str, status: str) -> list[Any]:
    return [{"error": {"code": code, "message": message, "status": status}}]


@dataclass(frozen=True)
class Voice:
    """The documented responses of one provider.

    Attributes:
        source: the documents.
        served: the model's name in the responses.
        head: the fields of every chunk.
        choice: the fields beside delta and finish.
        delta: the fields beside role and content.
        first: events before the first chunk.
        thinks: the field of a delta with thinking; None without thinking.
        usage: the numbers of tokens.
        usage_with_finish: the last chunk has the usage. Otherwise the usage has its own chunk.
        refusals: status, body and optional headers, by behaviour.
        pages: the bodies of the server's pages, by path.
    """

    source: str
    served: str
    head: Mapping[str, Any] = field(default_factory=dict)
    choice: Mapping[str, Any] = field(default_factory=dict)
    delta: Mapping[str, Any] = field(default_factory=dict)
    first: tuple[bytes, ...] = ()
    thinks: str | None = None
    usage: Mapping[str, Any] = field(default_factory=lambda: _USAGE)
    usage_with_finish: bool = False
    refusals: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    pages: Mapping[str, Any] = field(default_factory=dict)

    def chunk(self, delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> bytes:
        """Return one event."""
        choice = {"index": 0, "delta": {**self.delta, **delta} if delta else {}, **self.choice, "finish_reason": finish}
        head = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": self.served}
        return _event({**head, **self.head, "choices": [choice], **more})

    def answer(self, text: str, finish: str = "stop", thinking: str = "") -> list[bytes]:
        """Return the events of an answer, one for each piece."""
        events = [*self.first, self.chunk({"role": "assistant", "content": ""})]
        events += [self.chunk({self.thinks: piece}) for piece in _pieces(thinking) if self.thinks]
        events += [self.chunk({"content": piece}) for piece in _pieces(text)]
        return events + self.end(finish)

    def end(self, finish: str) -> list[bytes]:
        """Return the events with the finish, the usage and ``[DONE]``."""
        if self.usage_with_finish:
            return [self.chunk({}, finish, usage=self.usage), b"data: [DONE]\n\n"]
        head = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": self.served}
        usage = _event({**head, **self.head, "choices": [], "usage": self.usage})
        return [self.chunk({}, finish), usage, b"data: [DONE]\n\n"]

    def tool_call(self) -> list[bytes]:
        """Return a tool call with arguments in several pieces."""
        function = {"name": "get_weather", "arguments": ""}
        begun = {"index": 0, "id": "call_0", "type": "function", "function": function}
        parts = ['{"city"', ': "Paris"}']
        return [
            *self.first,
            self.chunk({"role": "assistant", "content": None, "tool_calls": [begun]}),
            *(self.chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}) for part in parts),
            *self.end("tool_calls"),
        ]


def _list(*names: str, **more: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, **more} for name in names]}


OPENAI: Final = Voice(
    source="OpenAI's API specification 2.3.0 (openai-openapi f85dbe2, 2026-08-21) and its guide to error codes",
    served="gpt-4.1-mini-2025-04-14",
    head={"service_tier": "default", "system_fingerprint": "fp_0"},
    choice={"logprobs": None},
    usage={
        **_USAGE,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 21, "audio_tokens": 0},
    },
    refusals={
        "wrong_key": ERROR_RESPONSES["openai"]["key"],
        "missing_model": ERROR_RESPONSES["openai"]["model"],
        "overflow": ERROR_RESPONSES["openai"]["overflow"],
        "rate_limit": (*ERROR_RESPONSES["openai"]["rate"], _WAIT),
        "busy": ERROR_RESPONSES["openai"]["busy"],
    },
    pages={"/v1/models": _list("gpt-4.1-mini", "gpt-5-mini", "text-embedding-3-small", owned_by="system")},
)


class ResponsesVoice(Voice):
    """The documented responses of the Responses API: events of items, and the whole response at the end."""

    def answer(self, text: str, finish: str = "stop", thinking: str = "") -> list[bytes]:
        """Return the events of an answer, with a summary of the reasoning before it."""
        summary = {"id": "rs_0", "type": "reasoning", "encrypted_content": "gAAAAA", "summary": []}
        first = [self._event("response.created", response=self._response("in_progress"))]
        for piece in _pieces(thinking):
            at = {"item_id": "rs_0", "output_index": 0, "summary_index": 0}
            first.append(self._event("response.reasoning_summary_text.delta", **at, delta=piece))
        first.append(self._event("response.output_item.done", output_index=0, item=summary))
        at = {"item_id": "msg_0", "output_index": 1, "content_index": 0}
        pieces = [self._event("response.output_text.delta", **at, delta=piece, logprobs=[]) for piece in _pieces(text)]
        return [*first, *pieces, *self.end(finish)]

    def end(self, finish: str) -> list[bytes]:
        """Return the last event, which has the status and the usage."""
        status = "incomplete" if finish == "length" else "completed"
        return [self._event(f"response.{status}", response=self._response(status))]

    def tool_call(self) -> list[bytes]:
        """Return a tool call with arguments in several pieces."""
        item = {"id": "fc_0", "type": "function_call", "call_id": "call_0", "name": "get_weather", "arguments": ""}
        name = "response.function_call_arguments.delta"
        return [
            self._event("response.output_item.added", output_index=0, item=item),
            *(self._event(name, item_id="fc_0", output_index=0, delta=part) for part in ('{"city"', ': "Paris"}')),
            self._event("response.output_item.done", output_index=0, item={**item, "arguments": '{"city": "Paris"}'}),
            *self.end("stop"),
        ]

    def _event(self, kind: str, **fields: Any) -> bytes:
        return f"event: {kind}\n".encode() + _event({"type": kind, **fields})

    def _response(self, status: str) -> dict[str, Any]:
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        head = {"id": "resp_0", "object": "response", "created_at": 0, "status": status, "model": self.served}
        usage = None if status == "in_progress" else self.usage
        return {**head, "error": None, "incomplete_details": reason, "output": [], "usage": usage}


RESPONSES: Final = ResponsesVoice(
    source="OpenAI's API specification 2.3.0 (openai-openapi f85dbe2, 2026-08-21), streaming events of responses",
    served="gpt-6-sol-2026-09-22",
    usage={
        "input_tokens": 112,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 34,
        "output_tokens_details": {"reasoning_tokens": 21},
        "total_tokens": 146,
    },
    refusals=OPENAI.refusals,
    pages={"/v1/models": _list("gpt-6-sol", "text-embedding-3-small", owned_by="system")},
)

_SAFE: Final = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}
AZURE: Final = Voice(
    source=(
        "Microsoft's reference of Azure OpenAI 2024-10-21 and its page on content filtering (learn.microsoft.com); the "
        "429 and the first chunk without choices as openai-python's issues 937 and 838 show them"
    ),
    served="gpt-4.1-mini-2025-04-14",
    head={"system_fingerprint": "fp_0"},
    choice={"logprobs": None, "content_filter_results": _SAFE},
    first=(
        _event(
            {
                "choices": [],
                "created": 0,
                "id": "",
                "model": "",
                "object": "",
                "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": _SAFE}],
            }
        ),
    ),
    usage=OPENAI.usage,
    refusals={
        "wrong_key": (
            401,
            {"error": {"code": "401", "message": "Access denied due to invalid subscription key or wrong endpoint."}},
        ),
        "missing_model": (
            404,
            {
                "error": {
                    "code": "DeploymentNotFound",
                    "message": "The API deployment does not exist.",
                }
            },
        ),
        "overflow": OPENAI.refusals["overflow"],
        "rate_limit": (429, {"error": {"code": "429", "message": "Please retry after 20 seconds."}}, _WAIT),
        "busy": (503, {"error": {"code": "503", "message": "The server is overloaded."}}),
    },
    pages={
        "/openai/models?api-version=2024-10-21": _list(
            "gpt-4.1-mini-2025-04-14",
            status="succeeded",
            capabilities={"chat_completion": True, "completion": False, "embeddings": False},
            lifecycle_status="generally-available",
        )
    },
)

LMSTUDIO: Final = Voice(
    source="LM Studio's documentation (lmstudio-ai/docs c6854fb, 2026-04-29) and its bug tracker (2322, 1323, 107)",
    served="qwen3-0.6b",
    head={"system_fingerprint": "qwen3-0.6b"},
    choice={"logprobs": None},
    thinks="reasoning_content",
    refusals={
        "wrong_key": ERROR_RESPONSES["lmstudio"]["key"],
        "missing_model": ERROR_RESPONSES["lmstudio"]["model"],
        "overflow": (
            200,
            b"event: error\n"
            + _event(
                {
                    "error": {
                        "message": "The number of tokens to keep from the initial prompt is greater than the context "
                        "length. Try to load the model with a larger context length."
                    }
                }
            ),
        ),
    },
    pages={
        "/api/v1/models": {
            "models": [
                {
                    "type": "llm",
                    "key": "qwen3-0.6b",
                    "display_name": "Qwen3 0.6B",
                    "format": "gguf",
                    "size_bytes": 396476032,
                    "max_context_length": 40960,
                    "loaded_instances": [{"id": "qwen3-0.6b", "config": {"context_length": 4096, "parallel": 4}}],
                    "capabilities": {"vision": True, "trained_for_tool_use": True},
                },
                {
                    "type": "embedding",
                    "key": "text-embedding-3-small",
                    "format": "gguf",
                    "max_context_length": 2048,
                    "loaded_instances": [],
                },
            ]
        },
        "/api/v0/models": {
            "object": "list",
            "data": [
                {
                    "id": "qwen3-0.6b",
                    "object": "model",
                    "type": "vlm",
                    "state": "loaded",
                    "max_context_length": 40960,
                    "loaded_context_length": 4096,
                    "capabilities": ["tool_use"],
                }
            ],
        },
        "/v1/models": _list("qwen3-0.6b", "text-embedding-3-small", owned_by="organization_owner"),
    },
)

OPENROUTER: Final = Voice(
    source="OpenRouter's reference (openrouter.ai/docs/api/reference: streaming, errors-and-debugging; read 2026-11)",
    served="qwen/qwen3-8b",
    head={"id": "gen-0", "provider": "DeepInfra"},
    choice={"native_finish_reason": None, "logprobs": None},
    delta={"role": "assistant"},
    first=(b": OPENROUTER PROCESSING\n\n", b": OPENROUTER PROCESSING\n\n"),
    thinks="reasoning",
    usage={**_USAGE, "cost": 0.00001},
    usage_with_finish=True,
    refusals={
        "wrong_key": (401, {"error": {"message": "User not found.", "code": 401}}),
        "missing_model": (400, {"error": {"message": "no-such-model is not a valid model ID", "code": 400}}),
        "overflow": (
            400,
            {
                "error": {
                    "message": "This endpoint's maximum context length is 2048 tokens. However, you requested about "
                    "3012 tokens (3007 of text input, 5 in the output).",
                    "code": 400,
                }
            },
        ),
        "rate_limit": (429, {"error": {"message": "Rate limit exceeded", "code": 429}}, _WAIT),
        "busy": (
            503,
            {"error": {"message": "There is no available model provider that meets your requirements", "code": 503}},
        ),
    },
    pages={
        "/v1/models": {
            "data": [
                {
                    "id": "qwen/qwen3-8b",
                    "name": "Qwen: Qwen3 8B",
                    "created": 0,
                    "context_length": 40960,
                    "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
                    "pricing": {"prompt": "0.00000005", "completion": "0.0000004"},
                    "top_provider": {"context_length": 40960, "max_completion_tokens": 20480},
                    "supported_parameters": ["max_tokens", "reasoning", "response_format", "temperature", "tools"],
                }
            ]
        }
    },
)

_FIREWORKS: Final = "accounts/fireworks/models/kimi-k2p6"
FIREWORKS: Final = Voice(
    source=(
        "Fireworks' reference of chat completions and its page of error codes (docs.fireworks.ai/guides/"
        "inference-error-codes, read 2026-11); the 404 as warp's issue 15107 shows it"
    ),
    served=_FIREWORKS,
    thinks="reasoning_content",
    usage_with_finish=True,
    refusals={
        "wrong_key": (
            401,
            {"error": {"type": "error", "code": "UNAUTHORIZED", "message": "Invalid API key"}},
        ),
        "missing_model": (
            404,
            {
                "error": {
                    "message": "Model not found, inaccessible, and/or not deployed",
                    "param": "model",
                    "code": "NOT_FOUND",
                    "type": "error",
                }
            },
        ),
        "overflow": (
            400,
            {
                "error": {
                    "object": "error",
                    "type": "invalid_request_error",
                    "message": "The prompt is too long: 3007, model maximum context length: 2047",
                }
            },
        ),
        "rate_limit": (429, {"error": {"object": "error", "type": "error", "message": "Too many requests"}}, _WAIT),
        "busy": (503, {"error": {"object": "error", "type": "error", "message": "The server is overloaded"}}),
    },
    pages={"/v1/models": _list(_FIREWORKS, owned_by="fireworks", supports_chat=True, context_length=40960)},
)

GEMINI: Final = Voice(
    source=(
        "Google's page on OpenAI compatibility and its table of error codes (ai.google.dev/gemini-api/docs/openai and "
        "/troubleshooting, read 2026-11); the list around an error as PromptFuzz's issue 42 shows it"
    ),
    served="gemini-3.5-flash",
    usage_with_finish=True,
    refusals={
        "wrong_key": (400, _google(400, "API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT")),
        "missing_model": (404, _google(404, "models/no-such-model is not found for API version v1main", "NOT_FOUND")),
        "overflow": (
            400,
            _google(
                400,
                "The input token count (3007) exceeds the maximum number of tokens allowed (2048).",
                "INVALID_ARGUMENT",
            ),
        ),
        "rate_limit": (
            429,
            _google(429, "Resource has been exhausted (e.g. check quota).", "RESOURCE_EXHAUSTED"),
            _WAIT,
        ),
        "busy": (503, _google(503, "The model is overloaded. Please try again later.", "UNAVAILABLE")),
    },
    pages={"/v1beta/openai/models": _list("models/gemini-3.5-flash", owned_by="google")},
)


def _anthropic(kind: str, message: str) -> dict[str, Any]:
    return {"error": {"code": kind, "message": message, "type": kind, "param": None}}


ANTHROPIC: Final = Voice(
    source=(
        "Anthropic's page on OpenAI SDK compatibility (platform.claude.com/docs/en/api/openai-sdk, read 2026-11: "
        "errors have OpenAI's form and Anthropic's words) and its page of errors"
    ),
    served="claude-sonnet-4-6",
    refusals={
        "wrong_key": (401, _anthropic("authentication_error", "invalid x-api-key")),
        "missing_model": (404, _anthropic("not_found_error", "model: no-such-model was not found")),
        "overflow": (400, _anthropic("invalid_request_error", "prompt is too long: 3007 tokens > 2048 maximum")),
        "rate_limit": (429, _anthropic("rate_limit_error", "This request would exceed your rate limit."), _WAIT),
        "busy": (529, _anthropic("overloaded_error", "Overloaded")),
    },
    pages={"/v1/models": _list("claude-sonnet-4-6", type="model", display_name="Claude Sonnet 4.6")},
)
_YANDEX: Final = "gpt://b1gfolder/yandexgpt/latest"
YANDEXGPT: Final = Voice(
    source="Yandex Cloud's pages on its OpenAI-compatible API and on authentication (yandex.cloud/docs, read 2026-11)",
    served=_YANDEX,
    refusals={
        "wrong_key": (401, _openai_error("Unknown api key", "authentication_error", "invalid_api_key")),
        "missing_model": (
            404,
            _openai_error("Model not found: no-such-model", "invalid_request_error", "model_not_found"),
        ),
        "overflow": (
            400,
            _openai_error(
                "number of input tokens must be no more than 2048, got 3007: the prompt is too long",
                "invalid_request_error",
            ),
        ),
        "rate_limit": (
            429,
            _openai_error(
                "ai.textGenerationCompletionSessionsCount.count gauge quota limit exceed", "rate_limit_error"
            ),
            _WAIT,
        ),
        "busy": (503, _openai_error("The service is currently unavailable", "server_error")),
    },
    pages={"/v1/models": _list(_YANDEX, owned_by="yandex")},
)

# Responses that available servers do not send with the tiny model, or not on demand.
CUSTOM: Final = Voice(
    source="OpenAI's API specification 2.3.0, which such servers follow",
    served="learnflow-tiny",
    refusals=OPENAI.refusals,
)
LLAMACPP: Final = Voice(
    source="llama.cpp's source, tools/server (0c1e570): its chunks, and its middleware while a model loads",
    served="learnflow-tiny",
    refusals={
        "busy": (503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}),
    },
)
VLLM: Final = Voice(
    source="vLLM's source (0.32.0): its chunks, and the limit of --max-num-queued-reqs",
    served="learnflow-tiny",
    refusals={
        "busy": (
            503,
            {
                "error": {
                    "message": "The engine is currently busy. Please retry.",
                    "type": "ServiceUnavailableError",
                    "param": None,
                    "code": 503,
                }
            },
        ),
    },
)


class OllamaVoice(Voice):
    """The documented responses of Ollama: lines instead of events."""

    def answer(self, text: str, finish: str = "stop", thinking: str = "") -> list[bytes]:
        """Return the lines of an answer, one for each piece."""
        return [self._record({"content": piece}) for piece in _pieces(text)] + self.end(finish)

    def end(self, finish: str) -> list[bytes]:
        """Return the last line."""
        tokens = {"prompt_eval_count": 112, "eval_count": 34}
        return [self._record({"content": ""}, done=True, done_reason=finish, **tokens)]

    def tool_call(self) -> list[bytes]:
        """Return a tool call, which is one line."""
        function = {"index": 0, "name": "get_weather", "arguments": {"city": "Paris"}}
        return [
            self._record({"content": "", "tool_calls": [{"id": "call_0", "function": function}]}),
            *self.end("stop"),
        ]

    def _record(self, message: Mapping[str, Any], **end: Any) -> bytes:
        head = {"model": self.served, "created_at": "1970-01-01T00:00:00Z"}
        return _line({**head, "message": {"role": "assistant", **message}, "done": False, **end})


OLLAMA: Final = OllamaVoice(
    source="Ollama's source (fb3076099, 2026-08-21): server/routes.go, server/sched.go",
    served="learnflow-tiny",
    refusals={"busy": (503, {"error": "server busy, please try again.  maximum pending requests exceeded"})},
)

VOICES: Final[dict[str, Voice]] = {
    "openai": OPENAI,
    "responses": RESPONSES,
    "azure": AZURE,
    "ollama": OLLAMA,
    "lmstudio": LMSTUDIO,
    "vllm": VLLM,
    "llamacpp": LLAMACPP,
    "openrouter": OPENROUTER,
    "fireworks": FIREWORKS,
    "gemini": GEMINI,
    "anthropic": ANTHROPIC,
    "yandexgpt": YANDEXGPT,
    "custom": CUSTOM,
}


class Author(CassetteBackend):
    """Answers requests with the documented responses of a provider, and collects the interactions.

    Args:
        row: the provider.
        behaviour: the behaviour to show.
        pages: recorded pages of the server, by path. They precede the pages of its ``Voice``.
    """

    def __init__(self, row: str, behaviour: str, pages: Mapping[str, RecordedResponse]) -> None:
        self.interactions: list[Interaction] = []
        self.providers = frozenset({row})
        self._voice = VOICES[row]
        self._behaviour = behaviour
        self._pages = pages
        self._type = _NDJSON if isinstance(self._voice, OllamaVoice) else _SSE

    def play(self, request: RecordedRequest) -> RecordedResponse:
        """Return the response to a request."""
        path = request.uri.partition(".example")[2]
        chat = request.method == "POST" and path.partition("?")[0].endswith(
            ("/chat/completions", "/api/chat", "/responses")
        )
        response = self._chat(request) if chat else self._page(path)
        self.interactions.append(Interaction(request, response))
        return response

    def _page(self, path: str) -> RecordedResponse:
        if path in self._pages:
            return self._pages[path]
        if self._behaviour == "wrong_key":
            return self._refusal()
        if path in self._voice.pages:
            return _json(200, self._voice.pages[path])
        if self._voice is LMSTUDIO:  # it responds to any path
            return _json(200, {"error": f"Unexpected endpoint or method. (GET {path})"})
        return _json(404, _openai_error("not found", "invalid_request_error"))

    def _chat(self, request: RecordedRequest) -> RecordedResponse:
        voice = self._voice
        if self._behaviour in voice.refusals:
            return self._refusal()
        if self._behaviour == "tools":
            return self._stream(voice.tool_call())
        if self._behaviour == "cut":
            pieces = voice.answer(BEGUN)
            return self._stream(pieces[: -len(voice.end("stop"))])
        messages = _messages(request.body)
        prompt = _prompt(messages)
        if self._behaviour == "resume":
            begun = [message["content"] for message in messages if message["role"] == "assistant"][-1]
            again = "" if begun == messages[-1]["content"] else prompt.rpartition("\n\n")[2]
            return self._stream(voice.answer(ANSWERS[BROKEN].removeprefix(begun.removesuffix(again))))
        if self._behaviour == "length":
            return self._stream(voice.answer(ANSWERS[f"{prompt} (5 tokens)"], "length"))
        if self._behaviour == "thinking":
            return self._stream(voice.answer(ANSWERS[prompt], thinking=ANSWERS[f"{prompt} (thinking)"]))
        plain = prompt.partition("\n\nAnswer with one JSON object")[0]  # a schema in the prompt
        return self._stream(voice.answer(ANSWERS.get(plain, "The capital of France is Paris.")))

    def _stream(self, pieces: list[bytes]) -> RecordedResponse:
        return RecordedResponse(200, {"content-type": self._type}, tuple(pieces))

    def _refusal(self) -> RecordedResponse:
        status, body, *headers = self._voice.refusals[self._behaviour]
        if isinstance(body, bytes):
            return RecordedResponse(status, {"content-type": _SSE}, (body,))
        return _json(status, body, *headers)


def _json(status: int, body: Any, headers: Mapping[str, str] | None = None) -> RecordedResponse:
    return RecordedResponse(status, {"content-type": _JSON, **(headers or {})}, (json.dumps(body).encode(),))


def _messages(body: Any) -> list[Any]:
    """Return the messages of a request. One part of text becomes a text."""
    messages = body.get("messages") or body["input"]
    return [
        {**one, "content": one["content"][0]["text"]} if "input" in body and len(one["content"]) == 1 else one
        for one in messages
    ]


def _prompt(messages: list[Any]) -> str:
    """Return the text of the last user message."""
    content = [message["content"] for message in messages if message["role"] == "user"][-1]
    return str(content[0]["text"] if isinstance(content, list) else content)


Derive = Callable[[list[Interaction]], list[Interaction]]


def broken(interactions: list[Interaction]) -> list[Interaction]:
    """Return recorded interactions in which the connection breaks after BEGUN."""
    *pages, last = interactions
    pieces: list[bytes] = []
    for piece in last.response.pieces:
        for event in re.split(rb"(?<=\n\n)" if b"data:" in piece else rb"(?<=\n)", piece):
            if _text([*pieces, event]) and not BEGUN.startswith(_text([*pieces, event])):
                failure = errors.ConnectionFailed("the connection broke (ReadError)")
                response = RecordedResponse(last.response.status, last.response.headers, tuple(pieces), failure)
                return [*pages, Interaction(last.request, response)]
            if event:
                pieces.append(event)
    raise AssertionError(_text(pieces))


def _text(pieces: list[bytes]) -> str:
    """Return the text of chunks or lines."""
    text = ""
    for line in b"".join(pieces).decode().splitlines():
        data = line.removeprefix("data: ")
        if data.startswith("{"):
            chunk = json.loads(data)
            message = chunk.get("message") or (chunk.get("choices") or [{"delta": {}}])[0]["delta"]
            text += message.get("content") or ""
    return text


def seeing(pages: Mapping[str, RecordedResponse]) -> dict[str, RecordedResponse]:
    """Return recorded pages, changed to a model that supports images and tools."""

    def edited(response: RecordedResponse) -> RecordedResponse:
        text = b"".join(response.pieces).decode()
        text = re.sub(r'("vision":)\s*false', r"\1true", text)
        text = text.replace('"capabilities":["completion"', '"capabilities":["completion","vision","tools"')
        text = re.sub(r'("supports_tools?(?:_calls)?":)\s*false', r"\1true", text)
        return cassette.RecordedResponse(response.status, response.headers, (text.encode(),))

    return {path: edited(response) for path, response in pages.items()}
