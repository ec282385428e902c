"""The HTTP client: sends an HttpRequest through an httpx transport and returns an HttpResponse.

``NETWORK`` is the transport that connects to servers. ``replay`` wraps it to play or record cassettes.
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
from ..process import ending, switches
from . import error_mapping, network, pool
from .endpoint import Endpoint, origin
from .error_mapping import Judge
from .untrusted import MAX_JSON_BYTES, mask_keys

_HEADERS: Final = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "learnflow-llm"}
_MAX_ERROR_BYTES: Final = 256 * 1024  # of the body of an error response
_ERROR_TIMEOUT_S: Final = 2.0  # for the body of an error response
_COMPRESSIONS: Final = ("gzip", "x-gzip", "deflate", "compress", "br", "zstd")
_MAX_INFLATED_BYTES: Final = 64 * 1024  # decompressed at a time
_READS_BEFORE_YIELD: Final = 64  # a read of buffered data does not suspend the task
_NO_RESPONSE: Final = "without sending a response"  # httpcore's message if the server closed the connection
# Raised before connecting: the socks package or a CA file is missing, or a proxy URL is invalid.
_SETUP_ERRORS: Final = (ImportError, OSError, ValueError, httpx.InvalidURL)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """A request. Its repr excludes body and headers.

    Attributes:
        url: the URL.
        body: JSON; None for a GET.
        headers: sent in addition to the client's headers.
        connect_timeout: seconds for DNS, TCP and TLS each. It cannot exceed the client's, which is used if None.
        on_timeout: callbacks for a timeout of the reader, called with the error. A recorder adds one.
    """

    url: str
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    connect_timeout: float | None = None
    on_timeout: list[Callable[[LLMError], None]] = field(default_factory=list, repr=False)


class HttpResponse:
    """The status and headers of a response, and its body as it arrives. The caller must close it.

    Attributes:
        status: the HTTP status.
        headers: with lower-case names, without cookies.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers = {name: value for name, value in response.headers.items() if name != "set-cookie"}
        self._response = response
        encodings = map(str.strip, self.headers.get("content-encoding", "").lower().split(","))
        compressed = [encoding for encoding in encodings if encoding in _COMPRESSIONS]
        stream = aiter(cast(httpx.AsyncByteStream, response.stream))
        self._bytes = _inflate(stream, compressed) if compressed else stream
        self._reads = 0

    async def read(self) -> bytes:
        """Return the next bytes, b"" at the end. Raise LLMError if the connection broke."""
        self._reads += 1
        if self._reads % _READS_BEFORE_YIELD == 0:  # let other tasks run: reading buffered data does not
            await asyncio.sleep(0)
        try:
            async for data in self._bytes:
                if data:
                    return data
        except Exception as error:  # noqa: BLE001  # not only httpx's errors: damaged TLS is an ssl.SSLError
            raise error_mapping.map_exception(error) from None
        return b""

    async def read_into(self, body: bytearray, limit: int) -> None:
        """Append the body, until it has ``limit`` bytes or more. Raise LLMError if the connection breaks."""
        while len(body) < limit and (data := await self.read()):
            body += data

    async def aclose(self) -> None:
        """Close the connection, or return it to the pool if everything was read.

        A cancelled caller does not interrupt the close, which would leave a half-closed connection in httpcore's pool.
        """
        closing = asyncio.ensure_future(self._close())
        ending.add(closing)
        closing.add_done_callback(ending.discard)
        await asyncio.shield(closing)

    async def _close(self) -> None:
        with suppress(Exception):  # it may be broken already
            if isinstance(self._bytes, AsyncGenerator):
                await self._bytes.aclose()
        with suppress(Exception):
            await self._response.aclose()


@dataclass(frozen=True, slots=True)
class Client:
    """Sends requests to one endpoint, with its API key. Rejects requests to other addresses.

    Attributes:
        endpoint: the address and API key of the server.
        connect_timeout: seconds for DNS, TCP and TLS each.
        local_only: connect to loopback and private addresses only.
        transport: sends the requests; None for ``NETWORK``.
        replays: the transport plays cassettes. Keys and addresses are optional, and failures open no circuit breaker.
    """

    endpoint: Endpoint
    connect_timeout: float
    local_only: bool = False
    transport: httpx.AsyncBaseTransport | None = field(default=None, repr=False)
    replays: bool = False

    @property
    def stopped(self) -> bool:
        """Return whether the next request has to start the server first."""
        return bool(getattr(self.transport, "stopped", False))

    async def send(self, request: HttpRequest, judge: Judge | None = None) -> HttpResponse:
        """Send a request.

        Args:
            request: the request.
            judge: classifies an error response if its status, error codes and message are not enough.

        Returns:
            A response with a 2xx status.

        Raises:
            LLMError: the server refused the request, or no response arrived.
        """
        response = await self._exchange(request)
        if not 200 <= response.status < 300:
            raise await self._read_error(request, response, judge)
        return response

    async def fetch(self, request: HttpRequest) -> tuple[Mapping[str, str], bytes | LLMError]:
        """Send a request and read its response.

        Returns:
            The headers, and the body. The body is an LLMError if the status is not 2xx or the body is too large.

        Raises:
            LLMError: no response arrived.
        """
        response = await self._exchange(request)
        if not 200 <= response.status < 300:
            return response.headers, await self._read_error(request, response, None)
        body = bytearray()
        try:
            await response.read_into(body, MAX_JSON_BYTES + 1)
        finally:
            await response.aclose()
        if len(body) > MAX_JSON_BYTES:
            what = f"the response is larger than {MAX_JSON_BYTES >> 20} MiB"
            return response.headers, errors.MalformedAnswer(what)
        return response.headers, bytes(body)

    async def _exchange(self, request: HttpRequest) -> HttpResponse:
        """Send a request. Return the response, whatever its status. Raise LLMError if none arrives."""
        try:
            return HttpResponse(await (self.transport or NETWORK).handle_async_request(self._build(request)))
        except Exception as error:  # noqa: BLE001  # map every exception to an LLMError
            raise error_mapping.map_exception(error) from None

    async def _read_error(self, request: HttpRequest, response: HttpResponse, judge: Judge | None) -> LLMError:
        """Return the error for a response with a status other than 2xx."""
        body = bytearray()
        try:
            async with asyncio.timeout(_ERROR_TIMEOUT_S):
                await response.read_into(body, _MAX_ERROR_BYTES)
        except (TimeoutError, LLMError):
            pass  # use the status and the partial body
        finally:
            await response.aclose()
        error = error_mapping.map_response(response.status, bytes(body[:_MAX_ERROR_BYTES]), response.headers, judge)
        error.server_message = mask_keys(error.server_message, self.endpoint.key)
        error.quotable = request.body is None  # the response to a GET cannot quote a prompt
        return error

    def _build(self, request: HttpRequest) -> httpx.Request:
        if origin(request.url) != self.endpoint.origin:
            host = httpx.URL(request.url).host
            raise errors.Misconfigured(f"a request to {host} was not sent, because the host is not the provider's")
        headers = {**request.headers, **_HEADERS, **self.endpoint.credentials}
        content = None if request.body is None else _encode_json(request.body)
        if content is not None:
            headers["content-type"] = "application/json"
        connect = min(self.connect_timeout, request.connect_timeout or self.connect_timeout)
        return httpx.Request(
            "GET" if content is None else "POST",
            request.url,
            headers=headers,
            content=content,
            extensions={
                "timeout": {"connect": connect, "read": None, "write": None, "pool": None},
                "endpoint": self.endpoint,
                "local_only": self.local_only,
                "on_timeout": request.on_timeout,
            },
        )


class NetworkTransport(httpx.AsyncBaseTransport):
    """Sends over the network. Enforces LLM_LOCAL_ONLY, applies proxies, and retries once on a stale connection.

    It serves any number of event loops. Each has its own connections, which are closed when the loop is shut down.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request. Raise LLMError, or an error of httpx."""
        if switches.allowed is not None and origin(str(request.url)) not in switches.allowed:
            raise errors.NotRecorded(
                "real model calls are forbidden in this test", hint="Use cassettes or a FaultServer"
            )
        extensions = request.extensions
        local_only, networks = extensions["local_only"], extensions["endpoint"].networks
        try:
            current, proxy = await pool.current_pool(), None
            if not local_only:
                budget = extensions["timeout"]["connect"]
                proxy = await network.proxy_for(current.proxies, request.url, budget, networks)
            route = pool.Route(request.url.scheme, proxy, local_only, networks)
            connections = current.connections_for(route)
        except _SETUP_ERRORS as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            raise errors.NotConfigured(
                f"the connection could not be set up ({type(error).__name__})",
                hint="Check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and SSL_CERT_FILE",
            ) from None
        return await _send(request, connections, route)

    async def prepare(self) -> None:
        """Import httpcore in advance. httpx imports it when the first transport is created."""
        await pool.Connections(pool.Route("http")).aclose()


NETWORK: Final = NetworkTransport()


class _Body(httpx.AsyncByteStream):
    """The body of a response.

    Args:
        response: the response.
        dedicated: connections opened for this response only; None if they are pooled.
    """

    def __init__(self, response: httpx.Response, dedicated: pool.Connections | None) -> None:
        self._response = response
        self._dedicated = dedicated

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(cast(httpx.AsyncByteStream, self._response.stream))

    async def aclose(self) -> None:
        """Return the connection to the pool, unless extra bytes would become the start of the next response."""
        if _has_extra_bytes(self._response):
            await self._response.extensions["network_stream"].aclose()
        await self._response.aclose()
        if self._dedicated:
            await self._dedicated.aclose()


async def _send(request: httpx.Request, connections: pool.Connections, route: pool.Route) -> httpx.Response:
    """Send a request. If an idle connection is stale before the response begins, send it again on a new one."""
    opened: httpcore.AsyncNetworkStream | None = None  # the new connection; None if an idle one is reused

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        nonlocal opened
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            opened = info["return_value"]

    request.extensions = {**request.extensions, "trace": trace}
    dedicated: pool.Connections | None = None
    try:
        response = await connections.handle_async_request(request)
    except asyncio.CancelledError:
        if opened:
            await connections.discard(opened)
        raise
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
        malformed = isinstance(error, httpx.RemoteProtocolError) and _NO_RESPONSE not in str(error)
        if opened or malformed:
            raise
        dedicated = pool.Connections(route)
        try:
            response = await dedicated.handle_async_request(request)
        except BaseException:
            await dedicated.aclose()
            raise
    return httpx.Response(
        response.status_code,
        headers=response.headers,
        stream=_Body(response, dedicated),
        extensions=response.extensions,
    )


def _has_extra_bytes(response: httpx.Response) -> bool:
    """Return whether the server sent bytes after the end of the response.

    h11 buffers such bytes for the next response on the connection. httpcore and httpx do not expose them, so this reads
    private attributes of httpcore 1.0 (tested by ``tests/integration/transport/test_network.py``).
    """
    stream: Any = response.stream
    for name in ("_httpcore_stream", "_stream", "_connection", "_h11_state"):
        stream = getattr(stream, name, None)
    if stream is not None and stream.trailing_data[0]:
        return True
    # bytes that asyncio has read and h11 has not received yet; with TLS they may still be encrypted
    tcp = tls = getattr(response.extensions.get("network_stream"), "_stream", None)
    tcp = getattr(tls, "transport_stream", tcp)
    unread = getattr(getattr(tcp, "_protocol", None), "read_queue", ())
    return bool(unread or getattr(getattr(tls, "_read_bio", None), "pending", 0))


def _encode_json(body: Mapping[str, Any]) -> bytes:
    """Return JSON as bytes.

    Raises:
        InvalidRequest: the body is not JSON, or has a lone surrogate. Servers reject an escaped one with status 500.
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
    """Yield a compressed body in bounded pieces: a few bytes can expand to gigabytes.

    Requests have ``accept-encoding: identity``, but some proxies compress anyway.
    """
    if len(encodings) > 1 or encodings[0] not in ("gzip", "x-gzip", "deflate"):
        what = f"the response is compressed with {', '.join(encodings)}, which was not requested"
        raise errors.MalformedAnswer(what, hint="Check for a proxy that compresses")
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: detects gzip and zlib
    async for data in stream:
        compressed = data
        while compressed and not inflate.eof:
            await asyncio.sleep(0)  # let other tasks run: reading buffered data does not
            yield inflate.decompress(compressed, _MAX_INFLATED_BYTES)
            compressed = inflate.unconsumed_tail
    if not inflate.eof:
        raise errors.ConnectionFailed("the compressed body is truncated")
