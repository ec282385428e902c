"""DNS, proxies, and LLM_LOCAL_ONLY.

Every connection of httpx is opened by ``Backend.connect_tcp``, which checks the address that it connects to.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final
from weakref import WeakKeyDictionary

import httpcore
import httpx

from .. import errors, process, settings_sources
from ..errors import LLMError
from . import error_mapping
from .endpoint import Endpoint, is_private
from .endpoint import is_near as is_near_name

# Seconds for each address of a host but the last: the delay between two attempts in RFC 8305 (section 5).
_ADDRESS_TIMEOUT_S: Final = 0.25

_Addresses = asyncio.Future[list[str]]
# The lookups in progress. Requests for the same host share one.
_lookups: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Addresses]] = WeakKeyDictionary()
# The addresses of the last lookup.
_resolved: Final = process.register("addresses of names", dict[str, list[str]](), learned=True)
_MAX_NAMES: Final = 1000


def is_near(endpoint: Endpoint, *, local_only: bool = False) -> bool:
    """Return whether requests stay on this machine or a private network.

    A host name is judged by the addresses of its last lookup, before that by its form (``Endpoint.near``).

    Args:
        endpoint: the endpoint of the requests.
        local_only: only private addresses are connected to, so that one is enough. Otherwise all must be private.
    """
    addresses = _resolved.get(endpoint.origin[1])
    if not addresses:
        return endpoint.near
    return (any if local_only else all)(is_private(address, endpoint.networks) for address in addresses)


class Backend(httpcore.AnyIOBackend):
    """Opens the TCP connections of a pool.

    Args:
        local_only: connect to loopback and private addresses only.
        networks: count as private, too.
    """

    def __init__(self, *, local_only: bool, networks: tuple[str, ...] = ()) -> None:
        self._local_only = local_only
        self._networks = networks

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of the host that accepts, within ``timeout`` seconds.

        Raises:
            NotLocal: ``local_only`` is set and no address of the host is private.
            ConnectionFailed, ConnectTimeout: the host name cannot be resolved.
            httpcore.ConnectError, httpcore.ConnectTimeout: no address accepts the connection.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout if timeout is not None else None
        allowed = await resolve(host, timeout)
        if self._local_only:
            allowed = [address for address in allowed if is_private(address, self._networks)]
        if not allowed:
            raise errors.NotLocal(
                f"LLM_LOCAL_ONLY is set, and {host} is not on this machine or a private network",
                hint="Nothing was sent. Use a local provider, name its network in LLM_LOCAL_NETWORKS if it is yours, "
                "or set LLM_LOCAL_ONLY=false",
            )
        *first, last = allowed
        for address in first:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await super().connect_tcp(address, port, _ADDRESS_TIMEOUT_S, local_address, socket_options)
        left_s = max(0.001, deadline - loop.time()) if deadline is not None else None
        return await super().connect_tcp(last, port, left_s, local_address, socket_options)


async def proxy_for(
    known: dict[tuple[str, str], str | None], url: httpx.URL, within: float, networks: tuple[str, ...] = ()
) -> str | None:
    """Return the environment's proxy for a URL; None without one, or for a host on a private network.

    A name that is never public needs no lookup: no proxy gets its requests. If another name cannot be resolved, only
    the proxy may be able to: this request goes to it, and the next one looks the name up again.

    Args:
        known: the results so far, by scheme and host.
        url: of the request.
        within: seconds to resolve the host.
        networks: count as private, too.
    """
    key = (url.scheme, url.host)
    if key not in known:
        proxy = None if is_near_name(url.host, networks) else settings_sources.proxy_for(*key)
        if proxy:
            try:
                addresses = await resolve(url.host, within)
            except LLMError:
                return proxy
            if all(is_private(address, networks) for address in addresses):
                proxy = None
        known[key] = proxy
    return known[key]


async def resolve(host: str, within: float | None) -> list[str]:
    """Return the addresses of a host, in the system's order.

    Each lookup has its own thread, shared by all requests for the host. In asyncio's few shared threads, a name server
    that does not respond would block the lookups of other hosts.

    Args:
        host: a name or an address.
        within: seconds; None for no limit.

    Raises:
        ConnectTimeout: the lookup took longer.
        ConnectionFailed: there is no such name.
    """
    with suppress(ValueError):
        ipaddress.ip_address(host.partition("%")[0])
        return [host]
    pending = _lookups.setdefault(asyncio.get_running_loop(), {})
    if host not in pending:
        pending[host] = _start_lookup(host, pending)
    try:
        async with asyncio.timeout(within):
            addresses = await asyncio.shield(pending[host])
    except TimeoutError:
        raise errors.ConnectTimeout("the host name was not resolved in time") from None
    if not addresses:
        raise error_mapping.unresolved()
    if len(_resolved) >= _MAX_NAMES:
        _resolved.clear()
    _resolved[host] = addresses
    return addresses


async def exists(host: str, within: float) -> bool:
    """Return whether a host name is resolved within this many seconds."""
    try:
        return bool(await resolve(host, within))
    except LLMError:
        return False


def _start_lookup(host: str, pending: dict[str, _Addresses]) -> _Addresses:
    """Start the lookup of a host. The future returns its addresses, none if there is no such name."""
    loop = asyncio.get_running_loop()
    future: _Addresses = loop.create_future()

    def finish(addresses: list[str]) -> None:
        pending.pop(host, None)
        if not future.done():
            future.set_result(addresses)

    def look_up() -> None:
        try:
            entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except Exception:  # noqa: BLE001  # UnicodeError: an invalid label; the future must get a result
            entries = []
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, addresses)

    try:
        threading.Thread(target=look_up, daemon=True, name=f"look up {host}").start()
    except RuntimeError:  # no thread is left
        loop.call_soon(finish, [])
    return future
