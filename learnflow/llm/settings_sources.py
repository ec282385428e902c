"""Where settings come from: the process's environment, ``.env`` and ``.env.local``, and Docker's secrets.

Holds what depends on the place of a variable: which key may go to which address, and proxies, folders, containers.
Only this module and ``settings`` read the environment. Neither remembers anything.
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
_SECRET_BYTES: Final = 64 * 1024  # a larger file is no value of a variable
_SECRET: Final = re.compile("KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
_MIN_SECRET_CHARS: Final = 8  # a shorter value is a placeholder


class _Any(BaseSettings):
    model_config = CONFIG


def places() -> Places:
    """Return each place's variables, by upper-case name. Files that cannot be read have none."""
    files = {name: _of_file(name) for name in (".env", ".env.local")}
    return {SHELL: _upper(EnvSettingsSource(_Any).env_vars), **files, str(SECRETS): _upper(_secrets())}


def places_of(spellings: Sequence[str], places: Places) -> Iterator[tuple[str, str]]:
    """Yield each variable and place that sets a setting. The first one counts.

    The environment wins over the files, and they over the secrets. Within one of them the order of the spellings
    decides; for one spelling ``.env`` wins over ``.env.local``.
    """
    for group in ((SHELL,), (".env", ".env.local"), (str(SECRETS),)):
        for name, place in product(spellings, group):
            if places[place].get(name):
                yield name, place


def provider_key(spec: ProviderSpec, api_key: SecretStr | None) -> tuple[str | None, str]:
    """Return the environment's key of a provider, and the hint for an address that must not get it.

    A file of the working directory may be anybody's. It must not send a key elsewhere that the shell exported. With an
    address from a file goes only a key of a file, and none that the file takes from the shell (``${...}``).

    Raises:
        NotConfigured: the address of a file contains a secret of the shell.
    """
    key, here = api_key.get_secret_value() if api_key else None, places()
    url = next(places_of(spec.spellings("base_url"), here), None)
    if url is None or url[1] == SHELL:
        return key, ""
    if _has_secret(_written(*url), here[url[1]][url[0]] or "", here[SHELL]):
        raise NotConfigured(f"{url[0]} in {url[1]} puts a secret into an address", hint="Write the address itself")
    name, place = next(places_of(spec.spellings("api_key"), here), ("", ""))
    if key is None or place == url[1] == str(SECRETS):
        return key, ""
    for other, file in places_of(spec.spellings("api_key"), {**here, SHELL: {}, str(SECRETS): {}}):
        if "$" not in _written(other, file):
            return here[file][other], ""
    return key, (
        f"{name} is set in {place}, and {url[0]} in {url[1]}: a key goes only to an address of the same place. "
        f"Put {name} itself into {url[1]}, or export {url[0]}"
    )


def _has_secret(written: str, value: str, shell: Mapping[str, str | None]) -> bool:
    """Return whether a file's value names a secret in ``${...}``, or has one of the shell by way of other variables."""
    if any(_SECRET.search(name) for name in re.findall(r"\$\{[^}]*", written)):
        return True
    secrets = (text for name, text in shell.items() if text and _SECRET.search(name))
    return "$" in written and any(text in value for text in secrets if len(text) >= _MIN_SECRET_CHARS)


def _of_file(name: str) -> Mapping[str, str | None]:
    try:
        return _upper(DotEnvSettingsSource(_Any, env_file=name).env_vars)
    except (OSError, UnicodeError):
        return {}


def _written(name: str, file: str) -> str:
    """Return a variable's value as the file has it, before ``${...}`` is replaced."""
    if file == str(SECRETS):
        return ""
    return _upper(dotenv_values(file, encoding="utf-8", interpolate=False)).get(name) or ""


def _secrets() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for file in SECRETS.glob("*"):
        with suppress(OSError, UnicodeError):
            if file.is_file() and file.stat().st_size <= _SECRET_BYTES:
                found[file.name] = file.read_text(encoding="utf-8").strip()
    return found


def _upper(variables: Mapping[str, str | None]) -> dict[str, str | None]:
    return {name.upper(): value for name, value in variables.items()}


def proxies() -> dict[str, str]:
    """Return the environment's proxies by scheme; ``no`` lists the hosts without one."""
    return urllib.request.getproxies()


def proxy_for(scheme: str, host: str) -> str | None:
    """Return the proxy for a host (``HTTPS_PROXY``, ``ALL_PROXY``, ``NO_PROXY``), or None."""
    proxy = proxies().get(scheme) or proxies().get("all")
    if not proxy or urllib.request.proxy_bypass(host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


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
    """Return whether this is a container, by the marks of Docker, Podman and Kubernetes."""
    marks = Path("/.dockerenv"), Path("/run/.containerenv")
    return any(mark.exists() for mark in marks) or "KUBERNETES_SERVICE_HOST" in os.environ
