"""``status`` and ``models``: list providers and models, without loading a model or importing LiteLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import click

from .. import discovery, errors, settings
from ..adapter.provider import BaseProvider
from ..capabilities import FLAGS, Health
from ..discovery import Candidate, scan, select_usable
from ..errors import LLMError
from ..provider_spec import Model, ProviderSpec
from ..providers import model_store
from ..providers.registry import check_provider_name
from ..providers.registry import vendor_specs as vendors
from ..replay import active
from .command import ExitCode, command, json_option, provider_option, timeout_option
from .terminal import format_size, notify, progress, table, write, write_json

NO_SERVER: Final = f"{discovery.NO_SERVER}. Run learnflow-llm doctor"
_SHOWN_CAPABILITIES: Final = tuple(name for name in FLAGS if name not in ("streaming", "local"))


@command
@click.option("--all", "-a", "include_all", is_flag=True, help="List all providers and LiteLLM's vendors.")
@json_option(help="Print a list of objects, one for each provider.")
@timeout_option
@provider_option
async def status(include_all: bool, as_json: bool, timeout_s: float, provider: str | None) -> int:
    """Show the state of the providers.

    Lists the configured and the detected providers, with advice. * marks the provider that would serve requests:
    the first ready one. The exit code is 0 only if there is such a provider.
    """
    report_replay()
    chain, candidates = await probe(provider, timeout_s)
    first_ready = next((candidate for candidate in providers_in_use(chain, candidates) if candidate.ready), None)
    listed = candidates if include_all else [candidate for candidate in candidates if _is_listed(candidate, chain)]
    position = {name: index for index, name in enumerate(chain)}
    listed.sort(key=lambda candidate: position.get(candidate.health.provider, len(chain)))
    if as_json:
        write_json([asdict(candidate.health) for candidate in listed])
    elif listed:
        table(
            ("  PROVIDER", "STATE", "MODEL", "CONTEXT", "ADDRESS"),
            (_status_row(candidate, candidate is first_ready) for candidate in listed),
        )
        for line in _remarks(chain, listed):
            write(line)
    if include_all and not as_json:
        write("\nOther values of LLM_PROVIDER:")
        for spec in vendors().values():
            write(_vendor_line(spec), indent="  ")
    if not listed:
        notify(NO_SERVER)
    return ExitCode.OK if first_ready else ExitCode.NO_PROVIDER


def _is_listed(candidate: Candidate, chain: Sequence[str]) -> bool:
    """Return whether to list a provider if ``--all`` is not set.

    A cloud with a failed probe is listed only if ``chain`` has its name.
    """
    is_local = candidate.provider is None or candidate.provider.spec.local
    return candidate.responded or (candidate.configured and (is_local or candidate.health.provider in chain))


def _remarks(chain: Sequence[str], listed: Sequence[Candidate]) -> Iterator[str]:
    """Yield the details of each listed provider, and the reason why a detected server is not used."""
    for candidate in listed:
        name, replacement = candidate.health.provider, _used_instead(candidate, chain, listed)
        if candidate.health.detail != "ready":
            yield f"{name}: {candidate.health.detail}"
        if replacement and candidate.provider:
            variable = candidate.provider.spec.variable("base_url")
            value = f"is {replacement.health.base_url}" if replacement.health.base_url else "is invalid"
            yield (
                f"{name} at {candidate.health.base_url} is not used: {variable} {value}. "
                f"To use it: {variable}={candidate.provider.endpoint.server_url}"
            )


def _used_instead(candidate: Candidate, chain: Sequence[str], candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the configured provider that is used instead of a detected server with the same name; else None."""
    if candidate.configured or candidate.health.provider not in chain:
        return None
    configured = (other for other in candidates if other.configured)
    return next((other for other in configured if other.health.provider == candidate.health.provider), None)


@command
@click.option("--store", is_flag=True, help="List the models in the store of this machine (learnflow-llm pull).")
@json_option(help="Print a list of objects.")
@timeout_option
@provider_option
async def models(store: bool, as_json: bool, timeout_s: float, provider: str | None) -> int:
    """List the models of each server."""
    if store:
        return _list_store(as_json=as_json)
    chain, candidates = await probe(provider, timeout_s)
    responding = [candidate for candidate in candidates if candidate.provider and candidate.responded]
    listed = await asyncio.gather(*(_models(candidate, timeout_s) for candidate in responding))
    rows = [(candidate, model) for candidate, models in zip(responding, listed, strict=True) for model in models]
    if as_json:
        write_json([_model_object(candidate, model) for candidate, model in rows])
    elif rows:
        titles = ("PROVIDER", "MODEL", "LOADED", "TRAINED FOR", "SERVED", "CAPABILITIES")
        table(titles, (_model_row(candidate, model) for candidate, model in rows))
    if not responding:
        reasons = [
            f"{candidate.health.provider}: {candidate.health.detail}"
            for candidate in providers_in_use(chain, candidates)
        ]
        notify("\n".join(reasons) or NO_SERVER)
    elif not rows:
        notify(f"{', '.join(candidate.health.provider for candidate in responding)}: the server has no model")
    return ExitCode.OK if rows else ExitCode.NO_PROVIDER


def _list_store(*, as_json: bool) -> int:
    files = [(file.stem, str(file), file.stat().st_size) for file in model_store.models()]
    if as_json:
        write_json([{"name": name, "path": path, "size_bytes": size_bytes} for name, path, size_bytes in files])
    elif files:
        table(("NAME", "SIZE", "PATH"), ((name, format_size(size_bytes), path) for name, path, size_bytes in files))
    else:
        notify(f"no model is stored in {model_store.folder()}. Run learnflow-llm pull smollm2 to download a small one")
    return ExitCode.OK


def chain_of(provider: str | None) -> list[str]:
    """Return the requested provider, else the chain: the names of the configured providers in order of preference."""
    if provider:
        return [provider.lower()]
    return [name for rank in settings.load().chain for name in rank]


async def probe(
    provider: str | None, timeout_s: float, *, checks_names: bool = True
) -> tuple[list[str], list[Candidate]]:
    """Probe the chain, the other configured providers, and the local servers. Return the chain and the results.

    Raises:
        NotConfigured: a name of the chain is invalid, and ``checks_names`` is True.
    """
    chain = chain_of(provider)
    for name in chain if checks_names else ():
        check_provider_name(name)
    with progress("probing servers"):
        return chain, await scan(timeout_s, chain, embedded=True)


def providers_in_use(chain: Sequence[str], candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the providers that would serve requests, in order: the chain, else all usable local providers."""
    if not chain:
        return select_usable(candidates)
    configured = [candidate for candidate in candidates if candidate.configured and candidate.health.provider in chain]
    return sorted(configured, key=lambda candidate: chain.index(candidate.health.provider))


def report_replay() -> None:
    """Print a notice if the output comes from cassettes (recorded responses)."""
    try:
        common = settings.load()
    except errors.NotConfigured:
        return  # the command itself reports the error
    if active.is_replay(active.current(common)):
        notify(f"LLM_REPLAY is set: the output comes from the cassettes in {common.llm_replay}, not from servers")


async def _models(candidate: Candidate, timeout_s: float) -> list[Model]:
    assert isinstance(candidate.provider, BaseProvider)  # noqa: S101  # the candidate responded
    try:
        return await candidate.provider.models(timeout_s)
    except errors.NotRecorded:
        raise
    except LLMError:
        return []


def _model_object(candidate: Candidate, model: Model) -> dict[str, Any]:
    assert candidate.provider  # noqa: S101  # the provider has listed its models
    return {
        "provider": candidate.health.provider,
        "base_url": candidate.health.base_url,
        "model": model.name,
        "loaded": model.loaded,
        "capabilities": dict(candidate.provider.get_capabilities(model.name)),
    }


def _vendor_line(spec: ProviderSpec) -> str:
    keys = " or ".join(dict.fromkeys(spec.variable_names("api_key")))
    address = spec.api.default_url or f"set {spec.variable('base_url')}"
    return f"{spec.name}: {address}, {keys}"


def _status_row(candidate: Candidate, is_first_ready: bool) -> tuple[str, ...]:
    health = candidate.health
    server = " ".join(filter(None, [health.server, health.version]))
    return (
        f"{'*' if is_first_ready else ' '} {health.provider}",
        state(health),
        health.model or "-",
        str(health.capabilities["context_served"] or "?") if health.ready else "-",
        (health.base_url or "-") + (f" ({server})" if server else ""),
    )


def state(health: Health) -> str:
    """Return the state for a table, such as "ready, cold"."""
    return health.state + (", cold" if health.cold and health.ready else "")


def _model_row(candidate: Candidate, model: Model) -> tuple[str, ...]:
    assert candidate.provider  # noqa: S101  # the provider has listed its models
    capabilities = candidate.provider.get_capabilities(model.name)
    loaded = "remote" if model.remote else {True: "yes", False: "no", None: "?"}[model.loaded]
    trained, served = str(capabilities["context"] or "?"), str(capabilities["context_served"] or "?")
    return (candidate.health.provider, model.name, loaded, trained, served, _capability_names(capabilities))


def _capability_names(capabilities: Mapping[str, Any]) -> str:
    """Return the names of the capabilities of a model. An unknown capability has a question mark."""
    values = {name: capabilities[name] for name in _SHOWN_CAPABILITIES}
    names = [name + ("?" if value is None else "") for name, value in values.items() if value is not False]
    return " ".join(names) or "-"
