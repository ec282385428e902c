"""The course of one request through a chain: who is asked next, what is continued, when it is over.

Must never decide by itself what a failure means (``policy``) or how a text is joined (``seam``).
The router makes one for each request.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final, Literal

from . import errors, events, policy, seam
from .adapter.request import Attempt
from .base import Completion
from .board import Board, Place
from .errors import LLMError, Tried
from .hop import Call, Hop
from .story import Story

Resume = Literal["continue", "restart", "raise"]

_AGAIN_S: Final = 0.5  # between two looks at a server that loads


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a chain is run: retries of the same provider, order, seconds for a request and a load, nothing but local."""

    retries: int
    routing: policy.Routing
    deadline: float
    load: float
    local_only: bool


class Course:
    """One request.

    Args:
        hops: the chain, in the user's order.
        board: what this process knows of them.
        rules: how it is run.
        call: what was asked.
        resume: what to do when a stream breaks after pieces were delivered.
        dry: only for ``order``, ``why_not`` and ``model_for``: there is no event loop.
    """

    def __init__(
        self, hops: Sequence[Hop], board: Board, rules: Rules, call: Call, resume: Resume, *, dry: bool = False
    ) -> None:
        self.completion: Completion | None = None
        self._hops = hops
        self._board = board
        self._rules = rules
        self._call = call
        self._resume = resume
        self._started = 0.0 if dry else asyncio.get_running_loop().time()
        self._story = Story(self._started)
        self._deadline = self._started + float(call.more.get("timeout") or rules.deadline)
        self._rounds = 0
        self._asked: dict[int, LLMError] = {}  # this round: hop -> how it failed
        self._last: LLMError | None = None

    async def pieces(self) -> AsyncGenerator[str, None]:
        """The pieces of the answer; ``completion`` is there at the end. Raises LLMError."""
        before: Hop | None = None
        failed: LLMError | None = None
        self._story.begins([hop.name for hop in self._hops], self._call.model)
        try:
            while self.completion is None:
                hop = await self._next()
                if before and before is not hop and self._last:
                    name = type(self._last).__name__
                    events.emit(events.Moved(provider=before.name, to=hop.name, error=name))
                before = hop
                async with aclosing(self._served(hop)) as pieces:
                    async for piece in pieces:
                        yield piece
        except LLMError as error:
            failed = error
            raise
        finally:
            self._story.ends(self.completion or failed)

    async def _served(self, hop: Hop) -> AsyncGenerator[str, None]:
        """One hop's part: from the beginning, or what follows what was delivered."""
        cut = self._cut()
        while True:
            torn = False
            async with aclosing(self._attempt(hop, cut)) as pieces:
                async for piece in pieces:
                    if piece is None:
                        torn = True
                    else:
                        yield piece
            if not torn or cut is None:
                return
            if self._resume == "restart" and not self._call.whole:
                raise self._story.final(
                    self._last or errors.AnswerCut("the answer broke, and began otherwise when asked again")
                )
            self._story.torn()
            cut = seam.as_it_broke(cut.delivered)

    def _cut(self) -> seam.Cut | None:
        """Where it is continued; None to begin."""
        text = self._story.text
        if not text:
            return None
        return seam.Cut("", text) if self._resume == "restart" else seam.step_back(text)

    async def _attempt(self, hop: Hop, cut: seam.Cut | None) -> AsyncGenerator[str | None, None]:
        """The pieces that the caller has not seen; None where what came is not what was delivered."""
        loop = asyncio.get_running_loop()
        started, model = loop.time(), self.model_for(hop)
        place, call = hop.place(model), self._call
        others, began = self._others(hop), self._board.clock()
        attempt = Attempt(
            number=len(self._story.tried) + 1,
            request=self._story.request,
            patience=policy.patience(self._deadline - started) if others else None,
            prefix=cut.prefix if cut and cut.prefix else None,
            thinking=self._story.thinking if cut and cut.prefix else "",
        )
        self._story.asks(hop.name, hop.number)
        joint = seam.Seam(cut, words=hop.in_words and attempt.prefix is not None) if cut else None
        if joint:
            call = self._rest_of(call, attempt, joint)
        failed: LLMError | None = None
        try:
            stream = hop.ask(call, model, attempt, max(0.001, self._deadline - started))
            async with stream as answer:
                async for piece in answer:
                    text = joint.feed(piece) if joint else piece
                    if joint and joint.torn:
                        yield None
                        return
                    if text:
                        self._story.heard(text, loop.time())
                        yield text
            if joint and (text := _last(joint, hop)):
                self._story.heard(text, loop.time())
                yield text
            if joint and joint.torn:
                yield None
                return
            self._complete(hop, place, stream.completion, started, began)
        except LLMError as error:
            failed = error
        finally:
            if failed is None and self.completion is None:
                self._board.settle(place)  # left, or torn: a trial says nothing
        if failed:
            self._failed(hop, place, failed, loop.time() - started, attempt)

    def _rest_of(self, call: Call, attempt: Attempt, joint: seam.Seam) -> Call:
        """What is asked for where an answer goes on: as much less as was delivered."""
        self._story.resumes(in_words=joint.words)
        if attempt.prefix is None:
            return call
        again = len(self._story.text) - len(attempt.prefix)  # characters, which are tokens at the most
        most = max(1, call.max_tokens - self._story.tokens + again)
        return replace(call, max_tokens=type(call.max_tokens)(most))  # a ceiling stays one

    def _complete(self, hop: Hop, place: Place, whole: Completion, started: float, began: float) -> None:
        if self._board.answer(place, whole.first_token_s, began):
            events.emit(events.Closed(provider=hop.name, model=place.model))
        self.completion = self._story.complete(whole, started, asyncio.get_running_loop().time())

    def _failed(self, hop: Hop, place: Place, error: LLMError, seconds: float, attempt: Attempt) -> None:
        """What this failure means for the place and for the request. Raises where it is over."""
        own = Tried(hop.name, error.model or place.model, type(error).__name__, error.status, seconds)
        now = asyncio.get_running_loop().time()
        self._story.failed(error.attempts or (own,), now)  # a router inside this one tells its own
        hurried = attempt.patience is not None and isinstance(error, errors.FirstTokenTimeout)
        if hurried and not hop.own_time_is_over(seconds):
            self._board.settle(place)  # others wanted their share: no fault of this one
        elif self._board.fail(place, error):
            breaker, name = self._board.shut(place)[0], type(error).__name__
            model = None if policy.verdict(error).whole_address else place.model
            events.emit(events.Opened(provider=hop.name, model=model, error=name, seconds=breaker.period))
        if isinstance(error, errors.NotOnTape) and hop.taped and self._board.shut(place) and self._others(hop):
            error.forgiven = True  # it was left alone when the tape was made
            del self._story.tried[-1]
            self._asked[hop.number] = error
            self._last = self._last or error
            return
        self._last = self._asked[hop.number] = error
        ours = attempt.prefix is not None and not hop.in_words  # the beginning that was given was our idea
        filtered = isinstance(error, errors.ContentFiltered)
        if ours and isinstance(error, errors.Unsupported | errors.RequestError) and not filtered:
            hop.in_words = True  # it cannot continue a begun answer after all: ask in words
            del self._asked[hop.number]
        elif not error.failover and not (isinstance(error, errors.DeadlineExceeded) and self._remains()):
            raise self._story.final(error)
        if self._story.text or error.partial or error.tokens:
            self._broke(hop, error)

    def _broke(self, hop: Hop, error: LLMError) -> None:
        """It broke after a part had arrived: keep it, forget it, or give up."""
        call, shown = self._call, bool(self._story.text) and not self._call.whole
        rigid = call.rigid or isinstance(error, errors.ThinkingLeaked | errors.SchemaMismatch | errors.AnswerTooLong)
        if shown and (rigid or self._resume == "raise"):
            raise self._story.final(error)
        self._story.lost(error, free=hop.provider.get_capabilities()["cost"] == (0.0, 0.0))
        if not shown and (rigid or self._resume != "continue" or not self._story.text.strip()):
            self._story.forget()

    async def _next(self) -> Hop:
        """Who is asked next; waits where only waiting helps. Raises the last error where nobody is left."""
        while True:
            fit = [hop for hop in self.order() if hop.number not in self._asked and not self.why_not(hop)]
            gates = {hop: self._gate(hop) for hop in fit}
            ready = [hop for hop in fit if gates[hop] in ("go", "trial")]
            warm = [hop for hop in ready if not hop.cold(self.model_for(hop))]
            chosen = next(iter(warm or ready), None)
            for hop in fit if chosen else ():
                if hop is chosen:
                    break
                if gates[hop] == "probe":
                    self._probe(hop)  # meanwhile
                elif gates[hop] == "go":
                    hop.load(self.model_for(hop))  # meanwhile: it is cold, and another one is not
            if chosen:
                if gates[chosen] == "trial":
                    self._begin(chosen)
                return chosen
            if fit:
                first = min(fit, key=lambda hop: self._board.due(hop.place(self.model_for(hop))))
                if await self._last_resort(first):
                    return first
                continue
            await self._wait()

    def _gate(self, hop: Hop) -> policy.Gate:
        """What may be done with it now. Tapes are asked always: how long it was left alone was a matter of time."""
        return "go" if hop.taped else self._board.gate(hop.place(self.model_for(hop)))

    async def _last_resort(self, hop: Hop) -> bool:
        """Everybody is shut: ask the one that opens first, after a probe where one can see whether it is over."""
        place = hop.place(self.model_for(hop))
        shut = self._board.shut(place)
        if not shut or not policy.verdict(shut[0].error or LLMError("")).visible:
            return True
        if await asyncio.shield(self._probe(hop)):  # others wait for it too
            return True
        error = copy.copy(shut[0].error or errors.ConnectionFailed("not ready"))
        error.partial, error.thinking, error.attempts = "", "", ()
        self._story.tried.append(Tried(hop.name, place.model, type(error).__name__, error.status, 0.0))
        self._last = self._asked[hop.number] = error
        return False

    def _probe(self, hop: Hop) -> asyncio.Task[bool]:
        return hop.probe(lambda: self._begin(hop), lambda ready: self._probed(hop, ready=ready))

    def _begin(self, hop: Hop) -> None:
        for breaker in self._board.shut(hop.place(self.model_for(hop))):
            breaker.begin()

    def _probed(self, hop: Hop, *, ready: bool | None) -> None:
        place, now = hop.place(self.model_for(hop)), self._board.clock()
        if ready is None:  # it was cut: nothing is known
            self._board.settle(place)
            return
        for breaker in self._board.shut(place):
            breaker.probed(now, ready=ready)
        if not self._board.shut(place):
            events.emit(events.Closed(provider=hop.name, model=place.model))

    async def _wait(self) -> None:
        """Everybody was asked: wait for a load, or a little, and begin another round; else raise the last error."""
        if self._last is None:
            raise self._nobody()
        again = {number: error for number, error in self._asked.items() if error.retryable}
        loading = [hop for hop in self._hops if isinstance(again.get(hop.number), errors.ModelLoading)]
        others = len(again) > len(loading) and self._rounds < self._rules.retries
        if not loading and not others:
            raise self._story.final(self._last)
        if loading:
            await self._loaded(loading, wait=not others)
        if others:
            asked = [error.retry_after for error in again.values() if error.retry_after is not None]
            delay = policy.back_off(self._rounds, random.random(), min(asked, default=None))  # noqa: S311  # jitter
            if not self._remains(delay):
                raise self._story.final(self._last)
            self._rounds += 1
            await asyncio.sleep(delay)
        for number in again if others else [hop.number for hop in loading]:
            del self._asked[number]

    async def _loaded(self, hops: Sequence[Hop], *, wait: bool) -> None:
        """Until one of them has loaded its model, where ``wait``; a load is never hurried, and has its own budget."""
        loop = asyncio.get_running_loop()
        over = min(self._deadline, self._started + self._rules.load)
        while True:
            if loop.time() + _AGAIN_S > over:
                assert self._last is not None  # noqa: S101  # it said that it loads
                raise self._story.final(self._last)
            await asyncio.sleep(_AGAIN_S)
            if not wait or any(state != "loading" for state in [await hop.state() for hop in hops]):
                return

    def _remains(self, seconds: float = 0.0) -> bool:
        return asyncio.get_running_loop().time() + seconds < self._deadline

    def _others(self, hop: Hop) -> int:
        """How many could still be asked after it."""
        return sum(
            other is not hop and other.number not in self._asked and not self.why_not(other) for other in self._hops
        )

    def order(self) -> list[Hop]:
        """The chain in the order in which it is asked; those that cannot be come last."""
        hops = [hop for hop in self._hops if not hop.broken]
        broken = [hop for hop in self._hops if hop.broken]
        if self._rules.routing == "order":
            return list(self._hops)
        standings = []
        for at, hop in enumerate(hops):
            record = self._board.record(hop.place(self.model_for(hop)))
            cost = hop.provider.get_capabilities()["cost"]
            standings.append(policy.Standing(place=at, latency_s=record.first_token_s, cost=cost, local=hop.local))
        return [hops[at] for at in policy.ranked(standings, self._rules.routing)] + broken

    def why_not(self, hop: Hop) -> list[str]:
        """What it lacks for this request, in words."""
        if hop.broken:
            return [str(hop.broken)]
        if len(self._hops) == 1:
            return []
        return hop.lacks(self._call.needs, self.model_for(hop), local_only=self._rules.local_only)

    def model_for(self, hop: Hop) -> str | None:
        """The model to ask it for: the one that was named where it has it, else its own."""
        asked = self._call.model
        own = hop.vision_model if self._call.needs.images else None
        if asked is None:
            return own
        if len(self._hops) == 1 or hop.has(asked):
            return asked
        return asked if hop is self._hops[0] and not any(each.has(asked) for each in self._hops) else own

    def _nobody(self) -> LLMError:
        """Nobody fits: which need failed where."""
        whys = {hop.name: self.why_not(hop) for hop in self._hops}
        said = "; ".join(f"{name}: no {', no '.join(why)}" for name, why in whys.items())
        broken = [hop.broken for hop in self._hops if hop.broken]
        if len(broken) == len(self._hops):
            return self._story.final(broken[-1])
        short = all("context" in " ".join(why) for why in whys.values())
        kind = errors.ContextOverflow if short else errors.Unsupported
        return kind(f"no provider can serve this request ({said})", hint="Add one that can to LLM_PROVIDERS")


def _last(joint: seam.Seam, hop: Hop) -> str:
    """What was still held back. Raises EmptyAnswer where nothing came at all."""
    text = joint.end()
    if joint.silent:  # the last word had to come again: without it nobody knows that this was the end
        raise errors.EmptyAnswer("asked to go on with an answer, it said nothing", provider=hop.name)
    return text
