"""One provider of a chain, as the router sees it: what it can, whether it fits, how it is asked, probed and continued.

Must never choose between providers.
Only the router uses it. An application's own provider is asked through ``RoutableProvider``'s defaults.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from typing import Any, Final

from ..adapter.routable import RoutableProvider, routable
from ..base import Attempt, Call, LLMProvider, Prompt
from ..capabilities import Health
from ..completion import TextStream
from ..errors import LLMError, ServerFailed
from ..replay.transport import unrecorded
from .breaker import Target
from .continuation import end_of
from .selection import Needs, lacks

PROBE_S: Final = 1.0
_BLIND_S: Final = 15.0  # until one that did not answer a look is looked at again before a request

# What a model is told that cannot be given the beginning of its answer. What it says is checked against this.
_GO_ON: Final = (
    "Your answer above was cut off by a broken connection. Go on with it: begin with its last words, copied exactly, "
    "and continue from there to its end. Write no introduction and no comment. Its last words, with which you begin:"
)


class Candidate:
    """One provider of a chain.

    Args:
        given: the provider; None where it could not be made.
        number: its place in the chain.
        rank: those of one rank are equals, and asked before those of the next.
        broken: why it could not be made.
    """

    def __init__(self, given: LLMProvider | None, number: int, rank: int = 0, broken: LLMError | None = None) -> None:
        self.number = number
        self.rank = rank
        self.broken = broken
        self.given = given
        self._provider = routable(given) if given else None
        self._looked = False
        self._blind_until = 0.0
        self._looking: asyncio.Task[Health] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._probe: asyncio.Task[bool] | None = None

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
        return self._provider.address if self._provider else f"{self.name}#{id(self)}"

    def target(self, model: str | None) -> Target:
        """Where its breaker is kept."""
        return Target(self.address, model or (self._provider.model if self._provider else None))

    async def look(self, within: float = PROBE_S) -> None:
        """Learn what it is and what it can, until that has succeeded once; many who want it look once."""
        now = asyncio.get_running_loop().time()
        if self._provider is None or self._looked or now < self._blind_until:
            return
        if self._looking is None or self._looking.done() or self._looking.get_loop() is not asyncio.get_running_loop():
            self._looking = asyncio.create_task(self._provider.refresh(within))
        self._looked = (await asyncio.shield(self._looking)).state != "down"
        self._blind_until = now + _BLIND_S

    def lacks(self, needs: Needs, model: str | None, *, local_only: bool) -> list[str]:
        """What it certainly lacks, in words."""
        if not self.provider.permitted(local_only=local_only):
            return ["permission: LLM_LOCAL_ONLY is set, and it is not local"]
        can = self.provider.can(model)
        return lacks(needs, can, can["context_served"])

    def overflows(self, needs: Needs, model: str | None) -> bool:
        """Whether the prompt is certainly longer than the largest context that it serves."""
        served = self.provider.can(model)["context_served"]
        return served is not None and needs.tokens > served

    def load(self, model: str | None) -> None:
        """Let it load the model meanwhile; nobody waits for it."""

        async def load() -> None:
            with suppress(LLMError):
                await self.provider.warm_up(model)

        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(load())

    async def ready(self) -> bool:
        """A probe: costs nothing, loads nothing, carries no user text."""
        if self.recorded:
            return True
        with unrecorded():  # whether it comes to this depends on the time
            return (await self.provider.refresh(PROBE_S)).ready

    def probe(self, begin: Callable[[], None], done: Callable[[bool | None], None]) -> asyncio.Task[bool]:
        """One probe for all who want one now; ``begin`` and ``done`` are told once, ``done`` None where it was cut."""

        async def probing() -> bool:
            ready: bool | None = None
            try:
                ready = await self.ready()
            finally:
                done(ready)
            return ready

        if self._probe is None or self._probe.done() or self._probe.get_loop() is not asyncio.get_running_loop():
            begin()
            self._probe = asyncio.create_task(probing())
        return self._probe

    async def loads_now(self, model: str | None) -> bool:
        """Whether its own pages say that it is loading, or has yet to load the model; False where they do not tell."""
        if self.recorded:
            return False
        state = (await self.provider.refresh(PROBE_S)).state
        return state == "loading" or (state == "ready" and self.provider.loads and self.provider.cold(model))

    def ask(self, call: Call, attempt: Attempt, *, words: bool = False) -> TextStream:
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


def chain_name(candidates: Iterable[Candidate]) -> str:
    """What the chain is called: equals joined by ``+``, ranks by ``,``, as in LLM_PROVIDERS."""
    ranks = groupby(candidates, key=lambda each: each.rank)
    return ",".join("+".join(each.name for each in rank) for _, rank in ranks) or "local"


def _in_words(prompt: Prompt, prefix: str) -> list[Any]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    words = f"{_GO_ON}\n\n{end_of(prefix)}"
    return [*messages, {"role": "assistant", "content": prefix}, {"role": "user", "content": words}]
