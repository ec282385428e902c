"""Loading is not dead: a cold or loading model is waited for, and no farther provider gets the prompt."""

from __future__ import annotations

import asyncio

import pytest
from support import TEXT, provider_for, router

from learnflow.llm import Capabilities, errors
from learnflow.llm.providers import CustomProvider
from learnflow.llm.testing import Fault, FaultServer

LOADING = (503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}})


COLD = {"/api/ps": {"models": []}, "/api/generate": {"done": True, "done_reason": "load"}}


class Cloud(CustomProvider):
    """A provider whose text leaves the machine, by its own word."""

    def get_capabilities(self, model: str | None = None) -> Capabilities:
        return {**super().get_capabilities(model), "local": False}


async def test_loading_is_not_dead() -> None:
    pages = dict.fromkeys(("/health", "/v1/models", "/props"), LOADING)
    async with FaultServer("llamacpp", TEXT, fault=Fault("refuse", refusal="loading"), tells=pages) as one:
        async with FaultServer("vllm", TEXT) as two:
            chain = router(provider_for(one), provider_for(two))
            assert (await chain.complete("hi")).provider == "vllm"  # at once
            assert chain.status()[0]["breaker"] == "closed"
        alone = asyncio.create_task(router(provider_for(one)).complete("hi"))
        await asyncio.sleep(0.3)
        assert not alone.done()
        one.fault = None
        one.tells.update(one.dialect.pages())
        assert (await alone).text == TEXT


async def test_a_cold_model_loads_while_another_answers() -> None:
    cold = {"/api/ps": {"models": []}, "/api/generate": {"done": True, "done_reason": "load"}}
    async with FaultServer("ollama", TEXT, tells=cold) as one, FaultServer("vllm", TEXT) as two:
        chain = router(provider_for(one), provider_for(two))
        assert (await chain.complete("hi")).provider == "vllm"
        one.tells["/api/ps"] = {"models": [{"name": "fault-model", "context_length": 8192}]}
        while ("POST", "/api/generate") not in one.pages:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert (await chain.complete("hi")).provider == "ollama"


@pytest.mark.parametrize("routing", ["order", "local-first"])
async def test_a_cold_model_is_waited_for_and_no_cloud_gets_the_prompt(routing: str) -> None:
    async with FaultServer("ollama", TEXT, tells=COLD) as one, FaultServer("openai", TEXT) as two:
        cloud = Cloud(base_url=two.base_url, model="fault-model")
        chain = router(provider_for(one), cloud, routing=routing)
        assert (await chain.complete("a private prompt")).provider == "ollama"
        assert two.seen == []


async def test_no_share_of_the_time_is_kept_for_a_farther_provider_while_a_model_loads() -> None:
    async with FaultServer("ollama", TEXT, fault=Fault("hang"), tells=COLD) as one, FaultServer("openai", TEXT) as two:
        chain = router(provider_for(one), Cloud(base_url=two.base_url, model="fault-model"))
        with pytest.raises(errors.DeadlineExceeded):
            await chain.generate("a private prompt", timeout=0.8)
        assert two.seen == []


async def test_warm_first_is_the_operators_word_for_anything_else() -> None:
    async with FaultServer("ollama", TEXT, tells=COLD) as one, FaultServer("openai", TEXT) as two:
        chain = router(provider_for(one), Cloud(base_url=two.base_url, model="fault-model"), routing="warm-first")
        await chain.complete("hi")
        assert (len(one.seen), len(two.seen)) == (0, 1)


async def test_a_loading_server_is_waited_for_and_no_cloud_gets_the_prompt() -> None:
    loading = {"/health": (503, {"error": {"message": "Loading model", "code": 503}}), "/v1/models": (503, {})}
    async with (
        FaultServer("llamacpp", TEXT, fault=Fault("refuse", refusal="loading"), tells=loading) as one,
        FaultServer("openai", TEXT) as two,
    ):
        chain = router(provider_for(one), Cloud(base_url=two.base_url, model="fault-model"))
        asked = asyncio.create_task(chain.complete("a private prompt"))
        await asyncio.sleep(0.7)
        assert not asked.done()
        one.fault = None
        one.tells.update(one.dialect.pages())
        assert (await asked).provider == "llamacpp"
        assert two.seen == []


async def test_a_load_that_outlasts_its_budget_is_a_failure_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_LOAD_TIMEOUT", "1")
    loading = {"/health": (503, {"error": {"message": "Loading model", "code": 503}}), "/v1/models": (503, {})}
    async with (
        FaultServer("llamacpp", TEXT, fault=Fault("refuse", refusal="loading"), tells=loading) as one,
        FaultServer("openai", TEXT) as two,
    ):
        chain = router(provider_for(one), Cloud(base_url=two.base_url, model="fault-model"))
        assert (await chain.complete("hi")).text == TEXT
        assert len(two.seen) == 1


async def test_a_late_first_token_is_checked_on_the_servers_own_page() -> None:
    """Unloaded after five idle minutes, of which nobody was told: it loads, and is waited for."""
    loaded = {"models": [{"name": "fault-model", "context_length": 8192}]}
    async with FaultServer("ollama", TEXT, tells={"/api/ps": loaded}) as one, FaultServer("openai", TEXT) as two:
        cloud = Cloud(base_url=two.base_url, model="fault-model")
        chain = router(provider_for(one, first_token_timeout=0.4), cloud)
        assert (await chain.complete("hi")).provider == "ollama"
        one.fault = Fault("hang")
        one.tells["/api/ps"] = {"models": []}
        asked = asyncio.create_task(chain.complete("a private prompt"))
        await asyncio.sleep(0.7)
        one.fault = None
        one.tells["/api/ps"] = loaded
        async with asyncio.timeout(30):
            assert (await asked).provider == "ollama"
        assert two.seen == []


async def test_a_server_that_says_loading_for_ever_is_not_hammered() -> None:
    async with FaultServer("llamacpp", fault=Fault("refuse", refusal="loading")) as server:
        with pytest.raises(errors.ModelLoading):
            await router(provider_for(server)).generate("hi", timeout=1.5)
        assert len(server.seen) <= 4
