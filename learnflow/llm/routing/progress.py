"""The progress of one request over all its attempts: the emitted text, the failed attempts, and the cost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from .. import events
from ..adapter.joining import count_prior_tokens
from ..base import Call
from ..completion import Completion, Event, Failover, Resumed, Source, TextDelta, Usage
from ..errors import FailedAttempt, LLMError, NotContinued
from ..stream import Emit, Transcript
from .candidate import Candidate


class Progress(Transcript):
    """Records one request over all its attempts. Times are in seconds on the event loop's clock.

    Attributes:
        source: where the text so far comes from, see ``Resumed``.
        tokens: an estimate of the tokens of the text so far. This is the number of text deltas,
            or ``LLMError.tokens`` if that is larger.
        partial_thinking: the thinking of the interrupted attempt.
        continuations: the number of continuations.
        started: the time when the request began.
    """

    def __init__(self, emit: Emit, started: float, failed_attempts: list[FailedAttempt], call: Call) -> None:
        super().__init__(emit)
        self._text.append(call.prior_text)
        self.source: Source = call.prior_source if call.prior_text else "stream"
        self.tokens = count_prior_tokens(call)
        self.partial_thinking = ""
        self.failed_attempts = failed_attempts
        self.continuations = 0
        self.started = started
        self._first_text_s: float | None = None
        # Both are False after a partial answer. If its provider is free, the cost stays known
        self._usage_known = self._cost_known = True
        self._candidate: Candidate | None = None  # the candidate of the current attempt
        self._is_continuation = False  # the current attempt continues an interrupted text
        # The first failure since the last text: its candidate and its time
        self._first_failure: tuple[Candidate | None, float] | None = None

    def __call__(self, event: Event) -> None:
        """Record an event, and forward it to the caller.

        If the caller reads only text, ignore all events except ``TextDelta`` and ``Resumed``.
        """
        if isinstance(event, TextDelta):
            self.tokens += 1
            if self._first_text_s is None or self._first_failure:
                self._record_first_text(asyncio.get_running_loop().time())
        elif isinstance(event, Resumed):
            self.continuations, self.source = self.continuations + 1, "stream"
        elif not self.all_events:
            return
        super().__call__(event)

    def begin_attempt(self, candidate: Candidate, previous_error: LLMError | None, *, continues: bool) -> None:
        """Record the beginning of an attempt. Emit ``Failover`` if the previous attempt failed at another candidate."""
        if previous_error and self._candidate and self._candidate is not candidate:
            failover = Failover(self._candidate.name, candidate.name, previous_error.without_text())
            events.emit(failover)
            self(failover)
        self._candidate, self._is_continuation = candidate, continues

    def record_failure(
        self, error: LLMError, failed_attempts: Sequence[FailedAttempt], now: float, *, is_free: bool
    ) -> None:
        """Record the failure of the current attempt. ``is_free`` means that its provider costs nothing."""
        self.failed_attempts.extend(failed_attempts)  # several if the provider itself has retried
        self._first_failure = self._first_failure or (self._candidate, now)
        self._end_continuation("mismatched" if isinstance(error, NotContinued) else "broken")
        if error.partial or error.tokens or self.text:
            self._usage_known = False
            self._cost_known = self._cost_known and is_free
            self.partial_thinking = self.partial_thinking or error.thinking
            self.tokens = max(self.tokens, error.tokens)

    def drop_text(self) -> None:
        """Drop the text. The next attempt starts the answer from the beginning."""
        super().drop_text()
        self._emit.drop_text()
        self.partial_thinking, self.tokens = "", 0

    def build_completion(self, completion: Completion, began: float, now: float) -> Completion:
        """Build the caller's completion from the completion of the last attempt, which began at ``began``."""
        first_token_s = self._first_text_s  # None if no attempt emitted text
        if self._first_failure:  # the last attempt emitted no text
            self._record_first_text(now)
        self._end_continuation("complete")
        if completion.first_token_s is not None and not self.continuations:
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
            resumed=self.continuations + completion.resumed,
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
        """Record the time of the first text. If another provider had failed before, emit ``FailoverSucceeded``."""
        if self._first_text_s is None:
            self._first_text_s = now - self.started
        if self._first_failure:
            failed, failed_at = self._first_failure
            self._first_failure = None
            if failed and self._candidate and failed is not self._candidate:
                provider, to = failed.name, self._candidate.name
                events.emit(events.FailoverSucceeded(provider=provider, to=to, seconds=now - failed_at))

    def _end_continuation(self, outcome: Literal["complete", "mismatched", "broken"]) -> None:
        if self._is_continuation and self._candidate:
            events.emit(events.ContinuationEnded(provider=self._candidate.name, outcome=outcome))
        self._is_continuation = False
