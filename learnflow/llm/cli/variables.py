"""The variables that are set, and settings without effect. Values are never shown, because some are API keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ..errors import LLMError
from ..provider_spec import ProviderSpec, endpoint_spec
from ..providers.registry import CUSTOM, SPECS, spec_of, vendor_specs
from ..settings import NODE_PREFIX, Settings, node_models
from ..settings_sources import find_variables, read_sources, unreadable_lines
from .status import chain_of

_MIN_SIMILARITY: Final = 0.84  # of difflib: LLM_RETRYS and LLM_RETRIES have 0.857


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable that is set.

    Attributes:
        source: the environment, a ``.env`` file or the folder of secrets.
        overridden_by: the name and source of the variable with precedence; None if this variable has an effect.
    """

    name: str
    source: str
    overridden_by: str | None = None


def variables(specs: Iterable[ProviderSpec]) -> list[Variable]:
    """Return the variables of this package and of ``specs`` that are set. The effective one of a setting is first."""
    sources = read_sources()
    settings: list[tuple[str, ...]] = [(name.upper(),) for name in Settings.model_fields]
    settings += [spec.variable_names(name) for spec in specs for name in spec.settings]
    settings += [(name,) for name in node_models()]
    result: list[Variable] = []
    for names in settings:
        effective: str | None = None
        for name, source, _ in find_variables(names, sources):
            result.append(Variable(name, source, effective))
            effective = effective or f"{name} in {source}"
    return result


def known_specs(provider: str | None) -> list[ProviderSpec]:
    """Return the specs of the registry, and those of the requested or configured endpoints.

    An endpoint is a server that the operator has named, such as "gpu1".
    """
    names: list[str] = []
    with suppress(LLMError):  # the command itself reports the error
        names = chain_of(provider)
    specs = dict(SPECS)
    for name in names:
        with suppress(LLMError):
            specs.setdefault(name, spec_of(name))
        # If the kind is unknown, use CUSTOM: all kinds have these variables.
        specs.setdefault(name, endpoint_spec(CUSTOM, name))
    return list(specs.values())


def ineffective(specs: Iterable[ProviderSpec], *, all_unknown: bool = False) -> Iterator[str]:
    """Yield a sentence for each misspelt variable, and for each line of ``.env`` that cannot be read.

    Args:
        specs: the providers with known variables.
        all_unknown: also yield a sentence for each unknown ``LLM_*`` variable, which the application may use.
    """
    for variable, suggestion in misspelt(specs, vendor_specs().values()):
        if suggestion or all_unknown:
            remark = f"did you mean {suggestion}?" if suggestion else "this package has no such setting"
            yield f"{variable.name} (in {variable.source}) has no effect: {remark}"
    for file, line in unreadable_lines():
        yield f"{file}, line {line} cannot be read: write NAME=value"


def misspelt(specs: Iterable[ProviderSpec], not_suggested: Iterable[ProviderSpec]) -> Iterator[tuple[Variable, str]]:
    """Yield each unknown variable that resembles a known one, with the known name.

    If an ``LLM_*`` variable resembles none, yield it with "".

    Args:
        specs: the providers with variables to suggest.
        not_suggested: the providers with known variables that are never suggested.
    """
    specs = list(specs)
    suggestions = {name.upper() for name in Settings.model_fields} | _names(specs)
    known = suggestions | _names(not_suggested) | {name for spec in specs for name in spec.server.server_variables}
    first_words = {name.partition("_")[0] for name in suggestions}
    for source, values in read_sources().items():
        for name in sorted(set(values) - known):
            # Compare only names with a similar first word, because difflib is slow.
            similar_words = _similar(name.partition("_")[0], first_words)
            candidates = {one for one in suggestions if one.partition("_")[0] in similar_words}
            similar = [] if name.startswith(NODE_PREFIX) else _similar(name, candidates)
            unset = sorted(candidates - set(values))
            similar = similar or [one for one in unset if _differs_by_word(name, one, candidates)]
            if similar or (name.startswith("LLM_") and not name.startswith(NODE_PREFIX)):
                yield Variable(name, source), " or ".join(similar)


def _similar(name: str, names: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, names, 1, _MIN_SIMILARITY)


def _differs_by_word(name: str, known: str, names: Iterable[str]) -> bool:
    """Return whether a name adds a last word to ``known`` (OPENAI_MODEL_NAME), or omits a word (OPENAI_KEY).

    An added word does not count if other known names begin with ``known``, as OPENAI_API_KEY does with OPENAI_API.
    """
    words, expected = name.split("_"), known.split("_")
    shorter = [expected[:index] + expected[index + 1 :] for index in range(1, len(expected))]
    if words[:-1] == expected:
        return not any(other.startswith(f"{known}_") for other in names)
    return words in [short for short in shorter if len(short) > 1]


def _names(specs: Iterable[ProviderSpec]) -> set[str]:
    return {name for spec in specs for setting in spec.settings for name in spec.variable_names(setting)}
