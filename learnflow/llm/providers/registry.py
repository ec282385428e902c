"""Find a spec by the name of its provider: by hand, of LiteLLM's table, or of an endpoint of the operator's."""

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
from ..capabilities import unknown
from ..errors import NotConfigured
from ..parameters import ALWAYS, SAMPLING
from ..provider_spec import Api, Dialect, ProviderSpec, named
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
# In the order in which people are shown them.
_TRIED: Final = (openai, azure, *_SERVERS, openrouter, fireworks, gemini, anthropic, yandexgpt, custom)
SPECS: Final[Mapping[str, ProviderSpec]] = MappingProxyType({vendor.SPEC.name: vendor.SPEC for vendor in _TRIED})
CUSTOM: Final = custom.SPEC  # speaks the API, and is none of the others
EMBEDDED: Final = embedded.SPEC  # is used if nothing is named and no server answers

_KINDS: Final = "ollama, vllm, llamacpp, lmstudio, embedded, custom or any provider's name"
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
    return (llamaswap.SPEC, litellm_proxy.SPEC, llamacpp.SPEC, ollama.SPEC, lmstudio.SPEC, vllm.SPEC)


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
        api=Api(
            default_url=said["base"],
            api_path=path if has_version(path) else "",
            litellm_path=said["path"] or None,  # which LiteLLM adds
            models_path=f"{said['path']}/models",
            lists_all=False,
        ),
        dialect=Dialect(
            parameters=(ALWAYS | SAMPLING) - {"reasoning"},
        ),
        other_spellings={"base_url": tuple(said["urls"]), "api_key": tuple(said["keys"])},
        capabilities=unknown(local=said["local"], cost=None),
    )


def spec_of(name: str, *, given: bool = False, usual_kind: str | None = None) -> ProviderSpec:
    """Return the spec of this name: by hand, of LiteLLM's table, or of an endpoint that the environment names.

    Args:
        name: without regard to case.
        given: the address of an endpoint is an argument, so that the environment need not have it.
        usual_kind: the kind of an endpoint if the environment does not set it.

    Raises:
        NotConfigured: there is none, or the kind of the endpoint is not set.
    """
    return kind_of(name) or _endpoint(name.strip().lower(), given=given, usual_kind=usual_kind)


def _endpoint(name: str, *, given: bool, usual_kind: str | None) -> ProviderSpec:
    """Return the spec of an endpoint of the operator's.

    An error has the endpoint as its provider, and none if the name is unknown or invalid.
    """
    if not _NAME.fullmatch(name):
        what = f"{printable(name, _SHOWN)!r} is no name of a provider"
        raise NotConfigured(what, hint="A name begins with a letter and has letters, digits, - and _")
    plain = named(CUSTOM, name)
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
    kind = kind_of(own.kind or usual_kind)
    if kind is None:
        what = f"{plain.variable('kind')} is {'no kind of server' if own.kind else 'not set'}"
        hint = f"Set it to the kind of server ({_KINDS}); `learnflow-llm status -p {name}` shows what answers there"
        raise NotConfigured(what, provider=name, hint=hint)
    return named(kind, name)


def kind_of(kind: str | None) -> ProviderSpec | None:
    """Return the spec that ``<NAME>_KIND`` names; None if it is not set or names none."""
    name = (kind or "").strip().lower()
    return SPECS.get(name) or table().get(name)


def _recorded(name: str) -> bool:
    """Whether it is on the cassettes that are played: then it needs no address."""
    common = settings.load()
    played = active.current(common.llm_replay, common.llm_replay_mode)
    return bool(played and played.providers and name in played.providers)


def check(name: str) -> None:
    """Raise NotConfigured for a name that is none; what else is wrong with a provider is said when it is made."""
    try:
        spec_of(name)
    except NotConfigured as error:
        if error.provider is None:
            raise
