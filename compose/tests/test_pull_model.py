"""compose/pull-model.sh downloads a model completely, or fails with a hint."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support import ROOT

SCRIPT = ROOT / "compose" / "pull-model.sh"
GGUF = b"GGUF" + bytes(range(256)) * 4000
SUM = hashlib.sha256(GGUF).hexdigest()


class Hub:
    """A file server on loopback. The first ``breaks`` responses end after ``break_after_bytes``."""

    def __init__(self) -> None:
        self.breaks = 0
        self.break_after_bytes = 100_000
        self.checksum = SUM
        self.supports_ranges = True
        self.supports_head = True
        self.ranges: list[str | None] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._head(200 if hub.supports_head else 405, len(GGUF) if hub.supports_head else 0)

            def do_GET(self) -> None:
                byte_range = self.headers.get("range")
                hub.ranges.append(byte_range)
                at = int(byte_range.removeprefix("bytes=").rstrip("-")) if byte_range else 0
                at = at if hub.supports_ranges else 0
                self._head(206 if at else 200, len(GGUF) - at, at)
                part = GGUF[at:]
                if hub.breaks:
                    hub.breaks -= 1
                    part = part[: hub.break_after_bytes]
                    self.close_connection = True
                self.wfile.write(part)

            def _head(self, status: int, length: int, at: int = 0) -> None:
                self.send_response(status)
                if at:
                    self.send_header("content-range", f"bytes {at}-{len(GGUF) - 1}/{len(GGUF)}")
                self.send_header("content-length", str(length))
                self.send_header("accept-ranges", "bytes")
                if hub.checksum:
                    self.send_header("X-Linked-ETag", f'"{hub.checksum}"')
                    self.send_header("X-Linked-Size", str(len(GGUF)))
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    one = Hub()
    thread = threading.Thread(target=one.server.serve_forever)
    thread.start()
    yield one
    one.server.shutdown()
    one.server.server_close()
    thread.join()


def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        ["/bin/sh", str(SCRIPT), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**environment, **variables},
    )


def test_complete_gguf_is_not_downloaded_again(hub: Hub, tmp_path: Path) -> None:
    ran = run(f"{hub.url}/model.gguf", tmp_path / "models")
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "models" / "model.gguf").read_bytes() == GGUF
    assert re.search(r"model\.gguf: 1 MB to download; \d+ MB are free", ran.stderr)
    requests = len(hub.ranges)
    again = run(f"{hub.url}/model.gguf", tmp_path / "models")
    assert (again.returncode, len(hub.ranges)) == (0, requests)


def test_broken_download_resumes(hub: Hub, tmp_path: Path) -> None:
    hub.breaks = 2
    ran = run(f"{hub.url}/model.gguf", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "model.gguf").read_bytes() == GGUF
    assert hub.ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert ran.stderr.count("It is resumed") == 2


def test_download_restarts_if_server_has_no_ranges(hub: Hub, tmp_path: Path) -> None:
    hub.breaks, hub.supports_ranges = 1, False
    ran = run(f"{hub.url}/model.gguf", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "model.gguf").read_bytes() == GGUF


def test_partial_download_is_resumed_by_next_run(hub: Hub, tmp_path: Path) -> None:
    hub.breaks = 1
    ran = run(f"{hub.url}/model.gguf", tmp_path, PULL_TRIES="1")
    assert ran.returncode == 1
    assert "Run this again to resume it" in ran.stderr
    assert not (tmp_path / "model.gguf").exists()
    assert run(f"{hub.url}/model.gguf", tmp_path).returncode == 0
    assert (tmp_path / "model.gguf").read_bytes() == GGUF
    assert hub.ranges[-1] == "bytes=100000-"


@pytest.mark.parametrize("variables", [{"MODEL_SHA256": "0" * 64}, {}])
def test_file_with_wrong_checksum_is_removed(hub: Hub, tmp_path: Path, variables: dict[str, str]) -> None:
    if not variables:
        hub.checksum = "1" * 64
    ran = run(f"{hub.url}/model.gguf", tmp_path, **variables)
    assert ran.returncode == 1
    assert f"has the SHA-256 {SUM} instead of {variables.get('MODEL_SHA256', '1' * 64)}" in ran.stderr
    assert "Another attempt does not help" in ran.stderr
    assert not list(tmp_path.iterdir())


def test_file_other_than_gguf_is_refused(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"junk")
    ran = run(f"{hub.url}/model.gguf", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "model.gguf").read_bytes() == GGUF
    hub.checksum = ""
    (tmp_path / "other.gguf.part").write_bytes(bytes(1000))
    ran = run(f"{hub.url}/other.gguf", tmp_path)
    assert ran.returncode == 1
    assert not (tmp_path / "other.gguf").exists()


def test_complete_file_with_old_part_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(GGUF)
    (tmp_path / "model.gguf.part").write_bytes(b"x")
    assert run("http://127.0.0.1:9/model.gguf", tmp_path, MODEL_SHA256=SUM).returncode == 0
    ran = run("http://127.0.0.1:9/model.gguf", tmp_path)
    assert ran.returncode == 0
    assert "was not verified" in ran.stderr


def test_download_works_without_head_request(hub: Hub, tmp_path: Path) -> None:
    hub.supports_head, hub.checksum = False, ""
    ran = run(f"{hub.url}/model.gguf", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "the size of the download is unknown" in ran.stderr
    assert (tmp_path / "model.gguf").read_bytes() == GGUF


@pytest.mark.parametrize("line", ["//nas/My Share 9999999 1 5242880 1% /models", "udev 1 1 - - /models"])
def test_unusual_df_output_is_accepted(hub: Hub, tmp_path: Path, line: str) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "df").write_text(f"#!/bin/sh\necho Filesystem\necho '{line}'\n", encoding="utf-8")
    (tools / "df").chmod(0o755)
    ran = run(f"{hub.url}/model.gguf", tmp_path, PATH=f"{tools}:{os.environ['PATH']}")
    assert ran.returncode == 0, ran.stderr
    assert ("5120 MB are free" if "nas" in line else "is unknown") in ran.stderr


def test_hugging_face_names_are_resolved(hub: Hub, tmp_path: Path) -> None:
    ran = run("hf:owner/repository/folder/model.gguf", tmp_path, HF_ENDPOINT=hub.url)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "model.gguf").read_bytes() == GGUF


def test_existing_file_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(GGUF)
    assert run("http://127.0.0.1:9/model.gguf", tmp_path, MODEL_SHA256=SUM).returncode == 0
    ran = run("http://127.0.0.1:9/other.gguf", tmp_path)
    assert ran.returncode == 1
    assert f"copy the file to {tmp_path}/other.gguf" in ran.stderr


def test_full_disk_fails_before_download(hub: Hub, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "df").write_text("#!/bin/sh\necho Filesystem\necho disk 1 1 2048 1% /\n", encoding="utf-8")
    (tools / "df").chmod(0o755)
    ran = run(f"{hub.url}/model.gguf", tmp_path, PATH=f"{tools}:{os.environ['PATH']}")
    assert ran.returncode == 1
    assert "not enough disk space" in ran.stderr
    assert hub.ranges == []


OLLAMA = """#!/bin/sh
# the commands of Ollama's command line, with a folder instead of a server
here="$(dirname "$0")/state"
mkdir -p "$here"
echo "$*" >>"$here/log"
case $1 in
    list) [ ! -e "$here/down" ] ;;
    show) [ -e "$here/$2" ] ;;
    create) cp "$(sed -n 's/^FROM //p' "$4")" "$here/$2" ;;
    pull)
        for last; do :; done
        printf 'pulling manifest\\rpulling 7f40: 10%%\\rpulling 7f40: 55%%\\r'
        if [ -e "$here/unknown" ]; then echo 'Error: pull model manifest: file does not exist'; exit 1; fi
        if [ -e "$here/breaks" ]; then rm "$here/breaks"; echo 'Error: connection reset'; exit 1; fi
        echo model >"$here/$last" ;;
esac
"""


@pytest.fixture
def ollama(tmp_path: Path) -> Path:
    tools = tmp_path / "bin"
    (tools / "state").mkdir(parents=True)
    (tools / "ollama").write_text(OLLAMA, encoding="utf-8")
    (tools / "ollama").chmod(0o755)
    return tools


def with_ollama(tools: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return run(*words, PATH=f"{tools}:{os.environ['PATH']}", OLLAMA_MODELS=str(tools), **variables)


def test_ollama_tag_is_pulled_and_verified(ollama: Path) -> None:
    ran = with_ollama(ollama, "qwen3:0.6b")
    assert ran.returncode == 0, ran.stderr
    assert "qwen3:0.6b: 523 MB to download" in ran.stderr
    assert "10%\n50%\n" in ran.stderr
    assert ran.stderr.endswith("qwen3:0.6b is available.\n")
    assert with_ollama(ollama, "qwen3:0.6b").stderr == "qwen3:0.6b is available.\n"


def test_broken_ollama_pull_is_retried(ollama: Path) -> None:
    (ollama / "state" / "breaks").touch()
    ran = with_ollama(ollama, "qwen3:0.6b")
    assert ran.returncode == 0, ran.stderr
    assert "Error: connection reset" in ran.stderr
    assert "It is resumed" in ran.stderr
    (ollama / "state" / "breaks").touch()
    ran = with_ollama(ollama, "other:1b", PULL_TRIES="1")
    assert ran.returncode == 1
    assert "Run this again to resume it" in ran.stderr


def test_model_in_folder_needs_no_network(ollama: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "qwen3-0.6b.gguf").write_bytes(GGUF)
    ran = with_ollama(ollama, "qwen3:0.6b", MODELS_DIR=str(models))
    assert ran.returncode == 0, ran.stderr
    assert "pull " not in (ollama / "state" / "log").read_text(encoding="utf-8")
    assert (ollama / "state" / "qwen3:0.6b").read_bytes() == GGUF


@pytest.mark.parametrize(
    ("content", "variables", "warning"),
    [
        (GGUF, {}, "is not verified"),
        (GGUF, {"MODEL_SHA256": "0" * 64}, f"has the SHA-256 {SUM} instead of {'0' * 64}"),
        (b"<html>", {}, "it does not begin with the letters GGUF"),
    ],
)
def test_gguf_without_known_checksum_prints_warning(
    ollama: Path, tmp_path: Path, content: bytes, variables: dict[str, str], warning: str
) -> None:
    (tmp_path / "qwen3-0.6b.gguf").write_bytes(content)
    ran = with_ollama(ollama, "qwen3:0.6b", MODELS_DIR=str(tmp_path), **variables)
    assert warning in ran.stderr
    assert ran.returncode == (0 if content == GGUF and not variables else 1)


def test_relative_folder_is_accepted(ollama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "qwen3-0.6b.gguf").write_bytes(GGUF)
    monkeypatch.chdir(tmp_path)
    ran = with_ollama(ollama, "qwen3:0.6b", MODELS_DIR="./models")
    assert ran.returncode == 0, ran.stderr
    assert (ollama / "state" / "qwen3:0.6b").read_bytes() == GGUF


def test_missing_tag_is_not_retried(ollama: Path) -> None:
    (ollama / "state" / "unknown").touch()
    ran = with_ollama(ollama, "nothing:1b")
    assert ran.returncode == 1
    assert "the registry does not have nothing:1b" in ran.stderr
    assert (ollama / "state" / "log").read_text(encoding="utf-8").count("pull ") == 1


def test_missing_server_is_reported(ollama: Path) -> None:
    (ollama / "state" / "down").touch()
    ran = with_ollama(ollama, "qwen3:0.6b")
    assert ran.returncode == 1
    assert "ollama serve" in ran.stderr


def test_usage_error_prints_help(ollama: Path) -> None:
    assert run().returncode == 2
    assert with_ollama(ollama, "--help").returncode == 2
    ran = run("hf:owner/model")
    assert ran.returncode == 1
    assert "hf:OWNER/REPOSITORY/FILE.gguf" in ran.stderr


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed here")
def test_shellcheck_finds_nothing() -> None:
    ran = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout
