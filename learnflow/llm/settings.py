"""The settings: every environment variable of this package, validated.

``settings_sources`` reads the variables from the environment, ``.env`` files and Docker's secrets. An invalid value
raises ``NotConfigured``, which names the variable.
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

# The prefix of ``LLM_MODEL_<NODE>``, the model of one LangGraph node in the application LearnFlow.
NODE_PREFIX: Final = "LLM_MODEL_"
_SettingsT = TypeVar("_SettingsT", bound="EnvSettings")


def _parse_networks(value: object) -> object:
    """Parse networks, separated by commas. Raise ValueError if one is invalid."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    return tuple(str(ipaddress.ip_network(name)) for name in names if name)  # type: ignore[attr-defined]


def _make_absolute(folder: Path) -> Path:
    """Expand ``~`` and make the path absolute. Raise ValueError if the path is invalid on this system."""
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
    """Return whether a value of OpenTelemetry's variable enables prompts and answers in spans. Unknown ones do not."""
    return str(value).strip().lower() in ("true", "1", "span_only", "span_and_event")


def parse_chain(text: str) -> list[tuple[str, ...]]:
    """Parse "a+b,c" into ranks: ``[("a", "b"), ("c",)]``.

    A rank has the providers that are equally preferred. An earlier rank is preferred to a later one.
    """
    return [parse_rank(rank) for rank in text.split(",") if rank.strip()]


def parse_rank(text: str) -> tuple[str, ...]:
    """Parse the names of one rank, "a+b". If there is no name, return the text, which an error then quotes."""
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
        llm_provider: the provider: a name from docs/providers.md, or a name of your own (`GPU1_BASE_URL` is the
            address of `gpu1`).
        llm_providers: several providers, separated by commas, the preferred one first. `+` joins providers that
            are equally preferred: `gpu1+gpu2,openai`. Overrides `LLM_PROVIDER`, except if only `LLM_PROVIDER` is in the
            process's environment.
        llm_fallback_enabled: if `false`, only the providers before the first comma of `LLM_PROVIDERS` are used.
        llm_connect_timeout: seconds for DNS and TCP together. The same limit applies separately to TLS.
        llm_first_token_timeout: seconds until the first token. Unset: 60, or 180 for a self-hosted server, which may
            have to read a long prompt.
        llm_gap_timeout: seconds between two tokens. Unset: 30, or 120 for a self-hosted server.
        llm_deadline: seconds for a request with all its providers and retries; `timeout=` of a call overrides it.
        llm_load_timeout: seconds for loading a model.
        llm_reask: how often an answer that does not match the schema is sent back to the model, with the reason (0:
            never). After that, the next provider gets the request.
        llm_retries: how often a request is retried after a transient failure, if no other provider can serve it.
        llm_patience: seconds for which a self-hosted server that refuses connections is retried, because it may be
            restarting. Used only if no other provider can serve the request. 0: only `LLM_RETRIES` retries.
            `learnflow-llm` commands do not wait unless this variable is set.
        llm_spill: what happens to a request if its provider has reached its concurrency limit (with `+`: if all the
            joined providers have). `no`: the request waits. `local`: the request goes to another provider, but not from
            a local one to a cloud. `cloud`: the request goes to any other provider.
        llm_routing: the order of the providers: `order` (as named), `latency`, `cost`, `local-first`, or
            `warm-first` (as named, but models that must be loaded come last, even after clouds).
        llm_local_only: if `true`, no byte leaves this machine and its private network.
        llm_local_networks: further private networks, separated by commas, for example a VPN: `100.64.0.0/10`.
        llm_log_format: `text` (`event='llm.failover' provider='gpu1'`), or `json` (an object with level and time).
        llm_log_content: if `true`, prompts and answers are logged, at DEBUG.
        llm_metrics_port: the port that serves metrics for Prometheus, at
            `http://LLM_METRICS_HOST:LLM_METRICS_PORT/metrics` (extra `[prometheus]`). Unset: no metrics.
        llm_metrics_host: the address that serves the metrics. Unset: 127.0.0.1, or 0.0.0.0 inside a container.
            Outside a container, set 0.0.0.0 if Prometheus runs in Docker.
        llm_opentelemetry: if `true`, spans and metrics go to the application's OpenTelemetry (extra
            `[opentelemetry]`).
        otel_instrumentation_genai_capture_message_content: OpenTelemetry's variable: if `true`, spans contain prompts
            and answers.
        llm_replay: folder of cassettes (recorded responses). They are replayed without a server, a key or a network.
            Unset: requests are sent to the servers.
        llm_replay_mode: `play` replays the cassettes; `record` sends the requests and records the responses in
            `LLM_REPLAY`.
        llm_models_dir: the folder in which `learnflow-llm pull` stores models. `~` is the home directory. Unset:
            `learnflow-llm/models` in the user's cache folder.
        llm_journal: folder for the text of unfinished answers. A later identical request, also of another process,
            continues the answer. `~` is the home directory. The folder contains texts of your users. Unset: nothing is
            recorded.
        llm_journal_sync: if `true`, each record in `LLM_JOURNAL` survives a power cut (fsync).
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
        """Return the names of the providers, a tuple for each rank (providers that are equally preferred)."""
        ranks = parse_chain(self.llm_providers or self.llm_provider or "")
        return ranks if self.llm_fallback_enabled else ranks[:1]


class ProviderSettings(EnvSettings):
    """The variables of one provider. For example, the field ``model`` is the variable ``<NAME>_MODEL``.

    Attributes:
        base_url: the address of the server; `/v1` and a slash at the end are optional.
        kind: the kind of server: a name from docs/providers.md. Required if the provider has a name of your own.
        model: the model of calls without `model=`. Unset, on a self-hosted server: the loaded model, or the only one.
        vision_model: the model of requests with images. Unset: `<NAME>_MODEL`.
        api_key: the API key. It is sent only to `<NAME>_BASE_URL`, or to the provider's default address.
        headers: additional headers of every request: `Name: value; Name: value`, or a JSON object. `{session}` is
            the `session=` of the call. The values are secrets, and are sent only to the address that gets the key.
        api: the API of all requests: `chat` (chat completions) or `responses` (OpenAI's Responses API). Unset:
            `responses` if the model or the request needs it, else `chat`.
        api_version: the version of the API, for a provider that has versions.
        context: the served context length in tokens, if the server does not report it. The length is sent if the API
            has a parameter for it.
        max_concurrency: the concurrency limit; further requests wait.
        slots: the number of requests that run concurrently in a server that the package starts. Unset: 2.
        threads: the number of computing threads of a server that the package starts. Unset: the number of cores that
            the process may use.
        capabilities: what the server does not report, separated by commas: `vision`, `tools`, `json_schema`,
            `reasoning`, `prefill` (`no-vision` and so on if unsupported); `max_output=TOKENS`; `cost=DOLLARS/DOLLARS`
            for a million prompt tokens and a million answer tokens; `no-finish` if the server sends no finish reason.
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
    """Read the global settings, and set the format of the log.

    Raises:
        NotConfigured: a value is invalid.
    """
    common = _read(Settings, lambda field: (field.upper(),), None)
    if common.llm_provider and common.llm_providers and find_chain_variable().name == "LLM_PROVIDER":
        common.llm_providers = None  # the source of LLM_PROVIDER has precedence
    log.set_format(common.llm_log_format)
    return common


def find_chain_variable() -> settings_sources.SetVariable:
    """Return the variable that is used: LLM_PROVIDERS or LLM_PROVIDER. One of them must be set.

    The environment wins over files, so that ``LLM_PROVIDER=… command`` overrides LLM_PROVIDERS in ``.env``. In one
    source, LLM_PROVIDERS wins.
    """
    return next(settings_sources.find_variables(["LLM_PROVIDERS", "LLM_PROVIDER"], settings_sources.read_sources()))


def load_provider(spec: ProviderSpec) -> ProviderSettings:
    """Read the settings of one provider. Raise NotConfigured if a value is invalid."""
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
    """Read and validate the variables of a settings class.

    Args:
        settings_class: the class.
        names_of: returns the names of the variable for a field, the preferred one first.
        provider: the name of the provider, for an error.

    Raises:
        NotConfigured: a value is invalid. In ``learnflow-llm doctor``, nothing is raised: the fault is added to
            ``switches.collected_faults``, and the variable counts as unset.
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
