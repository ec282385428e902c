"""An option: one provider of a chain with its facts, circuit breakers and probes, as one request sees it."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final

from .. import events
from ..adapter.routable import Facts, RoutableProvider, routable
from ..base import LLMProvider
from ..completion import Completion
from ..errors import LLMError
from ..process import SharedTasks
from ..replay.transport import unrecorded
from ..servers.model_catalog import MAX_AGE_S
from .breaker import REGISTRY, Breaker, BreakerRegistry, Gate, Record, Target

PROBE_S: Final = 1.0
_UNPROBED_S: Final = 15.0  # pause after a probe without a response


class _Shared(SharedTasks):
    """The state of one provider that all requests share: its tasks, and when it may be probed before a request."""

    probe_after: float = 0.0


class Option:
    """One provider of a chain. Each request has its own copy.

    Args:
        given: the provider; None if it could not be created.
        broken: why it could not be created.
        registry: of its circuit breakers.

    Attributes:
        name: of the provider.
        rank: its position in the chain. Options with the same rank are equals.
        model: the model of the request; None for the provider's own.
        failure: how it failed in this round of the request.
        refuses_prefix: it refused a prefill in this request.
    """

    def __init__(
        self, given: LLMProvider | None, broken: LLMError | None = None, registry: BreakerRegistry = REGISTRY
    ) -> None:
        self.given, self.broken, self.registry = given, broken, registry
        self.name = given.name if given else (broken and broken.provider) or "?"
        self.rank = 0
        self.model: str | None = None
        self.failure: LLMError | None = None
        self.refuses_prefix = False
        self._provider = routable(given) if given else None
        self._shared = _Shared()
        self._facts: Facts | None = None

    def at(self, rank: int) -> Option:
        """Return a copy for one request, at this rank of its chain."""
        twin = copy.copy(self)
        twin.rank, twin._facts = rank, None  # noqa: SLF001  # its own kind
        return twin

    def use(self, model: str | None) -> None:
        """Use this model, with its current facts."""
        self.model, self._facts = model, None

    @property
    def facts(self) -> Facts:
        """Return the facts at the time of the last choice."""
        if self._facts is None:
            self._facts = self.provider.facts(self.model)
        return self._facts

    @property
    def provider(self) -> RoutableProvider:
        """Return the provider. Raises LLMError if it could not be created."""
        if self._provider is None:
            raise self.broken or LLMError("no provider")
        return self._provider

    @property
    def replays(self) -> bool:
        """Return whether the provider answers from cassettes."""
        return not self.broken and self.facts.replays

    @property
    def prefills(self) -> bool:
        """Return whether the provider supports prefill, and did not refuse one in this request."""
        return not self.broken and self.facts.prefills and not self.refuses_prefix

    @property
    def cost(self) -> tuple[float, float] | None:
        """Return US dollars per million tokens of the prompt and of the answer; None if unknown."""
        return self.facts.capabilities["cost"]

    @property
    def cold(self) -> bool:
        """Return whether the server has to load the model first."""
        return self.facts.cold

    @property
    def distance(self) -> int:
        """Return 0 for this machine or a private network, else 1."""
        return 0 if not self.broken and self.facts.capabilities["local"] else 1

    @property
    def limit(self) -> int | None:
        """Return the concurrency limit; None if unlimited, and for cassettes."""
        return None if self.broken or self.facts.replays else self.facts.concurrency_limit

    @property
    def address(self) -> str:
        """Return the key of the queue and the circuit breakers of the server."""
        return f"{self.name}#{id(self._shared)}" if self.broken else self.facts.address

    @property
    def target(self) -> Target:
        """Return the key of the circuit breaker of the model."""
        return Target(self.address, self.model or (self._provider.model if self._provider else None))

    @property
    def gate(self) -> Gate:
        """Return what the circuit breakers allow now. Cassettes ignore them: breakers depend on time."""
        return "closed" if self.replays else self.registry.gate(self.target)

    @property
    def ready(self) -> bool:
        """Return whether a request may be sent."""
        return self.gate in ("closed", "trial")

    @property
    def opened(self) -> Sequence[Breaker]:
        """Return the open circuit breakers; the first one stays open longest."""
        return self.registry.open_breakers(self.target)

    @property
    def record(self) -> Record:
        """Return the record of the attempts so far."""
        return self.registry.record(self.target)

    def succeeded(self, completion: Completion, began: float) -> None:
        """Record the completion of an attempt that ``began`` at this time of the registry's clock."""
        if self.registry.answer(self.target, completion, began):
            events.emit(events.BreakerClosed(provider=self.name, model=self.target.model))

    def failed(self, error: LLMError) -> None:
        """Record a failure."""
        if opened := self.registry.fail(self.target, error):
            error, seconds = self.registry.breakers[opened].error, self.registry.breakers[opened].period
            events.emit(events.BreakerOpened(provider=self.name, model=opened.model, error=error, seconds=seconds))

    def abandon(self) -> None:
        """Record an attempt without an outcome."""
        self.registry.settle(self.target)

    def begin(self) -> None:
        """Begin a probe or a trial."""
        for breaker in self.opened:
            breaker.busy = True

    async def update(self, within: float) -> None:
        """Probe the provider, unless its facts are new. Those of a cloud do not change."""
        now, shared = asyncio.get_running_loop().time(), self._shared
        if now >= shared.probe_after:
            health = await asyncio.shield(shared.start("update", lambda: self.provider.refresh(within)))
            age_s = _UNPROBED_S if health.state == "down" else math.inf if self.distance else MAX_AGE_S
            shared.probe_after = now + age_s
            self.use(self.model)

    def recover(self) -> None:
        """Start a probe or a load of the model in the background, if the option requires one before a request."""
        if self.gate == "probe":
            self.probe()
        elif self.gate == "closed" and self.cold:
            self.load()

    def load(self) -> asyncio.Task[LLMError | None]:
        """Load the model in the background, or wait for a load. The task returns the error if it failed."""

        async def load() -> LLMError | None:
            try:
                await self.provider.warm_up(self.model)
            except LLMError as error:
                return error
            return None

        return self._shared.start("load", load)

    def probe(self) -> asyncio.Task[bool]:
        """Probe whether the provider is ready. A probe costs nothing, loads no model and sends no user text."""

        async def probing() -> bool:
            try:
                with unrecorded():  # probes depend on time
                    ready = self.replays or (await self.provider.refresh(PROBE_S)).ready
            except BaseException:
                self.abandon()
                raise
            self.registry.probed(self.target, ready=ready)
            if not self.opened:
                events.emit(events.BreakerClosed(provider=self.name, model=self.target.model))
            return ready

        if self._shared.is_idle("probe"):
            self.begin()
        return self._shared.start("probe", probing)


def chain_name(options: Iterable[Option]) -> str:
    """Return the name of a chain: equals joined by ``+``, ranks by ``,``, as in LLM_PROVIDERS."""
    ranks = groupby(options, key=lambda option: option.rank)
    return ",".join("+".join(option.name for option in rank) for _, rank in ranks) or "local"
