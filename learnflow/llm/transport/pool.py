"""The connection pools: one for each event loop, closed when the loop is shut down."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator
from functools import cache
from typing import Final, NamedTuple

import httpcore
import httpx

from .. import process
from .network import Backend

# Some local servers close an idle connection after 5 s ("Keep-Alive: timeout=5, max=100"). The client closes it
# earlier, so that no request is sent while the server closes.
_IDLE_TIMEOUT_S: Final = 3.0
_MAX_IDLE_CONNECTIONS: Final = 64


class Route(NamedTuple):
    """The properties of a connection. Requests with the same route share a connection pool.

    Attributes:
        scheme: "http" or "https".
        proxy: the URL of the proxy; None for a direct connection.
        local_only: connect to loopback and private addresses only.
        networks: further private networks (``LLM_LOCAL_NETWORKS``).
    """

    scheme: str
    proxy: str | None = None
    local_only: bool = False
    networks: tuple[str, ...] = ()


class Connections(httpx.AsyncHTTPTransport):
    """The connections of one route, which ``Backend`` opens.

    httpx has no argument for the network backend. Therefore this sets a private attribute of httpcore's pool (httpx
    0.28.1, httpcore 1.0.9). ``tests/integration/transport/test_network.py`` fails if the attribute moves.

    vcrpy replaces a method of ``httpx.AsyncHTTPTransport``, and works with a subclass only.
    """

    def __init__(self, route: Route) -> None:
        limits = httpx.Limits(max_keepalive_connections=_MAX_IDLE_CONNECTIONS, keepalive_expiry=_IDLE_TIMEOUT_S)
        secure = route.scheme == "https" or (route.proxy or "").startswith("https")
        super().__init__(verify=_tls_context(secure), limits=limits, proxy=route.proxy, trust_env=False)
        self._pool._network_backend = Backend(local_only=route.local_only, networks=route.networks)  # noqa: SLF001

    async def discard(self, stream: httpcore.AsyncNetworkStream) -> None:
        """Close a new connection if its request was cancelled before it was sent.

        httpcore 1.0.9 never removes such a connection, because it is neither idle nor closed.

        Args:
            stream: the network stream of the connection.
        """
        for connection in self._pool.connections:
            inner = getattr(connection, "_connection", None)
            if inner and getattr(inner, "_network_stream", None) is stream and "Request Count: 0" in inner.info():
                await inner.aclose()

    async def close_idle(self, origin: tuple[str, str, int]) -> None:
        """Close the idle connections to a server."""
        for connection in list(self._pool.connections):
            # _origin is that of the proxy, if there is one
            server = getattr(connection, "_remote_origin", None) or getattr(connection, "_origin", None)
            if server and (server.host.decode(), server.port) == origin[1:] and connection.is_idle():
                await connection.aclose()


class Pool:
    """The connections of one event loop.

    Attributes:
        proxies: the proxy for each scheme and host; None for no proxy.
        connections: the connections of each route.
        closer: the asynchronous generator that closes the pool when the event loop is shut down.
    """

    def __init__(self) -> None:
        self.proxies: dict[tuple[str, str], str | None] = {}
        self.connections: dict[Route, Connections] = {}
        self.closer: AsyncGenerator[None, None] | None = None

    def connections_for(self, route: Route) -> Connections:
        """Return the connections of this route."""
        if route not in self.connections:
            self.connections[route] = Connections(route)
        return self.connections[route]

    async def aclose(self) -> None:
        """Close all connections."""
        for connections in self.connections.values():
            await connections.aclose()


_pools: Final = process.register("pools", dict[asyncio.AbstractEventLoop, Pool]())


async def current_pool() -> Pool:
    """Return the pool of the running event loop."""
    loop = asyncio.get_running_loop()
    pool = _pools.get(loop)
    if pool is None:
        pool = Pool()
        for other_loop in list(_pools):  # a copy, because other threads change the dict
            if other_loop.is_closed():
                _pools.pop(other_loop, None)
        _pools[loop] = pool
        pool.closer = _close_at_shutdown(loop, pool)
        await anext(pool.closer)
    return pool


async def close_idle(origin: tuple[str, str, int]) -> None:
    """Close the idle connections to a server in the running event loop."""
    pool = _pools.get(asyncio.get_running_loop(), Pool())
    for connections in pool.connections.values():
        await connections.close_idle(origin)


async def _close_at_shutdown(loop: asyncio.AbstractEventLoop, pool: Pool) -> AsyncGenerator[None, None]:
    """Close the pool when ``loop.shutdown_asyncgens()`` closes this generator. Every runner of event loops calls it."""
    try:
        yield
    finally:
        _pools.pop(loop, None)
        await process.settle()
        await pool.aclose()


@cache
def _tls_context(secure: bool) -> ssl.SSLContext:
    """Return the TLS context of httpx. For plain HTTP it is empty, because loading the certificates takes time."""
    return httpx.create_ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
