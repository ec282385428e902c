"""Read the sources of settings: the process's environment, ``.env`` and ``.env.local``, and Docker's secrets.

Decides whether an API key may be sent to an address, from the sources of both. Also reads the proxies, the cache folder
and the signs of a container. Only this module and ``settings`` read the environment. Neither caches values.
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
from typing import Final

from dotenv import dotenv_values
from pydantic import SecretStr
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, SettingsConfigDict

from .errors import NotConfigured
from .provider_spec import ProviderSpec

Places = Mapping[str, Mapping[str, str | None]]

# The precedence is that of LearnFlow: the process's environment, then .env, then .env.local.
CONFIG: Final = SettingsConfigDict(
    env_file=(".env.local", ".env"),
    env_file_encoding="utf-8",
    extra="ignore",
    env_ignore_empty=True,
    use_attribute_docstrings=True,
)
SHELL: Final = "the environment"
SECRETS: Final = Path("/run/secrets")
_MAX_SECRET_BYTES: Final = 64 * 1024  # larger files are not values of variables
_SECRET_NAME: Final = re.compile("KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
_MIN_SECRET_CHARS: Final = 8  # a shorter value is a placeholder


class _AllVariables(BaseSettings):
    model_config = CONFIG


def places() -> Places:
    """Return the variables of each source, by upper-case name. A file that cannot be read has none."""
    files = {name: _read_env_file(name) for name in (".env", ".env.local")}
    return {SHELL: _upper(EnvSettingsSource(_AllVariables).env_vars), **files, str(SECRETS): _upper(_read_secrets())}


def places_of(spellings: Sequence[str], places: Places) -> Iterator[tuple[str, str]]:
    """Yield the (variable, source) pairs that set a setting, in order of precedence.

    The environment comes first, then both files, then the secrets. Among the variables of each, earlier spellings come
    first. If both files set the same variable, ``.env`` comes first.

    Args:
        spellings: the variables of the setting.
        places: the variables of every source.
    """
    for group in ((SHELL,), (".env", ".env.local"), (str(SECRETS),)):
        for name, place in product(spellings, group):
            if places[place].get(name):
                yield name, place


def provider_key(spec: ProviderSpec, api_key: SecretStr | None) -> tuple[str | None, str]:
    """Return the API key of a provider, and a hint if the key must not be sent to the configured address.

    A ``.env`` file in the working directory may come from an untrusted repository. It must not redirect a key of the
    process's environment to another server. So an address from a file is used only with a key from a file, and not
    with one that the file copies from the environment (``${...}``).

    Args:
        spec: the provider.
        api_key: the key in the provider's settings.

    Raises:
        NotConfigured: an address in a file contains a secret of the environment.
    """
    key, sources = api_key.get_secret_value() if api_key else None, places()
    url_source = next(places_of(spec.spellings("base_url"), sources), None)
    if url_source is None or url_source[1] == SHELL:
        return key, ""
    url_name, url_file = url_source
    if _has_secret(_raw_value(url_name, url_file), sources[url_file][url_name] or "", sources[SHELL]):
        raise NotConfigured(f"{url_name} in {url_file} contains a secret", hint="Remove ${...} from the address")
    name, source = next(places_of(spec.spellings("api_key"), sources), ("", ""))
    if key is None or source == url_file == str(SECRETS):
        return key, ""
    for key_name, file in places_of(spec.spellings("api_key"), {**sources, SHELL: {}, str(SECRETS): {}}):
        if "$" not in _raw_value(key_name, file):
            return sources[file][key_name], ""
    return key, (
        f"{name} is set in {source}, and {url_name} in {url_file}. "
        f"A key is sent only to an address from the same source. "
        f"Set the value of {name} in {url_file}, or export {url_name}"
    )


def _has_secret(raw_value: str, value: str, shell: Mapping[str, str | None]) -> bool:
    """Return whether a value of a file contains a secret of the environment, directly or through another variable."""
    if any(_SECRET_NAME.search(name) for name in re.findall(r"\$\{[^}]*", raw_value)):
        return True
    secrets = (text for name, text in shell.items() if text and _SECRET_NAME.search(name))
    return "$" in raw_value and any(text in value for text in secrets if len(text) >= _MIN_SECRET_CHARS)


def _read_env_file(name: str) -> Mapping[str, str | None]:
    try:
        return _upper(DotEnvSettingsSource(_AllVariables, env_file=name).env_vars)
    except (OSError, UnicodeError):
        return {}


def _raw_value(name: str, file: str) -> str:
    """Return the value of a variable in a file, without replacing ``${...}``."""
    if file == str(SECRETS):
        return ""
    return _upper(dotenv_values(file, encoding="utf-8", interpolate=False)).get(name) or ""


def _read_secrets() -> dict[str, str | None]:
    secrets: dict[str, str | None] = {}
    for file in SECRETS.glob("*"):
        with suppress(OSError, UnicodeError):
            if file.is_file() and file.stat().st_size <= _MAX_SECRET_BYTES:
                secrets[file.name] = file.read_text(encoding="utf-8").strip()
    return secrets


def _upper(variables: Mapping[str, str | None]) -> dict[str, str | None]:
    return {name.upper(): value for name, value in variables.items()}


def proxies() -> dict[str, str]:
    """Return the proxies of the environment, by scheme. The entry ``no`` lists hosts that bypass the proxies."""
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
    marker_files = Path("/.dockerenv"), Path("/run/.containerenv")
    return any(file.exists() for file in marker_files) or "KUBERNETES_SERVICE_HOST" in os.environ
