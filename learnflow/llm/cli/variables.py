"""Which variables are set, where, and which of them are misspelt. Values are never shown: some are keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ..provider_spec import ProviderSpec
from ..settings import Settings
from ..settings_sources import places, places_of

_NODE: Final = "LLM_MODEL_"
_ALIKE: Final = 0.84  # of difflib: LLM_RETRYS and LLM_RETRIES have 0.857


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable that is set. ``shadowed`` names the one that wins over it; None if it has effect."""

    name: str
    where: str
    shadowed: str | None = None


def variables(specs: Iterable[ProviderSpec]) -> list[Variable]:
    """Return every variable of this package and of these providers that is set, in the order in which they win."""
    here = places()
    settings: list[tuple[str, ...]] = [(name.upper(),) for name in Settings.model_fields]
    settings += [spec.spellings(name) for spec in specs for name in spec.settings]
    settings += sorted({(name,) for variables in here.values() for name in variables if name.startswith(_NODE)})
    found: list[Variable] = []
    for spellings in settings:
        used: str | None = None
        for name, place in places_of(spellings, here):
            found.append(Variable(name, place, used))
            used = used or f"{name} in {place}"
    return found


def misspelt(specs: Iterable[ProviderSpec], others: Iterable[ProviderSpec]) -> Iterator[tuple[Variable, str]]:
    """Yield every variable that is set, read by no setting, and similar to one: with the one that is meant.

    Args:
        specs: the providers whose variables may be meant.
        others: providers whose variables are no mistakes, and are not meant.
    """
    specs = list(specs)
    ours = {name.upper() for name in Settings.model_fields} | _names(specs)
    known = ours | _names(others) | {name for spec in specs for name in spec.server.server_variables}
    for place, variables in places().items():
        for name in sorted(set(variables) - known):
            near = difflib.get_close_matches(name, ours, 1, _ALIKE) if not name.startswith(_NODE) else []
            if near and difflib.get_close_matches(name.partition("_")[0], [near[0].partition("_")[0]], 1, _ALIKE):
                yield Variable(name, place), near[0]


def _names(specs: Iterable[ProviderSpec]) -> set[str]:
    return {name for spec in specs for setting in spec.settings for name in spec.spellings(setting)}
