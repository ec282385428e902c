"""The rules of failover and of circuit breakers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import made

from learnflow.llm import errors
from learnflow.llm.adapter import _litellm
from learnflow.llm.errors import LLMError
from learnflow.llm.routing import decision
from learnflow.llm.transport import error_mapping


def test_every_error_has_breaker_rule_that_fits_its_base() -> None:
    def leaves(kind: type[LLMError]) -> list[type[LLMError]]:
        return [leaf for subclass in kind.__subclasses__() for leaf in [subclass, *leaves(subclass)]]

    for leaf in leaves(LLMError):
        rule = decision.breaker_rule(made(leaf))
        if issubclass(leaf, errors.RequestError | errors.CapabilityError):
            assert rule.period_s is None
        if issubclass(leaf, errors.AuthenticationFailed | errors.ConnectionFailed):
            assert (rule.whole_address, rule.probeable) == (True, True)


def test_retryable_statuses_match_litellm() -> None:
    """LiteLLM's ``_should_retry`` judges by status. A used-up quota is distinguished by its message.

    It retries 409, too, which is a refusal here: another provider gets the request at once.
    """
    litellm = _litellm._load()
    for status in (400, 401, 403, 404, 408, 422, 429, 500, 502, 503, 504):
        assert error_mapping.map_response(status, b'{"error":"x"}').retryable == litellm._should_retry(status), status


@given(st.integers(0, 50), st.floats(0, 1))
def test_back_off_doubles_with_jitter_up_to_maximum(retries: int, jitter: float) -> None:
    seconds = decision.back_off(retries, jitter)
    assert 0.25 <= seconds <= 12
    assert decision.back_off(retries, jitter, 3.0) >= 3.0
    assert decision.back_off(retries, jitter, 86400.0) <= decision.MAX_DELAY_S * 1.1


@pytest.mark.parametrize(
    ("error", "state", "expected"),
    [
        (errors.ConnectionFailed("x"), {}, ("next_provider", "drop")),
        (errors.InvalidRequest("x"), {}, ("raise", "keep")),
        (errors.RequestRefused("x"), {}, ("next_provider", "drop")),
        (errors.RequestRefused("x"), {"prefilled": True, "has_partial": True}, ("change_prefill", "keep")),
        (errors.ContentFiltered("x"), {"prefilled": True}, ("raise", "keep")),
        (
            errors.Unsupported("x"),
            {"prefilled": True, "has_partial": True, "text_emitted": True},
            ("change_prefill", "keep"),
        ),
        (errors.DeadlineExceeded("x"), {"in_time": False}, ("raise", "keep")),
        (errors.DeadlineExceeded("x"), {"in_time": True}, ("next_provider", "drop")),
        (errors.ModelLoading("x"), {}, ("next_provider", "keep")),  # the next one is no farther away
        (errors.ModelLoading("x"), {"has_other_provider": False, "can_wait_for_load": True}, ("wait_for_load", "keep")),
        (errors.ServerFailed("x"), {"has_other_provider": False, "can_wait_for_load": True}, ("wait_for_load", "drop")),
        (errors.ServerFailed("x"), {"has_other_provider": False, "can_retry": True}, ("retry", "drop")),
        (errors.ServerFailed("x"), {"has_other_provider": False}, ("raise", "drop")),
        (
            errors.AnswerCut("x"),
            {"has_partial": True, "text_emitted": True, "has_other_provider": False, "can_retry": True},
            ("retry", "keep"),
        ),
        (
            errors.AnswerCut("x"),
            {"only_space_emitted": True, "received_output": True},
            ("next_provider", "keep"),
        ),  # white space is not shown twice
        (
            errors.NotContinued("x"),
            {"has_partial": True, "prefilled": True, "prefill_before_last_word": True},
            ("change_prefill", "keep"),
        ),
        (errors.NotContinued("x"), {"has_partial": True, "text_emitted": True}, ("next_provider", "keep")),
        (
            errors.NotContinued("x"),
            {"has_partial": True, "has_other_provider": False, "can_restart": True},
            ("restart", "drop"),
        ),
        (
            errors.NotContinued("x"),
            {"has_partial": True, "text_emitted": True, "has_other_provider": False, "can_restart": True},
            ("raise", "keep"),
        ),
        (errors.ContextOverflow("x"), {}, ("next_provider", "drop")),
        (
            errors.ContextOverflow("x"),
            {"text_emitted": True, "has_partial": True},
            ("next_provider", "keep"),
        ),  # of a continuation
        (
            errors.ContextOverflow("x"),
            {"text_emitted": True, "has_partial": True, "received_output": True},
            ("raise", "keep"),
        ),
        (errors.ContextOverflow("x"), {"has_partial": True, "received_output": True}, ("next_provider", "drop")),
        (
            errors.AnswerCut("x"),
            {"text_emitted": True, "has_partial": True, "received_output": True},
            ("next_provider", "keep"),
        ),
        (
            errors.AnswerCut("x"),
            {"text_emitted": True, "has_partial": True, "received_output": True, "can_continue": False},
            ("raise", "keep"),
        ),
        (errors.AnswerCut("x"), {"has_partial": True, "received_output": True}, ("next_provider", "keep")),
        (
            errors.AnswerCut("x"),
            {"has_partial": True, "received_output": True, "can_continue": False},
            ("next_provider", "drop"),
        ),
        (
            errors.AnswerTooLong("x"),
            {"text_emitted": True, "has_partial": True, "received_output": True},
            ("raise", "keep"),
        ),
    ],
)
def test_decision_after_failure(error: LLMError, state: dict[str, Any], expected: tuple[str, str]) -> None:
    decided = decision.decide(error, decision.RequestState(**state))
    assert (decided.action, "drop" if decided.drops_text else "keep") == expected


def test_failure_after_finish_is_not_continued() -> None:
    error = errors.ErrorInAnswer("x")
    error.finished = True
    shown = decision.RequestState(text_emitted=True, has_partial=True, received_output=True)
    assert decision.decide(error, shown).action == "raise"
    assert decision.decide(error, decision.RequestState(has_partial=True, received_output=True)).drops_text
