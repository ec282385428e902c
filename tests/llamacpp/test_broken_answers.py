"""An answer is continued to the identical text if its server is killed or its connection is cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from llama import ANSWERS, RSA, TEXTS, LlamaServer, answer
from support import relay, router

from learnflow.llm import Failover, Finished, Resumed, TextDelta, Waiting, errors, events

Start = Callable[..., LlamaServer]
STEP = 40
BROKEN = [
    RSA,
    "Explain cryptography",
    "Объясни шифрование RSA",
    "Что такое производная?",
    "Count to thirty",
]
SHORT = ["Draw a lock", "Сколько будет два плюс два?"]  # with emoji: cut at every fourth character
CUTS = [(prompt, at) for prompt in BROKEN for at in range(STEP, len(TEXTS[prompt]), STEP)]
CUTS += [(prompt, at) for prompt in SHORT for at in range(1, len(TEXTS[prompt]), 4)]
HOWS = ("stream", "events", "generate", "complete")
CUT = [(prompt, at, how) for prompt, at in CUTS if prompt == RSA for how in HOWS]
CUT += [(prompt, at, HOWS[number % 4]) for number, (prompt, at) in enumerate(CUTS) if prompt != RSA]
hows = pytest.mark.parametrize("how", HOWS)


@pytest.mark.parametrize(("prompt", "at", "how"), CUT, ids=[f"{prompt}-{at}-{how}" for prompt, at, how in CUT])
async def test_answer_cut_at_a_character_is_continued_to_the_identical_text(
    llama_server: LlamaServer, events_seen: list[object], prompt: str, at: int, how: str
) -> None:
    async with relay(llama_server.url, at) as url:
        chain = router(llama_server.provider(url), llama_server.provider())
        assert await answer(chain, how, prompt) == TEXTS[prompt]
    failed = [event for event in events_seen if isinstance(event, events.AttemptFailed)]
    assert [type(event.error).__name__ for event in failed] == ["AnswerCut"]
    resumed = [event for event in events_seen if isinstance(event, events.Resumed)]
    delivered = len(TEXTS[prompt][:at].rstrip())  # trailing white space is delivered later
    assert [event.characters >= delivered for event in resumed] == [True]


@hows
async def test_answer_survives_two_killed_servers_and_ends_at_the_third(
    start_llama: Start, llama_server: LlamaServer, how: str, events_seen: list[object]
) -> None:
    one, two = start_llama(slots=1), start_llama(slots=1)
    async with relay(one.url, 60, one.killed) as first, relay(two.url, 80, two.killed) as second:
        chain = router(one.provider(first), two.provider(second), llama_server.provider())
        assert await answer(chain, how, RSA) == TEXTS[RSA]
    assert (one.process.returncode, two.process.returncode) == (-9, -9)
    attempts = [event.attempt for event in events_seen if isinstance(event, events.AttemptStarted)]
    ended = [event for event in events_seen if isinstance(event, events.RequestEnded)]
    assert attempts == [1, 2, 3]
    assert [(event.attempts, event.outcome.resumed) for event in ended] == [(3, 2)]


@pytest.mark.parametrize("prompt", ["Объясни шифрование RSA", "Explain cryptography"])
async def test_killed_server_costs_one_attempt_and_no_character(
    start_llama: Start, llama_server: LlamaServer, prompt: str
) -> None:
    victim = start_llama(slots=1)
    async with relay(victim.url, 50, victim.killed) as url:
        done = await router(victim.provider(url), llama_server.provider()).complete(
            prompt, temperature=0, max_tokens=400
        )
    assert (done.text, done.attempts, done.resumed, done.finish) == (TEXTS[prompt], 2, 1, "stop")


@pytest.mark.parametrize("how", ["stream", "generate"])
@pytest.mark.parametrize("at", [1, 3, 6, 7, 40, 80, 86, 90, 93, 96, 100])  # in the tags, the thinking, the answer
async def test_cut_at_the_thinking_is_continued_to_the_identical_answer(
    llama_server: LlamaServer, events_seen: list[object], at: int, how: str
) -> None:
    known = next(known for known in ANSWERS if known.reasoning)
    async with relay(llama_server.url, at) as url:  # llama.cpp sends the tags as content for this model
        chain = router(llama_server.provider(url), llama_server.provider())
        assert await answer(chain, how, known.prompt) == known.answer
    ended = [event for event in events_seen if isinstance(event, events.RequestEnded)]
    assert [event.attempts for event in ended] == [2]


async def test_server_killed_behind_the_thinking_is_continued_with_the_same_reasoning(
    start_llama: Start, llama_server: LlamaServer
) -> None:
    known = next(known for known in ANSWERS if known.reasoning)
    victim = start_llama(slots=1)
    async with relay(victim.url, len(f"<think>{known.reasoning}</think>Yes, 17"), victim.killed) as url:
        chain = router(victim.provider(url), llama_server.provider())
        done = await chain.complete(known.prompt, temperature=0, max_tokens=400)
    assert (done.text, done.reasoning) == (known.answer, known.reasoning)
    assert (done.attempts, done.resumed) == (2, 1)


async def test_events_show_failover_and_continuation_of_a_killed_server(
    start_llama: Start, llama_server: LlamaServer
) -> None:
    victim = start_llama(slots=1)
    async with relay(victim.url, 100, victim.killed) as url:
        stream = router(victim.provider(url), llama_server.provider()).stream(RSA, temperature=0, max_tokens=400)
        seen = [event async for event in stream.events()]
    assert "".join(event.text for event in seen if isinstance(event, TextDelta)) == TEXTS[RSA]
    others = [event for event in seen if not isinstance(event, TextDelta | Waiting)]
    assert [type(event) for event in others] == [Failover, Resumed, Finished]


async def test_only_server_killed_raises_with_the_text_so_far(start_llama: Start) -> None:
    victim = start_llama(slots=1)
    async with relay(victim.url, 100, victim.killed) as url:
        pieces: list[str] = []
        with pytest.raises(errors.AnswerCut) as caught:
            async for piece in victim.provider(url).stream(RSA, temperature=0, max_tokens=400):
                pieces.append(piece)
    text = "".join(pieces)
    assert len(text) >= 100
    assert TEXTS[RSA].startswith(text)
    assert caught.value.partial == text
    assert text not in str(caught.value)


async def test_killed_server_raises_with_resume_raise(start_llama: Start, llama_server: LlamaServer) -> None:
    victim = start_llama(slots=1)
    async with relay(victim.url, 100, victim.killed) as url:
        chain = router(victim.provider(url), llama_server.provider())
        with pytest.raises(errors.AnswerCut):
            await answer(chain, "stream", RSA, resume="raise")


async def test_schema_answer_of_a_killed_server_is_retried_from_the_start(
    start_llama: Start, llama_server: LlamaServer
) -> None:
    victim, prompt = start_llama(slots=1), "Give a short summary of RSA as JSON"
    schema = {"type": "object", "properties": {"title": {"type": "string"}, "difficulty": {"type": "integer"}}}
    schema |= {"required": ["title", "difficulty"], "additionalProperties": False}
    async with relay(victim.url, 5, victim.killed) as url:
        chain = router(victim.provider(url), llama_server.provider())
        wanted = {"type": "json_schema", "json_schema": {"name": "card", "schema": schema}}
        done = await chain.complete(prompt, temperature=0, max_tokens=400, response_format=wanted)
    assert (done.parsed, done.attempts, done.resumed) == ({"title": "RSA", "difficulty": 3}, 2, 0)


async def test_dead_server_is_passed_over_before_the_first_character(
    start_llama: Start, llama_server: LlamaServer
) -> None:
    victim = start_llama(slots=1)
    victim.kill()
    done = await router(victim.provider(), llama_server.provider()).complete(RSA, temperature=0, max_tokens=400)
    assert (done.text, done.resumed) == (TEXTS[RSA], 0)


async def test_pooled_connection_to_a_killed_server_does_not_lose_the_answer(
    start_llama: Start, llama_server: LlamaServer
) -> None:
    victim = start_llama(slots=1)
    chain = router(victim.provider(), llama_server.provider())
    assert await chain.generate("Say pong", temperature=0) == "pong"
    victim.kill()
    assert await chain.generate("Say pong", temperature=0) == "pong"
