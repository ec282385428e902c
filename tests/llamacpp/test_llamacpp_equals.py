"""Two real llama.cpp servers as equals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from llama import ANSWERS, LlamaServer, answer
from support import relay

from learnflow.llm import RouterProvider, events
from learnflow.llm.routing.breaker import BreakerRegistry

Start = Callable[..., LlamaServer]
ONLY_LETTERS = {"grammar": "root ::= [A-Za-z] [A-Za-z ]+"}  # otherwise the tiny model begins to think


async def test_requests_with_the_same_prefix_stay_together(start_llama: Start, events_seen: list[object]) -> None:
    one, two = start_llama(slots=1), start_llama(slots=1)
    equals = RouterProvider([one.provider(), two.provider()], breakers=BreakerRegistry())
    materials = [f"Lesson {number}. " + f"The key {number} needs a hash. " * 40 for number in (1, 2)]
    for number in range(12):
        material = materials[number % 3 % 2]
        prompt = [{"role": "system", "content": material}, {"role": "user", "content": f"Question {number}?"}]
        await equals.complete(
            prompt, temperature=0, max_tokens=4, extra_body=ONLY_LETTERS, metadata={"node": material[:8]}
        )
    attempts = [event for event in events_seen if isinstance(event, events.AttemptStarted)]
    places = {node: {e.address for e in attempts if e.metadata["node"] == node} for node in ("Lesson 1", "Lesson 2")}
    assert [len(addresses) for addresses in places.values()] == [1, 1]


@pytest.mark.parametrize("how", ["stream", "generate"])
async def test_waiting_requests_are_answered_after_one_server_is_killed(
    start_llama: Start, how: str, events_seen: list[object]
) -> None:
    one, two = start_llama(slots=1), start_llama(slots=1)
    async with relay(one.url, 30, one.killed) as url:
        equals = RouterProvider([one.provider(url), two.provider()], breakers=BreakerRegistry())
        answers = [known for known in ANSWERS if not known.reasoning]
        texts = await asyncio.gather(*(answer(equals, how, known.prompt) for known in answers))
    assert texts == [known.answer for known in answers]
    assert one.process.returncode == -9
    assert any(isinstance(event, events.Resumed) for event in events_seen)
