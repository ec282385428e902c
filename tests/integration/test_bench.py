"""``benchmarks/bench.py``: how fast each provider answers here."""

from __future__ import annotations

import json
from typing import Any

import bench
import pytest
from support import serving

from learnflow.llm.testing import Fault, FaultServer, closed_port


@pytest.mark.parametrize(
    ("answers", "rate"),
    [
        ([(0.1, 0.6, 51)], 100),
        ([(0.1, 0.12, 3)] * 9, 100),  # each of them is too short
        ([(0.1, 0.6, 51), (5.0, 5.01, 500)], 100),  # the second one arrived in one piece
        ([(0.1, 0.12, 3)], None),
        ([(5.0, 5.2, 500)], None),
        ([(None, None, None)], None),
        ([], None),
    ],
)
def test_rate_is_that_of_all_answers_together(answers: list[Any], rate: float | None) -> None:
    result = bench.Result("vllm", "m", answers=[bench.Answer(0, *answer) for answer in answers])
    assert result.measures()["tokens_per_s"] == (rate and pytest.approx(rate))


def test_bench_shows_every_provider(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    server, broken = FaultServer("llamacpp", thinking="hm"), FaultServer("ollama", fault=Fault("refuse", status=500))
    with serving(server, broken):
        monkeypatch.setenv("LLM_PROVIDERS", "llamacpp,ollama")
        monkeypatch.setenv("LLAMACPP_BASE_URL", server.root)
        monkeypatch.setenv("OLLAMA_BASE_URL", broken.root)
        assert bench.main(["--rounds", "2"]) == 0
        titles, first, second = capsys.readouterr().out.splitlines()
        assert titles.split()[:2] == ["PROVIDER", "MODEL"]
        assert first.split()[0] == "llamacpp"
        assert first.endswith(" -")
        assert second.split()[-2:] == ["6", "ServerFailed"]
        assert len(server.seen) == 6
        assert {seen.body["temperature"] for seen in server.seen} == {0}
        assert bench.main(["--rounds", "1", "--json", "-p", "llamacpp", "-m", "fault-model"]) == 0
        (result,) = json.loads(capsys.readouterr().out)
        assert (result["provider"], result["model"], len(result["answers"])) == ("llamacpp", "fault-model", 3)
        assert result["total_s"] >= result["first_token_s"] > 0
        assert bench.main(["--rounds", "1", "-p", "ollama"]) == 1


def test_bench_without_ready_provider_is_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLM_PROVIDER", "llamacpp")
    monkeypatch.setenv("LLAMACPP_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    assert bench.main([]) == 1
    assert "llamacpp is skipped" in capsys.readouterr().err
