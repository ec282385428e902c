"""The circuit breakers of this process, with latencies and recent failures; shared by all routers.

Must never send anything, or decide what a failure means (``decision``).
The router reads and writes it; ``status()`` shows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ..completion import Usage
from ..errors import LLMError
from ..process import kept
from .decision import LONGEST_S, at_fault, verdict

Gate = Literal["closed", "open", "probe", "trial"]


@dataclass(slots=True)
class Breaker:
    """A circuit breaker: closed; open for a period; then a probe; then one trial, if a probe cannot see the fault.

    Attributes:
        error: why it opened; None while it is closed.
        until: the end of the period.
        period: its length.
        opened: when it opened.
    """

    error: LLMError | None = None
    until: float = 0.0
    period: float = 0.0
    opened: float = 0.0
    _visible: bool = False
    _probed: bool = False
    _busy: bool = False  # a probe or a trial is under way

    @property
    def open(self) -> bool:
        """Whether it is not closed."""
        return self.error is not None

    def gate(self, now: float) -> Gate:
        """Return what is allowed now: requests, nothing, a probe, or one request as a trial."""
        if self.error is None:
            return "closed"
        if self._busy or now < self.until:
            return "open"
        return "trial" if self._probed else "probe"

    def begin(self) -> None:
        """Begin a probe or a trial. Until it ends, there is no other."""
        self._busy = True

    def abandon(self) -> None:
        """End a probe or a trial without an outcome."""
        self._busy = False

    def probed(self, now: float, *, ready: bool) -> None:
        """Record the outcome of a probe. One that fails before the period is over does not prolong it."""
        self._busy = False
        if not ready:
            if now >= self.until:
                self._again(now)
        elif self._visible:
            self.close()
        else:
            self._probed = True

    def close(self) -> None:
        """Close after a completion."""
        self.error, self.period = None, 0.0
        self._visible = self._probed = self._busy = False

    def fail(self, error: LLMError, now: float) -> bool:
        """Record a failure; return whether it opened the breaker."""
        meant = verdict(error)
        self._busy = False
        if meant.opens is None:
            return False
        newly, trial = self.error is None, self._probed
        if not newly and not trial and now < self.until:
            return False  # it was in flight when the breaker opened
        self.error, self._visible, self._probed = error.without_text(), meant.visible, False
        if newly:
            self.opened = now
            wanted = error.retry_after
            self.period = meant.opens if wanted is None else min(max(wanted, 0.0), LONGEST_S)
            self.until = now + self.period
        else:
            self._again(now, least=error.retry_after or 0.0)
        return newly

    def _again(self, now: float, least: float = 0.0) -> None:
        """Begin the next period, which is longer."""
        self.period = min(max(self.period * 2, least), LONGEST_S)
        self.until, self._probed = now + self.period, False


@dataclass(slots=True)
class Record:
    """The attempts at one target so far, in this process.

    Attributes:
        first_token_s: moving average of seconds to the first token.
        recent: the last failures, as (time, class of the error).
    """

    first_token_s: float | None = None
    answered: int = 0
    failed: int = 0
    recent: list[tuple[float, str]] = field(default_factory=list)
    prompt_tokens: int = 0  # of the completions that report cached tokens
    cached_tokens: int = 0

    @property
    def cached(self) -> float | None:
        """The share of prompt tokens that came from cache, from 0 to 1; None if unknown."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None

    def answer(self, first_token_s: float | None, usage: Usage | None = None) -> None:
        """Record a completion."""
        self.answered += 1
        if usage and usage.prompt_tokens and usage.cached_tokens is not None:
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


@dataclass(frozen=True, slots=True)
class Target:
    """An address, and a model there."""

    address: str
    model: str | None


@dataclass(slots=True)
class BreakerRegistry:
    """Circuit breakers per address and model; faults of a connection or a key cover the whole address.

    Attributes:
        clock: seconds that only go forward.
    """

    clock: Callable[[], float] = time.monotonic
    breakers: dict[Target, Breaker] = field(default_factory=dict)
    records: dict[Target, Record] = field(default_factory=dict)

    def gate(self, target: Target) -> Gate:
        """Return what is allowed now."""
        now = self.clock()
        return min((each.gate(now) for each in self._both(target)), key=_WORST.index, default="closed")

    def open_breakers(self, target: Target) -> list[Breaker]:
        """Return the open breakers; the first is the one that stays open longest."""
        return sorted((each for each in self._both(target) if each.open), key=lambda each: -each.until)

    def fail(self, target: Target, error: LLMError) -> bool:
        """Record a failure; return whether it opened a breaker."""
        now = self.clock()
        if at_fault(error):
            self.record(target).failure(error, now)
        self.settle(target)  # a failure ends the trial of each breaker
        meant = verdict(error)
        if meant.opens is None:
            return False
        where = Target(target.address, None) if meant.whole_address else target
        return self.breakers.setdefault(where, Breaker()).fail(error, now)

    def answer(self, target: Target, first_token_s: float | None, began: float, usage: Usage | None = None) -> bool:
        """Record a completion of an attempt that ``began`` then; return whether it closed a breaker."""
        self.record(target).answer(first_token_s, usage)
        over = [
            each for each in self.open_breakers(target) if each.opened <= began
        ]  # an older answer says nothing of now
        for each in over:
            each.close()
        return bool(over)

    def settle(self, target: Target) -> None:
        """End a trial without an outcome."""
        for each in self.open_breakers(target):
            each.abandon()

    def record(self, target: Target) -> Record:
        """Return the record of a target."""
        return self.records.setdefault(target, Record())

    def _both(self, target: Target) -> list[Breaker]:
        places = dict.fromkeys((target, Target(target.address, None)))
        return [self.breakers[each] for each in places if each in self.breakers]


REGISTRY = BreakerRegistry(
    breakers=kept("breakers", dict[Target, Breaker](), learned=True),
    records=kept("records of providers", dict[Target, Record](), learned=True),
)
