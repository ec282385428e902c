"""Reads one answer to its end, within its budgets of time: send, read, parse, close."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import TracebackType
from typing import Final, Self

from .. import errors
from ..errors import LLMError
from ..timeouts import Times
from .client import HttpResponse
from .reasoning import Delta
from .stream_parser import StreamParser

Send = Callable[[], Awaitable[HttpResponse]]

# Seconds that the wire may take after the finish, for the count of tokens, an error, its own end; and after that end,
# for the end of the connection, which is closed otherwise, not reused.
_AFTER_FINISH_S: Final = 2.0
_AFTER_END_S: Final = 0.25
_UNINTERRUPTED: Final = 64  # reads: those of what has arrived already let nobody else go on


class AnswerReader:
    """One request and its answer.

    Args:
        parser: of the server's dialect.
        times: the budgets.

    Attributes:
        first_token_s, total_s: seconds from sending the request to the first token (None before it), and to the last.
        deltas_read: how many there were; most servers send a token each.
        on_timeout: called with the error when a budget is used up (``HttpRequest.on_timeout``).
    """

    def __init__(self, parser: StreamParser, times: Times) -> None:
        self.parser = parser
        self.first_token_s: float | None = None
        self.total_s = 0.0
        self.deltas_read = 0
        self.on_timeout: list[Callable[[LLMError], None]] = []
        self._times = times
        self._timer = Timer()
        self._over: float | None = None  # when a finished answer is not waited for any longer

    @property
    def began(self) -> bool:
        """Whether a token has arrived."""
        return self.first_token_s is not None

    async def deltas(self, send: Send, deadline: float) -> AsyncGenerator[Delta, None]:
        """The deltas as they arrive; closes the connection whichever way it is left.

        Args:
            send: sends the request; returns an answer whose status is 2xx.
            deadline: the loop's time at which the request must have ended.

        Raises:
            LLMError: after every delta that did arrive.
        """
        loop = asyncio.get_running_loop()
        sent = loop.time()
        response: HttpResponse | None = None
        try:
            response = await self._sent(send, sent, deadline)
            heard = sent
            for reads in itertools.count(1):
                if self.parser.fault:
                    break
                if reads % _UNINTERRUPTED == 0:
                    await asyncio.sleep(0)
                data = await self._read(response, heard, deadline)
                for delta in self.parser.feed(data) if data else self.parser.end():
                    heard = loop.time()
                    self.first_token_s = heard - sent if self.first_token_s is None else self.first_token_s
                    self.deltas_read += 1
                    yield delta
                    heard = loop.time()  # the caller's own time is not the server's silence
                if not data:
                    break
        finally:
            self.total_s = loop.time() - sent
            self._timer.off()
            if response is not None:
                await response.aclose()
        if self.parser.fault:
            raise self.parser.fault

    async def _sent(self, send: Send, sent: float, deadline: float) -> HttpResponse:
        """Until the head of the answer is here."""
        limit = min(sent + self._times.first_token, deadline)
        try:
            with self._timer.until(limit):
                return await send()
        except TimeoutError:
            raise self._late(limit, deadline) from None

    async def _read(self, response: HttpResponse, heard: float, deadline: float) -> bytes:
        """The next bytes, b"" at the end, or where the connection broke, which the parser is told."""
        budget = self._times.gap if self.began else self._times.first_token
        limit = min(heard + budget, deadline)
        if self.parser.settled:
            now = asyncio.get_running_loop().time()
            over = now + (_AFTER_END_S if self.parser.ended else _AFTER_FINISH_S)
            limit = self._over = min(limit, self._over or over, over)
        late = False
        try:
            with self._timer.until(limit):
                return await response.read()
        except TimeoutError:
            late = True
        except errors.TimedOut:
            raise  # a recording's, of one who had waited for it
        except errors.MalformedAnswer as error:
            self.parser.fail(error)
        except LLMError as error:
            self.parser.broken(error.what)
        if late and not self.parser.settled:
            raise self._late(limit, deadline)
        return b""

    def _late(self, limit: float, deadline: float) -> LLMError:
        """Which budget was used up."""
        if limit >= deadline:
            failure: LLMError = errors.DeadlineExceeded("the deadline of the request is over")
        elif not self.began:
            failure = errors.FirstTokenTimeout(f"no token within {self._times.first_token:g} s")
        else:
            failure = errors.GapTimeout(f"no further token within {self._times.gap:g} s")
        for tell in self.on_timeout:
            tell(failure)
        return failure


class Timer:
    """A limit for many short waits in a row, one after another, with one timer for all of them.

    ``with timer.until(limit): await …`` raises TimeoutError once the loop's time is ``limit``.

    For one wait at a time; between two waits no time is counted, and the task that waits may be another one. Why not
    ``asyncio.timeout_at``: a timer made and cancelled for every chunk of an answer costs a third of what the chunk
    costs (``benchmarks/cost.py``).
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = 0.0
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._timer: asyncio.TimerHandle | None = None
        self._fired = False

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
        self._fired = False
        if self._timer is None or self._timer.when() > self._limit:
            self.off()
            self._timer = self._loop.call_at(self._limit, self._fire)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if not self._fired or task is None:
            return
        # as asyncio.timeout does: a cancellation from elsewhere at the same moment stays one
        if task.uncancel() <= self._cancelling and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError

    def _fire(self) -> None:
        """The timer's: nobody waits, or not yet, or now."""
        self._timer = None
        if self._task is None:
            return
        if self._loop.time() < self._limit:
            self._timer = self._loop.call_at(self._limit, self._fire)
            return
        self._fired = True
        self._task.cancel()
