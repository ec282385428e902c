"""What a call or a message carries comes back with the next turn, to the provider and address that sent it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pytest
from odd_server import (
    DONE,
    HOWS,
    KEY,
    MODEL,
    TOOLS,
    OddServer,
    Reply,
    answered,
    body,
    calls,
    chunk,
    custom,
    good,
    openai_error,
    piece,
    refusal,
    rows,
    said,
    sse,
    whole,
)
from support import router

from learnflow.llm import Completion, LLMProvider, errors
from learnflow.llm.completion import ToolCallDelta
from learnflow.llm.providers import GeminiProvider, OllamaProvider, OpenRouterProvider, build
from learnflow.llm.testing import FaultServer

ARGUMENTS: Final = '{"term": "key"}'
SIGNATURE: Final = {"google": {"thought_signature": "c2lnbmF0dXJlLTE="}}
THOUGHTS: Final = "The reader asks for a term."
_MISSING: Final = refusal(400, openai_error("A field of the previous turn was not returned."))


@dataclass(frozen=True)
class Row:
    """A server that requires a field of its first answer back.

    Attributes:
        make: creates the provider.
        first: the first answer, with a call.
        returned: checks the assistant's message of the second request.
    """

    id: str
    seen: str
    make: Callable[[str], LLMProvider]
    first: Reply
    returned: Callable[[Mapping[str, Any]], bool]

    def reply(self, request: dict[str, Any]) -> Reply:
        mine = [message for message in request["messages"] if message["role"] == "assistant"]
        if not mine:
            return self.first
        return good("A key opens a lock.") if self.returned(mine[0]) else _MISSING


def deepseek(url: str) -> LLMProvider:
    return build("deepseek", url, "deepseek-v4-pro", KEY)


def gemini(url: str) -> LLMProvider:
    return GeminiProvider(url, "gemini-3-flash", KEY)


def openrouter(url: str) -> LLMProvider:
    return OpenRouterProvider(url, "study/model", KEY)


def ended(*parts: Any) -> Reply:
    return sse(chunk({"role": "assistant"}), *parts, chunk(finish="tool_calls"), DONE)


def signed(*signatures: Any) -> Callable[[Mapping[str, Any]], bool]:
    """Check that each call of the message has its own ``extra_content``; None for a call without one."""
    return lambda message: [call.get("extra_content") for call in message["tool_calls"]] == list(signatures)


def details(*expected: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], bool]:
    """Check ``reasoning_details``: the order, every opaque field, and the joined text of each entry."""

    def check(message: Mapping[str, Any]) -> bool:
        merged: list[dict[str, Any]] = []
        for entry in message.get("reasoning_details") or ():
            if merged and merged[-1].get("index") == entry.get("index") and merged[-1]["type"] == entry["type"]:
                text = {"text": merged[-1].get("text", "") + entry.get("text", "")} if "text" in entry else {}
                merged[-1] |= {**entry, **text}
            else:
                merged.append(dict(entry))
        return merged == list(expected)

    return check


TEXT_DETAIL: Final = {"type": "reasoning.text", "index": 0, "format": "anthropic-claude-v1"}
ENCRYPTED: Final = {"type": "reasoning.encrypted", "index": 1, "id": "rs_1", "data": "b3BhcXVl"}
CALL: Final = piece(0, "a1", "define", ARGUMENTS)

TABLE = (
    Row(
        "a signature in extra_content of a streamed call",
        "github.com/securo-finance/securo/issues/884 (2026-09), github.com/noho/dayu-agent/issues/45 (2026-04), "
        "github.com/JetBrains/koog/pull/2183 (2026-07)",
        gemini,
        ended(calls({**CALL, "extra_content": SIGNATURE})),
        signed(SIGNATURE),
    ),
    Row(
        "a signature in extra_content of a call in one piece",
        "github.com/JetBrains/koog/pull/2183 (2026-07)",
        gemini,
        body(whole({"content": None, "tool_calls": [{**CALL, "extra_content": SIGNATURE}]}, "tool_calls")),
        signed(SIGNATURE),
    ),
    Row(
        "a signature in a later piece of the call",
        "github.com/NousResearch/hermes-agent/pull/2997 (2026-03), github.com/ServiceNow/eva/pull/206 (2026-08)",
        gemini,
        ended(calls(CALL), calls({"index": 0, "function": {"arguments": ""}, "extra_content": SIGNATURE})),
        signed(SIGNATURE),
    ),
    Row(
        "a signature of the first of two calls only",
        "github.com/noho/dayu-agent/issues/45 (2026-04)",
        gemini,
        ended(calls({**CALL, "extra_content": SIGNATURE}, piece(1, "b2", "define", ARGUMENTS))),
        signed(SIGNATURE, None),
    ),
    Row(
        "a signature in the namespace vertex, at an unknown address",
        "github.com/can1357/oh-my-pi/pull/10173 (2026-08)",
        custom,
        ended(calls({**CALL, "extra_content": {"vertex": {"thought_signature": "djE="}}})),
        signed({"vertex": {"thought_signature": "djE="}}),
    ),
    Row(
        "an unknown field of a call",
        "github.com/ServiceNow/eva/pull/206 (2026-08: any key that the library does not know)",
        custom,
        ended(calls({**CALL, "provider_token": {"v": 3, "t": "YWJj"}})),
        lambda message: message["tool_calls"][0].get("provider_token") == {"v": 3, "t": "YWJj"},
    ),
    Row(
        "reasoning_content of a streamed message with a call",
        "github.com/JohnnyZ93/oai-compatible-copilot/issues/215 (2026-04), "
        "github.com/earendil-works/pi/issues/3636 (2026-04), github.com/the-open-agent/openagent/issues/2206 (2026-05)",
        deepseek,
        ended(*(chunk({"reasoning_content": text}) for text in (THOUGHTS[:9], THOUGHTS[9:])), calls(CALL)),
        lambda message: message.get("reasoning_content") == THOUGHTS,
    ),
    Row(
        "reasoning_content of a message in one piece",
        "github.com/SaladDay/cc-switch-cli/issues/170 (2026-05)",
        deepseek,
        body(whole({"content": "", "reasoning_content": THOUGHTS, "tool_calls": [CALL]}, "tool_calls")),
        lambda message: message.get("reasoning_content") == THOUGHTS,
    ),
    Row(
        "reasoning_content at a gateway of unknown kind",
        "github.com/smallmain/vscode-unify-chat-provider/issues/286 (2026-08)",
        custom,
        ended(chunk({"reasoning_content": THOUGHTS}), calls(CALL)),
        lambda message: message.get("reasoning_content") == THOUGHTS,
    ),
    Row(
        "reasoning_content that is an empty string",
        "github.com/HKUDS/nanobot/issues/946 (2026-02), github.com/continuedev/continue/issues/11285 (2026-03)",
        deepseek,
        ended(chunk({"content": None, "reasoning_content": ""}), calls(CALL)),
        lambda message: message.get("reasoning_content") == "",
    ),
    Row(
        "content beside reasoning_content is a string, not null",
        "github.com/can1357/oh-my-pi/pull/788 (2026-04)",
        deepseek,
        ended(chunk({"content": None, "reasoning_content": THOUGHTS}), calls(CALL)),
        lambda message: message.get("reasoning_content") == THOUGHTS and isinstance(message.get("content"), str),
    ),
    Row(
        "reasoning_details with a signature, in pieces",
        "github.com/jeremychone/rust-genai/issues/298 (2026-09), github.com/reVrost/go-openrouter/pull/56 (2026-05)",
        openrouter,
        ended(
            chunk({"reasoning": THOUGHTS[:9], "reasoning_details": [{**TEXT_DETAIL, "text": THOUGHTS[:9]}]}),
            chunk({"reasoning": THOUGHTS[9:], "reasoning_details": [{**TEXT_DETAIL, "text": THOUGHTS[9:]}]}),
            chunk({"reasoning_details": [{**TEXT_DETAIL, "signature": "c2ln"}]}),
            calls(CALL),
        ),
        details({**TEXT_DETAIL, "text": THOUGHTS, "signature": "c2ln"}),
    ),
    Row(
        "reasoning_details of two kinds",
        "github.com/earendil-works/pi/issues/989 (2026-01), github.com/microsoft/agent-framework/issues/2947 (2025-12)",
        openrouter,
        ended(
            chunk({"reasoning_details": [{**TEXT_DETAIL, "text": THOUGHTS}]}),
            chunk({"reasoning_details": [ENCRYPTED]}),
            calls(CALL),
        ),
        details({**TEXT_DETAIL, "text": THOUGHTS}, ENCRYPTED),
    ),
    Row(
        "reasoning_details of a message in one piece",
        "github.com/home-assistant/core/issues/159812 (2025-12), github.com/maximhq/bifrost/pull/5277",
        openrouter,
        body(whole({"content": "", "tool_calls": [CALL], "reasoning_details": [ENCRYPTED]}, "tool_calls")),
        details(ENCRYPTED),
    ),
    Row(
        "a signature of the message",
        "github.com/anomalyco/opencode/pull/43984 (2026-08: signatures on visible text)",
        gemini,
        ended(chunk({"content": "Let me look.", "extra_content": SIGNATURE}), calls(CALL)),
        lambda message: message.get("extra_content") == SIGNATURE,
    ),
)


def by_hand(done: Completion) -> dict[str, Any]:
    """Return the assistant's message as an application writes it, with ``extra`` in the places of the server."""
    called = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            **call.extra,
        }
        for call in done.tool_calls
    ]
    return {"role": "assistant", "content": done.text, "tool_calls": called, **done.extra}


def by_method(done: Completion) -> dict[str, Any]:
    return dict(done.message())


def after_storage(done: Completion) -> dict[str, Any]:
    return dict(json.loads(json.dumps(done.message())))


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("message", [by_hand, by_method, after_storage])
@rows(*TABLE)
async def test_loop_of_tools_gets_its_answer(row: Row, message: Callable[[Completion], Any], how: str) -> None:
    async with OddServer(row.reply) as server:
        provider = row.make(server.base_url)
        turns: list[dict[str, Any]] = [{"role": "user", "content": "What is a key?"}]
        done = await answered(provider, how, turns, tools=TOOLS)
        turns.append(message(done))
        turns += [{"role": "tool", "tool_call_id": call.id, "content": "opens a lock"} for call in done.tool_calls]
        done = await answered(provider, how, turns, tools=TOOLS)
        assert done.text == "A key opens a lock."
        assert len(server.bodies) == 2


@pytest.mark.parametrize("streaming", [False, True], ids=["ainvoke", "astream"])
@rows(*TABLE)
async def test_loop_of_langchain_gets_its_answer(row: Row, streaming: bool) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage  # noqa: PLC0415

    from learnflow.llm.integrations.langchain import ChatLearnFlow  # noqa: PLC0415

    async def invoke(messages: list[Any]) -> Any:
        if not streaming:
            return await chat.ainvoke(messages)
        pieces = [item async for item in chat.astream(messages)]
        joined = pieces[0]
        for item in pieces[1:]:
            joined = joined + item
        return joined

    async with OddServer(row.reply) as server:
        chat = ChatLearnFlow(provider=row.make(server.base_url)).bind_tools(TOOLS)
        question = HumanMessage("What is a key?")
        first = await invoke([question])
        results = [ToolMessage("opens a lock", tool_call_id=call["id"]) for call in first.tool_calls]
        last = await invoke([question, first, *results])
        assert last.content == "A key opens a lock."


async def test_fields_of_a_call_are_data_of_the_call() -> None:
    async with OddServer(ended(calls({**CALL, "extra_content": SIGNATURE}))) as server:
        done = await gemini(server.base_url).complete("What is a key?", tools=TOOLS)
    assert dict(done.tool_calls[0].extra) == {"extra_content": SIGNATURE}
    assert dict(done.extra) == {}


async def test_fields_of_a_message_are_data_of_the_completion() -> None:
    parts = (chunk({"reasoning_content": THOUGHTS}), said("A key."), chunk(finish="stop"), DONE)
    async with OddServer(sse(*parts)) as server:
        done = await deepseek(server.base_url).complete("What is a key?")
    assert done.extra["reasoning_content"] == THOUGHTS == done.reasoning
    # The mark names the sender, so that a message from a database is not sent to another provider with these fields.
    own = {"role": "assistant", "content": "A key.", "reasoning_content": THOUGHTS, "learnflow_origin": done.origin}
    assert done.message() == own


async def test_ordinary_answer_has_no_further_fields() -> None:
    async with OddServer(good("A key.")) as server:
        done = await custom(server.base_url).complete("What is a key?")
    assert dict(done.extra) == {}
    assert done.message() == {"role": "assistant", "content": "A key."}


@dataclass(frozen=True)
class Foreign:
    id: str
    seen: str
    first: Reply


@pytest.mark.parametrize("how", HOWS)
@rows(
    Foreign(
        "a signature of a call",
        "github.com/aaif-goose/goose/pull/6890 (2026-02), github.com/anomalyco/opencode/pull/43984 (2026-08)",
        ended(calls({**CALL, "extra_content": SIGNATURE})),
    ),
    Foreign(
        "reasoning_content",
        "github.com/isair/jarvis/pull/560 (2026-07: strict servers refuse fields that are not theirs)",
        ended(chunk({"reasoning_content": THOUGHTS}), calls(CALL)),
    ),
    Foreign(
        "reasoning_details",
        "github.com/maximhq/bifrost/pull/5277",
        ended(chunk({"reasoning_details": [ENCRYPTED]}), calls(CALL)),
    ),
)
async def test_failover_sends_no_field_of_another_provider(row: Foreign, how: str) -> None:
    async with OddServer(row.first) as one, OddServer(good("A key opens a lock.")) as two:
        chain = router(custom(one.base_url), custom(two.base_url))
        turns: list[dict[str, Any]] = [{"role": "user", "content": "What is a key?"}]
        done = await answered(chain, how, turns, tools=TOOLS)
        turns.append(done.message())
        turns += [{"role": "tool", "tool_call_id": call.id, "content": "opens a lock"} for call in done.tool_calls]
        one.reply = refusal(503, openai_error("down"))
        assert (await answered(chain, how, turns, tools=TOOLS)).text == "A key opens a lock."
        foreign = {"extra_content", "reasoning_content", "reasoning_details"}
        (message,) = [message for message in two.bodies[0]["messages"] if message["role"] == "assistant"]
        assert not foreign & {*message, *message["tool_calls"][0]}
        assert message["tool_calls"][0]["function"]["name"] == "define"


async def next_turn(provider: LLMProvider, done: Completion, message: dict[str, Any]) -> None:
    results = [{"role": "tool", "tool_call_id": call.id, "content": "opens a lock"} for call in done.tool_calls]
    await provider.complete([{"role": "user", "content": "What is a key?"}, message, *results], tools=TOOLS)


async def test_message_from_storage_takes_its_fields_to_no_other_address() -> None:
    first = ended(chunk({"reasoning_content": THOUGHTS}), calls({**CALL, "extra_content": SIGNATURE}))
    async with OddServer(first) as one, OddServer(good("A key.")) as two:
        done = await custom(one.base_url).complete("What is a key?", tools=TOOLS)
        stored = json.loads(json.dumps(done.message()))
        await next_turn(custom(two.base_url), done, stored)
        await next_turn(custom(one.base_url), done, stored)
    (foreign, own) = two.bodies[0]["messages"][1], one.bodies[1]["messages"][1]
    assert not {"reasoning_content", "learnflow_origin"} & {*foreign}
    assert "extra_content" not in foreign["tool_calls"][0]
    assert own["reasoning_content"] == THOUGHTS
    assert own["tool_calls"][0]["extra_content"] == SIGNATURE
    assert "learnflow_origin" not in own


async def test_message_by_hand_needs_only_the_ids_of_its_calls() -> None:
    """A loop for OpenAI's format works with github.com/securo-finance/securo/issues/884 (2026-09), too."""
    first = ended(chunk({"reasoning_content": THOUGHTS}), calls({**CALL, "extra_content": SIGNATURE}))
    async with OddServer(first) as one, OddServer(good("A key.")) as two:
        done = await custom(one.base_url).complete("What is a key?", tools=TOOLS)
        (call,) = copy.deepcopy(done.tool_calls)
        function = {"name": call.name, "arguments": json.dumps(call.arguments)}
        message = {"role": "assistant", "tool_calls": [{"id": call.id, "type": "function", "function": function}]}
        await next_turn(custom(two.base_url), done, message)
        await next_turn(custom(one.base_url), done, message)
    (foreign, own) = two.bodies[0]["messages"][1], one.bodies[1]["messages"][1]
    assert foreign == message
    assert own["reasoning_content"] == THOUGHTS
    assert own["tool_calls"][0]["extra_content"] == SIGNATURE


async def test_thinking_of_ollama_comes_back_under_its_own_name() -> None:
    """Ollama's templates need the thinking before a call (docs.ollama.com, thinking)."""
    async with FaultServer(
        "ollama", "", thinking=THOUGHTS, calls=[ToolCallDelta(0, "", "define", ARGUMENTS)]
    ) as server:
        provider = OllamaProvider(server.base_url, MODEL)
        done = await provider.complete("What is a key?", tools=TOOLS)
        await next_turn(provider, done, done.message())
        assert server.seen[-1].body["messages"][1]["thinking"] == THOUGHTS


@pytest.mark.parametrize("value", [b'"\\ud83d"', b"1e999", b"NaN", b'{"a": [null]}', b"[" * 50 + b"]" * 50])
async def test_odd_value_of_a_further_field_costs_no_answer(value: bytes) -> None:
    odd = b'data: {"choices": [{"delta": {"content": "A key.", "token": ' + value + b"}}]}\n\n"
    async with OddServer(sse(odd, chunk(finish="stop"), DONE)) as server:
        done = await custom(server.base_url).complete("What is a key?")
        turns = [{"role": "user", "content": "hi"}, done.message(), {"role": "user", "content": "hi"}]
        assert (await custom(server.base_url).complete(turns)).text == "A key."
    json.dumps(done.message(), allow_nan=False, ensure_ascii=False).encode()


async def test_calls_of_a_message_that_are_no_objects_are_invalid() -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "", "tool_calls": [1]}]
    with pytest.raises(errors.InvalidRequest):
        await custom("http://127.0.0.1:9/v1").complete(turns)
