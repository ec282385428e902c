"""The timeouts and limits of a provider, from its keywords, the environment or the defaults.

``transport.reader`` applies the timeouts of a response. ``settings`` reads the environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .provider_spec import ProviderSpec
from .settings import ProviderSettings, Settings

# Default timeouts: seconds to the first token, seconds between two tokens.
LOCAL_TIMEOUTS_S: Final = (180.0, 120.0)
CLOUD_TIMEOUTS_S: Final = (60.0, 30.0)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The timeouts (in seconds) and the other limits of a provider.

    Attributes:
        connect: the longest time for DNS and TCP together. The same limit applies to TLS separately.
        first_token: the longest time from the request to the first token.
        gap: the longest time between two tokens.
        deadline: the longest time for a request with all its attempts.
        load: the longest time to load a model.
        local_only: whether only connections to this machine or a private network are allowed.
        max_concurrency: the concurrency limit; None if not configured.
        own_deadline: the keyword ``deadline``; None if not given. In a router, it limits each attempt with this
            provider.
    """

    connect: float
    first_token: float
    gap: float
    deadline: float
    load: float
    local_only: bool
    max_concurrency: int | None
    own_deadline: float | None = None


def choose_timeouts(
    spec: ProviderSpec, keywords: Mapping[str, Any], common: Settings, provider_settings: ProviderSettings
) -> Timeouts:
    """Return the timeouts and limits of a provider.

    A keyword (see ``TimeOptions``) overrides the environment, which overrides the default.
    """
    first_token, gap = LOCAL_TIMEOUTS_S if spec.local else CLOUD_TIMEOUTS_S
    return Timeouts(
        connect=keywords.get("connect_timeout") or common.llm_connect_timeout,
        first_token=keywords.get("first_token_timeout") or common.llm_first_token_timeout or first_token,
        gap=keywords.get("gap_timeout") or common.llm_gap_timeout or gap,
        deadline=keywords.get("deadline") or common.llm_deadline,
        own_deadline=keywords.get("deadline"),
        load=common.llm_load_timeout,
        max_concurrency=keywords.get("max_concurrency") or provider_settings.max_concurrency,
        local_only=common.llm_local_only if keywords.get("local_only") is None else keywords["local_only"],
    )
