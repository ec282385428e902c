"""OpenAI's own API."""

from __future__ import annotations

from typing import Final

from ..parameters import REASONING_EFFORT
from ..provider_spec import RESPONSES_PATH, SETTINGS, Api, Dialect, ProviderSpec

SPEC: Final = ProviderSpec(
    name="openai",
    title="OpenAI",
    example_model="gpt-6-luna",
    litellm_provider="openai",
    api=Api(default_url="https://api.openai.com/v1", responses_path=RESPONSES_PATH),
    dialect=Dialect(
        reasoning=REASONING_EFFORT,
        litellm_marks_reasoning=True,
        session_field="prompt_cache_key",  # https://developers.openai.com/docs/guides/prompt-caching
        ignores_prefill=True,
    ),
    settings=(*SETTINGS, "api"),
    other_variable_names={"base_url": ("OPENAI_API_BASE",)},
    capability_overrides={"prefill": False},
)
