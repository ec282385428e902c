"""``get_provider()`` makes a provider from the environment without a request; ``discover()`` finds servers.

Must never wait or connect inside ``get_provider``, or choose a cloud that is not named.
Applications and the command line call it.
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

    If nothing is named, it finds the local servers that are ready, at the first awaited call.

    Args:
        name: a provider, or several with commas between them, instead of those of the environment.

    Returns:
        A router of one provider or more. No request was sent.

    Raises:
        NotConfigured: a name is unknown, or none of them has its address and key.
    """
    common = settings.load()
    if switches.watched and (common.llm_metrics_port or common.llm_opentelemetry):
        from . import integrations  # noqa: PLC0415  # of extras

        integrations.attach(common)
    if _instead:
        return RouterProvider(_instead[-1])
    chain = (settings.parse_chain(name) or [(name,)]) if name else common.chain
    return RouterProvider(chain[0], chain[1:]) if chain else RouterProvider(find=finder())


def named() -> bool:
    """Return whether the environment names a provider, or a test replaced it, so that none has to be found."""
    return bool(_instead or settings.load().chain)


async def discover(within: float = SCAN_S) -> list[Health]:
    """Return the model servers that answer; the ready ones come first.

    Probes the configured addresses and the usual ones on loopback, and inside a container the service names of the
    compose file and the host.

    Args:
        within: seconds, at most.

    Returns:
        The health of each server.
    """
    there = [each.health for each in await scan(within) if each.answers]
    return sorted(there, key=lambda health: not health.ready)


@contextmanager
def instead(provider: LLMProvider) -> Iterator[None]:
    """Let ``get_provider()`` return a router over this provider inside the block. For tests."""
    _instead.append(provider)
    try:
        yield
    finally:
        _instead.remove(provider)


_instead: Final = register("providers in place of the environment's", list[LLMProvider]())
