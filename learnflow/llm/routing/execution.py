"""The execution of one request through a chain: who is asked next, what is continued, when it is over.

Must never decide by itself what a failure means (``decision``) or how a text is joined (``continuation``).
The router makes one for each request.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

from .. import errors, events
from ..base import Attempt, Completion
from ..errors import LLMError, Tried
from . import continuation, decision, selection
from .breaker import BreakerRegistry, Gate, Target
from .candidate import Call, Candidate
from .decision import Resume
from .progress import Progress

_AGAIN_S: Final = 0.5  # between two looks at a server that loads
_LOADING: Final = errors.ModelLoading


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a chain is run: retries of the same provider, order, seconds for a request and a load, nothing but local."""

    retries: int
    routing: selection.Routing
    deadline: float
    load: float
    local_only: bool


class Execution:
    """One request.

    Args:
        candidates: the chain, in the user's order.
        registry: what this process knows of them.
        rules: how it is run.
        call: what was asked.
        resume: what to do when a stream breaks after pieces were delivered.
        dry: only for ``order``, ``why_not`` and ``model_for``: there is no event loop.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        registry: BreakerRegistry,
        rules: Rules,
        call: Call,
        resume: Resume,
        *,
        dry: bool = False,
    ) -> None:
        self.completion: Completion | None = None
        self._candidates = candidates
        self._registry = registry
        self._rules = rules
        self._call = call
        self._resume = resume
        self._started = 0.0 if dry else asyncio.get_running_loop().time()
        self._progress = Progress(self._started)
        self._deadline = self._started + float(call.more.get("timeout") or rules.deadline)
        self._rounds = 0
        self._asked: dict[int, LLMError] = {}  # this round: candidate -> how it failed
        self._last: LLMError | None = None

    async def pieces(self) -> AsyncGenerator[str, None]:
        """The pieces of the answer; ``completion`` is there at the end. Raises LLMError."""
        before: Candidate | None = None
        failed: LLMError | None = None
        self._progress.begins([candidate.name for candidate in self._candidates], self._call.model)
        try:
            while self.completion is None:
                candidate = await self._next()
                if before and before is not candidate and self._last:
                    name = type(self._last).__name__
                    events.emit(events.Moved(provider=before.name, to=candidate.name, error=name))
                before = candidate
                async with aclosing(self._served(candidate)) as pieces:
                    async for piece in pieces:
                        yield piece
        except LLMError as error:
            failed = error
            raise
        finally:
            self._progress.ends(self.completion or failed)

    async def _served(self, candidate: Candidate) -> AsyncGenerator[str, None]:
        """One candidate's part: from the beginning, or what follows what was delivered."""
        cut = self._cut()
        while True:
            torn = False
            async with aclosing(self._attempt(candidate, cut)) as pieces:
                async for piece in pieces:
                    if piece is None:
                        torn = True
                    else:
                        yield piece
            if not torn or cut is None:
                return
            if self._resume == "restart" and not self._call.whole:
                raise self._progress.final(
                    self._last or errors.AnswerCut("the answer broke, and began otherwise when asked again")
                )
            self._progress.torn()
            cut = continuation.as_it_broke(cut.delivered)

    def _cut(self) -> continuation.Cut | None:
        """Where it is continued; None to begin."""
        text = self._progress.text
        if not text:
            return None
        return continuation.Cut("", text) if self._resume == "restart" else continuation.step_back(text)

    async def _attempt(self, candidate: Candidate, cut: continuation.Cut | None) -> AsyncGenerator[str | None, None]:
        """The pieces that the caller has not seen; None where what came is not what was delivered."""
        loop = asyncio.get_running_loop()
        started, model = loop.time(), self.model_for(candidate)
        target, call = candidate.target(model), self._call
        began = self._registry.clock()
        attempt = Attempt(
            number=len(self._progress.tried) + 1,
            request=self._progress.request,
            patience=decision.patience(self._deadline - started) if self._shares(candidate) else None,
            prefix=cut.prefix if cut and cut.prefix else None,
            thinking=self._progress.thinking if cut and cut.prefix else "",
        )
        self._progress.asks(candidate.name, candidate.number)
        joiner = continuation.Joiner(cut, words=candidate.in_words and attempt.prefix is not None) if cut else None
        if joiner:
            call = self._rest_of(call, attempt, joiner)
        failed: LLMError | None = None
        try:
            stream = candidate.ask(call, model, attempt, max(0.001, self._deadline - started))
            async with stream as answer:
                async for piece in answer:
                    text = joiner.feed(piece) if joiner else piece
                    if joiner and joiner.torn:
                        yield None
                        return
                    if text:
                        self._progress.heard(text, loop.time())
                        yield text
            if joiner and (text := _last(joiner, candidate)):
                self._progress.heard(text, loop.time())
                yield text
            if joiner and joiner.torn:
                yield None
                return
            self._complete(candidate, target, stream.completion, started, began)
        except LLMError as error:
            failed = error
        finally:
            if failed is None and self.completion is None:
                self._registry.settle(target)  # left, or torn: a trial says nothing
        if failed:
            await self._failed(candidate, target, failed, loop.time() - started, attempt)

    def _rest_of(self, call: Call, attempt: Attempt, joiner: continuation.Joiner) -> Call:
        """What is asked for where an answer goes on: as much less as was delivered."""
        self._progress.resumes(in_words=joiner.words)
        if attempt.prefix is None:
            return call
        again = len(self._progress.text) - len(attempt.prefix)  # characters, which are tokens at the most
        most = max(1, call.max_tokens - self._progress.tokens + again)
        return replace(call, max_tokens=type(call.max_tokens)(most))  # a ceiling stays one

    def _complete(self, candidate: Candidate, target: Target, whole: Completion, started: float, began: float) -> None:
        if self._registry.answer(target, whole.first_token_s, began):
            events.emit(events.Closed(provider=candidate.name, model=target.model))
        self.completion = self._progress.complete(whole, started, asyncio.get_running_loop().time())

    async def _failed(
        self, candidate: Candidate, target: Target, error: LLMError, seconds: float, attempt: Attempt
    ) -> None:
        """Tell what this failure means for the provider, and do what it means for the request. Raises it at the end."""
        if isinstance(error, errors.FirstTokenTimeout) and await candidate.loads_now(target.model):
            error = errors.ModelLoading(error.what, provider=error.provider, model=error.model)
        own = Tried(candidate.name, error.model or target.model, type(error).__name__, error.status, seconds)
        self._progress.failed(error.attempts or (own,), asyncio.get_running_loop().time())  # a router tells its own
        hurried = attempt.patience is not None and isinstance(error, errors.FirstTokenTimeout)
        if hurried and seconds < candidate.provider.waits[0]:
            self._registry.settle(target)  # others wanted their share: no fault of this one
        elif self._registry.fail(target, error):
            breaker, name = self._registry.shut(target)[0], type(error).__name__
            model = None if decision.verdict(error).whole_address else target.model
            events.emit(events.Opened(provider=candidate.name, model=model, error=name, seconds=breaker.period))
        left_alone = candidate.taped and self._registry.shut(target) and self._others(candidate)
        if isinstance(error, errors.NotOnTape) and left_alone:
            error.forgiven = True  # it was left alone when the cassette was made
            del self._progress.tried[-1]
            self._asked[candidate.number] = error
            self._last = self._last or error
            return
        self._last = self._asked[candidate.number] = error
        fresh, held = bool(error.partial or error.tokens), bool(self._progress.text.strip())
        decided = decision.decide(
            error,
            decision.Situation(
                shown=held and not self._call.whole,
                held=held,
                fresh=fresh,
                rigid=self._call.rigid,
                resume=self._resume,
                prefilled=attempt.prefix is not None and not candidate.in_words,
                time_left=self._remains(),
            ),
        )
        if decided.action == "give up":
            raise self._progress.final(error)
        if decided.action == "otherwise":
            candidate.in_words = True
            del self._asked[candidate.number]
        if fresh or self._progress.text:
            self._progress.lost(error, free=candidate.provider.get_capabilities()["cost"] == (0.0, 0.0))
        if decided.text == "forget":
            self._progress.forget()

    async def _next(self) -> Candidate:
        """Who is asked next; waits where only waiting helps. Raises the last error where nobody is left."""
        while True:
            fit = [each for each in self.order() if each.number not in self._asked and not self.why_not(each)]
            fit = self._within_reach(fit)
            selected = self.select(fit)
            for at in selected.probe:
                self._probe(fit[at])
            for at in selected.load:
                fit[at].load(self.model_for(fit[at]))
            if selected.chosen is not None:
                chosen = fit[selected.chosen]
                if self._gate(chosen) == "trial":
                    self._begin(chosen)
                return chosen
            if fit:
                first = min(fit, key=lambda candidate: self._registry.due(candidate.target(self.model_for(candidate))))
                if await self._last_resort(first):
                    return first
                continue
            await self._wait()

    def select(self, fit: Sequence[Candidate]) -> selection.Selection:
        """Who of these is asked now, and what the others do meanwhile."""
        options = [
            selection.Option(
                gate=self._gate(each), cold=each.provider.cold(self.model_for(each)), distance=each.distance
            )
            for each in fit
        ]
        return selection.select(options, self._rules.routing)

    def _loading(self) -> list[Candidate]:
        """Those who said that they load, and whose time for it is not over."""
        over = self._load_is_over()
        return [] if over else [each for each in self._candidates if isinstance(self._asked.get(each.number), _LOADING)]

    def _load_is_over(self) -> bool:
        return asyncio.get_running_loop().time() + _AGAIN_S > min(self._deadline, self._started + self._rules.load)

    def _within_reach(self, fit: list[Candidate]) -> list[Candidate]:
        """While one loads, only those who are no farther away answer meanwhile."""
        loading = self._loading()
        if not loading or self._rules.routing == "warm-first":
            return fit
        reach = min(each.distance for each in loading)
        return [each for each in fit if each.distance <= reach]

    def _gate(self, candidate: Candidate) -> Gate:
        """What may be done with it now. Tapes are asked always: how long it was left alone was a matter of time."""
        return "go" if candidate.taped else self._registry.gate(candidate.target(self.model_for(candidate)))

    async def _last_resort(self, candidate: Candidate) -> bool:
        """Everybody is shut: ask the one that opens first, after a probe where one can see whether it is over."""
        target = candidate.target(self.model_for(candidate))
        shut = self._registry.shut(target)
        if not shut or not decision.verdict(shut[0].error or LLMError("")).visible:
            return True
        if await asyncio.shield(self._probe(candidate)):  # others wait for it too
            return True
        error = copy.copy(shut[0].error or errors.ConnectionFailed("not ready"))
        error.partial, error.thinking, error.attempts = "", "", ()
        self._progress.tried.append(Tried(candidate.name, target.model, type(error).__name__, error.status, 0.0))
        self._last = self._asked[candidate.number] = error
        return False

    def _probe(self, candidate: Candidate) -> asyncio.Task[bool]:
        return candidate.probe(lambda: self._begin(candidate), lambda ready: self._probed(candidate, ready=ready))

    def _begin(self, candidate: Candidate) -> None:
        for breaker in self._registry.shut(candidate.target(self.model_for(candidate))):
            breaker.begin()

    def _probed(self, candidate: Candidate, *, ready: bool | None) -> None:
        target, now = candidate.target(self.model_for(candidate)), self._registry.clock()
        if ready is None:  # it was cut: nothing is known
            self._registry.settle(target)
            return
        for breaker in self._registry.shut(target):
            breaker.probed(now, ready=ready)
        if not self._registry.shut(target):
            events.emit(events.Closed(provider=candidate.name, model=target.model))

    async def _wait(self) -> None:
        """Everybody was asked: wait for a load, or a little, and begin another round; else raise the last error."""
        if self._last is None:
            raise self._nobody()
        loading = self._loading()
        if loading:
            await self._loaded(loading)
            return
        again = {number: error for number, error in self._asked.items() if error.retryable}
        again = {number: error for number, error in again.items() if not isinstance(error, _LOADING)}
        if not again or self._rounds >= self._rules.retries:
            raise self._progress.final(self._last)
        asked = [error.retry_after for error in again.values() if error.retry_after is not None]
        delay = decision.back_off(self._rounds, random.random(), min(asked, default=None))  # noqa: S311  # jitter
        if not self._remains(delay):
            raise self._progress.final(self._last)
        self._rounds += 1
        await asyncio.sleep(delay)
        for number in again:
            del self._asked[number]

    async def _loaded(self, loading: Sequence[Candidate]) -> None:
        """Until one of them has loaded its model; a load is never hurried, and has its own budget."""
        while not self._load_is_over():
            await asyncio.sleep(_AGAIN_S)
            ready = [each for each in loading if not await each.loads_now(self.model_for(each))]
            for each in ready:
                del self._asked[each.number]
            if ready:
                return

    def _remains(self, seconds: float = 0.0) -> bool:
        return asyncio.get_running_loop().time() + seconds < self._deadline

    def _shares(self, candidate: Candidate) -> bool:
        """Whether a part of the time is kept for others; none for a farther one, where this one has to load."""
        cold = candidate.provider.cold(self.model_for(candidate)) and self._rules.routing != "warm-first"
        return any(not cold or other.distance <= candidate.distance for other in self._left(candidate))

    def _others(self, candidate: Candidate) -> int:
        """How many could still be asked after it."""
        return len(self._left(candidate))

    def _left(self, candidate: Candidate) -> list[Candidate]:
        return [
            other
            for other in self._candidates
            if other is not candidate and other.number not in self._asked and not self.why_not(other)
        ]

    def order(self) -> list[Candidate]:
        """The chain in the order in which it is asked; those that cannot be come last."""
        candidates = [candidate for candidate in self._candidates if not candidate.broken]
        broken = [candidate for candidate in self._candidates if candidate.broken]
        if self._rules.routing == "order":
            return list(self._candidates)
        standings = []
        for at, candidate in enumerate(candidates):
            record = self._registry.record(candidate.target(self.model_for(candidate)))
            cost = candidate.provider.get_capabilities()["cost"]
            standings.append(
                selection.Standing(position=at, latency_s=record.first_token_s, cost=cost, local=candidate.local)
            )
        return [candidates[at] for at in selection.ranked(standings, self._rules.routing)] + broken

    def why_not(self, candidate: Candidate) -> list[str]:
        """What it lacks for this request, in words."""
        if candidate.broken:
            return [str(candidate.broken)]
        if len(self._candidates) == 1:
            return []
        return candidate.lacks(self._call.needs, self.model_for(candidate), local_only=self._rules.local_only)

    def model_for(self, candidate: Candidate) -> str | None:
        """The model to ask it for: the one that was named where it has it, else its own."""
        asked = self._call.model
        own = candidate.provider.vision_model if self._call.needs.images and not candidate.broken else None
        if asked is None:
            return own
        if len(self._candidates) == 1 or self._has(candidate, asked):
            return asked
        return (
            asked
            if candidate is self._candidates[0] and not any(self._has(each, asked) for each in self._candidates)
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
        short = all("context" in " ".join(why) for why in whys.values())
        kind = errors.ContextOverflow if short else errors.Unsupported
        return kind(f"no provider can serve this request ({said})", hint="Add one that can to LLM_PROVIDERS")


def _last(joiner: continuation.Joiner, candidate: Candidate) -> str:
    """What was still held back. Raises EmptyAnswer where nothing came at all."""
    text = joiner.end()
    if joiner.silent:  # the last word had to come again: without it nobody knows that this was the end
        raise errors.EmptyAnswer("asked to go on with an answer, it said nothing", provider=candidate.name)
    return text
