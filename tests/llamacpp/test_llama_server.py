"""The fixture leaves no process, port or file."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from llama import HANG_S, LlamaServer, runs, wait_until
from support import ROOT

FIXTURES = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {here!r}]
from llama import LlamaServer
server = LlamaServer(slots=1)
print(server.pid, flush=True)
{end}
"""


def test_ended_server_leaves_no_process_and_no_listener() -> None:
    with LlamaServer() as server:
        assert runs(server.pid)
    assert server.process.returncode == 0
    assert not runs(server.pid)
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", int(server.url.split(":")[-1]))):
        pass


def test_killed_server_exits_without_an_error() -> None:
    with LlamaServer() as server:
        server.kill()
        assert not runs(server.pid)
    assert server.process.returncode == -signal.SIGKILL


def test_two_servers_have_different_ports_and_keys(start_llama: Callable[..., LlamaServer]) -> None:
    one, other = start_llama(), start_llama()
    assert one.url != other.url
    assert one.key != other.key


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "raise SystemExit('failed')"])
def test_killed_test_process_leaves_no_server(end: str) -> None:
    program = FIXTURES.format(tests=str(ROOT / "tests"), here=str(Path(__file__).parent), end=end)
    ran = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=HANG_S, check=False)
    assert ran.returncode != 0
    wait_until(lambda: not runs(int(ran.stdout)))
