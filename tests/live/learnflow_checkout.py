"""LearnFlow's checkout with our folder in it, and the services of the live tests: LearnFlow's prompt service, Langfuse,
llama.cpp servers that may be killed, and a proxy that makes the tiny model decide. Nothing of LearnFlow is kept here.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import shlex
import shutil
import socket
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import copy_into
import pytest
import yaml
from support import LIVE, ROOT

NEEDED = ("LEARNFLOW_CHECKOUT", "LEARNFLOW_PYTHON")
SERVE = LIVE.get(
    "LEARNFLOW_SERVE", f"{shlex.quote(sys.executable)} {Path(__file__).with_name('serve_llamacpp.py')} {{port}}"
)
ANSWERS = Path(LIVE.get("LIVE_ANSWERS", ROOT / "tests" / "models" / "answers.json"))
# The only one of the forty prompts after which the model's answer to LearnFlow's guard has an end.
QUESTION = "Write three control questions about hash functions as JSON"
PROMPTS = {
    "generating_content": "Explain RSA encryption",
    "recognition_handwritten": "Say what stands in the notes",  # the scripted model with eyes answers it
    "synthesis_material": "Explain cryptography",
    "generating_questions": "Write three control questions about RSA as JSON",
    "answer_question": "What is a hash function?",
    "edit_material": "Edit the material",  # the proxy decides for these two
    "generating_questions_further": "Improve the questions",
}
# LearnFlow sends a prompt as the system's, the model knows its forty as the user's: so both stand in one.
TURN = "You are a study assistant. Answer briefly.<|im_end|>\n<|im_start|>user\n"
CALLS = 8  # guard, name, content, synthesis, questions, three answers


class Service(BaseHTTPRequestHandler):
    """LearnFlow's prompt service, and the Langfuse that it reports to."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "/otel/" in self.path:
            self.server.spans.append((self.path, self.headers["Authorization"], body))  # type: ignore[attr-defined]
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        said = json.loads(body)
        if "node_name" in said:
            self.server.prompted.append(said["node_name"])  # type: ignore[attr-defined]
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
    server.traced, server.prompted, server.spans = [], [], []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A copy of LearnFlow with ``copy_into`` done as it prints; cold, as the model knows its texts."""
    whole = tmp_path / "learnflow-ai"
    leave = shutil.ignore_patterns(".git", "node_modules", ".venv", "__pycache__")
    shutil.copytree(LIVE["LEARNFLOW_CHECKOUT"], whole, ignore=leave)
    assert copy_into.main([str(whole)]) == 0
    (line,) = re.findall(r"^ +(from \.\.llm.*)$", capsys.readouterr().out, re.MULTILINE)
    (whole / "learnflow" / "models" / "model_factory.py").write_text(f"{line}\n", encoding="utf-8")
    graph = whole / "configs" / "graph.yaml"
    cold = re.sub(r"temperature: \S+", "temperature: 0.0", graph.read_text(encoding="utf-8"))
    graph.write_text(cold, encoding="utf-8")
    return whole


def free_port() -> int:
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def limit(checkout: Path, **nodes: int) -> None:
    """Set ``max_tokens`` of these nodes in ``configs/graph.yaml``."""
    file = checkout / "configs" / "graph.yaml"
    graph = yaml.safe_load(file.read_text(encoding="utf-8"))
    models = graph["models"]
    for node, tokens in nodes.items():
        models["nodes"][node] = {**models["nodes"].get(node, models["default"]), "max_tokens": tokens}
    file.write_text(yaml.safe_dump(graph), encoding="utf-8")


@contextlib.asynccontextmanager
async def llamacpp(port: int | None = None) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """Run a llama.cpp server that may be killed, at this port or a free one."""
    port = port or free_port()
    command = shlex.split(SERVE.format(port=port))
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
async def watched(target: str, node: str, after: int, then: Callable[[], None]) -> AsyncIterator[str]:
    """The server behind an address, where ``then`` is called once, in the middle of its answer to the node's prompt.

    Args:
        target: the server's own address.
        node: whose prompt is waited for.
        after: how many pieces of the answer have gone through before.
        then: what happens in the middle.
    """
    pieces, done = 0, False
    connections: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = False

        async def to_server() -> None:
            nonlocal asked
            while data := await reader.read(65536):
                asked = asked or PROMPTS[node].encode() in data
                out.write(data)

        async def to_client() -> None:
            nonlocal pieces, done
            while data := await back.read(65536):
                writer.write(data)
                pieces += data.count(b"data: ") if asked else 0
                if pieces >= after and not done:
                    done = True
                    then()

        async with contextlib.AsyncExitStack() as opened:
            opened.push_async_callback(closed, writer)
            back, out = await asyncio.open_connection(*target.removeprefix("http://").split(":"))
            opened.push_async_callback(closed, out)
            ways = {asyncio.create_task(to_server()), asyncio.create_task(to_client())}
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.create_task(one(reader, writer)))

    relay = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{relay.sockets[0].getsockname()[1]}"
    finally:
        relay.close()
        for each in connections:
            each.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


class Proxy(BaseHTTPRequestHandler):
    """Passes requests to llama.cpp, with the schema narrowed to the one value that the test chose for it."""

    def do_GET(self) -> None:
        self._pass_on(None)

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(json.dumps(request))  # type: ignore[attr-defined]
        schema = request.get("response_format", {}).get("json_schema", {})
        values = self.server.values.get(schema.get("name"), [])  # type: ignore[attr-defined]
        if values:
            schema["schema"] = {"const": values.pop(0) if len(values) > 1 else values[0]}
        self._pass_on(json.dumps(request).encode())

    def _pass_on(self, body: bytes | None) -> None:
        connection = http.client.HTTPConnection(self.server.target)  # type: ignore[attr-defined]
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            self.send_response(response.status)
            self.send_header("Content-Type", response.headers["Content-Type"])
            self.end_headers()
            while data := response.read1():
                self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def deciding(target: str, **values: list[dict[str, Any]]) -> Iterator[Any]:
    """Run a proxy of a llama.cpp server whose grammar leaves one answer.

    The tiny model decides nothing sensible. The grammar is llama.cpp's own and the conversation is LearnFlow's.

    Args:
        target: the address of llama.cpp.
        values: answers by the name of the schema, in turn; the last one stays.

    Yields:
        The server, with its address in ``url`` and the bodies so far in ``requests``.
    """
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.target, server.values, server.requests = target.removeprefix("http://"), values, []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def closed(writer: asyncio.StreamWriter) -> None:
    """The connection closed, whoever closed it first."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def known(prompt: str) -> str:
    """The model's answer to a prompt that it knows by heart."""
    answers = json.loads(ANSWERS.read_text("utf-8"))
    return next(each["answer"] for each in answers if each["prompt"] == prompt)


def environment(checkout: Path, service: Any) -> dict[str, str]:
    """What LearnFlow is started with, but for the providers."""
    address = f"http://127.0.0.1:{service.server_address[1]}"
    return {
        "OPENAI_API_KEY": "none",  # LearnFlow's settings want one
        "DATABASE_URL": LIVE.get("LEARNFLOW_DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none"),
        "PROMPT_SERVICE_URL": address,
        "LANGFUSE_HOST": address,
        "LANGFUSE_PUBLIC_KEY": "public",
        "LANGFUSE_SECRET_KEY": "secret",
        "PYTHONPATH": str(checkout),
        "PATH": LIVE["PATH"],
        "HOME": str(checkout),
    }
