"""An event loop in a thread, in which ``sync`` and the LangChain model run their blocking calls.

Connections stay open between calls. The thread is a daemon, so that the process can end at any time.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import threading
from collections.abc import AsyncIterator, Coroutine, Generator
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any, TypeVar, cast

from .errors import InvalidRequest

_T = TypeVar("_T")


class Background:
    """An event loop in a daemon thread. The first call starts the thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine, and return its result. Raise InvalidRequest if called in the thread of this loop."""
        future = self._start(work)
        try:
            return future.result()
        finally:
            future.cancel()  # after Ctrl-C, so that the server stops

    def iterate(self, stream: AsyncIterator[_T]) -> Generator[_T, None, None]:
        """Yield the items of a stream. Closing the iterator also calls ``aclose()`` of the stream, without a wait.

        Raises:
            InvalidRequest: the iterator is read in the thread of this loop.
        """
        items: queue.SimpleQueue[tuple[_T] | BaseException | None] = queue.SimpleQueue()

        async def read() -> None:
            try:
                async with aclosing(cast(Any, stream)):
                    async for item in stream:
                        items.put((item,))
                items.put(None)
            except BaseException as error:
                items.put(error)
                raise

        future = self._start(read())
        try:
            while (received := items.get()) is not None:
                if isinstance(received, BaseException):
                    raise received
                yield received[0]
        finally:
            future.cancel()

    def stop(self) -> None:
        """Stop the loop at the end of the process. Running calls are dropped."""
        if self._loop and self._thread:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(1)

    def _start(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Start a coroutine in the loop. Return its future."""
        with self._lock:
            if self._loop is None or self._thread is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="learnflow-llm", daemon=True)
                self._thread.start()
            loop, thread = self._loop, self._thread
        if thread is threading.current_thread():
            work.close()
            raise InvalidRequest(
                "a blocking call was made on the thread of the event loop", hint="Use ainvoke() or astream() there"
            )
        return asyncio.run_coroutine_threadsafe(work, loop)


BACKGROUND = Background()
atexit.register(BACKGROUND.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=BACKGROUND.__init__)  # type: ignore[misc]  # a fork does not copy the thread
