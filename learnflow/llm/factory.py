"""``get_provider()`` creates a provider from the environment; ``discover()`` finds servers.

``get_provider()`` sends no request, and uses no cloud that is not named.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from . import settings
from .base import LLMProvider
from .capabilities import Health
from .discovery import SCAN_S, finder, scan
from .process import register, switches
from .routing.router import RouterProvider


def get_provider(name: str | None = None) -> RouterProvider:
    """Return a router over the providers that ``LLM_PROVIDERS`` or ``LLM_PROVIDER`` names, or over the given ones.

    If neither is set, the router finds the local servers that are ready, during its first awaited call.

    Args:
        name: a provider, or several with commas between them; None for those of the environment.

    Returns:
        A router over one or more providers. No request was sent.

    Raises:
        NotConfigured: a name is unknown, or no provider has its address and key.
    """
    common = settings.load()
    if not switches.is_command and (common.llm_metrics_port or common.llm_opentelemetry):
        from . import integrations  # noqa: PLC0415  # of extras

        integrations.attach(common)
    if _overrides:
        return RouterProvider(_overrides[-1])
    chain = (settings.parse_chain(name) or [(name,)]) if name else common.chain
    return RouterProvider(chain[0], chain[1:]) if chain else RouterProvider(find=finder())


def is_configured() -> bool:
    """Return whether the environment or a test names a provider, so that no server has to be found."""
    return bool(_overrides or settings.load().chain)


async def discover(within: float = SCAN_S) -> list[Health]:
    """Find the model servers that respond.

    Probes the configured addresses and the default ports on loopback. Inside a container it also probes the service
    names of the compose file and the host.

    Args:
        within: the timeout of the search, in seconds.

    Returns:
        The health of each server, the ready ones first.
    """
    servers = [place.health for place in await scan(within) if place.answers]
    return sorted(servers, key=lambda health: not health.ready)


@contextmanager
def instead(provider: LLMProvider) -> Iterator[None]:
    """Return a context manager in which ``get_provider()`` uses this provider. For tests."""
    _overrides.append(provider)
    try:
        yield
    finally:
        _overrides.remove(provider)


_overrides: Final = register("providers in place of the environment's", list[LLMProvider]())
