"""A llama.cpp server in a child process, and helpers that observe processes."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import httpx
from support import ROOT, known_answers

from learnflow.llm import LLMProvider
from learnflow.llm.providers import LlamaCppProvider

MODEL: Final = ROOT / "tests" / "models" / "learnflow-tiny.gguf"
PROGRAM: Final = ROOT / "learnflow" / "llm" / "providers" / "embedded_server.py"
ANSWERS: Final = known_answers(MODEL.with_name("answers.json"))
TEXTS: Final = {known.prompt: known.answer for known in ANSWERS}
RSA: Final = "Explain RSA encryption"
HANG_S: Final = 30.0  # a limit for hanging tests, not for slow ones
# An answer of 1,900 tokens, which is long enough to be cancelled.
ENDLESS: Final[dict[str, Any]] = {"temperature": 0, "max_tokens": 1900, "extra_body": {"ignore_eos": True}}


_of_tests: Final = set[int]()  # pids of the servers that the fixtures started


class LlamaServer:
    """A llama.cpp server with the tiny model, started as the embedded provider starts it.

    Args:
        slots: the number of requests that are answered at once.
        context: the context length of a slot, in tokens.
        threads: the number of threads.
        key: the API key; a random one if empty.

    Attributes:
        url: its address; the kernel chose the port.
        key: the API key.
        pid: the process id.
    """

    def __init__(self, *, slots: int = 2, context: int = 2048, threads: int = 1, key: str = "") -> None:
        self.key = key or secrets.token_urlsafe(16)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the server
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self.pid = self.process.pid
        _of_tests.add(self.pid)
        config = {"model": str(MODEL), "alias": "tiny", "context": context, "slots": slots, "threads": threads}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({**config, "key": self.key}).encode() + b"\n")
        self.process.stdin.flush()
        with self.process.stdout as report:
            self.url = str(json.loads(report.readline())["address"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._log.close()

    @property
    def log(self) -> str:
        """The server's log so far."""
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode("utf-8", "replace")

    def kill(self) -> None:
        """Kill the process at once, and wait for its end."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait()

    def killed(self) -> bool:
        """Kill the process. Return True, which makes a relay cut the connection."""
        self.kill()
        return True

    def provider(self, url: str | None = None, **options: Any) -> LlamaCppProvider:
        """Return a provider of this server, or of a relay in front of it."""
        return LlamaCppProvider(base_url=url or self.url, api_key=options.pop("api_key", self.key), **options)

    async def slots(self) -> list[dict[str, Any]]:
        """Return the server's page ``/slots``."""
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {self.key}"}) as client:
            return list((await client.get(f"{self.url}/slots")).json())

    async def idle(self) -> list[dict[str, Any]]:
        """Wait until no slot processes a request, and return the slots."""
        async with asyncio.timeout(HANG_S):
            while True:
                slots = await self.slots()
                if not any(slot["is_processing"] for slot in slots):
                    return slots
                await asyncio.sleep(0.01)


async def answer(provider: LLMProvider, how: str, prompt: str, **options: Any) -> str:
    """Return the text of an answer, requested by ``generate``, ``complete``, ``stream`` or ``events``."""
    sampling: dict[str, Any] = {"temperature": 0, "max_tokens": 400, **options}
    if how == "generate":
        return await provider.generate(prompt, **sampling)
    if how == "complete":
        return (await provider.complete(prompt, **sampling)).text
    if how == "stream":
        return "".join([piece async for piece in provider.stream(prompt, **sampling)])
    pieces = [event async for event in provider.stream(prompt, **sampling).events()]
    return "".join(event.text for event in pieces if type(event).__name__ == "TextDelta")


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds. Fail after ``HANG_S`` seconds."""
    async with asyncio.timeout(HANG_S):
        while not condition():
            await asyncio.sleep(0.01)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds, without an event loop. Fail after ``HANG_S`` seconds."""
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    """Return whether a process runs. A zombie does not."""
    return _stat(pid)[:1] not in ([], ["Z"], ["X"])


def ended(pid: int) -> bool:
    """Return whether a child of this process has ended with all its threads."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # the provider waited for it
        return True


def server_processes(parent: int | None = None) -> list[int]:
    """Return the pids of the embedded providers' servers that are children of a process, by default of this one."""
    parent = os.getpid() if parent is None else parent
    pids = {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()} - _of_tests
    return [
        pid
        for pid in sorted(pids)
        if _stat(pid)[1:2] == [str(parent)] and runs(pid) and str(PROGRAM) in command_line(pid)
    ]


def command_line(pid: int) -> str:
    """Return the command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """Return the state, the parent and further fields of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []
