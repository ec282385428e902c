"""The router waits for a cold or loading model, and no farther provider gets the prompt."""

from __future__ import annotations

import asyncio

import pytest
from support import TEXT, Own, provider_for, router

from learnflow.llm import Capabilities, errors
from learnflow.llm.providers import CustomProvider
from learnflow.llm.testing import Fault, FaultServer

LOADING = (503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}})


COLD = {"/api/ps": {"models": []}, "/api/generate": {"done": True, "done_reason": "load"}}


class Cloud(CustomProvider):
    """A provider that reports itself as not local."""

    def get_capabilities(self, model: str | None = None) -> Capabilities:
        return {**super().get_capabilities(model), "local": False}


async def test_loading_server_opens_no_breaker() -> None:
    pages = dict.fromkeys(("/health", "/v1/models", "/props"), LOADING)
    async with FaultServer("llamacpp", TEXT, fault=Fault("refuse", refusal="loading"), responses=pages) as one:
        async with FaultServer("vllm", TEXT) as two:
            chain = router(provider_for(one), provider_for(two))
            assert (await chain.complete("hi")).provider == "vllm"  # at once
            assert chain.status()[0]["breaker"] == "closed"
        alone = asyncio.create_task(router(provider_for(one)).complete("hi"))
        await asyncio.sleep(0.3)
        assert not alone.done()
        one.fault = None
        one.responses.update(one.dialect.pages())
        assert (await alone).text == TEXT


async def test_cold_model_loads_while_other_provider_answers() -> None:
    cold = {"/api/ps": {"models": []}, "/api/generate": {"done": True, "done_reason": "load"}}
    async with FaultServer("ollama", TEXT, responses=cold) as one, FaultServer("vllm", TEXT) as two:
        chain = router(provider_for(one), provider_for(two))
        assert (await chain.complete("hi")).provider == "vllm"
        one.responses["/api/ps"] = {"models": [{"name": "fault-model", "context_length": 8192}]}
        while ("POST", "/api/generate") not in one.pages:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert (await chain.complete("hi")).provider == "ollama"


@pytest.mark.parametrize("routing", ["order", "local-first"])
async def test_router_waits_for_cold_model_and_cloud_gets_no_prompt(routing: str) -> None:
    async with FaultServer("ollama", TEXT, responses=COLD) as one, FaultServer("openai", TEXT) as two:
        cloud = Cloud(base_url=two.base_url, model="fault-model")
        chain = router(provider_for(one), cloud, routing=routing)
        assert (await chain.complete("a private prompt")).provider == "ollama"
        assert two.seen == []


async def test_load_shares_no_time_with_farther_provider() -> None:
    async with (
        FaultServer("ollama", TEXT, fault=Fault("hang"), responses=COLD) as one,
        FaultServer("openai", TEXT) as two,
    ):
        chain = router(provider_for(one), Cloud(base_url=two.base_url, model="fault-model"))
        with pytest.raises(errors.DeadlineExceeded):
            await chain.generate("a private prompt", timeout=0.8)
        assert two.seen == []


async def test_warm_first_uses_cloud_while_model_loads() -> None:
    async with FaultServer("ollama", TEXT, responses=COLD) as one, FaultServer("openai", TEXT) as two:
        chain = router(provider_for(one), Cloud(base_url=two.base_url, model="fault-model"), routing="warm-first")
        await chain.complete("hi")
        assert (len(one.seen), len(two.seen)) == (0, 1)


async def test_router_waits_for_loading_server_and_cloud_gets_no_prompt() -> None:
    loading = {"/health": (503, {"error": {"message": "Loading model", "code": 503}}), "/v1/models": (503, {})}
    async with (
        FaultServer("llamacpp", TEXT, fault=Fault("refuse", refusal="loading"), responses=loading) as one,
        FaultServer("openai", TEXT) as two,
    ):
        chain = router(provider_for(one), Cloud(base_url=two.base_url, model="fault-model"))
        request = asyncio.create_task(chain.complete("a private prompt"))
        await asyncio.sleep(0.7)
        assert not request.done()
        one.fault = None
        one.responses.update(one.dialect.pages())
        assert (await request).provider == "llamacpp"
        assert two.seen == []


async def test_load_beyond_load_timeout_is_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_LOAD_TIMEOUT", "1")
    loading = {"/health": (503, {"error": {"message": "Loading model", "code": 503}}), "/v1/models": (503, {})}
    async with (
        FaultServer("llamacpp", TEXT, fault=Fault("refuse", refusal="loading"), responses=loading) as one,
        FaultServer("openai", TEXT) as two,
    ):
        chain = router(provider_for(one), Cloud(base_url=two.base_url, model="fault-model"))
        assert (await chain.complete("hi")).text == TEXT
        assert len(two.seen) == 1


class RaisingLoad(Own):
    """A provider of an application that reports a load, and raises if it is loaded."""

    async def generate(self, *_: object, **__: object) -> str:  # type: ignore[override]
        raise errors.ModelLoading("loading")

    complete = generate  # type: ignore[assignment]

    async def warm_up(self, model: str | None = None) -> None:
        raise RuntimeError("secret")


async def test_load_that_raises_is_failure_of_provider() -> None:
    async with FaultServer("vllm", TEXT) as server:
        with pytest.raises(errors.LLMError) as caught:
            await router(RaisingLoad([]), retries=0).complete("hi", timeout=5)
        assert "secret" not in str(caught.value)
        assert (await router(RaisingLoad([]), provider_for(server)).complete("hi")).provider == "vllm"


async def test_server_that_loads_forever_is_polled_slowly() -> None:
    async with FaultServer("llamacpp", fault=Fault("refuse", refusal="loading")) as server:
        # The deadline may pass during a wait or during an attempt
        with pytest.raises((errors.ModelLoading, errors.DeadlineExceeded)):
            await router(provider_for(server)).generate("hi", timeout=1.5)
        assert len(server.seen) <= 4
