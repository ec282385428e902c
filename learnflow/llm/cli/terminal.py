"""The output of all commands: sentences, tables, JSON and progress.

Only a terminal gets colours, wrapped lines and progress. Control characters are escaped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TextIO

from ..errors import InvalidRequest

_MAX_STDIN_BYTES: Final = 64 * 1024 * 1024
_MIN_COLUMNS: Final = 40  # in a narrower table, cells would be lost
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
_PIPE_COLUMNS: Final = 10_000  # the width if stdout is not a terminal, so that each table row is one line
# Control characters (also those of escape sequences), line separators, bidi overrides, lone surrogates.
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape(text: str) -> str:
    """Return the text with its control characters escaped."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def open_closed_streams() -> None:
    """Open the null device for each closed standard stream, because a socket could get its file descriptor."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    null = Path(os.devnull)
    sys.stdin = sys.stdin or null.open(encoding="utf-8")
    sys.stdout = sys.stdout or null.open("w", encoding="utf-8")
    sys.stderr = sys.stderr or null.open("w", encoding="utf-8")


def drop_unwritten(stream: TextIO) -> None:
    """Flush a stream. If that fails, discard the text, because Python would flush it again at exit."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def read_stdin() -> str:
    """Return the text on stdin, decoded as UTF-8 or else in the encoding of the locale.

    Raises:
        InvalidRequest: the text is too long, or has neither encoding.
    """
    data = sys.stdin.buffer.read(_MAX_STDIN_BYTES + 1)
    if len(data) > _MAX_STDIN_BYTES:
        raise InvalidRequest(f"stdin has more than {format_size(_MAX_STDIN_BYTES)}. Send a shorter prompt")
    for encoding in ("utf-8-sig", sys.stdin.encoding):
        with suppress(UnicodeDecodeError):
            return data.decode(encoding)
    raise InvalidRequest("the text on stdin is not UTF-8", hint="Convert it: iconv -t UTF-8")


def write(text: str, indent: str = "") -> None:
    """Print a text. On a terminal, wrap lines between words."""
    print(_wrap(text, indent))


def notify(text: str, prefix: str = "learnflow-llm: ", options: Iterable[str] = ()) -> None:
    """Print a message to stderr. Ignore write errors.

    A message may contain keywords of the Python API. Those in ``options`` become options of the command line:
    ``model=`` becomes ``--model``.
    """
    keywords = "|".join(options) or "(?!)"  # "(?!)" matches nothing
    text = re.sub(rf"\b({keywords})=(\d*)", lambda match: f"--{match[1].replace('_', '-')} {match[2]}".rstrip(), text)
    with suppress(OSError):
        print(_wrap(f"{prefix}{text}"), file=sys.stderr)


def write_json(value: Any) -> None:
    """Print a value as ASCII JSON, which has no control characters."""
    print(json.dumps(value, indent=2))


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table that fits the terminal. Wrap long cells between words. Colour cells that are a state, like "ready".

    If the terminal is too narrow for the columns, print each cell on a line of its own, after its title.
    """
    from rich.console import Console  # noqa: PLC0415  # the import takes 0.1 s
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    cells = [[escape(cell) for cell in row] for row in rows]
    widths = _column_widths([*zip(titles, *cells, strict=True)])
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="", show_header=bool(widths))
    for title, width in zip(titles, widths, strict=True) if widths else [("", None), ("", None)]:
        grid.add_column(title, width=width, overflow="fold")
    for row in cells:
        texts = [Text(cell, style=_COLOURS.get(cell, "")) for cell in row]
        for line in [texts] if widths else [*zip(map(str.strip, titles), texts, strict=True), [""]]:
            grid.add_row(*line)
    console = Console(width=_width())
    with console.capture() as capture:
        console.print(grid)
    for line in capture.get().rstrip().splitlines():
        print(line.rstrip())


def _column_widths(columns: Sequence[Sequence[str]]) -> list[int]:
    """Return column widths, in characters, that break no word; [] if the terminal is too narrow for such columns."""
    from rich.cells import cell_len  # noqa: PLC0415

    full_widths = [max(map(cell_len, column)) for column in columns]
    # A mark ("*") or an indent at the beginning of a cell is a part of the first word.
    words = [[word for cell in column for word in re.findall(r"^[* ]*\S+|\S+", cell)] for column in columns]
    widths = [max(map(cell_len, column), default=0) for column in words]
    spare = _width() - sum(widths) - 2 * (len(columns) - 1)
    for index in sorted(range(len(columns)), key=lambda index: full_widths[index] - widths[index]):
        added = max(0, min(full_widths[index] - widths[index], spare))
        widths[index], spare = widths[index] + added, spare - added
    return widths if spare >= 0 else []


@contextmanager
def progress(description: str, total: float | None = None, *, in_bytes: bool = False) -> Iterator[Callable[..., None]]:
    """Show progress on stderr while the block runs, if stderr is a terminal.

    ``total`` is the amount of work; None if unknown.

    Yields:
        A function that updates the progress. Its keywords are ``completed``, ``total`` and ``description``.
    """
    if not sys.stderr.isatty():
        yield lambda **_: None
        return
    from rich import progress as bars  # noqa: PLC0415  # the import takes 0.1 s
    from rich.console import Console  # noqa: PLC0415

    bar: list[Any] = [bars.BarColumn(bar_width=16)] if total or in_bytes else []
    bar += [bars.DownloadColumn()] if in_bytes else []
    columns = (bars.SpinnerColumn(), _description_column(), *bar, bars.TimeElapsedColumn())
    console = Console(stderr=True)
    with bars.Progress(*columns, console=console, transient=True, redirect_stdout=False) as display:
        yield partial(display.update, display.add_task(escape(description), total=total))


def format_size(size_bytes: int) -> str:
    """Format a size in megabytes, such as "98.4 MB"."""
    return f"{size_bytes / 1e6:,.1f} MB"


def _description_column() -> Any:
    from rich.progress import TextColumn  # noqa: PLC0415
    from rich.table import Column  # noqa: PLC0415

    return TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))


def _wrap(text: str, indent: str = "") -> str:
    lines = escape(text).splitlines() or [""]
    wrap = partial(
        textwrap.fill,
        width=_width(),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(map(wrap, lines))


def _width() -> int:
    """Return the width of the output in characters: COLUMNS, else that of the terminal, else ``_PIPE_COLUMNS``.

    It is at least ``_MIN_COLUMNS``.
    """
    return max(_MIN_COLUMNS, shutil.get_terminal_size((_PIPE_COLUMNS, 24)).columns)
