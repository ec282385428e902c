"""The budgets of a request: what was given, what the environment says, what the row waits for by itself.

Must never measure time or read the environment: ``transport.reader`` and ``settings`` do.
The adapter settles them once for each provider.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .base import TimeOptions
from .errors import NotConfigured
from .provider_spec import ProviderSpec
from .settings import ProviderSettings, Settings

# Seconds to the first token and between two, where nobody says otherwise: for one's own machine, and for a cloud.
NEAR: Final = (180.0, 120.0)
FAR: Final = (60.0, 30.0)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds: to connect, to the first token, between two tokens, for everything, for loading a model.

    And whether to stay local, and how many requests there may be at once (None where nobody said).
    """

    connect: float
    first_token: float
    gap: float
    deadline: float
    load: float
    local_only: bool
    max_concurrency: int | None


def settle_times(spec: ProviderSpec, given: Mapping[str, Any], common: Settings, own: ProviderSettings) -> Times:
    """What is given wins; None means not given.

    Raises:
        NotConfigured: an unknown keyword, or a value that cannot be.
    """
    known = TimeOptions.__annotations__
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {near[0]}=?" if near else f"Known are base_url, model, api_key, {', '.join(known)}"
            raise NotConfigured(f"a provider has no keyword {name}=", provider=spec.name, hint=hint)
        if name == "local_only":
            fits, wanted = isinstance(value, bool), "True or False"
        elif name == "max_concurrency":
            fits, wanted = type(value) is int and value > 0, "a whole number from 1"
        else:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            fits, wanted = number and value > 0, "seconds, more than 0"
        if value is not None and not fits:
            raise NotConfigured(f"{name}= must be {wanted}", provider=spec.name, hint="Change it, or leave it out")
    first_token, gap = NEAR if spec.local else FAR
    local_only = given.get("local_only")
    return Times(
        connect=given.get("connect_timeout") or common.llm_connect_timeout,
        first_token=given.get("first_token_timeout") or common.llm_first_token_timeout or first_token,
        gap=given.get("gap_timeout") or common.llm_gap_timeout or gap,
        deadline=given.get("deadline") or common.llm_deadline,
        load=common.llm_load_timeout,
        max_concurrency=given.get("max_concurrency") or own.max_concurrency,
        local_only=common.llm_local_only if local_only is None else local_only,
    )
