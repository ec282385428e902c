"""An httpx transport that responds from cassettes, or wraps another transport and records its responses."""

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
_is_paused: ContextVar[bool] = ContextVar("learnflow_llm_recording_paused", default=False)


@contextmanager
def pause_recording() -> Iterator[None]:
    """Return a context manager in which no response is recorded, for probes whose number depends on time."""
    token = _is_paused.set(True)
    try:
        yield
    finally:
        _is_paused.reset(token)


class Recording:
    """A response that is being recorded.

    Args:
        write: a function that stores the interaction when it has ended.
        request: the request of the response.

    Attributes:
        status: the HTTP status; None before the response.
        headers: the headers of the response.
        pieces: the received pieces of the body.
        secrets: the placeholder of each text that must not be in the cassette, such as the API key.
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
        """Store the interaction. Later calls have no effect."""
        if not self._ended:
            self._ended = True
            pieces = [self._redact(piece) for piece in self.pieces]
            response = cassette.convert_response(self.status, self.headers, pieces, failure=failure, left=left)
            self._write(Interaction(self._request, response))

    def _redact(self, piece: bytes) -> bytes:
        for secret, placeholder in self.secrets.items():
            piece = piece.replace(secret, placeholder)
        return piece


class Cassettes:
    """The base class of ``Player`` and ``Recorder``.

    Attributes:
        providers: the names of the recorded providers; None if requests are sent to servers.
    """

    providers: frozenset[str] | None = None

    def play(self, request: RecordedRequest) -> RecordedResponse | None:  # noqa: ARG002
        """Return the recorded response; None to send the request. Raise NotRecorded if the cassettes lack it."""
        return None

    def record(self, request: RecordedRequest) -> Recording:
        """Start to record the response to a request."""
        raise NotImplementedError

    def base_url(self, provider: str, *, local: bool) -> str | None:  # noqa: ARG002
        """Return a base URL for a provider for which none is configured; None if requests are sent to servers."""
        return None

    def transport(self, wrapped: httpx.AsyncBaseTransport, provider: str) -> httpx.AsyncBaseTransport:
        """Return a transport that plays the requests of a provider, or sends them to the wrapped one and records."""
        return ReplayTransport(self, wrapped, provider)


class ReplayTransport(httpx.AsyncBaseTransport):
    """A transport that returns recorded responses, or records those of the wrapped transport."""

    def __init__(self, cassettes: Cassettes, wrapped: httpx.AsyncBaseTransport, provider: str) -> None:
        self._cassettes = cassettes
        self._wrapped = wrapped
        self._provider = provider

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return the recorded response, or record the server's. A recorded error is raised."""
        if self._cassettes.providers is None and _is_paused.get():
            return await self._wrapped.handle_async_request(request)
        endpoint: Endpoint = request.extensions["endpoint"]
        recorded_request = cassette.convert_request(request, endpoint, self._provider)
        if recorded := self._cassettes.play(recorded_request):
            return build_response(recorded)
        recording = self._cassettes.record(recorded_request)
        recording.secrets = self._secrets(request, endpoint)
        request.extensions["on_timeout"].append(lambda error: recording.end(failure=error))
        try:
            response = await self._wrapped.handle_async_request(request)
        except Exception as error:
            recording.end(failure=map_exception(error))
            raise
        except asyncio.CancelledError:
            # Later, because the handler of a timeout first ends the recording with its error.
            asyncio.get_running_loop().call_soon(partial(recording.end, left=True))
            raise
        recording.status, recording.headers = response.status_code, dict(response.headers)
        return httpx.Response(
            response.status_code, headers=response.headers, stream=_RecordedStream(response, recording)
        )

    def _secrets(self, request: httpx.Request, endpoint: Endpoint) -> dict[bytes, bytes]:
        """Return the API key, the values of headers and the host, with their placeholders."""
        secrets: dict[bytes, bytes] = {}
        if endpoint.key and len(endpoint.key) >= _MIN_KEY_CHARS:
            secrets[endpoint.key.encode()] = f"key-of-{self._provider}".encode()
        values = [value for value in endpoint.headers.values() if len(value) >= _MIN_KEY_CHARS]
        secrets |= {value.encode(): f"header-of-{self._provider}".encode() for value in values}
        for host in (request.url.netloc, request.url.raw_host):
            if b"." in host or b":" in host:  # a name without dots may be an ordinary word
                secrets[host] = f"{self._provider}.example".encode()
        return secrets


def build_response(recorded: RecordedResponse) -> httpx.Response:
    """Return the httpx response of a recorded one. Raise the recorded error if there was no response."""
    if recorded.status is None:
        raise recorded.final_error or ConnectionFailed("the cassette has no answer")
    return httpx.Response(recorded.status, headers=dict(recorded.headers), stream=_PlayedStream(recorded))


class _PlayedStream(httpx.AsyncByteStream):
    """The body of a recorded response. The recorded error is raised after the last piece."""

    def __init__(self, recorded: RecordedResponse) -> None:
        self._recorded = recorded

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._recorded.pieces:
            await asyncio.sleep(0)  # let other tasks run, as a server's response does
            yield piece
        if error := self._recorded.final_error:
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
        """Close the response. If the body was not read to its end, the cassette has ``left``."""
        self._recording.end(left=True)
        await self._response.aclose()
