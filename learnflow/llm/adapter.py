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

from . import _litellm, errors, events, settings
from .answer import Answer
from .base import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_TEMPERATURE,
    Answering,
    Capabilities,
    Completion,
    Prompt,
    TextStream,
    TimeOptions,
)
from .base import Options as More
from .discretion import discreet
from .endpoint import settle
from .errors import LLMError
from .health import Door
from .keywords import checked
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
        self._door = Door(self.spec, self.endpoint, self._times.connect, self._times.local_only)
        self._found: str | None = None
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
            return await self._door.models()
        except LLMError as error:
            failed = error
        raise self._explained(failed, None)

    async def health_check(self) -> bool:
        """Whether it would answer now; reads a page, costs nothing, loads nothing, never raises."""
        return await self._door.ready()

    def get_capabilities(self) -> Capabilities:
        """What is known about it, at once."""
        return self.spec.capabilities.copy()

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
                model = await self._prepared(asked, deadline)
                answer = Answer(asked, hold=hold, closes=self._closes_only(model))
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

    async def _prepared(self, asked: Request, deadline: float) -> str:
        """LiteLLM is loaded, and the model's name is known."""
        try:
            async with asyncio.timeout_at(deadline):
                model = await self._which(asked.model)  # first: what is wrong with it costs no seconds
                await _litellm.ready(self.spec)
                return model
        except TimeoutError:
            pass
        raise errors.DeadlineExceeded("the deadline was over before the request could be sent")

    async def _which(self, asked: str | None) -> str:
        """The model's name: the one asked for, or the one that is loaded, or the only one there is."""
        if asked and asked not in self.spec.placeholders:
            return asked
        variable = self.spec.env_model[0]
        if not self.spec.local:
            raise errors.NotConfigured("no model is named", hint=f"Set {variable}, or give model=")
        if self._found is None:
            names = await self._door.loaded() or await self._door.models()
            chat = [name for name in names if "embed" not in name.lower()] or names
            if not chat:
                raise errors.ModelNotFound("the server has no model", hint="Pull or load one first")
            if len(chat) > 1:
                raise errors.NotConfigured(
                    f"no model is named, and there are {len(chat)}: {', '.join(chat[:20])}",
                    hint=f"Set {variable} to one of them, or give model=",
                )
            self._found = chat[0]
        return self._found

    def _closes_only(self, model: str) -> bool:
        return model in self._holds or bool(OPENS_THINKING_ITSELF.search(model))

    async def _heard(self, asked: Request, answer: Answer, model: str, deadline: float) -> AsyncGenerator[Piece, None]:
        """What the server says. What is ours and was refused is left out, and it is asked again."""
        variant = self._variants.get(model, Variant())
        while True:
            messages, parameters = asked.put(model, variant)
            answer.listening = Listening(self.spec, self.endpoint, self._times)
            refused: LLMError | None = None
            try:
                async with aclosing(answer.listening.pieces(model, messages, parameters, deadline)) as pieces:
                    async for piece in pieces:
                        yield piece
            except (errors.CapabilityError, errors.RequestError) as error:
                refused = error
            if refused is None:
                self._variants[model] = variant
                break
            other = None if answer.listening.began else asked.otherwise(variant, refused)
            if other is None:
                break
            variant, why = other
            events.emit(events.Adjusted(provider=self.name, model=model, why=why))
        if refused:
            raise refused

    def _completed(self, answer: Answer, model: str) -> tuple[Completion | None, LLMError | None]:
        """The completion, or why the answer is none after all."""
        try:
            whole = answer.completion(self.name, model)
        except LLMError as error:
            return None, error
        known = self.spec.capabilities["cost"]
        cost = whole.cost if whole.cost is not None else 0.0 if known == (0.0, 0.0) else None
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
        error.provider, error.model = self.name, error.model or model
        spec = self.spec
        if isinstance(error, errors.ModelNotFound):
            self._found = None
            error.hint = error.hint or f"Set {spec.env_model[0]} or model= to a name that list_models() gives"
        elif isinstance(error, errors.AuthenticationFailed):
            error.hint = self.endpoint.key_hint
        elif isinstance(error, errors.Misconfigured):
            error.hint = f"{error.hint}; the address in use is {self.endpoint.base}, the variable {spec.env_url[0]}"
        elif isinstance(error, errors.ConnectionFailed | errors.ConnectTimeout):
            local = f"Start {spec.title} at {self.endpoint.base}, or set {spec.env_url[0]} to where it is"
            away = f"Check the network, HTTPS_PROXY, and the address {self.endpoint.base} ({spec.env_url[0]})"
            error.hint = error.hint or (local if spec.local else away)
        elif isinstance(error, errors.ThinkingLeaked) and model:
            self._holds.add(model)
        discreet(error, self.endpoint.key, asked, answer.text if answer else "")
        if answer:
            error.partial, error.thinking = answer.text, answer.thinking
        return error
