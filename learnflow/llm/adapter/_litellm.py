"""The only importer of LiteLLM, which writes requests, classifies refusals and prices answers.

LiteLLM is called with values: it opens no connection, retries nothing and calls nothing back. Its internals that are
used are listed in ``docs/internals/litellm.md`` and tested by ``tests/integration/adapter/test_litellm.py``:

- ``ProviderConfigManager.get_provider_chat_config``: the configuration of a provider and a model
- ``get_optional_params``: our parameters as the provider's own
- ``get_complete_url``, ``transform_request``, ``get_error_class`` of that configuration
- ``exception_type``: the class of error for a refusal
- ``model_cost``, ``cost_per_token``: the mode and the price of a cloud model
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any, Final
from urllib.parse import quote

from .. import errors
from ..completion import Usage
from ..errors import LLMError
from ..process import register
from ..provider_spec import ProviderSpec
from ..transport.client import NETWORK, HttpRequest
from ..transport.endpoint import Endpoint
from ..transport.untrusted import dollars

# Read by LiteLLM when it is imported: no price map, beta headers or blog posts from the network, and no .env.
# LITELLM_OFFLINE_MODE covers all of them since 1.107.
_ENVIRONMENT: Final = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_OFFLINE_MODE": "True",
    "LITELLM_MODE": "PRODUCTION",
}
_NO_KEY: Final = "no-key"  # without a key, a configuration reads one from the environment, perhaps another host's
_CHAT_MODE: Final = "chat"

_lock = threading.Lock()
_prepared: Final = register("configurations of LiteLLM that are ready", set[str]())


async def prepare(spec: ProviderSpec, endpoint: Endpoint) -> None:
    """Import LiteLLM and write one request of this spec, in a thread. It takes seconds the first time."""
    if spec.litellm not in _prepared:
        await asyncio.to_thread(_prepare, spec, endpoint)
        await NETWORK.prepare()


def write(
    spec: ProviderSpec, endpoint: Endpoint, model: str, messages: list[dict[str, Any]], parameters: Mapping[str, Any]
) -> HttpRequest:
    """Return the HTTP request, written by LiteLLM's configuration of the provider.

    Args:
        spec: of the provider.
        endpoint: its address. The client adds the key as a header.
        model: its name at the provider.
        messages: OpenAI-style. They are not changed.
        parameters: OpenAI's keywords, and ``extra_body``, which is merged into the body unchanged.

    Raises:
        Unsupported: the model does not support a parameter, or is no chat model.
        InvalidRequest: LiteLLM cannot write the messages for this provider.
    """
    if _mode(spec, model) != _CHAT_MODE and not spec.local:  # imports LiteLLM, outside of the try
        raise errors.Unsupported("this model is not served by chat completions", hint="Choose a chat model")
    try:
        url, body = _build_request(spec, endpoint, model, messages, parameters)
    except Exception as error:  # noqa: BLE001  # a configuration may raise anything
        raise _error_of(error, parameters) from None
    return HttpRequest(url=url, body=body)


def classify_error(
    spec: ProviderSpec, model: str, status: int, body: bytes, headers: Mapping[str, str]
) -> type[LLMError] | None:
    """Return LiteLLM's classification of a refusal; None if it has none.

    Args:
        spec: of the provider.
        model: its name at the provider.
        status: of the response.
        body: of the response.
        headers: of the response.
    """
    message = body[:_MAX_CLASSIFIED_BYTES].decode("utf-8", "replace")
    try:
        cause = _config(spec, model).get_error_class(error_message=message, status_code=status, headers=dict(headers))
        _load().exception_type(model=model, original_exception=cause, custom_llm_provider=spec.litellm)
    except Exception as error:  # noqa: BLE001  # it raises the classification
        return _class_of(error)
    return None


# By name, because importing the exceptions takes seconds.
_CLASSES: Final[Mapping[str, type[LLMError]]] = {
    "ContextWindowExceededError": errors.ContextOverflow,
    "ContentPolicyViolationError": errors.ContentFiltered,
    "UnsupportedParamsError": errors.Unsupported,
}


def _class_of(error: Exception) -> type[LLMError] | None:
    """Return our error class for an exception of LiteLLM; None for any other exception."""
    return next((_CLASSES[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _CLASSES), None)


_MAX_CLASSIFIED_BYTES: Final = 4000  # of a refusal: LiteLLM searches them for many sentences


def price(spec: ProviderSpec, model: str, usage: Usage) -> float | None:
    """Return the price of an answer in US dollars, by LiteLLM's price map; None if model or tokens are unknown."""
    if usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    litellm = _load()
    name = f"{spec.price_prefix}/{model}"
    if name not in litellm.model_cost and model not in litellm.model_cost:  # LiteLLM would search for it
        return None
    try:
        parts = litellm.cost_per_token(
            model=name,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cache_read_input_tokens=usage.cached_tokens or 0,  # part of the prompt's tokens, and cheaper
        )
        return dollars(sum(parts))
    except Exception:  # noqa: BLE001  # without a price each version raises another class
        return None


def _build_request(
    spec: ProviderSpec, endpoint: Endpoint, model: str, messages: list[dict[str, Any]], parameters: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return URL and body, by the steps of ``base_llm_http_handler.completion``."""
    config = _config(spec, model)
    # copies: a configuration may change its arguments (1.106), and the body contains parts of them
    copies = copy.deepcopy(messages)
    messages = [{key: value for key, value in message.items() if value is not None} for message in copies]
    keywords = dict(parameters)
    extra = {key: value for key, value in keywords.pop("extra_body", {}).items() if key != "model"}
    schema = keywords.pop("response_format") if isinstance(keywords.get("response_format"), type) else None
    plain = json.dumps(keywords)  # in their order: a model writes properties in the order of the schema
    optional = copy.deepcopy(_optional_params(spec.litellm, model, endpoint.version, plain, schema))
    by_litellm = optional.pop("extra_body", None) or {}
    if optional.pop("json_mode", None):  # LiteLLM would replace the schema by a tool
        raise errors.Unsupported(
            "this model does not support a schema together with these keywords",
            hint="Leave tools= or response_format= out, or choose another model",
        )
    known = {"api_base": endpoint.base, "custom_llm_provider": spec.litellm}
    arguments: dict[str, Any] = {"model": model, "optional_params": optional, "litellm_params": known}
    if spec.api.chat_path:
        url = endpoint.base + spec.api.chat_path.format(model=quote(model, safe=""), version=endpoint.version)
    else:
        key = endpoint.key or _NO_KEY
        url = config.get_complete_url(api_base=endpoint.base, api_key=key, stream=True, **arguments)
    body = config.transform_request(messages=messages, headers={}, **arguments)
    return str(url), {**body, **by_litellm, **extra}


@lru_cache(maxsize=256)
def _optional_params(prefix: str, model: str, version: str | None, plain: str, schema: type | None) -> dict[str, Any]:
    """Return our parameters as the provider's own.

    Cached, because for some providers LiteLLM searches its whole table a dozen times (Fireworks: 3 ms, which would
    block the event loop), and an application sends the same few parameters.

    Args:
        prefix, model, version: of the provider.
        plain: the parameters, as JSON.
        schema: the class of ``response_format``, if it is one.
    """
    parameters = json.loads(plain) | ({"response_format": schema} if schema else {})
    optional: dict[str, Any] = _load().utils.get_optional_params(
        model=model, custom_llm_provider=prefix, stream=True, drop_params=False, api_version=version, **parameters
    )
    return optional


def _config(spec: ProviderSpec, model: str) -> Any:
    litellm = _load()
    provider = litellm.types.utils.LlmProviders(spec.litellm)
    return litellm.utils.ProviderConfigManager.get_provider_chat_config(model, provider)


def _mode(spec: ProviderSpec, model: str) -> str:
    """Return the mode of a cloud model in LiteLLM's table; "chat" if it does not have the model."""
    table = _load().model_cost
    entry = table.get(f"{spec.price_prefix}/{model}") or table.get(model) or {}
    return str(entry.get("mode") or _CHAT_MODE)


def _error_of(error: Exception, parameters: Mapping[str, Any]) -> LLMError:
    """Return our error for an exception of a configuration. Its message may repeat the request, and is not quoted."""
    if isinstance(error, LLMError):
        return error
    if _class_of(error) is errors.Unsupported:
        message = str(getattr(error, "message", error))
        named = [name for name in parameters if name in message]
        unsupported = errors.Unsupported(
            "the model does not support a parameter of the request, according to LiteLLM's table",
            hint="Leave out " + ", ".join(named or ["some of its keywords"]),
        )
        unsupported.params = tuple(named)
        return unsupported
    return errors.InvalidRequest(
        f"LiteLLM cannot write the request for this provider ({type(error).__name__})",
        hint="Check roles, contents, tool calls and image formats of the messages, or try another provider",
    )


def _prepare(spec: ProviderSpec, endpoint: Endpoint) -> None:
    """Write one request that is not sent, to do LiteLLM's imports and fill its caches in this thread."""
    with _lock:
        if spec.litellm not in _prepared:
            with suppress(errors.Unsupported):  # LiteLLM has no parameters for this vendor
                write(spec, endpoint, "-", [{"role": "user", "content": "-"}], {"temperature": 0.0, "max_tokens": 1})
            _prepared.add(spec.litellm)


@cache
def _load() -> Any:
    """Import LiteLLM, with its network access, callbacks and logging switched off."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import litellm  # noqa: PLC0415  # takes seconds, and only a request needs it

    litellm.drop_params = False  # LITELLM_DROP_PARAMS would drop a keyword silently
    litellm.suppress_debug_info = True
    litellm.redact_messages_in_exceptions = True
    litellm.turn_off_message_logging = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.WARNING)  # 1.106 writes whole prompts at DEBUG
    return litellm
