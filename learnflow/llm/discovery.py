"""Find model servers: probe the configured addresses and the default ports concurrently.

Responses, not ports, determine the kind of a server (Ollama, vLLM …). A cloud is probed only if the caller
names it, or if its address or key is configured.
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
from .capabilities import Health, default_capabilities
from .errors import LLMError, NotConfigured
from .process import register
from .provider_spec import ProviderSpec, endpoint_spec
from .providers import EmbeddedProvider, registry
from .providers.registry import CUSTOM, EMBEDDED, SPECS, build, discoverable_specs, provider_of, spec_of
from .replay import active
from .replay.transport import pause_recording
from .servers.model_catalog import message_without_provider, state_of
from .transport import network
from .transport.client import NETWORK

NO_SERVER: Final = "no provider is named, and no model server is ready on this machine"
_EMBEDDED_HINT: Final = (
    "The embedded model is small. Set LLM_PROVIDER to a server or a cloud, or EMBEDDED_MODEL to a larger GGUF"
)
_LOOPBACK: Final = "127.0.0.1"  # not "localhost", because a DNS lookup waits if the name servers are down
_DOCKER_HOST: Final = "host.docker.internal"
_announced_models: Final = register("embedded models announced", set[str | None](), learned=True)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A provider that could be used, and the result of its probe.

    Attributes:
        provider: the provider; None if its settings are invalid or incomplete.
        configured: whether the caller names the provider, or its address or key is configured. False for a default
            address.
        kind: the detected kind of server if ``<NAME>_KIND`` is missing or invalid. None if the variable is valid, or if
            no kind was detected.
    """

    health: Health
    provider: BaseProvider | None
    configured: bool
    kind: ProviderSpec | None = None

    @property
    def responded(self) -> bool:
        """Return whether a model server responded, and the provider's settings are valid."""
        health = self.health
        is_model_server = health.server is not None or health.state in ("ready", "loading", "model_missing")
        return self.provider is not None and is_model_server and health.state != "misconfigured"

    @property
    def ready(self) -> bool:
        """Return whether the server would answer a request without ``model=``."""
        return self.health.ready and self.health.model is not None


async def scan(
    timeout_s: float = 1.0, named: Iterable[str] = (), *, clouds: bool = True, embedded: bool = False
) -> list[Candidate]:
    """Probe all addresses concurrently, and return the candidates in the order of ``providers.registry``.

    Args:
        timeout_s: the timeout of each probe in seconds.
        named: the names of providers to probe even if they are not configured.
        clouds: whether to probe configured clouds.
        embedded: whether to add the embedded model, which this package runs itself. It is not added if
            ``named`` is not empty, or if a local server is configured or responds.
    """
    named = set(named)
    cassettes = active.current(settings.load())
    if cassettes and cassettes.providers is not None:  # in a replay, only the named and the recorded providers exist
        names = {*named, *filter(_spec_or_none, cassettes.providers)}
        return _without_duplicates(await asyncio.gather(*(_probe_configured(name, timeout_s) for name in names)))
    hosts = {_LOOPBACK} | (await _resolvable_hosts(timeout_s) if settings_sources.in_container() else set())
    specs, probed_urls, candidates = discoverable_specs(), set[str](), list[Candidate]()
    probes = [_probe_configured(name, timeout_s) for name in named if name not in specs and (clouds or _is_local(name))]
    for name, spec in specs.items():
        try:
            provider_settings = settings.load_provider(spec)
        except LLMError as error:
            candidates.append(_invalid_candidate(name, error))
            continue
        base_url = provider_settings.base_url
        configured = bool(base_url or (provider_settings.api_key and not spec.local) or name in named)
        if configured and (clouds or spec.local):
            probes.append(_probe_configured(name, timeout_s))
        # If a provider is named and has no address, skip loopback: ``_probe_configured`` probes its default address
        default_hosts = hosts if base_url or name not in named else hosts - {_LOOPBACK}
        urls = [url for url in _default_addresses(spec, default_hosts) if url not in probed_urls]
        probed_urls.update(urls)  # probe a URL once, because several kinds have the same default port
        probes += [_probe_default(spec, url, timeout_s) for url in urls]
    await NETWORK.prepare()  # import modules before latencies are measured
    candidates = _without_duplicates(candidates + await asyncio.gather(*probes))
    uncommon_kinds = set(specs) - set(SPECS)  # listed only if a server responds
    candidates = [
        candidate
        for candidate in candidates
        if candidate.configured or candidate.health.provider not in uncommon_kinds or candidate.health.state != "down"
    ]
    return candidates if named or not embedded else candidates + await _probe_embedded(candidates, timeout_s)


async def _probe_embedded(candidates: Iterable[Candidate], timeout_s: float) -> list[Candidate]:
    """Return the candidate of the embedded model; [] if a local server is configured or responds.

    Also return [] if the model cannot be used and none of its settings is set.
    """
    if any(item.responded or (item.configured and _is_local(item.health.provider)) for item in candidates):
        return []
    try:
        provider = await asyncio.to_thread(EmbeddedProvider)  # in a thread, because it reads the file system
    except LLMError as error:
        is_set = settings.load_provider(EMBEDDED).model_fields_set
        return [_invalid_candidate(EMBEDDED.name, error)] if is_set else []
    return [Candidate(await provider.refresh(timeout_s), provider, configured=False)]


async def _resolvable_hosts(timeout_s: float) -> set[str]:
    """Return the host names of Docker and of compose services that this container can resolve."""
    names = [_DOCKER_HOST, *(spec.server.compose_service for spec in SPECS.values() if spec.server.compose_service)]
    lookups = await asyncio.gather(*(network.resolve(name, timeout_s / 2) for name in names), return_exceptions=True)
    return {name for name, addresses in zip(names, lookups, strict=True) if isinstance(addresses, list)}


def _default_addresses(spec: ProviderSpec, hosts: set[str]) -> list[str]:
    """Return the default addresses of a local server on ``hosts``; [] for a cloud or a spec without a default."""
    if not spec.local or not spec.api.default_url:
        return []
    port = urlsplit(spec.api.default_url).port
    return [f"http://{host}:{port}" for host in (_LOOPBACK, spec.server.compose_service, _DOCKER_HOST) if host in hosts]


async def _probe_configured(name: str, timeout_s: float) -> Candidate:
    try:
        provider = build(name)
    except LLMError as error:
        return await _probe_without_kind(name, timeout_s) or _invalid_candidate(name, error)
    return Candidate(await provider.refresh(timeout_s), provider, configured=True)


def _invalid_candidate(name: str, error: LLMError) -> Candidate:
    spec = _spec_or_none(name)
    capabilities = spec.capabilities if spec else default_capabilities()
    health = Health(
        state=state_of(error),
        provider=name,
        base_url=None,
        detail=message_without_provider(error),
        capabilities=capabilities,
    )
    return Candidate(health, None, configured=True)


async def _probe_without_kind(name: str, timeout_s: float) -> Candidate | None:
    """Probe an endpoint to suggest its ``<NAME>_KIND``. Return None if the fault is not a missing or invalid kind."""
    spec = endpoint_spec(CUSTOM, name)
    try:
        provider_settings = settings.load_provider(spec)
        if (
            registry.spec_of_kind(name)
            or not provider_settings.base_url
            or registry.spec_of_kind(provider_settings.kind)
        ):
            return None
        provider = provider_of(spec)
    except LLMError:
        return None
    health = await provider.catalog.health(timeout_s)
    kind, variable = _detected_kind(provider), spec.variable("kind")
    advice = f"Set {variable}={kind.name}: the server is {kind.title}" if kind else ""
    advice = advice or f"The server was not recognised: {health.detail}"
    fault = "does not name a kind of server" if provider_settings.kind else "is not set"
    health = replace(health, state="misconfigured", detail=f"{variable} {fault}. {advice}")
    return Candidate(health, None, configured=True, kind=kind)


async def _probe_default(spec: ProviderSpec, url: str, timeout_s: float) -> Candidate:
    """Probe a default address, and create the provider for the kind of server that responds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    provider = _create_unconfigured(spec, url)
    # Do not call refresh(), because it emits an event, and the application does not use this provider
    health = await provider.catalog.health(timeout_s)
    kind = _detected_kind(provider)
    if kind and kind is not spec:
        provider = _create_unconfigured(kind, url)
        health = await provider.catalog.health(max(0.1, deadline - loop.time()))
    return Candidate(health, provider, configured=False)


def _detected_kind(provider: BaseProvider) -> ProviderSpec | None:
    """Return the kind of server that the last probe found; None if it found no server."""
    server = provider.catalog.server
    return (server.spec or CUSTOM) if server else None


def _create_unconfigured(spec: ProviderSpec, url: str) -> BaseProvider:
    """Create the provider for an address that is not configured.

    The configured secrets are sent only to the default URL, and only if no base URL is configured.
    """
    provider_settings = settings.load_provider(spec)
    is_default = not provider_settings.base_url and _normalize(url) == _normalize(spec.api.default_url or "")
    secrets = (provider_settings.api_key, provider_settings.headers) if is_default else (None, None)
    key, headers = (secret.get_secret_value() if secret else "" for secret in secrets)
    return build(spec.name, base_url=url, api_key=key, headers=headers)


def _normalize(url: str) -> str:
    """Normalize a URL, so that the URLs of one server are equal."""
    return url.replace("//localhost:", "//127.0.0.1:").removesuffix("/v1")


def _without_duplicates(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return one candidate for each provider and address, in the order of the registry. Prefer a configured one."""
    unique: dict[tuple[str, str], Candidate] = {}
    for candidate in sorted(candidates, key=lambda item: not item.configured):
        health = candidate.health
        unique.setdefault((health.provider, _normalize(health.base_url or "")), candidate)
    order = {name: index for index, name in enumerate(discoverable_specs())}
    return sorted(unique.values(), key=lambda item: (order.get(item.health.provider, len(order)), item.health.provider))


def _spec_or_none(name: str) -> ProviderSpec | None:
    with suppress(LLMError):
        return spec_of(name)
    return None


def _is_local(name: str) -> bool:
    spec = _spec_or_none(name)
    return spec is None or spec.local  # an unknown provider counts as local, so that the scan lists its error


def select_usable(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the local servers that are ready. Servers that must first load their model come last.

    Omit the servers that require ``model=`` in a request, unless all of them do.
    """
    ready = [item for item in candidates if item.provider and item.provider.spec.local and item.health.ready]
    unambiguous = [item for item in ready if item.health.model] or ready
    return sorted(unambiguous, key=lambda item: bool(item.health.cold))


async def find_providers(*, embedded: bool = True) -> list[BaseProvider]:
    """Find the local servers to use if no provider is named. If ``embedded``, the embedded model is permitted.

    Raises:
        NotConfigured: no server is ready. The error lists the probed addresses.
    """
    with pause_recording():  # record only the servers that are used
        candidates = await scan(clouds=False, embedded=embedded)
    providers = [candidate.provider for candidate in select_usable(candidates) if candidate.provider]
    if not providers:
        raise _no_server_error(candidates)
    for provider in providers:
        if provider.spec is EMBEDDED and provider.model not in _announced_models:
            _announced_models.add(provider.model)
            hint = f"{_EMBEDDED_HINT}. {_keys_hint()}".strip().removesuffix(".")
            events.emit(events.NothingConfigured(provider=provider.name, model=provider.model, hint=hint))
    # Probe again, because cassettes need a probe and the scan was not recorded
    if any(provider.runner.client.transport for provider in providers):
        await asyncio.gather(*(provider.refresh() for provider in providers))
    return providers


def make_finder() -> Callable[[], Coroutine[Any, Any, list[BaseProvider]]]:
    """Return a function that finds the providers of a router.

    The router calls the function again if all providers become unavailable. After the function has found a server, it
    never returns the embedded model, which must not silently replace a server.
    """
    has_found_server = False

    async def find() -> list[BaseProvider]:
        nonlocal has_found_server
        providers = await find_providers(embedded=not has_found_server)
        has_found_server = has_found_server or any(provider.spec is not EMBEDDED for provider in providers)
        return providers

    return find


def _keys_hint() -> str:
    """Return a hint that names the clouds with a key; "" if no cloud has a key."""
    clouds = [spec.name for spec in SPECS.values() if not spec.local and settings.load_provider(spec).api_key]
    return f"A key is set for {', '.join(clouds)}: LLM_PROVIDER={clouds[0]} would use it. " if clouds else ""


def _no_server_error(candidates: Iterable[Candidate]) -> NotConfigured:
    healths = [candidate.health for candidate in candidates]
    tried = "; ".join(
        f"{item.provider} at {item.base_url}: {item.state}" if item.base_url else f"{item.provider}: {item.detail}"
        for item in healths
    )
    commands = [spec.server.start_command for spec in SPECS.values() if spec.server.start_command]
    return NotConfigured(
        f"{NO_SERVER} (tried {tried})",
        hint=f"{_keys_hint()}Set LLM_PROVIDER to a provider, or start a local model: {', or '.join(commands)}",
    )
