"""A kind of server: which pages tell of it, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..capabilities import Model, Server
from ..errors import LLMError

_LONGEST: Final = 300  # characters of a name
_MOST_TOKENS: Final = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of a server: the JSON object that it holds, or why there is none."""

    said: Mapping[str, Any] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    error: LLMError | None = None

    def rows(self, key: str) -> list[Mapping[str, Any]] | None:
        """The list of objects under this key; Ollama says null for an empty one. None where there is no such list."""
        found = self.said.get(key, False)
        if self.error or not (found is None or isinstance(found, list)):
            return None
        return [row for row in found or () if isinstance(row, dict)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of server.

    Attributes:
        name: of its row.
        pages: what is read, from the server's root; none of them loads a model, costs money or carries user text.
        read: None where the pages are not those of this kind.
        question: what tells more of one model (path and body of a POST, or a GET where there is none), where something
            does.
        learn: the model with what that page told.
    """

    name: str
    pages: tuple[str, ...]
    read: Callable[[Mapping[str, Page]], Server | None]
    question: Callable[[Model], tuple[str, Mapping[str, Any] | None] | None] = lambda _: None
    learn: Callable[[Model, Mapping[str, Any]], Model] = lambda model, _: model


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
