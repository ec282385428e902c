"""``check``: what a server keeps, told from answers of fault servers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from support import DIALECTS, provider_for

from learnflow.llm.adapter import _litellm
from learnflow.llm.cli import main as cli
from learnflow.llm.completion import Usage
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.testing import Fault, FaultServer


async def checked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: FaultServer) -> Any:
    name = provider_for(server).name
    monkeypatch.setenv(f"{name.upper()}_BASE_URL", server.base_url)
    code = await asyncio.to_thread(cli.main, ["check", "-p", name, "-m", "fault-model", "--json"])
    told = capsys.readouterr()
    said = json.loads(told.out)
    return code, said, {each["question"]: each["passed"] for each in said["findings"]}, told.err


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_sound_server_keeps_what_is_relied_on(
    dialect: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with FaultServer(dialect, '{"word": "pong"}') as server:
        code, said, kept, err = await checked(monkeypatch, capsys, server)
        assert code == 0
        assert len(kept) == 10
        assert (kept["finish reason"], kept["a stream"], kept["JSON schema"]) == (True, True, True)
        assert "json_schema" in said["capabilities"].split(",")
        assert "asking up to 10 requests" in err
        assert "pong" not in json.dumps(said)


async def test_a_server_without_finish_reasons_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with FaultServer("openai", fault=Fault("done_without_finish")) as server:
        code, said, kept, _ = await checked(monkeypatch, capsys, server)
        assert (code, kept, said["capabilities"]) == (1, {"finish reason": False}, "no-finish")


async def test_a_server_that_refuses_a_schema_is_told_with_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with FaultServer("vllm", "no json") as server:
        _, said, kept, _ = await checked(monkeypatch, capsys, server)
        assert kept["JSON schema"] is False
        assert said["capabilities"].startswith("no-json_schema")


def test_tokens_that_came_from_a_cache_cost_less() -> None:
    """OpenAI's published prices of gpt-4o-mini, dollars a million: 0.15 in, 0.075 from the cache, 0.60 out."""
    spec = SPECS["openai"]
    full = _litellm.price(spec, "gpt-4o-mini", Usage(prompt_tokens=1000, completion_tokens=100))
    cached = _litellm.price(spec, "gpt-4o-mini", Usage(prompt_tokens=1000, completion_tokens=100, cached_tokens=800))
    assert full == pytest.approx((1000 * 0.15 + 100 * 0.6) / 1e6)
    assert cached == pytest.approx((200 * 0.15 + 800 * 0.075 + 100 * 0.6) / 1e6)


async def test_a_schema_that_is_kept_only_when_asked_once_more_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with FaultServer("vllm", '{"word": "pong"}') as server:
        no_json = Fault("refuse", status=200, body=server.dialect.answer_body("pong"))
        await checked(monkeypatch, capsys, server)
        at = next(at for at, seen in enumerate(server.seen) if "response_format" in seen.body)
        server.script = [*[None] * at, no_json]
        _, said, kept, _ = await checked(monkeypatch, capsys, server)
        assert kept["JSON schema"] is False
        assert said["capabilities"].startswith("no-json_schema")
