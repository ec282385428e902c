"""``warm_up``: a model is loaded by the server's own request, within LLM_LOAD_TIMEOUT."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from learnflow.llm import errors
from learnflow.llm.cli.main import main
from learnflow.llm.providers import LlamaCppProvider, LMStudioProvider, OllamaProvider, VLLMProvider
from learnflow.llm.testing import Fault, FaultServer

COLD = {"/api/ps": {"models": []}, "/api/generate": {"done": True, "done_reason": "load"}}
UNLOADED = {"type": "llm", "key": "m", "loaded_instances": [], "max_context_length": 40960}
LOADING = (503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}})


class Loader(FaultServer):
    """A server that records the requests that load a model, and takes ``seconds`` for each."""

    loads: list[Any]
    seconds: float = 0.0

    async def _respond_to_page(self, seen: Any, writer: Any) -> bool:
        if seen.method == "POST" and not seen.path.endswith("/show"):
            self.loads = [*getattr(self, "loads", []), (seen.path, seen.body)]
            await asyncio.sleep(self.seconds)
        return await super()._respond_to_page(seen, writer)


async def test_ollama_loads_model_with_context_length_of_later_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Loader("ollama", responses=COLD) as server:
        await OllamaProvider(base_url=server.base_url).warm_up(keep_alive="30m")
        assert server.loads == [("/api/generate", {"model": "fault-model", "keep_alive": "30m", "shift": False})]
        assert server.seen == []
        monkeypatch.setenv("OLLAMA_CONTEXT", "16384")
        provider = OllamaProvider(base_url=server.base_url)
        await provider.warm_up()
        assert server.loads[1] == (
            "/api/generate",
            {"model": "fault-model", "options": {"num_ctx": 16384}, "shift": False},
        )
        await provider.generate("hi", max_tokens=10)
        assert server.seen[0].body["options"]["num_ctx"] == 16384
        server.responses["/api/ps"] = {"models": [{"name": "fault-model", "context_length": 16384}]}
        await OllamaProvider(base_url=server.base_url).warm_up()
        assert len(server.loads) == 2  # it is loaded


async def test_lmstudio_loads_model_by_its_load_route() -> None:
    responses = {"/api/v1/models": {"models": [UNLOADED]}, "/api/v1/models/load": {"status": "loaded"}}
    async with Loader("lmstudio", responses=responses) as server:
        await LMStudioProvider(base_url=server.base_url).warm_up()
        assert server.loads == [("/api/v1/models/load", {"model": "m"})]


async def test_lmstudio_with_keep_alive_loads_by_request_of_one_token() -> None:
    """Its load route rejects ``ttl``, as users of 0.4.25 report."""
    async with FaultServer(
        "lmstudio", responses={"/api/v1/models": {"models": [UNLOADED]}}, fault=Fault("whole")
    ) as server:
        await LMStudioProvider(base_url=server.base_url).warm_up(keep_alive="30m")
        assert {key: server.seen[0].body[key] for key in ("model", "ttl", "max_tokens")} == {
            "model": "m",
            "ttl": 1800,
            "max_tokens": 1,
        }
        for odd in ("soon", "-1", "0", "1e9", "٣"):
            with pytest.raises(errors.InvalidRequest, match="keep_alive"):
                await LMStudioProvider(base_url=server.base_url).warm_up(keep_alive=odd)
    async with FaultServer("vllm") as vllm:
        with pytest.raises(errors.Unsupported, match="keep_alive"):
            await VLLMProvider(base_url=vllm.base_url).warm_up(keep_alive="30m")


async def test_warm_up_waits_for_server_that_loads_by_itself() -> None:
    pages = dict.fromkeys(("/health", "/v1/models", "/props"), LOADING)
    async with FaultServer("llamacpp", responses=pages) as server:
        provider = LlamaCppProvider(base_url=server.base_url)
        waiting = asyncio.create_task(provider.warm_up())
        while not server.pages:
            await asyncio.sleep(0.01)
        assert not waiting.done()
        server.responses.update(server.dialect.pages())
        await waiting
        assert await provider.health_check()


async def test_load_beyond_timeout_raises_model_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_LOAD_TIMEOUT", "0.2")
    async with Loader("ollama", responses=COLD) as server:
        server.seconds = 30
        with pytest.raises(errors.ModelLoading, match=r"not loaded within 0.2 s. Raise LLM_LOAD_TIMEOUT"):
            await OllamaProvider(base_url=server.base_url).warm_up()


async def test_failed_load_raises_reason_of_server() -> None:
    failed = (500, {"error": "model requires more system memory (9.0 GiB) than is available (2.0 GiB)"})
    async with Loader("ollama", responses={**COLD, "/api/generate": failed}) as server:
        with pytest.raises(errors.ServerFailed, match="more system memory"):
            await OllamaProvider(base_url=server.base_url).warm_up()
    with pytest.raises(errors.ConnectionFailed, match="Start Ollama at"):
        await OllamaProvider(base_url="http://127.0.0.1:1").warm_up()
    async with FaultServer("vllm") as vllm:
        with pytest.raises(errors.ModelNotFound, match="VLLM_MODEL or model= to fault-model"):
            await VLLMProvider(base_url=vllm.base_url, model="faultmodel").warm_up()


async def test_missing_model_hint_lists_models_and_pull_command() -> None:
    tags = {"models": [{"name": "llama3:latest"}, {"name": "qwen3:0.6b"}]}
    for name, command in (("qwen3:0.5b", "qwen3:0.5b"), ("qwen3 0.6; rm", "'qwen3 0.6; rm'")):
        async with FaultServer("ollama", responses={"/api/tags": tags}) as server:
            with pytest.raises(errors.ModelNotFound) as caught:
                await OllamaProvider(base_url=server.root, model=name).warm_up()
        assert caught.value.hint == (
            "Set OLLAMA_MODEL or model= to qwen3:0.6b. The server has llama3:latest, qwen3:0.6b. "
            f"Get the model: `ollama pull {command}`"
        )


def test_warm_up_command_without_server_exits_with_3_and_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:1")
    assert main(["warm-up", "-p", "ollama"]) == 3
    assert "Start Ollama" in capsys.readouterr().err
