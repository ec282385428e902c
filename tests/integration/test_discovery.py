"""Discovery recognises servers by their pages. The default ports are replaced by free ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from support import FASTAPI, status

from learnflow.llm import LLMProvider, discover, discovery, errors, get_provider, settings_sources
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.testing import Fault, FaultServer
from learnflow.llm.testing.fault_server import closed_port
from learnflow.llm.transport import network

LONG_S = 30.0  # no server hangs: on a busy machine, the default timeout could pass before a server responds
PAGE = b"<!DOCTYPE html><html><body>Jenkins</body></html>"


JENKINS = dict.fromkeys(("/v1/models", "/props", "/health", "/version", "/api/tags", "/api/version"), PAGE)


async def test_server_kind_is_recognised_by_pages_not_port(usual: dict[str, str]) -> None:
    async with AsyncExitStack() as stack:
        for row, dialect, responses in (
            ("ollama", "vllm", {}),
            ("vllm", "openai", FASTAPI),
            ("llamacpp", "openai", JENKINS),
            ("lmstudio", "openai", {}),
        ):
            usual[row] = (await stack.enter_async_context(FaultServer(dialect, responses=responses))).root  # type: ignore[arg-type]
        healths = await discover(LONG_S)
        assert {(one.provider, one.base_url, one.state) for one in healths} == {
            ("vllm", f"{usual['ollama']}/v1", "ready"),
            ("custom", f"{usual['lmstudio']}/v1", "ready"),
        }


async def test_configured_addresses_come_before_default_ones(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FaultServer("ollama") as one, FaultServer("ollama", responses={"/api/tags": {"models": None}}) as two:
        usual["ollama"] = one.root
        monkeypatch.setenv("OLLAMA_BASE_URL", two.root)
        healths = [(health.base_url, health.state) for health in await discover(LONG_S)]
        assert healths == [(one.root, "ready"), (two.root, "model_missing")]  # ready ones first
        monkeypatch.setenv("OLLAMA_BASE_URL", one.root)
        assert [health.base_url for health in await discover(LONG_S)] == [one.root]  # once


async def test_container_probes_services_and_host(usual: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_sources, "in_container", lambda: True)

    async def resolve(host: str, within: float) -> list[str]:
        if host in ("ollama", "host.docker.internal", "127.0.0.1"):
            return ["127.0.0.1"]
        raise errors.ConnectionFailed("no such name")

    monkeypatch.setattr(network, "resolve", resolve)
    tried = [item.health.base_url for item in await discovery.scan()]
    port = usual["ollama"].rpartition(":")[2]
    assert f"http://ollama:{port}" in tried
    assert f"http://host.docker.internal:{port}" in tried
    assert not [url for url in tried if url and "//vllm" in url]  # this name does not exist here


async def test_ready_local_server_is_used_if_nothing_is_configured(usual: dict[str, str]) -> None:
    async with (
        FaultServer("llamacpp") as server,
        FaultServer("ollama", responses={"/api/tags": {"models": None}}) as empty,
    ):
        usual["vllm"], usual["ollama"] = server.root, empty.root
        provider = get_provider()
        assert isinstance(provider, LLMProvider)
        assert (server.pages, provider.get_capabilities()["local"]) == ([], True)  # nothing was probed yet
        assert await provider.generate("hi") == "The quick brown fox jumps over the lazy dog."
        assert "".join([piece async for piece in provider.stream("hi")]).endswith("dog.")
        async with provider.stream("hi") as answer:
            async for _ in answer:
                pass
        assert answer.completion.provider == "llamacpp"
        assert await provider.health_check()
        assert await provider.list_models() == ["fault-model"]
        looked = len(server.pages)
        await provider.complete("hi")
        assert len(server.pages) == looked  # one discovery


async def test_error_if_nothing_is_configured_and_no_server_answers(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    provider = get_provider()
    with pytest.raises(errors.NotConfigured) as caught:
        await provider.generate("hi")
    message = str(caught.value)
    for needed in (usual["ollama"], usual["vllm"], "LLM_PROVIDER=openai", "ollama pull"):
        assert needed in message
    assert "sk-very" not in message
    assert not await provider.health_check()
    async with FaultServer("ollama") as server:
        usual["ollama"] = server.root
        assert await provider.generate("hi")  # it was started meanwhile


async def test_key_alone_never_selects_cloud(usual: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer("openai") as cloud:
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        monkeypatch.setenv("OPENAI_BASE_URL", cloud.root)
        monkeypatch.setenv("OPENAI_MODEL", "fault-model")
        with pytest.raises(errors.NotConfigured):
            await get_provider().generate("hi")
        assert cloud.seen == []


@contextlib.contextmanager
def silent_servers(count: int) -> Iterator[tuple[list[str], list[int]]]:
    """Run servers that never respond; yield their URLs, and the number of open connections at each connect."""
    loop, open_now, together = asyncio.new_event_loop(), 0, list[int]()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now
        open_now += 1
        together.append(open_now)
        with contextlib.suppress(OSError):
            await reader.read()
        open_now -= 1
        writer.close()

    async def start() -> list[asyncio.Server]:
        return [await asyncio.start_server(silent, "127.0.0.1", 0) for _ in range(count)]

    async def stop() -> None:
        for server in servers:
            server.close()
        await asyncio.gather(*(server.wait_closed() for server in servers))

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    yield [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers], together
    asyncio.run_coroutine_threadsafe(stop(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_silent_servers_are_probed_concurrently(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {name: spec for name, spec in SPECS.items() if not spec.starts_server}
    with silent_servers(len(rows) + 1) as (urls, together):
        for name, spec in rows.items():
            monkeypatch.setenv(spec.variable("base_url"), urls.pop())
            monkeypatch.setenv(spec.variable("api_key"), "k")
            usual[name] = urls[0]
        code, healths = status(capsys, "--all", "--timeout", "0.5")
    assert {item["provider"] for item in healths} == set(rows)
    assert {item["state"] for item in healths} == {"down"}
    assert code == 3
    assert max(together) >= len(rows)  # one after the other there would be few


async def test_killed_server_is_not_discovered(usual: dict[str, str]) -> None:
    async with FaultServer("vllm") as server:
        usual["vllm"] = server.root
        assert [one.state for one in await discover(LONG_S)] == ["ready"]
    assert await discover() == []


async def test_dead_name_server_does_not_delay_discovery(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hanging DNS lookup delays neither other lookups nor the end of the process."""
    monkeypatch.setattr(settings_sources, "in_container", lambda: True)
    real, hanging, ended = socket.getaddrinfo, threading.Event(), list[str]()

    def slow(host: Any, *more: Any, **named: Any) -> Any:
        if host in ("ollama", "vllm", "llamacpp", "host.docker.internal"):
            hanging.wait(30)
            ended.append(host)
            raise OSError
        return real(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    async with FaultServer("vllm") as server:
        usual["vllm"] = server.root
        assert [one.state for one in await discover()] == ["ready"]
        assert ended == []  # discovery ended while the name servers were silent
    hanging.set()


async def test_concurrent_first_calls_discover_once(usual: dict[str, str]) -> None:
    async with FaultServer("llamacpp") as server:
        usual["llamacpp"] = server.root
        provider = get_provider()
        answers = await asyncio.gather(*(provider.generate("hi") for _ in range(40)))
        assert set(answers) == {"The quick brown fox jumps over the lazy dog."}
        assert len([path for _, path in server.pages if path == "/props"]) <= 2


async def test_discovery_runs_again_after_server_is_gone(usual: dict[str, str]) -> None:
    provider = get_provider()
    async with FaultServer("llamacpp") as one:
        usual["llamacpp"] = one.root
        assert await provider.generate("hi")
    with pytest.raises(errors.ConnectionFailed):
        await provider.generate("hi", timeout=0.5)
    async with FaultServer("vllm") as two:
        usual["vllm"] = two.root
        assert (await provider.complete("hi")).provider == "vllm"


async def test_discovery_sends_nothing_to_clouds_and_no_key_to_servers(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FaultServer("openai") as cloud, FaultServer("openai") as stranger:
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        monkeypatch.setenv("OPENAI_BASE_URL", cloud.root)
        monkeypatch.setenv("CUSTOM_API_KEY", "sk-of-another-server")
        keys: list[str | None] = []
        real = stranger._respond

        async def answer(seen: Any, reader: Any, writer: Any) -> bool:
            keys.append(seen.headers.get("authorization"))
            return await real(seen, reader, writer)

        stranger._respond = answer  # type: ignore[method-assign]
        usual["llamacpp"] = stranger.root
        assert await get_provider().generate("hi")
        assert cloud.pages == []
        assert keys
        assert set(keys) <= {None, "Bearer no-key"}


async def test_remote_model_is_used_only_if_named(usual: dict[str, str]) -> None:
    tags = {"models": [{"name": "qwen3:0.6b"}, {"name": "gpt-oss:120b-cloud", "remote_host": "https://ollama.com"}]}
    async with FaultServer("ollama", responses={"/api/tags": tags}) as server:
        usual["ollama"] = server.root
        await get_provider().generate("my notes")
        assert [seen.body["model"] for seen in server.seen] == ["qwen3:0.6b"]


@pytest.mark.parametrize(
    "responses",
    [
        {
            "/version": {"version": "1.4.2"},
            "/v1/models": (401, {"detail": "log in"}),
            "/health": (401, {"detail": "x"}),
        },
        {"/v1/models": {"data": ""}},
        dict.fromkeys(("/v1/models", "/v1/chat/completions", "/v1/no/such/page", "/health"), (405, {"error": "POST"})),
        {"/v1/models": b"[" * 200_000},
        {"/v1/models": {"data": [{"id": "\ud800"}]}, "/version": {"version": 3}, "/props": {"modalities": 7}},
    ],
    ids=["login", "data", "405", "deep", "odd"],
)
async def test_undocumented_pages_are_not_a_server(usual: dict[str, str], responses: dict[str, Any]) -> None:
    async with FaultServer("openai", responses=responses) as server:
        usual["vllm"] = usual["llamacpp"] = usual["ollama"] = server.root
        assert [one for one in await discover() if one.ready or one.server] == []


def models(owner: str, **more: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": "fault-model", "object": "model", "owned_by": owner, **more}]}


LLAMA_SWAP = models("llama-swap", status={"value": "unloaded"}, meta={"llamaswap": {"type": "model", "aliases": ["a"]}})
READINESS = {"status": "healthy", "db": "Not connected"}


async def test_llama_swap_is_discovered(usual: dict[str, str]) -> None:
    async with FaultServer("openai", responses={"/v1/models": LLAMA_SWAP}) as server:
        usual["llamacpp"] = server.root  # they share a port
        healths = await discover(LONG_S)
        assert [(one.provider, one.base_url, one.state) for one in healths] == [
            ("llamaswap", f"{server.root}/v1", "ready")
        ]
        provider = get_provider()
        assert await provider.generate("hi") == "The quick brown fox jumps over the lazy dog."
        assert provider.providers[0].name == "llamaswap"


async def test_server_that_requires_key_is_not_down(usual: dict[str, str]) -> None:
    locked = {"error": {"code": 401, "message": "An authentication key is required", "type": "invalid_request_error"}}
    names = dict.fromkeys(("/v1/models", "/models"), (401, locked))
    async with FaultServer("openai", responses={**names, "/health/readiness": READINESS}) as server:
        usual["llamacpp"] = server.root
        healths = [one.health for one in await discovery.scan() if one.health.base_url == server.root]
        assert [(one.provider, one.server, one.state) for one in healths] == [
            ("litellm_proxy", "LiteLLM's proxy", "unauthorised")
        ]
        assert "LITELLM_PROXY_API_KEY" in healths[0].detail


async def test_litellm_proxy_is_used_only_with_named_model(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy may forward to a cloud: it is used only with a named model, and never under LLM_LOCAL_ONLY."""
    async with FaultServer("openai", responses={"/health/readiness": READINESS, "/models": models("openai")}) as server:
        usual["litellm_proxy"] = server.root
        assert [(one.provider, one.state) for one in await discover(LONG_S)] == [("litellm_proxy", "model_missing")]
        with pytest.raises(errors.NotConfigured, match="no model server is ready"):
            await get_provider().generate("hi")
        monkeypatch.setenv("LLM_PROVIDER", "gate")
        monkeypatch.setenv("GATE_BASE_URL", f"{server.root}/v1")
        monkeypatch.setenv("GATE_KIND", "custom")
        with pytest.raises(errors.ModelNotFound, match="leave this machine"):
            await get_provider().generate("hi")
        monkeypatch.setenv("GATE_MODEL", "fault-model")
        assert await get_provider().generate("hi") == "The quick brown fox jumps over the lazy dog."
        sent = len([one for one in server.seen if one.path.endswith("/chat/completions")])
        monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
        with pytest.raises(errors.NotLocal, match="LiteLLM's proxy"):
            await get_provider().generate("hi")
        assert len([one for one in server.seen if one.path.endswith("/chat/completions")]) == sent


async def test_loading_notice_of_llama_swap_is_not_thinking(monkeypatch: pytest.MonkeyPatch) -> None:
    notices = [{"choices": [{"delta": {"reasoning_content": word}}]} for word in ("llama-swap loading", "...", "Done!")]
    chunks = [
        {"id": "1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": end}]}
        for delta, end in (({"reasoning_content": "hm"}, None), ({"content": "An answer"}, None), ({}, "stop"))
    ]
    body = b"".join(b"data: " + json.dumps(item).encode() + b"\n\n" for item in [*notices, *chunks])
    async with FaultServer("openai", responses={"/v1/models": LLAMA_SWAP}) as server:
        monkeypatch.setenv("GPU1_BASE_URL", server.root)
        monkeypatch.setenv("GPU1_KIND", "custom")
        provider = get_provider("gpu1")
        server.script = [Fault("refuse", status=200, body=body + b"data: [DONE]\n\n")]
        done = await provider.complete("hi")
        assert (done.text, done.reasoning) == ("An answer", "hm")


async def test_peer_of_llama_swap_is_not_local(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = {"id": "far/gpt", "owned_by": "llama-swap", "meta": {"llamaswap": {"type": "peer", "peerID": "far"}}}
    responses = {"/v1/models": {"data": [*LLAMA_SWAP["data"], peer]}}
    async with FaultServer("openai", responses=responses) as server:
        monkeypatch.setenv("GPU1_BASE_URL", server.root)
        monkeypatch.setenv("GPU1_KIND", "custom")
        monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
        assert await get_provider("gpu1").generate("hi")  # the local model is meant
        monkeypatch.setenv("GPU1_MODEL", "far/gpt")
        with pytest.raises(errors.NotLocal):
            await get_provider("gpu1").generate("hi")
