"""Endpoints with any name: their variables, and the kinds that they report."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from support import TEXT, request_text

from learnflow.llm import RouterProvider, errors, events, get_provider
from learnflow.llm.cli.main import main
from learnflow.llm.providers import build
from learnflow.llm.routing.breaker import BreakerRegistry
from learnflow.llm.testing import Fault, FaultServer, closed_port, recording, replaying


def named(monkeypatch: pytest.MonkeyPatch, name: str, server: FaultServer, **more: str) -> None:
    prefix = name.upper().replace("-", "_")
    monkeypatch.setenv(f"{prefix}_BASE_URL", server.root)
    monkeypatch.setenv(f"{prefix}_MODEL", "fault-model")
    for variable, value in more.items():
        monkeypatch.setenv(f"{prefix}_{variable}", value)


async def test_endpoint_uses_dialect_of_its_kind(monkeypatch: pytest.MonkeyPatch, events_seen: list[Any]) -> None:
    """An Ollama as a plain API would drop the start of long prompts, so that its own API is used."""
    async with FaultServer("ollama", TEXT) as one, FaultServer("vllm", TEXT) as two:
        named(monkeypatch, "gpu-1", one, KIND="ollama", CAPABILITIES="no-vision", CONTEXT="8192")
        named(monkeypatch, "gpu2", two, KIND="vLLM")
        for name, server, path in (("gpu-1", one, "/api/chat"), ("gpu2", two, "/v1/chat/completions")):
            provider = build(name)
            for how in ("generate", "stream", "complete"):
                assert await request_text(provider, how) == TEXT
            assert {request.path for request in server.seen} == {path}
            done = await provider.complete("hi")
            assert (done.provider, provider.name, provider.facts(None).supports_prefill) == (name, name, True)
            assert (await provider.refresh()).provider == name
        assert build("gpu-1").get_capabilities()["vision"] is False
        answered = [event.provider for event in events_seen if isinstance(event, events.AttemptSucceeded)]
        assert set(answered) == {"gpu-1", "gpu2"}


NOT_SET = (
    "gpu1: GPU1_KIND is not set. Set it to the kind of server (ollama, vllm, llamacpp, lmstudio, embedded, custom or "
    "any provider's name); `learnflow-llm status -p gpu1` probes the server."
)


async def test_endpoint_without_kind_is_refused_before_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer("vllm", TEXT) as server:
        named(monkeypatch, "gpu1", server, KIND="")
        monkeypatch.setenv("LLM_PROVIDER", "gpu1")
        makers: list[Callable[[], Any]] = [get_provider, partial(build, "gpu1"), partial(build, "gpu1", server.root)]
        for make in makers:
            with pytest.raises(errors.NotConfigured) as caught:
                make()
            assert str(caught.value) == NOT_SET
        assert not server.seen
        assert not server.pages


async def test_server_of_other_kind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer("vllm", TEXT) as server:
        named(monkeypatch, "gpu1", server, KIND="ollama")
        with pytest.raises(errors.Misconfigured, match="Set GPU1_KIND=vllm"):
            await build("gpu1").list_models()


@pytest.mark.parametrize(("dialect", "kind"), [("ollama", "ollama"), ("llamacpp", "llamacpp"), ("openai", "custom")])
@pytest.mark.usefixtures("usual")
async def test_status_and_doctor_show_kind_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dialect: Any, kind: str
) -> None:
    async with FaultServer(dialect, TEXT) as server:
        monkeypatch.setenv("GPU1_BASE_URL", server.root)
        assert await asyncio.to_thread(main, ["status", "-p", "gpu1", "--timeout", "60"]) == 3
        shown = capsys.readouterr().out
        assert re.search(r"gpu1 +misconfigured", shown)
        assert f"Set GPU1_KIND={kind}" in shown
        assert await asyncio.to_thread(main, ["doctor", "-p", "gpu1", "--timeout", "60"]) == 3
        shown = capsys.readouterr().out
        assert "GPU1_BASE_URL (in the environment)" in shown
        assert f"  GPU1_KIND={kind}\n" in shown[shown.index("Lines for .env") :]
        assert not server.seen
        monkeypatch.setenv("GPU1_KIND", kind)
        assert await asyncio.to_thread(main, ["status", "-p", "gpu1", "--timeout", "60"]) == 0


@pytest.mark.usefixtures("usual")
async def test_status_of_endpoint_without_kind_that_is_down(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPU1_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    assert await asyncio.to_thread(main, ["status", "-p", "gpu1", "--timeout", "60"]) == 3
    shown = capsys.readouterr().out
    assert "GPU1_KIND is not set" in shown
    assert "GPU1_BASE_URL" in shown


async def test_plain_api_works_as_custom_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer("openai", TEXT) as server:
        named(monkeypatch, "box", server, KIND="custom", API_KEY="key-of-the-box")
        assert await build("box").generate("hi") == TEXT
        assert server.seen[0].headers["authorization"] == "Bearer key-of-the-box"


async def test_endpoints_fail_over_and_continue_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer("vllm", TEXT, fault=Fault("cut", after=5)) as one, FaultServer("llamacpp", TEXT) as two:
        named(monkeypatch, "gpu1", one, KIND="vllm")
        named(monkeypatch, "gpu2", two, KIND="llamacpp")
        monkeypatch.setenv("LLM_PROVIDERS", "gpu1,gpu2")
        chain = get_provider()
        done = await chain.complete("hi")
        assert (done.text, done.provider, done.resumed) == (TEXT, "gpu2", 1)
        assert "continue_final_message" in two.seen[0].body  # exactly, as llama.cpp can
        assert [state["provider"] for state in chain.status()] == ["gpu1", "gpu2"]


async def test_endpoints_of_one_kind_share_no_breaker(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer("vllm", TEXT, fault=Fault("refuse", refusal="failed")) as one, FaultServer("vllm") as two:
        named(monkeypatch, "gpu1", one, KIND="vllm")
        named(monkeypatch, "gpu2", two, KIND="vllm")
        chain = RouterProvider("gpu1", ["gpu2"], breakers=BreakerRegistry())
        await chain.generate("hi")
        assert [state["breaker"] for state in chain.status()] == ["open", "closed"]


async def test_endpoints_of_one_kind_have_separate_recordings(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    async with FaultServer("vllm", ["one"]) as one, FaultServer("vllm", ["two"]) as two:
        named(monkeypatch, "gpu1", one, KIND="vllm")
        named(monkeypatch, "gpu2", two, KIND="vllm")
        with recording(tmp_path):
            assert [await build(name).generate("hi") for name in ("gpu1", "gpu2")] == ["one", "two"]
    with replaying(tmp_path):
        assert [await build(name).generate("hi") for name in ("gpu1", "gpu2")] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu1", "GPU1_BASE_URL, and GPU1_KIND"),
        ("olama", r"Did you mean ollama\?"),
        ("my gpu", "starting with a letter"),
        ("1gpu", "starting with a letter"),
        ("", "invalid provider name"),
    ],
)
def test_name_without_variables_is_error_with_their_names(name: str, message: str) -> None:
    with pytest.raises(errors.NotConfigured, match=message):
        RouterProvider(name)


def test_invalid_kind_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU1_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("GPU1_KIND", "vlm")
    with pytest.raises(errors.NotConfigured, match=r"GPU1_KIND is not a kind of server.*vllm"):
        build("gpu1")


def test_key_of_endpoint_is_sent_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU1_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("GPU1_KIND", "vllm")
    monkeypatch.setenv("GPU1_API_KEY", "key-of-gpu1")
    monkeypatch.setenv("VLLM_API_KEY", "key-of-vllm")
    assert build("gpu1").endpoint.key == "key-of-gpu1"
    assert build("gpu1", base_url="http://127.0.0.1:8").endpoint.key is None
    monkeypatch.delenv("GPU1_API_KEY")
    assert build("gpu1").endpoint.key is None


async def test_command_line_accepts_endpoint_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], usual: dict[str, str]
) -> None:
    async with FaultServer("vllm", TEXT) as server:
        named(monkeypatch, "gpu1", server, KIND="vllm")
        monkeypatch.setenv("LLM_PROVIDER", "gpu1")
        assert await asyncio.to_thread(main, ["status"]) == 0
        assert "gpu1" in capsys.readouterr().out
        assert await asyncio.to_thread(main, ["ask", "--provider", "gpu1", "hi"]) == 0
        assert capsys.readouterr().out.strip() == TEXT
        assert await asyncio.to_thread(main, ["doctor"]) == 0
        assert "GPU1_BASE_URL (in the environment)" in capsys.readouterr().out


async def test_invalid_variable_of_endpoint_does_not_affect_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer("vllm", TEXT) as server:
        named(monkeypatch, "gpu2", server, KIND="vllm")
        for variable, value in (("GPU1_CONTEXT", "abc"), ("GPU1_KIND", "vlm")):
            monkeypatch.setenv("GPU1_BASE_URL", "http://127.0.0.1:9")
            monkeypatch.setenv(variable, value)
            monkeypatch.setenv("LLM_PROVIDERS", "gpu1,gpu2")
            assert await get_provider().generate("hi") == TEXT
            monkeypatch.delenv(variable)


async def test_endpoints_at_one_address_share_no_breaker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two accounts at one gateway: a refused key opens the breaker of its endpoint only."""
    async with FaultServer("vllm", TEXT, key="right") as server:
        named(monkeypatch, "acct1", server, KIND="vllm", API_KEY="wrong")
        named(monkeypatch, "acct2", server, KIND="vllm", API_KEY="right")
        chain = RouterProvider("acct1", ["acct2"], breakers=BreakerRegistry())
        assert [await chain.generate("hi") for _ in range(3)] == [TEXT] * 3
        assert [state["breaker"] for state in chain.status()] == ["open", "closed"]


async def test_cassettes_need_no_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    async with FaultServer("vllm", TEXT) as server:
        named(monkeypatch, "gpu1", server, KIND="vllm")
        with recording(tmp_path):
            assert await build("gpu1").generate("hi") == TEXT
    monkeypatch.delenv("GPU1_BASE_URL")
    monkeypatch.setenv("LLM_REPLAY", str(tmp_path))
    monkeypatch.setenv("LLM_PROVIDER", "gpu1")
    assert await get_provider().generate("hi") == TEXT


async def test_provider_made_in_replay_stays_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    async with FaultServer("vllm", TEXT) as server:
        named(monkeypatch, "gpu1", server, KIND="vllm")
        with recording(tmp_path):
            await build("gpu1").generate("hi")
        count = len(server.seen)
        with replaying(tmp_path):
            provider = build("gpu1")
        assert await provider.generate("hi") == TEXT
        assert len(server.seen) == count


async def test_endpoint_that_is_down_emits_events(monkeypatch: pytest.MonkeyPatch, events_seen: list[Any]) -> None:
    monkeypatch.setenv("GPU1_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("GPU1_KIND", "custom")
    with pytest.raises(errors.ConnectionFailed):
        await build("gpu1", model="m").generate("hi")
    kinds = [type(event) for event in events_seen]
    assert [kind for kind in kinds if kind is not events.HealthChecked] == [
        events.RequestStarted,
        events.AttemptStarted,
        events.AttemptFailed,
        events.RequestEnded,
    ]
    assert len({event.request for event in events_seen if hasattr(event, "request")}) == 1
