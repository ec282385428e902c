"""The classes of the providers, and ``build``, which creates a provider by its name. Each vendor has a file."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Final

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
    """Base class of the vendors. Its probes recognise every kind of server."""

    def _server_kinds(self) -> Sequence[ProviderSpec]:
        return registry.KINDS


class OpenAIProvider(VendorProvider):
    """OpenAI's own API. See ``BaseProvider``."""

    spec = SPECS["openai"]


class AzureProvider(VendorProvider):
    """Azure OpenAI. ``model`` is the name of a deployment. See ``BaseProvider``.

    OpenAI's API is used if the address contains ``/openai/v1``, or if the API version is ``v1``, ``latest`` or
    ``preview``. Otherwise it is Azure's API with a dated version.
    """

    spec = SPECS["azure"]


class OllamaProvider(VendorProvider):
    """Ollama. See ``BaseProvider``."""

    spec = SPECS["ollama"]


class LMStudioProvider(VendorProvider):
    """LM Studio. See ``BaseProvider``."""

    spec = SPECS["lmstudio"]


class VLLMProvider(VendorProvider):
    """vLLM. See ``BaseProvider``."""

    spec = SPECS["vllm"]


class LlamaCppProvider(VendorProvider):
    """llama.cpp's server. See ``BaseProvider``."""

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
    """YandexGPT. ``model`` is a URI like ``gpt://<folder>/yandexgpt/latest``. See ``BaseProvider``."""

    spec = SPECS["yandexgpt"]


class CustomProvider(VendorProvider):
    """Any other server with OpenAI's API. See ``BaseProvider``."""

    spec = SPECS["custom"]


_classes: Sequence[type[BaseProvider]] = (EmbeddedProvider, *VendorProvider.__subclasses__())
CLASSES: Final = MappingProxyType({kind.spec.name: kind for kind in _classes})


def build(
    name: str,
    base_url: str | None = None,
    model: str | None = None,
    api_key: str | None = None,
    default_kind: str | None = None,
    **others: Any,
) -> BaseProvider:
    """Create a provider. The defaults of the arguments come from the environment.

    Args:
        name: the name of a vendor, or of an endpoint with ``<NAME>_BASE_URL`` and ``<NAME>_KIND``.
        base_url, model, api_key: see ``BaseProvider``.
        default_kind: the kind of the endpoint if ``<NAME>_KIND`` is not set.
        others: the other keywords of the provider's class.

    Returns:
        The provider. No request was sent.

    Raises:
        NotConfigured: the name is unknown, or the endpoint has no kind, address or key.
    """
    spec = registry.spec_of(name, has_address=base_url is not None, default_kind=default_kind)
    return provider_of(spec, base_url, model, api_key, **others)


def provider_of(spec: ProviderSpec, *arguments: str | None, **keywords: Any) -> BaseProvider:
    """Create a provider with this spec. A spec without a class (an endpoint, LiteLLM's table) gets a new class."""
    kind = CLASSES.get(spec.kind or spec.name, VendorProvider)
    if getattr(kind, "spec", None) is not spec:
        kind = type(f"{spec.name.title().replace('-', '').replace('_', '')}Provider", (kind,), {"spec": spec})
    return kind(*arguments, **keywords)
