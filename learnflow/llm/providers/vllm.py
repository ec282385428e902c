"""vLLM (0.32), recognised by ``owned_by`` and ``/version``. ``max_model_len`` is the served context length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .. import errors
from ..parameters import ALWAYS, LOCAL_SAMPLING, TEMPLATE_THINKING
from ..provider_spec import Api, Dialect, Model, Page, Probe, ProviderSpec, Server, ServerSupport
from ..transport.untrusted import non_negative_int, text


def _read(pages: Mapping[str, Page]) -> Server | None:
    version = text(pages["/version"].body.get("version"))
    rows = pages["/v1/models"].rows("data")
    refused, health = pages["/v1/models"].error, pages["/health"]
    locked = isinstance(refused, errors.AuthenticationFailed) and refused.server_message == "Unauthorized"
    # vLLM's way to refuse a key, while its health page is an empty 200.
    locked = locked and bool(version) and health.error is None and not health.body
    if not locked and not (version and rows and any(row.get("owned_by") == "vllm" for row in rows)):
        return None
    lengths = {row.get("id"): non_negative_int(row.get("max_model_len")) or None for row in rows or []}
    models = []
    for row in rows or []:
        name = text(row.get("id"))
        if name:
            served = lengths[name] or lengths.get(row.get("parent"))  # an adapter has that of its base model
            models.append(Model(name=name, loaded=True, known={"context_served": served}))
    dead = pages["/health"].error
    trouble = None
    if isinstance(dead, errors.Overloaded | errors.ServerFailed):
        trouble = ("down", "its engine is dead, according to /health: check its log and restart it")
    return Server(version=version, models=tuple(models), trouble=trouble)  # type: ignore[arg-type]


SPEC: Final = ProviderSpec(
    name="vllm",
    title="vLLM",
    tested_versions="0.32",
    litellm="hosted_vllm",
    local=True,
    api=Api(default_url="http://localhost:8000/v1"),
    server=ServerSupport(service="vllm", probe=Probe(pages=("/v1/models", "/version", "/health"), read=_read)),
    dialect=Dialect(prefill=True, parameters=ALWAYS | LOCAL_SAMPLING, reasoning=TEMPLATE_THINKING, finishes_turns=True),
    other_spellings={"base_url": ("HOSTED_VLLM_API_BASE",), "api_key": ("HOSTED_VLLM_API_KEY",)},
    max_concurrency=64,
    known={"json_schema": True, "prefill": True},
)
