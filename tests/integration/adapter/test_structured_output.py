"""Structured output: asked for rung by rung, and checked whatever the server promised."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support import DIALECTS, TitledQuiz, provider_for

from learnflow.llm import errors
from learnflow.llm.testing import Fault, FaultServer

QUIZ = '{"title": "RSA", "questions": ["Why?"]}'


@pytest.mark.parametrize("dialect", ["openai", "lmstudio", "vllm", "llamacpp", "ollama"])
async def test_a_pydantic_class_is_asked_for_and_validated(dialect: str) -> None:
    async with FaultServer(dialect, [QUIZ]) as server:  # type: ignore[arg-type]
        provider = provider_for(server)
        done = await provider.complete("TitledQuiz", response_format=TitledQuiz)
        assert done.parsed == TitledQuiz(title="RSA", questions=["Why?"])
        assert await provider.generate("TitledQuiz", response_format=TitledQuiz) == QUIZ
        body = server.seen[0].body
        schema = body["format"] if dialect == "ollama" else body["response_format"]["json_schema"]["schema"]
        assert schema["required"] == ["title", "questions"]


async def test_a_class_goes_down_the_ladder_where_a_rung_is_refused() -> None:
    refuse = Fault("refuse", status=400, body=b'{"error": "response_format is not supported"}')
    async with FaultServer("openai", ["```json\n" + QUIZ + "\n```"]) as server:
        provider = provider_for(server)
        server.script = [refuse, refuse]
        done = await provider.complete("TitledQuiz", response_format=TitledQuiz)
        assert done.parsed == TitledQuiz(title="RSA", questions=["Why?"])
        formats = [seen.body.get("response_format", {}).get("type") for seen in server.seen]
        assert formats == ["json_schema", "json_object", None]
        (only,) = server.seen[2].body["messages"]  # no second turn of the user: templates want roles to alternate
        assert only["content"].startswith("TitledQuiz\n\nAnswer with one JSON object")
        await provider.complete("TitledQuiz", response_format=TitledQuiz)
        assert len(server.seen) == 4  # the rung is remembered


async def test_an_answer_that_does_not_fit_is_an_error_without_the_answer_in_it() -> None:
    async with FaultServer("openai", ['{"title": "private title"}']) as server:
        with pytest.raises(errors.SchemaMismatch, match=r"TitledQuiz: questions") as caught:
            await provider_for(server).generate("TitledQuiz", response_format=TitledQuiz)
    assert "private" not in str(caught.value)
    assert caught.value.partial == '{"title": "private title"}'
    assert caught.value.__context__ is None


async def test_json_asked_for_with_a_dict_must_be_json() -> None:
    async with FaultServer("openai", ["no json"]) as server:
        with pytest.raises(errors.SchemaMismatch, match="not JSON"):
            await provider_for(server).generate("TitledQuiz", response_format={"type": "json_object"})


def schema(**more: Any) -> dict[str, Any]:
    said = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"], **more}
    return {"type": "json_schema", "json_schema": {"name": "quiz", "schema": said}}


@pytest.mark.parametrize(
    ("answer", "where"),
    [('{"title": 5}', "at title"), ("{}", "JSON schema"), ("[]", "JSON schema"), ('{"private": 1}', "JSON schema")],
)
async def test_an_answer_that_does_not_fit_a_schema_given_as_a_dict_is_an_error(answer: str, where: str) -> None:
    async with FaultServer("openai", [answer]) as server:
        with pytest.raises(errors.SchemaMismatch, match=where) as caught:
            await provider_for(server).generate("hi", response_format=schema())
        assert "private" not in str(caught.value)
        assert caught.value.__context__ is None
        assert caught.value.code is None


async def test_what_a_model_wrote_cannot_hold_up_or_pass_the_check() -> None:
    """An expression of a schema may take for ever, a number of 400 digits no division."""
    slow = {"pattern": r"^(\w+\s?)*$", "type": "string"}
    wanted = schema(properties={"title": slow, "price": {"multipleOf": 0.01}})
    async with FaultServer("openai", [json.dumps({"title": "a" * 40 + "!", "price": 1})]) as server:
        assert await provider_for(server).generate("hi", response_format=wanted, timeout=5)
        server.pieces = [json.dumps({"title": "x", "price": int("9" * 400)})]
        with pytest.raises(errors.SchemaMismatch, match="cannot be checked"):
            await provider_for(server).generate("hi", response_format=wanted)


@pytest.mark.parametrize("wrong", [{"type": "nonsense"}, {"$ref": "http://127.0.0.1:9/schema"}, {"pattern": "("}])
async def test_a_schema_that_is_none_or_leads_elsewhere_checks_nothing(wrong: dict[str, Any]) -> None:
    async with FaultServer("openai", ['{"title": "RSA"}']) as server:
        assert await provider_for(server).generate("hi", response_format=schema(**wrong)) == '{"title": "RSA"}'


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
