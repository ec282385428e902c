"""What is sent to Anthropic and Gemini at their OpenAI addresses."""

from __future__ import annotations

from typing import Any

import pytest
from support import JSON, TEXT, Quiz, provider_for, router, sent

from learnflow.llm import errors
from learnflow.llm.adapter.provider import BaseProvider
from learnflow.llm.providers import AnthropicProvider, GeminiProvider
from learnflow.llm.testing import Fault, FaultServer

CLOUDS = (AnthropicProvider, GeminiProvider)


def cloud(kind: type[BaseProvider], server: FaultServer, **more: Any) -> BaseProvider:
    return kind(server.base_url, "m", "key-0000", **more)


@pytest.mark.parametrize("kind", CLOUDS)
async def test_schema_is_sent_strict(kind: type[BaseProvider]) -> None:
    async with FaultServer(answer=JSON) as server:
        body = await sent(cloud(kind, server), server, response_format=Quiz)
    schema = body["response_format"]["json_schema"]
    assert (body["response_format"]["type"], schema["strict"]) == ("json_schema", True)
    assert schema["schema"]["additionalProperties"] is False
    assert body["messages"] == [{"role": "user", "content": "hi"}]


async def test_schema_is_sent_in_words_after_a_refusal() -> None:
    refusal = b'{"error": {"message": "response_format: json_schema is not supported for this model"}}'
    async with FaultServer(answer=JSON) as server:
        server.script = [Fault("refuse", status=400, body=refusal)]
        body = await sent(cloud(AnthropicProvider, server), server, response_format=Quiz)
    assert "response_format" not in body
    assert "questions" in body["messages"][-1]["content"]


async def test_json_without_schema_is_refused_by_name() -> None:
    async with FaultServer(answer=JSON) as server:
        with pytest.raises(errors.Unsupported, match=r"response_format json_object.*Use json_schema"):
            await cloud(AnthropicProvider, server).generate("hi", response_format={"type": "json_object"})
        assert server.seen == []


@pytest.mark.parametrize("keyword", ["seed", "frequency_penalty", "presence_penalty"])
@pytest.mark.parametrize("kind", CLOUDS)
async def test_keyword_that_the_server_ignores_is_refused_by_name(kind: type[BaseProvider], keyword: str) -> None:
    async with FaultServer() as server:
        with pytest.raises(errors.Unsupported, match=f"does not support {keyword}="):
            await cloud(kind, server).generate("hi", **{keyword: 1})  # type: ignore[arg-type]
        assert server.seen == []


@pytest.mark.parametrize("kind", CLOUDS)
async def test_last_message_is_never_the_assistants(kind: type[BaseProvider]) -> None:
    prompt = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello"}]
    async with FaultServer() as server:
        body = await sent(cloud(kind, server), server, prompt=prompt)
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]


@pytest.mark.parametrize("kind", CLOUDS)
async def test_broken_answer_is_continued_by_instruction(kind: type[BaseProvider]) -> None:
    fault = Fault("drop", after=8)
    async with FaultServer("vllm", TEXT, fault=fault) as first, FaultServer(answer=TEXT) as second:
        chain = router(provider_for(first), cloud(kind, second))
        assert "".join([piece async for piece in chain.stream("hi")]) == TEXT
    messages = second.seen[-1].body["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert "cut off" in messages[-1]["content"]
    assert "continue_final_message" not in second.seen[-1].body


async def test_workspace_of_anthropic_is_a_header_of_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_HEADERS", "anthropic-workspace-id: wrkspc_01")
    async with FaultServer(key="key-0000") as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.base_url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "key-0000")
        await AnthropicProvider(model="m").generate("hi")
    assert server.seen[0].headers["anthropic-workspace-id"] == "wrkspc_01"
