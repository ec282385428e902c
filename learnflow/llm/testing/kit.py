"""Context managers for tests: replay, recording, a provider for ``get_provider()``, no retries, no real requests.

They work without pytest. ``plugin`` has fixtures for pytest.
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
    """Let providers that are created inside answer from cassettes, without a server, a key or a network.

    Args:
        folders: folders of cassettes, or single cassettes.
        hint: the hint of errors about missing cassettes; None for the one about LLM_REPLAY_MODE=record.

    Yields:
        The player. Its ``missing`` and ``unplayed`` list the requests without a cassette, and the reverse.

    Raises:
        NotConfigured: a folder does not exist, or a cassette cannot be read.
    """
    hints = (hint,) if hint else ()
    cassettes = {name: text for folder in folders for name, text in active.read_cassettes(Path(folder), *hints).items()}
    with active.override(Player(cassettes, *hints)) as player:
        yield player


@contextmanager
def recording(folder: str | Path) -> Iterator[Recorder]:
    """Record the responses to providers that are created inside.

    Args:
        folder: the folder of the cassettes. It is created if it is missing.

    Yields:
        The recorder.

    Raises:
        NotConfigured: the folder cannot be created.
    """
    with active.override(Recorder(Path(folder))) as recorder:
        yield recorder


@contextmanager
def provided(provider: LLMProvider) -> Iterator[LLMProvider]:
    """Let ``get_provider()`` return a router over this provider inside, regardless of the environment.

    Args:
        provider: usually a ``ScriptedProvider``, or a router over one.

    Yields:
        The same provider.
    """
    with factory.override(provider):
        yield provider


@contextmanager
def no_waiting(attempts: int = 1_000_000) -> Iterator[None]:
    """Let routers retry without a pause inside, for tests of an application with failing providers.

    It changes neither timeouts nor the wait for a cold model.

    Args:
        attempts: the maximum of attempts at each provider for one request.
    """
    before, switches.retries = switches.retries, attempts - 1
    try:
        yield
    finally:
        switches.retries = before


@contextmanager
def no_model_calls() -> Iterator[None]:
    """Raise NotRecorded for each request inside, except for those to a ``FaultServer``.

    It covers providers that were created before, too.
    """
    before, switches.allowed = switches.allowed, RUNNING
    try:
        yield
    finally:
        switches.allowed = before
