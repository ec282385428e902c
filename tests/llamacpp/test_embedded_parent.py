"""An embedded server ends with its parent, however the parent ends. A forked child starts its own server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from llama import HANG_S, MODEL, RSA, TEXTS, runs, wait_until
from support import ROOT

Parent = Callable[[str], subprocess.Popen[str]]
# The start of a parent with a running server; ``pid`` is the server's. ``ask()`` returns an answer. It imports LiteLLM,
# which takes seconds, so that only tests that need an answer call it.
BEGIN = """
import asyncio, os, signal, sys, time
from learnflow.llm.providers import EmbeddedProvider, embedded
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
provider = EmbeddedProvider()
known = KNOWN
def ask():
    return asyncio.run(provider.generate("Explain RSA encryption", temperature=0, max_tokens=400))
def server():
    return next(iter(embedded._servers.values()))._process.pid
asyncio.run(provider._transport.ensure_started())
pid = server()
print(pid, flush=True)
"""


@pytest.fixture
def parent() -> Iterator[Parent]:
    """Start a Python process that starts a server. Kill both at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str) -> subprocess.Popen[str]:
        variables = {**os.environ, "EMBEDDED_MODEL": str(MODEL), "EMBEDDED_THREADS": "1", "PYTHONPATH": str(ROOT)}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", BEGIN.replace("KNOWN", repr(TEXTS[RSA])) + program],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                stdin=subprocess.PIPE,
                text=True,
                env=variables,
            )
        )
        return started[-1]

    yield start
    for process in started:
        with suppress(OSError):
            process.kill()
        process.communicate(timeout=HANG_S)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    """End the ``input()`` of the program."""
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_parent_killed_by_a_signal_leaves_no_server(parent: Parent, number: signal.Signals) -> None:
    process = parent("input()")
    pid = int(line(process))
    assert runs(pid)
    os.kill(process.pid, number)
    process.wait(HANG_S)
    wait_until(lambda: not runs(pid))


@pytest.mark.parametrize(
    "program",
    ["", "raise RuntimeError", "sys.exit(3)", "os._exit(4)", "os.abort()"],
    ids=["end", "exception", "exit", "_exit", "abort"],
)
def test_parent_that_ends_leaves_no_server(parent: Parent, program: str) -> None:
    process = parent(program)
    pid = int(line(process))
    process.wait(HANG_S)
    wait_until(lambda: not runs(pid))


def test_parent_killed_in_the_middle_of_an_answer_leaves_no_server(parent: Parent) -> None:
    process = parent(
        """
async def main():
    async for piece in provider.stream("x", temperature=0, max_tokens=1900, extra_body={"ignore_eos": True}):
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    )
    pid = int(line(process))
    assert process.wait(HANG_S) == -signal.SIGKILL
    wait_until(lambda: not runs(pid))


@pytest.mark.parametrize("exit_", ["sys.exit()", "os._exit(0)"])
def test_exit_of_a_forked_child_does_not_stop_the_server(parent: Parent, exit_: str) -> None:
    process = parent(
        f"""
child = os.fork()
if not child:
    {exit_}
os.waitpid(child, 0)
print(ask() == known and server() == pid, flush=True)
"""
    )
    pid = int(line(process))
    assert line(process) == "True"
    process.wait(HANG_S)
    wait_until(lambda: not runs(pid))


def test_forked_child_that_lives_on_does_not_keep_the_server_alive(parent: Parent) -> None:
    process = parent(
        """
child = os.fork()
if not child:
    input()  # it lives until the test ends
    os._exit(0)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    pid, child = int(line(process)), int(line(process))
    process.wait(HANG_S)
    wait_until(lambda: not runs(pid))
    assert runs(child)
    end(process)
    wait_until(lambda: not runs(child))


def test_forked_child_has_a_server_of_its_own(parent: Parent) -> None:
    process = parent(
        """
child = os.fork()
if not child:
    print(ask(), flush=True)
    print(server(), flush=True)
    sys.exit()
os.waitpid(child, 0)
print(ask() == known and server() == pid, flush=True)
"""
    )
    pid, answer, own = int(line(process)), line(process), int(line(process))
    assert answer == TEXTS[RSA]
    assert own != pid
    assert line(process) == "True"
    process.wait(HANG_S)
    wait_until(lambda: not runs(pid) and not runs(own))


def test_ctrl_c_reaches_the_parent_and_not_the_answer_of_the_server(parent: Parent) -> None:
    process = parent(
        """
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.kill(pid, signal.SIGINT)
print(ask() == known and server() == pid, flush=True)
"""
    )
    line(process)
    assert line(process) == "True"
