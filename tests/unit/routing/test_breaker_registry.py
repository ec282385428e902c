"""Breakers of a process: what opens, probes and closes them."""

from __future__ import annotations

from support import Clock

from learnflow.llm import errors
from learnflow.llm.routing.breaker import BreakerRegistry, Target


def test_probes_before_their_time_make_no_period_longer() -> None:
    board = BreakerRegistry(Clock())
    place = Target("http://x", None)
    board.fail(place, errors.ConnectionFailed("x"))
    for _ in range(10):
        for breaker in board.shut(place):
            breaker.probed(board.clock(), ready=False)
    assert [breaker.period for breaker in board.shut(place)] == [5]


def test_an_older_answer_closes_no_breaker() -> None:
    clock = Clock()
    board, place = BreakerRegistry(clock), Target("http://x", "m")
    began = clock.now
    clock.now += 1
    board.fail(place, errors.RateLimited("x", retry_after=60))
    assert not board.answer(place, 0.1, began)
    assert board.shut(place)
