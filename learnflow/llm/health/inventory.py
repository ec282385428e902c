"""What one provider knows of its server and models: asked for once, remembered, and asked for again when told so.

Must never send a prompt or decide how a request is put.
The adapter asks it for a model's name and abilities; the command line and discovery for a ``Health``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from .. import errors
from ..capabilities import Capabilities, Health, State, merged
from ..errors import LLMError
from ..spec import Model, ProviderSpec, Server
from ..transport.endpoint import Endpoint, addressed
from ..transport.error_mapping import failure_of
from ..transport.network import is_near
from . import prices
from .probe import Prober, ProbeResult, better

LOOK_S: Final = 10.0  # seconds for a look of its own: a cloud's list of models may be long
QUICK_S: Final = 2.0  # seconds for a look before a request, which must not wait for it

_STATES: Final[tuple[tuple[type[LLMError], State], ...]] = (
    (errors.AuthenticationFailed, "unauthorised"),
    (errors.KeyMissing, "unauthorised"),
    (errors.ModelLoading, "loading"),
    (errors.ModelNotFound, "model_missing"),
    (errors.Unavailable, "down"),
)


def state_of(error: LLMError) -> State:
    """The state of a server that this error means."""
    return next((state for kind, state in _STATES if isinstance(error, kind)), "misconfigured")


class Inventory:
    """What is known of one provider.

    Args:
        prober: where to look.
        model: the configured one.
        stated: capabilities in the operator's own words, which are believed.
    """

    def __init__(self, prober: Prober, model: str | None, stated: Mapping[str, Any]) -> None:
        self.prober = prober
        self._model = model
        self.stated = stated
        self._server: Server | None = None
        self._failed: LLMError | None = None  # the last look, where nobody answered
        self._used: Model | None = None  # the one that is used where a call names none
        self._models: dict[str, Model] = {}

    @property
    def _spec(self) -> ProviderSpec:
        return self.prober.spec

    @property
    def _endpoint(self) -> Endpoint:
        return self.prober.endpoint

    @property
    def server(self) -> Server | None:
        """What the server said of itself, last time."""
        return self._server

    def instead_of(self, asked: str | None) -> str:
        """What to do where the server does not have this model; "" where nobody knows what it has."""
        return self.prober.instead_of(asked, self._server) if asked and self._server and self._spec.local else ""

    def trouble(self, name: str | None) -> str | None:
        """Why this model would not answer, as far as the last look showed; a load is waited for."""
        error = self._failed
        try:
            if self._server and not error:
                self.prober.chosen(self._server, name)
        except LLMError as unclear:
            error = unclear
        return None if error is None or isinstance(error, errors.ModelLoading) else without_name(error)

    def forget(self) -> None:
        """The next request looks again: something is not as it was."""
        self._used = None
        self._models.clear()

    async def health(self, within: float = LOOK_S) -> Health:
        """Look, for so many seconds at most, and remember."""
        seen = await self._look(self._model, within)
        unclear = isinstance(seen.error, errors.NotConfigured) and seen.server is not None
        error = seen.error and addressed(seen.error, self._spec, self._endpoint, None)
        model = seen.model.name if seen.model else self._model
        server = seen.server or Server()
        state: State = "ready" if error is None or unclear else state_of(error)
        return Health(
            state=state,
            provider=self._spec.name,
            base_url=self._endpoint.base,
            detail=self._sentence(seen) if error is None or unclear else without_name(error),
            latency_s=seen.latency_s,
            server=server.kind.title if server.kind else None,
            version=server.version,
            model=model,
            cold=None if seen.model is None or seen.model.loaded is None else not seen.model.loaded,
            models=tuple(each.name for each in server.chat_models),
            capabilities=self.capabilities(model),
        )

    async def models(self, within: float = LOOK_S, *, every: bool = True) -> list[Model]:
        """The models that can answer; with ``every``, with what each of them can. Raises LLMError."""
        seen = await self._look(self._model, within, every=every)
        if seen.server is None:
            raise seen.error or errors.ServerFailed("the models could not be listed")
        if seen.error and not isinstance(seen.error, errors.NotConfigured | errors.ModelNotFound):
            raise seen.error
        return seen.server.chat_models

    async def which(self, asked: str | None) -> str:
        """The name to ask for: the given one, or the one that is loaded, or the only one there is. Raises LLMError."""
        if asked and asked not in self._spec.placeholders:
            name = asked
        else:
            if not self._spec.local:
                self.prober.chosen(Server(), asked)  # says what to set, without a look
            name = (self._used or await self.found(asked)).name
        if self.prober.client.local_only and self._spec.local:
            await self._refuse_remote(name)
        return name

    async def found(self, asked: str | None) -> Model:
        """The model that would be used, looked for now. Raises LLMError where it would not answer."""
        seen = await self._look(asked, LOOK_S)
        if seen.error or seen.model is None:
            raise seen.error or errors.ModelNotFound("the server has no model")
        return seen.model

    def cold(self, name: str | None) -> bool:
        """Whether the server would have to load this model, as far as the last look showed."""
        model = self._models.get(name) if name else self._used
        return self.prober.client.stopped or (model is not None and model.loaded is False)

    def answered(self, name: str, context_length: int | None = None) -> None:
        """Remember that this model is loaded, with this context length if it is known."""
        known = {"context_served": context_length} if context_length else {}
        for key, model in self._models.items():
            if model.called(name):
                self._models[key] = replace(model, loaded=True, known={**model.known, **known})
        if self._used and self._used.called(name):
            self._used = replace(self._used, loaded=True, known={**self._used.known, **known})

    async def of(self, name: str, within: float = QUICK_S) -> Model:
        """What is known of this model; looked for the first time it is asked. What cannot be learned stays unknown.

        Raises:
            ConnectionFailed, ConnectTimeout: nobody is there.
        """
        if name not in self._models:
            seen = await self._look(name, within)
            if isinstance(seen.error, errors.ConnectionFailed | errors.ConnectTimeout):
                raise seen.error
            self._models.setdefault(name, Model(name=name))
        return self._models[name]

    def capabilities(self, name: str | None = None) -> Capabilities:
        """What is known of a model, the configured one where none is named: row, price map, server, operator."""
        spec, name = self._spec, name or self._model
        model = self._models.get(name or "") or (self._used if name in (None, *spec.placeholders) else None)
        near = is_near(self._endpoint, local_only=self.prober.client.local_only) and not (model and model.remote)
        away = {} if near or not spec.local else {"cost": None}
        row = Capabilities(**{**spec.capabilities, "local": near, **away})  # type: ignore[typeddict-item]
        priced = prices.known(spec.price_prefix, name) if name and not spec.local else {}
        told = dict(model.known) if model else {}
        return merged(row, priced, told, self.stated)

    async def _look(self, asked: str | None, within: float, *, every: bool = False) -> ProbeResult:
        if not self._spec.local:
            await asyncio.to_thread(prices.table)  # a tenth of a second, once
        seen = await self._seen(asked, within, every=every)
        self._failed = None if seen.server and not isinstance(seen.error, errors.Misconfigured) else seen.error
        if seen.server:
            self._server = seen.server
        if seen.server and every:
            self._models |= {model.name: model for model in seen.server.models}
        if seen.model:
            self._models[seen.model.name] = seen.model
            if asked:
                self._models[asked] = seen.model
            if asked in (None, self._model, *self._spec.placeholders):
                self._used = seen.model
        return seen

    async def _seen(self, asked: str | None, within: float, *, every: bool) -> ProbeResult:
        """One look; a page in a shape that nobody thought of is a failure with a name."""
        try:
            return await self.prober.look(asked, within, every=every)
        except LLMError:
            raise
        except Exception as error:  # noqa: BLE001  # nothing raw passes
            return ProbeResult(error=failure_of(error))

    async def _refuse_remote(self, name: str) -> None:
        """Under LLM_LOCAL_ONLY a model that the server forwards is not asked, nor one of which that is not known."""
        model = self._models.get(name)
        if model is None or self._server is None:
            seen = await self._look(name, LOOK_S)
            model = seen.model
            if seen.server is None and seen.error:
                raise seen.error
        kind = self._server.kind if self._server else None
        forwarder = next((spec for spec in (self._spec, kind) if spec and spec.forwards), None)
        if forwarder is None:
            return
        if model is None or self._server is None or self._server.find(name) is None:
            raise errors.NotLocal(
                f"LLM_LOCAL_ONLY is set, and {forwarder.title} does not tell whether it forwards this model elsewhere",
                hint="Nothing was sent. Look into the server's log, or check the model's name",
            )
        if model.remote:
            raise errors.NotLocal(
                f"LLM_LOCAL_ONLY is set, and {forwarder.title} forwards this model elsewhere",
                hint=f"Set {self._spec.variable('model')} to a model that runs on the server, or LLM_LOCAL_ONLY=false",
            )

    def _sentence(self, seen: ProbeResult) -> str:
        """What is worth knowing of a server that is ready."""
        said = ["ready"]
        if seen.model and seen.model.loaded is False:
            said.append(f"cold: {seen.model.name} is not loaded yet, the first answer waits for it")
        if seen.error:
            said.append(f"{seen.error.what}. {seen.error.hint}")
        kind = seen.server.kind if seen.server else None
        if kind and kind.name != self._spec.name:
            more = better(self._spec, kind, self._endpoint.root)
            said.append(f"this is {kind.title}. {more}: more is known of it then")
        if self._spec.evidence == "table":
            said.append("its row is from documents and LiteLLM's table: this project never ran one")
        return "; ".join(said)


def without_name(error: LLMError) -> str:
    """The sentence of an error, without the name that stands beside it anyway."""
    return str(error).removeprefix(f"{error.provider}: ").removeprefix(f"{error.provider}, ")
