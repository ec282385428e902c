"""Breakers of a process: what opens, probes and closes them."""

from __future__ import annotations

from support import Clock

from learnflow.llm import errors
from learnflow.llm.routing.breaker import BreakerRegistry, Target


def test_probes_before_their_time_make_no_period_longer() -> None:
    registry = BreakerRegistry(Clock())
    place = Target("http://x", None)
    registry.fail(place, errors.ConnectionFailed("x"))
    for _ in range(10):
        for breaker in registry.open_breakers(place):
            breaker.probed(registry.clock(), ready=False)
    assert [breaker.period for breaker in registry.open_breakers(place)] == [5]


def test_an_older_answer_closes_no_breaker() -> None:
    clock = Clock()
    registry, place = BreakerRegistry(clock), Target("http://x", "m")
    began = clock.now
    clock.now += 1
    registry.fail(place, errors.RateLimited("x", retry_after=60))
    assert not registry.answer(place, 0.1, began)
    assert registry.open_breakers(place)
