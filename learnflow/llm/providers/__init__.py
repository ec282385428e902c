"""A class of a few lines for each row, and ``build`` for a row by name.

Must never hold what data can say: that is the row.
Users and the factory import from here.
"""

import difflib
from functools import cache

from ..adapter.provider import BaseProvider
from ..errors import NotConfigured
from ..spec import SPECS
from .azure import AzureProvider
from .custom import CustomProvider
from .fireworks import FireworksProvider
from .llamacpp import LlamaCppProvider
from .lmstudio import LMStudioProvider
from .ollama import OllamaProvider
from .openai import OpenAIProvider
from .openrouter import OpenRouterProvider
from .vllm import VLLMProvider

__all__ = [
    "AzureProvider",
    "CustomProvider",
    "FireworksProvider",
    "LMStudioProvider",
    "LlamaCppProvider",
    "OllamaProvider",
    "OpenAIProvider",
    "OpenRouterProvider",
    "VLLMProvider",
    "build",
]

_CLASSES: dict[str, type[BaseProvider]] = {
    each.row: each
    for each in (
        AzureProvider,
        CustomProvider,
        FireworksProvider,
        LMStudioProvider,
        LlamaCppProvider,
        OllamaProvider,
        OpenAIProvider,
        OpenRouterProvider,
        VLLMProvider,
    )
}


def build(name: str, base_url: str | None = None, model: str | None = None, api_key: str | None = None) -> BaseProvider:
    """The provider of this name, what is not given from the environment. Raises NotConfigured for an unknown name."""
    row = name.strip().lower()
    if row not in SPECS:
        near = difflib.get_close_matches(row, SPECS, 1, cutoff=0.7)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise NotConfigured(f"there is no provider {name!r}", hint=f"{hint}LLM_PROVIDER is one of {', '.join(SPECS)}")
    return _class_of(row)(base_url, model, api_key)


@cache
def _class_of(row: str) -> type[BaseProvider]:
    """The row's class; a new row needs none."""
    return _CLASSES.get(row) or type(f"{row.title()}Provider", (BaseProvider,), {"row": row})
