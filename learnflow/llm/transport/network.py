"""Connections: DNS, the proxies of the environment, LLM_LOCAL_ONLY, and the connection pools.

``Backend.connect_tcp`` opens every connection, and checks its address. Each event loop has its own connection pools,
which are closed when the loop is shut down.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import cache
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import httpcore
import httpx

from .. import errors, process, settings_sources
from ..errors import LLMError
from . import error_mapping
from .endpoint import Endpoint, is_private, looks_local

# Time limit for connecting to each address of a host but the last (the delay of RFC 8305, section 5).
_ADDRESS_TIMEOUT_S: Final = 0.25
# Some local servers close an idle connection after 5 s ("Keep-Alive: timeout=5, max=100"). The client closes it
# earlier, so that no request is sent while the server closes.
_IDLE_TIMEOUT_S: Final = 3.0
_MAX_IDLE_CONNECTIONS: Final = 64

_Lookup = asyncio.Future[list[str]]
# Lookups in progress, by event loop and host
_lookups: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Lookup]] = WeakKeyDictionary()
# The addresses of each host, from its last lookup. ``is_local`` reads them; a new connection looks the host up again.
_resolved: Final = process.register("DNS results", dict[str, list[str]](), learned=True)
_MAX_RESOLVED_HOSTS: Final = 1000


def is_local(endpoint: Endpoint, *, local_only: bool = False) -> bool:
    """Return whether requests stay on this machine or a private network. Start no DNS lookup.

    All addresses from the host's last lookup must be private. If ``local_only`` is set, one private address suffices,
    because ``Backend`` then skips the other addresses. Before the first lookup, return ``Endpoint.looks_local``.
    """
    addresses = _resolved.get(endpoint.origin[1])
    if not addresses:
        return endpoint.looks_local
    return (any if local_only else all)(is_private(address, endpoint.local_networks) for address in addresses)


class Backend(httpcore.AnyIOBackend):
    """The network backend of a connection pool. See ``Route`` for the arguments."""

    def __init__(self, *, local_only: bool, local_networks: tuple[str, ...] = ()) -> None:
        self._local_only = local_only
        self._local_networks = local_networks

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *more: Any, **options: Any
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of the host that accepts a connection, within ``timeout`` seconds.

        Raises:
            NotLocal: ``local_only`` is set, and no address of the host is private.
            ConnectionFailed, ConnectTimeout: the host name cannot be resolved.
            httpcore.ConnectError, httpcore.ConnectTimeout: no address accepts a connection.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (float("inf") if timeout is None else timeout)
        addresses = await resolve(host, timeout)
        if self._local_only:
            addresses = [address for address in addresses if is_private(address, self._local_networks)]
        if not addresses:
            raise errors.NotLocal(
                f"LLM_LOCAL_ONLY is set, and {host} is not on this machine or a private network",
                hint="Nothing was sent. Use a local provider, add this network to LLM_LOCAL_NETWORKS if it is yours, "
                "or set LLM_LOCAL_ONLY=false",
            )
        *first, last = addresses
        for address in first:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await super().connect_tcp(address, port, _ADDRESS_TIMEOUT_S, *more, **options)
        return await super().connect_tcp(last, port, max(0.001, deadline - loop.time()), *more, **options)


async def choose_proxy(
    proxies: dict[tuple[str, str], str | None], url: httpx.URL, timeout_s: float, local_networks: tuple[str, ...]
) -> str | None:
    """Return the environment's proxy for a URL; None if no proxy is set, or all addresses of the host are private.

    A host that ``looks_local`` bypasses the proxy without a lookup. Any other host is looked up. If this fails or
    exceeds ``timeout_s``, the proxy is used, because it can perhaps resolve the host. That choice is not cached in
    ``proxies``.
    """
    key = (url.scheme, url.host)
    if key not in proxies:
        proxy = None if looks_local(url.host, local_networks) else settings_sources.proxy_for(*key)
        if proxy:
            try:
                addresses = await resolve(url.host, timeout_s)
            except LLMError:
                return proxy
            if all(is_private(address, local_networks) for address in addresses):
                proxy = None
        proxies[key] = proxy
    return proxies[key]


async def resolve(host: str, timeout_s: float | None) -> list[str]:
    """Return the addresses of a host name or IP address, in the system's order.

    Concurrent requests share the lookup of a host. Each lookup has its own thread, because in asyncio's small
    thread pool, a dead name server would block the lookups of all hosts.

    Raises:
        ConnectTimeout: the lookup took longer than ``timeout_s``.
        ConnectionFailed: the lookup failed, or the host name has no address.
    """
    with suppress(ValueError):
        ipaddress.ip_address(host.partition("%")[0])
        return [host]
    lookups = _lookups.setdefault(asyncio.get_running_loop(), {})
    if host not in lookups:
        lookups[host] = _start_lookup(host, lookups)
    try:
        async with asyncio.timeout(timeout_s):
            addresses = await asyncio.shield(lookups[host])
    except TimeoutError:
        raise errors.ConnectTimeout("the host name was not resolved in time") from None
    if not addresses:
        raise error_mapping.unresolved_host_error()
    if len(_resolved) >= _MAX_RESOLVED_HOSTS:
        _resolved.clear()
    _resolved[host] = addresses
    return addresses


def _start_lookup(host: str, lookups: dict[str, _Lookup]) -> _Lookup:
    """Start a lookup, which removes itself from ``lookups`` at its end. Its result is empty if it fails."""
    loop = asyncio.get_running_loop()
    future: _Lookup = loop.create_future()

    def finish(addresses: list[str]) -> None:
        lookups.pop(host, None)
        if not future.done():
            future.set_result(addresses)

    def look_up() -> None:
        try:
            entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except Exception:  # noqa: BLE001  # OSError, or UnicodeError for an invalid label
            entries = []
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, addresses)

    try:
        threading.Thread(target=look_up, daemon=True, name=f"look up {host}").start()
    except RuntimeError:  # the system cannot start another thread
        loop.call_soon(finish, [])
    return future


class Route(NamedTuple):
    """The properties of a connection. Requests with the same route share a connection pool.

    Attributes:
        proxy: the URL of the proxy; None for a direct connection.
        local_only: connect to loopback and private addresses only.
        local_networks: more networks that count as private (``LLM_LOCAL_NETWORKS``).
    """

    scheme: str
    proxy: str | None = None
    local_only: bool = False
    local_networks: tuple[str, ...] = ()


class RouteTransport(httpx.AsyncHTTPTransport):
    """The httpx transport of one route, with its connection pool.

    httpx has no argument for the network backend. Therefore this class sets private attributes of httpcore's pool
    (httpx 0.28.1, httpcore 1.0.9). ``tests/integration/transport/test_network.py`` fails if they move.

    The class inherits from ``httpx.AsyncHTTPTransport``, because vcrpy replaces a method of that class.
    """

    def __init__(self, route: Route) -> None:
        limits = httpx.Limits(max_keepalive_connections=_MAX_IDLE_CONNECTIONS, keepalive_expiry=_IDLE_TIMEOUT_S)
        secure = route.scheme == "https" or (route.proxy or "").startswith("https")
        super().__init__(verify=_tls_context(secure), limits=limits, proxy=route.proxy, trust_env=False)
        self._pool._network_backend = Backend(local_only=route.local_only, local_networks=route.local_networks)  # noqa: SLF001
        self._pool._close_connections = self._close_removed  # type: ignore[method-assign]  # noqa: SLF001

    async def _close_removed(self, closing: list[httpcore.AsyncConnectionInterface]) -> None:
        """Close connections that the pool has removed.

        If the task is cancelled meanwhile, the pool gets the unclosed connections back. httpcore 1.0.9 would leak
        them, because its ``AsyncShieldCancellation`` does not protect the close from
        ``Task.cancel()`` and ``asyncio.timeout()``.
        """
        try:
            for connection in closing:
                await connection.aclose()
        except asyncio.CancelledError:
            self._pool._connections += [connection for connection in closing if not connection.is_closed()]  # noqa: SLF001
            raise

    async def discard(self, stream: httpcore.AsyncNetworkStream) -> None:
        """Close the new connection that uses this network stream, if no request was sent on the connection.

        httpcore 1.0.9 never removes such a connection, because it is neither idle nor closed.
        """
        for connection in self._pool.connections:
            inner = getattr(connection, "_connection", None)
            if inner and getattr(inner, "_network_stream", None) is stream and "Request Count: 0" in inner.info():
                await inner.aclose()

    async def close_idle(self, origin: tuple[str, str, int]) -> None:
        """Close the idle connections to a server."""
        for connection in list(self._pool.connections):
            # With a proxy, _origin is the origin of the proxy
            server = getattr(connection, "_remote_origin", None) or getattr(connection, "_origin", None)
            if server and (server.host.decode(), server.port) == origin[1:] and connection.is_idle():
                await connection.aclose()


class LoopTransports:
    """The transports of one event loop.

    Attributes:
        proxies: the cache of ``choose_proxy``.
        closer: the generator that closes the transports when the event loop is shut down. It is stored here, because
            asyncio has only a weak reference to it.
    """

    def __init__(self) -> None:
        self.proxies: dict[tuple[str, str], str | None] = {}
        self.by_route: dict[Route, RouteTransport] = {}
        self.closer: AsyncGenerator[None, None] | None = None

    def for_route(self, route: Route) -> RouteTransport:
        """Return the transport of this route."""
        if route not in self.by_route:
            self.by_route[route] = RouteTransport(route)
        return self.by_route[route]


_transports: Final = process.register("pools", dict[asyncio.AbstractEventLoop, LoopTransports]())


async def loop_transports() -> LoopTransports:
    """Return the transports of the running event loop."""
    loop = asyncio.get_running_loop()
    transports = _transports.get(loop)
    if transports is None:
        transports = LoopTransports()
        for other_loop in list(_transports):  # a copy, because other threads change the dict
            if other_loop.is_closed():
                _transports.pop(other_loop, None)
        _transports[loop] = transports
        transports.closer = _close_at_shutdown(loop, transports)
        await anext(transports.closer)
    return transports


async def close_idle(origin: tuple[str, str, int]) -> None:
    """Close the idle connections to a server in the running event loop."""
    transports = _transports.get(asyncio.get_running_loop(), LoopTransports())
    for transport in transports.by_route.values():
        await transport.close_idle(origin)


async def _close_at_shutdown(loop: asyncio.AbstractEventLoop, transports: LoopTransports) -> AsyncGenerator[None, None]:
    """Close the transports when this generator is closed.

    ``loop.shutdown_asyncgens()`` closes the generator. ``asyncio.run()`` calls ``shutdown_asyncgens()``.
    """
    try:
        yield
    finally:
        _transports.pop(loop, None)
        await process.wait_for_ending_tasks()
        for transport in transports.by_route.values():
            await transport.aclose()


@cache
def _tls_context(secure: bool) -> ssl.SSLContext:
    """Return httpx's TLS context; for plain HTTP, a context without certificates, because they take time to load."""
    return httpx.create_ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
