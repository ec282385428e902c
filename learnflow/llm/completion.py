"""What a provider answers: a completion, whole or as it comes.

Must never know how an answer is got, or what was asked.
Everybody may import it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Coroutine, Generator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeAlias, cast

from typing_extensions import TypeVar  # with defaults, which typing has from Python 3.13 on

from .errors import InvalidRequest, LLMError, bare

_T = TypeVar("_T")
Parsed = TypeVar("Parsed", default=Any)

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
    """A tool that the model wants called: ``arguments`` parsed from the JSON that it wrote; its repr shows none."""

    id: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)  # with slots, Completion[Quiz](…) is a TypeError in Python 3.11
class Completion(Generic[Parsed]):
    """A whole answer, and everything known about it; ``Completion[Quiz]`` where ``response_format=Quiz`` was asked for.

    Attributes:
        text: the answer, thinking removed, not a character changed.
        reasoning: what the model thought, None where it showed none.
        parsed: the instance where ``response_format`` was a pydantic class, the JSON where it was a dict; else None.
            None also where tools were called instead, or where a dict was asked for and ``finish`` is "length".
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
    parsed: Parsed = cast(Any, None)  # noqa: RUF009  # no call of anything
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


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer's text; its repr shows none of it."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of the thinking; its repr shows none of it."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call; its repr shows no arguments.

    Attributes:
        index: of the call in this answer, from 0.
        id, name: of the call; the same in each of its pieces.
        arguments: the new piece of the JSON text; whole only when all pieces are joined.
    """

    index: int
    id: str
    name: str
    arguments: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing arrives for now, and why; told once a second while it lasts.

    Attributes:
        reason: "queue" (for a free place), "load" (of the model), or "retry" (a pause before the next attempt).
        provider: who is waited for; several where any of them will do ("gpu1+gpu2").
        model: the one that is asked for; None where that is open.
    """

    reason: Literal["queue", "load", "retry"]
    provider: str
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Failover:
    """The next provider is asked, because this one failed.

    Attributes:
        provider, to: their names.
        error: the name of the error's class.
    """

    provider: str
    to: str
    error: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """The answer broke, and goes on where it stopped.

    Attributes:
        provider: who goes on with it.
        characters: of the text that was delivered.
    """

    provider: str
    characters: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is whole; the last event."""

    completion: Completion


Event: TypeAlias = TextDelta | ReasoningDelta | ToolCallDelta | Waiting | Failover | Resumed | Finished
# As they are handed up inside: a text as it is, and the other events only where somebody watches them.
Piece: TypeAlias = str | ReasoningDelta | ToolCallDelta | Waiting | Failover | Resumed
_ONCE: Final = "Ask again for another stream"
_LOOK_S: Final = 1.0  # seconds between two looks at what is waited for


class Watch:
    """What somebody who watches the events of an answer is told while nothing arrives.

    Attributes:
        waiting: what is waited for now.
        silent_since: since when nothing was told, by the loop's clock; None while pieces arrive.
    """

    __slots__ = ("silent_since", "waiting")

    def __init__(self) -> None:
        self.waiting: Waiting | None = None
        self.silent_since: float | None = None


class Watched(Generic[_T]):
    """Does something that may take long, and tells who watches what is waited for meanwhile.

    ``async with Watched(work, watch) as told:``, then ``while waiting := await told.waiting(): yield waiting``, then
    ``told.result``. Leaving the block ends the work. Where nobody watches, no task is made.

    Args:
        work: what is done.
        watch: of who watches; None where nobody does.
    """

    def __init__(self, work: Coroutine[Any, Any, _T], watch: Watch | None) -> None:
        self._work = work
        self._watch = watch
        self._task: asyncio.Task[_T] | None = None
        self.result: _T

    async def waiting(self) -> Waiting | None:
        """What is waited for, once a second; None when it is done. Raises what the work raises."""
        if self._watch is None:
            self.result = await self._work
            return None
        loop, watch = asyncio.get_running_loop(), self._watch
        self._task = self._task or asyncio.ensure_future(self._work)
        watch.silent_since = watch.silent_since or loop.time()  # many short waits in a row are a long one
        while True:
            within = max(_LOOK_S / 10, watch.silent_since + _LOOK_S - loop.time())
            if (await asyncio.wait([self._task], timeout=within))[0]:
                self.result = self._task.result()
                return None
            if watch.waiting and loop.time() >= watch.silent_since + _LOOK_S:
                watch.silent_since = loop.time()
                return watch.waiting

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is None:
            self._work.close()  # nothing where it is done
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)  # how it ended is known, or no matter any more


class Answering:
    """Where a stream leaves its completion when it has ended; shared, so that neither end keeps the other alive.

    Attributes:
        completion: the whole answer.
        unfit: a whole answer that failed its schema, where there was one: it has cost something, too.
        watch: of who watches the events; None where only the text is read.
    """

    __slots__ = ("completion", "unfit", "watch")

    def __init__(self) -> None:
        self.completion: Completion | None = None
        self.unfit: Completion | None = None
        self.watch: Watch | None = None

    @contextmanager
    def waits(self, waiting: Waiting) -> Generator[None, None, None]:
        """What the block waits for, for whoever watches."""
        before = self.watch.waiting if self.watch else None
        if self.watch:
            self.watch.waiting = waiting
        try:
            yield
        finally:
            if self.watch:
                self.watch.waiting = before


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
    """The text of one answer, piece by piece as it arrives; ``events()`` has everything else, too.

    Iterate it once. Leaving an ``async with``, ``aclose()``, cancelling the task, and leaving a ``for`` over an unnamed
    stream close the connection at once, which makes the server stop. ``completion`` is there when the stream has ended.
    """

    def __init__(self, pieces: AsyncGenerator[Piece, None], answering: Answering) -> None:
        self._pieces: AsyncGenerator[Piece, None] | Nested[Piece] = pieces
        self._answering = answering
        self._reader: asyncio.Task[object] | None = None
        self._left: asyncio.Event | None = None  # somebody closes; set when that is done
        self._failed = False
        self._begun = False
        self._watched = False  # it is read by its events

    @property
    def completion(self) -> Completion:
        """The whole answer. Raises InvalidRequest while the stream has not ended."""
        if self._answering.completion is None:
            raise InvalidRequest(
                "the stream has no completion: it has not ended, or it failed",
                hint="Read .completion after the last piece",
            )
        return self._answering.completion

    def __anext__(self) -> Coroutine[Any, Any, str]:
        if self._watched:
            raise InvalidRequest("the stream is being read by its events", hint=_ONCE)
        return self._next()

    async def _next(self) -> str:
        self._begun = True
        if self._left is not None:
            raise StopAsyncIteration
        if self._reader is not None or self._failed:
            what = "the stream has failed" if self._failed else "the stream is being read by another task"
            raise InvalidRequest(what, hint=_ONCE)
        reader = self._reader = asyncio.current_task()
        cancelled = reader.cancelling() if reader else 0
        try:
            return cast(str, await self._pieces.__anext__())  # nothing else where nobody watches
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

    def nested(self, watch: Watch | None = None) -> Self:
        """The same stream, for a generator that reads it; see ``Nested``. With a watch it gives every ``Piece``."""
        self._answering.watch = watch
        if not isinstance(self._pieces, Nested):
            self._pieces = Nested(self._pieces)
        return self

    async def events(self) -> AsyncGenerator[Event, None]:
        """Everything that happens: text, thinking, tool calls, waiting, failover; at the end ``Finished``.

        What was given is never taken back: all ``TextDelta`` joined are the completion's text. Instead of the stream,
        not beside it; leaving it closes the connection, as leaving the stream does.

        Raises:
            InvalidRequest: the stream was read already, or is.
            LLMError: as the stream does; where a piece of a tool call was given, it is not asked for again.
        """
        if self._begun or self._watched:
            raise InvalidRequest("the stream was begun already: events() has to be its only reader", hint=_ONCE)
        self._watched = True
        watch = Watch()
        async with self.nested(watch):
            while True:
                try:
                    piece: Piece = await self._next()
                except StopAsyncIteration:
                    break
                if not isinstance(piece, Waiting):
                    watch.silent_since = None
                yield TextDelta(piece) if isinstance(piece, str) else piece
        if self._answering.completion:
            yield Finished(self._answering.completion)

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
