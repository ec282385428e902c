"""Run one request: attempts, continuations and waits, until an attempt succeeds or no candidate is left.

A candidate is one provider of the router. Candidates that share the load have the same rank (a position in the
order). ``selection`` chooses the next candidate, and ``decision`` the action after a failure. A slot is a place within
a server's concurrency limit.

An attempt may continue an interrupted text. It sends this text as a prefill: a last assistant message that the server
continues. If the provider does not support prefill, a prompt instructs the model to continue.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final

from .. import errors
from ..adapter import joining
from ..adapter.capacity import CAPACITY, Ticket
from ..adapter.routable import exception_error
from ..base import Attempt, Call, Resume, Slot
from ..completion import Completion, Waiting
from ..errors import FailedAttempt, LLMError
from ..stream import Emit, Work
from . import decision
from .candidate import Candidate, chain_name
from .progress import Progress
from .selection import Chain, first_to_recover

_LOAD_PAUSE_S: Final = 0.5  # before each wait for the load of a model
_QUEUE_POLL_S: Final = 0.5  # after this wait for a slot, choose a candidate again


class Execution:
    """One request. ``attempt_template`` has the request's number and metadata, which all attempts share."""

    def __init__(self, call: Call, resume: Resume, attempt_template: Attempt, chain: Chain, progress: Progress) -> None:
        self._call, self._resume, self._attempt_template = call, resume, attempt_template
        self._chain, self._progress = chain, progress
        self._deadline = progress.started + float(call.options.get("timeout") or chain.settings.llm_deadline)
        self._load_deadline = min(self._deadline, progress.started + chain.settings.llm_load_timeout) - _LOAD_PAUSE_S
        self._retries = 0
        self._last_error: LLMError | None = None
        # Whether to cut the prefill before its last word, which the continuation must then repeat. Set to False if a
        # continuation did not repeat it
        self._splits_at_last_word = True
        self._restarted = False  # whether the answer was restarted from the beginning, which happens at most once
        self._slot: Slot | None = None  # the slot of the current attempt

    async def run(self) -> Completion:
        """Run the request and return the completion. Raise only LLMError."""
        while True:
            if completion := await self._run_candidate(await self._choose_candidate()):
                return completion

    async def _run_candidate(self, candidate: Candidate) -> Completion | None:
        """Run an attempt. Return the completion, or None if the attempt failed and another one follows.

        Raises:
            LLMError: the attempt failed, and no other attempt follows.
        """
        began, breaker_clock_start = self._now, candidate.registry.clock()
        progress = self._progress
        text, supports_prefill = progress.text, candidate.supports_prefill
        parts = joining.split_text(text, at_last_word=self._splits_at_last_word, supports_prefill=supports_prefill)
        prefix = parts.prefix or None
        prefill = prefix if supports_prefill else None  # without prefill, a prompt instructs the model
        by_instruction = prefix is not None and prefill is None
        reserves_time = self._chain.must_reserve_time(candidate)
        try:
            attempt = replace(
                self._attempt_template,
                number=len(progress.failed_attempts) + 1,
                max_first_token_s=(self._deadline - began) / 2 if reserves_time else None,
                prefix=prefill,
                thinking=progress.partial_thinking if prefill else "",
                slot=self._slot,
                failed_attempts=[],
            )
            progress.begin_attempt(candidate, self._last_error, continues=bool(parts.text.strip()))
            call = self._build_call(candidate, prefix, began, by_instruction=by_instruction)
            work: Work = partial(_run_attempt, candidate, call, attempt)
            if parts.text:
                text_filter = joining.ContinuationFilter(parts, by_instruction=by_instruction, source=progress.source)
                work = partial(joining.join_continuation, work, text_filter, candidate.name)
            completion = await work(progress)
        except LLMError as error:
            self._release_slot()
            ends_before_last_word = bool(parts.rest) and supports_prefill
            state = decision.RequestState(prefilled=prefill is not None, prefill_before_last_word=ends_before_last_word)
            await self._handle_failure(candidate, error, began, state, reserves_time=reserves_time)
            return None
        except BaseException:
            candidate.end_check()
            raise
        finally:
            self._release_slot()
        candidate.record_completion(completion, breaker_clock_start)
        return progress.build_completion(completion, began, self._now)

    def _build_call(self, candidate: Candidate, prefix: str | None, now: float, *, by_instruction: bool) -> Call:
        """Return the call for an attempt, with the candidate's model, the remaining time and the remaining tokens.

        If ``by_instruction``, the prompt instructs the model to continue ``prefix``.
        """
        call, progress = self._call, self._progress
        left_s = min(self._deadline - now, candidate.facts.deadline_s or math.inf, candidate.deadline_s or math.inf)
        options = {**call.options, "timeout": max(0.001, left_s)}
        call = replace(call, model=candidate.model, options=options)
        if prefix is None:
            return call
        repeated_chars = len(progress.text) - len(prefix)
        if by_instruction:
            call = replace(call, prompt=joining.instruct_to_continue(call.prompt, prefix))
            repeated_chars += len(joining.last_words(prefix))
        return joining.reduce_max_tokens(call, progress.tokens, repeated_chars)

    async def _handle_failure(
        self, candidate: Candidate, error: LLMError, began: float, state: decision.RequestState, *, reserves_time: bool
    ) -> None:
        """Record a failed attempt, and prepare the next one. If no attempt follows, raise the error for the caller."""
        progress, chain, now = self._progress, self._chain, self._now
        failed_attempt = FailedAttempt.of(error, candidate.name, candidate.target.model, now - began)
        candidate.failure = error
        if isinstance(error, errors.NotRecorded) and self._may_have_other_recording(candidate):
            error.was_skipped = True
            self._last_error = self._last_error or error
            return
        is_free = candidate.facts.capabilities["cost"] == (0.0, 0.0)
        progress.record_failure(error, error.attempts or (failed_attempt,), now, is_free=is_free)
        is_early = reserves_time and now - began < candidate.facts.first_token_s
        if is_early and isinstance(error, errors.FirstTokenTimeout):
            candidate.end_check()  # not the provider's fault, because the router shortened the timeout
        else:
            candidate.record_failure(error)
        received_output = bool(error.partial or error.tokens)
        if received_output and progress.text.strip():
            chain.interrupted_model_names = candidate.facts.names
        self._last_error = error
        await self._prepare_next(candidate, error, replace(state, received_output=received_output))

    def _may_have_other_recording(self, candidate: Candidate) -> bool:
        """Return whether another candidate may have a recorded response. Return False if no cassettes are played.

        When the responses were recorded, the router may have skipped this candidate, because its circuit breaker was
        open. The router may also have chosen another candidate of the same rank.
        """
        others = self._chain.remaining(candidate) if candidate.facts.replays else []
        return any(candidate.breaker or other.rank == candidate.rank for other in others)

    async def _prepare_next(self, candidate: Candidate | None, error: LLMError, state: decision.RequestState) -> None:
        """Choose the action after a failure, and perform it. Raise the error for the caller if no attempt follows."""
        progress, chain = self._progress, self._chain
        text, is_streamed = progress.text, not self._call.buffered or bool(self._call.prior_text)
        has_partial, pause_s = bool(text.strip()), self._retry_pause()
        not_continued, loading_candidates = chain.failed_with(errors.NotContinued), self._loading_candidates()
        state = replace(
            state,
            text_emitted=has_partial and is_streamed,
            only_space_emitted=bool(text) and not has_partial and is_streamed,
            has_partial=has_partial,
            can_continue=self._resume == "continue" and self._call.is_continuable,
            tool_call_emitted=bool(progress.calls),
            has_other_provider=bool(chain.limit_distance(chain.remaining(candidate), loading_candidates)),
            can_wait_for_load=bool(loading_candidates),
            can_restart=bool(not_continued) and not self._restarted,
            can_retry=pause_s is not None,
            in_time=self._now < self._deadline,
        )
        rule = decision.decide(error, state)
        if rule.action == "raise":
            cause = not_continued[0].failure if not_continued else None
            if isinstance(error, errors.RequestRefused):  # the first refusal is the most informative one
                error = chain.failed_with(errors.RequestRefused)[0].failure or error
            # If there is text, NotContinued explains better than the last error why the text is incomplete
            raise progress.build_error(cause if cause and has_partial and not progress.calls else error)
        if rule.drops_text:
            progress.drop_text()
            chain.interrupted_model_names = frozenset()
        for other in await self._perform(rule.action, candidate, error, pause_s or 0.0):
            other.failure = None

    async def _perform(
        self, action: decision.Action, candidate: Candidate | None, error: LLMError, pause_s: float
    ) -> Sequence[Candidate]:
        """Perform an action. Return the failed candidates that may be tried again."""
        if action == "change_prefill" and candidate:
            if isinstance(error, errors.NotContinued):
                self._splits_at_last_word = False
            else:
                candidate.rejects_prefill = True
            return [candidate]
        if action == "wait_for_load":
            loading_candidates = self._loading_candidates()
            with self._progress.waiting(Waiting("load", chain_name(loading_candidates))):
                return await self._wait_for_load(loading_candidates)
        if action == "restart":
            self._restarted = True
            return self._chain.failed_with(errors.NotContinued)
        if action == "retry":
            retryable = self._chain.retryable()
            self._retries += 1
            with self._progress.waiting(Waiting("retry", chain_name(retryable))):
                await asyncio.sleep(pause_s)
            return retryable
        return ()

    def _loading_candidates(self) -> list[Candidate]:
        """Return the candidates that are loading a model; an empty list after LLM_LOAD_TIMEOUT."""
        return self._chain.failed_with(errors.ModelLoading) if self._now <= self._load_deadline else []

    def _retry_pause(self) -> float | None:
        """Return the seconds before the next retry; None if no retry is left, or too little time."""
        delays = [candidate.failure.retry_after for candidate in self._chain.retryable() if candidate.failure]
        if not delays:
            return None
        jitter = random.random()  # noqa: S311  # not for security
        if self._retries < decision.max_retries(self._chain.settings.llm_retries):
            pause_s = min(decision.back_off(self._retries, jitter, delay) for delay in delays)
        elif self._chain.may_be_restarting(self._now):
            pause_s = decision.SERVER_RESTART_PAUSE_S * (0.5 + jitter)
        else:
            return None
        return pause_s if self._now + pause_s < self._deadline else None

    async def _choose_candidate(self) -> Candidate:
        """Choose the next candidate, and acquire a slot if possible. Raise LLMError if no candidate is left."""
        ticket, wait_began = Ticket(), self._now
        while True:
            eligible, chosen = self._chain.choose(self._loading_candidates())
            if chosen:
                for skipped in eligible[: eligible.index(chosen)]:
                    skipped.start_recovery()  # a probe or a load in the background
                candidate = self._take_slot(chosen, eligible)
                if candidate := candidate or await self._wait_for_slot(chosen, eligible, ticket, wait_began):
                    candidate.begin_check()
                    return candidate
                continue
            if not eligible:
                if self._last_error is None:
                    raise self._progress.build_error(self._chain.unsupported_error())
                await self._prepare_next(None, self._last_error, decision.RequestState())
                continue
            # No circuit breaker allows a request
            blocked = first_to_recover(eligible)
            breaker_error = await self._probe_open_breaker(blocked)
            if breaker_error is None:
                self._slot = CAPACITY.try_acquire(blocked.facts.address, blocked.concurrency_limit, self._chain.digests)
                return blocked
            self._last_error = blocked.failure = breaker_error
            await self._prepare_next(blocked, breaker_error, decision.RequestState())

    def _take_slot(self, chosen: Candidate, eligible: Sequence[Candidate]) -> Candidate | None:
        """Acquire a slot of ``chosen``, else of another candidate that LLM_SPILL allows.

        Return None if all these candidates are full.
        """
        # The distance of a local provider is 0, that of a cloud is 1
        max_distance = {"no": -1, "local": chosen.distance, "cloud": 1}[self._chain.settings.llm_spill]
        spill_candidates = [other for other in eligible if other.ready and other.distance <= max_distance]
        for candidate in (chosen, *spill_candidates):
            self._slot = CAPACITY.try_acquire(candidate.facts.address, candidate.concurrency_limit, self._chain.digests)
            if self._slot:
                return candidate
        return None

    async def _wait_for_slot(
        self, chosen: Candidate, eligible: Sequence[Candidate], ticket: Ticket, wait_began: float
    ) -> Candidate | None:
        """Wait for a slot of ``chosen`` or of another candidate of the same rank.

        Returns:
            The candidate with the slot. If no other candidate has the rank of ``chosen``, return ``chosen`` without a
            slot, because its attempt itself waits for a slot. None if no slot was free within half a second, or a
            circuit breaker opened. The caller then chooses again.

        Raises:
            DeadlineExceeded: no slot was free before the deadline.
        """
        if sum(candidate.rank == chosen.rank for candidate in self._chain.candidates) == 1:
            return chosen
        same_rank = [candidate for candidate in eligible if candidate.ready and candidate.rank == chosen.rank]
        left_s = self._deadline - self._now
        if left_s <= 0:
            what = f"timed out waiting for a free slot at one of {chain_name(same_rank)}"
            hint = "Raise timeout= or LLM_DEADLINE, or set LLM_SPILL to local or cloud to use the next of LLM_PROVIDERS"
            raise self._progress.build_error(errors.DeadlineExceeded(what, hint=hint))
        limits = {candidate.facts.address: candidate.concurrency_limit for candidate in same_rank}
        with self._progress.waiting(Waiting("queue", chain_name(same_rank))):
            slot = await CAPACITY.wait(limits, self._chain.digests, ticket, min(_QUEUE_POLL_S, left_s))
        owner = next((item for item in same_rank if slot and item.facts.address == slot.address), None)
        if slot and owner and owner.ready:
            self._slot = replace(slot, waited_s=self._now - wait_began)
            return owner
        CAPACITY.release(slot)  # no slot was free, or the breaker of its candidate opened during the wait
        return None

    def _release_slot(self) -> None:
        CAPACITY.release(self._slot)
        self._slot = None

    async def _probe_open_breaker(self, candidate: Candidate) -> LLMError | None:
        """Probe a candidate with an open circuit breaker. If the probe fails, return the error that opened the breaker.

        Return None if an attempt is allowed: the probe succeeded, or only an attempt can show that the fault is over.
        """
        breaker = candidate.breaker
        if not breaker or not breaker.probeable:
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._deadline):
                if await asyncio.shield(candidate.start_probe()):  # shielded, because other requests may wait for it
                    return None
        error = breaker.error.without_text()
        error.attempts = ()
        self._progress.failed_attempts.append(FailedAttempt.of(error, candidate.name, candidate.target.model, 0.0))
        return error

    async def _wait_for_load(self, loading_candidates: Sequence[Candidate]) -> list[Candidate]:
        """Start to load the models, and wait until the first load ends. Return the candidates with a loaded model."""
        # Pause, because the wait below ends at once if the server does not report the load. This avoids a busy loop
        await asyncio.sleep(_LOAD_PAUSE_S)
        loads = {candidate: candidate.start_load() for candidate in loading_candidates}
        left_s = max(0.0, self._load_deadline - self._now)
        ended_loads, _ = await asyncio.wait(loads.values(), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        timeout_error = errors.TimedOut("the model was not loaded within LLM_LOAD_TIMEOUT")
        for candidate, load in loads.items():
            if failure := (load.result() if load in ended_loads else None if ended_loads else timeout_error):
                candidate.record_failure(failure)
                candidate.failure = failure
        return [candidate for candidate, load in loads.items() if load in ended_loads and not load.result()]

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()


async def _run_attempt(candidate: Candidate, call: Call, attempt: Attempt, emit: Emit) -> Completion:
    """Run an attempt. Raise only LLMError, although an application's own provider may raise anything."""
    try:
        return await candidate.provider.attempt(call, attempt)(emit)
    except LLMError:
        raise
    except Exception as error:  # noqa: BLE001  # the exception's message may quote the prompt, so drop it
        failure = exception_error(error, candidate.name)
    raise failure
