"""What is known of one provider's server and its models: probed once, remembered, and probed again after a failure.

Must never send a prompt or decide how a request is written.
The adapter asks it for a model's name and capabilities; the command line and discovery for a ``Health``.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from .. import errors
from ..capabilities import Capabilities, Health, State, merged, nearest
from ..errors import LLMError
from ..provider_spec import Model, ProviderSpec, Server
from ..transport.client import Client
from ..transport.endpoint import addressed
from ..transport.network import is_near
from ..transport.untrusted import printable
from . import model_prices
from .probe import as_error, better_setting, find_server, learn

LONG_PROBE_S: Final = 10.0  # seconds for a probe of its own: a cloud's list of models may be long
QUICK_S: Final = 2.0  # seconds for a probe before a request, which must not wait for it

_LOADED: Final = "local-model"  # as a name: the model that a local server has loaded
_MAX_NAMES: Final = 12  # of models in a sentence
_MAX_NAME_CHARS: Final = 200
_MAX_LEARNED: Final = 64  # models that are asked for one by one
_STATES: Final[tuple[tuple[type[LLMError], State], ...]] = (
    (errors.AuthenticationFailed, "unauthorised"),
    (errors.KeyMissing, "unauthorised"),
    (errors.ModelLoading, "loading"),
    (errors.ModelNotFound, "model_missing"),
    (errors.Unavailable, "down"),
)


def state_of(error: LLMError) -> State:
    """Return the state of a server that raises this error."""
    return next((state for kind, state in _STATES if isinstance(error, kind)), "misconfigured")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """The result of one probe.

    Attributes:
        server: the server, with everything known of ``model``; None if no server of a known shape responded.
        model: the model that would be used; None if that is not clear.
        error: why it would not answer, or why it is not clear which model would.
        latency_s: seconds until it had responded; None if it did not.
    """

    server: Server | None = None
    model: Model | None = None
    error: LLMError | None = None
    latency_s: float | None = None


class ModelCatalog:
    """Probes one server, and remembers the server and its models, each with the time when it was learned.

    Args:
        spec: the provider.
        client: of its endpoint.
        kinds: the kinds of server that may answer there.
        model: the configured model.
        stated: capabilities in the operator's own words, which are believed.

    Attributes:
        server: as of the last probe that reached one; None before.
        probed_at: when the last probe ended, on the clock of the event loop; None before.
    """

    def __init__(
        self,
        spec: ProviderSpec,
        client: Client,
        kinds: Sequence[ProviderSpec],
        model: str | None,
        stated: Mapping[str, Any],
    ) -> None:
        self.client, self.stated = client, stated
        self.server: Server | None = None
        self.probed_at: float | None = None
        self._spec, self._kinds, self._model = spec, kinds, model
        self._failure: LLMError | None = None  # of the last probe, if no server was usable
        self._models: dict[str | None, Model] = {}  # by requested name; None: of a request without a model

    def alternatives(self, requested: str | None) -> str:
        """Return what to do if the server does not have this model; "" if its models are not known."""
        return self._alternatives(requested, self.server) if requested and self.server and self._spec.local else ""

    def _alternatives(self, requested: str, server: Server) -> str:
        names = [model.name for model in server.chat_models]
        near = nearest(requested, names)
        there = f"{', '.join(names[:_MAX_NAMES])}{', …' if len(names) > _MAX_NAMES else ''}" if names else "no model"
        use = f"Set {self._spec.variable('model')} or model= to {' or '.join(near) or 'another one'}" if names else ""
        command = self._pull_command(requested)
        return ". ".join(filter(None, [use, f"It has {there}", command and f"Get the model{command}"]))

    def _pull_command(self, model: str) -> str:
        """Return the server's own command that downloads a model; empty if it has none."""
        if not self._spec.server.pull_command:
            return ""
        return f": `{self._spec.server.pull_command.format(model=shlex.quote(printable(model, _MAX_NAME_CHARS)))}`"

    def trouble(self, name: str | None) -> str | None:
        """Return why this model would not answer, as of the last probe; None if it would. A load is waited for."""
        error = self._failure
        try:
            if self.server and not error:
                self._chosen(self.server, name)
        except LLMError as unclear:
            error = unclear
        return None if error is None or isinstance(error, errors.ModelLoading) else without_name(error)

    def forget(self) -> None:
        """Forget the models, so that the next request probes again."""
        self._models.clear()

    async def health(self, within: float = LONG_PROBE_S) -> Health:
        """Probe for at most ``within`` seconds, and remember."""
        result = await self._probe(self._model, within)
        unclear = isinstance(result.error, errors.NotConfigured) and result.server is not None
        error = None if unclear else result.error
        if error:
            addressed(error, self._spec, self.client.endpoint, None)
        model = result.model.name if result.model else self._model
        server = result.server or Server()
        return Health(
            state=state_of(error) if error else "ready",
            provider=self._spec.name,
            base_url=self.client.endpoint.base,
            detail=without_name(error) if error else self._remarks(result),
            latency_s=result.latency_s,
            server=server.kind.title if server.kind else None,
            version=server.version,
            model=model,
            cold=None if result.model is None or result.model.loaded is None else not result.model.loaded,
            models=tuple(each.name for each in server.chat_models),
            capabilities=self.capabilities(model),
        )

    async def models(self, within: float = LONG_PROBE_S, *, every: bool = True) -> list[Model]:
        """Return the chat models; with ``every``, with the capabilities of each. Raise LLMError."""
        result = await self._probe(self._model, within, every=every)
        if result.server and isinstance(result.error, errors.NotConfigured | errors.ModelNotFound | None):
            return result.server.chat_models
        raise result.error or errors.ServerFailed("the models could not be listed")

    async def which(self, requested: str | None) -> str:
        """Choose the name to send: the requested one, else the loaded model, else the only one. Raise LLMError."""
        name = self._key(requested)
        if name is None:
            if not self._spec.local:
                self._chosen(Server(), None)  # raises what to set, without a probe
            name = (self._models.get(None) or await self.find(None)).name
        if self.client.local_only and self._spec.local:
            await self._refuse_remote(name)
        return name

    async def find(self, requested: str | None) -> Model:
        """Probe, and return the model that would be used. Raise LLMError if it would not answer."""
        result = await self._probe(requested, LONG_PROBE_S)
        if result.error or result.model is None:
            raise result.error or errors.ModelNotFound("the server has no model")
        return result.model

    def is_cold(self, name: str | None) -> bool:
        """Return whether the server would have to load this model, as of the last probe."""
        model = self._models.get(self._key(name))
        return self.client.stopped or (model is not None and model.loaded is False)

    def answered(self, name: str, context_length: int | None = None) -> None:
        """Remember that this model has answered: it is loaded, with this context length if it is known."""
        known = {"context_served": context_length} if context_length else {}
        for key, model in self._models.items():
            if model.has_name(name):
                self._models[key] = replace(model, loaded=True, known={**model.known, **known})

    async def describe(self, name: str, within: float = QUICK_S) -> Model:
        """Return what is known of this model; probe if nothing is. What cannot be learned stays unknown.

        Raises:
            ConnectionFailed, ConnectTimeout: the server cannot be reached.
        """
        if name not in self._models:
            result = await self._probe(name, within)
            if isinstance(result.error, errors.ConnectionFailed | errors.ConnectTimeout):
                raise result.error
            self._models.setdefault(name, Model(name=name))
        return self._models[name]

    def capabilities(self, name: str | None = None) -> Capabilities:
        """Return what is known of a model, by default the configured one: spec, price map, server, operator."""
        spec, name = self._spec, name or self._model
        model = self._models.get(self._key(name))
        near = is_near(self.client.endpoint, local_only=self.client.local_only) and not (model and model.remote)
        away = {} if near or not spec.local else {"cost": None}
        row = Capabilities(**{**spec.capabilities, "local": near, **away})  # type: ignore[typeddict-item]
        priced = model_prices.known(spec.price_prefix, name) if name and not spec.local else {}
        known = dict(model.known) if model else {}
        return merged(row, priced, known, self.stated)

    def _key(self, name: str | None) -> str | None:
        """Return the requested name; None if it leaves the choice to the server."""
        return None if not name or (name == _LOADED and self._spec.local) else name

    async def _probe(self, requested: str | None, within: float, *, every: bool = False) -> ProbeResult:
        """Probe for at most ``within`` seconds, and remember. Raise NotRecorded, and no other error.

        Args:
            requested: the model that would be requested.
            within: seconds.
            every: learn the capabilities of every model, not only of the one that would be used.
        """
        loop = asyncio.get_running_loop()
        started, model = loop.time(), None
        if not self._spec.local:
            await asyncio.to_thread(model_prices.table)  # a tenth of a second, once
        server, error = await find_server(self._spec, self.client, self._kinds, started + within)
        unreachable = server is None and isinstance(error, errors.Unavailable)
        latency_s = None if unreachable else loop.time() - started
        if server and not error:
            try:
                model = self._chosen(server, requested)
            except LLMError as unclear:
                error = unclear
            wanted = server.models[:_MAX_LEARNED] if every else [model] if model else []
            server = await learn(self.client, server, wanted, started + within)
            model = next((each for each in server.models if model and each.name == model.name), model)
            error = error or as_error(model)
        self.probed_at = loop.time()
        self._failure = error if server is None or isinstance(error, errors.Misconfigured) else None
        if server:
            server, model = self._remembered(server, model, requested, every=every)
        return ProbeResult(server=server, model=model, error=error, latency_s=latency_s)

    def _remembered(
        self, server: Server, model: Model | None, requested: str | None, *, every: bool
    ) -> tuple[Server, Model | None]:
        """Remember the result of a probe. Return it with the time."""
        listed = {each.name: replace(each, learned_at=self.probed_at) for each in server.models}
        self.server = replace(server, learned_at=self.probed_at, models=tuple(listed.values()))
        if every:
            self._models.update(listed)
        if model:
            model = listed.get(model.name, model)
            self._models.update({model.name: model, self._key(requested): model})
        return self.server, model

    def _chosen(self, server: Server, requested: str | None) -> Model:
        """Choose the model: the requested one, else the loaded one, else the only one.

        Raises:
            ModelNotFound: the server does not have it, or has none.
            NotConfigured: no model is named, and there are several.
        """
        spec = self._spec
        if name := self._key(requested):
            found = server.find(name)
            if not found and server.models and spec.api.lists_all:
                hint = self._alternatives(name, server)
                raise errors.ModelNotFound("the server does not have the model", model=name, hint=hint)
            return found or Model(name=name)
        set_model = f"Set {spec.variable('model')}{{}}, or give model="
        if not spec.local:
            raise errors.NotConfigured("no model is named", hint=set_model.format(""))
        here = [model for model in server.chat_models if not model.remote]  # a remote one is used only if it is named
        candidates = [model for model in here if model.loaded] or here
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            names = ", ".join(model.name for model in candidates[:20])
            what = f"no model is named, and there are {len(candidates)}: {names}"
            raise errors.NotConfigured(what, hint=set_model.format(" to one of them"))
        if server.chat_models:
            what = "no model is named, and those of the server leave this machine"
            raise errors.ModelNotFound(what, hint=set_model.format(" to one of them"))
        raise errors.ModelNotFound("the server has no model", hint=f"Get one{self._pull_command('MODEL') or ' first'}")

    async def _refuse_remote(self, name: str) -> None:
        """Raise NotLocal, under LLM_LOCAL_ONLY, if the server forwards this model or that is not known."""
        model = self._models.get(name)
        if model is None or self.server is None:
            result = await self._probe(name, LONG_PROBE_S)
            model = result.model
            if result.server is None and result.error:
                raise result.error
        kind = self.server.kind if self.server else None
        forwarder = next((spec for spec in (self._spec, kind) if spec and spec.server.forwards_requests), None)
        if forwarder is None:
            return
        if model is None or self.server is None or self.server.find(name) is None:
            unknown = "does not report whether it forwards this model elsewhere"
            hint = "Nothing was sent. Look into the server's log, or check the model's name"
            raise errors.NotLocal(f"LLM_LOCAL_ONLY is set, and {forwarder.title} {unknown}", hint=hint)
        if model.remote:
            raise errors.NotLocal(
                f"LLM_LOCAL_ONLY is set, and {forwarder.title} forwards this model elsewhere",
                hint=f"Set {self._spec.variable('model')} to a model that runs on the server, or LLM_LOCAL_ONLY=false",
            )

    def _remarks(self, result: ProbeResult) -> str:
        """Return the state of a server that is ready, with what is worth reporting."""
        remarks = ["ready"]
        if result.model and result.model.loaded is False:
            remarks.append(f"cold: {result.model.name} is not loaded yet, the first answer waits for it")
        if result.error:
            remarks.append(f"{result.error.what}. {result.error.hint}")
        kind = result.server.kind if result.server else None
        if kind and kind.name != self._spec.name:
            setting = better_setting(self._spec, kind, self.client.endpoint.root)
            remarks.append(f"this is {kind.title}. {setting}: more is known of it then")
        if self._spec.evidence == "table":
            remarks.append("its row is from documents and LiteLLM's table: this project never ran one")
        return "; ".join(remarks)


def without_name(error: LLMError) -> str:
    """Return the sentence of an error without its provider, which is shown beside it."""
    return str(error).removeprefix(f"{error.provider}: ").removeprefix(f"{error.provider}, ")
