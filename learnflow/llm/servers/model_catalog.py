"""The state, models and capabilities of one provider's server: probed once, cached, and probed again after a failure.

The adapter reads the names and capabilities of models; the command line and discovery read ``Health``. This module
sends no prompts.
"""

from __future__ import annotations

import asyncio
import math
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
from .probe import better_setting, error_of, find_server, learn

LONG_PROBE_S: Final = 10.0  # timeout of a full probe: a cloud's list of models may be long
QUICK_PROBE_S: Final = 2.0  # timeout of a probe that delays a request
MAX_AGE_S: Final = 5.0  # of a result that decides whether a prompt is sent, and how long its response may take

_LOADED_MODEL: Final = "local-model"  # a placeholder for the loaded model
_MAX_LISTED_MODELS: Final = 12  # in a hint
_MAX_NAME_CHARS: Final = 200
_MAX_PROBED_MODELS: Final = 64  # one request each
_STATES: Final[tuple[tuple[type[LLMError], State], ...]] = (
    (errors.AuthenticationFailed, "unauthorised"),
    (errors.KeyMissing, "unauthorised"),
    (errors.ModelLoading, "loading"),
    (errors.ModelNotFound, "model_missing"),
    (errors.Unavailable, "down"),
)


def state_of(error: LLMError) -> State:
    """Return the state of a server from the error of its probe."""
    return next((state for kind, state in _STATES if isinstance(error, kind)), "misconfigured")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """The result of one probe.

    Attributes:
        server: the server, including the capabilities of ``model``; None if no known kind of server responded.
        model: the model that a request would use; None if that is ambiguous.
        error: the error that a request would raise now; None if it would succeed.
        latency_s: seconds until the server responded; None if it did not.
    """

    server: Server | None = None
    model: Model | None = None
    error: LLMError | None = None
    latency_s: float | None = None


class ModelCatalog:
    """Probes one server, and caches its models and their capabilities.

    Args:
        spec: the provider's spec.
        client: the client for the provider's endpoint.
        kinds: the kinds of server to recognise at the endpoint.
        model: the configured model; None if there is none.
        stated: the capabilities that the operator configured. They override every other source.

    Attributes:
        server: the server, as of the last successful probe; None before.
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
        self._failure: LLMError | None = None  # the error of the last probe, if requests would fail
        self._models: dict[str | None, Model] = {}  # by requested name; None for a request without a model

    def alternatives(self, requested: str | None) -> str:
        """Return a hint that lists the server's models, and a command to download the requested one; "" if unknown."""
        return self._alternatives(requested, self.server) if requested and self.server and self._spec.local else ""

    def _alternatives(self, requested: str, server: Server) -> str:
        names = [model.name for model in server.chat_models]
        near = nearest(requested, names)
        listed = (
            f"{', '.join(names[:_MAX_LISTED_MODELS])}{', …' if len(names) > _MAX_LISTED_MODELS else ''}"
            if names
            else "no model"
        )
        use = f"Set {self._spec.variable('model')} or model= to {' or '.join(near) or 'another one'}" if names else ""
        command = self._pull_command(requested)
        return ". ".join(filter(None, [use, f"It has {listed}", command and f"Get the model{command}"]))

    def _pull_command(self, model: str) -> str:
        """Return a colon and the server's command to download a model; "" if the server has no such command."""
        if not self._spec.server.pull_command:
            return ""
        return f": `{self._spec.server.pull_command.format(model=shlex.quote(printable(model, _MAX_NAME_CHARS)))}`"

    def trouble(self, name: str | None) -> str | None:
        """Return why a request for this model would fail, according to the last probe; None if it would succeed.

        A loading model is not a failure, because the request waits for it.
        """
        error = self._failure
        try:
            if self.server and not error:
                self._choose(self.server, name)
        except LLMError as no_choice:
            error = no_choice
        return None if error is None or isinstance(error, errors.ModelLoading) else without_name(error)

    def forget(self) -> None:
        """Clear the models, so that the next request probes again."""
        self._models.clear()

    async def health(self, within: float = LONG_PROBE_S) -> Health:
        """Probe for at most ``within`` seconds, cache the result, and return the state of the server."""
        result = await self._probe(self._model, within)
        ambiguous = isinstance(result.error, errors.NotConfigured) and result.server is not None
        error = None if ambiguous else result.error
        if error:
            addressed(error, self._spec, self.client.endpoint, None)
        name = result.model.name if result.model else self._model
        server = result.server or Server()
        return Health(
            state=state_of(error) if error else "ready",
            provider=self._spec.name,
            base_url=self.client.endpoint.base,
            detail=without_name(error) if error else self._remarks(result),
            latency_s=result.latency_s,
            server=server.kind.title if server.kind else None,
            version=server.version,
            model=name,
            cold=None if result.model is None or result.model.loaded is None else not result.model.loaded,
            models=tuple(model.name for model in server.chat_models),
            capabilities=self.capabilities(name),
        )

    async def models(self, within: float = LONG_PROBE_S, *, every: bool = True) -> list[Model]:
        """Probe, and return the chat models.

        Args:
            within: the timeout in seconds.
            every: probe the capabilities of every model.

        Raises:
            LLMError: the models could not be listed.
        """
        result = await self._probe(self._model, within, every=every)
        if result.server and isinstance(result.error, errors.NotConfigured | errors.ModelNotFound | None):
            return result.server.chat_models
        raise result.error or errors.ServerFailed("the models could not be listed")

    async def choose_name(self, requested: str | None) -> str:
        """Choose the name of the model to send: the requested one, else the loaded one, else the only one.

        Raises:
            NotConfigured: no model is requested, and the server has several.
            NotLocal: LLM_LOCAL_ONLY is set, and the server may forward requests for the model to another machine.
            LLMError: the server could not be probed.
        """
        name = self._key(requested)
        if name is None:
            if not self._spec.local:
                self._choose(Server(), None)  # raises NotConfigured, without a probe of the cloud
            name = (self._models[None] if self._is_fresh(None, MAX_AGE_S) else await self.find(None)).name
        if self.client.local_only and self._spec.local:
            await self._refuse_remote(name)
        return name

    async def find(self, requested: str | None) -> Model:
        """Probe, and return the model that a request would use. Raise LLMError if the request would fail."""
        result = await self._probe(requested, LONG_PROBE_S)
        if result.error or result.model is None:
            raise result.error or errors.ModelNotFound("the server has no model")
        return result.model

    def is_cold(self, name: str | None) -> bool:
        """Return whether the server must load this model before it responds, according to the last probe."""
        model = self._models.get(self._key(name))
        return self.client.stopped or (model is not None and model.loaded is False)

    def mark_loaded(self, name: str, context_length: int | None = None) -> None:
        """Record that this model is loaded, because it has responded. Record its context length if known."""
        known = {"context_served": context_length} if context_length else {}
        for key, model in self._models.items():
            if model.has_name(name):
                self._models[key] = replace(model, loaded=True, known={**model.known, **known})

    async def describe(self, name: str, within: float = QUICK_PROBE_S, max_age_s: float = math.inf) -> Model:
        """Return this model from the cache, else from a probe. If the probe fails, the model has only a name.

        Args:
            name: the name of the model.
            within: the timeout of the probe in seconds.
            max_age_s: the oldest cached result to use, in seconds. An older one is used only if the probe fails.

        Raises:
            ConnectionFailed, ConnectTimeout: the server cannot be reached.
        """
        if not self._is_fresh(name, max_age_s):
            result = await self._probe(name, within)
            if isinstance(result.error, errors.ConnectionFailed | errors.ConnectTimeout):
                raise result.error
            known = self._models.get(name) or Model(name=name)
            self._models[name] = replace(known, learned_at=self.probed_at)
        return self._models[name]

    @property
    def loads_models(self) -> bool:
        """Return whether the server loads models on request, so that any request may have to wait for a load."""
        kind = self.server.kind if self.server else None
        return any(spec.server.load_path for spec in (self._spec, kind) if spec)

    async def is_loading(self, name: str, within: float) -> bool:
        """Probe whether a request for this model waits for a load. A failed probe returns False."""
        result = await self._probe(name, within)
        model = result.model
        return isinstance(result.error, errors.ModelLoading) or (model is not None and model.loaded is False)

    def is_newer(self, requested: str | None, time: float) -> bool:
        """Return whether the cached result for a model is newer than this time of the event loop's clock."""
        model = self._models.get(requested)
        return model is not None and (model.learned_at or -math.inf) >= time

    def _is_fresh(self, requested: str | None, max_age_s: float) -> bool:
        """Return whether the cached result is not older than this. A replayed result does not age."""
        oldest = -math.inf if self.client.replays else asyncio.get_running_loop().time() - max_age_s
        return self.is_newer(requested, oldest)

    def capabilities(self, name: str | None = None) -> Capabilities:
        """Return the capabilities of a model, by default the configured one. No request is sent.

        Merge those of the spec, the price map, the server and the operator. Later sources win.
        """
        spec, name = self._spec, name or self._model
        model = self._models.get(self._key(name))
        near = is_near(self.client.endpoint, local_only=self.client.local_only) and not (model and model.remote)
        cost = {} if near or not spec.local else {"cost": None}  # a remote server may be a paid service
        by_spec = Capabilities(**{**spec.capabilities, "local": near, **cost})  # type: ignore[typeddict-item]
        priced = model_prices.capabilities_of(spec.price_prefix, name) if name and not spec.local else {}
        reported = dict(model.known) if model else {}
        return merged(by_spec, priced, reported, self.stated)

    def _key(self, name: str | None) -> str | None:
        """Return the requested name; None if it is empty or the placeholder for the loaded model."""
        return None if not name or (name == _LOADED_MODEL and self._spec.local) else name

    async def _probe(self, requested: str | None, within: float, *, every: bool = False) -> ProbeResult:
        """Probe the server, cache the result, and return it with any error. Raise only NotRecorded.

        Args:
            requested: the requested model; None for the server's own.
            within: the timeout in seconds.
            every: probe the capabilities of every model, not only of the chosen one.
        """
        loop = asyncio.get_running_loop()
        started, model = loop.time(), None
        if not self._spec.local:
            await asyncio.to_thread(model_prices.price_map)  # the first call takes 0.1 s
        server, error = await find_server(self._spec, self.client, self._kinds, started + within)
        unreachable = server is None and isinstance(error, errors.Unavailable)
        latency_s = None if unreachable else loop.time() - started
        if server and not error:
            try:
                model = self._choose(server, requested)
            except LLMError as no_choice:
                error = no_choice
            to_probe = server.models[:_MAX_PROBED_MODELS] if every else [model] if model else []
            server = await learn(self.client, server, to_probe, started + within)
            model = next((other for other in server.models if model and other.name == model.name), model)
            error = error or error_of(model)
        self.probed_at = loop.time()
        self._failure = error if server is None or isinstance(error, errors.Misconfigured) else None
        if server:
            listed = {other.name: replace(other, learned_at=self.probed_at) for other in server.models}
            server = self.server = replace(server, learned_at=self.probed_at, models=tuple(listed.values()))
            if every:
                self._models.update(listed)
            if model:
                model = listed.get(model.name, model)
                self._models.update({model.name: model, self._key(requested): model})
        return ProbeResult(server=server, model=model, error=error, latency_s=latency_s)

    def _choose(self, server: Server, requested: str | None) -> Model:
        """Choose the model: the requested one, else the loaded one, else the only one.

        Raises:
            ModelNotFound: the server does not have the requested model, or has no model.
            NotConfigured: no model is requested, and the server has several.
        """
        spec = self._spec
        if name := self._key(requested):
            model = server.find(name)
            if not model and server.models and spec.api.lists_all:
                hint = self._alternatives(name, server)
                raise errors.ModelNotFound("the server does not have the model", model=name, hint=hint)
            return model or Model(name=name)
        if not spec.local:
            raise errors.NotConfigured("no model is named", hint=f"Set {spec.variable('model')}, or give model=")
        local = [model for model in server.chat_models if not model.remote]  # a remote model is used only if requested
        candidates = [model for model in local if model.loaded] or local
        if len(candidates) == 1:
            return candidates[0]
        hint = f"Set {spec.variable('model')} to one of them, or give model="
        if candidates:
            names = ", ".join(model.name for model in candidates[:20])
            raise errors.NotConfigured(f"no model is named, and there are {len(candidates)}: {names}", hint=hint)
        if server.chat_models:
            what = "no model is named, and the server has only remote models, so that prompts would leave this machine"
            raise errors.ModelNotFound(what, hint=hint)
        raise errors.ModelNotFound("the server has no model", hint=f"Get one{self._pull_command('MODEL') or ' first'}")

    async def _refuse_remote(self, name: str) -> None:
        """Raise NotLocal if the server forwards this model elsewhere, or if it does not report whether it does."""
        if not self._is_fresh(name, MAX_AGE_S) or self.server is None:
            result = await self._probe(name, LONG_PROBE_S)
            if result.server is None and result.error:
                raise result.error
        model = self._models.get(name)
        kind = self.server.kind if self.server else None
        forwarder = next((spec for spec in (self._spec, kind) if spec and spec.server.forwards_requests), None)
        if forwarder is None:
            return
        if model is None or self.server is None or self.server.find(name) is None:
            what = (
                f"LLM_LOCAL_ONLY is set, and {forwarder.title} does not report whether it forwards this model elsewhere"
            )
            hint = "Nothing was sent. Check the model's name and the server's log"
            raise errors.NotLocal(what, hint=hint)
        if model.remote:
            what = f"LLM_LOCAL_ONLY is set, and {forwarder.title} forwards this model elsewhere"
            hint = f"Set {self._spec.variable('model')} to a model that runs on the server, or LLM_LOCAL_ONLY=false"
            raise errors.NotLocal(what, hint=hint)

    def _remarks(self, result: ProbeResult) -> str:
        """Return "ready" and remarks: a cold model, no default model, another kind of server, an untested vendor."""
        remarks = ["ready"]
        if result.model and result.model.loaded is False:
            remarks.append(f"cold: {result.model.name} is not loaded yet, the first request waits for it")
        if result.error:
            remarks.append(f"{result.error.what}. {result.error.hint}")
        kind = result.server.kind if result.server else None
        if kind and kind.name != self._spec.name:
            setting = better_setting(self._spec, kind, self.client.endpoint.root)
            remarks.append(f"the server is {kind.title}. {setting} to use its features")
        if self._spec.evidence == "table":
            remarks.append("untested: the provider's settings come from its documentation and LiteLLM's table")
        return "; ".join(remarks)


def without_name(error: LLMError) -> str:
    """Return the message of an error without the provider's name. Callers show the name separately."""
    return str(error).removeprefix(f"{error.provider}: ").removeprefix(f"{error.provider}, ")
