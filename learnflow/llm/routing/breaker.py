"""The circuit breakers and statistics of this process, which all routers share.

This module sends no request. ``decision.BREAKER_RULES`` has the errors that open a breaker.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from .. import process
from ..completion import Completion
from ..errors import LLMError
from .decision import MAX_DELAY_S, breaker_rule, is_provider_failure

# "closed" allows requests, and "open" allows nothing. The half-open state is split in two: "probe" allows a probe (a
# check of the server without a prompt), and "trial" allows one request of a caller.
BreakerState = Literal["closed", "open", "probe", "trial"]
# For at most this time, a running probe or trial request blocks other requests. Without a limit, it would block them
# forever if its event loop stopped.
_MAX_CHECK_S: Final = 60.0
_STRICTEST_FIRST: tuple[BreakerState, ...] = ("open", "probe", "trial", "closed")


@dataclass(slots=True)
class Breaker:
    """A circuit breaker that has opened.

    It blocks requests for a period. Then a probe checks the server. If probes can detect the fault, a successful probe
    closes the breaker. If not, a trial request must succeed, too.

    Attributes:
        period_s: the length of the period in seconds.
        check_ends_at: until this time, a running probe or trial request blocks other requests; -inf if neither runs.
        probe_succeeded: whether a trial request is allowed, because a probe has succeeded.
    """

    error: LLMError
    period_s: float
    open_until: float
    opened_at: float
    check_ends_at: float = -math.inf
    probe_succeeded: bool = False

    @property
    def probeable(self) -> bool:
        """Return whether a probe can detect that the fault is over."""
        return breaker_rule(self.error).probeable

    def state(self, now: float) -> BreakerState:
        """Return the state, which is never "closed"."""
        if now < max(self.open_until, self.check_ends_at):
            return "open"
        return "trial" if self.probe_succeeded else "probe"

    def record_failure(self, error: LLMError, now: float) -> None:
        """Record a failed attempt. If the period has ended or a probe has succeeded, reopen the breaker.

        Any other failure is ignored, because its request was usually sent before the breaker opened.
        """
        if self.probe_succeeded or now >= self.open_until:
            self.error = error.without_text()
            self.reopen(now, min_period_s=error.retry_after or 0.0)

    def reopen(self, now: float, min_period_s: float = 0.0) -> None:
        """Begin another period, twice as long as the last one.

        The period is at least ``min_period_s`` and at most ``MAX_DELAY_S``.
        """
        self.period_s = min(max(self.period_s * 2, min_period_s), MAX_DELAY_S)
        self.open_until, self.probe_succeeded = now + self.period_s, False


@dataclass(slots=True)
class Statistics:
    """Statistics of one model at one address, in this process.

    Attributes:
        first_token_s: moving average of the seconds to the first token; None if unknown.
        answered, failed: the number of completions, and the number of failures that the provider caused.
        recent_failures: the last ten failures, each as its time and the class name of its error.
        prompt_tokens, cached_tokens: sums over the completions that report cached tokens.
    """

    first_token_s: float | None = None
    answered: int = 0
    failed: int = 0
    recent_failures: list[tuple[float, str]] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def cached_share(self) -> float | None:
        """Return the share of cached prompt tokens, from 0 to 1; None if unknown."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None

    def add_completion(self, completion: Completion) -> None:
        """Add a completion to the statistics."""
        usage, first_token_s = completion.usage, completion.first_token_s
        self.answered += 1
        if usage.prompt_tokens and usage.cached_tokens is not None:
            self.prompt_tokens += usage.prompt_tokens
            self.cached_tokens += usage.cached_tokens
        if first_token_s is not None:
            average = self.first_token_s
            self.first_token_s = first_token_s if average is None else 0.7 * average + 0.3 * first_token_s

    def add_failure(self, error: LLMError, now: float) -> None:
        """Add a failure to the statistics."""
        self.failed += 1
        self.recent_failures = [*self.recent_failures[-9:], (now, type(error).__name__)]


class BreakerKey(NamedTuple):
    """The key of a circuit breaker: a server address and a model. Without a model, it covers the whole address."""

    address: str
    model: str | None


@dataclass(slots=True)
class BreakerRegistry:
    """The circuit breakers that are not closed, and the statistics of each target (an address and a model).

    Attributes:
        clock: returns the time in seconds. It must be monotonic.
        breakers: the breakers that are not closed. A breaker that closes is removed.
    """

    clock: Callable[[], float] = time.monotonic
    breakers: dict[BreakerKey, Breaker] = field(default_factory=dict)
    statistics: dict[BreakerKey, Statistics] = field(default_factory=dict)

    def state(self, target: BreakerKey) -> BreakerState:
        """Return the strictest state of the breakers of a target."""
        states = [breaker.state(self.clock()) for breaker in self._breakers_of(target).values()]
        return min(states, key=_STRICTEST_FIRST.index, default="closed")

    def open_breakers(self, target: BreakerKey) -> list[Breaker]:
        """Return the breakers of a target that are not closed. The first one stays open longest."""
        return sorted(self._breakers_of(target).values(), key=lambda breaker: -breaker.open_until)

    def record_failure(self, target: BreakerKey, error: LLMError) -> BreakerKey | None:
        """Record a failed attempt. If a closed breaker opened, return its key, else None."""
        now, rule = self.clock(), breaker_rule(error)
        if is_provider_failure(error):
            self.statistics_of(target).add_failure(error, now)
        self.set_checking(target, checking=False)
        if rule.period_s is None:
            return None
        key = BreakerKey(target.address, None) if rule.whole_address else target
        if key in self.breakers:
            self.breakers[key].record_failure(error, now)
            return None
        retry_after_s = error.retry_after
        period_s = rule.period_s if retry_after_s is None else min(max(retry_after_s, 0.0), MAX_DELAY_S)
        self.breakers[key] = Breaker(error.without_text(), period_s, now + period_s, now)
        return key

    def record_completion(self, target: BreakerKey, completion: Completion, began: float) -> bool:
        """Record a completion. Return whether a breaker closed.

        ``began`` is the start time of the attempt. A breaker that opened later stays open.
        """
        self.statistics_of(target).add_completion(completion)
        closed_keys = [key for key, breaker in self._breakers_of(target).items() if breaker.opened_at <= began]
        for key in closed_keys:
            del self.breakers[key]
        return bool(closed_keys)

    def record_probe(self, target: BreakerKey, *, ready: bool) -> None:
        """Record the result of a probe. If the probe failed, reopen each breaker if its period has ended."""
        now = self.clock()
        for key, breaker in self._breakers_of(target).items():
            breaker.check_ends_at = -math.inf
            if ready and breaker.probeable:
                del self.breakers[key]
            elif ready:
                breaker.probe_succeeded = True
            elif now >= breaker.open_until:
                breaker.reopen(now)

    def set_checking(self, target: BreakerKey, *, checking: bool) -> None:
        """Mark the start or the end of a probe or a trial request."""
        for breaker in self._breakers_of(target).values():
            breaker.check_ends_at = self.clock() + _MAX_CHECK_S if checking else -math.inf

    def statistics_of(self, target: BreakerKey) -> Statistics:
        """Return the statistics of a target."""
        return self.statistics.setdefault(target, Statistics())

    def _breakers_of(self, target: BreakerKey) -> dict[BreakerKey, Breaker]:
        """Return the breakers of the model and of its address."""
        keys = (target, BreakerKey(target.address, None))
        return {key: self.breakers[key] for key in keys if key in self.breakers}


REGISTRY = BreakerRegistry(
    breakers=process.register("breakers", dict[BreakerKey, Breaker](), learned=True),
    statistics=process.register("statistics of providers", dict[BreakerKey, Statistics](), learned=True),
)
