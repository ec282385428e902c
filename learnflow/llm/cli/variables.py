"""The variables that are set, their sources, and misspelt names. Values are not shown, because some are keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ..provider_spec import ProviderSpec
from ..settings import NODE_PREFIX, Settings, node_models
from ..settings_sources import find_variables, read_sources

_MIN_SIMILARITY: Final = 0.84  # of difflib: LLM_RETRYS and LLM_RETRIES have 0.857


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable that is set.

    Attributes:
        source: the environment, a ``.env`` file or the folder of secrets.
        overridden_by: the variable with precedence, and its source; None if this variable has an effect.
    """

    name: str
    source: str
    overridden_by: str | None = None


def variables(specs: Iterable[ProviderSpec]) -> list[Variable]:
    """Return the variables that are set, of this package and of these providers, in order of precedence."""
    sources = read_sources()
    settings: list[tuple[str, ...]] = [(name.upper(),) for name in Settings.model_fields]
    settings += [spec.spellings(name) for spec in specs for name in spec.settings]
    settings += [(name,) for name in node_models()]
    result: list[Variable] = []
    for spellings in settings:
        effective: str | None = None
        for name, source, _ in find_variables(spellings, sources):
            result.append(Variable(name, source, effective))
            effective = effective or f"{name} in {source}"
    return result


def misspelt(specs: Iterable[ProviderSpec], others: Iterable[ProviderSpec]) -> Iterator[tuple[Variable, str]]:
    """Yield each variable that is set but unknown, and a similar known name.

    Args:
        specs: providers with names that may be suggested.
        others: providers with names that are known, but not suggested.
    """
    specs = list(specs)
    suggestions = {name.upper() for name in Settings.model_fields} | _names(specs)
    known = suggestions | _names(others) | {name for spec in specs for name in spec.server.server_variables}
    for source, values in read_sources().items():
        for name in sorted(set(values) - known):
            similar = [] if name.startswith(NODE_PREFIX) else _similar(name, suggestions)
            if similar and _similar(name.partition("_")[0], {similar[0].partition("_")[0]}):
                yield Variable(name, source), similar[0]


def _similar(name: str, names: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, names, 1, _MIN_SIMILARITY)


def _names(specs: Iterable[ProviderSpec]) -> set[str]:
    return {name for spec in specs for setting in spec.settings for name in spec.spellings(setting)}
