"""The progress of one request: the emitted text, the failed attempts, and the costs.

It builds the caller's completion or error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from .. import events
from ..completion import Completion, Event, Failover, Resumed, TextDelta, Usage
from ..errors import LLMError, NotContinued, Tried
from ..stream import Emit, Transcript
from .option import Option


class Progress(Transcript):
    """The transcript of one request over all its attempts.

    Args:
        emit: of the caller.
        started: when the request began, by the event loop's clock, like every ``now`` here.
        tried: receives the failed attempts.

    Attributes:
        tokens: an upper limit for the tokens of the text so far.
        partial_thinking: the thinking of the attempt that broke.
        resumed: the number of continuations.
        started: see above.
    """

    def __init__(self, emit: Emit, started: float, tried: list[Tried]) -> None:
        super().__init__(emit)
        self.tokens = 0
        self.partial_thinking = ""
        self.tried = tried
        self.resumed = 0
        self.started = started
        self._first_text_s: float | None = None
        self._usage_known = self._cost_known = True  # False after a partial answer, unless it was free
        self._option: Option | None = None  # of the current attempt
        self._continuing: Option | None = None  # the same, if the attempt is a continuation
        self._failed_first: tuple[Option | None, float] | None = None  # since the last text, and its time

    def __call__(self, event: Event) -> None:
        """Record an event, and pass it on to the caller."""
        if isinstance(event, TextDelta):
            self.tokens += 1
            if self._first_text_s is None or self._failed_first:
                self._record_first_text(asyncio.get_running_loop().time())
        elif isinstance(event, (Failover, Resumed)):
            self.resumed += isinstance(event, Resumed)
            events.emit(event)
        elif not self.all_events:
            return
        super().__call__(event)

    def begin(self, option: Option, before: LLMError | None, *, continues: bool) -> None:
        """Begin an attempt at an option; ``before`` is the previous failure."""
        if before and self._option and self._option is not option:
            self(Failover(self._option.name, option.name, before.without_text()))
        self._option, self._continuing = option, option if continues else None

    def failed(self, error: LLMError, tried: Sequence[Tried], now: float, *, free: bool) -> None:
        """End the attempt with a failure; ``free``: a partial answer cost nothing."""
        self.tried.extend(tried)
        self._failed_first = self._failed_first or (self._option, now)
        self._end_continuation("mismatched" if isinstance(error, NotContinued) else "broken")
        if error.partial or error.tokens or self.text:  # of unknown usage
            self._usage_known = False
            self._cost_known = self._cost_known and free
            self.partial_thinking = self.partial_thinking or error.thinking
            self.tokens = max(self.tokens, error.tokens)

    def forget_text(self) -> None:
        """Drop the text, so that the next attempt begins from the start."""
        super().forget_text()
        self.partial_thinking, self.tokens = "", 0

    def complete(self, completion: Completion, began: float, now: float) -> Completion:
        """Return the caller's completion over all attempts; ``began`` is when the last one began."""
        first = self._first_text_s
        if self._failed_first:
            self._record_first_text(now)  # it had no text
        self._end_continuation("whole")
        if completion.first_token_s is not None and not self.resumed:
            first = began - self.started + completion.first_token_s
        return replace(
            completion,
            text=self.text or completion.text,
            reasoning=self.thinking or self.partial_thinking or completion.reasoning,
            usage=completion.usage if self._usage_known else Usage(),
            cost=completion.cost if self._cost_known else None,
            first_token_s=first,
            total_s=now - self.started,
            attempts=len(self.tried) + completion.attempts,
            resumed=self.resumed + completion.resumed,
        )

    def final(self, error: LLMError) -> LLMError:
        """Return the error for the caller, with every attempt and the partial answer."""
        error.attempts = tuple(self.tried)
        if text := self.text:
            error.partial, error.thinking = text, self.partial_thinking or error.thinking
        error.thinking = self.thinking or error.thinking
        error.partial_calls = tuple(self.calls.values()) or error.partial_calls
        return error

    def _record_first_text(self, now: float) -> None:
        """Record the first piece of text of the request, or after a failure."""
        if self._first_text_s is None:
            self._first_text_s = now - self.started
        if self._failed_first:
            failed, at = self._failed_first
            self._failed_first = None
            if failed and self._option and failed is not self._option:
                events.emit(events.FailedOver(provider=failed.name, to=self._option.name, seconds=now - at))

    def _end_continuation(self, outcome: str) -> None:
        if self._continuing:
            events.emit(events.StreamContinued(provider=self._continuing.name, outcome=outcome))
        self._continuing = None
