"""Engines from the package index that put several servers behind one address, in child processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Self

import httpx
import pytest
from llama import LlamaServer

from learnflow.llm import RouterProvider

MARKS: Final = [pytest.mark.engines]
START_S: Final = 120.0  # a limit for hanging tests, not for slow ones
# The options that docs/scaling.md advises. By default a server that has ended gets requests until ten have failed.
REJOIN: Final = (
    "--disable-retries",
    *("--health-check-interval-secs", "2", "--health-failure-threshold", "1", "--health-success-threshold", "1"),
    *("--cb-failure-threshold", "2", "--cb-success-threshold", "1", "--cb-timeout-duration-secs", "2"),
)


@dataclass(frozen=True)
class Kind:
    """An engine: its package, its command, and what its options and headers are called."""

    package: str
    command: tuple[str, ...]
    session_header: str
    session_options: tuple[str, ...]

    @property
    def version(self) -> str:
        """The installed version; "" if it is in another environment."""
        with suppress(PackageNotFoundError):
            return version(self.package)
        return ""


KINDS: Final = {
    kind.package: kind
    for kind in (
        Kind("vllm-router", ("vllm-router",), "X-Session-ID", ("--policy", "sticky_least_loaded")),
        Kind("smg", ("smg", "launch"), "X-SMG-Routing-Key", ("--policy", "manual", "--assignment-mode", "min_group")),
    )
}


def find_program(name: str) -> str:
    """Return the path of a program that ``make engines`` installs. The folder of Python is searched first."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    path = shutil.which(name, path=folders)
    assert path, f"{name} is not installed. Run: make engines"
    return path


def free_ports(count: int) -> list[int]:
    """Return free ports. Engines cannot let the kernel choose."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Engine:
    """An engine in a child process.

    Args:
        kind: the engine.
        workers: the addresses of the servers behind it.
        key: the API key of the servers; "" if they have none.
        options: further options of its command.

    Attributes:
        url: its address.
        pid: the process id.
    """

    def __init__(self, kind: Kind, workers: Sequence[str], key: str, options: Sequence[str] = ()) -> None:
        self.kind, self._workers, self._key = kind, len(workers), key
        program, *words = kind.command
        port, metrics = free_ports(2)
        self.url = f"http://127.0.0.1:{port}"
        self.command = [
            *(find_program(program), *words, "--host", "127.0.0.1", "--port", str(port)),
            *("--prometheus-port", str(metrics), "--worker-urls", *workers),
            *(("--api-key", key) if key else ()),
            *options,
        ]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the engine
        self.process = subprocess.Popen(self.command, stdout=self._log, stderr=self._log)
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):  # smg stays for five more seconds if it is asked to end
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()

    @property
    def log(self) -> str:
        """The engine's log so far."""
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode("utf-8", "replace")

    async def get(self, path: str) -> Any:
        """Return a page of the engine; None if it does not respond with JSON."""
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        async with httpx.AsyncClient(headers=headers) as client:
            try:
                return (await client.get(f"{self.url}{path}")).json()
            except (httpx.HTTPError, ValueError):
                return None

    async def healthy(self, count: int | None = None) -> Self:
        """Wait until so many servers are healthy, by default all."""
        count = self._workers if count is None else count
        async with asyncio.timeout(START_S):
            while (page := await self.get("/readiness")) is None or page.get("healthy_workers") != count:
                assert self.process.poll() is None, self.log[-2000:]
                await asyncio.sleep(0.05)
        return self


Report = Callable[[str, str], None]  # adds a row to the summary: promise, seen
Start = Callable[..., LlamaServer]
StartEngine = Callable[..., Engine]
Configure = Callable[..., RouterProvider]
