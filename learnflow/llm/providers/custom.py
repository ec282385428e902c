"""Any OpenAI-compatible server that has no file of its own in this folder."""

from __future__ import annotations

from typing import Final

from ..parameters import COMMON_KEYWORDS, LOCAL_SAMPLING, REASONING_EFFORT
from ..provider_spec import CHAT_PATH, RESPONSES_PATH, SETTINGS, Api, Dialect, ProviderSpec

SPEC: Final = ProviderSpec(
    name="custom",
    title="OpenAI-compatible server",
    tested_versions="llama.cpp, Ollama behind it",
    litellm_provider="hosted_vllm",
    local=True,
    api=Api(responses_path=RESPONSES_PATH),
    settings=(*SETTINGS, "api"),
    dialect=Dialect(
        chat_path_without_litellm=CHAT_PATH, parameters=COMMON_KEYWORDS | LOCAL_SAMPLING, reasoning=REASONING_EFFORT
    ),
    capability_overrides={"cost": None},
)
