"""Ollama (tested with 0.24 and 0.33) through its own API, instead of OpenAI's API at ``/v1``.

``/api/tags`` reports capabilities since 0.30. ``/api/show`` reads the file of a model without loading the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from .. import errors
from ..adapter.options import parts_of, text_of
from ..base import Attempt
from ..completion import Usage
from ..errors import LLMError
from ..parameters import COMMON_KEYWORDS, LOCAL_SAMPLING
from ..provider_spec import Api, Dialect, Model, Page, Probe, ProviderSpec, Server, ServerSupport
from ..servers.probe import fetch
from ..transport import error_mapping
from ..transport.client import Client, HttpRequest
from ..transport.reasoning import Delta
from ..transport.stream_parser import MAX_NAME_CHARS, StreamParser, malformed_error
from ..transport.tool_calls import collect_extra
from ..transport.untrusted import non_negative_int, object_at, short_text, text_or_none
from . import llamacpp

_NUM_CTX: Final = re.compile(r"^num_ctx[ \t]+([0-9]{1,9})[ \t]*$", re.MULTILINE)
_CLOUD: Final = re.compile(r"[:-]cloud$")
# Ollama's smallest default: 4096 tokens below 24 GB of video memory (its documentation, 2026).
_DEFAULT_CONTEXT: Final = 4096
# Ollama ends an answer that repeats one token more than 30 times (llm/server.go, since 0.30 llm/llama_server.go).
_MAX_EQUAL_TOKENS: Final = 30
# Ollama starts the process of a model with these options. A request with another value reloads the model. ``shift`` is
# such an option since 0.30. ``num_ctx`` is one, too, but is chosen for each request.
_LAUNCH_OPTIONS: Final = {"shift": False}
_DEFAULT_TAG: Final = ":latest"
_THINK_TAG: Final = "<think>"
_ANSWER_MARKER: Final = "[learnflow: the answer begins here]"


def _parse_pages(pages: Mapping[str, Page]) -> Server | None:
    version, rows = text_or_none(pages["/api/version"].body.get("version")), pages["/api/tags"].rows("models")
    if version is None or rows is None or llamacpp.is_llamacpp_page(pages["/api/version"]):
        return None
    running = pages["/api/ps"].rows("models")
    lengths = {str(row.get("name")): non_negative_int(row.get("context_length")) or None for row in running or []}
    loaded_lengths = None if running is None else lengths
    return Server(
        version=version,
        models=tuple(_parse_listed_model(row, loaded_lengths) for row in rows if text_or_none(row.get("name"))),
    )


def _parse_listed_model(row: Mapping[str, Any], loaded_lengths: Mapping[str, int | None] | None) -> Model:
    """Return a model listed by ``/api/tags``. ``loaded_lengths`` has the loaded models' context lengths, if known."""
    name, features = str(row["name"]), row.get("capabilities")
    remote = bool(row.get("remote_host") or row.get("remote_model") or _CLOUD.search(name))
    return Model(
        name=name,
        aliases=(name.removesuffix(_DEFAULT_TAG),) if name.endswith(_DEFAULT_TAG) else (),
        loaded=None if remote or loaded_lengths is None else name in loaded_lengths,
        chat="completion" in features if isinstance(features, list) else "embed" not in name.lower(),
        remote=remote,
        capabilities={
            **_parse_features(features),
            "context": non_negative_int(object_at(row, "details").get("context_length")) or None,
            "context_served": (loaded_lengths or {}).get(name),
        },
    )


def _parse_features(features: Any) -> dict[str, Any]:
    """Return the capabilities for a model's list of features; {} if there is no list."""
    if not isinstance(features, list):
        return {}
    return {"vision": "vision" in features, "tools": "tools" in features, "reasoning": "thinking" in features}


def _add_details(model: Model, page: Mapping[str, Any]) -> Model:
    info, features = object_at(page, "model_info"), page.get("capabilities")
    max_length = next((non_negative_int(value) for key, value in info.items() if key.endswith(".context_length")), None)
    parameters = page.get("parameters")
    num_ctx = _NUM_CTX.search(parameters) if isinstance(parameters, str) else None
    served = model.capabilities.get("context_served") or (int(num_ctx[1]) if num_ctx else None)
    return replace(
        model,
        chat="completion" in features if isinstance(features, list) else model.chat,
        remote=model.remote or bool(page.get("remote_host") or page.get("remote_model")),
        capabilities={
            **model.capabilities,
            **_parse_features(features),
            "context": max_length or model.capabilities.get("context"),
            "context_served": served,
        },
    )


def _choose_context_length(needed: int, loaded_length: int | None, max_length: int | None) -> int | None:
    """Choose ``num_ctx`` (the context length) for a request of ``needed`` tokens; None for the default.

    A change of ``num_ctx`` reloads the model. Therefore return the loaded length if it is enough. Otherwise return the
    next power of two, so that a slightly longer prompt does not reload the model again. The result is at most
    ``max_length`` (that of the model), but at least the loaded length.
    """
    if needed <= (loaded_length or _DEFAULT_CONTEXT):
        return loaded_length
    length = max(_DEFAULT_CONTEXT, 1 << (needed - 1).bit_length())
    return max(loaded_length or 0, min(length, max_length or length))


def _format_options(sampling: Mapping[str, Any], context_length: int | None) -> dict[str, Any]:
    """Return the ``options`` object of a request."""
    options = {"num_predict" if name == "max_tokens" else name: value for name, value in sampling.items()}
    return {**options, "num_ctx": context_length} if context_length else options


def _truncates_prompts(version: str | None, own_api: bool) -> bool:
    """Return whether this version silently drops the beginning of a long prompt, and then reports too few tokens.

    At ``/v1``, every version does. At Ollama's own API, versions from 0.4 to 0.12.5 do. Older versions report an
    unreliable number. Newer ones support ``truncate`` and ``shift`` (commit 6544e1473). A version that cannot be parsed
    counts as new.
    """
    if not own_api:
        return True
    parts = (version or "").partition("-")[0].split(".")
    is_number = all(re.fullmatch("[0-9]{1,6}", part) for part in parts)
    return is_number and (0, 4) <= tuple(map(int, parts)) < (0, 12, 6)


async def _build_continuation(
    client: Client, model: str, messages: list[dict[str, Any]], body: Mapping[str, Any], attempt: Attempt
) -> HttpRequest:
    """Return the request that continues an interrupted answer.

    Its prompt is the text that the server renders from the messages, followed by the answer so far. The continuation is
    exact with any chat template. In a test on Ollama 0.33 and 0.24, 224 answers were cut at a chunk boundary and then
    continued. All of them equalled the unbroken stream.

    Raises:
        Unsupported: the messages have images or tool calls, or this version cannot render its template.
    """
    if any(_has_more_than_text(message) for message in messages):
        raise errors.Unsupported("images and tool calls cannot be rendered as text, so the answer is not continued")
    texts = [{"role": message["role"], "content": "".join(map(text_of, parts_of(message)))} for message in messages]
    think = {"think": body["think"]} if "think" in body else {}
    # Send the options of the first request. Other values would reload the model.
    options = {name: body[name] for name in ("options", "truncate", "shift") if name in body}
    prompt: str | None = None
    if attempt.thinking:  # if the template renders thinking, the marker shows where the answer begins
        answer = {"role": "assistant", "content": _ANSWER_MARKER, "thinking": attempt.thinking}
        rendered = await _render(client, {"model": model, "messages": [*texts, answer], **options, **think})
        if attempt.thinking in rendered and _ANSWER_MARKER in rendered:
            prompt = rendered[: rendered.rindex(_ANSWER_MARKER)] + (attempt.prefix or "")
    if prompt is None:
        prompt = await _render(client, {"model": model, "messages": texts, **options, **think})
        prompt += (
            attempt.prefill_with_thinking.removeprefix(_THINK_TAG)
            if prompt.rstrip().endswith(_THINK_TAG)
            else attempt.prefill_with_thinking
        )
    request = {"model": model, "prompt": prompt, "raw": True, "stream": True, **options}
    return HttpRequest(url=f"{client.endpoint.server_url}/api/generate", body=request)


async def _render(client: Client, body: Mapping[str, Any]) -> str:
    """Return the prompt that the server renders with its template. Raise LLMError if the server cannot."""
    request = {**body, "stream": False, "_debug_render_only": True}
    rendered_prompt = None
    with suppress(errors.Misconfigured, errors.ErrorBody):  # the response is not JSON, or an error object
        rendered_prompt = object_at(await fetch(client, "/api/chat", request), "_debug_info").get("rendered_template")
    if not isinstance(rendered_prompt, str):
        raise errors.Unsupported("this version of Ollama cannot render its template, so the answer is not continued")
    return rendered_prompt


def _has_more_than_text(message: Mapping[str, Any]) -> bool:
    other = any(part.get("type") != "text" for part in parts_of(message))
    return other or bool(message.get("tool_calls")) or message["role"] == "tool"


class NDJSONParser(StreamParser):
    """A parser of JSON lines. The last line has ``"done": true``. A response without streaming is a single line."""

    def __init__(self, max_tokens: int | None = None, *, finish_optional: bool = False) -> None:
        super().__init__(max_tokens, finish_optional=finish_optional)
        self._repeated: tuple[str, int] = ("", 0)  # the last token, stripped, and how often it came in a row

    def _parse_line(self, line: bytes) -> None:
        if not line.strip():
            return
        record = self._parse_object(line, "a line of the stream")
        has_earlier_lines, self._has_events = self._has_events, True
        if record.get("error"):
            raise error_mapping.map_error_object(record, answer_started=has_earlier_lines)
        if not {"done", "message", "response"} & set(record):
            raise malformed_error("a line of the stream")
        message = record.get("message") or {}
        self.served_model = self.served_model or short_text(record.get("model"), MAX_NAME_CHARS) or None
        self.is_forwarded = self.is_forwarded or bool(record.get("remote_model") or record.get("remote_host"))
        content = message.get("content") if message else record.get("response")  # /api/generate has "response"
        text, thinking = self._parse_text(content, "text"), self._parse_text(message.get("thinking"), "thinking")
        token, times = (text or thinking).strip(), self._repeated[1]
        self._repeated = (token, times + 1 if token == self._repeated[0] else 1)
        pieces = [call for call in message.get("tool_calls") or () if call is not None]
        calls = tuple(delta for call in pieces for delta in self._add_call(len(self._calls), call))
        # In OpenAI's format, "thinking" is named "reasoning_content". LiteLLM renames it back in later requests
        collect_extra(self.extra, {"reasoning_content": message.get("thinking")}, frozenset())
        if record.get("done"):
            self.has_end_mark = True
            prompt = non_negative_int(record.get("prompt_eval_count"))
            answer = non_negative_int(record.get("eval_count"))
            total = prompt + answer if prompt is not None and answer is not None else None
            self.usage = Usage(prompt, answer, total)
            self._record_finish(record.get("done_reason") or "stop")  # versions before 0.3 send no done_reason
        self._deltas += [Delta(text, thinking, calls)] if text or thinking or pieces else []

    def _parse_rest(self, rest: bytes) -> None:
        self._parse_guarded(self._parse_line, rest)
        if isinstance(self.fault, errors.MalformedAnswer):
            what = "the stream ended in the middle of a line"
            self.fault = errors.AnswerCut(what) if self._has_events else errors.BodyCut(what)

    def _no_finish_error(self) -> LLMError:
        if self._repeated[1] > _MAX_EQUAL_TOKENS:
            return errors.TokenRepeated("the model repeated one token, and the server ended the answer")
        if self._has_events:
            return errors.AnswerNotDone('the server ended the answer with "done": false')
        return super()._no_finish_error()


SPEC: Final = ProviderSpec(
    name="ollama",
    title="Ollama",
    tested_versions="0.33, 0.24",
    litellm_provider="ollama_chat",
    dialect=Dialect(
        parser=NDJSONParser,
        content_parts=frozenset({"text", "image_url"}),
        downloads_images=False,
        build_continuation=_build_continuation,
        parameters=COMMON_KEYWORDS | LOCAL_SAMPLING,
        format_options=_format_options,
        tool_choices=("auto", "none"),
        reasoning={level: {"think": level} for level in (False, True, "low", "medium", "high", "max")},
        # By default, Ollama silently drops the beginning of a long prompt, and old tokens when the answer fills the
        # context (``shift``). With these fields it returns an error (0.33). Versions before 0.12.6 ignore them.
        body_fields={"truncate": False, **_LAUNCH_OPTIONS},
        chat_path_without_litellm="/api/chat",
        supports_stream_usage=False,
    ),
    api=Api(
        default_url="http://localhost:11434",
        api_path="",
        removed_suffixes=("/api/chat", "/api/generate", "/api/tags", "/api", "/v1/chat/completions", "/v1"),
        cloud_host="ollama.com",
        models_path="/api/tags",
    ),
    server=ServerSupport(
        forwards_requests=True,
        load_path="/api/generate",
        launch_options=_LAUNCH_OPTIONS,
        load_with_keep_alive=lambda model, keep_alive: ("/api/generate", {"model": model, "keep_alive": keep_alive}),
        pull_command="ollama pull {model}",
        choose_context_length=_choose_context_length,
        compose_service="ollama",
        truncates_prompts=_truncates_prompts,
        probe=Probe(
            pages=("/api/version", "/api/tags", "/api/ps"),
            parse_pages=_parse_pages,
            build_model_request=lambda model: ("/api/show", {"model": model.name}),
            parse_model_page=_add_details,
        ),
        server_variables=("OLLAMA_MODELS", "OLLAMA_CONTEXT_LENGTH"),
        start_command="`ollama serve` and `ollama pull qwen3:0.6b`",
    ),
    local=True,
    other_variable_names={"base_url": ("OLLAMA_API_BASE", "OLLAMA_HOST")},
    max_concurrency=4,
    capability_overrides={"json_schema": True},
)
