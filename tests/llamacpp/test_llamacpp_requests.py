"""Context length, schemas, keys and pages of a real llama.cpp."""

from __future__ import annotations

import pytest
from llama import LlamaServer
from pydantic import BaseModel

from learnflow.llm import errors

SUMMARY = "Give a short summary of RSA as JSON"
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Card(BaseModel):
    """A schema without the summary of the known answer, so that only the grammar can remove it."""

    title: str
    difficulty: int


@pytest.mark.parametrize("how", ["generate", "complete", "stream"])
async def test_prompt_too_long_is_context_overflow_with_both_lengths(llama_server: LlamaServer, how: str) -> None:
    provider, prompt = llama_server.provider(), "word " * 3000
    with pytest.raises(errors.ContextOverflow) as caught:
        if how == "stream":
            await anext(provider.stream(prompt, temperature=0))
        else:
            await getattr(provider, how)(prompt, temperature=0)
    assert caught.value.context_length == 2048
    assert (caught.value.prompt_tokens or 0) > 3000
    assert "word word" not in str(caught.value)


async def test_answer_matches_pydantic_schema(llama_server: LlamaServer) -> None:
    done = await llama_server.provider().complete(SUMMARY, temperature=0, max_tokens=400, response_format=Card)
    assert done.parsed == Card(title="RSA", difficulty=3)
    assert (done.text, done.attempts) == ('{"title": "RSA", "difficulty": 3}', 1)


async def test_answer_matches_dict_schema(llama_server: LlamaServer) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "card", "schema": Card.model_json_schema()}}
    done = await llama_server.provider().complete(SUMMARY, temperature=0, max_tokens=400, response_format=wanted)
    assert (done.parsed, done.attempts) == ({"title": "RSA", "difficulty": 3}, 1)


async def test_key_is_required_and_masked(llama_server: LlamaServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="learnflow.llm")
    wrong, right = llama_server.provider(api_key="a-wrong-key-1234567890"), llama_server.provider()
    with pytest.raises(errors.AuthenticationFailed) as caught:
        await wrong.generate("Say pong", temperature=0)
    assert caught.value.status == 401
    assert "LLAMACPP_API_KEY" in str(caught.value)
    assert await right.generate("Say pong", temperature=0) == "pong"
    shown = f"{caught.value!r} {wrong!r} {wrong.endpoint!r} {right!r} {right.endpoint!r} {caplog.text}"
    assert "a-wrong-key" not in shown
    assert llama_server.key not in shown
    assert (await wrong.refresh()).state == "unauthorised"


async def test_key_of_the_environment_is_sent(llama_server: LlamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMACPP_BASE_URL", llama_server.url)
    monkeypatch.setenv("LLAMACPP_API_KEY", llama_server.key)
    assert await type(llama_server.provider())().generate("Say pong", temperature=0) == "pong"


async def test_health_models_and_capabilities(llama_server: LlamaServer) -> None:
    provider = llama_server.provider()
    assert await provider.health_check()
    assert await provider.list_models() == ["tiny"]
    await provider.warm_up()
    health = await provider.refresh()
    assert (health.state, health.server, health.model, health.cold) == ("ready", "llama.cpp", "tiny", False)
    known = provider.get_capabilities()
    assert (known["context"], known["context_served"], known["tools"], known["vision"]) == (2048, 2048, False, False)
    assert provider.facts(None).concurrency_limit == 4


async def test_wrong_path_is_misconfigured(llama_server: LlamaServer) -> None:
    assert (await llama_server.provider(f"{llama_server.url}/nowhere/v1").refresh()).state == "misconfigured"


async def test_unknown_model_is_answered_and_reported(llama_server: LlamaServer) -> None:
    done = await llama_server.provider().complete("Say pong", model="no-such-model", temperature=0)
    assert (done.text, done.model.requested, done.model.served) == ("pong", "no-such-model", "tiny")


async def test_image_is_refused_before_it_is_sent(llama_server: LlamaServer) -> None:
    provider = llama_server.provider()
    await provider.refresh()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DOT}"}}
    with pytest.raises(errors.Unsupported, match="nothing was sent"):
        await provider.generate([{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}])
