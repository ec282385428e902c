"""``get_provider()``: from the environment to a provider, at once, without talking to anybody.

Must never wait, connect, or choose a cloud that nobody named.
LearnFlow and the command line call it.
"""

from __future__ import annotations

from . import settings
from .base import LLMProvider
from .errors import NotConfigured
from .providers import build
from .specs import SPECS


def get_provider(name: str | None = None) -> LLMProvider:
    """The provider that ``LLM_PROVIDERS`` or ``LLM_PROVIDER`` names, or the one of the given name.

    Raises:
        NotConfigured: none is named, the name is unknown, or its address or key is missing.
    """
    chain = [str(name)] if name else settings.load().chain
    if not chain:
        raise NotConfigured(
            "no provider is named",
            hint=f"Set LLM_PROVIDER to one of {', '.join(SPECS)}, for example LLM_PROVIDER=ollama",
        )
    return build(chain[0])
