"""The commands status, models and doctor. The default ports are replaced by free ones."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import FASTAPI, status

from learnflow.llm import discovery, errors, get_provider, settings, settings_sources
from learnflow.llm.cli.main import main
from learnflow.llm.cli.variables import find_misspelt, variables
from learnflow.llm.providers.registry import SPECS, vendor_specs
from learnflow.llm.testing import FaultServer
from learnflow.llm.testing.fault_server import closed_port

KEYS = {"provider", "base_url", "state", "version", "latency_s", "models", "capabilities", "detail"}


@contextlib.contextmanager
def served(dialect: str, **more: Any) -> Iterator[tuple[str, FaultServer]]:
    """Run a fault server in a thread, for code that runs its own event loop. Yield its address and the server."""
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


def test_status_json_and_exit_codes(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with served("vllm") as (root, _):
        usual["vllm"] = root
        code, listed = status(capsys)
        assert code == 0  # no provider is named, and a local server is ready
        assert [item["provider"] for item in listed] == ["vllm"]  # and no other provider
        code, listed = status(capsys, "--all")
        by_row = {item["provider"]: item for item in listed}
        assert all(set(item) >= KEYS for item in listed)
        assert by_row["vllm"]["state"] == "ready"
        assert by_row["vllm"]["version"] == "0.32.0"
        assert by_row["vllm"]["models"] == ["fault-model"]
        assert by_row["vllm"]["capabilities"]["context_served"] == 8192
        assert by_row["vllm"]["capabilities"]["vision"] is None
        assert by_row["ollama"]["state"] == "down"
        monkeypatch.setenv("LLM_PROVIDER", "ollama")
        assert status(capsys)[0] == 3  # a server is ready, but not the named one
        monkeypatch.setenv("LLM_PROVIDERS", "ollama,openai")
        code, listed = status(capsys)
        keyless = next(item for item in listed if item["provider"] == "openai")
        assert (code, keyless["state"]) == (3, "unauthorised")
        assert "OPENAI_API_KEY" in keyless["detail"]


def test_status_and_models_print_tables(usual: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with served("ollama", responses={"/api/ps": {"models": []}}) as (root, _):
        usual["ollama"] = root
        assert main(["status", "--all"]) == 0
        shown = capsys.readouterr().out
        assert "* ollama    ready, cold  fault-model" in shown
        assert "Ollama 0.33.0" in shown
        assert "Start vLLM at" in shown
        assert "\n  groq: https://api.groq.com/openai/v1, GROQ_API_KEY\n" in shown
        assert all(f"\n  {name}: " in shown for name in vendor_specs())
        assert main(["status"]) == 0
        shown = capsys.readouterr().out
        assert "vLLM" not in shown
        assert "groq" not in shown
        assert main(["models"]) == 0
        shown = capsys.readouterr().out
        assert "fault-model" in shown
        assert "8192" in shown


def test_doctor_prints_variables_probes_warnings_and_lines(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served("ollama") as (root, _):
        usual["ollama"] = root
        (tmp_path / ".env").write_text("OLLAMA_HOST=elsewhere\nOPENAI_API_KEY=sk-very-secret\n", encoding="utf-8")
        monkeypatch.setenv("VLLM_BASE_URL", "http://localhost:1")
        monkeypatch.setenv("HTTPS_PROXY", "http://user:password@proxy:1")
        monkeypatch.setattr(settings_sources, "in_container", lambda: True)
        code = main(["doctor", "--timeout", "5"])
        shown = capsys.readouterr().out
    assert code == 0
    for needed in (
        "This is a container",
        "OLLAMA_HOST (in .env)",
        "OPENAI_API_KEY (in .env)",
        "  ollama    ready",
        "https_proxy is set",
        "http://localhost:1/v1 is this container itself",
        "LLM_PROVIDER=ollama",
        f"OLLAMA_BASE_URL={root}",
        "OLLAMA_MODEL=fault-model",
    ):
        assert needed in shown
    assert "sk-very" not in shown
    assert "password" not in shown


@pytest.mark.parametrize("file", [".env", ".env.local"])
def test_doctor_reports_file_that_is_not_utf_8_among_the_others(
    file: str, usual: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / file).write_bytes("LLM_ROUTING=cost\nNAME=Ольга\n".encode("cp1251"))
    with served("ollama") as (usual["ollama"], _):
        assert main(["status"]) == 3
        assert f"{file} cannot be read (UnicodeDecodeError)" in capsys.readouterr().err
        assert main(["doctor"]) == 3
        out, err = capsys.readouterr()
    title = "Invalid values, replaced below by the defaults"
    assert f"{title}:\n  {file} cannot be read (UnicodeDecodeError). It must be UTF-8 text" in out
    assert re.search("ollama +ready", out)
    assert f"\n  {file}=" not in out
    assert err == ""


def test_shadowed_variable_names_winning_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_PATIENCE")
    (tmp_path / ".env").write_text("OLLAMA_BASE_URL=http://a\nLLM_PROVIDER=ollama\n", encoding="utf-8")
    (tmp_path / ".env.local").write_text("LLM_PROVIDER=vllm\n", encoding="utf-8")
    monkeypatch.setenv("OLLAMA_HOST", "b")
    listed = {(one.name, one.source): one.overridden_by for one in variables(SPECS.values())}
    assert listed == {
        ("LLM_PROVIDER", ".env"): None,
        ("LLM_PROVIDER", ".env.local"): "LLM_PROVIDER in .env",
        ("OLLAMA_BASE_URL", ".env"): "OLLAMA_HOST in the environment",
        ("OLLAMA_HOST", "the environment"): None,
    }
    assert settings.load().chain == [("ollama",)]
    assert settings.load_provider(SPECS["ollama"]).base_url == "b"


def test_status_models_and_doctor_do_not_import_litellm() -> None:
    code = (
        "import sys; from learnflow.llm.cli.main import main;"
        "codes = [main([command]) for command in ('status', 'models', 'doctor')];"
        "print(codes, 'litellm' in sys.modules, file=sys.stderr)"
    )
    environment = {**os.environ, "LLM_PROVIDER": "custom", "CUSTOM_BASE_URL": f"http://127.0.0.1:{closed_port()}"}
    ran = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment, timeout=60
    )
    assert ran.stderr.endswith("[3, 3, 3] False\n"), ran.stderr


def test_invalid_variable_affects_only_its_provider(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_CAPABILITIES", "bogus")
    with served("ollama") as (root, _):
        usual["ollama"] = root
        code, listed = status(capsys)
        states = {item["provider"]: item["state"] for item in listed}
        assert (code, states["vllm"], states["ollama"]) == (0, "misconfigured", "ready")
        monkeypatch.setenv("LLM_CONNECT_TIMEOUT", "0")
        assert main(["doctor"]) == 3
        shown = capsys.readouterr().out
        assert "LLM_CONNECT_TIMEOUT (in the environment)" in shown
        assert "  LLM_CONNECT_TIMEOUT must be" in shown
        assert "  VLLM_CAPABILITIES is invalid" in shown


async def test_other_server_at_default_address_is_misconfigured(usual: dict[str, str]) -> None:
    locked = (401, {"error": {"code": "invalid_api_key", "message": "An LM Studio API token is required"}})
    pages = dict.fromkeys(("/v1/models", "/api/v1/models", "/api/v0/models"), locked)
    async with FaultServer("openai", responses=FASTAPI) as app, FaultServer("lmstudio", responses=pages) as studio:
        usual["vllm"], usual["lmstudio"] = app.root, studio.root
        states = {item.health.provider: item.health.state for item in await discovery.scan()}
        assert (states["vllm"], states["lmstudio"]) == ("misconfigured", "unauthorised")
        with pytest.raises(errors.NotConfigured, match=f"vllm at {app.root}/v1: misconfigured"):
            await get_provider().generate("hi")


def test_status_explains_which_of_two_addresses_is_used(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setenv("LLM_PROVIDER", "ollama")
    monkeypatch.setenv("OLLAMA_BASE_URL", wrong)
    with served("ollama") as (root, _):
        usual["ollama"] = root
        assert main(["status"]) == 3
        shown = capsys.readouterr().out
        assert "*" not in shown  # neither would be used
        assert f"ollama at {root} is not used: OLLAMA_BASE_URL is {wrong}" in shown
        assert f"To use it: OLLAMA_BASE_URL={root}" in shown


def test_status_marks_first_ready_provider_of_chain(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLM_PROVIDERS", "openai,vllm")
    monkeypatch.setenv("OPENROUTER_API_KEY", "k")  # clouds are not discovered
    with served("vllm") as (root, _), served("llamacpp") as (other, _):
        monkeypatch.setenv("VLLM_BASE_URL", root)
        usual["llamacpp"] = other
        assert main(["status"]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in shown[1:4]] == ["openai", "*", "llamacpp"]
        assert "  openai    unauthorised  -" in shown[1]
        assert "openai: there is no key for this address. Set OPENAI_API_KEY" in shown[4]  # its name only once


def test_missing_server_is_reported_in_one_wording_on_stderr(
    usual: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["status"], ["models"], ["explain"], ["ask", "hi"], ["warm-up"]):
        assert main(command) == 3
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"learnflow-llm: {discovery.NO_SERVER}")
    assert main(["doctor"]) == 3
    assert f"  none: {discovery.NO_SERVER}\n" in capsys.readouterr().out


@pytest.mark.usefixtures("usual")
def test_models_states_why_a_named_provider_lists_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPU1_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    assert main(["models", "-p", "gpu1"]) == 3
    assert "gpu1: GPU1_KIND is not set" in capsys.readouterr().err
    monkeypatch.setenv("GPU1_KIND", "embedded")  # has no address
    assert main(["models", "-p", "gpu1"]) == 3
    assert "use GPU1_KIND=llamacpp" in capsys.readouterr().err


@pytest.mark.usefixtures("usual")
def test_doctor_prints_lines_of_env_file_that_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    Path(".env").write_text("OLLAMA_BASE_URL=http://127.0.0.1:9\n\nOLLAMA_MODEL llama3\n", encoding="utf-8")
    main(["doctor", "--provider", "ollama"])
    assert "  .env, line 3 cannot be read: write NAME=value\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("OPENAI_MODEL_NAME", "OPENAI_MODEL"),
        ("LLAMACPP_BASEURL", "LLAMACPP_BASE_URL"),
        ("OPENAI_KEY", "OPENAI_API_KEY"),
        ("LLM_RETRYS", "LLM_RETRIES"),
        ("OLLAMA_MODLE", "OLLAMA_MODEL"),
        ("OLAMA_BASE_URL", "OLLAMA_BASE_URL"),
        ("LLM_PROVIDR", "LLM_PROVIDER"),
    ],
)
def test_doctor_suggests_correct_name_of_misspelt_variable(
    name: str,
    near: str,
    usual: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / ".env").write_text(f"{name}=x\n", encoding="utf-8")
    assert main(["doctor"]) == 3
    assert f"{name} (in .env) has no effect: did you mean {near}?" in capsys.readouterr().out


def test_only_doctor_reports_unknown_variable_that_resembles_no_setting(
    usual: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("LLM_COLOUR=blue\n", encoding="utf-8")
    main(["status"])
    assert "LLM_COLOUR" not in "".join(capsys.readouterr())
    main(["doctor"])
    assert "LLM_COLOUR (in .env) has no effect: this package has no such setting" in capsys.readouterr().out


def test_variables_of_other_programs_are_not_misspelt(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *("OLLAMA_MODELS", "OLLAMA_KEEP_ALIVE", "OLLAMA_NUM_PARALLEL", "OLLAMA_CONTEXT_LENGTH", "OLLAMA_ORIGINS"),
        *("ANTHROPIC_CUSTOM_HEADERS", "VLLM_MODEL_REDIRECT_PATH"),
        *("XAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_API_TYPE", "VLLM_LOGGING_LEVEL", "GROQ_API_KEY", "LLM_MODEL_NOTES"),
    ):
        monkeypatch.setenv(name, "x")
    assert list(find_misspelt(SPECS.values(), vendor_specs().values())) == []


def test_doctor_advises_missing_key_before_other_provider(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLM_PROVIDER", "openai")
    assert main(["doctor"]) == 3
    assert capsys.readouterr().out.endswith("Lines for .env:\n  # the key of openai\n  OPENAI_API_KEY=…\n")
    with served("ollama") as (root, _):
        usual["ollama"] = root
        assert main(["doctor"]) == 3
        shown = capsys.readouterr().out
        assert "Lines for .env:\n  # the key of openai\n  OPENAI_API_KEY=…\n" in shown
        assert "Lines for the environment:\n  # or\n  # export LLM_PROVIDER=ollama\n" in shown


def test_doctor_does_not_warn_about_responding_server(
    usual: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(settings_sources, "in_container", lambda: True)
    monkeypatch.setenv("LLM_PROVIDER", "ollama")
    monkeypatch.setenv("OLLAMA_MODEL", "another")
    with served("ollama") as (root, _):
        monkeypatch.setenv("OLLAMA_BASE_URL", root)
        assert main(["doctor"]) == 3
    shown = capsys.readouterr().out
    assert "model_missing" in shown
    assert "this container itself" not in shown


def _worker(**more: object) -> dict[str, object]:
    return {"url": "http://10.0.0.5:8000", "model_id": "unknown", "is_healthy": True, "load": 0, **more}


@pytest.mark.parametrize("dialect", ["vllm", "llamacpp", "openai"])  # a router forwards the pages of its servers
def test_doctor_recognises_router_of_several_servers(
    dialect: str, monkeypatch: pytest.MonkeyPatch, usual: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    workers = [_worker(), _worker(is_healthy=False)]
    with served(dialect, responses={"/workers": {"workers": workers, "total": 2, "stats": {}}}) as (root, _):
        monkeypatch.setenv("LLM_PROVIDER", "gpus")
        monkeypatch.setenv("GPUS_BASE_URL", root)
        monkeypatch.setenv("GPUS_KIND", "custom" if dialect == "openai" else dialect)
        main(["doctor", "--timeout", "5"])
        shown = capsys.readouterr().out
        monkeypatch.setenv("GPUS_MAX_CONCURRENCY", "8")
        main(["doctor", "--timeout", "5"])
        configured = capsys.readouterr().out
    assert f"{root}/v1 is a router of 2 servers (1 unhealthy). Start it with --disable-retries" in shown
    assert "GPUS_MAX_CONCURRENCY to the number of slots of all servers together" in shown
    assert "--disable-retries" in configured
    assert "set GPUS_MAX_CONCURRENCY" not in configured


@pytest.mark.parametrize(
    "page",
    [{}, {"workers": 2}, {"workers": []}, {"workers": ["x"]}, {"workers": [{"name": "x"}]}, (500, {}), b"<html>"],
)
def test_doctor_does_not_take_other_pages_for_router(
    page: object, monkeypatch: pytest.MonkeyPatch, usual: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with served("vllm", responses={"/workers": page}) as (root, _):
        monkeypatch.setenv("VLLM_BASE_URL", root)
        assert main(["doctor", "--timeout", "5"]) == 0
        assert "router" not in capsys.readouterr().out
