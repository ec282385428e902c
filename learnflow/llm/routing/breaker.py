"""The circuit breakers of this process, with latencies and recent failures, shared by all routers.

They send nothing. ``decision`` decides what a failure means.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from .. import process
from ..completion import Completion
from ..errors import LLMError
from .decision import LONGEST_S, at_fault, verdict

Gate = Literal["closed", "open", "probe", "trial"]


@dataclass(slots=True)
class Breaker:
    """An open circuit breaker: no requests for a period, then a probe, then one trial if a probe cannot see the fault.

    Attributes:
        error: why it opened.
        period: seconds.
        until: the end of the period.
        opened: when it opened.
        busy: a probe or a trial is in progress, and excludes another one.
        recovered: a probe succeeded, so that a trial may follow.
    """

    error: LLMError
    period: float
    until: float
    opened: float
    busy: bool = False
    recovered: bool = False

    @property
    def visible(self) -> bool:
        """Return whether a probe can see the fault."""
        return verdict(self.error).visible

    def gate(self, now: float) -> Gate:
        """Return what is allowed now: nothing, a probe, or one request as a trial."""
        if self.busy or now < self.until:
            return "open"
        return "trial" if self.recovered else "probe"

    def fail(self, error: LLMError, now: float) -> None:
        """Record a failure. Ignore it if its request was in flight when the breaker opened."""
        if self.recovered or now >= self.until:
            self.error = error.without_text()
            self.extend(now, least=error.retry_after or 0.0)

    def extend(self, now: float, least: float = 0.0) -> None:
        """Begin the next, longer period."""
        self.period = min(max(self.period * 2, least), LONGEST_S)
        self.until, self.recovered = now + self.period, False


@dataclass(slots=True)
class Record:
    """The attempts at one target so far, in this process.

    Attributes:
        first_token_s: moving average of seconds to the first token.
        answered: the number of completions.
        failed: the number of failures.
        recent: the last ten failures, as (time, class of the error).
    """

    first_token_s: float | None = None
    answered: int = 0
    failed: int = 0
    recent: list[tuple[float, str]] = field(default_factory=list)
    prompt_tokens: int = 0  # of the completions that report cached tokens
    cached_tokens: int = 0

    @property
    def cached(self) -> float | None:
        """Return the share of prompt tokens read from cache, from 0 to 1; None if unknown."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None

    def answer(self, completion: Completion) -> None:
        """Record a completion."""
        usage, first_token_s = completion.usage, completion.first_token_s
        self.answered += 1
        if usage.prompt_tokens and usage.cached_tokens is not None:
            self.prompt_tokens += usage.prompt_tokens
            self.cached_tokens += usage.cached_tokens
        if first_token_s is not None:
            before = self.first_token_s
            self.first_token_s = first_token_s if before is None else 0.7 * before + 0.3 * first_token_s

    def failure(self, error: LLMError, now: float) -> None:
        """Record a failure."""
        self.failed += 1
        self.recent = [*self.recent[-9:], (now, type(error).__name__)]


_WORST: tuple[Gate, ...] = ("open", "probe", "trial", "closed")


class Target(NamedTuple):
    """The key of a circuit breaker: an address, and a model or None for all models."""

    address: str
    model: str | None


@dataclass(slots=True)
class BreakerRegistry:
    """Circuit breakers per address and model. A failed connection or a wrong key covers the whole address.

    Attributes:
        clock: monotonic, in seconds.
        breakers: the open ones.
        records: the attempts so far.
    """

    clock: Callable[[], float] = time.monotonic
    breakers: dict[Target, Breaker] = field(default_factory=dict)
    records: dict[Target, Record] = field(default_factory=dict)

    def gate(self, target: Target) -> Gate:
        """Return what is allowed now."""
        gates = [breaker.gate(self.clock()) for breaker in self._open(target).values()]
        return min(gates, key=_WORST.index, default="closed")

    def open_breakers(self, target: Target) -> list[Breaker]:
        """Return the open breakers; the first one stays open longest."""
        return sorted(self._open(target).values(), key=lambda breaker: -breaker.until)

    def fail(self, target: Target, error: LLMError) -> Target | None:
        """Record a failure. Return the target of the breaker that it opened; None if it opened no breaker."""
        now, meant = self.clock(), verdict(error)
        if at_fault(error):
            self.record(target).failure(error, now)
        self.set_busy(target, busy=False)  # a failure ends the trial of each breaker
        if meant.opens is None:
            return None
        place = Target(target.address, None) if meant.whole_address else target
        if place in self.breakers:
            self.breakers[place].fail(error, now)
            return None
        requested = error.retry_after
        period = meant.opens if requested is None else min(max(requested, 0.0), LONGEST_S)
        self.breakers[place] = Breaker(error.without_text(), period, now + period, now)
        return place

    def answer(self, target: Target, completion: Completion, began: float) -> bool:
        """Record the completion of an attempt that ``began`` at this time. Return whether it closed a breaker."""
        self.record(target).answer(completion)
        # an attempt that began before the fault does not prove that it is over
        over = [place for place, breaker in self._open(target).items() if breaker.opened <= began]
        for place in over:
            del self.breakers[place]
        return bool(over)

    def probed(self, target: Target, *, ready: bool) -> None:
        """Record the outcome of a probe. A failed probe extends a period only after its end."""
        now = self.clock()
        for place, breaker in self._open(target).items():
            breaker.busy = False
            if ready and breaker.visible:
                del self.breakers[place]
            elif ready:
                breaker.recovered = True
            elif now >= breaker.until:
                breaker.extend(now)

    def set_busy(self, target: Target, *, busy: bool) -> None:
        """Begin a probe or a trial, or end it without an outcome."""
        for breaker in self._open(target).values():
            breaker.busy = busy

    def record(self, target: Target) -> Record:
        """Return the record of a target."""
        return self.records.setdefault(target, Record())

    def _open(self, target: Target) -> dict[Target, Breaker]:
        places = (target, Target(target.address, None))
        return {place: self.breakers[place] for place in places if place in self.breakers}


REGISTRY = BreakerRegistry(
    breakers=process.register("breakers", dict[Target, Breaker](), learned=True),
    records=process.register("records of providers", dict[Target, Record](), learned=True),
)
