"""Configure a provider's endpoint: its normalized URL, API key and headers. ``network`` resolves host names."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final
from urllib.parse import SplitResult, parse_qs, parse_qsl, urlsplit

import httpx

from .. import errors
from ..errors import KeyMissing, LLMError, NotConfigured
from ..provider_spec import CHAT_PATH, RESPONSES_PATH, ProviderSpec
from ..settings import ProviderSettings
from ..settings_sources import provider_secret
from .untrusted import json_object, mask_keys

_ONE_SLASH = re.compile(r"https?:/?(?!/|[0-9])", re.IGNORECASE)  # "http:/localhost"
_VERSION = re.compile(r"/v\d+\w*(/|$)")
_PRIVATE: Final = [
    ipaddress.ip_network(net)
    for net in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7", "fe80::/10")
]
# Metadata services of clouds never count as private, because they return credentials. The addresses: most clouds, AWS
# over IPv6, Google over IPv6, Alibaba.
_METADATA: Final = tuple(
    map(ipaddress.ip_address, ("169.254.169.254", "fd00:ec2::254", "fd20:ce::254", "100.100.100.200"))
)

CLIENT_HEADERS: Final = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "learnflow-llm"}
# Headers that httpx sets, and connection headers (RFC 9110, section 7.6).
_TRANSPORT_HEADER: Final = re.compile(
    "host|content-(type|length)|transfer-encoding|connection|keep-alive|te|trailer|upgrade|expect|proxy-.*"
)
_SESSION: Final = "{session}"
_SESSION_VALUE: Final = re.compile(r"[!-+\--~]+")  # no space (proxies trim it), no comma (proxies split there)
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\t -~\xa0-\xff]+")


def is_private(address: str, local_networks: Sequence[str] = ()) -> bool:
    """Return whether an IP address is on this machine, a private network (RFC 1918, RFC 4193) or ``local_networks``."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    private = (*_PRIVATE, *map(ipaddress.ip_network, local_networks))
    return ip not in _METADATA and any(ip in network for network in private if network.version == ip.version)


def is_loopback(host: str) -> bool:
    """Return whether a host name or IP address is loopback."""
    ip = _ip_or_none(host)
    return host == "localhost" or host.endswith(".localhost") or (ip is not None and ip.is_loopback)


# A name without dots is usually local, unless it has only digits: 134744072 is the address 8.8.8.8. The domains below
# are never public (RFC 6761, RFC 6762 appendix G, RFC 8375, ICANN's resolution on .internal).
_PRIVATE_DOMAINS = r"local|localhost|localdomain|internal|intranet|private|corp|home|lan|home\.arpa|test"
_LOCAL_NAME = re.compile(rf"^(?=.*[a-z])[a-z0-9_-]+\.?$|\.({_PRIVATE_DOMAINS})\.?$", re.IGNORECASE)


def has_version(path: str) -> bool:
    """Return whether a path contains the version of an API ("/v1", "/v1beta/openai")."""
    return bool(_VERSION.search(path))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a provider, its API key and its headers. The repr does not show secrets.

    Attributes:
        server_url: the URL without the path of the API, such as "http://localhost:8080".
        base_url: the URL with the path of the API, such as "http://localhost:8080/v1".
        key_hint: the hint of the error if the key is missing or rejected.
        credentials: the header with the key; empty without a key.
        headers: further headers, whose values are secret. ``{session}`` in a value stands for the call's ``session=``
            (a name for requests with the same prompt prefix). A call without ``session=`` omits the header.
        local_networks: more networks that count as private, such as "100.64.0.0/10" (``LLM_LOCAL_NETWORKS``).
        query: the query of the configured URL. It is added to every request, and may contain a key.
    """

    server_url: str
    base_url: str
    key: str | None = field(default=None, repr=False)
    key_hint: str = field(default="", repr=False)
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    version: str | None = None
    local_networks: tuple[str, ...] = ()
    query: str = field(default="", repr=False)

    @property
    def origin(self) -> tuple[str, str, int]:
        """Return scheme, host and port. ``Client`` sends the key to this origin only."""
        return origin(self.base_url)

    @property
    def looks_local(self) -> bool:
        """Return whether the host looks local, without a DNS lookup. ``network.is_local`` uses resolved addresses."""
        return looks_local(self.origin[1], self.local_networks)

    @property
    def all_headers(self) -> dict[str, str]:
        """Return the headers of every request. ``Client`` adds the content type."""
        headers = {name: value for name, value in self.headers.items() if _SESSION not in value}
        return {**headers, **CLIENT_HEADERS, **self.credentials}

    def with_call_headers(self, headers: Mapping[str, str], session: str | None) -> Endpoint:
        """Return a copy with the headers and the session of a call. An invalid session is replaced by its digest."""
        if session and not _SESSION_VALUE.fullmatch(session):
            session = hashlib.sha256(session.encode()).hexdigest()
        merged = {**self.headers, **headers}.items()
        return replace(self, headers={name: value.replace(_SESSION, session or _SESSION) for name, value in merged})

    @property
    def secrets(self) -> list[str]:
        """Return the values of the headers and the query that ``mask`` hides: both "Bearer x" and "x"."""
        query = [value for name, value in parse_qsl(self.query) if name != "api-version"]
        values = [*self.headers.values(), *query]
        return list(dict.fromkeys(secret for value in values for secret in (value, value.rpartition(" ")[2])))

    def mask(self, text: str) -> str:
        """Mask the key and ``secrets`` in a text from the server."""
        return mask_keys(text, self.key, self.secrets)


@lru_cache(maxsize=256)  # the router calls it for every provider and request
def looks_local(host: str, local_networks: tuple[str, ...]) -> bool:
    """Return whether a host is a private IP address, or a name that is usually private (``_LOCAL_NAME``)."""
    return is_private(host, local_networks) if _ip_or_none(host) else bool(_LOCAL_NAME.search(host))


@lru_cache(maxsize=256)
def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def configure_endpoint(
    spec: ProviderSpec,
    settings: ProviderSettings,
    url: str | None = None,
    key: str | None = None,
    headers: Mapping[str, str] | str | None = None,
    *,
    keyless: bool = False,
    local_networks: tuple[str, ...] = (),
) -> Endpoint:
    """Return the endpoint of a provider. Arguments win over the environment.

    A key or header from the environment is sent to one origin only: that of ``<NAME>_BASE_URL``, else that of the
    provider's default address, else that of ``url``. A key or header that is given as
    an argument is sent to the endpoint, whatever its origin is.

    Args:
        url: if None, use ``<NAME>_BASE_URL`` or the provider's default.
        key, headers: None for the value in the environment; "" or {} for no key or no headers.
        keyless: do not require a key.

    Raises:
        NotConfigured: the address is missing or invalid, the key has invalid characters, or a header is invalid.
        KeyMissing: the address requires a key, and none is configured.
    """
    address = url or settings.base_url or spec.api.default_url
    if not address:
        raise NotConfigured(
            "no base URL is configured", provider=spec.name, hint=f"Set {spec.variable('base_url')} or give base_url="
        )
    parsed = parse_endpoint(spec, address, version=settings.api_version)
    secrets_origin = parse_endpoint(spec, settings.base_url or spec.api.default_url or address).origin
    key, key_hint = _choose_secret(spec, "api_key", key, parsed, secrets_origin)
    headers, headers_hint = _choose_secret(spec, "headers", headers, parsed, secrets_origin)
    key = str(key).strip()
    hint = key_hint or headers_hint or f"Set {spec.variable('api_key')}, or give api_key="
    if not key.isascii() or not key.isprintable():
        raise NotConfigured("the key contains invalid characters", provider=spec.name, hint=hint)
    if not key and not spec.local and not keyless:
        raise KeyMissing("there is no key for this address", provider=spec.name, hint=hint)
    credentials = {spec.api.key_header: f"{spec.api.key_scheme} {key}".strip()} if key else {}
    headers = {**spec.api.headers, **parse_headers(spec, headers, NotConfigured)}
    return replace(
        parsed, key=key or None, key_hint=hint, credentials=credentials, headers=headers, local_networks=local_networks
    )


def _choose_secret(
    spec: ProviderSpec, setting: str, given: Any, endpoint: Endpoint, secrets_origin: tuple[str, str, int]
) -> tuple[Any, str]:
    """Return the argument ``given`` or the secret in the environment, and an empty hint.

    If the secret must not be sent to the endpoint, return "" and a hint that explains why.
    """
    if given is not None:
        return given, ""
    # The hint is not empty if the secret must not be sent to the configured address
    secret, withheld_hint = provider_secret(spec, setting)
    default_origin = parse_endpoint(spec, spec.api.default_url).origin if spec.api.default_url else None
    if withheld_hint and endpoint.origin != default_origin:
        return "", withheld_hint
    if not secret or endpoint.origin == secrets_origin:
        return secret, ""
    variables = [spec.variable(name) for name in (setting, "base_url")]
    return "", f"{variables[0]} belongs to {secrets_origin[1]}. Give {setting}=, or set {variables[1]}"


def parse_headers(spec: ProviderSpec, given: Any, error_class: type[LLMError]) -> dict[str, str]:
    """Parse a mapping, a JSON object, or "Name: value; Name: value". Return the headers with lower-case names.

    Raises:
        error_class: the format, a name or a value is invalid, or this package sets the header itself.
    """
    if isinstance(given, str):
        parts = [part.partition(":") for part in given.split(";") if part.strip()]
        is_json = given.lstrip().startswith("{")
        # A part without a colon gets the name "", which is invalid
        given = json_object(given) if is_json else {colon and name.strip(): value for name, colon, value in parts}
    headers, fault = dict[str, str](), "" if isinstance(given, Mapping) else "the headers are not a dict of texts"
    reserved = {*CLIENT_HEADERS, *spec.api.headers, spec.api.key_header}
    for number, (name, value) in enumerate(given.items() if not fault else (), 1):
        key = str(name).lower()
        headers[key] = value.strip(" \t") if isinstance(value, str) else ""
        if not _HEADER_NAME.fullmatch(str(name)):
            fault = f"header {number} has no valid name before a colon"
        elif key in reserved or _TRANSPORT_HEADER.fullmatch(key):
            fault = f"the header {name} is set by this package, and cannot be overwritten"
        elif not _HEADER_VALUE.fullmatch(headers[key]):
            fault = f"the value of the header {name} is empty, or has characters that are not allowed"
    if fault:
        raise error_class(fault, provider=spec.name, hint=f"Correct headers=, or {spec.variable('headers')}")
    return headers


def parse_endpoint(spec: ProviderSpec, url: str, version: str | None = None) -> Endpoint:
    """Parse an operator's URL. Return an endpoint without key and headers.

    Scheme, port and ``/v1`` are optional. The forms of ``OLLAMA_HOST`` are supported (Ollama's ``envconfig.Host``,
    2026-08): ``host``, ``:port``, ``0.0.0.0``, ``[::1]``, ``http://host`` (port 80) and ``https://host``, each with or
    without a path. ``Endpoint.version`` is ``version``, else the query's ``api-version``, else the default.

    Raises:
        NotConfigured: the URL is invalid.
    """
    api, parts = spec.api, _split_url(spec, url)
    default = urlsplit(api.default_url or "")
    given_path = path = parts.path.rstrip("/") or (default.path if parts.hostname == default.hostname else "")
    for suffix in api.removed_suffixes:
        path = path.removesuffix(suffix)
    if api.litellm_path:
        path = path.partition(api.litellm_path)[0]
    is_request_url = given_path.endswith((CHAT_PATH, RESPONSES_PATH))
    if api.api_path and not (has_version(path) or is_request_url):
        path += api.api_path
    server = f"{parts.scheme}://{parts.netloc}"
    root = server + (_VERSION.split(path)[0] if api.api_path else path)
    version = version or parse_qs(parts.query).get("api-version", [None])[0] or api.default_version
    return Endpoint(root, server + path, version=version, query=parts.query)


def _split_url(spec: ProviderSpec, url: str) -> SplitResult:
    """Split a URL. Add a missing scheme, host or port."""
    text = str(url).strip().strip("\"'")
    has_scheme = "://" in text
    if _ONE_SLASH.match(text):
        raise _invalid_url(spec, "must begin with http:// or https://, with two slashes")
    if not has_scheme:
        text = f"[{text}]" if isinstance(_ip_or_none(text), ipaddress.IPv6Address) else text
        text = f"{_scheme(spec, text)}://{text}"
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname or ""
        httpx.Request("GET", text)  # raises InvalidURL if the host is invalid
    except (ValueError, httpx.InvalidURL):
        parts = None
    if parts is None or text.endswith("://") or any(character.isspace() for character in text):
        raise _invalid_url(spec, "is empty, or has an invalid host or port")
    if parts.scheme not in ("http", "https"):
        raise _invalid_url(spec, "must begin with http:// or https://")
    if parts.username or parts.password:
        raise _invalid_url(spec, f"contains a user name or password: use {spec.variable('api_key')} for a key")
    if port is None and not has_scheme and parts.scheme == "http":
        port = urlsplit(spec.api.default_url or "").port
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # for a client, 0.0.0.0 is this machine
    netloc = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    return parts._replace(netloc=netloc, fragment="")


def _scheme(spec: ProviderSpec, text: str) -> str:
    """Choose the scheme for a URL that has none: http for a local server, else https."""
    host = text.partition("/")[0]
    if spec.api.default_url and spec.local:
        return "https" if host == spec.api.cloud_host else "http"
    name, _, port = host.rpartition(":") if ":" in host else (host, "", "")
    is_local = _ip_or_none(name.strip("[]")) or "." not in name or (spec.local and port not in ("", "443"))
    return "http" if is_local else "https"


def _ip_or_none(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address; None if the text is a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _invalid_url(spec: ProviderSpec, fault: str) -> NotConfigured:
    return NotConfigured(
        f"the base URL {fault}",
        provider=spec.name,
        hint=f"Set {spec.variable('base_url')} like {spec.api.default_url or 'http://localhost:8080/v1'}",
    )


def add_error_context(error: LLMError, spec: ProviderSpec, endpoint: Endpoint, model: str | None) -> LLMError:
    """Add the provider, the model, and a hint that names the variable to set. Return the error."""
    # Do not add the URL if the provider itself raised the error, or if this package starts the server
    hint_is_complete = error.provider is not None or spec.starts_server
    error.provider, error.model = spec.name, error.model or model
    url = spec.variable("base_url")
    if isinstance(error, errors.ModelNotFound):
        error.hint = error.hint or f"Set {spec.variable('model')} or model= to a name that list_models() gives"
    elif isinstance(error, errors.AuthenticationFailed):
        error.hint = endpoint.key_hint
    elif isinstance(error, errors.ContextOverflow) and spec.context_setting:
        error.hint = error.advice.replace("context,", f"context ({spec.context_setting}),")
    elif isinstance(error, errors.Misconfigured | errors.ConnectionFailed) and error.hint and not hint_is_complete:
        error.hint = f"{error.hint}; the address in use is {endpoint.base_url}, the variable {url}"
    elif isinstance(error, errors.ConnectionFailed | errors.ConnectTimeout):
        program = spec.title if spec.api.default_url and spec.title != spec.name else "the server"
        start = f"Start {program} at {endpoint.base_url}, or set {url} to its address"
        check = f"Check the network, HTTPS_PROXY, and the address {endpoint.base_url} ({url})"
        error.hint = error.hint or (spec.server.down_hint or start if spec.local else check)
    return error
