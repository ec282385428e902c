"""Keywords of a call: unknown ones and invalid values are refused before anything is sent."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from support import TOOL, TitledQuiz, provider_for, request_text, router

from learnflow.llm import errors
from learnflow.llm.providers import (
    CustomProvider,
    FireworksProvider,
    LMStudioProvider,
    OllamaProvider,
    OpenAIProvider,
    OpenRouterProvider,
    VLLMProvider,
)
from learnflow.llm.testing import FaultServer
from learnflow.llm.testing.fault_server import ReceivedRequest


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ({"temprature": 1}, errors.InvalidRequest, "Did you mean temperature="),
        ({"temperature": -1}, errors.InvalidRequest, "temperature= must be"),
        ({"temperature": "hot"}, errors.InvalidRequest, "temperature= must be"),
        ({"temperature": float("nan")}, errors.InvalidRequest, "temperature= must be"),
        ({"max_tokens": 0}, errors.InvalidRequest, "max_tokens= must be"),
        ({"max_tokens": 1.5}, errors.InvalidRequest, "max_tokens= must be"),
        ({"top_p": 2}, errors.InvalidRequest, "top_p= must be"),
        ({"timeout": 0}, errors.InvalidRequest, "timeout= must be"),
        ({"timeout": 10**400}, errors.InvalidRequest, r"timeout= must be a valid number \(given: int\)"),
        ({"timeout": Decimal(1)}, errors.InvalidRequest, r"timeout= is invalid: .*\(given: Decimal\)"),
        ({"max_tokens": 10**400}, errors.InvalidRequest, "max_tokens= must be less than"),
        ({"max_tokens": "5"}, errors.InvalidRequest, r"max_tokens= must be a valid integer \(given: str\)"),
        ({"model": 5}, errors.InvalidRequest, "model= must be"),
        ({"model": "\ud800"}, errors.InvalidRequest, "model= must be"),
        ({"resume": []}, errors.InvalidRequest, "resume= must be 'continue' or 'raise'"),
        ({"tools": [{"name": "x"}]}, errors.InvalidRequest, r"tools= must be .*\(given: dict at \[0\]\)"),
        ({"tools": [{**TOOL, "x": float("nan")}]}, errors.InvalidRequest, "tools= must be"),
        ({"tools": [{"type": "function", "function": {}}]}, errors.InvalidRequest, "tools= must be"),
        ({"tools": [TOOL], "tool_choice": {}}, errors.InvalidRequest, "tool_choice= must be"),
        ({"extra_body": {"x": float("nan")}}, errors.InvalidRequest, "extra_body= must be a dict that JSON can"),
        ({"prompt": [{"role": "usr", "content": "x"}]}, errors.InvalidRequest, r"prompt= must .* at \[0\]\)"),
        ({"prompt": [{"role": "user", "content": [{"type": []}]}]}, errors.InvalidRequest, "prompt= must"),
        ({"prompt": None}, errors.InvalidRequest, r"prompt= must .*given: NoneType"),
        ({"seed": "x"}, errors.InvalidRequest, "seed= must be"),
        ({"stop": [1]}, errors.InvalidRequest, "stop= must be"),
        ({"stop": 5}, errors.InvalidRequest, "stop= must be"),
        ({"system": 5}, errors.InvalidRequest, "system= must be"),
        ({"tools": 5}, errors.InvalidRequest, "tools"),
        ({"tools": [5]}, errors.InvalidRequest, "tools"),
        ({"extra_body": "x"}, errors.InvalidRequest, "extra_body= must be"),
        ({"extra_body": {"x": object()}}, errors.InvalidRequest, "extra_body= must be"),
        ({"response_format": TitledQuiz(title="a", questions=[])}, errors.InvalidRequest, "response_format= must be"),
        ({"response_format": {"type": "json_schema"}}, errors.InvalidRequest, "response_format= must be"),
        ({"prompt": [{"role": "user", "content": ["x"]}]}, errors.InvalidRequest, "prompt= must be a text or a list"),
        ({"prompt": [{"role": 5, "content": "x"}]}, errors.InvalidRequest, "prompt= must be a text or a list"),
        ({"reasoning": "much"}, errors.InvalidRequest, "reasoning= must be"),
        ({"reasoning": 1}, errors.InvalidRequest, "reasoning= must be"),
        ({"response_format": "json"}, errors.InvalidRequest, "response_format= must be"),
        ({"response_format": {"type": "xml"}}, errors.InvalidRequest, "response_format= must be"),
        ({"session": ""}, errors.InvalidRequest, "session= must be"),
        ({"session": "x" * 201}, errors.InvalidRequest, "session= must be"),
        ({"session": "a\r\nb: c"}, errors.InvalidRequest, "session= must be"),
        ({"session": 5}, errors.InvalidRequest, "session= must be"),
        ({"tool_choice": "auto"}, errors.InvalidRequest, "tool_choice= without tools="),
        ({"prompt": ""}, errors.InvalidRequest, "empty"),
        ({"prompt": []}, errors.InvalidRequest, "prompt= must be a text or a list"),
        ({"prompt": 7}, errors.InvalidRequest, "prompt= must be a text or a list"),
        ({"prompt": [{"content": "x"}]}, errors.InvalidRequest, "prompt= must be a text or a list"),
    ],
)
async def test_invalid_input_is_refused_before_sending(more: dict[str, Any], kind: type, message: str) -> None:
    async with FaultServer() as server:
        provider = provider_for(server)
        prompt = more.pop("prompt", "hi")
        with pytest.raises(kind, match=message):
            await provider.generate(prompt, **more)
        with pytest.raises(kind, match=message):
            provider.stream(prompt, **more)
        assert server.connections == 0


async def test_keyword_of_other_library_is_refused_with_hint() -> None:
    async with FaultServer() as server:
        provider = provider_for(server)
        assert await provider.generate("hi", n=1)
        assert "n" not in server.seen[0].body
        for more, message in (
            ({"n": 2}, "a call returns one answer"),
            ({"logprobs": True}, "logprobs"),
            ({"top_logprobs": 5}, "another model"),
            ({"num_ctx": 8192}, "<NAME>_CONTEXT"),
        ):
            with pytest.raises(errors.InvalidRequest, match=message):
                provider.stream("hi", **more)
        assert len(server.seen) == 1


@pytest.mark.parametrize("more", [{"prompt": "a\ud83d"}, {"prompt": "hi", "system": "\udfff"}])
async def test_lone_surrogate_is_refused_and_opens_no_breaker(more: dict[str, Any]) -> None:
    async with FaultServer("llamacpp") as server:
        chain = router(provider_for(server))
        with pytest.raises(errors.InvalidRequest, match="half of a character"):
            await chain.generate(**more)
        assert server.seen == []
        assert await chain.generate("hi")


async def test_generate_with_tools_raises_invalid_request() -> None:
    async with FaultServer() as server:
        with pytest.raises(errors.InvalidRequest, match=r"generate\(\) does not support tools"):
            await provider_for(server).generate("hi", tools=[TOOL])
        assert server.connections == 0


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (OpenAIProvider, {"top_k": 3}),
        (LMStudioProvider, {"reasoning": True}),
        (LMStudioProvider, {"response_format": {"type": "json_object"}}),
        (OllamaProvider, {"tools": [TOOL], "tool_choice": "required"}),
        (LMStudioProvider, {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}}),
    ],
)
async def test_unsupported_keyword_of_provider_raises_unsupported(kind: Any, more: dict[str, Any]) -> None:
    with pytest.raises(errors.Unsupported, match="does not support"):
        await kind(base_url="http://127.0.0.1:9", model="m", api_key="k").complete("hi", **more)


def fields(seen: ReceivedRequest) -> dict[str, Any]:
    """Return the headers and the fields of the body of a request."""
    headers = {f"header {name}": value for name, value in seen.headers.items() if name != "content-length"}
    return {**headers, **{f"body {name}": value for name, value in seen.body.items()}}


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        (OpenAIProvider, "body prompt_cache_key"),
        (OpenRouterProvider, "body session_id"),
        (FireworksProvider, "header x-session-affinity"),
        (CustomProvider, None),
        (VLLMProvider, None),
        (OllamaProvider, None),
    ],
)
@pytest.mark.parametrize("how", ["generate", "stream", "complete"])
async def test_session_is_sent_in_place_of_provider_only(kind: Any, place: str | None, how: str) -> None:
    async with FaultServer("ollama" if kind is OllamaProvider else "openai") as server:
        chain = router(kind(base_url=server.base_url, model="m", api_key="k"))
        await request_text(chain, how)
        await request_text(chain, how, session="lesson-7")
        without, named = map(fields, server.seen)
        added = {name: value for name, value in named.items() if name not in without}
        assert added == ({place: "lesson-7"} if place else {})
        assert without.items() <= named.items()


@pytest.mark.parametrize(
    ("kind", "place", "sessions"),
    [
        (OpenAIProvider, "body prompt_cache_key", ["x" * 65, "x" * 200]),  # too long for OpenAI
        (FireworksProvider, "header x-session-affinity", ["lesson 7", "урок-7"]),  # invalid in a header
    ],
)
async def test_session_that_is_invalid_in_its_place_is_sent_as_digest(
    kind: Any, place: str, sessions: list[str]
) -> None:
    async with FaultServer() as server:
        provider = kind(base_url=server.base_url, model="m", api_key="k")
        for session in (*sessions, *sessions):
            await provider.generate("hi", session=session)
        sent = [fields(seen)[place] for seen in server.seen]
    assert sent[:2] == sent[2:]
    assert len(set(sent)) == 2
    assert all(len(value) <= 64 and value.isascii() and value.isprintable() for value in sent)


async def test_extra_body_overrides_session() -> None:
    async with FaultServer() as server:
        provider = OpenAIProvider(base_url=server.base_url, model="m", api_key="k")
        await provider.generate("hi", session="one", extra_body={"prompt_cache_key": "two"})
        assert server.seen[0].body["prompt_cache_key"] == "two"
