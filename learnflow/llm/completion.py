"""The values that a provider returns: ``Completion``, and the events of a stream.

No repr shows text of an answer, because a repr may be logged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Generic, Literal, Self, TypeAlias, cast

from typing_extensions import TypeVar  # with defaults, which typing has from Python 3.13 on

from .errors import LLMError

Parsed = TypeVar("Parsed", default=Any)

Finish: TypeAlias = Literal["stop", "length", "tool_calls"]
Source: TypeAlias = Literal["stream", "call", "journal"]

# The fields of a message and of a tool call in OpenAI's API. A server can add "extra" fields, such as a signature of
# the thinking. Extra fields are sent back only to the server that sent them.
MESSAGE_FIELDS: Final = frozenset({"role", "content", "name", "tool_calls", "function_call", "refusal", "audio"})
CALL_FIELDS: Final = frozenset({"index", "id", "type", "function"})
ORIGIN_FIELD: Final = "learnflow_origin"  # contains ``Completion.origin``; removed before a message is sent


class ServedModel(str):  # noqa: SLOT000  # a str cannot have slots
    """The name of the model that answered: the name in the response, else the requested one.

    Attributes:
        served: the name in the response; None if the response has none.
    """

    requested: str
    served: str | None

    def __new__(cls, requested: str, served: str | None = None) -> Self:
        """Create the string from ``served``, else from ``requested``."""
        self = super().__new__(cls, served or requested)
        self.requested, self.served = requested, served
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[str, str | None]]:
        return type(self), (self.requested, self.served)


@dataclass(frozen=True, slots=True)
class Usage:
    """The token counts that the server reported; None for a count that it did not report."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None

    def __add__(self, other: Usage) -> Usage:
        """Add the counts. If one of two counts is unknown (None), so is their sum."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Usage(*(None if None in pair else sum(pair) for pair in pairs))


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call of the model.

    Attributes:
        extra: the fields that OpenAI's API does not define, such as a signature. Some servers require them in the next
            turn; see ``Completion.message``.
    """

    id: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict, repr=False)
    extra: dict[str, Any] = field(default_factory=dict, repr=False)


class CallId(str):  # noqa: SLOT000  # a str cannot have slots
    """The id of a tool call. ``answer`` is the result of ``Completion.message()`` that contains the call.

    Some callers build the next prompt without ``Completion.message()``. If a tool call in that prompt has this object
    as its id, ``restore_extra`` still finds the extra fields.
    """

    answer: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)  # no slots: Completion[Quiz](…) would be a TypeError in Python 3.11
class Completion(Generic[Parsed]):
    """An answer and its metadata; ``Completion[Quiz]`` if the call had ``response_format=Quiz``.

    Attributes:
        reasoning: the model's thinking, which ``text`` does not contain; None if the response has none.
        parsed: the instance if ``response_format`` was a pydantic class, the parsed JSON if it was a dict. None if
            ``response_format`` was not given, or if the model called tools instead.
        finish: "stop", "length" (a token limit was reached) or "tool_calls".
        cost: the cost in US dollars, 0.0 for a local server; None if unknown.
        first_token_s, total_s: seconds from the request to the first token and to the end.
        attempts: the number of attempts, including failed ones.
        resumed: how often a provider continued an interrupted text; see ``Resumed``.
        extra: the fields of the message that OpenAI's API does not define, for example ``reasoning_content``.
        origin: an identifier of the provider and address that sent ``extra``; None if unknown.
    """

    text: str
    finish: Finish
    provider: str
    model: ServedModel
    reasoning: str | None = None
    parsed: Parsed = cast(Any, None)  # noqa: RUF009  # cast() returns None
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage = Usage()
    cost: float | None = None
    first_token_s: float | None = None
    total_s: float = 0.0
    attempts: int = 1
    resumed: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    origin: str | None = None

    def without_text(self) -> Completion:
        """Return a copy without the answer, for log events."""
        return replace(cast(Completion, self), text="", reasoning=None, parsed=None, tool_calls=(), extra={})

    def message(self) -> dict[str, Any]:
        """Return the answer as a message for the next prompt. The message can be stored as JSON.

        The extra fields in the message are sent back only to the provider and address that sent them.
        """
        calls = []
        for call in self.tool_calls:
            function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
            calls.append({"id": str(call.id), "type": "function", "function": function, **call.extra})
        message = {"role": "assistant", "content": self.text, **({"tool_calls": calls} if calls else {}), **self.extra}
        has_extra = self.extra or any(call.extra for call in self.tool_calls)
        return message | ({ORIGIN_FIELD: self.origin} if self.origin and has_extra else {})

    def __repr__(self) -> str:
        length = f"{len(self.text)} characters in {self.total_s:.2f} s"
        return f"<Completion {self.provider} {str(self.model)!r} finish={self.finish} {length}>"


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer's text."""

    text: str

    def __repr__(self) -> str:
        return f"<TextDelta {len(self.text)} characters>"


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of the model's thinking."""

    text: str

    def __repr__(self) -> str:
        return f"<ReasoningDelta {len(self.text)} characters>"


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call.

    Attributes:
        index: the position of the tool call in the answer, from 0.
        id, name: the same in every piece of the tool call.
        arguments: the next piece of the JSON text. Join all pieces before you parse it.
    """

    index: int
    id: str
    name: str
    arguments: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Waiting:
    """The request is waiting. The event is emitted once a second during the wait.

    Attributes:
        reason: "queue" for a slot within the concurrency limit, "load" for the load of a model, or "retry" for the
            next attempt.
        provider: the provider, or several ("gpu1+gpu2").
        model: the model; None if it is not chosen yet.
    """

    reason: Literal["queue", "load", "retry"]
    provider: str
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Failover:
    """A provider failed, and the router sends the request to another provider."""

    provider: str
    to: str
    error: LLMError

    def __repr__(self) -> str:
        return f"Failover(provider={self.provider!r}, to={self.to!r}, error={type(self.error).__name__})"


@dataclass(frozen=True, slots=True)
class Resumed:
    """A provider continues an interrupted text.

    Attributes:
        characters: the length of the text before the continuation.
        by_instruction: True if an instruction in the prompt requested the continuation. False if the request
            contained the interrupted text as a prefill (the beginning of the answer).
        source: the source of the interrupted text: "stream" (a stream that broke), "call" (the caller's ``after=``), or
            "journal" (a file in ``LLM_JOURNAL``).
    """

    provider: str
    characters: int
    by_instruction: bool = False
    source: Source = "stream"


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a stream, with its completion."""

    completion: Completion


Event: TypeAlias = TextDelta | ReasoningDelta | ToolCallDelta | Waiting | Failover | Resumed | Finished


def add_extra(message: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    """Copy an assistant's message, and add the extra fields of ``answer`` and of its tool calls.

    ``answer`` is the result of ``Completion.message()`` for this message. Its standard fields can be missing. Tool
    calls are matched by id.
    """
    extra = {name: value for name, value in answer.items() if name not in MESSAGE_FIELDS}
    answer_calls = {call["id"]: call for call in answer.get("tool_calls", ())}
    calls = [{**answer_calls.get(str(call.get("id")), {}), **call} for call in message.get("tool_calls") or ()]
    return {**extra, **message, **({"tool_calls": calls} if calls else {})}


def restore_extra(message: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Copy a message for a request to a provider. Add the extra fields that this provider sent.

    If another provider sent the extra fields, remove them. ``origin`` is the ``Completion.origin`` of this provider.
    """
    calls: list[Mapping[str, Any]] = list(message.get("tool_calls") or ())
    answer: Mapping[str, Any] = next((call["id"].answer for call in calls if isinstance(call.get("id"), CallId)), {})
    restored = add_extra(message, answer) if answer else dict(message)
    if restored.pop(ORIGIN_FIELD, origin) == origin:
        return restored
    calls = [{name: call[name] for name in call if name in CALL_FIELDS} for call in calls]
    standard_fields = {name: restored[name] for name in restored if name in MESSAGE_FIELDS}
    return standard_fields | ({"tool_calls": calls} if calls else {})
