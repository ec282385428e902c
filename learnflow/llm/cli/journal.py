"""``journal``: list or delete the unfinished answers in ``LLM_JOURNAL``."""

from __future__ import annotations

import time

import click

from .. import journal as journals
from .. import settings
from ..errors import NotConfigured
from .command import ExitCode, command
from .terminal import table, write


@click.group()
def journal() -> None:
    """List or delete the unfinished answers in LLM_JOURNAL."""


@command
def list_() -> int:
    """List the unfinished answers, without their text."""
    folder, rows = _configured(), []
    for path in folder.paths():
        modified = path.stat().st_mtime if path.exists() else time.time()
        if file := folder.reopen(path, locks=False):
            rows.append([path.name, f"{time.time() - modified:.0f} s", f"{len(file.text):,}"])
            file.close()
    if rows:
        table(["FILE", "AGE", "CHARACTERS"], rows)
    else:
        write("no answer is unfinished")
    return ExitCode.OK


@command
def clear() -> int:
    """Delete the unfinished answers, except those that a process is writing."""
    folder, deleted = _configured(), 0
    for path in folder.paths():
        if file := folder.reopen(path):
            file.close(deletes=True)
        deleted += not path.exists()
    write(f"{deleted} unfinished answers deleted")
    return ExitCode.OK


def _configured() -> journals.Journal:
    configured = journals.configured(settings.load())
    if configured is None:
        raise NotConfigured("LLM_JOURNAL is not set", hint="Set it to the folder of the journal")
    return configured


journal.add_command(list_, "list")
journal.add_command(clear)
