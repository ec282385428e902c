"""The progress of one request over all its attempts: the emitted text, the failed attempts, and the cost.

``Progress`` builds the completion or the error that the caller receives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from .. import events
from ..adapter.joining import count_prior_tokens
from ..base import Call
from ..completion import Completion, Event, Failover, Resumed, Source, TextDelta, Usage
from ..errors import FailedAttempt, LLMError, NotContinued
from ..stream import Emit, Transcript
from .candidate import Candidate


class Progress(Transcript):
    """The transcript of one request over all its attempts. All times are in seconds on the event loop's clock.

    Args:
        emit: receives the events for the caller.
        started: the time when the request began.
        failed_attempts: a list to which the failed attempts are added.
        call: the call, which may continue a prior text.

    Attributes:
        source: the source of the text so far, see ``Resumed``.
        tokens: the estimated number of tokens of the text so far, rather too high than too low.
        partial_thinking: the thinking of the interrupted attempt.
        resumed: the number of continuations.
    """

    def __init__(self, emit: Emit, started: float, failed_attempts: list[FailedAttempt], call: Call) -> None:
        super().__init__(emit)
        self._text.append(call.prior_text)
        self.source: Source = call.prior_source if call.prior_text else "stream"
        self.tokens = count_prior_tokens(call)
        self.partial_thinking = ""
        self.failed_attempts = failed_attempts
        self.resumed = 0
        self.started = started
        self._first_text_s: float | None = None
        self._usage_known = self._cost_known = True  # False after a partial answer, whose usage is not reported
        self._candidate: Candidate | None = None  # the candidate of the current attempt
        self._continues = False  # the current attempt is a continuation
        # The candidate and the time of the first failure, until text arrives again
        self._first_failure: tuple[Candidate | None, float] | None = None

    def __call__(self, event: Event) -> None:
        """Record an event, and forward it to the caller."""
        if isinstance(event, TextDelta):
            self.tokens += 1
            if self._first_text_s is None or self._first_failure:
                self._record_first_text(asyncio.get_running_loop().time())
        elif isinstance(event, Resumed):
            self.resumed, self.source = self.resumed + 1, "stream"
        elif not self.all_events:
            return
        super().__call__(event)

    def begin_attempt(self, candidate: Candidate, previous_error: LLMError | None, *, continues: bool) -> None:
        """Record the beginning of an attempt.

        Args:
            candidate: the candidate of the attempt.
            previous_error: the failure of the previous attempt; None for the first attempt.
            continues: whether the attempt continues an interrupted text.
        """
        if previous_error and self._candidate and self._candidate is not candidate:
            failover = Failover(self._candidate.name, candidate.name, previous_error.without_text())
            events.emit(failover)
            self(failover)
        self._candidate, self._continues = candidate, continues

    def record_failure(
        self, error: LLMError, failed_attempts: Sequence[FailedAttempt], now: float, *, is_free: bool
    ) -> None:
        """Record the failure of the current attempt.

        Args:
            error: the failure.
            failed_attempts: the failed attempts to add, several if the provider has retried.
            now: the current time.
            is_free: whether the provider costs nothing. The cost then stays known.
        """
        self.failed_attempts.extend(failed_attempts)
        self._first_failure = self._first_failure or (self._candidate, now)
        self._end_continuation("mismatched" if isinstance(error, NotContinued) else "broken")
        if error.partial or error.tokens or self.text:
            self._usage_known = False
            self._cost_known = self._cost_known and is_free
            self.partial_thinking = self.partial_thinking or error.thinking
            self.tokens = max(self.tokens, error.tokens)

    def drop_text(self) -> None:
        """Drop the text, so that the next attempt starts the answer from the beginning."""
        super().drop_text()
        self._emit.drop_text()
        self.partial_thinking, self.tokens = "", 0

    def build_completion(self, completion: Completion, began: float, now: float) -> Completion:
        """Return the completion for the caller.

        Args:
            completion: the completion of the last attempt.
            began: the time when the last attempt began.
            now: the current time.
        """
        first_token_s = self._first_text_s  # None if no attempt emitted text
        if self._first_failure:
            self._record_first_text(now)
        self._end_continuation("whole")
        if completion.first_token_s is not None and not self.resumed:
            first_token_s = began - self.started + completion.first_token_s
        return replace(
            completion,
            text=self.text or completion.text,
            reasoning=self.thinking or self.partial_thinking or completion.reasoning,
            usage=completion.usage if self._usage_known else Usage(),
            cost=completion.cost if self._cost_known else None,
            first_token_s=first_token_s,
            total_s=now - self.started,
            attempts=len(self.failed_attempts) + completion.attempts,
            resumed=self.resumed + completion.resumed,
        )

    def build_error(self, error: LLMError) -> LLMError:
        """Return the error for the caller, with all failed attempts and the partial answer."""
        error.attempts = tuple(self.failed_attempts)
        if text := self.text:
            error.partial, error.thinking = text, self.partial_thinking or error.thinking
        error.thinking = self.thinking or error.thinking
        error.partial_calls = tuple(self.calls.values()) or error.partial_calls
        return error

    def _record_first_text(self, now: float) -> None:
        """Record the time of the first text. After a failure, emit FailedOver if another provider sent the text."""
        if self._first_text_s is None:
            self._first_text_s = now - self.started
        if self._first_failure:
            failed, failed_at = self._first_failure
            self._first_failure = None
            if failed and self._candidate and failed is not self._candidate:
                seconds = now - failed_at
                events.emit(events.FailedOver(provider=failed.name, to=self._candidate.name, seconds=seconds))

    def _end_continuation(self, outcome: str) -> None:
        if self._continues and self._candidate:
            events.emit(events.StreamContinued(provider=self._candidate.name, outcome=outcome))
        self._continues = False
