"""The interface of a provider, and the values that describe a call and its attempts.

Imports no library and nothing that sends requests or reads the environment. Every module may import it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from asyncio import AbstractEventLoop
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, Protocol, TypeAlias, TypedDict, Unpack, runtime_checkable

from typing_extensions import override  # typing has it from Python 3.12 on

from .capabilities import Capabilities
from .completion import Completion, Parsed
from .errors import InvalidRequest, LLMError, Tried, bare
from .stream import Emit, TextStream, Work

Message: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = str | Sequence[Message]
Reasoning: TypeAlias = bool | Literal["low", "medium", "high"]
Resume: TypeAlias = Literal["continue", "raise"]
Method: TypeAlias = Literal["generate", "stream", "complete"]


class _DefaultFloat(float):
    """A default of this package. It is removed if a model refuses it; a caller's own 0.7 is not."""


class _DefaultInt(int):
    """A default of this package. It is removed if a model refuses it; a caller's own 1000 is not."""


DEFAULT_TEMPERATURE: Final[float] = _DefaultFloat(0.7)
DEFAULT_MAX_TOKENS: Final[int] = _DefaultInt(1000)


class AtMost(int):
    """``max_tokens`` as an upper bound, in tokens.

    It is lowered to what the prompt leaves of the served context length. It is removed if a model refuses it. Each
    change emits an event.
    """


def may_be_left_out(value: object) -> bool:
    """Return whether a refused value may be removed from the request: a default of this package, or an ``AtMost``."""
    return isinstance(value, (_DefaultFloat, _DefaultInt, AtMost))


class Options(TypedDict, Generic[Parsed], total=False):
    """The further keywords of ``generate``, ``stream`` and ``complete``.

    Attributes:
        system: the system message.
        response_format: OpenAI's dict, or a pydantic class.
        tools, tool_choice, stop, seed, top_p, top_k, min_p, frequency_penalty, presence_penalty: as in OpenAI's API.
        n: 1. A call has one answer.
        reasoning: switches thinking on, off, or to a level.
        timeout: the deadline of this call, in seconds.
        session: the name of a group of requests with a common beginning. It is sent to clouds that route such requests
            to one prompt cache.
        extra_body: fields that are added to the request's body unchanged.
        resume: what a router does with a stream that breaks.
        metadata: labels of the request (``node``, ``user``) for events, log and spans; ``node`` also for metrics. They
            are never sent to a provider.
    """

    system: str
    response_format: dict[str, Any] | type[Parsed]
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any]
    stop: str | Sequence[str]
    seed: int
    n: Literal[1]
    top_p: float
    top_k: int
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    reasoning: Reasoning
    timeout: float
    session: str
    extra_body: Mapping[str, Any]
    resume: Resume
    metadata: Mapping[str, str | int | float | bool | None]


class TimeOptions(TypedDict, total=False):
    """Timeouts in seconds, locality and the concurrency limit of a provider.

    The environment sets those that are missing (``LLM_CONNECT_TIMEOUT`` ..., ``<NAME>_MAX_CONCURRENCY``).
    """

    connect_timeout: float
    first_token_timeout: float
    gap_timeout: float
    deadline: float
    local_only: bool
    max_concurrency: int


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one call. Its repr shows no text.

    Attributes:
        prompt, model, temperature, max_tokens: see ``LLMProvider.generate``.
        options: the other keywords, see ``Options``, without ``metadata``.
        method: the method that was called.
        metadata: labels of the request.

    Raises:
        InvalidRequest: tools for ``generate``, or an invalid ``timeout`` or ``metadata``.
    """

    prompt: Prompt = field(repr=False)
    model: str | None = None
    temperature: float = DEFAULT_TEMPERATURE
    max_tokens: int = DEFAULT_MAX_TOKENS
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    method: Method = "complete"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "metadata" in self.options:
            others = {name: value for name, value in self.options.items() if name != "metadata"}
            object.__setattr__(self, "metadata", _parse_labels(self.options["metadata"]))
            object.__setattr__(self, "options", others)
        if self.options.get("tools") and self.method == "generate":
            raise InvalidRequest(
                "generate() does not support tools: it returns only text", hint="Use complete() or stream()"
            )
        limit = self.options.get("timeout")
        number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
        if limit is not None and not (number and 0 < limit < math.inf):
            raise InvalidRequest("timeout= must be a number of seconds, more than 0")

    @property
    def buffered(self) -> bool:
        """Return whether the caller reads the answer as a whole, not by pieces."""
        return self.method != "stream"

    @property
    def rigid(self) -> bool:
        """Return whether its answer cannot be continued: it is JSON, or has tool calls that were not delivered."""
        schema = self.options.get("response_format")
        free = schema is None or (isinstance(schema, Mapping) and schema.get("type") == "text")
        return bool(self.options.get("tools") and self.buffered) or not free


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot in the concurrency limit of a server address, which one request holds.

    Attributes:
        address: of the server.
        loop: the event loop of the request.
        waited_s: seconds that the request waited for it.
    """

    address: str
    loop: AbstractEventLoop
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt of a request; its repr shows no text.

    Attributes:
        number: of the attempt, from 1.
        request: the number of the request in this process.
        patience: seconds to the first token, if they are fewer than the provider's own limit.
        prefix: the text that the attempt continues; None if it begins an answer.
        thinking: the thinking before that text.
        slot: the slot that the router acquired for it; None if the attempt waits for its own.
        metadata: of the call.
        tried: the failed attempts of the request.
    """

    number: int = 1
    request: int = 0
    patience: float | None = None
    prefix: str | None = field(default=None, repr=False)
    thinking: str = field(default="", repr=False)
    slot: Slot | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tried: list[Tried] = field(default_factory=list)

    @property
    def raw(self) -> str:
        """The beginning of the answer as the model wrote it."""
        return (f"<think>{self.thinking}</think>" if self.thinking else "") + (self.prefix or "")


_MAX_LABELS: Final = 16
_MAX_LABEL_CHARS: Final = 200


def _parse_labels(metadata: Any) -> dict[str, Any]:
    """Return the metadata as a dict. Raise InvalidRequest if a log or OpenTelemetry cannot hold it."""
    valid = isinstance(metadata, Mapping) and len(metadata) <= _MAX_LABELS
    for name, value in metadata.items() if valid else ():
        valid = valid and isinstance(name, str) and name.isidentifier() and len(name) <= _MAX_LABEL_CHARS
        valid = valid and isinstance(value, str | int | float | bool | None) and len(str(value)) <= _MAX_LABEL_CHARS
        valid = valid and (type(value) is not int or abs(value) < 2**63)  # OpenTelemetry's integers have 64 bits
        valid = valid and str(value).isprintable()
    if metadata is not None and not valid:
        text = f"a printable text of {_MAX_LABEL_CHARS} characters, a number or a bool"
        raise InvalidRequest(f"metadata= must be a dict of at most {_MAX_LABELS} entries: a name, and {text}")
    return dict(metadata or {})


@runtime_checkable
class LLMProvider(Protocol):
    """One server of language models, or a router over several. Every error is an ``LLMError``."""

    @property
    def name(self) -> str:
        """Return the name in ``LLM_PROVIDER``, logs and errors."""
        ...

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
            model: the model's name at the provider. None means the configured model, for images ``vision_model``. If
                neither is configured, it is the loaded model, else the only one. A router sends the name to the
                providers that have the model; other providers use their own model.
            temperature: the sampling temperature. The default is removed if the model refuses it.
            max_tokens: the longest answer, in tokens. An answer that ends there is returned, with a warning event. The
                default is removed if the model refuses it.
            more: the keywords of ``Options``, for example ``system`` or ``timeout`` (seconds). Tools are refused: use
                ``complete`` or ``stream``.

        Returns:
            The complete text. An incomplete answer raises an error.

        Raises:
            InvalidRequest: a keyword or a value is invalid. Nothing was sent.
            LLMError: no provider returned a complete answer. ``.partial`` has the text that arrived.
        """
        ...

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
            model: the model's name at the provider; None for the configured one, see ``generate``.
            temperature: the sampling temperature. The default is removed if the model refuses it.
            max_tokens: the longest answer, in tokens. The default is removed if the model refuses it.
            more: the keywords of ``Options``, for example ``tools`` or ``timeout`` (seconds).

        Returns:
            The stream. Iterating it yields text, ``events()`` yields every event. ``completion`` is set at the end.

        Raises:
            InvalidRequest: a keyword or a value is invalid.
            Unsupported: the provider does not support a keyword.
            LLMError: while the stream is read, if no provider completes the answer. ``.partial`` has the text that
                arrived.
        """
        ...

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
            model: the model's name at the provider; None for the configured one, see ``generate``.
            temperature: the sampling temperature. The default is removed if the model refuses it.
            max_tokens: the longest answer, in tokens. The default is removed if the model refuses it.
            more: the keywords of ``Options``, for example ``tools``, ``response_format`` or ``timeout`` (seconds).

        Returns:
            The completion. With ``response_format=Quiz`` it is a ``Completion[Quiz]``, and ``parsed`` is a ``Quiz``.

        Raises:
            InvalidRequest: a keyword or a value is invalid. Nothing was sent.
            LLMError: no provider returned a complete answer. ``.partial`` has the text that arrived.
        """
        ...

    async def list_models(self) -> list[str]:
        """Return the names of the models. Loads no model.

        Returns:
            The values for ``model=``. A router returns those of all providers that respond.

        Raises:
            LLMError: no provider responded.
        """
        ...

    async def health_check(self) -> bool:
        """Probe the server. A probe costs nothing, loads no model and sends no user text.

        Returns:
            True if the provider would answer now.

        Raises:
            NotRecorded: the cassettes of LLM_REPLAY do not have the probe. No other error is raised.
        """
        ...

    def get_capabilities(self) -> Capabilities:
        """Return what is known about the provider, without a request.

        Returns:
            A dict. None means unknown; see ``Capabilities``.
        """
        ...


class AbstractProvider(LLMProvider):
    """Base of the providers of this package: implements the three calls by ``start``.

    The calls inherit their docstrings from ``LLMProvider``.
    """

    @abstractmethod
    def start(self, call: Call) -> Work:
        """Return the work of a call. Nothing is sent before it runs.

        Raises:
            InvalidRequest: a keyword or a value is invalid.
            Unsupported: the provider does not support a keyword.
        """

    async def _run_call(self, call: Call) -> Completion:
        """Run a call in the caller's task, without a buffer for its events."""
        try:
            return await self.start(call)(Emit())
        except LLMError as error:
            raise bare(error)  # noqa: B904  # it removes the cause

    @override
    async def generate(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options],
    ) -> str:
        return (await self._run_call(Call(prompt, model, temperature, max_tokens, more, "generate"))).text

    @override
    def stream(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options],
    ) -> TextStream:
        return TextStream(self.start(Call(prompt, model, temperature, max_tokens, more, "stream")))

    @override
    async def complete(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options[Parsed]],
    ) -> Completion[Parsed]:
        return await self._run_call(Call(prompt, model, temperature, max_tokens, more, "complete"))
