"""OpenAI's own API."""

from __future__ import annotations

import re
from typing import Final

from ..parameters import REASONING_EFFORT
from ..provider_spec import RESPONSES_PATH, SETTINGS, Api, Dialect, ProviderSpec

_REASONING_MODELS: Final = re.compile(r"^(?!(?:ft:)?(?:chatgpt|gpt-[34]))", re.IGNORECASE)  # all but the older ones

SPEC: Final = ProviderSpec(
    name="openai",
    title="OpenAI",
    example_model="gpt-6-luna",
    litellm="openai",
    api=Api(default_url="https://api.openai.com/v1", responses_path=RESPONSES_PATH),
    dialect=Dialect(
        reasoning=REASONING_EFFORT,
        reasoning_models=_REASONING_MODELS,
        session="prompt_cache_key",  # https://developers.openai.com/docs/guides/prompt-caching
        finishes_turns=True,
    ),
    settings=(*SETTINGS, "api"),
    other_spellings={"base_url": ("OPENAI_API_BASE",)},
    known={"json_schema": True, "tools": True, "prefill": False},
)
