"""Slots, trials and background calls belong to an event loop that may stop, and to a process that may be forked."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from support import router, serving

from learnflow.llm import errors, process
from learnflow.llm.background import Background
from learnflow.llm.providers import VLLMProvider
from learnflow.llm.routing.breaker import BreakerRegistry
from learnflow.llm.sync import Provider
from learnflow.llm.testing import Fault, FaultServer

TEXT = "The quick brown fox jumps over the lazy dog."


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """Run a server in its own event loop and thread."""
    made = FaultServer("vllm", TEXT)
    with serving(made):
        yield made


def wait_until(condition: object) -> None:
    """Wait in a thread until a condition of another thread holds; the test's time limit ends it."""
    while not condition():  # type: ignore[operator]
        threading.Event().wait(0.005)


def end(*loops: asyncio.AbstractEventLoop) -> None:
    """Close loops as ``asyncio.run`` does."""
    for loop in loops:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def limited(server: FaultServer) -> VLLMProvider:
    return VLLMProvider(server.base_url, "fault-model", max_concurrency=1)


def test_slot_of_stopped_loop_is_free(server: FaultServer) -> None:
    """A stream was read half by a loop that stopped and was not closed."""
    stopped = asyncio.new_event_loop()
    server.script = [Fault("stall", after=1)]
    stream = limited(server).stream("hi")
    assert stopped.run_until_complete(anext(stream))
    assert asyncio.run(limited(server).generate("hi", timeout=10)) == TEXT
    stopped.run_until_complete(stream.aclose())
    end(stopped)


def test_slot_is_not_given_to_stopped_loop(server: FaultServer) -> None:
    """A loop stops while its request waits for a slot. The next request of another loop gets the slot."""
    first, waiting = asyncio.new_event_loop(), asyncio.new_event_loop()
    server.script = [Fault("stall", after=1)]

    async def hold() -> None:
        async with limited(server).stream("hi") as stream:
            await anext(stream)
            queued = waiting.create_task(limited(server).generate("queued"))
            thread = threading.Thread(target=waiting.run_forever)
            thread.start()
            await asyncio.sleep(0.3)  # the request waits for the slot
            waiting.call_soon_threadsafe(waiting.stop)
            await asyncio.to_thread(thread.join)
            assert not queued.done()
        assert await limited(server).generate("hi", timeout=10) == TEXT
        thread = threading.Thread(target=lambda: results.append(waiting.run_until_complete(queued)))
        thread.start()
        await asyncio.to_thread(thread.join)

    results: list[str] = []
    first.run_until_complete(hold())
    assert results == [TEXT]
    end(first, waiting)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_child_of_fork_has_no_requests_of_parent(server: FaultServer) -> None:
    server.script = [Fault("stall", after=1)]

    async def hold() -> int:
        async with limited(server).stream("hi") as stream:
            await anext(stream)
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    child_answers: list[str] = []
                    thread = threading.Thread(
                        target=lambda: child_answers.append(asyncio.run(limited(server).generate("hi", timeout=20)))
                    )
                    thread.start()
                    thread.join(25)
                    code = 0 if child_answers == [TEXT] else 2
                finally:
                    os._exit(code)
            return await asyncio.to_thread(lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    assert asyncio.run(hold()) == 0
    assert process.state()["event loops that sent requests"] >= 0


def test_trial_in_stopped_loop_does_not_block_provider(server: FaultServer) -> None:
    """The loop of a trial request stops, and its task is not cancelled. The next request is a trial again."""
    now = [1000.0]
    chain = router(VLLMProvider(server.base_url, "fault-model"), breakers=BreakerRegistry(lambda: now[0]), retries=0)
    server.script = [Fault("refuse", status=500), Fault("stall", after=0)]
    with pytest.raises(errors.ServerFailed):
        asyncio.run(chain.generate("hi", timeout=5))
    now[0] += 1000
    loop = asyncio.new_event_loop()
    trial = loop.create_task(chain.generate("trial"))

    async def until_seen() -> None:
        while len(server.seen) < 2:
            await asyncio.sleep(0.01)

    loop.run_until_complete(until_seen())
    assert asyncio.run(chain.generate("hi", timeout=5)) == TEXT
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(trial)
    end(loop)


ENDING = """
import atexit, sys
class Late:
    def __del__(self):
        print("del", provider.generate("hi"), flush=True)
late = Late()
def at_exit():
    print("atexit", provider.generate("hi"), flush=True)
    print("atexit", "".join(provider.stream("hi")), flush=True)
atexit.register(at_exit)  # before the package is imported, so that it runs after the package's own handler
from learnflow.llm.sync import Provider
from learnflow.llm.providers import VLLMProvider
from learnflow.llm.routing.breaker import BreakerRegistry
provider = Provider(VLLMProvider(sys.argv[1], "fault-model"))
print("now", provider.generate("hi"), flush=True)
"""


def test_calls_while_process_ends_return(server: FaultServer) -> None:
    result = subprocess.run(
        [sys.executable, "-c", ENDING, server.base_url], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout.splitlines()[:3] == [f"now {TEXT}", f"atexit {TEXT}", f"atexit {TEXT}"], result.stderr
    assert result.returncode == 0


def sync_provider(server: FaultServer) -> Provider:
    return Provider(VLLMProvider(server.base_url, "fault-model"))


def test_close_from_other_thread_ends_reader_and_request(server: FaultServer) -> None:
    server.fault = Fault("stall", after=1)
    stream = sync_provider(server).stream("hi")
    pieces: list[str] = []
    reader = threading.Thread(target=lambda: pieces.extend(stream))
    reader.start()
    wait_until(lambda: pieces or server.seen)
    wait_until(lambda: pieces)
    stream.close()
    reader.join()
    wait_until(server.seen[0].gone.is_set)
    assert list(stream) == []


def test_close_from_other_thread_ends_with_block_of_reader(server: FaultServer) -> None:
    """The reader leaves its ``with`` block, which closes the stream again, while the first close still runs."""
    server.fault = Fault("stall", after=1)
    stream = sync_provider(server).stream("hi")
    started, ends = threading.Event(), list[str]()

    def read() -> None:
        with stream:
            for _ in stream:
                started.set()
        ends.append("closed")

    reader = threading.Thread(target=read)
    reader.start()
    started.wait()
    stream.close()
    reader.join()
    assert ends == ["closed"]
    wait_until(server.seen[0].gone.is_set)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_child_of_fork_does_not_use_stream_of_parent(server: FaultServer) -> None:
    server.fault = Fault("slow", seconds=0.2)
    with sync_provider(server).stream("hi") as stream:
        text = next(stream)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                ended = threading.Timer(10, os._exit, [3])
                ended.start()
                try:
                    next(stream)
                except errors.InvalidRequest as error:
                    code = 0 if "parent process" in str(error) else 2
                stream.close()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert text + "".join(stream) == TEXT


@pytest.mark.parametrize("nested", [True, False])
def test_blocking_call_in_loop_after_stop_raises_invalid_request(server: FaultServer, nested: bool) -> None:
    background = Background()
    background.stop()

    async def call() -> object:
        return background.run(asyncio.sleep(0))

    with pytest.raises(errors.InvalidRequest, match="blocking call"):
        background.run(call()) if nested else asyncio.run(call())
    assert background.run(asyncio.sleep(0, "result")) == "result"
    assert background._exit_runner
    background._exit_runner.close()


def test_second_reader_raises_invalid_request(server: FaultServer) -> None:
    server.fault = Fault("stall", after=1)
    stream = sync_provider(server).stream("hi")
    assert next(stream)
    reader = threading.Thread(target=lambda: next(stream, None))
    reader.start()
    caught: list[errors.LLMError] = []
    while not caught:  # until the thread waits for the next piece
        try:
            if next(stream, None) is None:
                break
        except errors.InvalidRequest as error:
            caught.append(error)
    stream.close()
    reader.join()
    assert "reads the stream" in str(caught[0])


def test_stream_closed_before_first_piece_sends_nothing(server: FaultServer) -> None:
    stream = sync_provider(server).stream("hi")
    stream.close()
    assert list(stream) == []
    assert list(stream.events()) == []
    assert server.seen == []


def test_failed_sync_stream_raises_again(server: FaultServer) -> None:
    server.fault = Fault("refuse", refusal="request")
    stream = sync_provider(server).stream("hi")
    with pytest.raises(errors.LLMError):
        next(stream)
    with pytest.raises(errors.InvalidRequest, match="failed"):
        next(stream)
