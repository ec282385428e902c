"""LM Studio: ``/api/v1/models`` since 0.4, ``/api/v0/models`` since 0.3.6, and only OpenAI's list before.

Source: its documentation (lmstudio-ai/docs, 2026-04) and its bug tracker; not tested with a real server. The response
to an unknown page is a 200 with an error object, which becomes the error of the ``Page``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from .. import errors
from ..parameters import ALWAYS, LOCAL_SAMPLING
from ..provider_spec import Api, Dialect, Model, Page, Probe, ProviderSpec, Server, ServerSupport
from ..transport.untrusted import flag, non_negative_int, part, text

_MODELS: Final = "/api/v1/models"
_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smh]?)")
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600}


def _read(pages: Mapping[str, Page]) -> Server | None:
    newer, older = pages[_MODELS].rows("models"), pages["/api/v0/models"].rows("data")
    if newer and any("loaded_instances" in row and "key" in row for row in newer):
        return Server(models=tuple(_model_v1(row) for row in newer if text(row.get("key"))))
    if older and any("state" in row and "type" in row for row in older):
        return Server(models=tuple(_model_v0(row) for row in older if text(row.get("id"))))
    locked = [page.error for page in pages.values() if isinstance(page.error, errors.AuthenticationFailed)]
    return Server() if any("LM Studio" in error.server_message for error in locked) else None


def _model_v1(row: Mapping[str, Any]) -> Model:
    rows = row.get("loaded_instances")
    instances = [one for one in rows if isinstance(one, dict)] if isinstance(rows, list) else []
    windows = [window for one in instances if (window := non_negative_int(part(one, "config").get("context_length")))]
    can = part(row, "capabilities")
    known = {
        "context": non_negative_int(row.get("max_context_length")) or None,
        "context_served": min(windows) if windows else None,  # the server does not report which instance answers
        "vision": flag(can.get("vision")),
        "tools": flag(can.get("trained_for_tool_use")),
        # the field is absent "when not exposed", which does not mean no
        "reasoning": True if "reasoning" in can else None,
    }
    names = tuple(str(one["id"]) for one in instances if text(one.get("id")))
    chat = row.get("type") != "embedding"
    return Model(name=str(row["key"]), aliases=names, loaded=bool(instances), chat=chat, known=known)


def _model_v0(row: Mapping[str, Any]) -> Model:
    can, kind = row.get("capabilities"), row.get("type")
    known = {
        "context": non_negative_int(row.get("max_context_length")) or None,
        "context_served": non_negative_int(row.get("loaded_context_length")) or None,
        "vision": {"vlm": True, "llm": False}.get(str(kind)),
        "tools": "tool_use" in can if isinstance(can, list) else None,
    }
    return Model(name=str(row["id"]), loaded=row.get("state") == "loaded", chat=kind != "embeddings", known=known)


def _load_for(model: str, how_long: str | float) -> tuple[str, dict[str, Any]]:
    """Return a chat request that loads the model with a time to live: 0.4.25 refuses ``ttl`` at ``/models/load``."""
    match = _DURATION.fullmatch(str(how_long).strip())
    seconds = round(float(match[1]) * _SECONDS[match[2]]) if match else 0
    if seconds < 1:
        what = "keep_alive= must be a number of seconds, or like 30m"
        raise errors.InvalidRequest(what, hint="Without it the model stays loaded until it is unloaded")
    hello = [{"role": "user", "content": "Hello"}]
    return "/v1/chat/completions", {"model": model, "messages": hello, "max_tokens": 1, "ttl": seconds}


SPEC: Final = ProviderSpec(
    name="lmstudio",
    title="LM Studio",
    example_model="local-model",
    litellm="hosted_vllm",
    local=True,
    api=Api(default_url="http://localhost:1234/v1"),
    server=ServerSupport(
        load_path=f"{_MODELS}/load",
        load_for=_load_for,
        pull_command="lms get {model}",
        probe=Probe(pages=(_MODELS, "/api/v0/models"), read=_read),
    ),
    dialect=Dialect(
        parameters=(ALWAYS | LOCAL_SAMPLING) - {"reasoning"},
        tool_choices=("auto", "none", "required"),
        schema_modes=("json_schema", "words"),
    ),
    other_spellings={
        "base_url": ("LM_STUDIO_BASE_URL", "LM_STUDIO_API_BASE"),
        "api_key": ("LM_STUDIO_API_KEY", "LM_API_TOKEN"),
    },
    max_concurrency=4,
    known={"json_schema": True},
)
