"""An httpx transport that answers from cassettes, or records the responses of the transport that it wraps."""

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
from ..transport.error_mapping import map_exception
from . import cassette
from .cassette import Interaction, RecordedRequest, RecordedResponse

_MIN_KEY_CHARS: Final = 8  # a shorter key may be an ordinary word of the answer
_unrecorded: ContextVar[bool] = ContextVar("learnflow_llm_unrecorded", default=False)


@contextmanager
def unrecorded() -> Iterator[None]:
    """Do not record the requests inside: they depend on the time, not on the application."""
    token = _unrecorded.set(True)
    try:
        yield
    finally:
        _unrecorded.reset(token)


class Recording:
    """A response that is being recorded.

    Args:
        write: called with the interaction at its end.
        request: the request.

    Attributes:
        status, headers, pieces: the response so far.
        secrets: the bytes that must not get into the cassette, with their placeholders.
    """

    def __init__(self, write: Callable[[Interaction], None], request: RecordedRequest) -> None:
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.pieces: list[bytes] = []
        self.secrets: dict[bytes, bytes] = {}
        self._write = write
        self._request = request
        self._ended = False

    def end(self, *, failure: LLMError | None = None, left: bool = False) -> None:
        """End the recording. Only the first call has an effect."""
        if not self._ended:
            self._ended = True
            pieces = [self._redact(piece) for piece in self.pieces]
            response = cassette.recorded_response(self.status, self.headers, pieces, failure=failure, left=left)
            self._write(Interaction(self._request, response))

    def _redact(self, piece: bytes) -> bytes:
        for secret, placeholder in self.secrets.items():
            piece = piece.replace(secret, placeholder)
        return piece


class Cassettes:
    """The base class of ``Player`` and ``Recorder``.

    Attributes:
        providers: the names of the recorded providers if cassettes answer; None if servers answer.
    """

    providers: frozenset[str] | None = None

    def play(self, request: RecordedRequest) -> RecordedResponse | None:  # noqa: ARG002
        """Return the recorded response, or None if the server answers. Raise NotRecorded."""
        return None

    def record(self, request: RecordedRequest) -> Recording:
        """Return the recording of the server's response."""
        raise NotImplementedError

    def address(self, provider: str, *, near: bool) -> str | None:  # noqa: ARG002
        """Return a base URL for a provider without one, or None if servers answer."""
        return None

    def transport(self, wrapped: httpx.AsyncBaseTransport, provider: str) -> httpx.AsyncBaseTransport:
        """Wrap the transport of a provider."""
        return ReplayTransport(self, wrapped, provider)


class ReplayTransport(httpx.AsyncBaseTransport):
    """A transport that plays a recorded response, or else records that of the transport that it wraps."""

    def __init__(self, cassettes: Cassettes, wrapped: httpx.AsyncBaseTransport, provider: str) -> None:
        self._cassettes = cassettes
        self._wrapped = wrapped
        self._provider = provider

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return the recorded response, or the server's. Raise the error that was recorded or raised instead."""
        if self._cassettes.providers is None and _unrecorded.get():
            return await self._wrapped.handle_async_request(request)
        endpoint: Endpoint = request.extensions["endpoint"]
        recorded_request = cassette.recorded_request(
            request.method,
            str(request.url),
            request.content,
            root=endpoint.root,
            provider=self._provider,
            credentials=endpoint.credentials,
        )
        if recorded := self._cassettes.play(recorded_request):
            return played(recorded)
        recording = self._cassettes.record(recorded_request)
        recording.secrets = self._secrets(request, endpoint)
        request.extensions["on_timeout"].append(lambda error: recording.end(failure=error))
        try:
            response = await self._wrapped.handle_async_request(request)
        except Exception as error:
            recording.end(failure=map_exception(error))
            raise
        except asyncio.CancelledError:
            # in the next iteration of the loop, because a timeout ends the recording before that with its error
            asyncio.get_running_loop().call_soon(partial(recording.end, left=True))
            raise
        recording.status, recording.headers = response.status_code, dict(response.headers)
        return httpx.Response(
            response.status_code, headers=response.headers, stream=_RecordedStream(response, recording)
        )

    def _secrets(self, request: httpx.Request, endpoint: Endpoint) -> dict[bytes, bytes]:
        """Return the bytes that must not get into a cassette, with their placeholders."""
        secrets: dict[bytes, bytes] = {}
        if endpoint.key and len(endpoint.key) >= _MIN_KEY_CHARS:
            secrets[endpoint.key.encode()] = f"key-of-{self._provider}".encode()
        for host in (request.url.netloc, request.url.raw_host):
            if b"." in host or b":" in host:  # the name of a Docker service may be an ordinary word
                secrets[host] = f"{self._provider}.example".encode()
        return secrets


def played(recorded: RecordedResponse) -> httpx.Response:
    """Return a recorded response, with its body in the recorded pieces. Raise the error that was recorded instead."""
    if recorded.status is None:
        raise recorded.end or ConnectionFailed("the cassette has no answer")
    return httpx.Response(recorded.status, headers=dict(recorded.headers), stream=_PlayedStream(recorded))


class _PlayedStream(httpx.AsyncByteStream):
    """The body of a recorded response. It ends with the recorded error, if there is one."""

    def __init__(self, recorded: RecordedResponse) -> None:
        self._recorded = recorded

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._recorded.pieces:
            await asyncio.sleep(0)  # let other tasks run, as a server's response does
            yield piece
        if error := self._recorded.end:
            raise error


class _RecordedStream(httpx.AsyncByteStream):
    """A body that is recorded while it is read."""

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
            self._recording.end(failure=map_exception(error))
            raise
        self._recording.end()

    async def aclose(self) -> None:
        """Close the response. The cassette marks the rest of the body as unread."""
        self._recording.end(left=True)
        await self._response.aclose()
