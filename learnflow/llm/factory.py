"""``get_provider()``: from the environment to a provider, at once, without talking to anybody; and ``discover()``.

Must never wait or connect inside ``get_provider``, or choose a cloud that nobody named.
LearnFlow and the command line call it.
"""

from __future__ import annotations

from . import settings
from .base import LLMProvider
from .discovered import DiscoveredProvider
from .known import Health
from .providers import build
from .survey import SURVEY_S, survey


def get_provider(name: str | None = None) -> LLMProvider:
    """The provider that ``LLM_PROVIDERS`` or ``LLM_PROVIDER`` names, or the one of the given name.

    With nothing named: the local servers that are ready, looked for at the first awaited call.

    Raises:
        NotConfigured: the name is unknown, or its address or key is missing.
    """
    chain = [str(name)] if name else settings.load().chain
    return build(chain[0]) if chain else DiscoveredProvider()


async def discover(within: float = SURVEY_S) -> list[Health]:
    """The model servers that answer: at configured addresses, at the usual ones on loopback, and inside a container at
    the service names of our compose file and on the host. The ready ones come first.

    Args:
        within: seconds; it takes as long as the slowest answer, and never longer than this.
    """
    found = [each.health for each in await survey(within) if each.answers]
    return sorted(found, key=lambda health: not health.ready)
