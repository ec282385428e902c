"""The response of a provider as values: the completion, and the events of a stream.

Has no code that sends requests. Every module may import it.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field, replace
from typing import Any, Generic, Literal, Self, TypeAlias, cast

from typing_extensions import TypeVar  # with defaults, which typing has from Python 3.13 on

from .errors import LLMError

Parsed = TypeVar("Parsed", default=Any)

Finish: TypeAlias = Literal["stop", "length", "tool_calls"]


class ServedModel(str):  # noqa: SLOT000  # two attributes are the point
    """The name of the model that answered.

    Attributes:
        requested: the requested name.
        served: the name in the response; None if the response has none.
    """

    requested: str
    served: str | None

    def __new__(cls, requested: str, served: str | None = None) -> Self:
        """Return the served name if there is one, else the requested one."""
        self = super().__new__(cls, served or requested)
        self.requested, self.served = requested, served
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[str, str | None]]:
        return type(self), (self.requested, self.served)


@dataclass(frozen=True, slots=True)
class Usage:
    """The numbers of tokens that the server reported; None if it did not report them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None

    def __add__(self, other: Usage) -> Usage:
        """Return the sum. A number that either operand lacks is None."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Usage(*(None if None in pair else sum(pair) for pair in pairs))


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the model. ``arguments`` are the parsed JSON, which its repr does not show."""

    id: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)  # with slots, Completion[Quiz](…) is a TypeError in Python 3.11
class Completion(Generic[Parsed]):
    """A complete answer and its metadata; ``Completion[Quiz]`` if the call had ``response_format=Quiz``.

    Attributes:
        text: the answer without the thinking, otherwise unchanged.
        reasoning: the model's thinking; None if the response has none.
        parsed: the instance if ``response_format`` was a pydantic class, the parsed JSON if it was a dict. None without
            ``response_format``, or if the model called tools instead.
        finish: "stop", "length" (the caller's ``max_tokens`` was reached) or "tool_calls".
        model: the served name, with ``.requested`` and ``.served``.
        cost: in US dollars; None if unknown, 0.0 for a local server.
        first_token_s, total_s: seconds from the request to the first token and to the end.
        attempts: the number of attempts, including failed ones.
        resumed: the number of continuations after a broken stream.
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

    def without_text(self) -> Completion:
        """Return a copy without text of the answer, for events."""
        return replace(cast(Completion, self), text="", reasoning=None, parsed=None, tool_calls=())

    def __repr__(self) -> str:  # without the answer, which must not get into a log
        return (
            f"<Completion {self.provider} {str(self.model)!r} finish={self.finish} "
            f"{len(self.text)} characters in {self.total_s:.2f} s>"
        )


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer's text. Its repr does not show it."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of the thinking. Its repr does not show it."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call. Its repr does not show the arguments.

    Attributes:
        index: of the call in this answer, from 0.
        id, name: of the call, the same in all its pieces.
        arguments: the next piece of the JSON text. The pieces must be joined before they are parsed.
    """

    index: int
    id: str
    name: str
    arguments: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Waiting:
    """The request waits. Emitted once a second while there is no other event.

    Attributes:
        reason: "queue" (for a free slot), "load" (of the model), or "retry" (a pause before the next attempt).
        provider: the provider that the request waits for, or the names of several equals ("gpu1+gpu2").
        model: the requested model; None if it was not chosen yet.
    """

    reason: Literal["queue", "load", "retry"]
    provider: str
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Failover:
    """A provider failed, and the router sends the request to the next one.

    Attributes:
        provider, to: the names of the failed provider and of the next one.
        error: the failure.
    """

    provider: str
    to: str
    error: LLMError

    def __repr__(self) -> str:
        return f"Failover(provider={self.provider!r}, to={self.to!r}, error={type(self.error).__name__})"


@dataclass(frozen=True, slots=True)
class Resumed:
    """The stream broke, and a provider continues the text.

    Attributes:
        provider: the name of the provider that continues it.
        characters: the length of the text before the continuation.
        in_words: a prompt asks for the continuation, because the provider supports no prefill.
    """

    provider: str
    characters: int
    in_words: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """The completion; the last event."""

    completion: Completion


Event: TypeAlias = TextDelta | ReasoningDelta | ToolCallDelta | Waiting | Failover | Resumed | Finished
