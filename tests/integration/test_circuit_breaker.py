"""The router skips a failed provider until a probe or a trial succeeds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support import TEXT, Clock, pair, provider_for, request_text, router

from learnflow.llm import errors, events
from learnflow.llm.routing.breaker import BreakerRegistry
from learnflow.llm.testing import Fault, FaultServer


async def test_breaker_closes_after_probe_without_request(events_seen: list[Any]) -> None:
    clock = Clock()
    async with FaultServer("vllm", TEXT) as two, FaultServer("llamacpp", TEXT) as one:
        chain = router(provider_for(one), provider_for(two), breakers=BreakerRegistry(clock))
        one.script = [Fault("close")] * 2  # a stale connection is tried once more
        assert (await chain.complete("hi")).provider == "vllm"
        knocked = len(one.seen)
        clock.now += 4
        assert (await chain.complete("hi")).provider == "vllm"
        assert len(one.seen) == knocked
        clock.now += 2
        pages = len(one.pages)
        assert (await chain.complete("hi")).provider == "vllm"  # the probe runs concurrently
        while chain.status()[0]["breaker"] == "open":
            await asyncio.sleep(0.01)
        assert len(one.pages) > pages
        assert (await chain.complete("hi")).provider == "llamacpp"
        assert [event for event in events_seen if isinstance(event, events.BreakerClosed)]


async def test_invisible_fault_allows_one_trial() -> None:
    clock = Clock()
    async with FaultServer("vllm", TEXT) as two, FaultServer("llamacpp", TEXT, fault=Fault("hang")) as one:
        chain = router(provider_for(one, first_token_timeout=0.2), provider_for(two), breakers=BreakerRegistry(clock))
        assert (await chain.complete("hi")).provider == "vllm"
        clock.now += 16
        await chain.complete("hi")  # the probe runs concurrently, and succeeds
        await asyncio.sleep(0.2)
        answers = await asyncio.gather(*(chain.complete("hi") for _ in range(10)))
        assert {done.provider for done in answers} == {"vllm"}
        assert len(one.seen) == 2  # one of the ten was the trial
        clock.now += 16
        await chain.complete("hi")
        assert len(one.seen) == 2  # the next period is longer
        one.fault = None
        clock.now += 30
        await chain.complete("hi")
        await asyncio.sleep(0.2)
        assert (await chain.complete("hi")).provider == "llamacpp"
        assert chain.status()[0]["breaker"] == "closed"


async def test_first_breaker_to_close_is_tried_when_all_are_open() -> None:
    async with FaultServer("vllm", TEXT) as one, FaultServer("llamacpp", TEXT) as two:
        one.script, two.script = [Fault("refuse")], [Fault("refuse", refusal="failed", headers={"retry-after": "99"})]
        chain = router(provider_for(one), provider_for(two), retries=0)
        with pytest.raises(errors.ServerFailed):
            await chain.generate("hi")
        assert [state["breaker"] for state in chain.status()] == ["open", "open"]
        assert (await chain.complete("hi")).provider == "vllm"


async def test_200_concurrent_requests_survive_death_of_primary() -> None:
    async with FaultServer("vllm", TEXT) as two:
        async with FaultServer("llamacpp", TEXT, fault=Fault("drop", after=4)) as one:
            chain = router(provider_for(one, max_concurrency=20), provider_for(two))
            answers = await asyncio.gather(*(request_text(chain, "stream") for _ in range(200)))
            assert set(answers) == {TEXT}
            knocked = len(one.seen)
            assert knocked <= 200
        assert set(await asyncio.gather(*(request_text(chain, "stream") for _ in range(50)))) == {TEXT}
        assert len(one.seen) == knocked


async def test_cancelled_trial_frees_server_and_breaker() -> None:
    async with pair("vllm", "llamacpp", Fault("stall", after=3)) as (one, _, chain):
        async with chain.stream("hi") as answer:
            await anext(answer)
        await asyncio.wait_for(one.seen[0].gone.wait(), 30)
        assert chain.status()[0]["breaker"] == "closed"


async def test_trial_with_caller_error_releases_breaker() -> None:
    clock = Clock()
    async with FaultServer("openai", TEXT) as one, FaultServer("vllm", TEXT) as two:
        chain = router(provider_for(one), provider_for(two), breakers=BreakerRegistry(clock))
        one.script = [Fault("refuse", refusal="quota"), Fault("refuse")]
        for _ in range(12):
            await chain.generate("hi")
            await asyncio.sleep(0.05)
            clock.now += 301
        assert (await chain.complete("hi")).provider == "custom"
