"""Tool calls are identified by what a server gives: index, id, position, or a name that begins a new call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from odd_server import (
    DONE,
    HOWS,
    Call,
    OddServer,
    Reply,
    answered,
    body,
    calls,
    chunk,
    custom,
    piece,
    rows,
    sse,
    whole,
)

from learnflow.llm.completion import ToolCallDelta

TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {"term": {"type": "string"}}}},
    }
    for name in ("define", "translate", "progress")
]
KEY, LOCK = '{"term": "key"}', '{"term": "lock"}'
TWO = [Call("a1", "define", {"term": "key"}), Call("b2", "define", {"term": "lock"})]
TWO_UNNAMED = [call._replace(id=None) for call in TWO]
ONE = [Call("a1", "define", {"term": "key"})]
OBJECT: Any = {"term": "key"}


@dataclass(frozen=True)
class Row:
    id: str
    seen: str
    reply: Reply
    expected: list[Call]


def ended(*parts: Any, finish: Any = "tool_calls") -> Reply:
    return sse(chunk({"role": "assistant", "content": None}), *parts, chunk(finish=finish), DONE)


STREAMS = (
    Row(
        "one index for two calls in two chunks",
        "github.com/ollama/ollama/issues/15457 (2026-04), github.com/apache/maka/issues/1976 (2026-08)",
        ended(calls(piece(0, "a1", "define", KEY)), calls(piece(0, "b2", "define", LOCK))),
        TWO,
    ),
    Row(
        "one index for two calls in one chunk",
        "github.com/su-kaka/gcli2api/pull/406 (2026-08), github.com/huggingface/smolagents/pull/1958 (2026-01)",
        ended(calls(piece(0, "a1", "define", KEY), piece(0, "b2", "define", LOCK))),
        TWO,
    ),
    Row(
        "one index for two calls whose arguments come in pieces",
        "github.com/mcowger/plexus/issues/691 (2026-07), github.com/earendil-works/pi/issues/8861 (2026-08)",
        ended(
            calls(piece(0, "a1", "define", "")),
            calls(piece(0, arguments=KEY[:6])),
            calls(piece(0, arguments=KEY[6:])),
            calls(piece(0, "b2", "define", "")),
            calls(piece(0, arguments=LOCK)),
        ),
        TWO,
    ),
    Row(
        "one index and one id in two pieces of one chunk are one call",
        "github.com/openai/openai-python/pull/3438 (2026-06, issue 3201), pull/3241 (2026-05)",
        ended(calls(piece(0, "a1", "define", KEY[:6]), piece(0, arguments=KEY[6:]))),
        ONE,
    ),
    Row(
        "no index, one list with ids",
        "github.com/noho/dayu-agent/issues/45 (2026-04, Gemini 3.1), "
        "github.com/openai/openai-python/pull/3246 (2026-05)",
        ended(calls(piece(None, "a1", "define", KEY), piece(None, "b2", "define", LOCK))),
        TWO,
    ),
    Row(
        "no index, two chunks with ids",
        "github.com/SamSaffron/term-llm/pull/314 (2026-04)",
        ended(calls(piece(None, "a1", "define", KEY)), calls(piece(None, "b2", "define", LOCK))),
        TWO,
    ),
    Row(
        "no index and no id, one list",
        "github.com/SamSaffron/term-llm/pull/314 (2026-04)",
        ended(calls(piece(None, name="define", arguments=KEY), piece(None, name="define", arguments=LOCK))),
        TWO_UNNAMED,
    ),
    Row(
        "no index and no id, a name begins each call",
        "github.com/SamSaffron/term-llm/pull/314 (2026-04), github.com/BerriAI/litellm/pull/29514 (2026-06)",
        ended(
            calls(piece(None, name="define", arguments=KEY[:6])),
            calls(piece(None, arguments=KEY[6:])),
            calls(piece(None, name="define", arguments=LOCK)),
        ),
        TWO_UNNAMED,
    ),
    Row(
        "no index, continued by pieces without id",
        "github.com/openai/openai-python/pull/3246 (2026-05, issue 2806)",
        ended(calls(piece(None, "a1", "define", "")), calls(piece(None, arguments=KEY))),
        ONE,
    ),
    Row(
        "the first index is 1",
        "github.com/BerriAI/litellm/issues/32759 (2026-07), "
        "github.com/router-for-me/CLIProxyAPI/issues/5229 (2026-08), "
        "github.com/pipecat-ai/pipecat/pull/5342 (2026-08)",
        ended(calls(piece(1, "a1", "define", KEY)), calls(piece(2, "b2", "define", LOCK))),
        TWO,
    ),
    Row(
        "the first index is -1",
        "github.com/aws-samples/bedrock-access-gateway/pull/247 (2026-05, issue 203)",
        ended(calls(piece(-1, "a1", "define", "")), calls(piece(-1, arguments=KEY))),
        ONE,
    ),
    Row(
        "pieces of two calls alternate",
        "github.com/can1357/oh-my-pi/pull/1692 (2026-06)",
        ended(
            calls(piece(0, "a1", "define", "")),
            calls(piece(1, "b2", "define", "")),
            calls(piece(0, arguments=KEY[:6]), piece(1, arguments=LOCK[:6])),
            calls(piece(1, arguments=LOCK[6:])),
            calls(piece(0, arguments=KEY[6:])),
        ),
        TWO,
    ),
    Row(
        "the id is repeated in every piece",
        "github.com/spring-projects/spring-ai/pull/5973 (2026-05), github.com/JetBrains/koog/pull/2052 (2026-05)",
        ended(calls(piece(0, "a1", "define", KEY[:6])), calls(piece(0, "a1", arguments=KEY[6:]))),
        ONE,
    ),
    Row(
        "the id of later pieces is an empty string",
        "github.com/anomalyco/opencode/pull/40969 (2026-08), github.com/symfony/ai/pull/2220 (2026-06)",
        ended(calls(piece(0, "a1", "define", KEY[:6])), calls(piece(0, "", arguments=KEY[6:]))),
        ONE,
    ),
    Row(
        "id and name of later pieces are empty strings",
        "github.com/anomalyco/opencode/pull/37783 (2026-07), github.com/AI-Shell-Team/aish/pull/200 (2026-05)",
        ended(calls(piece(0, "a1", "define", KEY[:6])), calls(piece(0, "", "", KEY[6:]))),
        ONE,
    ),
    Row(
        "id and name of later pieces are null",
        "github.com/sgl-project/sglang/pull/35542 (2026-08)",
        ended(calls(piece(0, "a1", "define", KEY[:6])), calls(piece(0, None, None, KEY[6:]))),
        ONE,
    ),
    Row(
        "name, id and type are repeated in every piece",
        "github.com/NousResearch/hermes-agent/pull/11984 (2026-04), "
        "github.com/SillyTavern/SillyTavern/pull/5811 (2026-07), "
        "github.com/weicj/vLLM-2080Ti-Definitive/pull/129 (2026-08)",
        ended(calls(piece(0, "a1", "define", KEY[:6])), calls(piece(0, "a1", "define", KEY[6:]))),
        ONE,
    ),
    Row(
        "only the name is repeated in every piece",
        "github.com/NousResearch/hermes-agent/pull/11984 (2026-04, MiniMax at NVIDIA NIM)",
        ended(calls(piece(0, "a1", "define", KEY[:6])), calls(piece(0, name="define", arguments=KEY[6:]))),
        ONE,
    ),
    Row(
        "the name comes in two pieces",
        "github.com/NVIDIA-NeMo/Switchyard/pull/785, github.com/continuedev/continue/pull/5849 (2025-05)",
        ended(calls(piece(0, "a1", "def", "")), calls(piece(0, name="ine")), calls(piece(0, arguments=KEY))),
        ONE,
    ),
    Row(
        "a name after complete arguments begins a new call, although the index is the same and there is no id",
        "github.com/open-webui/open-webui/pull/22235 (2026-03, gpt-5.4)",
        ended(calls(piece(0, "a1", "define", KEY)), calls(piece(0, name="define", arguments=LOCK))),
        [TWO[0], TWO_UNNAMED[1]],
    ),
    Row(
        "a name after complete arguments, with its arguments in later pieces",
        "a sibling of github.com/open-webui/open-webui/pull/22235 (2026-03)",
        ended(
            calls(piece(0, "a1", "define", KEY)),
            calls(piece(0, name="define", arguments="")),
            calls(piece(0, arguments=LOCK[:6])),
            calls(piece(0, arguments=LOCK[6:])),
        ),
        [TWO[0], TWO_UNNAMED[1]],
    ),
    Row(
        "the name is repeated once more after complete arguments",
        "a sibling of github.com/NousResearch/hermes-agent/pull/11984 (2026-04)",
        ended(calls(piece(0, "a1", "define", KEY)), calls(piece(0, name="define", arguments=""))),
        ONE,
    ),
    Row(
        "one index for two calls without arguments",
        "a sibling of github.com/ollama/ollama/issues/15457 (2026-04)",
        ended(calls(piece(0, "a1", "progress", {})), calls(piece(0, "b2", "progress", ""))),
        [Call("a1", "progress", {}), Call("b2", "progress", {})],
    ),
    Row(
        "one index for two calls whose pieces alternate by their ids",
        "a sibling of github.com/mcowger/plexus/issues/691 (2026-07)",
        ended(
            calls(piece(0, "a1", "define", KEY[:6])),
            calls(piece(0, "b2", "define", LOCK[:6])),
            calls(piece(0, "a1", arguments=KEY[6:])),
            calls(piece(0, "b2", arguments=LOCK[6:])),
        ),
        TWO,
    ),
    Row(
        "the names of two calls come before their ids",
        "a sibling of github.com/pipecat-ai/pipecat/pull/5023 (2026-07)",
        ended(
            calls(piece(0, name="define"), piece(1, name="define")),
            calls(piece(0, "a1"), piece(1, "b2")),
            calls(piece(0, arguments=KEY[:6]), piece(1, arguments=LOCK)),
            calls(piece(0, arguments=KEY[6:])),
        ),
        TWO,
    ),
    Row(
        "the id comes after the name",
        "github.com/pipecat-ai/pipecat/pull/5023 (2026-07, issue 4987)",
        ended(
            calls(piece(0, name="define")),
            calls(piece(0, "a1")),
            calls(piece(0, arguments=KEY)),
        ),
        ONE,
    ),
    Row(
        "the name comes after the id",
        "github.com/pipecat-ai/pipecat/pull/5023 (2026-07, issue 4987)",
        ended(calls(piece(0, "a1")), calls(piece(0, name="define")), calls(piece(0, arguments=KEY))),
        ONE,
    ),
    Row(
        "the id is a number",
        "github.com/AI-Shell-Team/aish/pull/200 (2026-05, issue 189)",
        ended(calls(piece(0, 17, "define", KEY))),
        [Call("17", "define", {"term": "key"})],
    ),
    Row(
        "indices are texts, and the pieces of two calls alternate",
        "a sibling of github.com/can1357/oh-my-pi/pull/1692 (2026-06)",
        ended(
            calls({**piece(None, "a1", "define", ""), "index": "0"}, {**piece(None, "b2", "define", ""), "index": "1"}),
            calls({**piece(arguments=KEY), "index": "0"}),
            calls({**piece(arguments=LOCK), "index": "1"}),
        ),
        TWO,
    ),
    Row(
        "indices are floats, and only the first call has arguments",
        "a sibling of github.com/can1357/oh-my-pi/pull/1692 (2026-06)",
        ended(
            calls({**piece(None, "a1", "define", ""), "index": 0.0}, {**piece(None, "b2", "progress"), "index": 1.0}),
            calls({**piece(arguments=KEY), "index": 0.0}),
        ),
        [ONE[0], Call("b2", "progress", {})],
    ),
    Row(
        "the index of the choice is a text",
        "a sibling of github.com/can1357/oh-my-pi/pull/1692 (2026-06)",
        sse(
            chunk({"tool_calls": [piece(0, "a1", "define", KEY)]}, choice={"index": "0"}),
            chunk(finish="tool_calls", choice={"index": "0"}),
            DONE,
        ),
        ONE,
    ),
    Row(
        "every piece has a new id",
        "a sibling of github.com/spring-projects/spring-ai/pull/5973 (2026-05)",
        ended(
            calls(piece(0, "a1", "define", "")),
            calls(piece(0, "x7", arguments=KEY[:6])),
            calls(piece(0, "x8", None, KEY[6:])),
        ),
        ONE,
    ),
    Row(
        "the whole call is repeated at the end",
        "a sibling of github.com/NousResearch/hermes-agent/pull/11984 (2026-04)",
        ended(calls(piece(0, "a1", "define", KEY)), calls(piece(0, "a1", "define", KEY))),
        ONE,
    ),
    Row(
        "arguments are an object",
        "github.com/ggml-org/llama.cpp/issues/20198 (2026-03), github.com/sipeed/picoclaw/pull/1292 (2026-03)",
        ended(calls(piece(0, "a1", "define", OBJECT))),
        ONE,
    ),
    Row(
        "an entry of the list is null",
        "github.com/odysseus-dev/odysseus/pull/2389 (2026-06, MiniMax-M3)",
        ended(chunk({"tool_calls": [None]}), calls(piece(0, "a1", "define", KEY))),
        ONE,
    ),
    Row(
        "the finish is stop",
        "github.com/leookun/cursor-byok/pull/391 (2026-08), github.com/Blaizzy/mlx-vlm/pull/990 (2026-04)",
        ended(calls(piece(0, "a1", "define", KEY)), finish="stop"),
        ONE,
    ),
    Row(
        "the call is in function_call of the first API",
        "github.com/QwenLM/qwen-code/pull/6240 (2026-07), github.com/can1357/oh-my-pi/pull/1692 (2026-06)",
        ended(
            chunk({"function_call": {"name": "define", "arguments": ""}}),
            chunk({"function_call": {"arguments": KEY}}),
            finish="function_call",
        ),
        [ONE[0]._replace(id=None)],
    ),
    Row(
        "the call and the finish are in one chunk",
        "github.com/vllm-project/vllm/pull/36944 (2026-03)",
        sse(chunk({"tool_calls": [piece(0, "a1", "define", KEY)]}, "tool_calls"), DONE),
        ONE,
    ),
    Row(
        "no type",
        "a sibling of github.com/SillyTavern/SillyTavern/pull/5811 (2026-07)",
        ended(calls({"index": 0, "id": "a1", "function": {"name": "define", "arguments": KEY}})),
        ONE,
    ),
)

MESSAGES = (
    Row(
        "a message without indices and ids",
        "github.com/lmstudio-ai/lmstudio-bug-tracker/issues/830 (2025-08)",
        body(
            whole(
                {"content": None, "tool_calls": [piece(name="define", arguments=a) for a in (KEY, LOCK)]}, "tool_calls"
            )
        ),
        TWO_UNNAMED,
    ),
    Row(
        "a message with one id for two calls",
        "github.com/can1357/oh-my-pi/issues/2055 (2026-06), github.com/HKUDS/nanobot/issues/4473 (2026-06)",
        body(whole({"tool_calls": [piece(None, "a1", "define", a) for a in (KEY, LOCK)]}, "tool_calls")),
        [TWO[0], TWO_UNNAMED[1]],
    ),
    Row(
        "a stream with one id for two calls",
        "github.com/can1357/oh-my-pi/issues/2055 (2026-06), "
        "github.com/NousResearch/hermes-agent/issues/70724 (2026-07)",
        ended(calls(piece(0, "a1", "define", KEY)), calls(piece(1, "a1", "define", LOCK))),
        [TWO[0], TWO_UNNAMED[1]],
    ),
    Row(
        "a message with arguments as an object",
        "github.com/ggml-org/llama.cpp/issues/20198 (2026-03)",
        body(whole({"tool_calls": [piece(None, "a1", "define", OBJECT)]}, "tool_calls")),
        ONE,
    ),
    Row(
        "a message with finish stop",
        "github.com/ENTERPILOT/GoModel/pull/124 (2026-03, OpenAI's own)",
        body(whole({"content": None, "tool_calls": [piece(0, "a1", "define", KEY)]}, "stop")),
        ONE,
    ),
    Row(
        "a message with function_call of the first API",
        "github.com/QwenLM/qwen-code/pull/6240 (2026-07)",
        body(whole({"content": None, "function_call": {"name": "define", "arguments": KEY}}, "function_call")),
        [ONE[0]._replace(id=None)],
    ),
)


@pytest.mark.parametrize("how", HOWS)
@rows(*STREAMS, *MESSAGES)
async def test_calls_are_those_that_the_server_made(row: Row, how: str) -> None:
    async with OddServer(row.reply) as server:
        done = await answered(custom(server.base_url), how, tools=TOOLS)
    got = [Call(call.id, call.name, call.arguments) for call in done.tool_calls]
    shown = [call if want.id else call._replace(id=None) for call, want in zip(got, row.expected, strict=False)]
    assert [*shown, *got[len(shown) :]] == row.expected
    assert done.finish == "tool_calls"
    ids = [call.id for call in got]
    assert all(isinstance(id_, str) and id_ for id_ in ids)
    assert len(set(ids)) == len(ids)


@rows(*STREAMS, *MESSAGES)
async def test_pieces_of_calls_in_events_join_to_the_calls_of_the_completion(row: Row) -> None:
    async with OddServer(row.reply) as server:
        stream = custom(server.base_url).stream("Why two keys?", tools=TOOLS)
        pieces = [event async for event in stream.events() if isinstance(event, ToolCallDelta)]
    indices = list(dict.fromkeys(event.index for event in pieces))
    assert indices == list(range(len(row.expected)))
    for index, call in enumerate(row.expected):
        mine = [event for event in pieces if event.index == index]
        assert {event.name for event in mine} == {call.name}
        assert len({event.id for event in mine}) == 1
        assert call.id in (None, mine[0].id)


@dataclass(frozen=True)
class Unidentified:
    id: str
    seen: str
    call: dict[str, Any]


@pytest.mark.parametrize("how", HOWS)
@rows(
    Unidentified(
        "the id is an empty string",
        "github.com/lmstudio-ai/lmstudio-bug-tracker/issues/830 (2025-08)",
        piece(0, "", "define", KEY),
    ),
    Unidentified(
        "there is no id",
        "github.com/BerriAI/litellm/pull/29514 (2026-06), github.com/microsoft/autogen/pull/5509",
        piece(0, name="define", arguments=KEY),
    ),
    Unidentified(
        "the id is null",
        "github.com/NousResearch/hermes-agent/issues/70724 (2026-07)",
        piece(0, None, "define", KEY),
    ),
)
async def test_missing_ids_are_unique_in_a_conversation(row: Unidentified, how: str) -> None:
    async with OddServer(ended(calls(row.call))) as server:
        provider = custom(server.base_url)
        ids = [(await answered(provider, how, tools=TOOLS)).tool_calls[0].id for _ in range(3)]
        other = custom(server.base_url)  # the application was restarted
        ids.append((await answered(other, how, tools=TOOLS)).tool_calls[0].id)
    assert len(set(ids)) == 4


@pytest.mark.parametrize("how", HOWS)
async def test_id_that_the_server_used_before_stays_its_own(how: str) -> None:
    """Kimi's template requires ids that it counts itself; they are unique there (github.com/QwenLM/qwen-code/issues/8382, 2026-08)."""  # noqa: E501
    async with OddServer(ended(calls(piece(0, "functions.define:0", "define", KEY)))) as server:
        provider = custom(server.base_url)
        ids = [(await answered(provider, how, tools=TOOLS)).tool_calls[0].id for _ in range(2)]
    assert ids == ["functions.define:0"] * 2


async def test_agent_with_a_hook_calls_its_tools_although_the_server_gives_no_ids() -> None:
    """LangGraph takes a call with a known id for one that has its result (github.com/huggingface/smolagents/pull/2684, 2026-08)."""  # noqa: E501
    pytest.importorskip("langgraph.prebuilt")
    from langchain_core.tools import tool as langchain_tool  # noqa: PLC0415
    from langgraph.prebuilt import create_react_agent  # noqa: PLC0415

    from learnflow.llm.integrations.langchain import ChatLearnFlow  # noqa: PLC0415

    looked_up: list[str] = []

    @langchain_tool("define")
    def define(term: str) -> str:
        """Look a term up."""
        looked_up.append(term)
        return f"{term} is a term"

    def reply(request: dict[str, Any]) -> Reply:
        number = sum(message["role"] == "tool" for message in request["messages"]) + 1
        if number > 3:
            return sse(chunk({"content": "Done."}), chunk(finish="stop"), DONE)
        return ended(calls(piece(0, "", "define", f'{{"term": "word {number}"}}')))

    async with OddServer(reply) as server:
        chat = ChatLearnFlow(provider=custom(server.base_url))
        with pytest.warns(DeprecationWarning, match="create_react_agent"):
            agent = create_react_agent(chat, [define], post_model_hook=lambda state: {})
        done = await agent.ainvoke({"messages": [("user", "go")]}, {"recursion_limit": 30})
    assert looked_up == ["word 1", "word 2", "word 3"]
    assert done["messages"][-1].content == "Done."


@pytest.mark.parametrize("how", HOWS)
async def test_list_of_calls_that_is_empty_or_null_is_none(how: str) -> None:
    """Sent beside the text by github.com/odysseus-dev/odysseus/pull/2389 (2026-06), github.com/CherryHQ/cherry-studio/pull/8065."""  # noqa: E501
    parts = [chunk({"content": text, "tool_calls": none}) for text, none in (("Two ", None), ("keys.", []))]
    async with OddServer(sse(*parts, chunk(finish="stop"), DONE)) as server:
        done = await answered(custom(server.base_url), how, tools=TOOLS)
    assert (done.text, done.tool_calls, done.finish) == ("Two keys.", (), "stop")
