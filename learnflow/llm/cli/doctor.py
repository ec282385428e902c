"""``doctor``: explain the configuration of this machine.

It prints the variables that are set, the addresses that were probed, common mistakes, and the lines to write. It prints
no key and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from .. import settings, settings_sources
from ..discovery import Candidate
from ..errors import LLMError
from ..provider_spec import ProviderSpec, endpoint_spec
from ..providers.registry import CUSTOM, SPECS, spec_of
from ..providers.registry import vendor_specs as vendors
from ..transport.endpoint import endpoint, is_loopback
from .command import ExitCode, command, provider_option, within_option
from .status import chain_of, probe, report_replay, select, state
from .terminal import table, write
from .variables import misspelt, variables


@command
@within_option
@provider_option
async def doctor(within: float, provider: str | None) -> int:
    """Explain this machine: what is set, what answers, what to write."""
    report_replay()
    write(f"This is {'a container' if settings_sources.in_container() else 'no container'}.")
    _show("Variables that are set", _variables(provider))  # before the probes, because one of them may be invalid
    _show("Variables that nobody reads", _misspelt(provider))
    chain, places = await probe(provider, within)
    if places:
        write("\nWhat was tried:")
        titles = ("  PROVIDER", "STATE", "WHERE", "WHAT")
        table(
            titles, ((f"  {_provider(place)}", state(place.health), _url(place), _details(place)) for place in places)
        )
    _show("Traps", _traps(places))
    _show("What would be used", [_used(chain, places)])
    _show("What to write into .env", _advice(chain, places))
    return ExitCode.OK if any(place.ready for place in select(chain, places)) else ExitCode.NO_PROVIDER


def _show(title: str, lines: Iterable[str]) -> None:
    shown = list(lines)
    if shown:
        write(f"\n{title}:")
        for line in shown:
            write(line, indent="  ")


def _specs(provider: str | None) -> list[ProviderSpec]:
    """Return the specs of known and named providers."""
    names: list[str] = []
    with suppress(LLMError):  # the probe reports it
        names = chain_of(provider)
    specs = dict(SPECS)
    for name in names:
        try:
            specs.setdefault(name, spec_of(name))
        except LLMError:  # an endpoint without a kind has the same variables
            specs.setdefault(name, endpoint_spec(CUSTOM, name))
    return list(specs.values())


def _variables(provider: str | None) -> Iterator[str]:
    for variable in variables(_specs(provider)):
        shadowed = f", without effect: {variable.shadowed} comes first" if variable.shadowed else ""
        yield f"{variable.name} (in {variable.where}{shadowed})"


def _misspelt(provider: str | None) -> Iterator[str]:
    for variable, near in misspelt(_specs(provider), vendors().values()):
        yield f"{variable.name} (in {variable.where}): did you mean {near}?"


def _name(place: Candidate) -> str:
    return f"{place.health.provider} at {place.health.base_url or 'no address'}"


def _traps(places: Sequence[Candidate]) -> Iterator[str]:
    proxies = settings_sources.proxies()
    named = ", ".join(f"{scheme}_proxy" for scheme in proxies if scheme != "no")
    if named:
        yield f"{named} is set: used for what is not on this machine or a private network, never for local servers"
        if "no" not in proxies:
            yield "no_proxy is not set: other programs may send local requests to it; no_proxy=localhost,127.0.0.1"
    common = settings.load()
    if common.llm_local_only:
        yield "LLM_LOCAL_ONLY is set: cloud providers and models that a local server forwards are refused"
    if common.llm_provider and common.llm_providers:
        yield "LLM_PROVIDERS and LLM_PROVIDER are both set: LLM_PROVIDERS wins"
    reached = {place.health.provider for place in places if place.answers}
    for place in places if settings_sources.in_container() else ():
        down = place.configured and place.health.state == "down" and place.health.provider not in reached
        address = place.provider.endpoint if place.provider and down else None
        if address and is_loopback(address.origin[1]):
            yield (
                f"{address.base} is this container itself: name the service, or name host.docker.internal and let the "
                "server listen on more than loopback"
            )


def _provider(place: Candidate) -> str:
    return place.health.provider


def _url(place: Candidate) -> str:
    return place.health.base_url or "-"


def _details(place: Candidate) -> str:
    """Return the details of a probe; "" for a default address without a server."""
    nothing = place.health.state == "down" and not place.configured
    return "" if nothing or place.health.detail == "ready" else place.health.detail.removeprefix("ready; ")


def _used(chain: Sequence[str], places: Sequence[Candidate]) -> str:
    names = [_name(place) for place in select(chain, places) if place.ready]
    none = f"not ready: {', '.join(chain)}" if chain else "none is named, and no local server is ready"
    return ", then ".join(names) or f"nothing ({none})"


def _advice(chain: Sequence[str], places: Sequence[Candidate]) -> Iterator[str]:
    """Yield the lines of .env that name a working provider."""
    selected = select(chain, places)
    ready = [place for place in selected if place.ready]
    if chain and ready:
        return
    missing = [place.setting for place in selected if place.setting]
    yield from missing
    local = [place for place in places if place.health.ready and place.provider and place.provider.spec.local]
    for place in ready[:1] or local[:1]:
        yield from (f"# or {line}" if missing else line for line in _lines(place))
    if missing or local:
        return
    for spec in [spec for spec in SPECS.values() if not spec.local and settings.load_provider(spec).api_key][:1]:
        yield f"LLM_PROVIDER={spec.name}   # its key is set, but prompts leave this machine"
    easiest = next(spec for spec in SPECS.values() if spec.server.start_command)
    yield f"LLM_PROVIDER={easiest.name}   # after: {easiest.server.start_command}"


def _lines(place: Candidate) -> Iterator[str]:
    """Yield the lines that name a server and its model."""
    assert place.provider  # noqa: S101  # it is ready
    spec, address = place.provider.spec, place.provider.endpoint
    yield f"LLM_PROVIDER={spec.name}"
    if not place.configured:
        short = endpoint(spec, address.root).base == address.base
        yield f"{spec.variable('base_url')}={address.root if short else address.base}"
    if place.health.model:
        yield f"{spec.variable('model')}={place.health.model}"
    elif place.health.models:
        yield f"{spec.variable('model')}=…   # one of: {', '.join(place.health.models[:6])}"
