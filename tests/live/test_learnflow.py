"""LearnFlow's own graph on our layer, inside a copy of its checkout (``make live``).

Needs ``LEARNFLOW_CHECKOUT`` (its folder), ``LEARNFLOW_PYTHON`` (an interpreter with its dependencies and ours),
``LIVE_ANSWERS``, and ``LEARNFLOW_SERVE``: a command that serves the same model with llama.cpp at the port that stands
for ``{port}``; the servers are started and killed here. ``LEARNFLOW_COMPOSE`` is a Compose 2.24 or newer, and
``LEARNFLOW_UV`` a uv that reaches a package registry, for the tests that say so.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shlex
import shutil
import signal
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from learnflow_checkout import (
    CALLS,
    NEEDED,
    PROMPTS,
    QUESTION,
    checkout,
    environment,
    known,
    llamacpp,
    service,
    watched,
)
from support import LIVE, ROOT

__all__ = ["checkout", "service"]  # fixtures
pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(any(not LIVE.get(name) for name in NEEDED), reason=f"needs {', '.join(NEEDED)}"),
]


def chain(first: str, other: str) -> dict[str, str]:
    """Two llama.cpp servers, one after the other."""
    names = {"LLM_PROVIDERS": "llamacpp,second", "SECOND_KIND": "llamacpp"}
    return {**names, "LLAMACPP_BASE_URL": first, "SECOND_BASE_URL": other}


async def run(checkout: Path, service: Any, **variables: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The state at the end of the graph, and our events (with ``STREAM_MODE=messages`` the tokens, too)."""
    ran = await asyncio.create_subprocess_exec(
        LIVE["LEARNFLOW_PYTHON"],
        str(Path(__file__).parent / "learnflow_driver.py"),
        QUESTION,
        cwd=checkout,
        env={**environment(checkout, service), **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(ran.communicate(), 300)
    assert ran.returncode == 0, err.decode()[-3000:]
    said = [json.loads(line) for line in out.decode().splitlines()]
    return said[-1]["state"], [each for each in said if "event" in each or "token" in each]


def answers(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(event["provider"], event["finish"]) for event in events if event["event"] == "Answered"]


def is_whole(state: dict[str, Any]) -> None:
    asked = json.loads(known(PROMPTS["generating_questions"]))["questions"]
    assert state["generated_material"] == known(PROMPTS["generating_content"])
    assert state["synthesized_material"] == known(PROMPTS["synthesis_material"])
    assert state["questions"] == asked
    answer = known(PROMPTS["answer_question"])
    assert sorted(state["questions_and_answers"]) == sorted(f"## {question}\n\n{answer}" for question in asked)


async def test_its_graph_runs_to_its_end(checkout: Path, service: Any) -> None:
    async with llamacpp() as (url, _):
        state, events = await run(checkout, service, LLM_PROVIDER="llamacpp", LLAMACPP_BASE_URL=url)
    is_whole(state)
    assert answers(events) == [("llamacpp", "stop")] * CALLS
    lowered = [event["why"] for event in events if event["event"] == "Adjusted"]
    assert len([why for why in lowered if "instead of 25000" in why]) == 2  # content, synthesis
    told = [each["body"] for each in service.traced if each["type"] == "generation-update"]
    assert len(told) == CALLS
    assert all(each["usage"]["output"] > 0 and each["model"] for each in told)


@pytest.mark.parametrize("pieces", [1, 20, 60])
async def test_the_first_server_is_killed_in_the_middle(checkout: Path, service: Any, pieces: int) -> None:
    async with (
        llamacpp() as (url, server),
        llamacpp() as (other, _),
        watched(url, "generating_content", pieces, server.kill) as address,
    ):
        state, events = await run(checkout, service, **chain(address, other))
        assert await server.wait() == -signal.SIGKILL
    is_whole(state)
    assert [finish for _, finish in answers(events)] == ["stop"] * CALLS
    assert [provider for provider, _ in answers(events)] == ["llamacpp"] * 2 + ["second"] * (CALLS - 2)
    assert [event["in_words"] for event in events if event["event"] == "Resumed"] == [False]


async def test_recorded_and_replayed_with_no_server(checkout: Path, service: Any, tmp_path: Path) -> None:
    cassettes = {"LLM_REPLAY": str(tmp_path / "cassettes")}
    async with llamacpp() as (url, _), llamacpp() as (other, _):
        recorded, then = await run(checkout, service, **cassettes, **chain(url, other), LLM_REPLAY_MODE="record")
    replayed, now = await run(checkout, service, **cassettes, **chain(url, other))
    is_whole(replayed)
    recorded["questions_and_answers"].sort()
    replayed["questions_and_answers"].sort()
    assert replayed == recorded
    assert answers(now) == answers(then) == [("llamacpp", "stop")] * CALLS


async def test_messages_mode_streams_the_texts_token_by_token(checkout: Path, service: Any) -> None:
    """What a streaming interface of LearnFlow's would read: ``stream_mode=["updates", "messages"]``."""
    async with llamacpp() as (url, _):
        _, said = await run(checkout, service, LLM_PROVIDER="llamacpp", LLAMACPP_BASE_URL=url, STREAM_MODE="messages")
    for node in ("generating_content", "synthesis_material"):
        pieces = [each["token"] for each in said if each.get("of") == node]
        assert len(pieces) > 20
        assert "".join(pieces) == known(PROMPTS[node])


async def test_spans_reach_langfuse_by_otlp(checkout: Path, service: Any) -> None:
    """The recipe of docs/learnflow.md; the interpreter needs opentelemetry-exporter-otlp-proto-http."""
    key = base64.b64encode(b"public:secret").decode()
    recipe = {
        "LLM_OPENTELEMETRY": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{service.server_address[1]}/api/public/otel",
        "OTEL_EXPORTER_OTLP_HEADERS": f"Authorization=Basic%20{key}",
    }
    async with llamacpp() as (url, _):
        state, _ = await run(checkout, service, LLM_PROVIDER="llamacpp", LLAMACPP_BASE_URL=url, **recipe)
    is_whole(state)
    paths, keys, bodies = zip(*service.spans, strict=True)
    assert set(paths) == {"/api/public/otel/v1/traces"}
    assert set(keys) == {f"Basic {key}"}
    sent = b"".join(bodies)
    assert sent.count(b"gen_ai.request.model") >= CALLS
    assert known(PROMPTS["answer_question"]).encode() not in sent, "no answers, unless they are asked for"


@pytest.mark.skipif(not LIVE.get("LEARNFLOW_UV"), reason="needs LEARNFLOW_UV")
def test_what_copy_into_says_is_all_there_is_to_do(checkout: Path) -> None:
    check = [LIVE["LEARNFLOW_PYTHON"], "learnflow/llm", "copy-into", "--check", "."]
    ran = subprocess.run(check, cwd=checkout, capture_output=True, text=True, check=False)
    (command,) = [line.partition(": ")[2] for line in ran.stdout.splitlines() if "uv add" in line]
    words = [LIVE["LEARNFLOW_UV"], *shlex.split(command)[1:], "--no-sync", "--python", LIVE["LEARNFLOW_PYTHON"]]
    added = subprocess.run(words, cwd=checkout, capture_output=True, text=True, check=False, timeout=300)
    assert added.returncode == 0, added.stderr
    ran = subprocess.run(check, cwd=checkout, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    frozen = [LIVE["LEARNFLOW_UV"], "lock", "--check", "--python", LIVE["LEARNFLOW_PYTHON"]]
    assert subprocess.run(frozen, cwd=checkout, capture_output=True, check=False, timeout=300).returncode == 0
    locked = {
        each["name"]: each.get("version") for each in tomllib.loads((checkout / "uv.lock").read_text())["package"]
    }
    assert locked["langchain"].startswith("0."), "Langfuse 2.60 does not know LangChain 1"


@pytest.mark.skipif(not LIVE.get("LEARNFLOW_COMPOSE"), reason="needs LEARNFLOW_COMPOSE")
@pytest.mark.parametrize("profiles", [[], ["local-llm"], ["local-llm", "monitoring", "langfuse"]], ids=str)
def test_its_compose_file_and_our_override_are_one_project(checkout: Path, profiles: list[str]) -> None:
    (checkout.parent / "learnflow.llm").symlink_to(ROOT)
    shutil.copy(ROOT / "compose" / "learnflow.env.example", checkout / "llm.env")
    shutil.copy(checkout / "env.example", checkout / ".env")
    words = [*shlex.split(LIVE["LEARNFLOW_COMPOSE"]), *(f"--profile={name}" for name in profiles)]
    files = ["-f", "docker-compose.yaml", "-f", "../learnflow.llm/compose/learnflow.yaml"]
    plain = {"PATH": LIVE["PATH"], "HOME": str(checkout)}
    ran = subprocess.run(
        [*words, *files, "config"], cwd=checkout, capture_output=True, text=True, check=False, env=plain
    )
    assert ran.returncode == 0, ran.stderr
    said = yaml.safe_load(ran.stdout)
    graph = said["services"]["graph"]
    assert graph["environment"]["OLLAMA_BASE_URL"] == "http://ollama:11434"
    assert graph["environment"]["LEARNFLOW_HOST"] == "graph", "its own list is kept"
    assert set(graph["networks"]) == {"default", "llm"}
    assert ("ollama-warm-up" in said["services"]) == ("local-llm" in profiles)
    if profiles:
        assert said["services"]["ollama-pull"]["command"] == [graph["environment"]["OLLAMA_MODEL"]]
    (checkout / ".env").write_text(
        "COMPOSE_FILE=docker-compose.yaml:../learnflow.llm/compose/learnflow.yaml\nCOMPOSE_PROFILES=local-llm\n"
        + (checkout / "env.example").read_text(encoding="utf-8"),
        encoding="utf-8",
    )
    services = subprocess.run(
        [*words[:1], "config", "--services"], cwd=checkout, capture_output=True, text=True, check=False, env=plain
    )
    assert {"graph", "ollama-warm-up"} <= set(services.stdout.split()), services.stderr


def test_the_command_by_its_path_does_not_load_the_graph(checkout: Path) -> None:
    def modules(*words: str) -> str:
        ran = subprocess.run(
            [LIVE["LEARNFLOW_PYTHON"], "-X", "importtime", *words, "ask", "--help"],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=True,
        )
        return ran.stderr

    assert "langgraph" in modules("-m", "learnflow.llm")
    assert "langgraph" not in modules("learnflow/llm")
    assert "Warning" not in modules("learnflow/llm")
