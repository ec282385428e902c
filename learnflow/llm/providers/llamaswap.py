"""The proxy llama-swap (tested with commit 0bdb372), recognised by ``owned_by`` in its model list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..parameters import COMMON_KEYWORDS, LOCAL_SAMPLING
from ..provider_spec import CHAT_PATH, Api, Dialect, Model, Page, Probe, ProviderSpec, Server, ServerSupport
from ..transport.untrusted import bool_or_none, non_negative_int, object_at, text_list, text_or_none

_MODELS: Final = "/v1/models"
_LOCAL_TYPES: Final = ("model", "alias")


def _parse_pages(pages: Mapping[str, Page]) -> Server | None:
    rows = pages[_MODELS].rows("data")
    if not rows or any(row.get("owned_by") != "llama-swap" for row in rows):
        return None
    local_names = {row.get("id") for row in rows if _type(row) in _LOCAL_TYPES}
    return Server(models=tuple(_parse_model(row, local_names) for row in rows if text_or_none(row.get("id"))))


def _type(row: Mapping[str, Any]) -> Any:
    return object_at(row, "meta", "llamaswap").get("type", "model")  # older versions report no type


def _parse_model(row: Mapping[str, Any], local_names: set[Any]) -> Model:
    meta = object_at(row, "meta", "llamaswap")
    status = text_or_none(object_at(row, "status").get("value"))
    # A row of type "peer" is a model of another machine. A "selector" is local if all its targets are local. The
    # targets of a "profile" are unknown, so it counts as remote.
    targets = set(text_list(meta.get("targets"))) if _type(row) == "selector" else set()
    selects_local = bool(targets) and targets <= local_names
    context = non_negative_int(row.get("context_length")) or None
    return Model(
        name=str(row["id"]),
        aliases=text_list(meta.get("aliases")),
        loaded=status == "loaded" if status else None,
        remote=not selects_local and _type(row) not in _LOCAL_TYPES,
        capabilities={
            "context": context,
            "context_served": context,
            "vision": bool_or_none(object_at(row, "capabilities").get("vision")),
            "tools": bool_or_none(object_at(row, "capabilities").get("function_calling")),
        },
    )


SPEC: Final = ProviderSpec(
    name="llamaswap",
    title="llama-swap",
    tested_versions="0bdb372",
    litellm_provider="hosted_vllm",
    local=True,
    api=Api(default_url="http://localhost:8080/v1", lists_all_models=False, has_aliases=True),
    server=ServerSupport(
        # The model list marks the models of other machines. If LLM_LOCAL_ONLY is set, a request for an unlisted model
        # is an error, because the server could forward it.
        forwards_requests=True,
        probe=Probe(pages=(_MODELS,), parse_pages=_parse_pages),
    ),
    dialect=Dialect(chat_path_without_litellm=CHAT_PATH, parameters=(COMMON_KEYWORDS | LOCAL_SAMPLING) - {"reasoning"}),
    capability_overrides={"cost": None},  # unknown, because another machine may charge
)
