"""Run many streams through a router while its providers fail with every fault, and check that no text is lost.

    python benchmarks/soak.py [--streams 200] [--minutes 5]

Five fault servers and one without faults run in another process on loopback. Each question has its own answer, so that
text of another stream is detected. The clock of the circuit breakers is faster than real time, so that they close soon.
The last line is the summary. The exit code is 1 if text is lost or wrong, or a task, socket or breaker remains.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import logging
import multiprocessing
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, get_args

from peers import Ticker, raise_file_limit, rss

from learnflow.llm import RouterProvider
from learnflow.llm.adapter.capacity import CAPACITY
from learnflow.llm.errors import LLMError
from learnflow.llm.providers import (
    CustomProvider,
    LlamaCppProvider,
    LMStudioProvider,
    OllamaProvider,
    OpenAIProvider,
    VLLMProvider,
)
from learnflow.llm.routing.breaker import BreakerRegistry
from learnflow.llm.routing.decision import MAX_DELAY_S
from learnflow.llm.testing import Fault, FaultServer, ReceivedRequest
from learnflow.llm.testing.fault_server import FaultName

DIALECTS: Final = ("vllm", "llamacpp", "ollama", "lmstudio", "openai")
_CLASSES: Final = (VLLMProvider, LlamaCppProvider, OllamaProvider, LMStudioProvider, OpenAIProvider, CustomProvider)
MODEL: Final = "fault-model"
_REFUSALS: Final = ("key", "model", "overflow", "rate", "quota", "busy", "loading", "failed", "request", "filter")
_PIECE_S: Final = 0.05  # between two pieces
_FAULT_S: Final = 0.1  # the duration of a fault
_CLOCK_FACTOR: Final = 60  # seconds of the breakers' clock per real second
_FIRST_TOKEN_S: Final = 3.0
_GAP_S: Final = 1.0
_DEADLINE_S: Final = 15.0  # for a question, all attempts together
_GRACE_S: Final = 10.0  # for requests to end after their deadline
_IDLE_S: Final = 4.0  # longer than an idle connection stays in the pool
_MAX_MEMORY_GROWTH: Final = 0.15  # as a fraction
_CALLERS_PER_CANCELLATION: Final = 20  # one of this many callers leaves its stream, and one is cancelled
_LOOP_SOCKETS: Final = 3  # two of the event loop, and the connection of the last question
_RAMP_UP_S: Final = 3.0  # the time in which all streams start
_DRIP_TEXT: Final = "drop "  # the piece of the fault "drip"


def answer(number: int) -> list[str]:
    """Return the pieces of the answer to a question, which differ from those of other questions."""
    return [f"Answer{number}:", *(f" word{number * 7 % 997 + at}" for at in range(number % 20 + 15)), f" end{number}."]


# The servers


class NumberedServer(FaultServer):
    """A fault server that answers each question by its number, with the speed of a model."""

    async def _respond(self, seen: ReceivedRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        question = re.search(r"Question (\d+)\.", json.dumps(seen.body))
        if question:
            self.pieces = answer(int(question.group(1)))  # used before the next await
        return await super()._respond(seen, reader, writer)

    async def _write(self, writer: asyncio.StreamWriter, part: bytes) -> None:
        await super()._write(writer, part)
        await asyncio.sleep(_PIECE_S)

    def clear_requests(self) -> int:
        """Clear the recorded requests. Return their number."""
        count = len(self.seen)
        self.seen.clear()
        self.pages.clear()
        self._writers[:] = [writer for writer in self._writers if not writer.is_closing()]
        return count

    @property
    def open_connections(self) -> int:
        """Return the number of open connections."""
        return len(self._tasks)


def faults() -> list[Fault | None]:
    """Return every fault after 2 and after 9 pieces, and None equally often."""
    names: list[Any] = [name for name in get_args(FaultName) if name != "refuse"]
    all_faults = [Fault(name, after=after, seconds=_PIECE_S) for name in names for after in (2, 9)]
    all_faults += [Fault("refuse", refusal=reason) for reason in _REFUSALS]
    all_faults.append(Fault("refuse", refusal="rate", headers={"retry-after": "20"}))
    return [*all_faults, *[None] * len(names)]


def serve(pipe: Connection) -> None:
    """Run five servers with faults and one without.

    The first message through the pipe removes the faults. The second one requests the counts and ends the servers.
    """
    raise_file_limit()

    async def rotate_faults(server: NumberedServer, seed: int, counts: Counter[str]) -> None:
        generator = random.Random(seed)  # noqa: S311  # not for cryptography
        while True:
            for fault in generator.sample(faults(), len(faults())):
                server.fault = fault
                await asyncio.sleep(_FAULT_S)
                counts[fault.name if fault else "none"] += server.clear_requests()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        counts: Counter[str] = Counter()
        async with AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(NumberedServer(name)) for name in (*DIALECTS, "openai")]
            pipe.send([server.base_url for server in servers])
            tasks = [asyncio.ensure_future(rotate_faults(item, at, counts)) for at, item in enumerate(servers[:-1])]
            clearing = asyncio.ensure_future(clear_often(servers[-1]))
            await loop.run_in_executor(None, pipe.recv)
            for task in (*tasks, clearing):
                task.cancel()
            for server in servers:
                server.fault = None
            pipe.send("healed")
            await loop.run_in_executor(None, pipe.recv)
            pipe.send((dict(counts), sum(server.open_connections for server in servers)))

    asyncio.run(run())


async def clear_often(server: NumberedServer) -> None:
    """Limit the memory of the server without faults."""
    while True:
        await asyncio.sleep(1)
        server.clear_requests()


# The workers


@dataclass
class Tally:
    """The outcomes of the questions.

    Attributes:
        wrong: texts that are not the answer, or not its beginning if the stream was incomplete.
        lost: questions that ended with an exception other than LLMError, or did not end.
        errors: the number of errors by class.
        cancelled: questions that the caller cancelled or left.
        failed_over: answers after more than one attempt.
        resumed: answers that broke and were continued.
        disturbances: event loops that were closed during a request, each followed by a fork.
    """

    questions: int = 0
    answered: int = 0
    cancelled: int = 0
    failed_over: int = 0
    resumed: int = 0
    disturbances: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def check(self, number: int, text: str, *, complete: bool, partial: str | None = None) -> None:
        """Compare a text with the answer. ``partial`` is the partial text of an error."""
        expected = "".join(answer(number))
        # The server sent the pieces of a drip, and another server may have continued behind them
        checked, drip, _ = text.partition(_DRIP_TEXT)
        complete = complete and not drip
        right = checked == expected if complete else expected.startswith(checked)
        if not right or (partial is not None and partial != text):
            self.wrong.append(
                f"question {number}: {text[-60:]!r} ({len(text)} of {len(expected)}), partial {partial!r}"
            )


async def ask(router: RouterProvider, tally: Tally, number: int, max_pieces: int | None) -> None:
    """Send a question. Leave the stream after ``max_pieces``, unless it is None."""
    text = ""
    try:
        async with router.stream(f"Question {number}.", timeout=_DEADLINE_S) as stream:
            async for piece in stream:
                text += piece
                max_pieces = None if max_pieces is None else max_pieces - 1
                if max_pieces == 0:
                    break
        if max_pieces == 0:
            tally.cancelled += 1
            tally.check(number, text, complete=False)
            return
        tally.check(number, text, complete=True)
        tally.answered += 1
        tally.failed_over += stream.completion.attempts > 1
        tally.resumed += stream.completion.resumed > 0
        if stream.completion.text != text:
            tally.wrong.append(f"question {number}: the completion has another text than the stream")
    except LLMError as error:
        tally.errors[type(error).__name__] += 1
        tally.check(number, text, complete=False, partial=error.partial)


async def ask_and_cancel(router: RouterProvider, tally: Tally, number: int, seconds: float) -> None:
    """Send a question, and cancel the task of the caller after some seconds."""
    task = asyncio.ensure_future(ask(router, tally, number, None))
    await asyncio.wait([task], timeout=seconds)
    tally.cancelled += not task.done()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def worker(router: RouterProvider, tally: Tally, numbers: Iterator[int], until: float) -> None:
    """Send questions until a time. Sometimes leave the stream, or cancel the caller."""
    generator = random.Random(next(numbers))  # noqa: S311  # not for cryptography
    await asyncio.sleep(generator.uniform(0.0, _RAMP_UP_S))
    while time.monotonic() < until:
        number = next(numbers)
        tally.questions += 1
        try:
            if generator.randrange(_CALLERS_PER_CANCELLATION) == 0:
                await ask_and_cancel(router, tally, number, generator.uniform(0.0, 2.0))
            else:
                leaves = generator.randrange(_CALLERS_PER_CANCELLATION) == 0
                await ask(router, tally, number, generator.randint(1, 12) if leaves else None)
        except Exception as error:  # noqa: BLE001  # the caller must get an LLMError
            tally.lost.append(f"question {number}: {type(error).__name__}: {error}")


def ask_in_new_loop(router: RouterProvider, number: int) -> None:
    """Send a question in an event loop that stops and is closed in the middle of the answer."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(ask(router, Tally(), number, None))
    loop.run_until_complete(asyncio.wait([task], timeout=0.3))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def ask_in_child(router: RouterProvider, number: int) -> int:
    """Send a question in a forked child. Return its exit code: 0 if it got an answer or an ``LLMError``."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            tally = Tally()
            # the forked thread has the running loop of the parent
            thread = threading.Thread(target=lambda: asyncio.run(ask(router, tally, number, None)), daemon=True)
            thread.start()
            thread.join(_DEADLINE_S + _GRACE_S)
            code = int(thread.is_alive() or bool(tally.wrong) or not (tally.answered or tally.errors))
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


async def disturb(router: RouterProvider, tally: Tally, numbers: Iterator[int], until: float) -> None:
    """Close event loops in the middle of requests, and fork, while all streams run."""
    while time.monotonic() < until:
        await asyncio.to_thread(ask_in_new_loop, router, next(numbers))
        if code := await asyncio.to_thread(ask_in_child, router, next(numbers)):
            tally.lost.append(f"a forked child ended with exit code {code}")
        tally.disturbances += 1


# The measurements


class Clock:
    """The clock of the circuit breakers. It is faster than real time and can be advanced."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return time.monotonic() * _CLOCK_FACTOR + self.ahead


def tasks() -> Counter[str]:
    """Count the tasks of the loop by the names of their coroutines."""
    return Counter(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks())


def sockets() -> int:
    """Return the number of open sockets of this process."""
    count = 0
    for item in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            count += str(item.readlink()).startswith("socket:")
    return count


@dataclass
class Measurements:
    """The measurements besides the answers.

    Attributes:
        memory: megabytes after the first tenth of the load, and at its end.
        stall: the longest delay of a task by the event loop in seconds.
        seconds: the duration of the load.
        tasks: the remaining tasks by name.
        sockets: the remaining sockets after the time limit of idle connections.
        sockets_after_loop: the remaining sockets after the end of the event loop.
        connections: the open connections of the servers at the end.
        breakers: the circuit breakers that are open after a round without faults.
        slots: the slots that are in use at the end.
        requests: the requests to the failing servers by fault.
    """

    memory: tuple[float, float] = (0.0, 0.0)
    stall: float = 0.0
    seconds: float = 0.0
    tasks: Mapping[str, int] = field(default_factory=dict)
    sockets: int = 0
    sockets_after_loop: int = 0
    connections: int = 0
    breakers: list[str] = field(default_factory=list)
    slots: int = 0
    requests: Mapping[str, int] = field(default_factory=dict)

    @property
    def growth(self) -> float:
        """Return the growth of the memory as a fraction."""
        return self.memory[1] / self.memory[0] - 1


def memory_after_gc(ticker: Ticker) -> float:
    """Return the memory in megabytes after a garbage collection. Its stall is not counted."""
    gc.collect()
    ticker.reset()
    return rss()


async def load(router: RouterProvider, tally: Tally, measures: Measurements, streams: int, seconds: float) -> None:
    """Run all streams for the duration, and until the last one has ended."""
    ticker, began = Ticker(), time.monotonic()
    numbers, until = itertools.count(1), began + seconds
    workers = [asyncio.ensure_future(worker(router, tally, numbers, until)) for _ in range(streams)]
    workers.append(asyncio.ensure_future(disturb(router, tally, numbers, until)))
    first, shown = 0.0, 0.0
    while (now := time.monotonic()) < until:
        await asyncio.sleep(min(1.0, max(0.0, until - now)))
        first = first or (memory_after_gc(ticker) if now - began >= seconds / 10 else 0.0)
        if sys.stderr.isatty() and now - shown >= 10:
            shown = now
            print(f"{now - began:5.0f} s: {tally.answered} answered, {rss():.0f} MB", file=sys.stderr)
    measures.memory = (first, memory_after_gc(ticker))
    measures.seconds = time.monotonic() - began
    _, stuck = await asyncio.wait(workers, timeout=_DEADLINE_S + _GRACE_S)
    tally.lost += ["a worker did not end" for _ in stuck]
    for task in stuck:
        task.cancel()
    measures.stall = await ticker.stop()


async def healthy_round(chain: list[Any], board: BreakerRegistry, clock: Clock, tally: Tally) -> list[str]:
    """Send requests to each provider first, without faults. Return the breakers that are still open."""
    clock.ahead += MAX_DELAY_S * 2
    for at, provider in enumerate(chain):
        router = RouterProvider(provider, [*chain[:at], *chain[at + 1 :]], breakers=board)
        for number in range(2):  # another provider may serve the first one, while this provider is probed
            text = await router.generate(f"Question {number}.", timeout=_DEADLINE_S)
            tally.check(number, text, complete=True)
            await asyncio.sleep(0.2)
    return [f"{place.address} {type(item.error).__name__}" for place, item in board.breakers.items()]


async def soak(pipe: Connection, before: int, streams: int, seconds: float) -> tuple[Tally, Measurements]:
    """Run the load and a round without faults. Return the outcomes and the measurements."""
    clock, tally, measures = Clock(), Tally(), Measurements()
    urls = pipe.recv()
    board = BreakerRegistry(clock=clock)
    chain = [
        kind(base_url=url, model=MODEL, api_key="x", first_token_timeout=_FIRST_TOKEN_S, gap_timeout=_GAP_S)
        for kind, url in zip(_CLASSES, urls, strict=True)
    ]
    router = RouterProvider(chain[0], chain[1:], breakers=board)
    await router.prepare()
    await healthy_round([chain[-1]], board, clock, tally)
    usual = tasks()
    await load(router, tally, measures, streams, seconds)
    pipe.send("heal")
    pipe.recv()
    measures.breakers = await healthy_round(chain, board, clock, tally)
    await asyncio.sleep(_IDLE_S)
    await healthy_round([chain[-1]], board, clock, tally)
    measures.tasks = tasks() - usual
    await asyncio.to_thread(lambda: asyncio.run(chain[-1].health_check()))  # a new loop drops the pools of closed ones
    gc.collect()
    measures.slots = sum(CAPACITY.in_flight(provider.address) for provider in chain)
    measures.sockets = sockets() - before - _LOOP_SOCKETS
    pipe.send("end")
    measures.requests, measures.connections = pipe.recv()
    return tally, measures


def summary(tally: Tally, measures: Measurements, streams: int) -> tuple[bool, str]:
    """Return whether the run passed, and the summary."""
    missing = {str(name) for name in get_args(FaultName)} - set(+Counter(measures.requests))
    tasks_left = sum(measures.tasks.values())
    passed = not (
        tally.wrong
        or tally.lost
        or tasks_left
        or measures.sockets
        or measures.sockets_after_loop
        or measures.breakers
        or measures.slots
        or measures.growth > _MAX_MEMORY_GROWTH
    )
    failures = ", ".join(f"{name} {count}" for name, count in tally.errors.most_common()) or "none"
    count = len(get_args(FaultName))
    parts = [
        f"{streams} streams for {measures.seconds / 60:.1f} min",
        f"{tally.questions} questions",
        f"{tally.answered} answered ({tally.failed_over} after a failover, {tally.resumed} continued after a break)",
        f"{len(tally.wrong)} wrong",
        f"{len(tally.lost)} lost",
        f"{sum(tally.errors.values())} errors ({failures})",
        f"{tally.cancelled} cancelled",
        f"{count - len(missing)} of {count} kinds of faults",
        f"memory {measures.memory[0]:.0f} -> {measures.memory[1]:.0f} MB ({measures.growth:+.1%})",
        f"{tasks_left} tasks and {measures.sockets} sockets ({measures.sockets_after_loop} after the loop) left",
        f"{len(measures.breakers)} breakers left open",
        f"{measures.slots} slots left in use",
        f"{tally.disturbances} closed loops and forks",
        f"longest loop stall {measures.stall * 1e3:.0f} ms",
    ]
    return passed, f"soak {'ok' if passed else 'FAILED'}: " + "; ".join(parts)


def main() -> int:
    """Run the soak test. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=5.0)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    raise_file_limit()
    pipe, other_end = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(other_end,), daemon=True)
    server.start()
    try:
        before = sockets()
        tally, measures = asyncio.run(soak(pipe, before, options.streams, options.minutes * 60))
        measures.sockets_after_loop = sockets() - before
    finally:
        server.terminate()
    for item in (*tally.wrong[:5], *tally.lost[:5], *measures.breakers):
        print(item)
    print(f"requests by fault: {dict(sorted(measures.requests.items()))}")
    print(f"tasks left: {dict(measures.tasks)}; open connections of the servers: {measures.connections}")
    passed, line = summary(tally, measures, options.streams)
    print(line)
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
