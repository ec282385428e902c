"""What a person sees: tables that fit, colours, what moves while something takes long; plain where no terminal is.

Must never let what a server or a model says drive the terminal. Every command prints through it.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

_COLOURS: Final = {
    "ready": "green",
    "ready, cold": "green",
    "yes": "green",
    "loading": "yellow",
    "unknown": "yellow",
    "model_missing": "yellow",
    "unauthorised": "red",
    "misconfigured": "red",
    "down": "red",
    "NO": "red",
}
_UNBROKEN: Final = 10_000  # columns: a pipe's line is a row
# Control characters, escape sequences with them, ends of lines that are none, bidi overrides, halves of characters.
_DRIVING: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    """The text, in which what could drive a terminal is written as an escape."""
    return _DRIVING.sub(lambda found: ascii(found[0])[1:-1], text)


def write(text: str, indent: str = "") -> None:
    """Print a sentence, folded between words where lines have an end."""
    print(_folded(text, indent))


def say(text: str) -> None:
    """Tell a person, on stderr."""
    print(_folded(f"learnflow-llm: {text}"), file=sys.stderr)


def write_json(said: Any) -> None:
    """Print it as JSON, in ASCII: it may end up on a terminal."""
    print(json.dumps(said, indent=2))


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows in columns that fit the terminal; a cell that does not is folded. Known states have their colours."""
    from rich.console import Console  # noqa: PLC0415  # a tenth of a second, where there is a table
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for title in titles:
        grid.add_column(title, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(shown(cell), style=_COLOURS.get(cell, "")) for cell in row))
    console = Console(width=_width())
    with console.capture() as drawn:
        console.print(grid)
    for line in drawn.get().splitlines():
        print(line.rstrip())


@contextmanager
def progress(what: str, total: float | None = None, *, size: bool = False) -> Iterator[Callable[..., None]]:
    """Show on stderr that something goes on while the block runs, where a person watches; otherwise nothing.

    Args:
        what: what goes on.
        total: how much there is to do; None where nobody knows.
        size: it is counted in bytes.

    Yields:
        What is told how far it is: ``completed=``, ``total=``, ``description=``.
    """
    if not sys.stderr.isatty():
        yield lambda **_: None
        return
    from rich import progress as bars  # noqa: PLC0415  # a tenth of a second, where a person watches
    from rich.console import Console  # noqa: PLC0415

    bar: list[Any] = [bars.BarColumn(bar_width=16)] if total or size else []
    bar += [bars.DownloadColumn()] if size else []
    columns = (bars.SpinnerColumn(), _description(), *bar, bars.TimeElapsedColumn())
    screen = Console(stderr=True)
    with bars.Progress(*columns, console=screen, transient=True, redirect_stdout=False) as line:
        yield partial(line.update, line.add_task(shown(what), total=total))


def size(size_bytes: int) -> str:
    """Return a size for a person."""
    return f"{size_bytes / 1e6:,.1f} MB"


def _description() -> Any:
    from rich.progress import TextColumn  # noqa: PLC0415
    from rich.table import Column  # noqa: PLC0415

    return TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))


def _folded(text: str, indent: str = "") -> str:
    lines = shown(text).splitlines() or [""]
    fold = partial(
        textwrap.fill,
        width=_width(),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(map(fold, lines))


def _width() -> int:
    """Columns of the terminal, or what COLUMNS says; without either a line has no end."""
    return shutil.get_terminal_size((_UNBROKEN, 24)).columns
