"""The calls without async: in a script, inside a running loop, left in the middle."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from support import serving

from learnflow.llm import Finished, ReasoningDelta, TextDelta, errors
from learnflow.llm.sync import Provider, get_provider
from learnflow.llm.testing import Fault, FaultServer

TEXT = "The quick brown fox jumps over the lazy dog."


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """Run a server in its own event loop and thread."""
    made = FaultServer("vllm", TEXT)
    with serving(made):
        yield made


@pytest.fixture
def provider(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> Provider:
    monkeypatch.setenv("LLM_PROVIDER", "vllm")
    monkeypatch.setenv("VLLM_BASE_URL", server.base_url)
    return get_provider()


def test_four_blocking_calls(provider: Provider) -> None:
    assert provider.generate("hi") == TEXT
    assert provider.complete("hi").finish == "stop"
    stream = provider.stream("hi")
    with pytest.raises(errors.InvalidRequest, match="has not ended"):
        stream.completion.text  # noqa: B018
    assert "".join(stream) == stream.completion.text == TEXT
    assert provider.list_models() == ["fault-model"]
    assert provider.health_check()
    assert (provider.name, provider.get_capabilities()["local"]) == ("vllm", True)


async def test_sync_call_works_inside_running_loop(provider: Provider) -> None:
    assert provider.generate("hi") == TEXT
    assert "".join(provider.stream("hi")) == TEXT


def test_break_out_of_sync_stream_frees_server(provider: Provider, server: FaultServer) -> None:
    server.fault = Fault("stall", after=1)
    with provider.stream("hi") as stream:
        assert next(stream)
    for _ in range(200):
        if server.seen[-1].gone.is_set():
            break
        threading.Event().wait(0.01)
    assert server.seen[-1].gone.is_set()
    assert next(stream, None) is None


def test_sync_call_raises_same_error(provider: Provider, server: FaultServer) -> None:
    server.fault = Fault("cut", after=3)
    with pytest.raises(errors.AnswerCut) as cut:
        provider.generate("hi", timeout=2)
    assert TEXT.startswith(cut.value.partial)
    with pytest.raises(errors.InvalidRequest, match="there is no keyword"):
        provider.generate("hi", nonsense=1)  # type: ignore[call-arg]


def test_sync_stream_has_events(provider: Provider, server: FaultServer) -> None:
    server.thinking = "Hm."
    events = list(provider.stream("hi").events())
    assert isinstance(events[0], ReasoningDelta)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == TEXT
    assert isinstance(events[-1], Finished)


def test_closed_stream_ends_its_events(provider: Provider, server: FaultServer) -> None:
    server.fault = Fault("stall", after=2)
    with provider.stream("hi") as stream:
        assert isinstance(next(stream.events()), TextDelta)
    for _ in range(500):
        if server.seen[0].gone.is_set():
            return
        time.sleep(0.01)
    raise AssertionError("the server goes on")
