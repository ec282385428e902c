"""The rows: one ProviderSpec per provider, and what is known of each before anybody is asked.

Must never act: a row is data, and a new OpenAI-compatible vendor is one row and no code.
Everybody may read it; names of providers stand as literals only here and in ``providers/``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Literal

from .capabilities import Capabilities

Dialect = Literal["openai", "ollama"]
Rung = Literal["json_schema", "json_object", "words"]
Continues = Literal["message", "raw"]

_ALWAYS: Final = frozenset({"system", "response_format", "tools", "tool_choice", "timeout", "extra_body", "reasoning"})
_SAMPLING: Final = frozenset(
    {"temperature", "max_tokens", "top_p", "seed", "stop", "frequency_penalty", "presence_penalty"}
)
_LOCAL_SAMPLING: Final = _SAMPLING | {"top_k", "min_p"}
# Of a message's content, as OpenAI names them; LiteLLM passes them on, and leaves out those that it does not know.
_PARTS: Final = frozenset({"text", "image_url", "input_audio", "audio_url", "video_url", "file", "document"})
_LEVELS: Final = ("low", "medium", "high")

# Models whose template opens the thinking itself, so that the answer carries only a closing </think> when the server
# does not separate it (DeepSeek-R1's and Qwen3-Thinking's model cards). Their text is held back until it comes.
OPENS_THINKING_ITSELF: Final = re.compile(
    r"deepseek[-_]?r1|r1[-_]distill|qwq|qwen3.*thinking|-thinking-", re.IGNORECASE
)


def _effort(off: str = "none", on: str = "medium", **more: Any) -> Mapping[bool | str, Mapping[str, Any]]:
    """OpenAI's ``reasoning_effort`` for each value of ``reasoning=``."""
    values: dict[bool | str, str] = {False: off, True: on, **{level: level for level in _LEVELS}}
    return {value: {"reasoning_effort": effort, **more} for value, effort in values.items()}


def _template_switch() -> Mapping[bool | str, Mapping[str, Any]]:
    """vLLM's and llama.cpp's switch: a variable of the chat template (facts: Qwen3, Granite, DeepSeek-V3.1)."""
    levels: Mapping[bool | str, Mapping[str, Any]] = {
        level: {"reasoning_effort": level, "chat_template_kwargs": {"enable_thinking": True}} for level in _LEVELS
    }
    return {
        False: {"chat_template_kwargs": {"enable_thinking": False}},
        True: {"chat_template_kwargs": {"enable_thinking": True}},
        **levels,
    }


def _known(local: bool, **known: Any) -> Capabilities:
    unknown = Capabilities(
        streaming=True,
        vision=None,
        tools=None,
        json_schema=None,
        reasoning=None,
        context=None,
        context_served=None,
        max_output=None,
        prefill=None,
        local=local,
        cost=(0.0, 0.0) if local else None,
    )
    return Capabilities(**{**unknown, **known})  # type: ignore[typeddict-item]  # a merge of our own keys


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSpec:
    """One provider as data.

    Attributes:
        name, title: what it is called in ``LLM_PROVIDER`` and in sentences.
        litellm: LiteLLM's prefix, which decides address, parameters, message format and error mapping.
        dialect: how its answer reads on the wire.
        local: usually a server of one's own: no key needed, longer budgets.
        default_url: where it is when nobody says so; None where somebody must.
        api_path: what follows the root of the server for its chat API, as LiteLLM's ``api_base`` wants it.
        cut_path: what begins a path that people paste and LiteLLM adds itself.
        also_url, also_model, also_key, also_version: the spellings that its users already have, beside
            ``<NAME>_BASE_URL``, ``<NAME>_MODEL``, ``<NAME>_API_KEY``, ``<NAME>_API_VERSION``.
        default_version: the API version where the provider wants one.
        key_header: the header that carries the key.
        chat_path: what follows ``base`` for chat, with ``{model}`` and ``{version}`` in it; None where LiteLLM knows.
        parts: the types of parts of a message's content that it takes.
        reads_urls: it fetches a picture that is given by URL; otherwise we read it and put it inline.
        models_path, models_key, model_id: where the list of models is, under which key, and which field names one.
        lists_all: a model that is not in the list is not there.
        forwards: names of models that it only forwards elsewhere.
        load_path: what loads a model, from the server's root, given ``{"model": …}``; None where nothing does.
        keeps: it takes ``keep_alive`` when it loads.
        window: its name for the context that a request asks for, in ``options``; None where a request cannot.
        service: its name in our compose file.
        continues: how an answer that broke is continued from its beginning: given as the last message ("message"), or
            by rendering the template and sending the text as it is ("raw"); None where it can only be asked in words.
        drops_prompts: it is known to drop the beginning of a prompt that is too long, without a word: behind its
            OpenAI-compatible address, or in older versions.
        max_concurrency: requests at once; the others wait. None for any number.
        placeholders: names that mean "the one that is loaded".
        parameters: the keywords that it honours.
        options: our keyword -> its name in the ``options`` object of the body (Ollama), empty for OpenAI's places.
        tool_choices: the values of ``tool_choice`` that it honours; None for all.
        structured: the rungs for ``response_format`` with a class, the best first.
        reasoning: for each value of ``reasoning=`` what is added to the body; empty where there is no switch.
        reasoning_models: where set, only these models think; for others False is no change and True is an error.
        body: what is always added to the body.
        stream_usage: it understands ``stream_options``.
        genai: what OpenTelemetry calls it, where that is another name.
        capabilities: what is known of it without asking.
    """

    name: str
    title: str
    litellm: str
    dialect: Dialect = "openai"
    local: bool = False
    default_url: str | None = None
    api_path: str = "/v1"
    cut_path: str | None = None
    also_url: tuple[str, ...] = ()
    also_model: tuple[str, ...] = ()
    also_key: tuple[str, ...] = ()
    also_version: tuple[str, ...] = ()
    default_version: str | None = None
    key_header: str = "authorization"
    chat_path: str | None = None
    parts: frozenset[str] = _PARTS
    reads_urls: bool = True
    models_path: str = "/models"
    models_key: str = "data"
    model_id: str = "id"
    lists_all: bool = True
    forwards: re.Pattern[str] | None = None
    load_path: str | None = None
    keeps: bool = False
    window: str | None = None
    service: str | None = None
    continues: Continues | None = None
    drops_prompts: bool = False
    max_concurrency: int | None = None
    placeholders: tuple[str, ...] = ()
    parameters: frozenset[str] = _ALWAYS | _SAMPLING
    options: Mapping[str, str] = field(default_factory=dict)
    tool_choices: tuple[str, ...] | None = None
    structured: tuple[Rung, ...] = ("json_schema", "json_object", "words")
    reasoning: Mapping[bool | str, Mapping[str, Any]] = field(default_factory=dict)
    reasoning_models: re.Pattern[str] | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    stream_usage: bool = True
    genai: str | None = None
    capabilities: Capabilities

    @property
    def genai_name(self) -> str:
        """What OpenTelemetry's conventions call it; its own name where they do not know it."""
        return self.genai or self.name

    @property
    def env_url(self) -> tuple[str, ...]:
        """The variables that may hold its address, the first one ours."""
        return (f"{self.name.upper()}_BASE_URL", *self.also_url)

    @property
    def env_model(self) -> tuple[str, ...]:
        """The variables that may hold its model."""
        return (f"{self.name.upper()}_MODEL", *self.also_model)

    @property
    def env_vision_model(self) -> str:
        """The variable for the model that sees pictures, where it is another one."""
        return f"{self.name.upper()}_VISION_MODEL"

    @property
    def env_key(self) -> tuple[str, ...]:
        """The variables that may hold its key."""
        return (f"{self.name.upper()}_API_KEY", *self.also_key)

    @property
    def env_version(self) -> tuple[str, ...]:
        """The variables that may hold its API version; empty where it has none."""
        return (f"{self.name.upper()}_API_VERSION", *self.also_version) if self.default_version else ()

    @property
    def env_context(self) -> str:
        """The variable for the context that is served, in the operator's own words."""
        return f"{self.name.upper()}_CONTEXT"

    @property
    def env_concurrency(self) -> str:
        """The variable for how many requests it is sent at once."""
        return f"{self.name.upper()}_MAX_CONCURRENCY"

    @property
    def env_capabilities(self) -> str:
        """The variable for what it can, in the operator's own words."""
        return f"{self.name.upper()}_CAPABILITIES"

    @property
    def variables(self) -> tuple[tuple[str, ...], ...]:
        """Everything that is read of it: for each setting its spellings."""
        more = (self.env_vision_model, self.env_context, self.env_capabilities, self.env_concurrency)
        return (self.env_url, self.env_model, self.env_key, self.env_version, *((name,) for name in more))


_OPENAI_THINKS: Final = re.compile(r"^(o[1-9]|gpt-5|gpt-oss)", re.IGNORECASE)

_ROWS: Final = (
    ProviderSpec(
        name="openai",
        title="OpenAI",
        litellm="openai",
        default_url="https://api.openai.com/v1",
        also_url=("OPENAI_API_BASE",),
        reasoning=_effort(),
        reasoning_models=_OPENAI_THINKS,
        capabilities=_known(False, json_schema=True, tools=True, prefill=False),
    ),
    ProviderSpec(
        name="azure",
        title="Azure OpenAI",
        litellm="azure",
        genai="azure.ai.openai",
        api_path="",
        cut_path="/openai",
        also_url=("AZURE_OPENAI_ENDPOINT", "AZURE_API_BASE"),
        also_model=("AZURE_OPENAI_DEPLOYMENT",),
        also_key=("AZURE_OPENAI_API_KEY",),
        also_version=("AZURE_OPENAI_API_VERSION", "OPENAI_API_VERSION"),
        default_version="2024-10-21",
        key_header="api-key",
        chat_path="/openai/deployments/{model}/chat/completions?api-version={version}",
        models_path="/openai/models",
        lists_all=False,  # it lists what could be deployed, not what is
        reasoning=_effort(),
        capabilities=_known(False, json_schema=True, tools=True, prefill=False),
    ),
    ProviderSpec(
        name="ollama",
        title="Ollama",
        litellm="ollama_chat",
        dialect="ollama",
        local=True,
        default_url="http://localhost:11434",
        api_path="",
        parts=frozenset({"text", "image_url"}),
        reads_urls=False,
        also_url=("OLLAMA_API_BASE", "OLLAMA_HOST"),
        models_path="/api/tags",
        models_key="models",
        model_id="name",
        forwards=re.compile(r"[:-]cloud$"),
        load_path="/api/generate",
        keeps=True,
        window="num_ctx",
        service="ollama",
        continues="raw",
        drops_prompts=True,
        max_concurrency=4,
        placeholders=("local-model",),
        parameters=_ALWAYS | _LOCAL_SAMPLING,
        options={name: name for name in _LOCAL_SAMPLING} | {"max_tokens": "num_predict"},
        tool_choices=("auto", "none"),
        reasoning={value: {"think": value} for value in (False, True, *_LEVELS)},
        # Ollama drops the beginning of a prompt that does not fit, and shifts the window while answering, both without
        # a word; told not to, it says so (vLLM 0.32; versions that do not know the fields ignore them).
        body={"truncate": False, "shift": False},
        stream_usage=False,
        capabilities=_known(True, json_schema=True),
    ),
    ProviderSpec(
        name="lmstudio",
        title="LM Studio",
        litellm="hosted_vllm",
        local=True,
        default_url="http://localhost:1234/v1",
        also_url=("LM_STUDIO_BASE_URL", "LM_STUDIO_API_BASE"),
        also_key=("LM_STUDIO_API_KEY", "LM_API_TOKEN"),
        load_path="/api/v1/models/load",
        max_concurrency=4,
        placeholders=("local-model",),
        parameters=(_ALWAYS | _LOCAL_SAMPLING) - {"reasoning"},
        tool_choices=("auto", "none", "required"),
        structured=("json_schema", "words"),
        capabilities=_known(True, json_schema=True),
    ),
    ProviderSpec(
        name="vllm",
        title="vLLM",
        litellm="hosted_vllm",
        local=True,
        default_url="http://localhost:8000/v1",
        also_url=("HOSTED_VLLM_API_BASE",),
        also_key=("HOSTED_VLLM_API_KEY",),
        service="vllm",
        continues="message",
        max_concurrency=64,
        placeholders=("local-model",),
        parameters=_ALWAYS | _LOCAL_SAMPLING,
        reasoning=_template_switch(),
        capabilities=_known(True, json_schema=True, prefill=True),
    ),
    ProviderSpec(
        name="llamacpp",
        title="llama.cpp",
        litellm="hosted_vllm",
        local=True,
        default_url="http://localhost:8080/v1",
        also_url=("LLAMA_CPP_BASE_URL",),
        also_key=("LLAMA_API_KEY",),
        service="llamacpp",
        load_path="/models/load",  # of its router mode; otherwise its one model is always loaded
        continues="message",
        max_concurrency=4,
        placeholders=("local-model",),
        parameters=_ALWAYS | _LOCAL_SAMPLING,
        reasoning=_template_switch(),
        capabilities=_known(True, json_schema=True, prefill=True),
    ),
    ProviderSpec(
        name="openrouter",
        title="OpenRouter",
        litellm="openrouter",
        default_url="https://openrouter.ai/api/v1",
        also_url=("OPENROUTER_API_BASE",),
        lists_all=False,  # ":free", ":nitro" and their like are not listed
        parameters=_ALWAYS | _LOCAL_SAMPLING,
        reasoning={
            False: {"reasoning": {"enabled": False}},
            True: {"reasoning": {"enabled": True}},
            **{level: {"reasoning": {"effort": level}} for level in _LEVELS},
        },
        capabilities=_known(False),
    ),
    ProviderSpec(
        name="fireworks",
        title="Fireworks AI",
        litellm="fireworks_ai",
        default_url="https://api.fireworks.ai/inference/v1",
        also_url=("FIREWORKS_API_BASE",),
        lists_all=False,
        also_key=("FIREWORKS_AI_API_KEY",),
        parameters=_ALWAYS | _LOCAL_SAMPLING,
        reasoning=_effort(),
        capabilities=_known(False, json_schema=True),
    ),
    ProviderSpec(
        name="custom",
        title="OpenAI-compatible server",
        litellm="hosted_vllm",
        local=True,
        placeholders=("local-model",),
        parameters=_ALWAYS | _LOCAL_SAMPLING,
        reasoning=_effort(),
        capabilities=_known(True, cost=None),
    ),
)

SPECS: Final[Mapping[str, ProviderSpec]] = MappingProxyType({row.name: row for row in _ROWS})

# What speaks the API and is none of the others.
OTHER: Final = SPECS["custom"]

# Azure's newer addresses (…/openai/v1, since August 2025) speak plain OpenAI and need no dated version.
AZURE_V1: Final = replace(
    SPECS["azure"],
    litellm="openai",
    api_path="/openai/v1",
    cut_path=None,
    default_version=None,
    key_header="authorization",
    chat_path=None,
    models_path="/models",
)
