"""Streams with odd events, usage in odd places, errors in odd shapes, and the finishes of other dialects."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import pytest
from odd_server import (
    DONE,
    HOWS,
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
    outcome,
    piece,
    rows,
    said,
    sse,
    whole,
    wire,
)
from support import router

from learnflow.llm import Completion, Usage, errors

TEXT: Final = "Two keys."
FIRST: Final = chunk({"role": "assistant", "content": ""})
LAST: Final = chunk(finish="stop")
PARTS: Final = (FIRST, said("Two "), said("keys."), LAST, DONE)
NUMBERS: Final = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}


def line(content: Any) -> bytes:
    """Return an event without the empty line that ends it."""
    return b"data: " + json.dumps(content).encode() + b"\n"


def between(*odd: Any) -> Reply:
    """Return the stream of two pieces with something between them."""
    return sse(FIRST, said("Two "), *odd, said("keys."), LAST, DONE)


@dataclass(frozen=True)
class Row:
    id: str
    seen: str
    reply: Reply


WHOLE = (
    Row(
        "an event with empty data",
        "github.com/Growth-Circle/cadis/issues/2329 (2026-09), github.com/openai/openai-python/pull/2721 (2025-10), "
        "github.com/netease-lcap/wave-agent/pull/1326 (2026-07)",
        between(b"data:\n\n", b"data: \n\n"),
    ),
    Row(
        "an event with empty data after an id",
        "github.com/theopenco/llmgateway/pull/2334 (2026-05), github.com/openai/openai-python/issues/2722",
        between(b"id: 7\n: ping\n\n", b"event: ping\ndata:\n\n"),
    ),
    Row(
        "a comment as data",
        "github.com/mnfst/llm-gateway/issues/2053 (2026-05), github.com/anomalyco/opencode/issues/50871 (2026-09)",
        between(b"data: : keepalive\n\n", b"data: : OPENROUTER PROCESSING\n\n"),
    ),
    Row(
        "a comment as data before the data of one event",
        "a sibling of github.com/mnfst/llm-gateway/issues/2053 (2026-05)",
        sse(FIRST, said("Two "), b"data: : keepalive\n" + line(said("keys.")) + b"\n", LAST, DONE),
    ),
    Row(
        "comments, with and without an empty line",
        "github.com/coder/coder/issues/28185 (2026-08), github.com/diegosouzapw/OmniRoute/issues/7031 (2026-07), "
        "github.com/deepnoodle-ai/dive/pull/206 (2026-07)",
        between(b":\n", b":\n\n", b": latency-ms=41\n: tokens-out=3\n"),
    ),
    Row(
        "an object with a warning only",
        "github.com/langwatch/tasks/issues/700 (2026-08)",
        between({"warning": "the upstream server reported no usage"}),
    ),
    Row(
        "an event with a name that is not known",
        "github.com/justlovemaki/AIClient2API/pull/695 (2026-08)",
        between(b'event: ping\ndata: {"type": "ping"}\n\n'),
    ),
    Row(
        "no space after the colon",
        "github.com/odysseus-dev/odysseus/pull/1701 (2026-06), github.com/lidge-jun/opencodex/issues/1170 (2026-08)",
        Reply(200, wire(*PARTS).replace(b"data: ", b"data:"), "text/event-stream"),
    ),
    Row(
        "two events parted by one line end",
        "github.com/rexxars/eventsource-parser/pull/31 (2026-05: GLM-4.7, Kimi-K2.5)",
        sse(FIRST, line(said("Two ")), said("keys."), LAST, DONE),
    ),
    Row(
        "all events parted by one line end",
        "github.com/rexxars/eventsource-parser/pull/31 (2026-05)",
        sse(*map(line, PARTS[:-1]), DONE),
    ),
    Row(
        "events parted by one line end, and no line end at the end",
        "a sibling of github.com/rexxars/eventsource-parser/pull/31 (2026-05)",
        Reply(200, wire(*map(line, PARTS[:-1]), b"data: [DONE]"), "text/event-stream"),
    ),
    Row(
        "one JSON object in two lines of data",
        "github.com/SamSaffron/term-llm/pull/456 (2026-04)",
        between(line(said("")).replace(b', "created"', b',\ndata: "created"') + b"\n"),
    ),
    Row(
        "lines that end with CR and LF",
        "github.com/miruamel/xuan/issues/194 (2026-08)",
        Reply(200, wire(*PARTS).replace(b"\n", b"\r\n"), "text/event-stream"),
    ),
    Row(
        "CR and LF in two pieces of the network",
        "github.com/openai/openai-agents-python/pull/4215 (2026-08), github.com/Effect-TS/effect/pull/6954 (2026-08)",
        Reply(200, wire(*PARTS).replace(b"\n", b"\r\n"), "text/event-stream", slice_bytes=1),
    ),
    Row(
        "a byte order mark at the beginning",
        "github.com/openai/openai-python/pull/3819 (2026-09), github.com/vm0-ai/vm0/issues/24687 (2026-08)",
        Reply(200, b"\xef\xbb\xbf" + wire(said("Two "), said("keys."), LAST, DONE), "text/event-stream"),
    ),
    Row(
        "a byte order mark in pieces",
        "github.com/elizaOS/eliza/issues/19260 (2026-08)",
        Reply(200, b"\xef\xbb\xbf" + wire(said("Two "), said("keys."), LAST, DONE), "text/event-stream", {}, 1),
    ),
    Row(
        "events under the type of JSON",
        "github.com/openclaw/openclaw/pull/97454 (2026-06)",
        sse(*PARTS, content_type="application/json"),
    ),
    Row("events without a type", "github.com/Wei-Shaw/sub2api/issues/2826 (2026-05)", sse(*PARTS, content_type=None)),
    Row(
        "one body of JSON in response to a request for a stream",
        "github.com/tinyhumansai/tinyagents/pull/56 (2026-07)",
        body(whole({"content": TEXT})),
    ),
    Row(
        "one body of JSON under the type of events",
        "github.com/tinyhumansai/tinyagents/pull/56 (2026-07)",
        body(whole({"content": TEXT}), content_type="text/event-stream"),
    ),
    Row(
        "a first chunk without choices",
        "github.com/AndraxDev/speak-gpt/pull/162 (2026-07)",
        sse({**FIRST, "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}, *PARTS),
    ),
    Row(
        "choices null",
        "github.com/RooCodeInc/Roo-Code/pull/9105 (2025-11, MiniMax)",
        between({**FIRST, "choices": None}),
    ),
    Row(
        "no field choices",
        "github.com/tashfeenahmed/freellmapi/pull/156 (2026-05), github.com/openclaw/openclaw/issues/15488 (2026-02)",
        between({"id": "r1", "usage": NUMBERS}),
    ),
    Row(
        "a choice that is null",
        "github.com/odysseus-dev/odysseus/pull/2389 (2026-06)",
        between({**FIRST, "choices": [None]}),
    ),
    Row(
        "delta null",
        "github.com/RooCodeInc/Roo-Code/pull/644 (2025-01)",
        sse(FIRST, said(TEXT), chunk(finish="stop", choice={"delta": None}), DONE),
    ),
    Row(
        "no delta beside the finish",
        "github.com/smallmain/vscode-unify-chat-provider/pull/29 (2026-02)",
        sse(FIRST, said(TEXT), {**LAST, "choices": [{"index": 0, "finish_reason": "stop"}]}, DONE),
    ),
    Row(
        "content null",
        "github.com/quarkiverse/quarkus-langchain4j/pull/2553 (2026-06), "
        "github.com/earendil-works/pi/pull/2782 (2026-04)",
        between(chunk({"content": None})),
    ),
    Row(
        "error null in every chunk",
        "a sibling of github.com/BerriAI/litellm/pull/32237 (2026-07)",
        sse(*({**part, "error": None} for part in PARTS[:-1]), DONE),
    ),
    Row(
        "base_resp that reports success",
        "a sibling of github.com/RooCodeInc/Roo-Code/pull/9105 (2025-11), "
        "github.com/infiniflow/ragflow/pull/17292 (2026-07)",
        sse(FIRST, said(TEXT), {**LAST, "base_resp": {"status_code": 0, "status_msg": ""}}, DONE),
    ),
    Row(
        "the text in message instead of delta",
        "github.com/CherryHQ/cherry-studio/pull/8065 (2025-07, ModelScope)",
        sse(chunk(finish="stop", choice={"message": {"role": "assistant", "content": TEXT}}), DONE),
    ),
    Row(
        "an empty finish in every chunk",
        "github.com/aaif-goose/goose/pull/10258 (2026-07), github.com/adolfousier/opencrabs/pull/1499 (2026-09), "
        "github.com/looplj/axonhub/pull/2073 (2026-07)",
        sse(*(chunk({"content": text}, "") for text in ("Two ", "keys.")), LAST, DONE),
    ),
    Row(
        "the text null as finish of every chunk",
        "github.com/Ai00-X/ai00_server/issues/90 (2024-03)",
        sse(*(chunk({"content": text}, "null") for text in ("Two ", "keys.")), LAST, DONE),
    ),
    Row(
        "finish end_turn",
        "github.com/repoprompt/repoprompt-ce/pull/893 (2026-08)",
        sse(FIRST, said(TEXT), chunk(finish="end_turn"), DONE),
    ),
    Row(
        "finish STOP",
        "github.com/QwenLM/qwen-code/issues/9882 (2026-08)",
        sse(FIRST, said(TEXT), chunk(finish="STOP"), DONE),
    ),
    Row(
        "finish eos",
        "github.com/vespa-engine/vespa/pull/33327 (2025-02, Together AI)",
        sse(FIRST, said(TEXT), chunk(finish="eos"), DONE),
    ),
    Row(
        "finish stop_sequence",
        "a sibling of github.com/tomnio/rubric/pull/67 (2026-09: values of Anthropic in the slot of OpenAI)",
        sse(FIRST, said(TEXT), chunk(finish="stop_sequence"), DONE),
    ),
    Row(
        "finish and the last text in one chunk",
        "github.com/vllm-project/vllm/pull/36944 (2026-03)",
        sse(FIRST, said("Two "), chunk({"content": "keys."}, "stop"), DONE),
    ),
    Row(
        "the finish, and no [DONE]",
        "github.com/lidge-jun/opencodex/issues/1170 (2026-08)",
        sse(*PARTS[:-1]),
    ),
)


@pytest.mark.parametrize("how", HOWS)
@rows(*WHOLE)
async def test_variation_that_cannot_change_the_meaning_costs_no_answer(row: Row, how: str) -> None:
    async with OddServer(row.reply) as server:
        done = await answered(custom(server.base_url), how)
        assert (done.text, done.finish, len(server.bodies)) == (TEXT, "stop", 1)


@dataclass(frozen=True)
class ThinkingRow:
    id: str
    seen: str
    reply: Reply


THINKING: Final = [{"type": "thinking", "thinking": [{"type": "text", "text": "A question."}]}]


@pytest.mark.parametrize("how", HOWS)
@rows(
    ThinkingRow(
        "content as a list of thinking and text, in a stream",
        "github.com/microsoft/agent-framework/issues/6978 (2026-07), github.com/symfony/ai/issues/2422 (2026-08), "
        "github.com/BerriAI/litellm/issues/16272 (2025-11)",
        sse(
            chunk({"content": THINKING}),
            chunk({"content": [{"type": "text", "text": "Two "}]}),
            said("keys."),
            LAST,
            DONE,
        ),
    ),
    ThinkingRow(
        "content as a list of thinking and text, in one piece",
        "github.com/symfony/ai/pull/2423 (2026-08), github.com/simonw/llm-mistral/pull/39 (2025-12)",
        body(whole({"content": [*THINKING, {"type": "text", "text": TEXT}]})),
    ),
    ThinkingRow(
        "content null while the model thinks",
        "github.com/earendil-works/pi/pull/2782 (2026-04)",
        sse(chunk({"content": None, "reasoning_content": "A question."}), said(TEXT), LAST, DONE),
    ),
)
async def test_thinking_and_text_are_separated(row: ThinkingRow, how: str) -> None:
    async with OddServer(row.reply) as server:
        done = await answered(custom(server.base_url), how)
    assert (done.text, done.reasoning) == (TEXT, "A question.")


@dataclass(frozen=True)
class UsageRow:
    id: str
    seen: str
    reply: Reply


def growing(tokens: int) -> dict[str, int]:
    return {**NUMBERS, "completion_tokens": tokens, "total_tokens": 9 + tokens}


@pytest.mark.parametrize("how", HOWS)
@rows(
    UsageRow(
        "in the choice",
        "github.com/earendil-works/pi/issues/2017 (2026-03), github.com/AstrBotDevs/AstrBot/issues/6614 (2026-03)",
        sse(FIRST, said(TEXT), chunk(finish="stop", choice={"usage": NUMBERS}), DONE),
    ),
    UsageRow(
        "in every chunk, and the last is the whole",
        "github.com/open-webui/open-webui/issues/29064 (2026-08), github.com/ogx-ai/ogx/issues/5122 (2026-03)",
        sse(
            chunk({"content": "Two "}, usage=growing(1)),
            chunk({"content": "keys."}, usage=growing(2)),
            chunk(finish="stop", usage=growing(3)),
            DONE,
        ),
    ),
    UsageRow(
        "in x_groq",
        "github.com/pydantic/pydantic-ai-gateway/pull/146, github.com/vercel/ai/issues/1651 (2024-05)",
        sse(FIRST, said(TEXT), chunk(finish="stop", x_groq={"id": "q1", "usage": NUMBERS}), DONE),
    ),
    UsageRow(
        "in an object without choices",
        "github.com/openclaw/openclaw/issues/15488 (2026-02)",
        sse(FIRST, said(TEXT), LAST, {"id": "r1", "usage": NUMBERS}, DONE),
    ),
    UsageRow(
        "before the text",
        "a sibling of github.com/tensorzero/tensorzero/issues/2078 (2025-05)",
        sse(chunk({"role": "assistant"}, usage=NUMBERS), said(TEXT), LAST, DONE),
    ),
    UsageRow(
        "null after the real one",
        "github.com/odysseus-dev/odysseus/pull/2389 (2026-06)",
        sse(FIRST, said(TEXT), chunk(finish="stop", usage=NUMBERS), {**FIRST, "choices": [], "usage": None}, DONE),
    ),
)
async def test_usage_is_read_in_every_place(row: UsageRow, how: str) -> None:
    async with OddServer(row.reply) as server:
        done = await answered(custom(server.base_url), how)
    assert done.text == TEXT
    assert done.usage == Usage(9, 3, 12, done.usage.reasoning_tokens, done.usage.cached_tokens)


@dataclass(frozen=True)
class ErrorRow:
    """An error inside a 200.

    Attributes:
        error: its class; a base class if several are right.
        words: a part of the server's words.
    """

    id: str
    seen: str
    reply: Reply
    error: type[errors.LLMError]
    words: str


def base_resp(code: int, message: str) -> dict[str, Any]:
    return {"id": "r1", "choices": None, "base_resp": {"status_code": code, "status_msg": message}}


CAPACITY: Final = "All twelve workers are busy"
SPENT: Final = "insufficient balance"

ERRORS = (
    ErrorRow(
        "beside empty choices",
        "github.com/diegosouzapw/OmniRoute/pull/8210 (2026-07)",
        sse({**FIRST, "choices": [], "error": {"code": 502, "message": CAPACITY}}, DONE),
        errors.LLMError,
        CAPACITY,
    ),
    ErrorRow(
        "beside a choice whose finish is error, after some text",
        "github.com/damianvtran/local-operator/pull/223 (2026-08), "
        "github.com/use-agent-os/agent-os/pull/2215 (2026-09)",
        sse(FIRST, said("Two "), {**chunk(finish="error"), "error": {"code": 502, "message": CAPACITY}}, DONE),
        errors.LLMError,
        CAPACITY,
    ),
    ErrorRow(
        "in the choice",
        "github.com/genkit-ai/genkit/pull/6259 (2026-09), github.com/nodetool-ai/nodetool/pull/5755 (2026-09)",
        sse(FIRST, said("Two "), chunk(finish="error", choice={"error": {"code": 504, "message": CAPACITY}}), DONE),
        errors.LLMError,
        CAPACITY,
    ),
    ErrorRow(
        "in the choice, which ends with stop",
        "github.com/genkit-ai/genkit/pull/6259 (2026-09, the review)",
        sse(said("Two "), chunk({}, choice={"error": {"code": 504, "message": CAPACITY}}), chunk(finish="stop"), DONE),
        errors.LLMError,
        CAPACITY,
    ),
    ErrorRow(
        "in one piece, in the choice",
        "github.com/nodetool-ai/nodetool/pull/5755 (2026-09)",
        body(
            {
                **whole({"content": ""}, "error"),
                "choices": [{"index": 0, "finish_reason": "error", "error": {"code": 429, "message": CAPACITY}}],
            }
        ),
        errors.RateLimited,
        CAPACITY,
    ),
    ErrorRow(
        "alone, then [DONE]",
        "github.com/BerriAI/litellm/issues/40578 (2026-09), github.com/open-octo/octo-agent/pull/910 (2026-06)",
        sse({"error": {"message": CAPACITY, "code": 503, "type": "overloaded_error"}}, DONE),
        errors.LLMError,
        CAPACITY,
    ),
    ErrorRow(
        "as a string",
        "github.com/bigduu/Bamboo-agent/pull/98 (2026-06)",
        sse(FIRST, {"error": CAPACITY}),
        errors.LLMError,
        CAPACITY,
    ),
    ErrorRow(
        "under the event error, as a bare message",
        "github.com/octos-org/octos/issues/13 (2026-03)",
        sse(FIRST, b'event: error\ndata: {"message": "' + CAPACITY.encode() + b'"}\n\n'),
        errors.LLMError,
        CAPACITY,
    ),
    ErrorRow(
        "in a line error: instead of data:",
        "github.com/ggml-org/llama.cpp/pull/16109 (2025-09)",
        sse(FIRST, b'error: {"code": 500, "message": "' + CAPACITY.encode() + b'"}\n\n'),
        errors.LLMError,
        "",
    ),
    ErrorRow(
        "as fields error_type and error_message",
        "github.com/NousResearch/hermes-agent/pull/65643 (2026-07)",
        sse({**FIRST, "choices": None, "error_type": "BadRequestError", "error_message": CAPACITY}),
        errors.LLMError,
        CAPACITY,
    ),
    ErrorRow(
        "base_resp: no money, in one piece",
        "github.com/RooCodeInc/Roo-Code/pull/9105 (2025-11), github.com/infiniflow/ragflow/pull/17292 (2026-07)",
        body(base_resp(1008, SPENT)),
        errors.QuotaExceeded,
        SPENT,
    ),
    ErrorRow(
        "base_resp: no money, in a stream",
        "github.com/infiniflow/ragflow/pull/17292 (2026-07)",
        sse(base_resp(1008, SPENT), DONE),
        errors.QuotaExceeded,
        SPENT,
    ),
    ErrorRow(
        "base_resp: too many requests",
        "github.com/infiniflow/ragflow/pull/17292 (2026-07)",
        body(base_resp(1002, "rate limit")),
        errors.RateLimited,
        "rate limit",
    ),
    ErrorRow(
        "code and msg",
        "github.com/adolfousier/opencrabs/issues/1007 (2026-08)",
        body({"code": 40017, "msg": CAPACITY, "data": None}),
        errors.LLMError,
        CAPACITY,
    ),
    ErrorRow(
        "code and message, with a status in the words",
        "github.com/XpressAI/xaibo/pull/36 (2026-06)",
        body({"code": "rate_limit_daily", "message": "Error code: 429 - daily limit"}),
        errors.LLMError,
        "daily limit",
    ),
    ErrorRow(
        "status and message",
        "github.com/truefoundry/models/pull/944",
        body({"status": "failure", "message": CAPACITY}),
        errors.LLMError,
        CAPACITY,
    ),
    ErrorRow(
        "a code of 429 in an object of one piece",
        "github.com/mmeyerlein/meclaw/issues/75 (2026-08), github.com/langchain-ai/langchain/issues/40362 (2026-09)",
        body({"error": {"code": 429, "message": CAPACITY}}),
        errors.RateLimited,
        CAPACITY,
    ),
    ErrorRow(
        "quota in words",
        "github.com/apache/rocketmq-dashboard/issues/2178 (2026-08)",
        sse({"error": {"message": "quota exceeded"}}, DONE),
        errors.LLMError,
        "quota exceeded",
    ),
    ErrorRow(
        "LM Studio's object with the message twice",
        "github.com/zendev-sh/goai/pull/110 (2026-06)",
        sse(FIRST, said("Two "), {"error": {"message": "Compute error."}, "message": "Compute error."}),
        errors.LLMError,
        "Compute error",
    ),
    ErrorRow(
        "finish network_error",
        "github.com/promptfoo/promptfoo/pull/9905 (2026-07, Z.ai)",
        sse(FIRST, said("Two "), chunk(finish="network_error"), DONE),
        errors.BrokenAnswer,
        "network_error",
    ),
    ErrorRow(
        "finish sensitive",
        "github.com/promptfoo/promptfoo/pull/9905 (2026-07), github.com/langgenius/dify/issues/7559 (2024-08)",
        sse(FIRST, said("Two "), chunk(finish="sensitive"), DONE),
        errors.ContentFiltered,
        "",
    ),
    ErrorRow(
        "finish SAFETY",
        "github.com/open-learning-exchange/planet/pull/10281 (2026-08)",
        sse(FIRST, said("Two "), chunk(finish="SAFETY"), DONE),
        errors.ContentFiltered,
        "",
    ),
    ErrorRow(
        "finish error with the vendor's own reason",
        "github.com/OpenRouterTeam/openrouter-examples/issues/67 (2026-03)",
        body(
            {
                **whole({}),
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "error",
                        "native_finish_reason": "MALFORMED_FUNCTION_CALL",
                        "message": {"role": "assistant", "content": None},
                    }
                ],
            }
        ),
        errors.BrokenAnswer,
        "",
    ),
    ErrorRow(
        "a refusal of the model in its own field",
        "github.com/openclaw/openclaw/issues/102321 (2026-07), "
        "github.com/langchain4j/langchain4j/issues/6113 (2026-08)",
        sse(FIRST, chunk({"refusal": "I cannot help with that."}), LAST, DONE),
        errors.ContentFiltered,
        "",
    ),
    ErrorRow(
        "a refusal of the model in one piece",
        "github.com/langchain4j/langchain4j/issues/6113 (2026-08)",
        body(whole({"content": None, "refusal": "I cannot help with that."})),
        errors.ContentFiltered,
        "",
    ),
)


@pytest.mark.parametrize("how", HOWS)
@rows(*ERRORS)
async def test_error_inside_a_200_keeps_its_words_and_its_class(row: ErrorRow, how: str) -> None:
    async with OddServer(row.reply) as server:
        got = await outcome(custom(server.base_url), how)
    assert isinstance(got, row.error)
    assert row.words in f"{got} {got.server_message}"


@pytest.mark.parametrize("how", HOWS)
@rows(*(row for row in ERRORS if row.error is not errors.ContentFiltered))
async def test_next_provider_answers_after_an_error_inside_a_200(row: ErrorRow, how: str) -> None:
    async with OddServer(row.reply) as one, OddServer(good(TEXT)) as two:
        chain = router(custom(one.base_url), custom(two.base_url))
        done = await answered(chain, how)
    assert done.text.removeprefix("Two ") in (TEXT, "keys.")  # anew, or continued


INCOMPLETE = (
    Row(
        "no finish, then [DONE]",
        "github.com/earendil-works/pi/pull/7441 (2026-08), github.com/can1357/oh-my-pi/issues/9433 (2026-08)",
        sse(FIRST, said("Two "), DONE),
    ),
    Row(
        "a call, no finish, then the end",
        "github.com/earendil-works/pi/pull/6225 (2026-07, GLM-5.1 at NVIDIA NIM)",
        sse(FIRST, calls(piece(0, "a1", "define", '{"term": "key"}'))),
    ),
    Row(
        "nothing after the role, then usage",
        "github.com/vaadin/flow-components/pull/9195 (2026-04, LM Studio beyond its context)",
        sse(FIRST, {**FIRST, "choices": [], "usage": NUMBERS}),
    ),
    Row(
        "data and JSON parted by a line end",
        "github.com/0xPlaygrounds/rig/issues/534 (2025-06)",
        Reply(200, wire(*PARTS).replace(b"data: {", b"data:\n {"), "text/event-stream"),
    ),
    Row(
        "no choices at all",
        "github.com/langchain-ai/langchain/pull/35236 (2026-02)",
        body({"id": "r1", "choices": None}),
    ),
)


@pytest.mark.parametrize("how", HOWS)
@rows(*INCOMPLETE)
async def test_incomplete_answer_is_never_called_whole(row: Row, how: str) -> None:
    async with OddServer(row.reply) as server:
        got = await outcome(custom(server.base_url), how, tools=TOOLS)
    assert isinstance(got, errors.BrokenAnswer) or (isinstance(got, Completion) and got.text == TEXT)


def choice(index: int, delta: dict[str, Any], finish: str | None = None) -> Any:
    return {**FIRST, "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


@pytest.mark.parametrize("how", HOWS)
async def test_finish_of_another_choice_does_not_complete_the_first(how: str) -> None:
    async with OddServer(sse(said("Two "), choice(1, {"content": "One"}), choice(1, {}, "stop"))) as server:
        got = await outcome(custom(server.base_url), how)
    assert isinstance(got, errors.BrokenAnswer)


@pytest.mark.parametrize("how", HOWS)
async def test_call_that_begins_after_the_finish_is_incomplete(how: str) -> None:
    parts = calls(piece(0, "a1", "define", '{"term": "key"}')), chunk(finish="tool_calls")
    async with OddServer(sse(*parts, calls(piece(1, "b2", "define")))) as server:
        got = await outcome(custom(server.base_url), how, tools=TOOLS)
    assert isinstance(got, errors.BrokenAnswer)


async def test_error_of_the_server_is_reported_as_its_own() -> None:
    """The message is not replaced by one of the parser (github.com/aaif-goose/goose/pull/7663, 2026-03)."""
    async with OddServer(sse(openai_error("slot unavailable", code=503))) as server:
        got = await outcome(custom(server.base_url), "complete")
    assert "slot unavailable" in f"{got} {got.server_message}"
    assert not isinstance(got, errors.MalformedAnswer)
