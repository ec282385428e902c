"""What a test puts in place of the world: cassettes for servers, a scripted provider, nobody at all.

Must never need pytest: ``plugin`` makes fixtures of it.
Applications' tests and the plugin use it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import factory
from ..base import LLMProvider
from ..process import switches
from ..replay import active
from ..replay.player import Player
from ..replay.recorder import Recorder
from .fault_server import RUNNING


@contextmanager
def replaying(*folders: str | Path, hint: str | None = None) -> Iterator[Player]:
    """Providers that are made inside answer from the cassettes in these folders (or files). Raises NotConfigured.

    The player tells afterwards what was ``missing`` and what is ``unplayed``.

    Args:
        folders: where the cassettes are.
        hint: what errors say about making them; None for LLM_REPLAY_MODE=record.
    """
    more = (hint,) if hint else ()
    cassettes = {name: text for folder in folders for name, text in active.cassettes(Path(folder), *more).items()}
    with active.instead(Player(cassettes, *more)) as player:
        yield player


@contextmanager
def recording(folder: str | Path) -> Iterator[Recorder]:
    """Providers that are made inside ask their servers, and what they answer is kept in this folder."""
    with active.instead(Recorder(Path(folder))) as recorder:
        yield recorder


@contextmanager
def provided(provider: LLMProvider) -> Iterator[LLMProvider]:
    """``get_provider()`` gives a router over this provider inside, whatever the environment says."""
    with factory.instead(provider):
        yield provider


@contextmanager
def no_waiting(attempts: int = 1_000_000) -> Iterator[None]:
    """Within it no router waits before it asks again, and asks each provider ``attempts`` times at the most.

    For tests of what an application does when its providers fail; loads and timeouts are not touched.
    """
    before, switches.retries = switches.retries, attempts - 1
    try:
        yield
    finally:
        switches.retries = before


@contextmanager
def no_model_calls() -> Iterator[None]:
    """No request leaves inside, but for those to a FaultServer: whoever tries gets NotRecorded.

    For providers that exist already, too.
    """
    before, switches.allowed = switches.allowed, RUNNING
    try:
        yield
    finally:
        switches.allowed = before
