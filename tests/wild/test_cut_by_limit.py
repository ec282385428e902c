"""Answers that end at the limit of tokens: a text is returned with a warning, a call or a schema is an error."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any, Final

import pytest
from odd_server import (
    DONE,
    HOWS,
    OddServer,
    Reply,
    answered,
    body,
    calls,
    chunk,
    custom,
    piece,
    rows,
    said,
    sse,
    tool,
    whole,
)
from pydantic import BaseModel
from support import router

from learnflow.llm import errors, events

TOOLS: Final = [tool("note", "page", "text")]
CUT_CALL: Final = piece(0, "a1", "note", '{"page": "1", "text": "RSA is a pub')


class Quiz(BaseModel):
    questions: list[str]


SCHEMA: Final = {"type": "json_schema", "json_schema": {"name": "quiz", "schema": Quiz.model_json_schema()}}


def cut(*parts: Any, finish: str = "length", **more: Any) -> Reply:
    return sse(chunk({"role": "assistant"}), *parts, chunk(finish=finish, **more), DONE)


def used(tokens: int) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens}}


@dataclass(frozen=True)
class Row:
    """An answer that ends at the limit.

    Attributes:
        reply: the server's answer.
        options: of the call.
    """

    id: str
    seen: str
    reply: Reply
    options: dict[str, Any]


TRUNCATED = (
    Row(
        "arguments end in the middle, finish length",
        "github.com/XpressAI/xaibo/pull/33 (2026-03), github.com/anomalyco/opencode/pull/42303 (2026-08), "
        "github.com/NousResearch/hermes-agent/pull/86054 (2026-08)",
        cut(calls(CUT_CALL)),
        {"tools": TOOLS},
    ),
    Row(
        "arguments end in the middle in one piece",
        "github.com/XpressAI/xaibo/pull/33 (2026-03)",
        body(whole({"content": None, "tool_calls": [CUT_CALL]}, "length")),
        {"tools": TOOLS},
    ),
    Row(
        "arguments are valid JSON, but lack a field",
        "github.com/jaseci-labs/jac/pull/6766 (2026-06)",
        cut(calls(piece(0, "a1", "note", '{"page": "1"}'))),
        {"tools": TOOLS},
    ),
    Row(
        "the second of two calls is cut",
        "github.com/vllm-project/vllm/issues/58228 (2026-09)",
        cut(calls(piece(0, "a0", "note", '{"page": "1", "text": "x"}'), piece(1, "a1", "note", '{"page": "2'))),
        {"tools": TOOLS},
    ),
    Row(
        "finish tool_calls, arguments end in the middle, and the usage is the limit",
        "github.com/MiaAI-Lab/DeepSeek-v4-Flash-DSpark-2x-DGX-Spark/issues/55 (2026-08), "
        "github.com/vllm-project/vllm/issues/58228 (2026-09)",
        cut(calls(CUT_CALL), finish="tool_calls", **used(1000)),
        {"tools": TOOLS},
    ),
    Row(
        "a call that is cut has no arguments yet",
        "a sibling of github.com/14790897/MiqroForge-Desktop/pull/1100 (2026)",
        cut(calls(piece(0, "a1", "note", ""))),
        {"tools": TOOLS},
    ),
    Row(
        "a call that is cut was not parsed, so that the answer is empty",
        "github.com/vllm-project/vllm/issues/58228 (2026-09)",
        cut(chunk({"content": ""})),
        {"tools": TOOLS},
    ),
    Row(
        "a schema as a class is cut",
        "github.com/567-labs/instructor/pull/2213 (2026-03), github.com/browser-use/browser-use/pull/5148 (2026-07), "
        "github.com/caid-technologies/Forma-OSS/pull/35 (2026-07)",
        cut(said('{"questions": ["Why two ')),
        {"response_format": Quiz},
    ),
    Row(
        "a schema as a dict is cut",
        "github.com/tomnio/rubric/issues/66 (2026-09), github.com/getzep/graphiti/pull/1053 (2025-11)",
        cut(said('{"questions": ["Why two ')),
        {"response_format": SCHEMA},
    ),
    Row(
        "a JSON object without a schema is cut",
        "github.com/misospace/pr-reviewer-action/issues/449 (2026-07)",
        cut(said('{"questions": ["Why two ')),
        {"response_format": {"type": "json_object"}},
    ),
    Row(
        "a schema is cut, in the words of another dialect",
        "github.com/tomnio/rubric/pull/67 (2026-09: max_tokens in the slot of OpenAI)",
        cut(said('{"questions": ["Why two '), finish="max_tokens"),
        {"response_format": Quiz},
    ),
    Row(
        "a draft is whole, and the answer after it is missing",
        "a sibling of github.com/jaseci-labs/jac/pull/6766 (2026-06)",
        cut(said('A draft: {"questions": ["Why?"]}. Now the whole quiz:')),
        {"response_format": Quiz},
    ),
    Row(
        "a number is cut between two digits",
        "a sibling of github.com/jaseci-labs/jac/pull/6766 (2026-06)",
        cut(said("12")),
        {"response_format": {"type": "json_schema", "json_schema": {"name": "year", "schema": {"type": "integer"}}}},
    ),
    Row(
        "thinking used all tokens",
        "github.com/codelibs/fess/pull/3061 (2026-03), github.com/The-PR-Agent/pr-agent/issues/2631 (2026-08), "
        "github.com/pvliesdonk/markdown-vault-mcp/issues/919 (2026-07)",
        cut(chunk({"reasoning_content": "The reader asks for"})),
        {},
    ),
    Row(
        "the message has no content at all, and the finish is MAX_TOKENS",
        "github.com/QwenLM/qwen-code/issues/9882 (2026-08)",
        body(whole({}, "MAX_TOKENS")),
        {},
    ),
)


@pytest.mark.parametrize("how", HOWS)
@rows(*TRUNCATED)
async def test_one_provider_reports_the_limit_and_is_asked_once(
    row: Row, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_RETRIES", "2")
    async with OddServer(row.reply) as server:
        with pytest.raises(errors.AnswerTruncated, match="max_tokens") as caught:
            await answered(custom(server.base_url), how, **row.options)
        assert len(server.bodies) == 1
    assert "1000" in str(caught.value)


@pytest.mark.parametrize("how", HOWS)
@rows(*TRUNCATED)
async def test_router_opens_no_breaker_and_asks_each_provider_once_at_most(
    row: Row, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_RETRIES", "2")
    async with OddServer(row.reply) as one, OddServer(row.reply) as two:
        chain = router(custom(one.base_url), custom(two.base_url))
        with pytest.raises(errors.AnswerTruncated, match="max_tokens"):
            await answered(chain, how, **row.options)
        assert len(one.bodies) == 1
        assert len(two.bodies) <= 1
    assert [row["breaker"] for row in chain.status()] == ["closed", "closed"]


@pytest.mark.parametrize("how", HOWS)
@rows(*(row for row in TRUNCATED if "dialect" not in row.id and "MAX_TOKENS" not in row.id))
async def test_next_provider_gets_the_request_only_if_the_answer_is_empty(row: Row, how: str) -> None:
    async with OddServer(row.reply) as one, OddServer(row.reply) as two:
        chain = router(custom(one.base_url), custom(two.base_url))
        with pytest.raises(errors.AnswerTruncated) as caught:
            await answered(chain, how, **row.options)
        is_empty = not (caught.value.partial or caught.value.partial_calls)
        assert (len(one.bodies), len(two.bodies)) == (1, int(is_empty))


async def test_next_provider_gets_the_request_if_the_context_was_full() -> None:
    """A sibling: another provider may serve a longer context."""
    reply = cut(said('{"questions": ["Why two '), **used(30))
    async with OddServer(reply) as one, OddServer(whole_quiz()) as two:
        chain = router(custom(one.base_url), custom(two.base_url))
        assert (await chain.complete("?", response_format=Quiz)).parsed == Quiz(questions=[])


def whole_quiz() -> Reply:
    return cut(said('{"questions": []}'), finish="stop")


@pytest.mark.parametrize("text", ['{"questions": []}', '\n```json\n{"questions": []}\n```\n', '{"questions": []}\n\n'])
async def test_schema_that_is_whole_at_the_limit_is_returned(text: str) -> None:
    async with OddServer(cut(said(text))) as server:
        done = await custom(server.base_url).complete("?", response_format=Quiz)
    assert done.parsed == Quiz(questions=[])


@dataclass(frozen=True)
class TextRow:
    id: str
    seen: str
    reply: Reply


TEXTS = (
    TextRow(
        "finish length",
        "github.com/HKUDS/LightRAG/pull/3883 (2026-09), github.com/agent0ai/agent-zero/issues/1836 (2026-08), "
        "github.com/huggingface/chat-ui/pull/2383 (2026-06)",
        cut(said("RSA is a pub")),
    ),
    TextRow("finish length in one piece", "github.com/No-Compromise-AI/glm-mcp/issues/41 (2026-08)",
        body(whole({"content": "RSA is a pub"}, "length"))),
    TextRow("finish MAX_TOKENS", "github.com/QwenLM/qwen-code/issues/9882 (2026-08), "
        "github.com/Portkey-AI/gateway/issues/1200 (2025-07)", cut(said("RSA is a pub"), finish="MAX_TOKENS")),
    TextRow("finish max_tokens", "github.com/tomnio/rubric/pull/67 (2026-09)",
        cut(said("RSA is a pub"), finish="max_tokens")),
)  # fmt: skip


@pytest.mark.parametrize("how", ["generate", "stream", *HOWS])
@pytest.mark.parametrize("limit", [None, 40])
@rows(*TEXTS)
async def test_text_is_returned_with_a_warning_that_names_number_and_remedy(
    row: TextRow, limit: int | None, how: str, events_seen: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="learnflow.llm")
    options = {} if limit is None else {"max_tokens": limit}
    async with OddServer(row.reply) as server:
        provider = custom(server.base_url)
        if how == "generate":
            text = await provider.generate("What is RSA?", **options)
        elif how == "stream":
            text = "".join([piece async for piece in provider.stream("What is RSA?", **options)])
        else:
            done = await answered(provider, how, **options)
            assert done.finish == "length"
            text = done.text
        assert len(server.bodies) == 1
    assert text == "RSA is a pub"
    (warning,) = [event for event in events_seen if isinstance(event, events.TokenLimitReached)]
    assert warning.max_tokens == (limit or 1000)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert str(limit or 1000) in line
    assert "max_tokens=" in line  # the remedy
    assert ("default" in line) == (limit is None)


async def test_tool_call_that_is_complete_at_finish_tool_calls_is_no_cut() -> None:
    """The limit may equal the usage by chance; complete arguments with finish tool_calls are complete."""
    arguments = json.dumps({"page": "1", "text": "RSA"})
    reply = cut(calls(piece(0, "a1", "note", arguments)), finish="tool_calls", **used(40))
    async with OddServer(reply) as server:
        done = await custom(server.base_url).complete("?", tools=TOOLS, max_tokens=40)
    assert done.tool_calls[0].arguments == {"page": "1", "text": "RSA"}
