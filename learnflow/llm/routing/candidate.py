"""A candidate for a request: one provider of a router's chain (the router's providers in order).

``Facts`` are the known properties of a provider and its model.
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
_PROBE_PAUSE_S: Final = 15.0  # pause before the next probe if the server was down


class _SharedState(SharedTasks):
    """The running probes and model loads of a provider. All requests share them.

    ``probe_if_stale`` sends no probe before ``next_probe_at``.
    """

    next_probe_at: float = 0.0


class Candidate:
    """One provider of a chain. Each request has its own copy.

    Attributes:
        original: the provider as the application passed it; None if it could not be created.
        creation_error: why the provider could not be created; None if the provider was created.
        rank: the position in the chain. Load-balanced providers have the same rank.
        model: the model for the request; None for the default model.
        failure: the failure that excludes the candidate from this request; None if it may be tried.
        rejects_prefill: the server rejected a prefill (a last assistant message to continue) in this request.
        deadline_s: the time limit of each attempt in seconds; None if unlimited. If routers are nested, it is the
            shortest ``deadline=`` of the routers that contain the provider.
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
        """Return a copy with this rank and without cached facts."""
        candidate = copy.copy(self)
        candidate.rank = rank
        candidate.discard_facts()
        return candidate

    def set_model(self, model: str | None) -> None:
        """Set the model, and discard the cached facts."""
        self.model, self._facts = model, None

    def discard_facts(self) -> None:
        """Discard the cached facts."""
        self._facts = None

    @property
    def facts(self) -> Facts:
        """Return the facts about the provider and its model, cached until ``discard_facts``."""
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
    def supports_prefill(self) -> bool:
        """Return whether the provider supports prefill, and has not rejected a prefill in this request."""
        return self.facts.supports_prefill and not self.rejects_prefill

    @property
    def distance(self) -> int:
        """Return 0 for this machine or a private network, else 1."""
        return 0 if self.facts.capabilities["local"] else 1

    @property
    def concurrency_limit(self) -> int | None:
        """Return the concurrency limit; None if unlimited, as for cassettes (recorded responses)."""
        return None if self.facts.replays else self.facts.concurrency_limit

    @property
    def target(self) -> BreakerKey:
        """Return the address and the model: the key of the circuit breaker."""
        return BreakerKey(self.facts.address, self.model or (self._provider.model if self._provider else None))

    @property
    def breaker_state(self) -> BreakerState:
        """Return the stricter state of two circuit breakers: the model's and the address's.

        The state is "open" if the provider could not be created. It is "closed" if responses come from cassettes,
        so that a replay does not depend on timing.
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

        Unlike ``breaker_state``, it does not depend on whether responses come from cassettes.
        """
        return next(iter(self.registry.open_breakers(self.target)), None)

    @property
    def statistics(self) -> Statistics:
        """Return the statistics of the model."""
        return self.registry.statistics_of(self.target)

    def record_completion(self, completion: Completion, began: float) -> None:
        """Record a completion. Close the circuit breakers that opened before the start of the attempt (``began``)."""
        if self.registry.record_completion(self.target, completion, began):
            events.emit(events.BreakerClosed(provider=self.name, model=self.target.model))

    def record_failure(self, error: LLMError) -> None:
        """Record a failed attempt, which may open a circuit breaker."""
        if opened_key := self.registry.record_failure(self.target, error):
            error, seconds = self.registry.breakers[opened_key].error, self.registry.breakers[opened_key].period_s
            events.emit(events.BreakerOpened(provider=self.name, model=opened_key.model, error=error, seconds=seconds))

    def begin_check(self) -> None:
        """Mark the start of a probe or a trial request (see ``BreakerState``)."""
        self.registry.set_checking(self.target, checking=True)

    def end_check(self) -> None:
        """Mark the end of a probe or a trial request."""
        self.registry.set_checking(self.target, checking=False)

    async def probe_if_stale(self, within: float) -> None:
        """Probe the provider if the last probe is too old. ``within`` is the timeout in seconds."""
        now, shared = asyncio.get_running_loop().time(), self._shared
        if now >= shared.next_probe_at:
            health = await asyncio.shield(shared.start("update", lambda: self.provider.refresh(within)))
            # A cloud, or an application's own provider (which this package wraps), is probed again only if it was down
            can_change = self.distance == 0 and self._provider is self.original
            pause_s = _PROBE_PAUSE_S if health.state == "down" else MAX_AGE_S if can_change else math.inf
            shared.next_probe_at = now + pause_s
            self.discard_facts()

    def start_recovery(self) -> None:
        """Start a probe if the circuit breaker requires one, or a model load if the model is cold."""
        if self.breaker_state == "probe":
            self.start_probe()
        elif self.breaker_state == "closed" and self.facts.cold:
            self.start_load()

    def start_load(self) -> asyncio.Task[LLMError | None]:
        """Start to load the model, or return the running task. The task returns the error of the load, if any."""

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
        """Start a probe, or return the running task. The task returns whether the provider is ready.

        A probe costs nothing, loads no model and sends no user text.
        """

        async def probe() -> bool:
            try:
                with pause_recording():  # do not record probes, because their number varies between runs
                    ready = self.facts.replays or (await self.provider.refresh(PROBE_S)).ready
            except BaseException:
                self.end_check()
                raise
            self.registry.record_probe(self.target, ready=ready)
            if not self.breaker:
                events.emit(events.BreakerClosed(provider=self.name, model=self.target.model))
            return ready

        if self._shared.is_idle("probe"):
            self.begin_check()
        return self._shared.start("probe", probe)


def _facts_without_provider(name: str) -> Facts:
    """Return the facts of a provider that could not be created."""
    capabilities = default_capabilities(local=False, cost=None)
    return Facts(address=name, capabilities=capabilities, first_token_s=math.inf, gap_s=math.inf)


def chain_name(candidates: Iterable[Candidate]) -> str:
    """Return the names in the format of LLM_PROVIDERS: ``+`` joins providers of one rank, ``,`` joins ranks."""
    ranks = groupby(candidates, key=lambda candidate: candidate.rank)
    return ",".join("+".join(candidate.name for candidate in rank) for _, rank in ranks) or "local"
