"""The command line. This module handles Ctrl-C. It imports little, so that it can run before the slow imports."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

INTERRUPTED: Final = 130  # the exit code that shells use for Ctrl-C


def exit_on_interrupt() -> None:
    """Let Ctrl-C end this process at once, because a KeyboardInterrupt during an import prints a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C cancel the command while the block runs, so that the command's requests stop."""
    exits_at_once = signal.getsignal(signal.SIGINT) is _exit
    if exits_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if exits_at_once:
            signal.signal(signal.SIGINT, _exit)


def _exit(*_: object) -> None:
    os._exit(INTERRUPTED)
