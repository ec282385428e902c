"""The execution of one request through a chain: who is asked next, what is continued, when it is over.

Must never decide by itself what a failure means (``decision``) or how a text is joined (``continuation``).
The router makes one for each request.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Literal

from .. import errors, events
from ..base import Attempt, Call, Resume
from ..completion import Answering, Completion, Failover, Piece, Resumed, TextStream, ToolCallDelta, Waiting, Watched
from ..errors import LLMError, Tried
from . import continuation, decision, selection
from .breaker import BreakerRegistry, Gate, Target
from .candidate import Candidate, chain_name
from .places import PLACES, Place, Rooms, Turn
from .progress import Progress

_AGAIN_S: Final = 0.5  # between two looks at a server that loads
_LOOK_AGAIN_S: Final = 0.5  # between two looks at who could be asked, while all are full
_LOADING: Final = errors.ModelLoading


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a chain is run: retries of the same provider, order, seconds for a request and a load, nothing but local.

    And where a request goes while a rank is full: to nobody else, to one as near, or to any.
    """

    retries: int
    patience: float
    routing: selection.Routing
    deadline: float
    load: float
    local_only: bool
    spill: Literal["no", "local", "cloud"] = "no"


@dataclass(slots=True, kw_only=True)
class _Asked:
    """One attempt that is under way.

    Attributes:
        candidate, target: who is asked, and where the breaker is kept.
        start: asks it.
        completion: what it said, once that was whole.
        joiner: joins it to what was delivered; None where nothing was.
        prefilled: the request carries the beginning of the answer; stepped: up to its last whole word.
        hurried: others want a share of the time to its first token.
        started: by the loop's clock; began: by the breakers'.
        held: pieces of tool calls that came before it was known that it is a continuation.
        resumed: it was told that the answer goes on.
    """

    candidate: Candidate
    target: Target
    start: Callable[[], TextStream]
    joiner: continuation.Joiner | None
    prefilled: bool
    stepped: bool
    hurried: bool
    started: float
    began: float
    completion: Completion | None = None
    held: list[ToolCallDelta] = field(default_factory=list)
    resumed: bool = False

    def __post_init__(self) -> None:
        self.resumed = self.joiner is None

    @property
    def joined(self) -> bool:
        """Whether what comes is certainly what follows."""
        return self.joiner is None or self.joiner.settled

    def taken(self, piece: str) -> str:
        """What of a piece the caller has not seen. Raises NotContinued where it is not what had to come again."""
        text = self.joiner.feed(piece) if self.joiner else piece
        return self._verified(text)

    def ended(self) -> str:
        """What was held back. Raises EmptyAnswer where nothing came at all, and NotContinued as above."""
        text = self.joiner.end() if self.joiner else ""
        silent = self.joiner and self.joiner.silent
        if silent and self.completion and self.completion.tool_calls:  # instead of a text that goes on
            return ""
        if silent:  # the last word had to come again: nobody knows that this was the end
            raise errors.EmptyAnswer(
                "asked to continue a broken answer, it returned nothing", provider=self.candidate.name
            )
        return self._verified(text)

    def _verified(self, text: str) -> str:
        if self.joiner and self.joiner.mismatched:
            what = "its continuation does not begin with the end of the broken answer"
            raise errors.NotContinued(what, provider=self.candidate.name, model=self.target.model)
        return text


@dataclass(slots=True)
class _Waits:
    """Since when a request waits for a place, by the loop's clock, and its turn; None where it does not."""

    since: float = 0.0
    turn: Turn | None = None


class Execution:
    """One request.

    Args:
        registry: what this process knows of the candidates.
        rules: how the chain is run.
        call: what was asked.
        needs: what that needs of a provider.
        resume: what to do when a stream breaks after pieces were delivered.
        candidates: the chain, in the user's order, where it is known already.
        answering: where the completion is left.
        request: its number, where another router has given it one.
        explained: nobody will be asked.
    """

    def __init__(
        self,
        registry: BreakerRegistry,
        rules: Rules,
        call: Call,
        needs: selection.Needs,
        resume: Resume,
        candidates: Sequence[Candidate] = (),
        answering: Answering | None = None,
        *,
        request: int = 0,
        explained: bool = False,
    ) -> None:
        self._candidates = candidates
        self._answering = answering or Answering()
        self._registry = registry
        self._rules = rules
        self._call = call
        self._needs = needs
        self._resume = resume
        self._request = request
        self._explained = explained
        self._rounds = 0
        self._failures: dict[int, LLMError] = {}  # this round: candidate -> how it failed
        self._last: LLMError | None = None
        self._whose: frozenset[str] = frozenset()  # the names of the model whose answer is to be continued
        self._stepping = True  # to the last whole word; once that went wrong, an answer is continued where it broke
        self._begun_again = False
        self._refused_since: float | None = None
        self._refuse_prefill: set[int] = set()
        self._head = selection.head_of(call)
        self._place: Place | None = None  # of the attempt that is under way
        self._asking: Candidate | None = None  # who is asked in it

    async def pieces(
        self, chain: Callable[[Call, selection.Needs], Awaitable[Sequence[Candidate]]], lost: Callable[[LLMError], None]
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of the answer; the completion is there at the end. Raises LLMError.

        Args:
            chain: finds the candidates.
            lost: is told of the error for the caller.
        """
        loop = asyncio.get_running_loop()
        self._started = loop.time()
        self._deadline = self._started + float(self._call.options.get("timeout") or self._rules.deadline)
        self._progress = Progress(self._started, self._request)
        asked: _Asked | None = None
        broke: LLMError | None = None
        failed: LLMError | None = None
        try:
            try:
                self._candidates = await chain(self._call, self._needs)
            finally:
                self._progress.begins(chain_name(self._candidates), self._call)
            while self._answering.completion is None:
                async with Watched(self._turn(asked, broke), self._answering.watch) as told:
                    while waiting := await told.waiting():
                        yield waiting
                broke = None
                try:
                    for moved in self._moves(asked, told.result):
                        yield moved
                    asked = self._ask(told.result)
                    async with asked.start().nested(self._answering.watch) as answer:
                        async for piece in answer:
                            for new in self._new(asked, piece):
                                yield new
                        asked.completion = answer.completion
                    for new in self._end(asked):
                        yield new
                    self._complete(asked)
                except LLMError as error:
                    broke = error
                finally:
                    self._over(broken=broke is not None)
        except LLMError as error:
            failed = error
            lost(error)
            raise
        finally:
            self._over(broken=False)  # where it was left at the very moment when one was chosen
            self._progress.ends(self._answering.completion or failed)

    async def _turn(self, asked: _Asked | None, broke: LLMError | None) -> Candidate:
        """Who is asked next, after what the attempt before means was done. Raises LLMError where nobody can be."""
        if asked and broke:
            await self._failed(asked, broke)
        self._asking = await self._next()
        return self._asking

    def _moves(self, before: _Asked | None, candidate: Candidate) -> Sequence[Piece]:
        """Tell that another one is asked than before; returns what is shown of it."""
        if not before or before.candidate is candidate or not self._last:
            return ()
        name = type(self._last).__name__
        events.emit(events.Moved(provider=before.candidate.name, to=candidate.name, error=name))
        return (Failover(before.candidate.name, candidate.name, name),) if self._answering.watch else ()

    def _new(self, asked: _Asked, piece: Piece) -> Sequence[Piece]:
        """What of a piece is given out now. Raises NotContinued where it is not what had to come again."""
        if isinstance(piece, str):
            text = asked.taken(piece)
            return (*self._resumes(asked), *self._heard(text)) if text else ()
        if isinstance(piece, ToolCallDelta) and (asked.held or not asked.joined):
            asked.held.append(piece)  # nobody knows yet whether it is a continuation
            return ()
        self._progress.showed(piece)
        return (piece,)

    def _end(self, asked: _Asked) -> Sequence[Piece]:
        """What was held back. Raises as ``_new``, and EmptyAnswer where nothing came at all."""
        text = asked.ended()
        for piece in asked.held:
            self._progress.showed(piece)
        return (*self._resumes(asked), *self._heard(text), *asked.held)

    def _heard(self, text: str) -> Sequence[str]:
        if text:
            self._progress.heard(text, asyncio.get_running_loop().time())
        return (text,) if text else ()

    def _resumes(self, asked: _Asked) -> Sequence[Piece]:
        """What is shown once, where an answer goes on."""
        if asked.resumed or not (self._answering.watch and self._progress.text.strip()):
            return ()
        asked.resumed = True
        return (Resumed(asked.candidate.name, len(self._progress.text)),)

    def _over(self, *, broken: bool) -> None:
        """The attempt is over; where its caller has left it, a trial says nothing."""
        self._leave()
        asking, self._asking = self._asking, None
        if asking and not broken and self._answering.completion is None:
            self._registry.settle(asking.target(self.model_for(asking)))

    def _in_words(self, candidate: Candidate) -> bool:
        """Whether it can be asked to continue an answer in words only."""
        return candidate.number in self._refuse_prefill or not candidate.provider.continues

    def _cut(self, candidate: Candidate) -> continuation.CutPoint | None:
        """Where it is continued; None to begin."""
        text = self._progress.text
        if not text:
            return None
        if not text.strip():
            return continuation.CutPoint("", text)  # it is asked from the beginning
        cut = continuation.step_back(text)
        whole = not self._stepping or (self._in_words(candidate) and not cut.prefix)
        return continuation.as_it_broke(text) if whole else cut

    def _ask(self, candidate: Candidate) -> _Asked:
        """Ask it, or let it continue: as much less is asked for as was delivered."""
        started, began = asyncio.get_running_loop().time(), self._registry.clock()
        model, cut, call = self.model_for(candidate), self._cut(candidate), self._call
        in_words = self._in_words(candidate)
        words = bool(cut and cut.prefix) and in_words
        joiner = continuation.Joiner(cut, words=words) if cut else None
        attempt = Attempt(
            number=len(self._progress.tried) + 1,
            request=self._progress.request,
            patience=decision.patience(self._deadline - started) if self._shares(candidate) else None,
            prefix=cut.prefix if cut and cut.prefix else None,
            thinking=self._progress.thinking if cut and cut.prefix else "",
        )
        self._progress.asks(candidate.name, candidate.number)
        if cut and cut.delivered.strip():
            self._progress.resumes(in_words=words)
        if attempt.prefix is not None:
            again = len(self._progress.text) - len(attempt.prefix)  # characters, which are tokens at the most
            again += len(continuation.end_of(attempt.prefix)) if words else 0
            most = max(1, call.max_tokens - self._progress.tokens + again)
            call = replace(call, max_tokens=type(call.max_tokens)(most))  # a ceiling stays one
        options = {**call.options, "timeout": max(0.001, self._deadline - started)}
        call = replace(call, model=model, options=options)
        return _Asked(
            candidate=candidate,
            target=candidate.target(model),
            start=partial(candidate.ask, call, attempt, words=words),
            joiner=joiner,
            prefilled=attempt.prefix is not None and not words,
            stepped=bool(cut and cut.rest) and not in_words,
            hurried=attempt.patience is not None,
            started=started,
            began=began,
        )

    def _complete(self, asked: _Asked) -> None:
        whole = asked.completion
        assert whole is not None  # noqa: S101  # the stream has ended
        if self._registry.answer(asked.target, whole.first_token_s, asked.began, whole.usage):
            events.emit(events.Closed(provider=asked.candidate.name, model=asked.target.model))
        now = asyncio.get_running_loop().time()
        self._answering.completion = self._progress.complete(whole, asked.started, now)

    async def _failed(self, asked: _Asked, error: LLMError) -> None:
        """Tell what this failure means for the provider, and do what it means for the request. Raises it at the end."""
        candidate, target, now = asked.candidate, asked.target, asyncio.get_running_loop().time()
        if isinstance(error, errors.FirstTokenTimeout) and await candidate.loads_now(target.model):
            error = errors.ModelLoading(error.what, provider=error.provider, model=error.model)
        seconds = now - asked.started
        own = Tried(candidate.name, error.model or target.model, type(error).__name__, error.status, seconds)
        if isinstance(error, errors.NotContinued):
            self._progress.mismatched()
        self._progress.failed(error.attempts or (own,), now)  # a router tells its own
        hurried = asked.hurried and isinstance(error, errors.FirstTokenTimeout)
        if hurried and seconds < candidate.provider.waits[0]:
            self._registry.settle(target)  # others wanted their share: no fault of this one
        elif self._registry.fail(target, error):
            breaker, name = self._registry.open_breakers(target)[0], type(error).__name__
            model = None if decision.verdict(error).whole_address else target.model
            events.emit(events.Opened(provider=candidate.name, model=model, error=name, seconds=breaker.period))
        left = self._left(candidate) if candidate.recorded else []
        left_alone = left and self._registry.open_breakers(target)
        equal = any(other.rank == candidate.rank for other in left)  # which of them was asked then, nobody knows
        if isinstance(error, errors.NotRecorded) and (left_alone or equal):
            error.forgiven = True  # it was left alone when the cassette was made
            del self._progress.tried[-1]
            self._failures[candidate.number] = error
            self._last = self._last or error
            return
        fresh = bool(error.partial or error.tokens)
        if fresh or self._progress.text:
            self._progress.lost(error, free=candidate.provider.get_capabilities()["cost"] == (0.0, 0.0))
        if fresh and self._progress.text.strip():
            self._whose = candidate.provider.names(target.model)
        self._last = self._failures[candidate.number] = error
        await self._follow(candidate, error, fresh=fresh, prefilled=asked.prefilled, stepped=asked.stepped)

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
        held, pause = bool(self._progress.text.strip()), self._pause()
        decided = decision.decide(
            error,
            decision.Situation(
                shown=held and not self._call.whole,
                blank=bool(self._progress.text) and not held and not self._call.whole,
                held=held,
                fresh=fresh,
                rigid=self._call.rigid,
                called=bool(self._progress.calls),
                resume=self._resume,
                prefilled=prefilled,
                stepped=stepped,
                others=bool(self._within_reach(self._left(candidate))),
                loading=bool(self._loading()),
                not_continued=bool(self._not_continued()) and not self._begun_again,
                passes=pause is not None,
                time_left=self._remains(),
            ),
        )
        if decided.action == "give up":
            refused = next(iter(self._not_continued().values()), error)  # why a text was not continued
            raise self._progress.final(refused if held and not self._progress.calls else error)
        if decided.text == "forget":
            self._progress.forget()
            self._whose = frozenset()
        if decided.action == "otherwise" and candidate:
            del self._failures[candidate.number]
            if isinstance(error, errors.NotContinued):
                self._stepping = False
            else:
                self._refuse_prefill.add(candidate.number)
        elif decided.action == "load":
            with self._answering.waits(Waiting("load", chain_name(self._loading()))):
                await self._loaded()
        elif decided.action == "begin again":
            self._begun_again = True
            for number in self._not_continued():
                del self._failures[number]
        elif decided.action == "again" and pause is not None:
            self._rounds += 1
            with self._answering.waits(Waiting("retry", chain_name(self._candidates[at] for at in self._passing()))):
                await asyncio.sleep(pause)
            for number in self._passing():
                del self._failures[number]

    def _not_continued(self) -> dict[int, LLMError]:
        """Those who could not go on with the answer."""
        return {number: error for number, error in self._failures.items() if isinstance(error, errors.NotContinued)}

    def _passing(self) -> dict[int, LLMError]:
        """Those whose failure may pass by itself, without a look at their pages."""
        found = {number: error for number, error in self._failures.items() if error.retryable}
        return {number: error for number, error in found.items() if not isinstance(error, _LOADING)}

    def _pause(self) -> float | None:
        """Seconds until those are asked again whose failure may pass; None where there is nobody, or no time."""
        again = self._passing().values()
        if not again:
            return None
        chance = random.random()  # noqa: S311  # jitter
        if self._rounds < decision.rounds(self._rules.retries):
            pause = min(decision.back_off(self._rounds, chance, error.retry_after) for error in again)
        elif self._restarts():
            pause = decision.RESTART_PAUSE_S * (0.5 + chance)
        else:
            return None
        return pause if self._remains(pause) else None

    def _restarts(self) -> bool:
        """Whether every provider of the chain may be a server that restarts, and LLM_PATIENCE is not over."""
        now, asked = asyncio.get_running_loop().time(), [each for each in self._candidates if not self.why_not(each)]
        failures = [self._failures.get(each.number) for each in asked if each.local]
        if len(failures) < len(asked) or not all(decision.may_restart(error) for error in failures):
            self._refused_since = None
            return False
        self._refused_since = self._refused_since or now
        return now - self._refused_since < self._rules.patience

    async def _next(self) -> Candidate:
        """Who is asked next; a place there is taken. Raises LLMError where nobody can be."""
        waiting = _Waits()
        while True:
            fit = [each for each in self.order() if each.number not in self._failures and not self.why_not(each)]
            fit = self._within_reach(fit)
            selected = self.select(fit)
            for at in selected.probe:
                self._probe(fit[at])
            for at in selected.load:
                fit[at].load(self.model_for(fit[at]))
            if selected.chosen is not None:
                chosen = await self._with_place(fit[selected.chosen], fit, waiting)
                if chosen is None:
                    continue
                if self.gate(chosen) == "trial":
                    self._begin(chosen)
                return chosen
            if not fit:
                if self._last is None:
                    raise self._nobody()
                await self._follow(None, self._last)
                continue
            first = self.last_resort(fit)
            opened = await self._last_resort(first)
            if opened is None:
                self._place = PLACES.take(first.address, self._head)
                return first
            self._last = self._failures[first.number] = opened
            await self._follow(first, opened)

    async def _with_place(self, chosen: Candidate, fit: Sequence[Candidate], waits: _Waits) -> Candidate | None:
        """The one who is asked, its place taken: another where this one is full. None: choose again.

        Raises:
            DeadlineExceeded: no place was free before the deadline.
        """
        ready = [each for each in fit if self.gate(each) in ("closed", "trial")]
        reach = {"no": -1, "local": chosen.distance, "cloud": 1}[self._rules.spill]
        for each in (chosen, *(other for other in ready if other.distance <= reach)):
            self._place = PLACES.take_free(each.address, each.room, self._head)
            if self._place:
                self._waited(each, waits)
                return each
        if sum(each.rank == chosen.rank for each in self._candidates) == 1:  # it has a queue of its own
            self._place = PLACES.take(chosen.address, self._head)
            return chosen
        equals = [each for each in ready if each.rank == chosen.rank]
        now = asyncio.get_running_loop().time()
        if waits.turn is None:
            waits.turn, waits.since = PLACES.turn(), now
        if now >= self._deadline:
            what = f"timed out waiting for a free place at one of {chain_name(equals)}"
            hint = "Raise timeout= or LLM_DEADLINE, or let LLM_SPILL=local or cloud use the next in LLM_PROVIDERS"
            raise self._progress.final(errors.DeadlineExceeded(what, hint=hint))
        # for a moment: then one that comes back is looked at, too
        within = min(_LOOK_AGAIN_S, self._deadline - now)
        with self._answering.waits(Waiting("queue", chain_name(equals))):
            self._place = await PLACES.wait(_rooms(equals), self._head, waits.turn, within)
        freed = next((each for each in equals if self._place and each.address == self._place.address), None)
        if freed and self.gate(freed) in ("closed", "trial"):
            self._waited(freed, waits)
            return freed
        self._leave()  # it failed meanwhile
        return None

    def _waited(self, candidate: Candidate, waits: _Waits) -> None:
        if waits.turn:
            seconds = asyncio.get_running_loop().time() - waits.since
            events.emit_lazily(events.Queued, provider=candidate.name, seconds=seconds)

    def _leave(self) -> None:
        if self._place:
            PLACES.leave(self._place)
            self._place = None

    def last_resort(self, fit: Sequence[Candidate]) -> Candidate:
        """The one whose breaker lets it be asked first."""
        return min(fit, key=lambda candidate: self._registry.due(candidate.target(self.model_for(candidate))))

    def select(self, fit: Sequence[Candidate]) -> selection.Selection:
        """Who of these is asked now, and what the others do meanwhile."""
        options = []
        for each in fit:
            model = self.model_for(each)
            same = bool(self._whose & each.provider.names(model))
            cold = each.provider.cold(model)
            options.append(selection.Option(gate=self.gate(each), cold=cold, distance=each.distance, same=same))
        return selection.select(options, self._rules.routing)

    def _loading(self) -> list[Candidate]:
        """Those who said that they load, where the time for it is not over."""
        found = [each for each in self._candidates if isinstance(self._failures.get(each.number), _LOADING)]
        return [] if found and self._load_is_over() else found

    def _load_is_over(self) -> bool:
        return asyncio.get_running_loop().time() + _AGAIN_S > min(self._deadline, self._started + self._rules.load)

    def _within_reach(self, fit: list[Candidate]) -> list[Candidate]:
        """While one loads, only those who are no farther away answer meanwhile."""
        loading = self._loading()
        if not loading or self._rules.routing == "warm-first":
            return fit
        reach = min(each.distance for each in loading)
        return [each for each in fit if each.distance <= reach]

    def gate(self, candidate: Candidate) -> Gate:
        """What may be done with it now. Cassettes are asked always: how long it was left alone was a matter of time."""
        return "closed" if candidate.recorded else self._registry.gate(candidate.target(self.model_for(candidate)))

    async def _last_resort(self, candidate: Candidate) -> LLMError | None:
        """Every breaker is open: why not even the one that opens first is asked, after a probe where that can tell."""
        target = candidate.target(self.model_for(candidate))
        opened = self._registry.open_breakers(target)
        if not opened or not decision.verdict(opened[0].error or LLMError("")).visible:
            return None
        if await asyncio.shield(self._probe(candidate)):  # others wait for it too
            return None
        error = copy.copy(opened[0].error or errors.ConnectionFailed("not ready"))
        error.partial, error.thinking, error.partial_calls, error.attempts = "", "", (), ()
        self._progress.tried.append(Tried(candidate.name, target.model, type(error).__name__, error.status, 0.0))
        return error

    def _probe(self, candidate: Candidate) -> asyncio.Task[bool]:
        return candidate.probe(lambda: self._begin(candidate), lambda ready: self._probed(candidate, ready=ready))

    def _begin(self, candidate: Candidate) -> None:
        for breaker in self._registry.open_breakers(candidate.target(self.model_for(candidate))):
            breaker.begin()

    def _probed(self, candidate: Candidate, *, ready: bool | None) -> None:
        target, now = candidate.target(self.model_for(candidate)), self._registry.clock()
        if ready is None:  # it was cut: nothing is known
            self._registry.settle(target)
            return
        for breaker in self._registry.open_breakers(target):
            breaker.probed(now, ready=ready)
        if not self._registry.open_breakers(target):
            events.emit(events.Closed(provider=candidate.name, model=target.model))

    async def _loaded(self) -> None:
        """Until one of them has loaded its model; a load is never hurried, and has its own budget."""
        loading = self._loading()
        while not self._load_is_over():
            await asyncio.sleep(_AGAIN_S)
            ready = [each for each in loading if not await each.loads_now(self.model_for(each))]
            for each in ready:
                del self._failures[each.number]
            if ready:
                return
        for each in loading:  # it has failed like any other
            target = each.target(self.model_for(each))
            late = errors.TimedOut(f"the model was not loaded within {self._rules.load:g} s")
            if self._registry.fail(target, late):
                period = self._registry.open_breakers(target)[0].period
                events.emit(
                    events.Opened(provider=each.name, model=target.model, error=type(late).__name__, seconds=period)
                )

    def _remains(self, seconds: float = 0.0) -> bool:
        return asyncio.get_running_loop().time() + seconds < self._deadline

    def _shares(self, candidate: Candidate) -> bool:
        """Whether a part of the time is kept for others; none for a farther one, where this one has to load."""
        cold = candidate.provider.cold(self.model_for(candidate)) and self._rules.routing != "warm-first"
        return any(not cold or other.distance <= candidate.distance for other in self._left(candidate))

    def _left(self, candidate: Candidate | None) -> list[Candidate]:
        """Those who could still be asked after this one."""
        return [
            other
            for other in self._candidates
            if other is not candidate and other.number not in self._failures and not self.why_not(other)
        ]

    def order(self) -> list[Candidate]:
        """The chain in the order in which it is asked; those that cannot be come last."""
        candidates = [candidate for candidate in self._candidates if not candidate.broken]
        broken = [candidate for candidate in self._candidates if candidate.broken]
        if self._rules.routing == "order" and not self._has_equals:
            return list(self._candidates)
        candidates = self._by_rank(candidates)
        standings = list[selection.Standing]()
        for at, candidate in enumerate(candidates):
            record = self._registry.record(candidate.target(self.model_for(candidate)))
            cost = candidate.provider.get_capabilities()["cost"]
            standings.append(
                selection.Standing(position=at, latency_s=record.first_token_s, cost=cost, local=candidate.local)
            )
        return [candidates[at] for at in selection.ranked(standings, self._rules.routing)] + broken

    @property
    def _has_equals(self) -> bool:
        return len({each.rank for each in self._candidates}) < len(self._candidates)

    def _by_rank(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Rank by rank; of equals first the one that probably holds the beginning of this request."""
        found: list[Candidate] = []
        for rank in dict.fromkeys(each.rank for each in candidates):
            equals = [each for each in candidates if each.rank == rank]
            asked = [each for each in equals if self.gate(each) in ("closed", "trial")]
            order = PLACES.ordered(_rooms(asked), self._head)
            found += sorted(equals, key=lambda each: order.index(each.address) if each.address in order else -1)
        return found

    def why_not(self, candidate: Candidate) -> list[str]:
        """What it lacks for this request, in words."""
        if candidate.broken:
            return [str(candidate.broken)]
        if len(self._candidates) == 1 and not self._explained:
            return []
        return candidate.lacks(self._needs, self.model_for(candidate), local_only=self._rules.local_only)

    def model_for(self, candidate: Candidate) -> str | None:
        """The model to ask it for: the one that was named where it has it, else its own."""
        asked = self._call.model
        own = candidate.provider.vision_model if self._needs.images and not candidate.broken else None
        if asked is None:
            return own
        if len(self._candidates) == 1 or self._has(candidate, asked):
            return asked
        return (
            asked
            if candidate.rank == self._candidates[0].rank
            and not any(self._has(each, asked) for each in self._candidates)
            else own
        )

    @staticmethod
    def _has(candidate: Candidate, model: str) -> bool:
        return not candidate.broken and candidate.provider.has(model)

    def _nobody(self) -> LLMError:
        """Nobody fits: which need failed where."""
        whys = {candidate.name: self.why_not(candidate) for candidate in self._candidates}
        said = "; ".join(f"{name}: no {', no '.join(why)}" for name, why in whys.items())
        broken = [candidate.broken for candidate in self._candidates if candidate.broken]
        if len(broken) == len(self._candidates):
            return self._progress.final(broken[-1])
        short = all(not each.broken and each.overflows(self._needs, self.model_for(each)) for each in self._candidates)
        kind = errors.ContextOverflow if short else errors.Unsupported
        return kind(f"no provider can serve this request ({said})", hint="Add one that can to LLM_PROVIDERS")


def _rooms(candidates: Sequence[Candidate]) -> Rooms:
    return {each.address: each.room for each in candidates}
