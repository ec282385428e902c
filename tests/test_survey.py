"""Discovery and what the command line shows of it. The usual ports are replaced by free ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from learnflow.llm import LLMProvider, discover, errors, get_provider, settings
from learnflow.llm import discovery as survey
from learnflow.llm.cli.main import main
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.testing import FaultServer
from learnflow.llm.testing.fault_server import closed_port
from learnflow.llm.transport import network

FASTAPI = {"/v1/models": (404, {"detail": "Not Found"}), "/health": {"status": "ok"}}
PAGE = b"<!DOCTYPE html><html><body>Jenkins</body></html>"
JENKINS = dict.fromkeys(("/v1/models", "/props", "/health", "/version", "/api/tags", "/api/version"), PAGE)


@pytest.fixture
def usual(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Where each local server usually is: row -> address; nobody is there until a test says so. No container."""
    places = {
        name: f"http://127.0.0.1:{closed_port()}" for name, spec in SPECS.items() if spec.default_url and spec.local
    }

    class Places(dict[str, Any]):
        def items(self) -> Any:
            return [(name, replace(spec, default_url=places.get(name))) for name, spec in SPECS.items()]

    monkeypatch.setattr(survey, "SPECS", Places(SPECS))
    monkeypatch.setattr(settings, "in_container", lambda: False)
    return places


@contextlib.contextmanager
def black_holes(number: int) -> Iterator[list[str]]:
    """Addresses that never answer a knock: listening sockets whose queue is full."""
    with contextlib.ExitStack() as stack:
        urls = []
        for _ in range(number):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            for _ in range(4):
                knock = stack.enter_context(socket.socket())
                knock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    knock.connect(listener.getsockname())
            urls.append(f"http://127.0.0.1:{listener.getsockname()[1]}")
        time.sleep(0.05)  # until the queues are full
        yield urls


async def test_servers_are_what_they_say_not_where_they_are(usual: dict[str, str]) -> None:
    async with AsyncExitStack() as stack:
        for row, dialect, tells in (
            ("ollama", "vllm", {}),
            ("vllm", "openai", FASTAPI),
            ("llamacpp", "openai", JENKINS),
            ("lmstudio", "openai", {}),
        ):
            usual[row] = (await stack.enter_async_context(FaultServer(dialect, tells=tells))).root  # type: ignore[arg-type]
        found = await discover()
        assert {(one.provider, one.base_url, one.state) for one in found} == {
            ("vllm", f"{usual['ollama']}/v1", "ready"),
            ("custom", f"{usual['lmstudio']}/v1", "ready"),
        }


async def test_configured_addresses_come_before_the_usual_ones(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FaultServer("ollama") as one, FaultServer("ollama", tells={"/api/tags": {"models": None}}) as two:
        usual["ollama"] = one.root
        monkeypatch.setenv("OLLAMA_BASE_URL", two.root)
        found = [(health.base_url, health.state) for health in await discover()]
        assert found == [(one.root, "ready"), (two.root, "model_missing")]  # the ready ones first
        monkeypatch.setenv("OLLAMA_BASE_URL", one.root)
        assert [health.base_url for health in await discover()] == [one.root]  # once


async def test_a_container_looks_at_the_services_and_the_host(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "in_container", lambda: True)

    async def exists(host: str, within: float) -> bool:
        return host in ("ollama", "host.docker.internal")

    monkeypatch.setattr(network, "exists", exists)
    tried = [each.health.base_url for each in await survey.survey()]
    port = usual["ollama"].rpartition(":")[2]
    assert f"http://ollama:{port}" in tried
    assert f"http://host.docker.internal:{port}" in tried
    assert not [url for url in tried if url and "//vllm" in url]  # a name that does not exist here


async def test_nothing_named_means_the_local_server_that_is_ready(usual: dict[str, str]) -> None:
    async with FaultServer("llamacpp") as server, FaultServer("ollama", tells={"/api/tags": {"models": None}}) as empty:
        usual["vllm"], usual["ollama"] = server.root, empty.root
        provider = get_provider()
        assert isinstance(provider, LLMProvider)
        assert (server.pages, provider.get_capabilities()["local"]) == ([], True)  # nobody was asked yet
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
        assert len(server.pages) == looked  # it is looked for once


async def test_nothing_named_and_nothing_there(usual: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    provider = get_provider()
    with pytest.raises(errors.NotConfigured) as caught:
        await provider.generate("hi")
    said = str(caught.value)
    for needed in (usual["ollama"], usual["vllm"], "LLM_PROVIDER=openai", "ollama pull"):
        assert needed in said
    assert "sk-very" not in said
    assert not await provider.health_check()
    async with FaultServer("ollama") as server:
        usual["ollama"] = server.root
        assert await provider.generate("hi")  # it was started meanwhile


async def test_a_cloud_is_never_used_because_its_key_is_set(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FaultServer("openai") as cloud:
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        monkeypatch.setenv("OPENAI_BASE_URL", cloud.root)
        monkeypatch.setenv("OPENAI_MODEL", "fault-model")
        with pytest.raises(errors.NotConfigured):
            await get_provider().generate("hi")
        assert cloud.seen == []


def status(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, Any]], float]:
    started = time.perf_counter()
    code = main(["status", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out), time.perf_counter() - started


def test_ten_unreachable_addresses_take_no_longer_than_one(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with black_holes(10) as urls:
        usual["ollama"] = urls[0]
        *_, one = status(capsys, "--within", "0.5")
        for name, spec in SPECS.items():
            monkeypatch.setenv(spec.env_url[0], urls.pop())
            monkeypatch.setenv(spec.env_key[0], "k")
            usual[name] = urls[0]
        code, found, ten = status(capsys, "--within", "0.5")
    assert len(found) == len(SPECS)
    assert {each["state"] for each in found} == {"down"}
    assert code == 3
    assert ten < one + 2  # one after the other they would take 4.5 seconds more


async def test_a_killed_server_is_down_within_a_second(usual: dict[str, str]) -> None:
    async with FaultServer("vllm") as server:
        usual["vllm"] = server.root
        assert [one.state for one in await discover()] == ["ready"]
    started = time.perf_counter()
    assert await discover() == []
    assert time.perf_counter() - started < 1


KEYS = {"provider", "base_url", "state", "version", "latency_s", "models", "capabilities", "detail"}


def test_status_for_programs_and_its_exit_code(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with served("vllm") as (root, _):
        usual["vllm"] = root
        code, found, _ = status(capsys)
        assert code == 0  # nothing is named, and a local one is ready
        by_row = {each["provider"]: each for each in found}
        assert all(set(each) >= KEYS for each in found)
        assert by_row["vllm"]["state"] == "ready"
        assert by_row["vllm"]["version"] == "0.32.0"
        assert by_row["vllm"]["models"] == ["fault-model"]
        assert by_row["vllm"]["capabilities"]["context_served"] == 8192
        assert by_row["vllm"]["capabilities"]["vision"] is None
        assert by_row["ollama"]["state"] == "down"
        monkeypatch.setenv("LLM_PROVIDER", "ollama")
        assert status(capsys)[0] == 3  # one is ready, but not the one that would be used
        monkeypatch.setenv("LLM_PROVIDERS", "ollama,openai")
        code, found, _ = status(capsys)
        keyless = next(each for each in found if each["provider"] == "openai")
        assert (code, keyless["state"]) == (3, "unauthorised")
        assert "OPENAI_API_KEY" in keyless["detail"]


def test_the_tables_for_people(usual: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with served("ollama", tells={"/api/ps": {"models": []}}) as (root, _):
        usual["ollama"] = root
        assert main(["status"]) == 0
        shown = capsys.readouterr().out
        assert "ready (cold)" in shown
        assert "Ollama 0.33.0" in shown
        assert "Start vLLM at" in shown
        assert main(["models"]) == 0
        shown = capsys.readouterr().out
        assert "fault-model" in shown
        assert "8192" in shown


def test_doctor_explains(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served("ollama") as (root, _):
        usual["ollama"] = root
        (tmp_path / ".env").write_text("OLLAMA_HOST=elsewhere\nOPENAI_API_KEY=sk-very-secret\n", encoding="utf-8")
        monkeypatch.setenv("VLLM_BASE_URL", "http://localhost:1")
        monkeypatch.setenv("HTTPS_PROXY", "http://user:password@proxy:1")
        monkeypatch.setattr(settings, "in_container", lambda: True)
        code = main(["doctor", "--within", "0.5"])
        shown = capsys.readouterr().out
    assert code == 0
    for needed in (
        "This is a container",
        "OLLAMA_HOST (in .env)",
        "OPENAI_API_KEY (in .env)",
        f"ollama at {root}: ready",
        "https_proxy is set",
        "http://localhost:1/v1 is this container itself",
        "LLM_PROVIDER=ollama",
        f"OLLAMA_BASE_URL={root}",
        "OLLAMA_MODEL=fault-model",
    ):
        assert needed in shown
    assert "sk-very" not in shown
    assert "password" not in shown


def test_what_has_no_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("OLLAMA_BASE_URL=http://a\nLLM_PROVIDER=ollama\n", encoding="utf-8")
    (tmp_path / ".env.local").write_text("LLM_PROVIDER=vllm\n", encoding="utf-8")
    monkeypatch.setenv("OLLAMA_HOST", "b")
    found = {(one.name, one.where): one.shadowed for one in settings.variables(SPECS.values())}
    assert found == {
        ("LLM_PROVIDER", ".env"): None,
        ("LLM_PROVIDER", ".env.local"): "LLM_PROVIDER in .env",
        ("OLLAMA_BASE_URL", ".env"): "OLLAMA_HOST in the environment",
        ("OLLAMA_HOST", "the environment"): None,
    }
    assert settings.load().chain == ["ollama"]
    assert settings.load_row(SPECS["ollama"]).base_url == "b"


def test_none_of_them_imports_litellm() -> None:
    for command in ("status", "models", "doctor"):
        code = (
            "import sys; from learnflow.llm.cli.main import main; main(sys.argv[1:]);"
            "sys.exit(99 if 'litellm' in sys.modules else 0)"
        )
        environment = {**os.environ, "LLM_PROVIDER": "custom", "CUSTOM_BASE_URL": f"http://127.0.0.1:{closed_port()}"}
        ran = subprocess.run([sys.executable, "-c", code, command], check=False, capture_output=True, env=environment)
        assert ran.returncode == 0, ran.stderr


@contextlib.contextmanager
def served(dialect: str, **more: Any) -> Iterator[tuple[str, FaultServer]]:
    """A server on a loop of its own, for what runs one itself: its address."""
    with asyncio.Runner() as runner:
        ready, done = threading.Event(), asyncio.Event()
        holder: list[FaultServer] = []

        async def serve() -> None:
            async with FaultServer(dialect, **more) as server:  # type: ignore[arg-type]
                holder.append(server)
                ready.set()
                await done.wait()

        thread = threading.Thread(target=lambda: runner.run(serve()), daemon=True)
        thread.start()
        assert ready.wait(10)
        try:
            yield holder[0].root, holder[0]
        finally:
            runner.get_loop().call_soon_threadsafe(done.set)
            thread.join(10)


async def test_dead_name_servers_keep_nobody_waiting(usual: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up that hangs must not keep the look-ups of others, nor the end of the process."""
    monkeypatch.setattr(settings, "in_container", lambda: True)
    real, hanging = socket.getaddrinfo, threading.Event()

    def slow(host: Any, *more: Any, **named: Any) -> Any:
        if host in ("ollama", "vllm", "llamacpp", "host.docker.internal"):
            hanging.wait(30)
            raise OSError
        return real(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    async with FaultServer("vllm") as server:
        usual["vllm"] = server.root
        started = time.perf_counter()
        assert [one.state for one in await discover()] == ["ready"]
        assert time.perf_counter() - started < 1.5
    hanging.set()


async def test_many_first_calls_look_once(usual: dict[str, str]) -> None:
    async with FaultServer("llamacpp") as server:
        usual["llamacpp"] = server.root
        provider = get_provider()
        answers = await asyncio.gather(*(provider.generate("hi") for _ in range(40)))
        assert set(answers) == {"The quick brown fox jumps over the lazy dog."}
        assert len([path for _, path in server.pages if path == "/props"]) <= 2


async def test_a_found_server_that_goes_is_looked_for_again(usual: dict[str, str]) -> None:
    provider = get_provider()
    async with FaultServer("llamacpp") as one:
        usual["llamacpp"] = one.root
        assert await provider.generate("hi")
    with pytest.raises(errors.ConnectionFailed):
        await provider.generate("hi", timeout=0.5)
    async with FaultServer("vllm") as two:
        usual["vllm"] = two.root
        assert (await provider.complete("hi")).provider == "vllm"


async def test_nothing_is_asked_of_a_cloud_and_no_key_goes_to_strangers(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FaultServer("openai") as cloud, FaultServer("openai") as stranger:
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        monkeypatch.setenv("OPENAI_BASE_URL", cloud.root)
        monkeypatch.setenv("CUSTOM_API_KEY", "sk-of-another-server")
        keys: list[str | None] = []
        real = stranger._answer

        async def answer(seen: Any, reader: Any, writer: Any) -> bool:
            keys.append(seen.headers.get("authorization"))
            return await real(seen, reader, writer)

        stranger._answer = answer  # type: ignore[method-assign]
        usual["llamacpp"] = stranger.root
        assert await get_provider().generate("hi")
        assert cloud.pages == []
        assert keys
        assert set(keys) <= {None, "Bearer no-key"}


async def test_a_model_that_leaves_the_machine_is_only_used_when_named(usual: dict[str, str]) -> None:
    tags = {"models": [{"name": "qwen3:0.6b"}, {"name": "gpt-oss:120b-cloud", "remote_host": "https://ollama.com"}]}
    async with FaultServer("ollama", tells={"/api/tags": tags}) as server:
        usual["ollama"] = server.root
        await get_provider().generate("my notes")
        assert [seen.body["model"] for seen in server.seen] == ["qwen3:0.6b"]


@pytest.mark.parametrize(
    "tells",
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
async def test_odd_pages_are_no_server_and_no_crash(usual: dict[str, str], tells: dict[str, Any]) -> None:
    async with FaultServer("openai", tells=tells) as server:
        usual["vllm"] = usual["llamacpp"] = usual["ollama"] = server.root
        assert [one for one in await discover() if one.ready or one.server] == []


def test_one_bad_variable_does_not_silence_the_others(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_CAPABILITIES", "bogus")
    with served("ollama") as (root, _):
        usual["ollama"] = root
        code, found, _ = status(capsys)
        states = {each["provider"]: each["state"] for each in found}
        assert (code, states["vllm"], states["ollama"]) == (0, "misconfigured", "ready")
        monkeypatch.setenv("LLM_CONNECT_TIMEOUT", "0")
        assert main(["doctor"]) == 3
        shown = capsys.readouterr()
        assert "LLM_CONNECT_TIMEOUT (in the environment)" in shown.out
        assert "LLM_CONNECT_TIMEOUT" in shown.err


async def test_what_answers_and_is_no_model_server_is_mentioned(usual: dict[str, str]) -> None:
    locked = (401, {"error": {"code": "invalid_api_key", "message": "An LM Studio API token is required"}})
    pages = dict.fromkeys(("/v1/models", "/api/v1/models", "/api/v0/models"), locked)
    async with FaultServer("openai", tells=FASTAPI) as app, FaultServer("lmstudio", tells=pages) as studio:
        usual["vllm"], usual["lmstudio"] = app.root, studio.root
        states = {each.health.provider: each.health.state for each in await survey.survey()}
        assert (states["vllm"], states["lmstudio"]) == ("misconfigured", "unauthorised")
        with pytest.raises(errors.NotConfigured, match=f"vllm at {app.root}/v1: misconfigured"):
            await get_provider().generate("hi")
