"""``ProviderSpec`` describes a vendor. ``Server`` and ``Model`` are the result of a probe.

A probe reads a server's pages, for example its list of models. Each module in ``providers`` has the spec of one
vendor. The spec also holds the vendor's functions, so that other packages do not import the vendor's module.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import lru_cache
from typing import Any, Final, Literal

from .capabilities import Capabilities, State, default_capabilities
from .errors import LLMError
from .parameters import COMMON_KEYWORDS, SAMPLING, Reasoning

SchemaMode = Literal["json_schema", "json_object", "prompt"]

# The types of content parts that LiteLLM forwards. It drops other types.
CONTENT_PARTS: Final = frozenset({"text", "image_url", "input_audio", "audio_url", "video_url", "file", "document"})
CHAT_PATH: Final = "/chat/completions"
RESPONSES_PATH: Final = "/responses"
SETTINGS: Final = (
    *("base_url", "api_key", "headers", "model", "vision_model", "context", "max_concurrency", "capabilities"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that a server reports.

    Attributes:
        name, aliases: the values for ``model=``.
        loaded: whether the model is in memory; None if unknown.
        chat: False for example for an embedding model.
        remote: whether the server forwards the model's requests to another machine, as for Ollama's cloud models.
        fault: why the model cannot respond now: a state and an explanation. None if it can.
        end_date: the announced day on which the model is shut down, if any.
        capabilities: the capabilities that the server reports, by name.
        probed_at: the time of the last probe, on the clock of the event loop.
    """

    name: str
    aliases: tuple[str, ...] = ()
    loaded: bool | None = None
    chat: bool = True
    remote: bool = False
    fault: tuple[State, str] | None = None
    end_date: date | None = None
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    probed_at: float | None = None

    def has_name(self, name: str) -> bool:
        """Return whether ``name`` is the model's name or an alias."""
        return name == self.name or name in self.aliases

    def resembles(self, name: str) -> bool:
        """Return whether ``name`` is the model's name, ignoring case.

        It may omit a prefix of the model's name, such as "models/" or a publisher.
        """
        return f"/{self.name}".casefold().endswith(f"/{name}".casefold())


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The properties that a server reports. None means unknown.

    Attributes:
        spec: the spec of this kind of server.
        version, models: the version of the server, and all its models.
        slots: the concurrency limit.
        accepts_any_name: whether the server ignores ``model=`` and responds with its only model.
        fault: why the server cannot respond now: a state and an explanation. None if it can.
    """

    spec: ProviderSpec | None = None
    version: str | None = None
    slots: int | None = None
    models: tuple[Model, ...] = ()
    accepts_any_name: bool = False
    fault: tuple[State, str] | None = None

    @property
    def chat_models(self) -> list[Model]:
        """Return the models that can chat."""
        return [model for model in self.models if model.chat]

    def find(self, name: str) -> Model | None:
        """Return the model with this name, else the only candidate, else None.

        The candidates are the models that resemble the name. If the server accepts any name, they are all its models.
        """
        if exact := next((model for model in self.models if model.has_name(name)), None):
            return exact
        matches = self.models if self.accepts_any_name else [model for model in self.models if model.resembles(name)]
        return matches[0] if len(matches) == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The response to a request of a probe. ``body`` is its JSON object, or {} if the response has none."""

    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    error: LLMError | None = None

    def rows(self, key: str) -> list[Mapping[str, Any]] | None:
        """Return the objects in the list ``key`` of the body. A string in the list becomes an object with this "id".

        Return [] if the value is ``null``. Return None if the page has an error, or no such list.
        """
        rows = self.body.get(key, False)
        if self.error or not (rows is None or isinstance(rows, list)):
            return None
        return [row if isinstance(row, dict) else {"id": row} for row in rows or () if isinstance(row, (dict, str))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The requests that recognise a kind of server, and the functions that parse their responses.

    Attributes:
        pages: the paths to GET. These requests must cost nothing, and load no model.
        parse_pages: parses the pages, by path. It returns None for another kind of server.
        build_model_request: returns the path of the page about a model, and the body to POST (None for a GET). It
            returns None if the server has no such page.
        parse_model_page: returns the model with the properties on its page.
    """

    pages: tuple[str, ...]
    parse_pages: Callable[[Mapping[str, Page]], Server | None]
    build_model_request: Callable[[Model], tuple[str, Mapping[str, Any] | None] | None] = lambda _: None
    parse_model_page: Callable[[Model, Mapping[str, Any]], Model] = lambda model, _: model


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The address of an API, its authentication, and its list of models.

    Attributes:
        default_url: the base URL if none is configured; None if it must be configured.
        api_path: the path of the API on the server.
        litellm_path: the beginning of the path that LiteLLM appends to the base URL. It is removed from a configured
            URL, with everything after it.
        removed_suffixes: the endings that are removed from the path of a configured URL.
        cloud_host: the host of the vendor's cloud, if the server is usually local. The default scheme for this
            host is https.
        default_version: the default version of the API; None if the vendor requires no version.
        key_header, key_scheme: the header with the key, and its authentication scheme ("Bearer").
        headers: further headers. The call's ``session=`` replaces ``{session}`` in a value. Without ``session=``, a
            header with ``{session}`` is not sent.
        choose_variant: returns the spec for a base URL and an API version, if the vendor has several specs (Azure).
        chat_path: the path of chat requests, with ``{model}`` and ``{version}``; None for LiteLLM's path.
        responses_path: the path of the Responses API, with ``{version}``. None if the vendor does not have this API, or
            if chat completions serve all its models.
        models_path: the path of the list of models.
        lists_all_models: whether this list is complete. A request for another model is then an error.
        has_aliases: whether the operator chooses the names of models. The name in a response may then differ from that
            in the request.
    """

    default_url: str | None = None
    api_path: str = "/v1"
    litellm_path: str | None = None
    removed_suffixes: tuple[str, ...] = (CHAT_PATH, "/completions", RESPONSES_PATH, "/models")
    cloud_host: str | None = None
    default_version: str | None = None
    key_header: str = "authorization"
    key_scheme: str = "Bearer"
    headers: Mapping[str, str] = field(default_factory=dict)
    choose_variant: Callable[[ProviderSpec, str, str | None], ProviderSpec] | None = None
    chat_path: str | None = None
    responses_path: str | None = None
    models_path: str = "/models"
    lists_all_models: bool = True
    has_aliases: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The format of requests and responses.

    A prefill is a message of the assistant at the end of the prompt. The answer should continue it.

    Attributes:
        parser: the ``StreamParser`` for responses; None for OpenAI's format.
        parameters, content_parts: the supported keywords, and the supported types of content parts.
        downloads_images: whether the server downloads images by URL. If not, images must be data URLs.
        tool_choices: the supported values of ``tool_choice``; None for all values.
        schema_modes: the supported ways to request a schema, the best first. "prompt" adds it to the prompt.
        reasoning: the body's fields for each value of ``reasoning=``; empty if thinking cannot be controlled.
        litellm_marks_reasoning: whether LiteLLM's price map marks all thinking models of the vendor. If so, an
            unmarked model of the map cannot think. A marked model without the levels "minimal" and "none" always
            thinks.
        session_field: the body's field for ``session=``.
        body_fields: the fields that are added to every body.
        format_options: returns the body's ``options`` for the sampling parameters and the context length in tokens.
            None if these are fields of the body, as in OpenAI's API.
        chat_path_without_litellm: the path of text-only chat requests, which this package writes itself until LiteLLM
            is imported, because the import takes seconds (ADR 10). None if LiteLLM would write a different request.
        supports_stream_usage: whether the server supports ``stream_options``.
        ignores_prefill: whether the server is known to ignore a prefill without ``continue_final_message``. It then
            starts a new answer.
        supports_prefill: whether the server is known to continue a prefill with ``continue_final_message``.
        build_continuation: returns the request to continue a broken answer, given the client, model, messages, body and
            attempt. None if a prefill or a prompt continues the answer.
    """

    parser: type[Any] | None = None
    parameters: frozenset[str] = COMMON_KEYWORDS | SAMPLING
    content_parts: frozenset[str] = CONTENT_PARTS
    downloads_images: bool = True
    tool_choices: tuple[str, ...] | None = None
    schema_modes: tuple[SchemaMode, ...] = ("json_schema", "json_object", "prompt")
    reasoning: Reasoning = field(default_factory=dict)
    litellm_marks_reasoning: bool = False
    session_field: str | None = None
    body_fields: Mapping[str, Any] = field(default_factory=dict)
    format_options: Callable[[Mapping[str, Any], int | None], dict[str, Any]] | None = None
    chat_path_without_litellm: str | None = None
    supports_stream_usage: bool = True
    ignores_prefill: bool = False
    supports_prefill: bool = False
    build_continuation: Callable[..., Awaitable[Any]] | None = None

    @property
    def can_continue(self) -> bool:
        """Return whether the server can continue a broken answer.

        If not, the router adds a continuation instruction to the prompt.
        """
        return self.supports_prefill or self.build_continuation is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSupport:
    """The features of a local server beyond chat. None means that the server lacks the feature, unless noted.

    Attributes:
        probe: how to recognise the server; None if it has no distinctive pages.
        forwards_requests: whether the server may forward requests to another machine, see ``Model.remote``.
        locality_caveat: why prompts may reach another machine even if the address is local.
        load_path: the path that loads a model (POST ``{"model": …}``).
        launch_options: the fields that load requests must share with chat requests. If they differ, the server loads
            the model again.
        load_with_keep_alive: returns the path and body of a request that loads a model for a time. Its arguments are
            the model's name and this time (``keep_alive``).
        pull_command: the command to download ``{model}``.
        count_tokens: returns the number of tokens of a prompt, given the client, model, messages and tools.
        choose_context_length: returns the context length to request in tokens, or None for the server's default. Its
            arguments are the tokens of prompt and answer, the loaded context length, and the model's maximum.
        context_option: the server's own option for the context length, for hints; "" if requests set it.
        truncates_prompts: returns whether the server silently drops the beginning of a long prompt, and then reports a
            low number of prompt tokens. Its arguments are the server's version, and whether requests use the server's
            own API instead of OpenAI's.
        compose_service: the name of the server in the compose file.
        start_command: the commands that start the server with a small model, for hints.
        down_hint: the hint if the server does not respond; None for the default hint.
        server_variables: the server's own environment variables that begin with the provider's name.
    """

    probe: Probe | None = None
    forwards_requests: bool = False
    locality_caveat: str | None = None
    load_path: str | None = None
    launch_options: Mapping[str, Any] = field(default_factory=dict)
    load_with_keep_alive: Callable[[str, str | float], tuple[str, dict[str, Any]]] | None = None
    pull_command: str | None = None
    count_tokens: Callable[..., Awaitable[int]] | None = None
    choose_context_length: Callable[[int, int | None, int | None], int | None] | None = None
    context_option: str = ""
    truncates_prompts: Callable[[str | None, bool], bool] | None = None
    compose_service: str | None = None
    start_command: str | None = None
    down_hint: str | None = None
    server_variables: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProviderSpec:
    """The spec of one provider: of a vendor, or of an endpoint.

    An endpoint is a server with a name of the operator's choice. Its spec is a copy, see ``endpoint_spec``.

    Attributes:
        name: the value for ``LLM_PROVIDER``.
        title: the name in messages.
        litellm_provider: the provider in LiteLLM that writes requests and maps errors.
        otel_name: OpenTelemetry's ``gen_ai.provider.name``; None if it is ``name``.
        kind: for an endpoint, the ``name`` of the vendor whose spec was copied. None for a vendor.
        is_tested: whether tests cover the spec. Specs from LiteLLM's table of vendors are untested.
        tested_versions: the versions of the real server that the tests used. None if the tests used only cassettes
            (files of responses) written from the vendor's documents.
        local: whether the server is usually local. It then requires no key, and has longer timeouts.
        settings: the supported fields of ``ProviderSettings``. Their variables are ``<NAME>_<SETTING>``.
        other_variable_names: the names of the same variables in other tools, by setting. In the same source (the
            environment or a file), ``<NAME>_<SETTING>`` has precedence.
        example_model: the model in ``env.example``.
        max_concurrency: the default concurrency limit; None for no limit.
        capability_overrides: the capabilities that are certain without a probe.
    """

    name: str
    title: str
    litellm_provider: str
    otel_name: str | None = None
    kind: str | None = None
    is_tested: bool = True
    tested_versions: str | None = None
    local: bool = False
    api: Api = Api()
    dialect: Dialect = Dialect()
    server: ServerSupport = ServerSupport()
    settings: tuple[str, ...] = SETTINGS
    other_variable_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    example_model: str | None = None
    max_concurrency: int | None = None
    capability_overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def capabilities(self) -> Capabilities:
        """Return ``capability_overrides``, with a default or None (unknown) for each other capability."""
        return default_capabilities(local=self.local, **self.capability_overrides)

    @property
    def starts_server(self) -> bool:
        """Return whether this package starts the server. Its address is then not a setting."""
        return "base_url" not in self.settings

    @property
    def context_setting(self) -> str:
        """Return the variable, or the server's option, that sets the context length; "" if neither is known."""
        has_variable = self.starts_server or self.server.choose_context_length
        return self.variable("context") if has_variable else self.server.context_option

    def variable(self, setting: str) -> str:
        """Return the name of the environment variable of a setting."""
        return f"{self.name.upper().replace('-', '_')}_{setting.upper()}"

    def variable_names(self, setting: str) -> tuple[str, ...]:
        """Return all names of the variable of a setting, ``<NAME>_<SETTING>`` first."""
        return (self.variable(setting), *self.other_variable_names.get(setting, ()))


@lru_cache(maxsize=256)
def endpoint_spec(spec: ProviderSpec, name: str) -> ProviderSpec:
    """Return a copy of a vendor's spec for an operator's endpoint. Its variables begin with the endpoint's name."""
    return replace(
        spec,
        name=name,
        kind=spec.kind or spec.name,
        settings=(*(name for name in spec.settings if name != "kind"), "kind"),
        api=replace(spec.api, default_url=None),
        server=replace(spec.server, compose_service=None, start_command=None),
        other_variable_names={},
    )
