"""A key is sent only to its own host."""

from __future__ import annotations

import pytest
from support import provider_for

from learnflow.llm import errors
from learnflow.llm.providers import (
    AzureProvider,
    CustomProvider,
    LlamaCppProvider,
    OpenAIProvider,
    build,
)
from learnflow.llm.testing import FaultServer
from learnflow.llm.testing.fault_server import closed_port


async def test_hint_to_start_server_names_known_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU1_KIND", "custom")
    for name, hint in (("gpu1", "Start the server at"), ("custom", "Start the server at"), ("vllm", "Start vLLM at")):
        with pytest.raises(errors.ConnectionFailed, match=hint):
            await build(name, base_url=f"http://127.0.0.1:{closed_port()}", model="m").warm_up()


async def sent_key(provider: object, server: FaultServer) -> str | None:
    await provider.generate("hi", model="m")  # type: ignore[attr-defined]
    return server.seen[-1].headers.get("authorization")


async def test_key_is_sent_to_host_of_its_provider_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-0000")
    monkeypatch.setenv("LLAMACPP_API_KEY", "llama-0000")
    async with FaultServer() as server:
        with pytest.raises(errors.NotConfigured, match=r"belongs to api\.openai\.com"):
            OpenAIProvider(base_url=server.root)
        for provider in (CustomProvider(base_url=server.root), LlamaCppProvider(base_url=server.root)):
            assert await sent_key(provider, server) is None
        monkeypatch.setenv("OPENAI_BASE_URL", server.root)
        assert await sent_key(OpenAIProvider(), server) == "Bearer sk-openai-0000"
        assert await sent_key(OpenAIProvider(base_url=server.base_url), server) == "Bearer sk-openai-0000"
        monkeypatch.setenv("LLAMACPP_BASE_URL", server.root)
        assert await sent_key(LlamaCppProvider(), server) == "Bearer llama-0000"
        assert await sent_key(LlamaCppProvider(api_key="given"), server) == "Bearer given"
        assert all("authorization" not in seen.headers for seen in server.seen[:2])


async def test_ollama_gets_no_key_of_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENROUTER_API_KEY", "AZURE_API_KEY"):
        monkeypatch.setenv(name, "sk-secret-0000")
    async with FaultServer("ollama") as server:
        await provider_for(server).generate("hi")
        assert "secret" not in str(server.seen[0].headers)


@pytest.mark.parametrize("kind", [AzureProvider, OpenAIProvider, CustomProvider])
async def test_litellm_sends_no_credentials_of_environment(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "AZURE_OPENAI_AD_TOKEN",
        "AZURE_AD_TOKEN",
        "OPENAI_ORG_ID",
        "OPENAI_ORGANIZATION",
        "OPENAI_PROJECT_ID",
    ):
        monkeypatch.setenv(name, "env-secret-0000")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "x-secret: env-secret-0000")
    async with FaultServer() as server:
        await kind(base_url=server.root, api_key="given-0000", model="d").generate("hi")
        headers = server.seen[0].headers
    assert "env-secret" not in str(headers)
    assert headers.get("api-key", headers.get("authorization")) in ("given-0000", "Bearer given-0000")


@pytest.mark.parametrize("key", ["sk-0000\n", "  sk-0000 "])
async def test_white_space_around_key_is_stripped(key: str) -> None:
    async with FaultServer(key="sk-0000") as server:
        assert await CustomProvider(base_url=server.root, api_key=key, model="m").generate("hi")
