"""An httpx transport that plays the responses in cassettes, or records those of another transport."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Final, cast

import httpx

from ..errors import ConnectionFailed, LLMError
from ..transport.client import COMPRESSIONS
from ..transport.endpoint import Endpoint
from ..transport.error_mapping import map_exception
from . import cassette
from .cassette import Interaction, RecordedRequest, RecordedResponse
from .scrubber import MIN_SECRET_CHARS, Scrubber, find_secrets

_MAX_BODY_BYTES: Final = 16 * 1024 * 1024  # of a decompressed body
_is_paused: ContextVar[bool] = ContextVar("learnflow_llm_recording_paused", default=False)


@contextmanager
def pause_recording() -> Iterator[None]:
    """Record no responses inside the block. Probes run in such a block, because their number varies between runs."""
    token = _is_paused.set(True)
    try:
        yield
    finally:
        _is_paused.reset(token)


class Recording:
    """A response that is being recorded. ``end`` passes the request and the response to ``write``.

    Attributes:
        status: the HTTP status; None if no response has arrived.
        pieces: the received pieces of the body.
        scrubber: removes the secrets of the request from the response.
    """

    def __init__(self, write: Callable[[Interaction], None], request: RecordedRequest) -> None:
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.pieces: list[bytes] = []
        self.scrubber = Scrubber({})
        self._write = write
        self._request = request
        self._ended = False

    def end(self, *, failure: LLMError | None = None, client_disconnected: bool = False) -> None:
        """Store the interaction. Later calls have no effect."""
        if not self._ended:
            self._ended = True
            headers, pieces = _decompress(self.headers, self.pieces)
            headers = {name: self.scrubber.scrub_text(value) for name, value in headers.items()}
            pieces = self.scrubber.scrub_pieces(pieces)
            failure = failure and type(failure)(self.scrubber.scrub_text(failure.what))
            response = cassette.convert_response(
                self.status, headers, pieces, failure=failure, client_disconnected=client_disconnected
            )
            self._write(Interaction(self._request, response))


def _decompress(headers: Mapping[str, str], pieces: Sequence[bytes]) -> tuple[Mapping[str, str], Sequence[bytes]]:
    """Decompress the body, so that secrets in it can be found. Omit a body that cannot be decompressed."""
    encodings = [encoding.strip() for encoding in headers.get("content-encoding", "").lower().split(",")]
    compressed = [encoding for encoding in encodings if encoding in COMPRESSIONS]
    if not compressed:
        return headers, pieces
    if compressed not in (["gzip"], ["x-gzip"], ["deflate"]):
        return headers, ()
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32 detects gzip and zlib
    headers = {name: value for name, value in headers.items() if name != "content-encoding"}
    try:
        return headers, (decompressor.decompress(b"".join(pieces), _MAX_BODY_BYTES),)
    except zlib.error:
        return headers, ()


class CassetteBackend:
    """The base class of ``Player`` and ``Recorder``, which ``ReplayTransport`` calls.

    Attributes:
        providers: the names of the providers in a player's cassettes; None for a recorder.
    """

    providers: frozenset[str] | None = None

    def play(self, request: RecordedRequest) -> RecordedResponse | None:  # noqa: ARG002
        """Return the recorded response, or None to send the request.

        A player raises NotRecorded if it has no response.
        """
        return None

    def record(self, request: RecordedRequest) -> Recording:
        """Start to record the response to a request."""
        raise NotImplementedError

    def base_url(self, provider: str, *, local: bool) -> str | None:  # noqa: ARG002
        """Return a base URL for a provider whose base URL is not configured. A recorder returns None."""
        return None

    def transport(self, wrapped: httpx.AsyncBaseTransport, provider: str) -> httpx.AsyncBaseTransport:
        """Return a transport that plays or records the responses of a provider."""
        return ReplayTransport(self, wrapped, provider)


class ReplayTransport(httpx.AsyncBaseTransport):
    """Plays recorded responses, or records those of the wrapped transport."""

    def __init__(self, cassettes: CassetteBackend, wrapped: httpx.AsyncBaseTransport, provider: str) -> None:
        self._cassettes = cassettes
        self._wrapped = wrapped
        self._provider = provider

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return the recorded response, or raise the recorded error. With a recorder, send the request."""
        if self._cassettes.providers is None and _is_paused.get():
            return await self._wrapped.handle_async_request(request)
        endpoint: Endpoint = request.extensions["endpoint"]
        recorded_request = cassette.convert_request(request, endpoint, self._provider)
        secrets = find_secrets(recorded_request.body)
        recorded_request = replace(recorded_request, body=Scrubber(secrets).scrub(recorded_request.body))
        if recorded := self._cassettes.play(recorded_request):
            return build_response(recorded)
        scrubber = self._scrubber(request, endpoint, secrets)
        body, uri = scrubber.scrub(recorded_request.body), scrubber.scrub(recorded_request.uri)
        recording = self._cassettes.record(replace(recorded_request, body=body, uri=uri))
        recording.scrubber = scrubber
        request.extensions["on_timeout"].append(lambda error: recording.end(failure=error))
        try:
            response = await self._wrapped.handle_async_request(request)
        except Exception as error:
            recording.end(failure=map_exception(error))
            raise
        except asyncio.CancelledError:
            # Delay this call: if a timeout caused the cancellation, ``on_timeout`` must record the timeout error first.
            asyncio.get_running_loop().call_soon(partial(recording.end, client_disconnected=True))
            raise
        recording.status, recording.headers = response.status_code, dict(response.headers)
        return httpx.Response(
            response.status_code, headers=response.headers, stream=_RecordedStream(response, recording)
        )

    def _scrubber(self, request: httpx.Request, endpoint: Endpoint, secrets: Mapping[str, str]) -> Scrubber:
        """Return a scrubber for the secrets of the endpoint, the secrets in the body, and the host name."""
        if endpoint.key and len(endpoint.key) >= MIN_SECRET_CHARS:
            secrets = {endpoint.key: f"key-of-{self._provider}", **secrets}
        secret_values = [value for value in endpoint.secrets if len(value) >= MIN_SECRET_CHARS]
        secrets = {**dict.fromkeys(secret_values, f"header-of-{self._provider}"), **secrets}
        hosts = (request.url.netloc.decode(), request.url.raw_host.decode())
        # A host name that has neither a dot nor a port is not replaced, because it may be an ordinary word.
        return Scrubber(secrets, {host: f"{self._provider}.example" for host in hosts if "." in host or ":" in host})


def build_response(recorded: RecordedResponse) -> httpx.Response:
    """Convert a recorded response to an ``httpx.Response``. If no response arrived, raise the recorded error."""
    if recorded.status is None:
        raise recorded.final_error or ConnectionFailed("the recorded interaction has neither a response nor an error")
    return httpx.Response(recorded.status, headers=dict(recorded.headers), stream=_PlayedStream(recorded))


class _PlayedStream(httpx.AsyncByteStream):
    """The body of a recorded response. Raises the recorded error after the last piece."""

    def __init__(self, recorded: RecordedResponse) -> None:
        self._recorded = recorded

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._recorded.pieces:
            await asyncio.sleep(0)  # let other tasks run, as reading from a server does
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
        """Close the response. If the body was not read to its end, record that the client disconnected."""
        self._recording.end(client_disconnected=True)
        await self._response.aclose()
