"""What a failure means: for the provider that failed, and for the request. Pure; times are seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .. import errors
from ..errors import LLMError

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


def patience(remaining: float) -> float:
    """Seconds that a provider may take to its first token where others behind it want a share of the time."""
    return remaining / 2
