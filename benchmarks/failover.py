"""Measure the time of a failover, compared with LiteLLM's Router and LangChain.

    python benchmarks/failover.py [--timeout 10] [--calls 100]

All run in one process against the same fault server on loopback. The table has the first and the second request, and
the attempts at the primary in both. ``>N`` means that no answer arrived within the timeout. The last line
compares a call through a router with a call through a provider. LangChain is skipped if it is not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from learnflow.llm import RouterProvider
from learnflow.llm.adapter import _litellm
from learnflow.llm.providers import CustomProvider
from learnflow.llm.routing.breaker import BreakerRegistry
from learnflow.llm.testing import Fault, FaultServer

Send = Callable[[], Awaitable[object]]
FAULTS: dict[str, Fault] = {
    "500": Fault("refuse"),
    "429, Retry-After: 30": Fault("refuse", refusal="rate", headers={"retry-after": "30"}),
    "401": Fault("refuse", refusal="key"),
    "404 model": Fault("refuse", refusal="model"),
    "closed": Fault("close"),
    "hang, 2 s to the first token": Fault("hang"),
}
MESSAGES = [{"role": "user", "content": "hi"}]


def ours(one: str, two: str) -> Send:
    providers = [CustomProvider(base_url=url, model="m", first_token_timeout=2.0) for url in (one, two)]
    router = RouterProvider(providers[0], providers[1:], breakers=BreakerRegistry())
    return lambda: router.generate("hi")


def litellm_router(one: str, two: str, **options: Any) -> Send:
    litellm = _litellm._load()  # noqa: SLF001  # quiet and offline, as ours is
    retries = {"max_retries": 0} if options else {}
    models = [
        {"model_name": name, "litellm_params": {"model": "openai/m", "api_base": url, "api_key": "k", **retries}}
        for name, url in (("p", one), ("s", two))
    ]
    router = litellm.Router(models, fallbacks=[{"p": ["s"]}], timeout=2, **options)
    return lambda: router.acompletion(model="p", messages=MESSAGES)


def langchain_fallbacks(one: str, two: str) -> Send:
    from langchain_openai import ChatOpenAI  # noqa: PLC0415

    models = [ChatOpenAI(model="m", base_url=url, api_key="k", timeout=2, max_retries=0) for url in (one, two)]
    chain = models[0].with_fallbacks(models[1:])
    return lambda: chain.ainvoke("hi")


async def seconds(send: Send, limit_s: float) -> str:
    started = time.perf_counter()
    try:
        async with asyncio.timeout(limit_s):
            await send()
    except TimeoutError:
        return f">{limit_s:g}"
    except Exception as error:  # noqa: BLE001  # an error is a result, too
        return type(error).__name__[:12]
    return f"{time.perf_counter() - started:.3f}"


async def table(limit_s: float) -> None:
    makers: dict[str, Callable[[str, str], Send]] = {
        "ours": ours,
        "LiteLLM Router, tuned": lambda one, two: litellm_router(
            one, two, num_retries=0, allowed_fails=0, cooldown_time=30
        ),
        "LiteLLM Router": litellm_router,
        "LangChain with_fallbacks": langchain_fallbacks,
    }
    print(f"{'fault':30}{'client':28}{'first s':>10}{'next s':>10}{'attempts':>10}")
    for name, fault in FAULTS.items():
        for client, make in makers.items():
            async with FaultServer("openai", fault=fault) as one, FaultServer("openai") as two:
                two.fault = Fault("whole") if client != "ours" else None
                try:
                    send = make(one.base_url, two.base_url)
                except ImportError:
                    continue
                first, second = await seconds(send, limit_s), await seconds(send, limit_s)
                print(f"{name:30}{client:28}{first:>10}{second:>10}{len(one.seen):>10}", flush=True)


async def cost(calls: int, rounds: int) -> None:
    async with FaultServer("openai") as one, FaultServer("openai") as two:
        plain = CustomProvider(base_url=one.base_url, model="m")
        routed = RouterProvider(plain, [CustomProvider(base_url=two.base_url, model="m")], breakers=BreakerRegistry())
        ratios = []
        for _ in range(rounds):
            spent = []
            for provider in (plain, routed):
                started = time.process_time()
                for _ in range(calls):
                    await provider.generate("hi")
                spent.append(time.process_time() - started)
            ratios.append(spent[1] / spent[0])
        print(
            f"\nCPU of a call through a router / through its provider: {statistics.median(ratios):.2f} "
            f"(median of {rounds} rounds)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timeout", type=float, default=10.0, help="time limit of a request in seconds")
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)

    async def run() -> None:
        await CustomProvider(base_url="http://127.0.0.1:9", model="m").prepare()
        await table(options.timeout)
        await cost(options.calls, options.rounds)

    asyncio.run(run())


if __name__ == "__main__":
    main()
