"""The decorator, the options and the exit codes of all commands.

The modules that ``--help`` does not need are imported only when a command runs.
"""

from __future__ import annotations

import asyncio
import io
import logging
import math
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from enum import IntEnum
from functools import partial, wraps
from time import monotonic
from typing import Any, Final, cast

import click

from .. import errors
from ..process import switches
from . import INTERRUPTED as _INTERRUPTED
from . import exit_interrupted, interruptible
from .terminal import notify


class ExitCode(IntEnum):
    """The exit codes of all commands, as in docs/cli.md."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_PROVIDER = 3
    INTERRUPTED = _INTERRUPTED


# A second SIGINT within this time is the same Ctrl-C: the terminal sends it to a wrapper, too, which may forward it.
_SAME_INTERRUPT_S: Final = 0.3
_NO_PROVIDER_ERRORS: Final = (errors.NotConfigured, errors.NotLocal, errors.ConnectionFailed, errors.ConnectTimeout)


def command(function: Callable[..., Any]) -> click.Command:
    """Turn a function into a click command, and add ``--verbose``.

    The function returns the exit code. Coroutine functions are also supported.
    """

    @wraps(function)
    def run(*, verbose: bool, **options: Any) -> int:
        _configure_output(verbose=verbose)
        switches.in_cli = True
        try:
            if name := options.get("provider"):
                _check_provider(name)
            # ``doctor`` itself prints the ineffective settings, in a section
            if "provider" in options and click_command.name != "doctor":
                _report_ineffective_settings(name)
            with interruptible() as is_cli_process:
                result = function(**options)
                if asyncio.iscoroutine(result):
                    result = asyncio.run(run_until_interrupt(result) if is_cli_process else result)
                return int(result)
        except errors.LLMError as error:
            notify(
                str(error), options=[str(item.name) for item in click_command.params if isinstance(item, click.Option)]
            )
            return exit_code(error)
        finally:
            switches.in_cli, switches.collected_faults = False, None

    click_command = click.command(function.__name__.replace("_", "-"))(run)
    click_command.params.append(click.Option(["--verbose", "-v"], is_flag=True, help="Write the log to stderr."))
    return click_command


async def run_until_interrupt(command: Coroutine[Any, Any, int]) -> int:
    """Run a command. After Ctrl-C, end this process as soon as the command's requests have stopped.

    ``asyncio.run`` would also wait for threads, such as the import of LiteLLM, which cannot be cancelled. A second
    Ctrl-C ends the process at once.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    interrupted_at: float | None = None

    def interrupt(*_: object) -> None:
        nonlocal interrupted_at
        if interrupted_at is None:
            interrupted_at = monotonic()
            loop.call_soon_threadsafe(cast("asyncio.Task[int]", task).cancel)
        elif monotonic() - interrupted_at > _SAME_INTERRUPT_S:
            exit_interrupted()

    signal.signal(signal.SIGINT, interrupt)
    try:
        return await command
    except asyncio.CancelledError:
        if interrupted_at is not None:
            with suppress(OSError):
                sys.stdout.flush()
                print(file=sys.stderr, flush=True)  # the shell's prompt begins on a new line
            exit_interrupted()
        raise
    finally:
        signal.signal(signal.SIGINT, exit_interrupted)  # ``asyncio.run`` may still wait for threads


def _configure_output(*, verbose: bool) -> None:
    """Write the log to stderr. Escape characters that the encoding of stdout cannot represent."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO if verbose else logging.CRITICAL, format="%(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _check_provider(name: str) -> None:
    from ..providers.registry import check_provider_name  # noqa: PLC0415  # not needed for --help

    try:
        check_provider_name(name)
    except errors.LLMError as error:
        raise click.BadParameter(str(error), param_hint="--provider") from None


def _report_ineffective_settings(provider: str | None) -> None:
    from .variables import describe_ineffective, known_specs  # noqa: PLC0415  # not needed for --help

    for sentence in describe_ineffective(known_specs(provider)):
        notify(sentence)


def exit_code(error: errors.LLMError) -> ExitCode:
    """Return the exit code for an error. It is NO_PROVIDER if every attempt failed before a provider was reached."""
    if isinstance(error, errors.InvalidRequest):
        return ExitCode.USAGE
    error_classes = [getattr(errors, attempt.error, errors.LLMError) for attempt in error.attempts] or [type(error)]
    none_reached = all(issubclass(error_class, _NO_PROVIDER_ERRORS) for error_class in error_classes)
    return ExitCode.NO_PROVIDER if none_reached else ExitCode.FAILED


def _complete_provider(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    from ..providers.registry import SPECS  # noqa: PLC0415  # not needed for --help

    return [name for name in SPECS if name.startswith(incomplete)]


def _require_finite(_: click.Context, __: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter("it must be a number of seconds")
    return value


provider_option = click.option(
    "--provider", "-p", help="The provider to use instead of LLM_PROVIDER.", shell_complete=_complete_provider
)
model_option = click.option("--model", "-m", help="The model to use instead of the provider's default.")
json_option = partial(click.option, "--json", "as_json", is_flag=True)
timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, 3600, min_open=True),
    default=1,
    show_default=True,
    metavar="SECONDS",
    callback=_require_finite,
    help="Time limit of all probes together.",
)
