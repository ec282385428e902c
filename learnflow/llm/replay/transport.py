"""An httpx transport that answers from cassettes, or keeps what the one that it wraps is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Final, cast

import httpx

from ..errors import ConnectionFailed, LLMError
from ..transport.endpoint import Endpoint
from ..transport.error_mapping import failure_of
from . import cassette
from .cassette import Interaction, RecordedRequest, RecordedResponse

_SECRET: Final = 8  # characters; a shorter key may be any word
_unrecorded: ContextVar[bool] = ContextVar("learnflow_llm_unrecorded", default=False)


@contextmanager
def unrecorded() -> Iterator[None]:
    """What is asked inside is not recorded: it depends on the time, not on the application."""
    token = _unrecorded.set(True)
    try:
        yield
    finally:
        _unrecorded.reset(token)


class Recording:
    """An answer that is being recorded.

    Args:
        keep: gets it when it has ended.
        request: what was asked.

    Attributes:
        status, headers, pieces: the answer so far.
        secrets: what must not get into the cassette, and what stands there instead.
    """

    def __init__(self, keep: Callable[[Interaction], None], request: RecordedRequest) -> None:
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.pieces: list[bytes] = []
        self.secrets: dict[bytes, bytes] = {}
        self._keep = keep
        self._request = request
        self._ended = False

    def end(self, *, failure: LLMError | None = None, left: bool = False) -> None:
        """It is over; only the first time counts."""
        if not self._ended:
            self._ended = True
            pieces = [self._discreet(piece) for piece in self.pieces]
            said = cassette.recorded_response(self.status, self.headers, pieces, failure=failure, left=left)
            self._keep(Interaction(self._request, said))

    def _discreet(self, piece: bytes) -> bytes:
        for secret, instead in self.secrets.items():
            piece = piece.replace(secret, instead)
        return piece


class Cassettes:
    """Where recorded answers come from, or go to.

    Attributes:
        providers: those that are recorded, where only recordings answer; None where servers are asked.
    """

    providers: frozenset[str] | None = None

    def play(self, request: RecordedRequest) -> RecordedResponse | None:  # noqa: ARG002
        """The recorded answer; None to ask the server. Raises NotRecorded."""
        return None

    def record(self, request: RecordedRequest) -> Recording:
        """Where the server's answer is to be kept."""
        raise NotImplementedError

    def address(self, provider: str, *, near: bool) -> str | None:  # noqa: ARG002
        """A base URL for a provider whose own nobody told, where one is known."""
        return None

    def transport(self, wrapped: httpx.AsyncBaseTransport, provider: str) -> httpx.AsyncBaseTransport:
        """The transport of a provider: recordings before servers."""
        return ReplayTransport(self, wrapped, provider)


class ReplayTransport(httpx.AsyncBaseTransport):
    """Asks the cassettes first, then the transport that it wraps."""

    def __init__(self, cassettes: Cassettes, wrapped: httpx.AsyncBaseTransport, provider: str) -> None:
        self._cassettes = cassettes
        self._wrapped = wrapped
        self._provider = provider

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The recorded answer, or the server's, which is recorded. Raises what came instead of one."""
        if self._cassettes.providers is None and _unrecorded.get():
            return await self._wrapped.handle_async_request(request)
        endpoint: Endpoint = request.extensions["endpoint"]
        asked = cassette.recorded_request(
            request.method,
            str(request.url),
            request.content,
            root=endpoint.root,
            provider=self._provider,
            credentials=endpoint.credentials,
        )
        recorded = self._cassettes.play(asked)
        if recorded:
            return played(recorded)
        recording = self._cassettes.record(asked)
        recording.secrets = self._secrets(request, endpoint)
        request.extensions["on_timeout"].append(lambda error: recording.end(failure=error))
        try:
            response = await self._wrapped.handle_async_request(request)
        except Exception as error:
            recording.end(failure=failure_of(error))
            raise
        except asyncio.CancelledError:
            # one turn of the loop later: whoever gave up for a reason says it now
            asyncio.get_running_loop().call_soon(partial(recording.end, left=True))
            raise
        recording.status, recording.headers = response.status_code, dict(response.headers)
        return httpx.Response(
            response.status_code, headers=response.headers, stream=_RecordedStream(response, recording)
        )

    def _secrets(self, request: httpx.Request, endpoint: Endpoint) -> dict[bytes, bytes]:
        """What must not get into a cassette, and what stands there instead."""
        keys = {endpoint.key} if endpoint.key else set[str]()
        found = {key.encode(): b"key-of-" + self._provider.encode() for key in keys if len(key) >= _SECRET}
        place = f"{self._provider}.example".encode()
        there = request.url.netloc, request.url.raw_host
        return found | {name: place for name in there if b"." in name or b":" in name}  # a service's may be any word


def played(recorded: RecordedResponse) -> httpx.Response:
    """A recorded answer, in the pieces in which it came. Raises what came instead of one."""
    if recorded.status is None:
        raise recorded.end or ConnectionFailed("the cassette has no answer")
    return httpx.Response(recorded.status, headers=dict(recorded.headers), stream=_PlayedStream(recorded))


class _PlayedStream(httpx.AsyncByteStream):
    """The body of a recorded answer, which ends as it ended."""

    def __init__(self, recorded: RecordedResponse) -> None:
        self._recorded = recorded

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._recorded.pieces:
            await asyncio.sleep(0)  # as a server's would, it lets others go on
            yield piece
        if self._recorded.end:
            raise self._recorded.end


class _RecordedStream(httpx.AsyncByteStream):
    """A body that is kept while it is read."""

    def __init__(self, response: httpx.Response, recording: Recording) -> None:
        self._response = response
        self._recording = recording

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for data in cast(httpx.AsyncByteStream, self._response.stream):
                if data:
                    self._recording.pieces.append(data)
                    yield data
        except Exception as error:
            self._recording.end(failure=failure_of(error))
            raise
        self._recording.end()

    async def aclose(self) -> None:
        """Close it; what was not read is not recorded, which the cassette says."""
        self._recording.end(left=True)
        await self._response.aclose()
