"""The command line: ``learnflow-llm ask``, ``status``, ``models``, ``explain``, ``warm-up``, ``bench``,
``check``, ``doctor``, ``copy-into``.

Must never import anything heavy before it is needed, nor print anything to stdout that was not asked for.
Exit codes: 0 answered or ready, 1 the answer failed, 2 wrong usage, 3 no provider to ask, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import logging
import math
import os
import sys
from typing import Final

from .. import errors
from ..process import switches

FAILED: Final = 1
USAGE: Final = 2
NO_PROVIDER: Final = 3
INTERRUPTED: Final = 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.provider:
        from ..providers.registry import check  # noqa: PLC0415  # --help needs none of it

        try:
            check(options.provider)
        except errors.LLMError as error:
            parser.error(str(error))
    _prepare(verbose=options.verbose)
    try:
        return _unwatched(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader left: `ask … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except errors.LLMError as error:
        print(f"learnflow-llm: {error}", file=sys.stderr)
        return _code(error)


def _unwatched(options: argparse.Namespace) -> int:
    """Run the command; the port of the metrics is left to the application."""
    switches.watched = False
    try:
        return asyncio.run(_run(options))
    finally:
        switches.watched = True


async def _run(options: argparse.Namespace) -> int:
    """The command; each imports what it needs, so that --help and usage errors need none of it."""
    if options.command == "ask":
        from .ask import ask  # noqa: PLC0415

        return await ask(options)
    if options.command == "explain":
        from .explain import explain  # noqa: PLC0415

        return await explain(options)
    if options.command == "bench":
        from .bench import bench  # noqa: PLC0415

        return await bench(options)
    if options.command == "check":
        from .check import check  # noqa: PLC0415

        return await check(options)
    if options.command == "doctor":
        from .doctor import doctor  # noqa: PLC0415

        return await doctor(options)
    if options.command == "copy-into":
        from .copy_into import copy_into  # noqa: PLC0415

        return copy_into(options)
    from . import status  # noqa: PLC0415

    if options.command == "warm-up":
        return await status.warm_up(options)
    return await (status.models(options) if options.command == "models" else status.status(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="learnflow-llm", description="Ask language models, cloud or local, through learnflow.llm."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, what: str, more: str, *, json: str = "", within: bool = False) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=what, description=more)
        one.add_argument("--provider", "-p", help="instead of LLM_PROVIDER")
        one.add_argument("--verbose", "-v", action="store_true", help="log to stderr what happened")
        if json:
            one.add_argument("--json", action="store_true", help=json)
        if within:
            one.add_argument("--within", type=_seconds, default=1.0, metavar="SECONDS", help="for all of it (1)")
        return one

    ask = command(
        "ask",
        "ask one question",
        "Ask one question; the answer goes to stdout.",
        json="print everything known about the answer as one JSON object",
    )
    ask.add_argument("prompt", help="the question; - reads it from stdin")
    ask.add_argument("--model", "-m", help="instead of the provider's own")
    ask.add_argument("--temperature", "-t", type=float, help="0 for the same answer each time")
    ask.add_argument("--system", "-s", help="the system prompt")
    command(
        "status",
        "how every provider is",
        "A line for each provider: its state, where it is, what it can, and what to do. "
        "Exit code 0 only if one that would be used is ready.",
        json="print a list of objects, one for each",
        within=True,
    )
    command(
        "models", "which models there are", "The models of each server.", json="print a list of objects", within=True
    )
    why = command("explain", "who would answer", "Which provider would serve a request, and why not the others.")
    why.add_argument("prompt", nargs="?", default="", help="the question; nothing of it is sent")
    why.add_argument("--model", "-m", help="as in ask")
    why.add_argument("--tokens", type=int, default=0, help="as if the prompt had so many")
    for need in ("image", "tools", "schema"):
        why.add_argument(f"--{need}", action="store_true", help=f"as if the request needed {need}")
    why.add_argument("--look", action="store_true", help="ask the servers for their pages first")
    warm = command("warm-up", "load the model", "Load the model now, so that the first answer does not wait for it.")
    warm.add_argument("--model", "-m", help="instead of the provider's own")
    asked = command(
        "check",
        "what a server keeps",
        "Ask a server ten short questions, and show what it keeps of what answers rely on: finish reasons, streams, "
        "errors by name, schemas, tools, continuation. The last line is what to set.",
        json="print one object with the findings",
    )
    asked.add_argument("--model", "-m", help="instead of the provider's own")
    race = command(
        "bench",
        "how fast each provider answers here",
        "Ask each ready provider the same few questions, one after the other, and show how fast it is on this machine. "
        "Clouds are asked only where they are named, and cost what they cost.",
        json="print a list of objects, one for each model, with every answer's numbers",
        within=True,
    )
    race.add_argument("--model", "-m", action="append", help="instead of the provider's own; several times for several")
    race.add_argument("--rounds", type=_whole, default=3, metavar="N", help="how often each question is asked (3)")
    race.add_argument("--max-tokens", type=_whole, default=200, metavar="N", help="of an answer (200)")
    race.add_argument("--html", metavar="FILE", help="write a page with charts, too")
    command(
        "doctor", "what is wrong here", "Explain this machine: what is set, what answers, what to write.", within=True
    )
    into = command(
        "copy-into",
        "copy this package into LearnFlow's tree",
        "Copy this package into the checkout of LearnFlow, and say what else has to change there. Done again, it shows "
        "what differs; what was edited there is not overwritten.",
    )
    into.add_argument("path", help="the folder of LearnFlow's checkout")
    into.add_argument("--check", action="store_true", help="change nothing; exit code 1 if something is left to do")
    into.add_argument("--diff", action="store_true", help="change nothing; show what copying would change")
    into.add_argument("--force", action="store_true", help="overwrite what was edited there")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _prepare(*, verbose: bool) -> None:
    """Log to stderr, and let no terminal's or pipe's encoding break an answer in the middle."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO if verbose else logging.CRITICAL, format="%(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _code(error: errors.LLMError) -> int:
    """Usage, nobody to ask, and a failed answer are different things to a script."""
    if isinstance(error, errors.InvalidRequest):
        return USAGE
    nobody = (errors.NotConfigured, errors.NotLocal, errors.ConnectionFailed, errors.ConnectTimeout)
    return NO_PROVIDER if isinstance(error, nobody) else FAILED
