"""Write requests, classify error responses and price answers with LiteLLM. No other module imports LiteLLM.

This module calls only functions that convert values: LiteLLM opens no connection and retries nothing. Most of these
functions are internals of LiteLLM. ``docs/internals/litellm.md`` explains them, and
``tests/integration/adapter/test_litellm.py`` tests them.
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
from functools import cache, lru_cache, partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import quote

from .. import errors
from ..base import is_removable
from ..completion import Usage
from ..errors import LLMError
from ..parameters import ApiName
from ..process import register
from ..provider_spec import ProviderSpec
from ..servers.model_prices import find_key, find_row
from ..transport.client import NETWORK, HttpRequest
from ..transport.endpoint import Endpoint
from ..transport.responses_parser import REASONING_ITEMS
from ..transport.untrusted import dollars_or_none
from .options import parts_of, strings_of

# LiteLLM reads these variables when it is imported. They prevent downloads (price map, beta headers, blog posts) and
# the loading of .env. Since 1.107, LITELLM_OFFLINE_MODE prevents all downloads.
_ENVIRONMENT: Final = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_OFFLINE_MODE": "True",
    "LITELLM_MODE": "PRODUCTION",
}
_LEFT_TO_SERVER: Final = ("tools", "tool_choice", "response_format")  # the server decides whether it supports them
# Fields that ``_restore_omitted`` does not restore.
_NEVER_RESTORED: Final = frozenset({"model", "messages", "stream", "stream_options", "extra_body"})
_NO_KEY: Final = "no-key"  # without a key, LiteLLM reads one from the environment, which may be for another host
_CHAT_MODE: Final = "chat"
# Parameters of chat completions -> their names in the Responses API.
_RENAMED: Final = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), "max_output_tokens"),
    **dict.fromkeys(("response_format", "verbosity"), "text"),
    "reasoning_effort": "reasoning",
    # LiteLLM drops ``stream_options``. It does not count as omitted, because a stream of this API always has the usage
    "stream_options": "stream",
}
# By name, because importing LiteLLM's exceptions takes seconds.
_ERROR_CLASSES: Final[Mapping[str, type[LLMError]]] = {
    "ContextWindowExceededError": errors.ContextOverflow,
    "ContentPolicyViolationError": errors.ContentFiltered,
    "UnsupportedParamsError": errors.Unsupported,
}

_lock = threading.Lock()
_prepared: Final = register("LiteLLM providers that are prepared", set[str]())


async def prepare(spec: ProviderSpec, endpoint: Endpoint) -> None:
    """Import LiteLLM, and fill its caches for this provider, in a thread. The first call takes seconds."""
    if not is_prepared(spec):
        await asyncio.to_thread(_prepare, spec, endpoint)
        await NETWORK.prepare()


def is_prepared(spec: ProviderSpec) -> bool:
    """Return whether LiteLLM is imported and prepared for this provider."""
    return spec.litellm_provider in _prepared


def build_http_request(
    spec: ProviderSpec,
    endpoint: Endpoint,
    model: str,
    messages: list[dict[str, Any]],
    parameters: Mapping[str, Any],
    api: ApiName = "chat",
) -> HttpRequest:
    """Return the HTTP request in the provider's format, written by LiteLLM. ``Client`` adds the key as a header.

    Args:
        model: the model's name at the provider.
        messages: OpenAI-style messages. They are not changed.
        parameters: OpenAI's parameters, and ``extra_body``, which is merged into the body unchanged.

    Raises:
        Unsupported: the model or the API does not support a parameter, the model does not support chat, or LiteLLM
            cannot write the messages for this provider.
    """
    if api == "chat" and find_row(spec, model).get("mode", _CHAT_MODE) != _CHAT_MODE:
        raise errors.Unsupported("this model is not served by chat completions", hint="Choose a chat model")
    _load()  # outside the try, so that an ImportError is not converted
    try:
        build = _build_responses_request if api == "responses" else _build_request
        return build(spec, endpoint, model, messages, parameters)
    except Exception as error:  # noqa: BLE001  # LiteLLM may raise any exception
        raise _convert_error(error, parameters) from None


def classify_error(spec: ProviderSpec, model: str, status: int, message: str) -> type[LLMError] | None:
    """Classify an error response with LiteLLM. Return None if LiteLLM's class is not in ``_ERROR_CLASSES``.

    Pass at most a few hundred characters of the server's message: LiteLLM compares it with many phrases.
    """
    try:
        cause = _chat_config(spec, model).get_error_class(error_message=message, status_code=status, headers={})
        _load().exception_type(model=model, original_exception=cause, custom_llm_provider=spec.litellm_provider)
    except Exception as error:  # noqa: BLE001  # ``exception_type`` always raises
        return _error_class_of(error)
    return None


def _error_class_of(error: Exception) -> type[LLMError] | None:
    """Return the class in ``_ERROR_CLASSES`` for an exception of LiteLLM; None if it has no class there."""
    return next((_ERROR_CLASSES[cls.__name__] for cls in type(error).__mro__ if cls.__name__ in _ERROR_CLASSES), None)


def price(spec: ProviderSpec, model: str, usage: Usage) -> float | None:
    """Return the price of an answer in US dollars; None if LiteLLM has no price, or the tokens are unknown."""
    if usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    name = find_key(spec, model)
    if name is None:  # for some unknown names, ``cost_per_token`` would send a request
        return None
    try:
        parts = _load().cost_per_token(
            model=name,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cache_read_input_tokens=usage.cached_tokens or 0,  # included in the prompt's tokens
        )
        return dollars_or_none(sum(parts))
    except Exception:  # noqa: BLE001  # the class differs between versions of LiteLLM
        return None


def _build_request(
    spec: ProviderSpec, endpoint: Endpoint, model: str, messages: list[dict[str, Any]], parameters: Mapping[str, Any]
) -> HttpRequest:
    """Return the HTTP request for a chat completion, by the steps of ``base_llm_http_handler.completion``."""
    config = _chat_config(spec, model)
    omitted_key = REASONING_ITEMS  # only the Responses API has this key
    original_messages = [
        {key: value for key, value in one.items() if value is not None and key != omitted_key} for one in messages
    ]
    # A copy, because LiteLLM 1.106 changes its arguments, and returns a body with parts of them
    messages = copy.deepcopy(original_messages)
    keywords, extra = _split_parameters(config, parameters)
    keywords_json = json.dumps(keywords)  # not sorted, because a model writes properties in the order of the schema
    optional_params = copy.deepcopy(_convert_parameters(spec.litellm_provider, model, endpoint.version, keywords_json))
    extra_by_litellm = optional_params.pop("extra_body", None) or {}
    optional_params.pop("fake_stream", None)  # for LiteLLM's own handler
    litellm_params = {"api_base": endpoint.base_url, "custom_llm_provider": spec.litellm_provider}
    arguments: dict[str, Any] = {"model": model, "optional_params": optional_params, "litellm_params": litellm_params}
    if spec.api.chat_path:
        url = endpoint.base_url + spec.api.chat_path.format(model=quote(model, safe=""), version=endpoint.version)
    else:
        key = endpoint.key or _NO_KEY
        url = config.get_complete_url(api_base=endpoint.base_url, api_key=key, stream=True, **arguments)
    body = config.transform_request(messages=messages, headers={}, **arguments)
    if not spec.dialect.format_options:
        _restore_omitted(body, original_messages, keywords)
    return HttpRequest(url=str(url), body={**body, **extra_by_litellm, **extra})


def _split_parameters(config: Any, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split parameters into keywords and the fields of ``extra_body``. A pydantic class becomes its JSON schema."""
    keywords = dict(parameters)
    extra = {key: value for key, value in keywords.pop("extra_body", {}).items() if key != "model"}
    if isinstance(keywords.get("response_format"), type):
        keywords["response_format"] = config.get_json_schema_from_pydantic_object(keywords["response_format"])
    return keywords, extra


def _build_responses_request(
    spec: ProviderSpec, endpoint: Endpoint, model: str, messages: list[dict[str, Any]], parameters: Mapping[str, Any]
) -> HttpRequest:
    """Return the HTTP request to the Responses API.

    Raises:
        Unsupported: the API does not have a parameter, or LiteLLM omitted a part of a message or a tool.
    """
    keywords, extra = _split_parameters(_chat_config(spec, model), parameters)
    transformation = import_module("litellm.completion_extras.litellm_responses_transformation.transformation")
    fields = transformation.ResponsesAPIOptionalRequestParams.__annotations__.keys() | {"model", "input"}
    write = transformation.LiteLLMResponsesTransformationHandler().transform_request
    optional_params = copy.deepcopy(dict[str, Any](stream=True) | {**extra, **keywords})
    unused = {"litellm_params": {}, "headers": {}, "litellm_logging_obj": SimpleNamespace()}
    written = write(model=model, messages=copy.deepcopy(messages), optional_params=optional_params, **unused)
    body = {name: value for name, value in written.items() if name in fields}
    body |= {name: extra[name] for name in extra.keys() - _RENAMED.keys() - {"text"}}
    omitted = tuple(name for name in keywords if _RENAMED.get(name, name) not in body)
    strings = tuple(strings_of(body))
    verbatim = [keywords[name] for name in ("tools", "tool_choice", "response_format") if name in keywords]
    parts = (part for message in messages for part in parts_of(message) if message.get("content"))
    if omitted or not (set(strings_of(verbatim)) <= {*strings} and all(_is_written(part, strings) for part in parts)):
        names = ", ".join(omitted) or "a part of a message or of a tool"
        error = errors.Unsupported(f"the Responses API does not support {names}; nothing was sent")
        error.hint, error.params = f"Leave it out, or set {spec.variable('api')}=chat", omitted
        raise error
    path = str(spec.api.responses_path).format(version=endpoint.version)
    return HttpRequest(url=endpoint.base_url + path, body=body)


def _restore_omitted(body: dict[str, Any], messages: list[dict[str, Any]], parameters: Mapping[str, Any]) -> None:
    """Restore the caller's keywords and parts of messages that LiteLLM omitted or changed.

    The server then decides whether to reject them. Defaults of this package and renamed parameters are not restored.
    ``messages`` and ``parameters`` are those that were passed to LiteLLM.
    """
    parts = [part for message in messages for part in parts_of(message) if isinstance(message.get("content"), list)]
    body_strings = tuple(strings_of(body["messages"])) if parts else ()
    lost = any(not _is_written(part, body_strings) for part in parts)
    renamed = [body[name] for name in body.keys() - parameters.keys() - _NEVER_RESTORED]
    missing = {
        name: value
        for name, value in parameters.items()
        if not (name in _NEVER_RESTORED or is_removable(value) or value in (body.get(name), "auto", *renamed))
        and (name not in body or isinstance(value, float | int))
    }
    if lost or missing:
        body |= {"messages": messages, **missing}


def _is_written(part: Mapping[str, Any], body_strings: tuple[str, ...]) -> bool:
    """Return whether the strings of a body contain the content of a part. LiteLLM may join texts, or extend a URL."""
    is_text = part.get("type") == "text"
    content = part.get("text") if is_text else [value for key, value in part.items() if key != "type"]
    payload = max(strings_of(content, with_keys=False), key=len, default="")
    return any(payload in text if is_text else text.startswith(payload) for text in body_strings)


@lru_cache(maxsize=256)
def _convert_parameters(litellm_provider: str, model: str, version: str | None, keywords_json: str) -> dict[str, Any]:
    """Convert OpenAI's parameters to those of a provider of LiteLLM.

    The server, not LiteLLM's price map, decides whether a model supports tools or schemas. If LiteLLM refuses them, or
    replaces a schema by a tool ("json_mode"), they are returned in OpenAI's format.

    Cached, because LiteLLM may search its whole price map a dozen times. For Fireworks, the search takes 3 ms, and
    would block the event loop.
    """
    options = {"stream": True, "drop_params": False, "api_version": version}
    convert = partial(_load().utils.get_optional_params, model=model, custom_llm_provider=litellm_provider, **options)
    parameters, optional_params = json.loads(keywords_json), dict[str, Any](json_mode=True)
    with suppress(_load().exceptions.UnsupportedParamsError):
        optional_params = convert(**parameters)
    if "json_mode" in optional_params:
        unconverted = {name: parameters.pop(name) for name in _LEFT_TO_SERVER if name in parameters}
        optional_params = convert(**parameters) | unconverted
    return optional_params


def _chat_config(spec: ProviderSpec, model: str) -> Any:
    litellm = _load()
    provider = litellm.types.utils.LlmProviders(spec.litellm_provider)
    return litellm.utils.ProviderConfigManager.get_provider_chat_config(model, provider)


def _convert_error(error: Exception, parameters: Mapping[str, Any]) -> LLMError:
    """Return the LLMError for an exception of LiteLLM, without the exception's message, which may quote the request."""
    if isinstance(error, LLMError):
        return error
    message = str(getattr(error, "message", error)) if _error_class_of(error) is errors.Unsupported else ""
    named_parameters = tuple(name for name in parameters if name in message)
    what = f"LiteLLM cannot write the request for this provider ({type(error).__name__})"
    hint = "Check roles, contents, tool calls and image formats of the messages, or try another provider"
    if message:
        what = "the model does not support a parameter of the request, according to LiteLLM's table"
        hint = f"Leave out {', '.join(named_parameters) or 'some keywords of the call'}"
    unsupported = errors.Unsupported(what, hint=hint)
    unsupported.params = named_parameters
    return unsupported


def _prepare(spec: ProviderSpec, endpoint: Endpoint) -> None:
    """Write a request that is not sent, so that LiteLLM does its imports and fills its caches in this thread."""
    with _lock:
        if not is_prepared(spec):
            with suppress(errors.Unsupported):  # raised if LiteLLM lacks these parameters for the vendor
                parameters = {"temperature": 0.0, "max_tokens": 1}
                build_http_request(spec, endpoint, "-", [{"role": "user", "content": "-"}], parameters)
            _prepared.add(spec.litellm_provider)


@cache
def _load() -> Any:
    """Import LiteLLM, and switch off its downloads, its messages and its logging of prompts."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import litellm  # noqa: PLC0415  # the import takes seconds, and only a request needs it

    litellm.drop_params = False  # LITELLM_DROP_PARAMS would drop a keyword silently
    litellm.suppress_debug_info = True
    litellm.redact_messages_in_exceptions = True
    litellm.turn_off_message_logging = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.WARNING)  # 1.106 writes whole prompts at DEBUG
    return litellm
