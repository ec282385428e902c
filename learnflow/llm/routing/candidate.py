"""One provider of a chain, as the router sees it: what it can, whether it fits, how it is asked, probed and continued.

Must never choose between providers.
Only the router uses it. A provider that is not one of ours is asked through the ``LLMProvider`` protocol alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from .. import errors, prices
from ..adapter.provider import BaseProvider
from ..adapter.request import Attempt
from ..base import Answering, LLMProvider, Options, Prompt, TextStream
from ..errors import LLMError
from ..known import Health
from ..replay.transport import unrecorded
from .breaker import Target
from .selection import Needs, lacks

PROBE_S: Final = 1.0

# What a model is told that cannot be given the beginning of its answer.
_GO_ON: Final = (
    "Your answer above was cut off by a broken connection. Continue it exactly where it stops, with the very next "
    "character. Do not repeat anything of it, do not comment, do not begin again."
)


@dataclass(frozen=True, slots=True)
class Call:
    """What a caller asked; its repr shows no prompt."""

    prompt: Prompt
    model: str | None
    temperature: float
    max_tokens: int
    more: Mapping[str, Any]
    needs: Needs
    whole: bool
    tools: bool

    @property
    def rigid(self) -> bool:
        """Whether its answer has a form that cannot be continued: tool calls, JSON."""
        wanted = self.more.get("response_format")
        free = wanted is None or (isinstance(wanted, Mapping) and wanted.get("type") == "text")
        return bool(self.more.get("tools")) or not free

    def __repr__(self) -> str:
        return f"<Call model={self.model!r} {self.needs}>"


class Candidate:
    """One provider of a chain."""

    def __init__(self, provider: LLMProvider | None, number: int, broken: LLMError | None = None) -> None:
        self.number = number
        self.broken = broken
        self.own = provider if isinstance(provider, BaseProvider) else None
        self._provider = provider
        self._only_words = False
        self._looked = False
        self._looking: asyncio.Task[Health] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._probe: asyncio.Task[bool] | None = None

    @property
    def provider(self) -> LLMProvider:
        """The provider. Raises what is wrong with it, where it cannot be asked."""
        if self._provider is None:
            raise self.broken or LLMError("no provider")
        return self._provider

    @property
    def name(self) -> str:
        """The provider's name."""
        return self._provider.name if self._provider else (self.broken and self.broken.provider) or "?"

    @property
    def in_words(self) -> bool:
        """Whether it can be asked to continue an answer in words only."""
        return self._only_words or self.own is None or self.own.engine.continues is None

    @in_words.setter
    def in_words(self, only: bool) -> None:
        self._only_words = only

    @property
    def taped(self) -> bool:
        """Whether it answers from tapes."""
        return self.own is not None and self.own.engine.client.replays

    @property
    def loads(self) -> bool:
        """Whether it has models that it may have to load first."""
        return bool(self.own and self.own.spec.load_path)

    @property
    def vision_model(self) -> str | None:
        """Its model for pictures, where that is another one."""
        return self.own.vision_model if self.own else None

    @property
    def local(self) -> bool:
        """Whether it is a server of one's own, or says that the text stays near."""
        return bool(self.provider.get_capabilities()["local"])

    @property
    def distance(self) -> int:
        """0 on this machine or a private network, 1 beyond."""
        return 0 if not self.broken and self.local else 1

    def target(self, model: str | None) -> Target:
        """Where its breaker is kept."""
        if self.own is None:
            return Target(f"{self.name}#{id(self._provider)}", model)
        return Target(self.own.endpoint.base, model or self.own.model)

    async def look(self, within: float = PROBE_S) -> None:
        """Learn what it is and what it can, until that has succeeded once; many who want it look once."""
        if self.own is None or self._looked:
            return
        if self._looking is None or self._looking.done() or self._looking.get_loop() is not asyncio.get_running_loop():
            self._looking = asyncio.create_task(self.own.refresh(within))
        self._looked = (await asyncio.shield(self._looking)).state != "down"

    def has(self, model: str) -> bool:
        """Whether it has this model, as far as that is known."""
        if self.own is None:
            return False
        if model in (self.own.model, self.own.vision_model):
            return True
        server = self.own.knowledge.server
        if server and server.models:
            return server.find(model) is not None
        return not self.own.spec.local and bool(prices.known(self.own.spec.litellm, model)["context"])

    def lacks(self, needs: Needs, model: str | None, *, local_only: bool) -> list[str]:
        """What it certainly lacks, in words."""
        stays = self.own is not None and (self.own.spec.local or self.own.endpoint.near)
        if (local_only or (self.own and self.own.engine.times.local_only)) and not (stays or self.local):
            return ["permission: LLM_LOCAL_ONLY is set, and it is not local"]
        can = self.own.get_capabilities(model or self.own.model) if self.own else self.provider.get_capabilities()
        window = can["context_served"]
        if self.own and self.own.spec.window:  # it grows with the request, up to what the model was trained for
            window = max(filter(None, (can["context"], window)), default=None)
        return lacks(needs, can, window)

    def cold(self, model: str | None) -> bool:
        """Whether it would have to load the model first."""
        return bool(self.own and self.own.knowledge.cold(model or self.own.model))

    def load(self, model: str | None) -> None:
        """Let it load the model meanwhile; nobody waits for it."""

        async def load() -> None:
            with suppress(LLMError):
                if self.own:
                    await self.own.warm_up(model)

        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(load())

    async def ready(self) -> bool:
        """A probe: costs nothing, loads nothing, carries no user text."""
        if self.taped:
            return True
        if self.own:
            with unrecorded():  # whether it comes to this depends on the time
                return (await self.own.refresh(PROBE_S)).ready
        with suppress(TimeoutError):
            async with asyncio.timeout(PROBE_S):
                return await self.provider.health_check()
        return False

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

    def own_time_is_over(self, seconds: float) -> bool:
        """Whether it took as long as its own budget for the first token, not only what others left it."""
        return self.own is not None and seconds >= self.own.engine.times.first_token

    async def loads_now(self, model: str | None) -> bool:
        """Whether its own pages say that it is loading, or has yet to load the model; False where they do not tell."""
        if self.own is None or self.taped:
            return False
        state = (await self.own.refresh(PROBE_S)).state
        return state == "loading" or (state == "ready" and self.loads and self.cold(model))

    def ask(self, call: Call, model: str | None, attempt: Attempt, timeout_s: float) -> TextStream:
        """Ask it, or let it continue what was begun; ``timeout_s`` is all the time there is.

        A provider that is not one of ours is asked for the whole answer where tools or a schema are wanted.
        """
        more = cast(Options, {**call.more, "timeout": timeout_s})
        prompt, limit = call.prompt, call.max_tokens
        if attempt.prefix is not None and self.in_words:
            prompt = _in_words(call.prompt, attempt.prefix)
            attempt = replace(attempt, prefix=None, thinking="")
        if self.own:
            whole, tools = call.whole, call.tools
            return self.own.attempt(
                prompt,
                model,
                call.temperature,
                limit,
                more,
                whole=whole,
                tools=tools,
                attempt=attempt,
            )
        answering = Answering()

        async def stranger() -> AsyncGenerator[str, None]:
            stream = None if call.whole else self.provider.stream(prompt, model, call.temperature, limit, **more)
            if stream is None:
                done = await self.provider.complete(prompt, model, call.temperature, limit, **more)
                if done.text:
                    yield done.text
                answering.completion = done
                return
            async with aclosing(stream):
                async for piece in stream:
                    yield piece
                answering.completion = stream.completion

        return TextStream(_bounded(stranger(), self.name, attempt.patience, timeout_s), answering)


def _in_words(prompt: Prompt, prefix: str) -> list[Any]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return [*messages, {"role": "assistant", "content": prefix}, {"role": "user", "content": _GO_ON}]


async def _bounded(
    pieces: AsyncGenerator[str, None], name: str, patience: float | None, timeout_s: float
) -> AsyncGenerator[str, None]:
    """The pieces of a provider that may know neither our times nor our errors."""
    loop = asyncio.get_running_loop()
    over = loop.time() + timeout_s
    limit = over if patience is None else min(over, loop.time() + patience)
    async with aclosing(pieces):
        while True:
            failed: LLMError | None = None
            piece = ""
            try:
                async with asyncio.timeout_at(limit):
                    piece = await anext(pieces)
            except StopAsyncIteration:
                return
            except TimeoutError:
                late = errors.DeadlineExceeded if limit >= over else errors.FirstTokenTimeout
                failed = late("nothing came in time", provider=name)
            except LLMError:
                raise
            except Exception as error:  # noqa: BLE001  # whatever an application's own provider raises
                failed = errors.ServerFailed(f"it raised {type(error).__name__}", provider=name)
            if failed:
                raise failed
            yield piece
            limit = over
