"""What a page of a server says, value by value: whatever it holds, only what can be used comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..spec import Model, Page, Server

_LONGEST: Final = 300  # characters of a name
_MOST_TOKENS: Final = 2**31


def text(value: Any) -> str | None:
    """A text that says something and can be shown, or None: what a server sends may end up on a terminal."""
    return value if isinstance(value, str) and 0 < len(value) <= _LONGEST and value.isprintable() else None


def flag(value: Any) -> bool | None:
    """Yes or no, or None for anything else."""
    return value if isinstance(value, bool) else None


def count(value: Any) -> int | None:
    """A number of tokens, or None for anything else; 0 means that nobody knows."""
    return value if type(value) is int and 0 < value < _MOST_TOKENS else None


def part(said: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The object under these keys, empty where there is none."""
    here: Any = said
    for key in keys:
        here = here.get(key) if isinstance(here, dict) else None
    return here if isinstance(here, dict) else {}


def listed(page: Page, key: str, name: str) -> Server | None:
    """The server behind a list of models; None where the page is no such list. It may tell the context too."""
    rows = page.rows(key)
    if rows is None:
        return None
    models = []
    for row in rows:
        called = text(row.get(name))
        if called:
            context = count(row.get("context_length")) or count(row.get("max_model_len"))
            known = {"context": context, "context_served": context}
            models.append(Model(name=called, chat="embed" not in called.lower(), known=known))
    return Server(models=tuple(models))
