"""Nothing is dropped in silence: what a caller gives is sent or refused by name; what a server sends is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import pytest
from odd_server import (
    DONE,
    HOWS,
    KEY,
    PIXEL,
    OddServer,
    Reply,
    answered,
    body,
    chunk,
    custom,
    good,
    outcome,
    piece,
    ran,
    refusal,
    rows,
    said,
    sse,
    tool,
    whole,
)
from support import router

from learnflow.llm import LLMProvider, errors
from learnflow.llm.providers import build

PICTURE: Final = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
SOUND: Final = {"type": "input_audio", "input_audio": {"data": PIXEL, "format": "wav"}}
FILE: Final = {"type": "file", "file": {"filename": "notes.pdf", "file_data": f"data:application/pdf;base64,{PIXEL}"}}
TOOLS: Final = [tool("define", "term"), tool("translate", "term")]
ARGUMENTS: Final = '{"term": "key"}'
VENDORS: Final = (
    "custom",
    "openai",
    "openrouter",
    "gemini",
    "anthropic",
    "fireworks",
    "vllm",
    "lmstudio",
    "llamacpp",
    "deepseek",
    "docker_model_runner",
    "sambanova",
    "publicai",
    "mistral",
    "groq",
    "moonshot",
    "together_ai",
    "deepinfra",
    "dashscope",
    "cerebras",
    "perplexity",
    "nebius",
    "novita",
    "xai",
    "zai",
    "minimax",
    "nvidia_nim",
    "hyperbolic",
    "featherless_ai",
    "volcengine",
    "github",
    "meta_llama",
    "ai21_chat",
    "codestral",
    "friendliai",
    "cometapi",
    "lambda_ai",
    "nscale",
)


def vendor(name: str, url: str) -> LLMProvider:
    return build(name, url, "some-model", KEY)


def asked(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, *parts]}]


@dataclass(frozen=True)
class Row:
    """Something that a caller gives.

    Attributes:
        prompt: the messages.
        options: the keywords.
        marks: texts that must be in the request; forms of vendors are parted by |.
    """

    id: str
    seen: str
    prompt: Any
    options: dict[str, Any]
    marks: tuple[str, ...]


def shown(text: str) -> Any:
    """Return a call of a tool and its result with a picture."""
    called = {"id": "a1", "type": "function", "function": {"name": "define", "arguments": ARGUMENTS}}
    return [
        {"role": "user", "content": "Show the key."},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "a1", "content": [{"type": "text", "text": text}, PICTURE]},
    ]


GIVEN = (
    Row(
        "a picture",
        "github.com/BerriAI/litellm/pull/38397 (2026-08), github.com/BerriAI/litellm/pull/38893 (2026-08), "
        "github.com/BerriAI/litellm/pull/20864, github.com/earendil-works/pi/issues/3429 (2026-04), "
        "github.com/griffinwork40/agent-afk/issues/127 (2026-06)",
        asked(PICTURE),
        {},
        (PIXEL,),
    ),
    Row("a sound", "github.com/MoonshotAI/kimi-code/pull/632 (2026-06)", asked(SOUND), {}, (PIXEL,)),
    Row("a file", "github.com/MoonshotAI/kimi-code/pull/632 (2026-06)", asked(FILE), {}, (PIXEL,)),
    Row(
        "a picture in the result of a tool",
        "github.com/rynfar/meridian/pull/390 (2026-04), github.com/NousResearch/hermes-agent/pull/27597 (2026-05)",
        shown("a drawing"),
        {"tools": TOOLS},
        (PIXEL, "a drawing"),
    ),
    Row(
        "a picture in the assistant's message",
        "github.com/BerriAI/litellm/pull/30527 (2026-06, the review)",
        [*asked(), {"role": "assistant", "content": [{"type": "text", "text": "Here."}, PICTURE]}, *asked()],
        {},
        (PIXEL, "Here."),
    ),
    Row(
        "tools",
        "github.com/Continuum-AI-Corp/OrcaRouter-Lite/issues/131 (2026-09), "
        "github.com/BerriAI/litellm/issues/9797 (2025-04)",
        "What is a key?",
        {"tools": TOOLS},
        ('"define"', '"translate"'),
    ),
    Row(
        "the choice of a tool",
        "github.com/BerriAI/litellm/issues/9797 (2025-04)",
        "What is a key?",
        {"tools": TOOLS, "tool_choice": "required"},
        ('"required"|"tool_choice": "any"',),
    ),
    Row(
        "the choice of one tool by its name",
        "github.com/MattJColes/lgtmaybe/pull/65 (2026-06: parameters that drop_params removes)",
        "What is a key?",
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "translate"}}},
        ('"tool_choice": {"type": "function", "function": {"name": "translate"}}',),
    ),
    Row(
        "a schema",
        "github.com/Portkey-AI/gateway/issues/1204 (2025-07), github.com/BerriAI/litellm/pull/42245 (2026-09)",
        "Make a quiz.",
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "quiz", "schema": {"type": "object", "title": "TheQuiz"}},
            }
        },
        ("TheQuiz",),
    ),
    Row(
        "a seed, a stop and a penalty",
        "github.com/Budibase/budibase/pull/17845 (2026-01: parameters that drop_params removes)",
        "What is a key?",
        {"seed": 7, "stop": ["ZZ"], "frequency_penalty": 0.25},
        ('"seed": 7', '"ZZ"', '"frequency_penalty": 0.25'),
    ),
)


@pytest.mark.parametrize("name", VENDORS)
async def test_what_the_caller_gives_is_in_the_request_or_refused_by_name(name: str) -> None:
    dropped = {}
    async with OddServer(good('{"title": "A key."}')) as server:
        provider = vendor(name, server.base_url)
        for row in GIVEN:
            before = len(server.bodies)
            got = await outcome(provider, "complete", row.prompt, **row.options)
            request = json.dumps(server.bodies[before:][-1:])
            if len(server.bodies) > before:
                missing = [mark for mark in row.marks if not any(form in request for form in mark.split("|"))]
            else:  # refused before anything was sent
                missing = [] if isinstance(got, (errors.RequestError, errors.CapabilityError)) else [repr(got)]
            if missing:
                dropped[row.id] = missing
        assert {method for method, _ in server.pages} <= {"GET"}
    assert dropped == {}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    "query", ["code=XYZ", "api-version=2026-01-01&subscription-key=abc%2B1"], ids=["one value", "two values"]
)
async def test_query_of_the_base_url_is_in_every_request(query: str, how: str) -> None:
    """github.com/NousResearch/hermes-agent/pull/8766 (2026-04), github.com/Security-Onion-Solutions/securityonion/issues/15841 (2026-04)."""  # noqa: E501
    async with OddServer(good()) as server:
        provider = custom(f"{server.base_url}?{query}")
        try:
            done = await answered(provider, how)
            await provider.list_models()
        except errors.ConfigError as error:
            assert "query" in str(error)  # refused by name
            return
        assert done.text == "Two keys."
        assert {seen.path for seen in server.seen} == {f"/v1/chat/completions?{query}"}
        assert ("GET", f"/v1/models?{query}") in server.pages


@dataclass(frozen=True)
class AnswerRow:
    id: str
    seen: str
    reply: Reply
    text: str
    calls: list[tuple[str, dict[str, Any]]]


def choice(index: int, **fields: Any) -> dict[str, Any]:
    return {"index": index, **fields}


def split(*messages: dict[str, Any]) -> Reply:
    choices = [
        choice(number, message={"role": "assistant", **message}, finish_reason="tool_calls")
        for number, message in enumerate(messages)
    ]
    return body({**whole({}), "choices": choices})


DEFINE: Final = piece(0, "a1", "define", ARGUMENTS)
TRANSLATE: Final = piece(0, "b2", "translate", ARGUMENTS)
ONE: Final = [("define", {"term": "key"})]
BOTH: Final = [*ONE, ("translate", {"term": "key"})]


@pytest.mark.parametrize("how", HOWS)
@rows(
    AnswerRow(
        "text in the first choice, the call in the second",
        "github.com/ericc-ch/copilot-api/pull/81 (2025-08), github.com/HKUDS/nanobot/pull/1555 (2026-03), "
        "github.com/SWE-agent/mini-swe-agent/issues/804 (2026-04)",
        split({"content": "Let me look."}, {"content": None, "tool_calls": [DEFINE]}),
        "Let me look.",
        ONE,
    ),
    AnswerRow(
        "each call in a choice of its own",
        "github.com/karthink/gptel/pull/1284 (2026-03), github.com/zeroclaw-labs/zeroclaw/pull/2136 (2026-02)",
        split({"content": "Let me look."}, {"tool_calls": [DEFINE]}, {"tool_calls": [TRANSLATE]}),
        "Let me look.",
        BOTH,
    ),
    AnswerRow(
        "the call in the first choice, the text in the second",
        "github.com/karthink/gptel/pull/1336 (2026-04)",
        split({"content": None, "tool_calls": [DEFINE]}, {"content": "Let me look."}),
        "Let me look.",
        ONE,
    ),
    AnswerRow(
        "two choices of index 0",
        "github.com/HKUDS/nanobot/pull/1555 (2026-03)",
        body(
            {
                **whole({}),
                "choices": [
                    choice(0, message={"role": "assistant", "content": "Let me look."}, finish_reason="tool_calls"),
                    choice(0, message={"role": "assistant", "tool_calls": [DEFINE]}, finish_reason="tool_calls"),
                ],
            }
        ),
        "Let me look.",
        ONE,
    ),
    AnswerRow(
        "the call in the second choice of a stream",
        "github.com/zeroclaw-labs/zeroclaw/pull/2136 (2026-02)",
        sse(
            said("Let me look."),
            {**chunk(), "choices": [choice(1, delta={"tool_calls": [DEFINE]}, finish_reason=None)]},
            {
                **chunk(),
                "choices": [
                    choice(0, delta={}, finish_reason="tool_calls"),
                    choice(1, delta={}, finish_reason="tool_calls"),
                ],
            },
            DONE,
        ),
        "Let me look.",
        ONE,
    ),
)
async def test_calls_in_another_choice_are_read(row: AnswerRow, how: str) -> None:
    async with OddServer(row.reply) as server:
        done = await answered(custom(server.base_url), how, tools=TOOLS)
    assert (done.text, ran(done), done.finish) == (row.text, row.calls, "tool_calls")


@dataclass(frozen=True)
class LostRow:
    id: str
    seen: str
    reply: Reply
    options: dict[str, Any]


LOST = (
    LostRow(
        "a message with text",
        "github.com/HKUDS/nanobot/pull/1555 (2026-03: the call was in another choice)",
        body(whole({"content": "Let me look."}, "tool_calls")),
        {"tools": TOOLS},
    ),
    LostRow(
        "a message with an empty list",
        "github.com/vllm-project/vllm/issues/53255 (2026-08)",
        body(whole({"content": "Hello.", "tool_calls": []}, "tool_calls")),
        {"tools": TOOLS, "tool_choice": "required"},
    ),
    LostRow(
        "a stream with text",
        "github.com/vllm-project/vllm/issues/53255 (2026-08)",
        sse(said("Let me look."), chunk(finish="tool_calls"), DONE),
        {"tools": TOOLS},
    ),
    LostRow(
        "a stream with a call that has no name",
        "github.com/BerriAI/litellm/pull/29514 (2026-06)",
        sse(chunk({"tool_calls": [piece(0, "a1", arguments=ARGUMENTS)]}), chunk(finish="tool_calls"), DONE),
        {"tools": TOOLS},
    ),
)


@pytest.mark.parametrize("how", HOWS)
@rows(*LOST)
async def test_finish_tool_calls_without_a_call_is_incomplete(row: LostRow, how: str) -> None:
    async with OddServer(row.reply) as server:
        got = await outcome(custom(server.base_url), how, **row.options)
    assert isinstance(got, errors.BrokenAnswer)


@rows(*LOST)
async def test_next_provider_gives_the_call_that_was_lost(row: LostRow) -> None:
    called = sse(chunk({"tool_calls": [DEFINE]}), chunk(finish="tool_calls"), DONE)
    async with OddServer(row.reply) as one, OddServer(called) as two:
        chain = router(custom(one.base_url), custom(two.base_url))
        assert ran(await chain.complete("What is a key?", **row.options)) == ONE


@pytest.mark.parametrize("how", HOWS)
async def test_failover_drops_no_picture(how: str) -> None:
    """A request is written anew for each provider (github.com/The-PR-Agent/pr-agent/issues/3338, 2026-09)."""
    async with OddServer(refusal(503, {"error": "down"})) as one, OddServer(good("A dot.")) as two:
        chain = router(custom(one.base_url), custom(two.base_url))
        assert (await answered(chain, how, asked(PICTURE))).text == "A dot."
        assert PIXEL in json.dumps(two.bodies[-1])
