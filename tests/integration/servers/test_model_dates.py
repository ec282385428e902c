"""The date on which a model ends, in ``status`` and ``doctor``."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from support import serving

from learnflow.llm.cli.main import main
from learnflow.llm.process import switches
from learnflow.llm.providers import OllamaProvider, OpenAIProvider, OpenRouterProvider
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.servers import model_prices
from learnflow.llm.testing import FaultServer

TODAY = date(2026, 11, 29)


@pytest.fixture(autouse=True)
def today() -> Iterator[None]:
    switches.today = TODAY
    yield
    switches.today = None


@pytest.fixture
def prices(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the price map by one that the test changes."""
    rows: dict[str, Any] = {}
    monkeypatch.setattr(model_prices, "price_map", lambda: rows)
    return rows


def models(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"/v1/models": {"object": "list", "data": list(rows)}}


async def detail(model: str, responses: dict[str, Any], kind: Any = OpenAIProvider) -> str:
    async with FaultServer(responses=responses) as server:
        health = await kind(base_url=server.root, api_key="k", model=model).refresh()
    return str(health.detail)


@pytest.mark.parametrize(
    ("ends", "line"),
    [
        ("2027-01-14", "ready; the model m ends on 2027-01-14. Set OPENAI_MODEL to a newer one"),
        ("2027-02-27", "ready; the model m ends on 2027-02-27. Set OPENAI_MODEL to a newer one"),  # 90 days
        ("2027-02-28", "ready"),
        ("2026-11-29", "ready; the model m ends on 2026-11-29. Set OPENAI_MODEL to a newer one"),
        ("2026-11-28", "ready; the model m ended on 2026-11-28. Set OPENAI_MODEL to a newer one"),
        ("2027-01-14T00:00:00Z", "ready; the model m ends on 2027-01-14. Set OPENAI_MODEL to a newer one"),
        *((ends, "ready") for ends in (None, "", "soon", "2027-13-01", 1799884800, ["2027-01-14"], {}, True)),
    ],
)
async def test_date_of_servers_list_within_90_days_is_named(ends: Any, line: str, prices: dict[str, Any]) -> None:
    assert prices == {}
    assert await detail("m", models({"id": "m", "shutdown_date": ends}, {"id": "other"})) == line


async def test_expiration_date_is_read() -> None:
    responses = models({"id": "vendor/m", "expiration_date": "2026-12-31"})
    assert "vendor/m ends on 2026-12-31" in await detail("vendor/m", responses, OpenRouterProvider)


async def test_date_of_another_model_is_not_named(prices: dict[str, Any]) -> None:
    assert prices == {}
    assert await detail("m", models({"id": "m"}, {"id": "other", "shutdown_date": "2026-12-01"})) == "ready"


async def test_date_of_price_map_is_used_if_the_list_has_none(prices: dict[str, Any]) -> None:
    prices |= {"m": {"deprecation_date": "2027-01-01"}, "openai/n": {"deprecation_date": "2027-01-02"}}
    responses = models({"id": "m"}, {"id": "n", "shutdown_date": None}, {"id": "o", "shutdown_date": "2027-01-03"})
    prices["o"] = {"deprecation_date": "2026-12-01"}
    for name, day in (("m", "2027-01-01"), ("n", "2027-01-02"), ("o", "2027-01-03")):
        assert f"the model {name} ends on {day}" in await detail(name, responses)


async def test_local_model_has_no_date_of_price_map(prices: dict[str, Any]) -> None:
    prices["fault-model"] = {"deprecation_date": "2027-01-01"}
    async with FaultServer("ollama") as server:
        assert (await OllamaProvider(base_url=server.root, model="fault-model").refresh()).detail == "ready"


def test_alias_ends_with_its_last_snapshot(prices: dict[str, Any]) -> None:
    def row(day: str | None) -> dict[str, Any]:
        return {"deprecation_date": day} if day else {}

    prices |= {
        "a": {},
        "a-2026-01-01": row("2027-01-01"),
        "a-20260201": row("2027-02-01"),
        "a-mini": row("2026-12-01"),
        "b": {},
        "b-2026-01-01": row("2027-01-01"),
        "b-2026-02-01": {},
        "c": row("2027-03-01"),
        "c-2026-01-01": row("2027-01-01"),
        "azure/d": row("2027-04-01"),
        "d": row("2027-05-01"),
        "e": row("date when the model ends"),
    }
    ends = {
        name: str(model_prices.shutdown_date(SPECS["azure"], name)) for name in ("a", "b", "c", "d", "e", "unknown")
    }
    assert ends == {
        "a": "2027-02-01",
        "b": "None",
        "c": "2027-03-01",
        "d": "2027-04-01",
        "e": "None",
        "unknown": "None",
    }


@pytest.mark.parametrize(
    ("model", "day"), [("gpt-4o", "2027-01-14"), ("gpt-4.1-mini", "2027-01-14"), ("gpt-5.1", "2027-04-01")]
)
def test_announced_dates_are_in_price_map(model: str, day: str) -> None:
    assert str(model_prices.shutdown_date(SPECS["openai"], model)) == day


@pytest.mark.parametrize(
    ("variables", "lines"),
    [
        (
            {"OPENAI_VISION_MODEL": "eyes"},
            ["the model eyes ends on 2026-12-24. Set OPENAI_VISION_MODEL to a newer one"],
        ),
        ({"LLM_MODEL_QUIZ": "eyes"}, ["the model eyes ends on 2026-12-24. Set LLM_MODEL_QUIZ to a newer one"]),
        ({"LLM_MODEL_QUIZ": "of-map"}, ["the model of-map ended on 2026-11-01. Set LLM_MODEL_QUIZ to a newer one"]),
        (
            {"OPENAI_VISION_MODEL": "m", "LLM_MODEL_A": "eyes", "LLM_MODEL_B": "eyes", "OPENAI_MODEL": "m"},
            [
                "the model m ends on 2026-12-11. Set OPENAI_MODEL and OPENAI_VISION_MODEL to a newer one",
                "the model eyes ends on 2026-12-24. Set LLM_MODEL_A and LLM_MODEL_B to a newer one",
            ],
        ),
        ({"LLM_MODEL_QUIZ": "of-another-provider", "OPENAI_VISION_MODEL": "lives"}, []),
    ],
)
async def test_end_of_every_configured_model_is_named(
    variables: dict[str, str], lines: list[str], prices: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prices |= {name: {"deprecation_date": "2026-11-01"} for name in ("of-map", "of-another-provider", "eyes")}
    monkeypatch.setenv("OPENAI_MODEL", "lives")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    rows = {"m": "2026-12-11", "eyes": "2026-12-24", "of-map": None, "lives": None}
    async with FaultServer(responses=models(*({"id": n, "shutdown_date": day} for n, day in rows.items()))) as server:
        health = await OpenAIProvider(base_url=server.root, api_key="k").refresh()
    assert health.detail == "; ".join(["ready", *lines])


@pytest.mark.parametrize("command", ["status", "doctor"])
@pytest.mark.usefixtures("usual")
def test_command_shows_date_in_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = FaultServer(responses=models({"id": "m", "shutdown_date": "2026-12-11"}))
    with serving(server):
        for name, value in (("BASE_URL", server.base_url), ("API_KEY", "k"), ("MODEL", "m")):
            monkeypatch.setenv(f"OPENAI_{name}", value)
        assert main([command, "--provider", "openai", "--timeout", "60"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "the model m ends on 2026-12-11" in line]
    assert len(lines) == 1
    assert "Set OPENAI_MODEL to a newer one" in lines[0]
