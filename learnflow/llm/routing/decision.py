"""The rules of failover: the next action after a failed attempt, and how long a circuit breaker opens.

No function sends a request or waits. ``execution`` performs the action that ``decide`` chooses.

If an answer is interrupted, the next attempt can continue it. The attempt sends the text so far as a prefill (a last
assistant message for the model to continue), sometimes without the last word. Or the attempt instructs the model to
continue. Unless the prefill has the complete text, the continuation must first repeat the end of the text. If it does
not, the attempt fails with ``NotContinued``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from .. import errors
from ..errors import LLMError
from ..process import switches

Action = Literal["change_prefill", "next_provider", "wait_for_load", "retry", "restart", "raise"]

MAX_DELAY_S: Final = 300.0  # of breaker periods and of Retry-After: one server sent 86400
_FIRST_BACK_OFF_S: Final = 0.5
_MAX_BACK_OFF_S: Final = 8.0
SERVER_RESTART_PAUSE_S: Final = 1.0  # before a retry of a server that may be restarting


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestState:
    """The state of a request after a failed attempt.

    Attributes:
        text_emitted: the caller has received text other than white space.
        only_space_emitted: the caller has received white space, and no other text.
        has_partial: text other than white space has arrived, in this attempt or an earlier one.
        received_output: text, thinking or a tool call has arrived in this attempt.
        can_continue: the caller and the format of the answer (``Call.is_continuable``) allow a continuation.
        tool_call_emitted: the caller has received a part of a tool call.
        prefill_before_last_word: the prefill ended before the last word of the text.
        has_other_provider: another provider can be tried now.
        can_wait_for_load: a provider is loading a model, and LLM_LOAD_TIMEOUT has not passed.
        can_restart: a provider raised ``NotContinued``, and the answer was not restarted yet.
        can_retry: a failure may be transient, and a retry is left before the deadline.
        in_time: the caller's deadline has not passed.
    """

    text_emitted: bool = False
    only_space_emitted: bool = False
    has_partial: bool = False
    received_output: bool = False
    can_continue: bool = True
    tool_call_emitted: bool = False
    prefilled: bool = False
    prefill_before_last_word: bool = False
    has_other_provider: bool = True
    can_wait_for_load: bool = False
    can_restart: bool = False
    can_retry: bool = False
    in_time: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition after a failed attempt, and the next action.

    Attributes:
        description: the condition in words. ``docs/generate.py`` writes it to ``docs/failover.md``.
        drops_text: the next attempt starts the answer from the beginning.
    """

    description: str
    applies: Callable[[LLMError, RequestState], bool]
    action: Action
    drops_text: bool = False


def _is_unusable(error: LLMError, state: RequestState) -> bool:
    """Return whether the text of this attempt cannot become a valid answer, even if it is continued."""
    return state.received_output and (error.discards_text or error.finished)


# The first rule that applies is used.
RULES: Final = (
    Rule(
        "the server rejects the prefill of a continuation",
        lambda error, state: (
            state.prefilled and isinstance(error, errors.Unsupported | errors.RequestRefused | errors.InvalidRequest)
        ),
        "change_prefill",
    ),
    Rule(
        "the prefill ended before the last word, and the continuation does not repeat that word",
        lambda error, state: isinstance(error, errors.NotContinued) and state.prefill_before_last_word,
        "change_prefill",
    ),
    Rule(
        "the request is invalid or filtered, the cassette has no response to it, or the caller's deadline has passed",
        # If only the provider's own deadline has passed, another provider is tried
        lambda error, state: not (error.failover or (isinstance(error, errors.DeadlineExceeded) and state.in_time)),
        "raise",
    ),
    Rule("a part of a tool call was emitted", lambda _, state: state.tool_call_emitted, "raise"),
    Rule(
        "text was emitted that cannot become a valid answer (overflow, thinking, schema mismatch, truncated, endless)",
        lambda error, state: state.text_emitted and _is_unusable(error, state),
        "raise",
    ),
    Rule(
        "text arrived that cannot become a valid answer, and it was not emitted",
        _is_unusable,
        "next_provider",
        drops_text=True,
    ),
    Rule(
        "the model is loading, or the continuation does not repeat the end of the text",
        lambda error, _: isinstance(error, errors.ModelLoading | errors.NotContinued),
        "next_provider",
    ),
    Rule(
        "the answer was interrupted after text was emitted, and must not be continued (a schema, resume='raise')",
        lambda _, state: state.text_emitted and not state.can_continue,
        "raise",
    ),
    Rule(
        "the answer was interrupted, and can be continued; or only white space was emitted",
        lambda _, state: (state.has_partial and state.can_continue) or state.only_space_emitted,
        "next_provider",
    ),
    Rule("any other failure", lambda *_: True, "next_provider", drops_text=True),
)

# Used if the action is "next_provider" and no other provider is left.
LAST_RULES: Final = (
    Rule(
        "a provider is loading a model, within LLM_LOAD_TIMEOUT",
        lambda _, state: state.can_wait_for_load,
        "wait_for_load",
    ),
    Rule(
        "a continuation did not repeat the end of the text, nothing was emitted, and the answer was not restarted yet",
        lambda _, state: state.can_restart and not state.text_emitted,
        "restart",
        drops_text=True,
    ),
    Rule(
        "a failure may be transient, and LLM_RETRIES (LLM_PATIENCE if a local server may be restarting) allows a retry",
        lambda _, state: state.can_retry,
        "retry",
    ),
    Rule("any other case", lambda *_: True, "raise"),
)


def decide(error: LLMError, state: RequestState) -> Rule:
    """Return the rule for a failure: from ``RULES``, or from ``LAST_RULES`` if no other provider is left.

    The text is dropped if either rule drops it.
    """
    rule = next(rule for rule in RULES if rule.applies(error, state))
    if rule.action != "next_provider" or state.has_other_provider:
        return rule
    last = next(last for last in LAST_RULES if last.applies(error, state))
    return replace(last, drops_text=last.drops_text or rule.drops_text)


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerRule:
    """The effect of a failure on the provider's circuit breakers.

    Attributes:
        period_s: seconds for which a breaker opens the first time; None if it does not open. A ``Retry-After`` of the
            server has precedence.
        whole_address: the breaker covers every model at the address.
        probeable: a probe (without a prompt) can detect that the fault is over. Otherwise only a caller's request can.
    """

    period_s: float | None = None
    whole_address: bool = False
    probeable: bool = False


_STAYS_CLOSED: Final = BreakerRule()
# The first class that matches is used. Other errors open no breaker.
BREAKER_RULES: Final[tuple[tuple[type[LLMError], BreakerRule], ...]] = (
    (errors.DeadlineExceeded, _STAYS_CLOSED),  # the caller set the limit
    (errors.ModelLoading, _STAYS_CLOSED),
    (errors.ConnectionFailed, BreakerRule(period_s=5, whole_address=True, probeable=True)),
    (errors.ConnectTimeout, BreakerRule(period_s=10, whole_address=True, probeable=True)),
    (errors.AuthenticationFailed, BreakerRule(period_s=30, whole_address=True, probeable=True)),
    (errors.Misconfigured, BreakerRule(period_s=30, whole_address=True, probeable=True)),
    (errors.ModelNotFound, BreakerRule(period_s=30, probeable=True)),
    (errors.NotConfigured, BreakerRule(period_s=30, probeable=True)),
    (errors.TimedOut, BreakerRule(period_s=15)),
    (errors.QuotaExceeded, BreakerRule(period_s=120, whole_address=True)),
    (errors.RateLimited, BreakerRule(period_s=10)),
    (errors.Overloaded, BreakerRule(period_s=2)),
    (errors.ServerFailed, BreakerRule(period_s=5)),
    (errors.EmptyAnswer, _STAYS_CLOSED),  # the model or the prompt is the cause, not the server
    (errors.SchemaMismatch, _STAYS_CLOSED),
    (errors.ThinkingLeaked, _STAYS_CLOSED),
    (errors.TokenRepeated, _STAYS_CLOSED),
    (errors.AnswerTooLong, _STAYS_CLOSED),
    (errors.AnswerTruncated, _STAYS_CLOSED),  # the caller set the limit
    (errors.NotContinued, _STAYS_CLOSED),
    (errors.BrokenAnswer, BreakerRule(period_s=5)),
)


# Caused by the request, its deadline, a missing recording, or a continuation that does not match.
_NOT_PROVIDER_FAILURES: Final = (
    errors.RequestError | errors.CapabilityError | errors.DeadlineExceeded | errors.NotRecorded | errors.NotContinued
)


def is_provider_failure(error: LLMError) -> bool:
    """Return whether an error counts as a failure in the provider's statistics."""
    return not isinstance(error, _NOT_PROVIDER_FAILURES)


def breaker_rule(error: LLMError) -> BreakerRule:
    """Return the effect of a failure on the circuit breakers."""
    return next((rule for kind, rule in BREAKER_RULES if isinstance(error, kind)), _STAYS_CLOSED)


def max_retries(configured: int) -> int:
    """Return the configured number of retries, or the maximum that a test has set, if it is smaller."""
    return configured if switches.max_retries is None else min(configured, switches.max_retries)


def server_may_be_restarting(error: LLMError | None) -> bool:
    """Return whether the server may be restarting; False in a test that limits retries."""
    return switches.max_retries is None and isinstance(error, errors.ConnectionFailed) and error.refused


def back_off(retries: int, jitter: float, retry_after: float | None = None) -> float:
    """Return the seconds before the next retry: the server's ``retry_after``, else an exponential delay.

    ``jitter`` is a random number from 0 to 1, which spreads the retries of many clients. In a test that limits retries,
    the delay is 0.
    """
    if switches.max_retries is not None:
        return 0.0
    if retry_after is not None:
        return min(retry_after, MAX_DELAY_S) * (1 + jitter / 10)
    return min(_FIRST_BACK_OFF_S * 2.0**retries, _MAX_BACK_OFF_S) * (0.5 + jitter)
