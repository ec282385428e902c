"""The commands ask and explain, and the shared parts of the command line."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from learnflow.llm import events
from learnflow.llm.cli import main as cli
from learnflow.llm.testing import Fault, FaultServer, closed_port


@contextmanager
def serving(*arguments: object, **options: object) -> Iterator[FaultServer]:
    """Run a fault server in a thread, for code that runs its own event loop."""
    ready, stop = threading.Event(), threading.Event()
    server = FaultServer(*arguments, **options)  # type: ignore[arg-type]

    async def serve() -> None:
        async with server:
            ready.set()
            while not stop.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait()
    yield server
    stop.set()
    thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    with serving("llamacpp", thinking="hm") as running:
        monkeypatch.setenv("LLM_PROVIDER", "llamacpp")
        monkeypatch.setenv("LLAMACPP_BASE_URL", running.root)
        yield running


def test_ask_prints_only_answer(server: FaultServer, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ask", "hi", "--temperature", "0", "--system", "Be brief", "--model", "fault-model"]) == 0
    assert capfd.readouterr() == ("The quick brown fox jumps over the lazy dog.\n", "")
    body = server.seen[0].body
    assert (body["model"], body["temperature"]) == ("fault-model", 0)
    assert body["messages"][0] == {"role": "system", "content": "Be brief"}


def test_verbose_writes_log_to_stderr(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before = root.level
    monkeypatch.setattr(root, "handlers", [])  # pytest's own; a program starts without any
    try:
        assert cli.main(["ask", "hi", "--verbose"]) == 0
    finally:
        root.setLevel(before)
    out, err = capsys.readouterr()
    assert out == "The quick brown fox jumps over the lazy dog.\n"
    assert "event='llm.attempt_succeeded'" in err


@pytest.mark.parametrize("command", [["ask", "hi", "--json"], ["status", "--json"], ["models", "--json"], ["warm-up"]])
def test_setting_without_effect_is_reported_once_on_stderr(
    command: list[str], server: FaultServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAMACPP_BASEURL", server.root)
    monkeypatch.setenv("GPU1_BASEURL", server.root)  # of an endpoint that is not used
    Path(".env").write_text("OPENAI_MODEL_NAME=gpt\n//LLM_PROVIDER=vllm\nLLM_RETRIES 3\n", encoding="utf-8")
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "learnflow-llm: LLAMACPP_BASEURL (in the environment) has no effect: did you mean LLAMACPP_BASE_URL?",
        "learnflow-llm: OPENAI_MODEL_NAME (in .env) has no effect: did you mean OPENAI_MODEL?",
        "learnflow-llm: .env, line 2 cannot be read: write NAME=value",
        "learnflow-llm: .env, line 3 cannot be read: write NAME=value",
    ]
    assert "BASEURL" not in out


@pytest.mark.parametrize("chain", ["gpu1", "llamacpp,gpu1"])
def test_misspelt_variable_of_an_endpoint_is_reported(
    chain: str, server: FaultServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLM_PROVIDER", chain)
    monkeypatch.setenv("GPU1_BASEURL", server.root)
    monkeypatch.setenv("GPU1_KIND", "llamacpp")
    cli.main(["ask", "hi"])
    err = capsys.readouterr().err
    assert err.count("GPU1_BASEURL (in the environment) has no effect: did you mean GPU1_BASE_URL?") == 1


def test_ask_names_provider_of_chain_that_cannot_be_used(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLM_PROVIDERS", "openai,llamacpp")
    assert cli.main(["ask", "hi"]) == 0
    out, err = capsys.readouterr()
    assert out == "The quick brown fox jumps over the lazy dog.\n"
    assert "not used: openai: there is no key for this address. Set OPENAI_API_KEY" in " ".join(err.split())


def test_ask_json_has_metadata(server: FaultServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ask", "hi", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["text"] == "The quick brown fox jumps over the lazy dog."
    assert (output["finish"], output["reasoning"], output["provider"]) == ("stop", "hm", "llamacpp")
    assert output["model"] == {"requested": "fault-model", "served": "fault-model"}
    assert output["usage"]["completion_tokens"] == 7


def test_broken_answer_prints_partial_text_and_error(server: FaultServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.fault = Fault("error_frame")
    assert cli.main(["ask", "hi"]) == 1
    out, err = capsys.readouterr()
    assert out == "The quick brown fox jumps \n"  # the partial text of both attempts
    assert err.startswith("learnflow-llm: llamacpp, model fault-model: the server reported an error in the middle")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["ask"], 2),
        (["ask", "hi", "--temperature", "hot"], 2),
        (["ask", "hi", "--provider", "llamacpp", "--temperature", "-3"], 2),
        (["ask", "", "--provider", "llamacpp"], 2),
        (["tell", "hi"], 2),
        (["ask", "hi", "--provider", "nobody"], 2),
        (["ask", "hi", "--provider", "openai"], 3),
        (["ask", "hi", "--provider", "custom"], 3),
        (["ask", "hi", "--provider", "vllm", "--model", "m"], 3),
    ],
)
def test_exit_code_depends_on_kind_of_error(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("LLAMACPP_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    assert cli.main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err


@pytest.mark.parametrize(
    ("words", "heavy", "shown"),
    [
        (["--help"], ("litellm", "httpx", "pydantic", "structlog", "rich"), "Ask one question"),
        (["ask", "--help"], ("litellm",), "The system prompt"),
    ],
)
def test_help_imports_no_heavy_library(words: list[str], heavy: tuple[str, ...], shown: str) -> None:
    code = (
        "import sys\nfrom learnflow.llm.cli.main import main\n"
        f"main({words})\nprint([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ran.stderr == "[]\n"
    assert shown in ran.stdout


def test_time_limit_of_probes_has_a_round_default(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("status", "models", "doctor"):
        assert cli.main([name, "--help"]) == 0
        assert "[default: 1; 0<x<=3600]" in " ".join(capsys.readouterr().out.split())


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.COMMANDS:
        assert cli.main([name, "--help"]) == 0
        assert f"Usage: learnflow-llm {name}" in capsys.readouterr().out


def test_explain_shows_choices(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LLM_PROVIDERS", "openai,ollama")
    monkeypatch.setenv("OLLAMA_MODEL", "llama3")
    monkeypatch.setenv("OLLAMA_CAPABILITIES", "no-vision")
    assert cli.main(["explain", "hi"]) == 0
    _, openai, ollama = capsys.readouterr().out.splitlines()
    assert openai.split(maxsplit=4)[3:] == [
        "no",
        "there is no key for this address. Set OPENAI_API_KEY, or give api_key=.",
    ]
    assert ollama.split(maxsplit=4)[3:] == [
        "unknown",
        "would be used; use --probe to probe the servers first",
    ]
    assert cli.main(["explain", "hi", "--image"]) == 3
    assert "lacks vision" in capsys.readouterr().out


def test_explain_with_probe_shows_state_of_servers(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLM_PROVIDERS", "gone,two,llamacpp")
    monkeypatch.setenv("GONE_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("GONE_KIND", "vllm")
    models = {"data": [{"id": "a"}, {"id": "b"}]}
    with serving("openai", responses={"/v1/models": models}) as two:
        monkeypatch.setenv("TWO_BASE_URL", two.base_url)
        monkeypatch.setenv("TWO_KIND", "custom")
        assert cli.main(["explain", "hi", "--probe"]) == 0
        rows = [line.split(maxsplit=4) for line in capsys.readouterr().out.splitlines()[1:]]
        assert [row[1:4] for row in rows] == [
            ["gone", "-", "no"],
            ["two", "-", "no"],
            ["llamacpp", "fault-model", "yes"],
        ]
        assert "connection refused" in rows[0][4]
        assert "no model is named, and the server has 2: a, b. Set TWO_MODEL" in rows[1][4]
        assert rows[2][4] == "would serve"
        assert cli.main(["explain", "hi", "--probe", "-p", "two", "--model", "b"]) == 0
        assert cli.main(["explain", "hi", "--probe", "-p", "two"]) == 3


def test_unknown_provider_suggests_similar_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLM_PROVIDERS", "olama,openai")
    assert cli.main(["ask", "hi"]) == 3
    err = capsys.readouterr().err
    hint = "Did you mean ollama? learnflow-llm status --all lists all names."
    assert err.startswith(f"learnflow-llm: unknown provider 'olama'. {hint}")
    assert err.count("\n") == 1


def test_command_line_opens_no_metrics_port(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, bindable_port: int
) -> None:
    monkeypatch.setenv("LLM_METRICS_PORT", str(bindable_port))
    assert cli.main(["ask", "hi"]) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", bindable_port), timeout=1)


WRONG = [["status", "--timeout", "nan"], ["explain", "--tokens", "-5"]]


@pytest.mark.parametrize("words", WRONG)
def test_invalid_option_value_is_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert "Invalid value" in capsys.readouterr().err


def test_ask_waits_for_server_that_refuses_only_if_patience_is_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], events_seen: list[object]
) -> None:
    monkeypatch.setenv("LLM_PROVIDER", "llamacpp")
    monkeypatch.setenv("LLAMACPP_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("LLM_RETRIES", "0")
    monkeypatch.delenv("LLM_PATIENCE")
    assert cli.main(["ask", "hi"]) == 3
    assert "connection refused" in capsys.readouterr().err
    (ended,) = [event for event in events_seen if isinstance(event, events.RequestEnded)]
    at_once = len(ended.outcome.attempts)  # type: ignore[union-attr]
    events_seen.clear()
    monkeypatch.setenv("LLM_PATIENCE", "2")
    assert cli.main(["ask", "hi"]) == 3
    (ended,) = [event for event in events_seen if isinstance(event, events.RequestEnded)]
    assert len(ended.outcome.attempts) > at_once  # type: ignore[union-attr]
