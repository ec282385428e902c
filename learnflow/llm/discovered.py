"""The provider for when nothing is named: the local servers that are ready, found at the first awaited call.

Must never look before that, or use a cloud: notes do not leave a machine because a key happened to be set.
The factory hands it out.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Unpack

from . import settings
from .base import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_TEMPERATURE,
    Answering,
    Completion,
    LLMProvider,
    Options,
    Prompt,
    TextStream,
)
from .errors import LLMError, NotConfigured
from .known import Capabilities, merged
from .specs import OTHER, SPECS
from .survey import Found, survey


class DiscoveredProvider:
    """Whatever answers on this machine; looks for it once, and again as long as nothing was found."""

    def __init__(self) -> None:
        self._found: LLMProvider | None = None

    def __repr__(self) -> str:
        return f"DiscoveredProvider({self._found!r})"

    @property
    def name(self) -> str:
        """The found provider's name; "local" before one is found."""
        return self._found.name if self._found else "local"

    async def generate(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options],
    ) -> str:
        """See ``LLMProvider``; raises NotConfigured where no server is found."""
        return await (await self._provider()).generate(prompt, model, temperature, max_tokens, **more)

    async def complete(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options],
    ) -> Completion:
        """See ``LLMProvider``; raises NotConfigured where no server is found."""
        return await (await self._provider()).complete(prompt, model, temperature, max_tokens, **more)

    def stream(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options],
    ) -> TextStream:
        """See ``LLMProvider``; raises NotConfigured where no server is found."""
        answering = Answering()

        async def pieces() -> AsyncGenerator[str, None]:
            provider = await self._provider()
            async with aclosing(provider.stream(prompt, model, temperature, max_tokens, **more)) as answer:
                async for piece in answer:
                    yield piece
                answering.completion = answer.completion

        return TextStream(pieces(), answering)

    async def list_models(self) -> list[str]:
        """See ``LLMProvider``."""
        return await (await self._provider()).list_models()

    async def health_check(self) -> bool:
        """Whether a server is found and ready."""
        with suppress(LLMError):
            return await (await self._provider()).health_check()
        return False

    def get_capabilities(self) -> Capabilities:
        """Of the found provider; nothing is known before one is found, but that it is local."""
        if self._found:
            return self._found.get_capabilities()
        return merged(OTHER.capabilities, {"local": True})

    async def _provider(self) -> LLMProvider:
        if self._found is None:
            found = await survey()
            ready = [each for each in found if each.provider and each.provider.spec.local and each.health.ready]
            if not ready:
                raise nothing(found)
            # first those whose model is clear, and of them those that need not load it
            best = min(ready, key=lambda each: (each.health.model is None, bool(each.health.cold)))
            self._found = best.provider
        assert self._found is not None  # noqa: S101
        return self._found


def nothing(found: list[Found]) -> NotConfigured:
    """The error for "no provider is named, and none is there": what was tried, what to set, how to get a model."""
    tried = "; ".join(f"{each.health.provider} at {each.health.base_url}: {each.health.state}" for each in found)
    keys = [row.name for row in SPECS.values() if not row.local and settings.load_row(row).api_key]
    use = f"A key is set for {', '.join(keys)}: LLM_PROVIDER={keys[0]} would use it. " if keys else ""
    return NotConfigured(
        f"no provider is named, and no model server is ready on this machine (tried {tried})",
        hint=f"{use}Name one with LLM_PROVIDER, or get a local model: "
        "`ollama serve` and `ollama pull qwen3:0.6b`, or `llama-server -hf ggml-org/Qwen3-0.6B-GGUF`",
    )
