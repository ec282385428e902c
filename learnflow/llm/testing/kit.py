"""What a test puts in place of the world: tapes for servers, a scripted provider for ``get_provider()``, nobody at all.

Must never need pytest: ``plugin`` makes fixtures of it.
Applications' tests and the plugin use it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import board, deck, factory, net, window
from ..base import LLMProvider
from ..player import Player
from ..recorder import Recorder
from .fault_server import RUNNING


def forget() -> None:
    """The process begins anew: no breaker is open, no context was widened, no tape was played."""
    board.BOARD.forget()
    window.forget()
    deck.forget()


@contextmanager
def replaying(*folders: str | Path) -> Iterator[Player]:
    """Providers that are made inside answer from the tapes in these folders (or files). Raises NotConfigured.

    The player tells afterwards what was ``missing`` and what is ``unplayed``.
    """
    tapes = {name: text for folder in folders for name, text in deck.tapes(Path(folder)).items()}
    with deck.instead(Player(tapes)) as player:
        yield player


@contextmanager
def recording(folder: str | Path) -> Iterator[Recorder]:
    """Providers that are made inside ask their servers, and what they answer is kept in this folder."""
    with deck.instead(Recorder(Path(folder))) as recorder:
        yield recorder


@contextmanager
def provided(provider: LLMProvider) -> Iterator[LLMProvider]:
    """``get_provider()`` gives a router over this provider inside, whatever the environment says."""
    with factory.instead(provider):
        yield provider


@contextmanager
def no_model_calls() -> Iterator[None]:
    """No request leaves inside, but for those to a FaultServer: whoever tries gets NotOnTape.

    For providers that exist already, too.
    """
    before, net.allowed = net.allowed, RUNNING
    try:
        yield
    finally:
        net.allowed = before
