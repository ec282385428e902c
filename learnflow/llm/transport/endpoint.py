"""The endpoint of a provider: its URL, normalized from what the operator wrote, and its key. No DNS lookups."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final
from urllib.parse import SplitResult, parse_qs, urlsplit

from .. import errors
from ..errors import KeyMissing, LLMError, NotConfigured
from ..provider_spec import CHAT_PATH, ProviderSpec
from ..settings import ProviderSettings
from ..settings_sources import provider_key

_ONE_SLASH = re.compile(r"https?:/?(?!/|[0-9])", re.IGNORECASE)  # http:/localhost
_VERSION = re.compile(r"/v\d+\w*(/|$)")
_PRIVATE: Final = [
    ipaddress.ip_network(net)
    for net in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7", "fe80::/10")
]
# The metadata services of clouds return keys, and are never local. In order: most clouds, AWS and Google over IPv6,
# Alibaba.
_METADATA: Final = tuple(
    map(ipaddress.ip_address, ("169.254.169.254", "fd00:ec2::254", "fd20:ce::254", "100.100.100.200"))
)


def is_private(address: str, networks: Sequence[str] = ()) -> bool:
    """Return whether an IP address is on this machine or a private network (RFC 1918, RFC 4193).

    Args:
        address: the address.
        networks: count as private, too, like "100.64.0.0/10" (``LLM_LOCAL_NETWORKS``).
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    private = (*_PRIVATE, *map(ipaddress.ip_network, networks))
    return ip not in _METADATA and any(ip in network for network in private if network.version == ip.version)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine."""
    ip = _ip(host)
    return host == "localhost" or host.endswith(".localhost") or (ip is not None and ip.is_loopback)


# A name without dots is on the local network, unless it is a number: 134744072 is 8.8.8.8. The top-level domains are
# never public: RFC 6761, RFC 6762 (appendix G), RFC 8375, and ICANN's resolution on .internal.
_NEVER_PUBLIC = "local|localhost|localdomain|internal|intranet|private|corp|home|lan|home\\.arpa|test"
_NEAR = re.compile(rf"^(?=.*[a-z])[a-z0-9_-]+\.?$|\.({_NEVER_PUBLIC})\.?$", re.IGNORECASE)


def has_version(path: str) -> bool:
    """Return whether a path contains the version of an API ("/v1", "/v1beta/openai")."""
    return bool(_VERSION.search(path))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a provider.

    Attributes:
        root: the URL of the server.
        base: the URL to which LiteLLM appends its path.
        key: not in the repr; None if missing, or if it belongs to another host.
        key_hint: what to do if the server requires a key.
        version: of the API, if the provider has versions.
        key_header: the name of the header with the key.
        key_scheme: the word before the key, if the header is ``authorization``.
        networks: count as private, too.
    """

    root: str
    base: str
    key: str | None = field(default=None, repr=False)
    key_hint: str = field(default="", repr=False)
    version: str | None = None
    key_header: str = "authorization"
    key_scheme: str = "Bearer"
    networks: tuple[str, ...] = ()

    @property
    def credentials(self) -> dict[str, str]:
        """Return the header with the key; empty if there is no key."""
        if not self.key:
            return {}
        return {self.key_header: f"{self.key_scheme} {self.key}" if self.key_header == "authorization" else self.key}

    @property
    def origin(self) -> tuple[str, str, int]:
        """Return scheme, host and port. The key is sent to this origin only."""
        return origin(self.base)

    @property
    def near(self) -> bool:
        """Return whether the address, or the form of the name, is certainly of this machine or a private network.

        For other names ``network.is_near`` checks the resolved addresses.
        """
        return is_near(self.origin[1], self.networks)


@lru_cache(maxsize=256)  # the router calls it for each choice
def is_near(host: str, networks: tuple[str, ...]) -> bool:
    """Return whether a host is certainly on this machine or a private network, by its address or its form."""
    return is_private(host, networks) if _ip(host) else bool(_NEAR.search(host))


@lru_cache(maxsize=256)
def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def settle(
    spec: ProviderSpec,
    own: ProviderSettings,
    url: str | None = None,
    key: str | None = None,
    *,
    keyless: bool = False,
    networks: tuple[str, ...] = (),
) -> Endpoint:
    """Return the endpoint of a provider. Arguments win over the environment.

    A key from the environment is sent only to its host: the host of the environment's address, else of the provider's
    default address, else of ``url``. A key that is an argument is sent to any address.

    Args:
        spec: the provider.
        own: its settings from the environment.
        url: an argument of the application; None for the environment's address or the default.
        key: an argument of the application; "" for no key, None for the environment's.
        keyless: no key is required.
        networks: count as private, too.

    Raises:
        NotConfigured: the address is missing or invalid, or the key has invalid characters.
        KeyMissing: the key that this address requires is missing.
    """
    env_key, apart = provider_key(spec, own.api_key)
    address = url or own.base_url or spec.api.default_url
    if not address:
        raise NotConfigured("no address", provider=spec.name, hint=f"Set {spec.variable('base_url')} or give base_url=")
    parsed = endpoint(spec, address, version=own.api_version)
    hint = f"Set {spec.variable('api_key')}, or give api_key="
    env_key = None if key is not None else str(env_key or "").strip()
    key = str(key or "").strip()
    if env_key:
        home = endpoint(spec, own.base_url or spec.api.default_url or address).origin
        if apart and parsed.origin != (spec.api.default_url and endpoint(spec, spec.api.default_url).origin):
            hint = apart
        elif parsed.origin == home:
            key = env_key
        else:
            hint = f"The environment's key belongs to {home[1]}. Give api_key=, or set {spec.variable('base_url')}"
    if not key.isascii() or not key.isprintable():
        raise NotConfigured("the key contains invalid characters", provider=spec.name, hint=hint)
    if not key and not spec.local and not keyless:
        raise KeyMissing("there is no key for this address", provider=spec.name, hint=hint)
    return replace(parsed, key=key or None, key_hint=hint, networks=networks)


def endpoint(spec: ProviderSpec, url: str, version: str | None = None) -> Endpoint:
    """Parse a URL, with or without scheme, port, ``/v1`` and trailing slash, into an endpoint.

    Accepts the forms of ``OLLAMA_HOST`` that Ollama's ``envconfig.Host`` accepts (2026-08): ``host``, ``:port``,
    ``0.0.0.0``, ``[::1]``, ``http://host`` (port 80), ``https://host``, with a path. An invalid port is an error.

    Args:
        spec: the provider.
        url: the URL.
        version: of the API; None for that of the URL, else the default.

    Raises:
        NotConfigured: the URL is invalid.
    """
    api, parts = spec.api, _parts(spec, url)
    home = urlsplit(api.default_url or "")
    pasted = path = parts.path.rstrip("/") or (home.path if parts.hostname == home.hostname else "")
    for tail in api.removed_suffixes:
        path = path.removesuffix(tail)
    if api.litellm_path:
        path = path.partition(api.litellm_path)[0]
    if api.api_path and not has_version(path) and not pasted.endswith(CHAT_PATH):  # a complete URL is used as it is
        path += api.api_path
    server = f"{parts.scheme}://{parts.netloc}"
    root = server + (_VERSION.split(path)[0] if api.api_path else path)
    version = version or parse_qs(parts.query).get("api-version", [None])[0] or api.default_version
    return Endpoint(root, server + path, version=version, key_header=api.key_header, key_scheme=api.key_scheme)


def _parts(spec: ProviderSpec, url: str) -> SplitResult:
    """Split a URL, with defaults for the missing parts."""
    text = str(url).strip().strip("\"'")
    has_scheme = "://" in text
    if _ONE_SLASH.match(text):
        raise _unusable(spec, "must begin with http:// or https://, with two slashes")
    if not has_scheme:
        text = f"[{text}]" if isinstance(_ip(text), ipaddress.IPv6Address) else text
        text = f"{_scheme(spec, text)}://{text}"
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname or ""
    except ValueError:
        parts = None
    if parts is None or text.endswith("://") or any(character.isspace() for character in text):
        raise _unusable(spec, "is empty, or has an invalid host or port")
    if parts.scheme not in ("http", "https"):
        raise _unusable(spec, "must begin with http:// or https://")
    if parts.username or parts.password:
        raise _unusable(spec, f"contains a user name or password: use {spec.variable('api_key')} for a key")
    if port is None and not has_scheme and parts.scheme == "http":
        port = urlsplit(spec.api.default_url or "").port
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # for a client, 0.0.0.0 is this machine
    netloc = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    return parts._replace(netloc=netloc, fragment="")


def _scheme(spec: ProviderSpec, text: str) -> str:
    """Return the scheme of a URL without one: http for a local server, else https."""
    host = text.partition("/")[0]
    if spec.api.default_url and spec.local:
        return "https" if host == spec.api.cloud_host else "http"
    name, _, port = host.rpartition(":") if ":" in host else (host, "", "")
    own = _ip(name.strip("[]")) or "." not in name or (spec.local and port not in ("", "443"))
    return "http" if own else "https"


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address; None if the text is a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _unusable(spec: ProviderSpec, why: str) -> NotConfigured:
    return NotConfigured(
        f"the base URL {why}",
        provider=spec.name,
        hint=f"Set {spec.variable('base_url')} like {spec.api.default_url or 'http://localhost:8080/v1'}",
    )


def addressed(error: LLMError, spec: ProviderSpec, endpoint: Endpoint, model: str | None) -> LLMError:
    """Add the provider, the model and the variable to set to an error. Return the error."""
    complete = error.provider is not None  # its hint names the variable already
    hinted = error.hint and not (complete or spec.starts_server)
    error.provider, error.model = spec.name, error.model or model
    url = spec.variable("base_url")
    if isinstance(error, errors.ModelNotFound):
        error.hint = error.hint or f"Set {spec.variable('model')} or model= to a name that list_models() gives"
    elif isinstance(error, errors.AuthenticationFailed):
        error.hint = endpoint.key_hint
    elif isinstance(error, errors.Misconfigured | errors.ConnectionFailed) and hinted:
        error.hint = f"{error.hint}; the address in use is {endpoint.base}, the variable {url}"
    elif isinstance(error, errors.ConnectionFailed | errors.ConnectTimeout):
        known = spec.api.default_url and spec.title != spec.name  # otherwise the title is not a program's name
        start = f"Start {spec.title if known else 'the server'} at {endpoint.base}, or set {url} to where it is"
        local = spec.server.down_hint or start
        away = f"Check the network, HTTPS_PROXY, and the address {endpoint.base} ({url})"
        error.hint = error.hint or (local if spec.local else away)
    return error
