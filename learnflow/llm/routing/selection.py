"""Who is asked first, and who cannot serve a request at all. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Routing = Literal["order", "latency", "cost", "local-first"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What ranking looks at: position in the user's order, seconds to the first token, dollars, whether it is local."""

    position: int
    latency_s: float | None = None
    cost: tuple[float, float] | None = None
    local: bool = False


def ranked(standings: Sequence[Standing], routing: Routing) -> list[int]:
    """Their places, in the order in which they are asked; what is unknown comes last, the user's order decides ties."""

    def key(one: Standing) -> tuple[float, int]:
        unknown = float("inf")
        value = {
            "order": 0.0,
            "latency": unknown if one.latency_s is None else one.latency_s,
            "cost": unknown if one.cost is None else sum(one.cost),
            "local-first": 0.0 if one.local else 1.0,
        }[routing]
        return value, one.position

    return [one.position for one in sorted(standings, key=key)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a request needs of a provider; ``tokens``: of its prompt, at the least."""

    images: bool = False
    tools: bool = False
    schema: bool = False
    tokens: int = 0


def lacks(needs: Needs, can: Mapping[str, Any], window: int | None) -> list[str]:
    """What this provider certainly lacks for it, in words; what is not known is no lack.

    Args:
        needs: of the request.
        can: its capabilities.
        window: the largest context that it can serve, in tokens.
    """
    wanted = (("vision", needs.images), ("tools", needs.tools), ("json_schema", needs.schema))
    found = [name for name, needed in wanted if needed and can[name] is False]
    if window is not None and needs.tokens > window:
        found.append(f"context ({needs.tokens} tokens or more needed, {window} served)")
    return found
