"""Which servers there are: the configured addresses, then the usual ones, all at once; a port is no identity.

Must never take a server for what it does not say it is, or ask a cloud that nobody named or gave a key.
The factory discovers through it, the command line shows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from . import net, settings
from .adapter import BaseProvider
from .errors import LLMError, NotConfigured
from .knowledge import state_of
from .known import Health
from .providers import build
from .specs import OTHER, SPECS, ProviderSpec

SURVEY_S: Final = 1.0  # seconds for all of it
_HOST: Final = "host.docker.internal"


@dataclass(frozen=True, slots=True)
class Found:
    """A place where a server may be: how it is there, and the provider for it, where one can be made."""

    health: Health
    provider: BaseProvider | None
    configured: bool

    @property
    def answers(self) -> bool:
        """Whether a model server answers there."""
        return self.health.server is not None or self.health.state not in ("down", "misconfigured")


async def survey(within: float = SURVEY_S, named: Iterable[str] = ()) -> list[Found]:
    """Look everywhere at once; takes as long as the slowest answer, ``within`` seconds at most.

    Args:
        within: seconds.
        named: rows to look at even if nothing of theirs is configured.
    """
    named = set(named)
    looks: list[Coroutine[Any, Any, Found | None]] = []
    for name, spec in SPECS.items():
        own = settings.load_row(spec)
        configured = bool(own.base_url or (own.api_key and not spec.local) or name in named)
        if configured:
            looks.append(_configured(name, within))
        looks += [_usual(spec, url, within) for url in _addresses(spec, own.base_url, taken=name in named)]
    await net.prepare()  # the first connection's imports are nobody's latency
    found = await asyncio.gather(*looks)
    return _once(each for each in found if each)


def _addresses(spec: ProviderSpec, own: str | None, *, taken: bool) -> list[str]:
    """Where this server usually is: on loopback, and for a container under its service's name and on the host."""
    if not spec.local or not spec.default_url:
        return []
    port = urlsplit(spec.default_url).port
    here = [] if taken and not own else [spec.default_url]
    if not settings.in_container():
        return here
    services = [f"http://{spec.service}:{port}"] if spec.service else []
    return [*here, *services, f"http://{_HOST}:{port}"]


async def _configured(name: str, within: float) -> Found:
    try:
        provider = build(name)
    except LLMError as error:
        row, why = SPECS[name].capabilities.copy(), str(error)
        health = Health(state=state_of(error), provider=name, base_url=None, detail=why, capabilities=row)
        return Found(health, None, configured=True)
    return Found(await provider.refresh(within), provider, configured=True)


async def _usual(spec: ProviderSpec, url: str, within: float) -> Found | None:
    """What is at a usual address, by its own words; None where what answers is no model server."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    provider = build(spec.name, base_url=url)
    health = await provider.refresh(within)
    said = next((row for row in SPECS.values() if row.title == health.server), None)
    if said is None and health.state in ("ready", "model_missing"):
        said = OTHER  # it speaks the API, and has no name
    if said is None:
        return Found(health, provider, configured=False) if health.state == "down" else None
    if said is not spec:
        provider = build(said.name, base_url=url)
        health = await provider.refresh(max(0.1, deadline - loop.time()))
    return Found(health, provider, configured=False)


def _once(found: Iterable[Found]) -> list[Found]:
    """Each place once, in the order of the rows; the configured look at it comes first."""
    seen: dict[tuple[str, str | None], Found] = {}
    for each in sorted(found, key=lambda one: not one.configured):
        seen.setdefault((each.health.provider, each.health.base_url), each)
    order = list(SPECS)
    return sorted(seen.values(), key=lambda one: order.index(one.health.provider))


def brief(found: Sequence[Found]) -> list[Found]:
    """Without the usual addresses where nothing is, unless that is all there is of a row; then the first of them."""
    telling = [each for each in found if each.configured or each.answers]
    rows = {each.health.provider for each in telling}
    for each in found:
        if each.health.provider not in rows:
            rows.add(each.health.provider)
            telling.append(each)
    order = list(SPECS)
    return sorted(telling, key=lambda one: order.index(one.health.provider))


async def found() -> list[BaseProvider]:
    """The local servers that are ready: first those whose model is clear, and of them those that need not load it.

    Raises:
        NotConfigured: there is none; says what was tried, and what would help.
    """
    there = await survey()
    ready = [each for each in there if each.provider and each.provider.spec.local and each.health.ready]
    if not ready:
        raise nothing(there)
    ready.sort(key=lambda each: (each.health.model is None, bool(each.health.cold)))
    clear = [each for each in ready if each.health.model] or ready
    return [each.provider for each in clear if each.provider]


def nothing(tried_at: list[Found]) -> NotConfigured:
    """The error for "no provider is named, and none is there": what was tried, what to set, how to get a model."""
    tried = "; ".join(f"{each.health.provider} at {each.health.base_url}: {each.health.state}" for each in tried_at)
    keys = [row.name for row in SPECS.values() if not row.local and settings.load_row(row).api_key]
    use = f"A key is set for {', '.join(keys)}: LLM_PROVIDER={keys[0]} would use it. " if keys else ""
    return NotConfigured(
        f"no provider is named, and no model server is ready on this machine (tried {tried})",
        hint=f"{use}Name one with LLM_PROVIDER, or get a local model: "
        "`ollama serve` and `ollama pull qwen3:0.6b`, or `llama-server -hf ggml-org/Qwen3-0.6B-GGUF`",
    )
