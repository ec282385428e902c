"""Find model servers: at the configured addresses and at the usual ones, all at once. A port is no identity.

Must never treat a server as another kind than its pages show, or probe a cloud that is neither named nor has a key.
The factory finds providers with it; the command line shows the result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit

from . import events, settings, settings_sources
from .adapter.provider import BaseProvider
from .capabilities import Health, unknown
from .errors import KeyMissing, LLMError, NotConfigured
from .process import register
from .provider_spec import ProviderSpec, named
from .providers import EmbeddedProvider, build, provider_of, registry
from .providers.registry import CUSTOM, EMBEDDED, SPECS, places, spec_of, table
from .replay import active
from .replay.transport import unrecorded
from .servers.model_catalog import state_of, without_name
from .transport import network
from .transport.client import NETWORK

SCAN_S: Final = 1.0  # seconds for all of it
_SMALL: Final = "It is small. Name a server or a cloud with LLM_PROVIDER, or a larger GGUF with EMBEDDED_MODEL"
_HOST: Final = "host.docker.internal"
_announced: Final = register("embedded models announced", set[str | None](), learned=True)


@dataclass(frozen=True, slots=True)
class Found:
    """A place where a server may be.

    Attributes:
        health: the state of the server there.
        provider: the provider for it; None if none can be made.
        configured: its address or its name is configured.
        setting: the line of .env without which no provider can be made; "" if it is not clear.
    """

    health: Health
    provider: BaseProvider | None
    configured: bool
    setting: str = ""

    @property
    def answers(self) -> bool:
        """Return whether a model server answers there."""
        health = self.health
        known = health.server is not None or health.state in ("ready", "loading", "model_missing")
        return self.provider is not None and known and health.state != "misconfigured"

    @property
    def ready(self) -> bool:
        """Return whether it would answer a request that names no model."""
        return self.health.ready and self.health.model is not None


async def scan(
    within: float = SCAN_S, named: Iterable[str] = (), *, clouds: bool = True, embedded: bool = False
) -> list[Found]:
    """Probe all places at once, for at most ``within`` seconds.

    Args:
        within: seconds.
        named: providers to probe even if nothing of theirs is configured.
        clouds: probe the configured clouds too.
        embedded: add the embedded model, if nothing is named, no local server is configured and none answers.
    """
    named = set(named)
    common = settings.load()
    recorded = active.current(common.llm_replay, common.llm_replay_mode)
    if recorded and recorded.providers is not None:  # a replay has no usual addresses
        names = {*named, *filter(_spec, recorded.providers)}
        return _once(await asyncio.gather(*(_configured(name, within) for name in names)))
    hosts = await _resolvable(within) if settings_sources.in_container() else set()
    specs, probed = places(), set[str]()
    probes = [_configured(name, within) for name in named if name not in specs and (clouds or _is_local(name))]
    for name, spec in specs.items():
        try:
            own = settings.load_provider(spec)
        except LLMError as error:
            probes.append(_unreadable(name, error))
            continue
        configured = bool(own.base_url or (own.api_key and not spec.local) or name in named)
        if configured and (clouds or spec.local):
            probes.append(_configured(name, within))
        usual = [url for url in _addresses(spec, own.base_url, hosts, taken=name in named) if url not in probed]
        probed.update(usual)  # several kinds have the same port
        probes += [_usual(spec, url, within) for url in usual]
    await NETWORK.prepare()  # its imports do not count as latency
    there = _once(await asyncio.gather(*probes))
    rare = set(specs) - set(SPECS)  # is not mentioned if it is down
    there = [one for one in there if one.configured or one.health.provider not in rare or one.health.state != "down"]
    return there if named or not embedded else there + await _embedded(there, within)


async def _embedded(there: Iterable[Found], within: float) -> list[Found]:
    """Return the embedded model, if no local server is configured or answers and one could be started."""
    if any(each.answers or (each.configured and _is_local(each.health.provider)) for each in there):
        return []
    try:
        provider = await asyncio.to_thread(EmbeddedProvider)  # it reads the beginning of a file
    except LLMError as error:
        is_set = settings.load_provider(EMBEDDED).model_fields_set
        return [await _unreadable(EMBEDDED.name, error)] if is_set else []
    return [Found(await provider.refresh(within), provider, configured=False)]


async def _resolvable(within: float) -> set[str]:
    """Return the names that servers have for a container and that exist: of its services, of the host."""
    names = [_HOST, *(spec.server.service for spec in SPECS.values() if spec.server.service)]
    there = await asyncio.gather(*(network.exists(name, within / 2) for name in names))
    return {name for name, exists in zip(names, there, strict=True) if exists}


def _addresses(spec: ProviderSpec, own: str | None, hosts: set[str], *, taken: bool) -> list[str]:
    """Return the usual addresses of a server: on loopback, and for a container its service's name and the host."""
    if not spec.local or not spec.api.default_url:
        return []
    port = urlsplit(spec.api.default_url).port
    # by its number: a name would wait for name servers that may be dead
    here = [] if taken and not own else [f"http://127.0.0.1:{port}"]
    return here + [f"http://{host}:{port}" for host in (spec.server.service, _HOST) if host in hosts]


async def _configured(name: str, within: float) -> Found:
    try:
        provider = build(name)
    except LLMError as error:
        return await _without_kind(name, within) or await _unreadable(name, error)
    return Found(await provider.refresh(within), provider, configured=True)


async def _unreadable(name: str, error: LLMError) -> Found:
    """Return the place of a provider whose settings are invalid or incomplete."""
    row = rows[name].capabilities.copy() if name in (rows := places()) else unknown()
    health = Health(state=state_of(error), provider=name, base_url=None, detail=without_name(error), capabilities=row)
    setting = f"{spec_of(name).variable('api_key')}=…   # the key of {name}" if isinstance(error, KeyMissing) else ""
    return Found(health, None, configured=True, setting=setting)


async def _without_kind(name: str, within: float) -> Found | None:
    """Recognise the server of an endpoint whose kind is not set; None if that is not what is wrong with it."""
    spec = named(CUSTOM, name)
    try:
        own = settings.load_provider(spec)
        if name in SPECS or name in table() or not own.base_url or registry.kind_of(own.kind):
            return None
        provider = provider_of(spec)
    except LLMError:
        return None
    health = await provider.catalog.health(within)
    kind, variable = _kind_at(provider), spec.variable("kind")
    setting = f"{variable}={kind.name}" if kind else ""
    seen = f"what answers is {kind.title}: set {setting}" if kind else f"it was not recognised: {health.detail}"
    health = replace(health, state="misconfigured", detail=f"{variable} is not set to a kind of server; {seen}")
    return Found(health, None, configured=True, setting=setting)


async def _usual(spec: ProviderSpec, url: str, within: float) -> Found:
    """Recognise the server at a usual address."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    provider = _unnamed(spec, url)
    health = await provider.catalog.health(within)  # without an event: no application has this provider
    kind = _kind_at(provider)
    if kind and kind is not spec:
        provider = _unnamed(kind, url)
        health = await provider.catalog.health(max(0.1, deadline - loop.time()))
    return Found(health, provider, configured=False)


def _kind_at(provider: BaseProvider) -> ProviderSpec | None:
    """Return the kind of the server that the last probe found; None if it found none."""
    server = provider.catalog.server
    return (server.kind or CUSTOM) if server else None


def _unnamed(spec: ProviderSpec, url: str) -> BaseProvider:
    """Return the provider for an address that is not configured: without a key, unless it is the key's own."""
    own, key = settings.load_provider(spec), ""
    if own.api_key and not own.base_url and _same(url) == _same(spec.api.default_url or ""):
        key = own.api_key.get_secret_value()
    return build(spec.name, base_url=url, api_key=key)


def _same(url: str) -> str:
    """Return one spelling of an address."""
    return url.replace("//localhost:", "//127.0.0.1:").removesuffix("/v1")


def _once(found: Iterable[Found]) -> list[Found]:
    """Return each place once: known providers in their order, then the others by name. A configured one wins."""
    seen: dict[tuple[str, str], Found] = {}
    for each in sorted(found, key=lambda one: not one.configured):
        seen.setdefault((each.health.provider, _same(each.health.base_url or "")), each)
    order = {name: at for at, name in enumerate(places())}
    return sorted(seen.values(), key=lambda one: (order.get(one.health.provider, len(order)), one.health.provider))


def _spec(name: str) -> ProviderSpec | None:
    """Return the spec of a name; None if there is none, or a setting of it is missing or invalid."""
    with suppress(LLMError):
        return spec_of(name)
    return None


def _is_local(name: str) -> bool:
    spec = _spec(name)
    return spec is None or spec.local  # its fault is shown


def usable(there: Iterable[Found]) -> list[Found]:
    """Return the local servers to use if nothing is named: ready, with a clear model, the loaded ones first."""
    ready = [each for each in there if each.provider and each.provider.spec.local and each.health.ready]
    clear = [each for each in ready if each.health.model] or ready
    return sorted(clear, key=lambda each: bool(each.health.cold))


async def found(*, embedded: bool = True) -> list[BaseProvider]:
    """Return the providers to use if nothing is named.

    Args:
        embedded: use the embedded model if no server answers.

    Raises:
        NotConfigured: there is none; with what was tried, and what to do.
    """
    with unrecorded():  # only the servers that are used are recorded
        there = await scan(clouds=False, embedded=embedded)
    providers = [each.provider for each in usable(there) if each.provider]
    if not providers:
        raise _nothing(there)
    for each in providers:
        if each.spec is EMBEDDED and (each.model not in _announced):
            _announced.add(each.model)
            hint = f"{_SMALL}. {_with_keys()}".strip().removesuffix(".")
            events.emit(events.NothingConfigured(provider=each.name, model=each.model, hint=hint))
    if any(each.runner.client.transport for each in providers):  # recorded, or played
        await asyncio.gather(*(each.refresh() for each in providers))
    return providers


def finder() -> Callable[[], Coroutine[Any, Any, list[BaseProvider]]]:
    """Return a function that finds the providers of one router, again if those that it found are gone.

    The embedded model is no fallback for a server that was there: nobody named it.
    """
    served = False

    async def find() -> list[BaseProvider]:
        nonlocal served
        providers = await found(embedded=not served)
        served = served or any(each.spec is not EMBEDDED for each in providers)
        return providers

    return find


def _with_keys() -> str:
    """Return what to set for the clouds whose keys are set; "" if there are none."""
    keys = [row.name for row in SPECS.values() if not row.local and settings.load_provider(row).api_key]
    return f"A key is set for {', '.join(keys)}: LLM_PROVIDER={keys[0]} would use it. " if keys else ""


def _nothing(there: Iterable[Found]) -> NotConfigured:
    """Return the error if no provider is named and none is ready: what was tried, what to set, how to get a model."""
    tried = "; ".join(
        f"{health.provider} at {health.base_url}: {health.state}"
        if health.base_url
        else f"{health.provider}: {health.detail}"
        for health in (each.health for each in there)
    )
    return NotConfigured(
        f"no provider is named, and no model server is ready on this machine (tried {tried})",
        hint=f"{_with_keys()}Name one with LLM_PROVIDER, or get a local model: "
        f"{', or '.join(spec.server.start_command for spec in SPECS.values() if spec.server.start_command)}",
    )
