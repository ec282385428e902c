"""The command line: ``learnflow-llm ask``; answers to stdout, everything else to stderr.

Must never import anything heavy before it is needed, nor print anything to stdout that is not the answer.
Exit codes: 0 answered, 1 the answer failed, 2 wrong usage, 3 no provider to ask, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import io
import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from . import errors
from .specs import SPECS

if TYPE_CHECKING:
    from .base import Completion, LLMProvider

FAILED: Final = 1
USAGE: Final = 2
NO_PROVIDER: Final = 3
INTERRUPTED: Final = 130
_PATIENCE_S: Final = 1.0  # before a person is told that something is going on


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.provider and options.provider.lower() not in SPECS:
        parser.error(f"there is no provider {options.provider!r}: it is one of {', '.join(SPECS)}")
    _prepare(verbose=options.verbose)
    try:
        return asyncio.run(_ask(options))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader left: `ask … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except errors.LLMError as error:
        print(f"learnflow-llm: {error}", file=sys.stderr)
        return _code(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="learnflow-llm", description="Ask language models, cloud or local, through learnflow.llm."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    ask = commands.add_parser(
        "ask", help="ask one question", description="Ask one question; the answer goes to stdout."
    )
    ask.add_argument("prompt", help="the question; - reads it from stdin")
    ask.add_argument("--provider", "-p", help="instead of LLM_PROVIDER")
    ask.add_argument("--model", "-m", help="instead of the provider's own")
    ask.add_argument("--temperature", "-t", type=float, help="0 for the same answer each time")
    ask.add_argument("--system", "-s", help="the system prompt")
    ask.add_argument("--verbose", "-v", action="store_true", help="log to stderr what happened")
    ask.add_argument("--json", action="store_true", help="print everything known about the answer as one JSON object")
    return parser


def _prepare(*, verbose: bool) -> None:
    """Log to stderr, and let no terminal's or pipe's encoding break an answer in the middle."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO if verbose else logging.CRITICAL, format="%(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


async def _ask(options: argparse.Namespace) -> int:
    from .factory import get_provider  # noqa: PLC0415  # --help and usage errors need none of it

    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    more: dict[str, Any] = {"model": options.model}
    if options.temperature is not None:
        more["temperature"] = options.temperature
    if options.system:
        more["system"] = options.system
    provider = get_provider(options.provider)
    if options.json:
        print(json.dumps(_plain(await _watched(provider, prompt, more)), ensure_ascii=False))
    else:
        await _streamed(provider, prompt, more)
    return 0


async def _streamed(provider: LLMProvider, prompt: str, more: dict[str, Any]) -> None:
    """The pieces as they come; a pipe gets them too, and one line end behind the answer."""
    waiting = asyncio.create_task(_waiting(provider.name))
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


async def _watched(provider: LLMProvider, prompt: str, more: dict[str, Any]) -> Completion:
    waiting = asyncio.create_task(_waiting(provider.name))
    try:
        return await provider.complete(prompt, **more)
    finally:
        waiting.cancel()
        await asyncio.wait([waiting])


async def _waiting(name: str) -> None:
    """Tell a person, and nobody else, how long it has been."""
    if not sys.stderr.isatty():
        return
    seconds = 0.0
    try:
        while True:
            await asyncio.sleep(_PATIENCE_S)
            seconds += _PATIENCE_S
            print(f"\r{name}: waiting for the first token, {seconds:.0f} s", end="", file=sys.stderr, flush=True)
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


def _code(error: errors.LLMError) -> int:
    """Usage, nobody to ask, and a failed answer are different things to a script."""
    if isinstance(error, errors.InvalidRequest):
        return USAGE
    nobody = (errors.NotConfigured, errors.NotLocal, errors.ConnectionFailed, errors.ConnectTimeout)
    return NO_PROVIDER if isinstance(error, nobody) else FAILED
