"""An endpoint that is called by a name of the operator's, and is asked what it is before its first request."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any, Final

from .. import errors, events
from ..adapter.provider import BaseProvider
from ..adapter.routable import Facts
from ..base import Attempt, Call
from ..capabilities import Health
from ..completion import Completion
from ..errors import LLMError, bare
from ..health.inventory import LOOK_S
from ..spec import Model, ProviderSpec, named
from ..stream import Emit, Work

_WITHIN_S: Final = 5.0  # to be asked what it is before a request, which waits for it


def _its(name: str) -> Any:
    return property(lambda endpoint: getattr(endpoint.provider, name))


class EndpointProvider(BaseProvider):
    """A server whose kind nobody said. See ``BaseProvider``.

    Taken for a plain API, an Ollama would lose the beginnings of long prompts, and a llama.cpp the exact continuation:
    so it is looked at first. One that does not answer is down, not a plain API; one that turns out to be something else
    than it was is looked at again.

    Args:
        plain: the provider for an API that is none of the known kinds.
    """

    name, spec, endpoint = _its("name"), _its("spec"), _its("endpoint")
    model, vision_model = _its("model"), _its("vision_model")
    inventory, runner = _its("inventory"), _its("runner")
    get_capabilities, trouble = _its("get_capabilities"), _its("trouble")

    def __init__(self, plain: BaseProvider) -> None:  # not the base's: it is asked for everything
        self._plain = plain
        self.provider = plain
        self._known = False
        self._asking: asyncio.Task[ProviderSpec | None] | None = None

    @property
    def address(self) -> str:
        """See ``BaseProvider``; it stays the same when its kind is known."""
        return self._plain.address

    def facts(self, model: str | None) -> Facts:
        """See ``RoutableProvider``; while its kind is unknown, it may have to load a model, so that it is probed."""
        facts = self.provider.facts(model)
        return replace(facts, address=self.address, loads=facts.loads or not self._is_known)

    @property
    def _is_known(self) -> bool:
        return self._known and not self.provider.runner.unexpected

    def attempt(self, call: Call, attempt: Attempt) -> Work:
        """See ``BaseProvider``."""
        return self.provider.attempt(call, attempt) if self._is_known else partial(self._asked, call, attempt)

    async def _asked(self, call: Call, attempt: Attempt, emit: Emit) -> Completion:
        loop = asyncio.get_running_loop()
        started, limit = loop.time(), call.options.get("timeout")
        bounds = [bound for bound in (_WITHIN_S, limit, attempt.patience) if isinstance(bound, int | float)]
        try:
            provider = await self._identified(min(bounds))
        except LLMError as error:
            late = limit is not None and loop.time() - started >= limit
            failure = errors.DeadlineExceeded(error.what, provider=self.name) if late else error
            sampling, sent = {"temperature": call.temperature, "max_tokens": call.max_tokens}, call.model or self.model
            about = events.About(self.name, self.endpoint.base, sampling, attempt, lambda: (sent, call.max_tokens))
            return await events.attempted(about, partial(_raise, failure), emit)
        if limit is not None:
            call = replace(call, options={**call.options, "timeout": max(0.001, limit - (loop.time() - started))})
        return await provider.attempt(call, attempt)(emit)

    async def _identified(self, within: float) -> BaseProvider:
        """The provider for what is there; many first calls ask once. Raises an LLMError where nobody is."""
        if not self._is_known:
            loop = asyncio.get_running_loop()
            if self._asking is None or self._asking.done() or self._asking.get_loop() is not loop:
                self._asking = asyncio.create_task(self._plain.inventory.prober.kind(max(within, _WITHIN_S)))
            asking = self._asking
            try:
                async with asyncio.timeout(within):
                    kind = await asyncio.shield(asking)
            except TimeoutError:
                self._asking = None
                raise bare(self._plain.runner.explained(_late(self.spec), None)) from None
            except LLMError as error:
                raise bare(self._plain.runner.explained(error, None))  # noqa: B904  # that is what it does
            if not self._is_known:
                self.provider = self._plain.of_kind(named(kind, self.name)) if kind else self._plain
                self._known, self.provider.runner.unexpected = True, False
        return self.provider

    async def list_models(self) -> list[str]:
        """See ``BaseProvider``."""
        return await (await self._identified(LOOK_S)).list_models()

    async def models(self, within: float = LOOK_S) -> list[Model]:
        """See ``BaseProvider``."""
        return await (await self._identified(within)).models(within)

    async def refresh(self, within: float = LOOK_S) -> Health:
        """See ``BaseProvider``; a server of another kind than before is found out."""
        loop = asyncio.get_running_loop()
        over = loop.time() + within
        for _ in range(2):
            try:
                provider = await self._identified(max(0.1, over - loop.time()))
            except LLMError:
                provider = self.provider
            health = await provider.refresh(max(0.1, over - loop.time()))
            if health.state != "misconfigured" or not self._known or provider is self._plain:
                break
            self._known = False
        return health

    async def prepare(self) -> None:
        """See ``BaseProvider``."""
        await self.provider.prepare()

    async def warm_up(self, model: str | None = None, **more: Any) -> None:
        """See ``BaseProvider``."""
        await (await self._identified(LOOK_S)).warm_up(model, **more)

    def __repr__(self) -> str:
        return f"EndpointProvider({self.provider!r})"


async def _raise(error: LLMError, emit: Emit) -> Completion:  # noqa: ARG001
    raise error


def _late(spec: ProviderSpec) -> LLMError:
    hint = f"It may be busy: look into its log, or set {spec.variable('kind')} to what it is"
    return errors.FirstTokenTimeout("it did not say in time which kind of server it is", hint=hint)
