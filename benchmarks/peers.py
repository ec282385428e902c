"""Compare CPU, latency, loop stalls, memory and start with other libraries, in one run on one server.

    python benchmarks/peers.py [--quick] [--rounds 4] [--svg benchmarks/peers.svg]

The server is another process and responds without delay. The peers send their requests in turn in each round, without
retries, with the same prompt and parameters. Each peer has its own process. Peers that are not installed are skipped.
"""

# ruff: noqa: PLC0415  # a peer is imported only in its own process, which measures its import

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import logging
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

TEMPERATURE: Final = 0.7
MAX_TOKENS: Final = 1000
CONCURRENCY: Final = (1, 50, 200)
BASE: Final = "LiteLLM openai/"
RAW: Final = "httpx"
_BATCH: Final = 50  # streams that are opened at once
_OPEN_TIMEOUT_S: Final = 15.0  # for a batch
_QUIET: Final = {  # LiteLLM opens connections without it; the same for all processes
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_MODE": "PRODUCTION",
}


@dataclass(frozen=True)
class Peer:
    """A client. ``call`` returns the number of characters of an answer, ``stream`` yields its pieces."""

    call: Callable[[str], Awaitable[int]]
    stream: Callable[[str], AsyncIterator[str]]


# The server


def serve(pipe: Connection, chunks: int) -> None:
    """Run a server that responds with one word, to "long" with many, and to "hold" with a stream without an end."""
    from learnflow.llm.testing.dialects import Dialect

    raise_file_limit()
    dialect = Dialect("openai")

    def stream(count: int) -> bytes:
        words = [dialect.piece(f"word{n} ") for n in range(count)]
        parts = [dialect.opening(), *words, dialect.last_piece(), dialect.usage(), dialect.terminator()]
        return b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts)

    head = f"HTTP/1.1 200 OK\r\ncontent-type: {dialect.content_type}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    streams = {"short": head + stream(1) + b"0\r\n\r\n", "long": head + stream(chunks) + b"0\r\n\r\n"}
    held = head + stream(1).partition(b'"finish_reason": "stop"')[0].rpartition(b"\r\n")[0].rpartition(b"\r\n")[0]
    body = dialect.answer_body("word0 ").replace(b'{"object"', b'{"id": "x", "created": 1, "object"', 1)
    response = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    )

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body_of_request = json.loads(await reader.readexactly(length))
                prompt = json.dumps(body_of_request["messages"])
                if "hold" in prompt:
                    writer.write(held + b"\r\n")
                    await reader.read(1)
                    break
                writer.write(
                    streams["long" if "long" in prompt else "short"] if body_of_request.get("stream") else response
                )
                await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=4096)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def raise_file_limit() -> None:
    """Raise the limit of connections of this process to the maximum of the system."""
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))


# The peers


def parameters(prompt: str) -> dict[str, Any]:
    """Return the parameters of a request in OpenAI's format."""
    messages = [{"role": "user", "content": prompt}]
    return {"model": "m", "messages": messages, "temperature": TEMPERATURE, "max_tokens": MAX_TOKENS}


def httpx_raw(root: str) -> Peer:
    import httpx

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    client = httpx.AsyncClient(limits=limits, timeout=None)  # noqa: S113  # the server answers at once
    url = f"{root}/v1/chat/completions"

    async def call(prompt: str) -> int:
        answer = await client.post(url, json=parameters(prompt))
        return len(answer.json()["choices"][0]["message"]["content"])

    async def stream(prompt: str) -> AsyncIterator[str]:
        async with client.stream("POST", url, json={**parameters(prompt), "stream": True}) as answer:
            async for line in answer.aiter_lines():
                for choice in json.loads(line[6:])["choices"] if line.startswith("data: {") else ():
                    yield choice["delta"].get("content") or ""

    return Peer(call, stream)


def openai_peer(send: Callable[..., Awaitable[Any]]) -> Peer:
    """Return a peer with responses that are OpenAI's objects."""

    async def call(prompt: str) -> int:
        return len((await send(**parameters(prompt))).choices[0].message.content)

    async def stream(prompt: str) -> AsyncIterator[str]:
        async for chunk in await send(**parameters(prompt), stream=True):
            for choice in chunk.choices:
                yield choice.delta.content or ""

    return Peer(call, stream)


def openai_sdk(root: str) -> Peer:
    import openai

    return openai_peer(openai.AsyncOpenAI(base_url=f"{root}/v1", api_key="x", max_retries=0).chat.completions.create)


def litellm_openai(root: str) -> Peer:
    import litellm

    async def send(**options: Any) -> Any:
        endpoint = {"api_base": f"{root}/v1", "api_key": "x", "max_retries": 0}
        return await litellm.acompletion(**{**options, **endpoint, "model": "openai/m"})

    return openai_peer(send)


def litellm_router(root: str) -> Peer:
    import litellm

    endpoint = {"model": "openai/m", "api_base": f"{root}/v1", "api_key": "x", "max_retries": 0}
    return openai_peer(litellm.Router([{"model_name": "m", "litellm_params": endpoint}], num_retries=0).acompletion)


def langchain_peer(chat: Any) -> Peer:
    async def call(prompt: str) -> int:
        return len((await chat.ainvoke(prompt)).content)

    async def stream(prompt: str) -> AsyncIterator[str]:
        async for chunk in chat.astream(prompt):
            yield chunk.content

    return Peer(call, stream)


def langchain_openai(root: str) -> Peer:
    from langchain_openai import ChatOpenAI

    endpoint: dict[str, Any] = {"base_url": f"{root}/v1", "api_key": "x", "max_retries": 0}
    return langchain_peer(ChatOpenAI(model="m", temperature=TEMPERATURE, max_tokens=MAX_TOKENS, **endpoint))


def pydantic_ai(root: str) -> Peer:
    import openai
    from pydantic_ai.direct import model_request, model_request_stream
    from pydantic_ai.messages import ModelRequest, PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider
    from pydantic_ai.settings import ModelSettings

    client = openai.AsyncOpenAI(base_url=f"{root}/v1", api_key="x", max_retries=0)
    model = OpenAIChatModel("m", provider=OpenAIProvider(openai_client=client))
    settings = ModelSettings(temperature=TEMPERATURE, max_tokens=MAX_TOKENS)

    async def call(prompt: str) -> int:
        answer = await model_request(model, [ModelRequest.user_text_prompt(prompt)], model_settings=settings)
        return sum(len(part.content) for part in answer.parts if isinstance(part, TextPart))

    async def stream(prompt: str) -> AsyncIterator[str]:
        messages = [ModelRequest.user_text_prompt(prompt)]
        async with model_request_stream(model, messages, model_settings=settings) as events:
            async for event in events:
                if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
                    yield event.part.content
                elif isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
                    yield event.delta.content_delta

    return Peer(call, stream)


def learnflow_peer(provider: Any) -> Peer:
    async def call(prompt: str) -> int:
        return len(await provider.generate(prompt, temperature=TEMPERATURE, max_tokens=MAX_TOKENS))

    def stream(prompt: str) -> AsyncIterator[str]:
        pieces: AsyncIterator[str] = provider.stream(prompt, temperature=TEMPERATURE, max_tokens=MAX_TOKENS)
        return pieces

    return Peer(call, stream)


def ours(root: str) -> Peer:
    from learnflow.llm.providers import CustomProvider

    return learnflow_peer(CustomProvider(base_url=root, model="m"))


def ours_routed(root: str) -> Peer:
    from learnflow.llm import RouterProvider
    from learnflow.llm.providers import CustomProvider
    from learnflow.llm.routing.breaker import BreakerRegistry

    return learnflow_peer(RouterProvider(CustomProvider(base_url=root, model="m"), breakers=BreakerRegistry()))


def ours_langchain(root: str) -> Peer:
    from learnflow.llm import RouterProvider
    from learnflow.llm.integrations.langchain import ChatLearnFlow
    from learnflow.llm.providers import CustomProvider
    from learnflow.llm.routing.breaker import BreakerRegistry

    router = RouterProvider(CustomProvider(base_url=root, model="m"), breakers=BreakerRegistry())
    return langchain_peer(ChatLearnFlow(provider=router, temperature=TEMPERATURE, max_tokens=MAX_TOKENS))


# The distribution and the factory of each peer by its name.
PEERS: Final[dict[str, tuple[str, Callable[[str], Peer]]]] = {
    RAW: ("httpx", httpx_raw),
    "openai SDK": ("openai", openai_sdk),
    BASE: ("litellm", litellm_openai),
    "LiteLLM Router": ("litellm", litellm_router),
    "LangChain ChatOpenAI": ("langchain_openai", langchain_openai),
    "pydantic-ai, direct": ("pydantic_ai", pydantic_ai),
    "ours": ("litellm", ours),
    "ours, RouterProvider": ("litellm", ours_routed),
    "ours, ChatLearnFlow": ("langchain_core", ours_langchain),
}


# In the process of a peer: CPU, latency, stalls


class Ticker:
    """A task that runs every millisecond. ``longest`` is the longest delay by the event loop in seconds."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._last = time.perf_counter()
        self._task = asyncio.ensure_future(self._tick())

    async def _tick(self) -> None:
        while True:
            self._last = time.perf_counter()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.perf_counter() - self._last - 0.001)

    def reset(self) -> None:
        """Ignore the delay since the last tick."""
        self._last = time.perf_counter()

    async def stop(self) -> float:
        """Stop and return the longest delay in seconds."""
        await asyncio.sleep(0.002)
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        return self.longest


@dataclass
class Costs:
    """The results of a peer: CPU seconds of a call and of a chunk by round, latencies in seconds by concurrency."""

    call: list[float] = field(default_factory=list)
    chunk: list[float] = field(default_factory=list)
    latencies: dict[int, list[float]] = field(default_factory=lambda: {many: [] for many in CONCURRENCY})
    stalls: list[float] = field(default_factory=list)

    def add(self, other: Costs) -> None:
        """Add the results of another round."""
        self.call += other.call
        self.chunk += other.chunk
        self.stalls += other.stalls
        for many, waits in self.latencies.items():
            waits.extend(other.latencies[many])


async def read_stream(peer: Peer, prompt: str) -> int:
    """Read a stream to its end. Return the number of characters."""
    return sum([len(piece) async for piece in peer.stream(prompt)])


async def cpu(call: Callable[[], Awaitable[int]], times: int) -> float:
    """Return the CPU seconds of all threads of this process for one call."""
    assert await call()
    before = time.process_time()
    for _ in range(times):
        await call()
    return (time.process_time() - before) / times


async def start_together(peer: Peer, count: int) -> list[float]:
    """Start calls at the same time. Return their latencies in seconds."""

    async def one() -> float:
        began = time.perf_counter()
        await peer.call("short")
        return time.perf_counter() - began

    return await asyncio.gather(*(one() for _ in range(count)))


async def measure_latency(peer: Peer, costs: Costs, calls: int) -> None:
    """Measure the latency of 1, 50 and 200 concurrent calls, after a wave that opens connections, and stalls at 200."""
    for many in CONCURRENCY:
        await start_together(peer, many)
        for _ in range(max(1, calls // many)):
            ticker = Ticker()
            costs.latencies[many] += await start_together(peer, many)
            longest = await ticker.stop()
            if many == CONCURRENCY[-1]:
                costs.stalls.append(longest)


async def run_round(peer: Peer, calls: int, chunks: int) -> Costs:
    """Run one round of a peer."""
    costs = Costs()
    costs.call.append(await cpu(lambda: peer.call("short"), calls))
    short = await cpu(lambda: read_stream(peer, "short"), max(calls // 4, 1))
    costs.chunk.append((await cpu(lambda: read_stream(peer, "long"), 4) - short) / (chunks - 1))
    await measure_latency(peer, costs, calls)
    return costs


# In the process of a peer: start, memory


def rss() -> float:
    """Return the memory of this process in megabytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


async def open_streams(peer: Peer, count: int) -> tuple[list[AsyncIterator[str]], int]:
    """Open streams and read their first pieces. Return the streams, and how many of them failed."""
    streams = [peer.stream("hold") for _ in range(count)]
    failed = 0
    for at in range(0, count, _BATCH):
        batch = [asyncio.ensure_future(read_first_word(stream)) for stream in streams[at : at + _BATCH]]
        _, late = await asyncio.wait(batch, timeout=_OPEN_TIMEOUT_S)
        failed += len(late) + sum(1 for task in batch if task not in late and task.exception())
        if late:
            break
    return streams, failed


async def read_first_word(stream: AsyncIterator[str]) -> None:
    """Read a stream until its first word."""
    while not await anext(stream):
        pass


async def memory_of_streams(peer: Peer, streams: int) -> dict[str, float]:
    """Return the memory of open streams in megabytes, and how many of them failed to open."""
    raise_file_limit()
    await read_stream(peer, "short")
    gc.collect()
    before = rss()
    held, failed = await open_streams(peer, streams)
    gc.collect()
    result = {"memory": rss() - before, "failed": float(failed)}
    del held
    return result


def child(chosen: argparse.Namespace) -> None:
    """Create a peer and run the commands of the parent, one in each line of stdin. Print each result as JSON."""
    began = time.perf_counter()
    peer = PEERS[chosen.child][1](chosen.root)
    ready = time.perf_counter()
    runner = asyncio.Runner()
    runner.run(peer.call("short"))
    print(json.dumps({"import": ready - began, "first": time.perf_counter() - ready}), flush=True)
    for line in sys.stdin:
        if line.strip() == "turn":
            print(json.dumps(asdict(runner.run(run_round(peer, chosen.calls, chosen.chunks)))), flush=True)
        else:
            print(json.dumps(runner.run(memory_of_streams(peer, chosen.streams))), flush=True)
    os._exit(0)  # the system closes the open streams


class Child:
    """A process of one peer, so that no other peer's imports and garbage are measured."""

    def __init__(self, name: str, root: str, chosen: argparse.Namespace) -> None:
        arguments = {
            "child": name,
            "root": root,
            "calls": chosen.calls,
            "chunks": chosen.chunks,
            "streams": chosen.streams,
        }
        words = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
        self.name = name
        self._process = subprocess.Popen(  # noqa: S603  # this file
            [sys.executable, __file__, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def command(self, word: str = "") -> dict[str, Any]:
        """Run a command in the process and return its result. Without a command, return the times of the start."""
        assert self._process.stdin
        assert self._process.stdout
        if word:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        while line and not line.startswith("{"):
            line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} has failed")
        result: dict[str, Any] = json.loads(line)
        return result

    def close(self) -> None:
        """End the process by closing its stdin."""
        self._process.communicate()


def measure_rounds(
    names: list[str], root: str, chosen: argparse.Namespace
) -> tuple[dict[str, Costs], list[dict[str, Any]]]:
    """Measure all peers in turn in each round, so that a slow moment of the machine affects all."""
    children, starts = [], []
    for name in names:
        children.append(Child(name, root, chosen))
        if not chosen.quick:
            starts.append(children[-1].command())
    for one in children if chosen.quick else ():  # they start at the same time, so their starts are not measured
        one.command()
    costs = {name: Costs() for name in names}
    for _ in range(chosen.rounds):
        for one in children:
            result = one.command("turn")
            result["latencies"] = {int(many): waits for many, waits in result["latencies"].items()}
            costs[one.name].add(Costs(**result))
    for one in children:
        one.close()
    return costs, starts


def measure_memory(names: list[str], root: str, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure start and memory of each peer in a new process."""
    results = []
    for name in names:
        one = Child(name, root, chosen)
        results.append({**one.command(), **one.command("memory")})
        one.close()
    return results


# The output


def ratio(mine: list[float], base: list[float]) -> float:
    """Return the median of the ratios of the rounds."""
    return statistics.median(x / y for x, y in zip(mine, base, strict=True))


def ratios(costs: dict[str, Costs]) -> dict[str, tuple[float, float]]:
    """Return the ratios of a call and of a chunk to LiteLLM's ``openai/``."""
    base = costs[BASE]
    return {name: (ratio(one.call, base.call), ratio(one.chunk, base.chunk)) for name, one in costs.items()}


def show_cpu(costs: dict[str, Costs]) -> None:
    rounds = len(costs[RAW].call)
    print(f"\n{'CPU, median of ' + str(rounds):24}{'a call, ms':>12}{'ratio':>8}{'a chunk, us':>14}{'ratio':>8}")
    for name, (call, chunk) in ratios(costs).items():
        one = costs[name]
        a, b = statistics.median(one.call) * 1e3, statistics.median(one.chunk) * 1e6
        print(f"{name:24}{a:12.2f}{call:8.2f}{b:14.1f}{chunk:8.3f}")


def percentiles(waits: list[float]) -> tuple[float, float]:
    """Return median and p99 in milliseconds."""
    return statistics.median(waits) * 1e3, statistics.quantiles(waits, n=100, method="inclusive")[98] * 1e3


def show_latencies(costs: dict[str, Costs]) -> None:
    heads = "".join(f"{f'{many} at once':>18}" for many in CONCURRENCY)
    print(f"\n{'latency over httpx, ms':24}{heads}{f'stall at {CONCURRENCY[-1]}, ms':>20}")
    print(f"{'':24}" + f"{'median':>10}{'p99':>8}" * len(CONCURRENCY) + f"{'median':>12}{'most':>8}")
    bare = {many: percentiles(costs[RAW].latencies[many]) for many in CONCURRENCY}
    for name, one in costs.items():
        cells = ""
        for many in CONCURRENCY:
            median, late = percentiles(one.latencies[many])
            less = (0.0, 0.0) if name == RAW else bare[many]
            cells += f"{median - less[0]:10.1f}{late - less[1]:8.1f}"
        stalls = f"{statistics.median(one.stalls) * 1e3:12.0f}{max(one.stalls) * 1e3:8.0f}"
        print(f"{name if name != RAW else 'httpx itself':24}{cells}{stalls}")


def show_start(names: list[str], starts: list[dict[str, Any]], memories: list[dict[str, Any]], streams: int) -> None:
    memory = f"MB, {streams} open streams"
    print(f"\n{'a fresh process':24}{'import, s':>12}{'first call, s':>16}{memory:>26}{'failed':>8}")
    for at, name in enumerate(names):
        both = [starts[at], *memories[at : at + 1]]
        cells = "".join(f"{statistics.mean(one[key] for one in both):{width}.2f}" for key, width in _STARTS)
        more = f"{memories[at]['memory']:26.1f}{memories[at]['failed']:8.0f}" if memories else f"{'-':>26}{'-':>8}"
        print(f"{name:24}{cells}{more}")


_STARTS: Final = (("import", 12), ("first", 16))
_STYLE: Final = """<style>
text { font: 13px system-ui, sans-serif; fill: #24292f }
.head { font-weight: 600 } .them { fill: #8c959f } .us { fill: #0969da } .line { stroke: #8c959f; stroke-dasharray: 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .them { fill: #6e7681 } .us { fill: #4493f8 } .line { stroke: #6e7681 }
}
</style>"""


def draw(shown: dict[str, tuple[float, float]]) -> str:
    """Return a chart of the ratios as SVG: two columns of bars, with a dashed line for LiteLLM's ``openai/``."""
    row, left, wide, gap = 26, 170, 230, 90
    most = max(max(pair) for pair in shown.values())
    height = 44 + row * len(shown)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + 2 * (wide + gap)} {height}" role="img">']
    parts += [f"<title>CPU of a call and of a chunk, {BASE} is 1</title>", _STYLE]
    for column, head in enumerate(("CPU of a call", "CPU of a chunk")):
        x = left + column * (wide + gap)
        one = x + wide / most
        parts.append(f'<text class="head" x="{x}" y="18">{head}, {BASE} = 1</text>')
        for at, (name, pair) in enumerate(shown.items()):
            y, length = 32 + at * row, max(1.0, pair[column] / most * wide)
            who = "us" if name.startswith("ours") else "them"
            parts.append(f'<rect class="{who}" x="{x}" y="{y}" width="{length:.1f}" height="{row - 8}" rx="2"/>')
            parts.append(f'<text x="{x + length + 6:.1f}" y="{y + 14}">{pair[column]:.{2 + column}f}</text>')
            if column == 0:
                parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{name}</text>')
        parts.append(f'<line class="line" x1="{one:.1f}" x2="{one:.1f}" y1="28" y2="{height - 10}"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="take less than a minute: fewer rounds and calls, no start and memory"
    )
    parser.add_argument("--rounds", type=int, help="rounds of CPU and latency (4; quick: 1)")
    parser.add_argument("--calls", type=int, help="calls in a round for each measurement (100; quick: 15)")
    parser.add_argument("--chunks", type=int, help="chunks of a long answer (1000; quick: 300)")
    parser.add_argument("--streams", type=int, help="open streams for memory; 0 skips it (1000; quick: 0)")
    parser.add_argument("--only", nargs="+", choices=PEERS, help="peers besides httpx and LiteLLM openai/")
    parser.add_argument("--svg", type=Path, help="the file for a chart of the ratios")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    full = {"rounds": 4, "calls": 100, "chunks": 1000, "streams": 1000}
    quick = {"rounds": 1, "calls": 15, "chunks": 300, "streams": 0}
    for name, value in (quick if chosen.quick else full).items():
        if getattr(chosen, name) is None:
            setattr(chosen, name, value)
    return chosen


def compare(chosen: argparse.Namespace, root: str) -> None:
    """Print all results."""
    selected = [name for name in PEERS if not chosen.only or name in (RAW, BASE, *chosen.only)]
    installed = [name for name in selected if importlib.util.find_spec(PEERS[name][0])]
    for name in selected:
        if name not in installed:
            print(f"{name}: skipped, {PEERS[name][0]} is not installed")
    costs, starts = measure_rounds(installed, root, chosen)
    memories = measure_memory(installed, root, chosen) if chosen.streams else []
    show_cpu(costs)
    show_latencies(costs)
    if starts:
        show_start(installed, starts, memories, chosen.streams)
    if chosen.svg:
        chosen.svg.write_text(draw(ratios(costs)), encoding="utf-8")


def main() -> None:
    """Run the benchmark."""
    chosen = options()
    os.environ.update(_QUIET)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if chosen.child:
        child(chosen)
        return
    pipe, other_end = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(other_end, chosen.chunks), daemon=True)
    server.start()
    try:
        compare(chosen, f"http://127.0.0.1:{pipe.recv()}")
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
