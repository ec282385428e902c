"""A provider as data, with the functions that only its vendor needs; and what a server reports of itself.

Names no vendor: ``providers`` has a file for each. A spec brings its parser, probe and continuation, so that the
packages below ``providers`` need to import none of them.
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

# Of a message's content, as OpenAI names them; LiteLLM passes them on, and leaves out those that it does not know.
PARTS: Final = frozenset({"text", "image_url", "input_audio", "audio_url", "video_url", "file", "document"})
CHAT_PATH: Final = "/chat/completions"
SETTINGS: Final = ("base_url", "api_key", "model", "vision_model", "context", "max_concurrency", "capabilities")


class Session(NamedTuple):
    """Where ``session=`` goes: a field of the body, or a header, which take ``most`` characters."""

    name: str
    max_chars: int
    header: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as its server tells of it.

    Attributes:
        name: what ``model=`` takes.
        aliases: other names that mean it.
        loaded: None where the server does not tell.
        chat: False for embeddings and the like.
        remote: the server only forwards it elsewhere (Ollama's cloud models).
        trouble: it cannot be asked now: a state, and the sentence.
        known: its capabilities, as far as the server reports them.
        learned_at: when the server reported it, on the clock of the event loop; None if it did not.
    """

    name: str
    aliases: tuple[str, ...] = ()
    loaded: bool | None = None
    chat: bool = True
    remote: bool = False
    trouble: tuple[State, str] | None = None
    known: Mapping[str, Any] = field(default_factory=dict)
    learned_at: float | None = None

    def called(self, name: str) -> bool:
        """Whether this name means it."""
        return name == self.name or name in self.aliases


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What a server said of itself.

    Attributes:
        kind: the row of the kind that it is by its own words; None for an API without a name of its own.
        version: None where it does not tell.
        slots: how many requests it answers at once; None where it does not tell.
        any_name: it serves its one model whatever name is asked for.
        trouble: it is up, but does not serve: a state, and the sentence.
        learned_at: when it was probed, on the clock of the event loop.
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
        """Those that can answer."""
        return [model for model in self.models if model.chat]

    def find(self, name: str) -> Model | None:
        """The model of this name, or the only one where any name means it."""
        named = [model for model in self.models if model.called(name)]
        if not named and self.any_name and len(self.models) == 1:
            return self.models[0]
        return named[0] if named else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of a server: the JSON object that it holds, or why there is none."""

    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    error: LLMError | None = None

    def rows(self, key: str) -> list[Mapping[str, Any]] | None:
        """The list of objects under this key; Ollama says null for an empty one. None where there is no such list."""
        found = self.body.get(key, False)
        if self.error or not (found is None or isinstance(found, list)):
            return None
        return [row for row in found or () if isinstance(row, dict)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """How one kind of server is known.

    Attributes:
        pages: what is read, from the server's root; none of them loads a model, costs money or carries user text.
        read: None where the pages are not those of this kind.
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
    """Where an API is, how it is authenticated, and how its models are listed.

    Attributes:
        default_url: its address if none is configured; None if one must be.
        api_path: what follows the root of the server, as LiteLLM's ``api_base`` wants it.
        litellm_path: the beginning of a path that LiteLLM adds itself, and that a pasted address may have.
        removed_suffixes: the ends of pasted addresses that are removed.
        cloud_host: the host of the vendor's cloud, which needs TLS although the server is usually local.
        default_version: the API version, if the vendor requires one.
        key_header, key_scheme: the header with the key, and the word before the key in ``authorization``.
        variant: returns the spec for a base URL and an API version, if the vendor has several dialects.
        chat_path: what follows the base for chat, with ``{model}`` and ``{version}``; None if LiteLLM decides.
        models_path, models_key, model_id: the page with the list of models, its key, and the field with a name.
        lists_all: a model that is not in the list does not exist.
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
    """How a request is written and an answer is read.

    Attributes:
        parser: the ``StreamParser`` of its own dialect; None if it speaks OpenAI's.
        parameters: the keywords that it honours.
        parts: the types of the parts of a message that it takes.
        reads_urls: it fetches an image by its URL; otherwise only a data URL can be sent.
        tool_choices: the values of ``tool_choice`` that it honours; None for all.
        schema_modes: the modes of a ``response_format`` with a class, the best first.
        reasoning: for each value of ``reasoning=`` what is added to the body; empty if there is no switch.
        reasoning_models: if set, only these models reason: for others False changes nothing, and True is an error.
        session: where ``session=`` is sent; None if it is not.
        body: what is always added to the body.
        format_options: returns the ``options`` object of the body for our keywords and the context length; None if
            they have OpenAI's places.
        stream_usage: it supports ``stream_options``.
        finishes_turns: it answers a conversation that ends with an assistant's message; False also if that is unknown.
            Other servers continue such a message.
        prefill: it continues an assistant's message that is the last one.
        continuation: returns the request that continues a broken answer, if the server has a way of its own: given its
            client, the model, the messages, the body and the attempt. Without either a prompt asks for the rest.
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
        """Return whether it continues a broken answer from its beginning."""
        return self.prefill or self.continuation is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSupport:
    """What a server of one's own supports beside chat, and what a person is told about it.

    Attributes:
        probe: how it is recognised; None if no page distinguishes it.
        forwards_requests: it may forward a request elsewhere. Its probe reports of which models (``Model.remote``).
        load_path: the page that loads a model, from the root, given ``{"model": …}``; None if there is none.
        load_for: returns the path and the body that load a model for a time, given its name and the time.
        pull_command: the server's own command that downloads a model, with ``{model}``; None if there is none.
        count_tokens: returns the number of tokens of a prompt, given its client, the model, messages and tools.
        context_length: returns the context length of a request, if the server takes one: given the tokens of prompt
            and answer, the loaded context length and that of the training. Returns None to leave it to the server.
        drops_prompts: returns whether it silently drops the beginning of a prompt that is too long: given its version,
            and whether its own API is used rather than OpenAI's. None for a server that never does.
        service: its name in our compose file.
        start_command: the command that starts it with a small model.
        down_hint: what to do if it does not answer; None for the usual hint, which names its address.
        server_variables: variables of the server itself that resemble ours.
    """

    probe: Probe | None = None
    forwards_requests: bool = False
    load_path: str | None = None
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
    """One provider as data.

    Attributes:
        name, title: its name in ``LLM_PROVIDER`` and in sentences.
        litellm: LiteLLM's prefix, which decides address, parameters, message format and error mapping.
        priced: LiteLLM's prefix in its map of models and prices, if that is another one.
        genai: OpenTelemetry's name of it, if that is another one.
        kind: the spec that it was copied from, for an endpoint with a name of the operator's.
        evidence: how it is known to work: run against a real "server", on a "cassette" that was written by its
            documents, or only from LiteLLM's "table".
        tested_versions: the versions that it was run against.
        local: usually a server of one's own: no key is required, and time limits are longer.
        api, dialect, server: its groups.
        settings: its settings, each a field of ``ProviderSettings``; ``<NAME>_<SETTING>`` is the variable.
        other_spellings: for a setting the variables that its users already have; ours wins.
        example_model: its model in ``env.example``.
        max_concurrency: requests at once; the others wait. None for any number.
        capabilities: what is known without a probe.
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
        """LiteLLM's prefix in its map of models and prices."""
        return self.priced or self.litellm

    @property
    def starts_server(self) -> bool:
        """Return whether this package starts its server, so that it has no address."""
        return "base_url" not in self.settings

    def variable(self, setting: str) -> str:
        """Return the name of the environment variable of a setting."""
        return f"{self.name.upper().replace('-', '_')}_{setting.upper()}"

    def spellings(self, setting: str) -> tuple[str, ...]:
        """Return every environment variable that may hold a setting, ours first."""
        return (self.variable(setting), *self.other_spellings.get(setting, ()))


@lru_cache(maxsize=256)
def named(spec: ProviderSpec, name: str) -> ProviderSpec:
    """Return the spec of an endpoint of this kind with a name of the operator's, which has variables of its own."""
    return replace(
        spec,
        name=name,
        kind=spec.kind or spec.name,
        settings=(*(name for name in spec.settings if name != "kind"), "kind"),
        api=replace(spec.api, default_url=None),
        server=replace(spec.server, service=None, start_command=None),
        other_spellings={},
    )
