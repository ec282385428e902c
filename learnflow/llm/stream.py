"""``TextStream``, the stream that a caller reads, and ``Work``, the coroutine function that runs its request.

A provider returns a ``Work`` for each call. The ``Work`` gets an ``Emit``, and calls it with each event.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Final, Self, TypeAlias, cast

from .completion import Completion, Event, Finished, ReasoningDelta, TextDelta, ToolCallDelta, Waiting
from .errors import InvalidRequest, LLMError, clear_cause
from .process import ending_tasks

_NEW_STREAM_HINT: Final = "Call stream() again for another stream"
_WAITING_INTERVAL_S: Final = 1.0  # between the last event and a Waiting event
MAX_READ_AHEAD: Final = 64  # events in the buffer; if it is full, no more is read from the server


class Emit:
    """The receiver of a request's events. This base class drops them.

    Attributes:
        all_events: whether the caller reads all events, not only text.
        stopped: whether the caller closed the stream, or left ``async for`` early.
    """

    all_events: bool = False
    stopped: bool = False

    def __call__(self, event: Event) -> None:
        """Emit an event."""

    def drop_text(self) -> None:
        """Discard the recorded text, because the answer starts again.

        Call it only before the caller has received text.
        """

    async def drain(self) -> None:
        """Wait until the buffer has space."""

    def waiting(self, event: Waiting) -> AbstractContextManager[None]:  # noqa: ARG002  # the base class emits nothing
        """Emit ``event`` after each second without an event, inside the returned context manager."""
        return nullcontext()


Work: TypeAlias = Callable[[Emit], Coroutine[Any, Any, Completion]]
"""A coroutine function that runs a request. It returns the completion, or raises an ``LLMError``."""


class Relay(Emit):
    """Base of the wrappers around an ``Emit``. It forwards events, ``drain`` and ``waiting``."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self.all_events = emit.all_events

    def __call__(self, event: Event) -> None:
        """Forward the event."""
        self._emit(event)

    def drain(self) -> Coroutine[Any, Any, None]:
        """See ``Emit``."""
        return self._emit.drain()

    def waiting(self, event: Waiting) -> AbstractContextManager[None]:
        """See ``Emit``."""
        return self._emit.waiting(event)


class Transcript(Relay):
    """A wrapper that records text, thinking and tool calls. ``calls`` has the tool calls by their index."""

    def __init__(self, emit: Emit) -> None:
        super().__init__(emit)
        self.calls: dict[int, dict[str, str]] = {}
        self._text: list[str] = []
        self._thinking: list[str] = []

    def __call__(self, event: Event) -> None:
        """Record and forward the event."""
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
        """Return the text so far."""
        return "".join(self._text)

    @property
    def thinking(self) -> str:
        """Return the thinking so far."""
        return "".join(self._thinking)

    def drop_text(self) -> None:
        """Clear the recorded text."""
        self._text.clear()


class _Channel(Emit):
    """The task of a request, and the buffer of events between the task and the reader of the stream.

    Attributes:
        outcome: the completion or the exception of the request; None while the request runs.
        is_abandoned: whether the stream was closed or dropped before the task had ended.
        reader_future: the future on which the reader waits for an event; None if the reader is not waiting.
    """

    def __init__(self, work: Work, *, all_events: bool) -> None:
        self.all_events = all_events
        self.events: deque[Event] = deque()
        self.outcome: Completion | BaseException | None = None
        self.is_abandoned = False
        self.reader_future: asyncio.Future[None] | None = None
        self._writer_future: asyncio.Future[None] | None = None  # ``drain`` waits for it
        self._loop = asyncio.get_running_loop()
        self._wait_event: Waiting | None = None
        self._silent_since = math.inf  # the time of the last event, else the start of the first ``waiting`` block
        self._timer: asyncio.TimerHandle | None = None
        self._reader_cancelled = False
        self._reading_task = asyncio.current_task()
        if self._reading_task:
            self._reading_task.add_done_callback(self._end_reading)
        self.task = asyncio.create_task(self._run(work))

    def __call__(self, event: Event) -> None:
        if self.all_events:
            self._silent_since = self._loop.time()
        elif not isinstance(event, TextDelta):
            return
        self.events.append(event)
        _wake(self.reader_future)

    async def drain(self) -> None:
        if self.is_abandoned:  # the task was cancelled, but a library suppressed the CancelledError
            raise asyncio.CancelledError
        while len(self.events) >= MAX_READ_AHEAD:
            self._writer_future = self._loop.create_future()
            await self._writer_future

    async def wait_for_event(self) -> None:
        """Wait for an event or for the end of the request."""
        while not self.events and self.outcome is None:
            self.reader_future = self._loop.create_future()
            try:
                await self.reader_future
            finally:
                self.reader_future = None

    def pop_event(self) -> Event:
        """Remove and return the oldest event."""
        event = self.events.popleft()
        if self._writer_future and len(self.events) < MAX_READ_AHEAD:
            _wake(self._writer_future)
        return event

    def mark_stopped(self) -> None:
        """Set ``stopped``, unless the task that reads the stream was cancelled.

        The journal (``LLM_JOURNAL``) deletes the text of a stopped stream, and keeps the text after a cancellation.
        """
        tasks = self._reading_task, asyncio.current_task(self._loop)
        self.stopped = not (self._reader_cancelled or any(task and task.cancelling() for task in tasks))

    def _end_reading(self, task: asyncio.Task[Any]) -> None:
        self._reading_task, self._reader_cancelled = None, task.cancelled()

    async def _run(self, work: Work) -> None:
        try:
            self.outcome = await work(self)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # the reader raises it
            self.outcome = error
        finally:
            if self._reading_task:
                self._reading_task.remove_done_callback(self._end_reading)
            _wake(self.reader_future)

    @contextmanager
    def waiting(self, event: Waiting) -> Generator[None, None, None]:
        outer, self._wait_event = self._wait_event, event
        self._silent_since = min(self._silent_since, self._loop.time())
        if self.all_events and self._timer is None:
            self._schedule()
        try:
            yield
        finally:
            self._wait_event = outer

    def _schedule(self) -> None:
        """Schedule the next Waiting event.

        The end of a ``waiting`` block does not cancel the timer, so that many short blocks also emit an event.
        """
        delay = max(_WAITING_INTERVAL_S / 10, self._silent_since + _WAITING_INTERVAL_S - self._loop.time())
        self._timer = self._loop.call_later(delay, self._tick) if self._wait_event else None

    def _tick(self) -> None:
        if self._wait_event and self._loop.time() >= self._silent_since + _WAITING_INTERVAL_S and not self.events:
            self(self._wait_event)
        self._schedule()


def _wake(future: asyncio.Future[None] | None) -> None:
    if future and not future.done():
        future.set_result(None)


class TextStream(AsyncIterator[str]):
    """An asynchronous iterator over the text of one response. Use ``events()`` to read all events.

    A stream can be iterated once. The server stops generating when the connection is closed. ``aclose()``, the end of
    ``async with`` and a cancellation of the reading task close the connection at once. If ``async for`` is left early,
    the connection is closed when the stream is garbage-collected.

    The request runs in its own task, which starts with the first read and copies the context variables of that moment.
    The task reads ahead until 64 events are in the buffer.

    Args:
        work: runs the request.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._channel: _Channel | None = None
        self._failed = self._closed = False

    def __repr__(self) -> str:
        outcome = self._channel and self._channel.outcome
        state = "closed" if self._closed else "open" if self._channel else "not started"
        if isinstance(outcome, Completion | LLMError):
            state = f"complete: {outcome!r}" if isinstance(outcome, Completion) else f"failed: {type(outcome).__name__}"
        return f"<{type(self).__name__} {state}>"

    @property
    def completion(self) -> Completion:
        """Return the completion. Raise InvalidRequest if the stream is unfinished or failed."""
        outcome = self._channel and not self._channel.events and self._channel.outcome
        if not isinstance(outcome, Completion):
            raise InvalidRequest(
                "the stream has no completion: it has not ended, or it failed",
                hint="Read .completion after the last piece",
            )
        return outcome

    async def __anext__(self) -> str:
        channel = self._channel
        if channel and channel.all_events:
            raise InvalidRequest("the stream is already read by events()", hint=_NEW_STREAM_HINT)
        event = await self._next(all_events=False)
        if event is None:
            raise StopAsyncIteration
        return cast(TextDelta, event).text  # without all_events, the channel has only TextDelta

    async def _next(self, *, all_events: bool) -> Event | None:
        """Return the next event; None at the end. The first call starts the request."""
        channel = self._channel
        if channel is None:
            if self._closed:
                return None
            channel = self._channel = _Channel(self._work, all_events=all_events)
        if self._failed or channel.reader_future:
            fault = "the stream has failed" if self._failed else "another task reads the stream"
            raise InvalidRequest(fault, hint=_NEW_STREAM_HINT)
        if not channel.events and not self._closed:
            try:
                await channel.wait_for_event()
            except asyncio.CancelledError:
                self._failed = True
                await self._close()
                raise
        if self._closed:
            return None
        if channel.events:
            return channel.pop_event()
        if isinstance(channel.outcome, Completion):
            return None
        self._failed = True
        assert channel.outcome  # noqa: S101  # the request has ended
        raise clear_cause(channel.outcome) if isinstance(channel.outcome, LLMError) else channel.outcome

    def events(self) -> AsyncGenerator[Event, None]:
        """Return an iterator over all events (``Event``). The last one is ``Finished``.

        Read either the events or the text of a stream. Emitted text is never withdrawn. The joined ``TextDelta`` events
        are the completion's text. If the call has ``after=``, the completion's text begins with it, and the events omit
        it (see ``Options``). ``aclose()`` closes the connection.

        Raises:
            InvalidRequest: on the first event, if the stream was started before.
            LLMError: the request failed. A request that has emitted a piece of a tool call is not retried.
        """
        return _Events(self)

    async def final_completion(self) -> Completion:
        """Read the stream to its end and return the completion."""
        async with self:
            async for _ in self:
                pass
        return self.completion

    async def aclose(self) -> None:
        """Close the connection, so that the server stops generating. A reading task gets no more pieces."""
        if self._channel:
            self._channel.mark_stopped()
        await self._close()

    async def _close(self) -> None:
        self._closed, channel = True, self._channel
        if channel and not (channel.task.done() or channel.task.get_loop().is_closed()):
            channel.is_abandoned = True
            if not channel.task.cancelling():
                channel.task.cancel()
            await asyncio.wait([channel.task])

    def __del__(self) -> None:
        channel = self._channel
        if channel and not channel.task.done():
            channel.mark_stopped()
            channel.is_abandoned = True
            with suppress(RuntimeError):  # the event loop is closed
                channel.task.get_loop().call_soon_threadsafe(_abandon, channel.task)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an exception in the block, do not call ``mark_stopped``: the journal keeps the text
        await (self.aclose() if kind in (None, GeneratorExit) else self._close())


class _Events(AsyncGenerator[Event, None]):
    """An iterator over the events of a stream.

    It is a class, because a generator would end without an error after a cancelled read. After such a read, this
    iterator raises InvalidRequest.
    """

    def __init__(self, stream: TextStream) -> None:
        self._stream, self._first = stream, True

    def __repr__(self) -> str:
        return f"<events of {self._stream!r}>"

    async def asend(self, _: None) -> Event:
        stream, first, self._first = self._stream, self._first, False
        if first and stream._channel:  # noqa: SLF001  # this class is a part of TextStream
            raise InvalidRequest("the stream has started before", hint=_NEW_STREAM_HINT)
        if event := await stream._next(all_events=True):  # noqa: SLF001
            return event
        if stream._closed:  # noqa: SLF001
            raise StopAsyncIteration
        await stream.aclose()
        return Finished(stream.completion)

    async def athrow(self, kind: Any, *_: Any) -> Event:
        await self._stream.aclose()
        raise kind


def _abandon(task: asyncio.Task[None]) -> None:
    """Cancel the task of a dropped stream, and hold a reference to the task until its end."""
    ending_tasks.add(task)
    task.add_done_callback(ending_tasks.discard)
    task.cancel()
