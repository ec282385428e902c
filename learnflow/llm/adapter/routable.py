"""What a router asks of a provider beyond ``LLMProvider``; every question has a default.

An application's own provider needs none of it: ``routable`` wraps it. One that inherits from
``RoutableProvider`` and answers more is ordered, continued and probed like the providers of this package.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import Any, cast

from .. import errors, events, settings
from ..base import Answering, Attempt, LLMProvider, Options, Prompt, TextStream
from ..capabilities import Capabilities, Health
from ..errors import LLMError
from ..spec import OTHER
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

    def attempt(
        self,
        prompt: Prompt,
        model: str | None,
        temperature: float,
        max_tokens: int,
        more: Options,
        *,
        whole: bool = False,
        tools: bool = False,  # noqa: ARG002  # complete() takes them
        attempt: Attempt = Attempt(),  # noqa: B008  # it is frozen
    ) -> TextStream:
        """One attempt at an answer, or at what follows a part of it, within bounds.

        Args:
            prompt, model, temperature, max_tokens, more: as in ``LLMProvider``.
            whole: nobody is watching the pieces.
            tools: the caller can take tool calls.
            attempt: which one it is, how long it may take, what is to be continued.
        """
        if not self.permitted(local_only=settings.load().llm_local_only):
            raise errors.NotLocal(
                "LLM_LOCAL_ONLY is set, and the provider is not local; nothing was sent", provider=self.name
            )
        if attempt.prefix is not None:
            asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            prompt = [*asked, {"role": "assistant", "content": attempt.prefix}]
        call = (prompt, model, temperature, max_tokens)
        answering = Answering()
        return TextStream(self._routed(call, more, attempt, answering, whole=whole), answering)

    async def _routed(
        self,
        call: tuple[Prompt, str | None, float, int],
        more: Options,
        attempt: Attempt,
        answering: Answering,
        *,
        whole: bool,
    ) -> AsyncGenerator[str, None]:
        """The pieces: an application's provider may know neither our times, nor our errors, nor our events."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        (first, gap), over = self.waits, started + more.get("timeout", settings.load().llm_deadline)
        _, model, temperature, max_tokens = call
        left, failed = most_characters(max_tokens), cast(LLMError | None, None)
        late: type[LLMError] = errors.FirstTokenTimeout
        first = min(filter(None, [attempt.patience, None if whole else first]), default=over)
        limit = min(over, started + first)
        self._routing_begins(attempt, model, {"temperature": temperature, "max_tokens": max_tokens})
        try:
            try:
                if whole:
                    async with asyncio.timeout_at(limit):
                        answering.completion = await self.complete(*call, **more)
                    yield answering.completion.text
                else:
                    async with aclosing(self.stream(*call, **more).nested()) as stream:
                        while True:
                            async with asyncio.timeout_at(limit):
                                piece = await anext(stream, None)
                            if piece is None:
                                break
                            left -= len(piece)
                            if left < 0:
                                raise errors.AnswerTooLong(  # noqa: TRY301
                                    "the answer is many times as long as max_tokens can be"
                                )
                            yield piece
                            late, limit = errors.GapTimeout, min(over, loop.time() + gap)
                        answering.completion = stream.completion
            except TimeoutError:
                kind = errors.DeadlineExceeded if limit >= over else late
                failed = kind("nothing came in time", provider=self.name)
            except LLMError as error:
                failed = error
            except Exception as error:  # noqa: BLE001  # whatever an application's own provider raises
                failed = errors.ServerFailed(f"it raised {type(error).__name__}", provider=self.name)
        finally:
            if self.reports:
                events.ended(
                    self.name,
                    model or self.model,
                    failed or answering.completion,
                    total_s=loop.time() - started,
                    max_tokens=max_tokens,
                    attempt=attempt.number,
                    request=attempt.request,
                )
        if failed:
            raise failed.with_traceback(None)

    def _routing_begins(self, attempt: Attempt, model: str | None, sampling: Mapping[str, Any]) -> None:
        if self.reports and events.heard():
            events.emit(
                events.Asked(
                    request=attempt.request,
                    attempt=attempt.number,
                    provider=self.name,
                    model=model or self.model,
                    address=self.address,
                    sampling=sampling,
                )
            )


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
        self.reports = getattr(provider, "reports", True)

    def get_capabilities(self) -> Capabilities:
        """Its own; what it leaves out is unknown."""
        return {**OTHER.capabilities, **self.provider.get_capabilities()}

    @property
    def loads(self) -> bool:
        """What a router says of its providers, as what follows."""
        return bool(getattr(self.provider, "loads", False))

    def cold(self, model: str | None) -> bool:
        """See ``loads``."""
        told = getattr(self.provider, "cold", None)
        return bool(told and told(model))

    @property
    def waits(self) -> tuple[float, float]:
        """See ``loads``."""
        told: tuple[float, float] | None = getattr(self.provider, "waits", None)
        return told or super().waits

    @property
    def address(self) -> str:
        """Its own, however often it is wrapped."""
        return f"{self.name}#{id(self.provider)}"
