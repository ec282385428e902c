"""The execution of one request: attempts, continuations and waits until an attempt succeeds or no option is left.

``decision`` decides what a failure means, and ``selection`` which option is next.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from .. import errors
from ..adapter.capacity import CAPACITY, Ticket
from ..adapter.joining import Joiner, cut_point, end_of, in_words, joined
from ..base import Attempt, Call, Resume, Slot
from ..completion import Completion, Waiting
from ..errors import LLMError, Tried
from ..stream import Emit, Work
from . import decision
from .option import Option, chain_name
from .progress import Progress
from .selection import Chain, last_resort

_LOAD_POLL_S: Final = 0.5  # between two looks at a server that loads
_QUEUE_POLL_S: Final = 0.5  # between two choices while all equals are full: a circuit breaker may close


class Execution:
    """One request through a chain.

    Args:
        call: the call.
        resume: what to do if a stream breaks after pieces were emitted.
        request: the request's number and metadata, copied into every attempt.
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
        self._step_back = True  # to the last whole word; after that failed, the prefill is all of the text
        self._restarted = False
        self._slot: Slot | None = None  # of the current attempt

    async def run(self) -> Completion:
        """Return the completion. Raises nothing but LLMError."""
        while True:
            if completion := await self._try(await self._choose_option()):
                return completion

    async def _try(self, option: Option) -> Completion | None:
        """Run an attempt at an option. Return None if it failed and another attempt follows.

        Raises:
            LLMError: the error for the caller, if no attempt follows.
        """
        began, clock = self._now, option.registry.clock()
        progress = self._progress
        cut = cut_point(progress.text, steps_back=self._step_back, prefills=option.prefills)
        prefix = (cut and cut.prefix) or None
        words = prefix is not None and not option.prefills
        shares = self._chain.shares(option)
        try:
            attempt = replace(
                self._request,
                number=len(progress.tried) + 1,
                patience=decision.patience(self._deadline - began) if shares else None,
                prefix=None if words else prefix,
                thinking=progress.partial_thinking if prefix and not words else "",
                slot=self._slot,
                tried=[],
            )
            progress.begin(option, self._last, continues=bool(cut and cut.text.strip()))
            call = self._call_of(option, prefix, began, words=words)
            work: Work = partial(_run_attempt, option, call, attempt)
            if cut:
                work = partial(joined, work, Joiner(cut, words=words), option.name)
            completion = await work(progress)
        except LLMError as error:
            self._release()
            stepped = bool(cut and cut.rest) and option.prefills
            about = decision.Situation(prefilled=prefix is not None and not words, stepped=stepped)
            await self._handle_failure(option, error, began, about, shares=shares)
            return None
        except BaseException:
            option.abandon()
            raise
        finally:
            self._release()
        option.succeeded(completion, clock)
        return progress.complete(completion, began, self._now)

    def _call_of(self, option: Option, prefix: str | None, now: float, *, words: bool) -> Call:
        """Return the call for an attempt, with the option's model, the remaining time and the remaining tokens.

        If the provider has no prefill (``words``), the prompt requests the continuation.
        """
        call, progress = self._call, self._progress
        options = {**call.options, "timeout": max(0.001, self._deadline - now)}
        if prefix is None:
            return replace(call, model=option.model, options=options)
        repeated = len(progress.text) - len(prefix)  # characters, which are at least as many as tokens
        if words:
            call = replace(call, prompt=in_words(call.prompt, prefix))
            repeated += len(end_of(prefix))
        left = max(1, call.max_tokens - progress.tokens + repeated)
        return replace(call, model=option.model, options=options, max_tokens=type(call.max_tokens)(left))

    async def _handle_failure(
        self, option: Option, error: LLMError, at: float, about: decision.Situation, *, shares: bool
    ) -> None:
        """Record the failure of an attempt that began ``at`` this time, and decide. Raises it if no attempt follows."""
        progress, chain, now = self._progress, self._chain, self._now
        if isinstance(error, errors.FirstTokenTimeout) and await option.loads_now():
            error = errors.ModelLoading(error.what, provider=error.provider, model=error.model)
        own = Tried(option.name, error.model or option.target.model, type(error).__name__, error.status, now - at)
        option.failure = error
        others = chain.others(option) if option.replays else []
        equal = any(other.rank == option.rank for other in others)  # any of the equals may have been recorded
        if isinstance(error, errors.NotRecorded) and others and (option.opened or equal):
            error.forgiven = True  # its circuit breaker was open when the cassette was recorded
            self._last = self._last or error
            return
        progress.failed(error, error.attempts or (own,), now, free=option.cost == (0.0, 0.0))
        hurried = shares and isinstance(error, errors.FirstTokenTimeout)
        if hurried and now - at < option.facts.first_token_s:
            option.abandon()  # it had less than its first-token timeout
        else:
            option.failed(error)
        fresh = bool(error.partial or error.tokens)
        if fresh and progress.text.strip():
            chain.same_model = option.facts.names
        self._last = error
        await self._apply_decision(option, error, replace(about, fresh=fresh))

    async def _apply_decision(self, option: Option | None, error: LLMError, about: decision.Situation) -> None:
        """Decide after a failure, and carry it out. Raises the error for the caller if no attempt follows."""
        progress, chain = self._progress, self._chain
        text, seen = progress.text, not self._call.buffered
        held, pause = bool(text.strip()), self._retry_pause()
        strayed, loading = chain.failures(errors.NotContinued), self._loading()
        situation = replace(
            about,
            shown=held and seen,
            blank=bool(text) and not held and seen,
            held=held,
            rigid=self._call.rigid,
            called=bool(progress.calls),
            resume=self._resume,
            others=bool(chain.within(chain.others(option), loading)),
            loading=bool(loading),
            not_continued=bool(strayed) and not self._restarted,
            transient=pause is not None,
            time_left=self._now < self._deadline,
        )
        decided = decision.decide(error, situation)
        if decided.action == "raise":
            refused = strayed[0].failure if strayed else None  # why the text was not continued
            raise progress.final(refused if refused and held and not progress.calls else error)
        if decided.text == "drop":
            progress.forget_text()
            chain.same_model = frozenset()
        for other in await self._options_to_retry(decided.action, option, error, pause or 0.0):
            other.failure = None

    async def _options_to_retry(
        self, action: decision.Action, option: Option | None, error: LLMError, pause: float
    ) -> Sequence[Option]:
        """Wait as the action requires. Return the failed options that get another attempt."""
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
            passing = self._chain.passing()
            self._rounds += 1
            with self._progress.waiting(Waiting("retry", chain_name(passing))):
                await asyncio.sleep(pause)
            return passing
        return ()

    def _loading(self) -> list[Option]:
        """Return the options that load a model, if there is time left for a load."""
        return self._chain.failures(errors.ModelLoading) if self._now <= self._load_deadline else []

    def _retry_pause(self) -> float | None:
        """Return the seconds before a retry of transient failures; None if there are none, or no time is left."""
        delays = [option.failure.retry_after for option in self._chain.passing() if option.failure]
        if not delays:
            return None
        chance = random.random()  # noqa: S311  # jitter
        if self._rounds < decision.rounds(self._chain.settings.llm_retries):
            pause = min(decision.back_off(self._rounds, chance, delay) for delay in delays)
        elif self._chain.restarts(self._now):
            pause = decision.RESTART_PAUSE_S * (0.5 + chance)
        else:
            return None
        return pause if self._now + pause < self._deadline else None

    async def _choose_option(self) -> Option:
        """Return the next option, with a slot if one is free. Raises the error for the caller if no option is left."""
        ticket, since = CAPACITY.ticket(), self._now
        while True:
            fit, chosen = self._chain.next(self._loading())
            if chosen:
                for passed_over in fit[: fit.index(chosen)]:
                    passed_over.recover()
                chosen = self._with_free_slot(chosen, fit) or await self._wait_for_slot(chosen, fit, ticket, since)
                if chosen is None:
                    continue
                chosen.begin()
                return chosen
            if not fit:
                if self._last is None:
                    raise self._progress.final(self._chain.unfit())
                await self._apply_decision(None, self._last, decision.Situation())
                continue
            first = last_resort(fit)
            opened = await self._probe_open_breaker(first)
            if opened is None:
                self._slot = CAPACITY.take(first.address, first.limit, self._chain.digests)
                return first
            self._last = first.failure = opened
            await self._apply_decision(first, opened, decision.Situation())

    def _with_free_slot(self, chosen: Option, fit: Sequence[Option]) -> Option | None:
        """Return the chosen option or one that the request may spill to, with a slot; None if all are full."""
        reach = {"no": -1, "local": chosen.distance, "cloud": 1}[self._chain.settings.llm_spill]
        spill = [other for other in fit if other.ready and other.distance <= reach] if reach >= 0 else []
        for option in (chosen, *spill):
            self._slot = CAPACITY.take(option.address, option.limit, self._chain.digests)
            if self._slot:
                return option
        return None

    async def _wait_for_slot(
        self, chosen: Option, fit: Sequence[Option], ticket: Ticket, since: float
    ) -> Option | None:
        """Wait for a slot among equals. Return the option that has one; None to choose again.

        Without equals the option is returned at once: its attempt waits in the queue of its own address.

        Raises:
            DeadlineExceeded: no slot was free before the deadline.
        """
        if sum(option.rank == chosen.rank for option in self._chain.options) == 1:
            return chosen
        equals = [option for option in fit if option.ready and option.rank == chosen.rank]
        left_s = self._deadline - self._now
        if left_s <= 0:
            what = f"timed out waiting for a free slot at one of {chain_name(equals)}"
            hint = "Raise timeout= or LLM_DEADLINE, or let LLM_SPILL=local or cloud use the next in LLM_PROVIDERS"
            raise self._progress.final(errors.DeadlineExceeded(what, hint=hint))
        limits = {option.address: option.limit for option in equals}
        with self._progress.waiting(Waiting("queue", chain_name(equals))):
            slot = await CAPACITY.wait(limits, self._chain.digests, ticket, min(_QUEUE_POLL_S, left_s))
        freed = next((option for option in equals if slot and option.address == slot.address), None)
        if slot and freed and freed.ready:
            self._slot = replace(slot, waited_s=self._now - since)
            return freed
        CAPACITY.release(slot)  # the option failed meanwhile
        return None

    def _release(self) -> None:
        CAPACITY.release(self._slot)
        self._slot = None

    async def _probe_open_breaker(self, option: Option) -> LLMError | None:
        """Probe the option if its circuit breaker is open. Return the error if it stays open, else None."""
        opened = option.opened
        if not opened or not opened[0].visible:
            return None
        if await asyncio.shield(option.probe()):  # other requests wait for the same probe
            return None
        error = opened[0].error.without_text()
        error.attempts = ()
        tried = Tried(option.name, option.target.model, type(error).__name__, error.status, 0.0)
        self._progress.tried.append(tried)
        return error

    async def _wait_for_load(self, loading: Sequence[Option]) -> list[Option]:
        """Wait until an option has loaded its model. Return the options that have."""
        while self._now <= self._load_deadline:
            await asyncio.sleep(_LOAD_POLL_S)
            ready = [option for option in loading if not await option.loads_now()]
            if ready:
                return ready
        for option in loading:
            option.failed(errors.TimedOut("the model was not loaded within LLM_LOAD_TIMEOUT"))
        return []

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()


async def _run_attempt(option: Option, call: Call, attempt: Attempt, emit: Emit) -> Completion:
    """Run an attempt. Raises nothing but LLMError: an application may override ``attempt()``, and raise anything."""
    try:
        return await option.provider.attempt(call, attempt)(emit)
    except LLMError:
        raise
    except Exception as error:  # noqa: BLE001  # its message may quote the prompt, and is dropped
        failure = errors.ServerFailed(f"the provider raised {type(error).__name__}", provider=option.name)
    raise failure
