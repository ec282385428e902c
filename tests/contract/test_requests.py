"""What was sent, as the cassettes have it: by OpenAI's own types where a row speaks OpenAI, and by what was asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from behaviours import DOT, WEATHER
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from pydantic import ConfigDict, TypeAdapter, with_config
from subjects import SUBJECTS, cassette_of, seal
from test_contract import CELLS

from learnflow.llm.providers.registry import SPECS
from learnflow.llm.replay import cassette

# What a row sends beside OpenAI's own fields, and why.
VENDOR: dict[str, set[str]] = {
    "vllm": {"chat_template_kwargs", "continue_final_message", "add_generation_prompt"},
    "llamacpp": {"chat_template_kwargs", "continue_final_message", "add_generation_prompt"},
    "openrouter": {"reasoning", "usage"},
}
TYPES: TypeAdapter[Any] = TypeAdapter(
    with_config(ConfigDict(extra="forbid", arbitrary_types_allowed=True))(CompletionCreateParamsStreaming)
)


def chats(row: str, behaviour: str) -> Iterator[dict[str, Any]]:
    """The bodies of the questions on a cassette."""
    for each in cassette.load(cassette_of(row, behaviour).read_text(encoding="utf-8"))[1]:
        path = each.request.uri.partition("?")[0]
        if each.request.method == "POST" and path.endswith(("/chat/completions", "/api/chat")):
            yield each.request.body


SPOKEN = [(row, behaviour) for row, behaviour in CELLS if SPECS[row].dialect.parser is None]


@pytest.mark.parametrize(("row", "behaviour"), SPOKEN)
def test_the_request_is_one_of_openais(row: str, behaviour: str) -> None:
    for body in chats(row, behaviour):
        TYPES.validate_python({name: value for name, value in body.items() if name not in VENDOR.get(row, set())})
        assert body["stream"] is True


@pytest.mark.parametrize(("row", "behaviour"), CELLS)
def test_the_request_says_what_was_asked(row: str, behaviour: str) -> None:
    for body in chats(row, behaviour):
        options = body.get("options", body)
        said = str(body["messages"])
        limit = options.get("num_predict") or body.get("max_tokens") or body.get("max_completion_tokens")
        assert limit
        if behaviour != "thinking" or SUBJECTS[row].shows_thinking:
            assert options["temperature"] == 0
        if behaviour == "usage" and SPECS[row].dialect.stream_usage:
            assert body["stream_options"] == {"include_usage": True}
        if behaviour == "image":
            assert DOT in said
        if behaviour == "schema":
            asked = body.get("format") or body.get("response_format")
            assert "questions" in str(asked or said)  # in words, where the address ignores schemas
        if behaviour == "tools":
            assert body["tools"] == [WEATHER]
        if behaviour == "system":
            assert [each["role"] for each in body["messages"]] == ["system", "user", "assistant", "user"]
        if behaviour == "length":
            assert limit == 5
        if behaviour == "missing_model":
            assert body["model"].endswith("no-such-model")


@pytest.mark.parametrize(("row", "behaviour"), CELLS)
def test_no_cassette_holds_a_secret_a_host_or_a_date(row: str, behaviour: str) -> None:
    text = cassette_of(row, behaviour).read_text(encoding="utf-8")
    origin, interactions = cassette.load(text)
    assert {each.request.provider for each in interactions} == {row}
    keys = {value for each in interactions for value in each.request.credentials.values()}
    assert {key.rpartition(" ")[2] for key in keys} <= {f"key-of-{row}", "wrong-key"}
    body = text.replace(f"date: '{origin.get('date')}'", "").replace("1970-01-01T00:00:00Z", "")
    if origin["kind"] == "authored":
        body = body.replace(f"source: {origin['source']}", "")  # which may say when it was read
    assert not re.search(r"20\d\d-[01]\d-[0-3]\dT|created\W+1\d{9}", body)
    assert not re.search(r"127\.0\.0\.1|localhost|192\.168\.|/home/|/root/|/work/|/tmp/|sk-\w{8}|Set-Cookie", body)
    assert set(re.findall(r"https?://([\w.-]+)", body)) <= {f"{row}.example"}


@pytest.mark.parametrize(("row", "behaviour"), CELLS)
def test_every_cassette_says_where_it_is_from(row: str, behaviour: str) -> None:
    origin, interactions = cassette.load(cassette_of(row, behaviour).read_text(encoding="utf-8"))
    assert interactions
    assert origin["seal"] == seal(interactions), "it was edited by hand: record it again"
    if origin["kind"] == "recorded":
        assert origin["server"]
        assert origin["model"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", origin["date"])
    else:
        assert origin["kind"] == "authored"
        assert len(origin["source"]) > 20


@pytest.mark.parametrize("row", ["llamacpp", "vllm", "ollama", "custom"])
def test_what_can_be_recorded_is(row: str) -> None:
    kinds = {
        behaviour: cassette.load(cassette_of(row, behaviour).read_text(encoding="utf-8"))[0]["kind"]
        for each, behaviour in CELLS
        if each == row
    }
    authored = {behaviour for behaviour, kind in kinds.items() if kind == "authored"}
    not_to_be_had = {
        "vllm": {"busy"},  # only with a limit that is not its default
        "custom": {"busy", "rate_limit", "wrong_key", "resume"},  # Ollama's /v1, which checks no key
    }
    assert authored == {"image", "tools", "cut", *not_to_be_had.get(row, ())}
