"""The progress of one request so far: what was delivered, who was tried, what it cost; and telling it.

Must never choose who is asked, or what a failure means.
The execution writes it, and makes the caller's completion or error of it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from .. import events
from ..completion import Completion, Event, ReasoningDelta, ToolCallDelta, Usage
from ..errors import LLMError, Tried


class Progress:
    """The progress of one request.

    Args:
        started: when it began, in seconds of the event loop's clock, as every ``now`` here.
        tried: gets the attempts that failed.

    Attributes:
        text, thinking, tokens: delivered, or heard where nobody is watching.
        calls: the tool calls that were shown, by index, each as far as it was: see ``LLMError.partial_calls``.
        tried: the attempts that failed.
        resumed: how often a broken answer was continued.
    """

    def __init__(self, started: float, tried: list[Tried] | None = None) -> None:
        self.text = ""
        self.thinking = ""
        self.calls: dict[int, dict[str, str]] = {}
        self._thought: list[str] = []  # what was shown of it, by whichever attempt
        self.tokens = 0
        self.tried = [] if tried is None else tried
        self.resumed = 0
        self._started = started
        self._first_token_s: float | None = None
        self._usages: list[Usage] = []
        self._costs: list[float | None] = []
        self._asked, self._number = "", -1  # who is being asked
        self._fell: tuple[str, int, float] | None = None  # who failed first, and when; None once somebody has answered
        self._goes_on = False  # it is the rest that is asked for

    def asks(self, provider: str, number: int) -> None:
        """An attempt begins, at the provider of this number in the chain."""
        self._asked, self._number, self._goes_on = provider, number, False

    def resumes(self, *, in_words: bool) -> None:
        """This attempt is to go on where the answer broke."""
        self.resumed += 1
        self._goes_on = True
        events.emit(events.Resumed(provider=self._asked, characters=len(self.text), in_words=in_words))

    def mismatched(self) -> None:
        """What came is not what was delivered: the same break, and another attempt."""
        self.resumed -= 1
        self._went_on("mismatched")

    def heard(self, text: str, now: float) -> None:
        """A piece has come."""
        self.text += text
        self.tokens += 1
        if self._first_token_s is None:
            self._first_token_s = now - self._started
        if self._fell:
            self._switched(now)

    def showed(self, piece: Event) -> None:
        """Something beside the text was shown."""
        if isinstance(piece, ToolCallDelta):
            known = self.calls.setdefault(piece.index, {"id": piece.id, "name": piece.name, "arguments": ""})
            known["arguments"] += piece.arguments
        if isinstance(piece, ReasoningDelta):
            self._thought.append(piece.text)

    def failed(self, tried: Sequence[Tried], now: float) -> None:
        """The attempt failed."""
        self.tried.extend(tried)
        self._fell = self._fell or (self._asked, self._number, now)
        self._went_on("broken")

    def lost(self, error: LLMError, *, free: bool) -> None:
        """A part arrived before it failed, of which nobody counted the tokens; ``free``: it cost nothing."""
        self._usages.append(Usage())
        self._costs.append(0.0 if free else None)
        self.thinking = self.thinking or error.thinking
        self.tokens = max(self.tokens, error.tokens)

    def forget(self) -> None:
        """What came is worth nothing: the next attempt begins at the beginning."""
        self.text, self.thinking, self.tokens = "", "", 0

    def complete(self, whole: Completion, began: float, now: float) -> Completion:
        """The caller's completion, all attempts together; ``began``: the one that ends it."""
        if self._fell:
            self._switched(now)
        self._went_on("whole")
        first = self._first_token_s
        if whole.first_token_s is not None and not self.resumed:
            first = began - self._started + whole.first_token_s
        costs = [*self._costs, whole.cost]
        return replace(
            whole,
            text=self.text or whole.text,
            reasoning="".join(self._thought) or self.thinking or whole.reasoning,
            usage=_sum([*self._usages, whole.usage]),
            cost=None if None in costs else sum(cost for cost in costs if cost is not None),
            first_token_s=first,
            total_s=now - self._started,
            attempts=len(self.tried) + whole.attempts,
            resumed=self.resumed + whole.resumed,
        )

    def final(self, error: LLMError) -> LLMError:
        """The error for the caller: every attempt, and what had been delivered."""
        error.attempts = tuple(self.tried)
        if self.text:
            error.partial, error.thinking = self.text, self.thinking or error.thinking
        error.thinking = "".join(self._thought) or error.thinking
        error.partial_calls = tuple(self.calls.values()) or error.partial_calls
        return error

    def _switched(self, now: float) -> None:
        assert self._fell is not None  # noqa: S101  # asked before
        provider, number, at = self._fell
        self._fell = None
        if number != self._number:
            events.emit_lazily(events.Switched, provider=provider, to=self._asked, seconds=now - at)

    def _went_on(self, outcome: str) -> None:
        if self._goes_on:
            self._goes_on = False
            events.emit_lazily(events.Continued, provider=self._asked, outcome=outcome)


def _sum(usages: Sequence[Usage]) -> Usage:
    """The tokens of all attempts; what one of them did not say is unknown."""
    return reduce(operator.add, usages)
