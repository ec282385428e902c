"""Structured output: three modes, and validation of every answer."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from support import DIALECTS, TitledQuiz, provider_for

from learnflow.llm import errors
from learnflow.llm.adapter import structured_output
from learnflow.llm.testing import Fault, FaultServer

QUIZ = '{"title": "RSA", "questions": ["Why?"]}'


@pytest.mark.parametrize("dialect", ["openai", "lmstudio", "vllm", "llamacpp", "ollama"])
async def test_answer_is_validated_against_pydantic_class(dialect: str) -> None:
    async with FaultServer(dialect, [QUIZ]) as server:  # type: ignore[arg-type]
        provider = provider_for(server)
        done = await provider.complete("TitledQuiz", response_format=TitledQuiz)
        assert done.parsed == TitledQuiz(title="RSA", questions=["Why?"])
        assert await provider.generate("TitledQuiz", response_format=TitledQuiz) == QUIZ
        body = server.seen[0].body
        schema = body["format"] if dialect == "ollama" else body["response_format"]["json_schema"]["schema"]
        assert schema["required"] == ["title", "questions"]


async def test_refused_schema_falls_back_to_json_object_and_then_prompt() -> None:
    refuse = Fault("refuse", status=400, body=b'{"error": "response_format is not supported"}')
    async with FaultServer("openai", ["```json\n" + QUIZ + "\n```"]) as server:
        provider = provider_for(server)
        server.script = [refuse, refuse]
        done = await provider.complete("TitledQuiz", response_format=TitledQuiz)
        assert done.parsed == TitledQuiz(title="RSA", questions=["Why?"])
        formats = [seen.body.get("response_format", {}).get("type") for seen in server.seen]
        assert formats == ["json_schema", "json_object", None]
        (only,) = server.seen[2].body["messages"]  # no second user message: templates require alternating roles
        assert only["content"].startswith("TitledQuiz\n\nAnswer with one JSON object")
        await provider.complete("TitledQuiz", response_format=TitledQuiz)
        assert len(server.seen) == 4  # the mode is cached


async def test_schema_mismatch_does_not_quote_answer() -> None:
    async with FaultServer("openai", ['{"title": "private title"}']) as server:
        with pytest.raises(errors.SchemaMismatch, match=r"TitledQuiz: questions") as caught:
            await provider_for(server).generate("TitledQuiz", response_format=TitledQuiz)
    assert "private" not in str(caught.value)
    assert caught.value.partial == '{"title": "private title"}'
    assert caught.value.__context__ is None


async def test_answer_for_json_object_must_be_json() -> None:
    async with FaultServer("openai", ["no json"]) as server:
        with pytest.raises(errors.SchemaMismatch, match="not JSON"):
            await provider_for(server).generate("TitledQuiz", response_format={"type": "json_object"})


def schema(**more: Any) -> dict[str, Any]:
    content = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"], **more}
    return {"type": "json_schema", "json_schema": {"name": "quiz", "schema": content}}


@pytest.mark.parametrize(
    ("answer", "message"),
    [('{"title": 5}', "at title"), ("{}", "JSON schema"), ("[]", "JSON schema"), ('{"private": 1}', "JSON schema")],
)
async def test_answer_is_validated_against_schema_in_dict(answer: str, message: str) -> None:
    async with FaultServer("openai", [answer]) as server:
        with pytest.raises(errors.SchemaMismatch, match=message) as caught:
            await provider_for(server).generate("hi", response_format=schema())
        assert "private" not in str(caught.value)
        assert caught.value.__context__ is None
        assert caught.value.code is None


async def test_validation_takes_limited_time_with_any_answer() -> None:
    """Check a slow regular expression, and a number of 400 digits that cannot be divided."""
    slow = {"pattern": r"^(\w+\s?)*$", "type": "string"}
    wanted = schema(properties={"title": slow, "price": {"multipleOf": 0.01}})
    async with FaultServer("openai", [json.dumps({"title": "a" * 40 + "!", "price": 1})]) as server:
        assert await provider_for(server).generate("hi", response_format=wanted, timeout=5)
        server.pieces = [json.dumps({"title": "x", "price": int("9" * 400)})]
        with pytest.raises(errors.SchemaMismatch, match="cannot be validated"):
            await provider_for(server).generate("hi", response_format=wanted)


@pytest.mark.parametrize("wrong", [{"type": "nonsense"}, {"$ref": "http://127.0.0.1:9/schema"}, {"pattern": "("}])
async def test_invalid_schema_or_remote_ref_accepts_every_answer(wrong: dict[str, Any]) -> None:
    async with FaultServer("openai", ['{"title": "RSA"}']) as server:
        assert await provider_for(server).generate("hi", response_format=schema(**wrong)) == '{"title": "RSA"}'


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_properties_of_schema_are_sent_in_order(dialect: str) -> None:
    """Check the order, because a model writes properties in the order of the schema ("reasoning", then "answer")."""
    names = ["zeta", "alpha", "middle"]
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}
    answer = json.dumps(dict.fromkeys(names, "x"))
    async with FaultServer(dialect, answer) as server:
        wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        await provider_for(server).generate("hi", response_format=wanted)
        body = server.seen[0].body
        if dialect == "responses":
            sent = body["text"]["format"]["schema"]
        else:
            sent = body["format"] if dialect == "ollama" else body["response_format"]["json_schema"]["schema"]
    assert list(sent["properties"]) == names


async def test_event_loop_runs_while_answer_is_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, released = asyncio.get_running_loop(), threading.Event()

    def validate(*_: object) -> None:
        loop.call_soon_threadsafe(released.set)
        assert released.wait(30)

    monkeypatch.setattr(structured_output, "_validate", validate)
    async with FaultServer("openai", ['{"title": "RSA"}']) as server:
        assert await provider_for(server).generate("hi", response_format=schema()) == '{"title": "RSA"}'
