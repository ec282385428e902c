"""What answers in parallel share of one long prompt: the question before the material, and after it.

A server keeps the work on a prompt as long as the next one begins with the same tokens. LearnFlow's ``answer_question``
puts the question first, so that nothing is shared but the first lines. Asks a llama.cpp server, which says what it
evaluated:  python benchmarks/shared_prefix.py http://127.0.0.1:8080 [--questions 8] [--words 1100]
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


async def asked(client: httpx.AsyncClient, text: str) -> dict[str, float]:
    """What the server says of one prompt; an answer of one token."""
    body = {"messages": [{"role": "system", "content": text}], "max_tokens": 1, "temperature": 0}
    answered = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()
    timings: dict[str, float] = answered["timings"]
    return timings


async def measure(url: str, questions: int, words: int, first: str) -> None:
    chosen = random.Random(first)  # noqa: S311  # another material for each order: neither finds the other's in the cache
    material = " ".join(chosen.choice(WORDS) for _ in range(words))
    prompts = [prompt(f"Question {number}: why?", material, first=first) for number in range(questions)]
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        began = time.perf_counter()
        said = [await asked(client, prompts[0]), *await asyncio.gather(*(asked(client, each) for each in prompts[1:]))]
        seconds = time.perf_counter() - began
    evaluated = sum(each["prompt_n"] for each in said)
    cached = sum(each.get("cache_n", 0) for each in said)
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
