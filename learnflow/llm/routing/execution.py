"""The execution of one request through a chain: who is asked next, what is continued, when it is over.

Must never decide by itself what a failure means (``decision``) or how a text is joined (``continuation``).
The router makes one for each request.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, Literal

from .. import errors, events
from ..base import Attempt, Call, Resume
from ..completion import Completion, Event, Failover, Resumed, TextDelta, ToolCallDelta, Waiting
from ..errors import LLMError, Tried
from ..stream import Emit, Relay
from . import continuation, decision, selection
from .candidate import Candidate, chain_name
from .places import PLACES, Place, Turn
from .progress import Progress

_AGAIN_S: Final = 0.5  # between two looks at a server that loads
_LOOK_AGAIN_S: Final = 0.5  # between two looks at who could be asked, while all are full


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a chain is run: retries of the same provider, order, seconds for a request and a load, nothing but local.

    And where a request goes while a rank is full: to nobody else, to one as near, or to any.
    """

    retries: int
    routing: selection.Routing
    deadline: float
    load: float
    local_only: bool
    spill: Literal["no", "local", "cloud"] = "no"


class _Join(Relay):
    """What an attempt says, joined to what was delivered before it.

    Args:
        name: of who is asked.
        joiner: None where it begins the answer.
        progress: gets what is given out.
        emit: the caller's.
        mismatched: called where what comes is not what had to come again.
    """

    def __init__(
        self,
        name: str,
        joiner: continuation.Joiner | None,
        progress: Progress,
        emit: Emit,
        mismatched: Callable[[], None],
    ) -> None:
        super().__init__(emit)
        self._name, self._joiner = name, joiner
        self._progress, self._mismatched = progress, mismatched
        self._goes_on = bool(joiner and progress.text.strip())  # and this is yet to be told
        self._held: list[ToolCallDelta] = []  # that came before it was known that it is a continuation

    def __call__(self, event: Event) -> None:
        joiner = self._joiner
        if joiner and joiner.mismatched:
            return
        if isinstance(event, TextDelta):
            self._text(joiner.feed(event.text) if joiner else event.text)
            if joiner and joiner.mismatched:
                self._mismatched()
        elif not self.all_events:
            pass
        elif isinstance(event, ToolCallDelta) and joiner and not joiner.settled:
            self._held.append(event)
        else:
            self._show(event)

    def end(self, whole: Completion | None) -> None:
        """Give out what was held back. Raises NotContinued, and EmptyAnswer where nothing came at all."""
        joiner = self._joiner
        text = joiner.end() if joiner else ""
        if joiner and not (joiner.silent and whole and whole.tool_calls):  # which come instead of a text that goes on
            if joiner.silent:  # the last word had to come again: nobody knows that this was the end
                raise errors.EmptyAnswer("asked to continue a broken answer, it returned nothing", provider=self._name)
            if joiner.mismatched:
                what = "its continuation does not begin with the end of the broken answer"
                raise errors.NotContinued(what, provider=self._name)
        self._text(text, also=bool(self._held))
        for call in self._held:
            self._show(call)

    def _text(self, text: str, *, also: bool = False) -> None:
        if self._goes_on and (text or also):
            self._goes_on = False
            self._emit(Resumed(self._name, len(self._progress.text)))
        if text:
            self._progress.heard(text, asyncio.get_running_loop().time())
            self._emit(TextDelta(text))

    def _show(self, event: Event) -> None:
        self._progress.showed(event)
        self._emit(event)


class Execution:
    """One request.

    Args:
        rules: how the chain is run.
        call: what was asked.
        needs: what that needs of a provider.
        resume: what to do when a stream breaks after pieces were delivered.
        attempt: of which request it is.
        explained: nobody will be asked.
    """

    def __init__(
        self,
        rules: Rules,
        call: Call,
        needs: selection.Needs,
        resume: Resume,
        *,
        attempt: Attempt | None = None,
        explained: bool = False,
    ) -> None:
        self._rules, self._call, self._needs, self._resume = rules, call, needs, resume
        self._request, self._explained = attempt or Attempt(), explained
        self._head = selection.head_of(call)
        self._rounds = 0
        self._last: LLMError | None = None
        self._whose: frozenset[str] = frozenset()  # the names of the model whose answer is to be continued
        self._stepping = True  # to the last whole word; once that went wrong, an answer is continued where it broke
        self._begun_again = False
        self._place: Place | None = None  # of the attempt that is under way

    def over(self, candidates: Sequence[Candidate]) -> None:
        """The chain, in the user's order: each is asked for the model that was named where it has it, else its own."""
        asked = self._call.model
        have = [bool(asked and not each.broken and each.provider.has(asked)) for each in candidates]
        self.chain = list[Candidate]()
        for each, has in zip(candidates, have, strict=True):
            own = each.provider.vision_model if self._needs.images and not each.broken else None
            named = has or len(candidates) == 1 or (each.rank == candidates[0].rank and not any(have))
            self.chain.append(each.asked_for(asked if asked and named else own))

    async def run(
        self,
        find: Callable[[Call, selection.Needs], Awaitable[Sequence[Candidate]]],
        lost: Callable[[LLMError], None],
        emit: Emit,
    ) -> Completion:
        """The answer. Raises LLMError.

        Args:
            find: finds the candidates.
            lost: is told of the error for the caller.
            emit: of the caller.
        """
        self._emit, self._started = emit, self._now
        self._deadline = self._started + float(self._call.options.get("timeout") or self._rules.deadline)
        self._progress = Progress(self._started, self._request.tried)
        try:
            self.over(await find(self._call, self._needs))
            before: Candidate | None = None
            while True:
                candidate = await self._next()
                if before and before is not candidate and self._last:
                    name = type(self._last).__name__
                    events.emit(events.Moved(provider=before.name, to=candidate.name, error=name))
                    emit(Failover(before.name, candidate.name, name))
                if whole := await self._attempt(candidate):
                    return whole
                before = candidate
        except LLMError as error:
            lost(error)
            raise
        finally:
            self._leave()

    async def _attempt(self, candidate: Candidate) -> Completion | None:
        """Ask it, or let it continue; None where it failed and somebody is asked next. Raises LLMError where nobody is.

        As much less is asked for as was delivered.
        """
        began, clock = self._now, candidate.clock()
        cut, call, progress = self._cut(candidate), self._call, self._progress
        words = bool(cut and cut.prefix) and not candidate.prefills
        joiner = continuation.Joiner(cut, words=words) if cut else None
        prefix = cut.prefix if cut and cut.prefix else None
        patience = decision.patience(self._deadline - began) if self._shares(candidate) else None
        attempt = Attempt(
            number=len(progress.tried) + 1,
            request=self._request.request,
            patience=patience,
            prefix=prefix,
            thinking=progress.thinking if prefix else "",
        )
        progress.asks(candidate.name, candidate.number)
        if cut and cut.delivered.strip():
            progress.resumes(in_words=words)
        if prefix is not None:
            again = len(progress.text) - len(prefix)  # characters, which are tokens at the most
            again += len(continuation.end_of(prefix)) if words else 0
            most = max(1, call.max_tokens - progress.tokens + again)
            call = replace(call, max_tokens=type(call.max_tokens)(most))  # a ceiling stays one
        options = {**call.options, "timeout": max(0.001, self._deadline - began)}
        call = replace(call, model=candidate.model, options=options)
        try:
            whole: Completion | None = None
            with suppress(TimeoutError):
                async with asyncio.timeout(None) as scope:  # left once what comes is known to be no continuation
                    join = _Join(candidate.name, joiner, progress, self._emit, lambda: scope.reschedule(0))
                    whole = await candidate.ask(call, attempt, words=words)(join)
            join.end(whole)
            assert whole  # noqa: S101  # else it has raised
        except LLMError as error:
            self._leave()
            stepped = bool(cut and cut.rest) and candidate.prefills
            prefilled = prefix is not None and not words
            await self._failed(candidate, error, began, patience, prefilled=prefilled, stepped=stepped)
            return None
        except BaseException:
            candidate.left()
            raise
        finally:
            self._leave()
        candidate.answered(whole, clock)
        return progress.complete(whole, began, self._now)

    def _cut(self, candidate: Candidate) -> continuation.CutPoint | None:
        """Where it is continued; None to begin."""
        text = self._progress.text
        if not text:
            return None
        if not text.strip():
            return continuation.CutPoint("", text)  # it is asked from the beginning
        cut = continuation.step_back(text)
        whole = not self._stepping or not (candidate.prefills or cut.prefix)
        return continuation.as_it_broke(text) if whole else cut

    async def _failed(
        self,
        candidate: Candidate,
        error: LLMError,
        began: float,
        patience: float | None,
        *,
        prefilled: bool,
        stepped: bool,
    ) -> None:
        """Tell what this failure means for the provider, and do what it means for the request. Raises it at the end."""
        progress, model, now = self._progress, candidate.target.model, self._now
        if isinstance(error, errors.FirstTokenTimeout) and await candidate.loads_now():
            error = errors.ModelLoading(error.what, provider=error.provider, model=error.model)
        own = Tried(candidate.name, error.model or model, type(error).__name__, error.status, now - began)
        if isinstance(error, errors.NotContinued):
            progress.mismatched()
        progress.failed(error.attempts or (own,), now)  # a router tells its own
        hurried = patience is not None and isinstance(error, errors.FirstTokenTimeout)
        if hurried and now - began < candidate.provider.waits[0]:
            candidate.left()  # others wanted their share: no fault of this one
        else:
            candidate.failed(error)
        candidate.failure = error
        others = self._left(candidate) if candidate.recorded else []
        equal = any(other.rank == candidate.rank for other in others)  # which of them was asked then, nobody knows
        if isinstance(error, errors.NotRecorded) and others and (candidate.opened or equal):
            error.forgiven = True  # it was left alone when the cassette was made
            del progress.tried[-1]
            self._last = self._last or error
            return
        fresh = bool(error.partial or error.tokens)
        if fresh or progress.text:
            progress.lost(error, free=candidate.cost == (0.0, 0.0))
        if fresh and progress.text.strip():
            self._whose = candidate.provider.names(model)
        self._last = error
        await self._follow(candidate, error, fresh=fresh, prefilled=prefilled, stepped=stepped)

    async def _follow(
        self,
        candidate: Candidate | None,
        error: LLMError,
        *,
        fresh: bool = False,
        prefilled: bool = False,
        stepped: bool = False,
    ) -> None:
        """Do what is decided after this failure. Raises it where nothing is left to do."""
        text, seen = self._progress.text, not self._call.whole
        held, pause = bool(text.strip()), self._pause()
        strayed, passing, loading = self._failures(errors.NotContinued), self._passing(), self._loading()
        decided = decision.decide(
            error,
            decision.Situation(
                shown=held and seen,
                blank=bool(text) and not held and seen,
                held=held,
                fresh=fresh,
                rigid=self._call.rigid,
                called=bool(self._progress.calls),
                resume=self._resume,
                prefilled=prefilled,
                stepped=stepped,
                others=bool(self._within_reach(self._left(candidate))),
                loading=bool(loading),
                not_continued=bool(strayed) and not self._begun_again,
                passes=pause is not None,
                time_left=self._now < self._deadline,
            ),
        )
        again: Sequence[Candidate] = ()
        if decided.action == "give up":
            refused = strayed[0].failure if strayed else None  # why a text was not continued
            raise self._progress.final(refused if refused and held and not self._progress.calls else error)
        if decided.text == "forget":
            self._progress.forget()
            self._whose = frozenset()
        if decided.action == "otherwise" and candidate:
            again = [candidate]
            if isinstance(error, errors.NotContinued):
                self._stepping = False
            else:
                candidate.prefills = False
        elif decided.action == "load":
            with self._emit.waiting(Waiting("load", chain_name(loading))):
                again = await self._loaded(loading)
        elif decided.action == "begin again":
            self._begun_again, again = True, strayed
        elif decided.action == "again" and pause is not None:
            self._rounds += 1
            with self._emit.waiting(Waiting("retry", chain_name(passing))):
                await asyncio.sleep(pause)
            again = passing
        for each in again:
            each.failure = None

    def _failures(self, kind: type[LLMError]) -> list[Candidate]:
        """Those who failed so."""
        return [each for each in self.chain if isinstance(each.failure, kind)]

    def _passing(self) -> list[Candidate]:
        """Those whose failure may pass by itself, without a look at their pages."""
        return [each for each in self._failures(LLMError) if each.failure.retryable and not _loads(each)]  # type: ignore[union-attr]

    def _loading(self) -> list[Candidate]:
        """Those who said that they load, where the time for it is not over."""
        return [] if self._load_is_over() else self._failures(errors.ModelLoading)

    def _load_is_over(self) -> bool:
        return self._now + _AGAIN_S > min(self._deadline, self._started + self._rules.load)

    def _pause(self) -> float | None:
        """Seconds until those are asked again whose failure may pass; None where there is nobody, or no time."""
        asked = [each.failure.retry_after for each in self._passing() if each.failure]
        if not asked or self._rounds >= decision.rounds(self._rules.retries):
            return None
        chance = random.random()  # noqa: S311  # jitter
        pause = min(decision.back_off(self._rounds, chance, each) for each in asked)
        return pause if self._now + pause < self._deadline else None

    async def _next(self) -> Candidate:
        """Who is asked next; a place there is taken. Raises LLMError where nobody can be."""
        turn, since = PLACES.turn(), self._now
        while True:
            fit = self._within_reach([each for each in self.order() if not each.failure and not self.lacks(each)])
            chosen, load, probe = self.select(fit)
            for each in probe:
                each.probe()
            for each in load:
                each.load()
            if chosen:
                chosen = await self._with_place(chosen, fit, turn, since)
                if chosen is None:
                    continue
                if chosen.gate == "trial":
                    chosen.begin()
                return chosen
            if not fit:
                if self._last is None:
                    raise self._nobody()
                await self._follow(None, self._last)
                continue
            first = last_resort(fit)
            opened = await self._last_resort(first)
            if opened is None:
                self._place = PLACES.take(first.address, self._head)
                return first
            self._last = first.failure = opened
            await self._follow(first, opened)

    async def _with_place(
        self, chosen: Candidate, fit: Sequence[Candidate], turn: Turn, since: float
    ) -> Candidate | None:
        """The one who is asked, its place taken: another where this one is full. None: choose again.

        Raises:
            DeadlineExceeded: no place was free before the deadline.
        """
        ready = [each for each in fit if each.ready]
        reach = {"no": -1, "local": chosen.distance, "cloud": 1}[self._rules.spill]
        for each in (chosen, *(other for other in ready if other.distance <= reach)):
            self._place = PLACES.take_free(each.address, each.room, self._head)
            if self._place:
                return each
        if sum(each.rank == chosen.rank for each in self.chain) == 1:  # it has a queue of its own
            self._place = PLACES.take(chosen.address, self._head)
            return chosen
        equals = [each for each in ready if each.rank == chosen.rank]
        left = self._deadline - self._now
        if left <= 0:
            what = f"timed out waiting for a free place at one of {chain_name(equals)}"
            hint = "Raise timeout= or LLM_DEADLINE, or let LLM_SPILL=local or cloud use the next in LLM_PROVIDERS"
            raise self._progress.final(errors.DeadlineExceeded(what, hint=hint))
        # for a moment: then one that comes back is looked at, too
        rooms = {each.address: each.room for each in equals}
        with self._emit.waiting(Waiting("queue", chain_name(equals))):
            self._place = await PLACES.wait(rooms, self._head, turn, min(_LOOK_AGAIN_S, left))
        freed = next((each for each in equals if self._place and each.address == self._place.address), None)
        if freed and freed.ready:
            events.emit_lazily(events.Queued, provider=freed.name, seconds=self._now - since)
            return freed
        self._leave()  # it failed meanwhile
        return None

    def _leave(self) -> None:
        if self._place:
            PLACES.leave(self._place)
            self._place = None

    def select(self, fit: Sequence[Candidate]) -> tuple[Candidate | None, list[Candidate], list[Candidate]]:
        """Who of these is asked now; who loads its model, and who is probed meanwhile."""
        return selection.select(fit, self._rules.routing, self._is_same)

    def _is_same(self, candidate: Candidate) -> bool:
        return bool(self._whose & candidate.provider.names(candidate.model))

    def _within_reach(self, fit: list[Candidate]) -> list[Candidate]:
        """While one loads, only those who are no farther away answer meanwhile."""
        loading = self._loading()
        if not loading or self._rules.routing == "warm-first":
            return fit
        return [each for each in fit if each.distance <= min(other.distance for other in loading)]

    async def _last_resort(self, candidate: Candidate) -> LLMError | None:
        """Every breaker is open: why not even the one that opens first is asked, after a probe where that can tell."""
        opened = candidate.opened
        if not opened or not decision.verdict(opened[0].error or LLMError("")).visible:
            return None
        if await asyncio.shield(candidate.probe()):  # others wait for it too
            return None
        error = copy.copy(opened[0].error or errors.ConnectionFailed("not ready"))
        error.partial, error.thinking, error.partial_calls, error.attempts = "", "", (), ()
        own = Tried(candidate.name, candidate.target.model, type(error).__name__, error.status, 0.0)
        self._progress.tried.append(own)
        return error

    async def _loaded(self, loading: Sequence[Candidate]) -> list[Candidate]:
        """Those of them that have loaded the model, once one has; a load is never hurried, and has its own budget."""
        while not self._load_is_over():
            await asyncio.sleep(_AGAIN_S)
            ready = [each for each in loading if not await each.loads_now()]
            if ready:
                return ready
        for each in loading:  # it has failed like any other
            each.failed(errors.TimedOut(f"the model was not loaded within {self._rules.load:g} s"))
        return []

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _shares(self, candidate: Candidate) -> bool:
        """Whether a part of the time is kept for others; none for a farther one, where this one has to load."""
        cold = candidate.cold and self._rules.routing != "warm-first"
        return any(not cold or other.distance <= candidate.distance for other in self._left(candidate))

    def _left(self, candidate: Candidate | None) -> list[Candidate]:
        """Those who could still be asked after this one."""
        return [each for each in self.chain if each is not candidate and not each.failure and not self.lacks(each)]

    def order(self) -> list[Candidate]:
        """The chain in the order in which it is asked; those that cannot be come last.

        Rank by rank; of equals first the one that probably holds the beginning of this request.
        """
        if self._rules.routing == "order" and len({each.rank for each in self.chain}) == len(self.chain):
            return list(self.chain)
        whole = [each for each in self.chain if not each.broken]
        found: list[Candidate] = []
        for rank in dict.fromkeys(each.rank for each in whole):
            equals = [each for each in whole if each.rank == rank]
            rooms = {each.address: each.room for each in equals if each.ready}
            order = PLACES.ordered(rooms, self._head)
            found += sorted(equals, key=lambda each: order.index(each.address) if each.address in order else -1)
        return selection.ranked(found, self._rules.routing) + [each for each in self.chain if each.broken]

    def lacks(self, candidate: Candidate) -> list[str]:
        """What it lacks for this request, in words."""
        if candidate.broken:
            return [str(candidate.broken)]
        if len(self.chain) == 1 and not self._explained:
            return []
        return candidate.lacks(self._needs, local_only=self._rules.local_only)

    def _nobody(self) -> LLMError:
        """Nobody fits: which need failed where."""
        broken = [each.broken for each in self.chain if each.broken]
        if len(broken) == len(self.chain):
            return self._progress.final(broken[-1])
        said = "; ".join(f"{each.name}: no {', no '.join(self.lacks(each))}" for each in self.chain)
        short = all(not each.broken and each.overflows(self._needs) for each in self.chain)
        kind = errors.ContextOverflow if short else errors.Unsupported
        return kind(f"no provider can serve this request ({said})", hint="Add one that can to LLM_PROVIDERS")


def last_resort(fit: Sequence[Candidate]) -> Candidate:
    """The one whose breaker lets it be asked first."""
    return min(fit, key=lambda each: max((breaker.until for breaker in each.opened), default=0.0))


def _loads(candidate: Candidate) -> bool:
    return isinstance(candidate.failure, errors.ModelLoading)
