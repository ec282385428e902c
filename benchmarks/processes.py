"""Measure several processes of an application in front of two servers: requests in flight, fairness, cache.

    PYTHONPATH=. .venv/bin/python benchmarks/processes.py [--rounds 3] [--questions 24]

needs ``make engines``. gunicorn runs ``application`` below in one or four processes, in front of two llama.cpp servers
with the tiny model and two slots each. The questions are about two texts and are sent every 20 ms. Columns:

    at a server   the most requests that one server had at once; it has two slots, and queues the others
    cached        the cached part of the prompts, without the first question about each text
    overtaken     the most later questions that were answered before an older one
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from replicas import ENGINE, GRAMMAR, free_port, material, question, ready

from learnflow.llm import LLMProvider, get_provider

SERVE = [sys.executable, str(Path(__file__).with_name("serve_tiny.py")), "--parallel", "2", "--threads", "1"]
SLOTS, PAUSE_S, TIMEOUT_S = 2, 0.02, 300.0
_providers: list[LLMProvider] = []


async def application(scope: Mapping[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
    """Answer ``POST /`` with the prompt tokens of a question. It is the application that gunicorn runs."""
    if scope["type"] == "lifespan":
        await receive()
        _providers.append(get_provider())
        await _providers[0].generate("Say pong", temperature=0)  # imports, connections and probes
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    body, more = b"", True
    while more:
        event = await receive()
        body, more = body + event.get("body", b""), event.get("more_body", False)
    if not body:  # a GET, which shows that the process is ready
        answer = {"pid": os.getpid()}
    else:
        text, number = json.loads(body)
        messages = question(material(text), number % 12)
        done = await _providers[0].complete(
            messages, temperature=0, max_tokens=48, extra_body=GRAMMAR, session=f"lesson-{text}"
        )
        answer = {"prompt": done.usage.prompt_tokens, "cached": done.usage.cached_tokens, "pid": os.getpid()}
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


class Counter:
    """A relay in front of a server that counts the chat requests in flight."""

    def __init__(self, target: int) -> None:
        self.target, self.now, self.most = target, 0, 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection."""
        with contextlib.suppress(OSError):
            back, out = await asyncio.open_connection("127.0.0.1", self.target)
            try:
                await asyncio.gather(
                    self._copy(reader, out, b"POST /v1/chat", 1), self._copy(back, writer, b"[DONE]", -1)
                )
            finally:
                out.close()
                writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, mark: bytes, step: int) -> None:
        while data := await reader.read(1 << 20):
            self.now += step * data.count(mark)
            self.most = max(self.most, self.now)
            writer.write(data)
        writer.close()


@contextlib.asynccontextmanager
async def process(url: str, *command: str, **environment: str) -> AsyncIterator[None]:
    """Run a command, and wait until its address responds. Stop it at the end."""
    devnull = asyncio.subprocess.DEVNULL
    running = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **environment}, stdout=devnull, stderr=devnull
    )
    try:
        await ready(url, running)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.send_signal(signal.SIGTERM if "gunicorn" in command[0] else signal.SIGKILL)
        await running.wait()


async def measure(
    processes: int, *, engine: bool, limit: int, texts: Sequence[int], questions: int
) -> tuple[float, ...]:
    """Send the questions to an application of so many processes. Return the columns of the table."""
    async with contextlib.AsyncExitStack() as stack:
        counters, urls = [], []
        for _ in range(2):
            port = free_port()
            await stack.enter_async_context(process(f"http://127.0.0.1:{port}", *SERVE, "--port", str(port)))
            counters.append(Counter(port))
            relay = await asyncio.start_server(counters[-1], "127.0.0.1", 0)
            stack.callback(relay.close)
            urls.append(f"http://127.0.0.1:{relay.sockets[0].getsockname()[1]}")
        lines = {"LLM_PROVIDER": "gpus", "GPUS_BASE_URL": "", "GPUS_KIND": "llamacpp", "LLM_FIRST_TOKEN_TIMEOUT": "120"}
        if engine:
            port = free_port()
            options = ["--policy", "sticky_least_loaded", "--disable-retries", "--prometheus-port", str(free_port())]
            address = f"http://127.0.0.1:{port}"
            await stack.enter_async_context(
                process(address, str(ENGINE), "--port", str(port), *options, "--worker-urls", *urls)
            )
            lines |= {"GPUS_BASE_URL": address, "GPUS_HEADERS": "X-Session-ID: {session}"}
            lines |= {"GPUS_MAX_CONCURRENCY": str(limit)}
        else:
            lines |= {"LLM_PROVIDERS": "gpu1+gpu2"}
            for name, url in zip(("GPU1", "GPU2"), urls, strict=True):
                lines |= {f"{name}_BASE_URL": url, f"{name}_KIND": "llamacpp", f"{name}_MAX_CONCURRENCY": str(limit)}
        port = free_port()
        gunicorn = [str(ENGINE.with_name("gunicorn")), "processes:application", "-w", str(processes)]
        gunicorn += ["-k", "uvicorn.workers.UvicornWorker", "-b", f"127.0.0.1:{port}", "--timeout", "300"]
        lines |= {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
        address = f"http://127.0.0.1:{port}"
        await stack.enter_async_context(process(address, *gunicorn, **lines))
        return await send_questions(address, processes, counters, texts, questions)


async def send_questions(
    address: str, processes: int, counters: Sequence[Counter], texts: Sequence[int], questions: int
) -> tuple[float, ...]:
    limits = httpx.Limits(
        max_keepalive_connections=0
    )  # a new connection for each request, so that all processes get some
    async with asyncio.timeout(TIMEOUT_S), httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits) as client:
        pids: set[int] = set()
        while len(pids) < processes:
            pids |= {page.json()["pid"] for page in await asyncio.gather(*(client.get(address) for _ in range(8)))}
        for counter in counters:
            counter.most = counter.now
        order: list[int] = []

        async def ask(number: int) -> dict[str, int]:
            await asyncio.sleep(number * PAUSE_S)
            page = (await client.post(address, json=[texts[number % 3 % 2], number])).json()
            order.append(number)
            return {**page, "text": number % 3 % 2}

        read = await asyncio.gather(*map(ask, range(questions)))
    rest = []
    for text in (0, 1):
        rest += sorted((one for one in read if one["text"] == text), key=lambda one: one["cached"])[1:]
    cached = sum(one["cached"] for one in rest) / sum(one["prompt"] for one in rest)
    overtaken = max(sum(later > number for later in order[: order.index(number)]) for number in order)
    return max(counter.most for counter in counters), cached, overtaken


async def run(rounds: int, questions: int) -> None:
    variants = {
        "1 process, gpu1+gpu2": (1, False, SLOTS),
        "4 processes, gpu1+gpu2, limit 2": (4, False, SLOTS),
        "4 processes, gpu1+gpu2, limit 1": (4, False, 1),
        "4 processes, vllm-router, limit 1": (4, True, 1),
    }
    results: dict[str, list[tuple[float, ...]]] = {name: [] for name in variants}
    fresh = iter(range(5000, 6000))
    for _ in range(rounds):
        for name, (processes, engine, limit) in variants.items():
            texts = [next(fresh), next(fresh)]
            results[name].append(await measure(processes, engine=engine, limit=limit, texts=texts, questions=questions))
    print(f"{'':36}{'at a server':14}{'cached':25}{'overtaken':12}")
    for name, rows in results.items():
        most, cached, overtaken = zip(*rows, strict=True)
        shares = f"{statistics.median(cached):.3f} ({min(cached):.3f} to {max(cached):.3f})"
        print(f"{name:36}{max(most):<14.0f}{shares:25}{max(overtaken):<12.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=24)
    options = parser.parse_args()
    if not ENGINE.exists():
        parser.error("gunicorn and vllm-router are not installed. Run: make engines")
    asyncio.run(run(options.rounds, options.questions))


if __name__ == "__main__":
    main()
