"""A circuit breaker as a transcript: the outcomes of requests and probes, and the gate after each. Nothing sleeps."""

from __future__ import annotations

import pytest
from support import Clock, made

from learnflow.llm import errors
from learnflow.llm.completion import Completion, ServedModel
from learnflow.llm.errors import LLMError
from learnflow.llm.routing import decision
from learnflow.llm.routing.breaker import Breaker, BreakerKey, BreakerRegistry

TARGET = BreakerKey("http://x", "m")
COMPLETION = Completion(text="x", finish="stop", provider="x", model=ServedModel("m"))


def open_breaker(registry: BreakerRegistry) -> Breaker:
    """Return the only open breaker."""
    (breaker,) = registry.open_breakers(TARGET)
    return breaker


def transcript(*steps: tuple[float, str | LLMError]) -> list[str]:
    """Return the gate at each time, after the event of that time."""
    clock, states = Clock(), []
    registry = BreakerRegistry(clock)
    for clock.now, event in steps:
        if isinstance(event, LLMError):
            registry.record_failure(TARGET, event)
        elif event in ("ready", "not ready"):
            registry.record_probe(TARGET, ready=event == "ready")
        elif event == "begin":
            registry.set_checking(TARGET, checking=True)
        elif event == "answer":
            registry.record_completion(TARGET, COMPLETION, clock.now)
        states.append(registry.state(TARGET))
    return states


def test_breaker_with_visible_fault_closes_after_probe() -> None:
    refused = made(errors.ConnectionFailed)
    assert transcript(
        (0.0, "?"), (1.0, refused), (1.1, refused), (5.9, "?"), (6.0, "?"), (6.0, "begin"), (6.5, "not ready"),
        (16.4, "?"), (16.5, "?"), (16.5, "begin"), (17.0, "ready"),
    ) == ["closed", "open", "open", "open", "probe", "open", "open", "open", "probe", "open", "closed"]  # fmt: skip


def test_breaker_with_invisible_fault_allows_one_trial_after_probe() -> None:
    hang = made(errors.FirstTokenTimeout)
    assert transcript(
        (0.0, hang), (15.0, "?"), (15.0, "begin"), (15.1, "ready"), (15.2, "begin"), (15.3, "?"),
        (20.0, hang),  # the next period is longer
        (49.9, "?"), (50.0, "?"), (50.0, "begin"), (50.1, "ready"), (50.2, "begin"), (51.0, "answer"),
    ) == [
        "open", "probe", "open", "trial", "open", "open", "open", "open", "probe", "open", "trial", "open", "closed",
    ]  # fmt: skip


def test_failure_of_request_in_flight_does_not_extend_breaker() -> None:
    clock = Clock()
    registry, opened = BreakerRegistry(clock), []
    for _ in range(200):
        clock.now += 0.01
        opened.append(registry.record_failure(TARGET, made(errors.ServerFailed)))
    assert opened == [TARGET] + [None] * 199
    assert open_breaker(registry).period_s == 5


@pytest.mark.parametrize(
    ("retry_after", "period"), [(None, 10), (0.0, 0.0), (3.0, 3.0), (86400.0, decision.MAX_DELAY_S)]
)
def test_retry_after_sets_period_of_breaker(retry_after: float | None, period: float) -> None:
    registry = BreakerRegistry(Clock())
    registry.record_failure(TARGET, made(errors.RateLimited, retry_after))
    assert open_breaker(registry).period_s == period


@pytest.mark.parametrize(
    "kind",
    [
        errors.DeadlineExceeded, errors.ModelLoading, errors.EmptyAnswer, errors.SchemaMismatch, errors.InvalidRequest,
        errors.ContentFiltered, errors.ContextOverflow, errors.Unsupported, errors.TokenRepeated,
    ],
)  # fmt: skip
def test_caller_errors_open_no_breaker(kind: type[LLMError]) -> None:
    assert transcript((0.0, made(kind))) == ["closed"]


def test_period_of_breaker_is_bounded() -> None:
    clock = Clock()
    registry = BreakerRegistry(clock)
    registry.record_failure(TARGET, made(errors.ConnectionFailed))
    breaker = open_breaker(registry)
    for _ in range(20):
        clock.now = breaker.open_until
        registry.set_checking(TARGET, checking=True)
        registry.record_probe(TARGET, ready=False)
    assert breaker.period_s == decision.MAX_DELAY_S
    clock.now = breaker.open_until
    registry.set_checking(TARGET, checking=True)
    assert registry.state(TARGET) == "open"
    registry.set_checking(TARGET, checking=False)  # the probe was cancelled
    assert registry.state(TARGET) == "probe"


def test_breaker_allows_another_probe_if_the_first_one_never_ends() -> None:
    """The event loop of the probe has stopped, or the process was forked during the probe."""
    assert transcript(
        (0.0, made(errors.ConnectionFailed)), (5.0, "?"), (5.0, "begin"), (64.9, "?"), (65.0, "?")
    ) == ["open", "probe", "open", "open", "probe"]  # fmt: skip
