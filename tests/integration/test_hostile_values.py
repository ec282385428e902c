"""Hostile values of all variables and keywords: only ``LLMError`` leaves the package, and valid values still work.

The values and their order are fixed, so that a failure can be repeated. Each value is tried alone at every door, then a
seeded sample of several at once.
"""

from __future__ import annotations

import copy
import decimal
import math
import os
import random
import types
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support import TINY_MODEL, TOOL, provider_for

from learnflow.llm import LLMProvider, RouterProvider, get_provider, settings
from learnflow.llm.base import Options, TimeOptions
from learnflow.llm.cli.variables import variables
from learnflow.llm.errors import LLMError, NotConfigured
from learnflow.llm.integrations.langchain import ChatLearnFlow
from learnflow.llm.providers import CustomProvider, EmbeddedProvider, OllamaProvider, build
from learnflow.llm.providers.registry import spec_of
from learnflow.llm.testing import FaultServer

SECRET = "sk-a-secret-that-no-error-shows"
TEXTS = [
    *("5", "-1", "0", "1e400", "nan", "inf", "9" * 5000, "true", "null", "{}", "[]", '{"a": 1}', "'", '"x', ",", "+"),
    *(
        "a,b",
        "x" * 5000,
        "~nosuchuser/x",
        "/proc/self/task",
        "/dev/null/x",
        "a/" * 3000,
        " ",
        "\t",
        "\n",
        "\u202e",
        "é",
    ),
    *("http://", "http://[", "//x", "ftp://x", "http://x:99999", "${HOME}", "$", "no-", "vision=1", "cost=1/-1"),
    *("cost=nan/inf", "max_output=" + "9" * 5000, "0.0.0.0/99", "\udcff"),
]


def recursive() -> Any:
    """Return a list that contains itself."""
    value: list[Any] = []
    value.append(value)
    return value


def deep(depth: int = 5000) -> Any:
    """Return lists in lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


class Text(str):  # noqa: SLOT000
    """A text of a class of its own."""


OBJECTS: list[Any] = [
    *(-1, 0, 1, 2**53, 2**63, 2**64, 10**400, 10**5000, True, False, 0.0, -0.5, 1e308, math.nan, math.inf, -math.inf),
    *("", "2", "x" * 5000, "\0", "\ud800", "usr", "~nosuchuser", SECRET, Text("x"), b"x", bytearray(b"x"), 1j),
    *([], {}, (), set(), frozenset({1}), [1], ["x"], [None], [[]], [{}], {"a": 1}, {1: 2}, {"a": math.nan}, {None: 1}),
    *({"a": {1, 2}}, [{"name": "x"}], [{"type": "function"}], [{"type": []}], [{"role": "usr", "content": "x"}]),
    *([{"role": "user", "content": [{"type": []}]}], [{"role": "user", "content": "x", "tool_calls": 5}], {"type": 5}),
    *({"type": "json_schema", "json_schema": {"schema": 5}}, {"type": "json_schema"}, {"type": "function"}),
    *(object(), object, int, Exception, ValueError("x"), len, print, Path("x"), decimal.Decimal(1), range(3)),
    *({10**5000: 1}, {"x" * 5000: 1}, recursive(), deep(), {"a": deep()}, types.MappingProxyType({"a": 1}), ..., os),
]


PROVIDERS = ("OLLAMA", "OPENAI", "EMBEDDED", "GPU1")
ARGUMENTS = ("prompt", "model", "temperature", "max_tokens")
KEYWORDS = (*ARGUMENTS, *Options.__annotations__, "unknown")
PROVIDER_KEYWORDS = ("base_url", "model", "api_key", "vision_model", *TimeOptions.__annotations__, "unknown")
SIZES = ("context", "slots", "threads")
ROUTER_KEYWORDS = ("primary", "fallback", "resume", "retries", "routing", "deadline", "find", "breakers")
# At least one valid value for each keyword of a call.
VALID: dict[str, list[Any]] = {
    "prompt": [
        *("hi", Text("hi"), [{"role": "user", "content": "hi"}], ({"role": "developer", "content": "hi", "x": 1},)),
        [types.MappingProxyType({"role": "user", "content": [{"type": "text", "text": "hi"}]})],
    ],
    "model": [None, "m", Text("m")],
    "temperature": [None, 0, 0.5, 2],
    "max_tokens": [None, 1, 10**6],
    "system": ["be brief", None],
    "response_format": [{"type": "text"}, None],
    "tools": [[TOOL], (TOOL,), [{"type": "web_search"}], None],
    "tool_choice": ["auto", {"type": "function", "function": {"name": "weather"}}, None],
    "stop": ["x", ["x", "y"], ("x",)],
    "seed": [0, -1, 2**62],
    "n": [1, None],
    "top_p": [0, 1, 0.5],
    "top_k": [-1, 40],
    "min_p": [0.1],
    "frequency_penalty": [-2, 0.5],
    "presence_penalty": [1],
    "reasoning": [True, False, "low"],
    "timeout": [5, 0.5, 1e6],
    "session": ["lesson 7"],
    "extra_body": [{"a": [1, None]}, types.MappingProxyType({"a": {}})],
    "resume": ["raise", "continue"],
    "metadata": [{"node": "x", "n": 1, "f": 0.5, "b": True, "none": None}, {}],
    "headers": [None],
    "after": ["", None],
    "include_prior": [True, False, None],
}


def check(error: LLMError) -> str:
    """Return the class of an error, whose text is short and printable, and which has no other exception below it."""
    text = f"{error}{error!r}"
    assert len(text) < 5000
    assert text.isprintable()
    assert error.__context__ is None
    return type(error).__name__


def test_hostile_values_of_variables_raise_only_our_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU1_KIND", "vllm")
    monkeypatch.setenv("EMBEDDED_MODEL", str(TINY_MODEL))
    names = [*map(str.upper, settings.Settings.model_fields), "LLM_MODEL_X"]
    names += [f"{name}_{field.upper()}" for name in PROVIDERS for field in settings.ProviderSettings.model_fields]
    outcomes = Counter[str]()
    for name in names:
        for text in TEXTS:
            with monkeypatch.context() as patch:
                patch.setenv(name, text)
                outcomes[create_provider(name)] += 1
    assert outcomes["NotConfigured"] > 500
    assert outcomes["created"] > 500
    assert set(outcomes) == {"created", "NotConfigured", "KeyMissing"}


def create_provider(variable: str) -> str:
    """Create a provider that reads a variable, and read it as the command line does. Return the outcome."""
    name = next((name for name in PROVIDERS if variable.startswith(name)), "OLLAMA").lower()
    try:
        variables([spec_of(name)])
        get_provider(None if variable.startswith("LLM_PROVIDER") else name)
        if variable.startswith("LLM_MODEL"):
            settings.node_models()
    except LLMError as error:
        return check(error)
    return "created"


def test_error_does_not_show_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{SECRET}é")
    with pytest.raises(NotConfigured) as caught:
        build("openai")
    assert SECRET[:6] not in f"{caught.value}{caught.value!r}"
    for name, value in (("api_key", [SECRET]), ("model", {SECRET: 1}), ("base_url", SECRET.encode())):
        with pytest.raises(NotConfigured, match=f"{name}=") as caught:
            CustomProvider(**{name: value})  # type: ignore[arg-type]
        assert SECRET not in f"{caught.value}{caught.value!r}"


def test_hostile_keywords_of_constructors_raise_only_our_errors() -> None:
    model = ChatLearnFlow.model_fields.keys() & {*KEYWORDS, "provider"}
    doors: list[tuple[Any, dict[str, Any], tuple[str, ...]]] = [
        (CustomProvider, {"base_url": "http://127.0.0.1:9", "model": "m"}, PROVIDER_KEYWORDS),
        (OllamaProvider, {}, PROVIDER_KEYWORDS),
        (EmbeddedProvider, {"model": str(TINY_MODEL)}, (*PROVIDER_KEYWORDS, *SIZES)),
        (RouterProvider, {"primary": "ollama"}, ROUTER_KEYWORDS),
        (get_provider, {}, ("name",)),
        (ChatLearnFlow, {"provider": OllamaProvider()}, (*sorted(model), "unknown")),
    ]
    outcomes = Counter[str]()
    for kind, valid, keywords in doors:
        for keyword in keywords:
            for value in OBJECTS:
                try:
                    kind(**{**valid, keyword: value})
                    outcomes["created"] += 1
                except LLMError as error:
                    outcomes[check(error)] += 1
    assert outcomes["NotConfigured"] > 2000
    assert outcomes["InvalidRequest"] > 500


@pytest.fixture
async def doors() -> AsyncIterator[list[LLMProvider]]:
    """Return a provider and a router over two dialects, with a server that answers."""
    async with FaultServer() as server, FaultServer("ollama") as other:
        yield [provider_for(server), RouterProvider(provider_for(server), [provider_for(other)])]


async def ask(provider: LLMProvider, how: str, given: dict[str, Any]) -> str:
    """Return "answer", or the class of the error."""
    given = {"prompt": "hi", **given}
    try:
        if how == "langchain":
            model = ChatLearnFlow(provider=provider)
            await model.ainvoke("hi", **{name: value for name, value in given.items() if name != "prompt"})
        elif how == "stream":
            async for _ in provider.stream(**given):
                pass
        else:
            await getattr(provider, how)(**given)
    except LLMError as error:
        return check(error)
    return "answer"


async def test_hostile_keywords_of_calls_raise_only_our_errors(doors: list[LLMProvider]) -> None:
    chance, outcomes = random.Random(35), Counter[str]()  # noqa: S311  # a seed
    for keyword in KEYWORDS:
        for value in OBJECTS:
            how = chance.choice(["generate", "stream", "complete", "langchain"])
            if not (how == "langchain" and keyword == "metadata"):  # LangChain's own keyword
                outcomes[await ask(chance.choice(doors), how, {keyword: value})] += 1
    assert outcomes["InvalidRequest"] > 1000
    assert outcomes["answer"] > 100
    assert set(outcomes) <= {"answer", "InvalidRequest", "Unsupported", "SchemaMismatch", "NotContinued"}


async def test_hostile_keywords_together_raise_only_our_errors(doors: list[LLMProvider]) -> None:
    chance = random.Random(35)  # noqa: S311  # a seed
    for _ in range(300):
        names = chance.sample(KEYWORDS, 3)
        given = {name: chance.choice([*OBJECTS, *VALID.get(name, ()), *VALID.get(name, ())]) for name in names}
        await ask(chance.choice(doors), chance.choice(["generate", "stream", "complete"]), given)


@pytest.mark.parametrize("keyword", VALID)
@pytest.mark.parametrize("how", ["generate", "stream", "complete"])
async def test_valid_values_are_accepted(keyword: str, how: str, doors: list[LLMProvider]) -> None:
    needs_tools = keyword in ("tools", "tool_choice")
    for value in VALID[keyword]:
        given = {"tools": [TOOL], keyword: value} if keyword == "tool_choice" and value else {keyword: value}
        if needs_tools and (how == "generate" or isinstance(value, dict)):
            continue
        expected = "Unsupported" if keyword == "resume" else "answer"
        assert await ask(doors[0], how, copy.copy(given)) == expected, value
        assert await ask(doors[1], how, copy.copy(given)) == "answer", value


def test_all_keywords_of_calls_have_valid_values() -> None:
    assert set(VALID) == {*ARGUMENTS, *Options.__annotations__}
