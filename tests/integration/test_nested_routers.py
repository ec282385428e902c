"""Routers nest, and an application's own provider is a full member of a chain."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support import TEXT, Own, dead, provider_for, request_text, router

from learnflow.llm import LLMProvider, RouterProvider, errors, events, settings
from learnflow.llm.providers import CustomProvider, OpenAIProvider
from learnflow.llm.testing import Fault, FaultServer, ScriptedProvider


async def test_router_accepts_routers_and_any_provider() -> None:
    class Scripted:
        """An application's provider that implements only the protocol."""

        name = "scripted"

        async def generate(self, prompt: Any, *a: Any, **k: Any) -> str:
            return "scripted"

        def stream(self, *a: Any, **k: Any) -> Any:
            return dead().stream("hi")

        async def complete(self, *a: Any, **k: Any) -> Any:
            raise errors.ServerFailed("scripted")

        async def list_models(self) -> list[str]:
            return ["mine"]

        async def health_check(self) -> bool:
            return True

        def get_capabilities(self) -> Any:
            return CustomProvider("http://x").get_capabilities()

    async with FaultServer("vllm", TEXT, fault=Fault("cut", after=5)) as one, FaultServer("openai", TEXT) as two:
        inner = router(dead(), provider_for(two))
        chain = router(Scripted(), provider_for(one), inner)  # type: ignore[arg-type]
        for how in ("stream", "generate", "complete"):
            assert await request_text(chain, how) == TEXT
        assert chain.name == "scripted,vllm,llamacpp,custom"
        assert await chain.health_check()
        assert await chain.list_models() == ["mine", "fault-model"]
        assert isinstance(chain, LLMProvider)


async def test_nested_router_is_flattened_and_equals_stay_equals() -> None:
    def own(name: str) -> ScriptedProvider:
        return ScriptedProvider(name=name)

    inner = RouterProvider([own("a"), own("b")], own("c"))
    assert RouterProvider(own("first"), [inner, own("last")]).name == "first,a+b,c,last"
    assert RouterProvider([inner, own("d")], [own("last")]).name == "a+b+d,c,last"
    assert inner.name == "a+b,c"


async def test_own_provider_reads_settings_once(monkeypatch: pytest.MonkeyPatch) -> None:
    chain, loads, load = RouterProvider(ScriptedProvider(["answer"] * 3)), list[int](), settings.load
    monkeypatch.setattr(settings, "load", lambda: (loads.append(1), load())[1])
    for _ in range(3):
        assert await chain.generate("hi") == "answer"
    assert len(loads) <= 1  # reading them takes a millisecond


async def test_own_provider_has_time_limit_and_its_exceptions_are_failures() -> None:
    class Stranger:
        def __init__(self, how: str) -> None:
            self.name = how

        async def complete(self, *a: Any, **k: Any) -> Any:
            if self.name == "hangs":
                await asyncio.sleep(60)
            raise OSError("boom")

        generate = stream = list_models = health_check = complete

        def get_capabilities(self) -> Any:
            return CustomProvider("http://x").get_capabilities()

    async with FaultServer("vllm", TEXT) as two:
        for how in ("hangs", "raises"):
            chain = router(Stranger(how), provider_for(two))  # type: ignore[arg-type]
            assert await chain.generate("hi", timeout=1) == TEXT


async def test_own_provider_continues_and_emits_events(events_seen: list[Any]) -> None:
    async with FaultServer("openai", TEXT, fault=Fault("cut", after=9)) as one:
        own = Own(name="own")
        chain = router(provider_for(one), own)
        async with chain.stream("hi") as answer:
            assert "".join([piece async for piece in answer]) == TEXT
        assert (answer.completion.provider, answer.completion.resumed) == ("own", 1)
        assert [event.provider for event in events_seen if isinstance(event, events.AttemptSucceeded)] == ["own"]
        assert [event.by_instruction for event in events_seen if isinstance(event, events.Resumed)] == [False]


async def test_nested_router_waits_for_cold_model_and_cloud_gets_no_prompt() -> None:
    cold = {"/api/ps": {"models": []}}
    async with FaultServer("ollama", TEXT, responses=cold, fault=Fault("hang")) as one:
        local = provider_for(one)
        await local.refresh()
        cloud = ScriptedProvider(["from afar"] * 3, name="cloud", local=False)
        with pytest.raises(errors.LLMError):
            await router(router(local), cloud).generate("hi", timeout=1.0)
        assert cloud.history == []


async def test_local_only_applies_to_own_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
    cloud = ScriptedProvider(["private"], local=False)
    with pytest.raises(errors.NotLocal):
        await router(cloud).generate("hi")
    assert cloud.history == []


async def test_nested_router_is_one_request_of_outer_router(events_seen: list[Any]) -> None:
    async with FaultServer("openai", TEXT, fault=Fault("cut", after=9)) as one, FaultServer("openai", TEXT) as two:
        for how in ("stream", "generate", "complete"):
            events_seen.clear()
            assert await request_text(router(router(provider_for(one), retries=0), provider_for(two)), how) == TEXT
            kinds = (
                events.RequestStarted,
                events.AttemptStarted,
                events.AttemptSucceeded,
                events.AttemptFailed,
                events.RequestEnded,
            )
            numbers = {event.request for event in events_seen if isinstance(event, kinds)}
            assert len(numbers) == 1, how
            assert (
                len([event for event in events_seen if isinstance(event, (events.RequestStarted, events.RequestEnded))])
                == 2
            )


async def test_request_without_any_server_emits_start_and_end(events_seen: list[Any]) -> None:
    async def find() -> list[Any]:
        raise errors.NotConfigured("nobody is there")

    with pytest.raises(errors.NotConfigured, match="nobody is there"):
        await RouterProvider(find=find).generate("hi")
    began, ended = events_seen
    assert (type(began), type(ended)) == (events.RequestStarted, events.RequestEnded)
    assert (began.provider, ended.request) == ("local", began.request)


async def test_router_with_primary_does_not_replace_it_by_found_providers() -> None:
    async def find() -> list[Any]:
        raise AssertionError("it has a provider")

    chain = RouterProvider(dead(), find=find, retries=0)
    for _ in range(2):
        with pytest.raises(errors.ConnectionFailed):
            await chain.generate("hi", timeout=5)
    assert len(chain.providers) == 1


async def test_nested_router_reports_that_model_is_loading() -> None:
    loading = {"/health": (503, {"error": {"message": "Loading model", "code": 503}}), "/v1/models": (503, {})}
    async with FaultServer("llamacpp", TEXT, responses=loading) as one, FaultServer("openai", TEXT) as two:
        assert (await router(provider_for(one)).refresh()).state == "loading"
        assert (await router(provider_for(one), provider_for(two)).refresh()).state == "ready"


async def test_local_only_permits_nested_router_with_local_member(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
    async with FaultServer("vllm", TEXT) as one:
        cloud = OpenAIProvider(api_key="k", model="m")
        assert await router(router(provider_for(one), cloud), cloud).generate("hi") == TEXT
