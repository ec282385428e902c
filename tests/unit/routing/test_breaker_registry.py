"""The registry of circuit breakers: probes and completions of older attempts."""

from __future__ import annotations

from support import Clock

from learnflow.llm import errors
from learnflow.llm.completion import Completion, ServedModel
from learnflow.llm.routing.breaker import BreakerKey, BreakerRegistry

COMPLETION = Completion(text="x", finish="stop", provider="x", model=ServedModel("m"))


def test_failed_probe_before_end_of_period_does_not_extend_it() -> None:
    registry = BreakerRegistry(Clock())
    target = BreakerKey("http://x", None)
    registry.record_failure(target, errors.ConnectionFailed("x"))
    for _ in range(10):
        registry.record_probe(target, ready=False)
    assert [breaker.period_s for breaker in registry.open_breakers(target)] == [5]


def test_completion_of_older_attempt_closes_no_breaker() -> None:
    clock = Clock()
    registry, target = BreakerRegistry(clock), BreakerKey("http://x", "m")
    began = clock.now
    clock.now += 1
    registry.record_failure(target, errors.RateLimited("x", retry_after=60))
    assert not registry.record_completion(target, COMPLETION, began)
    assert registry.open_breakers(target)
