"""One provider of a chain, as the router sees it: what it can, whether it fits, how it is asked, probed and continued.

Must never choose between providers.
Only the router uses it. An application's own provider is asked through ``RoutableProvider``'s defaults.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from typing import Any, Final

from .. import events
from ..adapter.routable import RoutableProvider, routable
from ..base import Attempt, Call, LLMProvider, Prompt
from ..completion import Completion
from ..errors import LLMError, ServerFailed
from ..replay.transport import unrecorded
from ..stream import Work
from .breaker import REGISTRY, Breaker, BreakerRegistry, Gate, Record, Target
from .continuation import end_of
from .decision import verdict
from .selection import Needs, lacks

PROBE_S: Final = 1.0
_BLIND_S: Final = 15.0  # until one that did not answer a look is looked at again before a request

# What a model is told that cannot be given the beginning of its answer. What it says is checked against this.
_GO_ON: Final = (
    "Your answer above was cut off by a broken connection. Go on with it: begin with its last words, copied exactly, "
    "and continue from there to its end. Write no introduction and no comment. Its last words, with which you begin:"
)


class Candidate:
    """One provider of a chain; each request has a copy of it, which shares what is under way.

    Args:
        given: the provider; None where it could not be made.
        number: its place in the chain.
        rank: those of one rank are equals, and asked before those of the next.
        broken: why it could not be made.
        registry: where its breakers are kept.

    Attributes:
        model: what this request asks it for; None for its own.
        failure: how it failed in this round of this request.
        prefills: it takes the beginning of an answer, as far as this request has seen.
    """

    def __init__(
        self,
        given: LLMProvider | None,
        number: int,
        rank: int = 0,
        broken: LLMError | None = None,
        registry: BreakerRegistry = REGISTRY,
    ) -> None:
        self.number, self.rank, self.broken, self.given = number, rank, broken, given
        self.model: str | None = None
        self.failure: LLMError | None = None
        self.prefills = False
        self._registry = registry
        self._provider = routable(given) if given else None
        self._looked = False
        self._blind_until = 0.0
        self._under_way: dict[str, asyncio.Task[Any]] = {}

    def asked_for(self, model: str | None) -> Candidate:
        """As a request sees it that asks for this model."""
        twin = copy.copy(self)
        twin.model, twin.prefills = model, not self.broken and self.provider.continues
        return twin

    @property
    def provider(self) -> RoutableProvider:
        """The provider. Raises what is wrong with it, where it cannot be asked."""
        if self._provider is None:
            raise self.broken or LLMError("no provider")
        return self._provider

    @property
    def name(self) -> str:
        """The provider's name."""
        return self._provider.name if self._provider else (self.broken and self.broken.provider) or "?"

    @property
    def recorded(self) -> bool:
        """Whether it answers from cassettes."""
        return not self.broken and self.provider.replays

    @property
    def local(self) -> bool:
        """Whether the text stays near."""
        return bool(self.provider.get_capabilities()["local"])

    @property
    def cost(self) -> tuple[float, float] | None:
        """Dollars for a million tokens of the prompt and of the answer; None where nobody knows."""
        return self.provider.get_capabilities()["cost"]

    @property
    def latency_s(self) -> float | None:
        """Seconds to the first token, of late."""
        return self.record.first_token_s

    @property
    def distance(self) -> int:
        """0 on this machine or a private network, 1 beyond."""
        return 0 if not self.broken and self.local else 1

    @property
    def room(self) -> int | None:
        """How many requests it takes at once; None for any number, and for cassettes."""
        return None if self.broken or self.recorded else self.provider.room

    @property
    def address(self) -> str:
        """Where its places and its breakers are kept."""
        return self._provider.address if self._provider else f"{self.name}#{id(self._under_way)}"

    @property
    def target(self) -> Target:
        """Where its breaker is kept."""
        return Target(self.address, self.model or (self._provider.model if self._provider else None))

    @property
    def gate(self) -> Gate:
        """What may be done with it now. Cassettes are asked always: how long it was left alone was a matter of time."""
        return "closed" if self.recorded else self._registry.gate(self.target)

    @property
    def ready(self) -> bool:
        """Whether it may be asked."""
        return self.gate in ("closed", "trial")

    @property
    def opened(self) -> Sequence[Breaker]:
        """Its open breakers."""
        return self._registry.open_breakers(self.target)

    @property
    def record(self) -> Record:
        """What happened with it so far."""
        return self._registry.record(self.target)

    @property
    def cold(self) -> bool:
        """Whether it would have to load the model first."""
        return self.provider.cold(self.model)

    def clock(self) -> float:
        """The breakers' time."""
        return self._registry.clock()

    def answered(self, whole: Completion, began: float) -> None:
        """It answered a request that began then."""
        if self._registry.answer(self.target, whole.first_token_s, began, whole.usage):
            events.emit(events.Closed(provider=self.name, model=self.target.model))

    def failed(self, error: LLMError) -> None:
        """It failed."""
        if self._registry.fail(self.target, error):
            model = None if verdict(error).whole_address else self.target.model
            name, period = type(error).__name__, self.opened[0].period
            events.emit(events.Opened(provider=self.name, model=model, error=name, seconds=period))

    def left(self) -> None:
        """It was left, or was hurried: that says nothing of it."""
        self._registry.settle(self.target)

    def begin(self) -> None:
        """A probe or a trial begins."""
        for breaker in self.opened:
            breaker.begin()

    async def look(self, within: float = PROBE_S) -> None:
        """Learn what it is and what it can, until that has succeeded once."""
        now = asyncio.get_running_loop().time()
        if self._provider is not None and not self._looked and now >= self._blind_until:
            looking = self._once("look", lambda: self.provider.refresh(within))
            self._looked = (await asyncio.shield(looking)).state != "down"
            self._blind_until = now + _BLIND_S

    def lacks(self, needs: Needs, *, local_only: bool) -> list[str]:
        """What it certainly lacks, in words."""
        if not self.provider.permitted(local_only=local_only):
            return ["permission: LLM_LOCAL_ONLY is set, and it is not local"]
        can = self.provider.can(self.model)
        return lacks(needs, can, can["context_served"])

    def overflows(self, needs: Needs) -> bool:
        """Whether the prompt is certainly longer than the largest context that it serves."""
        served = self.provider.can(self.model)["context_served"]
        return served is not None and needs.tokens > served

    def load(self) -> None:
        """Let it load the model meanwhile; nobody waits for it."""

        async def load() -> None:
            with suppress(LLMError):
                await self.provider.warm_up(self.model)

        self._once("load", load)

    def probe(self) -> asyncio.Task[bool]:
        """Look whether it is ready: costs nothing, loads nothing, carries no user text."""

        async def probing() -> bool:
            try:
                with unrecorded():  # whether it comes to this depends on the time
                    ready = self.recorded or (await self.provider.refresh(PROBE_S)).ready
            except BaseException:
                self.left()  # it was cut: nothing is known
                raise
            for breaker in self.opened:
                breaker.probed(self._registry.clock(), ready=ready)
            if not self.opened:
                events.emit(events.Closed(provider=self.name, model=self.target.model))
            return ready

        if self._idle("probe"):
            self.begin()
        return self._once("probe", probing)

    async def loads_now(self) -> bool:
        """Whether its own pages say that it is loading, or has yet to load the model; False where they do not tell."""
        if self.recorded:
            return False
        state = (await self.provider.refresh(PROBE_S)).state
        return state == "loading" or (state == "ready" and self.provider.loads and self.cold)

    def ask(self, call: Call, attempt: Attempt, *, words: bool = False) -> Work:
        """Ask it, or let it continue what was begun, in words where it takes no beginning. Raises LLMError."""
        if attempt.prefix is not None and words:
            call = replace(call, prompt=_in_words(call.prompt, attempt.prefix))
            attempt = replace(attempt, prefix=None, thinking="")
        try:
            return self.provider.attempt(call, attempt)
        except LLMError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever an application's own provider raises
            raise ServerFailed(f"the provider raised {type(error).__name__}", provider=self.name) from None

    def _idle(self, name: str) -> bool:
        task = self._under_way.get(name)
        return task is None or task.done() or task.get_loop() is not asyncio.get_running_loop()

    def _once(self, name: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        """Do it once for all who want it now."""
        if self._idle(name):
            self._under_way[name] = asyncio.create_task(work())
        return self._under_way[name]


def chain_name(candidates: Iterable[Candidate]) -> str:
    """What the chain is called: equals joined by ``+``, ranks by ``,``, as in LLM_PROVIDERS."""
    ranks = groupby(candidates, key=lambda each: each.rank)
    return ",".join("+".join(each.name for each in rank) for _, rank in ranks) or "local"


def _in_words(prompt: Prompt, prefix: str) -> list[Any]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    words = f"{_GO_ON}\n\n{end_of(prefix)}"
    return [*messages, {"role": "assistant", "content": prefix}, {"role": "user", "content": words}]
