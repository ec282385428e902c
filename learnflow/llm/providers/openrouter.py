"""OpenRouter."""

from __future__ import annotations

from typing import Final

from ..parameters import COMMON_KEYWORDS, LOCAL_SAMPLING, REASONING_LEVELS
from ..provider_spec import Api, Dialect, ProviderSpec

SPEC: Final = ProviderSpec(
    name="openrouter",
    title="OpenRouter",
    example_model="meta-llama/llama-3.3-70b-instruct",
    litellm_provider="openrouter",
    api=Api(
        default_url="https://openrouter.ai/api/v1",
        lists_all_models=False,  # names with the suffixes ":free" and ":nitro" are not listed
    ),
    dialect=Dialect(
        parameters=COMMON_KEYWORDS | LOCAL_SAMPLING,
        reasoning={
            False: {"reasoning": {"enabled": False}},
            True: {"reasoning": {"enabled": True}},
            **{level: {"reasoning": {"effort": level}} for level in REASONING_LEVELS},
        },
        # Requests with the same value go to the same provider: https://openrouter.ai/docs/guides/best-practices/prompt-caching
        session_field="session_id",
    ),
    other_variable_names={"base_url": ("OPENROUTER_API_BASE",)},
)
