"""OpenAI's Responses API: the choice of the API, the request, and the response as OpenAI's documents show it.

The stream is written from OpenAI's reference of streaming events (openai-openapi f85dbe2, 2026-08-21).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage, ToolMessage
from odd_server import HOWS, OddServer, Reply, answered, body, good, openai_error, refusal, sse, tool
from pydantic import BaseModel
from support import provider_for

from learnflow.llm import RouterProvider, errors
from learnflow.llm.adapter.provider import BaseProvider
from learnflow.llm.completion import Usage
from learnflow.llm.integrations.langchain import ChatLearnFlow
from learnflow.llm.providers import AzureProvider, CustomProvider, OllamaProvider, OpenAIProvider, build
from learnflow.llm.servers.model_prices import needs_responses
from learnflow.llm.testing import Fault, FaultServer
from learnflow.llm.transport.responses_parser import ResponsesParser

KEY: Final = "k-0123456789abcdef"
TOOLS: Final = [tool("define", "term")]
PICTURE: Final = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
TEXT: Final = "RSA — это 🔐 «криптосистема».\n"
SUMMARY: Final = ("**Naming** the terms", "Then the key.")
REASONING: Final = {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "gAAAAB-sealed"}
CALLS: Final = (("call_a", "define", '{"term": "key"}'), ("call_b", "define", '{"term": "lock \u2028 🔐"}'))
USAGE: Final = {
    "input_tokens": 75,
    "input_tokens_details": {"cached_tokens": 64},
    "output_tokens": 1186,
    "output_tokens_details": {"reasoning_tokens": 1024},
    "total_tokens": 1261,
}
USE_RESPONSES: Final = (
    "Function tools with reasoning_effort are not supported for m in /v1/chat/completions. Please use /v1/responses."
)
ONLY_RESPONSES: Final = "This model is only supported in v1/responses and not in v1/chat/completions."


def message(text: str, kind: str = "output_text") -> dict[str, Any]:
    field = "refusal" if kind == "refusal" else "text"
    content = {"type": kind, field: text, **({} if field == "refusal" else {"annotations": [], "logprobs": []})}
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [content]}


def call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    item = {"id": f"fc_{call_id}", "type": "function_call", "status": "completed", "call_id": call_id}
    return {**item, "name": name, "arguments": arguments}


def reasoning(*summary: str) -> dict[str, Any]:
    return {**REASONING, "summary": [{"type": "summary_text", "text": text} for text in summary]}


def response(*items: Mapping[str, Any], status: str = "completed", **more: Any) -> dict[str, Any]:
    fields = {"id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-6-sol-2026-09-22", "status": status}
    fields |= {"error": None, "incomplete_details": None, "instructions": None, "output": list(items), "usage": USAGE}
    fields |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "metadata": {}, "store": False}
    return fields | more


def events(*items: Mapping[str, Any], end: Any = ..., **more: Any) -> list[dict[str, Any]]:
    """Return the events of a response, in OpenAI's order."""
    begun = response(status="in_progress", usage=None)
    made: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    for index, item in enumerate(items):
        made += _item_events({"item_id": item["id"], "output_index": index}, item)
    ended = response(*items, **more)
    made += [{"type": f"response.{ended['status']}", "response": ended}] if end is ... else end
    return [{**event, "sequence_number": number} for number, event in enumerate(made)]


def _item_events(place: dict[str, Any], item: Mapping[str, Any]) -> list[dict[str, Any]]:
    index = {"output_index": place["output_index"]}
    empty = {"content": [], "summary": [], "arguments": ""}
    begun = {**item, **{name: value for name, value in empty.items() if name in item}, "status": "in_progress"}
    made: list[dict[str, Any]] = [{"type": "response.output_item.added", **index, "item": begun}]

    def pieces(name: str, text: str, **at: Any) -> None:
        cut = len(text) // 2
        for delta in (text[:cut], text[cut:]):
            made.append({"type": f"response.{name}.delta", **place, **at, "delta": delta, "obfuscation": "xyz"})

    for number, content in enumerate(item.get("content") or ()):
        at = {"content_index": number}
        made.append({"type": "response.content_part.added", **place, **at, "part": content})
        pieces(content["type"], content.get("text") or content.get("refusal"), **at)
        made.append({"type": f"response.{content['type']}.done", **place, **at, **content})
        made.append({"type": "response.content_part.done", **place, **at, "part": content})
    for number, part in enumerate(item.get("summary") or ()):
        at = {"summary_index": number}
        made.append({"type": "response.reasoning_summary_part.added", **place, **at, "part": {**part, "text": ""}})
        pieces("reasoning_summary_text", part["text"], **at)
        made.append({"type": "response.reasoning_summary_text.done", **place, **at, "text": part["text"]})
        made.append({"type": "response.reasoning_summary_part.done", **place, **at, "part": part})
    if "arguments" in item:
        pieces("function_call_arguments", item["arguments"])
        made.append({"type": "response.function_call_arguments.done", **place, "arguments": item["arguments"]})
    return [*made, {"type": "response.output_item.done", **index, "item": dict(item)}]


def stream(*items: Mapping[str, Any], **more: Any) -> Reply:
    slice_bytes = more.pop("slice_bytes", None)
    parts = [event_bytes(event) for event in events(*items, **more)]
    return sse(*parts, slice_bytes=slice_bytes)


def event_bytes(event: Mapping[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


def custom(url: str, **more: Any) -> BaseProvider:
    return CustomProvider(url, "study-7b", KEY, **{"api": "responses", **more})


ITEMS: Final = (reasoning(*SUMMARY), message(TEXT), *(call(*fields) for fields in CALLS))


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("slice_bytes", [None, 1, 7])
async def test_documented_response_is_read_whole(how: str, slice_bytes: int | None) -> None:
    async with OddServer(stream(*ITEMS, slice_bytes=slice_bytes)) as server:
        done = await answered(custom(server.base_url), how, tools=TOOLS)
    assert (done.text, done.finish, done.model.served) == (TEXT, "tool_calls", "gpt-6-sol-2026-09-22")
    assert done.reasoning == "\n\n".join(SUMMARY)
    assert [(call.id, call.name, json.dumps(call.arguments)) for call in done.tool_calls] == [
        (call_id, name, json.dumps(json.loads(arguments))) for call_id, name, arguments in CALLS
    ]
    assert done.usage == Usage(75, 1186, 1261, 1024, 64)


async def test_openai_package_reads_the_same_from_the_same_bytes() -> None:
    async with OddServer(stream(*ITEMS)) as server:
        ours = await custom(server.base_url).complete("hi", tools=TOOLS)
        client = openai.AsyncOpenAI(base_url=server.base_url, api_key=KEY, max_retries=0)
        async with client:
            read = [event async for event in await client.responses.create(model="m", input="hi", stream=True)]
    theirs = read[-1].response  # type: ignore[union-attr]
    theirs_calls = [item for item in theirs.output if item.type == "function_call"]
    assert ours.text == theirs.output_text == "".join(e.delta for e in read if e.type == "response.output_text.delta")
    assert [(one.id, one.name, one.arguments) for one in ours.tool_calls] == [
        (item.call_id, item.name, json.loads(item.arguments)) for item in theirs_calls
    ]
    assert theirs.usage
    counts = theirs.usage.input_tokens, theirs.usage.output_tokens, theirs.usage.total_tokens
    assert (ours.usage.prompt_tokens, ours.usage.completion_tokens, ours.usage.total_tokens) == counts
    assert ours.usage.cached_tokens == theirs.usage.input_tokens_details.cached_tokens
    assert ours.usage.reasoning_tokens == theirs.usage.output_tokens_details.reasoning_tokens
    assert ours.model.served == theirs.model


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(body(response(*ITEMS)), id="one document"),
        pytest.param(sse(event_bytes(events(*ITEMS)[-1])), id="only the last event"),
        pytest.param(
            sse(*(event_bytes(e) for e in events(*ITEMS) if ".delta" not in e["type"])), id="items without pieces"
        ),
        pytest.param(
            sse(*(b"data: " + json.dumps(e).encode() + b"\n\n" for e in events(*ITEMS)), b"data: [DONE]\n\n"),
            id="without event lines, with [DONE]",
        ),
        pytest.param(
            sse(*(event_bytes(e | {"output_index": None}) for e in events(*ITEMS))), id="without output_index"
        ),
        pytest.param(
            sse(*(event_bytes(e | {"output_index": None}) for e in events(*ITEMS) if "item.done" not in e["type"])),
            id="without output_index, only the response repeats the items",
        ),
        pytest.param(
            sse(b'event: x\ndata: {"type": "x.unknown", "delta": "no"}\n\n', stream(*ITEMS).body), id="unknown"
        ),
    ],
)
@pytest.mark.parametrize("how", HOWS)
async def test_other_forms_of_the_response_are_read_whole(reply: Reply, how: str) -> None:
    async with OddServer(reply) as server:
        done = await answered(custom(server.base_url), how, tools=TOOLS)
    assert done.text == TEXT
    assert [call.id for call in done.tool_calls] == ["call_a", "call_b"]
    assert done.usage.reasoning_tokens == 1024


SAID: Final = events(message("Half an answer"))[:-1]


@pytest.mark.parametrize(
    ("end", "error"),
    [
        ([], errors.AnswerCut),
        ([{"type": "response.incomplete", "response": response(status="incomplete")}], errors.UnknownFinish),
        (
            [
                {
                    "type": "response.incomplete",
                    "response": response(status="incomplete", incomplete_details={"reason": "content_filter"}),
                }
            ],
            errors.ContentFiltered,
        ),
        (
            [
                {
                    "type": "response.incomplete",
                    "response": response(status="incomplete", incomplete_details={"reason": "lunch"}),
                }
            ],
            errors.UnknownFinish,
        ),
        ([{"type": "response.cancelled", "response": response(status="cancelled")}], errors.UnknownFinish),
        (
            [
                {
                    "type": "response.failed",
                    "response": response(status="failed", error={"code": "server_error", "message": "The model died."}),
                }
            ],
            errors.ErrorInAnswer,
        ),
        (
            [
                {
                    "type": "response.failed",
                    "response": response(
                        status="failed", error={"code": "rate_limit_exceeded", "message": "Please slow down."}
                    ),
                }
            ],
            errors.RateLimited,
        ),
        ([{"type": "error", "code": "server_error", "message": "Gone.", "param": None}], errors.ErrorInAnswer),
        ([{"type": "error", "error": {"code": "insufficient_quota", "message": "No."}}], errors.QuotaExceeded),
        ([{"type": "response.output_text.delta", "output_index": 1, "delta": 5}], errors.MalformedAnswer),
        (
            [
                {"type": "response.completed", "response": response(message("Half an answer"))},
                {"type": "response.output_text.delta", "output_index": 1, "delta": "more"},
            ],
            errors.MalformedAnswer,
        ),
        (
            [
                {
                    "type": "response.output_item.done",
                    "output_index": 1,
                    "item": {"type": "custom_tool_call", "call_id": "c"},
                }
            ],
            errors.MalformedAnswer,
        ),
    ],
)
async def test_incomplete_response_raises_its_error_after_the_text(
    end: list[Any], error: type[errors.LLMError]
) -> None:
    async with OddServer(sse(*map(event_bytes, [*SAID, *end]))) as server:
        pieces: list[str] = []
        with pytest.raises(errors.LLMError) as caught:
            async with custom(server.base_url).stream("hi") as answer:
                async for piece in answer:
                    pieces.append(piece)
    assert type(caught.value) is error
    assert "".join(pieces) == caught.value.partial == "Half an answer"


async def test_limit_of_tokens_is_finish_length() -> None:
    limit = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    async with OddServer(stream(message("Half"), **limit)) as server:
        assert (await custom(server.base_url).complete("hi", max_tokens=20)).finish == "length"
    async with OddServer(stream(reasoning("Thinking"), **limit)) as server:
        with pytest.raises(errors.AnswerTruncated):
            await custom(server.base_url).complete("hi", max_tokens=20)


@pytest.mark.parametrize(
    "reply", [stream(message("I cannot help.", "refusal")), body(response(message("No.", "refusal")))]
)
async def test_refusal_of_the_model_is_content_filtered(reply: Reply) -> None:
    async with OddServer(reply) as server:
        with pytest.raises(errors.ContentFiltered):
            await custom(server.base_url).complete("hi")


class Card(BaseModel):
    term: str


async def test_request_has_what_the_caller_gave() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "one"}, PICTURE]},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    async with OddServer(stream(message('{"term": "key"}'))) as server:
        provider = OpenAIProvider(server.base_url, "gpt-6-sol", KEY, api="responses")
        done = await provider.complete(
            messages,
            system="Be brief",
            temperature=0.3,
            max_tokens=50,
            top_p=0.9,
            response_format=Card,
            reasoning="high",
            session="s1",
            extra_body={"verbosity": "low", "service_tier": "flex"},
        )
    assert done.parsed == Card(term="key")
    (sent,) = server.bodies
    items = sent.pop("input")
    if system := sent.pop("instructions", None):  # since 1.110 LiteLLM writes a message
        items.insert(0, {"role": "system", "content": [{"text": system}]})
    assert [item["role"] for item in items] == ["system", "user", "assistant", "user"]
    assert items[0]["content"][0]["text"] == "Be brief"
    assert items[1]["content"][1]["image_url"] == PICTURE["image_url"]["url"]
    schema = sent["text"].pop("format")
    assert (schema["type"], schema["strict"], list(schema["schema"]["properties"])) == ("json_schema", True, ["term"])
    assert sent == {
        "model": "gpt-6-sol",
        "temperature": 0.3,
        "max_output_tokens": 50,
        "top_p": 0.9,
        "text": {"verbosity": "low"},
        "reasoning": {"effort": "high", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "s1",
        "service_tier": "flex",
        "store": False,
        "stream": True,
    }


async def test_tools_and_their_results_are_sent() -> None:
    called = {"id": "call_a", "type": "function", "function": {"name": "define", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Define key"},
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_a", "content": "opens locks"},
    ]
    choice = {"type": "function", "function": {"name": "define"}}
    async with OddServer(stream(call(*CALLS[0]))) as server:
        await custom(server.base_url).complete(messages, tools=TOOLS, tool_choice=choice)
    (sent,) = server.bodies
    assert (sent["tools"][0]["name"], sent["tool_choice"]) == ("define", {"type": "function", "name": "define"})
    assert sent["tools"][0]["parameters"] == TOOLS[0]["function"]["parameters"]
    assert [item.get("call_id") for item in sent["input"]] == [None, "call_a", "call_a"]
    assert "opens locks" in json.dumps(sent["input"][2])


async def test_extra_body_wins_over_what_is_written() -> None:
    extra = {"max_output_tokens": 99, "text": {"verbosity": "low"}, "reasoning_effort": "low", "x-own": [1]}
    async with OddServer(stream(message('{"term": "key"}'))) as server:
        await custom(server.base_url).complete("hi", response_format=Card, extra_body=extra)
    (sent,) = server.bodies
    assert (sent["max_output_tokens"], sent["reasoning"], sent["x-own"]) == (99, {"effort": "low"}, [1])
    assert (sent["text"]["verbosity"], sent["text"]["format"]["type"]) == ("low", "json_schema")


@pytest.mark.parametrize(
    ("keywords", "names"),
    [
        ({"stop": ["END"]}, ("stop",)),
        ({"seed": 1, "temperature": 1}, ("seed",)),
        ({"frequency_penalty": 0.5, "presence_penalty": 0.5}, ("frequency_penalty", "presence_penalty")),
        ({"tools": [{"type": "function", "function": {"name": "f"}, "x-note": "secret word"}]}, ()),
    ],
)
async def test_what_the_responses_api_lacks_is_refused_by_name(
    keywords: dict[str, Any], names: tuple[str, ...]
) -> None:
    async with OddServer(stream(message("hi"))) as server:
        with pytest.raises(errors.Unsupported) as caught:
            await custom(server.base_url).complete("hi", **keywords)
    assert not server.bodies
    assert all(name in str(caught.value) for name in names)
    assert "CUSTOM_API=chat" in caught.value.hint


async def test_part_that_the_responses_api_lacks_is_refused() -> None:
    video = {"type": "video_url", "video_url": {"url": "https://videos.example/1"}}
    async with OddServer(stream(message("hi"))) as server:
        with pytest.raises(errors.Unsupported):
            await custom(server.base_url).complete([{"role": "user", "content": [video]}])
    assert not server.bodies


@pytest.mark.parametrize(
    ("name", "model", "keywords", "api"),
    [
        ("openai", "gpt-5-pro", {}, "responses"),  # its mode
        ("openai", "gpt-6-sol", {}, "chat"),
        ("openai", "gpt-6-sol", {"tools": TOOLS}, "responses"),
        ("openai", "gpt-6-sol", {"tools": TOOLS, "reasoning": "low"}, "responses"),
        ("openai", "gpt-6-sol", {"tools": TOOLS, "reasoning": False}, "chat"),  # it has the effort "none"
        ("openai", "gpt-6-sol", {"tools": TOOLS, "reasoning": "none"}, "chat"),
        ("openai", "gpt-6-astra", {"tools": TOOLS, "reasoning": False}, "responses"),  # it has not
        ("openai", "gpt-4.1", {"tools": TOOLS}, "chat"),  # it does not reason
        ("openai", "model-of-next-year", {"tools": TOOLS}, "chat"),
        ("azure", "gpt-5-pro", {}, "responses"),
        ("azure", "my-deployment", {"tools": TOOLS}, "chat"),
        ("xai", "grok-4.20-multi-agent", {}, "responses"),
        ("anthropic", "claude-opus-4-7", {"tools": TOOLS}, "chat"),
        ("openrouter", "openai/gpt-6-sol", {"tools": TOOLS}, "chat"),
        ("ollama", "gpt-6-sol", {"tools": TOOLS}, "chat"),
    ],
)
def test_api_follows_from_model_and_tools(name: str, model: str, keywords: dict[str, Any], api: str) -> None:
    spec = build(name, "https://cloud.example/v1", model, KEY).spec
    thinks = keywords.get("reasoning") not in (False, "none")
    assert needs_responses(spec, model, tools="tools" in keywords, reasoning=thinks) == (api == "responses")


def switching(chat: Reply, responses: Reply) -> Callable[[dict[str, Any]], Reply]:
    """Return a server with both APIs."""
    return lambda sent: responses if "input" in sent else chat


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    "reply",
    [refusal(400, openai_error(USE_RESPONSES)), refusal(404, openai_error(ONLY_RESPONSES, param="model"))],
    ids=["400", "404"],
)
async def test_refusal_that_names_the_responses_api_is_sent_there_and_remembered(reply: Reply, how: str) -> None:
    async with OddServer(switching(reply, stream(message(TEXT)))) as server:
        provider = CustomProvider(server.base_url, "study-7b", KEY)
        for _ in range(2):
            assert (await answered(provider, how, tools=TOOLS)).text == TEXT
        assert ["input" in sent for sent in server.bodies] == [False, True, True]
        with pytest.raises(errors.CapabilityError, match="v1/responses"):
            await CustomProvider(server.base_url, "study-7b", KEY, api="chat").complete("hi")


async def test_server_without_the_responses_api_gets_chat_completions() -> None:
    """The map requires the Responses API for this model, but a gateway serves it by chat completions."""
    missing = body({"error": "not found"}, 404)
    async with OddServer(switching(good(TEXT), missing)) as server:
        provider = OpenAIProvider(server.base_url, "gpt-6-sol", KEY)
        for _ in range(2):
            assert (await provider.complete("hi", tools=TOOLS)).text == TEXT
        assert ["input" in sent for sent in server.bodies] == [True, False, False]


@pytest.mark.parametrize(
    "refused",
    [
        refusal(
            400, {"error": {"code": "BadRequest", "message": "It is enabled only for api-version 2025-03-01-preview"}}
        ),
        refusal(400, openai_error("The feature is not supported in this region.")),
    ],
)
async def test_refusal_of_an_api_that_the_map_chose_is_sent_to_the_other(refused: Reply) -> None:
    async with OddServer(switching(good(TEXT), refused)) as server:
        provider = AzureProvider(server.root, "gpt-5", KEY)
        for _ in range(2):
            assert (await provider.complete("hi", tools=TOOLS)).text == TEXT
        assert ["input" in sent for sent in server.bodies][-3:] == [True, False, False]


async def test_server_that_refuses_both_apis_gets_each_once_and_the_first_refusal_is_raised() -> None:
    refusing = refusal(400, openai_error(USE_RESPONSES))
    first = refusal(400, openai_error("Invalid schema for function 'define'.", param="tools"))
    async with OddServer(switching(refusing, first)) as server:
        with pytest.raises(errors.LLMError, match="Invalid schema"):
            await OpenAIProvider(server.base_url, "gpt-6-sol", KEY).complete("hi", tools=TOOLS)
    assert ["input" in sent for sent in server.bodies] == [True, False]


async def test_model_without_chat_completions_is_not_sent_there() -> None:
    async with OddServer(refusal(400, openai_error("Invalid input.", param="input"))) as server:
        with pytest.raises(errors.RequestRefused, match="Invalid input"):
            await OpenAIProvider(server.base_url, "gpt-5-pro", KEY).complete("hi")
    assert ["input" in sent for sent in server.bodies] == [True]


EVENTS: Final = sorted(
    {event["type"] for event in events(*ITEMS)} | {"error", "response.failed", "response.incomplete"}
)
_VALUES: Final = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.sampled_from(["", "x", "function_call", "reasoning", "completed"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from([*response(), *ITEMS[0], *ITEMS[2], "item", "text", "delta", "reason"]), inner
        )
    ),
    max_leaves=12,
)
_FIELDS: Final = ("response", "item", "delta", "output_index", "error", "summary_index")


@given(
    data=st.lists(st.tuples(st.sampled_from(EVENTS), st.dictionaries(st.sampled_from(_FIELDS), _VALUES)), max_size=6)
)
def test_events_of_any_shape_are_complete_or_a_fault(data: list[tuple[str, dict[str, Any]]]) -> None:
    for document in (False, True):
        parser = ResponsesParser()
        for kind, fields in data:
            sent = fields.get("response") if document else {"type": kind, **fields}
            parser.feed(json.dumps(sent).encode() if document else b"data: " + json.dumps(sent).encode() + b"\n\n")
        parser.end()
        assert parser.fault is None or isinstance(parser.fault, errors.LLMError)
        assert parser.fault or parser.finish


@pytest.mark.parametrize("name", ["include", "reasoning.summary", "temperature", "max_output_tokens", "stream"])
async def test_default_that_the_model_refuses_is_left_out(name: str) -> None:
    refused = refusal(
        400, openai_error(f"Unsupported parameter: '{name}' is not supported with this model.", param=name)
    )

    def reply(sent: dict[str, Any]) -> Reply:
        fields = {"reasoning.summary": sent["reasoning"].get("summary"), **sent}
        if name == "stream":
            return refused if sent["stream"] else body(response(message(TEXT)))
        return refused if fields.get(name) else stream(message(TEXT))

    async with OddServer(reply) as server:
        assert (await custom(server.base_url).complete("hi", reasoning="low")).text == TEXT
    assert len(server.bodies) == 2


async def test_answer_is_stored_only_if_the_caller_asks() -> None:
    async with OddServer(stream(message(TEXT))) as server:
        await custom(server.base_url).complete("hi", extra_body={"store": True})
    (sent,) = server.bodies
    assert sent["store"] is True
    assert "include" not in sent


def wants_reasoning(sent: dict[str, Any]) -> Reply:
    """Return a call to the first turn, and a text to a second one that has the reasoning before the call."""
    items = [item["type"] for item in sent["input"]]
    if "function_call" not in items:
        return stream(reasoning("Look it up"), call(*CALLS[0]))
    carried = sent["input"][items.index("function_call") - 1]
    expected = {key: reasoning("Look it up")[key] for key in ("id", "type", "summary", "encrypted_content")}
    return stream(message(TEXT)) if carried == expected else refusal(400, openai_error("reasoning is missing"))


@pytest.mark.parametrize("stored", [True, False])
async def test_encrypted_reasoning_comes_back_with_the_next_turn(stored: bool) -> None:
    async with OddServer(wants_reasoning) as server:
        provider = custom(server.base_url)
        first = await provider.complete("Define key", tools=TOOLS)
        turn: Any = json.loads(json.dumps(first.message())) if stored else first.message()
        result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "opens locks"}
        messages = [{"role": "user", "content": "Define key"}, turn, result]
        assert (await provider.complete(messages, tools=TOOLS)).text == TEXT


async def test_langchain_returns_encrypted_reasoning() -> None:
    async with OddServer(wants_reasoning) as server:
        model = ChatLearnFlow(provider=custom(server.base_url)).bind_tools(TOOLS)
        first = await model.ainvoke("Define key")
        result = ToolMessage("opens locks", tool_call_id=first.tool_calls[0]["id"])
        assert (await model.ainvoke([HumanMessage("Define key"), first, result])).content == TEXT


async def test_chat_completions_do_not_get_encrypted_reasoning() -> None:
    async with OddServer(switching(good(TEXT), stream(reasoning(), message("Yes.")))) as server:
        first = await custom(server.base_url).complete("hi")
        assert first.extra
        messages = [{"role": "user", "content": "hi"}, first.message(), {"role": "user", "content": "Why?"}]
        await CustomProvider(server.base_url, "study-7b", KEY).complete(messages)
    assert "reasoning_items" not in json.dumps(server.bodies[1])


@pytest.mark.parametrize(
    ("first", "second"), [("responses", "vllm"), ("vllm", "responses"), ("responses", "responses")]
)
async def test_text_is_continued_across_apis(first: Any, second: Any) -> None:
    text = "The quick brown fox jumps over the lazy dog."
    for after in range(1, 9):
        async with FaultServer(first, text, fault=Fault("drop", after=after)) as one, FaultServer(second, text) as two:
            done = await RouterProvider(provider_for(one), [provider_for(two)]).complete("hi")
        assert (done.text, done.resumed) == (text, 1)


async def test_answer_that_fails_its_schema_is_corrected() -> None:
    def reply(sent: dict[str, Any]) -> Reply:
        return stream(message('{"term": "key"}' if len(sent["input"]) > 1 else '{"word": 1}'))

    async with OddServer(reply) as server:
        done = await custom(server.base_url).complete("hi", response_format=Card)
    assert (done.parsed, done.attempts) == (Card(term="key"), 2)
    assert server.bodies[1]["input"][1]["content"][0]["text"] == '{"word": 1}'


@pytest.mark.parametrize(
    ("url", "version", "path"),
    [
        ("", "2025-04-01-preview", "/openai/responses?api-version=2025-04-01-preview"),
        ("/openai/v1", None, "/openai/v1/responses"),
        ("/openai/v1/responses", None, "/openai/v1/responses"),
    ],
)
async def test_azure_has_the_path_of_its_api(
    url: str, version: str | None, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if version:
        monkeypatch.setenv("AZURE_API_VERSION", version)
    async with OddServer(stream(message(TEXT))) as server:
        await AzureProvider(server.root + url, "study", KEY, api="responses").complete("hi")
    assert [seen.path for seen in server.seen] == [path]


async def test_variable_chooses_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE_API", "responses")
    monkeypatch.setenv("MINE_KIND", "openai")
    async with OddServer(stream(message(TEXT))) as server:
        assert await build("mine", server.base_url, "m", KEY).generate("hi") == TEXT
    monkeypatch.setenv("MINE_API", "soap")
    with pytest.raises(errors.NotConfigured, match="MINE_API"):
        build("mine", "http://127.0.0.1:1/v1", "m", KEY)


def test_vendor_without_the_api_refuses_the_setting() -> None:
    with pytest.raises(errors.NotConfigured) as caught:
        OllamaProvider(api="responses")
    assert "OLLAMA_API" in caught.value.hint
