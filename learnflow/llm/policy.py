"""The decisions, pure: what a failure means, when a breaker opens and closes, how long to wait, who comes first.

Must never know a clock, sleep, do I/O, or name a provider: it decides from values and a time that it is given.
The router runs what is decided here. Times are seconds; ``now`` is any clock that only goes forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from . import errors
from .errors import LLMError

Gate = Literal["go", "shut", "probe", "trial"]
Routing = Literal["order", "latency", "cost", "local-first"]

LONGEST_S: Final = 300.0  # whatever a server asks for (429 with Retry-After: 86400 was seen)
_BACK_OFF_S: Final = 0.5
_BACK_OFF_MOST_S: Final = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a failure means for the provider that failed.

    Attributes:
        opens: how long it is left alone at first; None where it is not to blame.
        whole_address: every model at its address is concerned, not only this one.
        visible: a probe that costs nothing sees whether it is over.
    """

    opens: float | None = None
    whole_address: bool = False
    visible: bool = False


_INNOCENT: Final = Verdict()
# The first line that fits; a leaf that is not here is nobody's fault or the request's own.
_VERDICTS: Final[tuple[tuple[type[LLMError], Verdict], ...]] = (
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
    (errors.BrokenAnswer, Verdict(opens=5)),
)


def verdict(error: LLMError) -> Verdict:
    """What this failure means for the provider that failed."""
    return next((meant for kind, meant in _VERDICTS if isinstance(error, kind)), _INNOCENT)


@dataclass(slots=True)
class Breaker:
    """Whether a place is asked. Closed; open for a period; then a probe; then, where a probe cannot see it, one trial.

    Attributes:
        error: why it is open; None while it is closed.
        until: when the period is over.
        period: how long it is, or was.
        opened: since when it is open.
    """

    error: LLMError | None = None
    until: float = 0.0
    period: float = 0.0
    opened: float = 0.0
    _visible: bool = False
    _probed: bool = False
    _busy: bool = False  # a probe or a trial is under way

    @property
    def open(self) -> bool:
        """Whether it is not simply asked."""
        return self.error is not None

    def gate(self, now: float) -> Gate:
        """What may be done now: ask it, leave it alone, probe it, or let one request through."""
        if self.error is None:
            return "go"
        if self._busy or now < self.until:
            return "shut"
        return "trial" if self._probed else "probe"

    def begin(self) -> None:
        """A probe or a trial begins: nobody else begins one."""
        self._busy = True

    def abandon(self) -> None:
        """The probe or the trial was left without an outcome."""
        self._busy = False

    def probed(self, now: float, *, ready: bool) -> None:
        """How the probe went; one before its time that fails does not make the period longer."""
        self._busy = False
        if not ready:
            if now >= self.until:
                self._again(now)
        elif self._visible:
            self.close()
        else:
            self._probed = True

    def close(self) -> None:
        """It has answered."""
        self.error, self.period = None, 0.0
        self._visible = self._probed = self._busy = False

    def fail(self, error: LLMError, now: float) -> bool:
        """It has failed. Returns whether this opened it."""
        meant = verdict(error)
        self._busy = False
        if meant.opens is None:
            return False
        newly, trial = self.error is None, self._probed
        if not newly and not trial and now < self.until:
            return False  # one of many that were under way when it opened
        self.error, self._visible, self._probed = error, meant.visible, False
        if newly:
            self.opened = now
            asked = error.retry_after
            self.period = meant.opens if asked is None else min(max(asked, 0.0), LONGEST_S)
            self.until = now + self.period
        else:
            self._again(now, least=error.retry_after or 0.0)
        return newly

    def _again(self, now: float, least: float = 0.0) -> None:
        """The next period is longer."""
        self.period = min(max(self.period * 2, least), LONGEST_S)
        self.until, self._probed = now + self.period, False


def back_off(times: int, chance: float, asked: float | None = None) -> float:
    """Seconds before the same provider is asked again: doubling, with jitter, or what it asked for itself.

    Args:
        times: how often this was waited for already.
        chance: from 0 to 1.
        asked: ``Retry-After``.
    """
    if asked is not None:
        return min(asked, LONGEST_S) * (1 + chance / 10)
    return min(_BACK_OFF_S * 2.0**times, _BACK_OFF_MOST_S) * (0.5 + chance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What ranking looks at: place in the user's order, seconds to the first token, dollars, whether it is local."""

    place: int
    latency_s: float | None = None
    cost: tuple[float, float] | None = None
    local: bool = False


def ranked(standings: Sequence[Standing], routing: Routing) -> list[int]:
    """Their places, in the order in which they are asked; what is unknown comes last, the user's order decides ties."""

    def key(one: Standing) -> tuple[float, int]:
        unknown = float("inf")
        value = {
            "order": 0.0,
            "latency": unknown if one.latency_s is None else one.latency_s,
            "cost": unknown if one.cost is None else sum(one.cost),
            "local-first": 0.0 if one.local else 1.0,
        }[routing]
        return value, one.place

    return [one.place for one in sorted(standings, key=key)]


def patience(remaining: float) -> float:
    """Seconds that a provider may take to its first token where others behind it want a share of the time."""
    return remaining / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a request needs of a provider; ``tokens``: of its prompt, at the least."""

    images: bool = False
    tools: bool = False
    schema: bool = False
    tokens: int = 0


def lacks(needs: Needs, can: Mapping[str, Any], window: int | None) -> list[str]:
    """What this provider certainly lacks for it, in words; what is not known is no lack.

    Args:
        needs: of the request.
        can: its capabilities.
        window: the largest context that it can serve, in tokens.
    """
    wanted = (("vision", needs.images), ("tools", needs.tools), ("json_schema", needs.schema))
    found = [name for name, needed in wanted if needed and can[name] is False]
    if window is not None and needs.tokens > window:
        found.append(f"context ({needs.tokens} tokens or more needed, {window} served)")
    return found


@dataclass(slots=True)
class Record:
    """What happened with one provider so far, in this process.

    Attributes:
        first_token_s: moving average of seconds to the first token.
        recent: the last failures, as (time, name of the leaf).
    """

    first_token_s: float | None = None
    answered: int = 0
    failed: int = 0
    recent: list[tuple[float, str]] = field(default_factory=list)

    def answer(self, first_token_s: float | None) -> None:
        """It answered."""
        self.answered += 1
        if first_token_s is not None:
            before = self.first_token_s
            self.first_token_s = first_token_s if before is None else 0.7 * before + 0.3 * first_token_s

    def failure(self, error: LLMError, now: float) -> None:
        """It failed."""
        self.failed += 1
        self.recent = [*self.recent[-9:], (now, type(error).__name__)]
