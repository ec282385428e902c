"""The lines that ``doctor`` prints: settings to paste into ``.env`` or a shell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from .. import settings
from ..adapter.provider import BaseProvider
from ..discovery import Candidate
from ..errors import LLMError
from ..provider_spec import ProviderSpec, endpoint_spec
from ..providers.registry import EMBEDDED, SPECS, build, spec_of
from ..settings import Settings
from ..settings_sources import ENVIRONMENT, find_variables, read_sources
from ..transport.endpoint import parse_endpoint
from .status import providers_in_use
from .terminal import write

_UNKNOWN: Final = "…"  # the user must fill in the value
_PLAIN_NAME: Final = re.compile(r"[\w./:@+,=%-]+")  # needs no quotes in .env or in a shell


@dataclass(frozen=True, slots=True)
class Line:
    """A variable to set.

    Attributes:
        variable_names: the name to set, then other names for the same setting.
        value: the value; "" to use the default.
        comment: a comment above the line.
        is_alternative: whether another line has priority. If True, this line is printed as a comment.
    """

    variable_names: tuple[str, ...]
    value: str
    comment: str = ""
    is_alternative: bool = False

    @property
    def source(self) -> str:
        """Return where to set the variable: in ``.env``, or in the environment if it already sets the variable.

        A line in ``.env`` would then have no effect, because the environment overrides ``.env``. If ``value`` is "",
        return the source that sets the variable now.
        """
        current = next(find_variables(self.variable_names, read_sources()), None)
        return current.source if current and (current.source == ENVIRONMENT or not self.value) else ".env"


def print_lines(lines: Iterable[Line]) -> None:
    """Print the lines, grouped by source. Long lines are not wrapped."""
    lines = list(lines)
    for source in dict.fromkeys(line.source for line in lines):
        write(f"\nLines for {source}:")
        export = "export " if source == ENVIRONMENT else ""
        for line in (line for line in lines if line.source == source):
            if line.comment:
                write(line.comment, indent="  # ")
            print(f"  {'# ' if line.is_alternative else ''}{export}{line.variable_names[0]}={line.value}")


def default_lines(faults: Iterable[str]) -> Iterator[Line]:
    """Yield lines that replace invalid values with defaults.

    ``faults`` contains the names of invalid variables and of unreadable files. Files are skipped.
    """
    for name in filter(str.isidentifier, faults):
        field = Settings.model_fields.get(name.lower())
        default = field.default if field and isinstance(field.default, (str, int, float)) else ""
        yield Line((name,), str(default).lower(), "the default")


def provider_lines(chain: Sequence[str], candidates: Sequence[Candidate]) -> Iterator[Line]:
    """Yield lines that configure a working provider. Yield nothing if a provider of ``chain`` is ready.

    Args:
        chain: the names of the configured providers, in order of preference.
        candidates: the providers, with the results of their probes.
    """
    selected = providers_in_use(chain, candidates)
    ready = [candidate for candidate in selected if candidate.ready]
    if chain and ready:
        return
    missing = [line for candidate in selected for line in _missing_lines(candidate)]
    yield from missing
    responding = [candidate for candidate in candidates if candidate.health.ready and candidate.provider]
    local = [candidate for candidate in responding if candidate.provider and candidate.provider.spec.local]
    clouds = [] if missing or settings.load().llm_local_only else responding
    for candidate in (ready or local or clouds)[:1]:
        yield from _server_lines(candidate, is_alternative=bool(missing))
    if missing or ready or local or clouds:
        return
    # If providers are configured, these lines are only alternatives: a configured provider has priority even while down
    with suppress(LLMError):
        build(EMBEDDED.name)
        comment = "or a small model on this machine" if chain else "the embedded model on this machine"
        yield replace(_provider_line(EMBEDDED.name, comment), is_alternative=bool(chain))
        return
    startable = next(spec for spec in SPECS.values() if spec.server.start_command)
    line = _provider_line(startable.name, f"{'or after' if chain else 'after'}: {startable.server.start_command}")
    yield replace(line, is_alternative=bool(chain))


def _provider_line(name: str, comment: str = "") -> Line:
    return Line(("LLM_PROVIDERS" if settings.load().llm_providers else "LLM_PROVIDER",), name, comment)


def _missing_lines(candidate: Candidate) -> Iterator[Line]:
    """Yield the line that sets a missing setting of a provider: the kind of server, the API key or the model."""
    health = candidate.health
    if candidate.kind:
        yield Line(endpoint_spec(candidate.kind, health.provider).variable_names("kind"), candidate.kind.name)
    elif health.state == "unauthorised":
        yield Line(spec_of(health.provider).variable_names("api_key"), _UNKNOWN, f"the key of {health.provider}")
    elif candidate.provider and (health.state == "model_missing" or (health.ready and not health.model)):
        yield from _model_lines(candidate.provider.spec, health.models)


def _server_lines(candidate: Candidate, *, is_alternative: bool) -> Iterator[Line]:
    """Yield the lines that configure a server and its model."""
    assert candidate.provider  # noqa: S101  # the candidate is ready
    spec, health = candidate.provider.spec, candidate.health
    lines = [_provider_line(spec.name, "or" if is_alternative else "" if spec.local else "prompts leave this machine")]
    if not (candidate.configured or spec.starts_server or _has_default_address(candidate.provider)):
        lines.append(Line(spec.variable_names("base_url"), candidate.provider.endpoint.base_url))
    lines += _model_lines(spec, [health.model] if health.model else health.models)
    yield from (replace(line, is_alternative=is_alternative) for line in lines)


def _has_default_address(provider: BaseProvider) -> bool:
    """Return whether the provider uses its default address, which needs no line."""
    default = provider.spec.api.default_url or ""
    server_url = provider.endpoint.server_url.replace("//127.0.0.1:", "//localhost:")
    return (
        not settings.load_provider(provider.spec).base_url
        and parse_endpoint(provider.spec, default).server_url == server_url
    )


def _model_lines(spec: ProviderSpec, models: Sequence[str]) -> Iterator[Line]:
    """Yield the line that sets the model to the first name that needs no quotes."""
    value, *others = [name for name in models if _PLAIN_NAME.fullmatch(name)] or [_UNKNOWN]
    yield Line(spec.variable_names("model"), value, f"or {', '.join(others[:5])}" if others else "")
