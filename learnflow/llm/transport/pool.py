"""The connections of each event loop: made when they are wanted, closed when the loop is shut down.

Must never know what is sent over them.
Only ``net`` uses it.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncGenerator
from functools import cache
from typing import Final

import httpx

# llama.cpp closes an idle connection after 5 s: a shorter life of ours keeps the two from racing (facts/litellm.md).
_IDLE_S: Final = 3.0
_IDLE: Final = 64


class Pool:
    """The connections of one event loop."""

    def __init__(self) -> None:
        self.proxies: dict[tuple[str, str], str | None] = {}
        self._transports: dict[tuple[str, str | None, str | None], httpx.AsyncHTTPTransport] = {}
        self.janitor: AsyncGenerator[None, None] | None = None

    def to(self, scheme: str, proxy: str | None, name: str | None) -> httpx.AsyncHTTPTransport:
        """The connections for this scheme, through this proxy or none.

        ``name`` is the host whose checked address is connected to: TLS was proved for that name, and serves no other
        one at the same address.
        """
        key = (scheme, proxy, name)
        if key not in self._transports:
            self._transports[key] = transport(scheme, proxy, idle=_IDLE)
        return self._transports[key]

    async def aclose(self) -> None:
        """Close them all."""
        for transport in self._transports.values():
            await transport.aclose()


_pools: dict[asyncio.AbstractEventLoop, Pool] = {}  # without those of loops that were shut down
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
        pool.janitor = _janitor(loop, pool)
        await anext(pool.janitor)
    return pool


async def _janitor(loop: asyncio.AbstractEventLoop, pool: Pool) -> AsyncGenerator[None, None]:
    """Waits, as an asynchronous generator, for ``loop.shutdown_asyncgens()``: the one call that every runner makes."""
    try:
        yield
    finally:
        with _lock:
            _pools.pop(loop, None)
        await pool.aclose()


def transport(scheme: str, proxy: str | None, idle: int = 0) -> httpx.AsyncHTTPTransport:
    """Connections of their own, of which ``idle`` are kept for later."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=idle, keepalive_expiry=_IDLE_S)
    secure = scheme == "https" or (proxy or "").startswith("https")
    return httpx.AsyncHTTPTransport(verify=_tls(secure), limits=limits, proxy=proxy, trust_env=False)


@cache
def _tls(secure: bool) -> ssl.SSLContext:
    """The trust store of httpx; for plain http an empty one, which costs nothing and trusts nobody."""
    return httpx.create_ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
