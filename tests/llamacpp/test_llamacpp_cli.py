"""The command line on a real llama.cpp server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import bench
import pytest
from llama import RSA, TEXTS, LlamaServer
from support import relay

from learnflow.llm.cli.main import main


@pytest.fixture
def configured(llama_server: LlamaServer, monkeypatch: pytest.MonkeyPatch) -> LlamaServer:
    """Configure the server. Lines have 80 columns."""
    monkeypatch.setenv("LLM_PROVIDER", "llamacpp")
    monkeypatch.setenv("LLAMACPP_BASE_URL", llama_server.url)
    monkeypatch.setenv("LLAMACPP_API_KEY", llama_server.key)
    monkeypatch.setenv("COLUMNS", "80")
    return llama_server


def test_ask_names_the_model_that_answered_instead_of_the_requested_one(
    configured: LlamaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", RSA, "-t", "0", "--model", "nosuch"]) == 0
    assert capsys.readouterr() == (
        f"{TEXTS[RSA]}\n",
        "learnflow-llm: llamacpp answered with the model tiny instead of nosuch\n",
    )
    assert main(["ask", RSA, "-t", "0"]) == 0
    assert capsys.readouterr().err == ""


def test_status_and_warm_up_name_the_model_that_would_answer(
    configured: LlamaServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["warm-up", "-m", "foo"]) == 0
    assert capsys.readouterr().out == "llamacpp: tiny instead of foo was already loaded\n"
    monkeypatch.setenv("LLAMACPP_MODEL", "foo")
    assert main(["status"]) == 0
    assert "llamacpp: ready; the server answers with tiny, not with foo\n" in capsys.readouterr().out


def test_explain_with_probe_names_the_model_that_would_answer(
    configured: LlamaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = {}
    for words in ((), ("-m", "nosuch"), ("--probe",), ("--probe", "-m", "nosuch")):
        assert main(["explain", *words]) == 0
        _, *rows = capsys.readouterr().out.splitlines()
        shown[words] = " ".join(" ".join(rows).split())
    assert shown[()].startswith("1 llamacpp - unknown would be used")
    assert shown["-m", "nosuch"].startswith("1 llamacpp nosuch unknown would be used")
    assert shown["--probe",] == "1 llamacpp tiny yes would serve"
    assert shown["--probe", "-m", "nosuch"] == (
        "1 llamacpp tiny yes would serve; the server answers with tiny, not with nosuch"
    )


def test_ask_names_the_limit_at_which_an_answer_ended_and_the_option(
    configured: LlamaServer, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", RSA, "-t", "0", "--max-tokens", "7"]) == 0
    out, err = capfd.readouterr()
    assert TEXTS[RSA].startswith(out.removesuffix("\n"))
    assert err == (
        "learnflow-llm: llamacpp: The answer ended at --max-tokens 7. Raise --max-tokens,\n"
        "or request a shorter answer\n"
    )


def test_notice_of_a_cut_answer_begins_a_line(configured: LlamaServer, capfd: pytest.CaptureFixture[str]) -> None:
    """Both streams are one file, as on a terminal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", sys.stdout)
        assert main(["ask", RSA, "-t", "0", "--max-tokens", "7"]) == 0
    answer, notice, *_ = capfd.readouterr().out.splitlines()
    assert TEXTS[RSA].startswith(answer)
    assert notice.startswith("learnflow-llm: ")


def test_answer_that_filled_the_context_is_no_reason_to_raise_max_tokens(
    configured: LlamaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", f"{RSA}. " + "word " * 480, "-t", "0"]) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "because the context was full. Shorten the prompt, or serve the model with a larger context length" in err
    assert "(--ctx-size)" in err
    assert "--max-tokens" not in err
    assert main(["ask", "word " * 3000]) == 1
    assert "serve the model with a larger context (--ctx-size), or" in " ".join(capsys.readouterr().err.split())


async def test_sole_server_killed_in_the_middle_is_exit_code_1(
    start_llama: Callable[..., LlamaServer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start_llama(slots=1)
    monkeypatch.setenv("LLM_PROVIDER", "llamacpp")
    monkeypatch.setenv("LLAMACPP_API_KEY", server.key)
    async with relay(server.url, 20, server.killed) as url:
        monkeypatch.setenv("LLAMACPP_BASE_URL", url)
        assert await asyncio.to_thread(main, ["ask", RSA, "-t", "0"]) == 1
    out, err = capsys.readouterr()
    assert len(out) > 20
    assert TEXTS[RSA].startswith(out.removesuffix("\n"))
    assert err.startswith("learnflow-llm: llamacpp")


def test_bench_measures_fast_answers(configured: LlamaServer, capfd: pytest.CaptureFixture[str]) -> None:
    """On a busy machine, the pieces of an answer may arrive together. Then it has no rate, and the bench says why."""
    assert bench.main(["--max-tokens", "12"]) == 0
    out, err = capfd.readouterr()
    _, row = out.splitlines()
    name, model, _, first, rate, total, tokens, failed = row.split()
    assert (name, model, tokens, failed) == ("llamacpp", "tiny", "12", "-")
    assert 0 < float(first) <= float(total)
    assert "no tokens per second" in err if rate == "-" else (float(rate) > 12 / float(total), err) == (True, "")
