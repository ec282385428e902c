"""The only maker of connections: one httpx transport with locality, proxies and stale connections; hands over the body.

Must never read an answer's meaning or know a provider; it knows hosts, addresses and times.
The airlock speaks through ``client()``, the probes through ``fetch()``; each sets an ``Exchange`` first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, Final

import httpx

from .. import errors
from ..errors import LLMError
from ..replay import cassette
from ..replay.active import for_now
from ..replay.player import Played
from ..replay.recorder import Body, Copied
from . import error_mapping, network, pool
from .endpoint import origin
from .exception_mapping import failure_of
from .exchange import Diverted, Exchange, Heard, current

# What a request may carry beside its credentials. LiteLLM and the OpenAI SDK add others from the environment: tokens,
# organisations, OPENAI_CUSTOM_HEADERS, whatever host the request goes to.
_HEADERS: Final = ("host", "content-type", "content-length", "accept", "user-agent", "http-referer", "x-title")
# What setting up a connection raises: socks without its package, a missing CA file, a proxy that cannot be.
_SET_UP: Final = (ImportError, OSError, ValueError, httpx.InvalidURL)
_SECRET: Final = 8  # characters; a shorter key may be any word
_REFUSAL_BYTES: Final = 256 * 1024  # of an error's body


# Where requests may go at all; None for anywhere. Set by tests, so that none asks a real model by mistake.
allowed: set[tuple[str, str, int]] | None = None


_closing: Final[set[asyncio.Future[None]]] = set()  # whose readers have left


class Received:
    """The bytes of an answer as they arrive from a server."""

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
            failure = failure_of(error)
        else:
            return b""
        raise failure

    async def aclose(self) -> None:
        """Close the connection, or give it back to the pool where everything was read.

        It comes to its end even if whoever waits for it is cancelled: half closed, httpcore would keep it for ever.
        """
        closing = asyncio.ensure_future(self._close())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            _closing.add(closing)
            closing.add_done_callback(_closing.discard)
            raise

    async def _close(self) -> None:
        if isinstance(self._bytes, AsyncGenerator):
            with suppress(httpx.HTTPError):
                await self._bytes.aclose()
        await self._response.aclose()
        if self._alone:
            await self._alone.aclose()


class Transport(httpx.AsyncBaseTransport):
    """Sends what LiteLLM asks to the one place that the exchange allows, and keeps the answer for the exchange.

    It serves any number of event loops: each has its own connections, closed when the loop is shut down.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send; a 2xx ends the call, its body in the exchange; any other status is read for LiteLLM to judge."""
        exchange = current.get()
        exchange.prepared()
        if exchange.failure:  # the caller left while LiteLLM was still at its preparations
            raise Diverted
        if exchange.dry:
            raise Heard
        body: Body | None = None
        try:
            _check(request, exchange)
            status, headers, body = await _answer(request, exchange)
        except LLMError as error:
            exchange.failure = error
        if exchange.failure or body is None:
            if body:  # the caller left meanwhile
                await body.aclose()
            raise Diverted
        exchange.status, exchange.headers = status, headers
        if 200 <= status < 300:
            exchange.body = body
            raise Heard
        try:
            exchange.refusal = await _beginning(body)
        finally:
            await body.aclose()
        return httpx.Response(status, headers=_plain(headers), content=exchange.refusal)


@cache
def client() -> httpx.AsyncClient:
    """The client that the probes and LiteLLM's SDK paths speak through: no environment, no redirects, no time-outs."""
    return httpx.AsyncClient(transport=Transport(), trust_env=False, follow_redirects=False, timeout=None)  # noqa: S113  # the caller's budgets rule


async def fetch(url: str, exchange: Exchange, body: Mapping[str, Any] | None = None) -> bytes:
    """Read a page, or what a JSON body gets as answer.

    Raises LLMError for anything but a 200; ``exchange`` holds the status and the headers.
    """
    try:
        failed = await send(url, exchange, body)
        if failed:
            raise failed
        assert exchange.body is not None  # noqa: S101  # there is an answer
        return await _beginning(exchange.body, limit=64 * _REFUSAL_BYTES)
    finally:
        await exchange.aclose()


async def send(url: str, exchange: Exchange, body: Mapping[str, Any] | None = None) -> LLMError | None:
    """Send a request of our own; its answer is in ``exchange``. Returns why there is none."""
    token = current.set(exchange)
    try:
        with suppress(Diverted, Heard):
            await (client().get(url) if body is None else client().post(url, json=body))
    finally:
        current.reset(token)
    if exchange.failure or exchange.body is not None:
        return exchange.failure
    return error_mapping.refusal(exchange.status or 0, exchange.refusal, exchange.headers)


async def prepare() -> None:
    """Load what connecting needs, without connecting: httpx imports its own engine only with its first transport."""
    await pool.transport("http", None).aclose()


async def _answer(request: httpx.Request, exchange: Exchange) -> tuple[int, Mapping[str, str], Body]:
    """The head of the answer and its body: the server's, or what is on tape. Raises LLMError."""
    deck = for_now(exchange.deck)
    if allowed is not None and exchange.origin not in allowed and not (deck and deck.providers):
        raise errors.NotOnTape("real model calls are forbidden in this test", hint="Give it tapes, or a FaultServer")
    if deck is None:
        return await _received(request, exchange)
    asked = cassette.asked(
        request.method,
        str(request.url),
        await request.aread(),
        root=exchange.root,
        provider=exchange.provider,
        credentials=exchange.credentials,
    )
    said = deck.play(asked)
    if said:
        exchange.connected = True
        return _played(said)
    take = exchange.take = deck.record(asked)
    keys = {value.removeprefix("Bearer ") for value in exchange.credentials.values()}
    place = f"{exchange.provider}.example".encode()
    take.secrets = {key.encode(): b"key-of-" + exchange.provider.encode() for key in keys if len(key) >= _SECRET}
    there = request.url.netloc, request.url.raw_host
    take.secrets |= {name: place for name in there if b"." in name or b":" in name}  # a service's may be any word
    try:
        status, headers, body = await _received(request, exchange)
    except LLMError as error:
        take.end(failure=error)
        raise
    take.status, take.headers = status, headers
    return status, headers, Copied(body, take)


async def _received(request: httpx.Request, exchange: Exchange) -> tuple[int, Mapping[str, str], Body]:
    """The server's answer. Raises LLMError."""
    try:
        response, alone = await _send(request, exchange)
    except httpx.HTTPError as error:
        failure = failure_of(error)
    except _SET_UP as error:
        failure = errors.NotConfigured(
            f"the connection could not be set up ({type(error).__name__})",
            hint="Check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and SSL_CERT_FILE",
        )
    else:
        headers = {name: value for name, value in response.headers.items() if name != "set-cookie"}
        if cassette.MARK in headers and request.url.host.endswith(".example"):  # vcrpy plays it, in one piece
            return _played(cassette.unmarked(response.status_code, headers, await response.aread()))
        return response.status_code, headers, Received(response, alone)
    raise failure


def _played(said: cassette.Said) -> tuple[int, Mapping[str, str], Body]:
    """An answer on tape. Raises what came instead of one."""
    if said.status is None:
        raise said.end or errors.ConnectionFailed("the tape has no answer")
    return said.status, said.headers, Played(said)


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
    connected = False  # anew, rather than taken from the pool

    async def trace(event: str, _: Any) -> None:
        nonlocal connected
        connected = connected or event.startswith("connection.connect")
        if event == "http11.send_request_headers.started":
            exchange.connected = True
            if exchange.failure:
                raise Diverted  # the caller left while it was being connected

    kept = {name: value for name, value in request.headers.items() if name in _HEADERS}
    headers = {**kept, **exchange.credentials, "accept-encoding": "identity"}
    budget = exchange.connect_timeout
    extensions = {"timeout": {"connect": budget, "read": None, "write": None, "pool": None}, "trace": trace}
    addresses, proxy = await network.to(
        connections, request.url, budget, local_only=exchange.local_only, direct=exchange.direct
    )
    for address in addresses:
        connected, last = False, address == addresses[-1]
        sent = network.sent(request, address, headers, extensions)
        try:
            named = connections.to(request.url.scheme, proxy, request.url.host if address else None)
            return await named.handle_async_request(sent), None
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


async def _beginning(body: Body, limit: int = _REFUSAL_BYTES) -> bytes:
    data = b""
    while len(data) < limit and (more := await body.read()):
        data += more
    return data


def _plain(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers of a body that is not encoded any more."""
    return {name: value for name, value in headers.items() if name not in ("content-encoding", "content-length")}
