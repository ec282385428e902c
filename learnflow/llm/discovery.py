"""Find model servers: probe the configured addresses and the default ports at the same time.

The pages of a server decide its kind, not its port. A cloud is probed only if it is named or has a key. The factory
uses the result, and the command line shows it.
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
from .provider_spec import ProviderSpec, endpoint_spec
from .providers import EmbeddedProvider, build, provider_of, registry
from .providers.registry import CUSTOM, EMBEDDED, SPECS, discoverable, spec_of, vendor_specs
from .replay import active
from .replay.transport import unrecorded
from .servers.model_catalog import detail_of, state_of
from .transport import network
from .transport.client import NETWORK

SCAN_S: Final = 1.0  # seconds for the whole search
_EMBEDDED_HINT: Final = "It is small. Name a server or a cloud with LLM_PROVIDER, or a larger GGUF with EMBEDDED_MODEL"
_HOST: Final = "host.docker.internal"
_announced: Final = register("embedded models announced", set[str | None](), learned=True)


@dataclass(frozen=True, slots=True)
class Found:
    """The result of one probe.

    Attributes:
        health: the state of the server at the address.
        provider: the provider for it; None if it cannot be created.
        configured: its address or its name is configured.
        setting: the line for .env if a variable is missing; "" if the variable is unknown.
    """

    health: Health
    provider: BaseProvider | None
    configured: bool
    setting: str = ""

    @property
    def answers(self) -> bool:
        """Return whether a model server responded."""
        health = self.health
        known = health.server is not None or health.state in ("ready", "loading", "model_missing")
        return self.provider is not None and known and health.state != "misconfigured"

    @property
    def ready(self) -> bool:
        """Return whether the server would answer a request that names no model."""
        return self.health.ready and self.health.model is not None


async def scan(
    within: float = SCAN_S, named: Iterable[str] = (), *, clouds: bool = True, embedded: bool = False
) -> list[Found]:
    """Probe all addresses at the same time.

    Args:
        within: the timeout, in seconds.
        named: providers to probe even if they are not configured.
        clouds: probe the configured clouds, too.
        embedded: add the embedded model if no provider is named, no local server is configured and none responds.

    Returns:
        The results, in the order of the providers.
    """
    named = set(named)
    common = settings.load()
    recorded = active.current(common.llm_replay, common.llm_replay_mode)
    if recorded and recorded.providers is not None:  # a replay has no default ports
        names = {*named, *filter(_spec_or_none, recorded.providers)}
        return _without_duplicates(await asyncio.gather(*(_probe_configured(name, within) for name in names)))
    hosts = await _resolvable_hosts(within) if settings_sources.in_container() else set()
    specs, probed = discoverable(), set[str]()
    probes = [_probe_configured(name, within) for name in named if name not in specs and (clouds or _is_local(name))]
    for name, spec in specs.items():
        try:
            own = settings.load_provider(spec)
        except LLMError as error:
            probes.append(_invalid(name, error))
            continue
        configured = bool(own.base_url or (own.api_key and not spec.local) or name in named)
        if configured and (clouds or spec.local):
            probes.append(_probe_configured(name, within))
        defaults = [
            url for url in _default_addresses(spec, own.base_url, hosts, taken=name in named) if url not in probed
        ]
        probed.update(defaults)  # several kinds have the same default port
        probes += [_probe_default(spec, url, within) for url in defaults]
    await NETWORK.prepare()  # its imports do not count as latency
    places = _without_duplicates(await asyncio.gather(*probes))
    rare = set(specs) - set(SPECS)  # hidden if it was not found
    places = [one for one in places if one.configured or one.health.provider not in rare or one.health.state != "down"]
    return places if named or not embedded else places + await _probe_embedded(places, within)


async def _probe_embedded(places: Iterable[Found], within: float) -> list[Found]:
    """Return the embedded model, unless a local server is configured or responds, or it cannot be started."""
    if any(place.answers or (place.configured and _is_local(place.health.provider)) for place in places):
        return []
    try:
        provider = await asyncio.to_thread(EmbeddedProvider)  # it reads the file system
    except LLMError as error:
        is_set = settings.load_provider(EMBEDDED).model_fields_set
        return [await _invalid(EMBEDDED.name, error)] if is_set else []
    return [Found(await provider.refresh(within), provider, configured=False)]


async def _resolvable_hosts(within: float) -> set[str]:
    """Return the host names that resolve in this container: the services of the compose file, and the host."""
    names = [_HOST, *(spec.server.service for spec in SPECS.values() if spec.server.service)]
    existing = await asyncio.gather(*(network.exists(name, within / 2) for name in names))
    return {name for name, exists in zip(names, existing, strict=True) if exists}


def _default_addresses(spec: ProviderSpec, own: str | None, hosts: set[str], *, taken: bool) -> list[str]:
    """Return the default addresses of a server: on loopback, and in a container at its service and at the host."""
    if not spec.local or not spec.api.default_url:
        return []
    port = urlsplit(spec.api.default_url).port
    # By number, because a name may wait for dead name servers.
    loopback = [] if taken and not own else [f"http://127.0.0.1:{port}"]
    return loopback + [f"http://{host}:{port}" for host in (spec.server.service, _HOST) if host in hosts]


async def _probe_configured(name: str, within: float) -> Found:
    try:
        provider = build(name)
    except LLMError as error:
        return await _probe_without_kind(name, within) or await _invalid(name, error)
    return Found(await provider.refresh(within), provider, configured=True)


async def _invalid(name: str, error: LLMError) -> Found:
    """Return the result for a provider with invalid or incomplete settings."""
    known = specs[name].capabilities.copy() if name in (specs := discoverable()) else unknown()
    health = Health(state=state_of(error), provider=name, base_url=None, detail=detail_of(error), capabilities=known)
    setting = f"{spec_of(name).variable('api_key')}=…   # the key of {name}" if isinstance(error, KeyMissing) else ""
    return Found(health, None, configured=True, setting=setting)


async def _probe_without_kind(name: str, within: float) -> Found | None:
    """Recognise the server of an endpoint without a kind. Return None if the endpoint has another fault."""
    spec = endpoint_spec(CUSTOM, name)
    try:
        own = settings.load_provider(spec)
        if name in SPECS or name in vendor_specs() or not own.base_url or registry.kind_of(own.kind):
            return None
        provider = provider_of(spec)
    except LLMError:
        return None
    health = await provider.catalog.health(within)
    kind, variable = _kind_at(provider), spec.variable("kind")
    setting = f"{variable}={kind.name}" if kind else ""
    advice = f"Set {setting}: the server is {kind.title}" if kind else f"The server was not recognised: {health.detail}"
    fault = "does not name a kind of server" if own.kind else "is not set"
    health = replace(health, state="misconfigured", detail=f"{variable} {fault}. {advice}")
    return Found(health, None, configured=True, setting=setting)


async def _probe_default(spec: ProviderSpec, url: str, within: float) -> Found:
    """Recognise the server at a default address."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    provider = _create_unnamed(spec, url)
    health = await provider.catalog.health(within)  # without an event: the application does not use this provider
    kind = _kind_at(provider)
    if kind and kind is not spec:
        provider = _create_unnamed(kind, url)
        health = await provider.catalog.health(max(0.1, deadline - loop.time()))
    return Found(health, provider, configured=False)


def _kind_at(provider: BaseProvider) -> ProviderSpec | None:
    """Return the kind of server that the last probe found; None if it found no server."""
    server = provider.catalog.server
    return (server.kind or CUSTOM) if server else None


def _create_unnamed(spec: ProviderSpec, url: str) -> BaseProvider:
    """Return the provider for an address that is not configured. The key is sent only to the default address."""
    own, key = settings.load_provider(spec), ""
    if own.api_key and not own.base_url and _normalized(url) == _normalized(spec.api.default_url or ""):
        key = own.api_key.get_secret_value()
    return build(spec.name, base_url=url, api_key=key)


def _normalized(url: str) -> str:
    """Return the normal form of an address."""
    return url.replace("//localhost:", "//127.0.0.1:").removesuffix("/v1")


def _without_duplicates(places: Iterable[Found]) -> list[Found]:
    """Remove duplicate addresses; the configured one wins. Known providers come first, in the registry's order."""
    unique: dict[tuple[str, str], Found] = {}
    for place in sorted(places, key=lambda one: not one.configured):
        unique.setdefault((place.health.provider, _normalized(place.health.base_url or "")), place)
    order = {name: at for at, name in enumerate(discoverable())}
    return sorted(unique.values(), key=lambda one: (order.get(one.health.provider, len(order)), one.health.provider))


def _spec_or_none(name: str) -> ProviderSpec | None:
    """Return the spec of a name; None if it is unknown, or a setting is missing or invalid."""
    with suppress(LLMError):
        return spec_of(name)
    return None


def _is_local(name: str) -> bool:
    spec = _spec_or_none(name)
    return spec is None or spec.local  # an invalid one is shown with its fault


def usable(places: Iterable[Found]) -> list[Found]:
    """Return the ready local servers, those with a warm model first. Prefer servers with an unambiguous model."""
    ready = [place for place in places if place.provider and place.provider.spec.local and place.health.ready]
    unambiguous = [place for place in ready if place.health.model] or ready
    return sorted(unambiguous, key=lambda place: bool(place.health.cold))


async def find_providers(*, embedded: bool = True) -> list[BaseProvider]:
    """Find the providers to use if none is named.

    Args:
        embedded: use the embedded model if no server responds.

    Returns:
        One or more providers.

    Raises:
        NotConfigured: no server is ready. The error has the probed addresses, and what to set.
    """
    with unrecorded():  # record only the servers that are used
        places = await scan(clouds=False, embedded=embedded)
    providers = [place.provider for place in usable(places) if place.provider]
    if not providers:
        raise _no_server_error(places)
    for provider in providers:
        if provider.spec is EMBEDDED and (provider.model not in _announced):
            _announced.add(provider.model)
            hint = f"{_EMBEDDED_HINT}. {_keys_hint()}".strip().removesuffix(".")
            events.emit(events.NothingConfigured(provider=provider.name, model=provider.model, hint=hint))
    if any(provider.runner.client.transport for provider in providers):  # recorded or replayed
        await asyncio.gather(*(provider.refresh() for provider in providers))
    return providers


def finder() -> Callable[[], Coroutine[Any, Any, list[BaseProvider]]]:
    """Return a function that finds the providers of one router. It can be called again if they are gone.

    The embedded model does not replace a server that it found before, because the operator did not name it.
    """
    served = False

    async def find() -> list[BaseProvider]:
        nonlocal served
        providers = await find_providers(embedded=not served)
        served = served or any(provider.spec is not EMBEDDED for provider in providers)
        return providers

    return find


def _keys_hint() -> str:
    """Return the hint for the clouds that have a key; "" if no cloud has one."""
    keys = [spec.name for spec in SPECS.values() if not spec.local and settings.load_provider(spec).api_key]
    return f"A key is set for {', '.join(keys)}: LLM_PROVIDER={keys[0]} would use it. " if keys else ""


def _no_server_error(places: Iterable[Found]) -> NotConfigured:
    """Return the error if no provider is named and no server is ready: the probed addresses, and what to set."""
    tried = "; ".join(
        f"{health.provider} at {health.base_url}: {health.state}"
        if health.base_url
        else f"{health.provider}: {health.detail}"
        for health in (place.health for place in places)
    )
    return NotConfigured(
        f"no provider is named, and no model server is ready on this machine (tried {tried})",
        hint=f"{_keys_hint()}Name one with LLM_PROVIDER, or get a local model: "
        f"{', or '.join(spec.server.start_command for spec in SPECS.values() if spec.server.start_command)}",
    )
