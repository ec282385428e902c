"""One provider: answers, tools, models, thinking, costs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support import TOOL, provider_for

from learnflow.llm import errors, events
from learnflow.llm.base import LLMProvider
from learnflow.llm.completion import Completion
from learnflow.llm.providers import (
    CustomProvider,
    OllamaProvider,
    OpenAIProvider,
    VLLMProvider,
)
from learnflow.llm.testing import Fault, FaultServer


async def test_think_tags_in_text_stay_if_server_separates_thinking() -> None:
    async with FaultServer("llamacpp", ["<think>x</think>", " and </think>\n"], thinking="hm") as server:
        done = await provider_for(server).complete("hi")
        assert (done.text, done.reasoning) == ("<think>x</think> and </think>\n", "hm")


async def test_arguments_of_tool_calls_are_parsed() -> None:
    call = {"id": "c1", "index": 0, "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    async with FaultServer() as server:
        provider = provider_for(server)
        body = {"choices": [{"message": {"tool_calls": [call], "content": None}, "finish_reason": "stop"}]}
        server.script = [Fault("refuse", status=200, body=json.dumps(body).encode())]
        done = await provider.complete("Weather?", tools=[TOOL], tool_choice="required")
        assert server.seen[0].body["tools"] == [TOOL]
        assert server.seen[0].body["tool_choice"] == "required"
    assert done.finish == "tool_calls"
    assert done.tool_calls[0].arguments == {"city": "Paris"}


async def test_missing_required_tool_call_raises_schema_mismatch() -> None:
    async with FaultServer("llamacpp") as server:
        provider = provider_for(server)
        with pytest.raises(errors.SchemaMismatch, match="has none"):
            await provider.complete("Weather?", tools=[TOOL], tool_choice="required")
        assert (await provider.complete("Weather?", tools=[TOOL])).finish == "stop"
        await provider.complete("Weather?", tools=[TOOL], tool_choice="none")
        assert "tools" not in server.seen[-1].body


async def test_answer_that_ends_at_max_tokens_is_returned_with_event(events_seen: list[Any]) -> None:
    body = {"choices": [{"message": {"content": "half"}, "finish_reason": "length"}]}
    async with FaultServer() as server:
        server.script = [Fault("refuse", status=200, body=json.dumps(body).encode())]
        done = await provider_for(server).complete("hi", max_tokens=1)
    assert (done.text, done.finish) == ("half", "length")
    assert [event.max_tokens for event in events_seen if isinstance(event, events.TokenLimitReached)] == [1]


async def test_thinking_that_uses_all_tokens_raises_answer_truncated() -> None:
    body = {"choices": [{"message": {"content": "<think>long"}, "finish_reason": "length"}]}
    async with FaultServer() as server:
        server.script = [Fault("refuse", status=200, body=json.dumps(body).encode())]
        with pytest.raises(errors.AnswerTruncated, match=r"thinking used all tokens.*reasoning=False") as caught:
            await provider_for(server).generate("hi")
    assert caught.value.thinking == "long"


@pytest.mark.parametrize("hold", ["stream", "generate"])
async def test_inline_thinking_is_separated_from_text(hold: str) -> None:
    async with FaultServer("llamacpp", ["<thi", "nk>I wonder</th", "ink>\n\nYes", ", it is."]) as server:
        provider = provider_for(server)
        if hold == "generate":
            done = await provider.complete("hi")
        else:
            answer = provider.stream("hi")
            assert "".join([piece async for piece in answer]) == "Yes, it is."
            done = answer.completion
    assert (done.text, done.reasoning) == ("Yes, it is.", "I wonder")


async def test_closing_tag_alone_raises_thinking_leaked_in_stream() -> None:
    async with FaultServer("vllm", ["I won", "der</think>", "Yes."]) as server:
        provider = provider_for(server)
        done = await provider.complete("hi")
        assert (done.text, done.reasoning) == ("Yes.", "I wonder")
        assert await provider.generate("hi") == "Yes."
        with pytest.raises(errors.ThinkingLeaked) as caught:  # emitted text cannot be withdrawn
            async for _ in provider.stream("hi"):
                pass
        assert (caught.value.partial, caught.value.thinking) == ("", "I wonder")
        assert [piece async for piece in provider.stream("hi")] == ["Yes."]  # later text is held back
        assert [piece async for piece in provider_for(server).stream("hi", reasoning=True)] == ["Yes."]
        known = VLLMProvider(base_url=server.base_url, model="deepseek-r1-distill-qwen-7b")
        assert [piece async for piece in known.stream("hi")] == ["Yes."]


async def test_call_without_model_uses_only_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for dialect in ("openai", "ollama"):
        async with FaultServer(dialect) as server:  # type: ignore[arg-type]
            kind = OllamaProvider if dialect == "ollama" else CustomProvider
            provider = kind(base_url=server.base_url)
            done = await provider.complete("hi")
            assert done.model.requested == "fault-model"
            pages_before = len(server.pages)
            await provider.generate("hi")
            assert len(server.pages) == pages_before
            for name in ("local-model", "fault-model"):
                await kind(base_url=server.base_url, model=name).generate("hi")
                assert server.seen[-1].body["model"] == "fault-model"


async def test_call_without_model_lists_several_models() -> None:
    async with FaultServer(
        "ollama", responses={"/api/tags": {"models": [{"name": "a"}, {"name": "b"}]}, "/api/ps": {"models": []}}
    ) as server:
        provider = OllamaProvider(base_url=server.base_url)
        with pytest.raises(errors.NotConfigured, match=r"the server has 2: a, b.*OLLAMA_MODEL"):
            await provider.generate("hi")
        server.responses["/api/ps"] = {"models": [{"name": "b"}]}
        assert (await provider.complete("hi")).model.requested == "b"


async def test_server_without_models_raises_model_not_found() -> None:
    async with FaultServer("ollama", responses={"/api/tags": {"models": None}}) as server:
        with pytest.raises(errors.ModelNotFound, match="no model"):
            await OllamaProvider(base_url=server.base_url).generate("hi")


async def test_call_without_model_at_cloud_raises_not_configured() -> None:
    with pytest.raises(errors.NotConfigured, match="OPENAI_MODEL"):
        await OpenAIProvider(api_key="k").generate("hi")


async def test_list_models_and_health_check_load_nothing_and_check_key() -> None:
    for dialect in ("openai", "ollama", "vllm"):
        async with FaultServer(dialect, key="right") as server:  # type: ignore[arg-type]
            provider = provider_for(server, api_key="right")
            assert await provider.list_models() == ["fault-model"]
            assert await provider.health_check()
            with pytest.raises(errors.AuthenticationFailed, match="_API_KEY"):
                await provider_for(server, api_key="wrong").list_models()
            with pytest.raises(errors.AuthenticationFailed, match="_API_KEY"):
                await provider_for(server, api_key="wrong").generate("hi")
            assert {path for method, path in server.pages if method != "GET"} <= {"/api/show"}  # which only reads
        assert not await provider.health_check()


async def test_cost_is_computed_unknown_or_zero() -> None:
    async with FaultServer() as server:
        paid = OpenAIProvider(base_url=server.base_url, api_key="k")
        assert (await paid.complete("hi", model="gpt-4o")).cost == pytest.approx(5 * 2.5e-6 + 7 * 10e-6)
        assert (await paid.complete("hi", model="unheard-of")).cost is None
        assert (await VLLMProvider(base_url=server.base_url, model="m").complete("hi")).cost == 0.0
        assert (await CustomProvider(base_url=server.base_url, model="m").complete("hi")).cost is None


async def test_completion_is_immutable_and_its_repr_shows_no_text() -> None:
    async with FaultServer() as server:
        provider: LLMProvider = provider_for(server)
        done: Completion = await provider.complete("hi")
        answer = provider.stream("hi")
        with pytest.raises(errors.InvalidRequest, match="has not ended"):
            _ = answer.completion
        await answer.aclose()
    assert "quick" not in repr(done)
    assert (done.attempts, done.resumed, done.provider) == (1, 0, "custom")
    with pytest.raises(AttributeError):
        done.text = "other"  # type: ignore[misc]
    capabilities = provider.get_capabilities()
    assert capabilities["streaming"] is True
    assert capabilities["vision"] is None
