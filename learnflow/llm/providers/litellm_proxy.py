"""LiteLLM's proxy (tested with 1.106.2), recognised by ``/health/readiness``.

The proxy itself is local. It forwards every request, and does not report to which server. Therefore all its models
count as remote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from .. import errors
from ..parameters import COMMON_KEYWORDS, SAMPLING
from ..provider_spec import Api, Dialect, Page, Probe, ProviderSpec, Server, ServerSupport
from ..servers.probe import read_model_list
from ..transport.untrusted import text_or_none

_READINESS: Final = "/health/readiness"
_MODELS: Final = "/v1/models"


def _parse_pages(pages: Mapping[str, Page]) -> Server | None:
    readiness, model_list = pages[_READINESS].body, pages[_MODELS]
    if readiness.get("status") != "healthy" or text_or_none(readiness.get("db")) is None:
        return None
    if model_list.rows("data") is None and not isinstance(model_list.error, errors.AuthenticationFailed):
        return None
    server = read_model_list(model_list) or Server()
    models = tuple(replace(model, remote=True) for model in server.models)
    return replace(server, version=text_or_none(readiness.get("litellm_version")), models=models)


SPEC: Final = ProviderSpec(
    name="litellm_proxy",
    title="LiteLLM's proxy",
    tested_versions="1.106.2",
    litellm_provider="litellm_proxy",
    local=True,
    api=Api(default_url="http://localhost:4000", api_path="", lists_all_models=False, has_aliases=True),
    server=ServerSupport(forwards_requests=True, probe=Probe(pages=(_READINESS, _MODELS), parse_pages=_parse_pages)),
    dialect=Dialect(parameters=(COMMON_KEYWORDS | SAMPLING) - {"reasoning"}),
    other_variable_names={"base_url": ("LITELLM_PROXY_API_BASE",)},
    capability_overrides={"cost": None},  # unknown; other local servers are free
)
