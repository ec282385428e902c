"""The sources of settings: the process's environment, ``.env`` and ``.env.local``, and Docker's secrets.

Decides which address may receive a key, because that depends on the source of both. Also reads proxies, the cache
folder and the marks of a container. Only this module and ``settings`` read the environment. Neither caches a value.
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

# As LearnFlow reads them: if both files set a variable, .env wins. The process's environment wins over both.
CONFIG: Final = SettingsConfigDict(
    env_file=(".env.local", ".env"),
    env_file_encoding="utf-8",
    extra="ignore",
    env_ignore_empty=True,
    use_attribute_docstrings=True,
)
SHELL: Final = "the environment"
SECRETS: Final = Path("/run/secrets")
_MAX_SECRET_BYTES: Final = 64 * 1024  # a larger file is not the value of a variable
_SECRET: Final = re.compile(r"\$\{[^}]*(KEY|TOKEN|SECRET|PASS|CREDENTIAL)", re.IGNORECASE)


class _Any(BaseSettings):
    model_config = CONFIG


def places() -> Places:
    """Return the variables of every source, by upper-case name. A file that cannot be read has no variables."""
    files = {name: _of_file(name) for name in (".env", ".env.local")}
    return {SHELL: _upper(EnvSettingsSource(_Any).env_vars), **files, str(SECRETS): _upper(_secrets())}


def places_of(spellings: Sequence[str], places: Places) -> Iterator[tuple[str, str]]:
    """Yield the variables that set a setting, with their sources. The first one wins.

    The environment precedes the files, which precede the secrets. Within a group the order of the spellings decides.
    For the same spelling ``.env`` precedes ``.env.local``.

    Args:
        spellings: the variables of the setting.
        places: the variables of every source.
    """
    for group in ((SHELL,), (".env", ".env.local"), (str(SECRETS),)):
        for name, place in product(spellings, group):
            if places[place].get(name):
                yield name, place


def provider_key(spec: ProviderSpec, api_key: SecretStr | None) -> tuple[str | None, str]:
    """Return the configured key of a provider, and the hint if the configured address must not receive it.

    The files of the working directory may come from another person. They must not redirect a key that the shell
    exported. So an address from a file receives only a key from a file, not one that the file copies from the shell
    (``${...}``).

    Args:
        spec: the provider.
        api_key: the key in its settings.

    Raises:
        NotConfigured: the address in a file contains a secret of the shell.
    """
    key, here = api_key.get_secret_value() if api_key else None, places()
    url = next(places_of(spec.spellings("base_url"), here), None)
    if url is None or url[1] == SHELL:
        return key, ""
    if _SECRET.search(_written(*url)):
        raise NotConfigured(f"{url[0]} in {url[1]} has a secret in the address", hint="Write the address without it")
    if key is None:
        return key, ""
    name, place = next(places_of(spec.spellings("api_key"), here), ("", ""))
    for other, file in places_of(spec.spellings("api_key"), {**here, SHELL: {}, str(SECRETS): {}}):
        if "$" not in _written(other, file):
            return here[file][other], ""
    return key, (
        f"{name} is set in {place}, and {url[0]} in {url[1]}. A key is sent only to an address from the same source. "
        f"Set {name} in {url[1]}, or export {url[0]}"
    )


def _of_file(name: str) -> Mapping[str, str | None]:
    try:
        return _upper(DotEnvSettingsSource(_Any, env_file=name).env_vars)
    except (OSError, UnicodeError):
        return {}


def _written(name: str, file: str) -> str:
    """Return a variable's value in the file, before ``${...}`` is expanded."""
    if file == str(SECRETS):
        return ""
    return _upper(dotenv_values(file, encoding="utf-8", interpolate=False)).get(name) or ""


def _secrets() -> dict[str, str | None]:
    secrets: dict[str, str | None] = {}
    for file in SECRETS.glob("*"):
        with suppress(OSError, UnicodeError):
            if file.is_file() and file.stat().st_size <= _MAX_SECRET_BYTES:
                secrets[file.name] = file.read_text(encoding="utf-8").strip()
    return secrets


def _upper(variables: Mapping[str, str | None]) -> dict[str, str | None]:
    return {name.upper(): value for name, value in variables.items()}


def proxies() -> dict[str, str]:
    """Return the environment's proxies by scheme. ``no`` lists the hosts without a proxy."""
    return urllib.request.getproxies()


def proxy_for(scheme: str, host: str) -> str | None:
    """Return the proxy for a host (``HTTPS_PROXY``, ``ALL_PROXY``, ``NO_PROXY``); None without a proxy."""
    proxy = proxies().get(scheme) or proxies().get("all")
    if not proxy or urllib.request.proxy_bypass(host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def cache_folder() -> Path:
    """Return the user's cache folder. Raise NotConfigured if the user has no home folder."""
    variable = {"win32": "LOCALAPPDATA", "darwin": ""}.get(sys.platform, "XDG_CACHE_HOME")
    named = Path(os.environ.get(variable, ""))
    if named.is_absolute():  # the XDG specification requires to ignore a relative path
        return named
    usual = {"win32": "AppData/Local", "darwin": "Library/Caches"}.get(sys.platform, ".cache")
    try:
        return Path.home() / usual
    except RuntimeError:
        raise NotConfigured("the user has no home folder", hint="Set LLM_MODELS_DIR") from None


def in_container() -> bool:
    """Return whether this process runs in a container of Docker, Podman or Kubernetes."""
    marks = Path("/.dockerenv"), Path("/run/.containerenv")
    return any(mark.exists() for mark in marks) or "KUBERNETES_SERVICE_HOST" in os.environ
