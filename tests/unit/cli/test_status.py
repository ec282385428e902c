"""What status and doctor show, and their exit codes. The usual ports are replaced by free ones."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import FASTAPI, status

from learnflow.llm import discovery, errors, get_provider, settings
from learnflow.llm.cli.main import main
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.testing import FaultServer
from learnflow.llm.testing.fault_server import closed_port

KEYS = {"provider", "base_url", "state", "version", "latency_s", "models", "capabilities", "detail"}


@contextlib.contextmanager
def served(dialect: str, **more: Any) -> Iterator[tuple[str, FaultServer]]:
    """A server on a loop of its own, for what runs one itself: its address."""
    with asyncio.Runner() as runner:
        ready, done = threading.Event(), asyncio.Event()
        holder: list[FaultServer] = []

        async def serve() -> None:
            async with FaultServer(dialect, **more) as server:  # type: ignore[arg-type]
                holder.append(server)
                ready.set()
                await done.wait()

        thread = threading.Thread(target=lambda: runner.run(serve()), daemon=True)
        thread.start()
        assert ready.wait(10)
        try:
            yield holder[0].root, holder[0]
        finally:
            runner.get_loop().call_soon_threadsafe(done.set)
            thread.join(10)


def test_status_for_programs_and_its_exit_code(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with served("vllm") as (root, _):
        usual["vllm"] = root
        code, found, _ = status(capsys)
        assert code == 0  # nothing is named, and a local one is ready
        by_row = {each["provider"]: each for each in found}
        assert all(set(each) >= KEYS for each in found)
        assert by_row["vllm"]["state"] == "ready"
        assert by_row["vllm"]["version"] == "0.32.0"
        assert by_row["vllm"]["models"] == ["fault-model"]
        assert by_row["vllm"]["capabilities"]["context_served"] == 8192
        assert by_row["vllm"]["capabilities"]["vision"] is None
        assert by_row["ollama"]["state"] == "down"
        monkeypatch.setenv("LLM_PROVIDER", "ollama")
        assert status(capsys)[0] == 3  # one is ready, but not the one that would be used
        monkeypatch.setenv("LLM_PROVIDERS", "ollama,openai")
        code, found, _ = status(capsys)
        keyless = next(each for each in found if each["provider"] == "openai")
        assert (code, keyless["state"]) == (3, "unauthorised")
        assert "OPENAI_API_KEY" in keyless["detail"]


def test_the_tables_for_people(usual: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with served("ollama", tells={"/api/ps": {"models": []}}) as (root, _):
        usual["ollama"] = root
        assert main(["status"]) == 0
        shown = capsys.readouterr().out
        assert "ready (cold)" in shown
        assert "Ollama 0.33.0" in shown
        assert "Start vLLM at" in shown
        assert main(["models"]) == 0
        shown = capsys.readouterr().out
        assert "fault-model" in shown
        assert "8192" in shown


def test_doctor_explains(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served("ollama") as (root, _):
        usual["ollama"] = root
        (tmp_path / ".env").write_text("OLLAMA_HOST=elsewhere\nOPENAI_API_KEY=sk-very-secret\n", encoding="utf-8")
        monkeypatch.setenv("VLLM_BASE_URL", "http://localhost:1")
        monkeypatch.setenv("HTTPS_PROXY", "http://user:password@proxy:1")
        monkeypatch.setattr(settings, "in_container", lambda: True)
        code = main(["doctor", "--within", "0.5"])
        shown = capsys.readouterr().out
    assert code == 0
    for needed in (
        "This is a container",
        "OLLAMA_HOST (in .env)",
        "OPENAI_API_KEY (in .env)",
        f"ollama at {root}: ready",
        "https_proxy is set",
        "http://localhost:1/v1 is this container itself",
        "LLM_PROVIDER=ollama",
        f"OLLAMA_BASE_URL={root}",
        "OLLAMA_MODEL=fault-model",
    ):
        assert needed in shown
    assert "sk-very" not in shown
    assert "password" not in shown


def test_what_has_no_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("OLLAMA_BASE_URL=http://a\nLLM_PROVIDER=ollama\n", encoding="utf-8")
    (tmp_path / ".env.local").write_text("LLM_PROVIDER=vllm\n", encoding="utf-8")
    monkeypatch.setenv("OLLAMA_HOST", "b")
    found = {(one.name, one.where): one.shadowed for one in settings.variables(SPECS.values())}
    assert found == {
        ("LLM_PROVIDER", ".env"): None,
        ("LLM_PROVIDER", ".env.local"): "LLM_PROVIDER in .env",
        ("OLLAMA_BASE_URL", ".env"): "OLLAMA_HOST in the environment",
        ("OLLAMA_HOST", "the environment"): None,
    }
    assert settings.load().chain == ["ollama"]
    assert settings.load_row(SPECS["ollama"]).base_url == "b"


def test_none_of_them_imports_litellm() -> None:
    for command in ("status", "models", "doctor"):
        code = (
            "import sys; from learnflow.llm.cli.main import main; main(sys.argv[1:]);"
            "sys.exit(99 if 'litellm' in sys.modules else 0)"
        )
        environment = {**os.environ, "LLM_PROVIDER": "custom", "CUSTOM_BASE_URL": f"http://127.0.0.1:{closed_port()}"}
        ran = subprocess.run([sys.executable, "-c", code, command], check=False, capture_output=True, env=environment)
        assert ran.returncode == 0, ran.stderr


def test_one_bad_variable_does_not_silence_the_others(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_CAPABILITIES", "bogus")
    with served("ollama") as (root, _):
        usual["ollama"] = root
        code, found, _ = status(capsys)
        states = {each["provider"]: each["state"] for each in found}
        assert (code, states["vllm"], states["ollama"]) == (0, "misconfigured", "ready")
        monkeypatch.setenv("LLM_CONNECT_TIMEOUT", "0")
        assert main(["doctor"]) == 3
        shown = capsys.readouterr()
        assert "LLM_CONNECT_TIMEOUT (in the environment)" in shown.out
        assert "LLM_CONNECT_TIMEOUT" in shown.err


async def test_what_answers_and_is_no_model_server_is_mentioned(usual: dict[str, str]) -> None:
    locked = (401, {"error": {"code": "invalid_api_key", "message": "An LM Studio API token is required"}})
    pages = dict.fromkeys(("/v1/models", "/api/v1/models", "/api/v0/models"), locked)
    async with FaultServer("openai", tells=FASTAPI) as app, FaultServer("lmstudio", tells=pages) as studio:
        usual["vllm"], usual["lmstudio"] = app.root, studio.root
        states = {each.health.provider: each.health.state for each in await discovery.scan()}
        assert (states["vllm"], states["lmstudio"]) == ("misconfigured", "unauthorised")
        with pytest.raises(errors.NotConfigured, match=f"vllm at {app.root}/v1: misconfigured"):
            await get_provider().generate("hi")
