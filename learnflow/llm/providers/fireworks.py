"""Fireworks AI."""

from __future__ import annotations

from typing import Final

from ..parameters import COMMON_KEYWORDS, LOCAL_SAMPLING, REASONING_EFFORT
from ..provider_spec import Api, Dialect, ProviderSpec

SPEC: Final = ProviderSpec(
    name="fireworks",
    title="Fireworks AI",
    example_model="accounts/fireworks/models/kimi-k3",
    litellm_provider="fireworks_ai",
    api=Api(
        default_url="https://api.fireworks.ai/inference/v1",
        # Requests with the same value go to the same server: https://docs.fireworks.ai/guides/prompt-caching
        headers={"x-session-affinity": "{session}"},
        lists_all_models=False,
    ),
    dialect=Dialect(
        parameters=COMMON_KEYWORDS | LOCAL_SAMPLING,
        reasoning=REASONING_EFFORT,
    ),
    other_variable_names={"base_url": ("FIREWORKS_API_BASE",), "api_key": ("FIREWORKS_AI_API_KEY",)},
)
