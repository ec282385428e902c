"""Ollama (0.24 and 0.33 were run), by its own API: its row, its pages, and how it goes on with a broken answer.

Its tags tell capabilities only since 0.30; ``/api/show`` reads the model's file and loads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from .. import errors
from ..base import Attempt
from ..capabilities import unknown
from ..servers.probe import fetch
from ..spec import ALWAYS, LEVELS, LOCAL_SAMPLING, Model, Page, Probe, ProviderSpec, Server
from ..transport.client import Client, HttpRequest
from ..transport.ndjson_parser import NDJSONParser
from ..transport.untrusted import non_negative_int, part, text
from . import llamacpp

_NUM_CTX: Final = re.compile(r"^num_ctx[ \t]+([0-9]{1,9})[ \t]*$", re.MULTILINE)
_NEWEST: Final = ":latest"
_THINK: Final = "<think>"
_MARK: Final = "[learnflow: the answer begins here]"


def _read(pages: Mapping[str, Page]) -> Server | None:
    version, rows = text(pages["/api/version"].said.get("version")), pages["/api/tags"].rows("models")
    if version is None or rows is None or llamacpp.sent(pages["/api/version"]):
        return None
    running = pages["/api/ps"].rows("models")
    windows = {str(row.get("name")): non_negative_int(row.get("context_length")) or None for row in running or []}
    models = []
    for row in rows:
        name = text(row.get("name"))
        if not name:
            continue
        known = _can(row.get("capabilities"))
        known |= {
            "context": non_negative_int(part(row, "details").get("context_length")) or None,
            "context_served": windows.get(name),
        }
        remote = bool(row.get("remote_host") or row.get("remote_model"))
        models.append(
            Model(
                name=name,
                aliases=(name.removesuffix(_NEWEST),) if name.endswith(_NEWEST) else (),
                loaded=None if remote or running is None else name in windows,
                chat=_chats(row.get("capabilities"), name),
                remote=remote,
                known=known,
            )
        )
    return Server(version=version, models=tuple(models))


def _can(said: Any) -> dict[str, Any]:
    if not isinstance(said, list):
        return {}
    return {"vision": "vision" in said, "tools": "tools" in said, "reasoning": "thinking" in said}


def _chats(said: Any, name: str) -> bool:
    return "completion" in said if isinstance(said, list) else "embed" not in name.lower()


def _learn(model: Model, shown: Mapping[str, Any]) -> Model:
    info, said = part(shown, "model_info"), shown.get("capabilities")
    trained = next((non_negative_int(value) for key, value in info.items() if key.endswith(".context_length")), None)
    parameters = shown.get("parameters")
    asked = _NUM_CTX.search(parameters) if isinstance(parameters, str) else None
    return replace(
        model,
        chat=_chats(said, model.name) if isinstance(said, list) else model.chat,
        remote=model.remote or bool(shown.get("remote_host") or shown.get("remote_model")),
        window=int(asked[1]) if asked else None,
        known={**model.known, **_can(said), "context": trained or model.known.get("context")},
    )


def _drops_prompts(version: str | None) -> bool:
    """Whether this version drops the beginning of a prompt, and counts what it has read.

    It knows ``truncate`` and ``shift`` since 0.12.6 (commit 6544e1473), and counts a prompt as a whole since 0.4. A
    version that cannot be read is a new one.
    """
    parts = (version or "").partition("-")[0].split(".")
    readable = all(re.fullmatch("[0-9]{1,6}", part) for part in parts)
    return readable and (0, 4) <= tuple(map(int, parts)) < (0, 12, 6)


async def _continuation(
    client: Client, model: str, messages: list[dict[str, Any]], body: Mapping[str, Any], begun: Attempt
) -> HttpRequest:
    """The request that continues an answer: the server's own template, rendered, and the text as it is.

    Exact, whatever the template is: on Ollama 0.33 and 0.24, 224 of 224 cuts at chunk boundaries went on identically.

    Raises:
        Unsupported: pictures and tool calls are no text, or this version does not render.
    """
    if any(_more_than_words(each) for each in messages):
        raise errors.Unsupported("pictures and tool calls cannot be rendered as text, so the answer is not continued")
    plain = [{"role": each["role"], "content": _words(each.get("content"))} for each in messages]
    think = {"think": body["think"]} if "think" in body else {}
    same = {name: body[name] for name in ("options", "truncate", "shift") if name in body}  # other ones load it again
    text: str | None = None
    if begun.thinking:  # where the template places thinking itself, the mark shows where the answer begins
        marked = {"role": "assistant", "content": _MARK, "thinking": begun.thinking}
        rendered = await _rendered(client, {"model": model, "messages": [*plain, marked], **same, **think})
        if begun.thinking in rendered and _MARK in rendered:
            text = rendered[: rendered.rindex(_MARK)] + (begun.prefix or "")
    if text is None:
        text = await _rendered(client, {"model": model, "messages": plain, **same, **think})
        opened = text.rstrip().endswith(_THINK)
        text += begun.raw.removeprefix(_THINK) if opened else begun.raw
    raw = {"model": model, "prompt": text, "raw": True, "stream": True, **same}
    return HttpRequest(url=f"{client.endpoint.root}/api/generate", body=raw)


async def _rendered(client: Client, body: Mapping[str, Any]) -> str:
    """The prompt as the server's template makes it; nothing is generated. Raises LLMError."""
    asked = {**body, "stream": False, "_debug_render_only": True}
    text = None
    with suppress(errors.Misconfigured, errors.ErrorBody):  # no JSON, or an error instead of the template
        text = part(await fetch(client, "/api/chat", asked), "_debug_info").get("rendered_template")
    if not isinstance(text, str):
        raise errors.Unsupported("this version does not render its template, so it cannot continue an answer")
    return text


def _more_than_words(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    other = any(part.get("type") != "text" for part in parts)
    return other or bool(message.get("images") or message.get("tool_calls")) or message["role"] == "tool"


def _words(content: Any) -> str:
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    return "".join(str(part.get("text") or "") for part in parts)


SPEC: Final = ProviderSpec(
    name="ollama",
    title="Ollama",
    evidence="server",
    seen="0.33, 0.24",
    litellm="ollama_chat",
    parser=NDJSONParser,
    local=True,
    default_url="http://localhost:11434",
    api_path="",
    tails=("/api/chat", "/api/generate", "/api/tags", "/api", "/v1/chat/completions", "/v1"),
    cloud_host="ollama.com",
    parts=frozenset({"text", "image_url"}),
    reads_urls=False,
    also={"base_url": ("OLLAMA_API_BASE", "OLLAMA_HOST")},
    models_path="/api/tags",
    models_key="models",
    model_id="name",
    forwards=re.compile(r"[:-]cloud$"),
    load_path="/api/generate",
    keep=lambda model, how_long: ("/api/generate", {"model": model, "keep_alive": how_long}),
    pull_command="ollama pull {model}",
    window="num_ctx",
    service="ollama",
    continuation=_continuation,
    drops_prompts=_drops_prompts,
    max_concurrency=4,
    parameters=ALWAYS | LOCAL_SAMPLING,
    options={name: name for name in LOCAL_SAMPLING} | {"max_tokens": "num_predict"},
    tool_choices=("auto", "none"),
    reasoning={value: {"think": value} for value in (False, True, *LEVELS)},
    # Ollama drops the beginning of a prompt that does not fit, and shifts the window while answering, both without
    # a word; told not to, it says so (seen with 0.33; versions that do not know the fields ignore them).
    body={"truncate": False, "shift": False},
    stream_usage=False,
    probe=Probe(
        pages=("/api/version", "/api/tags", "/api/ps"),
        read=_read,
        question=lambda model: ("/api/show", {"model": model.name}),
        learn=_learn,
    ),
    own_variables=("OLLAMA_MODELS", "OLLAMA_CONTEXT_LENGTH"),
    start="`ollama serve` and `ollama pull qwen3:0.6b`",
    capabilities=unknown(local=True, json_schema=True),
)
