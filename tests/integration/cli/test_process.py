"""The command line as a process: its standard streams, Ctrl-C and exit codes.

A test of several commands starts one process, which imports the package and forks for each of them.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pytest
from support import ROOT, serving

from learnflow.llm.cli import main as cli
from learnflow.llm.testing import FaultServer

MODULE = [sys.executable, "-m", "learnflow.llm"]
# Forks for each command of the second argument, and writes the exit codes. A command may begin with a variable, like
# "LLM_PROVIDER=ollama". With "apart", each command has a file for its output.
FORKS = """
import asyncio, json, os, pathlib, runpy, sys
import anyio, learnflow.llm.cli.doctor, learnflow.llm.cli.explain, learnflow.llm.factory, learnflow.llm.providers
from learnflow.llm.cli.main import main
asyncio.run(anyio.sleep(0))  # imports what the commands would import
folder, commands, apart = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]), len(sys.argv) > 3
children = []
for number, words in enumerate(commands):
    children.append(os.fork())
    if not children[-1]:
        if apart:
            output = os.open(folder / f"output-{number}", os.O_CREAT | os.O_WRONLY)
            os.dup2(output, 1), os.dup2(output, 2)
        if "=" in words[0]:
            os.environ.update([words.pop(0).split("=", 1)])
        if words[0].endswith(".py"):
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
        sys.exit(main(words))
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
(folder / "codes").write_text(json.dumps(codes))
"""
NO_SPACE = "learnflow-llm: reading or writing failed: [Errno 28] No space left on device"
COMMANDS = [  # with their exit codes. Every second one writes to stderr, or sends a request
    (["ask", "hi"], 0),
    (["status", "--json", "--timeout", "60"], 0),  # a busy machine is not a fault
    (["explain", "hi"], 0),
    (["models", "--store"], 0),
    (["pull", "nosuch"], 2),
    (["--help"], 0),
    (["ask"], 2),
]
# Sends Ctrl-C to itself when this thread imports this module (the first arguments)
INTERRUPTED = """
import os, runpy, signal, sys, threading, time
module, thread = sys.argv.pop(1), sys.argv.pop(1)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if (name, threading.current_thread().name) == (module, thread):
            os.kill(os.getpid(), signal.SIGINT)
            while thread != "MainThread":
                time.sleep(1)  # the import does not end
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


def run_all(commands: list[list[str]], redirection: str, folder: Path, *apart: str) -> tuple[list[int], str, str]:
    """Run commands at once in a shell, with a redirection like ``>&-``. Return the exit codes, and both outputs."""
    forks = [sys.executable, "-c", FORKS, str(folder), json.dumps(commands), *apart]
    shell = ["bash", "-c", f'"$0" "$@" {redirection}', *forks]
    ran = subprocess.run(shell, capture_output=True, text=True, timeout=300, check=False)
    return json.loads((folder / "codes").read_text(encoding="utf-8")), ran.stdout, ran.stderr


@pytest.mark.parametrize(
    ("redirection", "commands"), [("<&- >&-", COMMANDS), ("2>&-", COMMANDS[::2]), ("2>/dev/full", COMMANDS[::2])]
)
def test_closed_stream_changes_no_exit_code(
    redirection: str, commands: list[tuple[list[str], int]], server: FaultServer, tmp_path: Path
) -> None:
    codes, out, err = run_all([words for words, _ in commands], redirection, tmp_path)
    assert (codes, "Traceback" in err) == ([code for _, code in commands], False), err
    assert "learnflow-llm: " not in out  # a message is never written to stdout instead


def test_output_that_cannot_be_written_is_one_line_and_exit_code_1(server: FaultServer, tmp_path: Path) -> None:
    writers = [["ask", "hi"], ["ask", "hi", "--json"], ["status"], ["doctor"], ["--help"]]
    codes, _, err = run_all(writers, ">/dev/full", tmp_path)
    assert (codes, err.count("\n")) == ([1] * len(writers), len(writers)), err
    begin, *ends = err.split(NO_SPACE)  # a process may write between the line of another and its end
    assert (begin.strip(), len(ends), len({end.strip() for end in ends})) == ("", len(writers), 1), err


def test_output_of_warm_up_that_cannot_be_written_is_one_line_and_exit_code_1(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs in this process, which has imported LiteLLM."""
    with Path("/dev/full").open("w", encoding="utf-8") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert cli.main(["warm-up"]) == 1
    err = capsys.readouterr().err
    assert (err[: len(NO_SPACE)], len(err.splitlines())) == (NO_SPACE, 1)


@pytest.mark.parametrize("command", [["ask", "hi"], ["--help"], ["status", "--all"]], ids=" ".join)
def test_pipe_that_is_closed_during_answer_prints_no_message(command: list[str], server: FaultServer) -> None:
    server.pieces = ["word "] * 5000
    shell = ["bash", "-c", '"$0" "$@" | head -c 3', *MODULE, *command]
    ran = subprocess.run(shell, capture_output=True, text=True, timeout=300, check=False)
    assert (len(ran.stdout), ran.stderr) == (3, "")


@pytest.mark.parametrize("module", ["asyncio", "click", "learnflow.llm.cli.status", "httpx"])
def test_ctrl_c_during_import_ends_process_without_traceback(module: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, "MainThread", "status"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")


def test_ctrl_c_does_not_wait_for_import_of_litellm(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "litellm", "asyncio_0", "ask", "hi", "-p", "openai", "-m", "m"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr.strip()) == (130, "", "")


# Runs the command that the first argument names. A command interrupts its process
SIGNALS = """
import asyncio, os, signal, sys, threading
from learnflow.llm.cli import command, exit_on_interrupt, interruptible
command.monotonic = lambda: 0.0
def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
async def is_interrupted_twice():
    interrupt()
    try:
        await asyncio.sleep(60)
    finally:
        interrupt()  # a wrapper forwards the signal of the terminal
        await asyncio.sleep(0)
        print("stopped")
async def leaves_a_thread():
    ended = threading.Event()
    def hang():
        ended.wait()
        interrupt()
        threading.Event().wait()
    asyncio.get_running_loop().run_in_executor(None, hang)
    asyncio.get_running_loop().call_soon(ended.set)
    print("ended")
async def is_cancelled():
    raise asyncio.CancelledError
exit_on_interrupt()
with interruptible():
    asyncio.run(command.run_until_interrupt(globals()[sys.argv[1]]()))
"""


@pytest.mark.parametrize(
    ("command", "code", "out", "last_line"),
    [
        ("is_interrupted_twice", 130, "stopped\n", ""),
        ("leaves_a_thread", 130, "ended\n", ""),
        ("is_cancelled", 1, "", "asyncio.exceptions.CancelledError"),
    ],
)
def test_ctrl_c_ends_command_after_its_cleanup(command: str, code: int, out: str, last_line: str) -> None:
    words = [sys.executable, "-c", SIGNALS, command]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr.strip().rpartition("\n")[2]) == (code, out, last_line)


def ask(
    prompt: BinaryIO, encoding: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Ask with a prompt on stdin, which has this encoding. Return the exit code and both outputs."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(prompt, encoding))
    return cli.main(["ask", "-", "--json"]), *capsys.readouterr()


@pytest.mark.parametrize(
    ("prompt", "encoding"),
    [
        ("Привет".encode(), "ascii"),
        (b"\xef\xbb\xbf" + "Привет".encode(), "utf-8"),
        ("Привет".encode("koi8-r"), "koi8-r"),
    ],
)
def test_prompt_on_stdin_is_utf_8_or_of_locale(
    prompt: bytes,
    encoding: str,
    server: FaultServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.pieces = ["Да 🦊"]
    code, out, err = ask(io.BytesIO(prompt), encoding, monkeypatch, capsys)
    assert (code, err) == (0, "")
    assert json.loads(out)["text"] == "Да 🦊"
    assert server.seen[-1].body["messages"][-1]["content"] == "Привет"


@pytest.mark.parametrize(
    "variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_ask_reads_utf_8_and_escapes_characters_that_encoding_of_process_lacks(
    variables: dict[str, str], server: FaultServer
) -> None:
    server.pieces = ["Да", " 🦊"]
    ran = subprocess.run(
        [*MODULE, "ask", "-"],
        input="Привет".encode(),
        capture_output=True,
        timeout=300,
        check=False,
        env={**os.environ, **variables},
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"\\u0414\\u0430 \\U0001f98a\n", b"")
    assert server.seen[-1].body["messages"][-1]["content"] == "Привет"


def test_prompt_that_is_not_utf_8_is_usage_error(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = ask(io.BytesIO(b"hi \xff there"), "ascii", monkeypatch, capsys)
    assert (code, err) == (2, "learnflow-llm: the text on stdin is not UTF-8. Convert it: iconv -t UTF-8.\n")
    assert server.seen == []


def test_endless_stdin_is_usage_error(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/zero").open("rb") as zeros:
        code, _, err = ask(zeros, "utf-8", monkeypatch, capsys)
    assert code == 2
    assert "stdin has more than 67.1 MB" in err


@pytest.mark.parametrize("columns", ["0", "1"])
def test_narrow_output_has_every_cell(
    columns: str, server: FaultServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert cli.main(["status"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "ready" in out


BEGINNINGS = [b"", b"HTTP/1.1 200 OK\r\nContent-Ty", b'HTTP/1.1 200 OK\r\n\r\n{"data": [']  # of hanging responses


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


@pytest.mark.waits
def test_commands_against_hanging_servers_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench = [str(ROOT / "benchmarks" / "bench.py")]
    words = [["status"], ["models"], ["explain", "hi", "--probe"], ["doctor"], ["check"], ["warm-up"], bench]
    monkeypatch.setenv("LLM_PROVIDER", "llamacpp")
    with ExitStack() as servers:
        urls = [servers.enter_context(hanging(beginning)) for beginning in BEGINNINGS]
        pairs = [*zip(itertools.cycle(urls), words, strict=False), *((url, ["status"]) for url in urls)]
        commands = [[f"LLAMACPP_BASE_URL={url}", *command] for url, command in pairs]
        codes, _, _ = run_all(commands, "", tmp_path, "apart")
    for number, (command, code) in enumerate(zip(commands, codes, strict=True)):
        output = (tmp_path / f"output-{number}").read_text(encoding="utf-8")
        assert code in (1, 3), (command, output)
        assert "Traceback" not in output, command
        assert command[1] == "doctor" or "a probe of the server timed out" in output, command
