"""Measure the cached part of long prompts, with the question before and after the material.

    python benchmarks/shared_prefix.py http://127.0.0.1:8080 [--questions 8] [--words 1100]

A server reuses the tokens of the previous prompt that the next prompt begins with. LearnFlow's ``answer_question`` has
the question first, so only the first lines are reused. The server must be llama.cpp, which reports evaluated tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time

import httpx

WORDS = (
    "the",
    "key",
    "of",
    "a",
    "cipher",
    "is",
    "public",
    "number",
    "prime",
    "factor",
    "message",
    "hash",
    "proof",
    "curve",
)


def prompt(question: str, material: str, *, first: str) -> str:
    parts = {"question": f"<question>\n{question}\n</question>", "material": f"<material>\n{material}\n</material>"}
    order = sorted(parts, key=lambda name: name != first)
    return "Answer the question, using only the material.\n\n" + "\n\n".join(parts[name] for name in order)


async def send(client: httpx.AsyncClient, text: str) -> dict[str, float]:
    """Send a prompt with an answer of one token. Return the timings that the server reports."""
    body = {"messages": [{"role": "system", "content": text}], "max_tokens": 1, "temperature": 0}
    answer = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()
    timings: dict[str, float] = answer["timings"]
    return timings


async def measure(url: str, questions: int, words: int, first: str) -> None:
    generator = random.Random(first)  # noqa: S311  # another material for each order, so that it is not cached
    material = " ".join(generator.choice(WORDS) for _ in range(words))
    prompts = [prompt(f"Question {number}: why?", material, first=first) for number in range(questions)]
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        began = time.perf_counter()
        timings = [await send(client, prompts[0]), *await asyncio.gather(*(send(client, item) for item in prompts[1:]))]
        seconds = time.perf_counter() - began
    evaluated = sum(item["prompt_n"] for item in timings)
    cached = sum(item.get("cache_n", 0) for item in timings)
    print(f"{first} first: {evaluated} tokens evaluated, {cached} from the cache, {seconds:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--words", type=int, default=1100)
    options = parser.parse_args()
    for first in ("question", "material"):
        asyncio.run(measure(options.url, options.questions, options.words, first))


if __name__ == "__main__":
    main()
