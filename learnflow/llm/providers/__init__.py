"""The classes of the providers. Each vendor has a file with its spec; ``registry`` has all specs, and ``build``."""

from __future__ import annotations

from ..adapter.provider import BaseProvider
from .embedded import EmbeddedProvider
from .registry import CLASSES, SPECS, VendorProvider, build

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


class OpenAIProvider(VendorProvider):
    """OpenAI's own API. See ``BaseProvider``."""

    spec = SPECS["openai"]


class AzureProvider(VendorProvider):
    """Azure OpenAI. ``model`` is the name of a deployment. See ``BaseProvider``.

    Azure's v1 API (in OpenAI's format) is used if the address contains ``/openai/v1`` or ends with
    ``/v1/chat/completions``, or if the API version is ``v1``, ``latest`` or ``preview``. Otherwise Azure's own API with
    a dated version is used.
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


_PROVIDER_CLASSES: tuple[type[BaseProvider], ...] = (EmbeddedProvider, *VendorProvider.__subclasses__())
CLASSES.update({cls.spec.name: cls for cls in _PROVIDER_CLASSES})
