"""``make demo``: a local server if one answers, else recorded answers; says plainly which, and from what.

Must never call a recording an answer of today, nor ask a cloud.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import events
from ..adapter.provider import BaseProvider
from ..base import LLMProvider
from ..discovery import brief, scan, usable
from ..errors import LLMError
from ..providers import CustomProvider, build
from ..replay import active, cassette
from ..routing.router import RouterProvider
from .fault_server import Fault, FaultServer
from .kit import replaying

QUESTION = "Explain RSA encryption"
BROKEN = "Explain cryptography"
CASSETTES = Path(__file__).parents[3] / "cassettes"
FIRST, SECOND = "llamacpp", "ollama"  # of the recorded run
PLAYED = [
    f"{row}/{name}.yaml" for row, name in ((FIRST, "health"), (SECOND, "health"), (FIRST, "stream"), (FIRST, "cut"))
] + [f"{SECOND}/resume.yaml"]


def main() -> int:
    """Run the demo, whatever LLM_REPLAY says. Returns the exit code."""
    logging.getLogger("learnflow.llm").setLevel(logging.ERROR)  # what it would warn of is shown
    with active.instead(None):
        return asyncio.run(_demo())


async def _demo() -> int:
    print("Looking for a model server on this machine …", flush=True)
    for each in usable(await scan(clouds=False)):
        provider, model = each.provider, each.health.model or next(iter(each.health.models), None)
        if provider is None or model is None:
            continue
        provider.model = model
        print(f"{provider.spec.title} answers at {provider.endpoint.base}: everything below is LIVE.\n")
        try:
            await _show(provider, live=True)
        except LLMError as error:
            print(f"\nIt could not answer: {error}\n")
        else:
            return 0
    files = [CASSETTES / name for name in PLAYED]
    if not all(file.exists() for file in files):
        print("None answers, and there are no recordings here. Start one, for example: ollama serve", file=sys.stderr)
        return 1
    print("None answers, so everything below is REPLAYED from cassettes:")
    for file in files:
        origin, _ = cassette.load(file.read_text(encoding="utf-8"))
        said = [str(origin[name]) for name in ("server", "model", "date", "source") if name in origin]
        print(f"  cassettes/{file.relative_to(CASSETTES)}: {origin['kind']}: {', '.join(said)}")
    with replaying(*files):
        await _show(build(FIRST, model="learnflow-tiny"), live=False)
    print("To ask a model of your own, start a server (for example: ollama serve) and run make demo again.")
    return 0


async def _show(provider: BaseProvider, *, live: bool) -> None:
    print("\n1. The providers that are found\n")
    for each in brief(await scan(clouds=False)):
        if each.answers:
            print(f"   {each.health.provider:9} {each.health.state:7} {', '.join(each.health.models[:5])}")
    print(f"\n2. An answer, streamed\n\n   > {QUESTION}\n")
    text = await _ask(provider, QUESTION)
    print(f"\n3. An answer whose provider dies in the middle\n\n   > {BROKEN if not live else QUESTION}\n")
    with _told():
        if live:
            words = text.split(" ")
            begun = [f"{word} " for word in words[: max(1, len(words) // 2)]]
            async with FaultServer("openai", begun, fault=Fault("reset", after=len(begun))) as dying:
                primary = CustomProvider(base_url=dying.base_url, model="fault-model", api_key="")
                await _ask(RouterProvider(primary, [provider]), QUESTION)
        else:
            second = build(SECOND, model="learnflow-tiny:latest")
            await _ask(RouterProvider(provider, [second]), BROKEN)


async def _ask(provider: LLMProvider, question: str) -> str:
    async with provider.stream(question, temperature=0) as answer:
        async for piece in answer:
            print(piece, end="", flush=True)
    done = answer.completion
    who = f"{done.provider} ended it with {done.finish!r}"
    tokens = f"{done.usage.completion_tokens} tokens, " if done.usage.completion_tokens else ""
    resumed = f", after {done.resumed} break" if done.resumed else ""
    print(f"\n\n   The answer is whole: {who}, {tokens}{done.total_s:.2f} s{resumed}.")
    return done.text


@contextmanager
def _told() -> Iterator[None]:
    """Say where the answer changes hands."""

    def tell(event: events.LogEvent) -> None:
        if isinstance(event, events.Failover):
            print(f" [{event.provider} died: {type(event.error).__name__}; {event.to} goes on] ", end="", flush=True)

    remove = events.add_sink(tell)
    try:
        yield
    finally:
        remove()


if __name__ == "__main__":
    sys.exit(main())
