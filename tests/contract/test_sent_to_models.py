"""What is sent to every chat model of LiteLLM's price map follows from the marks of its row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import pytest
from sent_to_models import PICTURE, PROVIDERS, TABLE, models_of, outcomes_of, table

from learnflow.llm import errors
from learnflow.llm.errors import LLMError
from learnflow.llm.providers import AnthropicProvider, FireworksProvider, GeminiProvider, OpenAIProvider
from learnflow.llm.testing import FaultServer

MARKS = {  # what a request must contain
    "a tool": '"note"',
    "a schema": '"title"',
    "a picture": PICTURE,
    "temperature=0.3": '"temperature": 0.3',
}
OFF = {"anthropic": {"thinking": {"type": "disabled"}}}  # the fields of reasoning=False


def thinks(provider: str, row: Mapping[str, Any]) -> bool | None:
    """Return whether a model can think; None if its row does not have it."""
    marks = [name for name in row if name.startswith("supports_")]
    if provider != "xai" and marks and not any("reasoning" in name for name in marks):
        return False
    return row.get("supports_reasoning")


def has_level(provider: str, row: Mapping[str, Any], level: str) -> bool:
    """Return whether a row does not exclude a level of reasoning."""
    if level == "none" and row.get("thinking_always_on"):
        return False
    named = row.get(f"supports_{level}_reasoning_effort")
    if level == "none" and provider == "gemini" and named is None:
        named = row.get("supports_minimal_reasoning_effort")  # Gemini 3 has no lower level
    return named is not False and level in row.get("reasoning_effort_levels", [level])


def expected_reasoning(provider: str, row: Mapping[str, Any], call: str) -> dict[str, Any] | None:
    """Return the fields for a call with ``reasoning=``; None if it is refused."""
    level = {"reasoning=False": "none", "reasoning=high": "high"}[call]
    if thinks(provider, row) is False:
        return {} if level == "none" else None
    if not has_level(provider, row, level) or (provider in OFF and level != "none"):
        return None
    return OFF.get(provider, {"reasoning_effort": level})


def reasoning_in(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields for thinking. Those of the Responses API are returned as those of a chat completion."""
    effort = {"reasoning_effort": body["reasoning"]["effort"]} if "effort" in body.get("reasoning", {}) else {}
    return {name: body[name] for name in ("reasoning_effort", "thinking") if name in body} | effort


def faults(provider: str, row: Mapping[str, Any], call: str, outcome: dict[str, Any] | LLMError) -> Iterator[str]:
    """Yield what is wrong with a request, by the marks of the model's row."""
    expected = expected_reasoning(provider, row, call) if call.startswith("reasoning") else {}
    keyword = call.partition("=")[0]
    if isinstance(outcome, LLMError):
        is_right = expected is None or call == "temperature=0.3"
        if not (is_right and keyword in outcome.what + outcome.hint and outcome.hint):
            yield f"refused: {outcome}"
        return
    body = json.dumps(outcome)
    if reasoning_in(outcome) != expected:
        yield f"{reasoning_in(outcome)} instead of {expected}"
    if row.get("supports_sampling_params") is False and "temperature" in outcome:
        yield "it has a temperature"
    if call in MARKS and MARKS[call] not in body:
        yield f"{MARKS[call]} is missing"
    if (row["mode"] == "responses") > ("input" in outcome):
        yield "it is not sent to the Responses API"
    if '_tokens": 1000' not in body:
        yield "max_tokens is missing"


@pytest.mark.parametrize("name", PROVIDERS)
def test_request_follows_from_row_of_price_map(name: str) -> None:
    rows = models_of(name)
    wrong = [
        f"{model}, {call}: {fault}"
        for model, outcomes in outcomes_of(name).items()
        for call, outcome in outcomes.items()
        for fault in faults(name, rows[model], call, outcome)
    ]
    assert wrong == []
    assert len(rows) > 10


def test_table_is_current() -> None:
    """`make models` writes it. A later LiteLLM has further models."""
    text = TABLE.read_text(encoding="utf-8")
    if not text.startswith(f"LiteLLM {version('litellm')},"):
        pytest.skip("the table is of another version of LiteLLM")
    assert table() == text


PINNED = [
    (OpenAIProvider, "gpt-6-luna", {"reasoning": False}, {"reasoning_effort": "none"}),
    (OpenAIProvider, "gpt-6-luna", {"reasoning": "high"}, {"reasoning_effort": "high"}),
    (OpenAIProvider, "gpt-6-astra", {"reasoning": "xhigh"}, {"reasoning_effort": "xhigh"}),
    (OpenAIProvider, "gpt-6-astra", {"reasoning": False}, "reasoning=False. Use low, medium, high, xhigh, max, or"),
    (OpenAIProvider, "gpt-6-astra", {"reasoning": "minimal"}, "reasoning='minimal'"),
    (OpenAIProvider, "gpt-4.1", {"reasoning": False}, {}),
    (OpenAIProvider, "gpt-4.1", {"reasoning": "none"}, {}),
    (OpenAIProvider, "gpt-4.1", {"reasoning": True}, "does not support reasoning. Use another model"),
    (OpenAIProvider, "gpt-7-unheard-of", {"reasoning": False}, {"reasoning_effort": "none"}),
    (OpenAIProvider, "gpt-7-unheard-of", {"reasoning": "max"}, {"reasoning_effort": "max"}),
    (AnthropicProvider, "claude-sonnet-4-6", {"reasoning": False}, {"thinking": {"type": "disabled"}}),
    (AnthropicProvider, "claude-opus-5-5", {"reasoning": False}, "reasoning=False. Use another model, or leave"),
    (AnthropicProvider, "claude-opus-5-5", {"reasoning": "high"}, "does not support this reasoning=. Use False, or"),
    (AnthropicProvider, "claude-opus-5-5", {"temperature": 0.3}, "temperature=. Leave temperature= out"),
    (AnthropicProvider, "claude-opus-5-5", {"temperature": 1.0}, {}),
    (AnthropicProvider, "claude-opus-5-5", {}, {}),
    (GeminiProvider, "gemini-3.5-flash", {"reasoning": False}, {"reasoning_effort": "none"}),
    (GeminiProvider, "gemini-3.7-flash", {"reasoning": "high"}, {"reasoning_effort": "high"}),
    (GeminiProvider, "gemini-3.7-flash", {"reasoning": False}, "reasoning=False. Use low, medium, high"),
    (FireworksProvider, "accounts/fireworks/models/kimi-k3", {"reasoning": True}, {"reasoning_effort": "high"}),
]


@pytest.mark.parametrize(("kind", "model", "options", "expected"), PINNED)
async def test_reasoning_does_what_it_says_or_is_refused_before_sending(
    kind: Any, model: str, options: dict[str, Any], expected: dict[str, Any] | str
) -> None:
    async with FaultServer() as server:
        provider = kind(base_url=server.base_url, model=model, api_key="k")
        if isinstance(expected, str):
            with pytest.raises(errors.Unsupported) as caught:
                await provider.generate("hi", **options)
            assert expected in str(caught.value)
            assert not server.seen
            return
        await provider.generate("hi", **options)
        assert reasoning_in(server.seen[-1].body) == expected
        if kind is AnthropicProvider and "opus" in model:
            assert server.seen[-1].body.get("temperature") == options.get("temperature")


@pytest.mark.parametrize(
    ("words", "model", "reasoning", "expected"),
    [
        ("reasoning", "gpt-4.1", "high", {"reasoning_effort": "high"}),
        ("reasoning", "gpt-6-astra", False, {"reasoning_effort": "none"}),
        ("no-reasoning", "gpt-6-luna", False, {}),
        ("no-reasoning", "gpt-6-luna", "high", None),
        ("no-reasoning", "gpt-7-unheard-of", True, None),
    ],
)
async def test_capabilities_of_operator_win_over_price_map(
    words: str, model: str, reasoning: Any, expected: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_CAPABILITIES", words)
    async with FaultServer() as server:
        provider = OpenAIProvider(base_url=server.base_url, model=model, api_key="k")
        if expected is None:
            with pytest.raises(errors.Unsupported, match="does not support reasoning"):
                await provider.generate("hi", reasoning=reasoning)
        else:
            await provider.generate("hi", reasoning=reasoning)
            assert reasoning_in(server.seen[-1].body) == expected
