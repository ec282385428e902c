"""Yandex Cloud's language models, at their OpenAI-compatible address (yandex.cloud/docs, read 2026-11).

A model's name contains the id of a cloud folder: ``gpt://<folder>/yandexgpt/latest``. The API key belongs to a service
account.
"""

from __future__ import annotations

from typing import Final

from ..parameters import COMMON_KEYWORDS
from ..provider_spec import Api, Dialect, ProviderSpec

SPEC: Final = ProviderSpec(
    name="yandexgpt",
    title="YandexGPT",
    example_model="gpt://<folder>/yandexgpt/latest",
    litellm_provider="hosted_vllm",
    api=Api(default_url="https://llm.api.cloud.yandex.net/v1", key_scheme="Api-Key", lists_all_models=False),
    dialect=Dialect(
        content_parts=frozenset({"text"}), parameters=(COMMON_KEYWORDS | {"temperature", "max_tokens"}) - {"reasoning"}
    ),
    other_variable_names={"api_key": ("YANDEX_API_KEY", "YC_API_KEY")},
    capability_overrides={"vision": False},
)
