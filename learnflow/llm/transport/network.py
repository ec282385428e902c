"""Where a request really goes: which addresses, through which proxy, and whether that is private enough.

Must never connect or send.
Only ``net`` asks it.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Any

import httpx

from .. import errors, settings
from ..errors import LLMError
from . import pool
from .endpoint import is_private
from .exception_mapping import failure_of


def sent(
    request: httpx.Request, address: str | None, headers: dict[str, str], extensions: dict[str, Any]
) -> httpx.Request:
    """The request as it goes out; the one that LiteLLM made stays as it is, for its SDK looks at it again.

    To a checked address, where there is one, so that a second look-up of the name cannot lead elsewhere.
    """
    url = request.url
    if address is not None:
        extensions = {**extensions, "sni_hostname": url.host}
        url = url.copy_with(host=address)
    return httpx.Request(request.method, url, headers=headers, stream=request.stream, extensions=extensions)


async def to(
    connections: pool.Pool, url: httpx.URL, connect_timeout: float, *, local_only: bool, direct: bool
) -> tuple[list[str | None], str | None]:
    """The addresses to connect to (None: let httpx look up the name), and the proxy."""
    if local_only:
        addresses = [address for address in await _resolve(url, connect_timeout) if is_private(address)]
        if not addresses:
            raise errors.NotLocal(
                f"LLM_LOCAL_ONLY is set, and {url.host} is not on this machine or a private network",
                hint="Nothing was sent. Use a local provider, or set LLM_LOCAL_ONLY=false",
            )
        return list(addresses), None
    if direct:
        return [None], None
    key = (url.scheme, url.host)
    if key not in connections.proxies:
        proxy = settings.proxy_for(*key)
        if proxy:
            with suppress(LLMError):  # a name that only the proxy can resolve
                if all(is_private(address) for address in await _resolve(url, connect_timeout)):
                    proxy = None
        connections.proxies[key] = proxy
    return [None], connections.proxies[key]


async def _resolve(url: httpx.URL, connect_timeout: float) -> list[str]:
    """The addresses of a URL's host, in the system's order. Raises ConnectionFailed or ConnectTimeout."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(connect_timeout):
            found = await loop.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except TimeoutError:
        failure: LLMError = errors.ConnectTimeout("the host name was not resolved in time")
    except OSError as error:
        failure = failure_of(error)
    else:
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))
    raise failure


async def exists(host: str, within: float) -> bool:
    """Whether a name can be looked up, within so many seconds.

    In a thread of its own: name servers that are dead would keep those that all look-ups of the process share.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[bool] = loop.create_future()

    def tell(there: bool) -> None:  # of call_soon_threadsafe
        if not found.done():
            found.set_result(there)

    def look() -> None:
        try:
            there = bool(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        except OSError:
            there = False
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, there)

    threading.Thread(target=look, daemon=True, name=f"look up {host}").start()
    try:
        async with asyncio.timeout(within):
            return await found
    except TimeoutError:
        return False
