"""The rules of failover: the next action after a failure, and how long the provider's circuit breaker opens.

All functions are pure. ``execution`` carries out the rule that ``decide`` returns. ``docs/generate.py`` writes
``RULES``, ``LAST_RULES`` and ``VERDICTS`` to ``docs/failover.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from .. import errors
from ..errors import LLMError
from ..process import switches

Action = Literal["alternative", "next", "load", "retry", "restart", "raise"]

LONGEST_S: Final = 300.0  # limit for Retry-After and breaker periods; a real server sent Retry-After: 86400
_BACK_OFF_S: Final = 0.5
_MAX_BACK_OFF_S: Final = 8.0
RESTART_PAUSE_S: Final = 1.0  # between two retries of a server that restarts


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """The state of a request when an attempt has failed.

    Attributes:
        text_shown: the caller has received text of the answer that is more than white space.
        only_space_shown: the caller has received only white space.
        has_partial: text of the answer has arrived, in this attempt or an earlier one.
        added_text: text or tokens have arrived in this attempt.
        can_continue: the caller allows a continuation, and the format of the answer does, unlike JSON.
        tool_call_shown: the caller has received a part of a tool call.
        prefilled: the attempt sent the partial answer as a prefill.
        stepped_back: the prefill ended at the last whole word, before the end of the text.
        others: another provider is available now.
        loading: a provider is loading a model, and LLM_LOAD_TIMEOUT has not passed.
        not_continued: a continuation did not repeat the end of the text, and the answer was not restarted yet.
        transient: a failure may be transient, and time and a retry are left. LLM_PATIENCE allows more retries of a
            server that restarts.
        time_left: the caller's deadline has not passed.
    """

    text_shown: bool = False
    only_space_shown: bool = False
    has_partial: bool = False
    added_text: bool = False
    can_continue: bool = True
    tool_call_shown: bool = False
    prefilled: bool = False
    stepped_back: bool = False
    others: bool = True
    loading: bool = False
    not_continued: bool = False
    transient: bool = False
    time_left: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """The next action after a failure. The first rule that fits applies.

    Attributes:
        when: the condition, for the documents.
        fits: whether the rule applies to an error and the state of the request.
        action: the next action.
        drops_text: the next attempt begins the answer from the start.
    """

    when: str
    fits: Callable[[LLMError, Situation], bool]
    action: Action
    drops_text: bool = False


def _is_unusable(error: LLMError, state: Situation) -> bool:
    """Return whether a continuation of the answer would be unusable, too."""
    unusable = (
        errors.ContextOverflow
        | errors.ThinkingLeaked
        | errors.SchemaMismatch
        | errors.AnswerTruncated
        | errors.AnswerTooLong
    )
    return state.added_text and (isinstance(error, unusable) or error.finished)


RULES: Final = (
    Rule(
        "the server rejects the prefill of a continuation",
        lambda error, state: (
            state.prefilled
            and isinstance(error, errors.Unsupported | errors.RequestError)
            and not isinstance(error, errors.ContentFiltered)
        ),
        "alternative",
    ),
    Rule(
        "the prefill ended at the last whole word, and the continuation does not repeat the rest",
        lambda error, state: isinstance(error, errors.NotContinued) and state.stepped_back,
        "alternative",
    ),
    Rule(
        "the request is invalid or filtered, the cassette has no response to it, or the caller's deadline has passed",
        lambda error, state: not (error.failover or (isinstance(error, errors.DeadlineExceeded) and state.time_left)),
        "raise",
    ),
    Rule("a part of a tool call was shown", lambda _, state: state.tool_call_shown, "raise"),
    Rule(
        "the answer is unusable (overflow, thinking, schema mismatch, truncated, endless) or finished, and was shown",
        lambda error, state: state.text_shown and _is_unusable(error, state),
        "raise",
    ),
    Rule("the answer is unusable or finished, and was not shown", _is_unusable, "next", drops_text=True),
    Rule(
        "the model is loading, or the continuation does not repeat the end of the text",
        lambda error, _: isinstance(error, errors.ModelLoading | errors.NotContinued),
        "next",
    ),
    Rule(
        "the answer was interrupted after text was shown, and must not be continued (a schema, resume='raise')",
        lambda _, state: state.text_shown and not state.can_continue,
        "raise",
    ),
    Rule(
        "the answer was interrupted, and can be continued; or only white space was shown",
        lambda _, state: (state.has_partial and state.can_continue) or state.only_space_shown,
        "next",
    ),
    Rule("any other failure", lambda *_: True, "next", drops_text=True),
)

# Apply if the action is "next" and no other provider is left. The first rule that fits applies.
LAST_RULES: Final = (
    Rule("a provider is loading a model, within LLM_LOAD_TIMEOUT", lambda _, state: state.loading, "load"),
    Rule(
        "a continuation did not repeat the end of the text, nothing was shown, and the answer was not restarted yet",
        lambda _, state: state.not_continued and not state.text_shown,
        "restart",
        drops_text=True,
    ),
    Rule(
        "a failure may be transient, and time and a retry are left (LLM_PATIENCE for a restarting local server)",
        lambda _, state: state.transient,
        "retry",
    ),
    Rule("any other case", lambda *_: True, "raise"),
)


def decide(error: LLMError, state: Situation) -> Rule:
    """Return the rule for a failure. If ``LAST_RULES`` applies after ``RULES``, either rule can drop the text."""
    rule = next(rule for rule in RULES if rule.fits(error, state))
    if rule.action != "next" or state.others:
        return rule
    last = next(last for last in LAST_RULES if last.fits(error, state))
    return replace(last, drops_text=last.drops_text or rule.drops_text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a failure means for the provider that failed.

    Attributes:
        opens: seconds for which the circuit breaker opens the first time; None if the provider is not at fault.
        whole_address: the fault covers every model at the address.
        visible: a probe can detect that the fault is over. Otherwise only a request can.
    """

    opens: float | None = None
    whole_address: bool = False
    visible: bool = False


_NO_FAULT: Final = Verdict()
# The first matching class applies. Other errors open no breaker.
VERDICTS: Final[tuple[tuple[type[LLMError], Verdict], ...]] = (
    (errors.DeadlineExceeded, _NO_FAULT),  # the caller's time, not the server's
    (errors.ModelLoading, _NO_FAULT),
    (errors.ConnectionFailed, Verdict(opens=5, whole_address=True, visible=True)),
    (errors.ConnectTimeout, Verdict(opens=10, whole_address=True, visible=True)),
    (errors.AuthenticationFailed, Verdict(opens=30, whole_address=True, visible=True)),
    (errors.Misconfigured, Verdict(opens=30, whole_address=True, visible=True)),
    (errors.ModelNotFound, Verdict(opens=30, visible=True)),
    (errors.NotConfigured, Verdict(opens=30, visible=True)),
    (errors.TimedOut, Verdict(opens=15)),
    (errors.QuotaExceeded, Verdict(opens=120, whole_address=True)),
    (errors.RateLimited, Verdict(opens=10)),
    (errors.Overloaded, Verdict(opens=2)),
    (errors.ServerFailed, Verdict(opens=5)),
    (errors.EmptyAnswer, _NO_FAULT),  # due to the model and the prompt, not the server
    (errors.SchemaMismatch, _NO_FAULT),
    (errors.ThinkingLeaked, _NO_FAULT),
    (errors.TokenRepeated, _NO_FAULT),
    (errors.AnswerTooLong, _NO_FAULT),
    (errors.AnswerTruncated, _NO_FAULT),  # the limit is the caller's
    (errors.NotContinued, _NO_FAULT),
    (errors.BrokenAnswer, Verdict(opens=5)),
)


# The provider is not at fault: the caller's request or deadline, a missing recording, a wrong continuation.
_NOT_AT_FAULT: Final = (
    errors.RequestError | errors.CapabilityError | errors.DeadlineExceeded | errors.NotRecorded | errors.NotContinued
)


def at_fault(error: LLMError) -> bool:
    """Return whether an error counts as a failure of the provider."""
    return not isinstance(error, _NOT_AT_FAULT)


def verdict(error: LLMError) -> Verdict:
    """Return what a failure means for the provider that failed."""
    return next((value for kind, value in VERDICTS if isinstance(error, kind)), _NO_FAULT)


def rounds(retries: int) -> int:
    """Return the configured number of retries. A test may set a lower limit."""
    return retries if switches.retries is None else min(retries, switches.retries)


def may_restart(error: LLMError | None) -> bool:
    """Return whether the server may be restarting. Return False in a test that limits retries."""
    return switches.retries is None and isinstance(error, errors.ConnectionFailed) and error.refused


def back_off(retries: int, jitter: float, retry_after: float | None = None) -> float:
    """Return the seconds before the next retry: ``Retry-After``, else an exponential delay with jitter.

    Args:
        retries: the number of retries so far.
        jitter: a random number from 0 to 1.
        retry_after: the delay that the server requested, in seconds.
    """
    if switches.retries is not None:
        return 0.0
    if retry_after is not None:
        return min(retry_after, LONGEST_S) * (1 + jitter / 10)
    return min(_BACK_OFF_S * 2.0**retries, _MAX_BACK_OFF_S) * (0.5 + jitter)
