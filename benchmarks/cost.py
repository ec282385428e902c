"""Measure the CPU time of a call and of a chunk of a stream, compared with LiteLLM and httpx.

A run measures all clients in turn against the same server in another process, for several rounds. It prints medians,
and ratios to LiteLLM's ``openai/`` and to httpx. "events()" is the stream of "custom", read as events. Chunks are
measured twice: many of them in one packet ("together"), and each in its own packet ("apart"), as a model sends them.

Run: ``python benchmarks/cost.py [--rounds 7] [--calls 100] [--chunks 1000]``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection

import httpx

from learnflow.llm import LLMProvider, RouterProvider, TextDelta
from learnflow.llm.adapter import _litellm
from learnflow.llm.providers import (
    AzureProvider,
    CustomProvider,
    FireworksProvider,
    OllamaProvider,
    OpenAIProvider,
    OpenRouterProvider,
)
from learnflow.llm.testing.dialects import Dialect

APART_S = 0.0005  # between two packets
SHORT = 1  # chunks of the short answer, which measures the call itself


def serve(pipe: Connection, chunks: int) -> None:
    """Run a server that responds without delay. The prompt selects the short or the long answer."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof():
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            if not head.startswith(b"POST") or b"/api/show" in head:  # a probe of Ollama
                if b"content-length: " in head.lower():
                    await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                continue
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = json.loads(await reader.readexactly(length))
            dialect = Dialect("ollama" if b"/api/chat" in head else "openai")
            messages = json.dumps(body["messages"])
            words = [f"word{n} " for n in range(SHORT if "short" in messages else chunks)]
            if not body.get("stream"):
                response = dialect.answer_body("".join(words))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
                writer.write(f"content-length: {len(response)}\r\n\r\n".encode() + response)
                continue
            writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {dialect.content_type}\r\n".encode())
            writer.write(b"transfer-encoding: chunked\r\n\r\n")
            for part in [
                dialect.opening(),
                *map(dialect.piece, words),
                dialect.last_piece(),
                dialect.usage(),
                dialect.terminator(),
            ]:
                if part:
                    writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                    if "apart" in messages:
                        await asyncio.sleep(APART_S)
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def clients(root: str) -> tuple[dict[str, Callable[[str], Awaitable[int]]], ...]:
    """Return the calls without and with streaming. A call returns the number of characters that it received."""
    client = httpx.AsyncClient()
    litellm = _litellm._load()  # noqa: SLF001  # the same LiteLLM, as quiet as for us
    parameters = {"model": "m", "temperature": 0.7, "max_tokens": 1000}

    async def raw(prompt: str) -> int:
        body = {**parameters, "messages": [{"role": "user", "content": prompt}]}
        answer = await client.post(f"{root}/v1/chat/completions", json=body)
        return len(answer.json()["choices"][0]["message"]["content"])

    async def raw_stream(prompt: str) -> int:
        body = {**parameters, "messages": [{"role": "user", "content": prompt}], "stream": True}
        got = 0
        async with client.stream("POST", f"{root}/v1/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        got += len(choice["delta"].get("content") or "")
        return got

    async def theirs(prompt: str, *, stream: bool = False) -> int:
        answer = await litellm.acompletion(
            model="openai/m",
            messages=[{"role": "user", "content": prompt}],
            api_base=f"{root}/v1",
            api_key="x",
            max_retries=0,
            stream=stream,
            temperature=0.7,
            max_tokens=1000,
        )
        if not stream:
            return len(answer.choices[0].message.content)
        return sum([len(chunk.choices[0].delta.content or "") async for chunk in answer])

    async def their_stream(prompt: str) -> int:
        return await theirs(prompt, stream=True)

    calls: dict[str, Callable[[str], Awaitable[int]]] = {"litellm openai/": theirs, "httpx": raw}
    streams: dict[str, Callable[[str], Awaitable[int]]] = {"litellm openai/": their_stream, "httpx": raw_stream}
    key = {"base_url": root, "model": "m", "api_key": "x"}
    providers: dict[str, LLMProvider] = {
        provider.name: provider
        for provider in (
            CustomProvider(base_url=root, model="m"),
            OpenAIProvider(**key),
            AzureProvider(**key),
            OllamaProvider(base_url=root, model="m"),
            OpenRouterProvider(**key),
            FireworksProvider(**key),
        )
    }
    providers["router"] = RouterProvider(CustomProvider(base_url=root, model="m"), [])
    for name, provider in providers.items():

        async def ours(prompt: str, provider: LLMProvider = provider) -> int:
            return len(await provider.generate(prompt))

        async def our_stream(prompt: str, provider: LLMProvider = provider) -> int:
            return sum([len(piece) async for piece in provider.stream(prompt)])

        calls[f"ours, {name}"], streams[f"ours, {name}"] = ours, our_stream

    async def by_events(prompt: str) -> int:
        events = providers["custom"].stream(prompt).events()
        return sum([len(event.text) async for event in events if isinstance(event, TextDelta)])

    calls["ours, events()"] = streams["ours, events()"] = by_events
    return calls, streams


async def cpu(call: Callable[[str], Awaitable[int]], prompt: str, times: int) -> float:
    """Return the CPU seconds of this process for one call."""
    assert await call(prompt)
    before = time.process_time()
    for _ in range(times):
        await call(prompt)
    return (time.process_time() - before) / times


async def measure(root: str, rounds: int, calls: int, chunks: int) -> None:
    """Measure all clients in turn in each round, so that a slow moment of the machine affects all of them."""
    calls_by_name, streams_by_name = clients(root)
    seconds: dict[str, dict[str, list[float]]] = {
        column: {name: [] for name in calls_by_name} for column in ("call", "together", "apart")
    }
    for _ in range(rounds):
        for name, call in calls_by_name.items():
            seconds["call"][name].append(await cpu(call, "short", calls))
        for name, call in streams_by_name.items():
            short = await cpu(call, "short", max(calls // 4, 1))
            for column in ("together", "apart"):
                seconds[column][name].append((await cpu(call, column, 5) - short) / (chunks - SHORT))
    print(f"CPU, median of {rounds}; ratios to LiteLLM's openai/ and to httpx")
    print(f"{'':20}{'a call, ms':>12}{'chunk together, us':>28}{'chunk apart, us':>28}")
    for name in calls_by_name:
        line = f"{name:20}"
        for column, unit in (("call", 1e3), ("together", 1e6), ("apart", 1e6)):
            mine, theirs, bare = (seconds[column][client] for client in (name, "litellm openai/", "httpx"))
            ratios = (statistics.median(x / y for x, y in zip(mine, other, strict=True)) for other in (theirs, bare))
            line += f"{statistics.median(mine) * unit:12.2f}" + "".join(f"{ratio:7.3f}" for ratio in ratios)
        print(line)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--chunks", type=int, default=1000)
    options = parser.parse_args()
    pipe, other_end = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(other_end, options.chunks), daemon=True)
    server.start()
    try:
        asyncio.run(measure(f"http://127.0.0.1:{pipe.recv()}", options.rounds, options.calls, options.chunks))
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
