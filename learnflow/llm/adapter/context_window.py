"""Check whether a request fits a provider and its model: capabilities, images, and the context length.

The router calls ``lacks`` to choose a provider. An attempt uses a ``ContextBudget`` before the request, after a
refusal, and after the response. An unknown capability or context length refuses no request.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterable, Mapping, Sequence
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
from .options import messages_of, parts_of, text_of
from .request import Request

# A prompt was certainly cut if it is large and the server read far fewer tokens than it has words. Tokenizers that join
# words make a third fewer tokens than words, templates omit old thinking, and small prompts consist mostly of template.
_MIN_CUT_TOKENS: Final = 1000
_MAX_CUT_SHARE: Final = 0.5
_TIGHT_SHARE: Final = 0.25  # of the ceiling
_MARGIN_TOKENS: Final = 8  # a template may add them to the server's count
_LOAD_FAILED_STATUS: Final = 500  # a gateway sends 502 or 504
_IMAGE_TOKENS: Final = 1024  # the most for one image
_MESSAGE_TOKENS: Final = 8  # of the template around a message
_MIN_LEARNED_TOKENS: Final = 100  # a shorter prompt consists mostly of template
_CJK: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_MAX_CJK_CHARS: Final = 6  # in one token

_ratios: Final = register("tokens per word", dict[tuple[str, str], float](), learned=True)
_requested: Final = register("requested context lengths", dict[tuple[str, str], int](), learned=True)


def at_most(texts: Iterable[str], images: int = 0, messages: int = 0) -> int:
    """Return a high estimate of a prompt's tokens: 3 ASCII characters a token, 1.5 other characters a token."""
    total = 0.0
    for text in texts:
        plain = len(text.encode("ascii", "ignore"))
        total += plain / 3 + (len(text) - plain) / 1.5
    return int(total) + images * _IMAGE_TOKENS + messages * _MESSAGE_TOKENS


def at_least(texts: Iterable[str]) -> int:
    """Return a low estimate of a prompt's tokens: one a word, because common tokenizers join no words."""
    return sum(
        len(text.split()) + (0 if text.isascii() else len(_CJK.findall(text)) // _MAX_CJK_CHARS) for text in texts
    )


def requested(base: str, model: str) -> int | None:
    """Return the context length that this process requested last.

    Args:
        base: the base URL of the server.
        model: the name of the model on the server.
    """
    return _requested.get((base, model))


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """The requirements of a request: names of capabilities, and a low estimate of the prompt's tokens."""

    capabilities: tuple[str, ...] = ()
    tokens: int = 0


def needs_of(call: Call) -> Needs:
    """Return the requirements of a call."""
    texts, images = list[str](), False
    for message in messages_of(call.prompt):
        for part in parts_of(message):
            kind = part.get("type")
            images = images or (isinstance(kind, str) and "image" in kind)
            texts.append(text_of(part))
    response_format = call.options.get("response_format")
    schema = isinstance(response_format, Mapping) and response_format.get("type") == "json_schema"
    required = {"vision": images, "tools": call.options.get("tools"), "json_schema": schema}
    return Needs(capabilities=tuple(name for name, value in required.items() if value), tokens=at_least(texts))


def lacks(needs: Needs, capabilities: Mapping[str, Any]) -> list[str]:
    """Return descriptions of the requirements that a provider certainly does not meet."""
    lacking = [name for name in needs.capabilities if capabilities[name] is False]
    served = capabilities["context_served"]
    if served is not None and needs.tokens > served:
        lacking.append(f"context ({needs.tokens} tokens or more needed, {served} served)")
    return lacking


def unknown(needs: Needs, capabilities: Mapping[str, Any]) -> list[str]:
    """Return the required capabilities that are unknown."""
    return [name for name in needs.capabilities if capabilities[name] is None]


class ContextBudget:
    """The context length and the limit of the answer of one request to one model.

    If the server accepts a context length with a request (``ServerSupport.context_length``), it is chosen like this:

    - The operator's (``<NAME>_CONTEXT``), if set.
    - Else the loaded one, if the request fits.
    - Else one that the request fits. The server loads the model again, and later requests of this process use it, too.

    If the server refuses the prompt as too long, the request is retried once, with a context length for the server's
    count. If the server cannot load the model with a context length, the error names that length.

    Args:
        spec, base, catalog: of the provider.
        request: to be sent.
        model: the name of the model on the server.
        prefill: the beginning of an answer that the request continues.

    Attributes:
        context_length: to request, in tokens; None for the server's default.
        answer: the limit of the answer in tokens, if it is lower than the caller's ceiling.
        loads: the server loads the model before it responds.
        tight: less than a quarter of the ceiling is left.
    """

    def __init__(
        self, spec: ProviderSpec, base: str, catalog: ModelCatalog, request: Request, model: str, prefill: str = ""
    ) -> None:
        self._spec, self._base, self._catalog, self._request, self._model = spec, base, catalog, request, model
        self._texts = [*request.texts, prefill] if prefill else request.texts
        self._prefill = [{"role": "assistant", "content": prefill}] if prefill else []
        self._described = Model(name=model)
        self._chooses = spec.server.context_length is not None and not request.own_context
        self._stated: int | None = catalog.stated.get("context_served")
        self._retried = False
        self._before_retry: int | None = None  # the length that this process requested before the retry
        self.context_length: int | None = None
        self.answer: int | None = None
        self.loads = self.tight = False

    async def prepare(self, within: float) -> str | None:
        """Check whether the request fits, and adjust its limits. Return a description of the adjustment; None if none.

        Args:
            within: seconds for a probe.

        Raises:
            Unsupported: the request has images, and the model does not support them.
            ContextOverflow: the prompt is certainly longer than the context length of the model.
        """
        began = asyncio.get_running_loop().time()
        try:
            return await self._check(within)
        except (errors.Unsupported, errors.ContextOverflow):
            if not self._spec.local or self._catalog.is_newer(self._model, began):
                raise
        self._catalog.forget()  # the server may have been restarted with another model or context length
        return await self._check(within)

    async def _check(self, within: float) -> str | None:
        request, catalog, why = self._request, self._catalog, None
        if self._chooses or request.images or (request.ceiling and self._spec.local) or catalog.loads_models:
            max_age_s = MAX_AGE_S if catalog.loads_models else math.inf
            self._described = await catalog.describe(self._model, within, max_age_s)
            if request.images and self._catalog.capabilities(self._model)["vision"] is False:
                vision_model, capabilities = map(self._spec.variable, ("vision_model", "capabilities"))
                hint = f"Set {vision_model}, or {capabilities}=vision if the model supports images"
                what = "the model does not support images; nothing was sent"
                raise errors.Unsupported(what, model=self._model, hint=hint)
            why = await self._choose() if self._chooses else None
        self.loads = self._catalog.is_cold(self._model)
        limit = None if request.ceiling is None else await self._answer_limit()
        return "; ".join(filter(None, (why, self._lower_answer(limit)))) or None

    async def _choose(self) -> str | None:
        """Choose the context length. Return a description of the change; None if the loaded one stays."""
        limit, least = self._stated or self._described.known.get("context"), at_least(self._texts)
        if limit and least > limit:
            raise _overflow(f"the prompt has at least {least} tokens, the context length is {limit}", least, limit)
        self.context_length = self._loaded
        return self._request_length(self._fitting(self._high_estimate))

    @property
    def _loaded(self) -> int | None:
        """Return the context length that the server has loaded, or will load; None if unknown."""
        lengths = requested(self._base, self._described.name), self._described.known.get("context_served")
        return self._stated or max(filter(None, lengths), default=None)

    def _fitting(self, prompt: int, loaded: int | None = None, *, limited: bool = True) -> int | None:
        """Return the context length for a prompt of so many tokens and its answer.

        With ``limited``, it is at most the context length of the model's training.
        """
        assert self._spec.server.context_length  # noqa: S101  # ``_chooses`` is true
        if self._stated:
            return self._stated
        need = prompt + int(self._request.sampling.get("max_tokens", 0))
        trained = self._described.known.get("context") if limited else None
        return self._spec.server.context_length(need, loaded or self._loaded, trained)

    def _request_length(self, length: int | None) -> str | None:
        """Request this context length. Return a description of the change; None if it is the same."""
        before = self.context_length
        if length is not None:
            self.context_length = _requested[self._base, self._described.name] = length
        if length in (None, before):
            return None
        return f"with a context of {length} tokens instead of {before or 'the default'}: the server reloads the model"

    async def _answer_limit(self) -> int | None:
        """Return the most tokens that the answer can have; None if unknown."""
        if not self._spec.local:
            await asyncio.to_thread(model_prices.price_map)  # a tenth of a second, once
        capabilities = self._catalog.capabilities(self._model)
        length = None if self._request.own_context else self.context_length or capabilities["context_served"]
        left = length - await self._prompt_tokens(length) if length else 0
        return min((limit for limit in (capabilities["max_output"], left) if limit and limit > 0), default=None)

    async def _prompt_tokens(self, length: int) -> int:
        """Return the tokens of the prompt: the server's count if they may not fit, else an estimate.

        Raises:
            ContextOverflow: the server counted more tokens than the context length.
        """
        count, client = self._spec.server.count_tokens, self._catalog.client
        fits = self._high_estimate + (self._request.ceiling or 0) <= length
        counted = 0
        if not (fits or count is None or self._request.images or client.stopped or client.replays):
            with suppress(LLMError, TimeoutError):  # the estimate is good enough
                async with asyncio.timeout(QUICK_PROBE_S):
                    messages = [*self._request.messages, *self._prefill]
                    counted = await count(client, self._model, messages, self._request.tools)
                    self._learn(self._texts, counted)
        if counted >= length:
            raise _overflow(f"the prompt has {counted} tokens, the context length is {length}", counted, length)
        ratio = _ratios.get((self._base, self._model), 1.0)
        return counted + _MARGIN_TOKENS if counted else int(at_least(self._texts) * ratio)

    def _learn(self, texts: Sequence[str], tokens: int) -> None:
        """Record the server's count for a prompt, which improves later estimates."""
        least, key = at_least(texts), (self._base, self._model)
        if least >= _MIN_LEARNED_TOKENS:
            _ratios[key] = max(tokens / least, _ratios.get(key, 1.0))

    def _lower_answer(self, limit: int | None) -> str | None:
        """Lower the ceiling to so many tokens. Return a description of the change; None if it is not lower."""
        before = self.answer or self._request.ceiling
        if limit is None or before is None or limit >= before:
            return None
        self.answer = limit
        self.tight = limit < (self._request.ceiling or 0) * _TIGHT_SHARE
        return f"max_tokens={limit} instead of {before}, because the context has no more room"

    def adjust_after(self, error: LLMError) -> str | None:
        """Adjust the limits after a refusal. Return a description of the change; None if a retry cannot help.

        Raises:
            ContextOverflow, ServerFailed: the server could not load the model with the context length of the request.
        """
        if not self._chooses:
            left = (error.window or 0) - (error.needed or 0) if isinstance(error, errors.ContextOverflow) else 0
            return self._lower_answer(left) if left > 0 else None
        if isinstance(error, errors.ContextOverflow):
            return self._lengthen_after(error)
        failed = isinstance(error, errors.ServerFailed) and error.status == _LOAD_FAILED_STATUS
        if failed and self.context_length not in (None, self._described.known.get("context_served")):
            raise self._not_loaded(error)
        return None

    def _lengthen_after(self, error: errors.ContextOverflow) -> str | None:
        """Request a context length for the server's count, or without a count the next longer one. Do it once."""
        sent, key = self.context_length, (self._base, self._described.name)
        if not self._retried:
            self._retried, self._before_retry = True, _requested.get(key)
            needed = error.needed or max(self._high_estimate, (sent or 0) + 1)
            if why := self._request_length(self._fitting(needed, sent or error.window or 1)):
                return why
        elif sent and _requested.get(key) == sent:  # later requests must not inherit a length that did not help
            _requested.pop(key)
            if self._before_retry:
                _requested[key] = self._before_retry
        if not error.needed:
            error.window = sent
            length = f"is {sent}" if sent else "is the server's default"
            error.what += f"; the prompt has about {self._high_estimate} tokens, the context length {length}"
        return None

    def _not_loaded(self, error: LLMError) -> LLMError:
        """Return the error for a context length that the server could not load.

        It opens a circuit breaker only if the operator configured that length.
        """
        key = self._base, self._described.name
        if _requested.get(key) == self.context_length:
            del _requested[key]  # shorter requests use the length that was loaded before
        kind = errors.ServerFailed if self._stated else errors.ContextOverflow
        failure = kind(
            f"the server could not load the model with a context of {self.context_length} tokens",
            hint=f"Set {self._spec.variable('context')} to a length that fits its memory, or choose a smaller model",
            status=error.status,
        )
        failure.server_message = error.server_message
        return failure

    def mark_loaded(self) -> None:
        """Record that the model is loaded, with this context length."""
        if self.loads or self.context_length:
            self._catalog.mark_loaded(self._model, self.context_length)

    async def loss(self, usage: Usage) -> LLMError | None:
        """Return an error if the server certainly dropped the beginning of the prompt; None otherwise.

        It is an error only for servers that are known to do so (``ServerSupport.drops_prompts``). An unknown server is
        probed.
        """
        read, least, catalog = usage.prompt_tokens, at_least(self._request.texts), self._catalog
        if read and not self._request.images:
            self._learn(self._texts, read)
        cut = read and least >= _MIN_CUT_TOKENS and read <= least * _MAX_CUT_SHARE
        if not (read and cut and self._spec.local) or usage.cached_tokens:
            return None
        if catalog.server is None:
            await catalog.health(QUICK_PROBE_S)
        server = catalog.server
        kind = server.kind if server else None
        drops = kind.server.drops_prompts if kind else None
        if not (server and kind and drops and drops(server.version, self._spec.dialect.parser is kind.dialect.parser)):
            return None
        what = f"the server dropped the beginning of the prompt: it read {read} of at least {least} tokens"
        return _overflow(what, least, read)

    @property
    def _high_estimate(self) -> int:
        """Return a high estimate of the tokens of the prompt."""
        return at_most(self._texts, self._request.images, len(self._request.messages))


def _overflow(what: str, needed: int, context_length: int) -> LLMError:
    error = errors.ContextOverflow(what)
    error.needed, error.window = needed, context_length
    return error
