"""How wide a context is asked for, where the request says so (Ollama): pure sums, and what this process decided so far.

Must never ask a server: the adapter tells what is loaded and what was trained.
Ollama loads a model again when the number changes, so that a decision stands for all providers of the process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

# The least that a server gives that was not told otherwise (Ollama's documentation, 2026: 4096 below 24 GB of VRAM).
ASSUMED: Final = 4096
_IMAGE: Final = 1024  # tokens that a picture may take
_MESSAGE: Final = 8  # tokens of a template around a message


@dataclass(slots=True)
class Window:
    """The context of one model at one address, in tokens.

    Attributes:
        size: what is sent; None leaves it to the server.
        limit: what the model was trained for, or the largest that could be loaded; None where nobody knows.
        held: the largest that has answered.
    """

    size: int | None = None
    limit: int | None = None
    held: int | None = None

    def widen(self, need: int, past: int | None = None) -> bool:
        """Widen it by doubling until ``need`` fits, or as far as it goes; beyond ``past`` at any rate, where given.

        Returns whether it was changed.
        """
        now = past or self.size or ASSUMED
        wide = now * 2 if past else now
        while wide < need and (self.limit is None or wide < self.limit):
            wide *= 2
        if self.limit is not None:
            wide = max(now, min(wide, self.limit))
        if wide == now:
            return False
        self.size = wide
        return True

    def step_back(self) -> bool:
        """It could not be loaded: back to what has answered before. Returns whether there is such a step back."""
        if self.size is None or self.size == self.held:
            return False
        self.size, self.limit = self.held, self.held or ASSUMED
        return True


def at_most(texts: Iterable[str], images: int, messages: int) -> int:
    """Tokens that a prompt takes, estimated high: three letters of English a token, one and a half of others."""
    total = 0.0
    for text in texts:
        plain = len(text.encode("ascii", "ignore"))
        total += plain / 3 + (len(text) - plain) / 1.5
    return int(total) + images * _IMAGE + messages * _MESSAGE


def at_least(texts: Iterable[str]) -> int:
    """Tokens that a prompt takes, at the very least: no usual tokenizer joins words across a space."""
    return sum(len(text.split()) for text in texts)


_windows: Final[dict[tuple[str, str], Window]] = {}


def of(base: str, model: str) -> Window:
    """The window that this process uses for a model at an address."""
    return _windows.setdefault((base, model), Window())
