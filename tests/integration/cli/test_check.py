"""``check``, with fault servers."""

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
    if server.dialect.name == "responses":
        monkeypatch.setenv(f"{name.upper()}_API", "responses")
    code = await asyncio.to_thread(cli.main, ["check", "-p", name, "-m", "fault-model", "--json"])
    output = capsys.readouterr()
    report = json.loads(output.out)
    return code, report, {finding["question"]: finding["passed"] for finding in report["findings"]}, output.err


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_compliant_server_passes_all_checks(
    dialect: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with FaultServer(dialect, '{"word": "pong"}') as server:
        code, report, passed, err = await checked(monkeypatch, capsys, server)
        assert code == 0
        assert len(passed) == 10
        assert (passed["finish reason"], passed["a stream"], passed["JSON schema"]) == (True, True, True)
        assert "json_schema" in report["capabilities"].split(",")
        assert "sending about a dozen requests" in err
        assert "pong" not in json.dumps(report)


async def test_missing_finish_reason_ends_checks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with FaultServer("openai", fault=Fault("done_without_finish")) as server:
        code, report, passed, _ = await checked(monkeypatch, capsys, server)
        assert (code, passed, report["capabilities"]) == (1, {"finish reason": False}, "no-finish")


async def test_ignored_schema_fails_with_variable_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with FaultServer("vllm", "no json") as server:
        _, report, passed, _ = await checked(monkeypatch, capsys, server)
        assert passed["JSON schema"] is False
        assert report["capabilities"].startswith("no-json_schema")


def test_cached_tokens_have_lower_price() -> None:
    """OpenAI's published prices of gpt-4o-mini, dollars a million: 0.15 in, 0.075 from the cache, 0.60 out."""
    spec = SPECS["openai"]
    full = _litellm.price(spec, "gpt-4o-mini", Usage(prompt_tokens=1000, completion_tokens=100))
    cached = _litellm.price(spec, "gpt-4o-mini", Usage(prompt_tokens=1000, completion_tokens=100, cached_tokens=800))
    assert full == pytest.approx((1000 * 0.15 + 100 * 0.6) / 1e6)
    assert cached == pytest.approx((200 * 0.15 + 800 * 0.075 + 100 * 0.6) / 1e6)


async def test_schema_that_fits_only_after_retry_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with FaultServer("vllm", '{"word": "pong"}') as server:
        no_json = Fault("refuse", status=200, body=server.dialect.answer_body("pong"))
        await checked(monkeypatch, capsys, server)
        at = next(at for at, seen in enumerate(server.seen) if "response_format" in seen.body)
        server.script = [*[None] * at, no_json]
        _, report, passed, _ = await checked(monkeypatch, capsys, server)
        assert passed["JSON schema"] is False
        assert report["capabilities"].startswith("no-json_schema")
