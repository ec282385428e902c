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
    """Providers that are made inside answer from cassettes: no server, no key, no network.

    Args:
        folders: where the cassettes are; a single file is one, too.
        hint: what errors say about making them; None for LLM_REPLAY_MODE=record.

    Yields:
        The player, which tells afterwards what was ``missing`` and what is ``unplayed``.

    Raises:
        NotConfigured: a folder is not there, or a cassette cannot be read.
    """
    more = (hint,) if hint else ()
    cassettes = {name: text for folder in folders for name, text in active.cassettes(Path(folder), *more).items()}
    with active.instead(Player(cassettes, *more)) as player:
        yield player


@contextmanager
def recording(folder: str | Path) -> Iterator[Recorder]:
    """Providers that are made inside ask their servers, and what they answer is kept.

    Args:
        folder: where the cassettes go; it is made where it is missing.

    Yields:
        The recorder.
    """
    with active.instead(Recorder(Path(folder))) as recorder:
        yield recorder


@contextmanager
def provided(provider: LLMProvider) -> Iterator[LLMProvider]:
    """``get_provider()`` gives a router over this provider inside, whatever the environment says.

    Args:
        provider: usually a ``ScriptedProvider``, or a router over one.

    Yields:
        The same provider.
    """
    with factory.instead(provider):
        yield provider


@contextmanager
def no_waiting(attempts: int = 1_000_000) -> Iterator[None]:
    """No router waits inside before it asks again.

    For tests of what an application does when its providers fail; loads and timeouts are not touched.

    Args:
        attempts: how often each provider is asked for one request, at the most.
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
