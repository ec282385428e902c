"""Azure OpenAI. It has two APIs: Azure's own API, which has dated versions, and OpenAI's API."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ..parameters import REASONING_EFFORT
from ..provider_spec import RESPONSES_PATH, SETTINGS, Api, Dialect, ProviderSpec

# OpenAI's API, at …/openai/v1 since August 2025.
_OPENAI_API: Final = Api(api_path="/openai/v1", lists_all_models=False, has_aliases=True, responses_path=RESPONSES_PATH)


def _choose_variant(spec: ProviderSpec, url: str, version: str | None) -> ProviderSpec:
    is_openai = "/openai/v1" in url or url.endswith("/v1/chat/completions") or version in ("v1", "latest", "preview")
    return replace(spec, litellm_provider="openai", api=_OPENAI_API) if is_openai else spec


SPEC: Final = ProviderSpec(
    name="azure",
    title="Azure OpenAI",
    litellm_provider="azure",
    otel_name="azure.ai.openai",
    api=Api(
        api_path="",
        has_aliases=True,  # requests use the names of deployments
        litellm_path="/openai",
        default_version="2024-10-21",
        key_header="api-key",
        key_scheme="",
        choose_variant=_choose_variant,
        chat_path="/openai/deployments/{model}/chat/completions?api-version={version}",
        responses_path="/openai/responses?api-version={version}",
        models_path="/openai/models",
        lists_all_models=False,  # the list has the models that can be deployed, not the deployments
    ),
    dialect=Dialect(reasoning=REASONING_EFFORT, litellm_marks_reasoning=True, ignores_prefill=True),
    settings=(*SETTINGS, "api", "api_version"),
    other_variable_names={
        "base_url": ("AZURE_OPENAI_ENDPOINT", "AZURE_API_BASE"),
        "model": ("AZURE_OPENAI_DEPLOYMENT",),
        "api_key": ("AZURE_OPENAI_API_KEY",),
        "api_version": ("AZURE_OPENAI_API_VERSION", "OPENAI_API_VERSION"),
    },
    capability_overrides={"prefill": False},
)
