"""The interface of a provider, and the values that describe a call and its attempts.

This module sends no request and does not read the environment. Every module may import it.
"""

from __future__ import annotations

from abc import abstractmethod
from asyncio import AbstractEventLoop
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    Protocol,
    Self,
    TypeAlias,
    TypedDict,
    Unpack,
    runtime_checkable,
)

from typing_extensions import override  # typing has it from Python 3.12 on

from .capabilities import Capabilities
from .completion import Completion, Parsed, Source, TextDelta, Usage
from .errors import FailedAttempt, InvalidRequest, LLMError, clear_cause
from .stream import Emit, TextStream, Work

if TYPE_CHECKING:  # ``parameters`` imports pydantic
    from . import parameters

Message: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = str | Sequence[Message]
Reasoning: TypeAlias = bool | Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Resume: TypeAlias = Literal["continue", "raise"]
Routing: TypeAlias = Literal["order", "latency", "cost", "local-first", "warm-first"]
Method: TypeAlias = Literal["generate", "stream", "complete"]


class DefaultFloat(float):
    """A default of this package or of an application. Unlike a caller's value, it may be removed from a request."""


class _DefaultInt(int):
    """A default of this package, like ``DefaultFloat``."""


DEFAULT_TEMPERATURE: Final[float] = DefaultFloat(0.7)
DEFAULT_MAX_TOKENS: Final[int] = _DefaultInt(1000)


class AtMost(int):
    """A value for ``max_tokens`` that may be lowered.

    It is lowered if the prompt and the answer would exceed the served context length. It is removed if the model
    rejects it. Each change emits an event.
    """


def is_removable(value: object) -> bool:
    """Return whether a value is a default or an ``AtMost``. Only these are removed if a model does not support them."""
    return isinstance(value, (DefaultFloat, _DefaultInt, AtMost))


def describe_limit(max_tokens: int | None, usage: Usage, context_setting: str) -> tuple[str, str]:
    """Return the token limit at which an answer ended, and the action that avoids it, as texts for an error.

    Args:
        max_tokens: the limit of the request, in tokens.
        usage: the numbers of tokens that the server reported.
        context_setting: the setting for a larger context length; "" if unknown.
    """
    tokens = usage.completion_tokens
    if max_tokens is None or (tokens or max_tokens) < max_tokens:
        what = f"{tokens or '?'} tokens, because the context was full"
        setting = context_setting and f" ({context_setting})"
        return what, f"Shorten the prompt, or serve the model with a larger context length{setting}"
    limit = f"max_tokens={max_tokens}" + (", the default" if isinstance(max_tokens, _DefaultInt) else "")
    return limit, "Raise max_tokens=, or request a shorter answer"


class Options(TypedDict, Generic[Parsed], total=False):
    """The optional keywords of ``generate``, ``stream`` and ``complete``.

    Attributes:
        system: the system message.
        response_format: the format of the answer, as OpenAI's dict or a pydantic class.
        tools, tool_choice, stop, seed, top_p, top_k, min_p, frequency_penalty, presence_penalty: see OpenAI's API.
            ``top_k`` and ``min_p`` are extensions of some servers.
        n: the number of answers. Only 1 is supported.
        reasoning: True or False turns thinking on or off. A string is a level. The valid levels depend on the vendor.
        timeout: the time limit of the call in seconds.
        session: a name for a group of requests with the same beginning of the prompt. It is sent to clouds
            that route such a group to one prompt cache.
        headers: additional headers of the request, for a single provider. A router refuses them. In a value,
            ``{session}`` is replaced by ``session``. Without ``session``, a header with ``{session}`` is not sent.
        extra_body: fields that are added to the body of the request unchanged.
        after: the text of an answer that was interrupted, for example ``LLMError.partial``. The answer continues it,
            and ``max_tokens`` limits both together. "" begins a new answer. ``after`` cannot be combined with schemas
            and tools.
        include_prior: whether a stream also yields the text of ``after``, before the new text.
        resume: the action of a router if a stream breaks after text was emitted, see ``RouterProvider``.
        metadata: labels of the request, for example ``node`` or ``user``. Events, log lines and spans contain them;
            metrics contain only ``node``. They are not sent to a provider.
    """

    system: str
    response_format: parameters.ResponseFormat[Parsed]
    tools: parameters.Tools
    tool_choice: parameters.ToolChoice
    stop: parameters.Stop
    seed: parameters.Seed
    n: parameters.SingleAnswer
    top_p: parameters.Fraction
    top_k: parameters.TopK
    min_p: parameters.Fraction
    frequency_penalty: parameters.Number
    presence_penalty: parameters.Number
    reasoning: Reasoning
    timeout: parameters.Seconds
    session: parameters.Session
    headers: Mapping[str, str]
    extra_body: parameters.JsonObject
    after: str
    include_prior: bool
    resume: Resume
    metadata: parameters.Labels


class TimeOptions(TypedDict, total=False):
    """The timeouts of a provider in seconds, and its limits; see ``timeouts.Timeouts``.

    The defaults are variables of the environment (``LLM_CONNECT_TIMEOUT``, ``<NAME>_MAX_CONCURRENCY`` and so on).
    """

    connect_timeout: parameters.Seconds
    first_token_timeout: parameters.Seconds
    gap_timeout: parameters.Seconds
    deadline: parameters.Seconds
    local_only: bool
    max_concurrency: parameters.Count


class ProviderOptions(TimeOptions, total=False):
    """The keywords of the provider classes; see ``BaseProvider``.

    Only ``EmbeddedProvider``, a model server that this package starts, has ``context``, ``slots`` and ``threads``.
    """

    base_url: str | None
    model: parameters.Name | None
    api_key: str | None
    vision_model: parameters.Name | None
    headers: Mapping[str, str] | str | None
    api: parameters.ApiName | None
    context: parameters.Count | None
    slots: parameters.Count | None
    threads: parameters.Count | None


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one call. Its repr shows no text.

    Attributes:
        prompt, model, temperature, max_tokens: see ``LLMProvider.generate``.
        options: the other keywords of ``Options``.
        method: the method that was called.
        metadata, after, include_prior: see ``Options``.
        recorded: the pieces of an answer that the journal (``LLM_JOURNAL``) has from an earlier, interrupted call with
            the same arguments. They follow ``after``. None if answers are not recorded.
    """

    prompt: Prompt = field(repr=False)
    model: str | None = None
    temperature: float = DEFAULT_TEMPERATURE
    max_tokens: int = DEFAULT_MAX_TOKENS
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    method: Method = "complete"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    after: str = field(default="", repr=False)
    include_prior: bool = False
    recorded: Sequence[str] | None = field(default=None, repr=False)

    def checked(self) -> Call:
        """Return the call without keywords that are None, and with ``metadata`` and ``after`` in their own fields.

        Raises:
            InvalidRequest: a value is invalid, or keywords cannot be combined.
        """
        from .parameters import check_keywords  # noqa: PLC0415  # it imports pydantic

        arguments = {name: getattr(self, name) for name in ("prompt", "model", "temperature", "max_tokens")}
        check_keywords(AbstractProvider.stream, {**arguments, "more": self.options}, InvalidRequest)
        options = {name: value for name, value in self.options.items() if value is not None and name != "n"}
        if options.get("tools") and self.method == "generate":
            raise InvalidRequest("generate() does not support tools", hint="Use complete() or stream()")
        fields = {name: options.pop(name) for name in ("after", "include_prior") if name in options}
        if fields.get("after") and (keyword := self.format_keyword):
            what = f"after= with {keyword}=: JSON and tool calls cannot be continued"
            raise InvalidRequest(what, hint=f"Leave after= or {keyword}= out")
        return replace(self, metadata=dict(options.pop("metadata", {})), options=options, **fields)

    @property
    def prior_text(self) -> str:
        """Return the text that the answer continues; "" if a new answer begins."""
        return self.after + "".join(self.recorded or ())

    @property
    def prior_source(self) -> Source:
        """Return the source of ``prior_text`` for the event ``Resumed``. "call" is the keyword ``after=``."""
        return "journal" if self.recorded else "call"

    @property
    def buffered(self) -> bool:
        """Return whether the caller receives the answer in one piece."""
        return self.method != "stream"

    @property
    def is_continuable(self) -> bool:
        """Return whether an interrupted answer can be continued. JSON cannot. With tools, only a stream can."""
        return self.format_keyword is None or (self.format_keyword != "response_format" and not self.buffered)

    @property
    def format_keyword(self) -> str | None:
        """Return the keyword that requests JSON or tool calls; None if the answer is text."""
        form, *others = (self.options.get(name) for name in _FORMAT_KEYWORDS)
        is_text = form is None or (isinstance(form, Mapping) and form.get("type") == "text")
        return next((name for name, value in zip(_FORMAT_KEYWORDS, (not is_text, *others), strict=True) if value), None)


@dataclass(frozen=True, slots=True)
class Slot:
    """A permit for one request to a server address, within the concurrency limit. The request holds it until the end.

    Attributes:
        address: the address of the server.
        loop: the event loop of the request.
        waited_s: the seconds that the request waited for the slot.
    """

    address: str
    loop: AbstractEventLoop
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The parameters of one attempt of a request. Its repr shows no text.

    Attributes:
        number: the number of the attempt in the request, from 1.
        request_number: the number of the request in this process.
        max_first_token_s: an upper limit for the provider's first-token timeout, in seconds. With this limit, a router
            leaves time for other providers.
        prefix: the text of an interrupted answer. It is sent as a prefill, a last message of the assistant that the
            server continues. None for a new answer, or if the prompt quotes the interrupted text.
        thinking: the thinking before ``prefix``.
        slot: the slot that the router has acquired; None if the attempt must acquire one.
        metadata: see ``Options``.
        failed_attempts: the list to which the router or the provider adds failed attempts.
    """

    number: int = 1
    request_number: int = 0
    max_first_token_s: float | None = None
    prefix: str | None = field(default=None, repr=False)
    thinking: str = field(default="", repr=False)
    slot: Slot | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    failed_attempts: list[FailedAttempt] = field(default_factory=list)

    @property
    def prefill_with_thinking(self) -> str:
        """Return the thinking in ``<think>`` tags, then the prefill."""
        return (f"<think>{self.thinking}</think>" if self.thinking else "") + (self.prefix or "")


_FORMAT_KEYWORDS: Final = ("response_format", "tools", "tool_choice")


async def _emit_prior(work: Work, text: str, emit: Emit) -> Completion:
    emit(TextDelta(text))
    return await work(emit)


@runtime_checkable
class LLMProvider(Protocol):
    """One server of language models, or a router over several. Every error is an ``LLMError``."""

    @property
    def name(self) -> str:
        """Return the name in ``LLM_PROVIDER``, logs and errors."""

    async def generate(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options],
    ) -> str:
        """Send a prompt and return the text of the answer.

        Args:
            prompt: a text, or OpenAI-style messages with text and image parts.
            model: the name of the model at the provider. None means the configured model, for images ``vision_model``.
                If no model is configured, the loaded one is used, else the server's only one. A router sends the name
                to the providers that have the model. Other providers use their default model.
            temperature: the sampling temperature. The default is removed if the model rejects it.
            max_tokens: the longest answer, in tokens. A text that ends there is returned, with a warning event. A tool
                call or incomplete JSON raises AnswerTruncated. The default is removed if the model rejects it.
            more: the keywords of ``Options``, for example ``system`` or ``timeout`` (seconds). For tools, use
                ``complete`` or ``stream``.

        Returns:
            The complete text. An incomplete answer raises an error.

        Raises:
            InvalidRequest: a keyword or a value is invalid. Nothing was sent.
            LLMError: no provider returned a complete answer. ``.partial`` has the text that arrived.
        """

    def stream(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options],
    ) -> TextStream:
        """Return a stream of the answer. The request is sent when the first piece is read.

        Args:
            prompt: a text, or OpenAI-style messages with text and image parts.
            model: the name of the model at the provider, see ``generate``.
            temperature: the sampling temperature, see ``generate``.
            max_tokens: the longest answer, in tokens, see ``generate``.
            more: the keywords of ``Options``, for example ``tools`` or ``timeout`` (seconds).

        Returns:
            The stream. Iterating it yields text, ``events()`` yields every event. ``completion`` is set at the end.

        Raises:
            InvalidRequest: a keyword or a value is invalid.
            Unsupported: the provider does not support a keyword.
            LLMError: while the stream is read, if no provider completes the answer. ``.partial`` has the text that
                arrived.
        """

    async def complete(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options[Parsed]],
    ) -> Completion[Parsed]:
        """Send a prompt and return the answer with its metadata.

        Args:
            prompt: a text, or OpenAI-style messages with text and image parts.
            model: the name of the model at the provider, see ``generate``.
            temperature: the sampling temperature, see ``generate``.
            max_tokens: the longest answer, in tokens, see ``generate``.
            more: the keywords of ``Options``, for example ``tools``, ``response_format`` or ``timeout`` (seconds).

        Returns:
            The completion. With ``response_format=Quiz`` it is a ``Completion[Quiz]``, and ``parsed`` is a ``Quiz``.

        Raises:
            InvalidRequest: a keyword or a value is invalid. Nothing was sent.
            LLMError: no provider returned a complete answer. ``.partial`` has the text that arrived.
        """

    async def list_models(self) -> list[str]:
        """Return the names of the models. Loads no model.

        Returns:
            The values for ``model=``. A router returns those of all providers that respond.

        Raises:
            LLMError: no provider responded.
        """

    async def health_check(self) -> bool:
        """Probe the server. A probe costs nothing, loads no model and sends no user text.

        Returns:
            Whether the provider is ready for a request.

        Raises:
            NotRecorded: the cassettes of LLM_REPLAY do not have the probe. No other error is raised.
        """

    def get_capabilities(self) -> Capabilities:
        """Return the known capabilities of the provider, without a request.

        Returns:
            A dict. None means unknown; see ``Capabilities``.
        """


class AbstractProvider(LLMProvider):
    """Base of the providers of this package. ``generate``, ``stream`` and ``complete`` call ``start``."""

    @abstractmethod
    def start(self, call: Call) -> Work:
        """Return the coroutine function that runs a call. ``start`` itself sends no request.

        Raises:
            InvalidRequest: a keyword or a value is invalid.
            Unsupported: the provider does not support a keyword.
        """

    async def aclose(self) -> None:
        """Close the idle connections of this event loop. The provider can be used again afterwards."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _run_call(self, call: Call) -> Completion:
        """Run a call in the caller's task, and drop its events."""
        try:
            return await self.start(call)(Emit())
        except LLMError as error:
            raise clear_cause(error)  # noqa: B904  # it removes the cause

    @override
    async def generate(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options],
    ) -> str:
        return (await self._run_call(Call(prompt, model, temperature, max_tokens, more, "generate").checked())).text

    @override
    def stream(
        self,
        prompt: parameters.ValidPrompt,
        model: parameters.Name | None = None,
        temperature: parameters.Temperature = DEFAULT_TEMPERATURE,
        max_tokens: parameters.Count = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options],
    ) -> TextStream:
        call = Call(prompt, model, temperature, max_tokens, more, "stream").checked()
        work = self.start(call)
        return TextStream(partial(_emit_prior, work, call.after) if call.after and call.include_prior else work)

    @override
    async def complete(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options[Parsed]],
    ) -> Completion[Parsed]:
        return await self._run_call(Call(prompt, model, temperature, max_tokens, more, "complete").checked())
