"""explain() and status() of a router."""

from __future__ import annotations

from typing import Any

import pytest
from support import TEXT, pair, provider_for, request_text, router

from learnflow.llm import RouterProvider, errors, events
from learnflow.llm.cli.explain import verdicts_of
from learnflow.llm.providers import CustomProvider, OpenAIProvider
from learnflow.llm.routing.breaker import BreakerRegistry
from learnflow.llm.testing import Fault, FaultServer, ScriptedProvider


async def test_misconfigured_member_is_reported_and_others_serve(events_seen: list[Any]) -> None:
    async with FaultServer("llamacpp", TEXT) as server:
        chain = RouterProvider(primary="openai", fallback=[provider_for(server)], breakers=BreakerRegistry())
        (unusable,) = events_seen
        assert (type(unusable), unusable.provider) == (events.ProviderUnusable, "openai")
        assert "OPENAI_API_KEY" in unusable.hint
        assert await request_text(chain, "generate") == TEXT
        state = chain.status()[0]
        assert (state["breaker"], "OPENAI_API_KEY" in state["because"]) == ("misconfigured", True)
        assert "OPENAI_API_KEY" in verdicts_of(chain, "hi")[0].reason
    with pytest.raises(errors.KeyMissing, match="OPENAI_API_KEY"):
        RouterProvider(primary="openai")
    with pytest.raises(errors.NotConfigured, match="Did you mean openai"):
        RouterProvider(primary="opnai", fallback=["ollama"])


async def test_explain_shows_routing_by_cost_and_locality() -> None:
    async with FaultServer("openai", TEXT) as cloud, FaultServer("ollama", TEXT) as own:
        openai = OpenAIProvider(base_url=cloud.base_url, api_key="k", model="gpt-4o")
        for routing in ("cost", "local-first"):
            chain = router(openai, provider_for(own), routing=routing)
            assert (await chain.complete("hi")).provider == (
                "ollama" if routing == "cost" else "openai"
            )  # both are local


async def test_explain_sends_nothing() -> None:
    async with pair("vllm", "llamacpp") as (one, two, chain):
        choices = verdicts_of(chain, "hi")
        assert [(choice.provider, choice.serves) for choice in choices] == [("vllm", True), ("llamacpp", False)]
        assert one.pages == two.pages == []


async def test_explain_agrees_with_selection() -> None:
    picture: Any = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}
    ]
    async with FaultServer("openai", TEXT) as server:
        provider = CustomProvider(base_url=server.base_url, model="m")
        (unknown,) = verdicts_of(router(provider), picture)
        assert (unknown.serves, "it is unknown whether" in unknown.reason) == (None, True)
        (known,) = verdicts_of(router(provider), "hi")
        assert known.serves is True
        (lacking,) = verdicts_of(router(ScriptedProvider(TEXT, vision=False)), picture)
        assert (lacking.serves, "although it lacks vision" in lacking.reason) == (None, True)
        monkeyed = CustomProvider(base_url=server.base_url, model="m")
        monkeyed.catalog.overrides = {"vision": False}
        (refused,) = verdicts_of(router(monkeyed), picture)
        assert (refused.serves, refused.reason) == (False, "lacks vision")


async def test_refusals_are_not_failures_of_provider() -> None:
    async with FaultServer("openai", TEXT, fault=Fault("refuse", refusal="request")) as server:
        chain = router(provider_for(server), retries=0)
        with pytest.raises(errors.RequestRefused):
            await chain.generate("hi")
        assert chain.status()[0]["failed"] == 0
        assert chain.status()[0]["recent_failures"] == []
