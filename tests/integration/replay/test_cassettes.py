"""Cassettes: what is on them, what is not, and that they play what was said."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support import KINDS, provider_for

from learnflow.llm import RouterProvider, errors, get_provider
from learnflow.llm.cli import main as cli
from learnflow.llm.providers import AzureProvider, CustomProvider, LlamaCppProvider, OllamaProvider, build
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.replay import active, cassette
from learnflow.llm.replay.cassette import Interaction, RecordedRequest, RecordedResponse
from learnflow.llm.routing.breaker import BreakerRegistry
from learnflow.llm.testing import Fault, FaultServer, closed_port, forget, recording, replaying

ASKED = RecordedRequest(
    "POST", "http://ollama.example/api/chat", {"authorization": "Bearer key-of-ollama"}, {"model": "m"}
)


@pytest.fixture(autouse=True)
def nothing_known_yet() -> None:
    forget()


headers = st.dictionaries(st.sampled_from(["content-type", "server"]), st.sampled_from(["text/event-stream", "x"]))
pieces = st.lists(st.binary(max_size=20) | st.text(max_size=20).map(str.encode), max_size=5).map(tuple)


@given(said=st.builds(RecordedResponse, st.just(200), headers, pieces))
def test_what_is_written_is_read_again(said: RecordedResponse) -> None:
    stream = said.headers.get("content-type") == "text/event-stream"
    _, (read,) = cassette.load(cassette.dump({"kind": "authored"}, [Interaction(ASKED, said)]))
    assert read.request == ASKED
    assert (read.response.status, read.response.headers) == (200, said.headers)
    if stream:
        assert read.response.pieces == said.pieces
    elif not _json(b"".join(said.pieces)):
        assert b"".join(read.response.pieces) == b"".join(said.pieces)


def _json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def test_bodies_are_readable() -> None:
    line = 'data: {"x":"шифр 🔐"}\n\n'.encode()
    stream = RecordedResponse(200, {"content-type": "text/event-stream"}, (line, line[:13], line[13:]))
    page = RecordedResponse(200, {"content-type": "application/json"}, (b'{"models": [{"name": "m"}]}',))
    text = cassette.dump({"kind": "recorded"}, [Interaction(ASKED, stream), Interaction(ASKED, page)])
    assert '      - |+\n        data: {"x":"шифр 🔐"}\n' in text
    assert "json:\n        models:\n        - name: m\n" in text
    assert "!!binary" in text  # a piece that was cut in the middle of a character


@pytest.mark.parametrize("text", ["", "x: 1", "absent: yes"])
def test_other_yaml_may_lie_about(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(errors.NotConfigured, match="there is no cassette in"), replaying(tmp_path):
        pass


@pytest.mark.parametrize("text", ["interactions: 3", "interactions: [{}]", "interactions: [", "interactions: \x00"])
def test_what_is_no_cassette_is_said_to_be_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(errors.NotConfigured, match=r"a\.yaml: it is not a cassette"), replaying(tmp_path):
        pass


async def _record(tmp_path: Path, dialect: str, **options: object) -> list[str]:
    async with FaultServer(dialect, **options) as server:  # type: ignore[arg-type]
        with recording(tmp_path):
            provider = provider_for(server, api_key="sk-secret-key")
            heard = []
            try:
                async with provider.stream("a secret question", temperature=0) as answer:
                    heard = [piece async for piece in answer]
            except errors.LLMError as error:
                heard.append(type(error).__name__)
    forget()
    return heard


async def _play(tmp_path: Path, dialect: str) -> list[str]:
    heard = []
    with replaying(tmp_path) as player:
        provider = KINDS[dialect](model="fault-model")
        try:
            async with provider.stream("a secret question", temperature=0) as answer:
                heard = [piece async for piece in answer]
        except errors.LLMError as error:
            heard.append(type(error).__name__)
    assert not player.missing
    assert not player.unplayed
    return heard


@pytest.mark.parametrize("dialect", list(KINDS))
@pytest.mark.parametrize(
    "fault",
    [None, Fault("cut"), Fault("drop"), Fault("reset"), Fault("refuse", refusal="key"), Fault("close"), Fault("whole")],
    ids=lambda fault: fault.name if fault else "none",
)
async def test_what_is_recorded_is_played(tmp_path: Path, dialect: str, fault: Fault | None) -> None:
    recorded = await _record(tmp_path, dialect, fault=fault, answer=["Ши", "фр", " 🔐", " ends"])
    assert recorded
    assert await _play(tmp_path, dialect) == recorded


@pytest.mark.parametrize("slice_bytes", [1, 7])
async def test_the_pieces_are_those_that_came(tmp_path: Path, slice_bytes: int) -> None:
    heard = await _record(tmp_path, "llamacpp", slice_bytes=slice_bytes)
    (file,) = tmp_path.rglob("*chat*.yaml")
    _, (interaction,) = cassette.load(file.read_text(encoding="utf-8"))
    assert max(map(len, interaction.response.pieces)) <= slice_bytes
    assert await _play(tmp_path, "llamacpp") == heard


async def test_a_cassette_holds_no_key_no_host_and_no_time(tmp_path: Path) -> None:
    await _record(tmp_path, "ollama", key="sk-secret-key")
    files = list((tmp_path / "ollama").glob("*.yaml"))
    assert len(files) == 5  # version, tags, ps, show, chat
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "secret-key" not in text
        assert "127.0.0.1" not in text
        assert "Bearer key-of-ollama" in text
        assert yaml.safe_load(text)["origin"]["kind"] == "recorded"


async def test_nothing_is_lost_while_recording_a_stream_that_is_left(tmp_path: Path) -> None:
    async with FaultServer("llamacpp", fault=Fault("stall", after=2)) as server:
        with recording(tmp_path):
            async with provider_for(server).stream("hi") as answer:
                assert [await anext(answer), await anext(answer)] == ["The ", "quick "]
    with replaying(tmp_path):
        provider = LlamaCppProvider(model="fault-model")
        async with provider.stream("hi") as answer:
            assert [await anext(answer), await anext(answer)] == ["The ", "quick "]
        heard = []
        with pytest.raises(errors.GapTimeout, match="the client left here") as caught:
            heard = [piece async for piece in provider.stream("hi")]
        assert (heard, caught.value.partial) == ([], "The quick ")


async def test_a_server_that_was_not_there_is_not_there_again(tmp_path: Path) -> None:
    async with FaultServer("llamacpp") as server:
        with recording(tmp_path):
            dead = CustomProvider(base_url=f"http://127.0.0.1:{closed_port()}", model="m")
            recorded = await RouterProvider(dead, [provider_for(server)]).complete("hi")
    forget()
    with replaying(tmp_path):
        router = RouterProvider(CustomProvider(model="m"), [LlamaCppProvider(model="fault-model")])
        played = await router.complete("hi")
    assert played.text == recorded.text
    assert (played.provider, played.attempts) == ("llamacpp", 2)


async def test_the_same_question_has_its_answers_in_their_order_and_the_last_one_stays(tmp_path: Path) -> None:
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


async def test_recording_again_replaces_what_was_recorded_of_the_same_question(tmp_path: Path) -> None:
    for text in ("old", "new"):
        async with FaultServer("llamacpp", [text]) as server:
            with recording(tmp_path):
                await provider_for(server).generate("hi")
    with replaying(tmp_path) as player:
        assert await LlamaCppProvider(model="fault-model").generate("hi") == "new"
        assert not player.unplayed
    assert not list(tmp_path.rglob("*.part"))


async def test_what_is_not_recorded_says_so_with_the_nearest_that_is_and_no_prompt(tmp_path: Path) -> None:
    await _record(tmp_path, "llamacpp")
    with replaying(tmp_path) as player:
        provider = LlamaCppProvider(model="fault-model")
        with pytest.raises(errors.NotRecorded) as caught:
            await provider.generate("a secret answer", temperature=0.5)
        said = str(caught.value)
        assert "temperature (0 in a cassette, 0.5 asked for)" in said.replace("0.0", "0")
        assert "messages[0].content (from character 9 on)" in said
        assert "v1-chat-completions" in said
        assert "LLM_REPLAY_MODE=record" in said
        assert "secret" not in said.replace("sk-secret", "")
        with pytest.raises(errors.NotRecorded, match=r"the key"):
            await LlamaCppProvider(model="fault-model", api_key="wrong-key").generate(
                "a secret question", temperature=0
            )
        with pytest.raises(errors.NotRecorded, match="nothing"):
            await CustomProvider(model="m").generate("hi")
        assert len(player.missing) == 3


async def test_no_fallback_swallows_it(tmp_path: Path) -> None:
    await _record(tmp_path, "llamacpp")
    with replaying(tmp_path):
        members = [CustomProvider(model="m"), LlamaCppProvider(model="fault-model")]
        router = RouterProvider(members[0], members[1:])
        for asked in (router.generate("a secret question", temperature=0), router.list_models()):
            with pytest.raises(errors.NotRecorded):
                await asked
        with pytest.raises(errors.NotRecorded):
            await members[0].health_check()
        with pytest.raises(errors.NotRecorded):
            await OllamaProvider(model="m").generate("hi")


async def test_a_context_that_was_asked_for_otherwise_is_the_same_question(tmp_path: Path) -> None:
    """Ollama's num_ctx depends on which of many requests happened to come first."""
    await _record(tmp_path, "ollama")
    for file in tmp_path.rglob("api-chat*.yaml"):
        file.write_text(file.read_text(encoding="utf-8").replace("num_ctx: 8192", "num_ctx: 4096"), encoding="utf-8")
    assert "".join(await _play(tmp_path, "ollama")).startswith("The quick")


@pytest.mark.parametrize("row", SPECS)
def test_llm_replay_needs_no_key_and_no_address(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text(cassette.dump({}, [Interaction(ASKED, RecordedResponse(200))]), encoding="utf-8")
    monkeypatch.setenv("LLM_REPLAY", str(tmp_path))
    assert build(row, model="m").endpoint.base
    monkeypatch.setenv("LLM_PROVIDER", row)
    assert get_provider().providers


async def test_llm_replay_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_REPLAY", "cassettes")
    monkeypatch.setenv("LLM_PROVIDER", "llamacpp")
    monkeypatch.setenv("LLM_REPLAY_MODE", "record")
    async with FaultServer("llamacpp") as server:
        monkeypatch.setenv("LLAMACPP_BASE_URL", server.base_url)
        first = await get_provider().generate("hi")
    monkeypatch.delenv("LLAMACPP_BASE_URL")
    monkeypatch.setenv("LLM_REPLAY_MODE", "play")
    assert await get_provider().generate("hi") == first  # no model is named: the pages are in a cassette, too
    assert sorted(file.name.partition("-")[0] for file in (tmp_path / "cassettes" / "llamacpp").iterdir())


async def test_nothing_named_finds_what_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer("vllm") as server:
        with recording(tmp_path):
            provider = provider_for(server)
            assert await provider.health_check()
            await provider.generate("hi")
    monkeypatch.setenv("LLM_REPLAY", str(tmp_path))
    assert (await get_provider().complete("hi")).provider == "vllm"


@pytest.mark.parametrize("mode", ["play", "record"])
def test_a_folder_that_cannot_be_is_said_at_once(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.txt").write_text("x", encoding="utf-8")
    monkeypatch.setenv("LLM_REPLAY", str(tmp_path / "file.txt" / "sub") if mode == "record" else str(tmp_path / "none"))
    monkeypatch.setenv("LLM_REPLAY_MODE", mode)
    with pytest.raises(errors.NotConfigured, match="LLM_REPLAY"):
        build("ollama")


async def test_a_disk_that_cannot_be_written_costs_no_answer(tmp_path: Path, events_seen: list[object]) -> None:
    folder = tmp_path / "cassettes"
    async with FaultServer("llamacpp") as server:
        with recording(folder):
            provider = provider_for(server)
            folder.rmdir()
            folder.write_text("in the way", encoding="utf-8")
            assert await provider.generate("hi")
    (said,) = [event for event in events_seen if type(event).__name__ == "RecordingFailed"]
    assert said.error == "NotADirectoryError"  # type: ignore[attr-defined]


async def test_many_at_once_are_kept_apart(tmp_path: Path) -> None:
    async with FaultServer("llamacpp") as server:
        with recording(tmp_path):
            provider = provider_for(server, max_concurrency=20)
            asked = [f"question {n % 5}" for n in range(20)]
            await asyncio.gather(*(provider.generate(each) for each in asked))
    with replaying(tmp_path) as player:
        provider = LlamaCppProvider(model="fault-model")
        answers = await asyncio.gather(*(provider.generate(each) for each in asked))
        assert len(set(answers)) == 1
        assert not player.unplayed


def test_the_deck_is_one_for_the_process(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(cassette.dump({}, [Interaction(ASKED, RecordedResponse(200))]), encoding="utf-8")
    assert active.current(tmp_path, "play") is active.current(tmp_path, "play")
    assert active.current(None, "play") is None


# What a reviewer with fresh eyes found, and what was mended.


async def _both(tmp_path: Path, fault: Fault, **how: float) -> list[errors.LLMError]:
    """The error when it was recorded, and when it is played."""
    found: list[errors.LLMError] = []
    call = {name: value for name, value in how.items() if name == "timeout"}
    times = {name: value for name, value in how.items() if name != "timeout"}
    async with FaultServer("llamacpp", fault=fault) as server:
        with recording(tmp_path), pytest.raises(errors.LLMError) as caught:
            await provider_for(server, **times).generate("hi", **call)  # type: ignore[arg-type]
        found.append(caught.value)
    with replaying(tmp_path), pytest.raises(errors.LLMError) as caught:
        await LlamaCppProvider(model="fault-model").generate("hi", **call)  # type: ignore[arg-type]
    return [*found, caught.value]


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
async def test_a_failure_is_the_same_failure_again(
    tmp_path: Path, fault: Fault, how: dict[str, float], kind: type[errors.LLMError]
) -> None:
    recorded, played = await _both(tmp_path, fault, **how)
    assert type(recorded) is type(played) is kind
    assert (recorded.status, recorded.retry_after, recorded.partial) == (
        played.status,
        played.retry_after,
        played.partial,
    )


async def test_a_server_that_repeats_a_key_or_its_address_gets_neither_into_the_cassette(tmp_path: Path) -> None:
    async with FaultServer("llamacpp") as server:
        said = f"you came to {server.root} with Bearer sk-secret-key"
        server.fault = Fault("refuse", status=401, body=json.dumps({"error": {"message": said}}).encode())
        with recording(tmp_path), pytest.raises(errors.AuthenticationFailed):
            await provider_for(server, api_key="sk-secret-key").generate("hi")
    (file,) = tmp_path.rglob("*.yaml")
    text = file.read_text(encoding="utf-8")
    assert "you came to http://llamacpp.example with Bearer key-of-llamacpp" in text
    assert "sk-secret" not in text


async def test_a_services_name_is_no_secret_and_no_word_of_an_answer_is_changed(tmp_path: Path) -> None:
    async with FaultServer("llamacpp", ["An", " answer", " of", " localhost", "."]) as server:
        with recording(tmp_path):
            base = server.base_url.replace("127.0.0.1", "localhost")
            recorded = await LlamaCppProvider(base_url=base, model="fault-model").generate("hi")
    with replaying(tmp_path):
        assert await LlamaCppProvider(model="fault-model").generate("hi") == recorded == "An answer of localhost."


async def test_the_ids_of_tools_stay_what_they_were(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("asked", ["\u2028\x85", "yes", "1:30", "2026-11-22", "🔐\r\n", "\x07"])
async def test_odd_texts_are_played_as_they_were(tmp_path: Path, asked: str) -> None:
    async with FaultServer("llamacpp", [asked.encode("utf-8", "ignore").decode() + "."]) as server:
        with recording(tmp_path):
            recorded = await provider_for(server).generate(asked)
    with replaying(tmp_path):
        assert await LlamaCppProvider(model="fault-model").generate(asked) == recorded


async def test_answers_are_played_in_the_order_in_which_they_were_asked_for(tmp_path: Path) -> None:
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


async def test_how_long_a_dead_provider_was_left_alone_does_not_matter(tmp_path: Path) -> None:
    """Recorded at once, the dead one was asked once; played slowly, its breaker would have let it be asked again."""
    async with FaultServer("vllm") as server:
        with recording(tmp_path):
            dead = CustomProvider(base_url=f"http://127.0.0.1:{closed_port()}", model="m")
            router = RouterProvider(dead, [provider_for(server)])
            recorded = [await router.complete(text) for text in ("one", "two")]
    forget()
    registry = BreakerRegistry()
    with replaying(tmp_path) as player:
        members = [CustomProvider(model="m"), KINDS["vllm"](model="fault-model")]
        router = RouterProvider(members[0], members[1:], breakers=registry)
        first = await router.complete("one")
        registry.clock = lambda: 1e9
        second = await router.complete("two")
        assert [first.text, second.text] == [each.text for each in recorded]
        assert [first.attempts, second.attempts] == [each.attempts for each in recorded] == [2, 1]
        assert not player.missing
        assert not player.unplayed


async def test_router_wide_calls_do_not_swallow_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await _record(tmp_path, "llamacpp")
    monkeypatch.setenv("LLM_REPLAY", str(tmp_path))
    for asked in (get_provider("ollama").warm_up(), get_provider().health_check(), get_provider().list_models()):
        with pytest.raises(errors.NotRecorded):
            await asked


async def test_what_was_found_while_recording_is_found_while_playing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the configured address stands the row's usual one, where nobody listens."""
    monkeypatch.setenv("LLM_REPLAY", str(tmp_path))
    monkeypatch.setenv("LLM_REPLAY_MODE", "record")
    async with FaultServer("ollama") as server:
        monkeypatch.setenv("OLLAMA_BASE_URL", server.base_url)
        recorded = await get_provider().generate("hi")
    monkeypatch.delenv("OLLAMA_BASE_URL")
    monkeypatch.setenv("LLM_REPLAY_MODE", "play")
    forget()
    assert await get_provider().generate("hi") == recorded


@pytest.mark.parametrize("url", ["/v2", "/chat/completions", ""])
async def test_a_custom_path_is_known_from_the_cassette(tmp_path: Path, url: str) -> None:
    async with FaultServer("openai") as server:
        with recording(tmp_path):
            recorded = await CustomProvider(base_url=server.root + url, model="m").generate("hi")
    with replaying(tmp_path):
        assert await CustomProvider(model="m").generate("hi") == recorded


@pytest.mark.parametrize("url", ["/openai/v1", ""])
async def test_azures_dialect_is_known_from_the_cassette(tmp_path: Path, url: str) -> None:
    async with FaultServer("openai") as server:
        with recording(tmp_path):
            recorded = await AzureProvider(base_url=server.root + url, model="m", api_key="k").generate("hi")
    with replaying(tmp_path):
        provider = AzureProvider(model="m")
        assert await provider.generate("hi") == recorded
        assert not provider.get_capabilities()["local"]


async def test_a_key_more_or_less_does_not_matter_unless_it_is_a_wrong_one(tmp_path: Path) -> None:
    await _record(tmp_path, "vllm")
    async with FaultServer("llamacpp") as server:
        with recording(tmp_path):
            await LlamaCppProvider(base_url=server.base_url, model="fault-model").generate("hi")
    with replaying(tmp_path):
        assert await LlamaCppProvider(model="fault-model", api_key="some-key").generate("hi")
        assert await KINDS["vllm"](model="fault-model").generate("a secret question", temperature=0)
        with pytest.raises(errors.NotRecorded, match="the key"):
            await LlamaCppProvider(model="fault-model", api_key="wrong-key").generate("hi")


def test_recording_without_a_folder_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_REPLAY_MODE", "record")
    with pytest.raises(errors.NotConfigured, match="LLM_REPLAY names no folder"):
        build("ollama")


def test_the_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LLM_REPLAY", "~/cassettes")
    monkeypatch.setenv("LLM_REPLAY_MODE", "record")
    build("ollama")
    assert (tmp_path / "cassettes").is_dir()


async def test_recording_many_equal_pages_costs_no_more_each_time(tmp_path: Path) -> None:
    async with FaultServer("llamacpp") as server:
        with recording(tmp_path):
            provider = provider_for(server)
            for _ in range(12):
                assert await provider.health_check()
    sizes = {len(file.read_text(encoding="utf-8")) for file in tmp_path.rglob("health*.yaml")}
    assert len(sizes) == 1  # one interaction a file
    with replaying(tmp_path) as player:
        assert await LlamaCppProvider(model="fault-model").health_check()
        assert any("11 left" in each for each in player.unplayed)


def test_what_differs_each_time_is_calmed_for_cassettes_that_are_compared() -> None:
    page = b'{"id":"chatcmpl-1a","created":1795353650,"eval_duration":123,"model_path":"/home/me/m.gguf","n":2}'
    said = cassette.calm(Interaction(ASKED, RecordedResponse(200, {}, (page,)))).response
    assert said.pieces == (b'{"id":"chatcmpl-0","created":0,"eval_duration":0,"model_path":"m.gguf","n":2}',)


async def test_the_command_line_says_that_it_shows_cassettes(
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
