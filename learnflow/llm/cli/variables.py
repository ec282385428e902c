"""Which variables are set, in which source, without effect, or misspelt.

Must never print a value: some are keys.
``doctor`` shows them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from .. import settings
from ..spec import ProviderSpec

_NODE: Final = "LLM_MODEL_"
_SIMILARITY: Final = 0.84  # of difflib: LLM_RETRYS and LLM_RETRIES have 0.857


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable that is set. ``shadowed`` names the one that takes its effect away, if any."""

    name: str
    where: str
    shadowed: str | None = None


def variables(specs: Iterable[ProviderSpec]) -> list[Variable]:
    """Return every variable of the settings and of these specs that is set, those without effect included."""
    held = settings.sources()
    spellings: list[tuple[str, ...]] = [(name,) for name in _common()]
    for spec in specs:
        spellings += spec.variables
    spellings += sorted({(name,) for names in held.values() for name in names if name.startswith(_NODE)})
    found: list[Variable] = []
    for names in spellings:
        used: str | None = None
        for name, place in settings.occurrences(names, held):
            found.append(Variable(name, place, used))
            used = used or f"{name} in {place}"
    return found


def misspelt(specs: Iterable[ProviderSpec], others: Iterable[ProviderSpec]) -> Iterator[tuple[Variable, str]]:
    """Yield every variable that is set and not read, but resembles one that is: with the one that is meant.

    Args:
        specs: the specs whose variables may be meant.
        others: specs whose variables are correct, and never meant.
    """
    specs = list(specs)
    ours = {*_common(), *_names(specs)}
    known = {*ours, *_names(others), *(name for spec in specs for name in spec.own_variables)}
    for place, held in settings.sources().items():
        for name in sorted(set(held) - known):
            near = difflib.get_close_matches(name, ours, 1, _SIMILARITY) if not name.startswith(_NODE) else []
            if near and difflib.get_close_matches(name.partition("_")[0], [near[0].partition("_")[0]], 1, _SIMILARITY):
                yield Variable(name, place), near[0]


def _common() -> list[str]:
    return [name.upper() for name in settings.Settings.model_fields]


def _names(specs: Iterable[ProviderSpec]) -> Iterator[str]:
    return (name for spec in specs for names in spec.variables for name in names)
