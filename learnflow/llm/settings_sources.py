"""Read the sources of settings: the environment of the process, ``.env`` and ``.env.local``, and Docker's secrets.

It also decides from which source an API key or headers are used for an address. Only this module and ``settings`` read
the environment.
"""

from __future__ import annotations

import os
import re
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Final, NamedTuple

from dotenv import dotenv_values
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, SettingsConfigDict

from .errors import NotConfigured
from .provider_spec import ProviderSpec

# The variables of each source, by upper-case name.
Sources = Mapping[str, Mapping[str, str | None]]

ENVIRONMENT: Final = "the environment"
SECRETS_FOLDER: Final = Path("/run/secrets")
_FILES: Final = (".env", ".env.local")
_MAX_SECRET_BYTES: Final = 64 * 1024  # a larger file is not the value of a variable
_MIN_SECRET_CHARS: Final = 8  # a shorter value is a placeholder
_SECRET_NAME: Final = re.compile("KEY|TOKEN|SECRET|PASS|CREDENTIAL|HEADERS", re.IGNORECASE)


class SetVariable(NamedTuple):
    """A variable that is set, and the source with its value."""

    name: str
    source: str
    value: str


class EnvSettings(BaseSettings):
    """Base of the settings classes. Sources in order: the environment, ``.env``, ``.env.local``, as in LearnFlow."""

    model_config = SettingsConfigDict(
        env_file=(".env.local", ".env"),
        env_file_encoding="utf-8",
        extra="ignore",
        env_ignore_empty=True,
        use_attribute_docstrings=True,
    )


def read_sources() -> Sources:
    """Read the variables of all sources. A file that cannot be read has none."""
    files = {name: _read_env_file(name) for name in _FILES}
    environment = _with_upper_names(EnvSettingsSource(EnvSettings).env_vars)
    return {ENVIRONMENT: environment, **files, str(SECRETS_FOLDER): _with_upper_names(_read_secrets())}


def find_variables(names: Sequence[str], sources: Sources) -> Iterator[SetVariable]:
    """Yield the variables with these names that are set, in order of precedence.

    The environment comes first, then the two ``.env`` files, then the secrets. In each of these three groups, variables
    are in the order of ``names``. If both files set the same variable, ``.env`` comes first.
    """
    for group in ((ENVIRONMENT,), _FILES, (str(SECRETS_FOLDER),)):
        for name, source in product(names, group):
            if value := sources[source].get(name):
                yield SetVariable(name, source, value)


def provider_secret(spec: ProviderSpec, setting: str) -> tuple[str, str]:
    """Return a secret of a provider, and a hint if it must not be sent to the configured address.

    A ``.env`` file in the working directory may come from an untrusted repository. It must not redirect a secret of the
    environment to another server. For an address in a file, only a secret from a file is used, unless the file copies
    it from the environment (``${...}``).

    Args:
        spec: the provider's spec.
        setting: "api_key" or "headers".

    Raises:
        NotConfigured: an address in a file contains a secret of the environment.
    """
    sources = read_sources()
    secrets = list(find_variables(spec.spellings(setting), sources))
    secret = secrets[0].value.strip() if secrets else ""
    url = next(find_variables(spec.spellings("base_url"), sources), None)
    if url is None or url.source == ENVIRONMENT:
        return secret, ""
    if _has_secret(url, sources[ENVIRONMENT]):
        raise NotConfigured(f"{url.name} in {url.source} contains a secret", hint="Remove ${...} from the address")
    if not secrets or secrets[0].source == url.source == str(SECRETS_FOLDER):
        return secret, ""
    for of_file in secrets:
        if of_file.source in _FILES and "$" not in _raw_value(of_file):
            return of_file.value.strip(), ""
    return secret, (
        f"{secrets[0].name} is set in {secrets[0].source}, and {url.name} in {url.source}. "
        f"A {'key' if setting == 'api_key' else 'header'} is sent only to an address from the same source. "
        f"Set the value of {secrets[0].name} in {url.source}, or export {url.name}"
    )


def _has_secret(variable: SetVariable, environment: Mapping[str, str | None]) -> bool:
    """Return whether a variable of a file contains a secret of the environment, directly or by another variable."""
    raw_value = _raw_value(variable)
    if any(_SECRET_NAME.search(name) for name in re.findall(r"\$\{[^}]*", raw_value)):
        return True
    secrets = (value for name, value in environment.items() if value and _SECRET_NAME.search(name))
    return "$" in raw_value and any(secret in variable.value for secret in secrets if len(secret) >= _MIN_SECRET_CHARS)


def _read_env_file(name: str) -> Mapping[str, str | None]:
    try:
        return _with_upper_names(DotEnvSettingsSource(EnvSettings, env_file=name).env_vars)
    except (OSError, UnicodeError):
        return {}


def _raw_value(variable: SetVariable) -> str:
    """Return the value as written in its ``.env`` file, with ``${...}``; "" for a variable of another source."""
    if variable.source not in _FILES:
        return ""
    written = dotenv_values(variable.source, encoding="utf-8", interpolate=False)
    return _with_upper_names(written).get(variable.name) or ""


def _read_secrets() -> dict[str, str | None]:
    secrets: dict[str, str | None] = {}
    for file in SECRETS_FOLDER.glob("*"):
        with suppress(OSError, UnicodeError):
            if file.is_file() and file.stat().st_size <= _MAX_SECRET_BYTES:
                secrets[file.name] = file.read_text(encoding="utf-8").strip()
    return secrets


def _with_upper_names(variables: Mapping[str, str | None]) -> dict[str, str | None]:
    return {name.upper(): value for name, value in variables.items()}


def proxies() -> dict[str, str]:
    """Return the proxies of the environment, by scheme. The key ``no`` has the value of ``NO_PROXY``."""
    return urllib.request.getproxies()


def proxy_for(scheme: str, host: str) -> str | None:
    """Return the proxy for a host (``HTTPS_PROXY``, ``ALL_PROXY``, ``NO_PROXY``); None without a proxy."""
    proxy = proxies().get(scheme) or proxies().get("all")
    if not proxy or urllib.request.proxy_bypass(host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def cache_folder() -> Path:
    """Return the user's cache folder. Raise NotConfigured if the user has no home directory."""
    variable = {"win32": "LOCALAPPDATA", "darwin": ""}.get(sys.platform, "XDG_CACHE_HOME")
    configured = Path(os.environ.get(variable, ""))
    if configured.is_absolute():  # the XDG specification requires that relative paths are ignored
        return configured
    default = {"win32": "AppData/Local", "darwin": "Library/Caches"}.get(sys.platform, ".cache")
    try:
        return Path.home() / default
    except RuntimeError:
        raise NotConfigured("the user has no home directory", hint="Set LLM_MODELS_DIR") from None


def in_container() -> bool:
    """Return whether the process runs in a container of Docker, Podman or Kubernetes."""
    return any(map(os.path.exists, ("/.dockerenv", "/run/.containerenv"))) or "KUBERNETES_SERVICE_HOST" in os.environ
