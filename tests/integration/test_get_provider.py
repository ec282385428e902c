"""``get_provider`` with the keywords of a class, and as a context manager."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from support import TINY_MODEL, serving, store_tiny_model

from learnflow.llm import RouterProvider, errors, get_provider, sync
from learnflow.llm.providers import EmbeddedProvider, OpenAIProvider
from learnflow.llm.providers.registry import SPECS, check_provider_name, spec_of
from learnflow.llm.testing import FaultServer, ScriptedProvider, use_provider
from learnflow.llm.transport import network

LARGE = ("litellm", "httpx", "pydantic", "pydantic_settings", "structlog", "rich", "click", "yaml", "jsonschema")


@pytest.mark.parametrize(
    ("code", "needed"),
    [
        ("from learnflow.llm import get_provider", set()),
        ("import learnflow.llm.factory, learnflow.llm.log, learnflow.llm.events", set()),
        (
            "from learnflow.llm import get_provider; get_provider('ollama')",
            {"httpx", "pydantic", "pydantic_settings", "rich", "click"},  # httpx imports the last two
        ),
    ],
)
def test_import_of_get_provider_imports_no_large_library(code: str, needed: set[str]) -> None:
    code = f"import sys; {code}; print(*set(sys.modules) & set({LARGE}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert set(ran.stdout.split()) <= needed


def test_repr_of_providers_names_their_servers_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    monkeypatch.setenv("OPENAI_HEADERS", "X-Team: secret-header")
    openai = OpenAIProvider(api_key="sk-secret", model="m", headers={"X-Team": "secret-header"})
    router, blocking = get_provider("openai"), sync.get_provider("ollama")
    scripted = ScriptedProvider()
    shown = [repr(one) for one in (openai, router, blocking, scripted, sync.Provider(router), get_provider())]
    assert shown == [
        "OpenAIProvider(base_url='https://api.openai.com/v1', model='m')",
        "RouterProvider(OpenAIProvider(base_url='https://api.openai.com/v1', model=None))",
        "sync.Provider(RouterProvider(OllamaProvider(base_url='http://localhost:11434', model=None)))",
        "ScriptedProvider('scripted')",
        f"sync.Provider({router!r})",
        "RouterProvider(find=…)",
    ]


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *(("ollama", "OLLAMA_CONTEXT"), ("gpu1", "GPU1_CONTEXT"), ("embedded", "EMBEDDED_CONTEXT")),
        *(("llamacpp", "--ctx-size"), ("gpu2", "--max-model-len"), ("openai", "")),
    ],
)
def test_setting_for_a_larger_context_is_that_of_the_kind_of_server(
    name: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU1_KIND", "ollama")
    monkeypatch.setenv("GPU2_KIND", "vllm")
    assert spec_of(name).context_setting == setting


async def test_keywords_are_those_of_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PROVIDER", "ollama")
    monkeypatch.setenv("OPENAI_MODEL", "other")
    async with FaultServer(key="key-0000") as server:
        provider = get_provider(
            "openai",
            model="fault-model",
            base_url=server.base_url,
            api_key="key-0000",
            headers={"X-Team": "red"},
            deadline=60.0,
        )
        assert await provider.generate("hi")
    seen = server.seen[0]
    assert (seen.body["model"], seen.headers["x-team"]) == ("fault-model", "red")
    assert provider.name == "openai"


async def test_keywords_of_the_only_configured_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer("vllm") as server:
        monkeypatch.setenv("LLM_PROVIDER", "vllm")
        await get_provider(base_url=server.base_url, model="m").generate("hi")
    assert server.seen[0].body["model"] == "m"


async def test_deadline_keyword_limits_all_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PATIENCE", "3600")
    provider = get_provider("llamacpp", base_url="http://127.0.0.1:1", model="m", deadline=0.2)
    with pytest.raises(errors.ConnectionFailed):
        await provider.generate("hi")


async def test_endpoint_of_operator_takes_keywords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU1_KIND", "llamacpp")
    async with FaultServer("llamacpp") as server:
        assert await get_provider("gpu1", base_url=server.root, model="m").generate("hi")


@pytest.mark.parametrize(
    ("name", "keywords", "fault"),
    [
        (None, {"model": "m"}, r"get_provider\(\) with model requires one provider.*Name it"),
        ("openai,ollama", {"model": "m", "base_url": "x"}, "with model, base_url requires one provider"),
        ("gpu1+gpu2", {"model": "m"}, "requires one provider"),
        ("ollama", {"modell": "m"}, "there is no keyword modell=.*Did you mean model="),
        ("ollama", {"temprature": 1}, "there is no keyword temprature="),
        ("ollama", {"slots": 1}, "there is no keyword slots="),
        ("ollama", {"deadline": "soon"}, "deadline= must be"),
        ("openai", {"model": "m"}, "openai: there is no key"),
        ("no-such", {"model": "m"}, "unknown provider 'no-such'"),
    ],
)
def test_invalid_keywords_are_named(name: str | None, keywords: dict[str, Any], fault: str) -> None:
    for function in (get_provider, sync.get_provider):
        with pytest.raises(errors.NotConfigured, match=fault):
            function(name, **keywords)


def test_embedded_provider_takes_its_own_keywords(monkeypatch: pytest.MonkeyPatch) -> None:
    store_tiny_model(monkeypatch)
    (provider,) = get_provider("embedded", model=str(TINY_MODEL), slots=3).providers
    assert isinstance(provider, EmbeddedProvider)
    assert provider.facts(None).concurrency_limit == 3


async def test_context_manager_closes_idle_connections() -> None:
    async with FaultServer() as server:
        async with get_provider("custom", base_url=server.base_url, model="m") as provider:
            assert isinstance(provider, RouterProvider)
            await provider.generate("hi")
            assert await _idle(server)
        assert not await _idle(server)
        async with provider.providers[0] as single:  # type: ignore[attr-defined]
            await single.generate("hi")
            assert await _idle(server)
        assert not await _idle(server)


async def _idle(server: FaultServer) -> list[Any]:
    routes = (await network.loop_transports()).by_route.values()
    connections = [connection for one in routes for connection in one._pool.connections]
    return [
        connection for connection in connections if connection.is_idle() and str(connection._origin.port) in server.root
    ]


async def test_context_manager_closes_after_an_error() -> None:
    async with FaultServer() as server:
        with pytest.raises(ValueError, match="of the application"):
            async with get_provider("custom", base_url=server.base_url, model="m") as provider:
                await provider.generate("hi")
                raise ValueError("of the application")
        assert not await _idle(server)


async def test_context_manager_of_overridden_provider() -> None:
    with use_provider(ScriptedProvider(["Hello."])):
        async with get_provider() as provider:
            assert await provider.generate("hi") == "Hello."
    async with ScriptedProvider(["Hello."]) as scripted:
        assert await scripted.generate("hi") == "Hello."


def test_sync_context_manager_takes_keywords_and_closes() -> None:
    server = FaultServer()
    with serving(server):
        with sync.get_provider("custom", base_url=server.base_url, model="m") as provider:
            assert provider.generate("hi")
        from learnflow.llm.background import BACKGROUND  # noqa: PLC0415

        assert not BACKGROUND.run(_idle(server))


@pytest.mark.parametrize("name", ["bedrock", "vertex_ai", "cohere", "sagemaker", "no-such"])
def test_error_for_vendor_with_own_api_names_a_proxy(name: str) -> None:
    with pytest.raises(
        errors.NotConfigured, match=rf"unknown provider '{name}'.*LLM_PROVIDER=litellm_proxy.*Embeddings"
    ):
        get_provider(name)
    check_provider_name("litellm_proxy")
    assert name not in SPECS
