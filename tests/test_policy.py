"""The decisions, as transcripts of what happened when, and what was decided. Nothing sleeps."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnflow.llm import errors
from learnflow.llm.adapter import _litellm
from learnflow.llm.errors import LLMError
from learnflow.llm.routing import decision, selection
from learnflow.llm.routing.breaker import Breaker
from learnflow.llm.routing.selection import Needs, Standing
from learnflow.llm.transport import error_mapping


def made(kind: type[LLMError], retry_after: float | None = None) -> LLMError:
    return kind("x", retry_after=retry_after)


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
    ) == ["go", "shut", "shut", "shut", "probe", "shut", "shut", "shut", "probe", "shut", "go"]  # fmt: skip


def test_a_fault_that_a_probe_cannot_see_lets_one_request_through() -> None:
    hang = made(errors.FirstTokenTimeout)
    assert transcript(
        (0.0, hang), (15.0, "?"), (15.0, "begin"), (15.1, "ready"), (15.2, "begin"), (15.3, "?"),
        (20.0, hang),  # the next period is longer
        (49.9, "?"), (50.0, "?"), (50.0, "begin"), (50.1, "ready"), (50.2, "begin"), (51.0, "answer"),
    ) == [
        "shut", "probe", "shut", "trial", "shut", "shut", "shut", "shut", "probe", "shut", "trial", "shut", "go",
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
    assert transcript((0.0, made(kind))) == ["go"]


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


def test_every_leaf_has_a_verdict_that_fits_its_place_in_the_tree() -> None:
    def leaves(kind: type[LLMError]) -> list[type[LLMError]]:
        return [leaf for each in kind.__subclasses__() for leaf in [each, *leaves(each)]]

    for leaf in leaves(LLMError):
        meant = decision.verdict(made(leaf))
        if issubclass(leaf, errors.RequestError | errors.CapabilityError):
            assert meant.opens is None
        if issubclass(leaf, errors.AuthenticationFailed | errors.ConnectionFailed):
            assert (meant.whole_address, meant.visible) == (True, True)


def test_litellms_judgement_of_a_status_is_ours() -> None:
    """Its ``_should_retry`` is the raw material; a used-up quota is told by its words, not its status."""
    litellm = _litellm._load()
    for status in (400, 401, 403, 404, 408, 409, 422, 429, 500, 502, 503, 504):
        assert error_mapping.refusal(status, b'{"error":"x"}').retryable == litellm._should_retry(status), status


@given(st.integers(0, 50), st.floats(0, 1))
def test_back_off_doubles_with_jitter_and_has_an_end(times: int, chance: float) -> None:
    seconds = decision.back_off(times, chance)
    assert 0.25 <= seconds <= 12
    assert decision.back_off(times, chance, 3.0) >= 3.0
    assert decision.back_off(times, chance, 86400.0) <= decision.LONGEST_S * 1.1


def test_who_comes_first() -> None:
    chain = [
        Standing(position=0, latency_s=2.0, cost=(2.5, 10.0)),
        Standing(position=1, latency_s=None, cost=(0.0, 0.0), local=True),
        Standing(position=2, latency_s=0.5, cost=None, local=True),
    ]
    assert selection.ranked(chain, "order") == [0, 1, 2]
    assert selection.ranked(chain, "latency") == [2, 0, 1]
    assert selection.ranked(chain, "cost") == [1, 0, 2]
    assert selection.ranked(chain, "local-first") == [1, 2, 0]


def test_what_is_not_known_is_no_lack() -> None:
    can = {"vision": None, "tools": False, "json_schema": True}
    assert selection.lacks(Needs(images=True, schema=True, tokens=10**9), can, None) == []
    assert selection.lacks(Needs(tools=True, tokens=9), can, 8) == [
        "tools",
        "context (9 tokens or more needed, 8 served)",
    ]
    assert selection.lacks(Needs(tokens=8), can, 8) == []


def test_the_decision_table_of_the_documents_is_the_codes() -> None:
    docs = Path(__file__).parent.parent / "docs"
    tables = runpy.run_path(str(docs / "generate.py"))["decision_tables"]()
    assert tables in (docs / "routing.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("error", "now", "wanted"),
    [
        (errors.ConnectionFailed("x"), {}, ("next", "forget")),
        (errors.InvalidRequest("x"), {}, ("give up", "keep")),
        (errors.ContentFiltered("x"), {"prefilled": True}, ("give up", "keep")),
        (errors.Unsupported("x"), {"prefilled": True, "held": True, "shown": True}, ("otherwise", "keep")),
        (errors.DeadlineExceeded("x"), {"time_left": False}, ("give up", "keep")),
        (errors.DeadlineExceeded("x"), {"time_left": True}, ("next", "forget")),
        (errors.ModelLoading("x"), {}, ("next", "keep")),  # who is no farther away
        (errors.ModelLoading("x"), {"others": False, "loading": True}, ("load", "keep")),
        (errors.ServerFailed("x"), {"others": False, "loading": True}, ("load", "forget")),
        (errors.ServerFailed("x"), {"others": False, "passes": True}, ("again", "forget")),
        (errors.ServerFailed("x"), {"others": False}, ("give up", "forget")),
        (errors.AnswerCut("x"), {"held": True, "shown": True, "others": False, "passes": True}, ("again", "keep")),
        (errors.AnswerCut("x"), {"blank": True, "fresh": True}, ("next", "keep")),  # nobody sees its white space twice
        (errors.NotContinued("x"), {"held": True, "prefilled": True, "stepped": True}, ("otherwise", "keep")),
        (errors.NotContinued("x"), {"held": True, "shown": True}, ("next", "keep")),
        (errors.NotContinued("x"), {"held": True, "others": False, "strayed": True}, ("begin again", "forget")),
        (
            errors.NotContinued("x"),
            {"held": True, "shown": True, "others": False, "strayed": True},
            ("give up", "keep"),
        ),
        (errors.ContextOverflow("x"), {}, ("next", "forget")),
        (errors.ContextOverflow("x"), {"shown": True, "held": True}, ("next", "keep")),  # of a continuation
        (errors.ContextOverflow("x"), {"shown": True, "held": True, "fresh": True}, ("give up", "keep")),
        (errors.ContextOverflow("x"), {"held": True, "fresh": True}, ("next", "forget")),
        (errors.AnswerCut("x"), {"shown": True, "held": True, "fresh": True}, ("next", "keep")),
        (errors.AnswerCut("x"), {"shown": True, "held": True, "fresh": True, "rigid": True}, ("give up", "keep")),
        (errors.AnswerCut("x"), {"shown": True, "held": True, "fresh": True, "resume": "raise"}, ("give up", "keep")),
        (errors.AnswerCut("x"), {"held": True, "fresh": True}, ("next", "keep")),
        (errors.AnswerCut("x"), {"held": True, "fresh": True, "rigid": True}, ("next", "forget")),
        (errors.AnswerTooLong("x"), {"shown": True, "held": True, "fresh": True}, ("give up", "keep")),
    ],
)
def test_what_a_failure_means_for_the_request(error: LLMError, now: dict[str, Any], wanted: tuple[str, str]) -> None:
    decided = decision.decide(error, decision.Situation(**now))
    assert (decided.action, decided.text) == wanted


def test_a_failure_after_the_finish_is_continued_by_nobody() -> None:
    error = errors.ErrorInAnswer("x")
    error.finished = True
    shown = decision.Situation(shown=True, held=True, fresh=True)
    assert decision.decide(error, shown).action == "give up"
    assert decision.decide(error, decision.Situation(held=True, fresh=True)).text == "forget"


def options(*said: str) -> list[selection.Option]:
    """By words: "cold far", "probe near"."""
    gates = ("shut", "probe", "trial")
    return [
        selection.Option(
            gate=next((gate for gate in gates if gate in one), "go"),  # type: ignore[arg-type]
            cold="cold" in one,
            distance=1 if "far" in one else 0,
        )
        for one in said
    ]


@pytest.mark.parametrize(
    ("said", "routing", "chosen", "load", "probe"),
    [
        (["near", "near"], "order", 0, [], []),
        (["near cold", "far"], "order", 0, [], []),
        (["near cold", "far"], "warm-first", 1, [0], []),
        (["near cold", "far", "near"], "order", 2, [0], []),
        (["far cold", "near"], "order", 1, [0], []),
        (["near cold", "near cold", "far"], "order", 0, [], []),
        (["near probe", "near"], "order", 1, [], [0]),
        (["near shut", "far"], "order", 1, [], []),
        (["near shut", "near shut"], "order", None, [], []),
        (["near trial", "near"], "order", 0, [], []),
    ],
)
def test_who_is_asked_now(said: list[str], routing: Any, chosen: int | None, load: list[int], probe: list[int]) -> None:
    assert selection.select(options(*said), routing) == selection.Selection(chosen, load, probe)
