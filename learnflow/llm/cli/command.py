"""What the commands share: a decorator, options, exit codes.

Must never import anything that ``--help`` of one command does not need.
Click completes words in bash, zsh and fish by itself, and checks numbers.
"""

from __future__ import annotations

import asyncio
import io
import logging
import math
import sys
from collections.abc import Callable
from enum import IntEnum
from functools import partial, wraps
from typing import Any, Final

import click

from .. import errors
from ..process import switches
from .terminal import say


class ExitCode(IntEnum):
    """The exit codes of all commands; docs/cli.md has them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_PROVIDER = 3
    INTERRUPTED = 130


_UNREACHED: Final = (errors.NotConfigured, errors.NotLocal, errors.ConnectionFailed, errors.ConnectTimeout)


def command(function: Callable[..., Any]) -> click.Command:
    """Make a command of a function: its name, docstring and options, and ``--verbose``. It returns the exit code."""

    @wraps(function)
    def run(*, verbose: bool, **options: Any) -> int:
        _prepare(verbose=verbose)
        switches.watched = False  # the port of the metrics is left to the application
        switches.patient = False  # a person who forgot to start the server is told at once
        try:
            if name := options.get("provider"):
                _check(name)
            result = function(**options)
            return int(asyncio.run(result) if asyncio.iscoroutine(result) else result)
        except errors.LLMError as error:
            say(str(error))
            return _code(error)
        finally:
            switches.watched = switches.patient = True

    made = click.command(function.__name__.replace("_", "-"))(run)
    made.params.append(click.Option(["--verbose", "-v"], is_flag=True, help="Log to stderr what happened."))
    return made


def _prepare(*, verbose: bool) -> None:
    """Log to stderr, and let no terminal's or pipe's encoding break an answer in the middle."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO if verbose else logging.CRITICAL, format="%(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _check(name: str) -> None:
    from ..providers.registry import check  # noqa: PLC0415  # help does not need it

    try:
        check(name)
    except errors.LLMError as error:
        raise click.BadParameter(str(error), param_hint="--provider") from None


def _code(error: errors.LLMError) -> ExitCode:
    if isinstance(error, errors.InvalidRequest):
        return ExitCode.USAGE
    return ExitCode.NO_PROVIDER if isinstance(error, _UNREACHED) else ExitCode.FAILED


def _providers(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    from ..providers.registry import SPECS  # noqa: PLC0415  # help does not need it

    return [name for name in SPECS if name.startswith(incomplete)]


def _finite(_: click.Context, __: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter("it must be a number of seconds")
    return value


provider_option = click.option("--provider", "-p", help="Instead of LLM_PROVIDER.", shell_complete=_providers)
model_option = click.option("--model", "-m", help="Instead of the provider's own.")
json_option = partial(click.option, "--json", "as_json", is_flag=True)
within_option = click.option(
    "--timeout",
    "within",
    type=click.FloatRange(0, 3600, min_open=True),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    callback=_finite,
    help="For all providers together.",
)
