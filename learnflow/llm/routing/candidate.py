"""A candidate for a request: one provider of a chain, with its facts, circuit breakers and probes.

A chain is the providers of a router, in order. Facts are the known properties of a provider and its model.
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Iterable
from itertools import groupby
from typing import Final

from .. import events
from ..adapter.routable import Facts, RoutableProvider, exception_error, routable
from ..base import LLMProvider
from ..capabilities import default_capabilities
from ..completion import Completion
from ..errors import LLMError
from ..process import SharedTasks
from ..replay.transport import pause_recording
from ..servers.model_catalog import MAX_AGE_S
from .breaker import REGISTRY, Breaker, BreakerKey, BreakerRegistry, BreakerState, Statistics

PROBE_S: Final = 1.0  # timeout of a probe
_PROBE_PAUSE_S: Final = 15.0  # after a probe that got no response


class _SharedState(SharedTasks):
    """The state of a provider that all requests share: its running probes and loads, and the time of the next probe."""

    next_probe_at: float = 0.0


class Candidate:
    """One provider of a chain. Each request has its own copy.

    Args:
        original: the provider as the application passed it, without a wrapper, or the error of its creation.
        registry: the registry with the circuit breakers.

    Attributes:
        creation_error: the reason why the provider could not be created; None if it was created.
        name: the name of the provider.
        rank: the position in the chain. Equal providers have the same rank.
        model: the model for the request; None for the provider's default model.
        failure: the last failure in this request; None before an attempt, or if the candidate may be tried again.
        rejects_prefill: the server rejected a prefill in this request.
        deadline_s: the time limit of each attempt in seconds; None without one. It is the shortest ``deadline=`` of the
            routers that contain the provider.
    """

    def __init__(self, original: LLMProvider | LLMError, registry: BreakerRegistry = REGISTRY) -> None:
        self.creation_error = original if isinstance(original, LLMError) else None
        self.original = None if isinstance(original, LLMError) else original
        self.name = original.provider or "?" if isinstance(original, LLMError) else original.name
        self.registry = registry
        self.rank = 0
        self.model: str | None = None
        self.failure: LLMError | None = None
        self.rejects_prefill = False
        self.deadline_s: float | None = None
        self._provider = routable(self.original) if self.original else None
        self._shared = _SharedState()
        self._facts: Facts | None = None

    def copy_at(self, rank: int) -> Candidate:
        """Return a copy at this rank, with current facts."""
        candidate = copy.copy(self)
        candidate.rank = rank
        candidate.refresh_facts()
        return candidate

    def set_model(self, model: str | None) -> None:
        """Set the model, and refresh the facts."""
        self.model, self._facts = model, None

    def refresh_facts(self) -> None:
        """Discard the facts, so that ``facts`` reads them again."""
        self._facts = None

    @property
    def facts(self) -> Facts:
        """Return the facts about the provider and its model. They change only after ``refresh_facts``."""
        if self._facts is None:
            self._facts = self._provider.facts(self.model) if self._provider else _facts_without_provider(self.name)
        return self._facts

    @property
    def provider(self) -> RoutableProvider:
        """Return the provider. Raise LLMError if it could not be created."""
        if self._provider is None:
            raise self.creation_error or LLMError("no provider")
        return self._provider

    @property
    def prefills(self) -> bool:
        """Return whether the provider supports prefill, and did not reject one in this request."""
        return self.facts.prefills and not self.rejects_prefill

    @property
    def distance(self) -> int:
        """Return 0 for this machine or a private network, else 1."""
        return 0 if self.facts.capabilities["local"] else 1

    @property
    def concurrency_limit(self) -> int | None:
        """Return the concurrency limit; None if unlimited. Cassettes (recorded responses) have none."""
        return None if self.facts.replays else self.facts.concurrency_limit

    @property
    def target(self) -> BreakerKey:
        """Return the key of the circuit breaker of the model."""
        return BreakerKey(self.facts.address, self.model or (self._provider.model if self._provider else None))

    @property
    def breaker_state(self) -> BreakerState:
        """Return the strictest state of the circuit breakers. A provider that could not be created is "open".

        Cassettes ignore circuit breakers, because these depend on time.
        """
        if self.creation_error:
            return "open"
        return "closed" if self.facts.replays else self.registry.state(self.target)

    @property
    def ready(self) -> bool:
        """Return whether the circuit breakers allow a request."""
        return self.breaker_state in ("closed", "trial")

    @property
    def breaker(self) -> Breaker | None:
        """Return the circuit breaker that stays open longest; None if all are closed.

        A replay (responses from cassettes) ignores circuit breakers, but this property still returns one.
        """
        return next(iter(self.registry.open_breakers(self.target)), None)

    @property
    def statistics(self) -> Statistics:
        """Return the statistics of the attempts at the model."""
        return self.registry.statistics_of(self.target)

    def record_completion(self, completion: Completion, began: float) -> None:
        """Record a completion; see ``BreakerRegistry.record_completion``."""
        if self.registry.record_completion(self.target, completion, began):
            events.emit(events.BreakerClosed(provider=self.name, model=self.target.model))

    def record_failure(self, error: LLMError) -> None:
        """Record a failed attempt."""
        if opened := self.registry.record_failure(self.target, error):
            error, seconds = self.registry.breakers[opened].error, self.registry.breakers[opened].period_s
            events.emit(events.BreakerOpened(provider=self.name, model=opened.model, error=error, seconds=seconds))

    def set_checking(self, *, checking: bool) -> None:
        """Mark the beginning or the end of a probe or a trial request."""
        self.registry.set_checking(self.target, checking=checking)

    async def update_facts(self, within: float) -> None:
        """Probe the kind and the capabilities of the provider if the last probe is too old.

        A cloud provider is probed once.

        Args:
            within: the timeout in seconds.
        """
        now, shared = asyncio.get_running_loop().time(), self._shared
        if now >= shared.next_probe_at:
            health = await asyncio.shield(shared.start("update", lambda: self.provider.refresh(within)))
            # After a successful probe, a cloud provider or a wrapped one is not probed again
            may_change = self.distance == 0 and self._provider is self.original
            age_s = _PROBE_PAUSE_S if health.state == "down" else MAX_AGE_S if may_change else math.inf
            shared.next_probe_at = now + age_s
            self.refresh_facts()

    def start_recovery(self) -> None:
        """Start a probe or a load of the model in the background, if the candidate needs it before a request."""
        if self.breaker_state == "probe":
            self.start_probe()
        elif self.breaker_state == "closed" and self.facts.cold:
            self.start_load()

    def start_load(self) -> asyncio.Task[LLMError | None]:
        """Start a load of the model, or return the task in progress. The result is the error, or None."""

        async def load() -> LLMError | None:
            try:
                await self.provider.warm_up(self.model)
            except LLMError as error:
                return error
            except Exception as error:  # noqa: BLE001  # an application's own provider may raise anything
                return exception_error(error, self.name)
            return None

        return self._shared.start("load", load)

    def start_probe(self) -> asyncio.Task[bool]:
        """Start a probe, or return the task in progress. The result is whether the provider is ready.

        A probe costs nothing, loads no model and sends no user text.
        """

        async def probe() -> bool:
            try:
                with pause_recording():  # do not record probes: their number depends on the time
                    ready = self.facts.replays or (await self.provider.refresh(PROBE_S)).ready
            except BaseException:
                self.set_checking(checking=False)
                raise
            self.registry.record_probe(self.target, ready=ready)
            if not self.breaker:
                events.emit(events.BreakerClosed(provider=self.name, model=self.target.model))
            return ready

        if self._shared.is_idle("probe"):
            self.set_checking(checking=True)
        return self._shared.start("probe", probe)


def _facts_without_provider(name: str) -> Facts:
    """Return the facts of a provider that could not be created."""
    capabilities = default_capabilities(local=False, cost=None)
    return Facts(address=name, capabilities=capabilities, first_token_s=math.inf, gap_s=math.inf)


def chain_name(candidates: Iterable[Candidate]) -> str:
    """Return the name of a chain, as in LLM_PROVIDERS: equal providers joined by ``+``, ranks joined by ``,``."""
    ranks = groupby(candidates, key=lambda candidate: candidate.rank)
    return ",".join("+".join(candidate.name for candidate in rank) for _, rank in ranks) or "local"
