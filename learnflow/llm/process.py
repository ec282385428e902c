"""The state of this process: circuit breakers, context lengths, DNS results, connection pools, sinks.

Each module registers its own collections. ``state()`` counts them all; ``forget()`` is for tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

_C = TypeVar("_C", bound=Collection[Any])
_collections: Final[dict[str, tuple[Any, bool]]] = {}


def register(name: str, values: _C, *, learned: bool = False) -> _C:
    """Return the collection, after adding it to ``state()``.

    Args:
        name: its name in ``state()``.
        values: the collection.
        learned: its values come from earlier requests, so that ``forget()`` clears it.
    """
    _collections[name] = values, learned
    return values


def state() -> dict[str, int]:
    """Count the state of the process.

    Returns:
        The size of each collection, by its name: breakers, pools, sinks and so on.
    """
    return {name: len(values) for name, (values, _) in _collections.items()}


def forget() -> None:
    """Clear learned state: breakers, context lengths, DNS results. Connections, sinks and test overrides remain."""
    for values, learned in _collections.values():
        if learned:
            values.clear()


# Tasks that run on after their caller: of dropped streams and closing connections. asyncio has only weak references to
# tasks, and a loop must not be closed before they have ended.
ending: Final = register("tasks that are ending", set[asyncio.Future[Any]]())


async def settle() -> None:
    """Wait for the tasks of this event loop that are ending."""
    await asyncio.sleep(0)  # a stream that was just dropped adds its task first
    while own := [future for future in ending if future.get_loop() is asyncio.get_running_loop()]:
        await asyncio.wait(own)
        ending.difference_update(own)


class SharedTasks:
    """Named tasks. In an event loop, concurrent callers share one running task of a name."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    def is_idle(self, name: str) -> bool:
        """Return whether no task of this name runs in this event loop."""
        task = self._tasks.get(name)
        return task is None or task.done() or task.get_loop() is not asyncio.get_running_loop()

    def start(self, name: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        """Return the running task of this name; start it if no task runs. Await it with ``asyncio.shield``."""
        if self.is_idle(name):
            self._tasks[name] = asyncio.create_task(work())
        return self._tasks[name]


@dataclass(slots=True)
class Switches:
    """Overrides of the configuration, which tests and the command line set for the process.

    Attributes:
        allowed: the origins that connections may go to; None for all.
        retries: the number of retries, which then do not wait; None for the configured one.
        is_command: a command of ``learnflow-llm`` runs. It starts no metrics, because the application uses their port,
            and does not wait for a server that restarts, unless LLM_PATIENCE is set.
    """

    allowed: set[tuple[str, str, int]] | None = None
    retries: int | None = None
    is_command: bool = False


switches: Final = Switches()
