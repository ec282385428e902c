"""The lines that ``doctor`` prints work as they are, on a real llama.cpp server."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama import LlamaServer
from support import closed_port, store_tiny_model

from learnflow.llm import settings
from learnflow.llm.cli.main import main

Variables = dict[str, str]


def doctor(capsys: pytest.CaptureFixture[str]) -> str:
    main(["doctor", "--timeout", "60"])
    return capsys.readouterr().out


def paste(shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paste the lines of ``doctor`` where it says: at the end of a file, or into a shell."""
    for target, lines in re.findall(r"\nLines for (.*):\n((?:  .*\n)+)", shown):
        if target != "the environment":
            with Path(target).open("a", encoding="utf-8") as file:
                file.write(lines)
            continue
        ran = subprocess.run(["bash", "-c", f"{lines}env -0"], capture_output=True, text=True, check=True)
        for name, _, value in (item.partition("=") for item in ran.stdout.split("\0") if item):
            if os.environ.get(name) != value:
                monkeypatch.setenv(name, value)


def gpu1(server: LlamaServer, **more: str) -> Variables:
    return {"LLM_PROVIDER": "gpu1", "GPU1_BASE_URL": server.url, "GPU1_API_KEY": server.key, **more}


def down(server: LlamaServer, **more: str) -> Variables:
    """Return a configured server that is down, and one that is not used."""
    dead = {"GPU1_BASE_URL": f"http://127.0.0.1:{closed_port()}", "GPU1_KIND": "llamacpp"}
    return {**dead, "LLAMACPP_BASE_URL": server.url, "LLAMACPP_API_KEY": server.key, **more}


CASES: dict[str, Callable[[LlamaServer], Variables]] = {
    "nothing is named": lambda server: {"LLAMACPP_BASE_URL": server.url, "LLAMACPP_API_KEY": server.key},
    "LLM_PROVIDER is down": lambda server: down(server, LLM_PROVIDER="gpu1"),
    "LLM_PROVIDERS is down": lambda server: down(server, LLM_PROVIDERS="gpu1"),
    "both, and LLM_PROVIDERS is down": lambda server: down(server, LLM_PROVIDERS="gpu1", LLM_PROVIDER="llamacpp"),
    "LLM_PROVIDERS names nothing": lambda server: down(server, LLM_PROVIDERS=",", LLM_PROVIDER="gpu1"),
    "LLM_PROVIDER is misspelt": lambda server: down(server, LLM_PROVIDER="lamacpp"),
    "LLM_PROVIDER is no name": lambda server: down(server, LLM_PROVIDER="llama cpp"),
    "the endpoint has no kind": gpu1,
    "the kind of the endpoint is unknown": lambda server: gpu1(server, GPU1_KIND="lamacpp"),
    "invalid values": lambda server: down(
        server,
        LLM_PROVIDER="llamacpp",
        LLM_ROUTING="foo",
        LLM_RETRIES="many",
        LLM_REPLAY_MODE="x",
        LLAMACPP_CONTEXT="big",
        GPU1_CONTEXT="big",
    ),
    "invalid values, and LLM_PROVIDERS is down": lambda server: down(
        server, LLM_PROVIDERS="gpu1", LLM_LOCAL_NETWORKS="x", LLM_METRICS_PORT="0", GPU1_CONTEXT="big"
    ),
    "a key of a cloud with an invalid value": lambda server: down(
        server, LLM_PROVIDERS="gpu1", OPENAI_API_KEY="k", OPENAI_CAPABILITIES="flying"
    ),
}


@pytest.mark.parametrize("source", ["the environment", ".env", ".env.local"])
@pytest.mark.parametrize("case", CASES)
def test_status_is_ready_after_the_lines_were_pasted(
    case: str,
    source: str,
    llama_server: LlamaServer,
    usual: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    variables = CASES[case](llama_server)
    monkeypatch.setenv("COLUMNS", "80")
    if source == "the environment":
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
    else:
        Path(source).write_text("".join(f"{name}={value}\n" for name, value in variables.items()), encoding="utf-8")
    shown = doctor(capsys)
    assert max(map(len, shown.splitlines())) <= 80
    paste(shown, monkeypatch)
    assert "\nLines for " in shown
    assert main(["status", "--timeout", "60"]) == 0
    assert re.search(r"^\* (llamacpp|gpu1) +ready +tiny ", capsys.readouterr().out, re.MULTILINE)
    assert main(["doctor", "--timeout", "60"]) == 0
    assert "\nLines for " not in capsys.readouterr().out


def test_missing_key_is_a_line_to_fill_in(
    llama_server: LlamaServer, usual: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(".env").write_text(f"LLM_PROVIDER=llamacpp\nLLAMACPP_BASE_URL={llama_server.url}\n", encoding="utf-8")
    shown = doctor(capsys)
    assert shown.endswith("\nLines for .env:\n  # the key of llamacpp\n  LLAMACPP_API_KEY=…\n")
    paste(shown.replace("…", llama_server.key), monkeypatch)
    assert main(["status", "--timeout", "60"]) == 0


@pytest.mark.parametrize("variables", [{}, {"LLM_PROVIDERS": "llamacpp"}], ids=str)
def test_stored_model_is_used_if_no_server_is_ready(
    variables: Variables, usual: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store_tiny_model(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["doctor", "--timeout", "60"]) == (3 if variables else 0)  # without a name, it is used already
    shown = capsys.readouterr().out
    if variables:  # the line does not replace the server of the user
        paste(shown, monkeypatch)
        assert settings.load().chain == [("llamacpp",)]
        shown = shown.replace("  # export LLM_PROVIDERS=embedded", "  export LLM_PROVIDERS=embedded")
    paste(shown, monkeypatch)
    assert settings.load().chain == [("embedded",)]
    assert main(["status", "--timeout", "60"]) == 0
