"""Reads one answer to its end, within its budgets of time: send, read, parse, close."""

from __future__ import annotations

import asyncio
import itertools
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
Room = Callable[[], Awaitable[None]]

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
        self._over: float | None = None  # when a finished answer is not waited for any longer

    @property
    def began(self) -> bool:
        """Whether a token has arrived."""
        return self.first_token_s is not None

    async def read(self, send: Send, deadline: float, take: Take, room: Room) -> None:
        """Read it to its end; closes the connection whichever way it is left.

        Args:
            send: sends the request; returns an answer whose status is 2xx.
            deadline: the loop's time at which the request must have ended.
            take: is given each delta as it arrives.
            room: is waited for after each read.

        Raises:
            LLMError: after every delta that did arrive.
        """
        loop, parser = asyncio.get_running_loop(), self.parser
        sent = heard = loop.time()
        limit = min(sent + self._times.first_token, deadline)
        response: HttpResponse | None = None
        try:
            async with asyncio.timeout_at(limit) as budget:
                response = await send()
                for reads in itertools.count(1):
                    data = await self._data(response)
                    if self._taken(data, take, sent):
                        budget.reschedule(None)  # the caller's own time is not the server's silence
                        await room()
                        heard = loop.time()
                    if not data or parser.fault:
                        break
                    limit = min(self._limit(heard), deadline)
                    budget.reschedule(limit)
                    if reads % _UNINTERRUPTED == 0:
                        await asyncio.sleep(0)
        except TimeoutError:
            if not parser.settled:
                raise self._late(limit, deadline) from None
            self._taken(b"", take, sent)
        finally:
            self.total_s = loop.time() - sent
            if response is not None:
                await response.aclose()
        if parser.fault:
            raise parser.fault

    def _taken(self, data: bytes, take: Take, sent: float) -> bool:
        """Hand on what these bytes, or the end, complete; returns whether that was anything."""
        deltas = self.parser.feed(data) if data else self.parser.end()
        if deltas and self.first_token_s is None:
            self.first_token_s = asyncio.get_running_loop().time() - sent
        self.deltas_read += len(deltas)
        for delta in deltas:
            take(delta)
        return bool(deltas)

    def _limit(self, heard: float) -> float:
        """Until when the next bytes are waited for."""
        limit = heard + (self._times.gap if self.began else self._times.first_token)
        if self.parser.settled:
            now = asyncio.get_running_loop().time()
            over = now + (_AFTER_END_S if self.parser.ended else _AFTER_FINISH_S)
            limit = self._over = min(limit, self._over or over, over)
        return limit

    async def _data(self, response: HttpResponse) -> bytes:
        """The next bytes, b"" at the end, or where the connection broke, which the parser is told."""
        try:
            return await response.read()
        except errors.TimedOut:
            raise  # a recording's, of one who had waited for it
        except errors.MalformedAnswer as error:
            self.parser.fail(error)
        except LLMError as error:
            self.parser.broken(error.what)
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
