"""Every wait of a request ends at the caller's deadline, and a provider's own deadline limits each attempt at it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support import TEXT, IdleClockLoop, provider_for, router

from learnflow.llm import LLMProvider, errors
from learnflow.llm.providers import LlamaCppProvider, LMStudioProvider, OllamaProvider
from learnflow.llm.testing import Fault, FaultServer

LOADING = (503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}})


@asynccontextmanager
async def silent_server() -> AsyncIterator[str]:
    """Run a server that accepts connections and sends nothing. Yield its address."""

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def never_probed(url: str, server: FaultServer) -> LLMProvider:
    server.fault = Fault("hang")
    return router(
        OllamaProvider(url, "m"), LMStudioProvider(url, "m"), LlamaCppProvider(url, "m"), provider_for(server)
    )


async def server_stops_responding(url: str, server: FaultServer) -> LLMProvider:
    """The first server answered before; then its pages and its chat hang."""
    moving = OllamaProvider(server.base_url, "fault-model")
    chain = router(moving, LlamaCppProvider(url, "m"))
    assert await chain.generate("hi") == TEXT
    server.fault = Fault("hang")
    return chain


async def open_breaker(url: str, server: FaultServer) -> LLMProvider:
    """The circuit breaker of the only provider is open, and its probe hangs."""
    chain = router(LlamaCppProvider(url, "m"))
    with pytest.raises(errors.LLMError):
        await chain.generate("hi", timeout=300)
    return chain


async def loading(url: str, server: FaultServer) -> LLMProvider:
    server.fault = Fault("refuse", refusal="loading")
    server.responses.update(dict.fromkeys(("/health", "/v1/models", "/props"), LOADING))
    return router(provider_for(server), LlamaCppProvider(url, "m"))


@pytest.mark.parametrize("timeout", [0.05, 0.3, 2.0])
@pytest.mark.parametrize("prepare", [never_probed, server_stops_responding, open_breaker, loading])
def test_request_ends_at_timeout(prepare: Callable[[str, Any], Awaitable[LLMProvider]], timeout: float) -> None:
    async def run() -> float:
        dialect: Any = "llamacpp" if prepare is loading else "ollama"
        async with silent_server() as url, FaultServer(dialect, TEXT) as server:
            provider = await prepare(url, server)
            began = asyncio.get_running_loop().time()
            with pytest.raises(errors.LLMError):
                await provider.generate("hi", timeout=timeout)
            return asyncio.get_running_loop().time() - began

    with asyncio.Runner(loop_factory=IdleClockLoop) as runner:
        assert runner.run(run()) <= timeout + 0.05


@pytest.mark.parametrize("nested", [False, True])
def test_deadline_of_provider_limits_attempt_in_router(nested: bool) -> None:
    """The router goes on with the next provider; a timeout of the call limits all attempts together."""

    async def run() -> float:
        async with FaultServer("vllm", TEXT, fault=Fault("drip", seconds=1)) as one, FaultServer("vllm", TEXT) as two:
            began = asyncio.get_running_loop().time()
            slow = router(provider_for(one), deadline=5) if nested else provider_for(one, deadline=5)
            chain = router(slow, provider_for(two))
            completion = await chain.complete("hi", timeout=100)
            assert two.seen
            assert completion.text
            return asyncio.get_running_loop().time() - began

    with asyncio.Runner(loop_factory=IdleClockLoop) as runner:
        assert 5 <= runner.run(run()) < 10
