"""The reader: sends a request, reads its response within time limits, parses it, and closes the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from .. import errors
from ..errors import LLMError
from ..timeouts import Times
from .client import HttpResponse
from .reasoning import Delta
from .stream_parser import StreamParser

Send = Callable[[], Awaitable[HttpResponse]]
OnDelta = Callable[[Delta], None]
Drain = Callable[[], Awaitable[None]]
IsLoading = Callable[[], Awaitable[bool]]

# Seconds after the finish reason for the usage, an error and the end mark.
_AFTER_FINISH_S: Final = 2.0
# Seconds after the end mark for the end of the body. Without it, the connection is closed instead of reused.
_AFTER_END_S: Final = 0.25


class AnswerReader:
    """Sends one request and reads its response.

    Args:
        parser: of the server's dialect.
        times: the time limits.
        is_loading: probes whether the server is loading the model. If it is, the first-token timeout does not end the
            request, because most servers end the load with it: the limit is ``times.load``.

    Attributes:
        on_timeout: called with the error if a time limit is over (``HttpRequest.on_timeout``).
    """

    def __init__(self, parser: StreamParser, times: Times, is_loading: IsLoading | None = None) -> None:
        self.parser = parser
        self.on_timeout: list[Callable[[LLMError], None]] = []
        self._times = times
        self._first_token_s = max(times.first_token, times.load) if is_loading else times.first_token
        self._is_loading = is_loading
        self._timer: asyncio.TimerHandle | None = None
        self._probing: asyncio.Task[None] | None = None
        self._began = False  # a token has arrived
        self._close_at: float | None = None  # when a finished response is closed, even if the connection is open

    async def read(self, send: Send, deadline: float, on_delta: OnDelta, drain: Drain) -> None:
        """Read the response to its end. Close the connection in any case.

        Args:
            send: sends the request and returns a response with a 2xx status.
            deadline: when the request must have ended, by the event loop's clock.
            on_delta: called with each delta as it arrives.
            drain: awaited after each read with a delta, until the caller has consumed enough.

        Raises:
            LLMError: the response is incomplete or late. Deltas that arrived have been passed on before.
        """
        loop, parser = asyncio.get_running_loop(), self.parser
        last_delta_at = loop.time()
        limit = min(last_delta_at + self._first_token_s, deadline)
        response: HttpResponse | None = None
        try:
            async with asyncio.timeout_at(limit) as budget:
                self._start_timer(budget)
                response = await send()
                while True:
                    data = await self._read_data(response)
                    if self._feed(data, on_delta):
                        budget.reschedule(None)  # the caller's time does not count
                        await drain()
                        last_delta_at = loop.time()
                    if not data or parser.fault:
                        break
                    limit = min(self._next_limit(last_delta_at), deadline)
                    budget.reschedule(limit)
        except TimeoutError:
            if not parser.settled:
                raise self._timeout_error(min(limit, loop.time()), deadline) from None
            self._feed(b"", on_delta)
        finally:
            self._stop_timer()
            if response is not None:
                await response.aclose()
        if parser.fault:
            raise parser.fault

    def _start_timer(self, budget: asyncio.Timeout) -> None:
        """Probe the server at the first-token timeout, if it may be loading the model."""

        def probe() -> None:
            if not self._began:
                self._probing = asyncio.create_task(self._expire_unless_loading(budget))

        if self._is_loading:
            self._timer = asyncio.get_running_loop().call_later(self._times.first_token, probe)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._probing:
            self._probing.cancel()

    async def _expire_unless_loading(self, budget: asyncio.Timeout) -> None:
        """End the wait for the first token, unless the server loads the model. After a load, wait once more."""
        assert self._is_loading  # noqa: S101  # the timer is started only with it
        loaded = True
        while not self._began:
            loaded, loaded_before = not await self._is_loading(), loaded
            if loaded and loaded_before:
                break
            await asyncio.sleep(self._times.first_token)
        if not self._began:
            self._first_token_s = self._times.first_token
            budget.reschedule(asyncio.get_running_loop().time())

    def _feed(self, data: bytes, on_delta: OnDelta) -> bool:
        """Parse these bytes, or the end of the response. Return whether there was a delta."""
        deltas = self.parser.feed(data) if data else self.parser.end()
        self._began = self._began or bool(deltas)
        for delta in deltas:
            on_delta(delta)
        return bool(deltas)

    def _next_limit(self, last_delta_at: float) -> float:
        """Return the latest time for the next bytes."""
        limit = last_delta_at + (self._times.gap if self._began else self._first_token_s)
        if self.parser.settled:
            now = asyncio.get_running_loop().time()
            close_at = now + (_AFTER_END_S if self.parser.ended else _AFTER_FINISH_S)
            limit = self._close_at = min(limit, self._close_at or close_at, close_at)
        return limit

    async def _read_data(self, response: HttpResponse) -> bytes:
        """Return the next bytes; b"" at the end, or if the connection broke, which the parser records."""
        try:
            return await response.read()
        except errors.TimedOut:
            raise  # played from a cassette: the recorded request had timed out
        except errors.MalformedAnswer as error:
            self.parser.fail(error)
        except LLMError as error:
            self.parser.broken(error.what)
        return b""

    def _timeout_error(self, limit: float, deadline: float) -> LLMError:
        """Return the error of the time limit that is over."""
        if limit >= deadline:
            failure: LLMError = errors.DeadlineExceeded("the deadline of the request is over")
        elif not self._began:
            failure = errors.FirstTokenTimeout(f"no token within {self._first_token_s:g} s")
        else:
            failure = errors.GapTimeout(f"no further token within {self._times.gap:g} s")
        for notify in self.on_timeout:
            notify(failure)
        return failure
