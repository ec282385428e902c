"""``get_provider()``: from the environment to a provider, at once, without talking to anybody; and ``discover()``.

Must never wait or connect inside ``get_provider``, or choose a cloud that nobody named.
LearnFlow and the command line call it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from . import settings
from .base import LLMProvider
from .capabilities import Health
from .discovery import SCAN_S, finder, scan
from .process import kept, switches
from .routing.router import RouterProvider


def get_provider(name: str | None = None) -> RouterProvider:
    """The providers that ``LLM_PROVIDERS`` or ``LLM_PROVIDER`` names as one, or the one of the given name.

    With nothing named: the local servers that are ready, looked for at the first awaited call.

    Args:
        name: a provider, or several with commas between them, instead of what the environment names.

    Returns:
        A router of one provider or more; nobody was asked yet.

    Raises:
        NotConfigured: a name is unknown, or none of them has its address and key.
    """
    common = settings.load()
    if switches.watched and (common.llm_metrics_port or common.llm_opentelemetry):
        from . import integrations  # noqa: PLC0415  # extras, which few want

        integrations.attach(common)
    if _instead:
        return RouterProvider(_instead[-1])
    chain = (settings.parse_chain(name) or [(name,)]) if name else common.chain
    return RouterProvider(chain[0], chain[1:]) if chain else RouterProvider(find=finder())


def named() -> bool:
    """Whether the environment names a provider (or a test put one there), so that none has to be looked for."""
    return bool(_instead or settings.load().chain)


async def discover(within: float = SCAN_S) -> list[Health]:
    """The model servers that answer: at configured addresses, at the usual ones on loopback, and inside a container at
    the service names of our compose file and on the host. The ready ones come first.

    Args:
        within: seconds; it takes as long as the slowest answer, and never longer than this.

    Returns:
        What each said of itself.
    """
    there = [each.health for each in await scan(within) if each.answers]
    return sorted(there, key=lambda health: not health.ready)


@contextmanager
def instead(provider: LLMProvider) -> Iterator[None]:
    """``get_provider()`` gives a router over this provider inside, whatever the environment says. For tests."""
    _instead.append(provider)
    try:
        yield
    finally:
        _instead.remove(provider)


_instead: Final = kept("providers in place of the environment's", list[LLMProvider]())
