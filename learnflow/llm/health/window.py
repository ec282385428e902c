"""How wide a context is asked for, where the request says so (Ollama): pure sums, and what this process decided so far.

Must never ask a server: the adapter tells what is loaded and what was trained.
Ollama loads a model again when the number changes, so that a decision stands for all providers of the process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ..process import kept

# The least that a server gives that was not told otherwise (Ollama's documentation, 2026: 4096 below 24 GB of VRAM).
ASSUMED: Final = 4096
BARRED_S: Final = 300.0  # seconds until a width that could not be loaded is tried again: memory may be free by then
_CJK: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_CJK_MOST: Final = 6  # characters of these scripts in one token, at the most
_IMAGE: Final = 1024  # tokens that a picture may take
_MESSAGE: Final = 8  # tokens of a template around a message
_LEARNS_FROM: Final = 100  # tokens: a shorter prompt is mostly template


@dataclass(slots=True)
class Window:
    """The context of one model at one address, in tokens.

    Attributes:
        size: what is sent; None leaves it to the server.
        limit: what the model was trained for; None where nobody knows.
        held: the largest that is known to have been loaded.
        barred: what could not be loaded, and until when (seconds of the caller's clock) it is not tried again.
    """

    size: int | None = None
    limit: int | None = None
    held: int | None = None
    barred: tuple[int, float] | None = None

    def most(self, now: float) -> int | None:
        """As wide as it may be now; None where nobody knows."""
        if self.barred and now < self.barred[1]:
            return max(self.held or ASSUMED, self.size or 0)
        return self.limit

    def widen(self, need: int, now: float, past: int | None = None) -> bool:
        """Widen it by doubling until ``need`` fits, or as far as it goes; beyond ``past`` at any rate, where given.

        Returns whether it was changed.
        """
        start, most = past or self.size or ASSUMED, self.most(now)
        wide = start * 2 if past else start
        while wide < need and (most is None or wide < most):
            wide *= 2
        if most is not None:
            wide = max(start, min(wide, most))
        if wide == start:
            return False
        self.size = wide
        return True

    def loaded(self, size: int | None) -> None:
        """So wide it is, or was, loaded: it never shrinks, whoever loaded it."""
        if size:
            self.held = max(self.held or 0, size)
            self.size = max(self.size or 0, size)

    def step_back(self, sent: int | None, now: float) -> bool:
        """What was sent could not be loaded: back to what is known to load. Returns whether that is another size."""
        if sent is None or sent <= (self.held or 0):
            return False
        self.size, self.barred = self.held, (sent, now + BARRED_S)
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
    return sum(len(text.split()) + (0 if text.isascii() else len(_CJK.findall(text)) // _CJK_MOST) for text in texts)


def learn(base: str, model: str, texts: Sequence[str], tokens: int) -> None:
    """Remember how many tokens a server counted for a prompt."""
    least = at_least(texts)
    if least >= _LEARNS_FROM:
        _ratios[base, model] = max(tokens / least, _ratios.get((base, model), 1.0))


def likely(base: str, model: str, texts: Sequence[str]) -> int:
    """Estimate the tokens of a prompt by what the server counted for earlier ones; the least if there were none."""
    return int(at_least(texts) * _ratios.get((base, model), 1.0))


_ratios: Final = kept("tokens for each word", dict[tuple[str, str], float](), learned=True)
_windows: Final = kept("widths of contexts", dict[tuple[str, str], Window](), learned=True)


def of(base: str, model: str) -> Window:
    """The window that this process uses for a model at an address."""
    return _windows.setdefault((base, model), Window())
