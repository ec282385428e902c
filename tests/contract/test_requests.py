"""The recorded requests are valid by OpenAI's own types, and have the values of the call."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache, wraps
from typing import Any

import pytest
from behaviours import DOT, WEATHER
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming
from pydantic import ConfigDict, TypeAdapter, with_config
from subjects import SUBJECTS, cassette_of, loaded, seal, spec_of
from test_contract import CELLS

# The fields of a provider that OpenAI's API lacks.
VENDOR: dict[str, set[str]] = {
    "vllm": {"chat_template_kwargs", "continue_final_message", "add_generation_prompt"},
    "llamacpp": {"chat_template_kwargs", "continue_final_message", "add_generation_prompt"},
    "openrouter": {"reasoning", "usage"},
}


@cache
def adapter(types: type) -> TypeAdapter[Any]:
    """Return a validator that refuses unknown fields. It is expensive to build."""
    strict: Any = with_config(ConfigDict(extra="forbid", arbitrary_types_allowed=True))
    return TypeAdapter(strict(types))


def chats(row: str, behaviour: str) -> Iterator[dict[str, Any]]:
    """Yield the bodies of the chat requests on a cassette."""
    for interaction in loaded(row, behaviour)[1]:
        path = interaction.request.uri.partition("?")[0]
        if interaction.request.method == "POST" and path.endswith(("/chat/completions", "/api/chat", "/responses")):
            yield deepcopy(interaction.request.body)


def every_cassette(check: Callable[[str, str], None]) -> Callable[[str], None]:
    """Make one test of a provider from a check of a cassette, because pytest costs more than the check."""

    @wraps(check)
    def test(row: str) -> None:
        for name, behaviour in CELLS:
            try:
                if name == row:
                    check(row, behaviour)
            except BaseException as error:
                error.add_note(f"cassette: {row}/{behaviour}")
                raise

    del test.__wrapped__  # pytest would read the parameters of the check
    return test


@pytest.mark.parametrize("row", [row for row in SUBJECTS if spec_of(row).dialect.parser is None])
@every_cassette
def test_request_is_valid_by_openais_types(row: str, behaviour: str) -> None:
    for body in chats(row, behaviour):
        types = adapter(ResponseCreateParamsStreaming if row == "responses" else CompletionCreateParamsStreaming)
        for item in body.get("input", ()):
            if item.get("role") == "assistant":  # only the types require the id of a message of the model
                item["content"] = item["content"][0]["text"]
        types.validate_python({name: value for name, value in body.items() if name not in VENDOR.get(row, set())})
        assert body["stream"] is True


@pytest.mark.parametrize("row", SUBJECTS)
@every_cassette
def test_request_has_the_values_of_the_call(row: str, behaviour: str) -> None:
    for body in chats(row, behaviour):
        options = body.get("options", body)
        messages = str(body.get("messages") or body["input"])
        limits = [
            options.get("num_predict"),
            *(body.get(f"max_{name}tokens") for name in ("", "completion_", "output_")),
        ]
        (limit,) = filter(None, limits)
        if behaviour != "thinking" or SUBJECTS[row].shows_thinking:
            assert options["temperature"] == 0
        if behaviour == "usage" and spec_of(row).dialect.supports_stream_usage and row != "responses":
            assert body["stream_options"] == {"include_usage": True}
        if behaviour == "image":
            assert DOT in messages
        if behaviour == "schema":
            schema = body.get("format") or body.get("response_format") or body.get("text")
            assert "questions" in str(schema or messages)  # in the prompt if the server ignores schemas
        if behaviour == "tools":
            (sent,) = body["tools"]
            given = WEATHER["function"] if row == "responses" else WEATHER
            assert given == {name: sent[name] for name in given}
        if behaviour == "system":
            roles = [message["role"] for message in body.get("messages") or body["input"]]
            assert ["system"] * ("instructions" in body) + roles == ["system", "user", "assistant", "user"]
        if behaviour == "length":
            assert limit == 5
        if behaviour == "missing_model":
            assert body["model"].endswith("no-such-model")


@pytest.mark.parametrize("row", SUBJECTS)
@every_cassette
def test_cassette_has_no_secret_host_or_date(row: str, behaviour: str) -> None:
    text = cassette_of(row, behaviour).read_text(encoding="utf-8")
    origin, interactions = loaded(row, behaviour)
    assert {one.request.provider for one in interactions} == {row}
    keys = {value for one in interactions for value in one.request.credentials.values()}
    assert {key.rpartition(" ")[2] for key in keys} <= {f"key-of-{row}", "wrong-key"}
    body = text.replace(f"date: '{origin.get('date')}'", "").replace("1970-01-01T00:00:00Z", "")
    if origin["kind"] == "authored":
        body = body.replace(f"source: {origin['source']}", "")  # it may contain the date of the documents
    assert not re.search(r"20\d\d-[01]\d-[0-3]\dT|created\W+1\d{9}", body)
    assert not re.search(r"127\.0\.0\.1|localhost|192\.168\.|/home/|/root/|/work/|/tmp/|sk-\w{8}|Set-Cookie", body)
    assert set(re.findall(r"https?://([\w.-]+)", body)) <= {f"{row}.example"}


@pytest.mark.parametrize("row", SUBJECTS)
@every_cassette
def test_cassette_states_its_origin(row: str, behaviour: str) -> None:
    origin, interactions = loaded(row, behaviour)
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
def test_cassettes_of_available_servers_are_recorded(row: str) -> None:
    kinds = {behaviour: loaded(row, behaviour)[0]["kind"] for name, behaviour in CELLS if name == row}
    authored = {behaviour for behaviour, kind in kinds.items() if kind == "authored"}
    unavailable = {
        "vllm": {"busy"},  # only with a limit that is off by default
        "custom": {"busy", "rate_limit", "wrong_key", "resume"},  # Ollama's /v1 checks no key
    }
    assert authored == {"image", "tools", "cut", *unavailable.get(row, ())}
