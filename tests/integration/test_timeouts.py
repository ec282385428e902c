"""Each time limit ends its own phase of a request, and nothing else."""

from __future__ import annotations

import asyncio

import pytest
from support import DIALECTS, idle_clock, provider_for

from learnflow.llm import errors
from learnflow.llm.providers import CustomProvider
from learnflow.llm.testing import Fault, FaultServer


@pytest.mark.parametrize("dialect", DIALECTS)
@idle_clock
async def test_hang_raises_first_token_timeout(dialect: str) -> None:
    async with FaultServer(dialect, fault=Fault("hang")) as server:
        began = asyncio.get_running_loop().time()
        with pytest.raises(errors.FirstTokenTimeout, match="LLM_FIRST_TOKEN_TIMEOUT"):
            await provider_for(server, first_token_timeout=1).generate("hi")
        assert asyncio.get_running_loop().time() - began >= 1
        await asyncio.wait_for(server.seen[0].gone.wait(), 30)


@pytest.mark.parametrize("dialect", DIALECTS)
@idle_clock
async def test_opening_chunk_is_not_token(dialect: str) -> None:
    async with FaultServer(dialect, fault=Fault("stall", after=0)) as server:
        with pytest.raises(errors.FirstTokenTimeout):
            await provider_for(server, first_token_timeout=1).generate("hi")


@pytest.mark.parametrize("dialect", DIALECTS)
@idle_clock
async def test_stall_raises_gap_timeout_with_partial(dialect: str) -> None:
    async with FaultServer(dialect, fault=Fault("stall")) as server:
        with pytest.raises(errors.GapTimeout, match="LLM_GAP_TIMEOUT") as caught:
            await provider_for(server, gap_timeout=0.2).generate("hi")
        assert caught.value.partial == "The quick brown "
        assert caught.value.retryable


@pytest.mark.parametrize("dialect", DIALECTS)
@idle_clock
async def test_slow_drip_raises_deadline_exceeded(dialect: str) -> None:
    async with FaultServer(dialect, fault=Fault("drip", seconds=0.5)) as server:
        began = asyncio.get_running_loop().time()
        with pytest.raises(errors.DeadlineExceeded) as caught:
            await provider_for(server).generate("hi", timeout=1.5)
        assert asyncio.get_running_loop().time() - began >= 1.5
        assert caught.value.partial.startswith("The quick brown drop drop ")
        assert not caught.value.failover


@idle_clock
async def test_deadline_of_provider_applies_if_call_has_none() -> None:
    async with FaultServer(fault=Fault("hang")) as server:
        with pytest.raises(errors.DeadlineExceeded):
            await provider_for(server, deadline=0.2).generate("hi")


@idle_clock
async def test_time_of_slow_caller_does_not_count() -> None:
    async with FaultServer() as server:
        got = ""
        async for piece in provider_for(server, gap_timeout=0.2, first_token_timeout=5).stream("hi"):
            got += piece
            await asyncio.sleep(0.3 if len(got) < 12 else 0)
        assert got == "The quick brown fox jumps over the lazy dog."


@pytest.mark.parametrize("dialect", ["openai", "ollama"])
@idle_clock
async def test_finished_response_is_not_waited_for(dialect: str) -> None:
    async with FaultServer(dialect, fault=Fault("lingers")) as server:
        assert (await provider_for(server).generate("hi")).endswith("dog.")  # the connection stays open
        await asyncio.wait_for(server.seen[0].gone.wait(), 30)


@pytest.mark.parametrize(
    "given",
    [
        {"timeout": 5},
        {"first_token_timout": 1},
        {"connect_timeout": "3"},
        {"gap_timeout": 0},
        {"deadline": -1},
        {"local_only": "false"},
    ],
)
def test_invalid_keywords_of_provider_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(errors.NotConfigured, match=next(iter(given))):
        CustomProvider(base_url="http://127.0.0.1:9", **given)  # type: ignore[arg-type]
    CustomProvider(base_url="http://127.0.0.1:9", deadline=None, gap_timeout=None)  # type: ignore[arg-type]


@idle_clock
async def test_time_limits_come_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_FIRST_TOKEN_TIMEOUT", "0.2")
    async with FaultServer(fault=Fault("hang")) as server:
        with pytest.raises(errors.FirstTokenTimeout, match=r"0\.2 s"):
            await provider_for(server).generate("hi")


async def test_closed_port_is_connection_failed_and_not_a_timeout() -> None:
    async with FaultServer() as server:
        provider = provider_for(server)
    with pytest.raises(errors.ConnectionFailed, match="CUSTOM_BASE_URL") as caught:
        await provider.generate("hi")
    assert caught.value.retryable
    assert caught.value.failover
