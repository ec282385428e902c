"""``RoutableProvider``: the methods that a router requires of a provider in addition to ``LLMProvider``.

A router wraps an application's own provider with ``routable``, which adds defaults for these methods. An application
can also derive its provider from ``RoutableProvider`` and override these methods. A router then treats the provider
like a provider of this package.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, cast

from .. import errors, events, settings
from ..base import Attempt, Call, LLMProvider, Options
from ..capabilities import Capabilities, Health, default_capabilities
from ..completion import Completion, Event, Finished, ServedModel, TextDelta, Waiting
from ..errors import LLMError
from ..stream import Emit, Relay, TextStream, Work
from ..timeouts import CLOUD_TIMEOUTS_S, LOCAL_TIMEOUTS_S
from ..transport.stream_parser import max_answer_chars
from .capacity import CAPACITY
from .options import messages_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The known properties of a provider and one of its models. No request is sent to find them.

    Attributes:
        address: the key of the circuit breakers and the slots (``adapter.capacity``). Providers with the same
            address share breakers and slots.
        capabilities: the capabilities of the model. Here, ``context_served`` is the longest context length with which
            the server can load the model.
        first_token_s: time limit to the first token in seconds.
        gap_s: time limit between two tokens in seconds.
        deadline_s: time limit of one attempt in seconds; None if only the deadline of the request applies.
        names: the model's ``comparable_names``, to find the same model at other providers.
        has_model: the provider is known to have the model.
        cold: the server must load the model before it responds.
        loads: the server can load models on request.
        supports_prefill: the provider supports prefill: it continues a last assistant message exactly where it ends.
        replays: the responses come from cassettes (recorded responses). Circuit breakers and concurrency limits do
            not apply.
        concurrency_limit: how many requests may be in flight; None if unlimited.
        looks_local: the address looks local or private. Each connection checks the resolved address.
        local_only: the provider refuses requests unless it is local.
        lacking_capabilities: the capabilities that the model lacks. The provider refuses a request that requires one.
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
    supports_prefill: bool = False
    replays: bool = False
    concurrency_limit: int | None = None
    looks_local: bool = False
    local_only: bool = False
    lacking_capabilities: frozenset[str] = frozenset()

    def permitted(self, *, local_only: bool) -> bool:
        """Return whether a request may be sent to this provider. ``local_only`` is the value of LLM_LOCAL_ONLY."""
        return self.looks_local or not (local_only or self.local_only) or self.capabilities["local"]


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
        """Return the known properties of the provider and a model, without a request.

        An override should call this method, and change the result with ``dataclasses.replace``.

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
            names=comparable_names(name),
            has_model=name is not None and name in (self.model, self.vision_model),
        )

    async def refresh(self, within: float = 10.0) -> Health:
        """Probe the provider and return its state. A failure is returned as the state "down".

        Args:
            within: time limit of the probe in seconds.
        """
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
        """Do work that would delay the first request, for example imports."""

    async def warm_up(self, model: str | None = None) -> None:
        """Load a model, if the provider loads models. Raise LLMError if that fails."""

    async def aclose(self) -> None:  # a default that does nothing
        """Close idle connections. The provider can be used again afterwards."""

    def attempt(self, call: Call, attempt: Attempt) -> Work:
        """Return a coroutine function that runs one attempt within its time limits.

        Args:
            call: the prompt, the model and the parameters.
            attempt: the number of the attempt, its time limit to the first token, its slot, and the text to continue.

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
        model_and_max_tokens = call.model or self.model, call.max_tokens
        work = partial(self._run, call, attempt, facts)
        return partial(
            events.run_attempt, self.name, facts.address, sampling, attempt, lambda: model_and_max_tokens, work
        )

    async def _run(self, call: Call, attempt: Attempt, facts: Facts, emit: Emit) -> Completion:
        """Wait for a slot, and run the call within its time limits. Raise only LLMError."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + call.options.get("timeout", self._settings.llm_deadline)
        slot = None
        try:
            if attempt.slot is None:
                with emit.waiting(Waiting("queue", self.name, call.model)):
                    slot = await CAPACITY.acquire(facts.address, facts.concurrency_limit, deadline)
            limits_s = [attempt.max_first_token_s, None if call.buffered else facts.first_token_s]
            first_token_s = min(filter(None, limits_s), default=math.inf)
            async with asyncio.timeout_at(min(deadline, loop.time() + first_token_s)) as timeout:
                gap_s = math.inf if call.buffered else facts.gap_s
                limited_emit = _TimeLimitedEmit(emit, timeout, deadline, gap_s)
                return await self._call(call, limited_emit)
        except TimeoutError:
            in_queue = slot is None and attempt.slot is None
            error_class = errors.DeadlineExceeded if in_queue or loop.time() >= deadline else limited_emit.timeout_error
            failure: LLMError = error_class("the provider did not answer in time", provider=self.name)
        except LLMError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  # an application's own provider may raise anything
            failure = exception_error(error, self.name)
        finally:
            CAPACITY.release(slot)
        raise failure.with_traceback(None)

    async def _call(self, call: Call, emit: Emit) -> Completion:
        """Call ``complete`` or ``stream`` of the provider, and emit the text and the events."""
        arguments, options = (call.prompt, call.model, call.temperature, call.max_tokens), cast(Options, call.options)
        model = call.model or self.model
        if call.buffered:
            completion = to_completion(await self.complete(*arguments, **options), self.name, model)
            emit(TextDelta(completion.text))
            return completion
        return await read_stream(self.stream(*arguments, **options), self.name, model, call.max_tokens, emit)


async def read_stream(stream: Any, provider: str, model: str | None, max_tokens: int, emit: Emit) -> Completion:
    """Emit the text or the events of a stream, and return the completion.

    ``stream`` is a ``TextStream``, or any asynchronous iterator over text, like an async generator.
    """
    pieces = stream.events() if emit.all_events and hasattr(stream, "events") else stream
    chars_left, text = max_answer_chars(max_tokens), ""
    try:
        async for piece in pieces:
            chars_left -= len(piece) if isinstance(piece, str) else 1
            if chars_left < 0:
                raise errors.AnswerTooLong("the answer is many times as long as max_tokens allows")
            if isinstance(piece, str):
                text += piece
            if not isinstance(piece, Finished):
                emit(TextDelta(piece) if isinstance(piece, str) else piece)
            await emit.drain()
    finally:
        if close := getattr(pieces, "aclose", None):
            await close()
    return to_completion(getattr(stream, "completion", text), provider, model)


def text_stream(stream: Any, provider: str, model: str | None, max_tokens: int) -> TextStream:
    """Return a ``TextStream`` for a stream of any provider; see ``read_stream``."""
    return (
        stream
        if isinstance(stream, TextStream)
        else TextStream(partial(read_stream, stream, provider, model, max_tokens))
    )


def to_completion(answer: Any, provider: str, model: str | None) -> Completion:
    """Convert an answer (a completion or a text) to a completion. Raise MalformedAnswer if it has another type."""
    if isinstance(answer, str):
        return Completion(text=answer, finish="stop", provider=provider, model=ServedModel(model or provider))
    if not isinstance(answer, Completion):
        what = f"complete() returned {type(answer).__name__}"
        raise errors.MalformedAnswer(what, provider=provider, hint="Return a Completion or a str")
    return answer


class _TimeLimitedEmit(Relay):
    """Limits the time between two events to ``gap_s`` seconds. The wait for space in the buffer does not count.

    After ``drain``, ``timeout`` (that of the attempt) expires in ``gap_s`` seconds, but not later than ``deadline`` (on
    the event loop's clock).

    Attributes:
        timeout_error: the error to raise if ``timeout`` expires.
    """

    def __init__(self, emit: Emit, timeout: asyncio.Timeout, deadline: float, gap_s: float) -> None:
        super().__init__(emit)
        self.timeout_error: type[LLMError] = errors.FirstTokenTimeout
        self._timeout, self._deadline, self._gap_s = timeout, deadline, gap_s

    def __call__(self, event: Event) -> None:
        """Forward the event."""
        self.timeout_error = errors.GapTimeout
        self._emit(event)

    async def drain(self) -> None:
        """Wait until the buffer has space, without a time limit. Then start the limit for the next event."""
        self._timeout.reschedule(None)
        await self._emit.drain()
        self._timeout.reschedule(min(self._deadline, asyncio.get_running_loop().time() + self._gap_s))


def comparable_names(model: str | None) -> frozenset[str]:
    """Return a set with the name of a model in lower case, without vendor and ``:latest``; an empty set for None."""
    return frozenset([model.rpartition("/")[2].removesuffix(":latest").casefold()] if model else [])


def exception_error(error: Exception, provider: str) -> LLMError:
    """Return the error for an exception of an application's provider. Omit the message, which may quote the prompt."""
    return errors.ServerFailed(f"the provider raised {type(error).__name__}", provider=provider)


def routable(provider: LLMProvider) -> RoutableProvider:
    """Return the provider if it is a ``RoutableProvider``, else a wrapper with defaults."""
    return provider if isinstance(provider, RoutableProvider) else _WrappedProvider(provider)


def _delegate(name: str) -> Any:
    """Return a property that reads this attribute of the wrapped provider."""
    return property(lambda wrapper: getattr(wrapper.provider, name))


class _WrappedProvider(RoutableProvider):
    """Wraps a provider of an application. That provider has only the methods of ``LLMProvider``."""

    name = _delegate("name")
    generate, stream, complete = _delegate("generate"), _delegate("stream"), _delegate("complete")

    def __init__(self, provider: LLMProvider) -> None:
        self.provider = provider

    def get_capabilities(self) -> Capabilities:
        """Return the provider's capabilities, with defaults for omitted keys. If the provider raises, return defaults.

        By default, ``streaming`` is True, ``local`` is False, and the others are None (unknown).
        """
        unknown = default_capabilities(local=False, cost=None)
        with suppress(Exception):
            return {**unknown, **self.provider.get_capabilities()}
        return unknown

    async def list_models(self) -> list[str]:
        """Return the models of the provider. Raise only LLMError."""
        try:
            return await self.provider.list_models()
        except LLMError:
            raise
        except Exception as error:  # noqa: BLE001  # an application's own provider may raise anything
            what = f"its list_models() raised {type(error).__name__}"
        raise errors.ServerFailed(what, provider=self.name)

    async def health_check(self) -> bool:
        """Return whether the provider is ready. Raise nothing."""
        with suppress(Exception):
            return await self.provider.health_check()
        return False

    def facts(self, model: str | None) -> Facts:
        """Return the default facts. All wrappers of one provider have the same address."""
        return replace(super().facts(model), address=f"{self.name}#{id(self.provider)}")
