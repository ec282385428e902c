"""Anthropic, at its OpenAI-compatible address (platform.claude.com/docs/en/api/openai-sdk, read 2026-11).

The server silently ignores ``seed``, penalties and ``reasoning_effort``, so this spec does not support them. The server
supports ``thinking``. With ``strict``, the server enforces a JSON schema. It does not enforce the mode ``json_object``.
Newer models reject a prefill (a last message of the assistant, which the model continues).
"""

from __future__ import annotations

from typing import Final

from ..parameters import COMMON_KEYWORDS
from ..provider_spec import Api, Dialect, ProviderSpec

SPEC: Final = ProviderSpec(
    name="anthropic",
    title="Anthropic",
    example_model="claude-sonnet-4-6",
    litellm_provider="hosted_vllm",  # uses OpenAI's API; LiteLLM's "anthropic" uses Anthropic's API
    api=Api(default_url="https://api.anthropic.com/v1", lists_all_models=False),
    dialect=Dialect(
        content_parts=frozenset({"text", "image_url"}),  # no audio, which "will be ignored and stripped"
        parameters=COMMON_KEYWORDS | {"temperature", "max_tokens", "top_p", "stop"},
        reasoning={False: {"thinking": {"type": "disabled"}}},  # no field sets a level of reasoning
        schema_modes=("json_schema", "prompt"),
    ),
    other_variable_names={"base_url": ("ANTHROPIC_API_BASE",)},
)
