"""Probes: kind, state, models, context length and capabilities of a server, read from its pages.

The pages follow the servers' documentation (2026-11-22). Those of llama.cpp 0c1e570, vLLM 0.32, Ollama 0.33 and 0.24
follow the responses of real servers; ``make live`` probes real ones.
"""

from __future__ import annotations

from typing import Any

import pytest
from support import KINDS

from learnflow.llm import Health
from learnflow.llm.providers import (
    CustomProvider,
    LlamaCppProvider,
    LMStudioProvider,
    OllamaProvider,
    OpenAIProvider,
    OpenRouterProvider,
    VLLMProvider,
)
from learnflow.llm.testing import FaultServer

GONE = (404, {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}})
WRONG = {"error": "Unexpected endpoint or method. (GET /x)"}  # LM Studio's 200 for an unknown route
V1_ROW = {
    "type": "llm",
    "key": "qwen3-4b",
    "format": "gguf",
    "max_context_length": 40960,
    "loaded_instances": [{"id": "qwen3-4b", "config": {"context_length": 4096, "parallel": 4}}],
    "capabilities": {"vision": False, "trained_for_tool_use": True, "reasoning": {"allowed_options": ["on", "off"]}},
}
V0_ROW = {"id": "qwen3-4b", "type": "llm", "state": "loaded", "max_context_length": 40960}
EMBEDDING = {"type": "embedding", "key": "nomic-embed", "loaded_instances": [], "max_context_length": 2048}
SHOW = {
    "parameters": 'num_ctx                        8192\nstop                           "<|im_end|>"',
    "model_info": {"general.architecture": "qwen3", "qwen3.context_length": 40960},
    "capabilities": ["completion", "tools", "thinking"],
}
TAG = {"name": "qwen3:0.6b", "model": "qwen3:0.6b", "details": {"family": "qwen3"}}
NEW_TAG = TAG | {"capabilities": ["completion", "tools", "thinking"], "details": {"context_length": 40960}}
LORA = {"id": "my-lora", "object": "model", "owned_by": "vllm", "parent": "fault-model", "max_model_len": None}
BASE = {"id": "fault-model", "object": "model", "owned_by": "vllm", "parent": None, "max_model_len": 40960}
ROUTED = [
    {"id": "a", "object": "model", "owned_by": "llamacpp", "status": {"value": "loaded"}},
    {"id": "b", "object": "model", "owned_by": "llamacpp", "status": {"value": "unloaded"}},
]


async def look(dialect: str, responses: dict[str, Any], model: str | None = None, **more: Any) -> Health:
    async with FaultServer(dialect, responses=responses, **more) as server:  # type: ignore[arg-type]
        return await KINDS[dialect](base_url=server.base_url, model=model).refresh()


def capabilities_of(health: Health) -> dict[str, Any]:
    """Return some capabilities of a probed model."""
    names = ("vision", "tools", "reasoning", "context", "context_served")
    return {name: health.capabilities[name] for name in names}  # type: ignore[literal-required]


@pytest.mark.parametrize(
    ("responses", "can", "cold"),
    [
        (  # 0.30 and newer: /api/tags reports capabilities
            {"/api/tags": {"models": [NEW_TAG]}, "/api/show": (404, {"error": "?"})},
            {"vision": False, "tools": True, "reasoning": True, "context": 40960, "context_served": None},
            True,
        ),
        (  # before 0.30: only /api/show does
            {"/api/tags": {"models": [TAG]}, "/api/show": SHOW, "/api/version": {"version": "0.24.0"}},
            {"vision": False, "tools": True, "reasoning": True, "context": 40960, "context_served": 8192},
            True,
        ),
        (  # loaded: /api/ps reports the context length
            {
                "/api/tags": {"models": [NEW_TAG]},
                "/api/ps": {"models": [{"name": "qwen3:0.6b", "context_length": 16384}]},
                "/api/show": SHOW,
            },
            {"vision": False, "tools": True, "reasoning": True, "context": 40960, "context_served": 16384},
            False,
        ),
        (  # before 0.6.4: no capabilities anywhere, so they are unknown
            {"/api/tags": {"models": [TAG]}, "/api/show": {"model_info": {}, "parameters": ""}},
            {"vision": None, "tools": None, "reasoning": None, "context": None, "context_served": None},
            True,
        ),
        (  # much older: no /api/ps; whether it is loaded is unknown
            {"/api/tags": {"models": [TAG]}, "/api/ps": (404, b"404 page not found"), "/api/show": (404, b"")},
            {"vision": None, "tools": None, "reasoning": None, "context": None, "context_served": None},
            None,
        ),
    ],
    ids=["tags", "show", "loaded", "silent", "old"],
)
async def test_ollama_capabilities_are_read_from_pages_of_each_version(
    responses: dict[str, Any], can: dict[str, Any], cold: bool | None
) -> None:
    health = await look("ollama", responses)
    assert (health.state, health.server, health.model, health.cold) == ("ready", "Ollama", "qwen3:0.6b", cold)
    assert capabilities_of(health) == can
    assert ("not loaded yet" in health.detail) is (cold is True)


async def test_ollama_name_without_tag_finds_latest() -> None:
    health = await look("ollama", {"/api/tags": {"models": [{"name": "llama3:latest"}]}}, model="llama3")
    assert (health.state, health.model) == ("ready", "llama3:latest")


@pytest.mark.parametrize(
    ("responses", "server", "context", "served", "tools"),
    [
        ({"/api/v1/models": {"models": [V1_ROW, EMBEDDING]}, "/api/v0/models": WRONG}, "LM Studio", 40960, 4096, True),
        (
            {
                "/api/v1/models": WRONG,
                "/api/v0/models": {"data": [V0_ROW | {"loaded_context_length": 8192, "capabilities": ["tool_use"]}]},
            },
            "LM Studio",
            40960,
            8192,
            True,
        ),
        ({"/api/v1/models": WRONG, "/api/v0/models": {"data": [V0_ROW]}}, "LM Studio", 40960, None, None),
        ({"/api/v1/models": WRONG, "/api/v0/models": WRONG}, None, None, None, None),
    ],
    ids=["0.4", "0.3.16", "0.3.6", "before"],
)
async def test_lmstudio_is_recognised_by_each_version_of_its_api(
    responses: dict[str, Any], server: str | None, context: int | None, served: int | None, tools: bool | None
) -> None:
    health = await look("lmstudio", {"/v1/models": {"data": [{"id": "qwen3-4b"}, {"id": "nomic-embed"}]}, **responses})
    assert (health.state, health.server, health.model, health.models) == ("ready", server, "qwen3-4b", ("qwen3-4b",))
    can = health.capabilities
    assert (can["context"], can["context_served"], can["tools"]) == (context, served, tools)


async def test_lmstudio_unloaded_model_is_cold_without_served_context() -> None:
    unloaded = V1_ROW | {"loaded_instances": []}
    health = await look("lmstudio", {"/api/v1/models": {"models": [unloaded]}})
    assert (health.state, health.cold, health.capabilities["context_served"]) == ("ready", True, None)


async def test_lmstudio_without_token_is_unauthorised() -> None:
    refused = {"error": {"type": "invalid_request", "code": "invalid_api_key", "message": "An LM Studio API token …"}}
    for status in (200, 401):  # the status is not documented
        pages = dict.fromkeys(("/v1/models", "/api/v1/models", "/api/v0/models"), (status, refused))
        health = await look("lmstudio", pages)
        assert health.state == "unauthorised"
        assert "LMSTUDIO_API_KEY" in health.detail


async def test_vllm_lora_has_context_of_base_model_and_dead_engine_is_down() -> None:
    health = await look("vllm", {"/v1/models": {"object": "list", "data": [BASE, LORA]}}, model="my-lora")
    assert (health.state, health.server, health.version) == ("ready", "vLLM", "0.32.0")
    assert health.capabilities["context_served"] == 40960  # its base model's
    dead = await look("vllm", {"/health": (503, b"")})
    assert (dead.state, dead.server) == ("down", "vLLM")
    assert "engine is dead" in dead.detail


async def test_llamacpp_serves_one_model_under_any_name_and_reports_loading() -> None:
    props = {
        "default_generation_settings": {"n_ctx": 2048},
        "modalities": {"vision": True, "audio": False},
        "chat_template_caps": {"supports_tools": True},
        "build_info": "b1-0c1e570",
    }
    health = await look("llamacpp", {"/props": props}, model="whatever")
    assert (health.state, health.server, health.version) == ("ready", "llama.cpp", "b1-0c1e570")
    assert health.model == "fault-model"  # any name means its one model
    assert capabilities_of(health) == {
        "vision": True,
        "tools": True,
        "reasoning": None,
        "context": 8192,
        "context_served": 2048,
    }
    loading = (503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}})
    assert (await look("llamacpp", dict.fromkeys(("/health", "/v1/models", "/props"), loading))).state == "loading"


async def test_probe_of_llamacpp_router_loads_no_model() -> None:
    props = {"role": "router", "default_generation_settings": {"n_ctx": 0}}
    async with FaultServer("llamacpp", responses={"/v1/models": {"data": ROUTED}, "/props": props}) as server:
        provider = LlamaCppProvider(base_url=server.base_url)
        health = await provider.refresh()
        assert (health.state, health.model, health.models) == ("ready", "a", ("a", "b"))  # "a" is loaded
        cold = await LlamaCppProvider(base_url=server.base_url, model="b").refresh()
        assert (cold.state, cold.cold) == ("ready", True)
        model_pages = [path for _, path in server.pages if "model=" in path]
        assert model_pages
        assert all("autoload=false" in path for path in model_pages)
        missing = await LlamaCppProvider(base_url=server.base_url, model="c").refresh()
        assert missing.state == "model_missing"


async def test_missing_or_wrong_key_is_unauthorised_with_variable() -> None:
    for dialect in ("openai", "vllm", "llamacpp", "lmstudio", "ollama"):
        async with FaultServer(dialect, key="right") as server:  # type: ignore[arg-type]
            for key in (None, "wrong"):
                health = await KINDS[dialect](base_url=server.base_url, api_key=key).refresh()
                assert health.state == "unauthorised", dialect
                assert "_API_KEY" in health.detail
            assert (await KINDS[dialect](base_url=server.base_url, api_key="right").refresh()).state == "ready"


PAGE = b"<!DOCTYPE html><html><body>Sign in</body></html>"


@pytest.mark.parametrize(
    "responses",
    [
        {"/v1/models": (404, {"detail": "Not Found"}), "/health": {"status": "ok"}},  # a FastAPI app, LearnFlow itself
        {"/v1/models": PAGE, "/health": PAGE, "/version": PAGE, "/props": PAGE, "/": PAGE},  # a site with a login
        {"/v1/models": (403, PAGE)},
        {"/v1/models": b"OK"},
        {"/v1/models": {"hello": "world"}},
        {"/v1/models": (403, b"")},
    ],
    ids=["fastapi", "page", "refused page", "text", "json", "empty 403"],
)
@pytest.mark.parametrize("provider", [VLLMProvider, LlamaCppProvider, LMStudioProvider, CustomProvider])
async def test_other_web_server_is_misconfigured_with_variable(
    provider: type[VLLMProvider], responses: dict[str, Any]
) -> None:
    async with FaultServer("openai", responses=responses) as server:
        health = await provider(base_url=server.base_url).refresh()
        assert (health.state, health.server) == ("misconfigured", None)
        assert provider(base_url="http://x").spec.variable("base_url") in health.detail


async def test_empty_403_of_ollama_hints_at_host_header() -> None:
    health = await look("ollama", dict.fromkeys(("/api/tags", "/api/version", "/api/ps"), (403, b"")))
    assert health.state == "misconfigured"
    assert "Host header" in health.detail


@pytest.mark.parametrize("path", ["/v1/v1", "/foo/v1", "/foo"])
async def test_wrong_path_names_address_variable_and_shape_of_url(path: str) -> None:
    async with FaultServer("vllm") as server:
        provider = VLLMProvider(base_url=server.root + path)
        health = await provider.refresh()
        assert health.state == "misconfigured"
        for needed in ("path (most servers require /v1 at the end)", provider.endpoint.base_url, "VLLM_BASE_URL"):
            assert needed in health.detail


async def test_api_without_v1_in_its_path_is_reached_by_its_full_address() -> None:
    listed = {"/v1/models": (404, b""), "/models": {"data": [{"id": "m"}]}}
    async with FaultServer("openai", responses=listed) as server:
        assert (await CustomProvider(base_url=f"{server.root}/v1").refresh()).state == "misconfigured"
        provider = CustomProvider(base_url=f"{server.root}/chat/completions")
        assert provider.endpoint.base_url == server.root
        assert (await provider.refresh()).state == "ready"
        assert await provider.generate("hi", model="m")


async def test_api_without_model_list_is_ready() -> None:
    responses = {"/v1/models": (404, {"detail": "Not Found"}), "/v1/chat/completions": (405, {"detail": "Method"})}

    class Server(FaultServer):
        async def _respond(self, seen: Any, reader: Any, writer: Any) -> bool:
            if seen.method == "GET":
                return await self._respond_to_page(seen, writer)
            return await super()._respond(seen, reader, writer)

    async with Server("openai", responses=responses) as server:
        provider = CustomProvider(base_url=server.base_url, model="m")
        assert (await provider.refresh()).state == "ready"
        assert await provider.health_check()


async def test_other_kind_of_server_is_named_with_its_settings() -> None:
    async with FaultServer("llamacpp") as server:
        wrong = await OllamaProvider(base_url=server.root).refresh()
        assert wrong.state == "misconfigured"
        assert f"LLM_PROVIDER=llamacpp with LLAMACPP_BASE_URL={server.root}" in wrong.detail
        other = await VLLMProvider(base_url=server.root).refresh()  # the same API
        assert (other.state, other.server) == ("ready", "llama.cpp")
        assert "LLM_PROVIDER=llamacpp" in other.detail
        assert other.capabilities["context_served"] == 8192
    async with FaultServer("ollama", responses={"/v1/models": {"data": [{"id": "m"}]}}) as server:
        hidden = await CustomProvider(base_url=server.root).refresh()
        assert hidden.server == "Ollama"
        assert "OLLAMA_BASE_URL" in hidden.detail


async def test_failed_probe_does_not_change_the_server() -> None:
    async with FaultServer("vllm") as server:
        provider = VLLMProvider(base_url=server.base_url, model="fault-model")
        await provider.models()
        server_before = provider.catalog.server
        assert server_before
    assert (await provider.refresh()).state == "down"
    assert provider.catalog.server is server_before


async def test_missing_model_hint_names_nearest_model() -> None:
    tags = {"models": [{"name": "llama3.1:8b"}, {"name": "Qwen3:0.6b"}, {"name": "gemma4:e2b"}]}
    health = await look("ollama", {"/api/tags": tags}, model="qwen3")
    assert health.state == "model_missing"
    assert "OLLAMA_MODEL or model= to Qwen3:0.6b" in health.detail
    none = await look("ollama", {"/api/tags": {"models": None}})
    assert none.state == "model_missing"


async def test_cloud_states_and_capabilities_follow_from_list_and_price_map() -> None:
    async with FaultServer("openai", responses={"/v1/models": {"data": [{"id": "gpt-4o"}, {"id": "gpt-5"}]}}) as server:
        good = await OpenAIProvider(base_url=server.base_url, api_key="k", model="gpt-4o").refresh()
        assert (good.state, good.model, good.cold) == ("ready", "gpt-4o", None)
        can = good.capabilities
        assert (can["vision"], can["context"], can["context_served"], can["max_output"]) == (
            True,
            128000,
            128000,
            16384,
        )
        assert can["cost"] == pytest.approx((2.5, 10.0))
        missing = await OpenAIProvider(base_url=server.base_url, api_key="k", model="gpt-4oo").refresh()
        assert (missing.state, "gpt-4o" in missing.detail) == ("model_missing", True)
        unnamed = await OpenAIProvider(base_url=server.base_url, api_key="k").refresh()
        assert (unnamed.state, "OPENAI_MODEL" in unnamed.detail) == ("ready", True)
        free = await OpenRouterProvider(base_url=server.base_url, api_key="k", model="x/y:free").refresh()
        assert free.state == "ready"  # the list lacks free models
    models = {"data": [{"id": "x/y", "context_length": 131072}]}
    async with FaultServer("openai", responses={"/v1/models": models}) as server:
        router = OpenRouterProvider(base_url=server.base_url, api_key="k", model="x/y")
        assert (await router.refresh()).capabilities["context_served"] == 131072
    assert (await router.refresh()).state == "down"
    unknown = OpenAIProvider(api_key="k", model="unheard-of").get_capabilities()
    assert (unknown["vision"], unknown["context"], unknown["cost"]) == (None, None, None)  # unknown is not False


async def test_local_server_behind_cloud_variable_is_named_with_its_settings() -> None:
    """Check the hint for LearnFlow's README, which sets OPENAI_BASE_URL to Ollama."""
    async with FaultServer("vllm") as server:
        health = await OpenAIProvider(base_url=server.base_url, api_key="k", model="fault-model").refresh()
        assert health.state == "ready"
        assert f"the server is vLLM. Use LLM_PROVIDER=vllm with VLLM_BASE_URL={server.root}" in health.detail
