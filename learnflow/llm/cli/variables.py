"""List the variables that are set, the misspelt ones, and the lines of ``.env`` that cannot be read.

Values are never shown, because some are API keys.
"""

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

_MIN_SIMILARITY: Final = 0.84  # difflib's ratio, which is 0.857 for LLM_RETRYS and LLM_RETRIES


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable that is set.

    Attributes:
        source: the environment, a ``.env`` file or the folder of secrets.
        overridden_by: the name and source of the variable that overrides this one; None if no variable does.
    """

    name: str
    source: str
    overridden_by: str | None = None


def variables(specs: Iterable[ProviderSpec]) -> list[Variable]:
    """Return each variable of this package or of ``specs`` that is set.

    If a setting has several variables, the effective one is first.
    """
    sources = read_sources()
    names_by_setting: list[tuple[str, ...]] = [(name.upper(),) for name in Settings.model_fields]
    names_by_setting += [spec.variable_names(name) for spec in specs for name in spec.settings]
    names_by_setting += [(name,) for name in node_models()]
    result: list[Variable] = []
    for names in names_by_setting:
        effective: str | None = None
        for name, source, _ in find_variables(names, sources):
            result.append(Variable(name, source, effective))
            effective = effective or f"{name} in {source}"
    return result


def known_specs(provider: str | None) -> list[ProviderSpec]:
    """Return the specs of the registry, and of the endpoints named in ``provider`` or in the settings.

    An endpoint is a server that the operator has named, such as "gpu1".
    """
    names: list[str] = []
    with suppress(LLMError):  # the command itself reports the error
        names = chain_of(provider)
    specs = dict(SPECS)
    for name in names:
        with suppress(LLMError):
            specs.setdefault(name, spec_of(name))
        # spec_of() fails if, for example, the endpoint's kind of server is not set. Then use CUSTOM, because it has the
        # variables of most kinds of server.
        specs.setdefault(name, endpoint_spec(CUSTOM, name))
    return list(specs.values())


def describe_ineffective(specs: Iterable[ProviderSpec], *, all_unknown: bool = False) -> Iterator[str]:
    """Yield a sentence for each misspelt variable, and for each line of ``.env`` that cannot be read.

    Args:
        specs: see ``known_specs``.
        all_unknown: also yield a sentence for every other unknown ``LLM_*`` variable. It may belong to an application.
    """
    for variable, suggestion in find_misspelt(specs, vendor_specs().values()):
        if suggestion or all_unknown:
            remark = f"did you mean {suggestion}?" if suggestion else "this package has no such setting"
            yield f"{variable.name} (in {variable.source}) has no effect: {remark}"
    for file, line in unreadable_lines():
        yield f"{file}, line {line} cannot be read: write NAME=value"


def find_misspelt(
    specs: Iterable[ProviderSpec], not_suggested: Iterable[ProviderSpec]
) -> Iterator[tuple[Variable, str]]:
    """Yield each unknown variable that resembles a known one, with the known name.

    Also yield each unknown ``LLM_*`` variable that does not resemble a known one, with "".

    Args:
        specs: the providers with the variables to suggest.
        not_suggested: the providers with variables that are known, but never suggested.
    """
    specs = list(specs)
    suggestions = {name.upper() for name in Settings.model_fields} | _names(specs)
    known = suggestions | _names(not_suggested) | {name for spec in specs for name in spec.server.server_variables}
    first_words = {name.partition("_")[0] for name in suggestions}
    for source, values in read_sources().items():
        for name in sorted(set(values) - known):
            # Compare only names with a similar first word, because difflib is slow.
            similar_words = _similar(name.partition("_")[0], first_words)
            candidates = {known_name for known_name in suggestions if known_name.partition("_")[0] in similar_words}
            similar = [] if name.startswith(NODE_PREFIX) else _similar(name, candidates)
            unset_names = sorted(candidates - set(values))
            similar = similar or [
                unset_name for unset_name in unset_names if _differs_by_word(name, unset_name, candidates)
            ]
            if similar or (name.startswith("LLM_") and not name.startswith(NODE_PREFIX)):
                yield Variable(name, source), " or ".join(similar)


def _similar(name: str, names: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, names, 1, _MIN_SIMILARITY)


def _differs_by_word(name: str, known_name: str, known_names: Iterable[str]) -> bool:
    """Return whether ``name`` adds a last word to ``known_name`` (OPENAI_MODEL_NAME), or omits a word (OPENAI_KEY).

    An added word does not count if another known name also adds a word to ``known_name``. For example, OPENAI_API_TYPE
    does not resemble OPENAI_API, because OPENAI_API_KEY is known, too.
    """
    words, expected = name.split("_"), known_name.split("_")
    shorter = [expected[:index] + expected[index + 1 :] for index in range(1, len(expected))]
    if words[:-1] == expected:
        return not any(other.startswith(f"{known_name}_") for other in known_names)
    return words in [short for short in shorter if len(short) > 1]


def _names(specs: Iterable[ProviderSpec]) -> set[str]:
    return {name for spec in specs for setting in spec.settings for name in spec.variable_names(setting)}
