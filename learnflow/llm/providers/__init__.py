"""A file for each vendor: its row, its class, its probe, and what only it does; ``build`` for one by its name.

Users and the factory import from here.
"""

from .anthropic import AnthropicProvider
from .azure import AzureProvider
from .custom import CustomProvider
from .embedded import EmbeddedProvider
from .fireworks import FireworksProvider
from .gemini import GeminiProvider
from .llamacpp import LlamaCppProvider
from .lmstudio import LMStudioProvider
from .ollama import OllamaProvider
from .openai import OpenAIProvider
from .openrouter import OpenRouterProvider
from .registry import build
from .vllm import VLLMProvider
from .yandexgpt import YandexGPTProvider

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
