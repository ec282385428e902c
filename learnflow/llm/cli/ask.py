"""``ask``: one question; the answer goes to stdout as it comes, everything else to stderr.

Must never print anything to stdout that is not the answer.
The command line calls it.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

from ..base import LLMProvider
from ..completion import Completion
from ..factory import get_provider

_PATIENCE_S: Final = 1.0  # before a person is told that something is going on
_T = TypeVar("_T")


async def ask(options: argparse.Namespace) -> int:
    """Ask, and print the answer. Returns the exit code."""
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    more: dict[str, Any] = {"model": options.model}
    if options.temperature is not None:
        more["temperature"] = options.temperature
    if options.system:
        more["system"] = options.system
    provider = get_provider(options.provider)
    if options.json:
        print(json.dumps(_plain(await watched(_what(provider), provider.complete(prompt, **more))), ensure_ascii=False))
    else:
        await _streamed(provider, prompt, more)
    return 0


async def _streamed(provider: LLMProvider, prompt: str, more: dict[str, Any]) -> None:
    """The pieces as they come; a pipe gets them too, and one line end behind the answer."""
    waiting = asyncio.create_task(_waiting(_what(provider)))
    last = ""
    try:
        async with provider.stream(prompt, **more) as answer:
            async for piece in answer:
                waiting.cancel()
                await asyncio.wait([waiting])
                last = piece
                sys.stdout.write(piece)
                sys.stdout.flush()
        if answer.completion.finish == "length":
            print("learnflow-llm: the answer ended at max_tokens", file=sys.stderr)
    finally:
        waiting.cancel()
        await asyncio.wait([waiting])
        if last and not last.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()


async def watched(what: str, doing: Awaitable[_T]) -> _T:
    """Await it, and tell a person what it is that takes so long."""
    waiting = asyncio.create_task(_waiting(what))
    try:
        return await doing
    finally:
        waiting.cancel()
        await asyncio.wait([waiting])


def _what(provider: LLMProvider) -> str:
    return f"{provider.name}: waiting for the first token"


async def _waiting(what: str) -> None:
    """Tell a person, and nobody else, how long it has been."""
    if not sys.stderr.isatty():
        return
    seconds = 0.0
    try:
        while True:
            await asyncio.sleep(_PATIENCE_S)
            seconds += _PATIENCE_S
            print(f"\r{what}, {seconds:.0f} s", end="", file=sys.stderr, flush=True)
    finally:
        if seconds:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _plain(done: Completion) -> dict[str, Any]:
    """A completion as JSON can hold it."""
    known = {each.name: getattr(done, each.name) for each in dataclasses.fields(done)}
    known["model"] = {"asked": done.model.asked, "served": done.model.served}
    known["usage"] = dataclasses.asdict(done.usage)
    known["tool_calls"] = [dataclasses.asdict(call) for call in done.tool_calls]
    return known
