"""vLLM (tested with 0.32), recognised by ``owned_by`` and ``/version``.

``max_model_len`` is the served context length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .. import errors
from ..parameters import COMMON_KEYWORDS, LOCAL_SAMPLING, TEMPLATE_THINKING
from ..provider_spec import CHAT_PATH, Api, Dialect, Model, Page, Probe, ProviderSpec, Server, ServerSupport
from ..transport.untrusted import non_negative_int, text_or_none


def _parse_pages(pages: Mapping[str, Page]) -> Server | None:
    version, health, model_list = (
        text_or_none(pages["/version"].body.get("version")),
        pages["/health"],
        pages["/v1/models"],
    )
    rows, error = model_list.rows("data") or [], model_list.error
    # If vLLM rejects the key, it responds with "Unauthorized" to /v1/models, and with an empty 200 to /health.
    rejects_key = isinstance(error, errors.AuthenticationFailed) and error.server_message == "Unauthorized"
    rejects_key = rejects_key and health.error is None and not health.body
    if not version or not (rejects_key or any(row.get("owned_by") == "vllm" for row in rows)):
        return None
    lengths = {row.get("id"): non_negative_int(row.get("max_model_len")) or None for row in rows}
    models = tuple(
        # The context length of a LoRA adapter is that of its base model.
        Model(name=name, loaded=True, capabilities={"context_served": lengths[name] or lengths.get(row.get("parent"))})
        for row in rows
        if (name := text_or_none(row.get("id")))
    )
    # A health error with a message is from vllm-router. The message lists the dead servers, but others still respond
    is_dead = isinstance(health.error, errors.Overloaded | errors.ServerFailed) and not health.error.server_message
    sentence = "the engine is dead according to /health: check the server's log and restart it"
    return Server(version=version, models=models, fault=("down", sentence) if is_dead else None)


SPEC: Final = ProviderSpec(
    name="vllm",
    title="vLLM",
    tested_versions="0.32",
    litellm_provider="hosted_vllm",
    local=True,
    api=Api(default_url="http://localhost:8000/v1"),
    server=ServerSupport(
        compose_service="vllm",
        context_option="--max-model-len",
        probe=Probe(pages=("/v1/models", "/version", "/health"), parse_pages=_parse_pages),
    ),
    dialect=Dialect(
        chat_path_without_litellm=CHAT_PATH,
        # vLLM continues a prefill if the request has ``continue_final_message``, and ignores it otherwise
        supports_prefill=True,
        ignores_prefill=True,
        parameters=COMMON_KEYWORDS | LOCAL_SAMPLING,
        reasoning=TEMPLATE_THINKING,
    ),
    other_variable_names={"base_url": ("HOSTED_VLLM_API_BASE",), "api_key": ("HOSTED_VLLM_API_KEY",)},
    max_concurrency=64,
    capability_overrides={"json_schema": True, "prefill": True},
)
