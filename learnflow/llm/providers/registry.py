"""Every vendor by its name: rows and classes, and ``build`` for one of them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ..adapter.provider import BaseProvider
from ..errors import NotConfigured
from ..spec import ProviderSpec
from .azure import AzureProvider
from .custom import CustomProvider
from .fireworks import FireworksProvider
from .llamacpp import LlamaCppProvider
from .lmstudio import LMStudioProvider
from .ollama import OllamaProvider
from .openai import OpenAIProvider
from .openrouter import OpenRouterProvider
from .vllm import VLLMProvider

# In the order in which people are shown them.
CLASSES: Final[Mapping[str, type[BaseProvider]]] = MappingProxyType(
    {
        each.spec.name: each
        for each in (
            OpenAIProvider,
            AzureProvider,
            OllamaProvider,
            LMStudioProvider,
            VLLMProvider,
            LlamaCppProvider,
            OpenRouterProvider,
            FireworksProvider,
            CustomProvider,
        )
    }
)
SPECS: Final[Mapping[str, ProviderSpec]] = MappingProxyType({name: each.spec for name, each in CLASSES.items()})

# What speaks the API and is none of the others.
OTHER: Final = CustomProvider.spec

# Those that tell by their pages what they are. llama.cpp first: its header is on every page, and it has imitated
# others' pages.
KINDS: Final = (LlamaCppProvider.spec, OllamaProvider.spec, LMStudioProvider.spec, VLLMProvider.spec)


def build(name: str, base_url: str | None = None, model: str | None = None, api_key: str | None = None) -> BaseProvider:
    """The provider of this name, what is not given from the environment. Raises NotConfigured for an unknown name."""
    row = name.strip().lower()
    if row not in CLASSES:
        near = difflib.get_close_matches(row, SPECS, 1, cutoff=0.7)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise NotConfigured(f"there is no provider {name!r}", hint=f"{hint}LLM_PROVIDER is one of {', '.join(SPECS)}")
    return CLASSES[row](base_url, model, api_key)
