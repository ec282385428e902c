"""Where a connection really goes: names looked up in threads of their own, locality checked on the address, proxies.

Whatever httpx connects to passes ``Backend.connect_tcp``: "local only" is enforced there, on the very address that is
connected to.
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

from .. import errors, settings_sources
from ..errors import LLMError
from ..process import register
from . import error_mapping
from .endpoint import Endpoint, is_private

# Seconds for each address of a name but the last, as RFC 8305 (section 5) has it between two attempts.
_NEXT_ADDRESS_S: Final = 0.25

_Addresses = asyncio.Future[list[str]]
# What is being looked up now, for all who wait for the same name.
_lookups: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Addresses]] = WeakKeyDictionary()
# Where names led when they were last connected to.
_found: Final = register("addresses of names", dict[str, list[str]](), learned=True)
_MOST_NAMES: Final = 1000


def is_near(endpoint: Endpoint, *, local_only: bool = False) -> bool:
    """Whether what is sent there stays on this machine or a private network, as the connection would have it.

    A name is judged by where it led when it was last looked up; before that, by whether such names are ever public.

    Args:
        endpoint: where to.
        local_only: only private addresses are connected to; else any of them may be.
    """
    found = _found.get(endpoint.origin[1])
    if not found:
        return endpoint.near
    return (any if local_only else all)(is_private(address, endpoint.networks) for address in found)


class Backend(httpcore.AnyIOBackend):
    """Opens the TCP connections of a pool.

    Args:
        local_only: connect to loopback and private addresses only.
        networks: those that count as private, too.
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
        """Connect to the first address of the host that answers, within ``timeout`` seconds.

        Raises:
            NotLocal: none of its addresses is one to connect to.
            ConnectionFailed, ConnectTimeout: the name cannot be looked up.
            httpcore.ConnectError, httpcore.ConnectTimeout: nobody answers.
        """
        loop = asyncio.get_running_loop()
        over = loop.time() + timeout if timeout is not None else None
        found = await addresses(host, timeout)
        allowed = [each for each in found if is_private(each, self._networks)] if self._local_only else found
        if not allowed:
            raise errors.NotLocal(
                f"LLM_LOCAL_ONLY is set, and {host} is not on this machine or a private network",
                hint="Nothing was sent. Use a local provider, name its network in LLM_LOCAL_NETWORKS if it is yours, "
                "or set LLM_LOCAL_ONLY=false",
            )
        *first, last = allowed
        for address in first:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await super().connect_tcp(address, port, _NEXT_ADDRESS_S, local_address, socket_options)
        left = max(0.001, over - loop.time()) if over is not None else None
        return await super().connect_tcp(last, port, left, local_address, socket_options)


async def proxy_for(
    known: dict[tuple[str, str], str | None], url: httpx.URL, within: float, networks: tuple[str, ...] = ()
) -> str | None:
    """The proxy of the environment for this URL; none for a host that is on a private network.

    Args:
        known: what was found before, by scheme and host.
        url: where the request goes.
        within: seconds to look up the host.
        networks: those that count as private, too.
    """
    key = (url.scheme, url.host)
    if key not in known:
        proxy = settings_sources.proxy_for(*key)
        if proxy:
            with suppress(LLMError):  # a name that only the proxy can look up
                if all(is_private(address, networks) for address in await addresses(url.host, within)):
                    proxy = None
        known[key] = proxy
    return known[key]


async def addresses(host: str, within: float | None) -> list[str]:
    """The addresses of a host, in the system's order.

    Each name is looked up in a thread of its own, shared by all who wait for it: a name server that is dead keeps
    nobody else waiting, as it would in the few threads that all of a process's look-ups share by default.

    Raises:
        ConnectTimeout: not within so many seconds.
        ConnectionFailed: there is no such name.
    """
    with suppress(ValueError):
        ipaddress.ip_address(host.partition("%")[0])
        return [host]
    pending = _lookups.setdefault(asyncio.get_running_loop(), {})
    if host not in pending:
        pending[host] = _look_up(host, pending)
    try:
        async with asyncio.timeout(within):
            found = await asyncio.shield(pending[host])
    except TimeoutError:
        raise errors.ConnectTimeout("the host name was not looked up in time") from None
    if not found:
        raise error_mapping.unresolved()
    if len(_found) >= _MOST_NAMES:
        _found.clear()
    _found[host] = found
    return found


async def exists(host: str, within: float) -> bool:
    """Whether a name can be looked up, within so many seconds."""
    try:
        return bool(await addresses(host, within))
    except LLMError:
        return False


def _look_up(host: str, pending: dict[str, _Addresses]) -> _Addresses:
    """Begin to look up a name; the future gives its addresses, none if there is no such name."""
    loop = asyncio.get_running_loop()
    future: _Addresses = loop.create_future()

    def tell(found: list[str]) -> None:
        pending.pop(host, None)
        if not future.done():
            future.set_result(found)

    def look() -> None:
        try:
            entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except Exception:  # noqa: BLE001  # UnicodeError: a label that cannot be a name's; nobody may wait in vain
            entries = []
        found = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, found)

    try:
        threading.Thread(target=look, daemon=True, name=f"look up {host}").start()
    except RuntimeError:  # no thread is left
        loop.call_soon(tell, [])
    return future
