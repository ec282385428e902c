"""A real llama.cpp returns the known answers exactly."""

from __future__ import annotations

import asyncio

import pytest
from llama import ANSWERS, RSA, TEXTS, LlamaServer, answer
from support import KnownAnswer

from learnflow.llm import Finished, ReasoningDelta, TextDelta, events

every_answer = pytest.mark.parametrize("known", ANSWERS, ids=[known.prompt for known in ANSWERS])


@every_answer
async def test_text_is_the_known_answer(llama_server: LlamaServer, known: KnownAnswer) -> None:
    how = ("generate", "stream")[ANSWERS.index(known) % 2]  # two more tests below send every prompt
    assert await answer(llama_server.provider(), how, known.prompt) == known.answer


@every_answer
async def test_completion_is_the_known_answer_with_its_reasoning(llama_server: LlamaServer, known: KnownAnswer) -> None:
    done = await llama_server.provider().complete(known.prompt, temperature=0, max_tokens=400)
    assert (done.text, done.reasoning, done.finish) == (known.answer, known.reasoning, "stop")
    assert (done.provider, done.model, done.cost, done.attempts, done.resumed) == ("llamacpp", "tiny", 0.0, 1, 0)


@every_answer
async def test_events_join_to_the_known_answer_and_its_reasoning(llama_server: LlamaServer, known: KnownAnswer) -> None:
    stream = llama_server.provider().stream(known.prompt, temperature=0, max_tokens=400)
    seen = [event async for event in stream.events()]
    assert "".join(event.text for event in seen if isinstance(event, TextDelta)) == known.answer
    assert "".join(event.text for event in seen if isinstance(event, ReasoningDelta)) == (known.reasoning or "")
    assert seen[-1] == Finished(stream.completion)
    assert {type(event) for event in seen} <= {TextDelta, ReasoningDelta, Finished}


async def test_long_answer_arrives_in_many_pieces(llama_server: LlamaServer) -> None:
    pieces = [piece async for piece in llama_server.provider().stream(RSA, temperature=0, max_tokens=400)]
    assert len(pieces) > 20
    assert all(pieces)


@pytest.mark.parametrize("system", ["You are a helpful assistant.", "You are a study assistant. Answer briefly."])
async def test_system_prompt_is_sent(llama_server: LlamaServer, system: str) -> None:
    provider = llama_server.provider()
    plain = await provider.complete(RSA, temperature=0, max_tokens=400)
    done = await provider.complete(RSA, temperature=0, max_tokens=400, system=system)
    assert done.text == TEXTS[RSA]
    assert done.usage.prompt_tokens is not None
    assert plain.usage.prompt_tokens is not None
    assert done.usage.prompt_tokens > plain.usage.prompt_tokens


async def test_sixty_requests_at_once_have_each_its_own_answer(llama_server: LlamaServer) -> None:
    provider = llama_server.provider()
    prompts = [ANSWERS[number % len(ANSWERS)].prompt for number in range(60)]
    texts = await asyncio.gather(*(answer(provider, "generate", prompt) for prompt in prompts))
    assert texts == [TEXTS[prompt] for prompt in prompts]


async def test_a_hundred_streams_in_a_row_are_equal(llama_server: LlamaServer) -> None:
    provider = llama_server.provider()
    assert {await answer(provider, "stream", "Say hello") for _ in range(100)} == {TEXTS["Say hello"]}


async def test_usage_counts_prompt_and_completion(llama_server: LlamaServer) -> None:
    done = await llama_server.provider().complete("Say pong", temperature=0, max_tokens=400)
    usage = done.usage
    assert usage.prompt_tokens
    assert usage.completion_tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert (
        0 < usage.completion_tokens <= len("pong") + 1
    )  # a token has at least one character; one token ends the answer


async def test_stream_reports_the_usage_of_the_whole_answer(llama_server: LlamaServer) -> None:
    provider = llama_server.provider()
    buffered = await provider.complete(RSA, temperature=0, max_tokens=400)
    async with provider.stream(RSA, temperature=0, max_tokens=400) as stream:
        async for _ in stream:
            pass
    assert stream.completion.usage.completion_tokens == buffered.usage.completion_tokens
    assert stream.completion.usage.prompt_tokens == buffered.usage.prompt_tokens


async def test_second_identical_request_counts_its_prompt_as_cached(llama_server: LlamaServer) -> None:
    provider = llama_server.provider()
    prompt = "Lesson one. " + "A key is a secret number. " * 30
    await provider.complete(prompt, temperature=0, max_tokens=1)
    usage = (await provider.complete(prompt, temperature=0, max_tokens=1)).usage
    assert usage.prompt_tokens
    assert usage.cached_tokens == usage.prompt_tokens - 1  # llama.cpp computes the last token again


@pytest.mark.parametrize("how", ["complete", "stream"])
async def test_answer_cut_at_max_tokens_has_finish_length(
    llama_server: LlamaServer, how: str, events_seen: list[object]
) -> None:
    provider = llama_server.provider()
    if how == "stream":
        async with provider.stream(RSA, temperature=0, max_tokens=5) as stream:
            text = "".join([piece async for piece in stream])
        done = stream.completion
        assert text == done.text
    else:
        done = await provider.complete(RSA, temperature=0, max_tokens=5)
    assert (done.finish, done.text, done.usage.completion_tokens) == ("length", "RSA is a public-", 5)
    assert [event.max_tokens for event in events_seen if isinstance(event, events.TokenLimitReached)] == [5]


@pytest.mark.parametrize("stop", ["key", ["cryptosystem", "key"]])
async def test_answer_ends_before_a_stop_sequence(llama_server: LlamaServer, stop: str | list[str]) -> None:
    done = await llama_server.provider().complete(RSA, temperature=0, max_tokens=400, stop=stop)
    assert (done.text, done.finish) == ("RSA is a public-", "stop")


async def test_seed_makes_a_warm_answer_repeatable(llama_server: LlamaServer) -> None:
    provider = llama_server.provider()
    texts = {await provider.generate("Tell me", temperature=1.5, max_tokens=40, seed=7) for _ in range(3)}
    assert len(texts) == 1


@pytest.mark.parametrize("how", ["generate", "stream"])
async def test_reasoning_off_never_shows_think_marks(llama_server: LlamaServer, how: str) -> None:
    text = await answer(llama_server.provider(), how, "Is 17 prime? Think first.", reasoning=False)
    assert text == TEXTS["Is 17 prime? Think first."]
