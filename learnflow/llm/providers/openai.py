"""OpenAI's own API."""

from __future__ import annotations

from typing import Final

from ..parameters import REASONING_EFFORT
from ..provider_spec import RESPONSES_PATH, SETTINGS, Api, Dialect, ProviderSpec

SPEC: Final = ProviderSpec(
    name="openai",
    title="OpenAI",
    example_model="gpt-6-luna",
    litellm="openai",
    api=Api(default_url="https://api.openai.com/v1", responses_path=RESPONSES_PATH),
    dialect=Dialect(
        reasoning=REASONING_EFFORT,
        marks_reasoning=True,
        session="prompt_cache_key",  # https://developers.openai.com/docs/guides/prompt-caching
        finishes_turns=True,
    ),
    settings=(*SETTINGS, "api"),
    other_spellings={"base_url": ("OPENAI_API_BASE",)},
    known={"prefill": False},
)
