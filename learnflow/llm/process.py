"""What this process keeps beside its objects, in one place: breakers, widths of contexts, names, pools, sinks.

Must never know what it keeps: each module has its own. ``state()`` shows all of it, ``forget()`` is for tests.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, TypeVar

_C = TypeVar("_C", bound=Collection[Any])
_kept: Final[dict[str, tuple[Any, bool]]] = {}


def kept(name: str, values: _C, *, learned: bool = False) -> _C:
    """The collection itself, which is shown by ``state()``.

    Args:
        name: what it is shown as.
        values: what is kept.
        learned: it was learned from what happened, and ``forget()`` empties it.
    """
    _kept[name] = values, learned
    return values


def state() -> dict[str, int]:
    """What the process keeps now.

    Returns:
        How many there are of each kind: breakers, pools, sinks and so on.
    """
    return {name: len(values) for name, (values, _) in _kept.items()}


def forget() -> None:
    """Nothing has happened yet: empties what was learned; connections, sinks and what stands in for others stay."""
    for values, learned in _kept.values():
        if learned:
            values.clear()


@dataclass(slots=True)
class Switches:
    """What tests and the command line set for the whole process.

    Attributes:
        allowed: the origins that may be connected to; None for all.
        retries: how often a provider is asked again at the most, without waiting; None for what is configured.
        watched: the metrics that the environment asks for are served.
    """

    allowed: set[tuple[str, str, int]] | None = None
    retries: int | None = None
    watched: bool = True


switches: Final = Switches()
