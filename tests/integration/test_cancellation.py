"""A dropped stream frees the GPU: the server sees the connection close at once."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from support import DIALECTS, provider_for, serving

from learnflow.llm import LLMProvider, RouterProvider, errors
from learnflow.llm.providers import CustomProvider, VLLMProvider
from learnflow.llm.stream import TextStream
from learnflow.llm.testing import Fault, FaultServer
from learnflow.llm.transport import network


async def gone(server: FaultServer) -> None:
    await asyncio.wait_for(server.seen[0].gone.wait(), 30)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("fault", ["stall", "drip"])
async def test_break_out_of_unnamed_stream_closes_connection(dialect: str, fault: str) -> None:
    async with FaultServer(dialect, fault=Fault(fault)) as server:
        provider = provider_for(server)
        async for piece in provider.stream("hi"):
            assert piece == "The "
            break
        await gone(server)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_exit_of_async_with_closes_connection(dialect: str) -> None:
    async with FaultServer(dialect, fault=Fault("stall")) as server:
        async with provider_for(server).stream("hi") as answer:
            async for _ in answer:
                break
        await gone(server)


async def test_aclose_closes_connection() -> None:
    async with FaultServer(fault=Fault("stall")) as server:
        answer = provider_for(server).stream("hi")
        assert await anext(answer) == "The "
        await answer.aclose()
        await gone(server)
        with pytest.raises(StopAsyncIteration):
            await anext(answer)


@pytest.mark.parametrize("fault", [Fault("stall"), Fault("hang")])
async def test_aclose_from_other_task_ends_iteration(fault: Fault) -> None:
    async with FaultServer(fault=fault) as server:
        answer = provider_for(server).stream("hi")

        async def read() -> list[str]:
            return [piece async for piece in answer]

        reader = asyncio.create_task(read())
        while not server.seen:
            await asyncio.sleep(0.01)
        with pytest.raises(errors.InvalidRequest, match="another task"):
            await anext(answer)
        await answer.aclose()
        assert "".join(await reader) in ("", "The quick brown ")
        await gone(server)


async def test_failed_stream_raises_again_when_iterated_again() -> None:
    async with FaultServer(fault=Fault("drop")) as server:
        answer = provider_for(server).stream("hi")
        with pytest.raises(errors.AnswerCut):
            [piece async for piece in answer]
        with pytest.raises(errors.InvalidRequest, match="has failed"):
            [piece async for piece in answer]


async def test_cancellation_while_litellm_loads_leaves_no_task(recwarn: pytest.WarningsRecorder) -> None:
    async with FaultServer(fault=Fault("hang")) as server:
        provider = provider_for(server)
        for delay in range(40):
            task = asyncio.create_task(provider.generate("hi"))
            for _ in range(delay):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        gc.collect()
        assert not [str(warning.message) for warning in recwarn]


async def test_outer_cancellation_survives_aclose() -> None:
    async with FaultServer(fault=Fault("hang")) as server:
        for together in (True, False):
            answer = provider_for(server).stream("hi")
            reader = asyncio.create_task(anext(answer))  # type: ignore[arg-type]
            await asyncio.sleep(0.05)
            if together:
                reader.cancel()
            await asyncio.gather(answer.aclose(), answer.aclose())
            with pytest.raises(asyncio.CancelledError if together else StopAsyncIteration):
                await reader


async def test_cancelled_read_does_not_end_stream_silently() -> None:
    async with FaultServer(fault=Fault("stall", after=0)) as server:
        answer = provider_for(server).stream("hi")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(answer), 0.5)
        with pytest.raises(errors.InvalidRequest, match="has failed"):
            [piece async for piece in answer]


async def test_deadline_holds_while_all_threads_of_loop_are_busy() -> None:
    """Writing the request, DNS and connecting use no thread of the loop."""
    async with FaultServer() as server:
        loop, stop = asyncio.get_running_loop(), threading.Event()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, stop.wait, 20)
        assert (await provider_for(server).generate("hi", timeout=2)).endswith("dog.")
        stop.set()
        await busy


@pytest.mark.parametrize("fault", [Fault("stall"), Fault("hang")])
async def test_cancelled_task_closes_connection(fault: Fault) -> None:
    async with FaultServer(fault=fault) as server:
        task = asyncio.create_task(provider_for(server).generate("hi"))
        while not server.seen:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone(server)


async def test_exception_of_caller_closes_connection() -> None:
    async def broken(answer: TextStream) -> None:
        async for _ in answer:
            raise ValueError("the caller's own")

    async with FaultServer(fault=Fault("drip")) as server:
        with pytest.raises(ValueError, match="own"):
            await broken(provider_for(server).stream("hi"))
        gc.collect()
        await gone(server)


async def test_stream_that_is_not_iterated_sends_nothing() -> None:
    async with FaultServer() as server:
        answer = provider_for(server).stream("hi")
        await asyncio.sleep(0)
        await answer.aclose()
        del answer
        assert server.connections == 0


async def test_cancelled_request_emits_one_event(events_seen: list[object]) -> None:
    async with FaultServer(fault=Fault("stall")) as server:
        async with provider_for(server).stream("hi") as answer:
            await anext(answer)
        await gone(server)
    assert [type(event).__name__ for event in events_seen] == [
        "RequestStarted",
        "AttemptStarted",
        "AttemptCancelled",
        "RequestEnded",
    ]


async def test_complete_response_returns_connection_to_pool() -> None:
    async with FaultServer() as server:
        provider = provider_for(server)
        for _ in range(5):
            await provider.generate("hi")
        assert server.connections == 1


async def test_cancellation_at_any_step_leaves_no_open_connection() -> None:
    """A call is cancelled at every step. Open connections are idle in the pool."""

    def busy() -> list[str]:
        states = [connection.info() for connection in pool_connections()]
        return [state for state in states if not re.search("IDLE|CLOSED", state)]

    async with FaultServer("openai") as server:
        for step in range(120):
            task = asyncio.create_task(provider_for(server).generate("hi"))
            for _ in range(step):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for _ in range(200):
            if not busy():
                break
            await asyncio.sleep(0.01)
        assert busy() == []


def pool_connections() -> list[Any]:
    return [
        one for own in network._transports.values() for way in own.by_route.values() for one in way._pool.connections
    ]


WAYS = ("local", "referenced", "unstarted", "read by a task", "raises")


def _provider(base_url: str, depth: str) -> LLMProvider:
    one = CustomProvider(base_url=base_url, model="fault-model")
    if depth == "alone":
        return one
    chain = RouterProvider(one, [VLLMProvider(base_url=base_url, model="fault-model")])
    return chain if depth == "router" else RouterProvider(chain)


async def _leave(stream: Any, way: str, held: list[Any], server: FaultServer) -> None:
    async def read() -> None:
        async for _ in stream:
            pass

    if way == "referenced":
        held.append(stream)
    if way == "unstarted":
        return
    if way == "read by a task":
        held.append(asyncio.create_task(read()))
        while not server.seen:
            await asyncio.sleep(0.01)
        return
    async for _ in stream:
        break
    if way == "raises":
        raise KeyError


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("depth", ["alone", "router", "nested"])
def test_stream_left_at_end_of_loop_closes_connection_without_warning(
    depth: str, way: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Run in asyncio's debug mode. Any warning, even of a finalizer, is an error in this suite."""
    server, held = FaultServer("openai", fault=Fault("stall", after=1)), list[Any]()

    async def leave() -> None:
        await _leave(_provider(server.base_url, depth).stream("hi"), way, held, server)

    with serving(server) as loop:
        with suppress(KeyError):
            asyncio.run(leave(), debug=True)
        gc.collect()
        held.clear()
        gc.collect()
        for seen in server.seen:
            asyncio.run_coroutine_threadsafe(seen.gone.wait(), loop).result(30)
    assert bool(server.seen) is (way != "unstarted")
    logged = [
        record.getMessage() for record in caplog.records if record.name == "asyncio" and record.levelname != "DEBUG"
    ]
    assert [line for line in logged if "took" not in line] == []  # debug mode names slow callbacks
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("who", ["alone", "router"])
async def test_stream_in_a_reference_cycle_is_closed_when_collected(who: str) -> None:
    """The collector may finalize inner objects first. pytest fails for exceptions in finalizers."""

    class Holder:
        pass

    async with FaultServer(fault=Fault("stall")) as server:
        holder: Any = Holder()
        one = provider_for(server)
        holder.me, holder.stream = holder, (one if who == "alone" else RouterProvider(one)).stream("hi")
        assert await anext(holder.stream)
        del holder
        gc.collect()
        await gone(server)
        gc.collect()
