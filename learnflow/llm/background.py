"""An event loop in a thread of its own, for code that is not asynchronous.

Must never wait on its own thread, or keep a process from ending.
``sync`` and the LangChain model run in it. Connections stay open between calls.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import aclosing
from typing import Any, TypeVar

from .errors import InvalidRequest

_T = TypeVar("_T")


class Background:
    """The loop. The first call starts it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return the result of ``work``. Raise InvalidRequest if called on the thread of this loop."""
        loop = self._running(work)
        under_way = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return under_way.result()
        finally:
            under_way.cancel()  # Ctrl-C: the server must stop, too

    def pieces(self, stream: AsyncGenerator[_T, None]) -> Iterator[_T]:
        """Yield the pieces of ``stream`` as they come. Closing the iterator closes the stream, without a wait."""
        arrived: queue.SimpleQueue[tuple[_T] | BaseException | None] = queue.SimpleQueue()

        async def read() -> None:
            try:
                async with aclosing(stream):
                    async for piece in stream:
                        arrived.put((piece,))
                arrived.put(None)
            except BaseException as error:
                arrived.put(error)
                raise

        work = read()
        loop = self._running(work)
        under_way = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            while (got := arrived.get()) is not None:
                if isinstance(got, BaseException):
                    raise got
                yield got[0]
        finally:
            under_way.cancel()

    def stop(self) -> None:
        """Stop the loop when the process ends. Unfinished work is dropped."""
        if self._loop and self._thread:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(1)

    def _running(self, work: Coroutine[Any, Any, object]) -> asyncio.AbstractEventLoop:
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
        return loop


BACKGROUND = Background()
atexit.register(BACKGROUND.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=BACKGROUND.__init__)  # type: ignore[misc]  # the thread stays behind
