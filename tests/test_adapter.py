"""What callers ask and what goes over the wire; what comes back and what callers get."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import structlog
from conftest import DIALECTS, provider_for
from pydantic import BaseModel

from learnflow.llm import errors, events
from learnflow.llm.base import Completion, LLMProvider
from learnflow.llm.providers import (
    CustomProvider,
    FireworksProvider,
    LlamaCppProvider,
    LMStudioProvider,
    OllamaProvider,
    OpenAIProvider,
    OpenRouterProvider,
    VLLMProvider,
)
from learnflow.llm.testing import Fault, FaultServer

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


class Quiz(BaseModel):
    title: str
    questions: list[str]


QUIZ = '{"title": "RSA", "questions": ["Why?"]}'


async def sent(provider: Any, server: FaultServer, **more: Any) -> dict[str, Any]:
    await provider.complete(more.pop("prompt", "hi"), **more)
    return dict(server.seen[-1].body)


async def test_keywords_arrive_at_an_openai_server() -> None:
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


async def test_keywords_arrive_in_ollamas_places() -> None:
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
        (VLLMProvider, False, {"chat_template_kwargs": {"enable_thinking": False}}),
        (LlamaCppProvider, True, {"chat_template_kwargs": {"enable_thinking": True}}),
        (VLLMProvider, "high", {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": True}}),
        (CustomProvider, "low", {"reasoning_effort": "low"}),
        (OpenRouterProvider, False, {"reasoning": {"enabled": False}}),
        (OpenRouterProvider, "high", {"reasoning": {"effort": "high"}}),
        (FireworksProvider, False, {"reasoning_effort": "none"}),
    ],
)
async def test_reasoning_is_put_as_the_row_says(kind: Any, reasoning: Any, part: dict[str, Any]) -> None:
    async with FaultServer() as server:
        body = await sent(kind(base_url=server.base_url, model="m", api_key="k"), server, reasoning=reasoning)
    assert body.items() >= part.items()


async def test_reasoning_of_a_cloud_model_that_does_not_think() -> None:
    async with FaultServer() as server:
        provider = OpenAIProvider(base_url=server.base_url, api_key="k")
        assert "reasoning_effort" not in await sent(provider, server, model="gpt-4o", reasoning=False)
        with pytest.raises(errors.Unsupported, match="gpt-4o does not think"):
            await provider.generate("hi", model="gpt-4o", reasoning=True)
        assert (await sent(provider, server, model="o3", reasoning="low"))["reasoning_effort"] == "low"


async def test_a_default_of_ours_that_the_model_refuses_is_left_out(events_seen: list[Any]) -> None:
    async with FaultServer() as server:
        provider = OpenAIProvider(base_url=server.base_url, model="gpt-5", api_key="k")  # LiteLLM knows that it refuses
        body = await sent(provider, server)
        assert "temperature" not in body
        assert body["max_completion_tokens"] == 1000
        with pytest.raises(errors.Unsupported, match="temperature"):
            await provider.generate("hi", temperature=0.7)  # the caller's own is not
    assert [event.why for event in events_seen if isinstance(event, events.Adjusted)] == ["without temperature"]


async def test_a_default_that_only_the_server_refuses_is_left_out_and_remembered() -> None:
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


async def test_a_prompt_that_a_server_quotes_changes_no_parameter() -> None:
    body = json.dumps({"error": {"message": "invalid: what is the temperature today, and max_tokens"}}).encode()
    async with FaultServer() as server:
        server.script = [Fault("refuse", status=400, body=body)] * 2
        provider = provider_for(server)
        with pytest.raises(errors.InvalidRequest):
            await provider.generate("what is the temperature today, and max_tokens")
        await provider.generate("hi")
        assert server.seen[-1].body["temperature"] == 0.7


async def test_what_a_server_separates_keeps_its_tags() -> None:
    async with FaultServer("llamacpp", ["<think>x</think>", " and </think>\n"], thinking="hm") as server:
        done = await provider_for(server).complete("hi")
        assert (done.text, done.reasoning) == ("<think>x</think> and </think>\n", "hm")


async def test_one_stop_text_is_a_list_for_ollama() -> None:
    async with FaultServer("ollama") as server:
        assert (await sent(provider_for(server), server, stop="x"))["options"]["stop"] == ["x"]


async def test_max_tokens_travels_under_its_newer_name_where_the_server_wants_that() -> None:
    no = {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "param": "max_tokens"}
    async with FaultServer() as server:
        server.script = [Fault("refuse", status=400, body=json.dumps({"error": no}).encode())]
        await provider_for(server).generate("hi", max_tokens=77)
        assert server.seen[1].body["max_completion_tokens"] == 77
        assert "max_tokens" not in server.seen[1].body


async def test_a_server_that_does_not_know_stream_options_is_asked_without() -> None:
    async with FaultServer() as server:
        server.script = [Fault("refuse", status=400, body=b'{"error": "unknown field stream_options"}')]
        done = await provider_for(server).complete("hi")
        assert "stream_options" not in server.seen[1].body
        assert done.text.endswith("dog.")


@pytest.mark.parametrize(
    ("more", "kind", "said"),
    [
        ({"temprature": 1}, errors.InvalidRequest, "Did you mean temperature="),
        ({"temperature": -1}, errors.InvalidRequest, "temperature= must be"),
        ({"temperature": "hot"}, errors.InvalidRequest, "temperature= must be"),
        ({"temperature": float("nan")}, errors.InvalidRequest, "temperature= must be"),
        ({"max_tokens": 0}, errors.InvalidRequest, "max_tokens= must be"),
        ({"max_tokens": 1.5}, errors.InvalidRequest, "max_tokens= must be"),
        ({"top_p": 2}, errors.InvalidRequest, "top_p= must be"),
        ({"timeout": 0}, errors.InvalidRequest, "timeout= must be"),
        ({"seed": "x"}, errors.InvalidRequest, "seed= must be"),
        ({"stop": [1]}, errors.InvalidRequest, "stop= must be"),
        ({"stop": 5}, errors.InvalidRequest, "stop= must be"),
        ({"system": 5}, errors.InvalidRequest, "system= must be"),
        ({"tools": 5}, errors.InvalidRequest, "tools"),
        ({"tools": [5]}, errors.InvalidRequest, "tools"),
        ({"extra_body": "x"}, errors.InvalidRequest, "extra_body= must be"),
        ({"extra_body": {"x": object()}}, errors.InvalidRequest, "extra_body= must be"),
        ({"response_format": Quiz(title="a", questions=[])}, errors.InvalidRequest, "response_format= must be"),
        ({"response_format": {"type": "json_schema"}}, errors.InvalidRequest, "response_format= must be"),
        ({"prompt": [{"role": "user", "content": ["x"]}]}, errors.InvalidRequest, "neither a text nor a list"),
        ({"prompt": [{"role": 5, "content": "x"}]}, errors.InvalidRequest, "neither a text nor a list"),
        ({"reasoning": "much"}, errors.InvalidRequest, "reasoning= must be"),
        ({"reasoning": 1}, errors.InvalidRequest, "reasoning= must be"),
        ({"response_format": "json"}, errors.InvalidRequest, "response_format= must be"),
        ({"response_format": {"type": "xml"}}, errors.InvalidRequest, "response_format= must be"),
        ({"tool_choice": "auto"}, errors.InvalidRequest, "tool_choice= without tools="),
        ({"tools": [TOOL]}, errors.InvalidRequest, r"tools need complete\(\)"),
        ({"prompt": ""}, errors.InvalidRequest, "empty"),
        ({"prompt": []}, errors.InvalidRequest, "neither a text nor a list"),
        ({"prompt": 7}, errors.InvalidRequest, "neither a text nor a list"),
        ({"prompt": [{"content": "x"}]}, errors.InvalidRequest, "neither a text nor a list"),
    ],
)
async def test_bad_input_is_refused_before_anything_is_sent(more: dict[str, Any], kind: type, said: str) -> None:
    async with FaultServer() as server:
        provider = provider_for(server)
        prompt = more.pop("prompt", "hi")
        with pytest.raises(kind, match=said):
            await provider.generate(prompt, **more)
        with pytest.raises(kind, match=said):
            provider.stream(prompt, **more)
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
async def test_what_a_row_cannot_honour_is_an_error(kind: Any, more: dict[str, Any]) -> None:
    with pytest.raises(errors.Unsupported, match=r"cannot honour|does not know"):
        await kind(base_url="http://127.0.0.1:9", model="m", api_key="k").complete("hi", **more)


async def test_the_callers_messages_are_not_changed() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}, dict(IMAGE)]}]
    before = json.dumps(messages)
    async with FaultServer("ollama") as server:
        await provider_for(server).generate(messages, system="S")
    assert json.dumps(messages) == before


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
        with pytest.raises(errors.SchemaMismatch, match="none was"):
            await provider.complete("Weather?", tools=[TOOL], tool_choice="required")
        assert (await provider.complete("Weather?", tools=[TOOL])).finish == "stop"
        await provider.complete("Weather?", tools=[TOOL], tool_choice="none")
        assert "tools" not in server.seen[-1].body


@pytest.mark.parametrize("dialect", ["openai", "lmstudio", "vllm", "llamacpp", "ollama"])
async def test_a_pydantic_class_is_asked_for_and_validated(dialect: str) -> None:
    async with FaultServer(dialect, [QUIZ]) as server:  # type: ignore[arg-type]
        provider = provider_for(server)
        done = await provider.complete("Quiz", response_format=Quiz)
        assert done.parsed == Quiz(title="RSA", questions=["Why?"])
        assert await provider.generate("Quiz", response_format=Quiz) == QUIZ
        body = server.seen[0].body
        schema = body["format"] if dialect == "ollama" else body["response_format"]["json_schema"]["schema"]
        assert schema["required"] == ["title", "questions"]


async def test_a_class_goes_down_the_ladder_where_a_rung_is_refused() -> None:
    refuse = Fault("refuse", status=400, body=b'{"error": "response_format is not supported"}')
    async with FaultServer("openai", ["```json\n" + QUIZ + "\n```"]) as server:
        provider = provider_for(server)
        server.script = [refuse, refuse]
        done = await provider.complete("Quiz", response_format=Quiz)
        assert done.parsed == Quiz(title="RSA", questions=["Why?"])
        formats = [seen.body.get("response_format", {}).get("type") for seen in server.seen]
        assert formats == ["json_schema", "json_object", None]
        (only,) = server.seen[2].body["messages"]  # no second turn of the user: templates want roles to alternate
        assert only["content"].startswith("Quiz\n\nAnswer with one JSON object")
        await provider.complete("Quiz", response_format=Quiz)
        assert len(server.seen) == 4  # the rung is remembered


async def test_an_answer_that_does_not_fit_is_an_error_without_the_answer_in_it() -> None:
    async with FaultServer("openai", ['{"title": "private title"}']) as server:
        with pytest.raises(errors.SchemaMismatch, match=r"Quiz: questions") as caught:
            await provider_for(server).generate("Quiz", response_format=Quiz)
    assert "private" not in str(caught.value)
    assert caught.value.partial == '{"title": "private title"}'
    assert caught.value.__context__ is None


async def test_json_asked_for_with_a_dict_must_be_json() -> None:
    async with FaultServer("openai", ["no json"]) as server:
        with pytest.raises(errors.SchemaMismatch, match="no JSON"):
            await provider_for(server).generate("Quiz", response_format={"type": "json_object"})


async def test_an_answer_that_ends_at_max_tokens_is_returned_with_a_warning(events_seen: list[Any]) -> None:
    body = {"choices": [{"message": {"content": "half"}, "finish_reason": "length"}]}
    async with FaultServer() as server:
        server.script = [Fault("refuse", status=200, body=json.dumps(body).encode())]
        done = await provider_for(server).complete("hi", max_tokens=1)
    assert (done.text, done.finish) == ("half", "length")
    assert [event.max_tokens for event in events_seen if isinstance(event, events.Truncated)] == [1]


async def test_max_tokens_used_up_by_thinking_says_so() -> None:
    body = {"choices": [{"message": {"content": "<think>long"}, "finish_reason": "length"}]}
    async with FaultServer() as server:
        server.script = [Fault("refuse", status=200, body=json.dumps(body).encode())]
        with pytest.raises(errors.EmptyAnswer, match=r"max_tokens went into thinking.*reasoning=False") as caught:
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


async def test_one_line_of_log_for_each_request_and_never_its_content(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="learnflow.llm")
    async with FaultServer() as server:
        provider = provider_for(server)
        await provider.generate("private prompt")
        server.fault = Fault("refuse", refusal="key")
        with pytest.raises(errors.AuthenticationFailed):
            await provider.generate("private prompt")
    lines = [record for record in caplog.records if record.name == "learnflow.llm"]
    assert [record.levelname for record in lines] == ["INFO", "ERROR"]  # a wrong key is shouted
    assert "provider='custom'" in lines[0].message
    assert "completion_tokens=7" in lines[0].message
    assert "AuthenticationFailed" in lines[1].message
    assert "private" not in caplog.text
    assert "quick" not in caplog.text


async def test_an_application_that_configured_structlog_gets_the_event_there() -> None:
    try:
        with structlog.testing.capture_logs() as logs:
            async with FaultServer() as server:
                await provider_for(server).generate("hi")
    finally:
        structlog.reset_defaults()
    assert [(log["event"], log["log_level"]) for log in logs] == [("llm.request_completed", "info")]


async def test_a_sink_that_fails_fails_no_request() -> None:
    def broken(_: object) -> None:
        raise RuntimeError("the sink's own")

    remove = events.add_sink(broken)
    try:
        async with FaultServer() as server:
            assert await provider_for(server).generate("hi")
    finally:
        remove()


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


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_order_of_a_schemas_properties_is_kept(dialect: str) -> None:
    """A model writes the properties in the order of the schema: "reasoning" before "answer" is a decision."""
    names = ["zeta", "alpha", "middle"]
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}
    said = json.dumps(dict.fromkeys(names, "x"))
    async with FaultServer(dialect, said) as server:
        wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        await provider_for(server).generate("hi", response_format=wanted)
        body = server.seen[0].body
        sent = body["format"] if dialect == "ollama" else body["response_format"]["json_schema"]["schema"]
    assert list(sent["properties"]) == names
