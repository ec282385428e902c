"""LearnFlow's own graph on our layer, inside a copy of its checkout (``make live``).

Needs ``LEARNFLOW_CHECKOUT`` (its folder), ``LEARNFLOW_PYTHON`` (an interpreter with its dependencies and ours),
``LIVE_ANSWERS``, Ollama as ``OLLAMA_BASE_URL``, and ``LEARNFLOW_SERVE``: a command that serves the same
model with llama.cpp at the port that stands for ``{port}``, which is started and killed here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support import LIVE

import learnflow.llm

NEEDED = ("LEARNFLOW_CHECKOUT", "LEARNFLOW_PYTHON", "LEARNFLOW_SERVE", "LIVE_ANSWERS", "OLLAMA_BASE_URL")
pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(any(not LIVE.get(name) for name in NEEDED), reason=f"needs {', '.join(NEEDED)}"),
]
FACTORY = (
    "from ..llm.integrations.learnflow import "
    "ModelFactory, create_model_for_node, get_model_factory, initialize_model_factory"
)
# The only one of the forty prompts after which the model's answer to LearnFlow's guard has an end.
QUESTION = "Write three control questions about hash functions as JSON"
PROMPTS = {
    "generating_content": "Explain RSA encryption",
    "synthesis_material": "Explain cryptography",
    "generating_questions": "Write three control questions about RSA as JSON",
    "answer_question": "What is a hash function?",
}
# LearnFlow sends a prompt as the system's, the model knows its forty as the user's: so both stand in one.
TURN = "You are a study assistant. Answer briefly.<|im_end|>\n<|im_start|>user\n"
CALLS = 8  # guard, name, content, synthesis, questions, three answers


class Service(BaseHTTPRequestHandler):
    """LearnFlow's prompt service, and the Langfuse that it reports to."""

    def do_POST(self) -> None:
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "node_name" in said:
            told: Any = {"prompt": TURN + PROMPTS[said["node_name"]]}
        else:
            self.server.traced.extend(said["batch"])  # type: ignore[attr-defined]
            told = {"successes": [{"id": each["id"], "status": 201} for each in said["batch"]], "errors": []}
        body = json.dumps(told).encode()
        self.send_response(200 if "node_name" in said else 207)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def service() -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.traced = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of LearnFlow, our folder in its tree, the one import changed; cold, as the model knows its texts."""
    whole = tmp_path / "learnflow-ai"
    leave = shutil.ignore_patterns(".git", "node_modules", ".venv", "__pycache__")
    shutil.copytree(LIVE["LEARNFLOW_CHECKOUT"], whole, ignore=leave)
    shutil.copytree(Path(learnflow.llm.__file__).parent, whole / "learnflow" / "llm", ignore=leave)
    (whole / "learnflow" / "models" / "model_factory.py").write_text(f"{FACTORY}  # noqa: F401\n", encoding="utf-8")
    graph = whole / "configs" / "graph.yaml"
    cold = re.sub(r"temperature: \S+", "temperature: 0.0", graph.read_text(encoding="utf-8"))
    graph.write_text(cold, encoding="utf-8")
    return whole


@contextlib.asynccontextmanager
async def llamacpp(*flags: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """A llama.cpp server of our own, which may be killed."""
    with contextlib.closing(__import__("socket").socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*shlex.split(LIVE["LEARNFLOW_SERVE"].format(port=port)), *flags]
    quiet = asyncio.subprocess.DEVNULL
    server = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                await asyncio.to_thread(urllib.request.urlopen, f"{url}/health", timeout=1)
                break
            await asyncio.sleep(0.1)
        yield url, server
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.kill()
        await server.wait()


@contextlib.asynccontextmanager
async def watched(target: str, kill: asyncio.subprocess.Process, after: int) -> AsyncIterator[str]:
    """The server behind an address that kills it in the middle of the content's answer, after so many pieces."""
    pieces = 0

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = False

        async def to_server() -> None:
            nonlocal asked
            while data := await reader.read(65536):
                asked = asked or PROMPTS["generating_content"].encode() in data
                out.write(data)
            out.close()

        async def to_client() -> None:
            nonlocal pieces
            while data := await back.read(65536):
                writer.write(data)
                pieces += data.count(b"data: ") if asked else 0
                if pieces >= after and kill.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(kill.pid, signal.SIGKILL)
            writer.close()

        with contextlib.suppress(OSError):
            back, out = await asyncio.open_connection(*target.removeprefix("http://").split(":"))
            await asyncio.gather(to_server(), to_client(), return_exceptions=True)
        writer.close()

    relay = await asyncio.start_server(one, "127.0.0.1", 0)
    async with relay:
        yield f"http://127.0.0.1:{relay.sockets[0].getsockname()[1]}"


async def run(checkout: Path, service: Any, **variables: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The state at the end of the graph, and our events."""
    address = f"http://127.0.0.1:{service.server_address[1]}"
    own = {
        "OPENAI_API_KEY": "none",  # LearnFlow's settings want one
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none",
        "PROMPT_SERVICE_URL": address,
        "LANGFUSE_HOST": address,
        "LANGFUSE_PUBLIC_KEY": "public",
        "LANGFUSE_SECRET_KEY": "secret",
        "PYTHONPATH": str(checkout),
        "PATH": LIVE["PATH"],
        "HOME": str(checkout),
    }
    ran = await asyncio.create_subprocess_exec(
        LIVE["LEARNFLOW_PYTHON"],
        str(Path(__file__).parent / "learnflow_driver.py"),
        QUESTION,
        cwd=checkout,
        env={**own, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(ran.communicate(), 300)
    assert ran.returncode == 0, err.decode()[-3000:]
    said = [json.loads(line) for line in out.decode().splitlines()]
    events = [each for each in said if "event" in each]
    return said[-1]["state"], events


def answers(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(event["provider"], event["finish"]) for event in events if event["event"] == "Answered"]


def is_whole(state: dict[str, Any]) -> None:
    known = {each["prompt"]: each["answer"] for each in json.loads(Path(LIVE["LIVE_ANSWERS"]).read_text("utf-8"))}
    asked = json.loads(known[PROMPTS["generating_questions"]])["questions"]
    assert state["generated_material"] == known[PROMPTS["generating_content"]]
    assert state["synthesized_material"] == known[PROMPTS["synthesis_material"]]
    assert state["questions"] == asked
    answer = known[PROMPTS["answer_question"]]
    assert sorted(state["questions_and_answers"]) == sorted(f"## {question}\n\n{answer}" for question in asked)


def ollama() -> dict[str, str]:
    return {name: value for name, value in LIVE.items() if name.startswith("OLLAMA_")}


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
    async with llamacpp() as (url, server), watched(url, server, pieces) as address:
        names = {"LLM_PROVIDERS": "llamacpp,ollama", "LLAMACPP_BASE_URL": address, **ollama()}
        state, events = await run(checkout, service, **names)
        assert server.returncode is not None or await server.wait() == -signal.SIGKILL
    is_whole(state)
    assert [finish for _, finish in answers(events)] == ["stop"] * CALLS
    assert [provider for provider, _ in answers(events)] == ["llamacpp"] * 2 + ["ollama"] * (CALLS - 2)
    assert [event["in_words"] for event in events if event["event"] == "Resumed"] == [False]


async def test_recorded_and_replayed_with_no_server(checkout: Path, service: Any, tmp_path: Path) -> None:
    cassettes = {"LLM_REPLAY": str(tmp_path / "cassettes"), "LLM_PROVIDERS": "llamacpp,ollama"}
    async with llamacpp() as (url, _):
        record = {"LLM_REPLAY_MODE": "record", "LLAMACPP_BASE_URL": url, **ollama()}
        recorded, then = await run(checkout, service, **cassettes, **record)
    replayed, now = await run(checkout, service, **cassettes)
    is_whole(replayed)
    recorded["questions_and_answers"].sort()
    replayed["questions_and_answers"].sort()
    assert replayed == recorded
    assert answers(now) == answers(then) == [("llamacpp", "stop")] * CALLS
