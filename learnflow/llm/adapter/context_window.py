"""Check whether a request fits a model: required capabilities, token estimates and the context length.

The router calls ``missing_requirements`` to choose a provider. Each attempt uses a ``ContextBudget``. An unknown
capability or context length never prevents a request.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from .. import errors
from ..base import Call
from ..completion import Usage
from ..errors import LLMError
from ..process import register
from ..provider_spec import Model, ProviderSpec
from ..servers import model_prices
from ..servers.model_catalog import MAX_AGE_S, QUICK_PROBE_S, ModelCatalog
from ..transport.client import Client
from .options import messages_of, parts_of, text_of
from .request import Request

_MIN_CHECKED_TOKENS: Final = 1000  # a shorter prompt is not checked for truncation
# A prompt counts as truncated if the server reports at most half as many tokens as the prompt has words. If the server
# reports more, the prompt may be complete, because some tokenizers need a third fewer tokens than words, and some chat
# templates omit old thinking.
_MAX_TRUNCATED_SHARE: Final = 0.5
# A warning is logged if ``max_tokens`` is lowered to less than this share of the caller's ``AtMost``.
_MIN_ANSWER_SHARE: Final = 0.25
_MARGIN_TOKENS: Final = 8  # reserve for the chat template's tokens that the server does not count
_LOAD_FAILED_STATUS: Final = 500  # if the server cannot load a model. 502 and 504 are errors of a gateway in front
_MAX_IMAGE_TOKENS: Final = 1024  # of one image
_MAX_TEMPLATE_TOKENS: Final = 8  # added to one message by the chat template
_MIN_LEARNED_TOKENS: Final = 100  # a shorter prompt does not update ``_tokens_per_word``, because it is mostly template
_CAPABILITY_NOUNS: Final = {"vision": "images", "tools": "tools", "json_schema": "a JSON schema"}
_CJK: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_MAX_CJK_CHARS_PER_TOKEN: Final = 6

# The key of both mappings is (base URL of the server, name of the model).
_tokens_per_word: Final = register("tokens per word", dict[tuple[str, str], float](), learned=True)
_requested_lengths: Final = register("requested context lengths", dict[tuple[str, str], int](), learned=True)


def estimate_max_tokens(texts: Iterable[str], images: int = 0, messages: int = 0) -> int:
    """Return an upper estimate of a prompt's tokens: one token for 3 ASCII or 1.5 other characters."""
    total = 0.0
    for text in texts:
        ascii_chars = len(text.encode("ascii", "ignore"))
        total += ascii_chars / 3 + (len(text) - ascii_chars) / 1.5
    return int(total) + images * _MAX_IMAGE_TOKENS + messages * _MAX_TEMPLATE_TOKENS


def estimate_min_tokens(texts: Iterable[str]) -> int:
    """Return a lower estimate of a prompt's tokens: one token for each word or 6 CJK characters.

    In most tokenizers, a token is at most one word.
    """
    cjk_chars = ((text, 0 if text.isascii() else len(_CJK.findall(text))) for text in texts)
    return sum(len(text.split()) + count // _MAX_CJK_CHARS_PER_TOKEN for text, count in cjk_chars)


def requested_context(base: str, model: str) -> int | None:
    """Return the context length that this process last requested for a model; None if unknown.

    ``base`` is the server's base URL.
    """
    return _requested_lengths.get((base, model))


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """The requirements of a request."""

    capabilities: tuple[str, ...] = ()  # keys of ``Capabilities``
    tokens: int = 0  # a lower estimate of the prompt's tokens


def requirements_of(call: Call) -> Requirements:
    """Return the requirements of a call."""
    parts = [part for message in messages_of(call.prompt) for part in parts_of(message)]
    images, options = any("image" in str(part.get("type")) for part in parts), call.options
    names = required_capabilities(images, options.get("tools"), options.get("response_format"))
    return Requirements(capabilities=names, tokens=estimate_min_tokens(map(text_of, parts)))


def required_capabilities(images: object, tools: object, response_format: object) -> tuple[str, ...]:
    """Return the names of the required capabilities. A falsy argument requires no capability."""
    needs_schema = isinstance(response_format, Mapping) and response_format.get("type") == "json_schema"
    required = {"vision": images, "tools": tools, "json_schema": needs_schema}
    return tuple(name for name, value in required.items() if value)


def missing_requirements(required: Requirements, capabilities: Mapping[str, Any]) -> list[str]:
    """Describe the requirements that a model with these capabilities certainly does not meet."""
    lacking = [name for name in required.capabilities if capabilities[name] is False]
    served = capabilities["context_served"]
    if served is not None and required.tokens > served:
        lacking.append(f"context ({required.tokens} tokens or more needed, {served} served)")
    return lacking


class ContextBudget:
    """Chooses the context length and the token limit of the answer for one request.

    Requests to some servers set the context length (``ServerSupport.choose_context_length``). The server reloads the
    model if the length changes. The requested length is the first of these:

    - the operator's setting ``<NAME>_CONTEXT``, if set,
    - the length with which the model is loaded, if the prompt and the answer fit,
    - a longer length, which later requests of this process use, too.

    If ``max_tokens`` is an ``AtMost``, two limits can lower it: the tokens that fit after the prompt, and the model's
    output limit.

    ``prefill`` is the text to continue, which the server reads after the prompt. It is "" for a new answer.

    Attributes:
        context_length: the context length to request, in tokens; None for the server's default.
        answer_limit: the ``max_tokens`` to send instead of the caller's; None to send the caller's.
        must_load_model: the server must load the model before it responds.
        is_answer_limit_low: ``answer_limit`` is less than a quarter of the caller's ``max_tokens``.
    """

    # ``prepare`` sets these
    _model_name: str
    _model: Model
    _began: float

    def __init__(
        self, spec: ProviderSpec, catalog: ModelCatalog, client: Client, request: Request, prefill: str = ""
    ) -> None:
        self._spec, self._catalog, self._client, self._request = spec, catalog, client, request
        self._base = client.endpoint.base_url
        self._texts = [*request.texts, prefill] if prefill else request.texts
        self._prefill = [{"role": "assistant", "content": prefill}] if prefill else []
        self._chooses_length = spec.server.choose_context_length is not None and not request.sets_context_length
        self._configured_length: int | None = catalog.overrides.get("context_served")
        self._retried = False
        self.context_length: int | None = None
        self.answer_limit: int | None = None
        self.must_load_model = self.is_answer_limit_low = False

    async def prepare(self, model: str, timeout_s: float) -> str | None:
        """Check whether the request fits the model. Adjust the context length and the token limit.

        Return a description of the changes; None if nothing changed. ``timeout_s`` is the time limit of a
        probe in seconds.

        Raises:
            Unsupported: the model does not support a feature of the request: images, tools or a JSON schema.
            ContextOverflow: the prompt is certainly longer than the model's context length.
        """
        self._model_name, self._model = model, Model(name=model)
        self._began = asyncio.get_running_loop().time()
        try:
            return await self._check(timeout_s)
        except (errors.Unsupported, errors.ContextOverflow):
            if not self._spec.local or self._catalog.was_probed_since(model, self._began):
                raise
        self._catalog.clear()  # the server may have been restarted with another model or context length
        return await self._check(timeout_s)

    async def _check(self, timeout_s: float) -> str | None:
        request, catalog, adjustment = self._request, self._catalog, None
        required = required_capabilities(request.image_count, request.tools, request.response_format)
        depends_on_server = self._spec.local and (request.flexible_max_tokens or required)
        if self._chooses_length or request.image_count or depends_on_server or catalog.loads_models:
            max_age_s = MAX_AGE_S if catalog.loads_models else math.inf
            self._model = await catalog.describe(self._model_name, timeout_s, max_age_s)
            adjustment = await self._prepare_context_length() if self._chooses_length else None
        for name in required:
            if name in catalog.lacking_capabilities(self._model_name):
                alternative = f"{self._spec.variable('vision_model')}, or " if name == "vision" else ""
                hint = f"Set {alternative}{self._spec.variable('capabilities')}={name} if the model supports it"
                what = f"the model does not support {_CAPABILITY_NOUNS[name]}; nothing was sent"
                raise errors.Unsupported(what, model=self._model_name, hint=hint)
        self.must_load_model = self._catalog.is_cold(self._model_name)
        limit = None if request.flexible_max_tokens is None else await self._find_answer_limit()
        return "; ".join(filter(None, (adjustment, self._lower_answer_limit(limit)))) or None

    async def _prepare_context_length(self) -> str | None:
        """Choose the context length to request. Return a description of the change; None if nothing changed."""
        length_differs = self._choose_length(self._max_prompt_tokens) != self._loaded_length
        if length_differs and not self._catalog.was_probed_since(self._model_name, self._began):
            self._catalog.clear()  # another client may have loaded the model with a longer length
            self._model = await self._catalog.describe(self._model_name)
        limit = self._configured_length or self._model.capabilities.get("context")
        min_tokens = estimate_min_tokens(self._texts)
        if limit and min_tokens > limit:
            what = f"the prompt has at least {min_tokens} tokens, the context length is {limit}"
            raise _overflow_error(what, min_tokens, limit)
        self.context_length = self._loaded_length
        return self._use_length(self._choose_length(self._max_prompt_tokens))

    @property
    def _key(self) -> tuple[str, str]:
        return self._base, self._model.name

    @property
    def _loaded_length(self) -> int | None:
        """Return the context length with which the server has loaded, or will load, the model; None if unknown."""
        lengths = _requested_lengths.get(self._key), self._model.capabilities.get("context_served")
        return self._configured_length or max(filter(None, lengths), default=None)

    def _choose_length(self, prompt_tokens: int, loaded_length: int | None = None) -> int | None:
        """Return a context length for a prompt and its answer; None for the server's default.

        After an error response, ``loaded_length`` replaces ``_loaded_length``.
        """
        if self._configured_length:
            return self._configured_length
        assert self._spec.server.choose_context_length  # noqa: S101  # ``_chooses_length`` is true
        needed_tokens = prompt_tokens + int(self._request.sampling.get("max_tokens", 0))
        max_length = self._model.capabilities.get("context")
        return self._spec.server.choose_context_length(needed_tokens, loaded_length or self._loaded_length, max_length)

    def _use_length(self, length: int | None) -> str | None:
        """Use a context length for this request and later requests.

        Return a description of the change; None if nothing changed.
        """
        before = self.context_length
        if length is not None:
            self.context_length = _requested_lengths[self._key] = length
        if length in (None, before):
            return None
        return f"with a context of {length} tokens instead of {before or 'the default'}: the server reloads the model"

    async def _find_answer_limit(self) -> int | None:
        """Return how many tokens fit after the prompt, at most the model's output limit; None if unknown."""
        if not self._spec.local:
            # ``capabilities`` reads the price map. Load the map in a thread, because the first load takes 0.1 s
            await asyncio.to_thread(model_prices.price_map)
        capabilities = self._catalog.capabilities(self._model_name)
        length = None if self._request.sets_context_length else self.context_length or capabilities["context_served"]
        tokens_left = length - await self._count_prompt_tokens(length) if length else 0
        return min((limit for limit in (capabilities["max_output"], tokens_left) if limit and limit > 0), default=None)

    async def _count_prompt_tokens(self, length: int) -> int:
        """Return the prompt's tokens: an estimate, or the server's count if the request might exceed ``length``.

        Raises:
            ContextOverflow: the server's count is ``length`` or more.
        """
        count_tokens, client = self._spec.server.count_tokens, self._client
        fits = self._max_prompt_tokens + (self._request.flexible_max_tokens or 0) <= length
        count: int | None = None
        if not (fits or count_tokens is None or self._request.image_count or client.server_stopped or client.replays):
            with suppress(LLMError, TimeoutError):  # if the server cannot count, estimate
                async with asyncio.timeout(QUICK_PROBE_S):
                    messages = [*self._request.messages, *self._prefill]
                    count = await count_tokens(client, self._model_name, messages, self._request.tools)
                    self._record_token_count(count)
        if count is not None and count >= length:
            raise _overflow_error(f"the prompt has {count} tokens, the context length is {length}", count, length)
        if count is not None:
            return count + _MARGIN_TOKENS
        return int(estimate_min_tokens(self._texts) * _tokens_per_word.get((self._base, self._model_name), 1.0))

    def _record_token_count(self, tokens: int) -> None:
        """Record the server's token count of this prompt, to improve later estimates."""
        min_tokens, key = estimate_min_tokens(self._texts), (self._base, self._model_name)
        if min_tokens >= _MIN_LEARNED_TOKENS:
            _tokens_per_word[key] = max(tokens / min_tokens, _tokens_per_word.get(key, 1.0))

    def _lower_answer_limit(self, limit: int | None) -> str | None:
        """Lower ``answer_limit`` to ``limit``. Return a description of the change; None if ``limit`` is not lower."""
        before = self.answer_limit or self._request.flexible_max_tokens
        if limit is None or before is None or limit >= before:
            return None
        self.answer_limit = limit
        self.is_answer_limit_low = limit < (self._request.flexible_max_tokens or 0) * _MIN_ANSWER_SHARE
        return f"max_tokens={limit} instead of {before}, because no more fit the context or the model's output limit"

    def adjust_after(self, error: LLMError) -> str | None:
        """Adjust the limits after an error response. Return a description of the change; None if nothing changed.

        Raises:
            ContextOverflow, ServerFailed: the server could not load the model with the requested context length.
        """
        if isinstance(error, errors.ContextOverflow):
            if self._chooses_length:
                return self._request_longer_context(error)
            tokens_left = (error.context_length or 0) - (error.prompt_tokens or 0)
            return self._lower_answer_limit(tokens_left) if tokens_left > 0 else None
        if not self._chooses_length:
            return None
        failed = isinstance(error, errors.ServerFailed) and error.status == _LOAD_FAILED_STATUS
        if failed and self.context_length not in (None, self._model.capabilities.get("context_served")):
            raise self._load_error(error)
        return None

    def _request_longer_context(self, error: errors.ContextOverflow) -> str | None:
        """Request a longer context length, at most once. Return a description of the change.

        Return None if the length cannot grow, or after a failed retry. In both cases, if the error has no token count,
        add the context length and an estimate of the prompt's tokens to its message.
        """
        sent_length = self.context_length
        if not self._retried:
            self._retried = True
            # If the error has no token count, request a longer context length than the failed length
            tokens = error.prompt_tokens or max(self._max_prompt_tokens, (sent_length or 0) + 1)
            if adjustment := self._use_length(self._choose_length(tokens, sent_length or error.context_length or 1)):
                return adjustment
        else:
            self._forget_length()
        if not error.prompt_tokens:
            error.context_length = sent_length
            length = f"is {sent_length}" if sent_length else "is the server's default"
            error.what += f"; the prompt has about {self._max_prompt_tokens} tokens, the context length {length}"
        return None

    def _load_error(self, error: LLMError) -> LLMError:
        """Return the error for a context length with which the server could not load the model.

        The error is a ServerFailed if the operator configured the length, because every request would fail. This error
        opens the circuit breaker. If no length is configured, the error is a ContextOverflow.
        """
        self._forget_length()
        error_class = errors.ServerFailed if self._configured_length else errors.ContextOverflow
        failure = error_class(
            f"the server could not load the model with a context of {self.context_length} tokens",
            hint=f"Set {self._spec.variable('context')} to a length that fits its memory, or choose a smaller model",
            status=error.status,
        )
        failure.server_message = error.server_message
        return failure

    def _forget_length(self) -> None:
        """Forget the requested context length, because the request failed. Later requests use the loaded length."""
        if _requested_lengths.get(self._key) == self.context_length:
            _requested_lengths.pop(self._key, None)

    def mark_loaded(self) -> None:
        """Record that the server has loaded the model with the requested context length."""
        if self.must_load_model or self.context_length:
            self._catalog.mark_loaded(self._model_name, self.context_length)

    async def check_usage(self, usage: Usage) -> None:
        """Check the token counts of a response, because a local server may have dropped the beginning of the prompt.

        Raises:
            ContextOverflow: the server read far less than the prompt, and it is of a kind that truncates prompts
                silently (``ServerSupport.truncates_prompts``), for example Ollama.
        """
        catalog, read_tokens = self._catalog, usage.prompt_tokens or 0
        min_tokens = estimate_min_tokens(self._request.texts)
        if read_tokens and not self._request.image_count:
            self._record_token_count(read_tokens)
        is_truncated = min_tokens >= _MIN_CHECKED_TOKENS and 0 < read_tokens <= min_tokens * _MAX_TRUNCATED_SHARE
        if not (is_truncated and self._spec.local) or usage.cached_tokens:
            return
        if catalog.server is None:
            await catalog.health(QUICK_PROBE_S)
        server, server_spec = catalog.server, catalog.server and catalog.server.spec
        if not (server and server_spec and server_spec.server.truncates_prompts):
            return
        if server_spec.server.truncates_prompts(
            server.version, self._spec.dialect.parser is server_spec.dialect.parser
        ):
            counts = f"{read_tokens} of at least {min_tokens} tokens"
            what = f"the server dropped the beginning of the prompt: it read {counts}"
            raise _overflow_error(what, min_tokens, read_tokens)

    @property
    def _max_prompt_tokens(self) -> int:
        """Return an upper estimate of the prompt's tokens."""
        return estimate_max_tokens(self._texts, self._request.image_count, len(self._request.messages))


def _overflow_error(what: str, prompt_tokens: int, context_length: int) -> LLMError:
    error = errors.ContextOverflow(what)
    error.prompt_tokens, error.context_length = prompt_tokens, context_length
    return error
