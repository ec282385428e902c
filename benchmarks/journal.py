"""Measure a stream with the journal and without it, in turn, and print the ratio of their CPU times.

Run: ``python benchmarks/journal.py [--rounds 15] [--chunks 1000]``.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import tempfile
import time

from cost import serve

from learnflow.llm import RouterProvider
from learnflow.llm.providers import CustomProvider


async def measure(root: str, rounds: int) -> None:
    """Print the medians in milliseconds, and the median of the ratios of a round."""
    chains = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, value in (("without", ""), ("with", folder)):
            os.environ["LLM_JOURNAL"] = value
            chains[name] = RouterProvider(CustomProvider(base_url=root, model="m", api_key="k"))
        times: dict[str, list[float]] = {name: [] for name in chains}
        for _ in range(rounds + 2):
            for name, chain in chains.items():
                began = time.process_time()
                for _ in range(5):
                    async for _ in chain.stream("a long answer"):
                        pass
                times[name].append((time.process_time() - began) / 5 * 1000)
    ratios = [one / other for one, other in zip(times["with"][2:], times["without"][2:], strict=True)]
    for name in chains:
        print(f"{name} the journal: {statistics.median(times[name][2:]):.1f} ms")
    print(f"ratio: {statistics.median(ratios):.3f}")


def main() -> None:
    """Run the server and the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--chunks", type=int, default=1000)
    arguments = parser.parse_args()
    receiver, sender = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(sender, arguments.chunks), daemon=True)
    server.start()
    try:
        asyncio.run(measure(f"http://127.0.0.1:{receiver.recv()}", arguments.rounds))
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
