"""One question put to one server, and its answer heard to the end: the order of asking and reading, and its times.

Must never try again, choose a model, or decide what an answer is worth.
The adapter listens; it gets pieces, then ``wire`` tells whether the answer is whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from .. import errors
from ..errors import LLMError
from ..specs import ProviderSpec
from ..times import Times
from .exchange import Exchange
from .ndjson_parser import NDJSONParser
from .reasoning import Delta
from .sse_parser import SSEParser
from .stream_parser import StreamParser
from .timer import Timer

Ask = Callable[[Exchange], Awaitable[LLMError | None]]

_WIRES: Final[dict[str, type[StreamParser]]] = {"openai": SSEParser, "ollama": NDJSONParser}
# Seconds that the wire may take after the finish, for the count of tokens, an error, its own end; and after that end,
# for the end of the connection, which is closed otherwise, not reused.
_AFTER_FINISH_S: Final = 2.0
_AFTER_END_S: Final = 0.25


class AnswerReader:
    """One question and its answer.

    Attributes:
        wire: what the answer said about itself.
        first_token_s, total_s: seconds from sending the request to the first token (None before it), and to the last.
        pieces_heard: how many there were; most servers send a token each.
    """

    def __init__(self, spec: ProviderSpec, times: Times, exchange: Exchange) -> None:
        self.wire = _WIRES[spec.dialect]()
        self.first_token_s: float | None = None
        self.total_s = 0.0
        self.pieces_heard = 0
        self._times = times
        self._alarm = Timer()
        self._exchange = exchange
        self._over: float | None = None  # when a finished answer is not waited for any longer

    @property
    def began(self) -> bool:
        """Whether a token has arrived."""
        return self.first_token_s is not None

    async def pieces(self, ask: Ask, deadline: float) -> AsyncGenerator[Delta, None]:
        """The pieces as they arrive; closes the connection whichever way it is left.

        Args:
            ask: sends the question; returns when the head of the answer is in the exchange, or why there is none.
            deadline: the loop's time at which the request must have ended.

        Raises:
            LLMError: after every piece that did arrive.
        """
        loop = asyncio.get_running_loop()
        sent = loop.time()
        try:
            await self._ask(ask, sent, deadline)
            heard = sent
            while not self.wire.fault:
                data = await self._read(heard, deadline)
                for piece in self.wire.feed(data) if data else self.wire.end():
                    heard = loop.time()
                    self.first_token_s = heard - sent if self.first_token_s is None else self.first_token_s
                    self.pieces_heard += 1
                    yield piece
                    heard = loop.time()  # the caller's own time is not the server's silence
                if not data:
                    break
        finally:
            self.total_s = loop.time() - sent
            self._alarm.off()
            await self._exchange.aclose()
        if self.wire.fault:
            raise self.wire.fault

    async def _ask(self, ask: Ask, sent: float, deadline: float) -> None:
        """Until the head of the answer is here."""
        failed: LLMError | None = None
        limit = min(sent + self._times.first_token, deadline)
        try:
            with self._alarm.until(limit):
                failed = await ask(self._exchange)
        except TimeoutError:
            failed = self._late(limit, deadline)
            self._exchange.gave_up(failed)
        if failed:
            raise failed

    async def _read(self, heard: float, deadline: float) -> bytes:
        """The next bytes, b"" at the end, or where the connection broke, which ``wire`` is told."""
        assert self._exchange.body is not None  # noqa: S101  # ask() returned without a failure
        budget = self._times.gap if self.began else self._times.first_token
        limit = min(heard + budget, deadline)
        if self.wire.finish:
            now = asyncio.get_running_loop().time()
            over = now + (_AFTER_END_S if self.wire.ended else _AFTER_FINISH_S)
            limit = self._over = min(limit, self._over or over, over)
        late = False
        try:
            with self._alarm.until(limit):
                return await self._exchange.body.read()
        except TimeoutError:
            late = True
        except errors.TimedOut:
            raise  # a tape's, of one who had waited for it
        except LLMError as error:
            self.wire.broken(error.what)
        if late and not self.wire.finish:
            failed = self._late(limit, deadline)
            self._exchange.gave_up(failed)
            raise failed
        return b""

    def _late(self, limit: float, deadline: float) -> LLMError:
        """Which budget was used up."""
        if limit >= deadline:
            return errors.DeadlineExceeded("the deadline of the request is over")
        if not self.began:
            return errors.FirstTokenTimeout(f"no token within {self._times.first_token:g} s")
        return errors.GapTimeout(f"no further token within {self._times.gap:g} s")
