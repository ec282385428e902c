"""The only reader of the environment: the process's variables, ``.env.local`` and ``.env`` of the working directory.

In a container also the secrets that Compose and Docker put into files: one that is named like a variable is its value.

Must never talk to a server or import LiteLLM; a value that cannot be is a NotConfigured that names the variable.
Providers, the factory and the command line ask it; it remembers nothing.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_type_hints

from dotenv import dotenv_values
from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr, ValidationError, create_model
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from . import capabilities as known
from .errors import NotConfigured
from .spec import ProviderSpec

# As LearnFlow reads them: where both files set a variable, .env wins, and the process's environment wins over both.
_CONFIG = SettingsConfigDict(
    env_file=(".env.local", ".env"), env_file_encoding="utf-8", extra="ignore", env_ignore_empty=True
)
_SHELL: Final = "the environment"
_SECRETS: Final = "/run/secrets"
_SECRET_BYTES: Final = 64 * 1024  # of one of them; more is no value of a variable
_SECRET: Final = re.compile(r"\$\{[^}]*(KEY|TOKEN|SECRET|PASS|CREDENTIAL)", re.IGNORECASE)
_S = TypeVar("_S", bound=BaseSettings)
_Seconds = Annotated[float, Field(gt=0)]


def _networks(said: object) -> object:
    """The networks of a list with commas. Raises ValueError where one is none."""
    names = [name.strip() for name in str(said).split(",")] if isinstance(said, str) else said
    return tuple(str(ipaddress.ip_network(name)) for name in names if name)  # type: ignore[attr-defined]


def _absolute(folder: Path | None) -> Path | None:
    """Return the absolute path, with ``~`` expanded. Raise ValueError if no path can be made of it."""
    if folder and "\0" in str(folder):
        raise ValueError("a path cannot contain a NUL character")
    try:
        return folder and folder.expanduser().absolute()
    except RuntimeError as error:  # no such user, or a user without a home
        raise ValueError(str(error)) from None


class Settings(BaseSettings):
    """The variables that are not one provider's own. Times are in seconds; None means the row's own default."""

    model_config = _CONFIG

    llm_provider: str | None = None
    """Which provider: a name of the tables in docs/providers.md, or one of your own (`GPU1_BASE_URL` says where `gpu1`
    is)."""
    llm_providers: Annotated[str | None, NoDecode] = None
    """Several, in order of preference: a comma goes on to the next rank, `+` joins equals (`gpu1+gpu2,openai`). Wins
    over `LLM_PROVIDER`."""
    llm_fallback_enabled: bool = True
    """With `false` only the first of them is used."""
    llm_connect_timeout: _Seconds = 3.0
    """Seconds for the name, for TCP and for TLS, each."""
    llm_first_token_timeout: _Seconds | None = None
    """Seconds until the first token. Unset: 60, and 180 for servers of your own, which may have to read a long
    prompt."""
    llm_gap_timeout: _Seconds | None = None
    """Seconds between two tokens. Unset: 30, and 120 for servers of your own."""
    llm_deadline: _Seconds = 3600.0
    """Seconds for a whole request, all its providers and retries; `timeout=` of a call wins."""
    llm_load_timeout: _Seconds = 600.0
    """Seconds that a model may take to load."""
    llm_reask: Annotated[int, Field(ge=0)] = 1
    """How often an answer that fails its schema is sent back to the model with the reason, before the next provider is
    asked; 0: never."""
    llm_retries: Annotated[int, Field(ge=0)] = 2
    """How often a provider is asked again after a failure that may pass, when no other can help."""
    llm_patience: Annotated[float, Field(ge=0)] = 60.0
    """Seconds for which a server of your own that refuses connections is tried again, if no other provider can help: it
    may be restarting. 0: only `LLM_RETRIES` times. The command line waits only if it is set."""
    llm_spill: Literal["no", "local", "cloud"] = "no"
    """While all equals of a rank are full, a request waits for one of them (`no`), or goes on to a rank that is no
    farther away (`local`), or to any (`cloud`)."""
    llm_routing: Literal["order", "latency", "cost", "local-first", "warm-first"] = "order"
    """Who is asked first: `order` (as named), `latency`, `cost`, `local-first`, or `warm-first` (a loaded model before
    one that has to be loaded first, even if it is a cloud's)."""
    llm_local_only: bool = False
    """With `true` no byte leaves this machine and its private network."""
    llm_local_networks: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_networks)] = ()
    """Networks that are yours although their addresses are not private, for example a VPN's: `100.64.0.0/10`; separated
    by commas."""
    llm_log_content: bool = False
    """With `true` prompts and answers are logged, at DEBUG."""
    llm_metrics_port: Annotated[int, Field(gt=0, lt=65536)] | None = None
    """Shows metrics for Prometheus at `http://LLM_METRICS_HOST:LLM_METRICS_PORT/metrics` (extra `[prometheus]`). Unset:
    none."""
    llm_metrics_host: str | None = None
    """Unset: 127.0.0.1, inside a container 0.0.0.0. On a host, 0.0.0.0 lets a Prometheus in Docker in."""
    llm_opentelemetry: bool = False
    """With `true` spans and metrics go to the application's OpenTelemetry (extra `[opentelemetry]`)."""
    otel_instrumentation_genai_capture_message_content: str | None = None
    """OpenTelemetry's own switch: with `true` prompts and answers are kept on spans."""
    llm_replay: Path | None = None
    """Answers from the cassettes in this folder, with no server, no key and no network. Unset: the servers are
    asked."""
    llm_replay_mode: Literal["play", "record"] = "play"
    """`play` answers from the cassettes; `record` asks the servers and keeps what they answer in `LLM_REPLAY`."""
    llm_models_dir: Annotated[Path | None, AfterValidator(_absolute)] = None
    """The folder of the model store, where `learnflow-llm pull` stores models. `~` expands. Unset:
    `learnflow-llm/models` in the user's cache folder."""

    @property
    def captures_content(self) -> bool:
        """Whether OpenTelemetry's own switch asks for prompts and answers on spans."""
        said = (self.otel_instrumentation_genai_capture_message_content or "").strip().lower()
        return said in ("true", "1", "span_only", "span_and_event")

    @property
    def chain(self) -> list[str]:
        """The ranks that are named, in order: ``LLM_PROVIDERS`` wins over ``LLM_PROVIDER``; "a+b" is one of equals."""
        named = self.llm_providers or self.llm_provider or ""
        names = [name.strip().lower() for name in named.split(",") if name.strip()]
        return names if self.llm_fallback_enabled else names[:1]


class RowSettings(BaseSettings):
    """One provider's own variables: where it is, which model, which one for pictures, which key, which API version."""

    model_config = _CONFIG

    base_url: str | None = None
    """Its address; may end in `/v1` or a slash, or not."""
    kind: str | None = None
    """What an endpoint with a name of your own is: a name of the tables. Unset: the server is asked."""
    model: str | None = None
    """The model, where a call names none. Unset, on a server of your own: the one that is loaded, or the only one."""
    vision_model: str | None = None
    """The model for requests with pictures, where it is another one."""
    api_key: SecretStr | None = None
    """The key. It goes only to the address above, or the provider's own."""
    api_version: str | None = None
    """The version of the API, where it has one in its address."""
    context: Annotated[int, Field(gt=0)] | None = None
    """Tokens of context that are served, where the server does not tell, or that requests ask for at first."""
    max_concurrency: Annotated[int, Field(gt=0)] | None = None
    """Requests at once; the others wait."""
    slots: Annotated[int, Field(gt=0)] | None = None
    """Of a server that the package starts: requests that it answers at once. Unset: 2."""
    threads: Annotated[int, Field(gt=0)] | None = None
    """Of a server that the package starts: threads for the computation. Unset: the cores that the process may use."""
    capabilities: Annotated[dict[str, Any], NoDecode, BeforeValidator(known.stated)] | None = None
    """What it can, where that is not known, separated by commas: `vision`, `tools`, `json_schema`, `reasoning`,
    `prefill`, each with `no-` before it for no; `max_output=TOKENS`; `cost=DOLLARS/DOLLARS` for a million prompt and
    answer tokens; `no-finish`: it never sends a finish."""

    @property
    def stated(self) -> dict[str, Any]:
        """What it can, in the operator's own words."""
        return {**(self.capabilities or {}), **({"context_served": self.context} if self.context else {})}


def load() -> Settings:
    """What the environment says now. Raises NotConfigured naming the variable that cannot be read."""
    return _read(Settings)


def load_row(spec: ProviderSpec) -> RowSettings:
    """What the environment says now of one provider."""
    return _read(_row_class(spec))


def node_model(node: str) -> str | None:
    """``LLM_MODEL_<NODE>``: the model of one node of LearnFlow's graph."""
    name = f"llm_model_{node}".lower()
    kind = create_model("NodeSettings", __base__=_NodeSettings, **{name: (str | None, None)})  # type: ignore[call-overload]
    model: str | None = getattr(_read(kind), name)
    return model


class _NodeSettings(BaseSettings):
    model_config = _CONFIG


@cache
def _row_class(spec: ProviderSpec) -> type[RowSettings]:
    """RowSettings whose fields read the row's own variable names."""
    names = {
        "base_url": spec.env_url,
        "kind": (spec.env_kind,),
        "model": spec.env_model,
        "vision_model": (spec.env_vision_model,),
        "api_key": spec.env_key,
        "api_version": spec.env_version or (f"{spec.prefix}_API_VERSION",),
        "context": (spec.env_context,),
        "max_concurrency": (spec.env_concurrency,),
        "slots": (spec.env_slots,),
        "threads": (spec.env_threads,),
        "capabilities": (spec.env_capabilities,),
    }
    hints = get_type_hints(RowSettings, include_extras=True)
    fields: dict[str, Any] = {
        field: (hints[field], Field(None, validation_alias=AliasChoices(*aliases))) for field, aliases in names.items()
    }
    return create_model(f"{spec.prefix.title()}Settings", __base__=RowSettings, **fields)


def _read(kind: type[_S]) -> _S:
    try:
        return kind(_secrets_dir=_SECRETS if Path(_SECRETS).is_dir() else None)
    except ValidationError as error:
        faults = [f"{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors(include_input=False)]
        what = f"a variable cannot be read: {'; '.join(faults)}"
    except SettingsError as error:  # of a secret's file
        what = f"a file of {_SECRETS} cannot be read ({error}): it must be UTF-8 text"
    except (OSError, UnicodeError) as error:
        what = f".env.local or .env cannot be read ({type(error).__name__}): it must be UTF-8 text"
    raise NotConfigured(what, hint="Correct it in the environment or .env")


def proxy_for(scheme: str, host: str) -> str | None:
    """The proxy that the environment names for this scheme and host (``HTTPS_PROXY``, ``ALL_PROXY``, ``NO_PROXY``)."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def proxies() -> dict[str, str]:
    """The proxies that the environment names, by scheme; ``no`` lists the hosts without one."""
    return urllib.request.getproxies()


def cache_folder() -> Path:
    """Return the user's cache folder. Raise NotConfigured if the user has no home."""
    variable = {"win32": "LOCALAPPDATA", "darwin": ""}.get(sys.platform, "XDG_CACHE_HOME")
    named = Path(os.environ.get(variable, ""))
    if named.is_absolute():  # the XDG specification says to ignore a relative one
        return named
    usual = {"win32": "AppData/Local", "darwin": "Library/Caches"}.get(sys.platform, ".cache")
    try:
        return Path.home() / usual
    except RuntimeError:
        raise NotConfigured("the user has no home folder", hint="Set LLM_MODELS_DIR") from None


def in_container() -> bool:
    """Whether this is a container, as far as Docker, Podman and Kubernetes tell."""
    marks = Path("/.dockerenv"), Path("/run/.containerenv")
    return any(mark.exists() for mark in marks) or "KUBERNETES_SERVICE_HOST" in os.environ


def row_key(spec: ProviderSpec, own: RowSettings) -> tuple[str | None, str]:
    """The environment's key of a row, and what to do where it may not go with the environment's address.

    A file of the working directory may be anybody's: it must not send a key elsewhere that the shell exported. With an
    address from a file goes a file's key only, and none that the file itself takes from the shell (``${...}``).
    """
    key = own.api_key.get_secret_value() if own.api_key else None
    holds = sources()
    url = next(occurrences(spec.env_url, holds), None)
    if url and url[1] != _SHELL and _SECRET.search(_upper(_raw(url[1], interpolate=False)).get(url[0]) or ""):
        raise NotConfigured(f"{url[0]} in {url[1]} puts a secret into an address", hint="Write the address itself")
    if not key or not url or url[1] == _SHELL:
        return key, ""
    name, place = next(occurrences(spec.env_key, holds), ("", ""))
    files = {**holds, _SHELL: {}, _SECRETS: {}}
    for other, file in occurrences(spec.env_key, files):
        value = files[file][other] or ""
        if "$" not in (_upper(_raw(file, interpolate=False)).get(other) or ""):
            return value, ""
    return key, (
        f"{name} is set in {place}, and {url[0]} in {url[1]}: a key goes only to an address of the same place. "
        f"Put {name} itself into {url[1]}, or export {url[0]}"
    )


def sources() -> dict[str, Mapping[str, str | None]]:
    """Return the variables of each source (environment, files, secrets) in upper case."""
    files = {".env": _file(".env"), ".env.local": _file(".env.local")}
    return {_SHELL: _upper(os.environ), **files, _SECRETS: _upper(_secrets())}


def _secrets() -> dict[str, str | None]:
    """The files of ``/run/secrets`` that can be read."""
    found: dict[str, str | None] = {}
    for file in Path(_SECRETS).glob("*"):
        with suppress(OSError, UnicodeError):
            if file.is_file() and file.stat().st_size <= _SECRET_BYTES:
                found[file.name] = file.read_text(encoding="utf-8").strip()
    return found


def occurrences(names: Sequence[str], held: Mapping[str, Mapping[str, str | None]]) -> Iterator[tuple[str, str]]:
    """Yield each spelling of one variable that is set, with its source. The first one counts.

    The environment beats the files, and they the secrets. Within it, and within both files together, the order of the
    spellings decides; for one spelling ``.env`` beats ``.env.local``.
    """
    for places in ((_SHELL,), (".env", ".env.local"), (_SECRETS,)):
        for name, place in product(names, places):
            if held[place].get(name):
                yield name, place


def _upper(holds: Mapping[str, str | None]) -> dict[str, str | None]:
    return {name.upper(): value for name, value in holds.items()}


def _file(name: str) -> dict[str, str | None]:
    return _upper(_raw(name))


def _raw(name: str, *, interpolate: bool = True) -> Mapping[str, str | None]:
    try:
        return dotenv_values(name, encoding="utf-8", interpolate=interpolate)
    except (OSError, UnicodeError):
        return {}
