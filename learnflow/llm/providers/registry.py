"""The specs of providers, and ``build``, which creates a provider by its name.

A spec (``ProviderSpec``) describes the API, features and defaults of a vendor or a kind of server. A name is one of:

- a vendor with a class in ``providers``,
- a vendor without a class, from LiteLLM's table (``vendors.json``),
- one of two proxies (llama-swap, LiteLLM's),
- an endpoint: a server that the operator named and configured with ``<NAME>_BASE_URL`` and ``<NAME>_KIND``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from .. import settings
from ..adapter.provider import BaseProvider
from ..capabilities import find_similar
from ..errors import NotConfigured
from ..parameters import REASONING_EFFORT
from ..provider_spec import RESPONSES_PATH, SETTINGS, Api, Dialect, ProviderSpec, endpoint_spec
from ..replay import active
from ..transport.endpoint import has_version
from ..transport.untrusted import printable
from . import (
    anthropic,
    azure,
    custom,
    embedded,
    fireworks,
    gemini,
    litellm_proxy,
    llamacpp,
    llamaswap,
    lmstudio,
    ollama,
    openai,
    openrouter,
    vllm,
    yandexgpt,
)

_SERVERS: Final = (ollama, lmstudio, vllm, llamacpp, embedded)
# In the order of help texts and tables. Each vendor has a provider class.
_VENDORS: Final = (openai, azure, *_SERVERS, openrouter, fireworks, gemini, anthropic, yandexgpt, custom)
SPECS: Final[Mapping[str, ProviderSpec]] = MappingProxyType({vendor.SPEC.name: vendor.SPEC for vendor in _VENDORS})
CUSTOM: Final = custom.SPEC  # any other server with OpenAI's API
EMBEDDED: Final = embedded.SPEC  # used if no provider is named and no server responds
# The kinds of server that probes recognise, in the order in which they are tried. Proxies are first, because they
# forward the probes of other kinds to the server behind them. llama.cpp is next, because it also answers the probes of
# other kinds. Its own header identifies it.
KINDS: Final = (llamaswap.SPEC, litellm_proxy.SPEC, llamacpp.SPEC, ollama.SPEC, lmstudio.SPEC, vllm.SPEC)

CLASSES: Final[dict[str, type[BaseProvider]]] = {}  # by the name of the spec, filled by ``providers/__init__.py``
_KIND_NAMES: Final = "ollama, vllm, llamacpp, lmstudio, embedded, custom or any provider's name"
_PROXY_HINT: Final = (
    "A vendor without OpenAI's API, such as Bedrock, Vertex AI or Cohere, needs a proxy that has it: "
    "for LiteLLM's, set LLM_PROVIDER=litellm_proxy. Embeddings are not supported"
)
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,59}")
_MAX_SHOWN_CHARS: Final = 60  # length of an invalid name in an error
_TABLE: Final = Path(__file__).with_name("vendors.json")  # written by `make vendors`


@cache
def vendor_specs() -> Mapping[str, ProviderSpec]:
    """Return the specs without a class: the vendors of ``vendors.json``, llama-swap and LiteLLM's proxy."""
    vendors = [_spec_of_row(row) for row in json.loads(_TABLE.read_text(encoding="utf-8"))]
    return MappingProxyType({spec.name: spec for spec in (*vendors, llamaswap.SPEC, litellm_proxy.SPEC)})


def discoverable_specs() -> Mapping[str, ProviderSpec]:
    """Return the specs that discovery probes at their default addresses."""
    return {**SPECS, **{spec.name: spec for spec in KINDS}}


def _spec_of_row(row: Mapping[str, Any]) -> ProviderSpec:
    path = urlsplit(row["base"] or "").path
    return ProviderSpec(
        name=row["name"],
        title=row["name"],
        litellm_provider=row["name"],
        is_tested=False,
        local=row["local"],
        api=Api(
            default_url=row["base"],
            api_path=path if has_version(path) else "",
            litellm_path=row["path"] or None,  # LiteLLM appends it to the base URL
            responses_path=f"{row['path']}{RESPONSES_PATH}",
            models_path=f"{row['path']}/models",
            lists_all_models=False,
        ),
        dialect=Dialect(reasoning=REASONING_EFFORT),
        settings=(*SETTINGS, "api"),
        other_variable_names={"base_url": tuple(row["urls"]), "api_key": tuple(row["keys"])},
        capability_overrides={"cost": None},
    )


def spec_of(name: str, *, has_address: bool = False, default_kind: str | None = None) -> ProviderSpec:
    """Return the spec of a vendor or an endpoint, by its name in lower or upper case.

    Args:
        has_address: whether the caller has the address. If so, ``<NAME>_BASE_URL`` is not required.
        default_kind: the kind of the endpoint if ``<NAME>_KIND`` is not set.

    Raises:
        NotConfigured: the name is invalid or unknown, or the kind of the endpoint is not set.
    """
    return spec_of_kind(name) or _find_endpoint(
        name.strip().lower(), has_address=has_address, default_kind=default_kind
    )


def _find_endpoint(name: str, *, has_address: bool, default_kind: str | None) -> ProviderSpec:
    """Return the spec of an endpoint.

    Raises:
        NotConfigured: the name is invalid or unknown (then ``error.provider`` is None), or the kind is missing or
            unknown.
    """
    if not _NAME.fullmatch(name):
        what = f"invalid provider name {printable(name, _MAX_SHOWN_CHARS)!r}"
        raise NotConfigured(what, hint="Use up to 60 letters, digits, - and _, starting with a letter")
    spec = endpoint_spec(CUSTOM, name)
    provider_settings = settings.load_provider(spec)
    if not (provider_settings.base_url or has_address or provider_settings.kind or _is_recorded(name)):
        hint = (
            f"Use {', '.join(SPECS)}, or one of {len(vendor_specs())} more (learnflow-llm status --all); for your own "
            f"server set {spec.variable('base_url')}, and {spec.variable('kind')} to its kind"
        )
        if similar := find_similar(name, [*SPECS, *vendor_specs()], 1):
            hint = f"Did you mean {similar[0]}? learnflow-llm status --all lists all names"
        raise NotConfigured(f"unknown provider {name!r}", hint=f"{hint}. {_PROXY_HINT}")
    kind = spec_of_kind(provider_settings.kind or default_kind)
    if kind is None:
        what = f"{spec.variable('kind')} is {'not a kind of server' if provider_settings.kind else 'not set'}"
        similar = find_similar(provider_settings.kind or "", [*SPECS, *vendor_specs()], 1)
        hint = f"Did you mean {similar[0]}? " if similar else f"Set it to the kind of server ({_KIND_NAMES}); "
        hint += f"`learnflow-llm status -p {name}` probes the server"
        raise NotConfigured(what, provider=name, hint=hint)
    return endpoint_spec(kind, name)


def spec_of_kind(kind: str | None) -> ProviderSpec | None:
    """Return the spec of a vendor or a kind of server; None if ``kind`` is unknown or None."""
    name = (kind or "").strip().lower()
    return SPECS.get(name) or vendor_specs().get(name)


def _is_recorded(name: str) -> bool:
    """Return whether the replayed cassettes (recorded responses) include this provider. If so, it needs no address."""
    cassettes = active.current(settings.load())
    return bool(cassettes and cassettes.providers and name in cassettes.providers)


def check_provider_name(name: str) -> None:
    """Raise NotConfigured if a name is invalid or unknown. Ignore other faults of the configuration."""
    try:
        spec_of(name)
    except NotConfigured as error:
        if error.provider is None:
            raise


class VendorProvider(BaseProvider):
    """Base class of the vendors. Its probes recognise every kind of server in ``KINDS``."""

    _server_kinds = KINDS


def build(
    name: str,
    base_url: str | None = None,
    model: str | None = None,
    api_key: str | None = None,
    default_kind: str | None = None,
    **others: Any,
) -> BaseProvider:
    """Create a provider. The defaults of the arguments come from the environment.

    Args:
        name: the name of a vendor, or of an endpoint (a server with ``<NAME>_BASE_URL`` and ``<NAME>_KIND``).
        base_url, model, api_key: see ``BaseProvider``.
        default_kind: the kind of the endpoint if ``<NAME>_KIND`` is not set.
        others: other keywords of the provider's class.

    Returns:
        The provider. No request was sent.

    Raises:
        NotConfigured: the name is unknown, or the endpoint has no kind, address or key.
    """
    spec = spec_of(name, has_address=base_url is not None, default_kind=default_kind)
    return provider_of(spec, base_url, model, api_key, **others)


def provider_of(spec: ProviderSpec, *arguments: str | None, **keywords: Any) -> BaseProvider:
    """Create a provider with this spec.

    If the spec has no class of its own (an endpoint, or a vendor of LiteLLM's table), create a subclass.
    """
    provider_class = CLASSES.get(spec.kind or spec.name, VendorProvider)
    if getattr(provider_class, "spec", None) is not spec:
        class_name = f"{spec.name.title().replace('-', '').replace('_', '')}Provider"
        provider_class = type(class_name, (provider_class,), {"spec": spec})
    return provider_class(*arguments, **keywords)
