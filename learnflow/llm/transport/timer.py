"""A limit for many short waits in a row: what ``asyncio.timeout_at`` does for one, with one timer for all of them.

Must never know what is waited for. Why not asyncio's own: a timer made and cancelled for every chunk of an answer costs
a third of what the chunk costs (``benchmarks/cost.py``). ``listen`` waits with it.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Timer:
    """``with alarm.until(limit): await …`` raises TimeoutError once the loop's time is ``limit``.

    For one wait at a time; between two waits no time is counted, and the task that waits may be another one.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = 0.0
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._timer: asyncio.TimerHandle | None = None
        self._rang = False

    def until(self, limit: float) -> Self:
        """Set the limit of the next wait, in the loop's time."""
        self._limit = limit
        return self

    def off(self) -> None:
        """No wait will follow."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __enter__(self) -> None:
        task = self._task = asyncio.current_task()
        self._cancelling = task.cancelling() if task else 0
        self._rang = False
        if self._timer is None or self._timer.when() > self._limit:
            self.off()
            self._timer = self._loop.call_at(self._limit, self._ring)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if not self._rang or task is None:
            return
        # as asyncio.timeout does: a cancellation from elsewhere at the same moment stays one
        if task.uncancel() <= self._cancelling and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError

    def _ring(self) -> None:
        """The timer's: nobody waits, or not yet, or now."""
        self._timer = None
        if self._task is None:
            return
        if self._loop.time() < self._limit:
            self._timer = self._loop.call_at(self._limit, self._ring)
            return
        self._rang = True
        self._task.cancel()
