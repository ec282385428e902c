"""``doctor``: show the configuration of this machine, and how to correct it. No key is printed, nothing is changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence

from .. import settings, settings_sources
from ..adapter.provider import BaseProvider
from ..discovery import NO_SERVER, Candidate
from ..errors import LLMError
from ..process import switches
from ..provider_spec import Page, ProviderSpec
from ..servers.probe import fetch
from ..transport.endpoint import is_loopback
from ..transport.untrusted import text_or_none
from .command import ExitCode, command, provider_option, timeout_option
from .env_lines import default_lines, print_lines, provider_lines
from .status import probe, providers_in_use, report_replay, state
from .terminal import table, write
from .variables import describe_ineffective, known_specs, variables


@command
@timeout_option
@provider_option
async def doctor(timeout_s: float, provider: str | None) -> int:
    """Show the settings, the servers that respond, common mistakes, and lines for .env.

    The exit code is 0 only if a provider in use is ready, and no value is invalid.
    """
    faults = switches.collected_faults = dict[str, str]()  # faults are collected here instead of raised
    report_replay()
    write(f"This is {'a' if settings_sources.in_container() else 'not a'} container.")
    specs = known_specs(provider)
    _print_section("Variables that are set", _variable_texts(specs))
    for spec in specs:
        settings.load_provider(spec)  # adds the provider's invalid values to ``faults``
    _print_section(
        "Invalid values, replaced below by the defaults",
        (f"{name} {fault}" for name, fault in faults.items()),
    )
    _print_section("Settings without effect", describe_ineffective(specs, all_unknown=True))
    # ``chain``: the names of the requested or configured providers. ``candidates``: the probed providers
    chain, candidates = await probe(provider, timeout_s, checks_names=False)
    if candidates:
        write("\nProbed servers:")
        table(("  PROVIDER", "STATE", "ADDRESS", "DETAIL"), map(_row, candidates))
    _print_section("Warnings", [*_warnings(candidates), *await _router_warnings(candidates, timeout_s)])
    _print_section("Providers that would serve requests", [_ready_providers_text(chain, candidates)])
    print_lines([*default_lines(faults), *provider_lines(chain, candidates)])
    ready = any(candidate.ready for candidate in providers_in_use(chain, candidates))
    return ExitCode.OK if ready and not faults else ExitCode.NO_PROVIDER


def _print_section(title: str, lines: Iterable[str]) -> None:
    """Print a title and indented lines. Print nothing if there are no lines."""
    lines = list(lines)
    if lines:
        write(f"\n{title}:")
    for line in lines:
        write(line, indent="  ")


def _variable_texts(specs: Iterable[ProviderSpec]) -> Iterator[str]:
    for variable in variables(specs):
        override = f", overridden by {variable.overridden_by}" if variable.overridden_by else ""
        yield f"{variable.name} (in {variable.source}{override})"


def _row(candidate: Candidate) -> tuple[str, ...]:
    """Return a row of the table. DETAIL is empty for a default address without a server."""
    health = candidate.health
    no_server = health.state == "down" and not candidate.configured
    detail = "" if no_server or health.detail == "ready" else health.detail.removeprefix("ready; ")
    return f"  {health.provider}", state(health), health.base_url or "-", detail


def _warnings(candidates: Sequence[Candidate]) -> Iterator[str]:
    proxies = settings_sources.proxies()
    set_proxies = ", ".join(f"{scheme}_proxy" for scheme in proxies if scheme != "no")
    if set_proxies:
        yield f"{set_proxies} is set: requests use the proxy unless the server is on this machine or a private network"
        if "no" not in proxies:
            yield (
                "no_proxy is not set: other programs may send local requests to the proxy. "
                "Set no_proxy=localhost,127.0.0.1"
            )
    common = settings.load()
    if common.llm_local_only:
        yield "LLM_LOCAL_ONLY is set: clouds are refused, and so are models that a local server forwards to a cloud"
        specs = [candidate.provider.spec for candidate in candidates if candidate.provider and candidate.responded]
        for spec in specs:
            if spec.server.locality_caveat:
                yield f"LLM_LOCAL_ONLY cannot check {spec.title}: {spec.server.locality_caveat}"
    names = {variable.name for variable in variables(()) if variable.name in ("LLM_PROVIDER", "LLM_PROVIDERS")}
    if len(names) > 1:
        unused = "LLM_PROVIDERS" if settings.find_chain_variable().name == "LLM_PROVIDER" else "LLM_PROVIDER"
        yield f"LLM_PROVIDERS and LLM_PROVIDER are both set: {unused} has no effect"
    if settings_sources.in_container():
        yield from _loopback_warnings(candidates)


def _loopback_warnings(candidates: Sequence[Candidate]) -> Iterator[str]:
    """Yield a warning for each configured loopback address that does not respond.

    Skip a provider that responds at another address.
    """
    responding = {candidate.health.provider for candidate in candidates if candidate.responded}
    for candidate in candidates:
        is_down = candidate.configured and candidate.health.state == "down"
        if not candidate.provider or not is_down or candidate.health.provider in responding:
            continue
        address = candidate.provider.endpoint
        if is_loopback(address.origin[1]):
            yield (
                f"{address.base_url} is this container itself. Use the name of the service. Or use "
                "host.docker.internal, if the server listens on more than loopback"
            )


async def _router_warnings(candidates: Sequence[Candidate], timeout_s: float) -> list[str]:
    """Return a warning for each local address that belongs to a router.

    This router is a program such as vllm-router or smg, which forwards requests to several servers.
    """
    responding = [candidate.provider for candidate in candidates if candidate.provider and candidate.responded]
    local = [provider for provider in responding if provider.spec.local or provider.endpoint.looks_local]
    return [
        warning
        for warning in await asyncio.gather(*(_router_warning(provider, timeout_s) for provider in local))
        if warning
    ]


async def _router_warning(provider: BaseProvider, timeout_s: float) -> str:
    """Return a warning if the address belongs to a router; else "".

    Only the page ``/workers`` identifies a router, because a router forwards all other requests.
    """
    try:
        async with asyncio.timeout(timeout_s):
            page = Page(body=await fetch(provider.catalog.client, "/workers"))
    except (LLMError, TimeoutError):
        return ""
    workers = [row for row in page.rows("workers") or () if text_or_none(row.get("url"))]
    if not workers:
        return ""
    spec, unhealthy_count = provider.spec, sum(row.get("is_healthy") is False for row in workers)
    limit_hint = (
        "" if settings.load_provider(spec).max_concurrency else f"; also set {spec.variable('max_concurrency')}"
    )
    return (
        f"{provider.endpoint.base_url} is a router of {len(workers)} servers"
        f"{f' ({unhealthy_count} unhealthy)' if unhealthy_count else ''}. Start it with --disable-retries, because "
        f"this package retries{limit_hint and f'{limit_hint} to the number of slots of all servers together'}"
    )


def _ready_providers_text(chain: Sequence[str], candidates: Sequence[Candidate]) -> str:
    ready = [candidate.health for candidate in providers_in_use(chain, candidates) if candidate.ready]
    if ready:
        return ", then ".join(f"{health.provider} at {health.base_url or 'no address'}" for health in ready)
    return f"none is ready: {', '.join(chain)}" if chain else f"none: {NO_SERVER}"
