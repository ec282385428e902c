"""Small variations: fences and marks around JSON, arguments that are null, levels of reasoning, another model."""

from __future__ import annotations

import io
import json
import logging
import sys
from dataclasses import dataclass
from typing import Any, Final

import pytest
from odd_server import (
    DONE,
    HOWS,
    KEY,
    MODEL,
    OddServer,
    Reply,
    answered,
    body,
    calls,
    chunk,
    custom,
    good,
    piece,
    rows,
    said,
    sse,
    tool,
    whole,
)
from pydantic import BaseModel
from support import serving

from learnflow.llm import errors, events
from learnflow.llm.cli.main import main
from learnflow.llm.providers import LlamaCppProvider, build
from learnflow.llm.testing import FaultServer


class Quiz(BaseModel):
    questions: list[str]


QUIZ: Final = {"questions": ["Why two keys?", "Who has `the` key?"]}
TEXT: Final = json.dumps(QUIZ)
DICT: Final = {"type": "json_schema", "json_schema": {"name": "quiz", "schema": Quiz.model_json_schema()}}
BOM: Final = "\ufeff"


@dataclass(frozen=True)
class JsonRow:
    id: str
    seen: str
    text: str


FENCED = (
    JsonRow(
        "a fence with json",
        "github.com/openai/codex-plugin-cc/pull/583 (2026-08), github.com/btucker/midtown/pull/1354 (2026-02), "
        "github.com/misospace/pr-reviewer-action/issues/449 (2026-07)",
        f"```json\n{TEXT}\n```",
    ),
    JsonRow("a fence without a name", "github.com/btucker/midtown/pull/1354 (2026-02)", f"```\n{TEXT}\n```\n"),
    JsonRow("a fence in one line", "github.com/nferraz/gpt-adventures/pull/2 (2026-04)", f"```json {TEXT} ```"),
    JsonRow("a fence with JSON", "github.com/rahuloruganti/charbit/issues/9 (2026-09)", f"```JSON\r\n{TEXT}\r\n```"),
    JsonRow("a byte order mark", "a sibling of github.com/elizaOS/eliza/issues/19260 (2026-08)", BOM + TEXT),
    JsonRow(
        "prose before",
        "github.com/airwaylab-app/airwaylab/pull/125 (2026-03), github.com/Muhanad-husn/axial/issues/72 (2026-07)",
        f"Here is the quiz you asked for:\n\n{TEXT}",
    ),
    JsonRow(
        "prose after", "github.com/sreerevanth/repopilot/issues/157 (2026-08)", f"{TEXT}\n\nShall I make it harder?"
    ),
    JsonRow(
        "prose and a fence",
        "github.com/sreerevanth/repopilot/issues/157 (2026-08)",
        f"Here it is:\n```json\n{TEXT}\n```\nGood luck!",
    ),
    JsonRow(
        "a fence of another language before",
        "github.com/NVIDIA-NeMo/labs-OO-Agents/pull/238 (2026-08)",
        f"Run this:\n```bash\nopenssl genrsa\n```\n```json\n{TEXT}\n```",
    ),
)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("format_", [Quiz, DICT], ids=["class", "dict"])
@rows(*FENCED)
async def test_only_json_of_an_answer_is_its_json(row: JsonRow, format_: Any, how: str) -> None:
    async with OddServer(sse(said(row.text), chunk(finish="stop"), DONE)) as server:
        done = await answered(custom(server.base_url), how, response_format=format_)
        assert done.parsed == (Quiz(**QUIZ) if format_ is Quiz else QUIZ)
        assert len(server.bodies) == 1  # the model is not asked again


@pytest.mark.parametrize("how", HOWS)
@rows(
    JsonRow(
        "two different objects",
        "github.com/NVIDIA-NeMo/labs-OO-Agents/pull/238 (2026-08)",
        f'{TEXT}\n\n{{"questions": []}}',
    ),
    JsonRow("no object at all", "github.com/Muhanad-husn/axial/issues/72 (2026-07)", "I cannot make a quiz."),
    JsonRow(
        "an object that does not end",
        "github.com/browser-use/browser-use/pull/5148 (2026-07)",
        f"```json\n{TEXT[:-4]}\n```",
    ),
)
async def test_doubtful_json_is_no_match(row: JsonRow, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_REASK", "0")
    async with OddServer(sse(said(row.text), chunk(finish="stop"), DONE)) as server:
        with pytest.raises(errors.SchemaMismatch):
            await answered(custom(server.base_url), how, response_format=Quiz)


@pytest.mark.parametrize(
    "text", ['Here: {"a": {"b": 1}, "c": ', '{"a": 1} and {"b": [1, ', '```json\n[{"a": 1}, {"b"\n```']
)
async def test_inner_object_of_incomplete_json_is_not_its_json(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sibling of github.com/browser-use/browser-use/pull/5148 (2026-07)."""
    monkeypatch.setenv("LLM_REASK", "0")
    async with OddServer(sse(said(text), chunk(finish="stop"), DONE)) as server:
        with pytest.raises(errors.SchemaMismatch):
            await custom(server.base_url).complete("?", response_format={"type": "json_object"})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"see {} here"', "see {} here"),
        ("[1, 2]", [1, 2]),
        ('The set {x} has one element, see [1]:\n{"a": 1}', {"a": 1}),
        ('{"a": 1}\n```json\n{"a": 1}\n```', {"a": 1}),
    ],
)
async def test_braces_of_a_sentence_are_not_json(text: str, value: Any) -> None:
    async with OddServer(sse(said(text), chunk(finish="stop"), DONE)) as server:
        done = await custom(server.base_url).complete("?", response_format={"type": "json_object"})
    assert done.parsed == value


@pytest.mark.parametrize("how", HOWS)
async def test_byte_order_mark_before_a_body_of_json_is_ignored(how: str) -> None:
    """github.com/avibe-bot/avibe/pull/1786 (2026-08)."""
    reply = body(b"\xef\xbb\xbf" + json.dumps(whole({"content": "Two keys."})).encode())
    async with OddServer(reply) as server:
        assert (await answered(custom(server.base_url), how)).text == "Two keys."


@dataclass(frozen=True)
class ArgumentsRow:
    id: str
    seen: str
    call: dict[str, Any]


ARGUMENTS = (
    ArgumentsRow(
        "null",
        "github.com/langchain-ai/langchain/pull/34190 (2025-12), github.com/moltis-org/moltis/pull/697 (2026-04)",
        piece(0, "a1", "progress", None),
    ),
    ArgumentsRow(
        "an empty string",
        "github.com/sigoden/aichat/pull/1217 (2025-03), github.com/cheshire-cat-ai/core/pull/1140 (2026-07), "
        "github.com/Lexus2016/hermes-agent-evolution/pull/1170 (2026-07)",
        piece(0, "a1", "progress", ""),
    ),
    ArgumentsRow("absent", "github.com/vllm-project/vllm/issues/19419 (2025-06)", piece(0, "a1", "progress")),
    ArgumentsRow(
        "the text null", "github.com/supermemoryai/supermemory/pull/1612 (2026-08)", piece(0, "a1", "progress", "null")
    ),
    ArgumentsRow(
        "white space",
        "a sibling of github.com/14790897/MiqroForge-Desktop/pull/1100 (2026)",
        piece(0, "a1", "progress", " \n"),
    ),
    ArgumentsRow(
        "an empty object", "github.com/huggingface/huggingface_hub/pull/3126 (2025-05)", piece(0, "a1", "progress", {})
    ),
)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "one piece"])
@rows(*ARGUMENTS)
async def test_arguments_that_are_nothing_are_none(row: ArgumentsRow, streamed: bool, how: str) -> None:
    stream = sse(calls(row.call), chunk(finish="tool_calls"), DONE)
    reply = stream if streamed else body(whole({"content": None, "tool_calls": [row.call]}, "tool_calls"))
    async with OddServer(reply) as server:
        done = await answered(custom(server.base_url), how, tools=[tool("progress")])
    assert [(call.id, call.name, call.arguments) for call in done.tool_calls] == [("a1", "progress", {})]


@pytest.mark.parametrize("how", HOWS)
async def test_line_ends_inside_strings_of_arguments_are_read(how: str) -> None:
    """github.com/XpressAI/xaibo/pull/36 (2026-06): control characters that strict JSON forbids."""
    call = piece(0, "a1", "note", '{"text": "one\ntwo\tthree"}')
    async with OddServer(sse(calls(call), chunk(finish="tool_calls"), DONE)) as server:
        done = await answered(custom(server.base_url), how, tools=[tool("note", "text")])
    assert done.tool_calls[0].arguments == {"text": "one\ntwo\tthree"}


@dataclass(frozen=True)
class LevelRow:
    id: str
    seen: str
    provider: str
    model: str
    level: str


@pytest.mark.parametrize("how", HOWS)
@rows(
    LevelRow(
        "xhigh at OpenAI",
        "github.com/simonw/llm/pull/1321 (2025-12), github.com/zed-industries/zed/pull/45234 (2025-12)",
        "openai",
        "gpt-5.2",
        "xhigh",
    ),
    LevelRow(
        "xhigh at a model of OpenAI that is not known",
        "a sibling of github.com/simonw/llm/pull/1321 (2025-12)",
        "openai",
        "gpt-6-astra",
        "xhigh",
    ),
    LevelRow("none at OpenAI", "github.com/getzep/graphiti/pull/1395 (2026-04)", "openai", "gpt-5.2", "none"),
    LevelRow("minimal at OpenAI", "github.com/getzep/graphiti/pull/1395 (2026-04)", "openai", "gpt-5", "minimal"),
    LevelRow("xhigh at xAI", "github.com/xai-org/xai-proto/pull/70 (2026-08)", "xai", "grok-4.6", "xhigh"),
    LevelRow("none at xAI", "github.com/xai-org/xai-proto/pull/49 (2026-05)", "xai", "grok-4.6", "none"),
    LevelRow("max at Z.AI", "github.com/mistralai/mistral-vibe/issues/1117 (2026-09)", "zai", "glm-5.3", "max"),
    LevelRow(
        "xhigh at OpenRouter",
        "github.com/router-for-me/CLIProxyAPI/issues/1307 (2026-01)",
        "openrouter",
        "openai/gpt-5.2",
        "xhigh",
    ),
    LevelRow(
        "minimal at Gemini", "github.com/JetBrains/koog/pull/2183 (2026-07)", "gemini", "gemini-3-flash", "minimal"
    ),
)
async def test_level_of_reasoning_that_the_vendor_has_is_sent(row: LevelRow, how: str) -> None:
    async with OddServer(good()) as server:
        provider = build(row.provider, server.base_url, row.model, KEY)
        assert (await answered(provider, how, reasoning=row.level)).text == "Two keys."
        assert f'"{row.level}"' in json.dumps(server.bodies[-1])


@pytest.mark.parametrize("how", HOWS)
async def test_level_that_no_vendor_has_is_refused_by_name(how: str) -> None:
    async with OddServer(good()) as server:
        with pytest.raises((errors.RequestError, errors.Unsupported), match="reasoning"):
            await answered(build("openai", server.base_url, "gpt-5.2", KEY), how, reasoning="utmost")
        assert not server.bodies


@dataclass(frozen=True)
class EncodingRow:
    id: str
    seen: str
    prompt: bytes


@rows(
    EncodingRow(
        "Windows 1251", "github.com/spec-kitty/spec-kitty/issues/4739 (2026-09)", "Что такое ключ?".encode("cp1251")
    ),
    EncodingRow("GBK", "github.com/HenryZ838978/deepseek-harness/pull/7 (2026-09)", "什么是钥匙".encode("gbk")),
    EncodingRow("UTF-16", "github.com/simonw/llm/issues/225 (2024-12)", "What is a key?".encode("utf-16")),
)
def test_prompt_from_stdin_in_another_encoding_is_an_error_of_one_line(
    row: EncodingRow, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLM_PROVIDER", "custom")
    monkeypatch.setenv("CUSTOM_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("CUSTOM_MODEL", MODEL)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(row.prompt), encoding="utf-8"))
    assert main(["ask", "-"]) != 0
    shown = capsys.readouterr()
    assert not shown.out
    lines = shown.err.strip().splitlines()
    assert len(lines) == 1
    assert "UTF-8" in lines[0].upper()
    assert "stdin" in lines[0]


def other_model(name: str | None) -> Reply:
    return sse(*({**part, "model": name} for part in (said("Two keys."), chunk(finish="stop"))), DONE)


@dataclass(frozen=True)
class ServedRow:
    id: str
    seen: str
    served: str


OTHERS = (
    ServedRow(
        "another model of the gateway",
        "github.com/can1357/oh-my-pi/issues/10758 (2026-09), github.com/odysseus-dev/odysseus/pull/868 (2026-06)",
        "other-3b",
    ),
    ServedRow(
        "the choice of a router",
        "github.com/BerriAI/litellm/pull/23432 (2026-03), github.com/danny-avila/LibreChat/issues/8937 (2025-08)",
        "vendor/other-70b-2026-01-01",
    ),
)
SAME = (
    ServedRow("the name itself", "github.com/openai/openai-python/issues/3271 (2026-05)", MODEL),
    ServedRow("a dated snapshot", "github.com/openai/openai-python/issues/3271 (2026-05)", f"{MODEL}-2026-08-07"),
    ServedRow("another case", "github.com/diegosouzapw/OmniRoute/pull/5135 (2026-06)", MODEL.upper()),
    ServedRow("a prefix", "github.com/BerriAI/litellm/pull/23432 (2026-03)", f"study-lab/{MODEL}"),
)


@pytest.mark.parametrize("how", HOWS)
@rows(*OTHERS)
async def test_another_model_than_the_requested_is_named_in_a_warning(
    row: ServedRow, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="learnflow.llm")
    async with OddServer(other_model(row.served)) as server:
        done = await answered(custom(server.base_url), how)
    assert (done.model.requested, done.model.served) == (MODEL, row.served)
    lines = [record.getMessage() for record in caplog.records]
    assert any(MODEL in line and row.served in line for line in lines)


@pytest.mark.parametrize("how", HOWS)
@rows(*SAME)
async def test_other_form_of_the_requested_name_is_no_warning(
    row: ServedRow, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="learnflow.llm")
    async with OddServer(other_model(row.served)) as server:
        assert (await answered(custom(server.base_url), how)).text == "Two keys."
    assert not caplog.records


@pytest.mark.parametrize("how", HOWS)
async def test_other_model_is_reported_once_for_each_provider_object(how: str, events_seen: list[Any]) -> None:
    async with OddServer(other_model("other-3b")) as server:
        provider = custom(server.base_url)
        await answered(provider, how)
        await answered(provider, how)
    reported = [event for event in events_seen if isinstance(event, events.OtherModelAnswered)]
    assert [(event.model, event.served) for event in reported] == [(MODEL, "other-3b")]


@pytest.mark.parametrize("served", ["the requested name", None, "other-3b"])
async def test_model_that_answers_to_any_name_is_named_by_the_list_of_the_server(
    served: str | None, events_seen: list[Any]
) -> None:
    """A server that repeats the requested name: github.com/ggml-org/llama.cpp/issues/10056 (2024-10)."""
    models = {"data": [{"id": "other-3b", "object": "model", "owned_by": "llamacpp", "aliases": ["our-model"]}]}

    def reply(request: dict[str, Any]) -> Reply:
        return other_model(request["model"] if served == "the requested name" else served)

    async with OddServer(reply, models=models) as server:
        provider = LlamaCppProvider(server.base_url)
        for name in (MODEL, MODEL, "our-model", "vendor/other-3b"):
            await provider.complete("?", model=name)
    reported = [event for event in events_seen if isinstance(event, events.OtherModelAnswered)]
    assert [(event.model, event.served) for event in reported] == [(MODEL, "other-3b")]


async def test_name_of_a_deployment_is_an_alias(events_seen: list[Any]) -> None:
    async with OddServer(other_model("gpt-4.1-2025-04-14")) as server:
        done = await build("azure", f"{server.root}/openai/v1", "our-deployment", KEY).complete("?")
    assert (done.model.requested, done.model.served) == ("our-deployment", "gpt-4.1-2025-04-14")
    assert not [event for event in events_seen if isinstance(event, events.OtherModelAnswered)]


def test_ask_names_the_model_that_answered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(server := OddServer(other_model("other-3b"))):
        monkeypatch.setenv("LLM_PROVIDER", "custom")
        monkeypatch.setenv("CUSTOM_BASE_URL", server.base_url)
        monkeypatch.setenv("CUSTOM_MODEL", MODEL)
        assert main(["ask", "Why two keys?"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "Two keys.\n"
    assert f"custom answered with the model other-3b instead of {MODEL}" in shown.err


def test_status_and_warm_up_name_the_model_of_a_server_that_ignores_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(server := FaultServer("llamacpp")):
        monkeypatch.setenv("LLM_PROVIDER", "llamacpp")
        monkeypatch.setenv("LLAMACPP_BASE_URL", server.base_url)
        monkeypatch.setenv("LLAMACPP_MODEL", MODEL)
        assert main(["status", "-p", "llamacpp"]) == 0
        assert f"the server answers with fault-model, not with {MODEL}" in capsys.readouterr().out
        assert main(["warm-up"]) == 0
        assert f"fault-model instead of {MODEL}" in capsys.readouterr().out
