"""Ollama (tested with 0.24 and 0.33), by its own API: probe, context length, continuation and stream.

``/api/tags`` reports capabilities since 0.30. ``/api/show`` reads the file of a model without loading it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from .. import errors
from ..adapter.options import parts_of, text_of
from ..base import Attempt
from ..capabilities import unknown
from ..completion import ToolCallDelta, Usage
from ..errors import LLMError
from ..parameters import ALWAYS, LEVELS, LOCAL_SAMPLING
from ..provider_spec import Api, Dialect, Model, Page, Probe, ProviderSpec, Server, ServerSupport
from ..servers.probe import fetch
from ..transport import error_mapping
from ..transport.client import Client, HttpRequest
from ..transport.reasoning import Delta
from ..transport.stream_parser import MAX_NAME_CHARS, StreamParser, malformed
from ..transport.untrusted import non_negative_int, part, text, word
from . import llamacpp

_NUM_CTX: Final = re.compile(r"^num_ctx[ \t]+([0-9]{1,9})[ \t]*$", re.MULTILINE)
_CLOUD: Final = re.compile(r"[:-]cloud$")
# The smallest default context length (documentation, 2026: 4096 below 24 GB of video memory).
_DEFAULT_CONTEXT: Final = 4096
# Ollama ends an answer after "30 picked as an arbitrary max token repeat limit" (llm/server.go, since 0.30
# llm/llama_server.go), so that 31 equal tokens arrive.
_MAX_EQUAL_TOKENS: Final = 30
# Ollama starts the runner of a model with these, since 0.30 also with ``shift`` (``num_ctx`` is chosen for a request).
_LAUNCH_OPTIONS: Final = {"shift": False}
_NEWEST: Final = ":latest"
_THINK: Final = "<think>"
_MARK: Final = "[learnflow: the answer begins here]"


def _read(pages: Mapping[str, Page]) -> Server | None:
    version, rows = text(pages["/api/version"].body.get("version")), pages["/api/tags"].rows("models")
    if version is None or rows is None or llamacpp.is_llamacpp_page(pages["/api/version"]):
        return None
    running = pages["/api/ps"].rows("models")
    lengths = {str(row.get("name")): non_negative_int(row.get("context_length")) or None for row in running or []}
    models = []
    for row in rows:
        name = text(row.get("name"))
        if not name:
            continue
        known = _flags(row.get("capabilities"))
        known |= {
            "context": non_negative_int(part(row, "details").get("context_length")) or None,
            "context_served": lengths.get(name),
        }
        remote = bool(row.get("remote_host") or row.get("remote_model") or _CLOUD.search(name))
        models.append(
            Model(
                name=name,
                aliases=(name.removesuffix(_NEWEST),) if name.endswith(_NEWEST) else (),
                loaded=None if remote or running is None else name in lengths,
                chat=_supports_chat(row.get("capabilities"), name),
                remote=remote,
                known=known,
            )
        )
    return Server(version=version, models=tuple(models))


def _flags(listed: Any) -> dict[str, Any]:
    if not isinstance(listed, list):
        return {}
    return {"vision": "vision" in listed, "tools": "tools" in listed, "reasoning": "thinking" in listed}


def _supports_chat(listed: Any, name: str) -> bool:
    return "completion" in listed if isinstance(listed, list) else "embed" not in name.lower()


def _read_model(model: Model, page: Mapping[str, Any]) -> Model:
    info, listed = part(page, "model_info"), page.get("capabilities")
    trained = next((non_negative_int(value) for key, value in info.items() if key.endswith(".context_length")), None)
    parameters = page.get("parameters")
    num_ctx = _NUM_CTX.search(parameters) if isinstance(parameters, str) else None
    served = model.known.get("context_served") or (int(num_ctx[1]) if num_ctx else None)
    return replace(
        model,
        chat=_supports_chat(listed, model.name) if isinstance(listed, list) else model.chat,
        remote=model.remote or bool(page.get("remote_host") or page.get("remote_model")),
        known={
            **model.known,
            **_flags(listed),
            "context": trained or model.known.get("context"),
            "context_served": served,
        },
    )


def _context_length(need: int, loaded: int | None, trained: int | None) -> int | None:
    """Choose ``num_ctx`` for a request of ``need`` tokens.

    It is the loaded context length if that is enough, because another one reloads the model. Otherwise it is the next
    power of two, so that a slightly longer prompt does not reload it again. It is at most the context length of the
    training, but at least the loaded one.
    """
    if need <= (loaded or _DEFAULT_CONTEXT):
        return loaded
    length = max(_DEFAULT_CONTEXT, 1 << (need - 1).bit_length())
    return max(loaded or 0, min(length, trained or length))


def _format_options(sampling: Mapping[str, Any], context_length: int | None) -> dict[str, Any]:
    """Return the ``options`` of a request."""
    options = {"num_predict" if name == "max_tokens" else name: value for name, value in sampling.items()}
    return {**options, "num_ctx": context_length} if context_length else options


def _drops_prompts(version: str | None, own_api: bool) -> bool:
    """Return whether Ollama drops the beginning of a long prompt, and counts only the rest.

    By ``/v1`` every version does. Its own API supports ``truncate`` and ``shift`` since 0.12.6 (commit 6544e1473), and
    counts the tokens of a full prompt since 0.4. An unreadable version counts as a new one.
    """
    if not own_api:
        return True
    parts = (version or "").partition("-")[0].split(".")
    readable = all(re.fullmatch("[0-9]{1,6}", part) for part in parts)
    return readable and (0, 4) <= tuple(map(int, parts)) < (0, 12, 6)


async def _continuation(
    client: Client, model: str, messages: list[dict[str, Any]], body: Mapping[str, Any], begun: Attempt
) -> HttpRequest:
    """Return the request that continues an answer: the prompt in the server's template, followed by the text.

    It is exact with any template: on Ollama 0.33 and 0.24, 224 of 224 cuts at chunk boundaries continued identically.

    Raises:
        Unsupported: the messages have images or tool calls, or this version cannot render its template.
    """
    if any(_has_more_than_text(message) for message in messages):
        raise errors.Unsupported("images and tool calls cannot be rendered as text, so the answer is not continued")
    plain = [{"role": message["role"], "content": "".join(map(text_of, parts_of(message)))} for message in messages]
    think = {"think": body["think"]} if "think" in body else {}
    same = {name: body[name] for name in ("options", "truncate", "shift") if name in body}  # others reload the model
    text: str | None = None
    if begun.thinking:  # if the template places the thinking, the mark shows the beginning of the answer
        marked = {"role": "assistant", "content": _MARK, "thinking": begun.thinking}
        rendered = await _render(client, {"model": model, "messages": [*plain, marked], **same, **think})
        if begun.thinking in rendered and _MARK in rendered:
            text = rendered[: rendered.rindex(_MARK)] + (begun.prefix or "")
    if text is None:
        text = await _render(client, {"model": model, "messages": plain, **same, **think})
        opened = text.rstrip().endswith(_THINK)
        text += begun.raw.removeprefix(_THINK) if opened else begun.raw
    raw = {"model": model, "prompt": text, "raw": True, "stream": True, **same}
    return HttpRequest(url=f"{client.endpoint.root}/api/generate", body=raw)


async def _render(client: Client, body: Mapping[str, Any]) -> str:
    """Return the prompt in the server's template. Nothing is generated. Raise LLMError if that fails."""
    request = {**body, "stream": False, "_debug_render_only": True}
    text = None
    with suppress(errors.Misconfigured, errors.ErrorBody):  # the response is not JSON, or an error object
        text = part(await fetch(client, "/api/chat", request), "_debug_info").get("rendered_template")
    if not isinstance(text, str):
        raise errors.Unsupported("this version of Ollama cannot render its template, so the answer is not continued")
    return text


def _has_more_than_text(message: Mapping[str, Any]) -> bool:
    other = any(part.get("type") != "text" for part in parts_of(message))
    return other or bool(message.get("tool_calls")) or message["role"] == "tool"


class NDJSONParser(StreamParser):
    """Parser of lines with JSON objects. The last line has ``"done": true``; a buffered response is one line."""

    def __init__(self, max_tokens: int | None = None, *, finish_missing: bool = False) -> None:
        super().__init__(max_tokens, finish_missing=finish_missing)
        self._repeated: tuple[str, int] = ("", 0)  # the last token without blanks, and its count

    def _is_document(self, start: bytes) -> bool:  # noqa: ARG002  # a buffered response is a line, too
        return False

    def _parse_line(self, line: bytes) -> Delta | None:
        if not line.strip():
            return None
        record = self._parse_object(line, "a line of the stream")
        began, self._seen = self._seen, True
        if record.get("error"):
            raise error_mapping.error_object(record, began=began)
        if not {"done", "message", "response"} & set(record):
            raise malformed("a line of the stream")
        message = record.get("message") or {}
        self.served = self.served or word(record.get("model"), MAX_NAME_CHARS) or None
        self.forwarded = self.forwarded or bool(record.get("remote_model") or record.get("remote_host"))
        content = message.get("content") if message else record.get("response")  # of /api/generate
        text, thinking = self._parse_text(content, "text"), self._parse_text(message.get("thinking"), "thinking")
        token, times = (text or thinking).strip(), self._repeated[1]
        self._repeated = (token, times + 1 if token == self._repeated[0] else 1)
        calls: tuple[ToolCallDelta, ...] = ()
        for call in message.get("tool_calls") or ():
            function = call.get("function") or {}
            arguments = json.dumps(function.get("arguments") or {})
            call_id, name = word(call.get("id"), MAX_NAME_CHARS), word(function.get("name"), MAX_NAME_CHARS)
            calls += self._add_call(len(self._calls), call_id, name, arguments) or ()
        if record.get("done"):
            self.ended = True
            prompt = non_negative_int(record.get("prompt_eval_count"))
            answer = non_negative_int(record.get("eval_count"))
            total = prompt + answer if prompt is not None and answer is not None else None
            self.usage = Usage(prompt, answer, total)
            self._record_finish(record.get("done_reason") or "stop")  # before 0.3 there is no reason
        return Delta(text, thinking, calls) if text or thinking or message.get("tool_calls") else None

    def _parse_rest(self, rest: bytes) -> Delta | None:
        piece = self._parse(self._parse_line, rest)
        if isinstance(self.fault, errors.MalformedAnswer):
            cut = "the stream ended in the middle of a line"
            self.fault = errors.AnswerCut(cut) if self._seen else errors.BodyCut(cut)
        return piece

    def _missing_finish(self) -> LLMError:
        if self._repeated[1] > _MAX_EQUAL_TOKENS:
            return errors.TokenRepeated("the model repeated one token, and the server ended the answer")
        if self._seen:
            return errors.AnswerNotDone('the server ended the answer with "done": false')
        return super()._missing_finish()


SPEC: Final = ProviderSpec(
    name="ollama",
    title="Ollama",
    evidence="server",
    tested_versions="0.33, 0.24",
    litellm="ollama_chat",
    dialect=Dialect(
        parser=NDJSONParser,
        parts=frozenset({"text", "image_url"}),
        reads_urls=False,
        continuation=_continuation,
        parameters=ALWAYS | LOCAL_SAMPLING,
        format_options=_format_options,
        tool_choices=("auto", "none"),
        reasoning={value: {"think": value} for value in (False, True, *LEVELS)},
        # By default Ollama silently drops the beginning of a long prompt, and shifts the context while it answers. With
        # these fields it returns an error (0.33); older versions ignore them.
        body={"truncate": False, **_LAUNCH_OPTIONS},
        stream_usage=False,
    ),
    api=Api(
        default_url="http://localhost:11434",
        api_path="",
        removed_suffixes=("/api/chat", "/api/generate", "/api/tags", "/api", "/v1/chat/completions", "/v1"),
        cloud_host="ollama.com",
        models_path="/api/tags",
        models_key="models",
        model_id="name",
    ),
    server=ServerSupport(
        forwards_requests=True,
        load_path="/api/generate",
        launch_options=_LAUNCH_OPTIONS,
        load_for=lambda model, how_long: ("/api/generate", {"model": model, "keep_alive": how_long}),
        pull_command="ollama pull {model}",
        context_length=_context_length,
        service="ollama",
        drops_prompts=_drops_prompts,
        probe=Probe(
            pages=("/api/version", "/api/tags", "/api/ps"),
            read=_read,
            model_request=lambda model: ("/api/show", {"model": model.name}),
            read_model=_read_model,
        ),
        server_variables=("OLLAMA_MODELS", "OLLAMA_CONTEXT_LENGTH"),
        start_command="`ollama serve` and `ollama pull qwen3:0.6b`",
    ),
    local=True,
    other_spellings={"base_url": ("OLLAMA_API_BASE", "OLLAMA_HOST")},
    max_concurrency=4,
    capabilities=unknown(local=True, json_schema=True),
)
