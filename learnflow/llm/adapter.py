"""The one provider: a row and an address, a prompt in, a whole answer or a named failure out.

Must never hold what is true of one server only (that is its row), nor read the wire or LiteLLM's objects.
``providers/`` gives it names; the factory and the router use it through the LLMProvider protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import ClassVar, Unpack

from . import _litellm, advice, errors, events, native, settings, window
from .answer import Answer
from .base import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_TEMPERATURE,
    Answering,
    Completion,
    Prompt,
    TextStream,
    TimeOptions,
)
from .base import Options as More
from .discretion import discreet
from .endpoint import settle
from .errors import LLMError
from .fit import Fit
from .health import Door
from .keywords import checked
from .knowledge import LOOK_S, QUICK_S, Knowledge
from .known import Capabilities, Health, Model
from .listen import Listening
from .request import Request, Variant, request
from .specs import OPENS_THINKING_ITSELF, SPECS, ProviderSpec
from .thinking import Piece
from .times import settle_times


class BaseProvider:
    """One provider. ``providers`` has a class for each row; what is not given is read from the row's variables.

    Args:
        base_url: the server, with or without ``/v1`` and trailing slash.
        model: the model to use where a call names none.
        api_key: the key; one from the environment goes only to the host that it was issued for.
        times: ``connect_timeout``, ``first_token_timeout``, ``gap_timeout``, ``deadline`` (seconds), ``local_only``.

    Raises:
        NotConfigured: an address that cannot be, or none, or a key that is missing.
    """

    row: ClassVar[str]

    def __init__(
        self,
        base_url: str | None = None,
        model: str | None = None,
        api_key: str | None = None,
        **times: Unpack[TimeOptions],
    ) -> None:
        common, own = settings.load(), settings.load_row(SPECS[self.row])
        env_key = own.api_key.get_secret_value() if own.api_key else None
        self.spec = self._dialect(base_url or own.base_url or "", own.api_version)
        self.endpoint = settle(self.spec, base_url, api_key, own.base_url, env_key, own.api_version)
        self.model = model or own.model
        self._times = settle_times(self.spec, times, common)
        self._log_content = common.llm_log_content
        self._load_s = common.llm_load_timeout
        door = Door(self.spec, self.endpoint, self._times.connect, self._times.local_only)
        self._knowledge = Knowledge(door, self.model, own.stated)
        self._variants: dict[str, Variant] = {}
        self._holds: set[str] = set()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self.endpoint.base!r}, model={self.model!r})"

    @property
    def name(self) -> str:
        """The row's name, as in ``LLM_PROVIDER``."""
        return self.spec.name

    async def generate(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[More],
    ) -> str:
        """The text of the answer.

        Args:
            prompt: a text, or OpenAI-style messages with text and image parts.
            model: its name at this provider; the configured one, the one that is loaded, or the only one where None.
            temperature: left out where the model refuses our default.
            max_tokens: of the answer, likewise; an answer that ends there is returned with a warning event.
            more: see ``Options``.

        Raises:
            LLMError: whatever kept the answer from being whole; ``.partial`` holds what had arrived.
        """
        asked = self._request(prompt, model, temperature, max_tokens, more, tools_allowed=False)
        return (await self._collect(asked)).text

    async def complete(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[More],
    ) -> Completion:
        """The answer and everything known about it; the only call that takes ``tools``. As ``generate`` otherwise."""
        return await self._collect(self._request(prompt, model, temperature, max_tokens, more, tools_allowed=True))

    def stream(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[More],
    ) -> TextStream:
        """The answer piece by piece; nothing is sent before the first piece is asked for. As ``generate`` otherwise."""
        asked = self._request(prompt, model, temperature, max_tokens, more, tools_allowed=False)
        answering = Answering()
        return TextStream(self._text(asked, answering, hold=asked.reasoning not in (None, False)), answering)

    async def prepare(self) -> None:
        """Import LiteLLM now, in a thread: seconds that the first request would pay. For an application's start."""
        await _litellm.ready(self.spec)

    async def list_models(self) -> list[str]:
        """The names that ``model=`` may take. Raises LLMError."""
        try:
            return [model.name for model in await self._knowledge.models(every=False)]
        except LLMError as error:
            failed = error
        raise self._explained(failed, None)

    async def models(self, within: float = LOOK_S) -> list[Model]:
        """The models that can answer, with what each of them can, within so many seconds. Raises LLMError."""
        try:
            return await self._knowledge.models(within)
        except LLMError as error:
            failed = error
        raise self._explained(failed, None)

    async def health_check(self) -> bool:
        """Whether it would answer now; reads a few pages, costs nothing, loads nothing, never raises."""
        return (await self.refresh()).ready

    async def refresh(self, within: float = LOOK_S) -> Health:
        """Look how it is and what it can, for ``within`` seconds at most, and remember; never raises.

        Reads a few pages, as ``health_check`` does.
        """
        return await self._knowledge.health(within)

    def get_capabilities(self, model: str | None = None) -> Capabilities:
        """What is known about it, at once: what the last look showed, and what the row and the operator say.

        Args:
            model: None for the one that is used where a call names none.
        """
        return self._knowledge.capabilities(model)

    async def warm_up(
        self, model: str | None = None, *, keep_alive: str | float | None = None, watch: native.Watch | None = None
    ) -> None:
        """Load the model by the server's own means, or wait until it is loaded, and LiteLLM too.

        Args:
            model: as in ``generate``.
            keep_alive: how long it shall stay loaded, in Ollama's words ("30m") or seconds; None for its own default.
            watch: called once a second with the seconds so far.

        Raises:
            ModelLoading: LLM_LOAD_TIMEOUT seconds were not enough.
            LLMError: whatever else kept it from loading.
        """
        if keep_alive is not None and not self.spec.keeps:
            raise errors.Unsupported(f"{self.spec.title} cannot honour keep_alive=", provider=self.name)
        failed: LLMError | None = None
        try:
            async with asyncio.timeout(self._load_s), native.ticking(watch):
                await asyncio.gather(self.prepare(), self._loaded(model or self.model, keep_alive))
        except TimeoutError:
            failed = errors.ModelLoading(f"not loaded within {self._load_s:g} s", hint="Raise LLM_LOAD_TIMEOUT")
        except LLMError as error:
            failed = error
        if failed:
            raise self._explained(failed, model or self.model)

    async def _loaded(self, asked: str | None, keep_alive: str | float | None) -> None:
        """Until the server has the model in memory."""
        model: Model | None = None
        while model is None:
            try:
                model = await self._knowledge.found(asked)
            except errors.ModelLoading:
                await asyncio.sleep(native.AGAIN_S)
        if self.spec.load_path and not (model.loaded and keep_alive is None) and not model.remote:
            wide = window.of(self.endpoint.base, model.name).size or self._knowledge.stated.get("context_served")
            await native.load(self._knowledge.door, model.name, wide, keep_alive)
            await self._knowledge.found(asked)

    def _dialect(self, url: str, version: str | None) -> ProviderSpec:  # noqa: ARG002  # for those who have dialects
        """The row, for providers whose addresses come in more than one dialect."""
        return SPECS[self.row]

    def _request(
        self, prompt: Prompt, model: str | None, temperature: float, max_tokens: int, more: More, *, tools_allowed: bool
    ) -> Request:
        sampling = {"temperature": temperature, "max_tokens": max_tokens}
        return request(self.spec, prompt, model or self.model, checked(self.spec, sampling, more, tools=tools_allowed))

    async def _collect(self, asked: Request) -> Completion:
        """The whole answer: the same stream, gathered; what may be thinking is held back, for nobody is watching."""
        answering = Answering()
        async with TextStream(self._text(asked, answering, hold=True), answering) as answer:
            async for _ in answer:
                pass
        return answer.completion

    async def _text(self, asked: Request, answering: Answering, *, hold: bool) -> AsyncGenerator[str, None]:
        """The caller's pieces; leaves the completion, tells what happened, and raises only LLMErrors."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        deadline = started + (asked.timeout or self._times.deadline)
        model, answer = asked.model, Answer(asked, hold=hold)
        failed: LLMError | None = None
        try:
            try:
                model, fit = await self._prepared(asked, deadline)
                answer = Answer(asked, fit, hold=hold, closes=self._closes_only(model))
                async with aclosing(self._heard(asked, answer, model, deadline)) as pieces:
                    async for piece in pieces:
                        if text := answer.add(piece):
                            yield text
            except LLMError as error:
                failed = error
            if text := answer.end():
                yield text
            if not failed:
                answering.completion, failed = self._completed(answer, model or "")
        finally:
            self._tell(failed or answering.completion, model, asked, loop.time() - started)
        if failed:
            raise self._explained(failed, model, asked, answer).with_traceback(None)

    async def _prepared(self, asked: Request, deadline: float) -> tuple[str, Fit]:
        """LiteLLM is loaded, the model's name is known, and the request may fit it."""
        try:
            async with asyncio.timeout_at(deadline):
                model = await self._knowledge.which(asked.model)  # first: what is wrong with it costs no seconds
                fit = Fit(self.spec, self.endpoint.base, self._knowledge, asked, model)
                self._adjusted(model, await fit.before(min(QUICK_S, self._times.first_token)))
                await _litellm.ready(self.spec)
                return model, fit
        except TimeoutError:
            pass
        raise errors.DeadlineExceeded("the deadline was over before the request could be sent")

    def _closes_only(self, model: str) -> bool:
        return model in self._holds or bool(OPENS_THINKING_ITSELF.search(model))

    async def _heard(self, asked: Request, answer: Answer, model: str, deadline: float) -> AsyncGenerator[Piece, None]:
        """What the server says. What is ours and was refused is left out, and it is asked again."""
        variant = self._variants.get(model, Variant())
        fit = answer.fit
        assert fit is not None  # noqa: S101  # prepared
        while True:
            messages, parameters = asked.put(model, variant, fit.size)
            answer.listening = Listening(self.spec, self.endpoint, self._times)
            refused: LLMError | None = None
            try:
                async with aclosing(answer.listening.pieces(model, messages, parameters, deadline)) as pieces:
                    async for piece in pieces:
                        yield piece
            except (errors.CapabilityError, errors.RequestError, errors.ServerFailed) as error:
                refused = error
            if refused is None:
                self._variants[model] = variant
                fit.held()
                break
            if answer.listening.began:
                break
            why = fit.after(refused)
            if why is None:
                other = asked.otherwise(variant, refused)
                if other is None:
                    break
                variant, why = other
            self._adjusted(model, why)
        if refused:
            raise refused

    def _adjusted(self, model: str, why: str | None) -> None:
        if why:
            events.emit(events.Adjusted(provider=self.name, model=model, why=why))

    def _completed(self, answer: Answer, model: str) -> tuple[Completion | None, LLMError | None]:
        """The completion, or why the answer is none after all."""
        try:
            whole = answer.completion(self.name, model)
        except LLMError as error:
            return None, error
        loss = answer.fit.loss(whole.usage) if answer.fit else None
        if loss:
            return None, loss
        free = self._knowledge.capabilities(model)["cost"] == (0.0, 0.0) if self.spec.local else False
        cost = whole.cost if whole.cost is not None else 0.0 if free else None
        if cost is None and not self.spec.local:
            cost = _litellm.price(self.spec, model, whole.usage)
        return replace(whole, cost=cost), None

    def _tell(self, outcome: Completion | LLMError | None, model: str | None, asked: Request, total_s: float) -> None:
        """One event for each request, and its content only where the operator wants it in the log."""
        events.ended(self.name, model, outcome, total_s=total_s, max_tokens=asked.sampling.get("max_tokens"))
        if self._log_content and isinstance(outcome, Completion):
            events.content("llm_content", messages=asked.messages, text=outcome.text, reasoning=outcome.reasoning)

    def _explained(
        self, error: LLMError, model: str | None, asked: Request | None = None, answer: Answer | None = None
    ) -> LLMError:
        """Say who failed and which variable to set; leave out what is private; keep what had arrived."""
        advice.addressed(error, self.spec, self.endpoint, model)
        if isinstance(error, errors.ModelNotFound | errors.ConnectionFailed):
            self._knowledge.forget()
        elif isinstance(error, errors.ThinkingLeaked) and error.model:
            self._holds.add(error.model)
        discreet(error, self.endpoint.key, asked, answer.text if answer else "")
        if answer:
            error.partial, error.thinking = answer.text, answer.thinking
        return error
