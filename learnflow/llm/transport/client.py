"""The one sender of requests: HttpRequest down, HttpResponse up, through an httpx transport that may be replaced.

``NETWORK`` is the transport that really connects; ``replay`` wraps it with one that answers from cassettes or keeps
what servers answer.
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
from .untrusted import MAX_JSON_BYTES, without_keys

_HEADERS: Final = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "learnflow-llm"}
_REFUSAL_BYTES: Final = 256 * 1024  # of an error's body
_REFUSAL_S: Final = 2.0  # for an error's body: its status has come
_COMPRESSED: Final = ("gzip", "x-gzip", "deflate", "compress", "br", "zstd")
_INFLATED_BYTES: Final = 64 * 1024  # of a compressed body at a time
_UNINTERRUPTED: Final = 64  # reads in a row
_NO_ANSWER: Final = "without sending a response"  # httpcore's words where a server closed and said nothing
# What setting up a connection raises: socks without its package, a missing CA file, a proxy that cannot be.
_SET_UP: Final = (ImportError, OSError, ValueError, httpx.InvalidURL)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """A request as it will be sent; its repr shows no body.

    Attributes:
        url: where to.
        body: JSON; None for a GET.
        headers: beside those of every request.
        direct: use no proxy, whatever the environment says.
        connect_timeout: seconds for the name, for TCP and for TLS, where they are fewer than the client's.
        on_timeout: called with the error when whoever waits for the answer gives up: a recorder wants to know.
    """

    url: str
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    direct: bool = False
    connect_timeout: float | None = None
    on_timeout: list[Callable[[LLMError], None]] = field(default_factory=list, repr=False)


class HttpResponse:
    """The head of an answer and its bytes as they arrive; whoever has it must close it.

    Attributes:
        status: the HTTP status.
        headers: with lower-case names.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers = {name: value for name, value in response.headers.items() if name != "set-cookie"}
        self._response = response
        encodings = map(str.strip, self.headers.get("content-encoding", "").lower().split(","))
        compressed = [encoding for encoding in encodings if encoding in _COMPRESSED]
        stream = aiter(cast(httpx.AsyncByteStream, response.stream))
        self._bytes = _inflated(stream, compressed) if compressed else stream
        self._reads = 0

    async def read(self) -> bytes:
        """The next bytes, b"" at the end. Raises an LLMError where the connection broke."""
        self._reads += 1
        if self._reads % _UNINTERRUPTED == 0:  # data that has arrived does not wait: let other tasks run
            await asyncio.sleep(0)
        try:
            async for data in self._bytes:
                if data:
                    return data
        except Exception as error:  # noqa: BLE001  # nothing raw passes: damaged TLS is an ssl.SSLError
            raise error_mapping.failure_of(error) from None
        return b""

    async def read_into(self, body: bytearray, limit: int) -> None:
        """Append the body, until it has ``limit`` bytes or more. Raises LLMError if the connection breaks."""
        while len(body) < limit and (data := await self.read()):
            body += data

    async def aclose(self) -> None:
        """Close the connection, or give it back to the pool where everything was read.

        It comes to its end even if whoever waits for it is cancelled: half closed, httpcore would keep it for ever.
        """
        closing = asyncio.ensure_future(self._close())
        ending.add(closing)
        closing.add_done_callback(ending.discard)
        await asyncio.shield(closing)

    async def _close(self) -> None:
        with suppress(Exception):  # what is closed may be broken already
            if isinstance(self._bytes, AsyncGenerator):
                await self._bytes.aclose()
        with suppress(Exception):
            await self._response.aclose()


@dataclass(frozen=True, slots=True)
class Client:
    """Sends requests to one endpoint, with its key, and to nowhere else.

    Attributes:
        endpoint: where the server is.
        connect_timeout: seconds for a name, for TCP and for TLS.
        local_only: connect to loopback and private addresses only.
        transport: what sends; None for ``NETWORK``.
        replays: the transport answers from recordings: no key and no address is needed, and a failure is no outage.
    """

    endpoint: Endpoint
    connect_timeout: float
    local_only: bool = False
    transport: httpx.AsyncBaseTransport | None = field(default=None, repr=False)
    replays: bool = False

    @property
    def stopped(self) -> bool:
        """Whether the next request has to start the server first."""
        return bool(getattr(self.transport, "stopped", False))

    async def ask(self, request: HttpRequest, judge: Judge | None = None) -> HttpResponse:
        """Send a request.

        Args:
            request: what is sent.
            judge: who is asked what a refusal means, where its status and codes leave it open.

        Returns:
            The answer, whose status is 2xx.

        Raises:
            LLMError: why there is none.
        """
        response = await self.send(request)
        if not 200 <= response.status < 300:
            raise await self._refusal(request, response, judge)
        return response

    async def page(self, request: HttpRequest) -> tuple[Mapping[str, str], bytes | LLMError]:
        """Return the headers and the body of a response, or why there is none. Raises LLMError if none came."""
        response = await self.send(request)
        if not 200 <= response.status < 300:
            return response.headers, await self._refusal(request, response, None)
        body = bytearray()
        try:
            await response.read_into(body, MAX_JSON_BYTES + 1)
        finally:
            await response.aclose()
        if len(body) > MAX_JSON_BYTES:
            what = f"the server sent a page of more than {MAX_JSON_BYTES >> 20} MiB"
            return response.headers, errors.MalformedAnswer(what)
        return response.headers, bytes(body)

    async def send(self, request: HttpRequest) -> HttpResponse:
        """Send a request; the answer may have any status. Raises an LLMError where none came."""
        try:
            outgoing = self._outgoing(request)
        except LLMError:
            raise
        except Exception as error:  # noqa: BLE001  # a host that httpx takes for none
            what = f"no request can be sent to this address ({type(error).__name__})"
            raise errors.NotConfigured(what, hint="Check the host in the base URL") from None
        try:
            return HttpResponse(await (self.transport or NETWORK).handle_async_request(outgoing))
        except Exception as error:  # noqa: BLE001  # nothing raw passes
            raise error_mapping.failure_of(error) from None

    async def _refusal(self, request: HttpRequest, response: HttpResponse, judge: Judge | None) -> LLMError:
        """What an answer means whose status is not 2xx."""
        body = bytearray()
        try:
            async with asyncio.timeout(_REFUSAL_S):
                await response.read_into(body, _REFUSAL_BYTES)
        except (TimeoutError, LLMError):
            pass  # the status says enough, with as much of the body as came
        finally:
            await response.aclose()
        error = error_mapping.refusal(response.status, bytes(body[:_REFUSAL_BYTES]), response.headers, judge)
        error.server_message = without_keys(error.server_message, self.endpoint.key)
        error.quotable = request.body is None  # nothing was sent that it could repeat
        return error

    def _outgoing(self, request: HttpRequest) -> httpx.Request:
        if origin(request.url) != self.endpoint.origin:
            host = httpx.URL(request.url).host
            raise errors.Misconfigured(f"a request to {host} was refused: it is not the provider's own address")
        headers = {**request.headers, **_HEADERS, **self.endpoint.credentials}
        content = None if request.body is None else _encoded(request.body)
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
                "direct": request.direct,
                "on_timeout": request.on_timeout,
            },
        )


class NetworkTransport(httpx.AsyncBaseTransport):
    """Sends over the network: locality, proxies, and one more try for a kept connection that turns out stale.

    It serves any number of event loops: each has its own connections, closed when the loop is shut down.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it. Raises an LLMError, or what httpx raises."""
        if switches.allowed is not None and origin(str(request.url)) not in switches.allowed:
            raise errors.NotRecorded(
                "real model calls are forbidden in this test", hint="Give it cassettes, or a FaultServer"
            )
        extensions = request.extensions
        local_only, networks = extensions["local_only"], extensions["endpoint"].networks
        try:
            own, proxy = await pool.of_this_loop(), None
            if not (local_only or extensions["direct"]):
                budget = extensions["timeout"]["connect"]
                proxy = await network.proxy_for(own.proxies, request.url, budget, networks)
            route = pool.Route(request.url.scheme, proxy, local_only, networks)
            connections = own.to(route)
        except _SET_UP as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            raise errors.NotConfigured(
                f"the connection could not be set up ({type(error).__name__})",
                hint="Check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and SSL_CERT_FILE",
            ) from None
        return await _sent(request, connections, route)

    async def prepare(self) -> None:
        """Load what connecting needs, without connecting: httpx imports its engine only with its first transport."""
        await pool.Connections(pool.Route("http")).aclose()


NETWORK: Final = NetworkTransport()


class _Body(httpx.AsyncByteStream):
    """The body of an answer; ``alone`` are connections that were made for it."""

    def __init__(self, response: httpx.Response, alone: pool.Connections | None) -> None:
        self._response = response
        self._alone = alone

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(cast(httpx.AsyncByteStream, self._response.stream))

    async def aclose(self) -> None:
        """Give the connection back, unless bytes came behind the answer: they must not be the next one's beginning."""
        if _left_over(self._response):
            await self._response.extensions["network_stream"].aclose()
        await self._response.aclose()
        if self._alone:
            await self._alone.aclose()


async def _sent(request: httpx.Request, connections: pool.Connections, route: pool.Route) -> httpx.Response:
    """Send it; a kept connection that turns out stale before the answer began costs one more try, on a fresh one."""
    made: httpcore.AsyncNetworkStream | None = None  # a connection of its own, rather than one of the pool

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        nonlocal made
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            made = info["return_value"]

    request.extensions = {**request.extensions, "trace": trace}
    alone: pool.Connections | None = None
    try:
        response = await connections.handle_async_request(request)
    except asyncio.CancelledError:
        if made:
            await connections.discard(made)
        raise
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
        nonsense = isinstance(error, httpx.RemoteProtocolError) and _NO_ANSWER not in str(error)
        if made or nonsense:
            raise
        alone = pool.Connections(route)
        try:
            response = await alone.handle_async_request(request)
        except BaseException:
            await alone.aclose()
            raise
    return httpx.Response(
        response.status_code, headers=response.headers, stream=_Body(response, alone), extensions=response.extensions
    )


def _left_over(response: httpx.Response) -> bool:
    """Whether the server sent more than the answer that it announced.

    h11 keeps such bytes for the next answer on the connection. Neither httpcore nor httpx shows them, so they are
    looked for where httpcore 1.0 has them (``tests/integration/transport/test_network.py`` sends some).
    """
    stream: Any = response.stream
    for name in ("_httpcore_stream", "_stream", "_connection", "_h11_state"):
        stream = getattr(stream, name, None)
    if stream is not None and stream.trailing_data[0]:
        return True
    # behind h11: bytes that asyncio has read, and httpcore has not yet taken; behind TLS, not yet decrypted either
    tcp = tls = getattr(response.extensions.get("network_stream"), "_stream", None)
    tcp = getattr(tls, "transport_stream", tcp)
    waiting = getattr(getattr(tcp, "_protocol", None), "read_queue", ())
    return bool(waiting or getattr(getattr(tls, "_read_bio", None), "pending", 0))


def _encoded(body: Mapping[str, Any]) -> bytes:
    """Return JSON as bytes. Raise InvalidRequest: a server may respond to an escaped lone surrogate with a 500."""
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:
        what = "the request holds half of a character (a lone surrogate), which UTF-8 has no bytes for"
        hint = "Clean the text first: text.encode('utf-8', 'replace').decode()"
        raise errors.InvalidRequest(what, hint=hint) from None
    except (ValueError, TypeError, RecursionError):
        raise errors.InvalidRequest(
            "the request cannot be written as JSON", hint="Numbers must be finite, and everything else JSON's own"
        ) from None


async def _inflated(stream: AsyncIterator[bytes], encodings: list[str]) -> AsyncGenerator[bytes, None]:
    """A body that is compressed although we asked for none, a bounded piece at a time: a few bytes can be gigabytes."""
    if len(encodings) > 1 or encodings[0] not in ("gzip", "x-gzip", "deflate"):
        raise errors.MalformedAnswer(
            "the server compressed its answer, in a way that nobody asked for", hint="Look for a proxy that does so"
        )
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: tells gzip from zlib by itself
    async for data in stream:
        waiting = data
        while waiting and not inflate.eof:
            await asyncio.sleep(0)  # nothing else in here lets others go on
            yield inflate.decompress(waiting, _INFLATED_BYTES)
            waiting = inflate.unconsumed_tail
    if not inflate.eof:
        raise errors.ConnectionFailed("the compressed body stops in the middle")
