"""The tools for tests of applications: scripted provider, context managers, pytest plugin."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from support import TOOL, provider_for, serving

from learnflow.llm import LLMProvider, RouterProvider, errors, get_provider
from learnflow.llm.completion import Completion, ServedModel
from learnflow.llm.providers import CustomProvider
from learnflow.llm.testing import (
    CutAnswer,
    Fault,
    FaultServer,
    ScriptedProvider,
    closed_port,
    no_model_calls,
    recording,
    use_provider,
)
from learnflow.llm.testing.fault_server import ReceivedRequest

pytest_plugins = ["pytester"]


async def test_script_answers_in_order_and_records_requests() -> None:
    script = ScriptedProvider(["First answer.", ["sec", "ond"], errors.RateLimited("busy")])
    assert isinstance(script, LLMProvider)
    assert await script.health_check()
    assert await script.generate("one", temperature=0, seed=3) == "First answer."
    assert [piece async for piece in script.stream("two")] == ["sec", "ond"]
    with pytest.raises(errors.RateLimited, match="busy"):
        await script.complete("three", model="m")
    assert [(request.method, request.prompt, request.model) for request in script.history] == [
        ("generate", "one", None),
        ("stream", "two", None),
        ("complete", "three", "m"),
    ]
    assert script.history[0].options == {"seed": 3}
    assert "three" not in repr(script.history)
    assert not await script.health_check()
    with pytest.raises(errors.NotRecorded, match="no answer for request 4"):
        await script.generate("four")


async def test_script_parses_schema_and_returns_completions_unchanged() -> None:
    class Quiz(BaseModel):
        questions: list[str]

    completion = Completion(text="as it is", finish="length", provider="x", model=ServedModel("m"))
    script = ScriptedProvider(['{"questions": ["why?"]}', "no JSON", completion])
    assert (await script.complete("q", response_format=Quiz)).parsed == Quiz(questions=["why?"])
    with pytest.raises(errors.SchemaMismatch):
        await script.complete("q", response_format=Quiz)
    assert await script.complete("q") is completion


async def test_cut_answer_continues_at_fallback() -> None:
    dying = ScriptedProvider([CutAnswer("The answer is ")])
    other = ScriptedProvider(["The answer is forty-two."], name="other")
    with use_provider(RouterProvider(dying, [other])):
        provider = get_provider()
        async with provider.stream("what?") as answer:
            text = "".join([piece async for piece in answer])
    assert text == "The answer is forty-two."
    assert (answer.completion.resumed, answer.completion.provider) == (1, "other")
    assert get_provider().name != "scripted"


async def test_end_of_script_causes_no_failover() -> None:
    router = RouterProvider(ScriptedProvider([]), [ScriptedProvider(["hidden"], name="other")])
    with pytest.raises(errors.NotRecorded):
        await router.generate("hi")


async def test_no_model_calls_allows_only_fault_servers() -> None:
    existing = CustomProvider(base_url=f"http://127.0.0.1:{closed_port()}", model="m")
    async with FaultServer("openai") as server:
        with no_model_calls():
            with pytest.raises(errors.NotRecorded, match="forbidden in this test"):
                await existing.generate("hi")
            with pytest.raises(errors.NotRecorded):
                await existing.health_check()
            assert await provider_for(server).generate("hi")
    with pytest.raises(errors.ConnectionFailed):
        await existing.generate("hi")


APPLICATION = """
import pytest
from learnflow.llm import get_provider
from learnflow.llm.errors import LLMError

async def ask(what):
    return await get_provider().generate(what, temperature=0)

{tests}
"""


def _cassettes(folder: Path) -> None:
    server = FaultServer("llamacpp", ["an", "swer"])
    with serving(server), recording(folder):
        for prompt in ("hi", "again"):
            asyncio.run(provider_for(server).generate(prompt, temperature=0))


def run(pytester: pytest.Pytester, tests: str, *options: str, **settings: str) -> pytest.RunResult:
    """Run the tests of an application in this process, which has imported LiteLLM."""
    loop = {"asyncio_mode": "auto", "asyncio_default_fixture_loop_scope": "function"}
    pytester.makeini("\n".join(["[pytest]", *(f"{name} = {value}" for name, value in (loop | settings).items())]))
    pytester.makepyfile(test_app=APPLICATION.format(tests=tests))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # other plugins take seconds to import
        return pytester.runpytest_inprocess("-p", "asyncio", "-p", "learnflow_llm", *options)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("LLM_PROVIDER", "llamacpp")
    monkeypatch.setenv("LLAMACPP_MODEL", "fault-model")
    return monkeypatch


def test_llm_replay_fails_missing_and_unplayed_requests(
    pytester: pytest.Pytester, environment: pytest.MonkeyPatch
) -> None:
    _cassettes(pytester.path / "cassettes")
    ran = run(
        pytester,
        """
@pytest.mark.llm_replay("cassettes")
async def test_whole(llm_replay):
    assert await ask("hi") == await ask("again") == "answer"

@pytest.mark.llm_replay("cassettes")
async def test_left(llm_replay):
    assert await ask("hi") == "answer"

@pytest.mark.llm_replay("cassettes")
async def test_swallowed(llm_replay):
    await ask("hi")
    await ask("again")
    try:
        await ask("something else")
    except LLMError:
        pass
""",
    )
    ran.assert_outcomes(passed=3, errors=2)
    ran.stdout.fnmatch_lines(["*not played: *v1-chat-completions*"])
    ran.stdout.fnmatch_lines(["*not in a cassette: *nearest*Record it with pytest --llm-record*"])
    assert "LLM_REPLAY" not in ran.stdout.str()


def test_llm_record_replaces_cassettes_of_test(pytester: pytest.Pytester, environment: pytest.MonkeyPatch) -> None:
    test = """
async def test_it(llm_replay):
    assert await ask("hi") == "answer"
"""
    stale = pytester.path / "cassettes" / "test_app" / "test_it" / "llamacpp" / "stale.yaml"
    stale.parent.mkdir(parents=True)
    stale.write_text("interactions: []\n", encoding="utf-8")
    server = FaultServer("llamacpp", ["an", "swer"])
    with serving(server):
        environment.setenv("LLAMACPP_BASE_URL", server.base_url)
        ran = run(pytester, test, "--llm-record")
    ran.assert_outcomes(passed=1)
    assert not stale.exists()
    environment.delenv("LLAMACPP_BASE_URL")
    run(pytester, test).assert_outcomes(passed=1)


def test_setting_forbids_real_model_calls_unless_marked(
    pytester: pytest.Pytester, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("LLAMACPP_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    tests = """
from learnflow.llm.errors import NotRecorded, ConnectionFailed

async def test_forbidden():
    with pytest.raises(NotRecorded):
        await ask("hi")

@pytest.mark.llm_real
async def test_allowed():
    with pytest.raises(ConnectionFailed):
        await ask("hi")
"""
    run(pytester, tests, llm_no_model_calls="true").assert_outcomes(passed=2)


def test_plugin_imports_only_pytest(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
def test_light():
    import sys
    assert "learnflow.llm.testing.plugin" in sys.modules
    assert not {"litellm", "httpx", "pydantic", "yaml"} & set(sys.modules)
""")
    others = ("langsmith_plugin", "hypothesispytest", "codspeed", "recording", "benchmark", "syrupy", "socket", "xdist")
    ran = pytester.runpytest_subprocess(*(word for name in others for word in ("-p", f"no:{name}")))
    ran.assert_outcomes(passed=1)


async def test_script_refuses_invalid_keywords() -> None:
    script = ScriptedProvider("its only answer")
    prompt: list[dict[str, str]] = [{"role": "user", "content": "hi"}]
    assert await script.generate(prompt) == "its only answer"
    prompt.append({"role": "assistant", "content": "later"})
    assert len(script.history[0].prompt) == 1
    script.answers += ["one", "two", errors.RateLimited]
    with pytest.raises(errors.InvalidRequest, match="temprature"):
        await script.generate("hi", temprature=0)  # type: ignore[call-arg]
    with pytest.raises(errors.InvalidRequest, match="complete"):
        await script.generate("hi", tools=[TOOL])
    assert [await script.generate("hi"), await script.generate("hi")] == ["one", "two"]
    with pytest.raises(errors.RateLimited):
        await script.generate("hi")
    with pytest.raises(errors.InvalidRequest, match="visoin"):
        ScriptedProvider(visoin=True)
    assert await script.list_models() == ["scripted"]


def test_marker_without_folder_fails_with_example(pytester: pytest.Pytester) -> None:
    test = "@pytest.mark.llm_replay()\nasync def test_it(llm_replay): pass"
    ran = run(pytester, test)
    ran.assert_outcomes(errors=1)
    ran.stdout.fnmatch_lines(["*llm_replay requires one folder*"])


def test_failing_test_records_nothing_and_shared_folder_is_extended(
    pytester: pytest.Pytester, environment: pytest.MonkeyPatch
) -> None:
    test = """
@pytest.mark.llm_replay("shared")
@pytest.mark.parametrize("what", ["a/../b", "c"])
async def test_it(llm_replay, what):
    assert await ask(what) == "answer"

async def test_wrong(llm_replay):
    assert await ask("hi") == "another"
"""
    mine = pytester.path / "shared" / "mine.yaml"
    mine.parent.mkdir()
    mine.write_text("mine: 1\n", encoding="utf-8")
    server = FaultServer("llamacpp", ["an", "swer"])
    with serving(server):
        environment.setenv("LLAMACPP_BASE_URL", server.base_url)
        ran = run(pytester, test, "--llm-record", llm_no_model_calls="true")
    ran.assert_outcomes(passed=2, failed=1)
    assert mine.exists()
    assert len(list((pytester.path / "shared" / "llamacpp").glob("*.yaml"))) == 2
    assert not (pytester.path / "cassettes").exists()


async def test_fault_server_notices_client_that_resets_before_response() -> None:
    class Vanishing(FaultServer):
        """A server with a client that resets the connection between request and response."""

        def _stream_parts(self, fault: Fault | None, seen: ReceivedRequest) -> Iterator[bytes]:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            yield from super()._stream_parts(fault, seen)

    async with Vanishing(fault=Fault("stall", after=1)) as server:
        client = socket.create_connection(("127.0.0.1", int(server.root.rpartition(":")[2])))
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 15\r\n\r\n" + b'{"messages":[]}')
        while not server.seen:
            await asyncio.sleep(0.01)
        await asyncio.wait_for(server.seen[0].gone.wait(), 5)
