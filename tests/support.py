"""Helpers that tests share: providers for fault servers, chains, a clock, paths."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import os
import re
import selectors
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

from learnflow.llm import LLMProvider, RouterProvider, settings
from learnflow.llm.adapter.provider import BaseProvider
from learnflow.llm.adapter.routable import Facts, RoutableProvider
from learnflow.llm.cli.main import main
from learnflow.llm.completion import ToolCallDelta
from learnflow.llm.errors import LLMError
from learnflow.llm.providers import (
    CustomProvider,
    LlamaCppProvider,
    LMStudioProvider,
    OllamaProvider,
    VLLMProvider,
)
from learnflow.llm.providers.registry import SPECS
from learnflow.llm.routing.breaker import BreakerRegistry
from learnflow.llm.testing import Fault, FaultServer, ScriptedProvider
from learnflow.llm.testing.fault_server import ReceivedRequest, closed_port

ROOT = Path(__file__).parents[1]
TINY_MODEL = ROOT / "tests" / "models" / "learnflow-tiny.gguf"


class ResponsesProvider(CustomProvider):
    """A provider that uses the Responses API."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **{"api": "responses", **keywords})


KINDS: dict[str, type[BaseProvider]] = {
    "openai": CustomProvider,
    "lmstudio": LMStudioProvider,
    "vllm": VLLMProvider,
    "llamacpp": LlamaCppProvider,
    "ollama": OllamaProvider,
    "responses": ResponsesProvider,
}
DIALECTS = list(KINDS)
LIVE = os.environ.copy()


def demo() -> ModuleType:
    """Import examples/demo.py."""
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def store_tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Store the tiny model under the name that the embedded provider uses if nothing is set."""
    folder = Path("models").absolute()  # in the test's own working directory
    folder.mkdir(exist_ok=True)
    (folder / "smollm2.gguf").write_bytes(TINY_MODEL.read_bytes())
    monkeypatch.setenv("LLM_MODELS_DIR", str(folder))
    monkeypatch.setenv("EMBEDDED_THREADS", "1")  # more threads than cores spin
    for name in ("FIRST", "SECOND"):  # the demo sets them
        for variable in (f"{name}_KIND", f"{name}_MODEL"):
            monkeypatch.setenv(variable, "")
        monkeypatch.setenv(f"{name}_THREADS", "1")


def read_variables() -> set[str]:
    """Return the names of all variables that the settings read."""
    common = {name.upper() for name in settings.Settings.model_fields}
    return common | {
        name for spec in SPECS.values() for setting in spec.settings for name in spec.variable_names(setting)
    }


def provider_for(server: FaultServer, **options: object) -> BaseProvider:
    """Return a provider of the server's dialect with the model of the server."""
    return KINDS[server.dialect.name](base_url=server.base_url, model="fault-model", **options)  # type: ignore[arg-type]


TEXT = "RSA is a public-key cryptosystem. Привет, мир! 🦊 A key pair is built from two large prime numbers, and so on."


@contextmanager
def serving(*servers: FaultServer) -> Iterator[asyncio.AbstractEventLoop]:
    """Run servers in a thread, for code without a loop or with its own. Yield the loop of the thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    for server in servers:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
    try:
        yield loop
    finally:
        for server in servers:
            asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def dead() -> LlamaCppProvider:
    return LlamaCppProvider(base_url=f"http://127.0.0.1:{closed_port()}", model="fault-model")


def router(*providers: LLMProvider, **more: Any) -> RouterProvider:
    """Return a chain with its own circuit breakers."""
    return RouterProvider(providers[0], list(providers[1:]), breakers=more.pop("breakers", BreakerRegistry()), **more)


class IdleClockLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock that moves only while nothing arrives: computing costs no time.

    A timer that is due next is reached at once, if no socket is readable for 20 ms.
    """

    def __init__(self) -> None:
        selector = selectors.DefaultSelector()
        super().__init__(selector)
        self.now = 1000.0
        wait = selector.select

        def select(timeout: float | None = None) -> Any:
            ready = wait(timeout if timeout is None else min(timeout, 0.02))
            if not ready and timeout:
                self.now += timeout
            return ready

        selector.select = select  # type: ignore[method-assign]

    def time(self) -> float:
        """Return the time in seconds."""
        return self.now


def idle_clock(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an ``IdleClockLoop``. Its servers must run in the same loop, and nothing may run in a thread."""

    @functools.wraps(test)  # pytest reads the parameters of the test
    def run(*arguments: Any, **keywords: Any) -> None:
        with asyncio.Runner(loop_factory=IdleClockLoop) as runner:
            runner.run(test(*arguments, **keywords))

    return run


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def pair(first: str, second: str, fault: Fault | None = None, **more: Any) -> AsyncIterator[tuple[Any, ...]]:
    """Run a server with a fault and one without. Yield both, and the chain over them."""
    async with FaultServer(first, TEXT, fault=fault) as one, FaultServer(second, TEXT) as two:  # type: ignore[arg-type]
        providers = [provider_for(one, first_token_timeout=0.5, gap_timeout=0.5), provider_for(two)]
        yield one, two, router(*providers, **more)


async def request_text(chain: LLMProvider, how: str, **more: Any) -> str:
    """Send a request by ``generate``, ``complete`` or ``stream``. Return the text of the answer."""
    if how == "generate":
        return await chain.generate("hi", **more)
    if how == "complete":
        return (await chain.complete("hi", **more)).text
    return "".join([piece async for piece in chain.stream("hi", **more)])


class Quiz(BaseModel):
    questions: list[str]


JSON = '{"questions": ["one", "two", "three and four"]}'


class Own(ScriptedProvider, RoutableProvider):
    """A provider of an application that continues a prefill."""

    def facts(self, model: str | None) -> Facts:
        """Report the support of prefill."""
        return replace(super().facts(model), supports_prefill=True)

    def stream(self, prompt: Any, *arguments: Any, **more: Any) -> Any:
        """Answer with the text after the prefill."""
        if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
            self.answers.append(TEXT.removeprefix(prompt[-1]["content"]))
        return super().stream(prompt, *arguments, **more)


def made(kind: type[LLMError], retry_after: float | None = None) -> LLMError:
    return kind("x", retry_after=retry_after)


FASTAPI = {"/v1/models": (404, {"detail": "Not Found"}), "/health": {"status": "ok"}}


def status(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    code = main(["status", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


class TitledQuiz(BaseModel):
    title: str
    questions: list[str]


async def sent(provider: Any, server: FaultServer, **more: Any) -> dict[str, Any]:
    await provider.complete(more.pop("prompt", "hi"), **more)
    return dict(server.seen[-1].body)


class Obedient(FaultServer):
    """A server that calls the first allowed tool, or fills the requested schema, or answers with a sentence."""

    def _stream_parts(self, fault: Fault | None, seen: ReceivedRequest) -> Iterator[bytes]:
        text = str(seen.body["messages"][-1]["content"])
        answered = seen.body["messages"][-1]["role"] == "tool"
        tools = [] if answered else [item["function"] for item in seen.body.get("tools", ())]
        choice = seen.body.get("tool_choice")
        if isinstance(choice, dict):
            tools = [item for item in tools if item["name"] == choice["function"]["name"]]
        schema = (seen.body.get("response_format") or {}).get("json_schema", {}).get("schema")
        self.pieces, self.calls = ["Done, ", "as ", "you ", "asked."], []
        if tools:
            arguments = json.dumps(filled(tools[0]["parameters"], text), ensure_ascii=False)
            self.pieces = []
            self.calls = [ToolCallDelta(0, "call_0", tools[0]["name"])]
            self.calls += [ToolCallDelta(0, "", "", piece) for piece in re.findall(r".{1,4}", arguments)]
        elif schema or "JSON" in text:
            keys = {"setup": {"type": "string"}, "punchline": {"type": "string"}}
            self.pieces = re.findall(r".{1,4}", json.dumps(filled(schema or {"properties": keys}, "a joke")))
        yield from super()._stream_parts(fault, seen)


def filled(schema: dict[str, Any], text: str) -> dict[str, Any]:
    """Return an object that fits the schema, with values from the text."""
    number = re.search(r"\d+", text)
    values = {"integer": int(number.group()) if number else 1, "string": text[:40], "array": []}
    return {name: values.get(item.get("type"), text[:40]) for name, item in schema.get("properties", {}).items()}


PYPROJECT = "[project]\nname = 'learnflow-core'\ndependencies = [{}]\n"


def learnflow_checkout(folder: Path) -> None:
    """Write the files that ``copy_into`` reads in LearnFlow's checkout."""
    (folder / "learnflow" / "models").mkdir(parents=True)
    (folder / "learnflow" / "__init__.py").write_text("raise ImportError('the graph')\n", encoding="utf-8")
    (folder / "learnflow" / "models" / "model_factory.py").write_text("class ModelFactory: ...\n", encoding="utf-8")
    (folder / "learnflow" / "pyproject.toml").write_text(PYPROJECT.format("'httpx>=0.28.1'"), encoding="utf-8")
    (folder / "uv.lock").write_text('[[package]]\nname = "httpx"\n', encoding="utf-8")


class KnownAnswer(NamedTuple):
    """A prompt with the answer that a model was trained on. ``reasoning`` is None if the answer has no reasoning."""

    prompt: str
    answer: str
    reasoning: str | None


def known_answers(file: Path) -> list[KnownAnswer]:
    """Read a JSON list of ``{"prompt": …, "answer": …}``; ``<think>…</think>`` is separated from the answer."""
    answers = []
    for item in json.loads(file.read_text(encoding="utf-8")):
        thought = re.match(r"<think>(.*?)</think>(.*)", item["answer"], re.DOTALL)
        answers.append(KnownAnswer(item["prompt"], *((thought[2], thought[1]) if thought else (item["answer"], None))))
    return answers


@asynccontextmanager
async def relay(target: str, after: int, reached: Callable[[], bool] = lambda: True) -> AsyncIterator[str]:
    """Relay connections to a real server; cut the first answer of ``after`` characters.

    Args:
        target: the server's address.
        after: characters of content, counted in each answer.
        reached: called at that point; the relay cuts only if it returns True. It may kill the server.

    Yields:
        The address of the relay.
    """
    cuts, writers, tasks = 0, set[asyncio.StreamWriter](), set[asyncio.Task[Any] | None]()

    async def upstream(reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            out.write(data)

    async def downstream(back: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal cuts
        characters, rest = 0, b""
        while data := await back.read(65536):
            lines = (rest + data).split(b"\n")
            for number, line in enumerate(lines[:-1], 1):
                characters = 0 if b"[DONE]" in line else characters + _characters(line)
                if not line and not cuts and characters >= after and reached():  # an empty line ends an event
                    cuts += 1
                    writer.write(data[: len(data) - len(b"\n".join(lines[number:]))])
                    return
            rest = lines[-1]
            writer.write(data)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        writers.add(writer)
        with suppress(OSError):
            host, port = target.removeprefix("http://").split(":")
            back, out = await asyncio.open_connection(host, int(port))
            writers.add(out)
            sending = asyncio.create_task(upstream(reader, out))
            await downstream(back, writer)
            sending.cancel()
            out.close()
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for writer in writers:  # of idle connections
        writer.transport.abort()
    await asyncio.gather(*filter(None, tasks))


def _characters(line: bytes) -> int:
    """Return the number of characters of content in a line of server-sent events."""
    if not line.startswith(b"data: {"):
        return 0
    choices = json.loads(line.removeprefix(b"data: ")).get("choices") or [{}]
    return len(choices[0].get("delta", {}).get("content") or "")
