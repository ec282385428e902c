"""What is not known is not refused: capabilities of models, and lists of models in every envelope."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import pytest
from odd_server import (
    DONE,
    HOWS,
    KEY,
    PIXEL,
    TOOLS,
    OddServer,
    Reply,
    answered,
    calls,
    chunk,
    custom,
    good,
    openai_error,
    outcome,
    piece,
    refusal,
    rows,
    sse,
)
from support import router

from learnflow.llm import LLMProvider, errors
from learnflow.llm.cli.explain import verdicts_of
from learnflow.llm.providers import CustomProvider, GeminiProvider, LMStudioProvider, build

PICTURE: Final = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        ],
    }
]
SCHEMA: Final = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
FORMAT: Final = {"type": "json_schema", "json_schema": {"name": "page", "schema": SCHEMA}}
ANSWER: Final = '{"title": "A key"}'
VENDORS: Final = (
    "custom", "chutes", "poe", "nano-gpt", "scaleway", "featherless_ai", "together_ai", "dashscope", "deepinfra",
    "groq", "sambanova", "zai", "publicai", "nscale", "openrouter", "mistral",
)  # fmt: skip
ANY_TOOL: Final = {"mistral": '"any"'}  # "required" in the vendor's own words, which LiteLLM writes
UNHEARD: Final = "study-lab/Unheard-Of-7B"
PAGE: Final = {"object": "list", "data": [{"id": UNHEARD, "object": "model"}]}


@dataclass(frozen=True)
class Row:
    """A capability that LiteLLM's map does not have for a model.

    Attributes:
        prompt, options: the call.
        word: of ``<NAME>_CAPABILITIES``.
        mark: a text that must be in the request.
    """

    id: str
    seen: str
    prompt: Any
    options: dict[str, Any]
    word: str
    mark: str


CAPABILITIES = (
    Row(
        "tools",
        "github.com/BerriAI/litellm/issues/22619 (2026-03), issues/15628 (2025-10), issues/9797 (2025-04), "
        "github.com/mem0ai/mem0/pull/5091 (2026-05)",
        "What is a key?",
        {"tools": TOOLS},
        "tools",
        '"define"',
    ),
    Row(
        "a choice of tools",
        "github.com/BerriAI/litellm/issues/9797 (2025-04)",
        "What is a key?",
        {"tools": TOOLS, "tool_choice": "required"},
        "tools",
        '"required"',
    ),
    Row(
        "a picture",
        "github.com/charmbracelet/crush/issues/3088 (2026-06), github.com/different-ai/openwork/issues/4166 (2026-08), "
        "github.com/oneprolabs/sourcelens/pull/339 (2026-08)",
        PICTURE,
        {},
        "vision",
        PIXEL,
    ),
    Row(
        "a schema",
        "github.com/UKGovernmentBEIS/inspect_ai/issues/4916 (2026-08), github.com/khoj-ai/khoj/issues/1336 (2026-06)",
        "Name a page.",
        {"response_format": FORMAT},
        "json_schema",
        "title",
    ),
)


def unknown_model(name: str, url: str) -> LLMProvider:
    return build(name, url, UNHEARD, KEY)


def reply(request: dict[str, Any]) -> Reply:
    """Call a tool if the request requires one."""
    if "tool_choice" not in request:
        return good(ANSWER)
    return sse(calls(piece(0, "a1", "define", '{"term": "key"}')), chunk(finish="tool_calls"), DONE)


async def refusing(row: Row, monkeypatch: pytest.MonkeyPatch | None = None) -> dict[str, str]:
    """Send the call of a row to every vendor. Return those whose request was not sent, or lacks the mark."""
    found = {}
    for name in VENDORS:
        if monkeypatch:
            monkeypatch.setenv(f"{name.upper().replace('-', '_')}_CAPABILITIES", row.word)
        async with OddServer(reply, PAGE) as server:
            got = await outcome(unknown_model(name, server.base_url), "complete", row.prompt, **row.options)
            mark = ANY_TOOL.get(name, row.mark) if row.mark == '"required"' else row.mark
            if mark not in json.dumps(server.bodies[-1:]) or isinstance(got, errors.LLMError):
                found[name] = type(got).__name__
    return found


@rows(*CAPABILITIES)
async def test_sole_provider_sends_what_its_unknown_model_may_support(row: Row) -> None:
    assert await refusing(row) == {}


@rows(*CAPABILITIES)
async def test_capabilities_of_the_operator_decide(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await refusing(row, monkeypatch) == {}


@pytest.mark.parametrize("sole", [True, False], ids=["sole", "chain"])
@pytest.mark.parametrize("name", VENDORS)
async def test_explain_and_the_call_agree(name: str, sole: bool) -> None:
    differing = {}
    async with OddServer(reply, PAGE) as one, OddServer(reply) as two:
        chain = router(unknown_model(name, one.base_url), *([] if sole else [custom(two.base_url)]))
        await chain.refresh()
        explained = [verdicts_of(chain, row.prompt, **row.options)[0] for row in CAPABILITIES]
        for row, first in zip(CAPABILITIES, explained, strict=True):
            before = len(one.bodies)
            got = await outcome(chain, "complete", row.prompt, **row.options)
            if (first.serves is not False) != (len(one.bodies) == before + 1):
                differing[row.id] = f"explain: {first.serves} ({first.reason}); the call: {type(got).__name__}"
    assert differing == {}


@pytest.mark.parametrize("sole", [True, False], ids=["sole", "chain"])
@rows(*(row for row in CAPABILITIES if row.id != "a choice of tools"))
async def test_capability_that_the_operator_denies_is_refused_before_sending(
    row: Row, sole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUSTOM_CAPABILITIES", f"no-{row.word}".replace("_", "-"))
    async with OddServer(reply) as one, OddServer(reply) as two:
        first, second = (custom(server.base_url) for server in (one, two))
        chain = router(first) if sole else router(first, second)
        assert [choice.serves for choice in verdicts_of(chain, row.prompt, **row.options)] == [False] * (2 - sole)
        got = await outcome(chain, "complete", row.prompt, **row.options)
        assert isinstance(got, errors.Unsupported)
        assert not one.bodies + two.bodies
        got = await outcome(first, "events", row.prompt, **row.options)
        assert isinstance(got, errors.Unsupported)
        assert f"CUSTOM_CAPABILITIES={row.word}" in str(got)


async def test_denial_of_the_price_map_decides_only_if_another_provider_can_serve() -> None:
    """A sibling: the map may be outdated. It denies tools for this model."""
    async with OddServer(reply) as one, OddServer(reply) as two:
        denied = build("deepseek", one.base_url, "deepseek-reasoner", KEY)
        assert denied.get_capabilities()["tools"] is False
        assert [choice.serves for choice in verdicts_of(router(denied), "?", tools=TOOLS)] == [None]
        assert (await router(denied).complete("?", tools=TOOLS)).text == ANSWER
        chain = router(denied, custom(two.base_url))
        assert (await chain.complete("?", tools=TOOLS)).text == ANSWER
        assert (len(one.bodies), len(two.bodies)) == (1, 1)


@pytest.mark.parametrize("how", HOWS)
async def test_refusal_of_the_server_decides_if_the_capability_was_unknown(how: str) -> None:
    """github.com/Gitlawb/openclaude/pull/1663 (2026-06): the provider's own error is the answer."""
    refused = refusal(400, openai_error("this model does not support image input"))
    async with OddServer(refused, PAGE) as one, OddServer(good("A dot.")) as two:
        chain = router(unknown_model("custom", one.base_url), custom(two.base_url))
        assert (await answered(chain, how, PICTURE)).text == "A dot."
        got = await outcome(unknown_model("custom", one.base_url), how, PICTURE)
    assert isinstance(got, errors.CapabilityError)


@dataclass(frozen=True)
class ListRow:
    """A page of models, which has the model "m-1" and "m-2"."""

    id: str
    seen: str
    page: Any


NAMES: Final = ("m-1", "m-2")
LISTS = (
    ListRow(
        "a bare array",
        "github.com/danielmiessler/Fabric/issues/1602 (2025-07), github.com/aaif-goose/goose/pull/10576 (2026-07)",
        [{"id": name, "object": "model", "type": "chat"} for name in NAMES],
    ),
    ListRow(
        "models instead of data",
        "github.com/mozilla-ai/any-llm/issues/517 (2025-10), github.com/helixml/helix/issues/386",
        {"models": [{"id": name} for name in NAMES]},
    ),
    ListRow(
        "models with a slug",
        "github.com/friuns2/codex-mobile/pull/188 (2026-05)",
        {"models": [{"slug": name} for name in NAMES]},
    ),
    ListRow(
        "data with model instead of id",
        "github.com/LeenHawk/gproxy/issues/189 (2026-08)",
        {"object": "list", "data": [{"model": name, "provider": "x", "display_name": "A Model"} for name in NAMES]},
    ),
    ListRow("data of strings", "github.com/friuns2/codex-mobile/pull/188 (2026-05)", {"data": list(NAMES)}),
    ListRow("a bare array of strings", "github.com/friuns2/codex-mobile/pull/188 (2026-05)", list(NAMES)),
    ListRow(
        "data with further fields",
        "github.com/eggent-ai/eggent/issues/14 (2026-03)",
        {"data": [{"id": name, "pricing": {"prompt": None}, "architecture": [], "top_provider": 3} for name in NAMES]},
    ),
    ListRow(
        "an entry that is none",
        "github.com/aaif-goose/goose/pull/10576 (2026-07, the review)",
        {"data": [None, {}, {"id": "m-1"}, {"id": ""}, {"id": "m-2"}]},
    ),
)


@pytest.mark.parametrize("name", ["custom", "together_ai"])
@rows(*LISTS)
async def test_models_are_listed_in_every_envelope(row: ListRow, name: str) -> None:
    async with OddServer(good(), models=row.page) as server:
        provider = build(name, server.base_url, "m-1", KEY)
        health = await provider.refresh()
        assert health.state == "ready"
        assert set(NAMES) <= set(await provider.list_models())
        assert (await provider.complete("Why two keys?")).text == "Two keys."


async def test_page_without_models_is_no_list() -> None:
    """github.com/aaif-goose/goose/pull/10189 (2026-07): {"status": "ok"} must not look like an empty list."""
    async with OddServer(good(), models={"status": "ok"}) as server:
        health = await custom(server.base_url).refresh()
        assert health.state != "ready"


@dataclass(frozen=True)
class NameRow:
    """A name of a model that the list has in another form."""

    id: str
    seen: str
    listed: str
    model: str
    kind: Any = CustomProvider


@pytest.mark.parametrize("how", HOWS)
@rows(
    NameRow(
        "another case",
        "github.com/diegosouzapw/OmniRoute/pull/5135 (2026-06), github.com/Laisky/one-api/issues/352 (2026-07)",
        "study/STUDY-7B",
        "study/study-7b",
    ),
    NameRow(
        "the prefix models/ of Gemini",
        "github.com/PublicAffairs/openai-gemini/issues/92 (2026-05), "
        "github.com/continuedev/continue/issues/9939 (2026-01)",
        "models/gemini-3-flash",
        "gemini-3-flash",
        GeminiProvider,
    ),
    NameRow(
        "the publisher's prefix of LM Studio",
        "github.com/lmstudio-ai/lmstudio-bug-tracker/issues/1602 (2026-03)",
        "study-lab/study-7b",
        "study-7b",
        LMStudioProvider,
    ),
)
async def test_name_in_another_form_is_the_model(row: NameRow, how: str) -> None:
    page = {"object": "list", "data": [{"id": row.listed, "object": "model"}, {"id": "other", "object": "model"}]}
    async with OddServer(good(), models=page) as server:
        provider = row.kind(server.base_url, row.model, KEY)
        health = await provider.refresh()
        assert health.state == "ready", health.detail
        assert (await answered(provider, how)).text == "Two keys."
        assert server.bodies[-1]["model"].lower().endswith(row.model)


async def test_name_of_another_model_is_still_unknown() -> None:
    page = {"object": "list", "data": [{"id": "study-70b", "object": "model"}]}
    async with OddServer(good(), models=page) as server:
        assert (await CustomProvider(server.base_url, "study-7b").refresh()).state != "ready"
