"""Send a request, and read and parse its response within the time limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from .. import errors
from ..errors import LLMError
from ..timeouts import Timeouts
from .client import HttpResponse
from .reasoning import Delta
from .stream_parser import StreamParser

Send = Callable[[], Awaitable[HttpResponse]]
OnDelta = Callable[[Delta], None]
Drain = Callable[[], Awaitable[None]]
IsLoading = Callable[[], Awaitable[bool]]

# Time limit from the finish reason to the end mark ("[DONE]"). The usage or an error can arrive in this time.
_MAX_AFTER_FINISH_S: Final = 2.0
# Time limit from the end mark to the end of the body. After it, the connection is closed and cannot be reused.
_MAX_AFTER_END_S: Final = 0.25


class AnswerReader:
    """The reader of one response. The parser must be new.

    After the first-token timeout, ``is_loading`` (if given) probes whether the server is loading the model. During a
    load, the load timeout applies instead, because most servers abort a load if the request that triggered it ends.

    Attributes:
        on_timeout: functions to call with the error if a time limit ends the request. The ``HttpRequest`` gets this
            list object, to which the recorder of cassettes appends a function.
    """

    def __init__(self, parser: StreamParser, timeouts: Timeouts, is_loading: IsLoading | None = None) -> None:
        self.parser = parser
        self.on_timeout: list[Callable[[LLMError], None]] = []
        self._timeouts = timeouts
        self._first_token_s = max(timeouts.first_token, timeouts.load) if is_loading else timeouts.first_token
        self._is_loading = is_loading
        self._timer: asyncio.TimerHandle | None = None
        self._probe: asyncio.Task[None] | None = None
        self._has_delta = False
        self._close_at: float | None = None  # when to stop reading a complete answer, on the loop's clock

    async def read(self, send: Send, deadline: float, on_delta: OnDelta, drain: Drain) -> None:
        """Send the request, and read the response to its end. Close the response, even after an error.

        Args:
            send: sends the request, and returns a response with a 2xx status.
            deadline: the end of the request, on the clock of the event loop.
            on_delta: receives each delta (a part of the answer) as it arrives.
            drain: waits until the caller has consumed earlier deltas.

        Raises:
            LLMError: the request failed, or the response is incomplete or late. ``on_delta`` has received all deltas
                that arrived before the error.
        """
        loop, parser = asyncio.get_running_loop(), self.parser
        last_delta_at = loop.time()
        expires_at = min(last_delta_at + self._first_token_s, deadline)
        response: HttpResponse | None = None
        try:
            async with asyncio.timeout_at(expires_at) as timeout:
                self._start_timer(timeout)
                response = await send()
                while True:
                    data = await self._read_data(response)
                    if self._feed(data, on_delta):
                        timeout.reschedule(None)  # the caller's time to consume deltas does not count
                        await drain()
                        last_delta_at = loop.time()
                    if not data or parser.fault:
                        break
                    expires_at = min(self._next_expiry(last_delta_at), deadline)
                    timeout.reschedule(expires_at)
        except TimeoutError:
            if not parser.is_complete:
                raise self._timeout_error(min(expires_at, loop.time()), deadline) from None
            self._feed(b"", on_delta)
        finally:
            self._stop_timer()
            if response is not None:
                await response.aclose()
        if parser.fault:
            raise parser.fault

    def _start_timer(self, timeout: asyncio.Timeout) -> None:
        """Schedule the probe ``is_loading`` for the end of the first-token timeout."""

        def start_probe() -> None:
            if not self._has_delta:
                self._probe = asyncio.create_task(self._expire_unless_loading(timeout))

        if self._is_loading:
            self._timer = asyncio.get_running_loop().call_later(self._timeouts.first_token, start_probe)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._probe:
            self._probe.cancel()

    async def _expire_unless_loading(self, read_timeout: asyncio.Timeout) -> None:
        """Time out the wait for the first token, unless the server is loading the model.

        After a load, the first-token timeout begins anew.
        """
        assert self._is_loading  # noqa: S101  # the timer is started only with ``is_loading``
        is_loading = False
        while not self._has_delta:
            was_loading, is_loading = is_loading, await self._is_loading()
            if not (is_loading or was_loading):
                break
            await asyncio.sleep(self._timeouts.first_token)
        if not self._has_delta:
            self._first_token_s = self._timeouts.first_token
            read_timeout.reschedule(asyncio.get_running_loop().time())

    def _feed(self, data: bytes, on_delta: OnDelta) -> bool:
        """Parse bytes; b"" ends the response. Return whether a delta arrived."""
        deltas = self.parser.feed(data) if data else self.parser.end()
        self._has_delta = self._has_delta or bool(deltas)
        for delta in deltas:
            on_delta(delta)
        return bool(deltas)

    def _next_expiry(self, last_delta_at: float) -> float:
        """Return when the wait for the next bytes expires, on the clock of the event loop."""
        expires_at = last_delta_at + (self._timeouts.gap if self._has_delta else self._first_token_s)
        if self.parser.is_complete:
            now = asyncio.get_running_loop().time()
            close_at = now + (_MAX_AFTER_END_S if self.parser.has_end_mark else _MAX_AFTER_FINISH_S)
            expires_at = self._close_at = min(expires_at, self._close_at or close_at, close_at)
        return expires_at

    async def _read_data(self, response: HttpResponse) -> bytes:
        """Return the next bytes; b"" at the end, or if the connection breaks.

        If the connection breaks before the answer is complete, record the fault in the parser.
        """
        try:
            return await response.read()
        except errors.TimedOut:
            raise  # only a cassette raises it, for a recorded timeout
        except errors.MalformedAnswer as error:
            self.parser.fail(error)
        except LLMError as error:
            if not self.parser.is_complete:
                self.parser.fail(errors.AnswerCut(f"{error.what}, in the middle of the answer"))
        return b""

    def _timeout_error(self, expires_at: float, deadline: float) -> LLMError:
        """Return the error for a late response. Call the functions in ``on_timeout`` with the error."""
        if expires_at >= deadline:
            failure: LLMError = errors.DeadlineExceeded("the deadline of the request is over")
        elif not self._has_delta:
            failure = errors.FirstTokenTimeout(f"no token within {self._first_token_s:g} s")
        else:
            failure = errors.GapTimeout(f"no further token within {self._timeouts.gap:g} s")
        for notify in self.on_timeout:
            notify(failure)
        return failure
