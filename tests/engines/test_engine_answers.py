"""Answers through an engine: whole, left by the caller, and those of one session."""

from __future__ import annotations

import asyncio

import pytest
from engines import MARKS, Configure, Report, Start, StartEngine
from llama import ANSWERS, ENDLESS, answer, until

from learnflow.llm.testing import FaultServer

pytestmark = MARKS


@pytest.mark.parametrize("how", ["stream", "generate", "complete", "events"])
async def test_answers_are_identical_letter_by_letter(
    start_llama: Start, start_engine: StartEngine, configure: Configure, report: Report, how: str
) -> None:
    one, two = start_llama(), start_llama()
    provider = configure(await start_engine([one.url, two.url]).healthy())
    known = [item for item in ANSWERS if how in ("generate", "complete") or not item.reasoning]
    texts = await asyncio.gather(*(answer(provider, how, item.prompt) for item in known))
    same = sum(text == item.answer for text, item in zip(texts, known, strict=True))
    report(f"answers are identical, {how}", f"{same} of {len(known)}")
    assert same == len(known)


@pytest.mark.parametrize("how", ["stream", "cancelled generate"])
async def test_left_request_frees_slot_of_server(
    start_llama: Start, start_engine: StartEngine, configure: Configure, report: Report, how: str
) -> None:
    server = start_llama(slots=1)
    provider = configure(await start_engine([server.url]).healthy())
    if how == "stream":
        async with provider.stream("Tell me everything", **ENDLESS) as stream:
            await anext(stream)
    else:
        task = asyncio.create_task(provider.generate("Tell me everything", **ENDLESS))
        await until(lambda: "processing task" in server.log)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await until(lambda: "cancel task" in server.log)
    await server.idle()
    finished = "1900 tokens" in server.log
    report(f"leaving frees the slot, {how}", "generated all 1900 tokens" if finished else "cancelled on the server")
    assert not finished
    assert await provider.generate("Say pong", temperature=0) == "pong"


async def test_requests_of_one_session_reach_one_server(
    start_engine: StartEngine, configure: Configure, report: Report
) -> None:
    async with FaultServer("llamacpp") as one, FaultServer("llamacpp") as two:
        engine = start_engine([one.root, two.root], key="")
        provider = configure(await engine.healthy(), GPUS_API_KEY="")
        for number in range(64):
            await provider.generate(f"Question {number}?", session=f"lesson-{number % 32}")
        places = [{seen.headers[engine.kind.session_header.lower()] for seen in server.seen} for server in (one, two)]
    report("requests of one session stay together", f"{len(places[0])} and {len(places[1])} of 32 sessions")
    assert len(places[0] | places[1]) == 32
    assert not places[0] & places[1]
    assert all(places), "all sessions are at one server"


@pytest.mark.parametrize("policy", ["of the page", "cache_aware", "power_of_two"])
async def test_requests_without_session_need_another_policy(
    start_engine: StartEngine, configure: Configure, report: Report, policy: str
) -> None:
    """Calls without ``session=`` send no header. By session, the engine treats them as one session."""
    async with FaultServer("llamacpp") as one, FaultServer("llamacpp") as two:
        options = () if policy == "of the page" else ("--policy", policy)
        provider = configure(await start_engine([one.root, two.root], *options, key="").healthy(), GPUS_API_KEY="")
        for number in range(12):
            await asyncio.gather(*(provider.generate(f"Question {number} {at}?") for at in range(4)))
        counts = sorted([len(one.seen), len(two.seen)])
    report(f"48 requests without a session, policy {policy}", f"{counts[0]} and {counts[1]}")
    assert sum(counts) == 48
    if policy == "power_of_two":
        assert counts[0] > 0
