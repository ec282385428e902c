"""The same calls without ``async``, for scripts, Flask, Django and notebooks.

Must never decide anything: each call runs in an event loop in a thread of its own, whether or not one runs here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Any, Self, Unpack

from . import factory
from .background import BACKGROUND
from .base import DEFAULT_MAX_TOKENS, DEFAULT_TEMPERATURE, LLMProvider, Options, Prompt
from .capabilities import Capabilities
from .completion import Completion, Event, Parsed
from .stream import TextStream as AsyncTextStream


class TextStream:
    """An iterator over the text of an answer; leaving it, or Ctrl-C, ends the request at the server.

    Attributes:
        completion: the whole answer, once the last piece was read. Raises InvalidRequest before.
    """

    def __init__(self, stream: AsyncTextStream) -> None:
        self._stream = stream
        self._pieces: Iterator[str] | None = None
        self._reading: Iterator[Any] | None = None  # whichever it is read by

    @property
    def completion(self) -> Completion:
        """The whole answer. Raises InvalidRequest while the stream has not ended."""
        return self._stream.completion

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if self._pieces is None:
            self._reading = self._pieces = BACKGROUND.pieces(_pieces(self._stream))
        return next(self._pieces)

    def events(self) -> Iterator[Event]:
        """Everything that happens, as ``learnflow.llm.TextStream.events``; instead of the text, not beside it."""
        events = BACKGROUND.pieces(self._stream.events())
        self._reading = events
        return events

    def close(self) -> None:
        """End it; the server stops."""
        if isinstance(self._reading, Generator):
            self._reading.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def _pieces(stream: AsyncTextStream) -> AsyncGenerator[str, None]:
    async with stream:
        async for piece in stream:
            yield piece


class Provider:
    """A provider whose calls wait. Every error is an ``LLMError``, as with ``LLMProvider``.

    Args:
        provider: who answers.
    """

    def __init__(self, provider: LLMProvider) -> None:
        self.provider = provider

    @property
    def name(self) -> str:
        """See ``LLMProvider``, as for what follows."""
        return self.provider.name

    def generate(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options],
    ) -> str:
        """The text of the answer. Raises LLMError."""
        return BACKGROUND.wait(self.provider.generate(prompt, model, temperature, max_tokens, **more))

    def stream(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options],
    ) -> TextStream:
        """The same, piece by piece; nothing is sent before the first one is asked for."""
        return TextStream(self.provider.stream(prompt, model, temperature, max_tokens, **more))

    def complete(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options[Parsed]],
    ) -> Completion[Parsed]:
        """The answer and everything known about it. Raises LLMError."""
        return BACKGROUND.wait(self.provider.complete(prompt, model, temperature, max_tokens, **more))

    def list_models(self) -> list[str]:
        """The names that ``model=`` may take. Raises LLMError."""
        return BACKGROUND.wait(self.provider.list_models())

    def health_check(self) -> bool:
        """Whether it would answer now."""
        return BACKGROUND.wait(self.provider.health_check())

    def close(self) -> None:
        """Close the connections that nobody uses; see ``BaseProvider.aclose``."""
        if aclose := getattr(self.provider, "aclose", None):  # an application's own provider may have none
            BACKGROUND.wait(aclose())

    def get_capabilities(self) -> Capabilities:
        """What is known about it, at once."""
        return self.provider.get_capabilities()


def get_provider(name: str | None = None) -> Provider:
    """As ``learnflow.llm.get_provider``, with calls that wait.

    Raises:
        NotConfigured: a name is unknown, or none of them has its address and key.
    """
    return Provider(factory.get_provider(name))


__all__ = ["Provider", "TextStream", "get_provider"]
