"""``doctor`` explains this machine: the variables that are set, the places that were probed, traps, the line to write.

Must never print a key, or change anything.
The command line calls it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from .. import settings, settings_sources
from ..discovery import Found
from ..errors import LLMError
from ..provider_spec import ProviderSpec, endpoint_spec
from ..providers.registry import CUSTOM, SPECS, spec_of
from ..providers.registry import vendor_specs as vendors
from ..transport.endpoint import endpoint, is_loopback
from .command import ExitCode, command, provider_option, within_option
from .status import chain_of, looked, recorded, state, used
from .terminal import table, write
from .variables import misspelt, variables


@command
@within_option
@provider_option
async def doctor(within: float, provider: str | None) -> int:
    """Explain this machine: what is set, what answers, what to write."""
    recorded()
    write(f"This is {'a container' if settings_sources.in_container() else 'no container'}.")
    _show("Variables that are set", _variables(provider))  # first: one of them may be what is wrong
    _show("Variables that nobody reads", _misspelt(provider))
    chain, found = await looked(provider, within)
    if found:
        write("\nWhat was tried:")
        tried = ((each.health.provider, state(each.health), each.health.base_url or "-", _seen(each)) for each in found)
        table(("  PROVIDER", "STATE", "WHERE", "WHAT"), ((f"  {name}", *more) for name, *more in tried))
    _show("Traps", _traps(found))
    _show("What would be used", [_used(chain, found)])
    _show("What to write into .env", _advice(chain, found))
    return ExitCode.OK if any(each.ready for each in used(chain, found)) else ExitCode.NO_PROVIDER


def _show(title: str, lines: Iterable[str]) -> None:
    shown = list(lines)
    if shown:
        write(f"\n{title}:")
        for line in shown:
            write(line, indent="  ")


def _specs(provider: str | None) -> list[ProviderSpec]:
    """Return the specs whose variables are checked: the known ones, and the named ones."""
    names: list[str] = []
    with suppress(LLMError):  # the probe reports it
        names = chain_of(provider)
    specs = dict(SPECS)
    for name in names:
        try:
            specs.setdefault(name, spec_of(name))
        except LLMError:  # the kind of an endpoint is not set: its variables are the same
            specs.setdefault(name, endpoint_spec(CUSTOM, name))
    return list(specs.values())


def _variables(provider: str | None) -> Iterator[str]:
    for variable in variables(_specs(provider)):
        shadowed = f", without effect: {variable.shadowed} comes first" if variable.shadowed else ""
        yield f"{variable.name} (in {variable.where}{shadowed})"


def _misspelt(provider: str | None) -> Iterator[str]:
    for variable, near in misspelt(_specs(provider), vendors().values()):
        yield f"{variable.name} (in {variable.where}): did you mean {near}?"


def _name(found: Found) -> str:
    return f"{found.health.provider} at {found.health.base_url or 'no address'}"


def _traps(found: Sequence[Found]) -> Iterator[str]:
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
    here = {each.health.provider for each in found if each.answers}  # these are reached
    for each in found if settings_sources.in_container() else ():
        silent = each.configured and each.health.state == "down" and each.health.provider not in here
        there = each.provider.endpoint if each.provider and silent else None
        if there and is_loopback(there.origin[1]):
            yield (
                f"{there.base} is this container itself: name the service, or host.docker.internal, where the server "
                "must then listen on more than loopback"
            )


def _seen(found: Found) -> str:
    """Return the details of a place; none for a usual address without a server."""
    nothing = found.health.state == "down" and not found.configured
    return "" if nothing or found.health.detail == "ready" else found.health.detail.removeprefix("ready; ")


def _used(chain: Sequence[str], found: Sequence[Found]) -> str:
    names = [_name(each) for each in used(chain, found) if each.ready]
    none = f"not ready: {', '.join(chain)}" if chain else "none is named, and no local server is ready"
    return ", then ".join(names) or f"nothing ({none})"


def _advice(chain: Sequence[str], found: Sequence[Found]) -> Iterator[str]:
    """Yield the lines of .env that make it work, or keep it working whatever else is started."""
    there = used(chain, found)
    if chain and any(each.ready for each in there):
        return
    missing = [each.setting for each in there if each.setting]
    yield from missing
    local = [each for each in found if each.health.ready and each.provider and each.provider.spec.local]
    for each in [one for one in there if one.ready][:1] or local[:1]:
        yield from (f"# or {line}" if missing else line for line in _lines(each))
    if missing or local:
        return
    for spec in [spec for spec in SPECS.values() if not spec.local and settings.load_provider(spec).api_key][:1]:
        yield f"LLM_PROVIDER={spec.name}   # its key is set; but then prompts leave this machine"
    easiest = next(spec for spec in SPECS.values() if spec.server.start_command)
    yield f"LLM_PROVIDER={easiest.name}   # after: {easiest.server.start_command}"


def _lines(found: Found) -> Iterator[str]:
    """Yield the lines that name a server and its model."""
    assert found.provider  # noqa: S101  # a ready one has a provider
    spec, there = found.provider.spec, found.provider.endpoint
    yield f"LLM_PROVIDER={spec.name}"
    if not found.configured:
        short = endpoint(spec, there.root).base == there.base
        yield f"{spec.variable('base_url')}={there.root if short else there.base}"
    if found.health.model:
        yield f"{spec.variable('model')}={found.health.model}"
    elif found.health.models:
        yield f"{spec.variable('model')}=…   # one of: {', '.join(found.health.models[:6])}"
