"""What a row is: one provider as data, with the functions that only its vendor needs; and what a server said of itself.

Must never name a vendor: ``providers`` has a file for each. A row brings its parser, its probe and its continuation, so
that what is below ``providers`` needs to know none of them.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

from .capabilities import Capabilities, State, nearest
from .errors import LLMError

Evidence = Literal["server", "cassette", "table"]
Rung = Literal["json_schema", "json_object", "words"]

ALWAYS: Final = frozenset(
    {"system", "response_format", "tools", "tool_choice", "timeout", "extra_body", "reasoning", "session"}
)
SAMPLING: Final = frozenset(
    {"temperature", "max_tokens", "top_p", "seed", "stop", "frequency_penalty", "presence_penalty"}
)
LOCAL_SAMPLING: Final = SAMPLING | {"top_k", "min_p"}
# Of a message's content, as OpenAI names them; LiteLLM passes them on, and leaves out those that it does not know.
PARTS: Final = frozenset({"text", "image_url", "input_audio", "audio_url", "video_url", "file", "document"})
LEVELS: Final = ("low", "medium", "high")
CHAT_PATH: Final = "/chat/completions"
SETTINGS: Final = ("base_url", "api_key", "model", "vision_model", "context", "max_concurrency", "capabilities")


class Session(NamedTuple):
    """Where ``session=`` goes: a field of the body, or a header, which take ``most`` characters."""

    name: str
    most: int
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
        window: the context in tokens that its own settings ask for (Ollama's Modelfile), where they do.
        known: its capabilities, as far as the server reports them.
        learned_at: when the server reported it, on the clock of the event loop; None if it did not.
    """

    name: str
    aliases: tuple[str, ...] = ()
    loaded: bool | None = None
    chat: bool = True
    remote: bool = False
    trouble: tuple[State, str] | None = None
    window: int | None = None
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

    def nearest(self, name: str) -> list[str]:
        """The names most like this one."""
        return nearest(name, [model.name for model in self.chat_models])


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of a server: the JSON object that it holds, or why there is none."""

    said: Mapping[str, Any] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    error: LLMError | None = None

    def rows(self, key: str) -> list[Mapping[str, Any]] | None:
        """The list of objects under this key; Ollama says null for an empty one. None where there is no such list."""
        found = self.said.get(key, False)
        if self.error or not (found is None or isinstance(found, list)):
            return None
        return [row for row in found or () if isinstance(row, dict)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """How one kind of server is known.

    Attributes:
        pages: what is read, from the server's root; none of them loads a model, costs money or carries user text.
        read: None where the pages are not those of this kind.
        question: what tells more of one model (path and body of a POST, or a GET where there is none), where something
            does.
        learn: the model with what that page told.
    """

    pages: tuple[str, ...]
    read: Callable[[Mapping[str, Page]], Server | None]
    question: Callable[[Model], tuple[str, Mapping[str, Any] | None] | None] = lambda _: None
    learn: Callable[[Model, Mapping[str, Any]], Model] = lambda model, _: model


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProviderSpec:
    """One provider as data; an instance is a row.

    Attributes:
        name, title: what it is called in ``LLM_PROVIDER`` and in sentences.
        priced: LiteLLM's prefix in its map of models and prices, where that is another one.
        kind: the row that it was made of, for an endpoint that an operator calls by a name of his own.
        evidence: how it is known to work: run against a real "server", on a "cassette" that was written by its
            documents, or only from LiteLLM's "table".
        seen: the versions that it was run against.
        litellm: LiteLLM's prefix, which decides address, parameters, message format and error mapping.
        parser: the class that reads its own dialect (a ``StreamParser``); None where it speaks OpenAI's.
        local: usually a server of one's own: no key needed, longer budgets.
        default_url: where it is when nobody says so; None where somebody must.
        api_path: what follows the root of the server for its chat API, as LiteLLM's ``api_base`` wants it.
        cut_path: what begins a path that people paste and LiteLLM adds itself.
        tails: the ends of addresses that people paste.
        cloud_host: the host of its own cloud, which is spoken to by TLS although the server is one's own.
        settings: the settings that it has, each a field of ``ProviderSettings``; ``<NAME>_<SETTING>`` is its variable.
        also: for a setting the variables that its users already have; ours wins.
        example_model: what `env.example` shows as its model.
        default_version: the API version where the provider wants one.
        key_header, key_scheme: the header that carries the key, and the word before it in ``authorization``.
        variant: returns the spec for a base URL and an API version, if the vendor has several dialects.
        chat_path: what follows ``base`` for chat, with ``{model}`` and ``{version}`` in it; None where LiteLLM knows.
        parts: the types of parts of a message's content that it takes.
        reads_urls: it fetches a picture that is given by URL; otherwise we read it and put it inline.
        models_path, models_key, model_id: where the list of models is, under which key, and which field names one.
        lists_all: a model that is not in the list is not there.
        forwards: names of models that it only forwards elsewhere.
        load_path: what loads a model, from the server's root, given ``{"model": …}``; None where nothing does.
        keep: what loads a model for a time: a path and a body, given its name and how long; None where nothing does.
        pull_command: the server's own command that downloads a model, with ``{model}`` in it; None if it has none.
        count_tokens: counts the tokens of a prompt at the server: given its client, the model, messages and tools.
        window: its name for the context that a request asks for, in ``options``; None where a request cannot.
        service: its name in our compose file.
        start: how a person gets it running with a small model.
        down: what to do if it does not answer; None for the usual hint, which names its address.
        own_variables: variables of the server itself that resemble ours, and are none.
        probe: how it is known by its pages, and what they tell; None where nothing tells it from others.
        finishes_turns: it answers a conversation that ends with an assistant's message; False also if that is unknown.
            To other servers such a message is the beginning of the answer.
        prefill: it goes on with an assistant's message that is the last one.
        continuation: writes the request that goes on with a broken answer, where the server has a way of its own: given
            its client, the model, the messages, the body and the attempt. Where there is neither, it is asked in words.
        drops_prompts: whether this version of it drops the beginning of a prompt that is too long, without a word, by
            its own API; behind an OpenAI-compatible address any version does. None for a server that never does.
        max_concurrency: requests at once; the others wait. None for any number.
        parameters: the keywords that it honours.
        options: our keyword -> its name in the ``options`` object of the body (Ollama), empty for OpenAI's places.
        tool_choices: the values of ``tool_choice`` that it honours; None for all.
        structured: the rungs for ``response_format`` with a class, the best first.
        reasoning: for each value of ``reasoning=`` what is added to the body; empty where there is no switch.
        reasoning_models: where set, only these models think; for others False is no change and True is an error.
        session: where ``session=`` goes; None where nothing takes it, and it is not sent.
        body: what is always added to the body.
        stream_usage: it understands ``stream_options``.
        genai: what OpenTelemetry calls it, where that is another name.
        capabilities: what is known of it without asking.
    """

    name: str
    title: str
    litellm: str
    priced: str | None = None
    kind: str | None = None
    evidence: Evidence = "cassette"
    seen: str | None = None
    parser: type[Any] | None = None
    local: bool = False
    default_url: str | None = None
    api_path: str = "/v1"
    cut_path: str | None = None
    tails: tuple[str, ...] = (CHAT_PATH, "/completions", "/models")
    cloud_host: str | None = None
    settings: tuple[str, ...] = SETTINGS
    also: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    example_model: str | None = None
    default_version: str | None = None
    key_header: str = "authorization"
    key_scheme: str = "Bearer"
    variant: Callable[[ProviderSpec, str, str | None], ProviderSpec] | None = None
    chat_path: str | None = None
    parts: frozenset[str] = PARTS
    reads_urls: bool = True
    models_path: str = "/models"
    models_key: str = "data"
    model_id: str = "id"
    lists_all: bool = True
    forwards: re.Pattern[str] | None = None
    load_path: str | None = None
    count_tokens: Callable[..., Awaitable[int]] | None = None
    keep: Callable[[str, str | float], tuple[str, dict[str, Any]]] | None = None
    pull_command: str | None = None
    window: str | None = None
    service: str | None = None
    start: str | None = None
    down: str | None = None
    own_variables: tuple[str, ...] = ()
    probe: Probe | None = None
    finishes_turns: bool = False
    prefill: bool = False
    continuation: Callable[..., Awaitable[Any]] | None = None
    drops_prompts: Callable[[str | None], bool] | None = None
    max_concurrency: int | None = None
    parameters: frozenset[str] = ALWAYS | SAMPLING
    options: Mapping[str, str] = field(default_factory=dict)
    tool_choices: tuple[str, ...] | None = None
    structured: tuple[Rung, ...] = ("json_schema", "json_object", "words")
    reasoning: Mapping[bool | str, Mapping[str, Any]] = field(default_factory=dict)
    reasoning_models: re.Pattern[str] | None = None
    session: Session | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    stream_usage: bool = True
    genai: str | None = None
    capabilities: Capabilities

    @property
    def price_prefix(self) -> str:
        """LiteLLM's prefix in its map of models and prices."""
        return self.priced or self.litellm

    @property
    def continues(self) -> bool:
        """Whether it goes on with a broken answer from its beginning."""
        return self.prefill or self.continuation is not None

    @property
    def starts_server(self) -> bool:
        """Return whether this package starts its server, so that it has no address."""
        return "base_url" not in self.settings

    @property
    def genai_name(self) -> str:
        """What OpenTelemetry's conventions call it; its own name where they do not know it."""
        return self.genai or self.name

    def variable(self, setting: str) -> str:
        """Return the name of the environment variable of a setting."""
        return f"{self.name.upper().replace('-', '_')}_{setting.upper()}"

    def spellings(self, setting: str) -> tuple[str, ...]:
        """Return every environment variable that may hold a setting, ours first."""
        return (self.variable(setting), *self.also.get(setting, ()))


@lru_cache(maxsize=256)
def named(spec: ProviderSpec, name: str) -> ProviderSpec:
    """The row for an endpoint of this kind that is called by another name: its variables are its own."""
    return replace(
        spec,
        name=name,
        kind=spec.kind or spec.name,
        settings=(*(name for name in spec.settings if name != "kind"), "kind"),
        default_url=None,
        also={},
        service=None,
        start=None,
    )


def effort(off: str = "none", on: str = "medium", **more: Any) -> Mapping[bool | str, Mapping[str, Any]]:
    """OpenAI's ``reasoning_effort`` for each value of ``reasoning=``."""
    values: dict[bool | str, str] = {False: off, True: on, **{level: level for level in LEVELS}}
    return {value: {"reasoning_effort": effort, **more} for value, effort in values.items()}


def template_switch() -> Mapping[bool | str, Mapping[str, Any]]:
    """Return a variable of the chat template (Qwen3, Granite, DeepSeek-V3.1), for servers that pass it on."""
    levels: Mapping[bool | str, Mapping[str, Any]] = {
        level: {"reasoning_effort": level, "chat_template_kwargs": {"enable_thinking": True}} for level in LEVELS
    }
    return {
        False: {"chat_template_kwargs": {"enable_thinking": False}},
        True: {"chat_template_kwargs": {"enable_thinking": True}},
        **levels,
    }
