"""The only maker of connections: one httpx transport with locality, proxies and stale connections; hands over the body.

Must never read an answer's meaning or know a provider; it knows hosts, addresses and times.
The airlock speaks through ``client()``, the probes through ``get()``; each sets an ``Exchange`` first.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import httpx

from . import diagnosis, errors, pool, settings
from .causes import leaf_of
from .endpoint import origin
from .errors import LLMError

# What a request may carry beside its credentials. LiteLLM and the OpenAI SDK add others from the environment: tokens,
# organisations, OPENAI_CUSTOM_HEADERS, whatever host the request goes to.
_HEADERS: Final = ("host", "content-type", "content-length", "accept", "user-agent", "http-referer", "x-title")
_REFUSAL_BYTES: Final = 256 * 1024  # of an error's body
_PRIVATE: Final = tuple(
    ipaddress.ip_network(net)
    for net in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
        *("::1/128", "fc00::/7", "fe80::/10"),
    )
)


class Recorded(Exception):
    """Ends LiteLLM's call; what happened is in the exchange. No httpx class, so that nobody tries again behind us."""


@dataclass(slots=True)
class Exchange:
    """One request, and what became of it; set as ``current`` before the request is made.

    Attributes:
        origin: the only scheme, host and port that this request, and its key, may go to.
        path_end: how the path of the request must end.
        connect_timeout: seconds for a name, for TCP and for TLS.
        credentials: the headers that carry the key; no other header of the kind is sent, whoever added it.
        local_only: refuse what is not loopback or private.
        dry: answer 200 and nothing, without a connection.
        sent: LiteLLM has come as far as sending.
        status, headers: the head of the answer.
        body: the answer's bytes, where the status is 2xx; whoever asked must close it.
        refusal: the body, where it is not.
        failure: why there is no answer.
    """

    origin: tuple[str, str, int]
    path_end: str
    connect_timeout: float
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    local_only: bool = False
    dry: bool = False
    sent: bool = False
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    refusal: bytes = b""
    failure: LLMError | None = None

    async def aclose(self) -> None:
        """Close the connection, unless the answer was read to its end; the server stops."""
        if self.body is not None:
            await self.body.aclose()


current: ContextVar[Exchange] = ContextVar("learnflow_llm_exchange")


class Body:
    """The bytes of an answer as they arrive."""

    def __init__(self, response: httpx.Response, alone: httpx.AsyncBaseTransport | None) -> None:
        self._response = response
        self._alone = alone  # a transport made for this answer only
        encoded = response.headers.get("content-encoding", "identity") != "identity"
        self._bytes: AsyncIterator[bytes] = (
            response.aiter_bytes() if encoded else aiter(response.stream)  # type: ignore[arg-type]  # async by transport
        )

    async def read(self) -> bytes:
        """The next bytes, b"" at the end. Raises ConnectionFailed (or its like) where the connection broke."""
        try:
            async for data in self._bytes:
                return data
        except httpx.HTTPError as error:
            failure = _failure(error)
        else:
            return b""
        raise failure

    async def aclose(self) -> None:
        """Close the connection, or give it back to the pool where everything was read."""
        if isinstance(self._bytes, AsyncGenerator):
            with suppress(httpx.HTTPError):
                await self._bytes.aclose()
        await self._response.aclose()
        if self._alone:
            await self._alone.aclose()


class _Unread(httpx.AsyncByteStream):
    """What LiteLLM is given as body: nothing, for it is not to read."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        return
        yield b""


class Transport(httpx.AsyncBaseTransport):
    """Sends what LiteLLM asks to the one place that the exchange allows, and keeps the answer for the exchange.

    It serves any number of event loops: each has its own connections, closed when the loop is shut down.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send; a 2xx leaves its body in the exchange, any other status is read for LiteLLM to judge."""
        exchange = current.get()
        exchange.sent = True
        if exchange.failure:  # the caller left while LiteLLM was still at its preparations
            raise Recorded
        if exchange.dry:
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=_Unread())
        try:
            _check(request, exchange)
            response, alone = await _send(request, exchange)
        except httpx.HTTPError as error:
            exchange.failure = _failure(error)
        except LLMError as error:
            exchange.failure = error
        except (ImportError, OSError, ValueError) as error:  # socks without its package, a missing CA file, a bad proxy
            exchange.failure = errors.NotConfigured(
                f"the connection could not be set up ({type(error).__name__})",
                hint="Check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and SSL_CERT_FILE",
            )
        if exchange.failure:
            raise Recorded
        exchange.status = response.status_code
        exchange.headers = {name: value for name, value in response.headers.items() if name != "set-cookie"}
        body = Body(response, alone)
        if response.is_success:
            exchange.body = body
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=_Unread())
        try:
            exchange.refusal = await _beginning(body)
        finally:
            await body.aclose()
        return httpx.Response(response.status_code, headers=_plain(exchange.headers), content=exchange.refusal)


@cache
def client() -> httpx.AsyncClient:
    """The client that the probes and LiteLLM's SDK paths speak through: no environment, no redirects, no time-outs."""
    return httpx.AsyncClient(transport=Transport(), trust_env=False, follow_redirects=False, timeout=None)  # noqa: S113  # the caller's budgets rule


async def get(url: str, exchange: Exchange) -> bytes:
    """Read a small page. Raises LLMError for anything but a 200; ``exchange`` holds the status and the headers."""
    token = current.set(exchange)
    try:
        with suppress(Recorded):
            await client().get(url)
        if exchange.failure:
            raise exchange.failure
        if exchange.body is None:
            raise diagnosis.refusal(exchange.status or 0, exchange.refusal, exchange.headers)
        return await _beginning(exchange.body, limit=64 * _REFUSAL_BYTES)
    finally:
        current.reset(token)
        await exchange.aclose()


def is_private(address: str) -> bool:
    """Whether an IP address is loopback, link-local or of a private network (RFC 1918, RFC 4193)."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return any(ip in network for network in _PRIVATE if network.version == ip.version)


def _check(request: httpx.Request, exchange: Exchange) -> None:
    """Nothing goes anywhere else than to the endpoint whose key it carries."""
    if origin(str(request.url)) != exchange.origin:
        raise errors.Misconfigured(f"a request to {request.url.host} was refused: it is not the provider's own address")
    if not request.url.path.endswith(exchange.path_end):
        raise errors.Unsupported(
            f"this model is not served by chat completions, but at {request.url.path}",
            hint="Choose a model that the chat API serves",
        )


async def _send(request: httpx.Request, exchange: Exchange) -> tuple[httpx.Response, httpx.AsyncBaseTransport | None]:
    """Send it; a pooled connection that turns out stale before the answer began costs one more try, on a fresh one."""
    connections = await pool.of_this_loop()
    connected = False

    async def trace(event: str, _: Any) -> None:
        nonlocal connected
        connected = connected or event.startswith("connection.connect")

    kept = {name: value for name, value in request.headers.items() if name in _HEADERS}
    request.headers = httpx.Headers({**kept, **exchange.credentials, "accept-encoding": "identity"})
    request.extensions = {
        "timeout": {"connect": exchange.connect_timeout, "read": None, "write": None, "pool": None},
        "trace": trace,
    }
    addresses, proxy = await _route(connections, request.url, exchange)
    for address in addresses:
        last = address == addresses[-1]
        sent = _pinned(request, address)
        try:
            return await connections.to(request.url.scheme, proxy).handle_async_request(sent), None
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            if connected:
                raise
        except httpx.ConnectError:
            if last:
                raise
            continue
        fresh = pool.transport(request.url.scheme, proxy)
        try:
            return await fresh.handle_async_request(sent), fresh
        except BaseException:
            await fresh.aclose()
            raise
    raise httpx.ConnectError("no address")


def _pinned(request: httpx.Request, address: str | None) -> httpx.Request:
    """The same request to a checked address, so that a second look-up of the name cannot lead elsewhere."""
    if address is None:
        return request
    extensions = {**request.extensions, "sni_hostname": request.url.host}
    url = request.url.copy_with(host=address)
    return httpx.Request(request.method, url, headers=request.headers, stream=request.stream, extensions=extensions)


async def _route(connections: pool.Pool, url: httpx.URL, exchange: Exchange) -> tuple[list[str | None], str | None]:
    """The addresses to connect to (None: let httpx look up the name), and the proxy."""
    if exchange.local_only:
        addresses = [address for address in await _resolve(url, exchange) if is_private(address)]
        if not addresses:
            raise errors.NotLocal(
                f"LLM_LOCAL_ONLY is set, and {url.host} is not on this machine or a private network",
                hint="Nothing was sent. Use a local provider, or set LLM_LOCAL_ONLY=false",
            )
        return list(addresses), None
    key = (url.scheme, url.host)
    if key not in connections.proxies:
        proxy = settings.proxy_for(*key)
        if proxy:
            with suppress(LLMError):  # a name that only the proxy can resolve
                if all(is_private(address) for address in await _resolve(url, exchange)):
                    proxy = None
        connections.proxies[key] = proxy
    return [None], connections.proxies[key]


async def _resolve(url: httpx.URL, exchange: Exchange) -> list[str]:
    """The addresses of a URL's host, in the system's order. Raises ConnectionFailed or ConnectTimeout."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(exchange.connect_timeout):
            found = await loop.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except TimeoutError:
        failure: LLMError = errors.ConnectTimeout("the host name was not resolved in time")
    except OSError as error:
        failure = _failure(error)
    else:
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))
    raise failure


async def _beginning(body: Body, limit: int = _REFUSAL_BYTES) -> bytes:
    data = b""
    while len(data) < limit and (more := await body.read()):
        data += more
    return data


def _plain(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers of a body that is not encoded any more."""
    return {name: value for name, value in headers.items() if name not in ("content-encoding", "content-length")}


def _failure(error: Exception) -> LLMError:
    """The leaf for what the transport met; the sentence says what it was, not which library said it."""
    chain = list(_chain(error))
    kind = leaf_of(error)
    if issubclass(kind, errors.TimedOut):
        return errors.ConnectTimeout("no connection in time")
    for cause in chain:
        if isinstance(cause, ConnectionRefusedError):
            return errors.ConnectionFailed("the connection was refused: nobody listens there")
        if isinstance(cause, socket.gaierror):
            return errors.ConnectionFailed("the host name cannot be resolved")
        if isinstance(cause, ssl.SSLError):
            return errors.ConnectionFailed(f"TLS failed ({cause.reason or 'no reason given'})")
    if isinstance(error, httpx.ProxyError):
        return kind("the proxy refused the connection", hint="Check HTTPS_PROXY, or name the host in NO_PROXY")
    return kind(f"the connection broke ({type(chain[-1]).__name__})")


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop(0)
        if one is not None and one not in found:
            found.append(one)
            todo += [one.__cause__, one.__context__]
            todo += one.exceptions if isinstance(one, BaseExceptionGroup) else ()
    return found
