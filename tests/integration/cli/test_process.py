"""The command line as a process: its standard streams, Ctrl-C and the terminal. Every test runs real processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support import ROOT, serving

from learnflow.llm.testing import FaultServer

MODULE = [sys.executable, "-m", "learnflow.llm"]
COMMANDS = [  # with their exit codes. Few, because each of them is a process
    (["ask", "hi"], 0),
    (["status", "--json"], 0),
    (["explain", "hi"], 0),
    (["models", "--store"], 0),
    (["pull", "nosuch"], 2),
    (["--help"], 0),
    (["ask"], 2),
]
# Sends Ctrl-C to itself when the module that the first argument names is imported
INTERRUPTED = """
import os, runpy, signal, sys
module = sys.argv.pop(1)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
runpy.run_module("learnflow.llm", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FaultServer]:
    running = FaultServer("llamacpp")
    with serving(running):
        monkeypatch.setenv("LLM_PROVIDER", "llamacpp")
        monkeypatch.setenv("LLAMACPP_BASE_URL", running.root)
        monkeypatch.setenv("LLM_MODELS_DIR", str(tmp_path))
        yield running


def start(words: list[str], redirection: str) -> subprocess.Popen[str]:
    """Start a command in a shell, with a redirection like ``>&-``."""
    shell = ["bash", "-c", f'"$0" "$@" {redirection}', *MODULE, *words]
    return subprocess.Popen(shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.parametrize("redirection", ["<&- >&-", "2>&-", "2>/dev/full"])
def test_closed_stream_changes_no_exit_code(redirection: str, server: FaultServer) -> None:
    running = [start(words, redirection) for words, _ in COMMANDS]
    for (words, code), (actual, out, err) in zip(COMMANDS, map(outcome, running), strict=True):
        assert (actual, "Traceback" in err) == (code, False), (words, err)
        assert "learnflow-llm: " not in out, words  # a message is never written to stdout instead


def test_output_that_cannot_be_written_is_one_line_and_exit_code_1(server: FaultServer) -> None:
    writers = [["ask", "hi"], ["ask", "hi", "--json"], ["status"], ["warm-up"], ["doctor"], ["--help"]]
    running = [start(words, ">/dev/full") for words in writers]
    for words, (code, _, err) in zip(writers, map(outcome, running), strict=True):
        assert (code, len(err.splitlines())) == (1, 1), (words, err)
        assert err.startswith("learnflow-llm: reading or writing failed: [Errno 28] No space left on device"), words


def test_pipe_that_is_closed_during_answer_prints_no_message(server: FaultServer) -> None:
    server.pieces = ["word "] * 5000
    commands = [["ask", "hi"], ["--help"], ["status", "--all"]]
    running = [start(words, "| head -c 3; exit ${PIPESTATUS[0]}") for words in commands]
    for words, (_, out, err) in zip(commands, map(outcome, running), strict=True):
        assert (len(out), err) == (3, ""), words


@pytest.mark.parametrize("module", ["click", "learnflow.llm.cli.status", "httpx"])
def test_ctrl_c_during_import_ends_process_without_traceback(module: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, "status"], capture_output=True, text=True, timeout=300, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")


def test_ctrl_c_during_litellm_import_ends_process_without_traceback(server: FaultServer) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "litellm", "ask", "hi"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr.strip()) == (130, "", "")


def ask(prompt: bytes, **variables: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*MODULE, "ask", "-", "--json"],
        input=prompt,
        capture_output=True,
        timeout=300,
        check=False,
        env={**os.environ, **variables},
    )


@pytest.mark.parametrize(
    ("prompt", "variables"),
    [
        ("Привет".encode(), {"PYTHONIOENCODING": "ascii"}),
        ("Привет".encode(), {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        (b"\xef\xbb\xbf" + "Привет".encode(), {}),
        ("Привет".encode("koi8-r"), {"PYTHONIOENCODING": "koi8-r"}),
    ],
)
def test_prompt_on_stdin_is_utf_8_or_of_locale(prompt: bytes, variables: dict[str, str], server: FaultServer) -> None:
    server.pieces = ["Да 🦊"]
    ran = ask(prompt, **variables)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert json.loads(ran.stdout)["text"] == "Да 🦊"
    assert server.seen[-1].body["messages"][-1]["content"] == "Привет"


def test_prompt_that_is_not_utf_8_is_usage_error(server: FaultServer) -> None:
    ran = ask(b"hi \xff there", LC_ALL="C")
    assert ran.returncode == 2
    assert ran.stderr == b"learnflow-llm: the text on stdin is not UTF-8. Convert it: iconv -t UTF-8.\n"
    assert server.seen == []


def test_endless_stdin_is_usage_error(server: FaultServer) -> None:
    with Path("/dev/zero").open("rb") as zeros:
        ran = subprocess.run([*MODULE, "ask", "-"], stdin=zeros, capture_output=True, timeout=300, check=False)
    assert ran.returncode == 2
    assert b"stdin has more than 67.1 MB" in ran.stderr


@pytest.mark.parametrize("columns", ["0", "1"])
def test_narrow_output_has_every_cell(columns: str, server: FaultServer) -> None:
    ran = subprocess.run(
        [*MODULE, "status"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "COLUMNS": columns},
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "ready" in ran.stdout


@contextmanager
def hanging(beginning: bytes) -> Iterator[str]:
    """Run a server that sends the beginning of a response and nothing more. Yield its address."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            writer.write(beginning)
            await reader.read()
        writer.transport.abort()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(respond, "127.0.0.1", 0), loop).result()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 200 OK\r\nContent-Ty", b'HTTP/1.1 200 OK\r\n\r\n{"data": ['])
def test_command_against_hanging_server_ends(beginning: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [["status"], ["models"], ["explain", "hi", "--probe"], ["doctor"], ["check"], ["warm-up"]]
    bench = [sys.executable, str(ROOT / "benchmarks" / "bench.py")]
    monkeypatch.setenv("LLM_PROVIDER", "llamacpp")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with hanging(beginning) as url:
        monkeypatch.setenv("LLAMACPP_BASE_URL", url)
        running = [start(words, "") for words in commands]
        running.append(subprocess.Popen(bench, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        for words, (code, out, err) in zip([*commands, bench], map(outcome, running), strict=True):
            assert code in (1, 3), words
            assert "Traceback" not in err, words
            assert words == ["doctor"] or "did not respond in time" in out + err, words


def test_help_without_arguments_is_shown_once_on_stdout() -> None:
    ran = subprocess.run(MODULE, capture_output=True, text=True, timeout=300, check=False)
    assert (ran.returncode, ran.stderr, ran.stdout.count("Usage: ")) == (0, "", 1)
