"""``make demo``: ask a local server if one answers, else play a recorded answer, and say plainly which.

Must never call a recording an answer of today, nor ask a cloud.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from ..adapter import BaseProvider
from ..errors import LLMError
from ..providers import LlamaCppProvider
from ..survey import survey

QUESTION = "Explain RSA encryption"
TAPE = Path(__file__).parents[3] / "cassettes" / "llamacpp" / "stream.yaml"


def main() -> int:
    """Run the demo. Returns the exit code."""
    return asyncio.run(_demo())


async def _demo() -> int:
    print("Looking for a model server on this machine …", flush=True)
    for provider, name in await _found():
        print(f"{provider.spec.title} answers at {provider.endpoint.base}.\n")
        try:
            await _ask(provider, name)
        except LLMError as error:
            print(f"\nIt could not answer: {error}\n")
        else:
            return 0
    if not TAPE.exists():
        print("None answers, and there is no recording here. Start one, for example: ollama serve", file=sys.stderr)
        return 1
    import vcr  # noqa: PLC0415  # of the dev extra
    import yaml  # noqa: PLC0415

    origin = yaml.safe_load(TAPE.read_text(encoding="utf-8"))["origin"]
    print(f"None answers, so this is a RECORDED answer: {origin['server']}, {origin['model']}, {origin['date']}.\n")
    with vcr.VCR(record_mode="none", match_on=["method", "path", "body"]).use_cassette(str(TAPE)):
        await _ask(LlamaCppProvider(base_url="http://llamacpp.example:8080"), "learnflow-tiny")
    print("\nTo ask a model of your own, start a server (for example: ollama serve) and run make demo again.")
    return 0


async def _found() -> list[tuple[BaseProvider, str]]:
    """The local providers that are ready and have a model, each with one of its names."""
    there = [each for each in await survey() if each.provider and each.provider.spec.local and each.health.ready]
    named = [(each.provider, each.health.model or next(iter(each.health.models), None)) for each in there]
    return [(provider, model) for provider, model in named if provider and model]


async def _ask(provider: BaseProvider, model: str) -> None:
    print(f"> {QUESTION}   ({provider.name}, {model})\n")
    async with provider.stream(QUESTION, model=model, temperature=0) as answer:
        async for piece in answer:
            print(piece, end="", flush=True)
    done = answer.completion
    print(f"\n\nThe answer is whole: ended by the server with {done.finish!r}, {done.usage.completion_tokens} tokens.")


if __name__ == "__main__":
    sys.exit(main())
