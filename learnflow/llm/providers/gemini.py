"""Google Gemini, at its OpenAI-compatible address (ai.google.dev/gemini-api/docs/openai, read 2026-11)."""

from __future__ import annotations

from typing import Final

from ..parameters import COMMON_KEYWORDS, REASONING_EFFORT, SAMPLING
from ..provider_spec import Api, Dialect, ProviderSpec

SPEC: Final = ProviderSpec(
    name="gemini",
    title="Google Gemini",
    example_model="gemini-3.5-flash",
    litellm_provider="hosted_vllm",  # uses OpenAI's API; LiteLLM's "gemini" uses Google's API
    api=Api(
        default_url="https://generativelanguage.googleapis.com/v1beta/openai",
        api_path="/v1beta/openai",
        lists_all_models=False,  # all listed names begin with "models/", but requests can omit this prefix
    ),
    dialect=Dialect(
        # The server rejects an unknown field with a 400 ("Cannot find field").
        parameters=(COMMON_KEYWORDS | SAMPLING) - {"seed", "frequency_penalty", "presence_penalty"},
        reasoning=REASONING_EFFORT,
        litellm_marks_reasoning=True,
    ),
    other_variable_names={"base_url": ("GEMINI_API_BASE",), "api_key": ("GOOGLE_API_KEY",)},
)
