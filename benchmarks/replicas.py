"""Measure load balancing over two servers: the time of eight answers, and the reuse of the prompt cache.

    PYTHONPATH=. .venv/bin/python benchmarks/replicas.py [--rounds 3]

``LEARNFLOW_SERVE`` is a command that serves a model with llama.cpp at ``{port}``; by default the tiny model of the
tests. ``--parallel 1 --threads 1`` is added: one slot and one thread for each server. The clients run in turn in each
round, with new servers and their own texts. The second table has two variants: llama.cpp's default, which caches the
prompts of earlier slots in memory, and ``--cache-ram 0``, as on a machine without spare memory. The first answer about
a text is the one that reads the most uncached tokens. LiteLLM's Router sends all requests at once, and the servers
queue them. The rows of vllm-router need ``make engines``: this package sends two requests at once to its address. The
last column is the share of the busier server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import re
import shlex
import socket
import statistics
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learnflow.llm import RouterProvider
from learnflow.llm.adapter import _litellm
from learnflow.llm.completion import Completion
from learnflow.llm.providers import LlamaCppProvider
from learnflow.llm.routing.breaker import BreakerRegistry

Send = Callable[[list[dict[str, str]]], Awaitable["PromptUsage"]]
Client = Callable[[Sequence[str], int], contextlib.AbstractAsyncContextManager[Send]]
SERVE = f"{sys.executable} {Path(__file__).with_name('serve_tiny.py')} --port {{port}}"
ENGINE = Path(sys.executable).with_name("vllm-router")
NAMES = ("gpu1", "gpu2")
SERVER_OPTIONS = ("--parallel", "1", "--threads", "1")
WORDS = (
    "key",
    "hash",
    "cipher",
    "prime",
    "signature",
    "padding",
    "exponent",
    "block",
    "nonce",
    "salt",
    "digest",
    "proof",
)
GRAMMAR = {"grammar": "root ::= [A-Za-z] [A-Za-z ]+"}  # prevents the tiny model from reasoning
SENTENCES = 82  # about 1,500 tokens of the tiny model
TIMEOUT_S = 120.0  # for one client
STAT = Path("/proc/stat")
MAX_WAIT_S = 30 if STAT.exists() else 0


@dataclass(frozen=True)
class PromptUsage:
    """The prompt tokens of an answer, the cached ones among them, and the server."""

    prompt: int
    cached: int
    server: str


def material(number: int) -> str:
    """Return a text that differs from those of other numbers from its beginning."""
    generator = random.Random(number)  # noqa: S311  # the same in each run
    pairs = [(generator.choice(WORDS), generator.choice(WORDS)) for _ in range(SENTENCES)]
    return f"Lesson {number}. " + " ".join(
        f"Rule {at}: the {one} needs the {two}." for at, (one, two) in enumerate(pairs)
    )


def question(text: str, number: int) -> list[dict[str, str]]:
    content = f"Question {number}: what does the {WORDS[number]} need?"
    return [{"role": "system", "content": text}, {"role": "user", "content": content}]


def free_port() -> int:
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def ready(url: str, server: asyncio.subprocess.Process) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError):
            await asyncio.to_thread(urllib.request.urlopen, f"{url}/health", timeout=1)
            return
        assert server.returncode is None, "the command in LEARNFLOW_SERVE has ended"
        await asyncio.sleep(0.1)
    raise TimeoutError(url)


@contextlib.asynccontextmanager
async def servers(count: int, *flags: str) -> AsyncIterator[list[str]]:
    """Run new servers, wait until they are ready, and stop them at the end."""
    running = []
    try:
        urls = []
        for _ in range(count):
            port = free_port()
            command = [
                *shlex.split(os.environ.get("LEARNFLOW_SERVE", SERVE).format(port=port)),
                *SERVER_OPTIONS,
                *flags,
            ]
            devnull = asyncio.subprocess.DEVNULL
            running.append(await asyncio.create_subprocess_exec(*command, stdout=devnull, stderr=devnull))
            urls.append(f"http://127.0.0.1:{port}")
        await asyncio.gather(*map(ready, urls, running))
        yield urls
    finally:
        for server in running:
            with contextlib.suppress(ProcessLookupError):
                server.kill()
            await server.wait()


def prompt_usage(completion: Completion, server: str) -> PromptUsage:
    return PromptUsage(completion.usage.prompt_tokens or 0, completion.usage.cached_tokens or 0, server)


@contextlib.asynccontextmanager
async def load_balancing(urls: Sequence[str], tokens: int) -> AsyncIterator[Send]:
    os.environ["LLM_FIRST_TOKEN_TIMEOUT"] = str(TIMEOUT_S)
    for name, url in zip(NAMES, urls, strict=False):
        os.environ |= {f"{name}_BASE_URL".upper(): url, f"{name}_KIND".upper(): "llamacpp"}
    router = RouterProvider("+".join(NAMES[: len(urls)]), breakers=BreakerRegistry())

    async def send(messages: list[dict[str, str]]) -> PromptUsage:
        done = await router.complete(messages, temperature=0, max_tokens=tokens, extra_body=GRAMMAR)
        return prompt_usage(done, done.provider)

    yield send
    await router.aclose()


@contextlib.asynccontextmanager
async def round_robin(urls: Sequence[str], tokens: int) -> AsyncIterator[Send]:
    providers = [LlamaCppProvider(base_url=url, model="m") for url in urls]
    requests = 0

    async def send(messages: list[dict[str, str]]) -> PromptUsage:
        nonlocal requests
        requests += 1
        which = requests % len(urls)
        done = await providers[which].complete(messages, temperature=0, max_tokens=tokens, extra_body=GRAMMAR)
        return prompt_usage(done, urls[which])

    yield send
    for provider in providers:
        await provider.aclose()


def vllm_router(*options: str, session: bool = False) -> Client:
    """Return a client that sends to vllm-router, with the text's name as session if ``session``."""

    @contextlib.asynccontextmanager
    async def make(urls: Sequence[str], tokens: int) -> AsyncIterator[Send]:
        port, metrics = free_port(), free_port()
        command = [str(ENGINE), "--port", str(port), "--prometheus-port", str(metrics), "--disable-retries", *options]
        devnull, url = asyncio.subprocess.DEVNULL, f"http://127.0.0.1:{port}"
        engine = await asyncio.create_subprocess_exec(*command, "--worker-urls", *urls, stdout=devnull, stderr=devnull)
        header = {"x-session-id": "{session}"} if session else {}
        try:
            await ready(url, engine)
            target = LlamaCppProvider(base_url=url, model="m", headers=header, max_concurrency=len(urls))
            provider = RouterProvider(
                [target], breakers=BreakerRegistry()
            )  # retries, if a server closed an idle connection

            async def send(messages: list[dict[str, str]]) -> PromptUsage:
                done = await provider.complete(
                    messages,
                    temperature=0,
                    max_tokens=tokens,
                    extra_body=GRAMMAR,
                    session=messages[0]["content"].split(".")[0] if session else None,
                )
                return prompt_usage(done, "")

            yield EngineClient(send, f"http://127.0.0.1:{metrics}/metrics")
            await provider.aclose()
        finally:
            with contextlib.suppress(ProcessLookupError):
                engine.kill()
            await engine.wait()

    return make


class EngineClient:
    """A client of an engine, which reports the answers of each server only as metrics."""

    def __init__(self, send: Send, metrics: str) -> None:
        self._send, self._metrics = send, metrics

    def __call__(self, messages: list[dict[str, str]]) -> Awaitable[PromptUsage]:
        """Send a request."""
        return self._send(messages)

    def answers(self) -> list[int]:
        """Return the number of answers of each server so far."""
        page = urllib.request.urlopen(self._metrics, timeout=5).read().decode()  # noqa: S310  # http
        numbers = re.findall(r"^vllm_router_processed_requests_total\{.*\} (\d+)", page, re.MULTILINE)
        return [int(number) for number in numbers]


def litellm_router(strategy: str) -> Client:
    @contextlib.asynccontextmanager
    async def make(urls: Sequence[str], tokens: int) -> AsyncIterator[Send]:
        litellm = _litellm._load()  # noqa: SLF001  # quiet and offline, as ours is
        targets = [{"model": "openai/m", "api_base": f"{url}/v1", "api_key": "k", "max_retries": 0} for url in urls]
        models = [{"model_name": "m", "litellm_params": target} for target in targets]
        router = litellm.Router(models, routing_strategy=strategy, num_retries=0)

        async def send(messages: list[dict[str, str]]) -> PromptUsage:
            done: Any = await router.acompletion(
                model="m", messages=messages, temperature=0, max_tokens=tokens, extra_body=GRAMMAR
            )
            of_cache = done.usage.prompt_tokens_details.cached_tokens or 0
            return PromptUsage(done.usage.prompt_tokens, of_cache, done._hidden_params["api_base"])  # noqa: SLF001

        yield send

    return make


async def together(send: Send, questions: Sequence[list[dict[str, str]]]) -> tuple[float, list[PromptUsage]]:
    """Send all requests at once. Return the seconds to the last answer, and the prompt usage of the answers."""
    async with asyncio.timeout(TIMEOUT_S):
        await send([{"role": "user", "content": "hi"}])  # imports, connections and probes
        started = time.perf_counter()
        read = await asyncio.gather(*map(send, questions))
        return time.perf_counter() - started, read


def processor_ticks() -> tuple[int, int]:
    """Return the idle ticks and all ticks of the processors since the machine started."""
    ticks = [int(tick) for tick in STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


async def wait_until_idle() -> None:
    """Wait until the processors are idle, because two servers need two of them; at most half a minute."""
    for _ in range(MAX_WAIT_S):
        before = processor_ticks()
        await asyncio.sleep(1)
        after = processor_ticks()
        if after[0] - before[0] > 0.9 * (after[1] - before[1]):
            return


def format_range(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


async def measure_eight_answers(rounds: int, texts: range, tokens: int) -> None:
    """Send eight questions about eight texts to one server, and to two load-balanced ones."""
    spent: dict[int, list[float]] = {1: [], 2: []}
    for round_number in range(rounds):
        questions = [question(material(texts.start + round_number * 8 + at), at) for at in range(8)]
        for count in (1, 2) if round_number % 2 else (2, 1):
            await wait_until_idle()
            async with servers(count) as urls:
                async with load_balancing(urls, tokens) as send:
                    seconds, _ = await together(send, questions)
                spent[count].append(seconds)
    best = min(spent[2]) / min(spent[1])  # other programs can only make a run slower
    ratios = [two / one for one, two in zip(spent[1], spent[2], strict=True)]
    print(
        "eight answers at once, wall time on two servers / on one (goal: at most 0.65): "
        f"{best:.3f}, the best of {rounds} rounds;"
    )
    print(f"by rounds {format_range(ratios)}")


async def measure_cache(rounds: int, texts: range, *flags: str) -> None:
    """Send ten questions about each of two texts, all at once."""
    makers: dict[str, Client] = {
        "ours, load balancing": load_balancing,
        "round robin": round_robin,
        "vllm-router cache_aware": vllm_router(),
        "vllm-router sessions": vllm_router("--policy", "sticky_least_loaded", session=True),
        "LiteLLM simple-shuffle": litellm_router("simple-shuffle"),
        "LiteLLM least-busy": litellm_router("least-busy"),
    }
    if not ENGINE.exists():
        print("\nvllm-router is not installed (make engines)")
        makers = {client: make for client, make in makers.items() if not client.startswith("vllm-router")}
    shares: dict[str, list[float]] = {client: [] for client in makers}
    times: dict[str, list[float]] = {client: [] for client in makers}
    busier: dict[str, list[float]] = {client: [] for client in makers}
    fresh = iter(texts)
    for round_number in range(rounds):
        order = [(at % 2, at // 2) for at in range(20)]
        random.Random(round_number).shuffle(order)  # noqa: S311  # the same for all clients
        for client, make in makers.items():
            both = [material(next(fresh)) for _ in range(2)]
            async with servers(2, *flags) as urls:
                questions = [question(both[which], number) for which, number in order]
                async with make(urls, 16) as send:
                    seconds, read = await together(send, questions)
                    answers = (
                        send.answers()
                        if isinstance(send, EngineClient)
                        else Counter(one.server for one in read).values()
                    )
            times[client].append(seconds)
            busier[client].append(max(answers) / sum(answers))
            rest = []
            for text in range(2):
                mine = [one for one, (which, _) in zip(read, order, strict=True) if which == text]
                rest += sorted(mine, key=lambda one: one.cached)[1:]
            shares[client].append(sum(one.cached for one in rest) / sum(one.prompt for one in rest))
    print(f"\ntwo texts, twenty questions at once, llama.cpp {' '.join(flags) or 'by default'}")
    print(f"{'':24}{'cached part of prompts':28}{'wall time / ours':28}{'answers of busier server':28}")
    for client in makers:
        ratios = [mine / ours for mine, ours in zip(times[client], times["ours, load balancing"], strict=True)]
        print(
            f"{client:24}{format_range(shares[client]):28}{format_range(ratios):28}{format_range(busier[client])}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16, help="max_tokens of the eight answers")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)

    async def run() -> None:
        await measure_eight_answers(options.rounds, range(1000, 2000), options.tokens)
        await measure_cache(options.rounds, range(2000, 3000))
        await measure_cache(options.rounds, range(3000, 4000), "--cache-ram", "0")

    asyncio.run(run())


if __name__ == "__main__":
    main()
