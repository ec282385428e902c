"""The command ``doctor`` and an engine, and what the engine reports of its servers."""

from __future__ import annotations

import asyncio

import pytest
from engines import MARKS, Configure, Report, Start, StartEngine

from learnflow.llm.cli.main import main

pytestmark = MARKS


async def test_doctor_names_option_that_turns_retries_off(
    start_llama: Start,
    start_engine: StartEngine,
    configure: Configure,
    report: Report,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, two = start_llama(slots=2), start_llama(slots=2)
    provider = configure(await start_engine([one.url, two.url]).healthy())
    code = await asyncio.to_thread(main, ["doctor", "--timeout", "10"])
    shown = capsys.readouterr().out
    (health,) = [await inner.refresh() for inner in provider.providers]
    (limit,) = [inner.runner.concurrency_limit for inner in provider.providers]
    context = health.capabilities["context_served"]
    report("doctor recognises the engine", f"names --disable-retries: {'--disable-retries' in shown}")
    report("what the engine reports", f"{health.server or 'no kind'}, context {context}, limit {limit} as configured")
    assert code == 0
    assert "is a router of 2 servers. Start it with --disable-retries" in shown
    assert limit == 4  # GPUS_MAX_CONCURRENCY; a page of one of the servers has 2
