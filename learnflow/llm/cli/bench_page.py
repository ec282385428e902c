"""The page of ``bench``: one file with its charts inside, for any browser, with no network.

Must never hold more than numbers and the names of providers and models.
``bench`` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

_CHARTS: Final = (
    ("first_token_s", "Seconds to the first token", "less is better", 3),
    ("tokens_per_s", "Tokens a second", "more is better", 1),
    ("total_s", "Seconds for a whole answer", "less is better", 2),
)
_COLUMNS: Final = (("load_s", "load, s", 1), ("tokens", "tokens of an answer", 0))
_STYLE: Final = """
:root { color-scheme: light dark; --bar: #2f6fde; --dim: #777; }
@media (prefers-color-scheme: dark) { :root { --bar: #7aa7ff; --dim: #999; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-bottom: 0; } p, td.dim { color: var(--dim); } svg { width: 100%; height: auto; }
rect { fill: var(--bar); } text { fill: currentColor; font: 14px system-ui, sans-serif; }
table { border-collapse: collapse; margin-top: 2rem; } td, th { padding: .2rem 1rem .2rem 0; text-align: left; }
"""
_WIDTH, _ROW = 900, 50


def page(results: Sequence[Mapping[str, Any]], about: str) -> str:
    """The whole page: a chart for each measure, the median of all answers, and a table."""
    names = [f"{each['provider']} {each['model']}" for each in results]
    charts = "".join(
        f"<h2>{title}</h2><p>median, {meaning}</p>{_bars(names, results, key, places)}"
        for key, title, meaning, places in _CHARTS
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>learnflow-llm bench</title>'
        f"<style>{_STYLE}</style></head><body><h1>learnflow-llm bench</h1><p>{escape(about)}</p>"
        f"{charts}{_table(names, results)}</body></html>\n"
    )


def _bars(names: Sequence[str], results: Sequence[Mapping[str, Any]], key: str, places: int) -> str:
    """Horizontal bars from nothing to the largest value."""
    largest = max((each[key] for each in results if each[key]), default=1.0)
    room = _WIDTH - 110
    rows = []
    for at, (name, each) in enumerate(zip(names, results, strict=True)):
        y, value = at * _ROW, each[key]
        wide = 0 if value is None else value / largest * room
        nothing = "no answer" if each["total_s"] is None else "not measured"
        said = nothing if value is None else f"{value:.{places}f}"
        rows.append(
            f'<text x="0" y="{y + 16}">{escape(name)}</text>'
            f'<rect x="0" y="{y + 22}" width="{wide:.1f}" height="16" rx="3"/>'
            f'<text x="{wide + 8:.1f}" y="{y + 35}">{said}</text>'
        )
    return f'<svg viewBox="0 0 {_WIDTH} {len(names) * _ROW}" role="img">{"".join(rows)}</svg>'


def _table(names: Sequence[str], results: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{title}</th>" for title in ("", *(title for _, title, _ in _COLUMNS), "failed"))
    rows = []
    for name, each in zip(names, results, strict=True):
        numbers = "".join(
            f"<td>{'?' if each[key] is None else format(each[key], f'.{places}f')}</td>" for key, _, places in _COLUMNS
        )
        failed = ", ".join(f"{count} {error}" for error, count in each["failures"].items()) or "none"
        rows.append(f"<tr><td>{escape(name)}</td>{numbers}<td>{escape(failed)}</td></tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"
