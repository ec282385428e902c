"""LearnFlow's own graph on our layer, inside a copy of its checkout (``make live``).

Needs ``LEARNFLOW_CHECKOUT`` (its folder) and ``LEARNFLOW_PYTHON`` (an interpreter with its dependencies and ours).
The servers are xllamacpp with the tiny model, started and killed here. ``LEARNFLOW_SERVE`` may be another command that
serves the tiny model with llama.cpp at the port that stands for ``{port}``. ``LEARNFLOW_COMPOSE`` is a Compose 2.24 or
newer, and ``LEARNFLOW_UV`` a uv that reaches a package registry, for the tests that name them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import tomllib
from collections.abc import Awaitable, Callable
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
    deciding,
    environment,
    free_port,
    known,
    limit,
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

OnEvent = Callable[[dict[str, Any]], Awaitable[None]]
NOTHING_INJECTED = {"has_injection": False, "injection_text": ""}
AWAY_S = 5.0  # a model of several gigabytes is loaded for longer


def chain(first: str, other: str) -> dict[str, str]:
    """Two llama.cpp servers, one after the other."""
    names = {"LLM_PROVIDERS": "llamacpp,second", "SECOND_KIND": "llamacpp"}
    return {**names, "LLAMACPP_BASE_URL": first, "SECOND_BASE_URL": other}


async def run(
    checkout: Path,
    service: Any,
    *replies: str,
    log: list[str] | None = None,
    seen: OnEvent | None = None,
    **variables: str,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run the graph to its end.

    Args:
        checkout: LearnFlow's folder.
        service: its prompt service.
        replies: the student's messages after the notes. With one of them the human in the loop is on.
        log: LearnFlow's log is appended to it.
        seen: called with each line while the graph runs.
        variables: the environment.

    Returns:
        The state, and our events, the messages to the student and, with ``STREAM_MODE=messages``, the tokens.
    """
    driver = await asyncio.create_subprocess_exec(
        LIVE["LEARNFLOW_PYTHON"],
        *(str(Path(__file__).parent / "learnflow_driver.py"), QUESTION, *replies),
        cwd=checkout,
        env={**environment(checkout, service), **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=2**20,
    )
    assert driver.stdout
    assert driver.stderr
    errors = asyncio.create_task(driver.stderr.read())
    lines: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(300):
            async for line in driver.stdout:
                lines.append(json.loads(line))
                if seen:
                    await seen(lines[-1])
            await driver.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            driver.kill()
        text = (await errors).decode()
    assert driver.returncode == 0, text[-3000:]
    if log is not None:
        log.extend(text.splitlines())
    return lines[-1]["state"], [each for each in lines if {"event", "token", "to_student"} & set(each)]


def of(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event.get("event") == name]


def answers(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(event["provider"], event["finish"]) for event in of(events, "AttemptSucceeded")]


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
    lowered = [event["change"] for event in of(events, "RequestAdjusted")]
    assert len([change for change in lowered if "instead of 25000" in change]) == 2  # content, synthesis
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
    assert [event["by_instruction"] for event in of(events, "Resumed")] == [False]


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


def named(requests: list[str], schema: str) -> list[str]:
    """Return the bodies that ask for this schema."""
    return [body for body in requests if f'"name": "{schema}"' in body]


async def test_a_student_edits_twice_with_a_question_in_between(checkout: Path, service: Any) -> None:
    """The edit node asks for a second schema right after its own decision, which is an assistant message."""
    text = known(PROMPTS["synthesis_material"])
    edits = [("keeping information safe", "protecting data"), ("secret algorithms", "obscurity")]
    student = [
        "Say it shorter, please",
        "Now the last words of the text",
        "That is all, thank you",
        "Use these, please",
    ]
    async with llamacpp() as (url, _):
        with deciding(
            url,
            InjectionResult=[NOTHING_INJECTED],
            ActionDecision=[{"action_type": each} for each in ("edit", "message", "edit", "complete")],
            EditDetails=[
                {"old_text": old, "new_text": new, "continue_editing": number == 0}
                for number, (old, new) in enumerate(edits)
            ],
            EditMessageDetails=[{"content": "Which words?"}],
            QuestionsHITL=[{"next_step": "finalize", "questions": ["What is a collision?"]}],
        ) as proxy:
            state, events = await run(checkout, service, *student, LLM_PROVIDER="llamacpp", LLAMACPP_BASE_URL=proxy.url)
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    assert (state["synthesized_material"], state["edit_count"]) == (text, 2)
    shown = [each["to_student"] for each in events if "to_student" in each]
    assert shown[2:4] == [["Which words?"], ["Правка внесена. Какие еще изменения нужны?"]]
    schemas = ("ActionDecision", "EditDetails", "EditMessageDetails")
    assert [len(named(proxy.requests, schema)) for schema in schemas] == [4, 2, 1], "each is requested once"
    assert of(events, "AttemptFailed") == []
    assert len(state["questions_and_answers"]) == len(json.loads(known(PROMPTS["generating_questions"]))["questions"])


async def test_a_student_has_the_questions_changed(checkout: Path, service: Any) -> None:
    changed = ["What is a key pair?", "Why is factoring hard?"]
    async with llamacpp() as (url, _):
        with deciding(
            url,
            InjectionResult=[NOTHING_INJECTED],
            ActionDecision=[{"action_type": "complete"}],
            QuestionsHITL=[{"next_step": step, "questions": changed} for step in ("clarify", "finalize")],
        ) as proxy:
            student = ["The text is good", "Two questions are enough", "Now they are good"]
            state, events = await run(checkout, service, *student, LLM_PROVIDER="llamacpp", LLAMACPP_BASE_URL=proxy.url)
    asked = json.loads(known(PROMPTS["generating_questions"]))["questions"]
    shown = ["\n".join(each["to_student"]) for each in events if "to_student" in each]
    assert all(question in shown[2] for question in asked)
    assert all(question in shown[3] for question in changed)
    answer = known(PROMPTS["answer_question"])
    assert sorted(state["questions_and_answers"]) == sorted(f"## {question}\n\n{answer}" for question in changed)
    assert of(events, "AttemptFailed") == []


async def test_a_guard_that_is_cut_is_not_asked_the_same_again(checkout: Path, service: Any) -> None:
    """LearnFlow lets the text pass then: its log has the limit that was too low."""
    limit(checkout, security_guard=8)
    log: list[str] = []
    async with llamacpp() as (url, _):
        with deciding(url, InjectionResult=[NOTHING_INJECTED]) as proxy:
            state, _ = await run(checkout, service, log=log, LLM_PROVIDER="llamacpp", LLAMACPP_BASE_URL=proxy.url)
    is_whole(state)
    guarded = named(proxy.requests, "InjectionResult")
    assert guarded
    assert len(set(guarded)) == len(guarded), "the same request at temperature 0 is cut at the same place"
    (line,) = [each for each in log if "Security check failed" in each]
    assert re.search(r"max_tokens\D*8\b|\b8 tokens", line)


async def test_a_name_that_is_cut_is_used_as_it_is(checkout: Path, service: Any) -> None:
    limit(checkout, input_processing=3)
    async with llamacpp() as (url, _):
        with deciding(url) as proxy:
            state, events = await run(checkout, service, LLM_PROVIDER="llamacpp", LLAMACPP_BASE_URL=proxy.url)
    is_whole(state)
    assert len([body for body in proxy.requests if '"max_tokens": 3' in body]) == 1
    assert [event["max_tokens"] for event in of(events, "TokenLimitReached")] == [3]
    assert answers(events) == [("llamacpp", "stop"), ("llamacpp", "length"), *[("llamacpp", "stop")] * (CALLS - 2)]
    assert state["display_name"]
    assert state["display_name"] not in QUESTION, "it is the model's, not the first words of the question"


async def test_the_only_server_restarts_in_the_middle_of_the_synthesis(checkout: Path, service: Any) -> None:
    port, tokens = free_port(), 0
    async with contextlib.AsyncExitStack() as servers:
        url, server = await servers.enter_async_context(llamacpp(port))

        async def restart(line: dict[str, Any]) -> None:
            nonlocal tokens
            tokens += line.get("of") == "synthesis_material"
            if line.get("of") == "synthesis_material" and tokens == 20:
                server.kill()
                await server.wait()
                await asyncio.sleep(AWAY_S)
                await servers.enter_async_context(llamacpp(port))

        one = {"LLM_PROVIDER": "llamacpp", "LLAMACPP_BASE_URL": url, "STREAM_MODE": "messages"}
        state, events = await run(checkout, service, seen=restart, **one)
    is_whole(state)
    assert "".join(each["token"] for each in events if each.get("of") == "synthesis_material") == known(
        PROMPTS["synthesis_material"]
    )
    assert all(event["characters"] > 0 for event in of(events, "Resumed"))
    assert len(of(events, "Resumed")) == 1
    assert answers(events) == [("llamacpp", "stop")] * CALLS


@pytest.mark.skipif(not LIVE.get("LEARNFLOW_UV"), reason="needs LEARNFLOW_UV")
def test_what_copy_into_says_is_all_there_is_to_do(checkout: Path) -> None:
    check = [LIVE["LEARNFLOW_PYTHON"], str(ROOT / "tools" / "copy_into.py"), "--check", "."]
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
