"""The interface of a provider, and the values that describe a call and its attempts.

Sends no request and does not read the environment. Every module may import it.
"""

from __future__ import annotations

import difflib
import json
from abc import abstractmethod
from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from inspect import signature
from itertools import groupby
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    Literal,
    NotRequired,
    Protocol,
    TypeAlias,
    Unpack,
    get_args,
    get_type_hints,
    runtime_checkable,
)

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    InstanceOf,
    Strict,
    TypeAdapter,
    ValidationError,
    with_config,
)
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict, override  # pydantic requires this TypedDict before Python 3.12

from .capabilities import Capabilities
from .completion import Completion, Parsed
from .errors import InvalidRequest, LLMError, Tried, bare
from .stream import Emit, TextStream, Work

Message: TypeAlias = Mapping[str, Any]
Reasoning: TypeAlias = bool | Literal["low", "medium", "high"]
Resume: TypeAlias = Literal["continue", "raise"]
Routing: TypeAlias = Literal["order", "latency", "cost", "local-first", "warm-first"]
Method: TypeAlias = Literal["generate", "stream", "complete"]
# The valid values of keywords and of variables. Every JSON parser represents integers below 2**53 exactly.
Seconds: TypeAlias = Annotated[float, Field(gt=0)]
Count: TypeAlias = Annotated[int, Field(gt=0, lt=2**53)]
CountOrZero: TypeAlias = Annotated[int, Field(ge=0, lt=2**53)]
_Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class _DefaultFloat(float):
    """A default value of this package, which is not the same as an equal value of the caller."""


class _DefaultInt(int):
    """A default value of this package, which is not the same as an equal value of the caller."""


DEFAULT_TEMPERATURE: Final[float] = _DefaultFloat(0.7)
DEFAULT_MAX_TOKENS: Final[int] = _DefaultInt(1000)


class AtMost(int):
    """A value for ``max_tokens`` that may be lowered.

    It is lowered if the prompt and the answer would exceed the served context length, and removed if the model rejects
    it. Each change emits an event.
    """


def may_be_left_out(value: object) -> bool:
    """Return whether a value may be removed from the request after the model has rejected it.

    This is true for a default of this package and for ``AtMost``. Any other value of the caller is never removed.
    """
    return isinstance(value, (_DefaultFloat, _DefaultInt, AtMost))


def _require_printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("a character is not printable")
    return value


def _require_json(value: Any) -> Any:
    try:
        json.dumps(None if isinstance(value, type) else value, default=dict, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ValueError("JSON cannot represent it") from None
    return value


def _require_field(value: Any) -> Any:
    if value["type"] in ("function", "json_schema") and value["type"] not in value:
        raise ValueError("the field of its type is missing")
    return value


def _validated_as(kind: Any) -> GetPydanticSchema:
    """Return an annotation for a keyword that is validated by a narrower type than the one that callers see."""
    return GetPydanticSchema(lambda _, handler: handler(kind))


_STRICT: Final = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
_OPEN: Final = ConfigDict(strict=True, extra="allow")


@with_config(_OPEN)
class _Function(TypedDict):
    name: Annotated[str, Field(min_length=1)]
    parameters: NotRequired[Mapping[str, Any] | None]


@with_config(_OPEN)
class _Typed(TypedDict):
    type: str
    function: NotRequired[Annotated[_Function, Strict(False)]]


@with_config(_OPEN)
class _Format(TypedDict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NotRequired[Mapping[str, Any]]


@with_config(_OPEN)
class _Message(TypedDict):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: NotRequired[str | Sequence[Annotated[_Typed, Strict(False)]] | None]


Prompt: TypeAlias = Annotated[
    str | Sequence[Message],
    _validated_as(str | Annotated[Sequence[Annotated[_Message, Strict(False)]], Field(min_length=1)]),
    'a text or a list of messages: {"role": "user", "content": "…"}. A role is system, developer, user, assistant or '
    "tool. A content is a text, or a list of parts with a type",
]
Temperature: TypeAlias = Annotated[float, Field(ge=0)]
_Tool: TypeAlias = Annotated[_Typed, Strict(False), AfterValidator(_require_field)]
_Label: TypeAlias = Annotated[str, Field(pattern=r"^[^\W\d]\w*$", max_length=200)]
_LabelText: TypeAlias = Annotated[str, Field(max_length=200), AfterValidator(_require_printable)]
_LabelNumber: TypeAlias = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # as OpenTelemetry's integers


class Options(TypedDict, Generic[Parsed], total=False):
    """The optional keywords of ``generate``, ``stream`` and ``complete``.

    Attributes:
        system: the system message.
        response_format: the format of the answer, as OpenAI's dict or a pydantic class.
        tools, tool_choice, stop, seed, top_p, top_k, min_p, frequency_penalty, presence_penalty: see OpenAI's API. It
            lacks ``top_k`` and ``min_p``, which some servers support.
        n: the number of answers. Only 1 is supported.
        reasoning: True and False turn thinking on and off. A string is its level.
        timeout: the time limit of the call in seconds.
        session: the name of a group of requests with a common beginning. It is sent to clouds that route the requests
            of a group to one prompt cache.
        extra_body: fields that are added to the body of the request unchanged.
        resume: the action of a router if a stream breaks after text was emitted, see ``RouterProvider``.
        metadata: labels of the request, for example ``node`` or ``user``. Events, log lines and spans contain them;
            metrics contain only ``node``. They are not sent to a provider.
    """

    system: str
    response_format: Annotated[
        dict[str, Any] | type[Parsed],
        _validated_as(type[BaseModel] | Annotated[_Format, AfterValidator(_require_field)]),
        AfterValidator(_require_json),
        "a pydantic class, or a dict of type text, json_object or json_schema (with its schema)",
    ]
    tools: Annotated[
        Sequence[Mapping[str, Any]],
        _validated_as(Sequence[_Tool]),
        AfterValidator(_require_json),
        'a list of tools that JSON can represent: {"type": "function", "function": {"name": "…", "parameters": {…}}}',
    ]
    tool_choice: Annotated[str | Mapping[str, Any], _validated_as(str | _Tool), "a text, or a dict with a type"]
    stop: Annotated[str | Sequence[str], "a text or a list of texts"]
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    n: Annotated[Literal[1], "1: a call has one answer. Call it several times, with asyncio.gather for instance"]
    top_p: _Fraction
    top_k: Annotated[int, Field(ge=-1, lt=2**53)]  # vLLM: -1 for all
    min_p: _Fraction
    frequency_penalty: float
    presence_penalty: float
    reasoning: Reasoning
    timeout: Seconds
    session: Annotated[
        str,
        Field(min_length=1, max_length=200),
        AfterValidator(_require_printable),
        "a text of 1 to 200 printable characters",
    ]
    extra_body: Annotated[Mapping[str, Any], AfterValidator(_require_json), "a dict that JSON can represent"]
    resume: Resume
    metadata: Annotated[
        Mapping[str, str | int | float | bool | None],
        _validated_as(Mapping[_Label, _LabelText | bool | _LabelNumber | InstanceOf[float] | None]),
        Field(max_length=16),
        "a dict of at most 16 entries: a name, and a printable text of 200 characters, a number or a bool",
    ]


class TimeOptions(TypedDict, total=False):
    """The timeouts of a provider in seconds, and its limits; see ``timeouts.Times``.

    A missing one is read from the environment (``LLM_CONNECT_TIMEOUT``, ``<NAME>_MAX_CONCURRENCY`` and so on).
    """

    connect_timeout: Seconds
    first_token_timeout: Seconds
    gap_timeout: Seconds
    deadline: Seconds
    local_only: bool
    max_concurrency: Count


_NO_LOGPROBS: Final = "Another model may continue an answer, so that the probabilities of its tokens mean nothing"
_HINTS: Final = {  # for keywords of other libraries
    "logprobs": _NO_LOGPROBS,
    "top_logprobs": _NO_LOGPROBS,
    "num_ctx": "Set <NAME>_CONTEXT, in tokens. Without it, the context length grows if the server allows that",
}
_MAX_FAULT_CHARS: Final = 500


def check_keywords(
    function: Callable[..., Any], values: Mapping[str, Any], error: type[LLMError], provider: str | None = None
) -> None:
    """Check the arguments of a function by its annotations. No value is changed.

    Args:
        function: the function. A text in an annotation describes the valid values.
        values: the arguments by name. An argument with a default may be None.
        error: the class of the error, which names the keyword and the type of its value, but not the value.
        provider: the name of the provider, for the error.

    Raises:
        LLMError: a keyword does not exist, or its value is invalid.
    """
    hints, adapter = _keywords_of(function)
    try:
        adapter.validate_python(values)
    except ValidationError as invalid:
        name, fault = next(iter(describe_faults(invalid, hints).items()))
    else:
        return
    if name in hints:
        raise error(f"{name}= {fault}", hint="Change or remove it", provider=provider)
    similar = difflib.get_close_matches(name, hints, 1)
    hint = f"Did you mean {similar[0]}=?" if similar else f"The keywords are {', '.join(hints)}."
    hint += " Parameters of one server go into extra_body=" if "extra_body" in hints else ""
    raise error(f"there is no keyword {name}=", hint=_HINTS.get(name, hint), provider=provider)


@cache
def _keywords_of(function: Callable[..., Any]) -> tuple[dict[str, Any], TypeAdapter[Any]]:
    """Return the annotations of the keywords of a function, and the adapter that validates them."""
    hints = get_type_hints(function, include_extras=True)
    del hints["return"]
    *_, (last, parameter) = signature(function).parameters.items()
    if parameter.kind is parameter.VAR_KEYWORD:
        hints |= get_type_hints(get_args(hints.pop(last))[0], include_extras=True)
    fields = {name: hint if name == "prompt" else hint | None for name, hint in hints.items()}
    keywords: Any = TypedDict("keywords", fields, total=False)  # type: ignore[misc]  # for a type checker
    return hints, TypeAdapter(with_config(_STRICT)(keywords))


def describe_faults(invalid: ValidationError, hints: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the fault of each value, by its name: the valid values, and the type of the given one.

    Args:
        invalid: the error of pydantic.
        hints: the annotations by name. A text in an annotation replaces pydantic's description of valid values.
    """
    details = invalid.errors(include_url=False, include_context=False)
    groups = groupby(details, key=lambda fault: str(fault["loc"][0]))  # a union has a fault for each of its types
    return {name: _describe([*group], (hints or {}).get(name)) for name, group in groups}


def _describe(faults: Sequence[ErrorDetails], hint: Any) -> str:
    deepest = max(faults, key=lambda fault: len(fault["loc"]))
    place = "".join(f"[{index}]" for index in deepest["loc"] if isinstance(index, int))
    given = f"(given: {type(deepest['input']).__name__}{place and f' at {place}'})"
    messages = dict.fromkeys(fault["msg"].partition(", unable to")[0] for fault in faults)
    message = " or ".join(text.removeprefix("Input should be ") for text in messages)[:_MAX_FAULT_CHARS]
    rule = next((note for note in getattr(hint, "__metadata__", ()) if isinstance(note, str)), None)
    if message.startswith("Value error, ") and not rule:
        return f"is invalid: {message.removeprefix('Value error, ')} {given}"
    return f"must be {rule or message} {given}"


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one call. Its repr shows no text.

    Attributes:
        prompt, model, temperature, max_tokens: see ``LLMProvider.generate``.
        options: the optional keywords except ``metadata``, see ``Options``.
        method: the name of the called method.
        metadata: the labels of the request.
    """

    prompt: Prompt = field(repr=False)
    model: str | None = None
    temperature: float = DEFAULT_TEMPERATURE
    max_tokens: int = DEFAULT_MAX_TOKENS
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    method: Method = "complete"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def checked(self) -> Call:
        """Return the call without keywords that are None. Raise InvalidRequest if a value is invalid."""
        given: dict[str, Any] = {"prompt": self.prompt, "model": self.model, "temperature": self.temperature}
        given |= {"max_tokens": self.max_tokens, **self.options}
        check_keywords(AbstractProvider.stream, given, InvalidRequest)
        options = {name: value for name, value in self.options.items() if value is not None and name != "n"}
        if options.get("tools") and self.method == "generate":
            raise InvalidRequest(
                "generate() does not support tools: it returns only text", hint="Use complete() or stream()"
            )
        return replace(self, metadata=dict(options.pop("metadata", {})), options=options)

    @property
    def buffered(self) -> bool:
        """Return whether the caller receives the answer in one piece."""
        return self.method != "stream"

    @property
    def is_continuable(self) -> bool:
        """Return whether an interrupted answer can be continued. JSON and buffered tool calls cannot."""
        schema = self.options.get("response_format")
        is_text = schema is None or (isinstance(schema, Mapping) and schema.get("type") == "text")
        return is_text and not (self.options.get("tools") and self.buffered)


@dataclass(frozen=True, slots=True)
class Slot:
    """One of the requests that the concurrency limit of a server address allows.

    Attributes:
        address: the address of the server.
        loop: the event loop of the request that has the slot.
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
        request: the number of the request in this process.
        patience: a limit of the seconds to the first token, if it is lower than the provider's timeout; None if not.
        prefix: the interrupted text, to be sent as a prefill; None without a prefill.
        thinking: the thinking before ``prefix``.
        slot: the slot that the router has acquired; None if the attempt must acquire one.
        metadata: the labels of the request.
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
        """Return the prefill with its thinking, in the format of the model."""
        return (f"<think>{self.thinking}</think>" if self.thinking else "") + (self.prefix or "")


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
                If no model is configured, the loaded one is used, else the only one. A router sends the name to the
                providers that have the model. Other providers use their default model.
            temperature: the sampling temperature. The default is removed if the model rejects it.
            max_tokens: the longest answer, in tokens. A shortened answer is returned, with a warning event. The default
                is removed if the model rejects it.
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
            model: the model's name at the provider; None for the configured one, see ``generate``.
            temperature: the sampling temperature. The default is removed if the model rejects it.
            max_tokens: the longest answer, in tokens. The default is removed if the model rejects it.
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
            model: the model's name at the provider; None for the configured one, see ``generate``.
            temperature: the sampling temperature. The default is removed if the model rejects it.
            max_tokens: the longest answer, in tokens. The default is removed if the model rejects it.
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
    """Base of the providers of this package. It implements ``generate``, ``stream`` and ``complete`` with ``start``."""

    @abstractmethod
    def start(self, call: Call) -> Work:
        """Return the work of a call. Nothing is sent before it runs.

        Raises:
            InvalidRequest: a keyword or a value is invalid.
            Unsupported: the provider does not support a keyword.
        """

    async def _run_call(self, call: Call) -> Completion:
        """Run a call in the caller's task, and drop its events."""
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
        return (await self._run_call(Call(prompt, model, temperature, max_tokens, more, "generate").checked())).text

    @override
    def stream(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: Temperature = DEFAULT_TEMPERATURE,
        max_tokens: Count = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options],
    ) -> TextStream:
        return TextStream(self.start(Call(prompt, model, temperature, max_tokens, more, "stream").checked()))

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
