"""The connections of each event loop: made when they are wanted, closed when the loop is shut down."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncGenerator
from functools import cache
from typing import Final, NamedTuple

import httpcore
import httpx

from ..process import register, settle
from .network import Backend

# A local server may close an idle connection after 5 s ("Keep-Alive: timeout=5, max=100"). Close it earlier, so that
# a request does not race with that.
_IDLE_S: Final = 3.0
_IDLE: Final = 64


class Route(NamedTuple):
    """The way to a server; requests with the same route share connections.

    Attributes:
        scheme: "http" or "https".
        proxy: the URL of a proxy, or None.
        local_only: connect to loopback and private addresses only.
        networks: those that count as private, too.
    """

    scheme: str
    proxy: str | None = None
    local_only: bool = False
    networks: tuple[str, ...] = ()


class Connections(httpx.AsyncHTTPTransport):
    """httpx's connections, opened by our own backend.

    httpx has no argument for the backend of its pool, so it is put where httpcore keeps it (0.28.1 and 1.0.9; should
    either move it, ``tests/integration/transport/test_network.py`` fails). A subclass, so that vcrpy, which replaces
    a method of httpx's, can play.

    Args:
        route: of every connection.
        idle: how many connections are kept for later.
    """

    def __init__(self, route: Route, idle: int = 0) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=idle, keepalive_expiry=_IDLE_S)
        secure = route.scheme == "https" or (route.proxy or "").startswith("https")
        super().__init__(verify=_tls(secure), limits=limits, proxy=route.proxy, trust_env=False)
        self._pool._network_backend = Backend(local_only=route.local_only, networks=route.networks)  # noqa: SLF001

    async def discard(self, stream: httpcore.AsyncNetworkStream) -> None:
        """Close a new connection whose request was cancelled before it was sent.

        httpcore 1.0.9 would keep it for ever: between connecting and the first byte a cancelled request leaves it
        neither idle nor closed.
        """
        for connection in self._pool.connections:
            made = getattr(connection, "_connection", None)
            if made and getattr(made, "_network_stream", None) is stream and "Request Count: 0" in made.info():
                await made.aclose()

    async def leave(self, origin: tuple[str, str, int]) -> None:
        """Close the idle connections to a server."""
        for connection in list(self._pool.connections):
            # of a connection through a proxy, the server behind it
            known = getattr(connection, "_remote_origin", None) or getattr(connection, "_origin", None)
            if known and (known.host.decode(), known.port) == origin[1:] and connection.is_idle():
                await connection.aclose()


class Pool:
    """The connections of one event loop.

    Attributes:
        proxies: the proxy for each scheme and host that was asked for.
    """

    def __init__(self) -> None:
        self.proxies: dict[tuple[str, str], str | None] = {}
        self.connections: dict[Route, Connections] = {}
        self.closer: AsyncGenerator[None, None] | None = None

    def to(self, route: Route) -> Connections:
        """Return the connections of this route."""
        if route not in self.connections:
            self.connections[route] = Connections(route, _IDLE)
        return self.connections[route]

    async def aclose(self) -> None:
        """Close them all."""
        for connections in self.connections.values():
            await connections.aclose()


_pools: Final = register("pools", dict[asyncio.AbstractEventLoop, Pool]())  # without those of loops that were shut down
_lock = threading.Lock()


async def of_this_loop() -> Pool:
    """The pool of the running event loop."""
    loop = asyncio.get_running_loop()
    pool = _pools.get(loop)
    if pool is None:
        pool = Pool()
        with _lock:
            for closed in [known for known in _pools if known.is_closed()]:
                del _pools[closed]
            _pools[loop] = pool
        pool.closer = _closer(loop, pool)
        await anext(pool.closer)
    return pool


async def leave(origin: tuple[str, str, int]) -> None:
    """Close the idle connections of the running event loop to a server."""
    pool = _pools.get(asyncio.get_running_loop(), Pool())
    for connections in pool.connections.values():
        await connections.leave(origin)


async def _closer(loop: asyncio.AbstractEventLoop, pool: Pool) -> AsyncGenerator[None, None]:
    """Wait, as an asynchronous generator, for ``loop.shutdown_asyncgens()``: the one call that every runner makes."""
    try:
        yield
    finally:
        with _lock:
            _pools.pop(loop, None)
        await settle()
        await pool.aclose()


@cache
def _tls(secure: bool) -> ssl.SSLContext:
    """The trust store of httpx; for plain http an empty one, which costs nothing and trusts nobody."""
    return httpx.create_ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
