"""How a call is written for each provider, and what is omitted after a refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support import provider_for, sent

from learnflow.llm import errors, events
from learnflow.llm.providers import (
    CustomProvider,
    FireworksProvider,
    LlamaCppProvider,
    OpenAIProvider,
    OpenRouterProvider,
    VLLMProvider,
)
from learnflow.llm.testing import Fault, FaultServer

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


async def test_keywords_are_sent_to_openai_server() -> None:
    async with FaultServer() as server:
        body = await sent(
            provider_for(server),
            server,
            system="Be brief",
            temperature=0,
            max_tokens=20,
            stop=["x"],
            seed=3,
            top_p=0.5,
            top_k=7,
            min_p=0.1,
            frequency_penalty=0.25,
            presence_penalty=0.5,
            extra_body={"mirostat": 2},
        )
    assert body == {
        "model": "fault-model",
        "messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "hi"}],
        "temperature": 0,
        "max_tokens": 20,
        "stop": ["x"],
        "seed": 3,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.1,
        "frequency_penalty": 0.25,
        "presence_penalty": 0.5,
        "mirostat": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_keywords_are_sent_to_ollama_in_options() -> None:
    async with FaultServer("ollama") as server:
        body = await sent(
            provider_for(server),
            server,
            temperature=0,
            max_tokens=20,
            stop=["x"],
            seed=3,
            top_k=7,
            frequency_penalty=0.25,
            presence_penalty=0.5,
            reasoning=False,
            extra_body={"keep_alive": "1h", "options": {"num_ctx": 8192}},
            prompt=[{"role": "user", "content": [{"type": "text", "text": "hi"}, IMAGE]}],
        )
    assert body["options"] == {
        "temperature": 0,
        "num_predict": 20,
        "stop": ["x"],
        "seed": 3,
        "top_k": 7,
        "frequency_penalty": 0.25,
        "presence_penalty": 0.5,
        "num_ctx": 8192,
    }
    assert (body["truncate"], body["shift"], body["think"], body["keep_alive"]) == (False, False, False, "1h")
    assert body["messages"][0]["images"] == ["iVBORw0KGgo="]


@pytest.mark.parametrize(
    ("kind", "reasoning", "part"),
    [
        (VLLMProvider, False, {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}),
        (LlamaCppProvider, True, {"chat_template_kwargs": {"enable_thinking": True, "thinking": True}}),
        (
            VLLMProvider,
            "high",
            {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": True, "thinking": True}},
        ),
        (CustomProvider, "low", {"reasoning_effort": "low"}),
        (OpenRouterProvider, False, {"reasoning": {"enabled": False}}),
        (OpenRouterProvider, "high", {"reasoning": {"effort": "high"}}),
        (FireworksProvider, False, {"reasoning_effort": "none"}),
    ],
)
async def test_reasoning_is_sent_in_fields_of_provider(kind: Any, reasoning: Any, part: dict[str, Any]) -> None:
    async with FaultServer() as server:
        body = await sent(kind(base_url=server.base_url, model="m", api_key="k"), server, reasoning=reasoning)
    assert body.items() >= part.items()


async def test_reasoning_of_cloud_model_without_reasoning_is_refused() -> None:
    async with FaultServer() as server:
        provider = OpenAIProvider(base_url=server.base_url, api_key="k")
        assert "reasoning_effort" not in await sent(provider, server, model="gpt-4o", reasoning=False)
        with pytest.raises(errors.Unsupported, match="does not support reasoning"):
            await provider.generate("hi", model="gpt-4o", reasoning=True)
        assert (await sent(provider, server, model="o3", reasoning="low"))["reasoning_effort"] == "low"


async def test_default_that_model_refuses_is_omitted(events_seen: list[Any]) -> None:
    async with FaultServer() as server:
        provider = OpenAIProvider(
            base_url=server.base_url, model="gpt-5", api_key="k"
        )  # LiteLLM's table has the refusal
        body = await sent(provider, server)
        assert "temperature" not in body
        assert body["max_completion_tokens"] == 1000
        with pytest.raises(errors.Unsupported, match="temperature"):
            await provider.generate("hi", temperature=0.7)  # the caller's own value is sent
    assert [event.change for event in events_seen if isinstance(event, events.RequestAdjusted)] == [
        "without temperature"
    ]


async def test_default_that_server_refuses_is_omitted_from_later_requests() -> None:
    no = {"message": "Unsupported value", "code": "unsupported_value", "param": "temperature"}
    refuse = Fault("refuse", status=400, body=json.dumps({"error": no}).encode())
    async with FaultServer() as server:
        provider = provider_for(server)
        server.script = [refuse]
        assert (await provider.generate("hi")).endswith("dog.")
        assert [("temperature" in seen.body) for seen in server.seen] == [True, False]
        await provider.generate("hi")
        assert len(server.seen) == 3
        server.script = [refuse]
        with pytest.raises(errors.Unsupported):
            await provider.generate("hi", temperature=0.3)


async def test_refusal_that_quotes_prompt_changes_no_parameter() -> None:
    body = json.dumps({"error": {"message": "invalid: what is the temperature today, and max_tokens"}}).encode()
    async with FaultServer() as server:
        server.script = [Fault("refuse", status=400, body=body)] * 3
        provider = provider_for(server)
        with pytest.raises(errors.RequestRefused):
            await provider.generate("what is the temperature today, and max_tokens")
        await provider.generate("hi")
        assert server.seen[-1].body["temperature"] == 0.7


async def test_single_stop_text_is_sent_to_ollama_as_list() -> None:
    async with FaultServer("ollama") as server:
        assert (await sent(provider_for(server), server, stop="x"))["options"]["stop"] == ["x"]


async def test_max_tokens_is_sent_as_max_completion_tokens_after_refusal() -> None:
    no = {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "param": "max_tokens"}
    async with FaultServer() as server:
        server.script = [Fault("refuse", status=400, body=json.dumps({"error": no}).encode())]
        await provider_for(server).generate("hi", max_tokens=77)
        assert server.seen[1].body["max_completion_tokens"] == 77
        assert "max_tokens" not in server.seen[1].body


async def test_stream_options_are_omitted_after_refusal() -> None:
    async with FaultServer() as server:
        server.script = [Fault("refuse", status=400, body=b'{"error": "unknown field stream_options"}')]
        done = await provider_for(server).complete("hi")
        assert "stream_options" not in server.seen[1].body
        assert done.text.endswith("dog.")


async def test_messages_of_caller_are_not_changed() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}, dict(IMAGE)]}]
    before = json.dumps(messages)
    async with FaultServer("ollama") as server:
        await provider_for(server).generate(messages, system="S")
    assert json.dumps(messages) == before
