"""``ProviderSpec`` describes a vendor. ``Server`` and ``Model`` are the result of a probe.

Each file in ``providers`` has the spec of one vendor. The spec also holds the vendor's functions, so that the other
packages work with any vendor and import none.
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
        name: the value for ``model=``.
        aliases: other values for ``model=``.
        loaded: whether it is in memory; None if the server does not report it.
        chat: whether it is a chat model, and not for example an embedding model.
        remote: whether the server forwards requests for it to another machine, as for Ollama's cloud models.
        fault: the state of the model and an explanation if it cannot respond now; None if it can.
        end_date: the day on which the model is shut down; None if the server does not announce it.
        capabilities: the capabilities that the server reports, by name.
        probed_at: the time of the last probe for it, on the clock of the event loop; None before the first one.
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
        """Return whether this is its name or an alias."""
        return name == self.name or name in self.aliases

    def resembles(self, name: str) -> bool:
        """Return whether this is its name, ignoring case and a prefix like "models/" or a publisher."""
        return f"/{self.name}".casefold().endswith(f"/{name}".casefold())


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The properties that a server reports.

    Attributes:
        kind: the spec of this kind of server; None if its pages match no kind.
        version: its version; None if it does not report it.
        slots: its concurrency limit; None if it does not report it.
        models: its models.
        accepts_any_name: whether its only model responds to requests with any ``model=``.
        fault: the state of the server and an explanation if it cannot respond now; None if it can.
    """

    kind: ProviderSpec | None = None
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
        """Return the model with this name, else one that resembles it, else the only one if any name is accepted."""
        if exact := next((model for model in self.models if model.has_name(name)), None):
            return exact
        matches = self.models if self.accepts_any_name else [model for model in self.models if model.resembles(name)]
        return matches[0] if len(matches) == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The response to a request of a probe. ``body`` is its JSON object, which is empty if there is an ``error``."""

    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    error: LLMError | None = None

    def rows(self, key: str) -> list[Mapping[str, Any]] | None:
        """Return the objects in the list ``key``; [] if it is ``null``, None if it is missing or not a list.

        A text in the list is returned as an object with this "id".
        """
        rows = self.body.get(key, False)
        if self.error or not (rows is None or isinstance(rows, list)):
            return None
        return [row if isinstance(row, dict) else {"id": row} for row in rows or () if isinstance(row, (dict, str))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The probe that recognises a kind of server.

    Attributes:
        pages: the paths to GET. Reading them must be free, and must not load a model.
        parse_pages: a function that parses the pages, by path. It returns None if they are of another kind of server.
        build_model_request: a function that returns the path of the page about a model, and the body to POST (None for
            a GET). It returns None if there is no such page.
        parse_model_page: a function that adds the properties on that page to a model.
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
        litellm_path: the path that LiteLLM appends to the base URL, or the beginning of this path. It is cut from a
            configured URL.
        removed_suffixes: the endings that are removed from the path of a configured URL.
        cloud_host: the host of the vendor's cloud, for which the default scheme is https; None without a cloud.
        default_version: the default version of the API; None if the vendor requires no version.
        key_header, key_scheme: the header with the key, and its authentication scheme ("Bearer").
        headers: further headers. ``{session}`` in a value is replaced by the call's ``session=``. In a call without
            ``session=``, a header with ``{session}`` is not sent.
        choose_variant: a function that returns the spec for a base URL and an API version; None if the vendor has
            only one spec.
        chat_path: the path of chat requests, with ``{model}`` and ``{version}``; None for LiteLLM's path.
        responses_path: the path of requests to the Responses API, with ``{version}``; None if the vendor does not have
            it, or if chat completions serve all its models.
        models_path: the path of the list of models.
        lists_all_models: whether the list has every valid model. A request for another model is then an error.
        has_aliases: whether the operator chooses the names of models. The name in a response may then differ.
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

    Attributes:
        parser: the ``StreamParser`` for responses; None for OpenAI's format.
        parameters: the supported keywords.
        content_parts: the supported types of content parts.
        downloads_images: whether the server downloads images by URL. If not, only data URLs are sent.
        tool_choices: the supported values of ``tool_choice``; None for all values.
        schema_modes: the supported ways to request a schema, the best first. "prompt" adds it to the prompt.
        reasoning: the fields of the body for each value of ``reasoning=``; empty if thinking cannot be controlled.
        litellm_marks_reasoning: whether LiteLLM's price map marks all thinking models of the vendor. If so, a listed
            model without a mark cannot think. A marked model without the levels "minimal" and "none" always thinks.
        session_field: the name of the field for ``session=``; None if it is not sent in the body.
        body_fields: the fields that are added to every body.
        format_options: a function that returns the ``options`` object of the body, given the sampling parameters and
            the context length. None if the parameters are fields of the body, as in OpenAI's API.
        direct_chat_path: the path of text-only chat requests. This package writes them itself until LiteLLM is
            imported, because the import takes seconds (ADR 10). None if LiteLLM changes such requests.
        supports_stream_usage: whether the server supports ``stream_options``.
        ignores_prefill: whether the server is known to ignore a prefill (a last message of the assistant, which the
            answer should continue) in a request without ``continue_final_message``. It then starts a new answer.
        supports_prefill: whether the server is known to continue a prefill in a request with
            ``continue_final_message``.
        build_continuation: a function that returns the request to continue a broken answer, given the client, model,
            messages, body and attempt. None if prefill or a prompt continues the answer.
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
    direct_chat_path: str | None = None
    supports_stream_usage: bool = True
    ignores_prefill: bool = False
    supports_prefill: bool = False
    build_continuation: Callable[..., Awaitable[Any]] | None = None

    @property
    def can_continue(self) -> bool:
        """Return whether the server can continue a broken answer. If not, a prompt requests it."""
        return self.supports_prefill or self.build_continuation is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSupport:
    """The features of a local server beyond chat.

    Attributes:
        probe: the probe that recognises the server; None if it has no distinctive pages.
        forwards_requests: whether it can forward requests to another machine. The probe then sets ``Model.remote``.
        locality_caveat: why prompts may reach another machine even if the address is local; None if they cannot.
        load_path: the path that loads a model (POST ``{"model": …}``); None if the server cannot load models.
        launch_options: the fields that the request to load a model must share with chat requests. If they differ, the
            server loads the model again.
        load_with_keep_alive: a function that returns the path and body of a request to load a model for a time, given
            the model's name and ``keep_alive``. None if the server does not support it.
        pull_command: the server's command to download ``{model}``; None if it has no such command.
        count_tokens: a function that returns the number of tokens of a prompt, given the client, the model, the
            messages and the tools. None if the server cannot count.
        choose_context_length: a function that returns the context length to request, or None for the server's default.
            Its arguments are the tokens of prompt and answer, the loaded context length, and the model's maximum. The
            attribute is None if requests cannot set the context length.
        context_option: the server's own option for the context length, for a hint; "" if requests set it.
        drops_prompts: a function that returns whether the server silently drops the beginning of a long prompt, and
            then reports a low number of prompt tokens. Its arguments are the server's version, and whether the server's
            own API is used instead of OpenAI's. None if the server never drops it.
        compose_service: the name of the server in the compose file; None if it is not in the file.
        start_command: the commands that start it with a small model, as shown in hints.
        down_hint: the hint if it does not respond; None for the default hint with its address.
        server_variables: the environment variables of the server itself that begin with the provider's name.
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
    drops_prompts: Callable[[str | None, bool], bool] | None = None
    compose_service: str | None = None
    start_command: str | None = None
    down_hint: str | None = None
    server_variables: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProviderSpec:
    """The spec of one provider.

    Attributes:
        name: the value for ``LLM_PROVIDER``.
        title: the name in messages.
        litellm_provider: the provider in LiteLLM that writes requests and maps errors.
        otel_name: the value of OpenTelemetry's ``gen_ai.provider.name``; None if it is ``name``.
        kind: the ``name`` of the copied spec, if this is the spec of an operator's endpoint (a server with a name of
            the operator's choice); None for other specs.
        is_tested: whether tests cover the spec; False if it comes from LiteLLM's table of vendors.
        tested_versions: the versions of a real server that the spec was tested with; None if it was tested only with
            cassettes (files of responses) that were written from the vendor's documents.
        local: whether the server is usually local: it then requires no key, and has longer timeouts.
        api, dialect, server: the other groups of properties.
        settings: the supported fields of ``ProviderSettings``. Their variables are ``<NAME>_<SETTING>``.
        other_variable_names: the names of the same variables in other tools, by setting. They are read if
            ``<NAME>_<SETTING>`` is not set.
        example_model: the model in ``env.example``.
        max_concurrency: the default concurrency limit; None for no limit.
        known_capabilities: the capabilities that are certain without a probe.
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
    known_capabilities: Mapping[str, Any] = field(default_factory=dict)

    @property
    def capabilities(self) -> Capabilities:
        """Return the capabilities before a probe: ``known_capabilities``, else defaults or None (unknown)."""
        return default_capabilities(local=self.local, **self.known_capabilities)

    @property
    def starts_server(self) -> bool:
        """Return whether this package starts the server. Its address is then not a setting."""
        return "base_url" not in self.settings

    @property
    def context_setting(self) -> str:
        """Return the variable or the server's option for a larger context length; "" if it is unknown."""
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
    """Return a copy of a vendor's spec for an operator's endpoint. The prefix of its variables is the new name."""
    return replace(
        spec,
        name=name,
        kind=spec.kind or spec.name,
        settings=(*(name for name in spec.settings if name != "kind"), "kind"),
        api=replace(spec.api, default_url=None),
        server=replace(spec.server, compose_service=None, start_command=None),
        other_variable_names={},
    )
