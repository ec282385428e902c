"""Any other API that speaks OpenAI's dialect."""

from __future__ import annotations

from typing import Final

from ..capabilities import unknown
from ..provider_spec import ALWAYS, LOCAL_SAMPLING, Dialect, ProviderSpec, effort

SPEC: Final = ProviderSpec(
    name="custom",
    title="OpenAI-compatible server",
    evidence="server",
    seen="llama.cpp, Ollama behind it",
    litellm="hosted_vllm",
    local=True,
    dialect=Dialect(parameters=ALWAYS | LOCAL_SAMPLING, reasoning=effort()),
    capabilities=unknown(local=True, cost=None),
)
