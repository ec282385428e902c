"""``get_provider()`` creates a provider from the environment, and ``discover()`` finds servers.

The functions import most modules when they are called, because the import of httpx and pydantic is slow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Unpack

from .base import LLMProvider, ProviderOptions
from .capabilities import Health
from .errors import NotConfigured
from .process import register, switches

if TYPE_CHECKING:
    from .routing.router import RouterProvider


def get_provider(name: str | None = None, **keywords: Unpack[ProviderOptions]) -> RouterProvider:
    """Return a router over the named providers, by default those of ``LLM_PROVIDERS`` or ``LLM_PROVIDER``.

    If neither the call nor the environment names a provider, the first request finds the local servers that are ready.
    A cloud is used only if named.

    Args:
        name: the name of a provider, or several names in order of preference, separated by commas. "+" joins
            providers with the same preference, as in "gpu1+gpu2,openai".
        keywords: the keywords of ``BaseProvider``, such as ``model``. They require exactly one provider.

    Returns:
        A router. No request was sent.

    Raises:
        NotConfigured: a name is unknown, every provider lacks its address or its key, or a keyword is invalid.
    """
    from . import discovery, parameters, providers, settings  # noqa: PLC0415  # see above
    from .routing.router import RouterProvider  # noqa: PLC0415

    parameters.check_keywords(get_provider, locals(), NotConfigured)
    common = settings.load()
    if not switches.in_cli and (common.llm_metrics_port or common.llm_opentelemetry):
        from . import integrations  # noqa: PLC0415  # requires an extra

        integrations.attach(common)
    if _overrides:
        return RouterProvider(_overrides[-1])
    chain = (settings.parse_chain(name) or [(name,)]) if name else common.chain
    if keywords:
        if [len(rank) for rank in chain] != [1]:
            hint = 'Name it, as in get_provider("openai", model="…"). For several, use RouterProvider'
            raise NotConfigured(f"get_provider() with {', '.join(keywords)} requires one provider", hint=hint)
        return RouterProvider(providers.build(chain[0][0], **keywords), deadline=keywords.get("deadline"))
    return RouterProvider(chain[0], chain[1:]) if chain else RouterProvider(find=discovery.make_finder())


def is_configured() -> bool:
    """Return whether the environment names a provider, or a test uses ``override``."""
    from . import settings  # noqa: PLC0415  # see above

    return bool(_overrides or settings.load().chain)


async def discover(within: float = 1.0) -> list[Health]:
    """Find the model servers that respond.

    Probe the configured addresses and the default ports on loopback. In a container, also probe the Docker host and
    the services of the compose file.

    Args:
        within: the timeout of the probes in seconds.

    Returns:
        The health of each server, the ready ones first.
    """
    from .discovery import scan  # noqa: PLC0415  # see above

    servers = [candidate.health for candidate in await scan(within) if candidate.responded]
    return sorted(servers, key=lambda health: not health.ready)


@contextmanager
def override(provider: LLMProvider) -> Iterator[None]:
    """Let ``get_provider()`` use this provider inside the context manager. For tests."""
    _overrides.append(provider)
    try:
        yield
    finally:
        _overrides.remove(provider)


_overrides: Final = register("providers that override the environment", list[LLMProvider]())
