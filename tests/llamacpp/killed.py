"""Kill processes in the middle of their answers, and continue the answers in new processes.

    python tests/llamacpp/killed.py [KILLS]

prints how many texts are identical to the answers that the tiny model has memorised.
"""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDERS = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "llamacpp")]
sys.path[:0] = FOLDERS

from llama import HANG_S, TEXTS, LlamaServer, answer  # noqa: E402
from support import _characters  # noqa: E402

from learnflow.llm import get_provider  # noqa: E402
from learnflow.llm.journal import open_file, paths, read  # noqa: E402
from learnflow.llm.settings import Settings  # noqa: E402
from learnflow.llm.stream import Emit  # noqa: E402

START_S = 180.0  # a limit for hanging tests: the first process imports LiteLLM
MAX_HELD_CHARS = len("<think>")
WRITE_S = 1.0  # after so many seconds, text is written
METHODS = ("generate", "complete", "stream", "events")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["warm", "killed"])


class StallingRelay:
    """A relay to a server that stops after some characters of the first answers, and never closes.

    Args:
        target: the address of the server.
        after: the characters after which an answer stops.

    Attributes:
        sent: the characters that were sent in each answer that has stopped.
    """

    def __init__(self, target: str, after: int) -> None:
        self.sent: list[int] = []
        self._host, _, port = target.removeprefix("http://").partition(":")
        self._port, self._after = int(port), after

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, out = await asyncio.open_connection(self._host, self._port)
        sending = asyncio.create_task(self._copy(reader, out))
        characters, rest = 0, b""
        try:
            while data := await back.read(65536):
                lines = (rest + data).split(b"\n")
                for number, line in enumerate(lines[:-1], 1):
                    characters += _characters(line)
                    if characters >= self._after:
                        end = len(data) - len(b"\n".join(lines[number:]))
                        writer.write(data[:end] + b"\n\r\n")  # the end of the event and of its chunk
                        self.sent.append(characters)
                        await sending  # until the client is killed
                        return
                rest = lines[-1]
                writer.write(data)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            sending.cancel()
            out.close()
            writer.close()

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            out.write(data)


@contextmanager
def stalling(target: str, after: int) -> Iterator[tuple[str, list[int]]]:
    """Run a relay in a thread. Yield its address, and the characters of the answers that have stopped."""
    loop, relay = asyncio.new_event_loop(), StallingRelay(target, after)
    server = loop.run_until_complete(asyncio.start_server(relay, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def stop() -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", relay.sent
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(HANG_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(HANG_S)
        loop.close()


def send(environment: dict[str, str], how: str, prompt: str, results: Connection) -> None:
    """Send a request in this process, and report its text."""
    os.environ.update(environment)
    results.send(asyncio.run(answer(get_provider(), how, prompt)))


def start(function: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """Start a process. Its last argument is a connection."""
    receiver, sender = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=function, args=(*arguments, sender), daemon=True)
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([*FOLDERS, before])  # the server of forks imports ``warm``
    process.start()
    os.environ["PYTHONPATH"] = before
    sender.close()
    return process, receiver


def environment_of(server: LlamaServer, folder: Path, url: str = "") -> dict[str, str]:
    """Return the variables of a chain with one server and a journal."""
    address = {"LLAMACPP_BASE_URL": url or server.url, "LLAMACPP_API_KEY": server.key}
    return {**address, "LLM_PROVIDER": "llamacpp", "LLM_JOURNAL": str(folder)}


def recorded(folder: Path) -> list[str]:
    """Return the texts in a journal."""
    texts = []
    for path in paths(folder):
        with suppress(FileNotFoundError):
            texts.append("".join(read(path)[0]))
    return texts


def wait_for_texts(folder: Path, sent: list[int], number: int = 1) -> None:
    """Wait until so many answers have stopped, and are recorded up to their last piece.

    A piece that may begin a tag, for example "<", is held back until the next piece.
    """
    deadline, stopped = time.monotonic() + START_S, math.inf
    while True:
        now, lengths = time.monotonic(), sorted(map(len, recorded(folder)))
        if len(sent) == number == len(lengths):
            stopped = min(stopped, now)
            held = max(length - written for length, written in zip(sorted(sent), lengths, strict=True))
            if held == 0 or (held < MAX_HELD_CHARS and now > stopped + 3 * WRITE_S):
                return
        assert now < deadline, "it hangs"
        time.sleep(0.02)


def interrupt(server: LlamaServer, folder: Path, how: str, prompt: str, after: int, *, processes: int = 1) -> list[str]:
    """Kill processes after so many characters of their answers. Return the texts in the journal."""
    with stalling(server.url, after) as (url, sent):
        arguments = environment_of(server, folder, url), how, prompt
        running = [start(send, *arguments) for _ in range(processes)]
        wait_for_texts(folder, sent, processes)
        for process, _ in running:
            process.kill()
            process.join()
    return recorded(folder)


def resume(server: LlamaServer, folder: Path, how: str, prompt: str, *, processes: int = 1) -> list[str]:
    """Send requests in new processes. Return their texts."""
    running = [start(send, environment_of(server, folder), how, prompt) for _ in range(processes)]
    texts = [str(results.recv()) for _, results in running]
    for process, _ in running:
        process.join()
    return texts


def write_and_die(folder: Path, number: int, barrier: Any, results: Connection) -> None:
    """Record a text and wait for the others. Then die without closing the file."""
    file = open_file(Settings(llm_journal=folder), "0" * 32, Emit())
    assert file
    results.send("".join(file.pieces))
    file._unwritten.append(f"text {number}")
    file.write()
    barrier.wait(START_S)
    os._exit(0)


def main(kills: int) -> int:
    """Kill processes at random characters, with and without their server. Return the exit code."""
    generator, prompts = random.Random(37), [prompt for prompt, text in TEXTS.items() if len(text) > 40]  # noqa: S311
    failed = 0
    for server_too in (False, True):
        same = 0
        first = LlamaServer()
        for _ in range(kills):
            prompt, how = generator.choice(prompts), generator.choice(METHODS)
            at = generator.randrange(1, len(TEXTS[prompt]))
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name, "journal")
                (before,) = interrupt(first, folder, how, prompt, at)
                if server_too:
                    first.kill()
                    first = LlamaServer()
                texts = resume(first, folder, how, prompt)
                good = texts == [TEXTS[prompt]] and len(before) > at - MAX_HELD_CHARS and not any(folder.iterdir())
                same += good
                if not good:
                    report = {"prompt": prompt, "how": how, "at": at, "before": before, "texts": texts}
                    sys.stderr.write(json.dumps(report) + "\n")
        first.kill()
        failed += kills - same
        server = " (server killed, too)" if server_too else ""
        sys.stdout.write(f"{same} of {kills} texts are identical{server}\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100))
