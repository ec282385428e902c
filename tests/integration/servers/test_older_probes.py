"""Models that an earlier probe found, and pages that fail later: a router sends them to a server that has ended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support import TEXT, IdleClockLoop, provider_for

from learnflow.llm import errors
from learnflow.llm.servers.model_catalog import MAX_AGE_S
from learnflow.llm.testing import FaultServer

REFUSED = {"error": {"message": "error sending request for url (http://10.0.0.5:8000/v1/models)"}}


@pytest.mark.parametrize("status", [500, 502, 503, 429])
@pytest.mark.parametrize("dialect", ["llamacpp", "vllm", "openai"])
def test_request_is_sent_although_model_list_fails_later(dialect: str, status: int) -> None:
    loop = IdleClockLoop()

    async def main() -> None:
        async with FaultServer(dialect, TEXT) as server:  # type: ignore[arg-type]
            provider = type(provider_for(server))(base_url=server.base_url)  # no model is configured
            assert await provider.generate("hi") == TEXT
            loop.now += 2 * MAX_AGE_S
            server.responses |= dict.fromkeys(server.responses, (status, REFUSED))
            assert await provider.generate("hi") == TEXT

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())


@pytest.mark.parametrize(
    ("responses", "error"),
    [
        ({"/v1/models": (401, {"error": "Unauthorized"})}, errors.AuthenticationFailed),
        ({"/v1/models": {"data": []}}, errors.ModelNotFound),
        ({"/health": (503, b"")}, errors.ServerFailed),  # the server's own report
    ],
)
def test_report_of_server_about_itself_is_believed(responses: dict[str, Any], error: type[errors.LLMError]) -> None:
    loop = IdleClockLoop()

    async def main() -> int:
        async with FaultServer("vllm", TEXT) as server:
            provider = type(provider_for(server))(base_url=server.base_url)
            await provider.generate("hi")
            loop.now += 2 * MAX_AGE_S
            server.responses |= responses
            with pytest.raises(error):
                await provider.generate("hi")
            return len(server.seen)

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        assert runner.run(main()) == 1


@pytest.mark.parametrize("dialect", ["llamacpp", "vllm"])
async def test_first_probe_that_fails_is_the_error(dialect: str) -> None:
    """A header that names llama.cpp does not mean that the server has no model."""
    async with FaultServer(dialect, TEXT, responses={"/v1/models": (500, REFUSED)}) as server:  # type: ignore[arg-type]
        provider = type(provider_for(server))(base_url=server.base_url)
        with pytest.raises(errors.ServerFailed, match="error sending request"):
            await provider.generate("hi")


async def test_router_with_unhealthy_server_is_ready() -> None:
    page = (503, b'Unhealthy servers: ["http://10.0.0.6:8000"]')
    async with FaultServer("vllm", TEXT, responses={"/health": page}) as server:
        provider = type(provider_for(server))(base_url=server.base_url)
        assert (await provider.refresh()).ready
        assert await provider.generate("hi") == TEXT
