"""What a failure means: for the request (what is done next, and with the text so far) and for the provider that failed.

Pure. ``decide`` is the whole of it: ``execution`` does what it says. ``docs/failover.md`` has the tables, printed from
``RULES``, ``NOBODY_LEFT`` and ``VERDICTS`` by ``docs/generate.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from .. import errors
from ..base import Resume
from ..errors import LLMError
from ..process import switches

Action = Literal["otherwise", "next", "load", "again", "begin again", "give up"]
Text = Literal["keep", "forget"]

LONGEST_S: Final = 300.0  # whatever a server requests (429 with Retry-After: 86400 was seen)
_BACK_OFF_S: Final = 0.5
_BACK_OFF_MOST_S: Final = 8.0
RESTART_PAUSE_S: Final = 1.0  # between two retries of a server that restarts


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """The state of a request in which a failure is judged.

    Attributes:
        shown: the caller has seen a part of the answer (more than white space).
        blank: the caller has seen white space, and nothing else.
        held: a part of it is held, shown or not, of this attempt or of one before.
        fresh: this attempt has added to it.
        rigid: it has a form that cannot be continued, as JSON has.
        called: the caller has seen a piece of a tool call.
        resume: what to do if a stream breaks, as requested.
        prefilled: the attempt sent the beginning of the answer as a prefix.
        stepped: the prefix ended at the last whole word, before the end of the text.
        others: another provider can be tried now.
        loading: a provider loads a model, and the time limit for that is not over.
        not_continued: a provider did not continue the answer, and the answer was not yet begun again for that.
        passes: a provider failed in a way that may pass, and there are retries (or LLM_PATIENCE, for a server that
            restarts) and time left for it.
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
    passes: bool = False
    time_left: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the table: the next action, and what becomes of the text so far. The first line that fits decides."""

    when: str
    fits: Callable[[LLMError, Situation], bool]
    action: Action
    text: Text


def _is(*kinds: type[LLMError]) -> Callable[[LLMError, Situation], bool]:
    return lambda error, _: isinstance(error, kinds)


# The answer is worthless, or not what was requested: it is not continued.
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
        "the server does not take an answer that was begun (our idea)",
        lambda error, now: (
            now.prefilled
            and isinstance(error, errors.Unsupported | errors.RequestError)
            and not isinstance(error, errors.ContentFiltered)
        ),
        "otherwise",
        "keep",
    ),
    Rule(
        "less than all was given, up to the last whole word, to one that takes a beginning, and something else follows",
        lambda error, now: isinstance(error, errors.NotContinued) and now.stepped,
        "otherwise",
        "keep",
    ),
    Rule(
        "the caller's time is over",
        lambda error, now: isinstance(error, errors.DeadlineExceeded) and not now.time_left,
        "give up",
        "keep",
    ),
    Rule(
        "the request itself is wrong or filtered, or nothing of the kind was recorded",
        lambda error, _: not error.failover and not isinstance(error, errors.DeadlineExceeded),
        "give up",
        "keep",
    ),
    Rule("a piece of a tool call was shown, which is never taken back", lambda _, now: now.called, "give up", "keep"),
    Rule(
        "what it said is worthless (the prompt was cut, thinking, not the schema, endless) or had its finish; shown",
        lambda error, now: now.shown and now.fresh and (isinstance(error, _WORTHLESS) or error.finished),
        "give up",
        "keep",
    ),
    Rule(
        "the same, and the caller has seen nothing of it",
        lambda error, now: now.fresh and (isinstance(error, _WORTHLESS) or error.finished),
        "next",
        "forget",
    ),
    Rule("the model is loading, or it does not go on where the answer broke", _is(*_LATER), "next", "keep"),
    Rule(
        "it broke after a part was shown that cannot be continued (a schema, resume='raise')",
        lambda _, now: now.shown and (now.rigid or now.resume == "raise"),
        "give up",
        "keep",
    ),
    Rule("it broke after a part was shown", lambda _, now: now.shown, "next", "keep"),
    Rule(
        "it broke after a part arrived that nobody has seen and that can be continued",
        lambda _, now: now.held and not now.rigid and now.resume == "continue",
        "next",
        "keep",
    ),
    Rule("nothing but white space was shown", lambda _, now: now.blank, "next", "keep"),
    Rule("anything else that another provider may be able to do", lambda *_: True, "next", "forget"),
)

# If the action is "next" and no other provider is left: the first rule that fits.
NOBODY_LEFT: Final = (
    Rule("somebody loads a model, within LLM_LOAD_TIMEOUT", lambda _, now: now.loading, "load", "keep"),
    Rule(
        "somebody could not go on with the answer, nobody has seen it, and this is the first time",
        lambda _, now: now.not_continued and not now.shown,
        "begin again",
        "forget",
    ),
    Rule(
        "a failure may pass, and there are retries and time; a server of one's own that restarts has LLM_PATIENCE",
        lambda _, now: now.passes,
        "again",
        "keep",
    ),
    Rule("anything else", lambda *_: True, "give up", "keep"),
)


def decide(error: LLMError, now: Situation) -> Rule:
    """Return the rule for a failure. If the text is dropped by one of two rules, it is dropped."""
    rule = next(rule for rule in RULES if rule.fits(error, now))
    if rule.action != "next" or now.others:
        return rule
    last = next(last for last in NOBODY_LEFT if last.fits(error, now))
    return replace(last, text="forget") if rule.text == "forget" else last


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
# The first line that fits; a leaf that is not here is nobody's fault or the request's own.
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
    (errors.EmptyAnswer, _INNOCENT),  # of the model and the prompt, not of the server
    (errors.SchemaMismatch, _INNOCENT),
    (errors.ThinkingLeaked, _INNOCENT),
    (errors.TokenRepeated, _INNOCENT),
    (errors.AnswerTooLong, _INNOCENT),
    (errors.AnswerTruncated, _INNOCENT),  # the limit is the caller's
    (errors.NotContinued, _INNOCENT),
    (errors.BrokenAnswer, Verdict(opens=5)),
)


# What is no failure of a provider: the caller's own request or time, a recording, a continuation that was only words.
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
    return min(_BACK_OFF_S * 2.0**times, _BACK_OFF_MOST_S) * (0.5 + chance)


def patience(remaining: float) -> float:
    """Return the seconds to the first token if other providers need a share of the time."""
    return remaining / 2
