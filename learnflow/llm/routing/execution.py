"""Run one request: attempts, continuations and waits, until an attempt succeeds or no option is left.

``decision`` chooses the action after a failure, and ``selection`` the next option.
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
from ..adapter.capacity import CAPACITY, Ticket
from ..adapter.joining import Joiner, instruct_to_continue, join_continuation, last_words, split_text
from ..base import Attempt, Call, Resume, Slot
from ..completion import Completion, Waiting
from ..errors import LLMError, Tried
from ..stream import Emit, Work
from . import decision
from .option import Option, chain_name
from .progress import Progress
from .selection import Chain, last_resort

_LOAD_POLL_S: Final = 0.5  # interval between probes of a server that is loading a model
_QUEUE_POLL_S: Final = 0.5  # interval between choices of an option while all are full; a circuit breaker may close


class Execution:
    """One request through a chain.

    Args:
        call: the caller's prompt and options.
        resume: the caller's choice for a stream that is interrupted after text was emitted.
        request: a template for every attempt, with the request's number and metadata.
        chain: the options of the request.
        progress: the text, failures and costs so far.
    """

    def __init__(self, call: Call, resume: Resume, request: Attempt, chain: Chain, progress: Progress) -> None:
        self._call, self._resume, self._request = call, resume, request
        self._chain, self._progress = chain, progress
        self._deadline = progress.started + float(call.options.get("timeout") or chain.settings.llm_deadline)
        self._load_deadline = min(self._deadline, progress.started + chain.settings.llm_load_timeout) - _LOAD_POLL_S
        self._rounds = 0
        self._last: LLMError | None = None
        self._step_back = True  # cut before the last word; False after a continuation did not repeat it
        self._restarted = False
        self._slot: Slot | None = None  # the slot of the current attempt

    async def run(self) -> Completion:
        """Run the request and return the completion. Raise only LLMError."""
        while True:
            if completion := await self._try(await self._choose_option()):
                return completion

    async def _try(self, option: Option) -> Completion | None:
        """Run an attempt at an option. Return the completion, or None if another attempt follows.

        Raises:
            LLMError: the error for the caller, if no attempt follows.
        """
        began, clock = self._now, option.registry.clock()
        progress = self._progress
        emitted = split_text(progress.text, at_last_word=self._step_back, prefills=option.prefills)
        prefix = emitted.prefix or None
        by_prompt = prefix is not None and not option.prefills
        shares_time = self._chain.shares(option)
        try:
            attempt = replace(
                self._request,
                number=len(progress.tried) + 1,
                patience=decision.patience(self._deadline - began) if shares_time else None,
                prefix=None if by_prompt else prefix,
                thinking=progress.partial_thinking if prefix and not by_prompt else "",
                slot=self._slot,
                tried=[],
            )
            progress.begin(option, self._last, continues=bool(emitted.text.strip()))
            call = self._call_of(option, prefix, began, by_prompt=by_prompt)
            work: Work = partial(_run_attempt, option, call, attempt)
            if emitted.text:
                work = partial(join_continuation, work, Joiner(emitted, instructed=by_prompt), option.name)
            completion = await work(progress)
        except LLMError as error:
            self._release()
            stepped_back = bool(emitted.rest) and option.prefills
            prefilled = prefix is not None and not by_prompt
            situation = decision.Situation(prefilled=prefilled, stepped_back=stepped_back)
            await self._handle_failure(option, error, began, situation, shares_time=shares_time)
            return None
        except BaseException:
            option.abandon()
            raise
        finally:
            self._release()
        option.succeeded(completion, clock)
        return progress.complete(completion, began, self._now)

    def _call_of(self, option: Option, prefix: str | None, now: float, *, by_prompt: bool) -> Call:
        """Return the call for an attempt, with the option's model, the remaining time and the remaining tokens.

        With ``by_prompt``, the prompt instructs the model to continue, because the provider has no prefill.
        """
        call, progress = self._call, self._progress
        left_s = min(self._deadline - now, option.facts.deadline_s or math.inf)
        options = {**call.options, "timeout": max(0.001, left_s)}
        if prefix is None:
            return replace(call, model=option.model, options=options)
        repeated = len(progress.text) - len(prefix)  # in characters, an upper limit for tokens
        if by_prompt:
            call = replace(call, prompt=instruct_to_continue(call.prompt, prefix))
            repeated += len(last_words(prefix))
        left = max(1, call.max_tokens - progress.tokens + repeated)
        return replace(call, model=option.model, options=options, max_tokens=type(call.max_tokens)(left))

    async def _handle_failure(
        self, option: Option, error: LLMError, began: float, situation: decision.Situation, *, shares_time: bool
    ) -> None:
        """Record a failed attempt, and carry out the decision. Raise the error for the caller if no attempt follows."""
        progress, chain, now = self._progress, self._chain, self._now
        tried = Tried(option.name, error.model or option.target.model, type(error).__name__, error.status, now - began)
        option.failure = error
        others = chain.others(option) if option.replays else []
        same_rank = any(other.rank == option.rank for other in others)
        if isinstance(error, errors.NotRecorded) and others and (option.opened or same_rank):
            error.forgiven = True  # the recorded request may have used another option
            self._last = self._last or error
            return
        progress.failed(error, error.attempts or (tried,), now, free=option.cost == (0.0, 0.0))
        limited = shares_time and isinstance(error, errors.FirstTokenTimeout)
        if limited and now - began < option.facts.first_token_s:
            option.abandon()  # the attempt had less than the option's first-token timeout
        else:
            option.failed(error)
        added_text = bool(error.partial or error.tokens)
        if added_text and progress.text.strip():
            chain.same_model = option.facts.names
        self._last = error
        await self._apply_decision(option, error, replace(situation, added_text=added_text))

    async def _apply_decision(self, option: Option | None, error: LLMError, situation: decision.Situation) -> None:
        """Carry out the decision after a failure. Raise the error for the caller if no attempt follows."""
        progress, chain = self._progress, self._chain
        text, streams = progress.text, not self._call.buffered
        has_partial, pause = bool(text.strip()), self._retry_pause()
        not_continued, loading = chain.failures(errors.NotContinued), self._loading()
        situation = replace(
            situation,
            text_shown=has_partial and streams,
            only_space_shown=bool(text) and not has_partial and streams,
            has_partial=has_partial,
            structured=self._call.rigid,
            tool_call_shown=bool(progress.calls),
            resume=self._resume,
            others=bool(chain.within(chain.others(option), loading)),
            loading=bool(loading),
            not_continued=bool(not_continued) and not self._restarted,
            transient=pause is not None,
            time_left=self._now < self._deadline,
        )
        decided = decision.decide(error, situation)
        if decided.action == "raise":
            cause = not_continued[0].failure if not_continued else None
            raise progress.final(cause if cause and has_partial and not progress.calls else error)
        if decided.text == "drop":
            progress.forget_text()
            chain.same_model = frozenset()
        for other in await self._options_to_retry(decided.action, option, error, pause or 0.0):
            other.failure = None

    async def _options_to_retry(
        self, action: decision.Action, option: Option | None, error: LLMError, pause: float
    ) -> Sequence[Option]:
        """Wait if the action requires it. Return the failed options to try again."""
        if action == "alternative" and option:
            if isinstance(error, errors.NotContinued):
                self._step_back = False
            else:
                option.refuses_prefix = True
            return [option]
        if action == "load":
            loading = self._loading()
            with self._progress.waiting(Waiting("load", chain_name(loading))):
                return await self._wait_for_load(loading)
        if action == "restart":
            self._restarted = True
            return self._chain.failures(errors.NotContinued)
        if action == "retry":
            transient = self._chain.passing()
            self._rounds += 1
            with self._progress.waiting(Waiting("retry", chain_name(transient))):
                await asyncio.sleep(pause)
            return transient
        return ()

    def _loading(self) -> list[Option]:
        """Return the options that are loading a model, if time for a load is left."""
        return self._chain.failures(errors.ModelLoading) if self._now <= self._load_deadline else []

    def _retry_pause(self) -> float | None:
        """Return the seconds before a retry of transient failures; None if there are none, or no time is left."""
        delays = [option.failure.retry_after for option in self._chain.passing() if option.failure]
        if not delays:
            return None
        jitter = random.random()  # noqa: S311  # not for security
        if self._rounds < decision.rounds(self._chain.settings.llm_retries):
            pause = min(decision.back_off(self._rounds, jitter, delay) for delay in delays)
        elif self._chain.restarts(self._now):
            pause = decision.RESTART_PAUSE_S * (0.5 + jitter)
        else:
            return None
        return pause if self._now + pause < self._deadline else None

    async def _choose_option(self) -> Option:
        """Return the next option, with a slot if one is free. Raise the error for the caller if no option is left."""
        ticket, since = Ticket(), self._now
        while True:
            candidates, chosen = self._chain.next(self._loading())
            if chosen:
                for passed_over in candidates[: candidates.index(chosen)]:
                    passed_over.recover()
                chosen = self._with_free_slot(chosen, candidates) or await self._wait_for_slot(
                    chosen, candidates, ticket, since
                )
                if chosen is None:
                    continue
                chosen.begin()
                return chosen
            if not candidates:
                if self._last is None:
                    raise self._progress.final(self._chain.unfit())
                await self._apply_decision(None, self._last, decision.Situation())
                continue
            first = last_resort(candidates)
            breaker_error = await self._probe_open_breaker(first)
            if breaker_error is None:
                self._slot = CAPACITY.try_acquire(first.address, first.limit, self._chain.digests)
                return first
            self._last = first.failure = breaker_error
            await self._apply_decision(first, breaker_error, decision.Situation())

    def _with_free_slot(self, chosen: Option, candidates: Sequence[Option]) -> Option | None:
        """Return the chosen option, or one that LLM_SPILL allows, with an acquired slot; None if all are full."""
        max_distance = {"no": -1, "local": chosen.distance, "cloud": 1}[self._chain.settings.llm_spill]
        spill = (
            [other for other in candidates if other.ready and other.distance <= max_distance]
            if max_distance >= 0
            else []
        )
        for option in (chosen, *spill):
            self._slot = CAPACITY.try_acquire(option.address, option.limit, self._chain.digests)
            if self._slot:
                return option
        return None

    async def _wait_for_slot(
        self, chosen: Option, candidates: Sequence[Option], ticket: Ticket, since: float
    ) -> Option | None:
        """Wait for a slot of any option of the same rank. Return the option with the slot; None to choose again.

        A single option is returned without a slot: the attempt waits in the queue of the option's address.

        Raises:
            DeadlineExceeded: no slot was free before the deadline.
        """
        if sum(option.rank == chosen.rank for option in self._chain.options) == 1:
            return chosen
        same_rank = [option for option in candidates if option.ready and option.rank == chosen.rank]
        left_s = self._deadline - self._now
        if left_s <= 0:
            what = f"timed out waiting for a free slot at one of {chain_name(same_rank)}"
            hint = "Raise timeout= or LLM_DEADLINE, or set LLM_SPILL to local or cloud to use the next of LLM_PROVIDERS"
            raise self._progress.final(errors.DeadlineExceeded(what, hint=hint))
        limits = {option.address: option.limit for option in same_rank}
        with self._progress.waiting(Waiting("queue", chain_name(same_rank))):
            slot = await CAPACITY.wait(limits, self._chain.digests, ticket, min(_QUEUE_POLL_S, left_s))
        freed = next((option for option in same_rank if slot and option.address == slot.address), None)
        if slot and freed and freed.ready:
            self._slot = replace(slot, waited_s=self._now - since)
            return freed
        CAPACITY.release(slot)  # the option failed during the wait
        return None

    def _release(self) -> None:
        CAPACITY.release(self._slot)
        self._slot = None

    async def _probe_open_breaker(self, option: Option) -> LLMError | None:
        """Probe the option if its circuit breaker is open. Return the error if it stays open, else None."""
        opened = option.opened
        if not opened or not opened[0].visible:
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._deadline):
                if await asyncio.shield(option.probe()):  # other requests wait for the same probe
                    return None
        error = opened[0].error.without_text()
        error.attempts = ()
        tried = Tried(option.name, option.target.model, type(error).__name__, error.status, 0.0)
        self._progress.tried.append(tried)
        return error

    async def _wait_for_load(self, loading: Sequence[Option]) -> list[Option]:
        """Load the models, or wait for servers that load by themselves. Return the options that are ready first."""
        await asyncio.sleep(_LOAD_POLL_S)  # a server may refuse requests although its pages report no load
        loads = {option: option.load() for option in loading}
        left_s = max(0.0, self._load_deadline - self._now)
        ended, _ = await asyncio.wait(loads.values(), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        late = errors.TimedOut("the model was not loaded within LLM_LOAD_TIMEOUT")
        for option, load in loads.items():
            if failure := (load.result() if load in ended else None if ended else late):
                option.failed(failure)
                option.failure = failure
        return [option for option, load in loads.items() if load in ended and not load.result()]

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()


async def _run_attempt(option: Option, call: Call, attempt: Attempt, emit: Emit) -> Completion:
    """Run an attempt. Raise only LLMError, although an ``attempt()`` of the application may raise anything."""
    try:
        return await option.provider.attempt(call, attempt)(emit)
    except LLMError:
        raise
    except Exception as error:  # noqa: BLE001  # drop its message, which may quote the prompt
        failure = errors.ServerFailed(f"the provider raised {type(error).__name__}", provider=option.name)
    raise failure
