"""The output of all commands: text, tables, colours and progress on a terminal, plain lines in a pipe.

Control characters in the output of servers and models are escaped.
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
_PIPE_COLUMNS: Final = 10_000  # so that a row of a table is one line in a pipe
# Control characters, and with them escape sequences; line separators, bidi overrides, lone surrogates.
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape(text: str) -> str:
    """Return the text with its control characters escaped."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def write(text: str, indent: str = "") -> None:
    """Print a sentence. On a terminal it is wrapped between words."""
    print(_folded(text, indent))


def notify(text: str) -> None:
    """Print a message to stderr."""
    print(_folded(f"learnflow-llm: {text}"), file=sys.stderr)


def write_json(value: Any) -> None:
    """Print a value as ASCII JSON, which is safe on a terminal."""
    print(json.dumps(value, indent=2))


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows in columns that fit the terminal. Long cells are folded. States have colours."""
    from rich.console import Console  # noqa: PLC0415  # takes 0.1 s
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for title in titles:
        grid.add_column(title, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(escape(cell), style=_COLOURS.get(cell, "")) for cell in row))
    console = Console(width=_width())
    with console.capture() as drawn:
        console.print(grid)
    for line in drawn.get().splitlines():
        print(line.rstrip())


@contextmanager
def progress(what: str, total: float | None = None, *, size: bool = False) -> Iterator[Callable[..., None]]:
    """Show progress on stderr while the block runs, if stderr is a terminal.

    Args:
        what: the description.
        total: the total amount of work; None if unknown.
        size: the work is counted in bytes.

    Yields:
        A function that updates the progress, with the keywords ``completed``, ``total`` and ``description``.
    """
    if not sys.stderr.isatty():
        yield lambda **_: None
        return
    from rich import progress as bars  # noqa: PLC0415  # takes 0.1 s
    from rich.console import Console  # noqa: PLC0415

    bar: list[Any] = [bars.BarColumn(bar_width=16)] if total or size else []
    bar += [bars.DownloadColumn()] if size else []
    columns = (bars.SpinnerColumn(), _description(), *bar, bars.TimeElapsedColumn())
    screen = Console(stderr=True)
    with bars.Progress(*columns, console=screen, transient=True, redirect_stdout=False) as line:
        yield partial(line.update, line.add_task(escape(what), total=total))


def size(size_bytes: int) -> str:
    """Return a size in megabytes."""
    return f"{size_bytes / 1e6:,.1f} MB"


def _description() -> Any:
    from rich.progress import TextColumn  # noqa: PLC0415
    from rich.table import Column  # noqa: PLC0415

    return TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))


def _folded(text: str, indent: str = "") -> str:
    lines = escape(text).splitlines() or [""]
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
    """Return the columns of the terminal, or the value of COLUMNS. A pipe has ``_PIPE_COLUMNS``."""
    return shutil.get_terminal_size((_PIPE_COLUMNS, 24)).columns
