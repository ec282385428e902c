"""A request while it runs: how it emits its events, and the stream through which a caller reads them.

Must never know how a response is made: it runs the ``Work`` of a provider.
Everybody may import it.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, cast

from .completion import Completion, Event, Finished, ReasoningDelta, TextDelta, ToolCallDelta, Waiting
from .errors import InvalidRequest, LLMError, bare
from .process import ending

_ONCE: Final = "Call stream() again for another stream"
_NOTICE_S: Final = 1.0  # seconds of silence after which a Waiting event is emitted
MAX_READ_AHEAD: Final = 64  # events in the buffer; then the request reads no more, so that the server waits, too


class Emit:
    """Receives the events of a request while it runs. This base class drops them, for ``generate`` and ``complete``.

    Attributes:
        all_events: thinking, tool calls and waiting are read, not only text.
    """

    all_events: bool = False

    def __call__(self, event: Event) -> None:
        """Emit an event."""

    async def drain(self) -> None:
        """Wait until the reader has caught up, so that a slow reader slows the server."""

    def waiting(self, reason: Waiting) -> AbstractContextManager[None]:  # noqa: ARG002  # dropped, as the events are
        """Mark what the block waits for. The event is emitted if the wait is long."""
        return nullcontext()


Work: TypeAlias = Callable[[Emit], Coroutine[Any, Any, Completion]]
"""A checked request that has not started. It returns the completion, and raises nothing but LLMError."""


class Relay(Emit):
    """Base of the wrappers around an ``Emit``: passes everything on."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self.all_events = emit.all_events

    def __call__(self, event: Event) -> None:
        """Pass the event on."""
        self._emit(event)

    def drain(self) -> Coroutine[Any, Any, None]:
        """See ``Emit``."""
        return self._emit.drain()

    def waiting(self, reason: Waiting) -> AbstractContextManager[None]:
        """See ``Emit``."""
        return self._emit.waiting(reason)


class Transcript(Relay):
    """Records what a request has emitted, and passes it on.

    Attributes:
        calls: the pieces of tool calls, joined by the index of the call; see ``LLMError.partial_calls``.
    """

    def __init__(self, emit: Emit) -> None:
        super().__init__(emit)
        self.calls: dict[int, dict[str, str]] = {}
        self._text: list[str] = []
        self._thinking: list[str] = []

    def __call__(self, event: Event) -> None:
        """Record the event, and pass it on."""
        if isinstance(event, TextDelta):
            self._text.append(event.text)
        elif isinstance(event, ReasoningDelta):
            self._thinking.append(event.text)
        elif isinstance(event, ToolCallDelta):
            call = self.calls.setdefault(event.index, {"id": event.id, "name": event.name, "arguments": ""})
            call["arguments"] += event.arguments
        self._emit(event)

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._text)

    @property
    def thinking(self) -> str:
        """The thinking so far."""
        return "".join(self._thinking)

    def forget_text(self) -> None:
        """Drop the recorded text: it is worthless, and was not shown or was no answer."""
        self._text.clear()


class _Channel(Emit):
    """The buffer between the task of a request and its reader."""

    def __init__(self, *, all_events: bool) -> None:
        self.all_events = all_events
        self.events: deque[Event] = deque()
        self.outcome: Completion | BaseException | None = None
        self.reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._reason: Waiting | None = None
        self._silent_since = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, event: Event) -> None:
        if self.all_events:
            self._silent_since = self._loop.time()
        elif not isinstance(event, TextDelta):
            return
        self.events.append(event)
        _wake(self.reader)

    async def drain(self) -> None:
        while len(self.events) >= MAX_READ_AHEAD:
            self._writer = self._loop.create_future()
            await self._writer

    async def arrival(self) -> None:
        """Wait for an event, or for the end of the request."""
        while not self.events and self.outcome is None:
            self.reader = self._loop.create_future()
            try:
                await self.reader
            finally:
                self.reader = None

    def take(self) -> Event:
        """Remove and return the oldest event."""
        event = self.events.popleft()
        if self._writer and len(self.events) < MAX_READ_AHEAD:
            _wake(self._writer)
        return event

    async def run(self, work: Work) -> None:
        """Run the request: the body of its task."""
        try:
            self.outcome = await work(self)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # the reader raises it
            self.outcome = error
        finally:
            _wake(self.reader)

    @contextmanager
    def waiting(self, reason: Waiting) -> Generator[None, None, None]:
        outer, self._reason = self._reason, reason
        self._silent_since = min(self._silent_since, self._loop.time())
        if self.all_events and self._timer is None:
            self._schedule()
        try:
            yield
        finally:
            self._reason = outer

    def _schedule(self) -> None:
        """Schedule the next notice. It spans blocks, because many short waits in a row are a long one."""
        delay = max(_NOTICE_S / 10, self._silent_since + _NOTICE_S - self._loop.time())
        self._timer = self._loop.call_later(delay, self._tick) if self._reason else None

    def _tick(self) -> None:
        if self._reason and self._loop.time() >= self._silent_since + _NOTICE_S and not self.events:
            self(self._reason)
        self._schedule()


def _wake(future: asyncio.Future[None] | None) -> None:
    if future and not future.done():
        future.set_result(None)


class TextStream(AsyncIterator[str]):
    """The text of one response, piece by piece as it arrives. ``events()`` has everything else, too.

    Iterate it once. Leaving an ``async with``, ``aclose()``, cancelling the task, and leaving a ``for`` over an unnamed
    stream close the connection at once, which makes the server stop. ``completion`` is set when the stream has ended.

    The request runs in a task of its own, which starts when the first piece is requested and copies the context
    variables of that moment. It reads on until 64 events are buffered for a slow caller.

    Args:
        work: the request.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._channel: _Channel | None = None
        self._task: asyncio.Task[None] | None = None
        self._by_events = self._failed = self._closed = False

    @property
    def completion(self) -> Completion:
        """The completion. Raises InvalidRequest while the stream has not ended."""
        outcome = self._channel and not self._channel.events and self._channel.outcome
        if not isinstance(outcome, Completion):
            raise InvalidRequest(
                "the stream has no completion: it has not ended, or it failed",
                hint="Read .completion after the last piece",
            )
        return outcome

    async def __anext__(self) -> str:
        if self._by_events:
            raise InvalidRequest("the stream is being read by its events", hint=_ONCE)
        channel = self._channel
        if channel and channel.events and channel.reader is None and not self._closed:  # most pieces: no coroutine
            event = channel.take()
        else:
            event = await self._next(all_events=False)
        return cast(TextDelta, event).text  # the channel holds nothing else

    async def _next(self, *, all_events: bool) -> Event:
        channel = self._channel
        if channel is None:
            if self._closed:
                raise StopAsyncIteration
            channel = self._channel = _Channel(all_events=all_events)
            self._task = asyncio.create_task(channel.run(self._work))
        if self._failed or channel.reader:
            fault = "the stream has failed" if self._failed else "the stream is being read by another task"
            raise InvalidRequest(fault, hint=_ONCE)
        if not channel.events and not self._closed:
            try:
                await channel.arrival()
            except asyncio.CancelledError:
                self._failed = True
                await self._stop()
                raise
        if self._closed:
            raise StopAsyncIteration
        if channel.events:
            return channel.take()
        if isinstance(channel.outcome, Completion):
            raise StopAsyncIteration
        self._failed = True
        assert channel.outcome  # noqa: S101  # the request has ended
        raise bare(channel.outcome) if isinstance(channel.outcome, LLMError) else channel.outcome

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield everything that happens: text, thinking, tool calls, waiting, failover; at the end ``Finished``.

        Emitted text is never taken back: all ``TextDelta`` joined are the completion's text. Read a stream either by
        its events or by its text. Leaving the events closes the connection, as leaving the stream does.

        Raises:
            InvalidRequest: the stream has been read, or is being read.
            LLMError: as the stream does. A request that has emitted a piece of a tool call is not repeated.
        """
        if self._channel or self._by_events:
            raise InvalidRequest("the stream has started: events() must be its only reader", hint=_ONCE)
        self._by_events = True
        async with self:
            while True:
                try:
                    event = await self._next(all_events=True)
                except StopAsyncIteration:
                    break
                yield event
            outcome = self._channel and self._channel.outcome
            if isinstance(outcome, Completion):
                yield Finished(outcome)

    async def whole(self) -> Completion:
        """Read the stream to its end and return the completion."""
        async with self:
            async for _ in self:
                pass
        return self.completion

    async def aclose(self) -> None:
        """Close the connection, so that the server stops. A task that waits for a piece sees the end of the stream."""
        self._closed = True
        await self._stop()

    async def _stop(self) -> None:
        """Cancel the task, and wait for its end."""
        task = self._task
        if task and not task.done():
            if not task.cancelling():
                task.cancel()
            await asyncio.wait([task])

    def __del__(self) -> None:
        task = self._task
        if task and not task.done():
            with suppress(RuntimeError):  # the event loop is closed
                task.get_loop().call_soon_threadsafe(_abandon, task)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _abandon(task: asyncio.Task[None]) -> None:
    """Cancel the task of a stream that was dropped, and hold it until it has ended."""
    ending.add(task)
    task.add_done_callback(ending.discard)
    task.cancel()
