"""After a schema mismatch the model may correct its answer once, before the next provider is used."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from support import DIALECTS, JSON, TOOL, Quiz, TitledQuiz, pair, provider_for, request_text, router

from learnflow.llm import errors, events
from learnflow.llm.completion import Usage
from learnflow.llm.providers import OpenAIProvider
from learnflow.llm.testing import Fault, FaultServer, recording, replaying

WRONG = '{"title": "private"}'
SCHEMA = {"type": "object", "properties": {"questions": {"type": "array"}}, "required": ["questions"]}
DICT = {"type": "json_schema", "json_schema": {"name": "quiz", "schema": SCHEMA}}


def reply(server: FaultServer, text: str, finish: str = "stop", **usage: int) -> Fault:
    """Return a response with another text than the server's."""
    body = server.dialect.answer_body(text, finish)
    return Fault(
        "refuse", status=200, body=json.dumps({**json.loads(body), "usage": usage}).encode() if usage else body
    )


@pytest.mark.parametrize("wanted", [Quiz, DICT, {"type": "json_object"}], ids=["class", "schema", "object"])
@pytest.mark.parametrize("how", ["generate", "complete"])
@pytest.mark.parametrize("dialect", ["openai", "vllm", "ollama"])
async def test_request_for_correction_has_answer_and_fault(dialect: Any, how: str, wanted: Any) -> None:
    wrong = '{"title": ' if wanted == {"type": "json_object"} else WRONG
    async with FaultServer(dialect, [JSON]) as server:
        server.script = [reply(server, wrong)]
        assert await request_text(provider_for(server), how, response_format=wanted) == JSON
        first, second = (seen.body for seen in server.seen)
        *before, answer, reason = second["messages"]
        assert before == first["messages"]
        assert (answer["role"], answer["content"], reason["role"]) == ("assistant", wrong, "user")
        assert ("not JSON" if wrong != WRONG else "questions") in reason["content"]
        unchanged = set(first) - {"messages"}
        assert {name: second[name] for name in unchanged} == {name: first[name] for name in unchanged}


async def test_usage_cost_and_events_cover_both_attempts(events_seen: list[Any]) -> None:
    async with FaultServer("openai", [JSON]) as server:
        server.script = [reply(server, WRONG, prompt_tokens=3, completion_tokens=2, total_tokens=5)]
        provider = OpenAIProvider(base_url=server.base_url, api_key="k", model="gpt-4o")
        done = await provider.complete("hi", response_format=Quiz)
        assert (done.text, done.parsed, done.attempts) == (JSON, Quiz.model_validate_json(JSON), 2)
    by_type = {type(event).__name__: event for event in events_seen}
    second = by_type["AttemptSucceeded"]
    prompt = second.completion.usage.prompt_tokens
    assert done.usage == Usage(3 + prompt, 2 + 7, 5 + prompt + 7)
    assert done.cost == pytest.approx((3 + prompt) * 2.5e-6 + (2 + 7) * 10e-6)
    assert second.completion.cost == pytest.approx(prompt * 2.5e-6 + 7 * 10e-6)  # without the first attempt
    started = [event for event in events_seen if isinstance(event, events.AttemptStarted)]
    assert [event.attempt for event in started] == [1, 2]
    assert (type(by_type["AttemptFailed"].error), by_type["AttemptFailed"].attempt, second.attempt) == (
        errors.SchemaMismatch,
        1,
        2,
    )
    assert (by_type["RequestEnded"].attempts, by_type["RequestEnded"].outcome.finish) == (2, "stop")
    numbered = (
        events.RequestStarted,
        events.AttemptStarted,
        events.AttemptFailed,
        events.AttemptSucceeded,
        events.RequestEnded,
    )
    assert [type(event) for event in events_seen if isinstance(event, numbered)] == [
        events.RequestStarted, events.AttemptStarted, events.AttemptFailed, events.AttemptStarted,
        events.AttemptSucceeded, events.RequestEnded,
    ]  # fmt: skip
    assert len({event.request for event in events_seen if isinstance(event, numbered)}) == 1


async def test_usage_is_unknown_if_one_attempt_reports_none() -> None:
    async with FaultServer("openai", [JSON]) as server:
        server.script = [reply(server, WRONG)]
        provider = OpenAIProvider(base_url=server.base_url, api_key="k", model="gpt-4o")
        done = await provider.complete("hi", response_format=Quiz)
    assert (done.usage, done.cost, done.attempts) == (Usage(), None, 2)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_second_mismatch_is_raised_without_quoting_answer(
    dialect: Any, events_seen: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with FaultServer(dialect, [WRONG]) as server:
        with pytest.raises(errors.SchemaMismatch, match="Quiz: questions") as caught:
            await provider_for(server).generate("hi", response_format=Quiz)
        assert len(server.seen) == 2
    error = caught.value
    assert [tried.error for tried in error.attempts] == ["SchemaMismatch", "SchemaMismatch"]
    assert error.partial == WRONG
    assert (error.__context__, error.__cause__) == (None, None)
    assert "private" not in f"{error} {error!r} {caplog.text}"
    assert [event.attempts for event in events_seen if isinstance(event, events.RequestEnded)] == [2]


@pytest.mark.parametrize("times", [0, 2])
async def test_number_of_corrections_is_a_setting(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_REASK", str(times))
    async with FaultServer("vllm", [WRONG]) as server:
        with pytest.raises(errors.SchemaMismatch):
            await provider_for(server).generate("hi", response_format=Quiz)
        assert len(server.seen) == 1 + times


async def test_truncated_answer_is_not_corrected() -> None:
    async with FaultServer("vllm", [JSON]) as server:
        server.script = [reply(server, '{"questions": ["o', "length")]
        with pytest.raises(errors.AnswerTruncated, match="ended at max_tokens=1000"):
            await provider_for(server).generate("hi", response_format=Quiz)
        server.script = [reply(server, '{"questions": ["o', "length")]
        with pytest.raises(errors.AnswerTruncated, match="ended at max_tokens=7"):
            await provider_for(server).complete("hi", response_format=DICT, max_tokens=7)
        server.script = [Fault("cut", after=1)]
        with pytest.raises(errors.AnswerCut):
            await provider_for(server).generate("hi", response_format=Quiz)
        assert len(server.seen) == 3


async def test_streamed_answer_is_not_corrected() -> None:
    async with FaultServer("vllm", [WRONG]) as server:
        pieces = []
        with pytest.raises(errors.SchemaMismatch):
            async for piece in provider_for(server).stream("hi", response_format=Quiz):
                pieces.append(piece)
        assert ("".join(pieces), len(server.seen)) == (WRONG, 1)


async def test_corrections_share_deadline_of_request() -> None:
    async with FaultServer("vllm", [JSON]) as server:
        server.script = [reply(server, WRONG), Fault("hang")]
        with pytest.raises(errors.DeadlineExceeded) as caught:
            await provider_for(server).generate("hi", response_format=Quiz, timeout=0.5)
        assert [tried.error for tried in caught.value.attempts] == ["SchemaMismatch", "DeadlineExceeded"]


async def test_cancelled_correction_closes_connection(events_seen: list[Any]) -> None:
    async with FaultServer("vllm", [JSON]) as server:
        server.script = [reply(server, WRONG), Fault("hang")]
        asking = asyncio.create_task(provider_for(server).complete("hi", response_format=Quiz))
        while len(server.seen) < 2:
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(server.seen[1].gone.wait(), 30)
    assert [event.attempt for event in events_seen if isinstance(event, events.AttemptCancelled)] == [2]
    assert [(e.outcome, e.attempts) for e in events_seen if isinstance(e, events.RequestEnded)] == [(None, 2)]


async def test_next_provider_follows_after_correction_fails(events_seen: list[Any]) -> None:
    async with pair("vllm", "llamacpp") as (one, two, chain):
        one.pieces, two.pieces = [WRONG], [JSON]
        done = await chain.complete("hi", response_format=Quiz)
        assert (done.provider, done.text, done.attempts) == ("llamacpp", JSON, 3)
        assert (len(one.seen), len(two.seen)) == (2, 1)
        assert "private" not in str(two.seen[0].body)
        attempts = [event.attempt for event in events_seen if isinstance(event, events.AttemptStarted)]
        assert attempts == [1, 2, 3]


@pytest.mark.parametrize("how", ["generate", "complete"])
async def test_router_returns_only_corrected_answer(how: str) -> None:
    async with pair("vllm", "llamacpp") as (one, two, chain):
        one.pieces, one.script = [JSON], [reply(one, WRONG)]
        assert await request_text(chain, how, response_format=Quiz) == JSON
        done = await router(chain, provider_for(two)).complete("hi", response_format=Quiz)
        assert (done.provider, done.attempts, len(one.seen), two.seen) == ("vllm", 1, 3, [])


@pytest.mark.parametrize("refusal", ["request", "filter", "overflow"])
async def test_refused_correction_raises_schema_mismatch(refusal: str) -> None:
    refused = Fault("refuse", refusal=refusal)
    async with pair("openai", "llamacpp") as (one, two, chain):
        one.script, two.pieces = [reply(one, WRONG), refused, reply(one, WRONG), refused], [JSON]
        with pytest.raises(errors.SchemaMismatch):
            await provider_for(one).generate("hi", response_format=Quiz)
        assert (await chain.complete("hi", response_format=Quiz)).provider == "llamacpp"


async def test_failure_of_correction_is_raised_with_mismatch_before_it() -> None:
    async with FaultServer("vllm", [JSON]) as server:
        server.script = [reply(server, WRONG), Fault("refuse", refusal="busy")]
        with pytest.raises(errors.Overloaded, match="Tried: vllm SchemaMismatch"):
            await provider_for(server).generate("hi", response_format=Quiz)


async def test_schema_instruction_stays_before_correction() -> None:
    refuse = Fault("refuse", status=400, body=b'{"error": "response_format is not supported"}')
    async with FaultServer("openai", ['{"title": "RSA", "questions": []}']) as server:
        server.script = [refuse, reply(server, WRONG)]
        await provider_for(server).complete("hi", response_format=TitledQuiz)
        first, second = (seen.body["messages"] for seen in server.seen[1:])
        assert "Answer with one JSON object" in first[0]["content"]
        assert second[:-2] == first
        assert "questions: Field required" in second[-1]["content"]


async def test_fault_in_correction_is_limited() -> None:
    """Check a schema that is a dict, because its fault quotes the answer."""
    async with FaultServer("openai", [JSON]) as server:
        server.script = [reply(server, json.dumps({"questions": "many words " * 1000}))]
        await provider_for(server).complete("hi", response_format=DICT)
        assert 1000 < len(server.seen[1].body["messages"][-1]["content"]) < 1300


async def test_correction_is_recorded_as_separate_interaction(tmp_path: Path) -> None:
    async with FaultServer("llamacpp", [JSON]) as server:
        server.script = [reply(server, WRONG)]
        with recording(tmp_path):
            assert await provider_for(server).generate("hi", response_format=Quiz, temperature=0) == JSON
        seen = len(server.seen)
        with replaying(tmp_path):
            done = await provider_for(server).complete("hi", response_format=Quiz, temperature=0)
        assert (done.text, done.attempts, len(server.seen)) == (JSON, 2, seen)


async def test_replay_without_recorded_correction_raises_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_REASK", "0")
    async with FaultServer("llamacpp", [WRONG]) as server:
        with recording(tmp_path), pytest.raises(errors.SchemaMismatch):
            await provider_for(server).generate("hi", response_format=Quiz, temperature=0)
        monkeypatch.setenv("LLM_REASK", "1")
        with replaying(tmp_path), pytest.raises(errors.NotRecorded):
            await provider_for(server).generate("hi", response_format=Quiz, temperature=0)


CUT_CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"ci'}}
ENDED = {
    "tool call": {"role": "assistant", "content": None, "tool_calls": [CUT_CALL]},
    "thinking": {"role": "assistant", "content": "", "reasoning_content": "Let me think"},
    "nothing": {"role": "assistant", "content": ""},
    "text instead of the required call": {"role": "assistant", "content": "I would"},
}


@pytest.mark.parametrize("message", ENDED.values(), ids=ENDED.keys())
async def test_unusable_answer_at_limit_is_not_retried_and_error_names_limit(message: dict[str, Any]) -> None:
    choice = message["content"] == "I would"
    async with FaultServer("llamacpp") as server:
        body = {"choices": [{"index": 0, "message": message, "finish_reason": "length"}]}
        server.fault = Fault("refuse", status=200, body=json.dumps(body).encode())
        more: dict[str, Any] = {"tools": [TOOL], "tool_choice": "required"} if choice else {"tools": [TOOL]}
        with pytest.raises(errors.AnswerTruncated, match=r"ended at max_tokens=12\. Raise max_tokens"):
            await router(provider_for(server)).complete("hi", max_tokens=12, **more)
        assert len(server.seen) == 1


@pytest.mark.parametrize(("temperature", "requests"), [(0, 1), (0.5, 3)])
async def test_wrong_answer_is_retried_only_with_sampling(
    temperature: float, requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_REASK", "0")
    async with FaultServer("llamacpp", [WRONG]) as server:
        with pytest.raises(errors.SchemaMismatch):
            await router(provider_for(server)).complete("hi", response_format=Quiz, temperature=temperature)
        assert len(server.seen) == requests
