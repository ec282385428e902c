"""What a provider answers: a completion, whole or as it comes.

Must never know how an answer is got, or what was asked.
Everybody may import it.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, field, replace
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeAlias, cast

from typing_extensions import TypeVar  # with defaults, which typing has from Python 3.13 on

from .errors import InvalidRequest, LLMError, bare

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
        progress: of the load, from 0 to 1; None where the server does not tell.
    """

    reason: Literal["queue", "load", "retry"]
    provider: str
    model: str | None = None
    progress: float | None = None


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
_ONCE: Final = "Ask again for another stream"
_LOOK_S: Final = 1.0  # seconds of silence after which it is told what is waited for
_BUFFERED: Final = 64  # events that may wait for their reader; then the server waits, too
_leaving: Final = set[asyncio.Task[None]]()  # whose streams were dropped


class Emit:
    """Where a request says what happens, while it happens. This one is of ``generate`` and ``complete``: nobody looks.

    Attributes:
        everything: thinking, tool calls and waiting are seen, not the text alone.
    """

    everything: bool = False

    def __call__(self, event: Event) -> None:
        """Something happened."""

    async def room(self) -> None:
        """Until the reader has taken enough: a slow one slows the server."""

    @contextmanager
    def waits(self, waiting: Waiting) -> Generator[None, None, None]:  # noqa: ARG002  # nobody looks
        """What the block waits for."""
        yield

    def loaded(self, progress: float) -> None:
        """How far the load is that is waited for."""


Work: TypeAlias = Callable[[Emit], Coroutine[Any, Any, Completion]]
"""A request that was checked and not yet begun; returns the completion, and raises only LLMErrors."""


class _Channel(Emit):
    """The one buffer between the task of a request and its reader."""

    def __init__(self, *, everything: bool) -> None:
        self.everything = everything
        self.events: deque[Event] = deque()
        self.outcome: Completion | BaseException | None = None
        self.reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._waiting: Waiting | None = None
        self._told = math.inf  # since when nothing was told
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, event: Event) -> None:
        if self.everything:
            self._told = self._loop.time()
        elif not isinstance(event, TextDelta):
            return
        self.events.append(event)
        _wake(self.reader)

    async def room(self) -> None:
        while len(self.events) >= _BUFFERED:
            self._writer = self._loop.create_future()
            await self._writer

    async def arrival(self) -> None:
        """Until there is an event, or it is over."""
        while not self.events and self.outcome is None:
            self.reader = self._loop.create_future()
            try:
                await self.reader
            finally:
                self.reader = None

    def take(self) -> Event:
        """The next event."""
        event = self.events.popleft()
        if self._writer and len(self.events) < _BUFFERED:
            _wake(self._writer)
        return event

    async def run(self, work: Work) -> None:
        """The task of the request."""
        try:
            self.outcome = await work(self)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # the reader's
            self.outcome = error
        finally:
            _wake(self.reader)

    @contextmanager
    def waits(self, waiting: Waiting) -> Generator[None, None, None]:
        outer, self._waiting = self._waiting, waiting
        self._told = min(self._told, self._loop.time())
        if self.everything and self._timer is None:
            self._look()
        try:
            yield
        finally:
            self._waiting = outer

    def loaded(self, progress: float) -> None:
        if self._waiting and self._waiting.reason == "load":
            self._waiting = replace(self._waiting, progress=progress)

    def _look(self) -> None:
        """Look again whether it is to be told what is waited for: many short waits in a row are a long one."""
        within = max(_LOOK_S / 10, self._told + _LOOK_S - self._loop.time())
        self._timer = self._loop.call_later(within, self._tick) if self._waiting else None

    def _tick(self) -> None:
        if self._waiting and self._loop.time() >= self._told + _LOOK_S and not self.events:
            self(self._waiting)
        self._look()


def _wake(future: asyncio.Future[None] | None) -> None:
    if future and not future.done():
        future.set_result(None)


class TextStream(AsyncIterator[str]):
    """The text of one answer, piece by piece as it arrives; ``events()`` has everything else, too.

    Iterate it once. Leaving an ``async with``, ``aclose()``, cancelling the task, and leaving a ``for`` over an unnamed
    stream close the connection at once, which makes the server stop. ``completion`` is there when the stream has ended.

    Args:
        work: the request; it runs in a task of its own from the first piece that is asked for.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._channel: _Channel | None = None
        self._task: asyncio.Task[None] | None = None
        self._watched = self._failed = self._closed = False

    @property
    def completion(self) -> Completion:
        """The whole answer. Raises InvalidRequest while the stream has not ended."""
        done = self._channel and not self._channel.events and self._channel.outcome
        if not isinstance(done, Completion):
            raise InvalidRequest(
                "the stream has no completion: it has not ended, or it failed",
                hint="Read .completion after the last piece",
            )
        return done

    async def __anext__(self) -> str:
        if self._watched:
            raise InvalidRequest("the stream is being read by its events", hint=_ONCE)
        channel = self._channel
        if channel and channel.events and channel.reader is None and not self._closed:  # most pieces
            event = channel.take()
        else:
            event = await self._next(everything=False)
        return cast(TextDelta, event).text  # nothing else where nobody watches

    async def _next(self, *, everything: bool) -> Event:
        channel = self._channel
        if channel is None:
            if self._closed:
                raise StopAsyncIteration
            channel = self._channel = _Channel(everything=everything)
            self._task = asyncio.create_task(channel.run(self._work))
        if self._failed or channel.reader:
            what = "the stream has failed" if self._failed else "the stream is being read by another task"
            raise InvalidRequest(what, hint=_ONCE)
        if not channel.events and not self._closed:
            try:
                await channel.arrival()
            except asyncio.CancelledError:
                self._failed = True
                await self._left()
                raise
        if self._closed:
            raise StopAsyncIteration
        if channel.events:
            return channel.take()
        if isinstance(channel.outcome, Completion):
            raise StopAsyncIteration
        self._failed = True
        assert channel.outcome  # noqa: S101  # it is over
        raise bare(channel.outcome) if isinstance(channel.outcome, LLMError) else channel.outcome

    async def events(self) -> AsyncGenerator[Event, None]:
        """Everything that happens: text, thinking, tool calls, waiting, failover; at the end ``Finished``.

        What was given is never taken back: all ``TextDelta`` joined are the completion's text. Instead of the stream,
        not beside it; leaving it closes the connection, as leaving the stream does.

        Raises:
            InvalidRequest: the stream was read already, or is.
            LLMError: as the stream does; where a piece of a tool call was given, it is not asked for again.
        """
        if self._channel or self._watched:
            raise InvalidRequest("the stream was begun already: events() has to be its only reader", hint=_ONCE)
        self._watched = True
        async with self:
            while True:
                try:
                    event = await self._next(everything=True)
                except StopAsyncIteration:
                    break
                yield event
            done = self._channel and self._channel.outcome
            if isinstance(done, Completion):
                yield Finished(done)

    async def whole(self) -> Completion:
        """Read it to its end, for who wants no pieces; returns the completion."""
        async with self:
            async for _ in self:
                pass
        return self.completion

    async def aclose(self) -> None:
        """Close the connection; the server stops. A task that waits for a piece sees the end of the stream."""
        self._closed = True
        await self._left()

    async def _left(self) -> None:
        """End the task, and wait for its end."""
        task, self._work = self._task, _nothing
        if task and not task.done():
            if not task.cancelling():
                task.cancel()
            await asyncio.wait([task])

    def __del__(self) -> None:
        task = self._task
        if task and not task.done():
            with suppress(RuntimeError):  # its loop was closed
                task.get_loop().call_soon_threadsafe(_leave, task)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def _nothing(emit: Emit) -> Completion:  # noqa: ARG001
    raise InvalidRequest("the stream was closed", hint=_ONCE)


def _leave(task: asyncio.Task[None]) -> None:
    """Nobody has the stream any more: its task is ended, and kept until then."""
    _leaving.add(task)
    task.add_done_callback(_leaving.discard)
    task.cancel()
