"""The methods of a provider that a router uses beyond ``LLMProvider``, with defaults.

A router wraps an application's own provider with ``routable``. A provider that inherits from ``RoutableProvider`` and
overrides its methods is ordered, continued and probed like the providers of this package.
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
from ..timeouts import CLOUD_TIMEOUTS_S, LOCAL_TIMEOUTS_S
from ..transport.stream_parser import most_characters
from .capacity import CAPACITY
from .options import messages_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The properties of a provider and one of its models, as far as they are known without a request.

    Attributes:
        address: the key of its circuit breakers and its queue. Providers with one address share both.
        capabilities: of the model. ``context_served`` is the longest context that the server can load it with.
        first_token_s, gap_s: timeouts, in seconds.
        deadline_s: the limit of one attempt, in seconds; None for the time that the request has left.
        names: of the model, to recognise it at another provider. A digest is a name, too.
        has_model: the provider has the model.
        cold: the server loads the model before it responds.
        loads: the server loads models on request.
        prefills: it continues a last assistant message, character by character.
        replays: it replays cassettes, so that a failure is no outage.
        concurrency_limit: the most requests in flight; None if unlimited.
        near: its address is probably on this machine or a private network. LLM_LOCAL_ONLY checks it on connecting.
        local_only: it is configured to be used only if it is local.
    """

    address: str
    capabilities: Capabilities
    first_token_s: float
    gap_s: float
    deadline_s: float | None = None
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
        """Return whether LLM_LOCAL_ONLY allows a request. The address is checked again when it connects."""
        return self.near or not (local_only or self.local_only) or self.capabilities["local"]


class RoutableProvider(LLMProvider):
    """An ``LLMProvider`` with the methods that a router uses.

    Attributes:
        model: the default model; None if unknown.
        vision_model: the default model for prompts with images; None if it is ``model``.
    """

    model: str | None = None
    vision_model: str | None = None

    @cached_property
    def _settings(self) -> settings.Settings:
        return settings.load()  # cached, because it takes a millisecond

    def facts(self, model: str | None) -> Facts:
        """Return the known properties of the provider and a model, by default its own. Sends nothing.

        An override calls this method, and changes the result with ``dataclasses.replace``.

        Args:
            model: the name of the model; None for the default model.
        """
        capabilities, common, name = self.get_capabilities(), self._settings, model or self.model
        first, gap = LOCAL_TIMEOUTS_S if capabilities["local"] else CLOUD_TIMEOUTS_S
        return Facts(
            address=f"{self.name}#{id(self)}",
            capabilities=capabilities,
            first_token_s=common.llm_first_token_timeout or first,
            gap_s=common.llm_gap_timeout or gap,
            names=names_of(name),
            has_model=name is not None and name in (self.model, self.vision_model),
        )

    def trouble(self, model: str | None) -> str | None:  # noqa: ARG002  # a default
        """Return why a request for this model would fail, as of the last probe; None if it would succeed."""
        return None

    async def refresh(self, within: float = 10.0) -> Health:
        """Probe the state of the provider, for at most ``within`` seconds, and cache it. Raises nothing."""
        ready = False
        with suppress(Exception):  # an application's own provider may raise anything
            async with asyncio.timeout(within):
                ready = await self.health_check()
        return Health(
            state="ready" if ready else "down",
            provider=self.name,
            base_url=None,
            detail="ready" if ready else "its health_check() failed or returned False",
            model=self.model,
            capabilities=self.get_capabilities(),
        )

    async def prepare(self) -> None:  # a default that does nothing
        """Prepare now what would delay the first request."""

    async def warm_up(self, model: str | None = None) -> None:
        """Load a model, if the provider loads models. Raise LLMError if that fails."""

    async def aclose(self) -> None:  # a default that does nothing
        """Close idle connections. The provider can be used again afterwards."""

    def attempt(self, call: Call, attempt: Attempt) -> Work:
        """Return the work of one attempt, within its time limits.

        Args:
            call: of the request.
            attempt: its number, its share of the time, and the text to continue.

        Raises:
            NotLocal: LLM_LOCAL_ONLY is set, and the provider is not local.
        """
        facts = self.facts(call.model)
        if not facts.permitted(local_only=self._settings.llm_local_only):
            raise errors.NotLocal(
                "LLM_LOCAL_ONLY is set, and the provider is not local; nothing was sent", provider=self.name
            )
        if attempt.prefix is not None:
            call = replace(call, prompt=[*messages_of(call.prompt), {"role": "assistant", "content": attempt.prefix}])
        sampling = {"temperature": call.temperature, "max_tokens": call.max_tokens}
        sent = call.model or self.model, call.max_tokens
        about = events.AttemptInfo(self.name, facts.address, sampling, attempt, lambda: sent)
        return partial(events.run_attempt, about, partial(self._run, call, attempt, facts))

    async def _run(self, call: Call, attempt: Attempt, facts: Facts, emit: Emit) -> Completion:
        """Run the call within a slot and time limits, and convert any exception to an LLMError."""
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
                return await self._call(call, bounded)
        except TimeoutError:
            queued = slot is None and attempt.slot is None
            kind = errors.DeadlineExceeded if queued or loop.time() >= deadline else bounded.late
            failure: LLMError = kind("the provider did not answer in time", provider=self.name)
        except LLMError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  # an application's own provider may raise anything
            failure = errors.ServerFailed(f"the provider raised {type(error).__name__}", provider=self.name)
        finally:
            CAPACITY.release(slot)
        raise failure.with_traceback(None)

    async def _call(self, call: Call, emit: Emit) -> Completion:
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
                    raise errors.AnswerTooLong("the answer is many times as long as max_tokens allows")
                if not isinstance(piece, Finished):
                    emit(TextDelta(piece) if isinstance(piece, str) else piece)
                await emit.drain()
        return stream.completion


class _Bounded(Relay):
    """Moves the deadline of an attempt with each event. The time that the reader takes does not count."""

    def __init__(self, emit: Emit, scope: asyncio.Timeout, deadline: float, gap_s: float) -> None:
        super().__init__(emit)
        self.late: type[LLMError] = errors.FirstTokenTimeout
        self._scope, self._deadline, self._gap_s = scope, deadline, gap_s

    def __call__(self, event: Event) -> None:
        """Pass the event on."""
        self.late = errors.GapTimeout
        self._emit(event)

    async def drain(self) -> None:
        """Wait for the reader without a limit, then start the gap timeout again."""
        self._scope.reschedule(None)
        await self._emit.drain()
        self._scope.reschedule(min(self._deadline, asyncio.get_running_loop().time() + self._gap_s))


def names_of(model: str | None) -> frozenset[str]:
    """Return the name of a model without vendor, ``:latest`` and case, to compare it with other providers' names."""
    return frozenset([model.rpartition("/")[2].removesuffix(":latest").casefold()] if model else [])


def routable(provider: LLMProvider) -> RoutableProvider:
    """Return the provider itself, or a wrapper with defaults around an application's own provider."""
    return provider if isinstance(provider, RoutableProvider) else _Wrapper(provider)


def _delegated(name: str) -> Any:
    return property(lambda wrapper: getattr(wrapper.provider, name))


class _Wrapper(RoutableProvider):
    """A wrapper around an application's provider that has only the methods of ``LLMProvider``."""

    name = _delegated("name")
    generate, stream, complete = _delegated("generate"), _delegated("stream"), _delegated("complete")
    list_models, health_check = _delegated("list_models"), _delegated("health_check")

    def __init__(self, provider: LLMProvider) -> None:
        self.provider = provider

    def get_capabilities(self) -> Capabilities:
        """Return the capabilities of the provider. Those that it omits are unknown."""
        return {**unknown(cost=None), **self.provider.get_capabilities()}

    def facts(self, model: str | None) -> Facts:
        """Return the defaults, with the same address if the provider is wrapped again."""
        return replace(super().facts(model), address=f"{self.name}#{id(self.provider)}")
