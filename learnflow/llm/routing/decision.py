"""The rules of failover: what a failure means for the request and for the provider that failed.

Pure functions. ``execution`` carries out what ``decide`` returns. ``docs/generate.py`` prints ``RULES``, ``LAST_RULES``
and ``VERDICTS`` into ``docs/failover.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from .. import errors
from ..base import Resume
from ..errors import LLMError
from ..process import switches

Action = Literal["alternative", "next", "load", "retry", "restart", "raise"]
Text = Literal["keep", "drop"]

LONGEST_S: Final = 300.0  # even if a response requests more: 429 with Retry-After: 86400 was observed
_BACK_OFF_S: Final = 0.5
_MAX_BACK_OFF_S: Final = 8.0
RESTART_PAUSE_S: Final = 1.0  # between two retries of a server that restarts


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """The state of a request in which a failure is judged.

    Attributes:
        shown: the caller has seen a part of the answer (more than white space).
        blank: the caller has seen white space, and nothing else.
        held: a part of the answer has arrived, in this attempt or an earlier one.
        fresh: this attempt has added to it.
        rigid: the answer has a form that cannot be continued, like JSON.
        called: the caller has seen a piece of a tool call.
        resume: what to do if a stream breaks, as requested.
        prefilled: the attempt sent the beginning of the answer as a prefill.
        stepped: the prefill ended at the last whole word, before the end of the text.
        others: another provider can be tried now.
        loading: a provider loads a model, and the time limit for that is not over.
        not_continued: a provider did not continue the answer, and the answer was not yet restarted for that.
        transient: a failure may be transient, and there is time and a retry left, or LLM_PATIENCE for a server that
            restarts.
        time_left: the caller's deadline is not over.
    """

    shown: bool = False
    blank: bool = False
    held: bool = False
    fresh: bool = False
    rigid: bool = False
    called: bool = False
    resume: Resume = "continue"
    prefilled: bool = False
    stepped: bool = False
    others: bool = True
    loading: bool = False
    not_continued: bool = False
    transient: bool = False
    time_left: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """A line of the table: the next action, and what becomes of the text so far. The first line that fits decides."""

    when: str
    fits: Callable[[LLMError, Situation], bool]
    action: Action
    text: Text


def _is(*kinds: type[LLMError]) -> Callable[[LLMError, Situation], bool]:
    return lambda error, _: isinstance(error, kinds)


# The answer is useless or not as requested, so that it is not continued.
_WORTHLESS: Final = (
    errors.ContextOverflow
    | errors.ThinkingLeaked
    | errors.SchemaMismatch
    | errors.AnswerTruncated
    | errors.AnswerTooLong
)

_LATER: Final = (errors.ModelLoading, errors.NotContinued)

RULES: Final = (
    Rule(
        "the server refuses a prefill, which this package added",
        lambda error, now: (
            now.prefilled
            and isinstance(error, errors.Unsupported | errors.RequestError)
            and not isinstance(error, errors.ContentFiltered)
        ),
        "alternative",
        "keep",
    ),
    Rule(
        "the prefill ended at the last whole word, and the continuation does not repeat the rest",
        lambda error, now: isinstance(error, errors.NotContinued) and now.stepped,
        "alternative",
        "keep",
    ),
    Rule(
        "the caller's deadline is over",
        lambda error, now: isinstance(error, errors.DeadlineExceeded) and not now.time_left,
        "raise",
        "keep",
    ),
    Rule(
        "the request itself is invalid or filtered, or the cassette has no response to it",
        lambda error, _: not error.failover and not isinstance(error, errors.DeadlineExceeded),
        "raise",
        "keep",
    ),
    Rule("a piece of a tool call was shown, which is never withdrawn", lambda _, now: now.called, "raise", "keep"),
    Rule(
        "the answer is useless (prompt cut, thinking, schema mismatch, endless) or had finished, and was shown",
        lambda error, now: now.shown and now.fresh and (isinstance(error, _WORTHLESS) or error.finished),
        "raise",
        "keep",
    ),
    Rule(
        "the same, and nothing was shown",
        lambda error, now: now.fresh and (isinstance(error, _WORTHLESS) or error.finished),
        "next",
        "drop",
    ),
    Rule("the model is loading, or the continuation does not fit the text", _is(*_LATER), "next", "keep"),
    Rule(
        "the answer broke after a part was shown, and cannot be continued (a schema, resume='raise')",
        lambda _, now: now.shown and (now.rigid or now.resume == "raise"),
        "raise",
        "keep",
    ),
    Rule("the answer broke after a part was shown", lambda _, now: now.shown, "next", "keep"),
    Rule(
        "the answer broke after a part arrived that was not shown and can be continued",
        lambda _, now: now.held and not now.rigid and now.resume == "continue",
        "next",
        "keep",
    ),
    Rule("nothing but white space was shown", lambda _, now: now.blank, "next", "keep"),
    Rule("any other failure", lambda *_: True, "next", "drop"),
)

# If the action is "next" and no other provider is left: the first rule that fits.
LAST_RULES: Final = (
    Rule("a provider loads a model, within LLM_LOAD_TIMEOUT", lambda _, now: now.loading, "load", "keep"),
    Rule(
        "a continuation did not fit the text, nothing was shown, and the answer was not restarted yet",
        lambda _, now: now.not_continued and not now.shown,
        "restart",
        "drop",
    ),
    Rule(
        "a failure may be transient, and there are retries and time left (LLM_PATIENCE for a restarting local server)",
        lambda _, now: now.transient,
        "retry",
        "keep",
    ),
    Rule("any other case", lambda *_: True, "raise", "keep"),
)


def decide(error: LLMError, now: Situation) -> Rule:
    """Return the rule for a failure. If one of two rules drops the text, it is dropped."""
    rule = next(rule for rule in RULES if rule.fits(error, now))
    if rule.action != "next" or now.others:
        return rule
    last = next(last for last in LAST_RULES if last.fits(error, now))
    return replace(last, text="drop") if rule.text == "drop" else last


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a failure means for the provider that failed.

    Attributes:
        opens: seconds for which its circuit breaker opens at first; None if the provider is not at fault.
        whole_address: the fault covers every model at the address.
        visible: a probe shows whether the fault is over.
    """

    opens: float | None = None
    whole_address: bool = False
    visible: bool = False


_INNOCENT: Final = Verdict()
# The first line that fits. Other errors open no breaker.
VERDICTS: Final[tuple[tuple[type[LLMError], Verdict], ...]] = (
    (errors.DeadlineExceeded, _INNOCENT),  # the caller's time, not the server's
    (errors.ModelLoading, _INNOCENT),
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
    (errors.EmptyAnswer, _INNOCENT),  # due to the model and the prompt, not the server
    (errors.SchemaMismatch, _INNOCENT),
    (errors.ThinkingLeaked, _INNOCENT),
    (errors.TokenRepeated, _INNOCENT),
    (errors.AnswerTooLong, _INNOCENT),
    (errors.AnswerTruncated, _INNOCENT),  # the limit is the caller's
    (errors.NotContinued, _INNOCENT),
    (errors.BrokenAnswer, Verdict(opens=5)),
)


# Not a provider's failure: the caller's request or deadline, a response missing in a cassette, a wrong continuation.
_NOT_ITS_FAULT: Final = (
    errors.RequestError | errors.CapabilityError | errors.DeadlineExceeded | errors.NotRecorded | errors.NotContinued
)


def at_fault(error: LLMError) -> bool:
    """Return whether this counts as a failure of the provider."""
    return not isinstance(error, _NOT_ITS_FAULT)


def verdict(error: LLMError) -> Verdict:
    """Return what a failure means for the provider that failed."""
    return next((meant for kind, meant in VERDICTS if isinstance(error, kind)), _INNOCENT)


def rounds(retries: int) -> int:
    """Return the number of retries: as configured, at most the limit that a test sets."""
    return retries if switches.retries is None else min(retries, switches.retries)


def may_restart(error: LLMError | None) -> bool:
    """Return whether the server may be restarting. A test that limits retries does not wait for it."""
    return switches.retries is None and isinstance(error, errors.ConnectionFailed) and error.refused


def back_off(times: int, chance: float, retry_after: float | None = None) -> float:
    """Return the seconds before the next retry: doubling, with jitter, or ``Retry-After``.

    Args:
        times: the number of retries so far.
        chance: from 0 to 1.
        retry_after: what the server requested.
    """
    if switches.retries is not None:
        return 0.0
    if retry_after is not None:
        return min(retry_after, LONGEST_S) * (1 + chance / 10)
    return min(_BACK_OFF_S * 2.0**times, _MAX_BACK_OFF_S) * (0.5 + chance)


def patience(remaining: float) -> float:
    """Return the seconds to the first token if other providers need a share of the time."""
    return remaining / 2
