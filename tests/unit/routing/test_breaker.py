"""One breaker as a transcript of what happened when, and what its gate said. Nothing sleeps."""

from __future__ import annotations

import pytest
from support import made

from learnflow.llm import errors
from learnflow.llm.errors import LLMError
from learnflow.llm.routing import decision
from learnflow.llm.routing.breaker import Breaker


def transcript(*happened: tuple[float, str | LLMError]) -> list[str]:
    """What the gate says at each time, after what happened then."""
    breaker, said = Breaker(), []
    for now, what in happened:
        if isinstance(what, LLMError):
            breaker.fail(what, now)
        elif what in ("ready", "not ready"):
            breaker.probed(now, ready=what == "ready")
        elif what == "begin":
            breaker.begin()
        elif what == "answer":
            breaker.close()
        said.append(breaker.gate(now))
    return said


def test_a_fault_that_a_probe_sees() -> None:
    refused = made(errors.ConnectionFailed)
    assert transcript(
        (0.0, "?"), (1.0, refused), (1.1, refused), (5.9, "?"), (6.0, "?"), (6.0, "begin"), (6.5, "not ready"),
        (16.4, "?"), (16.5, "?"), (16.5, "begin"), (17.0, "ready"),
    ) == ["closed", "open", "open", "open", "probe", "open", "open", "open", "probe", "open", "closed"]  # fmt: skip


def test_a_fault_that_a_probe_cannot_see_lets_one_request_through() -> None:
    hang = made(errors.FirstTokenTimeout)
    assert transcript(
        (0.0, hang), (15.0, "?"), (15.0, "begin"), (15.1, "ready"), (15.2, "begin"), (15.3, "?"),
        (20.0, hang),  # the next period is longer
        (49.9, "?"), (50.0, "?"), (50.0, "begin"), (50.1, "ready"), (50.2, "begin"), (51.0, "answer"),
    ) == [
        "open", "probe", "open", "trial", "open", "open", "open", "open", "probe", "open", "trial", "open", "closed",
    ]  # fmt: skip


def test_those_under_way_when_it_opened_do_not_make_it_longer() -> None:
    breaker = Breaker()
    assert [breaker.fail(made(errors.ServerFailed), 0.0 + n / 100) for n in range(200)] == [True] + [False] * 199
    assert breaker.period == 5


@pytest.mark.parametrize(("asked", "period"), [(None, 10), (0.0, 0.0), (3.0, 3.0), (86400.0, decision.LONGEST_S)])
def test_retry_after_sets_how_long(asked: float | None, period: float) -> None:
    breaker = Breaker()
    breaker.fail(made(errors.RateLimited, asked), 0.0)
    assert breaker.period == period


@pytest.mark.parametrize(
    "kind",
    [
        errors.DeadlineExceeded, errors.ModelLoading, errors.EmptyAnswer, errors.SchemaMismatch, errors.InvalidRequest,
        errors.ContentFiltered, errors.ContextOverflow, errors.Unsupported, errors.TokenRepeated,
    ],
)  # fmt: skip
def test_what_opens_no_breaker(kind: type[LLMError]) -> None:
    assert transcript((0.0, made(kind))) == ["closed"]


def test_periods_end_somewhere() -> None:
    breaker, now = Breaker(), 0.0
    breaker.fail(made(errors.ConnectionFailed), now)
    for _ in range(20):
        now = breaker.until
        breaker.begin()
        breaker.probed(now, ready=False)
    assert breaker.period == decision.LONGEST_S
    breaker.begin()
    breaker.abandon()  # whoever probed has left
    assert breaker.gate(breaker.until) == "probe"
