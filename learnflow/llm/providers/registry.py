"""Every provider by its name: rows and classes by hand, LiteLLM's vendors, the operator's endpoints; and ``build``."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from .. import settings
from ..adapter.provider import BaseProvider
from ..capabilities import unknown
from ..errors import LLMError, NotConfigured
from ..replay import active
from ..spec import ALWAYS, SAMPLING, ProviderSpec, named
from ..transport.endpoint import has_version
from ..transport.untrusted import printable
from . import litellm_proxy, llamaswap
from .anthropic import AnthropicProvider
from .azure import AzureProvider
from .custom import CustomProvider
from .embedded import EmbeddedProvider
from .fireworks import FireworksProvider
from .gemini import GeminiProvider
from .llamacpp import LlamaCppProvider
from .lmstudio import LMStudioProvider
from .ollama import OllamaProvider
from .openai import OpenAIProvider
from .openrouter import OpenRouterProvider
from .vendor import VendorProvider
from .vllm import VLLMProvider
from .yandexgpt import YandexGPTProvider

# In the order in which people are shown them.
CLASSES: Final[Mapping[str, type[BaseProvider]]] = MappingProxyType(
    {
        each.spec.name: each
        for each in (
            OpenAIProvider,
            AzureProvider,
            OllamaProvider,
            LMStudioProvider,
            VLLMProvider,
            LlamaCppProvider,
            EmbeddedProvider,
            OpenRouterProvider,
            FireworksProvider,
            GeminiProvider,
            AnthropicProvider,
            YandexGPTProvider,
            CustomProvider,
        )
    }
)
SPECS: Final[Mapping[str, ProviderSpec]] = MappingProxyType({name: each.spec for name, each in CLASSES.items()})

# What speaks the API and is none of the others.
OTHER: Final = CustomProvider.spec

# What is used if nothing is named and no server answers.
SPARE: Final = EmbeddedProvider.spec

_KINDS: Final = "ollama, vllm, llamacpp, lmstudio, embedded, custom or any provider's name"
_TELLING: Final = ("llamacpp", "ollama", "lmstudio", "vllm")
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]*")
_SHOWN: Final = 60  # characters of a name that is none
_TABLE: Final = Path(__file__).with_name("vendors.json")


@cache
def table() -> Mapping[str, ProviderSpec]:
    """Return the specs without a class: LiteLLM's vendors (``vendors.json``, by ``make vendors``), and two proxies."""
    vendors = [_row(row) for row in json.loads(_TABLE.read_text(encoding="utf-8"))]
    return MappingProxyType({spec.name: spec for spec in (*vendors, llamaswap.SPEC, litellm_proxy.SPEC)})


@cache
def kinds() -> Sequence[ProviderSpec]:
    """Return the kinds of server that are recognised by their pages.

    The proxies come first: they pass on the pages of others. The next one has its header on every page.
    """
    return (llamaswap.SPEC, litellm_proxy.SPEC, *(SPECS[name] for name in _TELLING))


def places() -> Mapping[str, ProviderSpec]:
    """The rows whose usual addresses discovery looks at."""
    return {**SPECS, **{spec.name: spec for spec in kinds()}}


def _row(said: Mapping[str, Any]) -> ProviderSpec:
    path = urlsplit(said["base"] or "").path
    return ProviderSpec(
        name=said["name"],
        title=said["name"],
        litellm=said["name"],
        evidence="table",
        local=said["local"],
        default_url=said["base"],
        api_path=path if has_version(path) else "",
        cut_path=said["path"] or None,  # which LiteLLM adds
        models_path=f"{said['path']}/models",
        also={"base_url": tuple(said["urls"]), "api_key": tuple(said["keys"])},
        lists_all=False,
        parameters=(ALWAYS | SAMPLING) - {"reasoning"},
        capabilities=unknown(local=said["local"], cost=None),
    )


def spec_of(name: str) -> ProviderSpec:
    """Return the spec of this name: by hand, of LiteLLM's table, or of an endpoint that the environment names.

    Raises:
        NotConfigured: there is none, or the kind of the endpoint is not set.
    """
    name = name.strip().lower()
    return SPECS.get(name) or table().get(name) or _endpoint(name, given=False)


def _endpoint(name: str, *, given: bool, usual_kind: str | None = None) -> ProviderSpec:
    """Return the spec of an endpoint of the operator's; ``given``: its address is an argument.

    An error has the endpoint as its provider, and none if the name is unknown or invalid.
    """
    if not _NAME.fullmatch(name):
        what = f"{printable(name, _SHOWN)!r} is no name of a provider"
        raise NotConfigured(what, hint="A name begins with a letter and has letters, digits, - and _")
    plain = named(OTHER, name)
    try:
        own = settings.load_provider(plain)
    except NotConfigured as error:
        error.provider = name
        raise
    if not (own.base_url or given or own.kind or _recorded(name)):
        near = difflib.get_close_matches(name, [*SPECS, *table()], 1, cutoff=0.7)
        own_name = f"set {plain.variable('base_url')}, and {plain.variable('kind')} to the kind of server"
        hint = (
            f"There are {', '.join(SPECS)}, {len(table())} more (learnflow-llm status --all), and your own: {own_name}"
        )
        likely = f"Did you mean {near[0]}? learnflow-llm status --all lists them" if near else ""
        raise NotConfigured(f"there is no provider {name!r}", hint=likely or hint)
    kind = _kind(own.kind or usual_kind)
    if kind is None:
        what = f"{plain.variable('kind')} is {'no kind of server' if own.kind else 'not set'}"
        hint = f"Set it to the kind of server ({_KINDS}); `learnflow-llm status -p {name}` shows what answers there"
        raise NotConfigured(what, provider=name, hint=hint)
    return named(kind, name)


def _kind(kind: str | None) -> ProviderSpec | None:
    """Return the spec that ``<NAME>_KIND`` names; None if it is not set or names none."""
    name = (kind or "").strip().lower()
    return SPECS.get(name) or table().get(name)


def without_kind(name: str) -> BaseProvider | None:
    """Return a provider that probes an endpoint whose kind is not set; None for all other names.

    Raises:
        LLMError: a variable of the endpoint is invalid.
    """
    plain = named(OTHER, name)
    if name in SPECS or name in table():
        return None
    own = settings.load_provider(plain)
    return _made(plain) if own.base_url and _kind(own.kind) is None else None


def _recorded(name: str) -> bool:
    """Whether it is on the cassettes that are played: then it needs no address."""
    common = settings.load()
    played = active.current(common.llm_replay, common.llm_replay_mode)
    return bool(played and played.providers and name in played.providers)


def embedded() -> BaseProvider | None:
    """Return the provider to use if no server answers; None if it could not be started and nothing of it is set.

    Raises:
        NotConfigured: what is set of it cannot be used.
    """
    own = settings.load_provider(SPARE)
    try:
        return EmbeddedProvider()
    except LLMError:
        if own.model_fields_set:
            raise
        return None


def check(name: str) -> None:
    """Raise NotConfigured for a name that is none; what else is wrong with a provider is said when it is made."""
    try:
        spec_of(name)
    except NotConfigured as error:
        if error.provider is None:
            raise


def build(
    name: str,
    base_url: str | None = None,
    model: str | None = None,
    api_key: str | None = None,
    *,
    usual_kind: str | None = None,
) -> BaseProvider:
    """Return the provider of this name; what is not given is read from the environment.

    Args:
        name: a vendor's (``SPECS``, LiteLLM's table), or an endpoint's: ``<NAME>_BASE_URL`` is its address, and
            ``<NAME>_KIND`` its kind of server.
        base_url, model, api_key: see ``BaseProvider``.
        usual_kind: the kind of an endpoint if ``<NAME>_KIND`` is not set.

    Raises:
        NotConfigured: there is no such name, or the kind of the endpoint is not set.
    """
    name = name.strip().lower()
    if name in CLASSES:
        return CLASSES[name](base_url, model, api_key)
    spec = table().get(name) or _endpoint(name, given=base_url is not None, usual_kind=usual_kind)
    return _made(spec, base_url, model, api_key)


def _made(spec: ProviderSpec, *given: str | None) -> BaseProvider:
    """Return the provider of a spec that has no class of its own."""
    kind = CLASSES.get(spec.kind or spec.name, VendorProvider)
    own = type(f"{spec.name.title().replace('-', '').replace('_', '')}Provider", (kind,), {"spec": spec})
    made: BaseProvider = own(*given)
    return made
