"""One request and what became of it: where it may go, what it carries, and the head and body of its answer.

Must never send: ``net`` does, and fills it in.
The airlock and the probes set one as ``current`` before each request; ``listen`` reads its body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from ..errors import LLMError
from ..replay.active import Deck
from ..replay.recorder import Body, Take


class Diverted(Exception):
    """Ends LiteLLM's call; what happened is in the exchange. No httpx class, so that nobody tries again behind us."""


class Heard(BaseException):
    """Ends LiteLLM's call once an answer begins: it is in the exchange, and LiteLLM's part is done.

    No ``Exception``, so that nobody takes it for a failure. What LiteLLM does with an answer costs a third of a call.
    """


@dataclass(slots=True)
class Exchange:
    """One request, and what became of it; set as ``current`` before the request is made.

    Attributes:
        origin: the only scheme, host and port that this request, and its key, may go to.
        path_end: how the path of the request must end.
        connect_timeout: seconds for a name, for TCP and for TLS.
        credentials: the headers that carry the key; no other header of the kind is sent, whoever added it.
        local_only: refuse what is not loopback or private.
        direct: use no proxy, whatever the environment says.
        provider, root: the name and the address by which a tape knows where it went.
        deck: plays the answer, or keeps it.
        dry: answer 200 and nothing, without a connection.
        place: taken while LiteLLM prepares the request; given back when it sends it.
        connected: a connection was there to send it on.
        status, headers: the head of the answer.
        body: the answer's bytes, where the status is 2xx; whoever asked must close it.
        refusal: the body, where it is not.
        failure: why there is no answer.
        take: where it is kept.
    """

    origin: tuple[str, str, int]
    path_end: str
    connect_timeout: float
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    local_only: bool = False
    direct: bool = False
    provider: str = ""
    root: str = ""
    deck: Deck | None = None
    dry: bool = False
    place: asyncio.Semaphore | None = None
    connected: bool = False
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    refusal: bytes = b""
    failure: LLMError | None = None
    take: Take | None = None

    def prepared(self) -> None:
        """LiteLLM has come as far as sending, or will not."""
        place, self.place = self.place, None
        if place:
            place.release()

    def gave_up(self, why: LLMError) -> None:
        """Its time is over."""
        if self.take:
            self.take.end(failure=why)

    async def aclose(self) -> None:
        """Close the connection, unless the answer was read to its end; the server stops."""
        if self.take:
            self.take.end(left=True)
        if self.body is not None:
            await self.body.aclose()


current: ContextVar[Exchange] = ContextVar("learnflow_llm_exchange")
