"""An event loop in a thread. The blocking API (``sync`` and the LangChain model) runs its coroutines there.

The loop stays open, so that the next call can reuse connections.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar, cast

from .errors import InvalidRequest
from .process import after_fork

_T = TypeVar("_T")
_END: Final = object()
_STOP_S: Final = 1.0  # time limit of each step of ``stop``: cancel the running calls, join the thread


class Background:
    """An event loop in a daemon thread, so that the process can end at any time. The first call starts the thread.

    The thread stops when the interpreter exits. Later calls (in ``atexit`` handlers or ``__del__``) run in the calling
    thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._exit_runner: asyncio.Runner | None = None  # runs the calls after ``stop``

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine, and return its result.

        Raises:
            InvalidRequest: called in the thread of this loop, or cancelled because the process ends.
        """
        future = self.start(coroutine)
        try:
            return future.result()
        except (CancelledError, asyncio.CancelledError):
            raise _cancelled_error() from None
        finally:
            future.cancel()  # after Ctrl-C, stop the request. No effect on a finished future

    def iterate(self, items: AsyncGenerator[_T, None]) -> BlockingIterator[_T]:
        """Return a blocking iterator over an asynchronous generator."""
        return BlockingIterator(self, items)

    def start(self, coroutine: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Start a coroutine in the loop, and return its future. After ``stop``, run it in the calling thread.

        Raises:
            InvalidRequest: called in the thread of this loop, or, after ``stop``, in a running event loop.
        """
        if self._thread is threading.current_thread() or (self._exit_runner and _is_in_loop()):
            coroutine.close()
            raise InvalidRequest("a blocking call was made in the event loop", hint="Use await, ainvoke() or astream()")
        with self._lock:
            if self._exit_runner:
                return _run_now(self._exit_runner, coroutine)
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="learnflow-llm", daemon=True)
                self._thread.start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def stop(self) -> None:
        """Cancel the running calls and stop the loop, at the end of the process."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._exit_runner = asyncio.Runner()
        if loop and thread:
            with suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result(_STOP_S)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_STOP_S)


class BlockingIterator(Iterator[_T], Generic[_T]):
    """An iterator over an asynchronous generator that runs in the loop of a ``Background``.

    One thread at a time may read the iterator, and any thread may close it. In a forked child process, a read raises
    InvalidRequest, and ``close`` does nothing.
    """

    def __init__(self, background: Background, items: AsyncGenerator[_T, None]) -> None:
        self._background, self._items = background, items
        self._reader_lock = threading.Lock()
        self._generator_lock = asyncio.Lock()  # held by a running read. A cancelled read may run on for some time
        self._process = os.getpid()
        self._pending: Future[Any] | None = None
        self._failed = self._closed = False

    @property
    def is_inherited(self) -> bool:
        """Return whether the parent process created the iterator. The loop of the parent does not run here."""
        return self._process != os.getpid()

    def __next__(self) -> _T:
        if self.is_inherited:
            raise InvalidRequest("the stream belongs to the parent process", hint="Call stream() in this process")
        if not self._reader_lock.acquire(blocking=False):
            raise InvalidRequest("another thread reads the stream", hint="Call stream() again for another stream")
        try:
            return self._read()
        finally:
            self._reader_lock.release()

    def _read(self) -> _T:
        if self._failed:
            raise InvalidRequest("the stream has failed", hint="Call stream() again for another stream")
        if self._closed:
            raise StopIteration
        try:
            self._pending = self._background.start(self._next())
            if self._closed:  # ``close`` was called meanwhile
                self._pending.cancel()
            item = self._pending.result()
        except (CancelledError, asyncio.CancelledError):
            self._failed = not self._closed
            raise (StopIteration if self._closed else _cancelled_error()) from None
        except BaseException:
            self._failed = True
            if self._pending:
                self._pending.cancel()  # after Ctrl-C, stop the request
            raise
        if item is _END:
            self._closed = True
            raise StopIteration
        return cast(_T, item)

    def close(self) -> None:
        """End the iteration and close the generator. A read in another thread raises StopIteration."""
        if self.is_inherited:
            return
        self._closed = True
        if self._reader_lock.acquire(blocking=False):
            try:
                self._background.run(self._aclose())
            finally:
                self._reader_lock.release()
        elif self._pending:
            self._pending.cancel()

    async def _next(self) -> _T | object:
        async with self._generator_lock:
            return await anext(self._items, _END)

    async def _aclose(self) -> None:
        async with self._generator_lock:
            await self._items.aclose()


def _is_in_loop() -> bool:
    """Return whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _run_now(runner: asyncio.Runner, coroutine: Coroutine[Any, Any, _T]) -> Future[_T]:
    """Run a coroutine in the calling thread, and return its finished future."""
    future: Future[_T] = Future()
    try:
        future.set_result(runner.run(coroutine))
    except BaseException as error:  # noqa: BLE001  # the caller gets it from the future
        coroutine.close()
        future.set_exception(error)
    return future


def _cancelled_error() -> InvalidRequest:
    return InvalidRequest("the call was cancelled, because the process ends", hint="Make the call earlier")


BACKGROUND = Background()
atexit.register(BACKGROUND.stop)
after_fork(BACKGROUND.__init__)  # type: ignore[misc]  # a fork does not copy the thread
