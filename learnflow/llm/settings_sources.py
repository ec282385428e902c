"""Read the sources of settings: the environment of the process, ``.env``, ``.env.local``, and Docker's secrets.

The module also checks whether a key or header may be sent to an address from another source. Only this module and
``settings`` read the environment.
"""

from __future__ import annotations

import io
import os
import re
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple

from dotenv.parser import parse_stream
from dotenv.variables import parse_variables

from . import log
from .errors import NotConfigured
from .process import switches
from .provider_spec import ProviderSpec

# The variables of each source, by upper-case name. The value of a Docker secret is the path of its file.
Sources = Mapping[str, Mapping[str, str | Path]]

ENVIRONMENT: Final = "the environment"
SECRETS_FOLDER: Final = Path("/run/secrets")
_FILES: Final = (".env", ".env.local")
_MAX_FILE_BYTES: Final = 1024 * 1024
_MAX_LINES_LOGGED: Final = 20
_MIN_SECRET_CHARS: Final = 8  # a shorter value is no secret, but a placeholder
_SECRET_NAME: Final = re.compile("KEY|TOKEN|SECRET|PASS|CREDENTIAL|HEADERS", re.IGNORECASE)


class SetVariable(NamedTuple):
    """A variable that is set, and the source of its value."""

    name: str
    source: str
    value: str


def read_sources() -> Sources:
    """Read the variables of all sources, in order of precedence: environment, ``.env``, ``.env.local``, secrets.

    Raises:
        NotConfigured: a ``.env`` file cannot be read.
    """
    files = {name: _resolve(_read_env_file(name)[0]) for name in _FILES}
    secrets = {file.name: file for file in SECRETS_FOLDER.glob("*")}
    sources: dict[str, Mapping[str, Any]] = {ENVIRONMENT: os.environ, **files, str(SECRETS_FOLDER): secrets}
    return {source: _with_upper_names(values) for source, values in sources.items()}


def unreadable_lines() -> list[tuple[str, int]]:
    """Return the file name and the line number of each unreadable line in the ``.env`` files."""
    return [(name, line) for name in _FILES for line in _read_env_file(name)[1]]


def find_variables(names: Sequence[str], sources: Sources) -> Iterator[SetVariable]:
    """Yield the variables that are set and have one of these names, in order of precedence.

    The environment comes first, then both files as one group, then the secrets. Within each, the order is that of
    ``names``. If both files set a variable, ``.env`` comes first.
    """
    for group in ((ENVIRONMENT,), _FILES, (str(SECRETS_FOLDER),)):
        for name, source in product(names, group):
            value = sources[source].get(name)
            if text := _read_text(value).strip() if isinstance(value, Path) else value:
                yield SetVariable(name, source, text)


def provider_secret(spec: ProviderSpec, setting: str) -> tuple[str, str]:
    """Return a secret of a provider, and a hint if the secret must not be sent to the configured address.

    An address in a ``.env`` file must not receive a secret of the environment, because the file in the working
    directory may come from an untrusted repository. If a file sets the address, a ``.env`` file must also contain the
    secret itself, not a reference ``${...}``. Alternatively, both may be Docker secrets.

    Args:
        spec: the provider's spec.
        setting: "api_key" or "headers".

    Raises:
        NotConfigured: an address in a file contains a secret of the environment.
    """
    sources = read_sources()
    secrets = list(find_variables(spec.variable_names(setting), sources))
    secret = secrets[0].value.strip() if secrets else ""
    url = next(find_variables(spec.variable_names("base_url"), sources), None)
    if url is None or url.source == ENVIRONMENT:
        return secret, ""
    if _has_secret(url):
        raise NotConfigured(f"{url.name} in {url.source} contains a secret", hint="Remove ${...} from the address")
    if not secrets or secrets[0].source == url.source == str(SECRETS_FOLDER):
        return secret, ""
    for file_secret in secrets:
        if file_secret.source in _FILES and "$" not in _raw_value(file_secret):
            return file_secret.value.strip(), ""
    return secret, (
        f"{secrets[0].name} is set in {secrets[0].source}, and {url.name} in {url.source}. "
        f"A {'key' if setting == 'api_key' else 'header'} is sent only to an address from the same source. "
        f"Set the value of {secrets[0].name} in {url.source}, or export {url.name}"
    )


def _has_secret(variable: SetVariable) -> bool:
    """Return whether a variable of a file includes a secret of the environment, even through another variable."""
    raw_value = _raw_value(variable)
    if any(_SECRET_NAME.search(name) for name in re.findall(r"\$\{[^}]*", raw_value)):
        return True
    secrets = (value for name, value in os.environ.items() if _SECRET_NAME.search(name))
    return "$" in raw_value and any(secret in variable.value for secret in secrets if len(secret) >= _MIN_SECRET_CHARS)


def _read_text(file: Path) -> str:
    """Return the text of a file; "" if there is no file."""
    try:
        size = file.stat().st_size if file.is_file() else 0
        if size <= _MAX_FILE_BYTES:
            return file.read_text(encoding="utf-8") if size else ""
        fault = f"{size} bytes"
    except (OSError, UnicodeError) as error:
        fault = type(error).__name__
    what, hint = f"cannot be read ({fault})", "It must be UTF-8 text of at most 1 MB"
    if switches.collected_faults is None:
        raise NotConfigured(f"{file} {what}", hint=hint)
    switches.collected_faults[str(file)] = f"{what}. {hint}"
    return ""


def _read_env_file(name: str) -> tuple[dict[str, str], list[int]]:
    return _parse_env_file(name, _read_text(Path(name)))


@lru_cache(maxsize=8)  # because every provider reads the files, and parsing thousands of lines takes a second
def _parse_env_file(name: str, text: str) -> tuple[dict[str, str], list[int]]:
    """Return the values as written, and the numbers of unreadable lines. The cache prevents repeated warnings."""
    values, unreadable = dict[str, str](), list[int]()
    for line in parse_stream(io.StringIO(text)):
        if line.key and line.value is not None and re.fullmatch(r"[\w.]+", line.key):  # a key such as //NAME is invalid
            values[line.key] = line.value
        elif line.key is not None or line.error:  # not a comment
            statement = line.original.string
            unreadable.append(line.original.line + statement[: -len(statement.lstrip())].count("\n"))
    if unreadable:
        # Set the log format here, because the settings are not loaded yet
        log.set_format(os.environ.get("LLM_LOG_FORMAT") or values.get("LLM_LOG_FORMAT", ""))
        log.write_line("warning", "llm.env_lines_unreadable", file=name, lines=unreadable[:_MAX_LINES_LOGGED])
    return values, unreadable


def _resolve(raw_values: Mapping[str, str]) -> dict[str, str]:
    """Return the values of a file with each ``${...}`` replaced."""
    # If there is no file, do not copy the environment
    values, variables = dict(raw_values), dict[str, str | None](os.environ if raw_values else {})
    for name, value in raw_values.items():
        if "$" in value:
            values[name] = "".join(atom.resolve(variables) for atom in parse_variables(value))
        variables[name] = values[name]
    return values


def _raw_value(variable: SetVariable) -> str:
    """Return the value as written in its ``.env`` file, with ``${...}``; "" if the source is no such file."""
    if variable.source not in _FILES:
        return ""
    return str(_with_upper_names(_read_env_file(variable.source)[0]).get(variable.name, ""))


def _with_upper_names(variables: Mapping[str, Any]) -> dict[str, Any]:
    return {name.upper(): value for name, value in variables.items()}


def proxies() -> dict[str, str]:
    """Return the proxies of the environment, by scheme. The key ``no`` has the value of ``NO_PROXY``."""
    return urllib.request.getproxies()


def proxy_for(scheme: str, host: str) -> str | None:
    """Return the proxy for a host, or None, from ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``."""
    proxy = proxies().get(scheme) or proxies().get("all")
    if not proxy or urllib.request.proxy_bypass(host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def cache_folder() -> Path:
    """Return the user's cache folder. Raise NotConfigured if the user has no home directory."""
    variable = {"win32": "LOCALAPPDATA", "darwin": ""}.get(sys.platform, "XDG_CACHE_HOME")
    configured_folder = Path(os.environ.get(variable, ""))
    if configured_folder.is_absolute():  # the XDG specification requires that relative paths are ignored
        return configured_folder
    default = {"win32": "AppData/Local", "darwin": "Library/Caches"}.get(sys.platform, ".cache")
    try:
        return Path.home() / default
    except RuntimeError:
        raise NotConfigured("the user has no home directory", hint="Set LLM_MODELS_DIR") from None


def in_container() -> bool:
    """Return whether the process runs in a container of Docker, Podman or Kubernetes."""
    return any(map(os.path.exists, ("/.dockerenv", "/run/.containerenv"))) or "KUBERNETES_SERVICE_HOST" in os.environ
