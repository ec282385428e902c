"""What a router asks of a provider beyond ``LLMProvider``; every question has a default.

An application's own provider needs none of it: ``routable`` wraps it. One that inherits from
``RoutableProvider`` and answers more is ordered, continued and probed like the providers of this package.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, cast

from .. import errors, events, settings
from ..base import FIRST, Attempt, Call, LLMProvider, Options
from ..capabilities import Capabilities, Health, unknown
from ..completion import Answering, Completion, Piece, TextStream
from ..errors import LLMError
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
        common, (first, gap) = settings.load(), NEAR if self.get_capabilities()["local"] else FAR
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

    def attempt(self, call: Call, attempt: Attempt = FIRST) -> TextStream:
        """One attempt at an answer, or at what follows a part of it, within bounds.

        Args:
            call: what was asked.
            attempt: which one it is, how long it may take, what is to be continued.
        """
        if not self.permitted(local_only=settings.load().llm_local_only):
            raise errors.NotLocal(
                "LLM_LOCAL_ONLY is set, and the provider is not local; nothing was sent", provider=self.name
            )
        if attempt.prefix is not None:
            prompt = [{"role": "user", "content": call.prompt}] if isinstance(call.prompt, str) else list(call.prompt)
            call = replace(call, prompt=[*prompt, {"role": "assistant", "content": attempt.prefix}])
        answering = Answering()
        return TextStream(self._bounded(call, attempt, answering), answering)

    async def answer(self, call: Call, attempt: Attempt) -> Completion:  # noqa: ARG002  # a router's number of it
        """The whole answer, as ``attempt`` has it from ``complete``."""
        return await self.complete(call.prompt, call.model, call.temperature, call.max_tokens, **_options(call))

    def pieces(self, call: Call, attempt: Attempt) -> TextStream:  # noqa: ARG002
        """Its pieces, as ``attempt`` has them from ``stream``."""
        return self.stream(call.prompt, call.model, call.temperature, call.max_tokens, **_options(call))

    async def _bounded(self, call: Call, attempt: Attempt, answering: Answering) -> AsyncGenerator[Piece, None]:
        """The pieces: an application's provider may know neither our times, nor our errors, nor our events."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        (first, gap), over = self.waits, started + call.options.get("timeout", settings.load().llm_deadline)
        left, failed = most_characters(call.max_tokens), cast(LLMError | None, None)
        late: type[LLMError] = errors.FirstTokenTimeout
        first = min(filter(None, [attempt.patience, None if call.whole else first]), default=over)
        limit = min(over, started + first)
        model = call.model or self.model
        self._begins(call, model, attempt)
        try:
            try:
                if call.whole:
                    async with asyncio.timeout_at(limit):
                        answering.completion = await self.answer(call, attempt)
                    yield answering.completion.text
                else:
                    async with aclosing(self.pieces(call, attempt).nested(answering.watch)) as stream:
                        while True:
                            async with asyncio.timeout_at(limit):
                                piece: Piece | None = await anext(stream, None)
                            if piece is None:
                                break
                            left -= len(piece) if isinstance(piece, str) else 1
                            if left < 0:
                                raise errors.AnswerTooLong(  # noqa: TRY301
                                    "the answer is many times as long as max_tokens can be"
                                )
                            yield piece
                            late, limit = errors.GapTimeout, min(over, loop.time() + gap)
                        answering.completion = stream.completion
            except TimeoutError:
                kind = errors.DeadlineExceeded if limit >= over else late
                failed = kind("no answer in time", provider=self.name)
            except LLMError as error:
                failed = error
            except Exception as error:  # noqa: BLE001  # whatever an application's own provider raises
                failed = errors.ServerFailed(f"the provider raised {type(error).__name__}", provider=self.name)
        finally:
            if self.reports:
                events.ended(
                    self.name,
                    model,
                    failed or answering.completion,
                    total_s=loop.time() - started,
                    max_tokens=call.max_tokens,
                    attempt=attempt.number,
                    request=attempt.request,
                    metadata=call.metadata,
                )
        if failed:
            raise failed.with_traceback(None)

    def _begins(self, call: Call, model: str | None, attempt: Attempt) -> None:
        if self.reports and events.heard():
            events.emit(
                events.Asked(
                    request=attempt.request,
                    attempt=attempt.number,
                    provider=self.name,
                    model=model,
                    address=self.address,
                    sampling={"temperature": call.temperature, "max_tokens": call.max_tokens},
                    metadata=call.metadata,
                )
            )


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
