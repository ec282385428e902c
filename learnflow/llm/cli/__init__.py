"""The command line. This module handles Ctrl-C. It imports little, so that it can run before the slow imports."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

INTERRUPTED: Final = 130  # the exit code that shells use for Ctrl-C


def exit_on_interrupt() -> None:
    """Let Ctrl-C end this process at once, because a KeyboardInterrupt during an import prints a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


@contextmanager
def interruptible() -> Iterator[bool]:
    """Let Ctrl-C cancel the command while the block runs, so that the command's requests stop.

    Yield True if ``exit_on_interrupt`` has set its handler. Then this process only runs the command.
    """
    is_cli_process = signal.getsignal(signal.SIGINT) is _exit
    if is_cli_process:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield is_cli_process
    finally:
        if is_cli_process:
            signal.signal(signal.SIGINT, _exit)


async def run_until_interrupt(command: Coroutine[Any, Any, int]) -> int:
    """Run a command. After Ctrl-C, end this process as soon as the command's requests have stopped.

    ``asyncio.run`` would wait for threads, which cannot be cancelled: the import of LiteLLM, or the look-up of a host.
    A second Ctrl-C ends the process at once.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task  # noqa: S101  # a coroutine runs in a task

    def cancel(*_: object) -> None:
        signal.signal(signal.SIGINT, _exit)
        loop.call_soon_threadsafe(task.cancel)

    signal.signal(signal.SIGINT, cancel)
    try:
        return await command
    except asyncio.CancelledError:
        with suppress(OSError):
            sys.stdout.flush()
            print(file=sys.stderr, flush=True)  # the shell's prompt begins on a new line
        _exit()
        raise


def _exit(*_: object) -> None:
    os._exit(INTERRUPTED)
