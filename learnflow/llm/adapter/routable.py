"""What a router asks of a provider beyond ``LLMProvider``; every question has a default.

An application's own provider needs none of it: ``routable`` wraps it. One that inherits from
``RoutableProvider`` and answers more is ordered, continued and probed like the providers of this package.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, nullcontext, suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, cast

from .. import errors, events, settings
from ..base import Attempt, Call, LLMProvider, Options
from ..capabilities import Capabilities, Health, unknown
from ..completion import Completion, Event, Finished, TextDelta
from ..errors import LLMError
from ..stream import Emit, Relay, Work
from ..timeouts import FAR, NEAR
from ..transport.stream_parser import most_characters


class RoutableProvider(LLMProvider):
    """An ``LLMProvider`` that a router knows more of.

    Attributes:
        model: the one that it uses where a call names none; None where that is not known.
        vision_model: the one for pictures, where that is another one.
        reports: an event is emitted for each attempt; a router leaves that to its providers.
    """

    model: str | None = None
    vision_model: str | None = None
    reports: bool = True

    @cached_property
    def _common(self) -> settings.Settings:
        """Read once: a millisecond."""
        return settings.load()

    @property
    def address(self) -> str:
        """Where its breaker is kept: providers of one address fail together."""
        return f"{self.name}#{id(self)}"

    @property
    def continues(self) -> bool:
        """Whether it goes on, character by character, with an assistant's message that is the last one."""
        return False

    @property
    def replays(self) -> bool:
        """Whether it answers from recordings, so that no failure of it is an outage."""
        return False

    @property
    def room(self) -> int | None:
        """How many requests it takes at once; None for any number."""
        return None

    @property
    def loads(self) -> bool:
        """Whether it may have to load a model before it answers."""
        return False

    @property
    def waits(self) -> tuple[float, float]:
        """Seconds that it has for the first token, and between two."""
        common, (first, gap) = self._common, NEAR if self.get_capabilities()["local"] else FAR
        return common.llm_first_token_timeout or first, common.llm_gap_timeout or gap

    def cold(self, model: str | None) -> bool:  # noqa: ARG002  # a question with a default
        """Whether it would have to load this model first, as far as it is known."""
        return False

    def trouble(self, model: str | None) -> str | None:  # noqa: ARG002
        """Why it would not answer for this model, as far as the last look showed."""
        return None

    def has(self, model: str) -> bool:
        """Whether it has this model, as far as it is known."""
        return model in (self.model, self.vision_model)

    def names(self, model: str | None) -> frozenset[str]:
        """What this model is called, to know the same one at another provider; a digest is a name, too."""
        name = model or self.model
        return frozenset([name.rpartition("/")[2].removesuffix(":latest").casefold()] if name else [])

    def can(self, model: str | None) -> Capabilities:  # noqa: ARG002
        """What this model can here; ``context_served`` is the most that it would be served with."""
        return self.get_capabilities()

    def permitted(self, *, local_only: bool) -> bool:
        """Whether LLM_LOCAL_ONLY lets it be asked; where it connects to decides in the end."""
        return not local_only or self.get_capabilities()["local"]

    async def refresh(self, within: float = 10.0) -> Health:
        """Look how it is, for ``within`` seconds at most, and remember; never raises."""
        ready = False
        with suppress(Exception):  # whatever it raises, it would not answer
            async with asyncio.timeout(within):
                ready = await self.health_check()
        return Health(
            state="ready" if ready else "down",
            provider=self.name,
            base_url=None,
            detail="ready" if ready else "its health_check() says that it would not answer",
            model=self.model,
            capabilities=self.get_capabilities(),
        )

    async def prepare(self) -> None:  # a default that does nothing
        """Do now what the first request would pay for."""

    async def warm_up(self, model: str | None = None) -> None:
        """Load this model, where it loads models. Raises LLMError."""

    async def aclose(self) -> None:  # a default that does nothing
        """Let go of what is kept between two requests: idle connections. It may be asked again afterwards."""

    def attempt(self, call: Call, attempt: Attempt) -> Work:
        """One attempt at an answer, or at what follows a part of it, within bounds.

        Args:
            call: what was asked.
            attempt: which one it is, how long it may take, what is to be continued.
        """
        if not self.permitted(local_only=self._common.llm_local_only):
            raise errors.NotLocal(
                "LLM_LOCAL_ONLY is set, and the provider is not local; nothing was sent", provider=self.name
            )
        if attempt.prefix is not None:
            prompt = [{"role": "user", "content": call.prompt}] if isinstance(call.prompt, str) else list(call.prompt)
            call = replace(call, prompt=[*prompt, {"role": "assistant", "content": attempt.prefix}])
        return partial(self._bounded, call, attempt, self.work(call, attempt))

    def work(self, call: Call, attempt: Attempt) -> Work:  # noqa: ARG002  # a router's number of it
        """The request as an application's provider has it."""
        return partial(self._its, call)

    async def _its(self, call: Call, emit: Emit) -> Completion:
        asked = call.prompt, call.model, call.temperature, call.max_tokens
        if call.whole:
            done = await self.complete(*asked, **_options(call))
            emit(TextDelta(done.text))
            return done
        left, stream = most_characters(call.max_tokens), self.stream(*asked, **_options(call))
        async with aclosing(stream.events() if emit.all_events else stream) as pieces:
            async for piece in pieces:
                left -= len(piece) if isinstance(piece, str) else 1
                if left < 0:
                    raise errors.AnswerTooLong("the answer is many times as long as max_tokens can be")
                if not isinstance(piece, Finished):
                    emit(TextDelta(piece) if isinstance(piece, str) else piece)
                await emit.drain()
        return stream.completion

    async def _bounded(self, call: Call, attempt: Attempt, work: Work, emit: Emit) -> Completion:
        """The answer: an application's provider may know neither our times, nor our errors, nor our events."""
        loop = asyncio.get_running_loop()
        started, (first, gap) = loop.time(), self.waits
        over = started + call.options.get("timeout", self._common.llm_deadline)
        first = min(filter(None, [attempt.patience, None if call.whole else first]), default=over)
        sampling = {"temperature": call.temperature, "max_tokens": call.max_tokens}
        attempting = events.Attempting(self.name, call.model or self.model, self.address, sampling, attempt)
        with attempting if self.reports else nullcontext(attempting) as told:
            try:
                async with asyncio.timeout_at(min(over, started + first)) as budget:
                    bounded = _Bounded(emit, budget, over, over if call.whole else gap)
                    told.outcome = whole = await work(bounded)
                    return whole
            except TimeoutError:
                kind = errors.DeadlineExceeded if loop.time() >= over else bounded.late
                failed: LLMError = kind("no answer in time", provider=self.name)
            except LLMError as error:
                failed = error
            except Exception as error:  # noqa: BLE001  # whatever an application's own provider raises
                failed = errors.ServerFailed(f"the provider raised {type(error).__name__}", provider=self.name)
            told.outcome = failed
        raise failed.with_traceback(None)


class _Bounded(Relay):
    """Moves the limit of an answer with each of its pieces; the caller's own time is not the provider's silence."""

    def __init__(self, emit: Emit, budget: asyncio.Timeout, over: float, gap: float) -> None:
        super().__init__(emit)
        self.late: type[LLMError] = errors.FirstTokenTimeout
        self._budget, self._over, self._gap = budget, over, gap

    def __call__(self, event: Event) -> None:
        self.late = errors.GapTimeout
        self._emit(event)

    async def drain(self) -> None:
        self._budget.reschedule(None)
        await super().drain()
        self._budget.reschedule(min(self._over, asyncio.get_running_loop().time() + self._gap))


def _options(call: Call) -> Options:
    return cast(Options, call.options)


def routable(provider: LLMProvider) -> RoutableProvider:
    """The provider as a router asks it: as it is, or an application's own with the defaults."""
    return provider if isinstance(provider, RoutableProvider) else _Plain(provider)


def _its(name: str) -> Any:
    return property(lambda plain: getattr(plain.provider, name))


class _Plain(RoutableProvider):
    """An application's provider that has the methods of ``LLMProvider`` and nothing else."""

    name = _its("name")
    generate, stream, complete = _its("generate"), _its("stream"), _its("complete")
    list_models, health_check = _its("list_models"), _its("health_check")

    def __init__(self, provider: LLMProvider) -> None:
        self.provider = provider

    def get_capabilities(self) -> Capabilities:
        """Its own; what it leaves out is unknown."""
        return {**unknown(cost=None), **self.provider.get_capabilities()}

    @property
    def address(self) -> str:
        """Its own, however often it is wrapped."""
        return f"{self.name}#{id(self.provider)}"
