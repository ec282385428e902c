"""Capabilities without a probe: of the spec, the price map, the operator, and the address."""

from __future__ import annotations

import pytest

from learnflow.llm import errors
from learnflow.llm.capabilities import Capabilities
from learnflow.llm.providers import (
    AzureProvider,
    CustomProvider,
    FireworksProvider,
    OllamaProvider,
    OpenAIProvider,
    VLLMProvider,
    build,
)


def test_configured_capabilities_override_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CONTEXT", "32768")
    monkeypatch.setenv("VLLM_CAPABILITIES", "vision, tools,no-json_schema,max_output=4096,cost=0.15/0.6")
    can = VLLMProvider().get_capabilities()
    assert (can["vision"], can["tools"], can["json_schema"], can["reasoning"]) == (True, True, False, None)
    assert (can["context_served"], can["context"], can["max_output"], can["cost"]) == (32768, None, 4096, (0.15, 0.6))


@pytest.mark.parametrize("words", ["visoin", "vision=yes", "no-max_output=3", "cost=1", "cost=a/b", "max_output=0"])
def test_invalid_capabilities_variable_is_named(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_CAPABILITIES", words)
    with pytest.raises(errors.NotConfigured, match="OLLAMA_CAPABILITIES"):
        OllamaProvider()


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:8080", True),
        ("http://127.0.0.1:8080", True),
        ("http://192.168.1.5:8080", True),
        ("http://[fd00::1]:8080", True),
        ("http://ollama:11434", True),
        ("http://host.docker.internal:8080", True),
        ("http://nas.local:8080", True),
        ("https://llm.example.org", False),
        ("http://8.8.8.8:8080", False),
    ],
)
def test_local_capability_follows_from_address(url: str, local: bool) -> None:
    for provider in (CustomProvider(base_url=url), VLLMProvider(base_url=url)):
        assert provider.get_capabilities()["local"] is local
    assert VLLMProvider(base_url=url).get_capabilities()["cost"] == ((0.0, 0.0) if local else None)
    assert OpenAIProvider(base_url=url, api_key="k").get_capabilities()["local"] is local


async def test_public_address_is_refused_under_local_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
    monkeypatch.setenv("FAR_KIND", "ollama")
    for model in (None, "x"):
        with pytest.raises(errors.NotLocal, match=r"8\.8\.8\.8 is not on this machine") as caught:
            await build("far", base_url="http://8.8.8.8:11434", model=model).generate("hi")
        assert "forwards" not in str(caught.value)


def test_cloud_providers_read_capabilities_from_price_map() -> None:
    """Show the values; tests/integration/adapter/test_litellm.py shows that LiteLLM is not imported for them."""
    openai = OpenAIProvider(api_key="k", model="gpt-4o").get_capabilities()
    azure = AzureProvider("https://x.openai.azure.com", "gpt-4o", "k").get_capabilities()
    model = "accounts/fireworks/models/llama-v3p3-70b-instruct"
    fireworks = FireworksProvider(api_key="k", model=model).get_capabilities()
    assert (openai["vision"], openai["context"]) == (True, 128000)
    assert (azure["tools"], azure["cost"]) == (True, (2.5, 10.0))
    assert fireworks["context_served"] == 131072


def test_every_provider_has_all_capabilities_without_probe() -> None:
    clouds = (OpenAIProvider(api_key="k"), AzureProvider("https://x.openai.azure.com", api_key="k"))
    for provider in (*clouds, FireworksProvider(api_key="k"), OllamaProvider(), CustomProvider("http://h")):
        assert set(provider.get_capabilities()) == set(Capabilities.__annotations__)
