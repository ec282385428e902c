"""An embedded server is started once, shared, restarted and stopped."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama import (
    ANSWERS,
    ENDLESS,
    HANG_S,
    MODEL,
    RSA,
    TEXTS,
    LlamaServer,
    answer,
    command_line,
    ended,
    runs,
    server_processes,
    until,
)
from support import router

from learnflow.llm import TextDelta, Waiting, errors, events, get_provider, process
from learnflow.llm.providers import EmbeddedProvider, build, embedded

FIXED = {"temperature": 0, "max_tokens": 400}


@pytest.fixture(autouse=True)
def embedded_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Configure the tiny model. No server runs before the test, and none runs after it was stopped."""
    monkeypatch.setenv("EMBEDDED_MODEL", str(MODEL))
    monkeypatch.setenv("EMBEDDED_THREADS", "1")
    assert server_processes() == []
    yield
    for server in embedded._servers.values():
        server.stop()
    embedded._servers.clear()
    assert server_processes() == []


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the pids of the server processes that the test starts."""
    pids, popen = [], embedded.subprocess.Popen

    def counted(*given: object, **options: object) -> object:
        started = popen(*given, **options)  # type: ignore[call-overload]
        pids.append(started.pid)
        return started

    monkeypatch.setattr(embedded.subprocess, "Popen", counted)
    return pids


async def test_nothing_starts_before_the_first_request(starts: list[int]) -> None:
    provider = EmbeddedProvider()
    assert await provider.health_check()
    health = await provider.refresh()
    assert (health.state, health.cold, health.capabilities["context_served"]) == (
        "ready",
        True,
        8192,
    )  # the limit before the start
    assert await provider.list_models() == ["learnflow-tiny"]
    assert provider.get_capabilities()["local"]
    assert starts == server_processes() == []


@pytest.mark.parametrize("how", ["generate", "complete", "stream", "events"])
async def test_first_request_starts_one_server_and_has_the_known_answer(starts: list[int], how: str) -> None:
    provider = EmbeddedProvider()
    assert await answer(provider, how, RSA) == TEXTS[RSA]
    assert await answer(provider, how, "Say pong") == "pong"
    assert len(starts) == 1
    assert server_processes() == starts


async def test_forty_answers_of_the_embedded_server() -> None:
    provider = EmbeddedProvider()
    done = await asyncio.gather(*(provider.complete(known.prompt, **FIXED) for known in ANSWERS))
    assert [(one.text, one.reasoning) for one in done] == [(known.answer, known.reasoning) for known in ANSWERS]
    assert {(one.provider, str(one.model), one.cost) for one in done} == {("embedded", "learnflow-tiny", 0.0)}


async def test_a_hundred_first_requests_at_once_start_one_server(starts: list[int]) -> None:
    providers = [EmbeddedProvider() for _ in range(10)]
    texts = await asyncio.gather(*(providers[at % 10].generate("Say pong", **FIXED) for at in range(100)))
    assert set(texts) == {"pong"}
    assert len(starts) == 1


async def test_first_request_shows_that_it_waits_for_the_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    slow = tmp_path / "slow.py"  # waits until the test opens the gate, as if a large model loads
    slow.write_text(
        f"import runpy\nopen({str(gate)!r}).read()\nrunpy.run_path({str(embedded._PROGRAM)!r}, run_name='__main__')"
    )
    monkeypatch.setattr(embedded, "_PROGRAM", slow)
    seen: list[object] = []
    async for event in EmbeddedProvider().stream(RSA, **FIXED).events():
        if isinstance(event, Waiting) and not any(isinstance(earlier, Waiting) for earlier in seen):
            gate.write_text("go")
        seen.append(event)
    waits = {(event.reason, event.provider) for event in seen if isinstance(event, Waiting)}
    assert waits == {("load", "embedded")}
    assert "".join(event.text for event in seen if isinstance(event, TextDelta)) == TEXTS[RSA]


async def test_prepare_returns_when_the_server_is_ready(starts: list[int]) -> None:
    provider = EmbeddedProvider()
    await provider.prepare()
    assert server_processes() == starts
    assert (await provider.refresh()).cold is False
    assert await provider.generate("Say pong", **FIXED) == "pong"
    assert len(starts) == 1


async def test_warm_up_starts_the_server(starts: list[int]) -> None:
    provider = EmbeddedProvider()
    await provider.warm_up()
    health = await provider.refresh()
    assert (health.state, health.cold, health.server) == ("ready", False, "embedded llama.cpp")
    assert health.capabilities["context_served"] == 2048
    assert len(starts) == 1


async def test_running_server_reports_slots_and_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDED_SLOTS", "3")
    monkeypatch.setenv("EMBEDDED_CONTEXT", "512")
    provider = EmbeddedProvider()
    await provider.prepare()
    health = await provider.refresh()
    assert health.capabilities["context_served"] == 512
    assert provider.facts(None).concurrency_limit == 3
    with pytest.raises(errors.ContextOverflow) as caught:
        await provider.generate("word " * 1000, **FIXED)
    assert (caught.value.prompt_tokens or 0) > 512
    assert caught.value.context_length == 512


async def test_equal_settings_share_a_server_and_other_settings_do_not(starts: list[int]) -> None:
    one, same, other = EmbeddedProvider(), EmbeddedProvider(), EmbeddedProvider(slots=1)
    for provider in (one, same):
        assert await provider.generate("Say pong", **FIXED) == "pong"
    assert len(starts) == 1
    assert await other.generate("Say pong", **FIXED) == "pong"
    assert len(starts) == 2


@pytest.mark.parametrize("chain", ["one+two", "one,two"])
async def test_two_names_are_two_servers(
    monkeypatch: pytest.MonkeyPatch, starts: list[int], events_seen: list[object], chain: str
) -> None:
    monkeypatch.delenv("EMBEDDED_MODEL")
    for name in ("ONE", "TWO"):
        monkeypatch.setenv(f"{name}_KIND", "embedded")
        monkeypatch.setenv(f"{name}_MODEL", str(MODEL))
        monkeypatch.setenv(f"{name}_SLOTS", "1")
        monkeypatch.setenv(f"{name}_THREADS", "1")  # more threads than cores spin
    monkeypatch.setenv("LLM_PROVIDERS", chain)
    provider = get_provider()
    texts = await asyncio.gather(*(provider.generate(known.prompt, **FIXED) for known in ANSWERS))
    assert texts == [known.answer for known in ANSWERS]
    answered = {event.provider for event in events_seen if isinstance(event, events.AttemptSucceeded)}
    assert answered == ({"one", "two"} if "+" in chain else {"one"})
    assert len(starts) == len(answered)
    await provider.aclose()
    assert server_processes() == []


async def test_killed_server_is_started_again_by_the_next_request(starts: list[int]) -> None:
    provider = EmbeddedProvider()
    assert await provider.generate("Say pong", **FIXED) == "pong"
    os.kill(starts[0], signal.SIGKILL)
    await until(lambda: ended(starts[0]))
    assert await provider.generate(RSA, **FIXED) == TEXTS[RSA]
    assert len(starts) == 2
    assert server_processes() == [starts[1]]


async def test_running_request_of_a_killed_server_raises_with_its_text(starts: list[int]) -> None:
    provider, text = EmbeddedProvider(), ""
    with pytest.raises(errors.LLMError) as caught:
        async for piece in provider.stream("Tell me everything", **ENDLESS):
            text += piece
            if runs(starts[0]):
                os.kill(starts[0], signal.SIGKILL)
    assert isinstance(caught.value, errors.AnswerCut)
    assert caught.value.partial == text
    await until(lambda: ended(starts[0]))
    assert await provider.generate("Say pong", **FIXED) == "pong"
    assert len(starts) == 2


async def test_running_request_of_a_killed_server_is_continued_by_the_next_provider(
    starts: list[int], llama_server: LlamaServer, events_seen: list[object]
) -> None:
    embedded_provider = EmbeddedProvider()
    await embedded_provider.prepare()  # otherwise the warm provider answers while this one loads
    chain, pieces = router(embedded_provider, llama_server.provider()), list[str]()
    async with chain.stream(RSA, **FIXED) as stream:
        async for piece in stream:
            pieces.append(piece)
            if len(pieces) == 1:
                os.kill(starts[0], signal.SIGKILL)
    assert "".join(pieces) == TEXTS[RSA]
    assert stream.completion.text == TEXTS[RSA]


async def test_router_starts_a_killed_server_again(starts: list[int]) -> None:
    chain = router(EmbeddedProvider())
    for number in range(3):
        assert await chain.generate("Say pong", **FIXED) == "pong"
        os.kill(starts[number], signal.SIGKILL)
        await until(lambda number=number: ended(starts[number]))
    assert len(starts) == 3


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Write a truncated GGUF."""
    file = tmp_path / "damaged.gguf"
    file.write_bytes(MODEL.read_bytes()[:50_000])
    return file


async def test_server_that_ends_at_once_is_not_started_in_a_loop(starts: list[int], damaged: Path) -> None:
    provider = EmbeddedProvider(model=str(damaged))
    for _ in range(5):
        with pytest.raises(errors.NotConfigured, match="ended before it was ready") as caught:
            await provider.generate("Say pong", **FIXED)
        assert "EMBEDDED_MODEL" in caught.value.hint
    assert len(starts) == 1
    assert server_processes() == []


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [({"slots": 257}, "n_seq_max must be <= 256"), ({"context": 2**30, "slots": 2}, "value too large")],
)
async def test_value_above_llamacpps_limit_raises_with_its_reason(sizes: dict[str, Any], reason: str) -> None:
    with pytest.raises(errors.NotConfigured, match=reason) as caught:
        await EmbeddedProvider(**sizes).prepare()
    assert "EMBEDDED_SLOTS" in caught.value.hint


@pytest.mark.parametrize("kind", ["ImportError", "OSError"])
async def test_missing_library_of_the_system_is_named_with_its_package(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fault = "libgomp.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "xllamacpp.py").write_text(f"raise {kind}({fault!r})", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(errors.NotConfigured, match=fault) as caught:
        await EmbeddedProvider().prepare()
    assert "apt-get install libgomp1" in caught.value.hint
    assert "EMBEDDED_MODEL" not in caught.value.hint


async def test_file_that_is_not_a_gguf_raises_with_the_variable(tmp_path: Path) -> None:
    file = tmp_path / "text.gguf"
    file.write_text("not a model", encoding="utf-8")
    with pytest.raises(errors.NotConfigured, match="expected 'GGUF'") as caught:
        await EmbeddedProvider(model=str(file)).prepare()
    assert "EMBEDDED_MODEL" in caught.value.hint


async def test_router_fails_over_from_a_server_that_ends_at_once(
    starts: list[int], damaged: Path, llama_server: LlamaServer
) -> None:
    chain = router(EmbeddedProvider(model=str(damaged)), llama_server.provider())
    texts = await asyncio.gather(*(chain.generate("Say pong", **FIXED) for _ in range(20)))
    assert set(texts) == {"pong"}
    assert len(starts) == 1


async def test_failed_start_is_tried_again_after_a_pause(
    monkeypatch: pytest.MonkeyPatch, starts: list[int], damaged: Path
) -> None:
    now = [1000.0]
    monkeypatch.setattr(embedded, "monotonic", lambda: now[0])
    provider = EmbeddedProvider(model=str(damaged))
    for count in (1, 1, 2):
        if count == 2:
            now[0] += embedded._RESTART_PAUSE_S
        with pytest.raises(errors.NotConfigured):
            await provider.generate("Say pong", **FIXED)
        assert len(starts) == count


async def test_health_of_a_failed_server_is_misconfigured_and_starts_nothing(starts: list[int], damaged: Path) -> None:
    provider = EmbeddedProvider(model=str(damaged))
    with pytest.raises(errors.NotConfigured):
        await provider.prepare()
    health = await provider.refresh()
    assert health.state == "misconfigured"
    assert "ended before it was ready" in health.detail
    assert not await provider.health_check()
    assert len(starts) == 1


async def test_last_provider_that_closes_stops_the_server(starts: list[int]) -> None:
    one, two = EmbeddedProvider(), EmbeddedProvider()
    for provider in (one, two):
        await provider.generate("Say pong", **FIXED)
    await one.aclose()
    assert server_processes() == starts
    assert await two.generate("Say pong", **FIXED) == "pong"
    await two.aclose()
    assert server_processes() == []
    assert await one.generate(RSA, **FIXED) == TEXTS[RSA]
    assert len(starts) == 2
    await one.aclose()


async def test_close_during_the_start_leaves_no_server() -> None:
    provider = EmbeddedProvider()
    starting = asyncio.create_task(provider.prepare())
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await provider.aclose()
    await until(lambda: not server_processes())
    assert await provider.generate("Say pong", **FIXED) == "pong"
    await provider.aclose()
    assert server_processes() == []


async def test_cancelled_first_request_does_not_cancel_the_start_of_the_others(starts: list[int]) -> None:
    provider = EmbeddedProvider()
    await provider.generate("Say pong", **FIXED)  # LiteLLM is imported
    await provider.aclose()
    first = asyncio.create_task(provider.generate("Say pong", **FIXED))
    second = asyncio.create_task(provider.generate("Say hello", **FIXED))
    await until(lambda: len(starts) == 2)
    first.cancel()
    assert await second == TEXTS["Say hello"]
    assert len(starts) == 2


def test_two_event_loops_in_turn_use_one_server(starts: list[int]) -> None:
    provider = EmbeddedProvider()
    for _ in range(2):
        assert asyncio.run(provider.generate(RSA, **FIXED)) == TEXTS[RSA]
    assert len(starts) == 1


def test_event_loops_of_several_threads_use_one_server(starts: list[int]) -> None:
    provider, texts, together = EmbeddedProvider(), [], threading.Barrier(4)

    def ask() -> None:
        together.wait(HANG_S)
        texts.append(asyncio.run(provider.generate(RSA, **FIXED)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [TEXTS[RSA]] * 4
    assert len(starts) == 1


async def test_key_is_random_masked_and_on_no_command_line(starts: list[int], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="learnflow.llm")
    provider, other = EmbeddedProvider(), EmbeddedProvider(slots=1)
    await provider.generate("Say pong", **FIXED)
    (key,) = {provider._transport.server.key}  # type: ignore[union-attr]
    assert len(key) > 30
    assert key != other._transport.server.key  # type: ignore[union-attr]
    assert key not in command_line(starts[0])
    assert key.encode() not in Path(f"/proc/{starts[0]}/environ").read_bytes()
    assert key not in caplog.text
    shown = [repr(value) for value in (provider, provider.endpoint, provider._transport, await provider.refresh())]
    assert key not in "".join(shown)


async def test_server_refuses_a_request_without_its_key() -> None:
    provider = EmbeddedProvider()
    await provider.prepare()
    address = await provider._transport.ensure_started()  # type: ignore[union-attr]
    stranger = build("llamacpp", base_url=address, api_key="another")
    with pytest.raises(errors.AuthenticationFailed):
        await stranger.generate("Say pong", **FIXED)
    assert address.startswith("http://127.0.0.1:")


async def test_log_of_the_server_goes_to_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="learnflow.llm")
    await EmbeddedProvider().generate("Say pong", **FIXED)
    await until(lambda: any("llm.embedded_log" in record.getMessage() for record in caplog.records))
    lines = [record for record in caplog.records if "llm.embedded_log" in record.getMessage()]
    assert {record.levelname for record in lines} == {"DEBUG"}


async def test_local_only_permits_the_embedded_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_LOCAL_ONLY", "true")
    assert await EmbeddedProvider().generate("Say pong", **FIXED) == "pong"


async def test_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert await EmbeddedProvider().generate("Say pong", **FIXED) == "pong"


async def test_process_state_counts_the_servers() -> None:
    await EmbeddedProvider().generate("Say pong", **FIXED)
    assert process.state()["embedded servers"] == 1


def test_first_error_of_the_log_explains_a_failed_start() -> None:
    """Later lines only repeat that the model was not loaded."""
    lines = [
        b"0.00.000.560 I srv          init: initializing ...\n",
        b"0.23.382.824 E ggml_aligned_malloc: insufficient memory (attempted to allocate 585937.50 MB)\n",
        b"0.33.400.823 E srv          init: exiting due to model loading error\n",
    ]
    cause: list[str] = []
    embedded._read_log(io.BytesIO(b"".join(lines)), cause)
    error = embedded._start_error(1, "", cause)
    assert "(ggml_aligned_malloc: insufficient memory (attempted to allocate 585937.50 MB))" in str(error)
    assert "EMBEDDED_CONTEXT" in str(error)


async def test_server_that_dies_three_times_is_not_started_again(starts: list[int]) -> None:
    """The server becomes ready and is killed: three starts within half a minute, and an error instead of the fourth."""
    provider = EmbeddedProvider()
    for _ in range(3):
        assert await provider.generate("Say pong", **FIXED) == "pong"
        assert provider.pid
        os.kill(provider.pid, signal.SIGKILL)
        await until(lambda: provider.pid is None)
    with pytest.raises(errors.ConnectionFailed, match="ended 3 times within 30 s"):
        await provider.generate("Say pong", **FIXED)
    assert len(starts) == 3
    assert (await provider.refresh()).state == "down"


async def test_server_outlives_sigterm_of_its_process_group() -> None:
    """systemd sends it to all processes of a unit, but the application may finish its answers."""
    provider = EmbeddedProvider()
    await provider.prepare()
    assert provider.pid
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(provider.pid, number)
    assert await provider.generate("Say pong", **FIXED) == "pong"


async def test_line_that_python_prints_before_the_report_is_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('hello')\nprint('{')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert await EmbeddedProvider().generate("Say pong", **FIXED) == "pong"


async def test_recorded_answers_of_embedded_provider_are_replayed_without_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, starts: list[int]
) -> None:
    monkeypatch.setenv("LLM_REPLAY", str(tmp_path / "cassettes"))
    for mode in ("record", "play"):
        monkeypatch.setenv("LLM_REPLAY_MODE", mode)
        assert await EmbeddedProvider().generate("Say pong", **FIXED) == "pong"  # EMBEDDED_MODEL is a path
        monkeypatch.delenv("EMBEDDED_MODEL")
        store = tmp_path / "models"
        store.mkdir(exist_ok=True)
        (store / "smollm2.gguf").write_bytes(MODEL.read_bytes())
        monkeypatch.setenv("LLM_MODELS_DIR", str(store))
        assert await EmbeddedProvider().generate("Say hello", **FIXED) == TEXTS["Say hello"]
        monkeypatch.setenv("EMBEDDED_MODEL", str(MODEL))
    assert len(starts) == 2


@pytest.mark.parametrize("model", ["~nosuch/x.gguf", f"{'a' * 300}.gguf", "nul\0.gguf"])
def test_invalid_path_raises_with_the_path(model: str) -> None:
    with pytest.raises(errors.NotConfigured, match="does not exist"):
        EmbeddedProvider(model=model)


async def test_server_that_is_closed_often_starts_again() -> None:
    for _ in range(4):
        async with EmbeddedProvider(model=str(MODEL)) as provider:
            assert await answer(provider, "generate", "Say pong") == TEXTS["Say pong"]
