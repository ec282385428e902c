"""What a provider answers: a completion, whole or as it comes.

Must never know how an answer is got, or what was asked.
Everybody may import it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from dataclasses import astuple, dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, TypeVar

from .errors import InvalidRequest, LLMError, bare

_T = TypeVar("_T")

Finish: TypeAlias = Literal["stop", "length", "tool_calls"]


class ServedModel(str):  # noqa: SLOT000  # two attributes are the point
    """The name of the model that answered; ``asked`` is the name that was sent, ``served`` what the server said."""

    asked: str
    served: str | None

    def __new__(cls, asked: str, served: str | None = None) -> Self:
        """The text is the served name where there is one."""
        self = super().__new__(cls, served or asked)
        self.asked, self.served = asked, served
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[str, str | None]]:
        return type(self), (self.asked, self.served)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the server counted them; what it did not say is None."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None

    def __add__(self, other: Usage) -> Usage:
        """Those of both; what one of them does not say is unknown."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Usage(*(None if None in pair else sum(pair) for pair in pairs))


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model wants called: ``arguments`` parsed from the JSON that it wrote."""

    id: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer, and everything known about it.

    Attributes:
        text: the answer, thinking removed, not a character changed.
        reasoning: what the model thought, None where it showed none.
        parsed: the instance, where ``response_format`` was a pydantic class.
        finish: "stop", "length" (the caller's ``max_tokens`` was reached) or "tool_calls".
        model: the served name, with ``.asked`` and ``.served``.
        cost: in US dollars, None where it is not known, 0.0 for a server of one's own.
        first_token_s, total_s: seconds from sending the request to the first token and to the end.
        attempts: how often a provider was asked; resumed: how often a broken answer was continued.
    """

    text: str
    finish: Finish
    provider: str
    model: ServedModel
    reasoning: str | None = None
    parsed: Any = None
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage = Usage()
    cost: float | None = None
    first_token_s: float | None = None
    total_s: float = 0.0
    attempts: int = 1
    resumed: int = 0

    def __repr__(self) -> str:  # an answer is the user's: it does not belong into a log that prints objects
        return (
            f"<Completion {self.provider} {str(self.model)!r} finish={self.finish} "
            f"{len(self.text)} characters in {self.total_s:.2f} s>"
        )


class Answering:
    """Where a stream leaves its completion when it has ended; shared, so that neither end keeps the other alive.

    ``unfit`` is a whole answer that failed its schema, where there was one: it has cost something, too.
    """

    __slots__ = ("completion", "unfit")

    def __init__(self) -> None:
        self.completion: Completion | None = None
        self.unfit: Completion | None = None


class Nested(AsyncIterator[_T]):
    """A generator that another generator iterates and closes, and of which the event loop is not told.

    A loop that is shut down closes the asynchronous generators that it knows (PEP 525), all at once: one that is nested
    would be closed twice, by the loop and by the one around it ("asynchronous generator is already running").
    """

    __slots__ = ("_begun", "_pieces")

    def __init__(self, pieces: AsyncGenerator[_T, None]) -> None:
        self._pieces = pieces
        self._begun = False

    def __anext__(self) -> Awaitable[_T]:
        if self._begun:
            return self._pieces.__anext__()
        self._begun = True
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(None, None)  # they are called here, when a generator is asked for the first time
        try:
            return self._pieces.__anext__()
        finally:
            sys.set_asyncgen_hooks(*hooks)

    async def aclose(self) -> None:
        """Close it."""
        if self._begun:
            await self._pieces.aclose()


class TextStream(AsyncIterator[str]):
    """The pieces of one answer as they arrive.

    Iterate it once. Leaving an ``async with``, ``aclose()``, cancelling the task, and leaving a ``for`` over an unnamed
    stream close the connection at once, which makes the server stop. ``completion`` is there when the stream has ended.
    """

    def __init__(self, pieces: AsyncGenerator[str, None], answering: Answering) -> None:
        self._pieces: AsyncGenerator[str, None] | Nested[str] = pieces
        self._answering = answering
        self._reader: asyncio.Task[object] | None = None
        self._left: asyncio.Event | None = None  # somebody closes; set when that is done
        self._failed = False

    @property
    def completion(self) -> Completion:
        """The whole answer. Raises InvalidRequest while the stream has not ended."""
        if self._answering.completion is None:
            raise InvalidRequest(
                "the stream has no completion: it has not ended, or it failed",
                hint="Read .completion after the last piece",
            )
        return self._answering.completion

    async def __anext__(self) -> str:
        if self._left is not None:
            raise StopAsyncIteration
        if self._reader is not None or self._failed:
            what = "the stream has failed" if self._failed else "the stream is being read by another task"
            raise InvalidRequest(what, hint="Ask again for another stream")
        reader = self._reader = asyncio.current_task()
        cancelled = reader.cancelling() if reader else 0
        try:
            return await self._pieces.__anext__()
        except asyncio.CancelledError:
            self._failed = True
            if self._left is None or reader is None or reader.uncancel() > cancelled:
                raise  # not only by aclose()
        except LLMError as error:
            self._failed = True
            raise bare(error)  # noqa: B904  # that is what it does
        finally:
            self._reader = None
            if self._left is not None:
                self._left.set()
        raise StopAsyncIteration

    def nested(self) -> Self:
        """The same stream, for a generator that reads it; see ``Nested``."""
        if not isinstance(self._pieces, Nested):
            self._pieces = Nested(self._pieces)
        return self

    async def whole(self) -> Completion:
        """Read it to its end, for who wants no pieces; returns the completion."""
        async with self:
            async for _ in self:
                pass
        return self.completion

    async def aclose(self) -> None:
        """Close the connection; the server stops. A task that waits for a piece sees the end of the stream."""
        if self._left is None:
            self._left = asyncio.Event()
            if self._reader is None:
                try:
                    await self._pieces.aclose()
                finally:
                    self._left.set()
            else:
                self._reader.cancel()
        await self._left.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
