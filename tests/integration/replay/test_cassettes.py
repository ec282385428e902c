"""Recording and replay of cassettes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support import KINDS, provider_for

from learnflow.llm import RouterProvider, errors, get_provider, settings
from learnflow.llm.cli import main as cli
from learnflow.llm.providers import AzureProvider, CustomProvider, LlamaCppProvider, OllamaProvider, build
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.replay import active, cassette
from learnflow.llm.replay.cassette import Interaction, RecordedRequest, RecordedResponse
from learnflow.llm.routing.breaker import BreakerRegistry
from learnflow.llm.testing import Fault, FaultServer, clear_learned_state, closed_port, recording, replaying

REQUEST = RecordedRequest(
    "POST", "http://ollama.example/api/chat", {"authorization": "Bearer key-of-ollama"}, {"model": "m"}
)


@pytest.fixture(autouse=True)
def forget_state() -> None:
    clear_learned_state()


headers = st.dictionaries(st.sampled_from(["content-type", "server"]), st.sampled_from(["text/event-stream", "x"]))
pieces = st.lists(st.binary(max_size=20) | st.text(max_size=20).map(str.encode), max_size=5).map(tuple)


@given(response=st.builds(RecordedResponse, st.just(200), headers, pieces))
def test_dumped_cassette_loads_unchanged(response: RecordedResponse) -> None:
    stream = response.headers.get("content-type") == "text/event-stream"
    _, (loaded,) = cassette.load(cassette.dump({"kind": "authored"}, [Interaction(REQUEST, response)]))
    assert loaded.request == REQUEST
    assert (loaded.response.status, loaded.response.headers) == (200, response.headers)
    if stream:
        assert loaded.response.pieces == response.pieces
    elif not _json(b"".join(response.pieces)):
        assert b"".join(loaded.response.pieces) == b"".join(response.pieces)


def _json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def test_dumped_bodies_are_readable() -> None:
    line = 'data: {"x":"шифр 🔐"}\n\n'.encode()
    stream = RecordedResponse(200, {"content-type": "text/event-stream"}, (line, line[:13], line[13:]))
    page = RecordedResponse(200, {"content-type": "application/json"}, (b'{"models": [{"name": "m"}]}',))
    text = cassette.dump({"kind": "recorded"}, [Interaction(REQUEST, stream), Interaction(REQUEST, page)])
    assert '      - |+\n        data: {"x":"шифр 🔐"}\n' in text
    assert "json:\n        models:\n        - name: m\n" in text
    assert "!!binary" in text  # a piece that ends inside a character


@pytest.mark.parametrize("text", ["", "x: 1", "absent: yes"])
def test_other_yaml_files_are_skipped(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(errors.NotConfigured, match="there is no cassette in"), replaying(tmp_path):
        pass


@pytest.mark.parametrize("text", ["interactions: 3", "interactions: [{}]", "interactions: [", "interactions: \x00"])
def test_invalid_cassette_raises(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(errors.NotConfigured, match=r"a\.yaml: it is not a cassette"), replaying(tmp_path):
        pass


async def _record(tmp_path: Path, dialect: str, **options: object) -> list[str]:
    async with FaultServer(dialect, **options) as server:  # type: ignore[arg-type]
        with recording(tmp_path):
            provider = provider_for(server, api_key="sk-secret-key")
            received = []
            try:
                async with provider.stream("a secret question", temperature=0) as answer:
                    received = [piece async for piece in answer]
            except errors.LLMError as error:
                received.append(type(error).__name__)
    clear_learned_state()
    return received


async def _play(tmp_path: Path, dialect: str) -> list[str]:
    received = []
    with replaying(tmp_path) as player:
        provider = KINDS[dialect](model="fault-model")
        try:
            async with provider.stream("a secret question", temperature=0) as answer:
                received = [piece async for piece in answer]
        except errors.LLMError as error:
            received.append(type(error).__name__)
    assert not player.missing
    assert not player.unplayed
    return received


@pytest.mark.parametrize("dialect", list(KINDS))
@pytest.mark.parametrize(
    "fault",
    [None, Fault("cut"), Fault("drop"), Fault("reset"), Fault("refuse", refusal="key"), Fault("close"), Fault("whole")],
    ids=lambda fault: fault.name if fault else "none",
)
async def test_recorded_stream_is_played(tmp_path: Path, dialect: str, fault: Fault | None) -> None:
    recorded = await _record(tmp_path, dialect, fault=fault, answer=["Ши", "фр", " 🔐", " ends"])
    assert recorded
    assert await _play(tmp_path, dialect) == recorded


@pytest.mark.parametrize("slice_bytes", [1, 7])
async def test_pieces_are_recorded_as_received(tmp_path: Path, slice_bytes: int) -> None:
    received = await _record(tmp_path, "llamacpp", slice_bytes=slice_bytes)
    (file,) = tmp_path.rglob("*chat*.yaml")
    _, (interaction,) = cassette.load(file.read_text(encoding="utf-8"))
    assert max(map(len, interaction.response.pieces)) <= slice_bytes
    assert await _play(tmp_path, "llamacpp") == received


async def test_cassette_contains_no_key_and_no_host(tmp_path: Path) -> None:
    await _record(tmp_path, "ollama", key="sk-secret-key")
    files = list((tmp_path / "ollama").glob("*.yaml"))
    assert len(files) == 5  # version, tags, ps, show, chat
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "secret-key" not in text
        assert "127.0.0.1" not in text
        assert "Bearer key-of-ollama" in text
        assert yaml.safe_load(text)["origin"]["kind"] == "recorded"


async def test_abandoned_stream_is_recorded_to_its_last_piece(tmp_path: Path) -> None:
    async with FaultServer("llamacpp", fault=Fault("stall", after=2)) as server:
        with recording(tmp_path):
            async with provider_for(server).stream("hi") as answer:
                assert [await anext(answer), await anext(answer)] == ["The ", "quick "]
    with replaying(tmp_path):
        provider = LlamaCppProvider(model="fault-model")
        async with provider.stream("hi") as answer:
            assert [await anext(answer), await anext(answer)] == ["The ", "quick "]
        received = []
        with pytest.raises(errors.GapTimeout, match="the client disconnected when") as caught:
            received = [piece async for piece in provider.stream("hi")]
        assert (received, caught.value.partial) == ([], "The quick ")


async def test_connection_failure_is_played(tmp_path: Path) -> None:
    async with FaultServer("llamacpp") as server:
        with recording(tmp_path):
            dead = CustomProvider(base_url=f"http://127.0.0.1:{closed_port()}", model="m")
            recorded = await RouterProvider(dead, [provider_for(server)]).complete("hi")
    clear_learned_state()
    with replaying(tmp_path):
        router = RouterProvider(CustomProvider(model="m"), [LlamaCppProvider(model="fault-model")])
        played = await router.complete("hi")
    assert played.text == recorded.text
    assert (played.provider, played.attempts) == ("llamacpp", 2)


async def test_repeated_request_plays_responses_in_order_then_last_one(tmp_path: Path) -> None:
    async with FaultServer("llamacpp") as server:
        with recording(tmp_path):
            for text in ("one", "two"):
                server.pieces = [text]
                assert await provider_for(server).generate("hi") == text
    with replaying(tmp_path) as player:
        provider = LlamaCppProvider(model="fault-model")
        assert len(player.unplayed) == 1
        assert [await provider.generate("hi") for _ in range(3)] == ["one", "two", "two"]
        assert not player.unplayed


async def test_second_recording_replaces_first(tmp_path: Path) -> None:
    for text in ("old", "new"):
        async with FaultServer("llamacpp", [text]) as server:
            with recording(tmp_path):
                await provider_for(server).generate("hi")
    with replaying(tmp_path) as player:
        assert await LlamaCppProvider(model="fault-model").generate("hi") == "new"
        assert not player.unplayed
    assert not list(tmp_path.rglob("*.part"))


async def test_unrecorded_request_raises_with_nearest_and_without_prompt(tmp_path: Path) -> None:
    await _record(tmp_path, "llamacpp")
    with replaying(tmp_path) as player:
        provider = LlamaCppProvider(model="fault-model")
        with pytest.raises(errors.NotRecorded) as caught:
            await provider.generate("a secret answer", temperature=0.5)
        message = str(caught.value)
        assert "temperature (0 in the cassette, 0.5 in the request)" in message.replace("0.0", "0")
        assert "messages[0].content (from character 9 on)" in message
        assert "v1-chat-completions" in message
        assert "LLM_REPLAY_MODE=record" in message
        assert "secret" not in message.replace("sk-secret", "")
        with pytest.raises(errors.NotRecorded, match=r"the key"):
            await LlamaCppProvider(model="fault-model", api_key="wrong-key").generate(
                "a secret question", temperature=0
            )
        with pytest.raises(errors.NotRecorded, match="no requests of this provider"):
            await CustomProvider(model="m").generate("hi")
        assert len(player.missing) == 3


async def test_unrecorded_request_causes_no_fallback(tmp_path: Path) -> None:
    await _record(tmp_path, "llamacpp")
    with replaying(tmp_path):
        members = [CustomProvider(model="m"), LlamaCppProvider(model="fault-model")]
        router = RouterProvider(members[0], members[1:])
        for call in (router.generate("a secret question", temperature=0), router.list_models()):
            with pytest.raises(errors.NotRecorded):
                await call
        with pytest.raises(errors.NotRecorded):
            await members[0].health_check()
        with pytest.raises(errors.NotRecorded):
            await OllamaProvider(model="m").generate("hi")


async def test_request_with_other_context_length_is_the_same(tmp_path: Path) -> None:
    """Ollama's num_ctx depends on the order of concurrent requests."""
    await _record(tmp_path, "ollama")
    for file in tmp_path.rglob("api-chat*.yaml"):
        file.write_text(file.read_text(encoding="utf-8").replace("num_ctx: 8192", "num_ctx: 4096"), encoding="utf-8")
    assert "".join(await _play(tmp_path, "ollama")).startswith("The quick")


@pytest.mark.parametrize("row", SPECS)
def test_replay_requires_no_key_and_no_address(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text(cassette.dump({}, [Interaction(REQUEST, RecordedResponse(200))]), encoding="utf-8")
    monkeypatch.setenv("LLM_REPLAY", str(tmp_path))
    assert build(row, model="m").endpoint.base_url
    monkeypatch.setenv("LLM_PROVIDER", row)
    assert get_provider().providers


async def test_environment_variables_record_and_play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_REPLAY", "cassettes")
    monkeypatch.setenv("LLM_PROVIDER", "llamacpp")
    monkeypatch.setenv("LLM_REPLAY_MODE", "record")
    async with FaultServer("llamacpp") as server:
        monkeypatch.setenv("LLAMACPP_BASE_URL", server.base_url)
        first = await get_provider().generate("hi")
    monkeypatch.delenv("LLAMACPP_BASE_URL")
    monkeypatch.setenv("LLM_REPLAY_MODE", "play")
    assert await get_provider().generate("hi") == first  # no model is set, so the pages are in cassettes, too
    assert sorted(file.name.partition("-")[0] for file in (tmp_path / "cassettes" / "llamacpp").iterdir())


async def test_discovery_finds_recorded_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer("vllm") as server:
        with recording(tmp_path):
            provider = provider_for(server)
            assert await provider.health_check()
            await provider.generate("hi")
    monkeypatch.setenv("LLM_REPLAY", str(tmp_path))
    assert (await get_provider().complete("hi")).provider == "vllm"


@pytest.mark.parametrize("mode", ["play", "record"])
def test_invalid_folder_raises_at_construction(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.txt").write_text("x", encoding="utf-8")
    monkeypatch.setenv("LLM_REPLAY", str(tmp_path / "file.txt" / "sub") if mode == "record" else str(tmp_path / "none"))
    monkeypatch.setenv("LLM_REPLAY_MODE", mode)
    with pytest.raises(errors.NotConfigured, match="LLM_REPLAY"):
        build("ollama")


async def test_failed_recording_fails_no_request(tmp_path: Path, events_seen: list[object]) -> None:
    folder = tmp_path / "cassettes"
    async with FaultServer("llamacpp") as server:
        with recording(folder):
            provider = provider_for(server)
            folder.rmdir()
            folder.write_text("in the way", encoding="utf-8")
            assert await provider.generate("hi")
    (failed,) = [event for event in events_seen if type(event).__name__ == "RecordingFailed"]
    assert failed.error == "NotADirectoryError"  # type: ignore[attr-defined]


async def test_concurrent_requests_are_recorded_separately(tmp_path: Path) -> None:
    async with FaultServer("llamacpp") as server:
        with recording(tmp_path):
            provider = provider_for(server, max_concurrency=20)
            prompts = [f"question {n % 5}" for n in range(20)]
            await asyncio.gather(*(provider.generate(item) for item in prompts))
    with replaying(tmp_path) as player:
        provider = LlamaCppProvider(model="fault-model")
        answers = await asyncio.gather(*(provider.generate(item) for item in prompts))
        assert len(set(answers)) == 1
        assert not player.unplayed


def test_cassettes_of_folder_are_shared_in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert active.current(settings.load()) is None
    (tmp_path / "a.yaml").write_text(cassette.dump({}, [Interaction(REQUEST, RecordedResponse(200))]), encoding="utf-8")
    monkeypatch.setenv("LLM_REPLAY", str(tmp_path))
    assert active.current(settings.load()) is active.current(settings.load())


async def _both(tmp_path: Path, fault: Fault, **how: float) -> list[errors.LLMError]:
    """Return the error of the recorded request, and that of the played one."""
    caught_errors: list[errors.LLMError] = []
    call = {name: value for name, value in how.items() if name == "timeout"}
    times = {name: value for name, value in how.items() if name != "timeout"}
    async with FaultServer("llamacpp", fault=fault) as server:
        with recording(tmp_path), pytest.raises(errors.LLMError) as caught:
            await provider_for(server, **times).generate("hi", **call)  # type: ignore[arg-type]
        caught_errors.append(caught.value)
    with replaying(tmp_path), pytest.raises(errors.LLMError) as caught:
        await LlamaCppProvider(model="fault-model").generate("hi", **call)  # type: ignore[arg-type]
    return [*caught_errors, caught.value]


LATE = {"date": "Sun, 22 Nov 2026 10:00:00 GMT", "retry-after": "Sun, 22 Nov 2026 10:00:20 GMT"}


@pytest.mark.parametrize(
    ("fault", "how", "kind"),
    [
        (Fault("hang"), {"timeout": 0.3}, errors.DeadlineExceeded),
        (Fault("stall"), {"timeout": 0.3}, errors.DeadlineExceeded),
        (Fault("stall"), {"gap_timeout": 0.3}, errors.GapTimeout),
        (Fault("hang"), {"first_token_timeout": 0.3}, errors.FirstTokenTimeout),
        (Fault("refuse", refusal="rate", status=429, headers=LATE), {}, errors.RateLimited),
        (Fault("redirect"), {}, errors.Misconfigured),
    ],
    ids=["head late", "deadline", "gap", "first token", "wait until", "redirect"],
)
async def test_recorded_failure_is_played_with_same_error(
    tmp_path: Path, fault: Fault, how: dict[str, float], kind: type[errors.LLMError]
) -> None:
    recorded, played = await _both(tmp_path, fault, **how)
    assert type(recorded) is type(played) is kind
    assert (recorded.status, recorded.retry_after, recorded.partial) == (
        played.status,
        played.retry_after,
        played.partial,
    )


async def test_key_and_address_in_response_are_replaced(tmp_path: Path) -> None:
    async with FaultServer("llamacpp") as server:
        message = f"you came to {server.root} with Bearer sk-secret-key"
        server.fault = Fault("refuse", status=401, body=json.dumps({"error": {"message": message}}).encode())
        with recording(tmp_path), pytest.raises(errors.AuthenticationFailed):
            await provider_for(server, api_key="sk-secret-key").generate("hi")
    (file,) = tmp_path.rglob("*.yaml")
    text = file.read_text(encoding="utf-8")
    assert "you came to http://llamacpp.example with Bearer key-of-llamacpp" in text
    assert "sk-secret" not in text


async def test_host_without_dot_is_not_replaced_in_answer(tmp_path: Path) -> None:
    async with FaultServer("llamacpp", ["An", " answer", " of", " localhost", "."]) as server:
        with recording(tmp_path):
            base = server.base_url.replace("127.0.0.1", "localhost")
            recorded = await LlamaCppProvider(base_url=base, model="fault-model").generate("hi")
    with replaying(tmp_path):
        assert await LlamaCppProvider(model="fault-model").generate("hi") == recorded == "An answer of localhost."


async def test_tool_call_ids_are_recorded_unchanged(tmp_path: Path) -> None:
    call = {"index": 0, "id": "chatcmpl-tool-1f", "function": {"name": "f", "arguments": '{"timeout_ms": 500}'}}
    page = {"choices": [{"index": 0, "message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}], "created": 7}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    async with FaultServer("vllm", fault=Fault("refuse", status=200, body=json.dumps(page).encode())) as server:
        with recording(tmp_path):
            recorded = await provider_for(server).complete("hi", tools=[tool])
    with replaying(tmp_path):
        played = await KINDS["vllm"](model="fault-model").complete("hi", tools=[tool])
    assert recorded.tool_calls == played.tool_calls
    assert (played.tool_calls[0].id, played.tool_calls[0].arguments) == ("chatcmpl-tool-1f", {"timeout_ms": 500})


@pytest.mark.parametrize("prompt", ["\u2028\x85", "yes", "1:30", "2026-11-22", "🔐\r\n", "\x07"])
async def test_special_characters_are_played_unchanged(tmp_path: Path, prompt: str) -> None:
    async with FaultServer("llamacpp", [prompt.encode("utf-8", "ignore").decode() + "."]) as server:
        with recording(tmp_path):
            recorded = await provider_for(server).generate(prompt)
    with replaying(tmp_path):
        assert await LlamaCppProvider(model="fault-model").generate(prompt) == recorded


async def test_responses_are_played_in_order_of_requests(tmp_path: Path) -> None:
    async with (
        FaultServer("llamacpp", [f"{n}" for n in range(40)], slice_bytes=1) as slow,
        FaultServer("vllm") as quick,
    ):
        with recording(tmp_path):
            provider = provider_for(slow)
            first = asyncio.ensure_future(provider.generate("hi"))
            while not slow.seen:
                await asyncio.sleep(0)
            slow.slice_bytes, slow.pieces = None, ["second"]
            assert await provider.generate("hi") == "second"
            long = await first
            assert await provider_for(quick).generate("hi")
    with replaying(tmp_path):
        provider = LlamaCppProvider(model="fault-model")
        assert [await provider.generate("hi"), await provider.generate("hi")] == [long, "second"]


async def test_replay_does_not_depend_on_breaker_timing(tmp_path: Path) -> None:
    """In a slow replay the breaker would allow a second attempt that was not recorded."""
    async with FaultServer("vllm") as server:
        with recording(tmp_path):
            dead = CustomProvider(base_url=f"http://127.0.0.1:{closed_port()}", model="m")
            router = RouterProvider(dead, [provider_for(server)])
            recorded = [await router.complete(text) for text in ("one", "two")]
    clear_learned_state()
    registry = BreakerRegistry()
    with replaying(tmp_path) as player:
        members = [CustomProvider(model="m"), KINDS["vllm"](model="fault-model")]
        router = RouterProvider(members[0], members[1:], breakers=registry)
        first = await router.complete("one")
        registry.clock = lambda: 1e9
        second = await router.complete("two")
        assert [first.text, second.text] == [item.text for item in recorded]
        assert [first.attempts, second.attempts] == [item.attempts for item in recorded] == [2, 1]
        assert not player.missing
        assert not player.unplayed


async def test_router_methods_raise_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await _record(tmp_path, "llamacpp")
    monkeypatch.setenv("LLM_REPLAY", str(tmp_path))
    for call in (get_provider("ollama").warm_up(), get_provider().health_check(), get_provider().list_models()):
        with pytest.raises(errors.NotRecorded):
            await call


@pytest.mark.usefixtures("usual")
async def test_discovery_plays_what_it_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Discovery also probes the default address, which has no server."""
    monkeypatch.setenv("LLM_REPLAY", str(tmp_path))
    monkeypatch.setenv("LLM_REPLAY_MODE", "record")
    async with FaultServer("ollama") as server:
        monkeypatch.setenv("OLLAMA_BASE_URL", server.base_url)
        recorded = await get_provider().generate("hi")
    monkeypatch.delenv("OLLAMA_BASE_URL")
    monkeypatch.setenv("LLM_REPLAY_MODE", "play")
    clear_learned_state()
    assert await get_provider().generate("hi") == recorded


@pytest.mark.parametrize("url", ["/v2", "/chat/completions", ""])
async def test_custom_path_is_read_from_cassette(tmp_path: Path, url: str) -> None:
    async with FaultServer("openai") as server:
        with recording(tmp_path):
            recorded = await CustomProvider(base_url=server.root + url, model="m").generate("hi")
    with replaying(tmp_path):
        assert await CustomProvider(model="m").generate("hi") == recorded


@pytest.mark.parametrize("url", ["/openai/v1", ""])
async def test_azure_api_is_read_from_cassette(tmp_path: Path, url: str) -> None:
    async with FaultServer("openai") as server:
        with recording(tmp_path):
            recorded = await AzureProvider(base_url=server.root + url, model="m", api_key="k").generate("hi")
    with replaying(tmp_path):
        provider = AzureProvider(model="m")
        assert await provider.generate("hi") == recorded
        assert not provider.get_capabilities()["local"]


async def test_missing_key_matches_any_key_but_wrong_one(tmp_path: Path) -> None:
    await _record(tmp_path, "vllm")
    async with FaultServer("llamacpp") as server:
        with recording(tmp_path):
            await LlamaCppProvider(base_url=server.base_url, model="fault-model").generate("hi")
    with replaying(tmp_path):
        assert await LlamaCppProvider(model="fault-model", api_key="some-key").generate("hi")
        assert await KINDS["vllm"](model="fault-model").generate("a secret question", temperature=0)
        with pytest.raises(errors.NotRecorded, match="the key"):
            await LlamaCppProvider(model="fault-model", api_key="wrong-key").generate("hi")


def test_recording_without_folder_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_REPLAY_MODE", "record")
    with pytest.raises(errors.NotConfigured, match="LLM_REPLAY names no folder"):
        build("ollama")


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LLM_REPLAY", "~/cassettes")
    monkeypatch.setenv("LLM_REPLAY_MODE", "record")
    build("ollama")
    assert (tmp_path / "cassettes").is_dir()


async def test_repeated_page_has_one_file_per_response(tmp_path: Path) -> None:
    async with FaultServer("llamacpp") as server:
        with recording(tmp_path):
            provider = provider_for(server)
            for _ in range(12):
                assert await provider.health_check()
    sizes = {len(file.read_text(encoding="utf-8")) for file in tmp_path.rglob("health*.yaml")}
    assert len(sizes) == 1  # one interaction a file
    with replaying(tmp_path) as player:
        assert await LlamaCppProvider(model="fault-model").health_check()
        assert any("11 left" in item for item in player.unplayed)


async def test_command_line_reports_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with FaultServer("llamacpp") as server:
        with recording(tmp_path):
            await provider_for(server).health_check()
    monkeypatch.setenv("LLM_REPLAY", str(tmp_path))
    for command in ("status", "doctor"):
        assert await asyncio.to_thread(cli.main, [command]) == 0
        shown = capsys.readouterr()
        assert "LLM_REPLAY is set" in shown.err
        assert "fault-model" in shown.out
    assert await asyncio.to_thread(cli.main, ["explain", "hi", "--probe", "--provider", "openai"]) == 1
    assert "not in a cassette" in capsys.readouterr().err


async def test_query_of_the_base_url_is_not_recorded(tmp_path: Path) -> None:
    """It may contain a key, and the cassette is replayed without it."""
    async with FaultServer() as server:
        with recording(tmp_path):
            await CustomProvider(f"{server.base_url}?code=s3cret&api-version=1", "m").complete("hi")
        assert server.seen[-1].path == "/v1/chat/completions?code=s3cret&api-version=1"
    text = "".join(file.read_text() for file in tmp_path.rglob("*.yaml"))
    assert "/v1/chat/completions" in text
    assert "s3cret" not in text
