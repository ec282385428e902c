"""The only importer of LiteLLM: its provider configurations write the request, its tables judge a refusal and price it.

Everything here is a function of its arguments: no connection, no retry, no callback. What is used of LiteLLM's
internals is named in ``docs/internals/litellm.md`` and tested by ``tests/integration/adapter/test_litellm.py``:

- ``ProviderConfigManager.get_provider_chat_config``: the configuration of a provider and a model
- ``get_optional_params``: our parameters as the provider's own
- ``get_complete_url``, ``transform_request``, ``get_error_class`` of that configuration
- ``exception_type``: the class that LiteLLM gives to a refusal
- ``model_cost``, ``cost_per_token``: the mode and the price of a cloud's models
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

# Read by LiteLLM when it is imported: no price map, no beta headers, no blog posts from the network, no .env.
# LITELLM_OFFLINE_MODE (since 1.107) says all of it in one word.
_ENVIRONMENT: Final = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_OFFLINE_MODE": "True",
    "LITELLM_MODE": "PRODUCTION",
}
_NO_KEY: Final = "no-key"  # a configuration that is given none may look for one in the environment, anybody's
_MODE: Final = "chat"

_lock = threading.Lock()
_prepared: Final = register("configurations of LiteLLM that are ready", set[str]())


async def prepare(spec: ProviderSpec, endpoint: Endpoint) -> None:
    """Import LiteLLM and write one request of this spec, in a thread: seconds the first time, nothing afterwards."""
    if spec.litellm not in _prepared:
        await asyncio.to_thread(_prepare, spec, endpoint)
        await NETWORK.prepare()


def write(
    spec: ProviderSpec,
    endpoint: Endpoint,
    model: str,
    messages: list[dict[str, Any]],
    parameters: Mapping[str, Any],
) -> HttpRequest:
    """Let LiteLLM's configuration of this provider write the request.

    Args:
        spec: of the provider.
        endpoint: where it is sent; the client adds the key as a header.
        model: its name at the provider.
        messages: OpenAI-style; not changed.
        parameters: OpenAI's keywords, and ``extra_body``, which is merged into the body as it is.

    Raises:
        Unsupported: the model does not take a parameter, or is not served by chat completions.
        InvalidRequest: the messages cannot be written for this provider.
    """
    litellm = _load()
    if not spec.local and _mode(litellm, spec, model) != _MODE:
        raise errors.Unsupported(
            "this model is not served by chat completions", hint="Choose one that the chat API serves"
        )
    try:
        url, body = _written(litellm, spec, endpoint, model, messages, parameters)
    except Exception as error:  # noqa: BLE001  # whatever a configuration raises becomes ours, here and nowhere else
        raise _refused(error, parameters) from None
    return HttpRequest(url=url, body=body)


def judge(
    spec: ProviderSpec, model: str, status: int, body: bytes, headers: Mapping[str, str]
) -> type[LLMError] | None:
    """Return the class of error that LiteLLM gives to a refusal; None if it gives none."""
    litellm = _load()
    message = body[:_JUDGED].decode("utf-8", "replace")
    try:
        config = _config(litellm, spec, model)
        cause = config.get_error_class(error_message=message, status_code=status, headers=dict(headers))
        litellm.exception_type(model=model, original_exception=cause, custom_llm_provider=spec.litellm)
    except Exception as error:  # noqa: BLE001  # it raises its judgement
        return _kind_of(error)
    return None


# LiteLLM's exceptions, of which the import costs seconds.
_KINDS: Final[Mapping[str, type[LLMError]]] = {
    "ContextWindowExceededError": errors.ContextOverflow,
    "ContentPolicyViolationError": errors.ContentFiltered,
    "UnsupportedParamsError": errors.Unsupported,
}


def _kind_of(error: Exception) -> type[LLMError] | None:
    """Return the error class for an exception of LiteLLM; None for any other exception."""
    return next((_KINDS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _KINDS), None)


_JUDGED: Final = 4000  # bytes of a refusal: LiteLLM searches them for many sentences


def price(spec: ProviderSpec, model: str, usage: Usage) -> float | None:
    """Return US dollars for these tokens by LiteLLM's price map; None if the model or the tokens are unknown."""
    if usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    litellm = _load()
    name = f"{spec.price_prefix}/{model}"
    if name not in litellm.model_cost and model not in litellm.model_cost:  # which it would look for elsewhere
        return None
    try:
        parts = litellm.cost_per_token(
            model=name,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cache_read_input_tokens=usage.cached_tokens or 0,  # which are part of the prompt's, and cost less
        )
        return dollars(sum(parts))
    except Exception:  # noqa: BLE001  # a row without a price raises, each version another class
        return None


def _written(
    litellm: Any,
    spec: ProviderSpec,
    endpoint: Endpoint,
    model: str,
    messages: list[dict[str, Any]],
    parameters: Mapping[str, Any],
) -> tuple[str, dict[str, Any]]:
    """Return URL and body, by the steps of ``base_llm_http_handler.completion``."""
    config = _config(litellm, spec, model)
    # copies: a configuration may write into what it is given (1.106), and its body holds parts of it
    messages = [{key: value for key, value in each.items() if value is not None} for each in copy.deepcopy(messages)]
    ours = dict(parameters)
    extra = {key: value for key, value in ours.pop("extra_body", {}).items() if key != "model"}
    schema = ours.pop("response_format") if isinstance(ours.get("response_format"), type) else None
    plain = json.dumps(ours)  # in their order: a schema's properties are written by the model in the order given
    optional = copy.deepcopy(_optional_params(spec.litellm, model, endpoint.version, plain, schema))
    left = optional.pop("extra_body", None) or {}  # an empty one, with the rows of today
    if optional.pop("json_mode", None):  # how it says that the schema would not travel as one
        raise errors.Unsupported(
            "this model cannot be given a schema together with these keywords",
            hint="Leave tools= or response_format= out, or choose another model",
        )
    known = {"api_base": endpoint.base, "custom_llm_provider": spec.litellm}
    if spec.api.chat_path:
        url = endpoint.base + spec.api.chat_path.format(model=quote(model, safe=""), version=endpoint.version)
    else:
        url = config.get_complete_url(
            api_base=endpoint.base,
            api_key=endpoint.key or _NO_KEY,
            model=model,
            optional_params=optional,
            litellm_params=known,
            stream=True,
        )
    body = config.transform_request(
        model=model, messages=messages, optional_params=optional, litellm_params=known, headers={}
    )
    return str(url), {**body, **left, **extra}


@lru_cache(maxsize=256)
def _optional_params(prefix: str, model: str, version: str | None, plain: str, schema: type | None) -> dict[str, Any]:
    """Return our parameters as the provider's own.

    Cached: an application sends the same few, and for some providers LiteLLM searches its whole table a dozen times
    (Fireworks: 3 ms, which would block the event loop).

    Args:
        prefix, model, version: of the provider.
        plain: the parameters, as JSON.
        schema: the class of ``response_format``, if it is one.
    """
    parameters = json.loads(plain) | ({"response_format": schema} if schema else {})
    optional: dict[str, Any] = _load().utils.get_optional_params(
        model=model,
        custom_llm_provider=prefix,
        stream=True,
        drop_params=False,
        api_version=version,
        **parameters,
    )
    return optional


def _config(litellm: Any, spec: ProviderSpec, model: str) -> Any:
    provider = litellm.types.utils.LlmProviders(spec.litellm)
    return litellm.utils.ProviderConfigManager.get_provider_chat_config(model, provider)


def _mode(litellm: Any, spec: ProviderSpec, model: str) -> str:
    """Return the mode of a cloud model in LiteLLM's table; "chat" if it does not have the model."""
    table = litellm.model_cost
    known = table.get(f"{spec.price_prefix}/{model}") or table.get(model) or {}
    return str(known.get("mode") or _MODE)


def _refused(error: Exception, parameters: Mapping[str, Any]) -> LLMError:
    """Return our error for one of a configuration. Its words may repeat the request: only names are read from them."""
    if isinstance(error, LLMError):
        return error
    if _kind_of(error) is errors.Unsupported:
        words = str(getattr(error, "message", error))
        named = [name for name in parameters if name in words]
        refused = errors.Unsupported(
            "LiteLLM knows that this model does not take a parameter of the request",
            hint="Leave out " + ", ".join(named or ["some of its keywords"]),
        )
        refused.params = tuple(named)
        return refused
    return errors.InvalidRequest(
        f"LiteLLM cannot write the request for this provider ({type(error).__name__})",
        hint="Check the messages' roles, contents, tool calls and image formats, or try another provider",
    )


def _prepare(spec: ProviderSpec, endpoint: Endpoint) -> None:
    """Write one request that is not sent, to fill imports and caches in this thread."""
    with _lock:
        if spec.litellm not in _prepared:
            with suppress(errors.Unsupported):  # a vendor of which LiteLLM knows no parameters
                write(spec, endpoint, "-", [{"role": "user", "content": "-"}], {"temperature": 0.0, "max_tokens": 1})
            _prepared.add(spec.litellm)


@cache
def _load() -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import litellm  # noqa: PLC0415  # it takes seconds, and only a request needs it

    litellm.drop_params = False  # LITELLM_DROP_PARAMS would drop a caller's word without one of its own
    litellm.suppress_debug_info = True
    litellm.redact_messages_in_exceptions = True
    litellm.turn_off_message_logging = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.WARNING)  # 1.106 writes whole prompts at DEBUG
    return litellm
