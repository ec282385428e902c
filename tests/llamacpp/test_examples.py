"""The programs of examples/ print the known answers of the tiny model, from the embedded provider."""

from __future__ import annotations

import asyncio
import io
import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from llama import MODEL, RSA, TEXTS, until
from support import ROOT, store_tiny_model

from learnflow.llm import events
from learnflow.llm.testing import Fault, FaultServer, closed_port

pytest_plugins = ["pytester"]

EXAMPLES = ROOT / "examples"
SHORT = ["chat.py", "private_fallback.py", "quiz.py", "test_quiz.py", "web.html", "web.py"]
QUIZ = json.loads(TEXTS["Write three control questions about RSA as JSON"])["questions"]


@pytest.fixture(autouse=True)
def embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PROVIDER", "embedded")
    monkeypatch.setenv("EMBEDDED_MODEL", str(MODEL))
    monkeypatch.setenv("EMBEDDED_THREADS", "1")  # more threads than cores spin


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> dict[str, Any]:
    """Run an example as a program in this process, which has imported LiteLLM. Return its names."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def enter(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def questions_of(printed: str) -> list[str]:
    return [line.removeprefix("- ") for line in printed.splitlines()]


@pytest.mark.parametrize("name", SHORT)
def test_example_is_short_and_says_how_to_run_it(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 42
    if name.endswith(".py"):
        header = text.split('"""')[1]
        assert f"examples/{name}" in header or "--app-dir examples web:app" in header


def test_every_example_is_listed_and_shown_on_its_page() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    found = sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".html"))
    assert found == sorted([*SHORT, "demo.py"])
    assert [name for name in SHORT if f'--8<-- "examples/{name}"' not in page] == []


def test_chat_answers_each_line_until_an_empty_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter(monkeypatch, "Say hello", "", "Say pong")
    run(monkeypatch, "chat.py")
    assert capsys.readouterr().out == f"\nYou: Model: {TEXTS['Say hello']}\n\nYou: "


def test_chat_sends_the_conversation_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, "Say hello", "Say pong")
    sent: list[object] = []
    remove = events.add_content_sink(lambda content: sent.append(content.messages))
    run(monkeypatch, "chat.py")  # Ctrl-D after the second line
    remove()
    first = {"role": "user", "content": "Say hello"}
    answer = {"role": "assistant", "content": TEXTS["Say hello"]}
    texts = [[{"role": turn["role"], "content": turn["content"]} for turn in turns] for turns in sent]  # type: ignore[attr-defined]
    assert texts == [[first], [first, answer, {"role": "user", "content": "Say pong"}]]


def test_chat_reports_an_error_and_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    enter(monkeypatch, "word " * 2000, "Say hello")
    run(monkeypatch, "chat.py")
    printed = capsys.readouterr().out
    assert "the prompt is longer than the context" in printed.partition("Model: ")[2].partition("You: ")[0]
    assert TEXTS["Say hello"] in printed


def test_quiz_prints_each_question(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "quiz.py", "RSA")
    assert questions_of(capsys.readouterr().out) == QUIZ


def test_program_ends_with_the_sentence_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDED_MODEL", "/nowhere/model.gguf")
    with pytest.raises(SystemExit, match=r"/nowhere/model.gguf does not exist"):
        run(monkeypatch, "quiz.py")
    with pytest.raises(SystemExit, match=r"Set OPENAI_API_KEY"):
        run(monkeypatch, "private_fallback.py")


async def test_private_fallback_continues_the_answer_of_a_broken_cloud(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = [f"{word} " for word in TEXTS[RSA].split()]
    async with FaultServer("openai", begun, fault=Fault("reset", after=8)) as cloud:
        for name, value in {"BASE_URL": cloud.base_url, "API_KEY": "none", "MODEL": "fault-model"}.items():
            monkeypatch.setenv(f"OPENAI_{name}", value)
        await asyncio.to_thread(run, monkeypatch, "private_fallback.py")
    printed = capsys.readouterr()
    assert printed.out == f"{TEXTS[RSA]}\n\nembedded ended the answer, attempts: 2, finish: stop.\n"
    assert "[openai: AnswerCut; embedded continues]" in printed.err


def test_local_only_keeps_the_text_from_the_cloud(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"LLM_LOCAL_ONLY": "true", "OPENAI_API_KEY": "none", "OPENAI_MODEL": "gpt-6-luna"}.items():
        monkeypatch.setenv(name, value)
    run(monkeypatch, "private_fallback.py")
    assert capsys.readouterr().out == f"{TEXTS[RSA]}\n\nembedded ended the answer, attempts: 1, finish: stop.\n"


class WebPage:
    """examples/web.py behind uvicorn on loopback."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        uvicorn = pytest.importorskip("uvicorn", reason="make install brings it")
        pytest.importorskip("fastapi", reason="make install brings it")
        names = run(monkeypatch, "web.py")
        self.server = uvicorn.Server(uvicorn.Config(names["app"], port=0, log_config=None, lifespan="off"))

    async def __aenter__(self) -> httpx.AsyncClient:
        self.task = asyncio.create_task(self.server.serve())
        await until(lambda: self.server.started)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30)
        return self.client

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        self.server.should_exit = True
        await self.task


def frames(text: str) -> list[tuple[str, str]]:
    """Return the name and the text of each server-sent event."""
    lines = [frame.split("\n") for frame in text.split("\n\n") if frame]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in lines]


async def test_web_streams_events_of_an_answer_and_serves_their_page(monkeypatch: pytest.MonkeyPatch) -> None:
    async with WebPage(monkeypatch) as client:
        page = await client.get("/")
        answer = await client.get("/answer", params={"question": RSA})
    assert page.headers["content-type"].startswith("text/html")
    assert all(f'addEventListener("{name}"' in page.text for name in ("text", "note", "end"))
    assert answer.headers["content-type"].startswith("text/event-stream")
    seen = frames(answer.text)
    assert "".join(text for name, text in seen if name == "text") == TEXTS[RSA]
    assert len(seen) > 20
    assert seen[-1] == ("end", "learnflow-tiny at embedded")


async def test_web_notes_a_failover(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PROVIDERS", "llamacpp,embedded")
    monkeypatch.setenv("LLAMACPP_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    async with WebPage(monkeypatch) as client:
        seen = frames((await client.get("/answer", params={"question": "Say hello"})).text)
    assert seen[0] == ("note", "llamacpp failed, embedded continues")
    assert "".join(text for name, text in seen if name == "text") == TEXTS["Say hello"]


async def test_web_shows_a_public_sentence_instead_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PROVIDER", "llamacpp")
    monkeypatch.setenv("LLAMACPP_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    async with WebPage(monkeypatch) as client:
        answer = await client.get("/answer", params={"question": "Say hello"})
    assert frames(answer.text) == [
        ("end", "The model is not available at the moment. Please try again in a few minutes.")
    ]


async def test_request_ends_when_the_reader_leaves_the_page(
    monkeypatch: pytest.MonkeyPatch, events_seen: list[object]
) -> None:
    async with WebPage(monkeypatch) as client:
        async with client.stream("GET", "/answer", params={"question": RSA}) as answer:
            async for _ in answer.aiter_bytes():
                break
        await until(lambda: any(type(event).__name__ == "AttemptCancelled" for event in events_seen))


@pytest.mark.parametrize("options", [[], ["--llm-record"]], ids=["plays", "records"])
def test_tests_of_quiz_pass_with_recorded_answers(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.delenv("EMBEDDED_MODEL")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # other plugins take seconds to import
    for name in ("quiz.py", "test_quiz.py"):
        shutil.copy(EXAMPLES / name, pytester.path)
    if options:
        store_tiny_model(monkeypatch)
    else:
        shutil.copytree(EXAMPLES / "cassettes", pytester.path / "cassettes")
    for more in (options, []):  # what was recorded is played
        ran = pytester.runpytest_inprocess("-p", "learnflow_llm", *more)
        ran.assert_outcomes(passed=4)
        monkeypatch.setenv("LLM_MODELS_DIR", str(Path("empty").absolute()))
