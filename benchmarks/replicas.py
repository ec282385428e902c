"""Measure load balancing over two servers: the time of eight answers, and the reuse of the prompt cache.

    LEARNFLOW_SERVE="…/serve-llama.sh {port}" python benchmarks/replicas.py [--rounds 3]

``LEARNFLOW_SERVE`` is a command that serves a model with llama.cpp at ``{port}``. ``--parallel 1 --threads 1`` is
added: one slot and one thread for each server. The contenders run in turn in each round, with new servers and their own
texts. The second table has two variants: llama.cpp's default, which caches the prompts of earlier slots in memory, and
``--cache-ram 0``, as on a machine without spare memory. The first answer about a text is the one that reads the most
uncached tokens. LiteLLM's Router sends all requests at once, and the servers queue them. The last column is the share
of the busier server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import shlex
import socket
import statistics
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

Ask = Callable[[list[dict[str, str]]], Awaitable["Read"]]
NAMES = ("gpu1", "gpu2")
ALONE = ("--parallel", "1", "--threads", "1")
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
IN_WORDS = {"grammar": "root ::= [A-Za-z] [A-Za-z ]+"}  # without it the tiny model starts to reason
SENTENCES = 82  # about 1,500 tokens of the tiny model
PATIENCE_S = 120.0  # for one contender
STAT = Path("/proc/stat")
CALM_S = 30 if STAT.exists() else 0


@dataclass(frozen=True)
class Read:
    """The prompt tokens of an answer, how many of them were cached, and the server."""

    prompt: int
    cached: int
    by: str


def material(number: int) -> str:
    """Return a text that differs from those of other numbers from its beginning."""
    chance = random.Random(number)  # noqa: S311  # the same in every run
    pairs = [(chance.choice(WORDS), chance.choice(WORDS)) for _ in range(SENTENCES)]
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
        assert server.returncode is None, "LEARNFLOW_SERVE ended by itself"
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
            command = [*shlex.split(os.environ["LEARNFLOW_SERVE"].format(port=port)), *ALONE, *flags]
            quiet = asyncio.subprocess.DEVNULL
            running.append(await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet))
            urls.append(f"http://127.0.0.1:{port}")
        await asyncio.gather(*map(ready, urls, running))
        yield urls
    finally:
        for server in running:
            with contextlib.suppress(ProcessLookupError):
                server.kill()
            await server.wait()


def read_of(done: Completion, by: str) -> Read:
    return Read(done.usage.prompt_tokens or 0, done.usage.cached_tokens or 0, by)


def equals(urls: Sequence[str], tokens: int) -> Ask:
    os.environ["LLM_FIRST_TOKEN_TIMEOUT"] = str(PATIENCE_S)
    for name, url in zip(NAMES, urls, strict=False):
        os.environ |= {f"{name}_BASE_URL".upper(): url, f"{name}_KIND".upper(): "llamacpp"}
    router = RouterProvider("+".join(NAMES[: len(urls)]), breakers=BreakerRegistry())

    async def ask(messages: list[dict[str, str]]) -> Read:
        done = await router.complete(messages, temperature=0, max_tokens=tokens, extra_body=IN_WORDS)
        return read_of(done, done.provider)

    return ask


def in_turn(urls: Sequence[str], tokens: int) -> Ask:
    providers = [LlamaCppProvider(base_url=url, model="m") for url in urls]
    requests = 0

    async def ask(messages: list[dict[str, str]]) -> Read:
        nonlocal requests
        requests += 1
        which = requests % len(urls)
        done = await providers[which].complete(messages, temperature=0, max_tokens=tokens, extra_body=IN_WORDS)
        return read_of(done, urls[which])

    return ask


def litellms(strategy: str) -> Callable[[Sequence[str], int], Ask]:
    def make(urls: Sequence[str], tokens: int) -> Ask:
        litellm = _litellm._load()  # noqa: SLF001  # quiet and offline, as ours is
        targets = [{"model": "openai/m", "api_base": f"{url}/v1", "api_key": "k", "max_retries": 0} for url in urls]
        models = [{"model_name": "m", "litellm_params": target} for target in targets]
        router = litellm.Router(models, routing_strategy=strategy, num_retries=0)

        async def ask(messages: list[dict[str, str]]) -> Read:
            done: Any = await router.acompletion(
                model="m", messages=messages, temperature=0, max_tokens=tokens, extra_body=IN_WORDS
            )
            of_cache = done.usage.prompt_tokens_details.cached_tokens or 0
            return Read(done.usage.prompt_tokens, of_cache, done._hidden_params["api_base"])  # noqa: SLF001

        return ask

    return make


async def together(ask: Ask, questions: Sequence[list[dict[str, str]]]) -> tuple[float, list[Read]]:
    """Send all requests at once. Return the seconds to the last answer, and what each answer read."""
    async with asyncio.timeout(PATIENCE_S):
        await ask([{"role": "user", "content": "hi"}])  # imports, connections and probes
        started = time.perf_counter()
        read = await asyncio.gather(*map(ask, questions))
        return time.perf_counter() - started, read


def idle() -> tuple[int, int]:
    """Return the idle ticks and all ticks of the processors since the machine started."""
    ticks = [int(tick) for tick in STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


async def calm() -> None:
    """Wait until the processors are idle, because two servers need two of them; at most half a minute."""
    for _ in range(CALM_S):
        before = idle()
        await asyncio.sleep(1)
        after = idle()
        if after[0] - before[0] > 0.9 * (after[1] - before[1]):
            return


def shown(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


async def eight(rounds: int, texts: range, tokens: int) -> None:
    """Send eight questions about eight texts to one server, and to two load-balanced ones."""
    spent: dict[int, list[float]] = {1: [], 2: []}
    for round_number in range(rounds):
        questions = [question(material(texts.start + round_number * 8 + at), at) for at in range(8)]
        for count in (1, 2) if round_number % 2 else (2, 1):
            await calm()
            async with servers(count) as urls:
                seconds, _ = await together(equals(urls, tokens), questions)
                spent[count].append(seconds)
    best = min(spent[2]) / min(spent[1])  # other programs can only make a run slower
    ratios = [two / one for one, two in zip(spent[1], spent[2], strict=True)]
    print(
        f"eight answers at once, wall time on two equals / on one of them (goal: at most 0.65): {best:.3f}, the best of"
    )
    print(f"{rounds} rounds of each; by rounds {shown(ratios)}")


async def cached(rounds: int, texts: range, *flags: str) -> None:
    """Send ten questions about each of two texts, all at once."""
    makers: dict[str, Callable[[Sequence[str], int], Ask]] = {
        "ours, equals": equals,
        "in turn": in_turn,
        "LiteLLM simple-shuffle": litellms("simple-shuffle"),
        "LiteLLM least-busy": litellms("least-busy"),
    }
    shares: dict[str, list[float]] = {who: [] for who in makers}
    times: dict[str, list[float]] = {who: [] for who in makers}
    busier: dict[str, list[float]] = {who: [] for who in makers}
    fresh = iter(texts)
    for round_number in range(rounds):
        order = [(at % 2, at // 2) for at in range(20)]
        random.Random(round_number).shuffle(order)  # noqa: S311  # the same for all contenders
        for who, make in makers.items():
            both = [material(next(fresh)) for _ in range(2)]
            async with servers(2, *flags) as urls:
                questions = [question(both[which], number) for which, number in order]
                seconds, read = await together(make(urls, 16), questions)
            times[who].append(seconds)
            busier[who].append(max(Counter(one.by for one in read).values()) / len(read))
            rest = []
            for text in range(2):
                mine = [one for one, (which, _) in zip(read, order, strict=True) if which == text]
                rest += sorted(mine, key=lambda one: one.cached)[1:]
            shares[who].append(sum(one.cached for one in rest) / sum(one.prompt for one in rest))
    print(f"\ntwo texts, twenty questions at once, llama.cpp {' '.join(flags) or 'as it is started'}")
    print(f"{'':24}{'of the prompts from cache':28}{'wall time / ours':28}{'of the answers by one':28}")
    for who in makers:
        ratios = [mine / ours for mine, ours in zip(times[who], times["ours, equals"], strict=True)]
        print(f"{who:24}{shown(shares[who]):28}{shown(ratios):28}{shown(busier[who])}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16, help="of each of the eight answers, at most")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if not os.environ.get("LEARNFLOW_SERVE"):
        parser.error("LEARNFLOW_SERVE is not set")

    async def run() -> None:
        await eight(options.rounds, range(1000, 2000), options.tokens)
        await cached(options.rounds, range(2000, 3000))
        await cached(options.rounds, range(3000, 4000), "--cache-ram", "0")

    asyncio.run(run())


if __name__ == "__main__":
    main()
