"""``status`` and ``models``: list providers and models, as a table or as JSON.

They load no model and do not import LiteLLM.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import click

from .. import errors, model_store, settings
from ..adapter.provider import BaseProvider
from ..capabilities import YES_NO, Health
from ..discovery import Found, scan, usable
from ..errors import LLMError
from ..provider_spec import Model, ProviderSpec
from ..providers.registry import check
from ..providers.registry import table as vendors
from ..replay import active
from .command import ExitCode, command, json_option, provider_option, within_option
from .terminal import notify, progress, size, table, write, write_json

NO_SERVER: Final = "no provider is named, and no server answers on this machine. Run learnflow-llm doctor"
_SHOWN_CAPABILITIES: Final = tuple(name for name in YES_NO if name not in ("streaming", "local"))


@command
@click.option("--all", "-a", "include_all", is_flag=True, help="List all providers and LiteLLM's vendors.")
@json_option(help="Print a list of objects, one for each provider.")
@within_option
@provider_option
async def status(include_all: bool, as_json: bool, within: float, provider: str | None) -> int:
    """Show the state of the providers.

    Lists the providers that are named or found, and what to do. * marks the one that would be used. Exit code 0 only if
    that one is ready.
    """
    report_replay()
    chain, places = await probe(provider, within)
    first = next((place for place in select(chain, places) if place.ready), None)
    listed = places if include_all else [place for place in places if _is_listed(place, chain)]
    position = {name: index for index, name in enumerate(chain)}
    listed.sort(key=lambda place: position.get(place.health.provider, len(chain)))
    if as_json:
        write_json([_status_object(place.health) for place in listed])
    elif listed:
        table(
            ("  PROVIDER", "STATE", "MODEL", "CONTEXT", "WHERE"),
            (_status_row(place, place is first) for place in listed),
        )
        for line in _remarks(chain, listed):
            write(line)
    if include_all and not as_json:
        write("\nFurther names of LLM_PROVIDER:")
        table(("  PROVIDER", "WHERE", "KEY"), map(_vendor_row, vendors().values()))
    if not listed:
        notify(NO_SERVER)
    return ExitCode.OK if first else ExitCode.NO_PROVIDER


def _is_listed(place: Found, chain: Sequence[str]) -> bool:
    """Return whether a provider is named or answers. A cloud with a key that is not named is neither."""
    local = place.provider is None or place.provider.spec.local
    return place.answers or (place.configured and (local or place.health.provider in chain))


def _remarks(chain: Sequence[str], listed: Sequence[Found]) -> Iterator[str]:
    """Yield the details of providers that are not simply ready, and of servers that are not used."""
    for place in listed:
        name, named = place.health.provider, _configured_twin(place, chain, listed)
        if place.health.detail != "ready":
            yield f"{name}: {place.health.detail}"
        if named and place.provider:
            variable = place.provider.spec.variable("base_url")
            value = f"is {named.health.base_url}" if named.health.base_url else "is invalid"
            yield (
                f"{name} at {place.health.base_url} is not used: {variable} {value}. "
                f"To use it: {variable}={place.provider.endpoint.root}"
            )


def _configured_twin(place: Found, chain: Sequence[str], places: Sequence[Found]) -> Found | None:
    """Return the configured provider with the same name, which is used instead. Return None without one."""
    if place.configured or place.health.provider not in chain:
        return None
    return next((one for one in places if one.configured and one.health.provider == place.health.provider), None)


@command
@click.option("--store", is_flag=True, help="List the models in the store of this machine (learnflow-llm pull).")
@json_option(help="Print a list of objects.")
@within_option
@provider_option
async def models(store: bool, as_json: bool, within: float, provider: str | None) -> int:
    """List the models of each server."""
    if store:
        return _stored(as_json=as_json)
    chain, places = await probe(provider, within)
    answering = [place for place in places if place.provider and place.answers]
    listed = await asyncio.gather(*(_models(place, within) for place in answering))
    rows = [(place, model) for place, own in zip(answering, listed, strict=True) for model in own]
    if as_json:
        write_json([_model_object(place, model) for place, model in rows])
    elif rows:
        titles = ("PROVIDER", "MODEL", "LOADED", "TRAINED FOR", "SERVED", "CAN")
        table(titles, (_model_row(place, model) for place, model in rows))
    if not answering:
        silent = [f"{place.health.provider}: {place.health.detail}" for place in select(chain, places)]
        notify("\n".join(silent) or NO_SERVER)
    elif not rows:
        notify(f"{', '.join(place.health.provider for place in answering)}: the server has no model")
    return ExitCode.OK if rows else ExitCode.NO_PROVIDER


def _stored(*, as_json: bool) -> int:
    listed = model_store.models()
    if as_json:
        write_json([{"name": place.name, "path": str(place.path), "size_bytes": place.size_bytes} for place in listed])
    elif listed:
        table(("NAME", "SIZE", "PATH"), ((place.name, size(place.size_bytes), str(place.path)) for place in listed))
    else:
        notify(f"no model is stored in {model_store.folder()}. learnflow-llm pull smollm2 stores a small one")
    return ExitCode.OK


def chain_of(provider: str | None) -> list[str]:
    """Return the names of the providers that are named."""
    if provider:
        return [provider.lower()]
    return [name for rank in settings.load().chain for name in rank]


async def probe(provider: str | None, within: float) -> tuple[list[str], list[Found]]:
    """Probe the named, the configured and the local providers.

    Returns:
        The names of the chain, and the probed places.

    Raises:
        NotConfigured: a name is invalid.
    """
    chain = chain_of(provider)
    for name in chain:
        check(name)
    with progress("probing servers"):
        return chain, await scan(within, chain, embedded=True)


def select(chain: Sequence[str], places: Iterable[Found]) -> list[Found]:
    """Return the providers that would be used: the named ones, else all usable local ones."""
    if chain:
        named = [place for place in places if place.health.provider in chain and place.configured]
        return sorted(named, key=lambda place: chain.index(place.health.provider))
    return usable(places)


def report_replay() -> None:
    """Print a notice if the output comes from cassettes."""
    try:
        common = settings.load()
    except errors.NotConfigured:
        return  # the command reports it
    if active.plays(active.current(common.llm_replay, common.llm_replay_mode)):
        notify(f"LLM_REPLAY is set: the output comes from the cassettes in {common.llm_replay}, not from servers")


async def _models(place: Found, within: float) -> list[Model]:
    assert isinstance(place.provider, BaseProvider)  # noqa: S101  # it answers
    try:
        return await place.provider.models(within)
    except errors.NotRecorded:
        raise
    except LLMError:
        return []


def _status_object(health: Health) -> dict[str, Any]:
    return {
        "provider": health.provider,
        "base_url": health.base_url,
        "state": health.state,
        "version": health.version,
        "latency_s": health.latency_s,
        "models": list(health.models),
        "capabilities": dict(health.capabilities),
        "detail": health.detail,
        "server": health.server,
        "model": health.model,
        "cold": health.cold,
    }


def _model_object(place: Found, model: Model) -> dict[str, Any]:
    assert place.provider  # noqa: S101  # it has listed its models
    return {
        "provider": place.health.provider,
        "base_url": place.health.base_url,
        "model": model.name,
        "loaded": model.loaded,
        "capabilities": dict(place.provider.get_capabilities(model.name)),
    }


def _vendor_row(spec: ProviderSpec) -> tuple[str, str, str]:
    keys = dict.fromkeys(spec.spellings("api_key"))
    return (f"  {spec.name}", spec.api.default_url or f"set {spec.variable('base_url')}", " or ".join(keys))


def _status_row(place: Found, first: bool) -> tuple[str, ...]:
    health = place.health
    server = " ".join(filter(None, [health.server, health.version]))
    return (
        f"{'*' if first else ' '} {health.provider}",
        state(health),
        health.model or "-",
        str(health.capabilities["context_served"] or "?") if health.ready else "-",
        (health.base_url or "-") + (f" ({server})" if server else ""),
    )


def state(health: Health) -> str:
    """Return the state in one or two words."""
    return health.state + (", cold" if health.cold and health.ready else "")


def _model_row(place: Found, model: Model) -> tuple[str, ...]:
    assert place.provider  # noqa: S101  # it has listed its models
    known = place.provider.get_capabilities(model.name)
    loaded = "elsewhere" if model.remote else {True: "yes", False: "no", None: "?"}[model.loaded]
    trained, served = str(known["context"] or "?"), str(known["context_served"] or "?")
    return (place.health.provider, model.name, loaded, trained, served, _capabilities(known))


def _capabilities(known: Mapping[str, Any]) -> str:
    """Return the capabilities of a model; unknown ones with a question mark."""
    names = [name + ("?" if known[name] is None else "") for name in _SHOWN_CAPABILITIES if known[name] is not False]
    return " ".join(names) or "-"
