"""The settings: every environment variable of this package, validated.

``settings_sources`` has the sources: the environment, ``.env`` files, and Docker's secrets. An invalid value raises
``NotConfigured`` with the name of its variable.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource
from typing_extensions import override

from . import log, settings_sources
from .base import Routing
from .capabilities import parse_capabilities
from .errors import NotConfigured
from .parameters import ApiName, Count, CountOrZero, Seconds, describe_faults
from .process import switches
from .provider_spec import ProviderSpec

# ``LLM_MODEL_<NODE>`` is the model of one LangGraph node of the application LearnFlow.
NODE_PREFIX: Final = "LLM_MODEL_"
_SettingsT = TypeVar("_SettingsT", bound="EnvSettings")


def _parse_networks(value: object) -> object:
    """Parse networks that are separated by commas. Raise ValueError if one is invalid."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    return tuple(str(ipaddress.ip_network(name)) for name in names if name)  # type: ignore[attr-defined]


def _make_absolute(folder: Path) -> Path:
    """Expand ``~`` and make the path absolute. Raise ValueError if the system cannot have such a path."""
    if not str(folder).isprintable():
        raise ValueError("a path must be printable")
    try:
        path = folder.expanduser().absolute()
        path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: the user is unknown, or has no home directory
        raise ValueError(getattr(error, "strerror", error)) from None
    return path


_Folder = Annotated[Path, AfterValidator(_make_absolute)]


def _enables_content(value: object) -> bool:
    """Return whether a value of OpenTelemetry's variable enables content on spans. An unknown value does not."""
    return str(value).strip().lower() in ("true", "1", "span_only", "span_and_event")


def parse_chain(text: str) -> list[tuple[str, ...]]:
    """Parse the names of providers, "a+b,c". A comma separates ranks, which are positions in the order of preference.

    "+" joins the providers of one rank.
    """
    return [parse_rank(rank) for rank in text.split(",") if rank.strip()]


def parse_rank(text: str) -> tuple[str, ...]:
    """Parse the names of one rank, "a+b". If there is no name, return the text, which is then reported as invalid."""
    return tuple(name.strip().lower() for name in text.split("+") if name.strip()) or (text.strip(),)


class EnvSettings(BaseSettings, allow_inf_nan=False):
    """Base class of the settings. Their values come from ``settings_sources``, not from pydantic-settings."""

    @classmethod
    @override
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the only source: the keywords of the constructor."""
        return (init_settings,)


class Settings(EnvSettings):
    """The global variables. Each field is a variable, in upper case.

    Attributes:
        llm_provider: the provider: a name of the tables in docs/providers.md, or a name of your own
            (`GPU1_BASE_URL` is the address of `gpu1`).
        llm_providers: several providers in order of preference: a comma begins the next rank, `+` joins providers of
            the same rank (`gpu1+gpu2,openai`). Overrides `LLM_PROVIDER`, except
            that a variable of the process's environment overrides one of a file.
        llm_fallback_enabled: if `false`, only the first rank is used.
        llm_connect_timeout: seconds for each step of connecting: name look-up, TCP and TLS.
        llm_first_token_timeout: seconds until the first token. Unset: 60, and 180 for self-hosted servers, which
            may have to read a long prompt.
        llm_gap_timeout: seconds between two tokens. Unset: 30, and 120 for self-hosted servers.
        llm_deadline: seconds for a request with all its providers and retries; `timeout=` of a call overrides it.
        llm_load_timeout: seconds for loading a model.
        llm_reask: how often an answer that fails its schema is sent back to the model with the reason, before the
            next provider gets the request. 0: never.
        llm_retries: how often a request is retried after a transient failure, if no other provider can serve it.
        llm_patience: seconds for which a self-hosted server that refuses connections is retried, if no other
            provider can serve the request. The server may be restarting. 0: only `LLM_RETRIES` retries.
            `learnflow-llm` commands do not wait unless this variable is set.
        llm_spill: if all providers of a rank are full, a request waits for one of them (`no`), goes to another rank but
            not from a local provider to a cloud (`local`), or goes to any rank (`cloud`).
        llm_routing: the order of the providers: `order` (as named), `latency`, `cost`, `local-first`, or
            `warm-first` (loaded models before models that must be loaded, even if the loaded ones are in a cloud).
        llm_local_only: if `true`, no byte leaves this machine and its private network.
        llm_local_networks: further networks that count as private, separated by commas, for example a VPN:
            `100.64.0.0/10`.
        llm_log_format: the format of the log lines: `text` (`event='llm.failover' provider='gpu1'`) or `json` (an
            object with level and time).
        llm_log_content: if `true`, prompts and answers are logged, at DEBUG.
        llm_metrics_port: serves metrics for Prometheus at `http://LLM_METRICS_HOST:LLM_METRICS_PORT/metrics` (extra
            `[prometheus]`). Unset: no metrics.
        llm_metrics_host: the address that serves the metrics. Unset: 127.0.0.1, inside a container 0.0.0.0.
            Outside a container, set 0.0.0.0 if Prometheus runs in Docker.
        llm_opentelemetry: if `true`, spans and metrics go to the application's OpenTelemetry (extra
            `[opentelemetry]`).
        otel_instrumentation_genai_capture_message_content: OpenTelemetry's own variable: if `true`, prompts and
            answers are recorded on spans.
        llm_replay: folder of cassettes that are replayed without a server, a key or a network. Unset: requests are
            sent to the servers.
        llm_replay_mode: `play` replays the cassettes; `record` sends the requests and records the responses in
            `LLM_REPLAY`.
        llm_models_dir: the folder in which `learnflow-llm pull` stores models. `~` expands. Unset:
            `learnflow-llm/models` in the user's cache folder.
        llm_journal: folder in which the text of unfinished answers is recorded, so that an equal request of a later
            process continues them. `~` expands. It contains texts of your users. Unset: nothing is recorded.
        llm_journal_sync: if `true`, each record is written to the disk (fsync), so that it survives a power cut.
        llm_journal_ttl: seconds after which an unfinished answer in `LLM_JOURNAL` is deleted instead of continued.
    """

    llm_provider: str | None = None
    llm_providers: str | None = None
    llm_fallback_enabled: bool = True
    llm_connect_timeout: Seconds = 3.0
    llm_first_token_timeout: Seconds | None = None
    llm_gap_timeout: Seconds | None = None
    llm_deadline: Seconds = 3600.0
    llm_load_timeout: Seconds = 600.0
    llm_reask: CountOrZero = 1
    llm_retries: CountOrZero = 2
    llm_patience: Annotated[float, Field(ge=0)] = 60.0
    llm_spill: Literal["no", "local", "cloud"] = "no"
    llm_routing: Routing = "order"
    llm_local_only: bool = False
    llm_local_networks: Annotated[tuple[str, ...], BeforeValidator(_parse_networks)] = ()
    llm_log_format: Literal["text", "json"] = "text"
    llm_log_content: bool = False
    llm_metrics_port: Annotated[int, Field(gt=0, lt=65536)] | None = None
    llm_metrics_host: str | None = None
    llm_opentelemetry: bool = False
    otel_instrumentation_genai_capture_message_content: Annotated[bool, BeforeValidator(_enables_content)] = False
    llm_replay: _Folder | None = None
    llm_replay_mode: Literal["play", "record"] = "play"
    llm_models_dir: _Folder | None = None
    llm_journal: _Folder | None = None
    llm_journal_sync: bool = False
    llm_journal_ttl: Seconds = 86400.0

    @property
    def chain(self) -> list[tuple[str, ...]]:
        """Return the names of the providers, a tuple for each rank. ``LLM_PROVIDERS`` wins over ``LLM_PROVIDER``."""
        ranks = parse_chain(self.llm_providers or self.llm_provider or "")
        return ranks if self.llm_fallback_enabled else ranks[:1]


class ProviderSettings(EnvSettings):
    """The variables of one provider. The field ``model`` is the variable ``<NAME>_MODEL``.

    Attributes:
        base_url: the address of the server; `/v1` and a slash at the end are optional.
        kind: the kind of server: a name of the tables in docs/providers.md. Required if the name of the provider is
            your own.
        model: the model of calls without `model=`. Unset, on a self-hosted server: the loaded model, or the only
            one.
        vision_model: the model of requests with images. Unset: `<NAME>_MODEL`.
        api_key: the API key. It is sent only to `<NAME>_BASE_URL`, or to the provider's default address.
        headers: additional headers of every request to the server: `Name: value; Name: value`, or a JSON object.
            `{session}` is the `session=` of the call. The values are secrets, and are sent only where the key is sent.
        api: the API of all requests: `chat` (chat completions) or `responses` (OpenAI's Responses API). Unset: chat
            completions, unless the model or the request needs the Responses API.
        api_version: the version of the API, for a provider that has versions.
        context: the served context length in tokens, if the server does not report it. It is sent if the API has such
            a parameter.
        max_concurrency: the concurrency limit; further requests wait.
        slots: for a server that the package starts: its number of concurrent requests. Unset: 2.
        threads: for a server that the package starts: its number of computing threads. Unset: the cores that the
            process may use.
        capabilities: capabilities that the server does not report, separated by commas: `vision`, `tools`,
            `json_schema`, `reasoning`, `prefill`, with `no-` if the model does not support it; `max_output=TOKENS`;
            `cost=DOLLARS/DOLLARS` for a million prompt and answer tokens; `no-finish`: the server never sends a
            finish reason.
    """

    base_url: str | None = None
    kind: str | None = None
    model: str | None = None
    vision_model: str | None = None
    api_key: SecretStr | None = None
    headers: SecretStr | None = None
    api: ApiName | None = None
    api_version: str | None = None
    context: Count | None = None
    max_concurrency: Count | None = None
    slots: Count | None = None
    threads: Count | None = None
    capabilities: Annotated[dict[str, Any], BeforeValidator(parse_capabilities)] | None = None

    @property
    def configured_capabilities(self) -> dict[str, Any]:
        """Return the capabilities that the operator configured, by name."""
        return {**(self.capabilities or {}), **({"context_served": self.context} if self.context else {})}


def load() -> Settings:
    """Read the global settings, and set the format of the log. Raise NotConfigured if a value is invalid."""
    common = _read(Settings, lambda field: (field.upper(),), None)
    if common.llm_provider and common.llm_providers and find_chain().name == "LLM_PROVIDER":
        common.llm_providers = None
    log.set_format(common.llm_log_format)
    return common


def find_chain() -> settings_sources.SetVariable:
    """Return LLM_PROVIDERS or LLM_PROVIDER, the one that is used. One of them must be set.

    The environment wins over files, so that ``LLM_PROVIDER=…`` before a command works beside an LLM_PROVIDERS in
    ``.env``. In one source, LLM_PROVIDERS wins.
    """
    return next(settings_sources.find_variables(["LLM_PROVIDERS", "LLM_PROVIDER"], settings_sources.read_sources()))


def load_provider(spec: ProviderSpec) -> ProviderSettings:
    """Read the settings of one provider. Raise NotConfigured with the variable if a value is invalid."""
    return _read(ProviderSettings, spec.variable_names, spec.name)


def node_models() -> dict[str, str]:
    """Return the values of ``LLM_MODEL_<NODE>`` by variable; see ``NODE_PREFIX``."""
    sources = settings_sources.read_sources()
    names = {name for values in sources.values() for name in values if name.startswith(NODE_PREFIX)}
    variables = (next(settings_sources.find_variables([name], sources), None) for name in sorted(names))
    return {variable.name: variable.value for variable in variables if variable}


def _read(
    settings_class: type[_SettingsT], names_of: Callable[[str], Sequence[str]], provider: str | None
) -> _SettingsT:
    """Read settings.

    Args:
        settings_class: the class of the settings.
        names_of: returns the names of the variable for a field, the preferred one first.
        provider: the name of the provider, for an error.
    """
    sources, variables = settings_sources.read_sources(), dict[str, Any]()
    for name in settings_class.model_fields:
        if variable := next(settings_sources.find_variables(names_of(name), sources), None):
            variables[name] = variable
    try:
        return settings_class(**{name: variable.value for name, variable in variables.items()})
    except ValidationError as error:
        faults = {variables.pop(name).name: fault for name, fault in describe_faults(error).items()}
    if switches.collected_faults is None:
        what = "; ".join(f"{name} {fault}" for name, fault in faults.items())
        raise NotConfigured(what, hint="Correct it in the environment or .env", provider=provider)
    switches.collected_faults.update(faults)
    return settings_class(**{name: variable.value for name, variable in variables.items()})
