"""A provider with blocking calls, for scripts, Flask, Django and notebooks.

Every call runs in the event loop of a background thread. Therefore, calls also work if the calling thread runs an event
loop, as in a notebook.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from typing import Self, Unpack, cast

from . import factory
from .adapter.routable import text_stream, to_completion
from .background import BACKGROUND, BlockingIterator
from .base import DEFAULT_MAX_TOKENS, DEFAULT_TEMPERATURE, LLMProvider, Options, Prompt, ProviderOptions
from .capabilities import Capabilities
from .completion import Completion, Event, Parsed
from .stream import TextStream as AsyncTextStream


class TextStream:
    """An iterator over the text of an answer. The end of a ``with`` block, or Ctrl-C, cancels the request."""

    def __init__(self, stream: AsyncTextStream) -> None:
        self._stream = stream
        # The cast is safe, because ``iterate`` uses only __anext__ and aclose
        self._text = BACKGROUND.iterate(cast(AsyncGenerator[str, None], stream))
        self._events: BlockingIterator[Event] | None = None

    def __repr__(self) -> str:
        return repr(self._stream)

    @property
    def completion(self) -> Completion:
        """Return the completion. Raise InvalidRequest if the stream is unfinished or failed."""
        return self._stream.completion

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(self._text)

    def events(self) -> Iterator[Event]:
        """Return an iterator over the events, see ``learnflow.llm.TextStream.events``. Read either events or text."""
        self._events = BACKGROUND.iterate(self._stream.events())
        return self._events

    def close(self) -> None:
        """Close the connection, so that the server stops generating. If another thread reads, its iteration ends."""
        if self._text.is_inherited:
            return  # after a fork, the request belongs to the parent process
        BACKGROUND.run(self._stream.aclose())
        (self._events or self._text).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Provider:
    """A provider with blocking calls. Every error is an ``LLMError``.

    ``LLMProvider`` describes the arguments of the calls in detail.

    Args:
        provider: the provider to call.
    """

    def __init__(self, provider: LLMProvider) -> None:
        self.provider = provider

    def __repr__(self) -> str:
        return f"sync.Provider({self.provider!r})"

    @property
    def name(self) -> str:
        """Return the provider's name in settings, logs and errors."""
        return self.provider.name

    def generate(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options],
    ) -> str:
        """Send a prompt and return the text of the answer.

        Args:
            prompt: a text, or OpenAI-style messages.
            model: the name of the model; None for the default.
            temperature: the sampling temperature.
            max_tokens: the maximum length of the answer, in tokens.
            more: keywords of ``Options``, for example ``system`` or ``timeout`` (seconds). Tools are not supported.

        Returns:
            The complete text. An incomplete answer raises an error.

        Raises:
            InvalidRequest: a keyword or a value is invalid. Nothing was sent.
            LLMError: no provider returned a complete answer. ``.partial`` has the text that arrived.
        """
        return BACKGROUND.run(self.provider.generate(prompt, model, temperature, max_tokens, **more))

    def stream(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options],
    ) -> TextStream:
        """Return a stream of the answer. The request is sent when the first piece is read.

        Args:
            prompt: a text, or OpenAI-style messages.
            model: the name of the model; None for the default.
            temperature: the sampling temperature.
            max_tokens: the maximum length of the answer, in tokens.
            more: keywords of ``Options``, for example ``tools`` or ``timeout`` (seconds).

        Returns:
            The stream. Iterating it yields text, ``events()`` yields every event. ``completion`` is set at the end.

        Raises:
            InvalidRequest: a keyword or a value is invalid.
            Unsupported: the provider does not support a keyword.
            LLMError: while the stream is read, if no provider completes the answer. ``.partial`` has the text that
                arrived.
        """
        stream = self.provider.stream(prompt, model, temperature, max_tokens, **more)
        return TextStream(text_stream(stream, self.name, model, max_tokens))

    def complete(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options[Parsed]],
    ) -> Completion[Parsed]:
        """Send a prompt and return the answer with its metadata.

        Args:
            prompt: a text, or OpenAI-style messages.
            model: the name of the model; None for the default.
            temperature: the sampling temperature.
            max_tokens: the maximum length of the answer, in tokens.
            more: keywords of ``Options``, for example ``tools``, ``response_format`` or ``timeout`` (seconds).

        Returns:
            The completion. ``response_format=Quiz`` makes it a ``Completion[Quiz]``, whose ``parsed`` is a ``Quiz``.

        Raises:
            InvalidRequest: a keyword or a value is invalid. Nothing was sent.
            LLMError: no provider returned a complete answer. ``.partial`` has the text that arrived.
        """
        completion = BACKGROUND.run(self.provider.complete(prompt, model, temperature, max_tokens, **more))
        return to_completion(completion, self.name, model)

    def list_models(self) -> list[str]:
        """Return the names of the models, for ``model=``. Raise LLMError if no provider responds."""
        return BACKGROUND.run(self.provider.list_models())

    def health_check(self) -> bool:
        """Probe the server. Return whether the provider is ready for a request."""
        return BACKGROUND.run(self.provider.health_check())

    def close(self) -> None:
        """Close idle connections; see ``BaseProvider.aclose``."""
        if aclose := getattr(self.provider, "aclose", None):  # an application's own provider may have no aclose()
            BACKGROUND.run(aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get_capabilities(self) -> Capabilities:
        """Return the provider's capabilities, without a request. Unknown values are None."""
        return self.provider.get_capabilities()


def get_provider(name: str | None = None, **keywords: Unpack[ProviderOptions]) -> Provider:
    """Return a provider with blocking calls; see ``learnflow.llm.get_provider``.

    Args:
        name: the name of a provider, or several names separated by commas; None to use the configured providers.
        keywords: the keywords of ``BaseProvider``, such as ``base_url``. They require exactly one provider.

    Returns:
        The provider. No request was sent.

    Raises:
        NotConfigured: a name is unknown, every provider lacks its address or its key, or a keyword is invalid.
    """
    return Provider(factory.get_provider(name, **keywords))


__all__ = ["Provider", "TextStream", "get_provider"]
