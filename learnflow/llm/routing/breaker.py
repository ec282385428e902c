"""What this process knows of each target: breakers, latencies, recent failures; shared by all routers.

Must never ask anybody or decide anything: ``decision`` does.
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
    """Whether a target is asked. Closed; open for a period; then a probe; then, where a probe cannot see it, one trial.

    Attributes:
        error: why it is open; None while it is closed.
        until: when the period is over.
        period: how long it is, or was.
        opened: since when it is open.
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
        """Whether it is not simply asked."""
        return self.error is not None

    def gate(self, now: float) -> Gate:
        """What may be done now: ask it, leave it alone, probe it, or let one request through."""
        if self.error is None:
            return "closed"
        if self._busy or now < self.until:
            return "open"
        return "trial" if self._probed else "probe"

    def begin(self) -> None:
        """A probe or a trial begins: nobody else begins one."""
        self._busy = True

    def abandon(self) -> None:
        """The probe or the trial was left without an outcome."""
        self._busy = False

    def probed(self, now: float, *, ready: bool) -> None:
        """How the probe went; one before its time that fails does not make the period longer."""
        self._busy = False
        if not ready:
            if now >= self.until:
                self._again(now)
        elif self._visible:
            self.close()
        else:
            self._probed = True

    def close(self) -> None:
        """It has answered."""
        self.error, self.period = None, 0.0
        self._visible = self._probed = self._busy = False

    def fail(self, error: LLMError, now: float) -> bool:
        """It has failed. Returns whether this opened it."""
        meant = verdict(error)
        self._busy = False
        if meant.opens is None:
            return False
        newly, trial = self.error is None, self._probed
        if not newly and not trial and now < self.until:
            return False  # one of many that were under way when it opened
        self.error, self._visible, self._probed = error, meant.visible, False
        if newly:
            self.opened = now
            asked = error.retry_after
            self.period = meant.opens if asked is None else min(max(asked, 0.0), LONGEST_S)
            self.until = now + self.period
        else:
            self._again(now, least=error.retry_after or 0.0)
        return newly

    def _again(self, now: float, least: float = 0.0) -> None:
        """The next period is longer."""
        self.period = min(max(self.period * 2, least), LONGEST_S)
        self.until, self._probed = now + self.period, False


@dataclass(slots=True)
class Record:
    """What happened with one provider so far, in this process.

    Attributes:
        first_token_s: moving average of seconds to the first token.
        recent: the last failures, as (time, name of the leaf).
    """

    first_token_s: float | None = None
    answered: int = 0
    failed: int = 0
    recent: list[tuple[float, str]] = field(default_factory=list)
    prompt_tokens: int = 0  # of the answers that told how many of them came from cache
    cached_tokens: int = 0

    @property
    def cached(self) -> float | None:
        """The share of prompt tokens that came from cache, from 0 to 1; None where nobody told."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None

    def answer(self, first_token_s: float | None, usage: Usage | None = None) -> None:
        """It answered."""
        self.answered += 1
        if usage and usage.prompt_tokens and usage.cached_tokens is not None:
            self.prompt_tokens += usage.prompt_tokens
            self.cached_tokens += usage.cached_tokens
        if first_token_s is not None:
            before = self.first_token_s
            self.first_token_s = first_token_s if before is None else 0.7 * before + 0.3 * first_token_s

    def failure(self, error: LLMError, now: float) -> None:
        """It failed."""
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
    """Breakers per address and model; connection and key faults are those of the whole address.

    Attributes:
        clock: seconds that only go forward.
    """

    clock: Callable[[], float] = time.monotonic
    breakers: dict[Target, Breaker] = field(default_factory=dict)
    records: dict[Target, Record] = field(default_factory=dict)

    def gate(self, target: Target) -> Gate:
        """What may be done with it now."""
        now = self.clock()
        return min((each.gate(now) for each in self._both(target)), key=_WORST.index, default="closed")

    def open_breakers(self, target: Target) -> list[Breaker]:
        """The open breakers; the first is the one that is over last."""
        return sorted((each for each in self._both(target) if each.open), key=lambda each: -each.until)

    def fail(self, target: Target, error: LLMError) -> bool:
        """It failed. Returns whether this opened a breaker."""
        now = self.clock()
        if at_fault(error):
            self.record(target).failure(error, now)
        self.settle(target)  # whatever trial this was: one breaker's failure is the end of it for the others
        meant = verdict(error)
        if meant.opens is None:
            return False
        where = Target(target.address, None) if meant.whole_address else target
        return self.breakers.setdefault(where, Breaker()).fail(error, now)

    def answer(self, target: Target, first_token_s: float | None, began: float, usage: Usage | None = None) -> bool:
        """It answered a request that began then. Returns whether this closed a breaker."""
        self.record(target).answer(first_token_s, usage)
        over = [
            each for each in self.open_breakers(target) if each.opened <= began
        ]  # an older answer says nothing of now
        for each in over:
            each.close()
        return bool(over)

    def settle(self, target: Target) -> None:
        """A trial ended without saying anything of the target."""
        for each in self.open_breakers(target):
            each.abandon()

    def record(self, target: Target) -> Record:
        """What happened there."""
        return self.records.setdefault(target, Record())

    def _both(self, target: Target) -> list[Breaker]:
        places = dict.fromkeys((target, Target(target.address, None)))
        return [self.breakers[each] for each in places if each in self.breakers]


REGISTRY = BreakerRegistry(
    breakers=kept("breakers", dict[Target, Breaker](), learned=True),
    records=kept("records of providers", dict[Target, Record](), learned=True),
)
