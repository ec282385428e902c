"""The execution of one request through a chain: attempts, continuations, waits, until one succeeds or none is left.

Must never decide what a failure means (``decision``) or which option is next (``selection``).
The router makes one for each request.
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
    """One request.

    Args:
        call: the call.
        resume: what to do if a stream breaks after pieces were emitted.
        request: the attempt that the request is, with its number and metadata.
        chain: its options.
        progress: of the request.
    """

    def __init__(self, call: Call, resume: Resume, request: Attempt, chain: Chain, progress: Progress) -> None:
        self._call, self._resume, self._request = call, resume, request
        self._chain, self._progress = chain, progress
        self._deadline = progress.started + float(call.options.get("timeout") or chain.settings.llm_deadline)
        self._load_deadline = min(self._deadline, progress.started + chain.settings.llm_load_timeout) - _LOAD_POLL_S
        self._rounds = 0
        self._last: LLMError | None = None
        self._steps_back = True  # to the last whole word; once that failed, the text is cut where it broke
        self._begun_again = False
        self._slot: Slot | None = None  # of the current attempt

    async def run(self) -> Completion:
        """Return the completion. Raises nothing but LLMError."""
        while True:
            if completion := await self._attempt(await self._next()):
                return completion

    async def _attempt(self, option: Option) -> Completion | None:
        """Run an attempt at an option; None if it failed and another attempt follows. Raises the error for the caller.

        A continuation is limited to the tokens that are left.
        """
        began, clock = self._now, option.registry.clock()
        progress = self._progress
        cut = cut_point(progress.text, steps_back=self._steps_back, prefills=option.prefills)
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
            work: Work = partial(_attempted, option, call, attempt)
            if cut:
                work = partial(joined, work, Joiner(cut, words=words), option.name)
            completion = await work(progress)
        except LLMError as error:
            self._release()
            stepped = bool(cut and cut.rest) and option.prefills
            about = decision.Situation(prefilled=prefix is not None and not words, stepped=stepped)
            await self._failed(option, error, began, about, shares=shares)
            return None
        except BaseException:
            option.abandon()
            raise
        finally:
            self._release()
        option.succeeded(completion, clock)
        return progress.complete(completion, began, self._now)

    def _call_of(self, option: Option, prefix: str | None, now: float, *, words: bool) -> Call:
        """Return the call for an attempt: with the option's model, the time that is left, and the tokens that are.

        If the provider takes no prefix, the call asks for the continuation in words.
        """
        call, progress = self._call, self._progress
        options = {**call.options, "timeout": max(0.001, self._deadline - now)}
        if prefix is None:
            return replace(call, model=option.model, options=options)
        repeated = len(progress.text) - len(prefix)  # characters: at least as many as tokens
        if words:
            call = replace(call, prompt=in_words(call.prompt, prefix))
            repeated += len(end_of(prefix))
        left = max(1, call.max_tokens - progress.tokens + repeated)
        return replace(call, model=option.model, options=options, max_tokens=type(call.max_tokens)(left))

    async def _failed(
        self, option: Option, error: LLMError, at: float, about: decision.Situation, *, shares: bool
    ) -> None:
        """Record the failure of an attempt that began ``at``, and do what it means. Raises it if no attempt follows."""
        progress, chain, now = self._progress, self._chain, self._now
        if isinstance(error, errors.FirstTokenTimeout) and await option.loads_now():
            error = errors.ModelLoading(error.what, provider=error.provider, model=error.model)
        own = Tried(option.name, error.model or option.target.model, type(error).__name__, error.status, now - at)
        option.failure = error
        others = chain.others(option) if option.replays else []
        equal = any(other.rank == option.rank for other in others)  # which of them was recorded is unknown
        if isinstance(error, errors.NotRecorded) and others and (option.opened or equal):
            error.forgiven = True  # its circuit breaker was open when the cassette was recorded
            self._last = self._last or error
            return
        progress.failed(error, error.attempts or (own,), now, free=option.cost == (0.0, 0.0))
        hurried = shares and isinstance(error, errors.FirstTokenTimeout)
        if hurried and now - at < option.facts.first_token_s:
            option.abandon()  # it lost its time to other options
        else:
            option.failed(error)
        fresh = bool(error.partial or error.tokens)
        if fresh and progress.text.strip():
            chain.same_model = option.facts.names
        self._last = error
        await self._follow(option, error, replace(about, fresh=fresh))

    async def _follow(self, option: Option | None, error: LLMError, about: decision.Situation) -> None:
        """Do what is decided after a failure. Raises the error for the caller if no attempt follows."""
        progress, chain = self._progress, self._chain
        text, seen = progress.text, not self._call.buffered
        held, pause = bool(text.strip()), self._pause()
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
            not_continued=bool(strayed) and not self._begun_again,
            passes=pause is not None,
            time_left=self._now < self._deadline,
        )
        decided = decision.decide(error, situation)
        if decided.action == "give up":
            refused = strayed[0].failure if strayed else None  # why the text was not continued
            raise progress.final(refused if refused and held and not progress.calls else error)
        if decided.text == "forget":
            progress.forget_text()
            chain.same_model = frozenset()
        for other in await self._again(decided.action, option, error, pause or 0.0):
            other.failure = None

    async def _again(
        self, action: decision.Action, option: Option | None, error: LLMError, pause: float
    ) -> Sequence[Option]:
        """Return the failed options that get another attempt, after the wait that the action requires."""
        if action == "otherwise" and option:
            if isinstance(error, errors.NotContinued):
                self._steps_back = False
            else:
                option.refuses_prefix = True
            return [option]
        if action == "load":
            loading = self._loading()
            with self._progress.waiting(Waiting("load", chain_name(loading))):
                return await self._loaded(loading)
        if action == "begin again":
            self._begun_again = True
            return self._chain.failures(errors.NotContinued)
        if action == "again":
            passing = self._chain.passing()
            self._rounds += 1
            with self._progress.waiting(Waiting("retry", chain_name(passing))):
                await asyncio.sleep(pause)
            return passing
        return ()

    def _loading(self) -> list[Option]:
        """Return the options that load, if there is time left for a load."""
        return self._chain.failures(errors.ModelLoading) if self._now <= self._load_deadline else []

    def _pause(self) -> float | None:
        """Return the seconds before a retry of failures that may pass; None if there are none, or no time."""
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

    async def _next(self) -> Option:
        """Return the next option, with its slot if one is free. Raises the error for the caller if there is none."""
        ticket, since = CAPACITY.ticket(), self._now
        while True:
            fit, chosen = self._chain.next(self._loading())
            if chosen:
                for passed_over in fit[: fit.index(chosen)]:
                    passed_over.recover()
                chosen = self._with_free_slot(chosen, fit) or await self._queued(chosen, fit, ticket, since)
                if chosen is None:
                    continue
                chosen.begin()
                return chosen
            if not fit:
                if self._last is None:
                    raise self._progress.final(self._chain.unfit())
                await self._follow(None, self._last, decision.Situation())
                continue
            first = last_resort(fit)
            opened = await self._still_open(first)
            if opened is None:
                self._slot = CAPACITY.take(first.address, first.limit, self._chain.digests)
                return first
            self._last = first.failure = opened
            await self._follow(first, opened, decision.Situation())

    def _with_free_slot(self, chosen: Option, fit: Sequence[Option]) -> Option | None:
        """Take a slot of the chosen option, or of one that the request may spill to; None if all are full."""
        reach = {"no": -1, "local": chosen.distance, "cloud": 1}[self._chain.settings.llm_spill]
        spill = [other for other in fit if other.ready and other.distance <= reach] if reach >= 0 else []
        for option in (chosen, *spill):
            self._slot = CAPACITY.take(option.address, option.limit, self._chain.digests)
            if self._slot:
                return option
        return None

    async def _queued(self, chosen: Option, fit: Sequence[Option], ticket: Ticket, since: float) -> Option | None:
        """Wait for a slot among equals. Returns the option that has one; None to choose again.

        A sole option of its rank is returned without a slot: its attempt waits in its own queue.

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

    async def _still_open(self, option: Option) -> LLMError | None:
        """Probe the option whose circuit breaker closes first, if all are open. Returns why it must not be used."""
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

    async def _loaded(self, loading: Sequence[Option]) -> list[Option]:
        """Wait until an option has loaded its model; return those that have."""
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


async def _attempted(option: Option, call: Call, attempt: Attempt, emit: Emit) -> Completion:
    """Run an attempt. Raises nothing but LLMError: an application may override ``attempt()``, and raise anything."""
    try:
        return await option.provider.attempt(call, attempt)(emit)
    except LLMError:
        raise
    except Exception as error:  # noqa: BLE001  # its message may quote the prompt, and is dropped
        failure = errors.ServerFailed(f"the provider raised {type(error).__name__}", provider=option.name)
    raise failure
