"""Servers of one's own that are known by a page, and of which little else is: their rows claim nothing more.

From their sources (2026-07 and 2026-08): llama-swap 0bdb372, LocalAI 82c191a, Docker's model-runner 642c721, SGLang
0025436, text-generation-inference 003eaec, LiteLLM's proxy 1.106.2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from .. import errors
from ..capabilities import unknown
from ..health.page import count, flag, listed, part, text
from ..spec import ALWAYS, LOCAL_SAMPLING, Model, Page, Probe, ProviderSpec, Server

_MODELS: Final = "/v1/models"
_Reader = Callable[[Mapping[str, Page]], Server | None]


def _owned(owner: str, *paths: str) -> _Reader:
    """A server whose models are all owned by this name."""

    def read(pages: Mapping[str, Page]) -> Server | None:
        for path in paths:
            rows = pages[path].rows("data")
            if rows and all(row.get("owned_by") == owner for row in rows):
                return listed(pages[path], "data", "id")
        return None

    return read


def _llama_swap(pages: Mapping[str, Page]) -> Server | None:
    rows = pages[_MODELS].rows("data")
    if not rows or any(row.get("owned_by") != "llama-swap" for row in rows):
        return None
    own = {row.get("id") for row in rows if _type(row) in ("model", "alias")}
    return Server(models=tuple(_swapped(row, own) for row in rows if text(row.get("id"))))


def _type(row: Mapping[str, Any]) -> Any:
    return part(row, "meta", "llamaswap").get("type", "model")  # older ones have no other


def _swapped(row: Mapping[str, Any], own: set[Any]) -> Model:
    meta = part(row, "meta", "llamaswap")
    status, aliases = text(part(row, "status").get("value")), meta.get("aliases")
    # A peer is another machine, and what a profile leads to is not said.
    targets = meta.get("targets") if _type(row) == "selector" else None
    selects = isinstance(targets, list) and set(map(str, targets)) <= own
    context = count(row.get("context_length"))
    return Model(
        name=str(row["id"]),
        aliases=tuple(each for each in aliases if isinstance(each, str)) if isinstance(aliases, list) else (),
        loaded=status == "loaded" if status else None,
        remote=not selects and _type(row) not in ("model", "alias"),
        known={
            "context": context,
            "context_served": context,
            "vision": flag(part(row, "capabilities").get("vision")),
            "tools": flag(part(row, "capabilities").get("function_calling")),
        },
    )


_LOCALAI: Final = "/.well-known/localai.json"


def _local_ai(pages: Mapping[str, Page]) -> Server | None:
    said = pages[_LOCALAI].said
    if text(said.get("version")) is None or not part(said, "endpoints"):
        return None
    server = listed(pages[_MODELS], "data", "id") or Server()  # behind a key this page is still public
    return replace(server, version=text(said["version"]))


_READINESS: Final = "/health/readiness"


def _litellm_proxy(pages: Mapping[str, Page]) -> Server | None:
    said, names = pages[_READINESS].said, pages[_MODELS]
    if said.get("status") != "healthy" or text(said.get("db")) is None:
        return None
    if names.rows("data") is None and not isinstance(names.error, errors.AuthenticationFailed):
        return None
    server = listed(names, "data", "id") or Server()
    models = tuple(replace(model, remote=True) for model in server.models)  # where they lead, it does not tell
    return replace(server, version=text(said.get("litellm_version")), models=models)


_INFO: Final = "/info"


def _tgi(pages: Mapping[str, Page]) -> Server | None:
    said = pages[_INFO].said
    name, window = text(said.get("model_id")), count(said.get("max_total_tokens"))
    if name is None or not (window or text(said.get("router"))):
        return None
    model = Model(name=name, loaded=True, known={"context_served": window})
    return Server(version=text(said.get("version")), models=(model,), any_name=True)


def _row(name: str, title: str, url: str, read: _Reader, *pages: str, **more: Any) -> ProviderSpec:
    return ProviderSpec(
        name=name,
        title=title,
        evidence="server" if "seen" in more else "table",
        litellm="hosted_vllm",
        local=True,
        default_url=url,
        lists_all=False,
        parameters=(ALWAYS | LOCAL_SAMPLING) - {"reasoning"},
        probe=Probe(pages=(_MODELS, *pages), read=read),
        capabilities=unknown(local=True, cost=None),
        **more,
    )


_NONE: Final = re.compile(r"(?!)")

ROWS: Final = (
    # its list says which models are a peer's; one that is not in it is not asked under LLM_LOCAL_ONLY
    _row("llamaswap", "llama-swap", "http://localhost:8080/v1", _llama_swap, forwards=_NONE, seen="0bdb372"),
    _row("localai", "LocalAI", "http://localhost:8080/v1", _local_ai, _LOCALAI),
    _row("sglang", "SGLang", "http://localhost:30000/v1", _owned("sglang", _MODELS)),
    _row("tgi", "text-generation-inference", "http://localhost:3000/v1", _tgi, _INFO),
)

_ENGINES: Final = "/engines/v1/models"

# What the rows of LiteLLM's table lack of these.
MORE: Final[Mapping[str, Mapping[str, Any]]] = {
    "docker_model_runner": {
        "title": "Docker Model Runner",
        "probe": Probe(pages=(_ENGINES, _MODELS), read=_owned("docker", _ENGINES, _MODELS)),
    },
    "litellm_proxy": {
        "title": "LiteLLM's proxy",
        "default_url": "http://localhost:4000",
        "evidence": "server",
        "seen": "1.106.2",
        "forwards": re.compile(""),
        "probe": Probe(pages=(_READINESS, _MODELS), read=_litellm_proxy),
    },
}
