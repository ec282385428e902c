"""Context managers for tests. ``testing.plugin`` has pytest fixtures for the same tasks."""

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
    """Replay cassettes (recorded responses) to the providers that the block creates. This needs no server or API key.

    Args:
        folders: folders of cassettes, or single cassettes.
        hint: the hint of errors about missing cassettes; None to suggest LLM_REPLAY_MODE=record.

    Yields:
        The player. ``missing`` lists the requests without a cassette. ``unplayed`` lists the unused responses.

    Raises:
        NotConfigured: a folder has no cassette, or a cassette cannot be read.
    """
    hints = (hint,) if hint else ()
    cassettes = {name: text for folder in folders for name, text in active.read_cassettes(Path(folder), *hints).items()}
    with active.override(Player(cassettes, *hints)) as player:
        yield player


@contextmanager
def recording(folder: str | Path) -> Iterator[Recorder]:
    """Record cassettes with the responses to the providers that the block creates.

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
def use_provider(provider: LLMProvider) -> Iterator[LLMProvider]:
    """Make ``get_provider()`` use this provider in the block, whatever the environment configures.

    ``get_provider()`` still returns a router.

    Args:
        provider: the provider, usually a ``ScriptedProvider`` or a router.

    Yields:
        The same provider.
    """
    with factory.override(provider):
        yield provider


@contextmanager
def no_waiting(attempts: int = 1_000_000) -> Iterator[None]:
    """Make routers retry without pauses in the block. Timeouts and the time to load a model do not change.

    Args:
        attempts: the maximum number of attempts per provider and request. LLM_RETRIES still limits the retries.
    """
    previous, switches.max_retries = switches.max_retries, attempts - 1
    try:
        yield
    finally:
        switches.max_retries = previous


@contextmanager
def no_model_calls() -> Iterator[None]:
    """Make every request in the block raise NotRecorded, even if its provider was created earlier.

    Requests to a ``FaultServer`` are allowed.
    """
    previous, switches.allowed_origins = switches.allowed_origins, RUNNING_ORIGINS
    try:
        yield
    finally:
        switches.allowed_origins = previous
