"""Output on a terminal and in a pipe: columns, colours, escapes, progress."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from test_cli import serving

from learnflow.llm.cli import main as cli
from learnflow.llm.cli import terminal
from learnflow.llm.testing import Fault, FaultServer

EVIL = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202egnp.exe\u2066 ok \u2028é🦊"
LONG = "hf.co/unsloth/Qwen3-Coder-30B-A3B-Instruct-GGUF:UD-Q4_K_XL"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    with serving("ollama") as running:
        monkeypatch.setenv("LLM_PROVIDER", "ollama")
        monkeypatch.setenv("OLLAMA_BASE_URL", running.root)
        yield running


def on_a_terminal(*arguments: str, columns: int = 80, **more: str) -> tuple[str, int]:
    """Run a command of the command line on a terminal; return stdout and stderr together, and the exit code."""
    ours, theirs = pty.openpty()
    written: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # the other end was closed
            while data := os.read(ours, 65536):
                written.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    with pytest.MonkeyPatch.context() as patch, os.fdopen(theirs, "w", encoding="utf-8", buffering=1) as terminal:
        for name, value in ({"TERM": "xterm-256color", "COLUMNS": str(columns)} | more).items():
            patch.setenv(name, value)
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(sys, "stderr", terminal)
        code = cli.main(list(arguments))
    reader.join(60)
    os.close(ours)
    return b"".join(written).decode(errors="replace"), code


def plain(text: str) -> list[str]:
    """Return the visible lines, without colours and overwritten text."""
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n").split("\n")
    return [remaining for line in lines if (remaining := line.rpartition("\r")[2])]


@pytest.mark.usefixtures("usual")
def test_tables_fit_eighty_columns_and_states_have_colours(server: FaultServer) -> None:
    server.responses["/api/tags"] = {"models": [{"name": LONG, "details": {"context_length": 262144}}]}
    server.responses["/api/ps"] = {"models": [{"name": LONG, "context_length": 4096}]}
    for arguments in (("status", "--all"), ("models",), ("explain", "hi", "--probe", "-m", LONG), ("doctor",)):
        shown, _ = on_a_terminal(*arguments)
        table = plain(shown)
        assert max(map(len, table)) <= 80, table
        wide, _ = on_a_terminal(*arguments, columns=1000)
        words, whole = (
            {word for line in lines if "probing" not in line for word in line.split()} for lines in (table, plain(wide))
        )
        assert words <= whole  # no word is broken
        assert LONG in shown or arguments == ("doctor",)
    shown, _ = on_a_terminal("status")
    assert "\x1b[32mready" in shown
    shown, _ = on_a_terminal("status", NO_COLOR="1")
    assert "\x1b[3" not in shown
    assert "ready" in shown


@pytest.mark.usefixtures("usual")
def test_pipe_gets_one_row_per_model_without_colours(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server.responses["/api/tags"] = {"models": [{"name": LONG * 3}]}
    monkeypatch.delenv("COLUMNS")
    assert cli.main(["models"]) == 0
    out, err = capfd.readouterr()
    rows = [line for line in out.splitlines() if line.startswith("ollama")]
    assert (len(rows), LONG * 3 in rows[0], err) == (1, True, "")
    assert "\x1b" not in out


def test_answer_cannot_drive_terminal_and_reaches_pipe_unchanged(
    server: FaultServer, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    server.pieces = [EVIL]
    shown, _ = on_a_terminal("ask", "hi", "-m", "fault-model")
    answer = next(line for line in shown.splitlines() if "owned" in line)
    answer = answer[answer.index("\\x1b]0;") :]
    assert answer == "\\x1b]0;owned\\x07\\x1b[2J\\x0d\\x9b31m\\u202egnp.exe\\u2066 ok \\u2028é🦊".replace(
        "\\x0d", "\\r"
    )
    assert cli.main(["ask", "hi", "-m", "fault-model"]) == 0
    assert b"\x1b]0;owned\x07" in capfdbinary.readouterr().out


def test_json_is_ascii(server: FaultServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.pieces = [EVIL]
    assert cli.main(["ask", "hi", "--json", "-m", "fault-model"]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", out)
    assert "owned" in json.loads(out)["text"]


def test_control_characters_are_escaped() -> None:
    assert terminal.escape("a\tb\nc é 🦊 \u200d \u00a0") == "a\tb\nc é 🦊 \u200d \u00a0"
    for code in (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xD800):
        assert terminal.escape(chr(code)).isprintable()


def test_wait_for_first_token_is_shown_on_terminal_and_not_in_pipe(
    server: FaultServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.fault = Fault("slow", seconds=0.05)
    shown, code = on_a_terminal("ask", "hi", "-m", "fault-model")
    assert code == 0
    assert "ollama: waiting for the first token" in shown
    assert plain(shown)[-1].endswith("lazy dog.")
    assert cli.main(["ask", "hi"]) == 0
    assert capfd.readouterr().err == ""


def test_ask_shows_that_model_is_loading(server: FaultServer) -> None:
    server.responses["/api/ps"] = {"models": []}
    server.fault = Fault("hang")
    budgets = dict.fromkeys(("LLM_FIRST_TOKEN_TIMEOUT", "LLM_LOAD_TIMEOUT"), "3")
    shown, code = on_a_terminal("ask", "hi", "-m", "fault-model", LLM_RETRIES="0", **budgets)
    assert code == 1
    assert "ollama: loading fault-model" in shown


@pytest.mark.parametrize(
    ("dialect", "command"), [("ollama", "ollama pull"), ("llamacpp", "llama-server -hf"), ("vllm", None)]
)
def test_ask_for_missing_model_names_pull_command_of_server(
    dialect: str, command: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(dialect, fault=Fault("refuse", refusal="model")) as there:
        monkeypatch.setenv("LLM_PROVIDER", dialect)
        monkeypatch.setenv(f"{dialect.upper()}_BASE_URL", there.root)
        for more in ([], ["--json"]):
            assert cli.main(["ask", "hi", "-m", "fault-modle", *more]) == 1
            out, err = capsys.readouterr()
            assert out == ""
            assert f"Set {dialect.upper()}_MODEL or --model to fault-model. The server has fault-model." in err
            assert ("Get the model" in err) is bool(command)
            assert command is None or f"Get the model: `{command} fault-modle`." in err


def test_warm_up_continues_after_failed_provider(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLM_PROVIDERS", "openai,ollama")
    server.responses |= {"/api/ps": {"models": []}, "/api/generate": {"done": True, "done_reason": "load"}}
    assert cli.main(["warm-up"]) == 0
    out, err = capsys.readouterr()
    assert "ollama: fault-model is loaded" in out
    assert "OPENAI_API_KEY" in err
    monkeypatch.setenv("LLM_PROVIDERS", "openai")
    assert cli.main(["warm-up"]) == 3


def test_warm_up_that_a_server_refuses_is_exit_code_1(server: FaultServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.responses |= {"/api/ps": {"models": []}}
    assert cli.main(["warm-up", "-m", "nosuch"]) == 1
    assert "the server does not have the model" in capsys.readouterr().err


def test_warm_up_prints_result(server: FaultServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.responses |= {"/api/ps": {"models": []}, "/api/generate": {"done": True, "done_reason": "load"}}
    assert cli.main(["warm-up", "--keep-alive", "30m"]) == 0
    assert re.fullmatch(r"ollama: fault-model is loaded \([0-9.]+ s\)\n", capsys.readouterr().out)
    server.responses["/api/ps"] = {"models": [{"name": "fault-model", "context_length": 4096}]}
    assert cli.main(["warm-up"]) == 0
    assert capsys.readouterr().out == "ollama: fault-model was already loaded\n"


def test_version_and_shell_completion() -> None:
    command = [sys.executable, "-m", "learnflow.llm", "--version"]
    assert re.fullmatch(r"learnflow-llm \d+\.\d+\.\d+\n", subprocess.check_output(command, text=True))
    environment = {**os.environ, "_LEARNFLOW_LLM_COMPLETE": "bash_complete"}
    for words, offered in ((["learnflow-llm", "wa"], "warm-up"), (["learnflow-llm", "ask", "-p", "olla"], "ollama")):
        more = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
        completions = subprocess.check_output(command[:-1], text=True, env={**environment, **more})
        assert completions == f"plain,{offered}\n"
