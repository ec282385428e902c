"""Azure OpenAI, in both dialects of its addresses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ..capabilities import unknown
from ..spec import SETTINGS, ProviderSpec, effort

# Its newer addresses (…/openai/v1, since August 2025) speak plain OpenAI and need no dated version.
_NEWER: Final[Mapping[str, Any]] = {
    "litellm": "openai",
    "api_path": "/openai/v1",
    "cut_path": None,
    "default_version": None,
    "key_header": "authorization",
    "chat_path": None,
    "models_path": "/models",
}


def _at(spec: ProviderSpec, url: str, version: str | None) -> ProviderSpec:
    newer = "/openai/v1" in url or url.endswith("/v1/chat/completions") or version in ("v1", "latest", "preview")
    return replace(spec, **_NEWER) if newer else spec


SPEC: Final = ProviderSpec(
    name="azure",
    title="Azure OpenAI",
    litellm="azure",
    genai="azure.ai.openai",
    api_path="",
    cut_path="/openai",
    settings=(*SETTINGS, "api_version"),
    also={
        "base_url": ("AZURE_OPENAI_ENDPOINT", "AZURE_API_BASE"),
        "model": ("AZURE_OPENAI_DEPLOYMENT",),
        "api_key": ("AZURE_OPENAI_API_KEY",),
        "api_version": ("AZURE_OPENAI_API_VERSION", "OPENAI_API_VERSION"),
    },
    default_version="2024-10-21",
    key_header="api-key",
    variant=_at,
    chat_path="/openai/deployments/{model}/chat/completions?api-version={version}",
    models_path="/openai/models",
    lists_all=False,  # it lists what could be deployed, not what is
    reasoning=effort(),
    finishes_turns=True,
    capabilities=unknown(local=False, json_schema=True, tools=True, prefill=False),
)

V1: Final = replace(SPEC, **_NEWER)
