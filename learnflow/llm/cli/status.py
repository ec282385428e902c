"""``status``, ``models`` and ``warm-up``: what there is, as a table for people and as JSON for programs.

Must never load a model except when told to, or import LiteLLM to look.
The command line calls it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from .. import errors, settings
from ..adapter.provider import BaseProvider
from ..capabilities import Health
from ..discovery import Found, brief, scan, usable
from ..errors import LLMError
from ..factory import get_provider
from ..providers.registry import check
from ..replay import active
from ..spec import Model
from .ask import watched

READY: Final = 0
NONE_READY: Final = 3
_CAN: Final = ("vision", "tools", "json_schema", "reasoning", "prefill")


async def status(options: argparse.Namespace) -> int:
    """How every provider is. Returns 0 only where one that would be used is ready."""
    recorded()
    chain, found = await looked(options)
    shown = [each.health for each in brief(found)]
    if options.json:
        print(json.dumps([_object(health) for health in shown], ensure_ascii=False, indent=2))
    else:
        titles = ("PROVIDER", "STATE", "WHERE", "MODEL", "CONTEXT", "CAN", "LATENCY")
        print(table([titles, *map(_row, shown)]))
        for health in shown:
            if health.detail != "ready":
                print(f"{health.provider}: {health.detail}")
    return READY if any(each.ready for each in used(chain, found)) else NONE_READY


async def models(options: argparse.Namespace) -> int:
    """The models of each provider that answers."""
    _, found = await looked(options)
    there = [each for each in found if each.provider and each.answers]
    listed = await asyncio.gather(*(_models(each, options.within) for each in there))
    rows = [(each, model) for each, own in zip(there, listed, strict=True) for model in own]
    if options.json:
        print(json.dumps([_model_object(each, model) for each, model in rows], ensure_ascii=False, indent=2))
    else:
        titles = ("PROVIDER", "MODEL", "LOADED", "TRAINED FOR", "SERVED", "CAN")
        print(table([titles, *(_model_row(each, model) for each, model in rows)]))
    return READY if rows else NONE_READY


async def warm_up(options: argparse.Namespace) -> int:
    """Load the model of the provider that would be used."""
    provider = get_provider(options.provider)
    await watched(f"{provider.name}: loading", provider.warm_up(options.model))
    return READY


def chain_of(options: argparse.Namespace) -> list[str]:
    """The names of the providers that are named."""
    chain = [options.provider.lower()] if options.provider else settings.load().chain
    return [name.strip() for rank in chain for name in rank.split("+")]


async def looked(options: argparse.Namespace) -> tuple[list[str], list[Found]]:
    """The providers that are named, and how every one is: the named, the configured, and the local ones.

    Raises NotConfigured for a name that is none.
    """
    chain = chain_of(options)
    for name in chain:
        check(name)  # which says what is wrong with it
    return chain, await scan(options.within, chain)


def used(chain: Sequence[str], found: Iterable[Found]) -> list[Found]:
    """Those that would be used: the named ones, or every local one that can be where none is named."""
    if chain:
        mine = [each for each in found if each.health.provider in chain and each.configured]
        return sorted(mine, key=lambda each: chain.index(each.health.provider))
    return usable(found)


def recorded() -> None:
    """Say that what follows is no server's, where it is not."""
    try:
        common = settings.load()
    except errors.NotConfigured:
        return  # what cannot be read is said where it is wanted
    if active.plays(active.current(common.llm_replay, common.llm_replay_mode)):
        print(
            f"LLM_REPLAY is set: what follows comes from the cassettes in {common.llm_replay}, not from servers.",
            file=sys.stderr,
        )


async def _models(found: Found, within: float) -> list[Model]:
    assert isinstance(found.provider, BaseProvider)  # noqa: S101  # asked only of those
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


def _row(health: Health) -> tuple[str, ...]:
    server = " ".join(filter(None, [health.server, health.version]))
    return (
        health.provider,
        health.state + (" (cold)" if health.cold and health.ready else ""),
        (health.base_url or "-") + (f" ({server})" if server else ""),
        health.model or "-",
        str(health.capabilities["context_served"] or "?") if health.ready else "-",
        _can(health.capabilities) if health.ready else "-",
        f"{health.latency_s * 1000:.0f} ms" if health.latency_s is not None else "-",
    )


def _model_row(found: Found, model: Model) -> tuple[str, ...]:
    assert found.provider  # noqa: S101  # it has listed its models
    known = found.provider.get_capabilities(model.name)
    loaded = "elsewhere" if model.remote else {True: "yes", False: "no", None: "?"}[model.loaded]
    trained, served = str(known["context"] or "?"), str(known["context_served"] or "?")
    return (found.health.provider, model.name, loaded, trained, served, _can(known))


def _can(known: Mapping[str, Any]) -> str:
    """What it can, with a question mark where nobody knows; what it cannot is left out."""
    can = [name + ("?" if known[name] is None else "") for name in _CAN if known[name] is not False]
    return " ".join(can) or "-"


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows in columns, the first one the titles."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
