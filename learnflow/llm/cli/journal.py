"""``journal``: list or delete the unfinished answers in the folder ``LLM_JOURNAL``."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import click

from .. import journal as journals
from .. import settings
from ..errors import NotConfigured
from ..stream import Emit
from .command import ExitCode, command
from .terminal import table, write


@click.group()
def journal() -> None:
    """List or delete the unfinished answers in LLM_JOURNAL."""


@command
def list_() -> int:
    """List the unfinished answers, without their text."""
    rows = []
    for path in _paths():
        with suppress(OSError):
            age_s, (pieces, _) = time.time() - path.stat().st_mtime, journals.read(path)
            rows.append([path.name, f"{age_s:.0f} s", f"{len(''.join(pieces)):,}"])
    if rows:
        table(["FILE", "AGE", "CHARACTERS"], rows)
    else:
        write("no answer is unfinished")
    return ExitCode.OK


@command
def clear() -> int:
    """Delete the unfinished answers, except those that a process is writing."""
    deleted = 0
    for path in _paths():
        with suppress(OSError):
            journals.JournalFile(path, Emit()).close(deletes=True)  # OSError if another process locks the file
        deleted += not path.exists()
    write(f"{deleted} unfinished answer{'' if deleted == 1 else 's'} deleted")
    return ExitCode.OK


def _paths() -> list[Path]:
    folder = settings.load().llm_journal
    if folder is None:
        raise NotConfigured("LLM_JOURNAL is not set", hint="Set it to the folder of the journal")
    return journals.paths(folder)


journal.add_command(list_, "list")
journal.add_command(clear)
