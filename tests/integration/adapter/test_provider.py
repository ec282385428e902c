"""One provider: whole answers, tools, models, thinking, costs."""

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


async def test_what_a_server_separates_keeps_its_tags() -> None:
    async with FaultServer("llamacpp", ["<think>x</think>", " and </think>\n"], thinking="hm") as server:
        done = await provider_for(server).complete("hi")
        assert (done.text, done.reasoning) == ("<think>x</think> and </think>\n", "hm")


async def test_tools_come_back_parsed() -> None:
    call = {"id": "c1", "index": 0, "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    async with FaultServer() as server:
        provider = provider_for(server)
        whole = {"choices": [{"message": {"tool_calls": [call], "content": None}, "finish_reason": "stop"}]}
        server.script = [Fault("refuse", status=200, body=json.dumps(whole).encode())]
        done = await provider.complete("Weather?", tools=[TOOL], tool_choice="required")
        assert server.seen[0].body["tools"] == [TOOL]
        assert server.seen[0].body["tool_choice"] == "required"
    assert done.finish == "tool_calls"
    assert done.tool_calls[0].arguments == {"city": "Paris"}


async def test_a_tool_that_was_required_and_not_called_is_no_answer() -> None:
    async with FaultServer("llamacpp") as server:
        provider = provider_for(server)
        with pytest.raises(errors.SchemaMismatch, match="has none"):
            await provider.complete("Weather?", tools=[TOOL], tool_choice="required")
        assert (await provider.complete("Weather?", tools=[TOOL])).finish == "stop"
        await provider.complete("Weather?", tools=[TOOL], tool_choice="none")
        assert "tools" not in server.seen[-1].body


async def test_an_answer_that_ends_at_max_tokens_is_returned_with_a_warning(events_seen: list[Any]) -> None:
    body = {"choices": [{"message": {"content": "half"}, "finish_reason": "length"}]}
    async with FaultServer() as server:
        server.script = [Fault("refuse", status=200, body=json.dumps(body).encode())]
        done = await provider_for(server).complete("hi", max_tokens=1)
    assert (done.text, done.finish) == ("half", "length")
    assert [event.max_tokens for event in events_seen if isinstance(event, events.AnswerCut)] == [1]


async def test_max_tokens_used_up_by_thinking_says_so() -> None:
    body = {"choices": [{"message": {"content": "<think>long"}, "finish_reason": "length"}]}
    async with FaultServer() as server:
        server.script = [Fault("refuse", status=200, body=json.dumps(body).encode())]
        with pytest.raises(errors.AnswerTruncated, match=r"thinking used all tokens.*reasoning=False") as caught:
            await provider_for(server).generate("hi")
    assert caught.value.thinking == "long"


@pytest.mark.parametrize("hold", ["stream", "generate"])
async def test_inline_thinking_never_reaches_the_answer(hold: str) -> None:
    async with FaultServer("llamacpp", ["<thi", "nk>I wonder</th", "ink>\n\nYes", ", it is."]) as server:
        provider = provider_for(server)
        if hold == "generate":
            done = await provider.complete("hi")
        else:
            answer = provider.stream("hi")
            assert "".join([piece async for piece in answer]) == "Yes, it is."
            done = answer.completion
    assert (done.text, done.reasoning) == ("Yes, it is.", "I wonder")


async def test_a_closing_tag_alone() -> None:
    async with FaultServer("vllm", ["I won", "der</think>", "Yes."]) as server:
        provider = provider_for(server)
        done = await provider.complete("hi")
        assert (done.text, done.reasoning) == ("Yes.", "I wonder")
        assert await provider.generate("hi") == "Yes."
        with pytest.raises(errors.ThinkingLeaked) as caught:  # what was shown cannot be taken back, so it is named
            async for _ in provider.stream("hi"):
                pass
        assert (caught.value.partial, caught.value.thinking) == ("", "I wonder")
        assert [piece async for piece in provider.stream("hi")] == ["Yes."]  # and from now on held back
        assert [piece async for piece in provider_for(server).stream("hi", reasoning=True)] == ["Yes."]
        known = VLLMProvider(base_url=server.base_url, model="deepseek-r1-distill-qwen-7b")
        assert [piece async for piece in known.stream("hi")] == ["Yes."]


async def test_no_model_named_means_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for dialect in ("openai", "ollama"):
        async with FaultServer(dialect) as server:  # type: ignore[arg-type]
            kind = OllamaProvider if dialect == "ollama" else CustomProvider
            provider = kind(base_url=server.base_url)
            done = await provider.complete("hi")
            assert done.model.asked == "fault-model"
            asked_before = len(server.pages)
            await provider.generate("hi")
            assert len(server.pages) == asked_before
            for name in ("local-model", "fault-model"):
                await kind(base_url=server.base_url, model=name).generate("hi")
                assert server.seen[-1].body["model"] == "fault-model"


async def test_several_models_and_none_named_lists_them() -> None:
    async with FaultServer(
        "ollama", tells={"/api/tags": {"models": [{"name": "a"}, {"name": "b"}]}, "/api/ps": {"models": []}}
    ) as server:
        provider = OllamaProvider(base_url=server.base_url)
        with pytest.raises(errors.NotConfigured, match=r"there are 2: a, b.*OLLAMA_MODEL"):
            await provider.generate("hi")
        server.tells["/api/ps"] = {"models": [{"name": "b"}]}
        assert (await provider.complete("hi")).model.asked == "b"


async def test_a_server_without_models() -> None:
    async with FaultServer("ollama", tells={"/api/tags": {"models": None}}) as server:
        with pytest.raises(errors.ModelNotFound, match="no model"):
            await OllamaProvider(base_url=server.base_url).generate("hi")


async def test_a_cloud_wants_a_model_named() -> None:
    with pytest.raises(errors.NotConfigured, match="OPENAI_MODEL"):
        await OpenAIProvider(api_key="k").generate("hi")


async def test_list_models_and_health_check() -> None:
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


async def test_costs_are_known_unknown_or_nothing() -> None:
    async with FaultServer() as server:
        paid = OpenAIProvider(base_url=server.base_url, api_key="k")
        assert (await paid.complete("hi", model="gpt-4o")).cost == pytest.approx(5 * 2.5e-6 + 7 * 10e-6)
        assert (await paid.complete("hi", model="unheard-of")).cost is None
        assert (await VLLMProvider(base_url=server.base_url, model="m").complete("hi")).cost == 0.0
        assert (await CustomProvider(base_url=server.base_url, model="m").complete("hi")).cost is None


async def test_a_completion_says_what_is_known_and_shows_no_answer_in_a_log() -> None:
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
