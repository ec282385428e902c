"""The command line. This module handles Ctrl-C. It imports little, because it runs before the slow imports."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

INTERRUPTED: Final = 130  # the exit code that shells use for Ctrl-C
_SHOW_CURSOR: Final = "\x1b[?25h"  # a line of progress hides it


def exit_on_interrupt() -> None:
    """Let Ctrl-C end this process at once, because a KeyboardInterrupt during an import prints a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, exit_interrupted)


@contextmanager
def interruptible() -> Iterator[bool]:
    """Let Ctrl-C cancel the command while the block runs, so that the command's requests stop.

    Yield True if ``exit_on_interrupt`` has set its handler. Then this process only runs the command.
    """
    is_cli_process = signal.getsignal(signal.SIGINT) is exit_interrupted
    if is_cli_process:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield is_cli_process
    finally:
        if is_cli_process:
            signal.signal(signal.SIGINT, exit_interrupted)


def exit_interrupted(*_: object) -> None:
    """Write the buffered output, show the terminal's cursor, and end this process without waiting for threads."""
    with suppress(Exception):  # stdout is closed, or the signal has interrupted another write to it
        sys.stdout.flush()
        if sys.stderr.isatty():
            sys.stderr.write(_SHOW_CURSOR)
            sys.stderr.flush()
    os._exit(INTERRUPTED)
