"""``BaseProvider``: the base class of the providers of this package."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

from .. import errors, events, journal, settings
from ..base import AbstractProvider, Attempt, Call, TimeOptions
from ..capabilities import Capabilities, Health
from ..completion import restore_extra
from ..errors import LLMError, clear_cause
from ..parameters import ApiName, check_keywords
from ..provider_spec import Model, ProviderSpec
from ..replay import active
from ..servers import model_prices
from ..servers.model_catalog import LONG_PROBE_S, ModelCatalog
from ..stream import Work
from ..timeouts import choose_timeouts
from ..transport import network
from ..transport.client import NETWORK, Client
from ..transport.endpoint import configure_endpoint
from . import _litellm
from .answer import redact
from .attempt import AttemptRunner
from .context_window import requested_context
from .joining import run_with_prior_text
from .options import checked_keywords
from .request import build_request
from .routable import Facts, RoutableProvider, comparable_names

_PROBE_INTERVAL_S = 0.5  # between two probes of a server that is loading


class BaseProvider(AbstractProvider, RoutableProvider):
    """One provider. ``learnflow.llm.providers`` has a class for each vendor.

    An argument defaults to an environment variable, for example ``model`` to ``OPENAI_MODEL``.

    Args:
        base_url: the address of the server, with or without ``/v1`` and trailing slash.
        model: the default model.
        api_key: the API key. A key from the environment is sent only to the host that it was issued for.
        vision_model: the default model for prompts with images; ``model`` if not set.
        headers: additional headers of every request to the server, as a dict or in the format of ``<NAME>_HEADERS``.
            ``{session}`` in a value becomes the call's ``session=``. Without ``session=``, such a header is not sent.
        api: "chat" for chat completions, "responses" for OpenAI's Responses API; None to choose by model and request.
        times: ``connect_timeout``, ``first_token_timeout``, ``gap_timeout`` and ``deadline`` in seconds;
            ``local_only``; ``max_concurrency``.

    Raises:
        NotConfigured: the address is invalid or missing, a header is invalid, or the vendor lacks the chosen API.
        KeyMissing: the key is missing, and the vendor requires one.
    """

    spec: ProviderSpec  # ``spec.api.choose_variant`` can select a variant by the address, for example for Azure
    _transport: Any = None  # an httpx transport to use instead of the network
    _server_kinds: Sequence[ProviderSpec] = ()  # the kinds of server that a probe recognises; if empty, only ``spec``

    def __init__(
        self,
        base_url: str | None = None,
        model: str | None = None,
        api_key: str | None = None,
        vision_model: str | None = None,
        *,
        headers: Mapping[str, str] | str | None = None,
        api: ApiName | None = None,
        **times: Unpack[TimeOptions],
    ) -> None:
        check_keywords(BaseProvider.__init__, locals(), errors.NotConfigured, self.spec.name)
        spec = self.spec
        common, own = settings.load(), settings.load_provider(spec)  # the settings of all providers, and of this one
        cassettes = active.current(common)
        if cassettes and not (base_url or own.base_url or spec.api.default_url):
            base_url = cassettes.base_url(self.cassette_folder, local=spec.local)
        plays_cassettes = active.is_replay(cassettes)
        if spec.api.choose_variant:
            self.spec = spec.api.choose_variant(spec, base_url or own.base_url or "", own.api_version)
        if (api := api or own.api) == "responses" and not self.spec.api.responses_path:
            what, hint = (
                f"{spec.title} has no Responses API at this address",
                f"Unset {spec.variable('api')}, and omit api=",
            )
            raise errors.NotConfigured(what, provider=spec.name, hint=hint)
        local_networks = common.llm_local_networks
        self.endpoint = configure_endpoint(
            self.spec, own, base_url, api_key, headers, keyless=plays_cassettes, local_networks=local_networks
        )
        self.model = model or own.model
        self.vision_model = vision_model or own.vision_model
        self._timeouts = choose_timeouts(self.spec, times, common, own)
        transport = self._transport
        if cassettes:
            transport = cassettes.transport(transport or NETWORK, self.cassette_folder)
        client = Client(self.endpoint, self._timeouts.connect, self._timeouts.local_only, transport, plays_cassettes)
        overrides, cache_expires = own.configured_capabilities, cassettes is None
        other_models = {spec.variable("vision_model"): self.vision_model, **settings.node_models()}
        kinds = self._server_kinds or (self.spec,)
        self.catalog = ModelCatalog(
            self.spec, client, kinds, self.model, overrides, other_models, expires=cache_expires
        )
        log_content, reask = common.llm_log_content, common.llm_reask
        self._common = common
        self.runner = AttemptRunner(
            self.spec, client, self._timeouts, self.catalog, self.address, log_content, reask, api
        )

    def __repr__(self) -> str:
        vision = f", vision_model={self.vision_model!r}" if self.vision_model else ""
        return f"{type(self).__name__}(base_url={self.endpoint.base_url!r}, model={self.model!r}{vision})"

    @property
    def name(self) -> str:
        """Return the provider's name, which ``LLM_PROVIDER`` uses."""
        return self.spec.name

    @property
    def address(self) -> str:
        """Return the key of the circuit breakers and the queue: the base URL.

        An endpoint with a configured name (``<NAME>_KIND``) has its own key, even if another endpoint has this URL.
        """
        return f"{self.endpoint.base_url} ({self.name})" if self.spec.kind else self.endpoint.base_url

    def facts(self, model: str | None) -> Facts:
        """Return the properties known from spec, configuration and last probe; see ``RoutableProvider.facts``."""
        spec, endpoint, timeouts, name = self.spec, self.endpoint, self._timeouts, model or self.model
        capabilities = self.get_capabilities(name)
        if spec.server.choose_context_length and "context_served" not in self.catalog.overrides:
            # The current context length is no limit, because the server can reload the model with its maximum length
            lengths = capabilities["context"], capabilities["context_served"]
            capabilities["context_served"] = max(filter(None, lengths), default=None)
        return Facts(
            address=self.address,
            capabilities=capabilities,
            first_token_s=timeouts.first_token,
            gap_s=timeouts.gap,
            deadline_s=timeouts.own_deadline,
            names=comparable_names(name),
            has_model=model is not None and self._has_model(model),
            cold=self.catalog.is_cold(name),
            loads=bool(spec.server.load_path),
            supports_prefill=self.runner.continuation_spec is not None,
            replays=self.runner.client.replays,
            concurrency_limit=self.runner.concurrency_limit,
            looks_local=spec.local or endpoint.looks_local,
            local_only=timeouts.local_only,
            lacking_capabilities=self.catalog.lacking_capabilities(name),
        )

    def _has_model(self, model: str) -> bool:
        """Return whether the configuration, the server's list or LiteLLM's price map contains a model."""
        server = self.catalog.server
        if model in (self.model, self.vision_model):
            return True
        if server and server.models:
            return server.find(model) is not None
        return bool(model_prices.capabilities_of(self.spec, model)["context"])

    def start(self, call: Call) -> Work:
        """Return a coroutine function that runs a call; see ``AbstractProvider.start``."""
        attempt = Attempt(request_number=events.next_request_number(), metadata=call.metadata)
        work = self.attempt(call, attempt)  # raises an error if the call is invalid
        if call.after or self._common.llm_journal:
            run = partial(run_with_prior_text, self.attempt, attempt, self.name)
            work = journal.with_journal(self._common, self._timeouts.deadline, run, call)
        return partial(events.run_request, self.name, call.model or self.model, attempt, work)

    def attempt(self, call: Call, attempt: Attempt) -> Work:
        """Return a coroutine function that runs one attempt; see ``RoutableProvider.attempt``."""
        try:
            keywords = checked_keywords(self.spec, call)
            prepared = build_request(self.spec, call.prompt, call.model or self.model, keywords)
            messages = [restore_extra(message, self.runner.origin) for message in prepared.messages]
            prepared = replace(prepared, messages=messages)
        except LLMError as error:
            error.provider = self.name
            raise
        if self.vision_model and not call.model and prepared.image_count:
            prepared = replace(prepared, model=self.vision_model)
        prepared = replace(prepared, buffered=call.buffered, is_journaled=call.recorded is not None)
        return self.runner.start(prepared, attempt)

    async def prepare(self) -> None:
        """Import LiteLLM in a thread. Without this call, the import delays the first request by seconds."""
        await _litellm.prepare(self.spec, self.endpoint)

    async def aclose(self) -> None:
        """Close this event loop's idle connections to the server. The provider can be used again afterwards.

        Without this call, the connections are closed when the event loop ends.
        """
        await network.close_idle(self.endpoint.origin)

    async def list_models(self) -> list[str]:
        """Return the names of the chat models. Raise LLMError if they cannot be listed."""
        with self._detailed_errors():
            return [model.name for model in await self.catalog.models(all_models=False)]

    async def models(self, within: float = LONG_PROBE_S) -> list[Model]:
        """Return the chat models with their capabilities.

        Args:
            within: time limit of the probes in seconds.

        Raises:
            LLMError: the models cannot be listed.
        """
        with self._detailed_errors():
            return await self.catalog.models(within)

    async def health_check(self) -> bool:
        """Probe the server, and return whether a request would succeed now. Loads no model."""
        return (await self.refresh()).ready

    async def refresh(self, within: float = LONG_PROBE_S) -> Health:
        """Probe the state and the capabilities of the server, and cache them.

        Args:
            within: time limit of the probes in seconds.

        Returns:
            The health of the server, with the fault if the probe failed.

        Raises:
            NotRecorded: the cassettes (recorded responses) of LLM_REPLAY do not contain this probe. No other error is
                raised.
        """
        health = await self.catalog.health(within)
        events.emit(events.HealthChecked(provider=self.name, state=health.state))
        return health

    def get_capabilities(self, model: str | None = None) -> Capabilities:
        """Return the capabilities of a model, from the spec, the last probe and the configuration. Sends nothing.

        Args:
            model: the name of the model; None for the default model. If ``vision_model`` is set,
                ``vision`` is that of this model.
        """
        capabilities = self.catalog.capabilities(model)
        if model is None and self.vision_model:
            capabilities["vision"] = self.catalog.capabilities(self.vision_model)["vision"]
        return capabilities

    async def warm_up(self, model: str | None = None, *, keep_alive: str | float | None = None) -> None:
        """Load a model, and wait until it is loaded. Import LiteLLM meanwhile.

        Args:
            model: the name of the model; None for the default model.
            keep_alive: how long the model stays loaded, in seconds or like "30m"; None for the server's default.

        Raises:
            ModelLoading: the model was not loaded within LLM_LOAD_TIMEOUT seconds.
            Unsupported: the server does not support ``keep_alive``.
            LLMError: the server cannot be reached, or cannot load the model.
        """
        if keep_alive is not None and not self.spec.server.load_with_keep_alive:
            raise errors.Unsupported(f"{self.spec.title} does not support keep_alive=", provider=self.name)
        name = model or self.model
        with self._detailed_errors(name):
            try:
                async with asyncio.timeout(self._timeouts.load):
                    await asyncio.gather(self.prepare(), self._load(name, keep_alive))
            except TimeoutError:
                what = f"not loaded within {self._timeouts.load:g} s"
                raise errors.ModelLoading(what, hint="Raise LLM_LOAD_TIMEOUT") from None

    @contextmanager
    def _detailed_errors(self, model: str | None = None) -> Iterator[None]:
        """Return a context manager that adds the provider's name and a hint to an LLMError, and masks secrets."""
        try:
            yield
        except LLMError as error:
            redact(self.runner.record_failure(error, model), self.endpoint)
            raise clear_cause(error)  # noqa: B904  # ``clear_cause`` removes the context

    async def _load(self, name: str | None, keep_alive: str | float | None) -> None:
        """Wait while the server is loading the model. Then load it if it is not loaded, or if ``keep_alive`` is set.

        If the server has no ``load_path``, only wait, because it cannot load models on request.
        """
        model = await self._wait_while_loading(name)
        if self.spec.server.load_path and not model.remote and (model.loaded is False or keep_alive is not None):
            requested_length = requested_context(self.endpoint.base_url, model.name)
            context_length = self.catalog.overrides.get("context_served") or requested_length
            await self.catalog.load(model.name, context_length, keep_alive)
            await self._wait_while_loading(name)

    async def _wait_while_loading(self, name: str | None) -> Model:
        """Probe the model until the server has finished loading. Return the model."""
        while True:
            try:
                return await self.catalog.probe_model(name)
            except errors.ModelLoading:
                await asyncio.sleep(_PROBE_INTERVAL_S)

    @property
    def cassette_folder(self) -> str:
        """Return the name of the folder with the provider's cassettes (recorded responses)."""
        return self.spec.name
