"""The state of this process: circuit breakers, context lengths, DNS results, connection pools, sinks of log events.

Each module registers its collections. ``state()`` returns their sizes, and ``forget()`` clears them for tests.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, TypeVar

_C = TypeVar("_C", bound=Collection[Any])
_collections: Final[dict[str, tuple[Any, bool]]] = {}


def register(name: str, values: _C, *, learned: bool = False) -> _C:
    """Register a collection, and return it.

    Args:
        name: the key of the collection in ``state()``.
        values: the collection.
        learned: whether ``forget()`` clears it, because earlier requests filled it.
    """
    _collections[name] = values, learned
    return values


def state() -> dict[str, int]:
    """Return the size of each registered collection by its name, for example "breakers" or "pools"."""
    return {name: len(values) for name, (values, _) in _collections.items()}


def forget() -> None:
    """Clear learned state: breakers, context lengths, DNS results. Connections, sinks and switches remain."""
    for values, learned in _collections.values():
        if learned:
            values.clear()


# Tasks that close streams and connections after the caller has dropped them. asyncio has only weak references to tasks,
# and an event loop must not be closed before they have ended.
ending_tasks: Final = register("tasks that are ending", set[asyncio.Future[Any]]())


async def wait_for_ending_tasks() -> None:
    """Wait for the tasks in ``ending_tasks`` of this event loop."""
    await asyncio.sleep(0)  # a stream that was just dropped adds its task now
    while tasks := [future for future in ending_tasks if future.get_loop() is asyncio.get_running_loop()]:
        await asyncio.wait(tasks)
        ending_tasks.difference_update(tasks)


class SharedTasks:
    """Tasks with names. Concurrent callers in one event loop share the running task with the same name."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    def is_idle(self, name: str) -> bool:
        """Return whether no task with this name is running in this event loop."""
        task = self._tasks.get(name)
        return task is None or task.done() or task.get_loop() is not asyncio.get_running_loop()

    def start(self, name: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        """Start a task, unless one with this name is running, and return it. Await it with ``asyncio.shield``."""
        if self.is_idle(name):
            self._tasks[name] = asyncio.create_task(work())
        return self._tasks[name]


def after_fork(reset: Callable[[], None]) -> None:
    """Call a function in each child process of a fork. Windows has no fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=reset)


@dataclass(slots=True)
class Switches:
    """Overrides of the configuration for this process. Tests and the command line set them.

    Attributes:
        allowed_origins: the origins to which connections are allowed; None for all.
        max_retries: the maximum number of retries, which are then sent without a pause; None for the configured number.
        today: the date to use as the current one; None to use the real date.
        is_command: whether a command of ``learnflow-llm`` runs. It does not serve metrics, because the application may
            use their port. It does not wait for a server that restarts, unless LLM_PATIENCE is set.
        collected_faults: the dict that collects the faults of invalid variables, which then count as unset; None to
            raise an error instead.
    """

    allowed_origins: set[tuple[str, str, int]] | None = None
    max_retries: int | None = None
    today: date | None = None
    is_command: bool = False
    collected_faults: dict[str, str] | None = None


switches: Final = Switches()
