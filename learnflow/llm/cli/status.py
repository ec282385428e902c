"""``status`` and ``models``: what there is, as a table for people and as JSON for programs.

Must never load a model, or import LiteLLM to look.
The command line calls it.
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
from ..providers.registry import vendor_specs as vendors
from ..replay import active
from .command import ExitCode, command, json_option, provider_option, within_option
from .terminal import progress, say, size, table, write, write_json

NOBODY: Final = "no provider is named, and no server answers on this machine; learnflow-llm doctor says what to do"
_CAN: Final = tuple(name for name in YES_NO if name not in ("streaming", "local"))


@command
@click.option("--all", "-a", "every", is_flag=True, help="Those that are neither, and LiteLLM's vendors, too.")
@json_option(help="Print a list of objects, one for each.")
@within_option
@provider_option
async def status(every: bool, as_json: bool, within: float, provider: str | None) -> int:
    """Show how the providers are.

    Those that are named or found, and what to do; * marks the one that would be used. Exit code 0 only if one is ready
    that would be.
    """
    recorded()
    chain, found = await looked(provider, within)
    first = next((each for each in used(chain, found) if each.ready), None)
    listed = found if every else [each for each in found if _told(each, chain)]
    order = {name: at for at, name in enumerate(chain)}
    listed.sort(key=lambda each: order.get(each.health.provider, len(chain)))
    if as_json:
        write_json([_object(each.health) for each in listed])
    elif listed:
        table(("  PROVIDER", "STATE", "MODEL", "CONTEXT", "WHERE"), (_row(each, each is first) for each in listed))
        for line in _remarks(chain, listed):
            write(line)
    if every and not as_json:
        write("\nFurther names of LLM_PROVIDER:")
        table(("  PROVIDER", "WHERE", "KEY"), map(_vendor_row, vendors().values()))
    if not listed:
        say(NOBODY)
    return ExitCode.OK if first else ExitCode.NO_PROVIDER


def _told(each: Found, chain: Sequence[str]) -> bool:
    """Return whether a provider is named or answers. A cloud with a key that is not named is neither."""
    local = each.provider is None or each.provider.spec.local
    return each.answers or (each.configured and (local or each.health.provider in chain))


def _remarks(chain: Sequence[str], listed: Sequence[Found]) -> Iterator[str]:
    """Yield the details of providers that are not simply ready, and of servers that are not used."""
    for each in listed:
        name, named = each.health.provider, _twin(each, chain, listed)
        if each.health.detail != "ready":
            yield f"{name}: {each.health.detail}"
        if named and each.provider:
            variable = each.provider.spec.variable("base_url")
            there = (
                f"{variable} says {named.health.base_url}" if named.health.base_url else f"{variable} cannot be read"
            )
            yield (
                f"{name} at {each.health.base_url} is not the one that counts: {there}. "
                f"To use this one: {variable}={each.provider.endpoint.root}"
            )


def _twin(each: Found, chain: Sequence[str], found: Sequence[Found]) -> Found | None:
    """Return the configured provider of the same name, which is used instead; None if there is none."""
    if each.configured or each.health.provider not in chain:
        return None
    return next((one for one in found if one.configured and one.health.provider == each.health.provider), None)


@command
@click.option("--store", is_flag=True, help="Those in the store of this machine instead (learnflow-llm pull).")
@json_option(help="Print a list of objects.")
@within_option
@provider_option
async def models(store: bool, as_json: bool, within: float, provider: str | None) -> int:
    """List the models of each server."""
    if store:
        return _stored(as_json=as_json)
    _, found = await looked(provider, within)
    there = [each for each in found if each.provider and each.answers]
    listed = await asyncio.gather(*(_models(each, within) for each in there))
    rows = [(each, model) for each, own in zip(there, listed, strict=True) for model in own]
    if as_json:
        write_json([_model_object(each, model) for each, model in rows])
    elif rows:
        titles = ("PROVIDER", "MODEL", "LOADED", "TRAINED FOR", "SERVED", "CAN")
        table(titles, (_model_row(each, model) for each, model in rows))
    if not there:
        say(NOBODY)
    elif not rows:
        say(f"{', '.join(each.health.provider for each in there)}: no model is there")
    return ExitCode.OK if rows else ExitCode.NO_PROVIDER


def _stored(*, as_json: bool) -> int:
    listed = model_store.models()
    if as_json:
        write_json([{"name": each.name, "path": str(each.path), "size_bytes": each.size_bytes} for each in listed])
    elif listed:
        table(("NAME", "SIZE", "PATH"), ((each.name, size(each.size_bytes), str(each.path)) for each in listed))
    else:
        say(f"no model is stored in {model_store.folder()}; learnflow-llm pull smollm2 stores a small one")
    return ExitCode.OK


def chain_of(provider: str | None) -> list[str]:
    """Return the names of the providers that are named."""
    if provider:
        return [provider.lower()]
    return [name for rank in settings.load().chain for name in rank]


async def looked(provider: str | None, within: float) -> tuple[list[str], list[Found]]:
    """The providers that are named, and how every one is: the named, the configured, and the local ones.

    Raises NotConfigured for a name that is none.
    """
    chain = chain_of(provider)
    for name in chain:
        check(name)  # which says what is wrong with it
    with progress("looking for servers"):
        return chain, await scan(within, chain, embedded=True)


def used(chain: Sequence[str], found: Iterable[Found]) -> list[Found]:
    """Return the providers that would be used: the named ones, else every usable local one."""
    if chain:
        mine = [each for each in found if each.health.provider in chain and each.configured]
        return sorted(mine, key=lambda each: chain.index(each.health.provider))
    return usable(found)


def recorded() -> None:
    """Print that the output comes from cassettes, if it does."""
    try:
        common = settings.load()
    except errors.NotConfigured:
        return  # the command reports it
    if active.plays(active.current(common.llm_replay, common.llm_replay_mode)):
        say(f"LLM_REPLAY is set: what follows comes from the cassettes in {common.llm_replay}, not from servers")


async def _models(found: Found, within: float) -> list[Model]:
    assert isinstance(found.provider, BaseProvider)  # noqa: S101  # it answers
    try:
        return await found.provider.models(within)
    except errors.NotRecorded:
        raise
    except LLMError:
        return []


def _object(health: Health) -> dict[str, Any]:
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


def _model_object(found: Found, model: Model) -> dict[str, Any]:
    assert found.provider  # noqa: S101  # it has listed its models
    return {
        "provider": found.health.provider,
        "base_url": found.health.base_url,
        "model": model.name,
        "loaded": model.loaded,
        "capabilities": dict(found.provider.get_capabilities(model.name)),
    }


def _vendor_row(spec: ProviderSpec) -> tuple[str, str, str]:
    keys = dict.fromkeys(spec.spellings("api_key"))
    return (f"  {spec.name}", spec.api.default_url or f"set {spec.variable('base_url')}", " or ".join(keys))


def _row(each: Found, first: bool) -> tuple[str, ...]:
    health = each.health
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


def _model_row(found: Found, model: Model) -> tuple[str, ...]:
    assert found.provider  # noqa: S101  # it has listed its models
    known = found.provider.get_capabilities(model.name)
    loaded = "elsewhere" if model.remote else {True: "yes", False: "no", None: "?"}[model.loaded]
    trained, served = str(known["context"] or "?"), str(known["context_served"] or "?")
    return (found.health.provider, model.name, loaded, trained, served, _can(known))


def _can(known: Mapping[str, Any]) -> str:
    """Return the capabilities of a model, with a question mark if unknown."""
    can = [name + ("?" if known[name] is None else "") for name in _CAN if known[name] is not False]
    return " ".join(can) or "-"
