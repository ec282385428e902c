"""The airlock: the only importer of LiteLLM, inside functions; quiet, offline, on our transport, without retries.

Must never read an answer (``wire`` does) or let an exception of LiteLLM's out.
The adapter calls ``ready`` and ``ask``; nobody else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, Final
from weakref import WeakKeyDictionary

from .. import errors
from ..base import Usage
from ..errors import LLMError
from ..specs import ProviderSpec
from ..transport import client, error_mapping
from ..transport.endpoint import Endpoint
from ..transport.exception_mapping import leaf_of
from ..transport.exchange import Exchange, Heard, current

# Read by LiteLLM when it is imported: no price map from GitHub, no .env, no blog posts (facts/litellm.md 1.6).
_ENVIRONMENT: Final = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_MODE": "PRODUCTION",
}
_NO_KEY: Final = "no-key"  # LiteLLM looks for one in the environment, anybody's, where it is given none
_SDK: Final = ("openai", "azure")  # prefixes that LiteLLM serves through the OpenAI SDK
# Requests that LiteLLM prepares at a time: milliseconds each, partly in threads that take the interpreter from the
# event loop. More of them all end later, and 200 stopped the loop for most of a second (benchmarks/README.md).
_AT_ONCE: Final = 2
_places: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
_lock = threading.Lock()
_warm: set[str] = set()
_leaving: set[asyncio.Future[object]] = set()  # calls whose callers have left


async def ready(spec: ProviderSpec) -> None:
    """Import LiteLLM and let it make one call of this row without a server, in a thread: seconds the first time."""
    if spec.litellm not in _warm:
        await asyncio.to_thread(_warm_up, spec)


async def ask(
    spec: ProviderSpec,
    endpoint: Endpoint,
    exchange: Exchange,
    model: str,
    messages: list[dict[str, Any]],
    parameters: dict[str, Any],
) -> LLMError | None:
    """Let LiteLLM make and send the request. Returns when the head of the answer is in ``exchange``.

    Returns:
        None where there is an answer to read, or why there is none.
    """
    litellm = _load()
    if spec.local:
        _register(f"{spec.litellm}/{model}")
    elif _mode(litellm, spec, model) != "chat":
        return errors.Unsupported(
            "this model is not served by chat completions", hint="Choose one that the chat API serves"
        )
    failed: LLMError | None = None
    place = _places.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(_AT_ONCE))
    await place.acquire()
    exchange.place = place
    token = current.set(exchange)
    try:
        await _unhurried(
            exchange,
            litellm.acompletion(
                model=f"{spec.litellm}/{model}",
                messages=messages,
                stream=True,
                api_base=endpoint.base,
                api_key=endpoint.key or _NO_KEY,
                api_version=endpoint.version,
                client=_client(spec.litellm, endpoint),
                max_retries=0,
                num_retries=0,
                drop_params=False,
                _skip_mcp_handler=True,  # tools need the mcp package otherwise (facts/litellm.md 0.5)
                **parameters,
            ),
        )
    except Heard:
        pass
    except Exception as error:  # noqa: BLE001  # whatever LiteLLM raises becomes ours, here and nowhere else
        failed = _failure(error, exchange, parameters)
    finally:
        current.reset(token)
        exchange.prepared()
    return None if exchange.body is not None else failed or _unanswered(exchange)


async def _unhurried(exchange: Exchange, call: Coroutine[Any, Any, object]) -> None:
    """Await LiteLLM's call. A caller who leaves is not kept waiting while it still prepares in its thread.

    It is left to come to its end by itself, for half-way it would leave coroutines behind; it will not be sent.
    """
    task = asyncio.ensure_future(call)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        exchange.failure = exchange.failure or errors.ConnectionFailed("the caller left")
        if exchange.connected:
            task.cancel()  # before that httpcore would keep the new connection for ever; it will not be sent on it
        _leaving.add(task)
        task.add_done_callback(_gone)
        raise
    finally:
        del task, call  # what ends the call holds them, and they hold the prompt


def _gone(task: asyncio.Future[object]) -> None:
    _leaving.discard(task)
    if not task.cancelled():
        task.exception()  # nobody is left to be told


def _mode(litellm: Any, spec: ProviderSpec, model: str) -> str:
    """How LiteLLM's table says that a cloud model is asked; "chat" where it does not know the model."""
    table = litellm.model_cost
    known = table.get(f"{spec.litellm}/{model}") or table.get(model) or {}
    return str(known.get("mode") or "chat")


def price(spec: ProviderSpec, model: str, usage: Usage) -> float | None:
    """US dollars for these tokens by LiteLLM's price map; None where it does not know the model or the tokens."""
    if usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    try:
        parts = _load().cost_per_token(
            model=f"{spec.litellm}/{model}",
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )
    except Exception:  # noqa: BLE001  # an unknown model raises, each version another class
        return None
    return float(sum(parts))


def _failure(error: Exception, exchange: Exchange, sent: dict[str, Any]) -> LLMError:
    """Ours for LiteLLM's: what the transport saw first, then the status and body, then LiteLLM's class."""
    if exchange.failure:
        return exchange.failure
    if exchange.status is not None:
        return error_mapping.refusal(exchange.status, exchange.refusal, exchange.headers, judged=error)
    kind = leaf_of(error)
    if issubclass(kind, errors.Unsupported):
        return kind(
            "LiteLLM knows that this model does not take a parameter of the request", hint=_parameters(error, sent)
        )
    what, hint = f"LiteLLM refused the request before sending it ({type(error).__name__})", ""
    if issubclass(kind, errors.Unavailable | errors.BrokenAnswer):  # it sent nothing: no outage of anybody's
        kind = errors.Unsupported
        hint = "Check the messages' roles, contents and image formats, or try another provider"
    return kind(what, hint=hint)


def _parameters(error: Exception, sent: dict[str, Any]) -> str:
    """Which of the parameters LiteLLM's sentence names; its words may hold more than names."""
    words = str(getattr(error, "message", error))
    return "Leave out " + ", ".join([name for name in sent if name in words] or ["some of its keywords"])


def _unanswered(exchange: Exchange) -> LLMError:
    return exchange.failure or errors.InvalidRequest("LiteLLM sent nothing for this request")


def _warm_up(spec: ProviderSpec) -> None:
    """One call through LiteLLM's whole path that touches no server: imports and caches are filled in this thread."""
    with _lock:
        if spec.litellm not in _warm:
            asyncio.run(_rehearse(spec))
            _warm.add(spec.litellm)


async def _rehearse(spec: ProviderSpec) -> None:
    address = Endpoint(root="http://localhost", base="http://localhost", version=spec.default_version)
    exchange = Exchange(address.origin, "", connect_timeout=1.0, dry=True)
    words = [{"role": "user", "content": "-"}]
    await ask(spec, address, exchange, "warm-up", words, {"temperature": 0.0, "max_tokens": 1})
    await client.prepare()


@cache
def _load() -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import litellm  # noqa: PLC0415  # seconds, and wanted only by who asks a model

    litellm.disable_hf_tokenizer_download = True
    litellm.suppress_debug_info = True
    litellm.redact_messages_in_exceptions = True
    litellm.turn_off_message_logging = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.WARNING)
    openai = logging.getLogger("openai")
    if openai.level == logging.NOTSET:  # at DEBUG it writes whole prompts; an application that asks for that says so
        openai.setLevel(logging.WARNING)
    return litellm


@cache
def _register(model: str) -> None:
    """Tell LiteLLM that a local model needs no look-up: it would ask localhost:11434, or search its prices in vain.

    Into its table by hand, because ``litellm.register_model`` itself begins by asking localhost:11434.
    """
    _load().model_cost.setdefault(model, {"litellm_provider": model.partition("/")[0], "mode": "chat"})


@cache
def _client(prefix: str, endpoint: Endpoint) -> Any:
    """The client that LiteLLM is given, on our transport."""
    _load()
    if prefix not in _SDK:
        from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler  # noqa: PLC0415

        return AsyncHTTPHandler(transport=client.Transport(), follow_redirects=False)
    import openai  # noqa: PLC0415

    common: dict[str, Any] = {"api_key": endpoint.key or _NO_KEY, "http_client": client.client(), "max_retries": 0}
    if prefix == "azure":
        return openai.AsyncAzureOpenAI(azure_endpoint=endpoint.base, api_version=endpoint.version, **common)
    return openai.AsyncOpenAI(base_url=endpoint.base, **common)
