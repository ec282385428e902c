"""A stream and the task of its request."""

from __future__ import annotations

import asyncio

import pytest

from learnflow.llm.completion import Completion, TextDelta
from learnflow.llm.stream import MAX_READ_AHEAD, Emit, TextStream


async def _swallows_cancellation(emit: Emit) -> Completion:
    """Continue after a cancellation, as a request does if a library swallows it."""
    emit(TextDelta("first"))
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        for _ in range(2 * MAX_READ_AHEAD):
            emit(TextDelta("more"))
            await emit.drain()
    raise AssertionError("the request was not ended")


async def test_closed_stream_ends_although_its_request_swallowed_the_cancellation() -> None:
    stream = TextStream(_swallows_cancellation)
    assert await anext(stream) == "first"
    async with asyncio.timeout(30):  # ends a test that hangs
        await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_cancelled_reader_ends_although_its_request_swallowed_the_cancellation() -> None:
    stream = TextStream(_swallows_cancellation)
    assert await anext(stream) == "first"
    reader = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    reader.cancel()
    async with asyncio.timeout(30):
        await asyncio.wait([reader])
    assert reader.cancelled()
