"""``ModelCatalog``: the models of one server and their capabilities, from cached probes.

A probe requests the model list and status of the server, and sends no prompt; see ``probe``. The price map is LiteLLM's
table of models and prices, see ``model_prices``.
"""

from __future__ import annotations

import asyncio
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Final

from .. import errors
from ..capabilities import Capabilities, Health, State, find_similar, is_same_model, merge_capabilities
from ..errors import LLMError
from ..parameters import REASONING_LEVELS
from ..process import switches
from ..provider_spec import Model, ProviderSpec, Server
from ..transport.client import Client
from ..transport.endpoint import add_error_context
from ..transport.network import is_local
from ..transport.untrusted import printable
from . import model_prices
from .probe import error_of, fetch, find_server, read_capabilities, suggest_setting

LONG_PROBE_S: Final = 10.0  # timeout of a full probe, which may read a cloud's long model list
QUICK_PROBE_S: Final = 2.0  # timeout of a probe for which a request waits
# The maximum age of a cached result that decides whether a prompt is sent, or which timeout applies.
MAX_AGE_S: Final = 5.0

_LOADED_MODEL_PLACEHOLDER: Final = "local-model"  # this configured name means the loaded model
_MAX_LISTED_MODELS: Final = 12  # in a message
_MAX_NAME_CHARS: Final = 200
_SHUTDOWN_NOTICE_DAYS: Final = 90
_MAX_PROBED_MODELS: Final = 64  # per probe, because each model needs a request
_STATES: Final[tuple[tuple[type[LLMError], State], ...]] = (
    (errors.AuthenticationFailed, "unauthorised"),
    (errors.KeyMissing, "unauthorised"),
    (errors.ModelLoading, "loading"),
    (errors.ModelNotFound, "model_missing"),
    (errors.Unavailable, "down"),
)


def state_of(error: LLMError) -> State:
    """Return the state of a server from the error of its probe."""
    return next((state for error_class, state in _STATES if isinstance(error, error_class)), "misconfigured")


def message_without_provider(error: LLMError) -> str:
    """Return the message of an error without the name of the provider."""
    return str(error).removeprefix(f"{error.provider}: ").removeprefix(f"{error.provider}, ")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """The result of one probe.

    Attributes:
        server: the server; None if no model server was recognised.
        model: the model that a request would use; None if unknown or ambiguous.
        error: the error that a request would raise now; None if it would succeed.
        latency_s: the seconds until the server responded; None if it did not.
    """

    server: Server | None
    model: Model | None
    error: LLMError | None
    latency_s: float | None


class ModelCatalog:
    """Probes one server, and caches its models and their capabilities.

    Args:
        kinds: the specs of the kinds of server to recognise at the endpoint, for example Ollama and vLLM.
        overrides: the capabilities that the operator configured. They win over every other source.
        other_models: the other configured models, by environment variable.
        expires: whether cached results expire. False with cassettes (recorded responses), because the number of
            probes must not depend on the time.

    Attributes:
        server: the server that the last successful probe found; None before the first such probe.
    """

    def __init__(
        self,
        spec: ProviderSpec,
        client: Client,
        kinds: Sequence[ProviderSpec],
        model: str | None,
        overrides: Mapping[str, Any],
        other_models: Mapping[str, str | None],
        *,
        expires: bool = True,
    ) -> None:
        self.client, self.overrides, self._expires = client, overrides, expires
        self.server: Server | None = None
        self._spec, self._kinds, self._configured_name, self._other_models = spec, kinds, model, other_models
        self._failure: LLMError | None = None  # the error of the last probe, if it concerns every model
        self._models: dict[str | None, Model] = {}  # by requested name; None for a request without a model

    def alternatives_hint(self, requested: str | None) -> str:
        """Return a hint with the models of a local server, and the command to download the requested model.

        Return "" for a cloud, before the first successful probe, or if ``requested`` is None.
        """
        return self._models_hint(requested, self.server) if requested and self.server and self._spec.local else ""

    def _models_hint(self, requested: str, server: Server) -> str:
        names = [model.name for model in server.chat_models]
        similar = " or ".join(find_similar(requested, names)) or "another one"
        setting = f"Set {self._spec.variable('model')} or model= to {similar}" if names else ""
        listed = ", ".join(names[:_MAX_LISTED_MODELS]) + (", …" if len(names) > _MAX_LISTED_MODELS else "")
        command = self._pull_command(requested)
        sentences = [setting, f"The server has {listed or 'no model'}", command and f"Get the model{command}"]
        return ". ".join(filter(None, sentences))

    def _pull_command(self, model: str) -> str:
        """Return a colon and the command to download a model; "" if the server has no such command."""
        command = self._spec.server.pull_command
        return f": `{command.format(model=shlex.quote(printable(model, _MAX_NAME_CHARS)))}`" if command else ""

    def predict(self, name: str | None) -> tuple[str | None, str | None]:
        """Predict from the last probe which model will answer a request, or why the request will fail.

        Return (name, None) or (None, reason). Return (None, None) if the result is unknown, or if the server is loading
        the model, because the request then waits.
        """
        error = self._failure
        try:
            if self.server and not error:
                return self._choose(self.server, name).name, None
        except LLMError as choice_error:
            error = choice_error
        return None, message_without_provider(error) if error and not isinstance(error, errors.ModelLoading) else None

    def clear(self) -> None:
        """Clear the cached models, so that the next request probes again."""
        self._models.clear()

    async def health(self, timeout_s: float = LONG_PROBE_S) -> Health:
        """Probe for at most ``timeout_s`` seconds, and return the state of the server."""
        result = await self._probe(self._configured_name, timeout_s)
        server = result.server or Server()
        # A server with several models is ready, although requests must name a model
        ambiguous = isinstance(result.error, errors.NotConfigured) and result.server is not None
        error = None if ambiguous else result.error
        if error:
            add_error_context(error, self._spec, self.client.endpoint, None)
        name = result.model.name if result.model else self._configured_name
        if self._configured_name and result.model and result.model.resembles(self._configured_name):
            name = self._configured_name
        return Health(
            state=state_of(error) if error else "ready",
            provider=self._spec.name,
            base_url=self.client.endpoint.base_url,
            detail=message_without_provider(error) if error else self._remarks(result),
            latency_s=result.latency_s,
            server=server.spec.title if server.spec else None,
            version=server.version,
            model=name,
            cold=None if result.model is None or result.model.loaded is None else not result.model.loaded,
            models=tuple(model.name for model in server.chat_models),
            capabilities=self.capabilities(name),
        )

    async def models(self, timeout_s: float = LONG_PROBE_S, *, all_models: bool = True) -> list[Model]:
        """Probe, and return the chat models. Raise LLMError if they could not be listed.

        If ``all_models``, read the capabilities of up to 64 models, else only of the model that a request would use.
        """
        result = await self._probe(self._configured_name, timeout_s, all_models=all_models)
        if result.server and isinstance(result.error, errors.NotConfigured | errors.ModelNotFound | None):
            return result.server.chat_models
        raise result.error or errors.ServerFailed("the models could not be listed")

    async def choose_name(self, requested: str | None) -> str:
        """Choose the model name to send: the requested one, else the loaded one, else the only one.

        Raises:
            NotConfigured: no model is requested, and the server is a cloud or has several suitable models.
            NotLocal: LLM_LOCAL_ONLY is set, and the server may forward requests for the model to another machine.
            LLMError: the server could not be probed, or has no suitable model.
        """
        name = self._normalize_name(requested)
        if name is None:
            if not self._spec.local:
                self._choose(Server(), None)  # raises NotConfigured, without a probe of the cloud
            name = await self._find_default_name()
        if self.client.local_only and self._spec.local:
            await self._refuse_remote(name)
        return name

    async def _find_default_name(self) -> str:
        """Return the name of the loaded model, else of the only one.

        If the probe fails temporarily, return the cached name, because the request may still succeed. Behind a load
        balancer, the probe may reach a dead replica, and the request may reach a live one.
        """
        model = self._models.get(None)
        if model is None or not self._is_fresh(None, MAX_AGE_S):
            try:
                model = await self.probe_model(None)
            except (errors.FirstTokenTimeout, errors.ServerFailed, errors.Overloaded, errors.RateLimited):
                if model is None or (self.server and self.server.fault):
                    raise
        return model.name

    async def probe_model(self, requested: str | None) -> Model:
        """Probe, and return the model that a request would use. Raise LLMError if the request would fail."""
        result = await self._probe(requested, LONG_PROBE_S)
        if result.error or result.model is None:
            raise result.error or errors.ModelNotFound("the server has no model")
        return result.model

    async def load(self, name: str, context_length: int | None, keep_alive: str | float | None) -> None:
        """Send the request that loads a model. Some servers respond before the model is loaded.

        Args:
            name: the name of the model.
            context_length: in tokens; None for the server's default.
            keep_alive: how long the model stays loaded, in seconds or like "30m"; None for the server's default.

        Raises:
            LLMError: the server cannot be reached, or cannot load the model.
        """
        spec = self._spec
        path, body = str(spec.server.load_path), dict[str, Any](model=name)
        if spec.server.load_with_keep_alive and keep_alive is not None:
            path, body = spec.server.load_with_keep_alive(name, keep_alive)
        if context_length and spec.dialect.format_options:
            body["options"] = spec.dialect.format_options({}, context_length)
        await fetch(self.client, path, {**body, **spec.server.launch_options})

    @property
    def loads_models(self) -> bool:
        """Return whether the server has a request that loads a model. Return False with cassettes."""
        kind = self.server.spec if self.server else None
        return self._expires and any(spec.server.load_path for spec in (self._spec, kind) if spec)

    async def is_loading(self, name: str, timeout_s: float) -> bool:
        """Probe whether requests for this model wait until it is loaded. Return False if the probe fails."""
        result = await self._probe(name, timeout_s)
        model = result.model
        return isinstance(result.error, errors.ModelLoading) or (model is not None and model.loaded is False)

    def is_cold(self, name: str | None) -> bool:
        """Return whether the server must load this model before it responds, according to the last probe."""
        model = self._models.get(self._normalize_name(name))
        return self.client.server_stopped or (model is not None and model.loaded is False)

    def other_model_name(self, requested: str, served: str | None) -> str | None:
        """Return the name of the model that answered; None if it is the requested model.

        ``served`` is the name in the response. Some servers copy the requested name, even if another model answers.
        Therefore the name comes from the last probe, unless ``served`` names a third model.
        """
        model = self._models.get(requested) or Model(name=requested)
        if served in (None, requested) or model.has_name(str(served)):
            served = model.name
        return None if model.has_name(requested) and served == model.name else served

    def mark_loaded(self, name: str, context_length: int | None = None) -> None:
        """Record that this model has responded, so it is loaded. ``context_length`` is in tokens; None if unknown."""
        new_capabilities = {"context_served": context_length} if context_length else {}
        for key, model in self._models.items():
            if model.has_name(name):
                self._models[key] = replace(model, loaded=True, capabilities={**model.capabilities, **new_capabilities})

    async def describe(self, name: str, timeout_s: float = QUICK_PROBE_S, max_age_s: float = math.inf) -> Model:
        """Return this model from the cache, else from a probe.

        After a failed probe, return the cached result of any age, else a model with only a name.

        Raises:
            ConnectionFailed, ConnectTimeout: the server cannot be reached.
        """
        if not self._is_fresh(name, max_age_s):
            with suppress(errors.NotRecorded):  # if the cassettes lack this probe, the model stays unknown
                result = await self._probe(name, timeout_s)
                if isinstance(result.error, errors.ConnectionFailed | errors.ConnectTimeout):
                    raise result.error
            model = self._models.get(name) or Model(name=name)
            self._models[name] = replace(model, probed_at=asyncio.get_running_loop().time())
        return self._models[name]

    def was_probed_since(self, requested: str | None, time: float) -> bool:
        """Return whether a model was probed at or after this time, on the event loop's clock."""
        model = self._models.get(requested)
        return model is not None and (model.probed_at or -math.inf) >= time

    def _is_fresh(self, requested: str | None, max_age_s: float) -> bool:
        oldest = asyncio.get_running_loop().time() - max_age_s if self._expires else -math.inf
        return self.was_probed_since(requested, oldest)

    def lacking_capabilities(self, name: str | None = None) -> frozenset[str]:
        """Return the capabilities that a model lacks, according to the spec, the server or the operator.

        The price map is not used, because it may be outdated.
        """
        return frozenset(flag for flag, value in self.capabilities(name, use_price_map=False).items() if value is False)

    def capabilities(self, name: str | None = None, *, use_price_map: bool = True) -> Capabilities:
        """Return the capabilities of a model, by default the configured one. No request is sent.

        The sources are the spec, the price map, the server and the operator. Later sources win.
        """
        spec, name = self._spec, name or self._configured_name
        model = self._models.get(self._normalize_name(name))
        runs_locally = is_local(self.client.endpoint, local_only=self.client.local_only) and not (
            model and model.remote
        )
        # The cost of a usually local server is unknown if the server is remote, because it may be a paid service
        cost_entry = {} if runs_locally or not spec.local else {"cost": None}
        by_spec = Capabilities(**{**spec.capabilities, "local": runs_locally, **cost_entry})  # type: ignore[typeddict-item]
        by_map = model_prices.capabilities_of(spec, name) if use_price_map else {}
        reported = dict(model.capabilities) if model else {}
        return merge_capabilities(by_spec, by_map, reported, self.overrides)

    def rejected(self, name: str) -> frozenset[str]:
        """Return the parameters and reasoning levels that a model rejects, and "reasoning" if it cannot think.

        If the operator configured that the model can think, every level is supported.
        """
        rejected = model_prices.rejected_by(self._spec, name)
        if self.overrides.get("reasoning"):
            rejected -= frozenset(REASONING_LEVELS)
        return rejected.union(["reasoning"] if self.capabilities(name)["reasoning"] is False else [])

    def _normalize_name(self, name: str | None) -> str | None:
        """Return the name; None for "" and, with a local server, for "local-model", which means the loaded model."""
        return None if not name or (name == _LOADED_MODEL_PLACEHOLDER and self._spec.local) else name

    async def _probe(self, requested: str | None, timeout_s: float, *, all_models: bool = False) -> ProbeResult:
        """Probe the server, choose a model, and cache the result.

        The model is the requested one, else the loaded one, else the only one.

        Raises:
            NotRecorded: the cassettes lack this probe. Any other LLMError is returned in the result.
        """
        loop = asyncio.get_running_loop()
        started, model = loop.time(), None
        if not self._spec.local:
            # Load the price map for ``capabilities``. The first load takes 0.1 s, so it runs in a thread
            await asyncio.to_thread(model_prices.price_map)
        server, error = await find_server(self._spec, self.client, self._kinds, started + timeout_s)
        unreachable = server is None and isinstance(error, errors.Unavailable)
        latency_s = None if unreachable else loop.time() - started
        if server and not error:
            try:
                model = self._choose(server, requested)
            except LLMError as choice_error:
                error = choice_error
            chosen_models = [model] if model else []
            models_to_read = server.models[:_MAX_PROBED_MODELS] if all_models else chosen_models
            server = await read_capabilities(self.client, server, models_to_read, started + timeout_s)
            model = next((item for item in server.models if model and item.name == model.name), model)
            error = error or error_of(model)
        self._failure = error if server is None or isinstance(error, errors.Misconfigured) else None
        if server:
            probed_at = loop.time()
            # The model list of a server may repeat a name
            models_by_name = {item.name: replace(item, probed_at=probed_at) for item in server.models}
            server = self.server = replace(server, models=tuple(models_by_name.values()))
            if all_models:
                self._models.update(models_by_name)
            if model:
                model = models_by_name.get(model.name, model)
                self._models.update({model.name: model, self._normalize_name(requested): model})
        return ProbeResult(server=server, model=model, error=error, latency_s=latency_s)

    def _choose(self, server: Server, requested: str | None) -> Model:
        """Choose the model: the requested one, else the loaded one, else the only one. Raise LLMError if this fails."""
        spec = self._spec
        if name := self._normalize_name(requested):
            model = server.find(name)
            if not model and server.models and spec.api.lists_all_models:
                hint = self._models_hint(name, server)
                raise errors.ModelNotFound("the server does not have the model", model=name, hint=hint)
            return model or Model(name=name)
        if not spec.local:
            raise errors.NotConfigured("no model is named", hint=f"Set {spec.variable('model')}, or give model=")
        # A remote model is used only if requested
        local_models = [model for model in server.chat_models if not model.remote]
        candidates = [model for model in local_models if model.loaded] or local_models
        if len(candidates) == 1:
            return candidates[0]
        hint = f"Set {spec.variable('model')} to one of them, or give model="
        if candidates:
            names = ", ".join(model.name for model in candidates[:20])
            raise errors.NotConfigured(f"no model is named, and the server has {len(candidates)}: {names}", hint=hint)
        if server.chat_models:
            what = "no model is named, and the server has only remote models: prompts would leave this machine"
            raise errors.ModelNotFound(what, hint=hint)
        raise errors.ModelNotFound("the server has no model", hint=f"Get one{self._pull_command('MODEL') or ' first'}")

    async def _refuse_remote(self, name: str) -> None:
        """Raise NotLocal if the server forwards this model's requests elsewhere, or does not report whether it does.

        Raise another LLMError if the server cannot be probed.
        """
        if self.server is None or not self._is_fresh(name, MAX_AGE_S):
            result = await self._probe(name, LONG_PROBE_S)
            if result.server is None and result.error:
                raise result.error
        model = self._models.get(name)
        kind = self.server.spec if self.server else None
        forwarder = next((spec for spec in (self._spec, kind) if spec and spec.server.forwards_requests), None)
        if forwarder is None:
            return
        if model is None or self.server is None or kind is None or self.server.find(name) is None:
            fault = "does not report whether it forwards this model elsewhere"
            hint = "Nothing was sent. Check the model's name and the server's log"
        elif model.remote:
            fault = "forwards this model elsewhere"
            hint = f"Set {self._spec.variable('model')} to a model that runs on the server, or LLM_LOCAL_ONLY=false"
        else:
            return
        raise errors.NotLocal(f"LLM_LOCAL_ONLY is set, and {forwarder.title} {fault}", hint=hint)

    def _shutdown_notices(self, server: Server, chosen: Model | None) -> Iterator[str]:
        """Yield a sentence for each configured model that its vendor has shut down, or shuts down within 90 days.

        A date in the server's model list wins over the price map. ``chosen`` is the model that a request would use.
        """
        spec, today = self._spec, switches.today or date.today()  # noqa: DTZ011  # the user's local date
        configured = {spec.variable("model"): chosen.name if chosen else None, **self._other_models}
        for name in filter(None, dict.fromkeys(configured.values())):
            listed = server.find(name)
            if spec.api.lists_all_models and server.models and not listed:
                continue  # the model belongs to another provider
            end = (listed and listed.end_date) or model_prices.shutdown_date(spec, name)
            if end and (end - today).days <= _SHUTDOWN_NOTICE_DAYS:
                variables = " and ".join(variable for variable, model in configured.items() if model == name)
                yield f"the model {name} {'ended' if end < today else 'ends'} on {end}. Set {variables} to a newer one"

    def _remarks(self, result: ProbeResult) -> str:
        """Return "ready" and remarks, for example about a model that is not loaded, or another kind of server."""
        remarks = ["ready"]
        if result.model and result.model.loaded is False:
            remarks.append(f"cold: {result.model.name} is not loaded yet, the first request waits for it")
        if result.model and self._configured_name and not is_same_model(self._configured_name, result.model.name):
            remarks.append(f"the server answers with {result.model.name}, not with {self._configured_name}")
        if result.error:
            remarks.append(f"{result.error.what}. {result.error.hint}")
        remarks += self._shutdown_notices(result.server or Server(), result.model)
        kind = result.server.spec if result.server else None
        if kind and kind.name != self._spec.name:
            setting = suggest_setting(self._spec, kind, self.client.endpoint.server_url)
            remarks.append(f"the server is {kind.title}. {setting} to use its features")
        if not self._spec.is_tested:
            remarks.append("untested: the provider's settings come from its documentation and LiteLLM's table")
        return "; ".join(remarks)
