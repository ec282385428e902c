"""Reads one response to its end, within its time limits: send, read, parse, close."""

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
Take = Callable[[Delta], None]
Drain = Callable[[], Awaitable[None]]

# Seconds after the finish for the usage, an error and the end mark; and after that mark for the end of the connection,
# which is closed otherwise, not reused.
_AFTER_FINISH_S: Final = 2.0
_AFTER_END_S: Final = 0.25


class AnswerReader:
    """Sends one request and reads its response.

    Args:
        parser: of the server's dialect.
        times: the time limits.

    Attributes:
        on_timeout: called with the error if a time limit is over (``HttpRequest.on_timeout``).
    """

    def __init__(self, parser: StreamParser, times: Times) -> None:
        self.parser = parser
        self.on_timeout: list[Callable[[LLMError], None]] = []
        self._times = times
        self._began = False  # a token has arrived
        self._over: float | None = None  # when a finished response is closed, even if the connection is open

    async def read(self, send: Send, deadline: float, take: Take, drain: Drain) -> None:
        """Read the response to its end. Closes the connection in any case.

        Args:
            send: sends the request; returns a response whose status is 2xx.
            deadline: the event loop's time at which the request must have ended.
            take: called with each delta as it arrives.
            drain: awaited after each read, until the caller has caught up.

        Raises:
            LLMError: after every delta that did arrive.
        """
        loop, parser = asyncio.get_running_loop(), self.parser
        heard = loop.time()
        limit = min(heard + self._times.first_token, deadline)
        response: HttpResponse | None = None
        try:
            async with asyncio.timeout_at(limit) as budget:
                response = await send()
                while True:
                    data = await self._data(response)
                    if self._taken(data, take):
                        budget.reschedule(None)  # the reader's own time is not the server's silence
                        await drain()
                        heard = loop.time()
                    if not data or parser.fault:
                        break
                    limit = min(self._limit(heard), deadline)
                    budget.reschedule(limit)
        except TimeoutError:
            if not parser.settled:
                raise self._late(limit, deadline) from None
            self._taken(b"", take)
        finally:
            if response is not None:
                await response.aclose()
        if parser.fault:
            raise parser.fault

    def _taken(self, data: bytes, take: Take) -> bool:
        """Pass on the deltas that these bytes, or the end, complete; return whether there was one."""
        deltas = self.parser.feed(data) if data else self.parser.end()
        self._began = self._began or bool(deltas)
        for delta in deltas:
            take(delta)
        return bool(deltas)

    def _limit(self, heard: float) -> float:
        """Return the time until which the next bytes may arrive."""
        limit = heard + (self._times.gap if self._began else self._times.first_token)
        if self.parser.settled:
            now = asyncio.get_running_loop().time()
            over = now + (_AFTER_END_S if self.parser.ended else _AFTER_FINISH_S)
            limit = self._over = min(limit, self._over or over, over)
        return limit

    async def _data(self, response: HttpResponse) -> bytes:
        """Return the next bytes; b"" at the end, or if the connection broke, which the parser records."""
        try:
            return await response.read()
        except errors.TimedOut:
            raise  # recorded: its caller had waited for it
        except errors.MalformedAnswer as error:
            self.parser.fail(error)
        except LLMError as error:
            self.parser.broken(error.what)
        return b""

    def _late(self, limit: float, deadline: float) -> LLMError:
        """Return the error of the time limit that is over."""
        if limit >= deadline:
            failure: LLMError = errors.DeadlineExceeded("the deadline of the request is over")
        elif not self._began:
            failure = errors.FirstTokenTimeout(f"no token within {self._times.first_token:g} s")
        else:
            failure = errors.GapTimeout(f"no further token within {self._times.gap:g} s")
        for tell in self.on_timeout:
            tell(failure)
        return failure
