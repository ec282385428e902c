"""An endpoint that is called by a name of the operator's, and is asked what it is before its first request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from .. import events
from ..adapter.provider import BaseProvider
from ..base import FIRST, Answering, Attempt, Call, TextStream
from ..capabilities import Health
from ..errors import LLMError, bare
from ..health.inventory import LOOK_S, QUICK_S
from ..spec import Model, ProviderSpec


def _its(name: str) -> Any:
    return property(lambda endpoint: getattr(endpoint.provider, name))


class EndpointProvider(BaseProvider):
    """A server whose kind nobody said. See ``BaseProvider``.

    Taken for a plain API, an Ollama would lose the beginnings of long prompts, and a llama.cpp the exact continuation:
    so it is looked at first. One that does not answer is down, not a plain API.

    Args:
        make: makes the provider for a row.
        plain: the row for an API that is none of the known kinds.
    """

    name, address, spec, endpoint = _its("name"), _its("address"), _its("spec"), _its("endpoint")
    model, vision_model = _its("model"), _its("vision_model")
    inventory, runner = _its("inventory"), _its("runner")
    continues, replays, waits = _its("continues"), _its("replays"), _its("waits")
    cold, has, names, can, permitted = _its("cold"), _its("has"), _its("names"), _its("can"), _its("permitted")
    get_capabilities = _its("get_capabilities")

    def __init__(self, make: Callable[[ProviderSpec], BaseProvider], plain: ProviderSpec) -> None:  # not the base's
        self._make = make
        self.provider = make(plain)
        self._known = False

    @property
    def loads(self) -> bool:
        """See ``RoutableProvider``; a router looks at it first while nobody knows."""
        return not self._known or self.provider.loads

    def attempt(self, call: Call, attempt: Attempt = FIRST) -> TextStream:
        """See ``BaseProvider``."""
        answering = Answering()
        return TextStream(self._pieces(call, attempt, answering), answering)

    async def _pieces(self, call: Call, attempt: Attempt, answering: Answering) -> AsyncGenerator[str, None]:
        started = asyncio.get_running_loop().time()
        try:
            provider = await self._identified(QUICK_S)
        except LLMError as error:
            seconds = asyncio.get_running_loop().time() - started
            model = call.model or self.model
            numbers = {"attempt": attempt.number, "request": attempt.request}
            events.ended(self.name, model, error, total_s=seconds, max_tokens=call.max_tokens, **numbers)
            raise
        async with aclosing(provider.attempt(call, attempt).nested()) as stream:
            async for piece in stream:
                yield piece
            answering.completion = stream.completion

    async def _identified(self, within: float) -> BaseProvider:
        """The provider for what is there. Raises an LLMError where nobody is."""
        if not self._known:
            try:
                kind = await self.provider.inventory.prober.kind(within)
            except LLMError as error:
                raise bare(self.provider.runner.explained(error, None))  # noqa: B904  # that is what it does
            if kind:
                self.provider = self._make(kind)
            self._known = True
        return self.provider

    async def list_models(self) -> list[str]:
        """See ``BaseProvider``."""
        return await (await self._identified(LOOK_S)).list_models()

    async def models(self, within: float = LOOK_S) -> list[Model]:
        """See ``BaseProvider``."""
        return await (await self._identified(within)).models(within)

    async def refresh(self, within: float = LOOK_S) -> Health:
        """See ``BaseProvider``."""
        try:
            provider = await self._identified(within)
        except LLMError:
            provider = self.provider
        return await provider.refresh(within)

    async def prepare(self) -> None:
        """See ``BaseProvider``."""
        await self.provider.prepare()

    async def warm_up(self, model: str | None = None, **more: Any) -> None:
        """See ``BaseProvider``."""
        await (await self._identified(LOOK_S)).warm_up(model, **more)

    def __repr__(self) -> str:
        return f"EndpointProvider({self.provider!r})"
