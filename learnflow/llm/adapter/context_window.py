"""Whether a request fits a provider and its model: required capabilities, images, and the context length.

Must never send a prompt, or refuse a request because something is unknown.
The router calls ``lacks`` when it chooses; an attempt uses a ``ContextBudget`` before, after a refusal, and at the end.
"""

from __future__ import annotations

import asyncio
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
from ..servers.model_catalog import QUICK_S, ModelCatalog
from .options import messages_of, parts_of, text_of
from .request import Request

# When a count of tokens is beyond doubt: a large prompt, of which far less was read than it has words. Tokenizers that
# join words make a third fewer tokens than words; templates leave old thinking out; small prompts are mostly template.
_LARGE: Final = 1000  # tokens
_FAR_BELOW: Final = 0.5
_TIGHT: Final = 0.25  # of the ceiling
_MARGIN: Final = 8  # tokens that a template may add to what was counted
_NO_LOAD: Final = 500  # the status of a failed load; a gateway sends 502 or 504
_IMAGE: Final = 1024  # tokens that an image may take
_MESSAGE: Final = 8  # tokens of a template around a message
_LEARNS_FROM: Final = 100  # tokens: a shorter prompt is mostly template
_CJK: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_CJK_MOST: Final = 6  # characters of these scripts in one token, at the most

_ratios: Final = register("tokens for each word", dict[tuple[str, str], float](), learned=True)
_requested: Final = register("context lengths that were requested", dict[tuple[str, str], int](), learned=True)


def at_most(texts: Iterable[str], images: int = 0, messages: int = 0) -> int:
    """Estimate the tokens of a prompt high: three letters of English a token, one and a half of others."""
    total = 0.0
    for text in texts:
        plain = len(text.encode("ascii", "ignore"))
        total += plain / 3 + (len(text) - plain) / 1.5
    return int(total) + images * _IMAGE + messages * _MESSAGE


def at_least(texts: Iterable[str]) -> int:
    """Estimate the tokens of a prompt low: no usual tokenizer joins words across a space."""
    return sum(len(text.split()) + (0 if text.isascii() else len(_CJK.findall(text)) // _CJK_MOST) for text in texts)


def requested(base: str, model: str) -> int | None:
    """Return the context length that this process requested last for a model at an address."""
    return _requested.get((base, model))


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a request requires of a provider; ``tokens``: of its prompt, at least."""

    images: bool = False
    tools: bool = False
    schema: bool = False
    tokens: int = 0

    @property
    def named(self) -> list[str]:
        """The names of the required capabilities."""
        wanted = (("vision", self.images), ("tools", self.tools), ("json_schema", self.schema))
        return [name for name, needed in wanted if needed]


def needs_of(call: Call) -> Needs:
    """Return what a call requires of a provider."""
    texts, images = list[str](), False
    for message in messages_of(call.prompt):
        for part in parts_of(message):
            kind = part.get("type")
            images = images or (isinstance(kind, str) and "image" in kind)
            texts.append(text_of(part))
    wanted = call.options.get("response_format")
    schema = isinstance(wanted, Mapping) and wanted.get("type") == "json_schema"
    return Needs(images=images, tools=bool(call.options.get("tools")), schema=schema, tokens=at_least(texts))


def lacks(needs: Needs, capabilities: Mapping[str, Any]) -> list[str]:
    """Return what a provider certainly lacks for a request, in words. An unknown capability is not lacking."""
    lacking = [name for name in needs.named if capabilities[name] is False]
    served = capabilities["context_served"]
    if served is not None and needs.tokens > served:
        lacking.append(f"context ({needs.tokens} tokens or more needed, {served} served)")
    return lacking


def unknown(needs: Needs, capabilities: Mapping[str, Any]) -> list[str]:
    """Return the required capabilities that are unknown."""
    return [name for name in needs.named if capabilities[name] is None]


class ContextBudget:
    """Chooses the context length and the longest answer of one request to one model.

    The rule for a server that takes the context length with a request (``ProviderSpec.context_length``): the operator's
    (``<NAME>_CONTEXT``) if there is one. Otherwise the loaded one if the request fits it, else one that the request
    fits, which the server loads, and which later requests of this process keep. A refusal as too long is retried once,
    with a context length for the server's own count. A context that the server cannot load is an error with its size.

    Args:
        spec, base, catalog: of the provider.
        request, model: what is sent, and to which model.
        begun: the beginning of an answer that the request continues.

    Attributes:
        context_length: to request; None leaves it to the server.
        answer: the limit of tokens of the answer, if it is lower than the caller's ceiling.
        loads: the server has yet to load the model.
        tight: less than a quarter of the ceiling is left.
    """

    def __init__(
        self, spec: ProviderSpec, base: str, catalog: ModelCatalog, request: Request, model: str, begun: str = ""
    ) -> None:
        self._spec, self._base, self._catalog, self._request, self._model = spec, base, catalog, request, model
        self._texts = [*request.texts, begun] if begun else request.texts
        self._begun = [{"role": "assistant", "content": begun}] if begun else []
        self._known = Model(name=model)
        self._retried = False
        self.context_length: int | None = None
        self.answer: int | None = None
        self.loads = self.tight = False

    @property
    def _chooses(self) -> bool:
        """Whether the request carries a context length that the caller has not set."""
        return self._spec.server.context_length is not None and not self._request.own_context

    @property
    def _stated(self) -> int | None:
        return self._catalog.stated.get("context_served")

    async def before(self, within: float) -> str | None:
        """Look whether the request fits, for at most ``within`` seconds. Returns what was changed for it, in words.

        Raises:
            Unsupported: images for a model that cannot see.
            ContextOverflow: the prompt is certainly longer than anything the model was trained for.
        """
        request, why = self._request, None
        if self._chooses or request.images or (request.ceiling and self._spec.local):
            self._known = await self._catalog.describe(self._model, within)
            if request.images and self._catalog.capabilities(self._model)["vision"] is False:
                other, can = self._spec.variable("vision_model"), self._spec.variable("capabilities")
                raise errors.Unsupported(
                    "the model cannot see pictures; nothing was sent",
                    model=self._model,
                    hint=f"Set {other}, or {can}=vision if it can",
                )
            why = await self._choose() if self._chooses else None
        self.loads = self._catalog.is_cold(self._model)
        lower = None if request.ceiling is None else await self._room()
        return "; ".join(filter(None, (why, self._lowered(lower)))) or None

    async def _choose(self) -> str | None:
        """Choose the context length; returns the change in words, None if the loaded one stays."""
        first = requested(self._base, self._known.name) is None
        if first and self._fitting(self._about, limited=False) != self._loaded:
            self._catalog.forget()  # another client may have loaded more meanwhile
            self._known = await self._catalog.describe(self._model)
        limit, least = self._stated or self._known.known.get("context"), at_least(self._texts)
        if limit and least > limit:
            raise _overflow(f"the prompt has at least {least} tokens, the model takes {limit}", least, limit)
        self.context_length = self._loaded
        return self._lengthened(self._fitting(self._about))

    @property
    def _loaded(self) -> int | None:
        """The context length that the server has loaded, or will load; None if unknown."""
        lengths = requested(self._base, self._known.name), self._known.known.get("context_served")
        return self._stated or max(filter(None, lengths), default=None)

    def _fitting(self, prompt: int, loaded: int | None = None, *, limited: bool = True) -> int | None:
        """Return the context length for a prompt of so many tokens and its answer, limited to that of the training."""
        assert self._spec.server.context_length  # noqa: S101  # else there is nothing to choose
        if self._stated:
            return self._stated
        need = prompt + int(self._request.sampling.get("max_tokens", 0))
        trained = self._known.known.get("context") if limited else None
        return self._spec.server.context_length(need, loaded or self._loaded, trained)

    def _lengthened(self, length: int | None) -> str | None:
        """Request this context length; returns the change in words, None if there is none."""
        before = self.context_length
        if length is not None:
            self.context_length = _requested[self._base, self._known.name] = length
        if length in (None, before):
            return None
        return f"with a context of {length} tokens instead of {before or 'its own'}: it loads the model again"

    async def _room(self) -> int | None:
        """Return how many tokens the answer can certainly have at most; None if nothing is known."""
        if not self._spec.local:
            await asyncio.to_thread(model_prices.table)  # a tenth of a second, once
        can = self._catalog.capabilities(self._model)
        wide = None if self._request.own_context else self.context_length or can["context_served"]
        left = (wide or 0) - (await self._counted(wide) if wide else 0)
        return min((most for most in (can["max_output"], left) if most and most > 0), default=None)

    async def _counted(self, wide: int) -> int:
        """Return the tokens of the prompt: counted by the server if they may not fit, else estimated.

        Raises:
            ContextOverflow: the server counted more than it serves.
        """
        count, client = self._spec.server.count_tokens, self._catalog.client
        fits = self._about + (self._request.ceiling or 0) <= wide
        counted = 0
        if not (fits or count is None or self._request.images or client.stopped or client.replays):
            with suppress(LLMError, TimeoutError):  # it is only a better number
                async with asyncio.timeout(QUICK_S):
                    messages = [*self._request.messages, *self._begun]
                    counted = await count(client, self._model, messages, self._request.tools)
                    self._learn(self._texts, counted)
        if counted >= wide:
            raise _overflow(f"the prompt has {counted} tokens, the server takes {wide}", counted, wide)
        ratio = _ratios.get((self._base, self._model), 1.0)
        return counted + _MARGIN if counted else int(at_least(self._texts) * ratio)

    def _learn(self, texts: Sequence[str], tokens: int) -> None:
        """Remember how many tokens the server counted for a prompt."""
        least, key = at_least(texts), (self._base, self._model)
        if least >= _LEARNS_FROM:
            _ratios[key] = max(tokens / least, _ratios.get(key, 1.0))

    def _lowered(self, most: int | None) -> str | None:
        """Limit the answer to so many tokens; returns the change in words, None if there is none."""
        before = self.answer or self._request.ceiling
        if most is None or before is None or most >= before:
            return None
        self.answer = most
        self.tight = most < (self._request.ceiling or 0) * _TIGHT
        return f"max_tokens={most} instead of {before}: there is room for no more"

    def after(self, error: LLMError) -> str | None:
        """Return what was changed after a refusal, in words; None if a retry cannot help.

        Raises:
            ContextOverflow, ServerFailed: the server could not load the model with the context length of the request.
        """
        if not self._chooses:
            left = (error.window or 0) - (error.needed or 0) if isinstance(error, errors.ContextOverflow) else 0
            return self._lowered(left) if left > 0 else None
        if isinstance(error, errors.ContextOverflow):
            return self._retry(error)
        failed = isinstance(error, errors.ServerFailed) and error.status == _NO_LOAD
        if failed and self.context_length not in (None, self._known.known.get("context_served")):
            raise self._not_loaded(error)
        return None

    def _retry(self, error: errors.ContextOverflow) -> str | None:
        """Choose a context length for the server's count, once; without a count, the next longer one."""
        sent = self.context_length
        if not self._retried:
            self._retried = True
            needed = error.needed or max(self._about, (sent or 0) + 1)
            if why := self._lengthened(self._fitting(needed, sent or error.window or 1)):
                return why
        if not error.needed:
            error.window = sent
            error.what += f"; the prompt has about {self._about} tokens, the window {sent or 'is its own choice'}"
        return None

    def _not_loaded(self, error: LLMError) -> LLMError:
        """Return the error for a context that the server could not load. If it was ours, no circuit breaker opens."""
        key = self._base, self._known.name
        if _requested.get(key) == self.context_length:
            del _requested[key]  # shorter requests go on with what was loaded before
        kind = errors.ServerFailed if self._stated else errors.ContextOverflow
        failure = kind(
            f"the server could not load the model with a context of {self.context_length} tokens",
            hint=f"Set {self._spec.variable('context')} to a context that fits its memory, or choose a smaller model",
            status=error.status,
        )
        failure.server_message = error.server_message
        return failure

    def answered(self) -> None:
        """Remember that the model is loaded, with this context length."""
        if self.loads or self.context_length:
            self._catalog.answered(self._model, self.context_length)

    async def loss(self, usage: Usage) -> LLMError | None:
        """Return the error for a prompt whose beginning the server dropped, if its count leaves no doubt.

        Only of servers that are known to do so (``ServerSupport.drops_prompts``). The server is probed if unknown.
        """
        read, least, catalog = usage.prompt_tokens, at_least(self._request.texts), self._catalog
        if read and not self._request.images:
            self._learn(self._texts, read)
        if not read or usage.cached_tokens or not self._spec.local or least < _LARGE or read > least * _FAR_BELOW:
            return None
        if catalog.server is None:
            await catalog.health(QUICK_S)
        server = catalog.server
        kind = server.kind if server else None
        drops = kind.server.drops_prompts if kind else None
        if not (server and kind and drops and drops(server.version, self._spec.dialect.parser is kind.dialect.parser)):
            return None
        what = f"the server read {read} tokens of a prompt that has at least {least}: it dropped the beginning"
        return _overflow(what, least, read)

    @property
    def _about(self) -> int:
        """The tokens of the prompt, estimated high."""
        return at_most(self._texts, self._request.images, len(self._request.messages))


def _overflow(what: str, needed: int, size: int) -> LLMError:
    error = errors.ContextOverflow(what)
    error.needed, error.window = needed, size
    return error
