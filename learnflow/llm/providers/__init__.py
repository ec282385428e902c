"""A class for each vendor, and ``build`` for a provider by its name. Each vendor has a file with its spec.

Applications and the factory import from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from ..adapter.provider import BaseProvider
from ..provider_spec import ProviderSpec
from . import registry
from .embedded import EmbeddedProvider
from .registry import SPECS

__all__ = [
    "AnthropicProvider",
    "AzureProvider",
    "CustomProvider",
    "EmbeddedProvider",
    "FireworksProvider",
    "GeminiProvider",
    "LMStudioProvider",
    "LlamaCppProvider",
    "OllamaProvider",
    "OpenAIProvider",
    "OpenRouterProvider",
    "VLLMProvider",
    "YandexGPTProvider",
    "build",
]


class VendorProvider(BaseProvider):
    """A provider of this package, whose health checks recognise other kinds of server at its address."""

    def _kinds(self) -> Sequence[ProviderSpec]:
        return registry.kinds()


class OpenAIProvider(VendorProvider):
    """OpenAI's own API. See ``BaseProvider``."""

    spec = SPECS["openai"]


class AzureProvider(VendorProvider):
    """Azure OpenAI; ``model`` is the name of a deployment. See ``BaseProvider``.

    An address that ends in ``/openai/v1``, or an API version ``v1``, ``latest`` or ``preview``: the newer dialect.
    """

    spec = SPECS["azure"]


class OllamaProvider(VendorProvider):
    """An Ollama. See ``BaseProvider``."""

    spec = SPECS["ollama"]


class LMStudioProvider(VendorProvider):
    """LM Studio. See ``BaseProvider``."""

    spec = SPECS["lmstudio"]


class VLLMProvider(VendorProvider):
    """A vLLM. See ``BaseProvider``."""

    spec = SPECS["vllm"]


class LlamaCppProvider(VendorProvider):
    """A llama.cpp server. See ``BaseProvider``."""

    spec = SPECS["llamacpp"]


class OpenRouterProvider(VendorProvider):
    """OpenRouter. See ``BaseProvider``."""

    spec = SPECS["openrouter"]


class FireworksProvider(VendorProvider):
    """Fireworks AI. See ``BaseProvider``."""

    spec = SPECS["fireworks"]


class GeminiProvider(VendorProvider):
    """Google Gemini. See ``BaseProvider``."""

    spec = SPECS["gemini"]


class AnthropicProvider(VendorProvider):
    """Anthropic. See ``BaseProvider``."""

    spec = SPECS["anthropic"]


class YandexGPTProvider(VendorProvider):
    """YandexGPT; ``model`` is ``gpt://<folder>/yandexgpt/latest`` or the like. See ``BaseProvider``."""

    spec = SPECS["yandexgpt"]


class CustomProvider(VendorProvider):
    """Any other API that speaks OpenAI's dialect. See ``BaseProvider``."""

    spec = SPECS["custom"]


_classes: Sequence[type[BaseProvider]] = (EmbeddedProvider, *VendorProvider.__subclasses__())
CLASSES: Final = MappingProxyType({kind.spec.name: kind for kind in _classes})


def build(
    name: str,
    base_url: str | None = None,
    model: str | None = None,
    api_key: str | None = None,
    usual_kind: str | None = None,
) -> BaseProvider:
    """Return the provider of this name. What is not given is read from the environment.

    Args:
        name: a vendor's, or an endpoint's: ``<NAME>_BASE_URL`` is its address, and ``<NAME>_KIND`` its kind of server.
        base_url, model, api_key: see ``BaseProvider``.
        usual_kind: the kind of an endpoint if ``<NAME>_KIND`` is not set.

    Raises:
        NotConfigured: there is no such name, or the kind of the endpoint is not set.
    """
    spec = registry.spec_of(name, given=base_url is not None, usual_kind=usual_kind)
    return provider_of(spec, base_url, model, api_key)


def provider_of(spec: ProviderSpec, *given: str | None) -> BaseProvider:
    """Return the provider of a spec. An endpoint and a vendor of LiteLLM's table get a class of their own."""
    kind = CLASSES.get(spec.kind or spec.name, VendorProvider)
    if getattr(kind, "spec", None) is not spec:
        kind = type(f"{spec.name.title().replace('-', '').replace('_', '')}Provider", (kind,), {"spec": spec})
    return kind(*given)
