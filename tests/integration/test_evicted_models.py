"""A server that loads models on request: its model is evicted, loaded again, and forwarded, between two requests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support import TEXT, provider_for, router

from learnflow.llm import Capabilities, LLMProvider, errors
from learnflow.llm.providers import CustomProvider
from learnflow.llm.testing import Fault, FaultServer


class LoadingOllama(FaultServer):
    """An Ollama that starts a runner for the first request, and for one with other launch options.

    It stops loading if the client of that request leaves.

    Attributes:
        loaded: set if a load may end.
        error: the error of every load, or None.
        starts: the launch options of each runner that was started.
        aborted: the number of loads that ended because the client left.
    """

    def __init__(self) -> None:
        super().__init__("ollama", TEXT, responses={"/api/ps": {"models": []}, "/api/generate": {"done": True}})
        self.loaded = asyncio.Event()
        self.loaded.set()
        self.error: str | None = None
        self.starts: list[dict[str, Any]] = []
        self.aborted = 0
        self._running: dict[str, Any] | None = None
        self._load: asyncio.Task[None] | None = None

    def evict(self) -> None:
        """Remove the model from memory, and let the next load wait."""
        self._running = None
        self.responses["/api/ps"] = {"models": []}
        self.loaded.clear()

    async def _respond(self, seen: Any, reader: Any, writer: Any) -> bool:
        if seen.method == "POST" and seen.path in ("/api/chat", "/api/generate"):
            options = {"shift": seen.body.get("shift", True), "num_ctx": seen.body.get("options", {}).get("num_ctx")}
            if self._running is None or any(
                value not in (None, self._running[name]) for name, value in options.items()
            ):
                self.starts.append(options)
                leaving = asyncio.create_task(reader.read(1))
                loading = asyncio.create_task(self.loaded.wait())
                await asyncio.wait([leaving, loading], return_when=asyncio.FIRST_COMPLETED)
                if not loading.done():
                    loading.cancel()
                    self.aborted += 1
                    return False
                leaving.cancel()
                if self.error:
                    self.responses["/api/generate"] = self.responses["/api/chat"] = (500, {"error": self.error})
                    return await self._respond_to_page(seen, writer)
                self._running = {"shift": options["shift"], "num_ctx": options["num_ctx"] or 4096}
                running = {"name": "fault-model", "context_length": self._running["num_ctx"]}
                self.responses["/api/ps"] = {"models": [running]}
        return await super()._respond(seen, reader, writer)


class Cloud(CustomProvider):
    """A provider that reports itself as not local."""

    def get_capabilities(self, model: str | None = None) -> Capabilities:
        return {**super().get_capabilities(model), "local": False}


def advance_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + seconds)


@pytest.mark.parametrize("routed", [True, False])
async def test_warm_up_and_first_request_start_one_runner(routed: bool) -> None:
    async with LoadingOllama() as server:
        provider = provider_for(server)
        chain: Any = router(provider) if routed else provider
        await chain.warm_up()
        assert await chain.generate("hi", max_tokens=10) == TEXT
        assert len(server.starts) == 1


@pytest.mark.parametrize("routed", [True, False])
@pytest.mark.parametrize("idle_s", [0.0, 3600.0])
async def test_request_to_evicted_model_waits_for_its_load(
    routed: bool, idle_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request that finds the model evicted is the load: it stays open beyond the first-token timeout."""
    async with LoadingOllama() as server, FaultServer("openai", TEXT) as two:
        provider = provider_for(server, first_token_timeout=0.2)
        chain: LLMProvider = router(provider, Cloud(base_url=two.base_url, model="fault-model")) if routed else provider
        assert await chain.generate("hi") == TEXT
        server.evict()
        advance_clock(monkeypatch, idle_s)
        request = asyncio.create_task(chain.generate("a private prompt"))
        probes = 0
        while len(server.starts) < 2 or probes < 4:  # the first-token timeout was over several times
            await asyncio.sleep(0.01)
            probes = server.pages.count(("GET", "/api/ps")) if not idle_s else probes + 0.1
        server.loaded.set()
        assert await request == TEXT
        assert (len(server.starts), server.aborted, two.seen) == (2, 0, [])


async def test_failed_load_of_evicted_model_moves_on_at_once() -> None:
    async with LoadingOllama() as server, FaultServer("openai", TEXT) as two:
        chain = router(provider_for(server), Cloud(base_url=two.base_url, model="fault-model"))
        await chain.generate("hi")
        server.evict()
        server.error = "model requires more system memory"
        server.loaded.set()
        assert (await chain.complete("hi")).provider == "custom"
        assert len(server.starts) == 2


async def test_deadline_ends_wait_for_load() -> None:
    async with LoadingOllama() as server, FaultServer("openai", TEXT) as two:
        chain = router(provider_for(server), Cloud(base_url=two.base_url, model="fault-model"))
        await chain.generate("hi")
        server.evict()
        with pytest.raises(errors.DeadlineExceeded):
            await chain.generate("a private prompt", timeout=0.5)
        assert two.seen == []


async def test_model_that_becomes_forwarded_gets_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of models is looked at again before a prompt is sent, if it is more than some seconds old."""
    monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
    async with FaultServer("ollama", TEXT) as server:
        provider = provider_for(server)
        assert await provider.generate("hi") == TEXT
        server.responses["/api/tags"] = {"models": [{"name": "fault-model", "remote_host": "https://ollama.com"}]}
        advance_clock(monkeypatch, 10)
        with pytest.raises(errors.NotLocal, match="forwards this model elsewhere"):
            await provider.generate("a private prompt")
        assert len(server.seen) == 1


@pytest.mark.parametrize("routed", [True, False])
async def test_model_forwarded_during_wait_for_slot_gets_no_prompt(
    routed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
    async with FaultServer("ollama", TEXT, fault=Fault("stall", after=1)) as server:
        provider = provider_for(server, max_concurrency=1)
        async with provider.stream("hi") as holder:
            await anext(holder)
            chain: LLMProvider = router(provider) if routed else provider
            probes = len(server.pages)
            request = asyncio.create_task(chain.generate("a private prompt"))
            await asyncio.sleep(0.2)  # it waits for the slot
            server.responses["/api/tags"] = {"models": [{"name": "fault-model", "remote_host": "https://ollama.com"}]}
            advance_clock(monkeypatch, 10)
        with pytest.raises(errors.NotLocal, match="forwards this model elsewhere"):
            await request
        assert len(server.seen) == 1
        assert len(server.pages) > probes


@pytest.mark.parametrize("page", [(500, {"error": "failed"}), b"<html>", {}])
async def test_ollama_without_version_gets_no_prompt_under_local_only(
    page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the server is not recognised, and the marks of forwarded models in its list are not read."""
    monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
    async with FaultServer("ollama", TEXT, responses={"/api/version": page}) as server:
        server.responses["/api/tags"] = {"models": [{"name": "fault-model", "remote_host": "https://ollama.com"}]}
        with pytest.raises(errors.NotLocal, match="does not report whether it forwards"):
            await provider_for(server).generate("a private prompt")
        assert server.seen == []


async def test_answer_that_reports_other_machine_raises_not_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
    line = b'{"model":"fault-model","remote_host":"https://ollama.com","message":{"content":"hi"},"done":false}\n'
    async with FaultServer("ollama", fault=Fault("refuse", body=line, status=200)) as server:
        with pytest.raises(errors.NotLocal, match="forwarded the request to another machine") as caught:
            await provider_for(server).generate("hi")
        assert caught.value.partial == ""


def set_context(server: FaultServer, length: int) -> None:
    """Change the context length that a server reports."""
    model = {"id": "fault-model", "object": "model"}
    pages: dict[str, dict[str, Any]] = {
        "vllm": {"/v1/models": {"data": [model | {"owned_by": "vllm", "max_model_len": length}]}},
        "llamacpp": {
            "/v1/models": {"data": [model | {"owned_by": "llamacpp", "meta": {"n_ctx": length}}]},
            "/props": {"default_generation_settings": {"n_ctx": length}, "build_info": "b1-0c1e570"},
        },
        "ollama": {
            "/api/ps": {"models": [{"name": "fault-model", "context_length": length}]},
            "/api/show": {"model_info": {"llama.context_length": length}, "capabilities": ["completion"]},
        },
    }
    server.responses.update(pages[server.dialect.name])


@pytest.mark.parametrize("dialect", ["ollama", "llamacpp", "vllm"])
async def test_server_restarted_with_longer_context_is_probed_before_refusal(
    dialect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The router does not pass over a server, and the adapter refuses no prompt, because of an old probe."""
    short = FaultServer(dialect, TEXT)
    async with short as server, FaultServer("openai", TEXT) as two:
        set_context(server, 512)
        chain = router(provider_for(server), Cloud(base_url=two.base_url, model="fault-model"))
        alone = provider_for(server)
        if dialect == "ollama":
            with pytest.raises(errors.ContextOverflow):
                await alone.generate("word " * 2000, max_tokens=10)
        assert (await chain.complete("word " * 2000, max_tokens=10)).provider == "custom"
        set_context(server, 32768)
        advance_clock(monkeypatch, 10)
        assert (await chain.complete("word " * 2000, max_tokens=10)).provider == dialect
        assert await alone.generate("word " * 2000, max_tokens=10) == TEXT
