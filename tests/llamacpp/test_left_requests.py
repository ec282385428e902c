"""A cancelled request stops the server, so that its slot is free again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from llama import ENDLESS, TEXTS, LlamaServer, until
from support import router

from learnflow.llm import LLMProvider

Leave = Callable[[LLMProvider], Awaitable[None]]


async def leave_block(provider: LLMProvider) -> None:
    async with provider.stream("Tell me everything", **ENDLESS) as stream:
        await anext(stream)


async def close(provider: LLMProvider) -> None:
    stream = provider.stream("Tell me everything", **ENDLESS)
    await anext(stream)
    await stream.aclose()


async def leave_events(provider: LLMProvider) -> None:
    seen = provider.stream("Tell me everything", **ENDLESS).events()
    await anext(seen)
    await seen.aclose()


async def cancel_stream(provider: LLMProvider) -> None:
    began = asyncio.Event()

    async def read() -> None:
        async for _ in provider.stream("Tell me everything", **ENDLESS):
            began.set()

    await _cancelled(read(), began.wait())


async def close_from_other_task(provider: LLMProvider) -> None:
    stream, began = provider.stream("Tell me everything", **ENDLESS), asyncio.Event()

    async def read() -> None:
        async for _ in stream:
            began.set()

    reading = asyncio.create_task(read())
    await began.wait()
    await stream.aclose()
    await reading  # the stream ends for it


async def _cancelled(work: Any, when: Any) -> None:
    task = asyncio.ensure_future(work)
    await when
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def stopped(server: LlamaServer) -> None:
    """Assert that the server stopped before the end of its answer of 1,900 tokens."""
    await until(lambda: "cancel task" in server.log)
    await server.idle()
    assert server.log.count("cancel task") == 1
    assert "1900 tokens" not in server.log


@pytest.mark.parametrize("routed", [False, True], ids=["provider", "router"])
@pytest.mark.parametrize("leave", [leave_block, close, leave_events, cancel_stream, close_from_other_task])
async def test_left_stream_frees_its_slot(start_llama: Callable[..., LlamaServer], leave: Leave, routed: bool) -> None:
    server = start_llama(slots=1)
    provider = router(server.provider()) if routed else server.provider()
    await leave(provider)
    await stopped(server)
    assert await provider.generate("Say pong", temperature=0) == "pong"


@pytest.mark.parametrize("how", ["generate", "complete"])
async def test_cancelled_whole_answer_frees_its_slot(start_llama: Callable[..., LlamaServer], how: str) -> None:
    server = start_llama(slots=1)
    work = getattr(server.provider(), how)("Tell me everything", **ENDLESS)

    async def processing() -> None:
        while not (await server.slots())[0]["is_processing"]:
            await asyncio.sleep(0)

    await _cancelled(work, processing())
    await stopped(server)


async def test_deadline_frees_its_slot(start_llama: Callable[..., LlamaServer]) -> None:
    server = start_llama(slots=1)
    provider = server.provider()
    await provider.prepare()
    with pytest.raises(Exception, match="timeout"):
        await provider.generate("Tell me everything", timeout=0.2, **ENDLESS)
    await server.idle()
    assert "1900 tokens" not in server.log


async def test_queued_request_is_answered_after_another_is_left(start_llama: Callable[..., LlamaServer]) -> None:
    server = start_llama(slots=1)
    provider = server.provider(max_concurrency=1)
    async with provider.stream("Tell me everything", **ENDLESS) as stream:
        await anext(stream)
        queued = asyncio.create_task(provider.generate("Say hello", temperature=0))
        await asyncio.sleep(0)
    assert await queued == TEXTS["Say hello"]
    await stopped(server)


async def test_many_left_streams_leave_no_slot_busy(start_llama: Callable[..., LlamaServer]) -> None:
    server = start_llama(slots=4)
    provider = server.provider()
    for _ in range(3):  # at most as many as slots, see docs/internals/servers.md
        await asyncio.gather(*(leave_block(provider) for _ in range(4)))
        await server.idle()
    assert "cancel task" in server.log
    assert await provider.generate("Say pong", temperature=0) == "pong"
