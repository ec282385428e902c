"""The state of this process: circuit breakers, context lengths, DNS results, connection pools, sinks of log events.

Each module registers its collections. Tests call ``state()`` for the sizes of all collections, and
``clear_learned_state()`` to clear those that requests have filled.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, TypeVar

_C = TypeVar("_C", bound=Collection[Any])
_collections: Final[dict[str, tuple[Any, bool]]] = {}  # the flag is ``learned``


def register(name: str, values: _C, *, learned: bool = False) -> _C:
    """Register a collection for ``state()``. Return the collection.

    ``learned`` means that requests fill the collection, and that ``clear_learned_state()`` clears it.
    """
    _collections[name] = values, learned
    return values


def state() -> dict[str, int]:
    """Return the size of each registered collection by its name."""
    return {name: len(values) for name, (values, _) in _collections.items()}


def clear_learned_state() -> None:
    """Clear learned state, such as breakers and DNS results. Connections, sinks and switches remain."""
    for values, learned in _collections.values():
        if learned:
            values.clear()


# Tasks that close dropped streams and connections. The set holds them, because asyncio has only weak references to
# tasks. An event loop must not be closed before its tasks in this set have ended.
ending_tasks: Final = register("tasks that are ending", set[asyncio.Future[Any]]())


async def wait_for_ending_tasks() -> None:
    """Wait for the tasks in ``ending_tasks`` that belong to this event loop."""
    await asyncio.sleep(0)  # meanwhile, a stream that was just dropped adds its task
    while tasks := [future for future in ending_tasks if future.get_loop() is asyncio.get_running_loop()]:
        await asyncio.wait(tasks)
        ending_tasks.difference_update(tasks)


class SharedTasks:
    """Tasks by name. Callers in one event loop share a running task with the same name."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    def is_idle(self, name: str) -> bool:
        """Return whether no task with this name is running in this event loop."""
        task = self._tasks.get(name)
        return task is None or task.done() or task.get_loop() is not asyncio.get_running_loop()

    def start(self, name: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        """Return the running task with this name, else start one.

        Await the task with ``asyncio.shield``, because other callers share the task.
        """
        if self.is_idle(name):
            self._tasks[name] = asyncio.create_task(work())
        return self._tasks[name]


def after_fork(reset: Callable[[], None]) -> None:
    """Call ``reset`` in each forked child process. Windows has no fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=reset)


@dataclass(slots=True)
class Switches:
    """Overrides of the configuration for this process. Tests and the command line set them.

    Attributes:
        allowed_origins: the origins (scheme, host and port) that may receive requests; None for all.
        max_retries: the maximum number of retries. If set, retries have no pauses. A lower configured number still
            applies. None for no override.
        today: the date that replaces the current date; None for no override.
        in_cli: whether a command of ``learnflow-llm`` is running. A command serves no metrics, because the
            application could need the port. A command does not wait for a restarting server, unless LLM_PATIENCE is
            set.
        collected_faults: the faults of invalid variables and unreadable files, by the name of the variable or file.
            These variables and files are then ignored. If None, an error is raised instead.
    """

    allowed_origins: set[tuple[str, str, int]] | None = None
    max_retries: int | None = None
    today: date | None = None
    in_cli: bool = False
    collected_faults: dict[str, str] | None = None


switches: Final = Switches()
