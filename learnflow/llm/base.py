"""The vocabulary: what a provider is, and what it is asked.

Must never know how an answer is got: no network, no library, no environment.
Everybody may import it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from asyncio import AbstractEventLoop
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, Protocol, TypeAlias, TypedDict, Unpack, runtime_checkable

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
    """A default of ours: left out where a model refuses it; a caller's own 0.7 is not."""


class _DefaultInt(int):
    """A default of ours: left out where a model refuses it; a caller's own 1000 is not."""


DEFAULT_TEMPERATURE: Final[float] = _DefaultFloat(0.7)
DEFAULT_MAX_TOKENS: Final[int] = _DefaultInt(1000)


class AtMost(int):
    """``max_tokens`` as a ceiling instead of a demand, in tokens.

    It is lowered to what the context that is served leaves, and left out where a model refuses it, with an event.
    """


def may_be_left_out(value: object) -> bool:
    """Whether a model that refuses it may be asked without: a default of ours, or a ceiling."""
    return isinstance(value, (_DefaultFloat, _DefaultInt, AtMost))


class Options(TypedDict, Generic[Parsed], total=False):
    """The keywords that ``generate``, ``stream`` and ``complete`` take beside the first four.

    ``response_format`` is OpenAI's dict or a pydantic class; ``reasoning`` switches thinking on, off, or to a level;
    ``timeout`` is the deadline of this call in seconds; ``extra_body`` is sent in the request's body as it is;
    ``session`` names requests that begin alike, for a cloud that keeps them near one cache (others are not sent it);
    ``n`` may be 1 only: there is one answer to a call. ``resume`` is a router's: what is done with a stream that
    breaks. ``metadata`` says whose request it is (``node``, ``user``): it goes into events, log and spans, ``node``
    into metrics, and never to a provider.
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
    """Budgets in seconds, locality, and how many requests are sent at once (the others wait).

    What is not given comes from the environment (``LLM_CONNECT_TIMEOUT`` ..., ``<NAME>_MAX_CONCURRENCY``).
    """

    connect_timeout: float
    first_token_timeout: float
    gap_timeout: float
    deadline: float
    local_only: bool
    max_concurrency: int


@dataclass(frozen=True, slots=True)
class Call:
    """What a caller asks; its repr shows no text.

    Attributes:
        prompt, model, temperature, max_tokens: see ``LLMProvider.generate``.
        options: the other keywords, see ``Options``; ``metadata`` among them is taken out.
        method: by which of the three it was asked.
        metadata: whose request it is.

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
            object.__setattr__(self, "metadata", _labels(self.options["metadata"]))
            object.__setattr__(self, "options", others)
        if self.options.get("tools") and self.method == "generate":
            raise InvalidRequest("tools need complete() or stream(): a text alone cannot carry a call")
        limit = self.options.get("timeout")
        number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
        if limit is not None and not (number and 0 < limit < math.inf):
            raise InvalidRequest("timeout= must be a number of seconds, more than 0")

    @property
    def whole(self) -> bool:
        """Whether nobody is watching the pieces."""
        return self.method != "stream"

    @property
    def rigid(self) -> bool:
        """Whether its answer has a form that cannot be continued: JSON, or tool calls that nobody has seen yet."""
        wanted = self.options.get("response_format")
        free = wanted is None or (isinstance(wanted, Mapping) and wanted.get("type") == "text")
        return bool(self.options.get("tools") and self.whole) or not free


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
        prefix: the text that the attempt continues; None to begin.
        thinking: the thinking before that text.
        slot: the slot that the router has taken for it; None if the attempt waits for its own.
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


_LABELS: Final = 16
_LABEL: Final = 200  # characters


def _labels(said: Any) -> dict[str, Any]:
    """Metadata that can go into a log. Raises InvalidRequest."""
    good = isinstance(said, Mapping) and len(said) <= _LABELS
    for name, value in said.items() if good else ():
        good = good and isinstance(name, str) and name.isidentifier() and len(name) <= _LABEL
        good = good and isinstance(value, str | int | float | bool | None) and len(str(value)) <= _LABEL
        good = good and (type(value) is not int or abs(value) < 2**63)  # what OpenTelemetry can hold
        good = good and str(value).isprintable()
    if said is not None and not good:
        wanted = f"{_LABELS} entries at most: a name, and a printable text of {_LABEL} characters, a number or a bool"
        raise InvalidRequest(f"metadata= must be a dict of {wanted}")
    return dict(said or {})


@runtime_checkable
class LLMProvider(Protocol):
    """Whoever answers prompts: one server, or a router over several. Every error is an ``LLMError``."""

    @property
    def name(self) -> str:
        """The name it goes by in ``LLM_PROVIDER``, logs and errors."""
        ...

    async def generate(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options],
    ) -> str:
        """The text of the answer.

        Args:
            prompt: a text, or OpenAI-style messages with text and image parts.
            model: its name at this provider; where None the configured one (for pictures ``vision_model``), the one
                that is loaded, or the only one. A router gives it to those who have it; the others use their own.
            temperature: left out where the model refuses our default.
            max_tokens: of the answer, likewise; an answer that ends there is returned with a warning event.
            more: see ``Options``; no tools here: use ``complete`` or ``stream``.

        Returns:
            The text, whole: an answer that is not raises.

        Raises:
            LLMError: whatever kept the answer from being whole; ``.partial`` holds what had arrived.
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
        """The same, piece by piece; nothing is sent before the first piece is asked for.

        Args:
            prompt: as in ``generate``, as for what follows.
            model: as there.
            temperature: as there.
            max_tokens: as there.
            more: see ``Options``; ``tools`` are taken.

        Returns:
            The stream: its text when it is iterated, everything by ``events()``, and in the end its ``completion``.

        Raises:
            InvalidRequest, Unsupported: the call cannot be sent as it is. All other errors come while it is read.
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
        """The answer and everything known about it.

        Args:
            prompt: as in ``generate``, as for what follows.
            model: as there.
            temperature: as there.
            max_tokens: as there.
            more: see ``Options``; ``tools`` are taken.

        Returns:
            The completion; with ``response_format=Quiz`` a ``Completion[Quiz]``, whose ``parsed`` is the instance.

        Raises:
            LLMError: as ``generate``.
        """
        ...

    async def list_models(self) -> list[str]:
        """The names that ``model=`` may take; loads nothing.

        Returns:
            The names; of a router those of all its providers that answer.

        Raises:
            LLMError: none could be asked.
        """
        ...

    async def health_check(self) -> bool:
        """Whether it would answer now; costs nothing, loads nothing, carries no user text.

        Returns:
            True where it is ready; False for whatever keeps it from answering.

        Raises:
            NotRecorded: LLM_REPLAY has no such page; nothing else is ever raised.
        """
        ...

    def get_capabilities(self) -> Capabilities:
        """What is known about it, at once.

        Returns:
            A dict, in which None means unknown; see ``Capabilities``.
        """
        ...


class AbstractProvider(LLMProvider):
    """``generate``, ``stream`` and ``complete``, written once over ``start``."""

    @abstractmethod
    def start(self, call: Call) -> Work:
        """The request for a call; nothing is sent before it is run.

        Raises:
            InvalidRequest, Unsupported: the call cannot be sent as it is.
        """

    async def _whole(self, call: Call) -> Completion:
        """The answer, for who wants no pieces: no task, no buffer."""
        try:
            return await self.start(call)(Emit())
        except LLMError as error:
            raise bare(error)  # noqa: B904  # that is what it does

    async def generate(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options],
    ) -> str:
        """The text of the answer; see ``LLMProvider.generate``."""
        return (await self._whole(Call(prompt, model, temperature, max_tokens, more, "generate"))).text

    def stream(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options],
    ) -> TextStream:
        """The answer piece by piece; see ``LLMProvider.stream``."""
        return TextStream(self.start(Call(prompt, model, temperature, max_tokens, more, "stream")))

    async def complete(
        self,
        prompt: Prompt,
        model: str | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        **more: Unpack[Options[Parsed]],
    ) -> Completion[Parsed]:
        """The answer and everything known about it; see ``LLMProvider.complete``."""
        return await self._whole(Call(prompt, model, temperature, max_tokens, more, "complete"))
