"""What a router needs of a provider beyond ``LLMProvider``; all of it has defaults.

An application's own provider needs none of it: ``routable`` wraps it. One that inherits from ``RoutableProvider`` and
overrides more is ordered, continued and probed like the providers of this package.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, cast

from .. import errors, events, settings
from ..base import Attempt, Call, LLMProvider, Options
from ..capabilities import Capabilities, Health, unknown
from ..completion import Completion, Event, Finished, TextDelta, Waiting
from ..errors import LLMError
from ..stream import Emit, Relay, Work
from ..timeouts import FAR, NEAR
from ..transport.stream_parser import most_characters
from .capacity import CAPACITY


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known about a provider and one of its models, without a request.

    Attributes:
        address: the key of its circuit breakers and its queue: providers of one address fail and wait together.
        capabilities: of the model; ``context_served`` is the largest context that it can be served with.
        first_token_s, gap_s: its time limits, in seconds.
        names: of the model, to recognise it at another provider; a digest is a name, too.
        has_model: the provider has the model.
        cold: the server would have to load the model first.
        loads: the server may have to load a model.
        prefills: it continues, character by character, an assistant's message that is the last one.
        replays: it answers from cassettes, so that no failure is an outage.
        concurrency_limit: requests in flight, at most; None if unlimited.
        near: it connects to this machine or a private network only, or is refused when it connects.
        local_only: it was configured to be used only if it is local.
    """

    address: str
    capabilities: Capabilities
    first_token_s: float
    gap_s: float
    names: frozenset[str] = frozenset()
    has_model: bool = False
    cold: bool = False
    loads: bool = False
    prefills: bool = False
    replays: bool = False
    concurrency_limit: int | None = None
    near: bool = False
    local_only: bool = False

    def permitted(self, *, local_only: bool) -> bool:
        """Return whether LLM_LOCAL_ONLY allows a request; the connection decides in the end."""
        return self.near or not (local_only or self.local_only) or self.capabilities["local"]


class RoutableProvider(LLMProvider):
    """An ``LLMProvider`` of which a router knows more.

    Attributes:
        model: the model of a call that names none; None if unknown.
        vision_model: the one for images, if that is another one.
    """

    model: str | None = None
    vision_model: str | None = None

    @cached_property
    def _settings(self) -> settings.Settings:
        return settings.load()  # once: it takes a millisecond

    def facts(self, model: str | None) -> Facts:
        """Return what is known now about the provider and a model, its own if None. Sends nothing.

        An override calls it, and changes the result with ``dataclasses.replace``.
        """
        capabilities, common, name = self.get_capabilities(), self._settings, model or self.model
        first, gap = NEAR if capabilities["local"] else FAR
        return Facts(
            address=f"{self.name}#{id(self)}",
            capabilities=capabilities,
            first_token_s=common.llm_first_token_timeout or first,
            gap_s=common.llm_gap_timeout or gap,
            names=names_of(name),
            has_model=name is not None and name in (self.model, self.vision_model),
        )

    def trouble(self, model: str | None) -> str | None:  # noqa: ARG002  # a default
        """Return why the provider would not answer for this model, as of the last probe; None if it would."""
        return None

    async def refresh(self, within: float = 10.0) -> Health:
        """Probe its state, for at most ``within`` seconds, and remember it. Never raises."""
        ready = False
        with suppress(Exception):  # whatever it raises, the provider would not answer
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
        """Do now what would delay the first request."""

    async def warm_up(self, model: str | None = None) -> None:
        """Load this model, if the provider loads models. Raises LLMError."""

    async def aclose(self) -> None:  # a default that does nothing
        """Close idle connections. The provider can be used again afterwards."""

    def attempt(self, call: Call, attempt: Attempt) -> Work:
        """Return the work of one attempt, within its time limits.

        Args:
            call: the call.
            attempt: its number, its share of the time, and the text to continue.
        """
        facts = self.facts(call.model)
        if not facts.permitted(local_only=self._settings.llm_local_only):
            raise errors.NotLocal(
                "LLM_LOCAL_ONLY is set, and the provider is not local; nothing was sent", provider=self.name
            )
        if attempt.prefix is not None:
            prompt = [{"role": "user", "content": call.prompt}] if isinstance(call.prompt, str) else list(call.prompt)
            call = replace(call, prompt=[*prompt, {"role": "assistant", "content": attempt.prefix}])
        sampling = {"temperature": call.temperature, "max_tokens": call.max_tokens}
        sent = call.model or self.model, call.max_tokens
        about = events.About(self.name, facts.address, sampling, attempt, lambda: sent)
        return partial(events.attempted, about, partial(self._bounded, call, attempt, facts))

    async def _bounded(self, call: Call, attempt: Attempt, facts: Facts, emit: Emit) -> Completion:
        """Run the call within time limits and a slot: an application's provider need not know them, nor our errors."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + call.options.get("timeout", self._settings.llm_deadline)
        slot = None
        try:
            if attempt.slot is None:
                with emit.waiting(Waiting("queue", self.name, call.model)):
                    slot = await CAPACITY.acquire(facts.address, facts.concurrency_limit, deadline)
            first = min(
                filter(None, [attempt.patience, None if call.buffered else facts.first_token_s]), default=deadline
            )
            async with asyncio.timeout_at(min(deadline, loop.time() + first)) as scope:
                bounded = _Bounded(emit, scope, deadline, deadline if call.buffered else facts.gap_s)
                return await self._answered(call, bounded)
        except TimeoutError:
            queued = slot is None and attempt.slot is None
            kind = errors.DeadlineExceeded if queued or loop.time() >= deadline else bounded.late
            failure: LLMError = kind("no answer in time", provider=self.name)
        except LLMError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  # whatever an application's own provider raises
            failure = errors.ServerFailed(f"the provider raised {type(error).__name__}", provider=self.name)
        finally:
            CAPACITY.release(slot)
        raise failure.with_traceback(None)

    async def _answered(self, call: Call, emit: Emit) -> Completion:
        """Call the provider's own methods, and emit what they return."""
        arguments, options = (call.prompt, call.model, call.temperature, call.max_tokens), cast(Options, call.options)
        if call.buffered:
            completion = await self.complete(*arguments, **options)
            emit(TextDelta(completion.text))
            return completion
        left, stream = most_characters(call.max_tokens), self.stream(*arguments, **options)
        async with aclosing(stream.events() if emit.all_events else stream) as pieces:
            async for piece in pieces:
                left -= len(piece) if isinstance(piece, str) else 1
                if left < 0:
                    raise errors.AnswerTooLong("the answer is many times as long as max_tokens can be")
                if not isinstance(piece, Finished):
                    emit(TextDelta(piece) if isinstance(piece, str) else piece)
                await emit.drain()
        return stream.completion


class _Bounded(Relay):
    """Moves the time limit with each event. The time that the reader takes does not count."""

    def __init__(self, emit: Emit, scope: asyncio.Timeout, deadline: float, gap_s: float) -> None:
        super().__init__(emit)
        self.late: type[LLMError] = errors.FirstTokenTimeout
        self._scope, self._deadline, self._gap_s = scope, deadline, gap_s

    def __call__(self, event: Event) -> None:
        """Pass the event on."""
        self.late = errors.GapTimeout
        self._emit(event)

    async def drain(self) -> None:
        """Wait without a limit, then start the limit anew."""
        self._scope.reschedule(None)
        await self._emit.drain()
        self._scope.reschedule(min(self._deadline, asyncio.get_running_loop().time() + self._gap_s))


def names_of(model: str | None) -> frozenset[str]:
    """Return the name of a model as other providers would spell it."""
    return frozenset([model.rpartition("/")[2].removesuffix(":latest").casefold()] if model else [])


def routable(provider: LLMProvider) -> RoutableProvider:
    """Return the provider itself, or a wrapper with the defaults around an application's own."""
    return provider if isinstance(provider, RoutableProvider) else _Plain(provider)


def _own(name: str) -> Any:
    return property(lambda plain: getattr(plain.provider, name))


class _Plain(RoutableProvider):
    """An application's provider that has the methods of ``LLMProvider`` and nothing else."""

    name = _own("name")
    generate, stream, complete = _own("generate"), _own("stream"), _own("complete")
    list_models, health_check = _own("list_models"), _own("health_check")

    def __init__(self, provider: LLMProvider) -> None:
        self.provider = provider

    def get_capabilities(self) -> Capabilities:
        """Return its capabilities; those that it leaves out are unknown."""
        return {**unknown(cost=None), **self.provider.get_capabilities()}

    def facts(self, model: str | None) -> Facts:
        """Return the defaults, with an address that is the same however often the provider is wrapped."""
        return replace(super().facts(model), address=f"{self.name}#{id(self.provider)}")
