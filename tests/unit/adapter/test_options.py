"""Keywords of a call: unknown ones and values that cannot be are refused before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest
from support import TOOL, TitledQuiz, provider_for

from learnflow.llm import errors
from learnflow.llm.providers import (
    LMStudioProvider,
    OllamaProvider,
    OpenAIProvider,
)
from learnflow.llm.testing import FaultServer


@pytest.mark.parametrize(
    ("more", "kind", "said"),
    [
        ({"temprature": 1}, errors.InvalidRequest, "Did you mean temperature="),
        ({"temperature": -1}, errors.InvalidRequest, "temperature= must be"),
        ({"temperature": "hot"}, errors.InvalidRequest, "temperature= must be"),
        ({"temperature": float("nan")}, errors.InvalidRequest, "temperature= must be"),
        ({"max_tokens": 0}, errors.InvalidRequest, "max_tokens= must be"),
        ({"max_tokens": 1.5}, errors.InvalidRequest, "max_tokens= must be"),
        ({"top_p": 2}, errors.InvalidRequest, "top_p= must be"),
        ({"timeout": 0}, errors.InvalidRequest, "timeout= must be"),
        ({"seed": "x"}, errors.InvalidRequest, "seed= must be"),
        ({"stop": [1]}, errors.InvalidRequest, "stop= must be"),
        ({"stop": 5}, errors.InvalidRequest, "stop= must be"),
        ({"system": 5}, errors.InvalidRequest, "system= must be"),
        ({"tools": 5}, errors.InvalidRequest, "tools"),
        ({"tools": [5]}, errors.InvalidRequest, "tools"),
        ({"extra_body": "x"}, errors.InvalidRequest, "extra_body= must be"),
        ({"extra_body": {"x": object()}}, errors.InvalidRequest, "extra_body= must be"),
        ({"response_format": TitledQuiz(title="a", questions=[])}, errors.InvalidRequest, "response_format= must be"),
        ({"response_format": {"type": "json_schema"}}, errors.InvalidRequest, "response_format= must be"),
        ({"prompt": [{"role": "user", "content": ["x"]}]}, errors.InvalidRequest, "neither a text nor a list"),
        ({"prompt": [{"role": 5, "content": "x"}]}, errors.InvalidRequest, "neither a text nor a list"),
        ({"reasoning": "much"}, errors.InvalidRequest, "reasoning= must be"),
        ({"reasoning": 1}, errors.InvalidRequest, "reasoning= must be"),
        ({"response_format": "json"}, errors.InvalidRequest, "response_format= must be"),
        ({"response_format": {"type": "xml"}}, errors.InvalidRequest, "response_format= must be"),
        ({"tool_choice": "auto"}, errors.InvalidRequest, "tool_choice= without tools="),
        ({"tools": [TOOL]}, errors.InvalidRequest, r"tools need complete\(\)"),
        ({"prompt": ""}, errors.InvalidRequest, "empty"),
        ({"prompt": []}, errors.InvalidRequest, "neither a text nor a list"),
        ({"prompt": 7}, errors.InvalidRequest, "neither a text nor a list"),
        ({"prompt": [{"content": "x"}]}, errors.InvalidRequest, "neither a text nor a list"),
    ],
)
async def test_bad_input_is_refused_before_anything_is_sent(more: dict[str, Any], kind: type, said: str) -> None:
    async with FaultServer() as server:
        provider = provider_for(server)
        prompt = more.pop("prompt", "hi")
        with pytest.raises(kind, match=said):
            await provider.generate(prompt, **more)
        with pytest.raises(kind, match=said):
            provider.stream(prompt, **more)
        assert server.connections == 0


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (OpenAIProvider, {"top_k": 3}),
        (LMStudioProvider, {"reasoning": True}),
        (LMStudioProvider, {"response_format": {"type": "json_object"}}),
        (OllamaProvider, {"tools": [TOOL], "tool_choice": "required"}),
        (LMStudioProvider, {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}}),
    ],
)
async def test_what_a_row_cannot_honour_is_an_error(kind: Any, more: dict[str, Any]) -> None:
    with pytest.raises(errors.Unsupported, match=r"does not support|does not know"):
        await kind(base_url="http://127.0.0.1:9", model="m", api_key="k").complete("hi", **more)
