"""LM Studio. ``/api/v1/models`` exists since 0.4, ``/api/v0/models`` since 0.3.6.

Source: its documentation (lmstudio-ai/docs, 2026-04) and its bug tracker; not tested with a real server. LM Studio
responds to an unknown page with a 200 and an error object.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from .. import errors
from ..parameters import COMMON_KEYWORDS, LOCAL_SAMPLING
from ..provider_spec import CHAT_PATH, Api, Dialect, Model, Page, Probe, ProviderSpec, Server, ServerSupport
from ..transport.untrusted import bool_or_none, non_negative_int, object_at, text_or_none

_MODELS: Final = "/api/v1/models"
_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smh]?)")
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600}


def _parse_pages(pages: Mapping[str, Page]) -> Server | None:
    newer, older = pages[_MODELS].rows("models"), pages["/api/v0/models"].rows("data")
    if newer and any("loaded_instances" in row and "key" in row for row in newer):
        return Server(models=tuple(_parse_model_v1(row) for row in newer if text_or_none(row.get("key"))))
    if older and any("state" in row and "type" in row for row in older):
        return Server(models=tuple(_parse_model_v0(row) for row in older if text_or_none(row.get("id"))))
    auth_errors = [page.error for page in pages.values() if isinstance(page.error, errors.AuthenticationFailed)]
    return Server() if any("LM Studio" in error.server_message for error in auth_errors) else None


def _parse_model_v1(row: Mapping[str, Any]) -> Model:
    instances = Page(body=row).rows("loaded_instances") or []
    lengths = [non_negative_int(object_at(instance, "config").get("context_length")) for instance in instances]
    features = object_at(row, "capabilities")
    capabilities = {
        "context": non_negative_int(row.get("max_context_length")) or None,
        "context_served": min(filter(None, lengths), default=None),  # any instance may answer
        "vision": bool_or_none(features.get("vision")),
        # If a model was not trained for tools, LM Studio describes them in the prompt. It is unknown whether the model
        # can use them.
        "tools": bool_or_none(features.get("trained_for_tool_use")) or None,
        # The field is absent "when not exposed": a model without it may still think.
        "reasoning": True if "reasoning" in features else None,
    }
    names = tuple(str(instance["id"]) for instance in instances if text_or_none(instance.get("id")))
    chat = row.get("type") != "embedding"
    return Model(name=str(row["key"]), aliases=names, loaded=bool(instances), chat=chat, capabilities=capabilities)


def _parse_model_v0(row: Mapping[str, Any]) -> Model:
    features, kind = row.get("capabilities"), row.get("type")
    capabilities = {
        "context": non_negative_int(row.get("max_context_length")) or None,
        "context_served": non_negative_int(row.get("loaded_context_length")) or None,
        "vision": {"vlm": True, "llm": False}.get(str(kind)),
        "tools": True if isinstance(features, list) and "tool_use" in features else None,
    }
    return Model(
        name=str(row["id"]), loaded=row.get("state") == "loaded", chat=kind != "embeddings", capabilities=capabilities
    )


def _load_with_keep_alive(model: str, keep_alive: str | float) -> tuple[str, dict[str, Any]]:
    """Return a chat request that loads a model and keeps it loaded for ``keep_alive``.

    A chat request is necessary, because ``load_path`` rejects ``ttl`` (LM Studio 0.4.25).

    Raises:
        InvalidRequest: ``keep_alive`` is not a duration, or rounds to less than a second.
    """
    match = _DURATION.fullmatch(str(keep_alive).strip())
    seconds = round(float(match[1]) * _SECONDS[match[2]]) if match else 0
    if seconds < 1:
        what = "keep_alive= must be a number of seconds, or like 30m"
        raise errors.InvalidRequest(what, hint="Omit it to keep the model loaded without a time limit")
    messages = [{"role": "user", "content": "Hello"}]
    return "/v1/chat/completions", {"model": model, "messages": messages, "max_tokens": 1, "ttl": seconds}


SPEC: Final = ProviderSpec(
    name="lmstudio",
    title="LM Studio",
    example_model="local-model",
    litellm_provider="hosted_vllm",
    local=True,
    api=Api(default_url="http://localhost:1234/v1"),
    server=ServerSupport(
        context_option="lms load --context-length",
        # Documentation of LM Studio, developer/core/lmlink (February 2026)
        locality_caveat="with LM Link, another machine may run the model, and no API reports this",
        load_path=f"{_MODELS}/load",
        load_with_keep_alive=_load_with_keep_alive,
        pull_command="lms get {model}",
        probe=Probe(pages=(_MODELS, "/api/v0/models"), parse_pages=_parse_pages),
    ),
    dialect=Dialect(
        chat_path_without_litellm=CHAT_PATH,
        parameters=(COMMON_KEYWORDS | LOCAL_SAMPLING) - {"reasoning"},
        tool_choices=("auto", "none", "required"),
        schema_modes=("json_schema", "prompt"),
    ),
    other_variable_names={
        "base_url": ("LM_STUDIO_BASE_URL", "LM_STUDIO_API_BASE"),
        "api_key": ("LM_STUDIO_API_KEY", "LM_API_TOKEN"),
    },
    max_concurrency=4,
    capability_overrides={"json_schema": True},
)
