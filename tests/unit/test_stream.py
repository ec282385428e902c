"""A stream and the task of its request."""

from __future__ import annotations

import asyncio

import pytest

from learnflow.llm.completion import Completion, TextDelta
from learnflow.llm.errors import InvalidRequest
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


async def _answers_late(emit: Emit) -> Completion:
    emit(TextDelta("first"))
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


@pytest.mark.parametrize("reads_events", [False, True])
async def test_read_after_cancelled_read_raises_error_and_no_end_of_stream(reads_events: bool) -> None:
    stream = TextStream(_answers_late)
    pieces = stream.events() if reads_events else stream
    await anext(pieces)
    reader = asyncio.ensure_future(anext(pieces))
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    with pytest.raises(InvalidRequest, match="the stream has failed"):
        await anext(pieces)


async def test_second_events_iterator_is_refused() -> None:
    stream = TextStream(_answers_late)
    await anext(stream.events())
    with pytest.raises(InvalidRequest, match="the stream has started before"):
        await anext(stream.events())
    await stream.aclose()
