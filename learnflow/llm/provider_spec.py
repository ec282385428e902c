"""The spec of a provider, and the values that a probe of its server returns.

Names no vendor: ``providers`` has a file for each. A spec holds its parser, probe and continuation, so that packages
below ``providers`` import no vendor.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

from .capabilities import Capabilities, State
from .errors import LLMError
from .parameters import ALWAYS, SAMPLING

Evidence = Literal["server", "cassette", "table"]
SchemaMode = Literal["json_schema", "json_object", "words"]

# The types of content parts, with OpenAI's names. LiteLLM forwards these, and drops unknown ones.
PARTS: Final = frozenset({"text", "image_url", "input_audio", "audio_url", "video_url", "file", "document"})
CHAT_PATH: Final = "/chat/completions"
SETTINGS: Final = ("base_url", "api_key", "model", "vision_model", "context", "max_concurrency", "capabilities")


class Session(NamedTuple):
    """The field of the body, or the header, that sends ``session=``. It holds up to ``max_chars`` characters."""

    name: str
    max_chars: int
    header: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that a server reports.

    Attributes:
        name: the value for ``model=``.
        aliases: its other names.
        loaded: it is in memory; None if the server does not report it.
        chat: it can chat; False for an embedding model.
        remote: the server forwards its requests to another machine (Ollama's cloud models).
        trouble: the state and a sentence if the model cannot answer now; None if it can.
        known: the capabilities that the server reports.
        learned_at: the time of the last probe for it, on the event loop's clock; None without one.
    """

    name: str
    aliases: tuple[str, ...] = ()
    loaded: bool | None = None
    chat: bool = True
    remote: bool = False
    trouble: tuple[State, str] | None = None
    known: Mapping[str, Any] = field(default_factory=dict)
    learned_at: float | None = None

    def has_name(self, name: str) -> bool:
        """Return whether this is its name or an alias."""
        return name == self.name or name in self.aliases


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The properties that a server reports.

    Attributes:
        kind: the spec of its kind; None for an API that no page distinguishes.
        version: its version; None if it does not report it.
        slots: the number of requests that it answers at once; None if it does not report it.
        models: its models.
        any_name: it answers any ``model=`` with its only model.
        trouble: the state and a sentence if it runs but cannot answer; None if it can.
        learned_at: the time of the probe, on the event loop's clock.
    """

    kind: ProviderSpec | None = None
    version: str | None = None
    slots: int | None = None
    models: tuple[Model, ...] = ()
    any_name: bool = False
    trouble: tuple[State, str] | None = None
    learned_at: float | None = None

    @property
    def chat_models(self) -> list[Model]:
        """Return the models that can chat."""
        return [model for model in self.models if model.chat]

    def find(self, name: str) -> Model | None:
        """Return the model of this name; the only model if the server accepts any name."""
        matches = [model for model in self.models if model.has_name(name)]
        if not matches and self.any_name and len(self.models) == 1:
            return self.models[0]
        return matches[0] if matches else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of a server: the JSON object of its body, or the error."""

    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    error: LLMError | None = None

    def rows(self, key: str) -> list[Mapping[str, Any]] | None:
        """Return the objects of the list ``key``; null is an empty list. Return None if there is no list."""
        rows = self.body.get(key, False)
        if self.error or not (rows is None or isinstance(rows, list)):
            return None
        return [row for row in rows or () if isinstance(row, dict)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The probe that recognises a kind of server.

    Attributes:
        pages: the paths to read. Reading them loads no model, costs nothing and sends no user text.
        read: returns the server's properties from these pages; None if they belong to another kind.
        model_request: returns the path and the body that request more about one model; without a body it is a GET.
            Returns None if no page has more.
        read_model: returns the model with what that page reports.
    """

    pages: tuple[str, ...]
    read: Callable[[Mapping[str, Page]], Server | None]
    model_request: Callable[[Model], tuple[str, Mapping[str, Any] | None] | None] = lambda _: None
    read_model: Callable[[Model, Mapping[str, Any]], Model] = lambda model, _: model


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The address of an API, its authentication, and its list of models.

    Attributes:
        default_url: the address if none is configured; None if it must be configured.
        api_path: the path after the root of the server, as in LiteLLM's ``api_base``.
        litellm_path: the start of a path that LiteLLM adds itself. It is removed from a pasted address.
        removed_suffixes: the ends of paths that are removed from a pasted address.
        cloud_host: the host of the vendor's cloud, which needs TLS although the server is usually local.
        default_version: the API version, if the vendor requires one.
        key_header, key_scheme: the header with the key, and the word before the key in ``authorization``.
        variant: returns the spec for a base URL and an API version; None if the vendor has one dialect.
        chat_path: the path of a chat request, with ``{model}`` and ``{version}``; None for LiteLLM's.
        models_path, models_key, model_id: the page with the list of models, the key of the list, the key of a name.
        lists_all: the list is complete: a model that it lacks does not exist.
    """

    default_url: str | None = None
    api_path: str = "/v1"
    litellm_path: str | None = None
    removed_suffixes: tuple[str, ...] = (CHAT_PATH, "/completions", "/models")
    cloud_host: str | None = None
    default_version: str | None = None
    key_header: str = "authorization"
    key_scheme: str = "Bearer"
    variant: Callable[[ProviderSpec, str, str | None], ProviderSpec] | None = None
    chat_path: str | None = None
    models_path: str = "/models"
    models_key: str = "data"
    model_id: str = "id"
    lists_all: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The format of requests and responses.

    Attributes:
        parser: the ``StreamParser`` of the responses; None for OpenAI's format.
        parameters: the keywords that the server supports.
        parts: the types of content parts that the server supports.
        reads_urls: the server fetches an image by its URL. Otherwise only data URLs are sent.
        tool_choices: the supported values of ``tool_choice``; None for all.
        schema_modes: the ways to send a ``response_format`` that is a class, the best first.
        reasoning: the fields that each value of ``reasoning=`` adds to the body; empty if thinking has no switch.
        reasoning_models: the names of the models that can think; None if any may. With another model ``False`` adds
            nothing, and ``True`` is an error.
        session: the place of ``session=``; None if it is not sent.
        body: the fields that are added to every body.
        format_options: returns the ``options`` object of the body, given the sampling parameters and the context
            length. None if the parameters are top-level fields, as in OpenAI's API.
        stream_usage: the server supports ``stream_options``.
        finishes_turns: the server starts a new answer after a final assistant's message; False also if unknown.
        prefill: the server continues a final assistant's message.
        continuation: returns the request that continues a broken answer, given the client, the model, the messages,
            the body and the attempt. None if the server has no such request: then ``prefill`` or a prompt continues it.
    """

    parser: type[Any] | None = None
    parameters: frozenset[str] = ALWAYS | SAMPLING
    parts: frozenset[str] = PARTS
    reads_urls: bool = True
    tool_choices: tuple[str, ...] | None = None
    schema_modes: tuple[SchemaMode, ...] = ("json_schema", "json_object", "words")
    reasoning: Mapping[bool | str, Mapping[str, Any]] = field(default_factory=dict)
    reasoning_models: re.Pattern[str] | None = None
    session: Session | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    format_options: Callable[[Mapping[str, Any], int | None], dict[str, Any]] | None = None
    stream_usage: bool = True
    finishes_turns: bool = False
    prefill: bool = False
    continuation: Callable[..., Awaitable[Any]] | None = None

    @property
    def continues(self) -> bool:
        """Return whether the server continues a broken answer without a prompt."""
        return self.prefill or self.continuation is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSupport:
    """The features of a local server beyond chat, and the commands that hints name.

    Attributes:
        probe: the probe that recognises it; None if no page distinguishes it.
        forwards_requests: it may forward a request to another machine. Its probe marks such models (``Model.remote``).
        load_path: the path that loads a model, given ``{"model": …}``; None if the server cannot load models.
        launch_options: fields that requests and loads share, because the server loads the model again if they differ.
        load_for: returns the path and the body that load a model for a time, given its name and the time.
        pull_command: the server's command that downloads ``{model}``; None without such a command.
        count_tokens: returns the number of tokens of a prompt, given the client, the model, the messages and the tools.
        context_length: returns the context length of a request, given the tokens of prompt and answer, the loaded
            context length and that of the training. Returns None for the server's default. None if requests have none.
        drops_prompts: returns whether the server silently drops the beginning of a prompt that is too long, given its
            version, and whether the request uses its own API rather than OpenAI's. None if it never drops it.
        service: the name of its service in the compose file.
        start_command: the command that starts it with a small model.
        down_hint: the hint if it does not respond; None for the usual hint, which names its address.
        server_variables: the server's own environment variables that start with the provider's name.
    """

    probe: Probe | None = None
    forwards_requests: bool = False
    load_path: str | None = None
    launch_options: Mapping[str, Any] = field(default_factory=dict)
    load_for: Callable[[str, str | float], tuple[str, dict[str, Any]]] | None = None
    pull_command: str | None = None
    count_tokens: Callable[..., Awaitable[int]] | None = None
    context_length: Callable[[int, int | None, int | None], int | None] | None = None
    drops_prompts: Callable[[str | None, bool], bool] | None = None
    service: str | None = None
    start_command: str | None = None
    down_hint: str | None = None
    server_variables: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProviderSpec:
    """The spec of one provider.

    Attributes:
        name, title: its name in ``LLM_PROVIDER`` and in sentences.
        litellm: LiteLLM's prefix, which decides address, parameters, message format and error mapping.
        priced: LiteLLM's prefix in its map of models and prices; None if it is the same.
        genai: the name in OpenTelemetry's conventions; None if it is the same.
        kind: the name of the spec that an operator's endpoint was copied from; None for other specs.
        evidence: how the spec was tested: with a real "server", with a "cassette" that was written from the vendor's
            documents, or not at all: it comes from LiteLLM's "table".
        tested_versions: the versions of the server that it was tested with.
        local: usually a local server: no key is required, and timeouts are longer.
        api, dialect, server: groups of properties.
        settings: the settings, each a field of ``ProviderSettings``; ``<NAME>_<SETTING>`` is the variable.
        other_spellings: further variables of a setting, which other tools use; ``<NAME>_<SETTING>`` wins.
        example_model: the model in ``env.example``.
        max_concurrency: the default concurrency limit; None for no limit.
        capabilities: the capabilities that need no probe.
    """

    name: str
    title: str
    litellm: str
    priced: str | None = None
    genai: str | None = None
    kind: str | None = None
    evidence: Evidence = "cassette"
    tested_versions: str | None = None
    local: bool = False
    api: Api = Api()
    dialect: Dialect = Dialect()
    server: ServerSupport = ServerSupport()
    settings: tuple[str, ...] = SETTINGS
    other_spellings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    example_model: str | None = None
    max_concurrency: int | None = None
    capabilities: Capabilities

    @property
    def price_prefix(self) -> str:
        """Return LiteLLM's prefix in its map of models and prices."""
        return self.priced or self.litellm

    @property
    def starts_server(self) -> bool:
        """Return whether this package starts the server, so that no address is configured."""
        return "base_url" not in self.settings

    def variable(self, setting: str) -> str:
        """Return the name of the environment variable of a setting."""
        return f"{self.name.upper().replace('-', '_')}_{setting.upper()}"

    def spellings(self, setting: str) -> tuple[str, ...]:
        """Return the environment variables of a setting, ``<NAME>_<SETTING>`` first."""
        return (self.variable(setting), *self.other_spellings.get(setting, ()))


@lru_cache(maxsize=256)
def endpoint_spec(spec: ProviderSpec, name: str) -> ProviderSpec:
    """Return a copy of the spec for an operator's endpoint, with the variables of its own name."""
    return replace(
        spec,
        name=name,
        kind=spec.kind or spec.name,
        settings=(*(name for name in spec.settings if name != "kind"), "kind"),
        api=replace(spec.api, default_url=None),
        server=replace(spec.server, service=None, start_command=None),
        other_spellings={},
    )
