"""The HTTP client. It sends an HttpRequest through an httpx transport, and returns an HttpResponse.

``NETWORK`` is the transport that connects to servers. ``replay`` wraps it to record and play cassettes (files of
requests and responses).
"""

from __future__ import annotations

import asyncio
import errno
import json
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, cast

import httpcore
import httpx

from .. import errors
from ..errors import LLMError
from ..process import ending_tasks, switches
from . import error_mapping, network
from .endpoint import Endpoint, origin
from .untrusted import MAX_JSON_BYTES

_MAX_ERROR_BYTES: Final = 256 * 1024  # limit for the body of an error response
_ERROR_TIMEOUT_S: Final = 2.0  # time limit for reading this body
COMPRESSIONS: Final = ("gzip", "x-gzip", "deflate", "compress", "br", "zstd")
_MAX_INFLATED_BYTES: Final = 64 * 1024  # the largest decompressed piece
_READS_BEFORE_YIELD: Final = 64  # then other tasks run, because a read of buffered data does not suspend the task
_NO_RESPONSE: Final = "without sending a response"  # in httpcore's message if the server closed the connection
# Raised before connecting: the socks package or a CA file is missing, or a proxy URL is invalid.
_SETUP_ERRORS: Final = (ImportError, OSError, ValueError, httpx.InvalidURL)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """A request. Its repr excludes the body.

    Attributes:
        body: the JSON to POST; None for a GET.
        connect_timeout: a limit in seconds that is shorter than ``Client.connect_timeout``. A longer one has no effect.
        on_timeout: callbacks, called if a time limit ends the request. The recorder of cassettes adds one.
    """

    url: str
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    connect_timeout: float | None = None
    on_timeout: list[Callable[[LLMError], None]] = field(default_factory=list, repr=False)


class HttpResponse:
    """A response whose body is read while it arrives. The caller must close it. ``headers`` has lower-case names."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = dict(response.headers)
        self._response = response
        encodings = map(str.strip, self.headers.get("content-encoding", "").lower().split(","))
        compressions = [encoding for encoding in encodings if encoding in COMPRESSIONS]
        stream = aiter(cast(httpx.AsyncByteStream, response.stream))
        self._bytes = _inflate(stream, compressions) if compressions else stream
        self._reads = 0

    async def read(self) -> bytes:
        """Return the next bytes of the body; b"" at its end.

        Raises:
            LLMError: the connection broke, or the body cannot be decompressed.
        """
        self._reads += 1
        if self._reads % _READS_BEFORE_YIELD == 0:
            await asyncio.sleep(0)  # let other tasks run
        try:
            async for data in self._bytes:
                if data:
                    return data
        except Exception as error:  # noqa: BLE001  # not only httpx's errors: damaged TLS raises ssl.SSLError
            raise error_mapping.map_exception(error) from None
        return b""

    async def read_into(self, body: bytearray, stop_at_bytes: int) -> None:
        """Append to ``body`` until the response ends, or ``body`` has at least ``stop_at_bytes`` bytes."""
        while len(body) < stop_at_bytes and (data := await self.read()):
            body += data

    async def aclose(self) -> None:
        """Close the connection, or return it to the pool if the body was read to its end.

        The close continues if the caller is cancelled, because an interrupted close leaves a half-closed connection in
        httpcore's pool.
        """
        closing = asyncio.ensure_future(self._close())
        ending_tasks.add(closing)
        closing.add_done_callback(ending_tasks.discard)
        await asyncio.shield(closing)

    async def _close(self) -> None:
        with suppress(Exception):  # the connection may be broken already
            if isinstance(self._bytes, AsyncGenerator):
                await self._bytes.aclose()
        with suppress(Exception):
            await self._response.aclose()


@dataclass(frozen=True, slots=True)
class Client:
    """A client of one endpoint. It adds the API key and the headers, and rejects requests to other origins.

    Attributes:
        connect_timeout: time limit in seconds for DNS and TCP together. TLS has a second limit of the same length.
        local_only: connect to loopback and private addresses only.
        transport: None for ``NETWORK``.
        replays: the transport plays cassettes.
    """

    endpoint: Endpoint
    connect_timeout: float
    local_only: bool = False
    transport: httpx.AsyncBaseTransport | None = field(default=None, repr=False)
    replays: bool = False

    @property
    def server_stopped(self) -> bool:
        """Return whether the transport's embedded server (a child process) is not running. The next POST starts it."""
        return bool(getattr(self.transport, "server_stopped", False))

    async def send(self, request: HttpRequest) -> HttpResponse:
        """Send a request. Return the response, which has a 2xx status.

        Raises:
            LLMError: the response has another status, or no response arrived.
        """
        response = await self._request(request)
        if not 200 <= response.status < 300:
            raise await self._read_error(request, response)
        return response

    async def fetch(self, request: HttpRequest) -> tuple[Mapping[str, str], bytes | LLMError]:
        """Send a request and read its response.

        Returns:
            The headers, and the body. The second value is an LLMError if the status is not 2xx, or the body exceeds
            8 MiB.

        Raises:
            LLMError: no response arrived, or its body could not be read.
        """
        response = await self._request(request)
        if not 200 <= response.status < 300:
            return response.headers, await self._read_error(request, response)
        body = bytearray()
        try:
            await response.read_into(body, MAX_JSON_BYTES + 1)
        finally:
            await response.aclose()
        if len(body) > MAX_JSON_BYTES:
            what = f"the response is larger than {MAX_JSON_BYTES >> 20} MiB"
            return response.headers, errors.MalformedAnswer(what)
        return response.headers, bytes(body)

    async def _request(self, request: HttpRequest) -> HttpResponse:
        """Send a request. Return the response, whatever its status. Raise LLMError if none arrives."""
        try:
            return HttpResponse(await (self.transport or NETWORK).handle_async_request(self._build(request)))
        except Exception as error:  # noqa: BLE001  # every exception becomes an LLMError
            raise error_mapping.map_exception(error) from None

    async def _read_error(self, request: HttpRequest, response: HttpResponse) -> LLMError:
        """Read a response with a status other than 2xx. Return its error."""
        body = bytearray()
        try:
            async with asyncio.timeout(_ERROR_TIMEOUT_S):
                await response.read_into(body, _MAX_ERROR_BYTES)
        except (TimeoutError, LLMError):
            pass  # the status and the partial body are enough
        finally:
            await response.aclose()
        error = error_mapping.map_response(response.status, bytes(body[:_MAX_ERROR_BYTES]), response.headers)
        error.server_message = self.endpoint.mask(error.server_message)
        error.quotable = request.body is None  # a GET sends no prompt that the message could repeat
        return error

    def _build(self, request: HttpRequest) -> httpx.Request:
        if origin(request.url) != self.endpoint.origin:
            host = httpx.URL(request.url).host
            raise errors.Misconfigured(f"a request to {host} was not sent, because its origin is not the provider's")
        headers = self.endpoint.all_headers
        content = None if request.body is None else _encode_json(request.body)
        if content is not None:
            headers["content-type"] = "application/json"
        connect = min(self.connect_timeout, request.connect_timeout or self.connect_timeout)
        return httpx.Request(
            "GET" if content is None else "POST",
            httpx.URL(request.url).copy_merge_params(self.endpoint.query) if self.endpoint.query else request.url,
            headers=httpx.Headers(headers, encoding="latin-1"),
            content=content,
            extensions={
                "timeout": {"connect": connect, "read": None, "write": None, "pool": None},
                "endpoint": self.endpoint,
                "local_only": self.local_only,
                "on_timeout": request.on_timeout,
            },
        )


class NetworkTransport(httpx.AsyncBaseTransport):
    """The transport that connects to servers, through the environment's proxies unless LLM_LOCAL_ONLY is set."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request. Raise an LLMError or an error of httpx if no response arrives."""
        if switches.allowed_origins is not None and origin(str(request.url)) not in switches.allowed_origins:
            raise errors.NotRecorded(
                "real model calls are forbidden in this test", hint="Use cassettes or a FaultServer"
            )
        extensions = request.extensions
        local_only, local_networks = extensions["local_only"], extensions["endpoint"].local_networks
        try:
            transports, proxy = await network.loop_transports(), None
            if not local_only:
                timeout_s = extensions["timeout"]["connect"]
                proxy = await network.choose_proxy(transports.proxies, request.url, timeout_s, local_networks)
            route = network.Route(request.url.scheme, proxy, local_only, local_networks)
            transport = transports.for_route(route)
        except _SETUP_ERRORS as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                raise  # too many open files: the configuration is not at fault
            raise errors.NotConfigured(
                f"the connection could not be set up ({type(error).__name__})",
                hint="Check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and SSL_CERT_FILE",
            ) from None
        return await _send(request, transport)

    async def prepare(self) -> None:
        """Create and close a transport, so that the first request does not wait for initialization."""
        await network.RouteTransport(network.Route("http")).aclose()


NETWORK: Final = NetworkTransport()


class _Body(httpx.AsyncByteStream):
    """The body of an httpx response. ``connection`` is httpcore's network stream; None if vcrpy plays the response."""

    def __init__(self, stream: httpx.AsyncByteStream, connection: Any) -> None:
        self._stream, self._connection = stream, connection

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._stream)

    async def aclose(self) -> None:
        """Return the connection to the pool. Close it instead if the server sent bytes after the response."""
        if _has_extra_bytes(self._stream, self._connection):
            await self._connection.aclose()
        await self._stream.aclose()


async def _send(request: httpx.Request, transport: network.RouteTransport) -> httpx.Response:
    """Send a request. If a reused connection breaks before the response begins, retry once on a new connection."""
    new_stream: httpcore.AsyncNetworkStream | None = None  # None if the request reuses an idle connection

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        nonlocal new_stream
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            new_stream = info["return_value"]

    request.extensions = {**request.extensions, "trace": trace}
    try:
        try:
            response = await transport.handle_async_request(request)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
            # If the message is another one, a response has begun, and is malformed
            malformed = isinstance(error, httpx.RemoteProtocolError) and _NO_RESPONSE not in str(error)
            if new_stream or malformed:
                raise
            await transport.close_idle(origin(str(request.url)))  # the other idle connections are probably stale, too
            response = await transport.handle_async_request(request)
    except asyncio.CancelledError:
        if new_stream:
            await transport.discard(new_stream)  # httpcore's pool would never remove it
        raise
    response.stream = _Body(cast(httpx.AsyncByteStream, response.stream), response.extensions.get("network_stream"))
    return response


def _has_extra_bytes(stream: Any, connection: Any) -> bool:
    """Return whether the server sent bytes after the end of the response.

    h11 would parse these bytes as the start of the next response. The private attributes are those of httpcore 1.0.
    ``tests/integration/transport/test_untrusted.py`` fails if they move.
    """
    for name in ("_httpcore_stream", "_stream", "_connection", "_h11_state"):
        stream = getattr(stream, name, None)
    if stream is not None and stream.trailing_data[0]:
        return True
    # asyncio may have bytes that h11 has not received yet. With TLS, they may still be encrypted
    tcp = tls = getattr(connection, "_stream", None)
    tcp = getattr(tls, "transport_stream", tcp)
    unread = getattr(getattr(tcp, "_protocol", None), "read_queue", ())
    return bool(unread or getattr(getattr(tls, "_read_bio", None), "pending", 0))


def _encode_json(body: Mapping[str, Any]) -> bytes:
    """Encode a body as JSON.

    Raises:
        InvalidRequest: the body cannot be encoded, or has a lone surrogate, which servers reject with status 500.
    """
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:
        what = "the request contains a lone surrogate (half of a character), which UTF-8 cannot encode"
        hint = "Clean the text first: text.encode('utf-8', 'replace').decode()"
        raise errors.InvalidRequest(what, hint=hint) from None
    except (ValueError, TypeError, RecursionError):
        raise errors.InvalidRequest(
            "the request cannot be encoded as JSON", hint="Use finite numbers and JSON types only"
        ) from None


async def _inflate(stream: AsyncIterator[bytes], encodings: list[str]) -> AsyncGenerator[bytes, None]:
    """Decompress a body in bounded pieces, because a few bytes can expand to gigabytes.

    Requests have ``accept-encoding: identity``, but some proxies compress anyway.
    """
    if len(encodings) > 1 or encodings[0] not in ("gzip", "x-gzip", "deflate"):
        what = f"the response is compressed with {', '.join(encodings)}, which was not requested"
        raise errors.MalformedAnswer(what, hint="Check for a proxy that compresses")
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32 detects gzip and zlib
    async for data in stream:
        compressed = data
        while compressed and not inflate.eof:
            await asyncio.sleep(0)  # let other tasks run
            yield inflate.decompress(compressed, _MAX_INFLATED_BYTES)
            compressed = inflate.unconsumed_tail
    if not inflate.eof:
        raise errors.ConnectionFailed("the compressed body is truncated")
