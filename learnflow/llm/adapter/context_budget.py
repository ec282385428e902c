"""Whether a request fits a provider and its model: required capabilities, images, and the context length.

Must never send anything, or refuse a request because something is unknown.
The router calls ``lacks`` when it chooses; an attempt uses a ``ContextBudget`` before, after a refusal, and at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from .. import errors
from ..base import DEFAULT_MAX_TOKENS, Call
from ..completion import Usage
from ..errors import LLMError
from ..health import window
from ..servers import model_prices
from ..servers.model_catalog import QUICK_S, ModelCatalog
from ..spec import Model, ProviderSpec
from .options import messages_of, parts_of, text_of
from .request import Request, Size

# When a count of tokens is beyond doubt: a large prompt, of which far less was read than it has words. Tokenizers that
# join words make a third fewer tokens than words; templates leave old thinking out; small prompts are mostly template.
_LARGE: Final = 1000  # tokens
_FAR_BELOW: Final = 0.5
_TIGHT: Final = 0.25  # of the ceiling
_MARGIN: Final = 8  # tokens that a template may add to what was counted
_NO_LOAD: Final = 500  # that a model could not be loaded; a gateway says 502 or 504


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
    return Needs(images=images, tools=bool(call.options.get("tools")), schema=schema, tokens=window.at_least(texts))


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
    """One request and one model; ``begun`` is an answer that it continues; ``loads``: the server has yet to load it."""

    def __init__(
        self, spec: ProviderSpec, base: str, catalog: ModelCatalog, asked: Request, model: str, begun: str = ""
    ) -> None:
        self._spec = spec
        self._base = base
        self._catalog = catalog
        self._asked = asked
        self._texts = [*asked.texts, begun] if begun else asked.texts
        self._begun = [{"role": "assistant", "content": begun}] if begun else []
        self._model = model
        self._window: window.Window | None = None
        self._sent: int | None = None
        self._answer: int | None = None
        self.loads = False
        self.tight = False  # less than a quarter of the ceiling is left

    @property
    def answer(self) -> int | None:
        """Tokens of the answer that are asked for at the most, where that is less than the caller's ceiling."""
        return self._answer

    def sending(self) -> Size:
        """What to send. The window is remembered: others may change it meanwhile."""
        self._sent = self._window.size if self._window else None
        return Size(self._sent, self._answer)

    async def before(self, within: float) -> str | None:
        """Look whether it fits, for ``within`` seconds at most. Returns what was changed for it, in words.

        Raises:
            Unsupported: pictures for a model that cannot see.
            ContextOverflow: certainly longer than anything the model was trained for.
        """
        widens, ceiling = self._spec.window and not self._asked.own_window, self._asked.ceiling
        if not widens and not self._asked.images and not (ceiling and self._spec.local):
            self.loads, why = self._catalog.is_cold(self._model), None
        else:
            model = await self._catalog.describe(self._model, within)
            self.loads = self._catalog.is_cold(self._model)
            if self._asked.images and self._catalog.capabilities(self._model)["vision"] is False:
                other, can = self._spec.variable("vision_model"), self._spec.variable("capabilities")
                raise errors.Unsupported(
                    "the model cannot see pictures; nothing was sent",
                    model=self._model,
                    hint=f"Set {other}, or {can}=vision if it can",
                )
            why = await self._widened(model) if widens else None
        lower = None if ceiling is None else await self._room()
        return "; ".join(filter(None, (why, self._lowered(lower)))) or None

    async def _room(self) -> int | None:
        """Tokens that certainly are the most that an answer can have; None where nothing is known."""
        if not self._spec.local:
            await asyncio.to_thread(model_prices.table)  # a tenth of a second, once
        can = self._catalog.capabilities(self._model)
        wide = None if self._asked.own_window else self._window.size if self._window else can["context_served"]
        left = (wide or 0) - (await self._counted(wide) if wide else 0)
        return min((most for most in (can["max_output"], left) if most and most > 0), default=None)

    async def _counted(self, wide: int) -> int:
        """Return the tokens of the prompt: counted by the server if they may not fit, else estimated.

        Raises:
            ContextOverflow: the server counted more than it serves.
        """
        count, client = self._spec.count_tokens, self._catalog.client
        fits = self._about + (self._asked.ceiling or 0) <= wide
        if fits or count is None or self._asked.images or client.stopped or client.replays:
            return window.likely(self._base, self._model, self._texts)
        counted = 0
        with suppress(LLMError, TimeoutError):  # it is only a better number
            async with asyncio.timeout(QUICK_S):
                counted = await count(client, self._model, [*self._asked.messages, *self._begun], self._asked.tools)
                window.learn(self._base, self._model, self._texts, counted)
        if counted >= wide:
            raise _overflow(f"the prompt has {counted} tokens, the server takes {wide}", counted, wide)
        return counted + _MARGIN if counted else window.likely(self._base, self._model, self._texts)

    def _lowered(self, most: int | None) -> str | None:
        """Ask for an answer of so many tokens at the most; returns the change in words, None where it is none."""
        before = self._answer or self._asked.ceiling
        if most is None or before is None or most >= before:
            return None
        self._answer = most
        self.tight = most < (self._asked.ceiling or 0) * _TIGHT
        return f"max_tokens={most} instead of {before}: there is room for no more"

    async def _widened(self, model: Model) -> str | None:
        own = self._window = window.of(self._base, model.name)
        need, now = self._need(self._about), asyncio.get_running_loop().time()
        if own.size is None and need > window.ASSUMED:  # somebody may have loaded it meanwhile
            self._catalog.forget()
            model = await self._catalog.describe(self._model)
        stated = self._catalog.stated.get("context_served")
        own.limit = own.limit or model.known.get("context")
        if stated is None:
            own.loaded(model.known.get("context_served"))
        own.size = own.size or stated or model.window
        if own.limit and stated:
            own.limit = max(own.limit, stated)
        least = window.at_least(self._texts)
        if own.limit and least > own.limit:
            raise _overflow(f"the prompt has at least {least} tokens, the model takes {own.limit}", least, own.limit)
        before = own.size
        return self._told(before) if own.widen(need, now) else None

    def after(self, error: LLMError) -> str | None:
        """What was changed after this refusal, in words, so that asking again may help; None where nothing can be."""
        own, before, now = self._window, self._sent, asyncio.get_running_loop().time()
        if own is None:
            left = (error.window or 0) - (error.needed or 0) if isinstance(error, errors.ContextOverflow) else 0
            return self._lowered(left) if left > 0 else None
        if isinstance(error, errors.ContextOverflow):
            start = before or error.window or window.ASSUMED // 2
            likely = error.needed or start < 4 * self._need(self._about)  # an estimate may be wrong, but not so much
            if likely and own.widen(self._need(error.needed or 0), now, past=start):
                return self._told(before)
            if not error.needed:
                error.window = before
                error.what += f"; the prompt has about {self._about} tokens, the window {before or 'is its own choice'}"
        if isinstance(error, errors.ServerFailed) and error.status == _NO_LOAD and own.step_back(before, now):
            return f"with a context of {own.size or 'its own choice'}: {before} could not be loaded"
        return None

    def held(self) -> None:
        """It has answered with this window."""
        if self.loads:
            self._catalog.answered(self._model)
        if self._window and self._sent:
            self._window.held = max(self._window.held or 0, self._sent)

    async def loss(self, usage: Usage) -> LLMError | None:
        """The error for a prompt whose beginning was dropped without a word, where the server's count leaves no doubt.

        Only of servers that are known to do so (``ProviderSpec.drops_prompts``). Who answers is looked up where that
        is not known yet.
        """
        if usage.prompt_tokens and not self._asked.images:
            window.learn(self._base, self._model, self._texts, usage.prompt_tokens)
        read, least = usage.prompt_tokens, window.at_least(self._asked.texts)
        if not read or usage.cached_tokens or not self._spec.local or least < _LARGE or read > least * _FAR_BELOW:
            return None
        if self._catalog.server is None:
            await self._catalog.health(QUICK_S)
        server = self._catalog.server
        drops = server.kind.drops_prompts if server and server.kind else None
        if server is None or server.kind is None or drops is None:
            return None
        if self._spec.parser is server.kind.parser and not drops(server.version):
            return None
        what = f"the server read {read} tokens of a prompt that has at least {least}: it dropped the beginning"
        return _overflow(what, least, read)

    @property
    def _about(self) -> int:
        """Tokens of the prompt, estimated high."""
        return window.at_most(self._texts, self._asked.images, len(self._asked.messages))

    def _need(self, prompt: int) -> int:
        most = int(self._asked.sampling.get("max_tokens", 0))
        if self._asked.ceiling and self._catalog.stated.get("context_served"):
            most = min(most, DEFAULT_MAX_TOKENS)  # a ceiling does not widen what the operator stated
        return prompt + most

    def _told(self, before: int | None) -> str:
        size = self._window.size if self._window else None
        return f"with a context of {size} tokens instead of {before or 'its own'}: it loads the model again"


def _overflow(what: str, needed: int, size: int) -> LLMError:
    error = errors.ContextOverflow(what)
    error.needed, error.window = needed, size
    return error
