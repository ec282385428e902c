"""ChatLearnFlow, with LangChain's standard unit tests."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
import threading
from typing import Any, TypedDict

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import BaseModel, Field, field_validator
from pydantic.v1 import BaseModel as FirstBaseModel

from learnflow.llm import AtMost, Completion, RouterProvider, ToolCall, Usage, errors
from learnflow.llm.background import BACKGROUND
from learnflow.llm.completion import ServedModel, ToolCallDelta
from learnflow.llm.integrations.langchain import ChatLearnFlow
from learnflow.llm.providers import CustomProvider, LlamaCppProvider, OllamaProvider, VLLMProvider
from learnflow.llm.routing.breaker import BreakerRegistry
from learnflow.llm.testing import CutAnswer, Fault, FaultServer, ScriptedProvider


class Questions(BaseModel):
    """Control questions."""

    questions: list[str] = Field(description="the questions")


THREE = '{"questions": ["Why?", "How?", "Когда?"]}'


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def completion(text: str = "", **more: Any) -> Completion:
    given: dict[str, Any] = {"finish": "stop", "provider": "scripted", "model": ServedModel("asked", "served")}
    return Completion(text=text, **{**given, **more})


class TestStandard(ChatModelUnitTests):
    """LangChain's standard tests. The provider has its own keys and retries."""

    @property
    def chat_model_class(self) -> type[ChatLearnFlow]:
        return ChatLearnFlow

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {"temperature": 0, "max_tokens": 100, "timeout": 60, "stop": []}

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"provider": ScriptedProvider()}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"LLM_PROVIDER": "ollama"}, {}, {"model": None}


async def test_messages_are_converted_to_openai_format() -> None:
    provider = ScriptedProvider(["fine"])
    picture = base64.b64encode(b"hi").decode()
    call = {"name": "add", "args": {"a": 1, "b": 2}, "id": "call_1", "type": "tool_call"}
    await ChatLearnFlow(provider=provider).ainvoke(
        [
            SystemMessage("Be brief."),
            HumanMessage("What is 1 + 2?"),
            AIMessage([{"type": "thinking", "thinking": "hm"}], tool_calls=[call]),
            ToolMessage("3", tool_call_id="call_1"),
            HumanMessage(
                [
                    {"type": "text", "text": "And these?"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
                    {"type": "image", "base64": picture, "mime_type": "image/png"},
                ]
            ),
        ]
    )
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
    function = {"name": "add", "arguments": '{"a": 1, "b": 2}'}
    assert provider.history[0].prompt == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1 + 2?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "id": "call_1", "function": function}],
        },
        {"role": "tool", "content": "3", "tool_call_id": "call_1"},
        {"role": "user", "content": [{"type": "text", "text": "And these?"}, url, url]},
    ]


async def test_call_keywords_override_model_keywords() -> None:
    provider = ScriptedProvider(["fine"] * 3)
    model = ChatLearnFlow(
        provider=provider, temperature=0.2, max_tokens=AtMost(9), top_p=0.5, model_kwargs={"min_p": 0.1}
    )
    await model.ainvoke("hi")
    await model.ainvoke("hi", stop=["."], temperature=0.9, model="other")
    await ChatLearnFlow(provider=provider).ainvoke("hi")
    first, second, bare = provider.history
    assert (first.temperature, first.max_tokens, first.model) == (0.2, 9, None)
    assert isinstance(first.max_tokens, AtMost)
    assert first.options == {"top_p": 0.5, "min_p": 0.1}
    assert (second.temperature, second.model, second.options["stop"]) == (0.9, "other", ["."])
    assert (bare.temperature, bare.max_tokens, bare.options) == (0.7, 1000, {})
    with pytest.raises(errors.InvalidRequest, match="api_key= is invalid: Extra inputs are not permitted") as caught:
        ChatLearnFlow(provider=provider, api_key="SECRET")
    assert "SECRET" not in str(caught.value)


async def test_message_has_usage_and_response_metadata() -> None:
    usage = Usage(prompt_tokens=5, completion_tokens=7, total_tokens=12, reasoning_tokens=3, cached_tokens=2)
    done = completion("Yes.", reasoning="Hm.", usage=usage, cost=0.5, attempts=2, resumed=1, finish="length")
    seen = UsageMetadataCallbackHandler()
    model = ChatLearnFlow(provider=ScriptedProvider([done] * 3))
    invoked = await model.ainvoke("hi", config={"callbacks": [seen]})
    chunks = [chunk async for chunk in model.astream("hi")]
    streamed: AIMessageChunk = sum(chunks[1:], chunks[0])
    for message in (invoked, streamed):
        assert message.content == "Yes."
        assert message.additional_kwargs["reasoning_content"] == "Hm."
        metadata = {"finish_reason": "length", "model_name": "served", "provider": "scripted", "attempts": 2}
        assert message.response_metadata.items() >= {**metadata, "resumed": 1, "cost": 0.5}.items()
        assert message.usage_metadata == {
            "input_tokens": 5,
            "output_tokens": 7,
            "total_tokens": 12,
            "input_token_details": {"cache_read": 2},
            "output_token_details": {"reasoning": 3},
        }
    assert seen.usage_metadata["served"]["total_tokens"] == 12
    assert (await model.agenerate([[HumanMessage("hi")]])).llm_output == {"model_name": "served"}
    unknown = await ChatLearnFlow(provider=ScriptedProvider([completion("Yes.")])).ainvoke("hi")
    assert unknown.usage_metadata is None


async def test_bound_tools_are_sent_and_called() -> None:
    called = completion(tool_calls=(ToolCall("call_1", "add", {"a": 1, "b": 2}),), finish="tool_calls")
    provider = ScriptedProvider([called, called, "3"])
    model = ChatLearnFlow(provider=provider).bind_tools([add], tool_choice="any")
    invoked = await model.ainvoke("1 + 2?")
    assert invoked.tool_calls == [{"name": "add", "args": {"a": 1, "b": 2}, "id": "call_1", "type": "tool_call"}]
    (chunk,) = [chunk async for chunk in model.astream("1 + 2?") if chunk.tool_calls]
    assert chunk.tool_calls == invoked.tool_calls
    await ChatLearnFlow(provider=provider).bind_tools([add], tool_choice="add").ainvoke("1 + 2?")
    choices = [request.options["tool_choice"] for request in provider.history]
    assert choices == ["required", "required", {"type": "function", "function": {"name": "add"}}]
    assert provider.history[0].options["tools"][0]["function"]["parameters"]["required"] == ["a", "b"]
    with pytest.raises(errors.InvalidRequest, match="Use one of add"):
        ChatLearnFlow(provider=provider).bind_tools([add], tool_choice="subtract")


CALL = [
    ToolCallDelta(0, "call_1", "add", ""),
    *(ToolCallDelta(0, "", "", piece) for piece in ('{"a"', ": 1, ", '"b":', " 2}")),
]


async def test_stream_has_pieces_of_tool_calls_and_reasoning() -> None:
    async with FaultServer("vllm", "So: ", thinking="Let me add.", calls=CALL) as server:
        chat = ChatLearnFlow(provider=VLLMProvider(base_url=server.base_url, model="fault-model"))
        chunks = [chunk async for chunk in chat.bind_tools([add]).astream("1 + 2?")]
        complete_message = await chat.bind_tools([add]).ainvoke("1 + 2?")
    grown = [piece["args"] for chunk in chunks for piece in chunk.tool_call_chunks]
    assert grown == ['{"a"', ": 1, ", '"b":', " 2}"]
    streamed = sum(chunks[1:], chunks[0])
    assert streamed.tool_calls == complete_message.tool_calls
    assert streamed.usage_metadata == complete_message.usage_metadata is not None
    assert streamed.additional_kwargs == complete_message.additional_kwargs
    assert streamed.additional_kwargs["reasoning_content"] == "Let me add."
    assert streamed.response_metadata["finish_reason"] == "tool_calls"
    blocks = [block["type"] for block in streamed.content_blocks]
    assert blocks == [block["type"] for block in complete_message.content_blocks] == ["reasoning", "text", "tool_call"]
    assert [block["type"] for block in chunks[0].content_blocks] == ["reasoning"]


async def test_structured_answer_arrives_in_one_piece_unless_stream_structured() -> None:
    async with FaultServer("vllm", THREE) as one, FaultServer("vllm", THREE) as two:
        for streams in (False, True):
            one.fault = Fault("cut", after=2)
            chain = RouterProvider(
                *(VLLMProvider(base_url=server.base_url, model="fault-model") for server in (one, two)),
                breakers=BreakerRegistry(),
            )
            chat = ChatLearnFlow(provider=chain, stream_structured=streams)
            model = chat.bind(response_format=Questions)
            if streams:
                with pytest.raises(errors.AnswerCut):
                    [chunk async for chunk in model.astream("ask")]
                one.fault = None
            chunks = [chunk for chunk in [chunk async for chunk in model.astream("ask")] if chunk.content]
            assert "".join(str(chunk.content) for chunk in chunks) == THREE
            assert (len(chunks) > 1) is streams


async def test_function_calling_answer_arrives_in_one_piece() -> None:
    async with FaultServer("vllm", [], calls=CALL) as server:
        chat = ChatLearnFlow(provider=VLLMProvider(base_url=server.base_url, model="fault-model"))
        model = chat.with_structured_output(add.args_schema, method="function_calling")
        assert [result.a + result.b async for result in model.astream("1 + 2?")] == [3]
        assert "structured" not in str(server.seen[0].body)


async def test_profile_has_known_capabilities_unless_caller_passes_one() -> None:
    async with FaultServer("llamacpp", "Yes.") as server:
        provider = LlamaCppProvider(base_url=server.base_url, model="fault-model")
        chat = ChatLearnFlow(provider=provider)
        assert "max_input_tokens" not in (chat.profile or {})
        await provider.refresh()
        served = provider.get_capabilities()["context_served"]
        assert served
        assert ChatLearnFlow(provider=provider).profile["max_input_tokens"] == served
        await chat.ainvoke("hi")
        assert chat.profile["max_input_tokens"] == served
        assert chat.profile["structured_output"] is True
        own = ChatLearnFlow(provider=provider, profile={"max_input_tokens": 1000})
        await own.ainvoke("hi")
        assert own.profile == {"max_input_tokens": 1000}


async def test_content_blocks_of_stream_equal_those_of_message() -> None:
    async with FaultServer("vllm", "So: ", thinking="Let me add.", calls=CALL) as server:
        provider = VLLMProvider(base_url=server.base_url, model="fault-model")
        chat = ChatLearnFlow(provider=provider, output_version="v1").bind_tools([add])
        chunks = [chunk async for chunk in chat.astream("1 + 2?")]
        complete_message = await chat.ainvoke("1 + 2?")
    streamed = sum(chunks[1:], chunks[0])
    names = [{name: value for name, value in block.items() if name != "index"} for block in streamed.content]
    assert [block["type"] for block in names] == ["reasoning", "text", "tool_call"]
    assert streamed.tool_calls == complete_message.tool_calls
    assert names[1]["text"] == "So: "


class Brief(TypedDict):
    """Control questions."""

    questions: list[str]


class First(FirstBaseModel):
    questions: list[str]


@pytest.mark.parametrize("schema", [Questions, Brief, First, Questions.model_json_schema()])
async def test_structured_output_accepts_every_kind_of_schema(schema: Any) -> None:
    async with FaultServer("openai", THREE) as server:
        provider = CustomProvider(base_url=server.base_url, model="fault-model")
        model = ChatLearnFlow(provider=provider).with_structured_output(schema)
        result = await model.ainvoke("ask")
        assert (result if isinstance(result, dict) else vars(result))["questions"][2] == "Когда?"
        assert isinstance(result, schema if schema in (Questions, First) else dict)
        assert [chunk async for chunk in model.astream("ask")] == [result]
        raw = await ChatLearnFlow(provider=provider).with_structured_output(schema, include_raw=True).ainvoke("ask")
        assert (raw["raw"].content, raw["parsed"], raw["parsing_error"]) == (THREE, result, None)
        response_format = server.seen[0].body["response_format"]
        assert response_format["type"] == "json_schema"
        assert response_format["json_schema"]["schema"]["properties"]["questions"]["type"] == "array"


@pytest.mark.parametrize("schema", [Questions, First])
async def test_schema_mismatch_is_raised_or_returned_with_raw_message(schema: Any) -> None:
    async with FaultServer("openai", '{"questions": 31337}') as server:
        chat = ChatLearnFlow(provider=CustomProvider(base_url=server.base_url, model="fault-model"))
        with pytest.raises(errors.SchemaMismatch) as caught:
            await chat.with_structured_output(schema).ainvoke("ask")
        assert "31337" not in str(caught.value)
        message = await chat.with_structured_output(schema, include_raw=True).ainvoke("ask")
        assert (message["raw"].content, message["parsed"]) == ('{"questions": 31337}', None)
        assert isinstance(message["parsing_error"], errors.SchemaMismatch)


async def test_json_mode_and_function_calling_parse_answers() -> None:
    called = completion(tool_calls=(ToolCall("call_1", "Questions", {"questions": ["Why?"]}),), finish="tool_calls")
    provider = ScriptedProvider([THREE, called])
    chat = ChatLearnFlow(provider=provider)
    assert len((await chat.with_structured_output(Questions, method="json_mode").ainvoke("ask")).questions) == 3
    assert provider.history[0].options["response_format"] == {"type": "json_object"}
    result = await chat.with_structured_output(Questions, method="function_calling").ainvoke("ask")
    assert result == Questions(questions=["Why?"])
    assert provider.history[1].options["tool_choice"]["function"]["name"] == "Questions"
    with pytest.raises(errors.InvalidRequest, match="json_schema, json_mode"):
        chat.with_structured_output(Questions, method="magic")  # type: ignore[arg-type]


async def test_event_loop_runs_while_answer_is_parsed() -> None:
    loop, released = asyncio.get_running_loop(), threading.Event()

    class Slow(Questions):
        @field_validator("questions")
        @classmethod
        def wait(cls, questions: list[str]) -> list[str]:
            loop.call_soon_threadsafe(released.set)
            assert released.wait(30)
            return questions

    called = completion(tool_calls=(ToolCall("call_1", "Slow", {"questions": ["Why?"]}),), finish="tool_calls")
    for include_raw in (False, True):
        released.clear()
        chat = ChatLearnFlow(provider=ScriptedProvider([called]))
        model = chat.with_structured_output(Slow, method="function_calling", include_raw=include_raw)
        parsed = await model.ainvoke("ask")
        assert (parsed["parsed"] if include_raw else parsed) == Slow(questions=["Why?"])


async def test_failover_works_with_bound_schema_and_tools() -> None:
    async with FaultServer("openai", fault=Fault("refuse", status=500)) as dead, FaultServer("ollama", THREE) as other:
        chat = ChatLearnFlow(provider=chain(dead, other))
        assert (await chat.with_structured_output(Questions).ainvoke("ask")).questions[0] == "Why?"
        message = await chat.bind_tools([add]).ainvoke("ask")
        assert (message.response_metadata["provider"], other.seen[-1].body["tools"][0]["type"]) == (
            "ollama",
            "function",
        )


async def test_broken_stream_continues_as_one_text(events_seen: list[object]) -> None:
    text = "one two three four five six seven eight"
    async with (
        FaultServer("openai", text, fault=Fault("cut", after=4)) as dying,
        FaultServer("ollama", text) as other,
    ):
        chunks = [chunk async for chunk in ChatLearnFlow(provider=chain(dying, other)).astream("count")]
        assert "".join(str(chunk.content) for chunk in chunks) == text
        metadata = sum(chunks[1:], chunks[0]).response_metadata
        assert (metadata["provider"], metadata["resumed"], metadata["attempts"]) == ("ollama", 1, 2)


def chain(first: FaultServer, second: FaultServer) -> RouterProvider:
    one = CustomProvider(base_url=first.base_url, model="fault-model")
    return RouterProvider(one, [OllamaProvider(base_url=second.base_url, model="fault-model")])


async def test_abandoned_stream_closes_connection() -> None:
    async with FaultServer("openai", "word " * 50, fault=Fault("stall", after=3)) as server:
        chat = ChatLearnFlow(provider=CustomProvider(base_url=server.base_url, model="fault-model"))
        async for _ in chat.astream("hi"):
            break
        await asyncio.wait_for(server.seen[0].gone.wait(), 30)


async def test_sync_methods_share_connections_and_stop_abandoned_streams() -> None:
    async with FaultServer("openai", "one two three") as server:
        chat = ChatLearnFlow(provider=CustomProvider(base_url=server.base_url, model="fault-model"))
        assert (await asyncio.to_thread(chat.invoke, "hi")).content == "one two three"
        chunks = await asyncio.to_thread(lambda: list(chat.stream("hi")))
        assert [chunk.content for chunk in chunks][:3] == ["one ", "two ", "three"]
        assert [chunk.content for chunk in await asyncio.to_thread(chat.batch, ["a", "b"])] == ["one two three"] * 2
        assert [chunk.content for chunk in await chat.abatch(["a", "b"])] == ["one two three"] * 2
        before = server.connections
        await asyncio.to_thread(chat.invoke, "hi")
        assert server.connections == before  # the connection is reused

        texts = await asyncio.gather(*(asyncio.to_thread(lambda: len(list(chat.stream("hi")))) for _ in range(16)))
        assert set(texts) == {len(chunks)}

        def left() -> None:
            for _ in chat.stream("hi"):
                break

        server.fault = Fault("stall", after=1)
        await asyncio.to_thread(left)
        await asyncio.wait_for(server.seen[-1].gone.wait(), 30)


async def test_unsupported_part_raises_without_its_content() -> None:
    with pytest.raises(errors.InvalidRequest, match="cannot be converted") as caught:
        await ChatLearnFlow(provider=ScriptedProvider()).ainvoke([HumanMessage([{"type": "odd", "data": "SECRET"}])])
    assert "SECRET" not in repr(caught.value)
    assert caught.value.__context__ is None


async def test_tracing_parameters_have_no_key() -> None:
    chat = ChatLearnFlow(provider=ScriptedProvider(name="scripted"), model="small", temperature=0.1, max_tokens=5)
    assert chat._get_ls_params() == {
        "ls_provider": "scripted",
        "ls_model_name": "small",
        "ls_model_type": "chat",
        "ls_temperature": 0.1,
        "ls_max_tokens": 5,
    }
    assert "key" not in repr(ChatLearnFlow(provider=CustomProvider("http://localhost:1", "m", "key-of-custom")))


async def test_provider_errors_pass_unchanged() -> None:
    chat = ChatLearnFlow(provider=ScriptedProvider([errors.RateLimited("busy"), CutAnswer("It beg")]))
    with pytest.raises(errors.RateLimited):
        await chat.ainvoke("hi")
    with pytest.raises(errors.AnswerCut) as caught:
        _ = [chunk async for chunk in chat.astream("hi")]
    assert caught.value.partial == "It beg"


async def test_sync_call_inside_background_loop_raises() -> None:
    chat = ChatLearnFlow(provider=ScriptedProvider(["a"]))

    async def inside() -> object:
        return chat.invoke("hi")

    with pytest.raises(errors.InvalidRequest, match="ainvoke"):
        await asyncio.to_thread(BACKGROUND.run, inside())


UNFINISHED = """
import threading
from learnflow.llm.integrations.langchain import ChatLearnFlow
from learnflow.llm.testing import ScriptedProvider
ends = []
def one():
    chat = ChatLearnFlow(provider=ScriptedProvider(["one two three"]))
    ends.append("".join(chunk.content for chunk in chat.stream("hi")))
threads = [threading.Thread(target=one) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
stream = ChatLearnFlow(provider=ScriptedProvider(["one two three"])).stream("hi")
print(next(stream).content, len(ends), set(ends))
"""


async def test_process_exits_with_unfinished_stream() -> None:
    command = [sys.executable, "-W", "ignore", "-c", UNFINISHED]
    ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.stdout, ran.returncode) == ("one  16 {'one two three'}\n", 0), ran.stderr


def test_cache_keys_differ_by_model_and_address() -> None:
    keys = {
        ChatLearnFlow(provider=RouterProvider(CustomProvider(f"http://localhost:{port}", model)))._get_llm_string()
        for port, model in ((1, "a"), (1, "b"), (2, "a"))
    }
    assert len(keys) == 3


async def test_second_turn_sends_tool_calls_of_content_blocks() -> None:
    called = completion("Let me see.", tool_calls=(ToolCall("call_1", "add", {"a": 1, "b": 2}),), finish="tool_calls")
    provider = ScriptedProvider([called, "3"])
    chat = ChatLearnFlow(provider=provider, output_version="v1").bind_tools([add])
    response_format = HumanMessage("1 + 2?")
    first = await chat.ainvoke([response_format])
    await chat.ainvoke([response_format, first, ToolMessage("3", tool_call_id="call_1")])
    message = provider.history[1].prompt[1]
    assert message["content"] == [{"type": "text", "text": "Let me see."}]
    assert message["tool_calls"][0]["function"]["name"] == "add"


@pytest.mark.parametrize("content", [[{"image_url": {"url": "x"}}], [{"a": 1}]])
async def test_part_without_type_raises(content: Any) -> None:
    with pytest.raises(errors.InvalidRequest, match="cannot be converted"):
        await ChatLearnFlow(provider=ScriptedProvider()).ainvoke([HumanMessage(content)])


async def test_builtin_tool_raises_and_empty_tools_are_not_sent() -> None:
    chat = ChatLearnFlow(provider=ScriptedProvider(["fine", "[1]"]))
    with pytest.raises(errors.Unsupported, match="functions only"):
        chat.bind_tools([{"type": "web_search"}])
    assert (await chat.bind_tools([], tool_choice="auto").ainvoke("hi")).content == "fine"
    with pytest.raises(errors.SchemaMismatch, match="JSON schema"):
        await chat.with_structured_output(Brief).ainvoke("hi")
    assert 1 < chat.get_num_tokens("Ein Satz.") < 10


FORKS = """
import os
from learnflow.llm.integrations.langchain import ChatLearnFlow
from learnflow.llm.testing import ScriptedProvider
chat = ChatLearnFlow(provider=ScriptedProvider(["a", "b"]))
assert chat.invoke("hi").content == "a"
child = os.fork()
if not child:
    os._exit(0 if chat.invoke("hi").content == "b" else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


async def test_forked_process_starts_own_loop() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKS]
    ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout == "0\n", ran.stderr


def test_import_without_langchain_names_package_to_install() -> None:
    code = (
        "import sys; sys.modules['langchain_core'] = None\n"
        "try:\n    import learnflow.llm.integrations.langchain\nexcept ModuleNotFoundError as error:\n    print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.startswith("ChatLearnFlow needs the package langchain-core"), ran.stderr


async def test_secret_in_extra_body_is_in_no_cache_key_trace_or_repr() -> None:
    keys: list[str] = []
    traces: list[str] = []

    class Cache(InMemoryCache):
        def update(self, prompt: str, llm_string: str, return_val: Any) -> None:
            keys.append(prompt + llm_string)
            super().update(prompt, llm_string, return_val)

    class Trace(BaseCallbackHandler):
        def on_chat_model_start(self, serialized: Any, messages: Any, **more: Any) -> None:
            traces.append(repr((serialized, messages, more)))

    provider = ScriptedProvider(["one", "two", "three"])
    secret = {"extra_body": {"auth": {"token": "sk-secret-token"}}}
    model = ChatLearnFlow(provider=provider, model_kwargs=secret, cache=Cache(), callbacks=[Trace()])
    bound = ChatLearnFlow(provider=provider, cache=model.cache, callbacks=[Trace()]).bind(**secret)
    assert [(await model.ainvoke("hi")).content, (await model.ainvoke("hi")).content] == ["one", "one"]
    assert (await bound.ainvoke("hi")).content in ("one", "two")
    other = {"extra_body": {"auth": {"token": "sk-other-token"}}}
    assert (await model.bind(**other).ainvoke("hi")).content != "one"  # another tenant gets another answer
    assert len(traces) == 4
    assert "secret-token" not in "".join([*keys, *traces, repr(model)])
    assert provider.history[0].options["extra_body"] == secret["extra_body"]


@pytest.mark.parametrize("extra", [5, "x", {"tool_calls": 5}, [1]])
async def test_stored_message_with_invalid_further_fields_raises_our_error(extra: Any) -> None:
    messages = [AIMessage("Hi.", additional_kwargs={"learnflow_extra": extra}), HumanMessage("Why?")]
    with pytest.raises(errors.InvalidRequest):
        await ChatLearnFlow(provider=ScriptedProvider(["unused"])).ainvoke(messages)


async def test_keyword_that_is_the_input_raises_our_error() -> None:
    with pytest.raises(errors.InvalidRequest, match="prompt="):
        await ChatLearnFlow(provider=ScriptedProvider(["unused"])).ainvoke("ask", prompt="another")


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("schema", [5, int, {}, {"type": "integer"}])
def test_schema_that_langchain_cannot_convert_raises_our_error(schema: Any, method: Any) -> None:
    with pytest.raises(errors.InvalidRequest, match="schema"):
        ChatLearnFlow(provider=ScriptedProvider(["unused"])).with_structured_output(schema, method=method)
