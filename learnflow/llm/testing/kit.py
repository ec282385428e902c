"""Context managers for tests. The fixtures for pytest are in ``plugin``."""

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
from .fault_server import RUNNING_ORIGINS


@contextmanager
def replaying(*folders: str | Path, hint: str | None = None) -> Iterator[Player]:
    """Replay cassettes to the providers that the block creates, without a server, an API key or a network.

    Args:
        folders: folders of cassettes, or single cassettes.
        hint: the hint of errors about missing cassettes. Default: use LLM_REPLAY_MODE=record.

    Yields:
        The player. Its ``missing`` lists requests without a cassette, and ``unplayed`` lists unused responses.

    Raises:
        NotConfigured: a folder does not exist, or a cassette cannot be read.
    """
    hints = (hint,) if hint else ()
    cassettes = {name: text for folder in folders for name, text in active.read_cassettes(Path(folder), *hints).items()}
    with active.override(Player(cassettes, *hints)) as player:
        yield player


@contextmanager
def recording(folder: str | Path) -> Iterator[Recorder]:
    """Record the responses to providers that the block creates.

    Args:
        folder: the folder for the cassettes. It is created if it does not exist.

    Yields:
        The recorder.

    Raises:
        NotConfigured: the folder cannot be created.
    """
    with active.override(Recorder(Path(folder))) as recorder:
        yield recorder


@contextmanager
def provided(provider: LLMProvider) -> Iterator[LLMProvider]:
    """In the block, let ``get_provider()`` return a router over this provider, regardless of the environment.

    Args:
        provider: the provider, usually a ``ScriptedProvider`` or a router.

    Yields:
        The same provider.
    """
    with factory.override(provider):
        yield provider


@contextmanager
def no_waiting(attempts: int = 1_000_000) -> Iterator[None]:
    """Let routers retry without a pause in the block. Timeouts, and the time to load a cold model, do not change.

    Args:
        attempts: the maximum number of attempts at each provider for one request.
    """
    previous, switches.max_retries = switches.max_retries, attempts - 1
    try:
        yield
    finally:
        switches.max_retries = previous


@contextmanager
def no_model_calls() -> Iterator[None]:
    """Raise NotRecorded for each request in the block, except requests to a ``FaultServer``.

    This also applies to providers that were created before the block.
    """
    previous, switches.allowed_origins = switches.allowed_origins, RUNNING_ORIGINS
    try:
        yield
    finally:
        switches.allowed_origins = previous
