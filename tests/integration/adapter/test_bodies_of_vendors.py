"""The body for every vendor contains what the caller gave, or the request is refused by name."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from learnflow.llm import errors
from learnflow.llm.adapter import _litellm
from learnflow.llm.adapter.options import checked_keywords
from learnflow.llm.adapter.request import RequestFormat, build_request
from learnflow.llm.base import DEFAULT_TEMPERATURE, Call
from learnflow.llm.providers import build, registry

NAMES = sorted({*registry.SPECS, *registry.vendor_specs()} - {"embedded"})
DATA = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}}
SOUND = {"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}}
FILE = {"type": "file", "file": {"filename": "notes.pdf", "file_data": f"data:application/pdf;base64,{DATA}"}}
CALL = {"id": "a1", "type": "function", "function": {"name": "define", "arguments": "{}"}}
TOOLS = [{"type": "function", "function": {"name": "define", "parameters": {"type": "object", "properties": {}}}}]
BY_NAME = {"type": "function", "function": {"name": "define"}}


def asked(*parts: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": [{"type": "text", "text": "one"}, *parts, {"type": "text", "text": "two"}]}]


def body_for(name: str, prompt: Any, **keywords: Any) -> dict[str, Any]:
    provider = build(name, "http://127.0.0.1:1/v1", "some-model", "k")
    supported = checked_keywords(provider.spec, Call(prompt, options=keywords))
    given = {keyword: value for keyword, value in supported.items() if keyword in keywords}
    request = build_request(provider.spec, prompt, "some-model", given)
    messages, parameters = request.to_openai(RequestFormat(), context_length=None, max_tokens=None, prefill=None)
    return dict(
        _litellm.build_http_request(provider.spec, provider.endpoint, "some-model", messages, parameters).body or {}
    )


@pytest.mark.parametrize(
    ("prompt", "keywords", "forms"),
    [
        pytest.param(asked(PICTURE), {}, [DATA, "one", "two"], id="picture"),
        pytest.param(asked(PICTURE, SOUND), {}, [DATA, '"wav"'], id="sound"),
        pytest.param(asked(FILE), {}, [DATA], id="file"),
        pytest.param(
            [
                *asked(),
                {"role": "assistant", "tool_calls": [CALL]},
                {**asked(PICTURE)[0], "role": "tool", "tool_call_id": "a1"},
            ],
            {"tools": TOOLS},
            [DATA, "two"],
            id="picture of a tool",
        ),
        pytest.param([*asked(), *asked(PICTURE, role="assistant"), *asked()], {}, [DATA], id="picture of the model"),
        pytest.param("w", {"tools": TOOLS, "tool_choice": BY_NAME}, [json.dumps(BY_NAME)], id="choice of a tool"),
        pytest.param(
            "w", {"tools": TOOLS, "tool_choice": "required"}, ['_choice": "required|_choice": "any'], id="required"
        ),
        pytest.param("w", {"response_format": {"type": "json_object"}}, ['json_object|"format": "json"'], id="JSON"),
        pytest.param("w", {"temperature": 1.9, "max_tokens": 77}, ["1.9", "77"], id="temperature"),
        pytest.param("w", {"seed": 7, "max_tokens": 7}, ['seed": 7', "7, |7}"], id="two equal numbers"),
    ],
)
def test_body_has_what_the_caller_gave(prompt: Any, keywords: dict[str, Any], forms: list[str]) -> None:
    missing = {}
    for name in NAMES:
        try:
            body = json.dumps(body_for(name, prompt, **keywords))
        except errors.CapabilityError as error:
            assert error.hint  # refused by name
            continue
        if lost := [form for form in forms if not any(word in body for word in form.split("|"))]:
            missing[name] = lost
    assert missing == {}


def test_short_texts_are_written_as_long_ones_are() -> None:
    """Some vendors accept only a string. LiteLLM joins the texts for them, and "Hi" is shorter than the key "text"."""
    for name, more in itertools.product(NAMES, ({}, {"cache_control": {"type": "ephemeral"}})):
        parts = [[{"type": "text", "text": text, **more}] * 2 for text in ("Hi", "A longer text")]
        short, long = (body_for(name, [{"role": "user", "content": content}])["messages"] for content in parts)
        assert json.loads(json.dumps(long).replace("A longer text", "Hi")) == short, name


@pytest.mark.parametrize("name", NAMES)
def test_plain_request_has_only_known_fields(name: str) -> None:
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    try:
        body = body_for(name, prompt, temperature=DEFAULT_TEMPERATURE, response_format={"type": "json_object"})
    except errors.CapabilityError:
        body = body_for(name, prompt)
    assert [message["content"] for message in body["messages"]] == ["s", "u"]
    known = {"model", "messages", "stream", "stream_options", "temperature", "response_format"}
    assert body.keys() - known - {"options", "format", "truncate", "shift", "usage"} == set()
