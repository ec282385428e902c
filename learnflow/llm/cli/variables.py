"""The variables that are set, their sources, and misspelt names. Values are not shown, because some are keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ..provider_spec import ProviderSpec
from ..settings import Settings
from ..settings_sources import find_variables, read_sources

_NODE_PREFIX: Final = "LLM_MODEL_"
_MIN_SIMILARITY: Final = 0.84  # of difflib: LLM_RETRYS and LLM_RETRIES have 0.857


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable that is set. ``shadowed`` names the variable that overrides it; None if it has an effect."""

    name: str
    where: str
    shadowed: str | None = None


def variables(specs: Iterable[ProviderSpec]) -> list[Variable]:
    """Return all variables of this package and of these providers that are set, by precedence."""
    sources = read_sources()
    settings: list[tuple[str, ...]] = [(name.upper(),) for name in Settings.model_fields]
    settings += [spec.spellings(name) for spec in specs for name in spec.settings]
    settings += sorted(
        {(name,) for variables in sources.values() for name in variables if name.startswith(_NODE_PREFIX)}
    )
    listed: list[Variable] = []
    for spellings in settings:
        used: str | None = None
        for name, source, _ in find_variables(spellings, sources):
            listed.append(Variable(name, source, used))
            used = used or f"{name} in {source}"
    return listed


def misspelt(specs: Iterable[ProviderSpec], others: Iterable[ProviderSpec]) -> Iterator[tuple[Variable, str]]:
    """Yield each variable that is set but unknown, with the similar name that was probably meant.

    Args:
        specs: the providers with the names that may be meant.
        others: providers with names that are correct, but are not suggested.
    """
    specs = list(specs)
    ours = {name.upper() for name in Settings.model_fields} | _names(specs)
    known = ours | _names(others) | {name for spec in specs for name in spec.server.server_variables}
    for place, variables in read_sources().items():
        for name in sorted(set(variables) - known):
            near = (
                difflib.get_close_matches(name, ours, 1, _MIN_SIMILARITY) if not name.startswith(_NODE_PREFIX) else []
            )
            if near and difflib.get_close_matches(
                name.partition("_")[0], [near[0].partition("_")[0]], 1, _MIN_SIMILARITY
            ):
                yield Variable(name, place), near[0]


def _names(specs: Iterable[ProviderSpec]) -> set[str]:
    return {name for spec in specs for setting in spec.settings for name in spec.spellings(setting)}
