"""llama.cpp's server (tested with commit 0c1e570), recognised by a header, or by fields of its model list.

``/props`` has the features of the chat template, and the context length of a slot (which
serves one request at a time).

In router mode, a server has several models, and ``/props?model=`` loads the model unless the query also has
``autoload=false``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote

from .. import errors
from ..capabilities import State
from ..parameters import COMMON_KEYWORDS, LOCAL_SAMPLING, TEMPLATE_THINKING
from ..provider_spec import CHAT_PATH, Api, Dialect, Model, Page, Probe, ProviderSpec, Server, ServerSupport
from ..servers.probe import fetch
from ..transport.client import Client
from ..transport.untrusted import bool_or_none, non_negative_int, object_at, text_list, text_or_none

HEADERS: Final = {"server": "llama.cpp"}  # of every response
_OWNER: Final = "llamacpp"
_LOADED_STATES: Final = ("loaded", "sleeping")


def _parse_pages(pages: Mapping[str, Page]) -> Server | None:
    rows = pages["/v1/models"].rows("data") or []
    has_header = any(is_llamacpp_page(page) for page in pages.values())
    if not has_header and not any(
        row.get("owned_by") == _OWNER or "n_ctx_train" in object_at(row, "meta") for row in rows
    ):
        return None
    props = pages["/props"].body
    is_router = props.get("role") == "router" or any(object_at(row, "status") for row in rows)
    models = tuple(
        _add_props(_parse_model(row), {} if is_router else props) for row in rows if text_or_none(row.get("id"))
    )
    loading = isinstance(pages["/health"].error, errors.ModelLoading)
    return Server(
        version=text_or_none(props.get("build_info")),
        models=models,
        slots=non_negative_int(props.get("total_slots")) or None,
        accepts_any_name=not is_router,
        fault=("loading", "the server is loading its model") if loading else None,
    )


def is_llamacpp_page(page: Page) -> bool:
    """Return whether llama.cpp sent a page. Other probes need this, because llama.cpp imitates pages of Ollama."""
    return page.headers.get("server") == HEADERS["server"]


def build_cold_model_list(name: str, context: int, *, loading: bool) -> dict[str, Any]:
    """Build the model list of the embedded provider while its server is not ready, in the format of router mode.

    Args:
        name: the name of the model.
        context: the context length in tokens.
        loading: whether the server is loading the model.
    """
    status = {"value": "loading" if loading else "unloaded"}
    return {"data": [{"id": name, "owned_by": _OWNER, "meta": {"n_ctx": context}, "status": status}]}


def _parse_model(row: Mapping[str, Any]) -> Model:
    meta, status = object_at(row, "meta"), object_at(row, "status")
    status_value = text_or_none(status.get("value"))
    return Model(
        name=str(row["id"]),
        aliases=text_list(row.get("aliases")),
        loaded=status_value in _LOADED_STATES if status_value else True,
        fault=_find_fault(status),
        capabilities={
            "context": non_negative_int(meta.get("n_ctx_train")) or None,
            "context_served": non_negative_int(meta.get("n_ctx")) or None,
            "vision": _supports_vision(row.get("architecture")),
        },
    )


def _find_fault(status: Mapping[str, Any]) -> tuple[State, str] | None:
    """Return a state and a sentence if the model cannot answer, else None. Only router mode reports ``status``."""
    if status.get("failed"):
        return "down", "the server could not load this model: check its log"
    return ("loading", "the server is loading this model") if status.get("value") == "loading" else None


def _supports_vision(architecture: Any) -> bool | None:
    inputs = architecture.get("input_modalities") if isinstance(architecture, dict) else None
    return "image" in inputs if isinstance(inputs, list) else None


def _build_model_request(model: Model) -> tuple[str, None] | None:
    """Return the path of the model's page. The body is None, because it is a GET request.

    Return no request (None) if the context length is known, or the model is not loaded.
    """
    needs_request = model.loaded and model.capabilities.get("context_served") is None
    return (f"/props?model={quote(model.name, safe='')}&autoload=false", None) if needs_request else None


def _add_props(model: Model, props: Mapping[str, Any]) -> Model:
    reported = {
        "context_served": non_negative_int(object_at(props, "default_generation_settings").get("n_ctx")) or None,
        "vision": bool_or_none(object_at(props, "modalities").get("vision")),
        "tools": bool_or_none(object_at(props, "chat_template_caps").get("supports_tools")),
    }
    capabilities = {**model.capabilities, **{name: value for name, value in reported.items() if value is not None}}
    return replace(model, capabilities=capabilities)


async def _count_tokens(client: Client, model: str, messages: Sequence[Any], tools: Sequence[Any]) -> int:
    """Return the number of tokens of a prompt. Raise LLMError if the server cannot count them.

    Source: llama.cpp's tools/server/README.md; tested with xllamacpp 2026.10.
    """
    tools_field = {"tools": list(tools)} if tools else {}
    page = await fetch(client, "/apply-template", {"model": model, "messages": list(messages), **tools_field})
    body = {"model": model, "content": page.get("prompt"), "add_special": True, "parse_special": True}
    tokens = (await fetch(client, "/tokenize", body)).get("tokens")
    if not isinstance(tokens, list) or not tokens:
        raise errors.Unsupported("the server cannot count tokens")
    return len(tokens)


SPEC: Final = ProviderSpec(
    name="llamacpp",
    title="llama.cpp",
    tested_versions="0c1e570",
    litellm_provider="hosted_vllm",
    local=True,
    api=Api(default_url="http://localhost:8080/v1"),
    server=ServerSupport(
        compose_service="llamacpp",
        context_option="--ctx-size",
        count_tokens=_count_tokens,
        load_path="/models/load",  # in router mode only; in the other mode, the model is always loaded
        pull_command="llama-server -hf {model}",
        probe=Probe(
            pages=("/v1/models", "/props", "/health"),
            parse_pages=_parse_pages,
            build_model_request=_build_model_request,
            parse_model_page=_add_props,
        ),
        start_command="`llama-server -hf ggml-org/Qwen3-0.6B-GGUF`",
    ),
    dialect=Dialect(
        chat_path_without_litellm=CHAT_PATH,
        supports_prefill=True,
        parameters=COMMON_KEYWORDS | LOCAL_SAMPLING,
        reasoning=TEMPLATE_THINKING,
    ),
    other_variable_names={"base_url": ("LLAMA_CPP_BASE_URL",), "api_key": ("LLAMA_API_KEY",)},
    max_concurrency=4,
    capability_overrides={"json_schema": True, "prefill": True},
)
