"""compose/pull-model.sh: what it fetches is whole, or it says what is wrong and what to do."""

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
    """A server of files on loopback; ``breaks`` connections end after ``after`` bytes."""

    def __init__(self) -> None:
        self.breaks = 0
        self.after = 100_000
        self.says = SUM
        self.goes_on = True
        self.heads = True
        self.ranges: list[str | None] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._head(200 if hub.heads else 405, len(GGUF) if hub.heads else 0)

            def do_GET(self) -> None:
                asked = self.headers.get("range")
                hub.ranges.append(asked)
                at = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                at = at if hub.goes_on else 0
                self._head(206 if at else 200, len(GGUF) - at, at)
                part = GGUF[at:]
                if hub.breaks:
                    hub.breaks -= 1
                    part = part[: hub.after]
                    self.close_connection = True
                self.wfile.write(part)

            def _head(self, status: int, length: int, at: int = 0) -> None:
                self.send_response(status)
                if at:
                    self.send_header("content-range", f"bytes {at}-{len(GGUF) - 1}/{len(GGUF)}")
                self.send_header("content-length", str(length))
                self.send_header("accept-ranges", "bytes")
                if hub.says:
                    self.send_header("X-Linked-ETag", f'"{hub.says}"')
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


def test_a_gguf_arrives_whole_and_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    ran = run(f"{hub.url}/model.gguf", tmp_path / "models")
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "models" / "model.gguf").read_bytes() == GGUF
    assert re.search(r"model\.gguf: 1 MB to download; \d+ MB are free", ran.stderr)
    asked = len(hub.ranges)
    again = run(f"{hub.url}/model.gguf", tmp_path / "models")
    assert (again.returncode, len(hub.ranges)) == (0, asked)


def test_one_that_breaks_off_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.breaks = 2
    ran = run(f"{hub.url}/model.gguf", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "model.gguf").read_bytes() == GGUF
    assert hub.ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert ran.stderr.count("it goes on") == 2


def test_a_server_that_cannot_go_on_is_asked_for_all_of_it_again(hub: Hub, tmp_path: Path) -> None:
    hub.breaks, hub.goes_on = 1, False
    ran = run(f"{hub.url}/model.gguf", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "model.gguf").read_bytes() == GGUF


def test_what_has_arrived_is_kept_for_the_next_run(hub: Hub, tmp_path: Path) -> None:
    hub.breaks = 1
    ran = run(f"{hub.url}/model.gguf", tmp_path, PULL_TRIES="1")
    assert ran.returncode == 1
    assert "Run this again to go on" in ran.stderr
    assert not (tmp_path / "model.gguf").exists()
    assert run(f"{hub.url}/model.gguf", tmp_path).returncode == 0
    assert (tmp_path / "model.gguf").read_bytes() == GGUF
    assert hub.ranges[-1] == "bytes=100000-"


@pytest.mark.parametrize("variables", [{"MODEL_SHA256": "0" * 64}, {}])
def test_another_file_than_the_one_asked_for_is_thrown_away(
    hub: Hub, tmp_path: Path, variables: dict[str, str]
) -> None:
    if not variables:
        hub.says = "1" * 64
    ran = run(f"{hub.url}/model.gguf", tmp_path, **variables)
    assert ran.returncode == 1
    assert f"has the SHA-256 {SUM}, and must have {variables.get('MODEL_SHA256', '1' * 64)}" in ran.stderr
    assert "run this again will not help" in ran.stderr
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_another_is_no_model(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"junk")
    ran = run(f"{hub.url}/model.gguf", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "model.gguf").read_bytes() == GGUF
    hub.says = ""
    (tmp_path / "other.gguf.part").write_bytes(bytes(1000))
    ran = run(f"{hub.url}/other.gguf", tmp_path)
    assert ran.returncode == 1
    assert not (tmp_path / "other.gguf").exists()


def test_a_whole_file_with_an_old_part_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(GGUF)
    (tmp_path / "model.gguf.part").write_bytes(b"x")
    assert run("http://127.0.0.1:9/model.gguf", tmp_path, MODEL_SHA256=SUM).returncode == 0
    ran = run("http://127.0.0.1:9/model.gguf", tmp_path)
    assert ran.returncode == 0
    assert "it was not checked" in ran.stderr


def test_a_server_that_tells_no_head_is_asked_for_the_file(hub: Hub, tmp_path: Path) -> None:
    hub.heads, hub.says = False, ""
    ran = run(f"{hub.url}/model.gguf", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "its size is not known" in ran.stderr
    assert (tmp_path / "model.gguf").read_bytes() == GGUF


@pytest.mark.parametrize("line", ["//nas/My Share 9999999 1 5242880 1% /models", "udev 1 1 - - /models"])
def test_odd_file_systems(hub: Hub, tmp_path: Path, line: str) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "df").write_text(f"#!/bin/sh\necho Filesystem\necho '{line}'\n", encoding="utf-8")
    (tools / "df").chmod(0o755)
    ran = run(f"{hub.url}/model.gguf", tmp_path, PATH=f"{tools}:{os.environ['PATH']}")
    assert ran.returncode == 0, ran.stderr
    assert ("5120 MB are free" if "nas" in line else "cannot be told") in ran.stderr


def test_hugging_faces_names_are_understood(hub: Hub, tmp_path: Path) -> None:
    ran = run("hf:owner/repository/folder/model.gguf", tmp_path, HF_ENDPOINT=hub.url)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "model.gguf").read_bytes() == GGUF


def test_a_file_that_is_there_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(GGUF)
    assert run("http://127.0.0.1:9/model.gguf", tmp_path, MODEL_SHA256=SUM).returncode == 0
    ran = run("http://127.0.0.1:9/other.gguf", tmp_path)
    assert ran.returncode == 1
    assert f"put the file at {tmp_path}/other.gguf" in ran.stderr


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(hub: Hub, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "df").write_text("#!/bin/sh\necho Filesystem\necho disk 1 1 2048 1% /\n", encoding="utf-8")
    (tools / "df").chmod(0o755)
    ran = run(f"{hub.url}/model.gguf", tmp_path, PATH=f"{tools}:{os.environ['PATH']}")
    assert ran.returncode == 1
    assert "not enough room" in ran.stderr
    assert hub.ranges == []


OLLAMA = """#!/bin/sh
# the words of Ollama's command line, and a folder for a server
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


def test_an_ollama_tag_is_pulled_and_looked_for(ollama: Path) -> None:
    ran = with_ollama(ollama, "qwen3:0.6b")
    assert ran.returncode == 0, ran.stderr
    assert "qwen3:0.6b: 523 MB to download" in ran.stderr
    assert "10%\n50%\n" in ran.stderr
    assert ran.stderr.endswith("qwen3:0.6b is there.\n")
    assert with_ollama(ollama, "qwen3:0.6b").stderr == "qwen3:0.6b is there.\n"


def test_a_pull_that_breaks_off_is_taken_up_again(ollama: Path) -> None:
    (ollama / "state" / "breaks").touch()
    ran = with_ollama(ollama, "qwen3:0.6b")
    assert ran.returncode == 0, ran.stderr
    assert "Error: connection reset" in ran.stderr
    assert "it goes on" in ran.stderr
    (ollama / "state" / "breaks").touch()
    ran = with_ollama(ollama, "other:1b", PULL_TRIES="1")
    assert ran.returncode == 1
    assert "run this again to go on" in ran.stderr


def test_a_model_in_the_folder_needs_no_network(ollama: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "qwen3-0.6b.gguf").write_bytes(GGUF)
    ran = with_ollama(ollama, "qwen3:0.6b", MODELS_DIR=str(models))
    assert ran.returncode == 0, ran.stderr
    assert "pull " not in (ollama / "state" / "log").read_text(encoding="utf-8")
    assert (ollama / "state" / "qwen3:0.6b").read_bytes() == GGUF


@pytest.mark.parametrize(
    ("content", "variables", "said"),
    [
        (GGUF, {}, "No SHA-256 is known of"),
        (GGUF, {"MODEL_SHA256": "0" * 64}, f"has the SHA-256 {SUM}, and must have {'0' * 64}"),
        (b"<html>", {}, "it does not begin with the letters GGUF"),
    ],
)
def test_what_is_known_of_a_gguf_of_ones_own_is_said(
    ollama: Path, tmp_path: Path, content: bytes, variables: dict[str, str], said: str
) -> None:
    (tmp_path / "qwen3-0.6b.gguf").write_bytes(content)
    ran = with_ollama(ollama, "qwen3:0.6b", MODELS_DIR=str(tmp_path), **variables)
    assert said in ran.stderr
    assert ran.returncode == (0 if content == GGUF and not variables else 1)


def test_a_folder_may_be_named_from_here(ollama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "qwen3-0.6b.gguf").write_bytes(GGUF)
    monkeypatch.chdir(tmp_path)
    ran = with_ollama(ollama, "qwen3:0.6b", MODELS_DIR="./models")
    assert ran.returncode == 0, ran.stderr
    assert (ollama / "state" / "qwen3:0.6b").read_bytes() == GGUF


def test_a_tag_that_is_not_there_is_not_asked_for_again(ollama: Path) -> None:
    (ollama / "state" / "unknown").touch()
    ran = with_ollama(ollama, "nothing:1b")
    assert ran.returncode == 1
    assert "does not have it" in ran.stderr
    assert (ollama / "state" / "log").read_text(encoding="utf-8").count("pull ") == 1


def test_no_server_is_said_to_be_none(ollama: Path) -> None:
    (ollama / "state" / "down").touch()
    ran = with_ollama(ollama, "qwen3:0.6b")
    assert ran.returncode == 1
    assert "ollama serve" in ran.stderr


def test_wrong_words_are_explained(ollama: Path) -> None:
    assert run().returncode == 2
    assert with_ollama(ollama, "--help").returncode == 2
    ran = run("hf:owner/model")
    assert ran.returncode == 1
    assert "hf:OWNER/REPOSITORY/FILE.gguf" in ran.stderr


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed here")
def test_shellcheck_finds_nothing() -> None:
    ran = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout
