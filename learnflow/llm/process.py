"""What this process keeps beside its objects, in one place: breakers, widths of contexts, names, pools, sinks.

Must never know what it keeps: each module has its own. ``state()`` shows all of it, ``forget()`` is for tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

_C = TypeVar("_C", bound=Collection[Any])
_collections: Final[dict[str, tuple[Any, bool]]] = {}


def register(name: str, values: _C, *, learned: bool = False) -> _C:
    """The collection itself, which is shown by ``state()``.

    Args:
        name: what it is shown as.
        values: what is kept.
        learned: it was learned from what happened, and ``forget()`` empties it.
    """
    _collections[name] = values, learned
    return values


def state() -> dict[str, int]:
    """What the process keeps now.

    Returns:
        How many there are of each kind: breakers, pools, sinks and so on.
    """
    return {name: len(values) for name, (values, _) in _collections.items()}


def forget() -> None:
    """Nothing has happened yet: empties what was learned; connections, sinks and what stands in for others stay."""
    for values, learned in _collections.values():
        if learned:
            values.clear()


# What goes on after its caller has left: dropped streams, closing connections. asyncio keeps only weak
# references to tasks, and a loop must not be closed before they have ended.
ending: Final = register("tasks that are ending", set[asyncio.Future[Any]]())


async def settle() -> None:
    """Wait for what is ending in this event loop."""
    await asyncio.sleep(0)  # a stream that was dropped just now has called the loop
    while own := [future for future in ending if future.get_loop() is asyncio.get_running_loop()]:
        await asyncio.wait(own)
        ending.difference_update(own)


class SharedTasks:
    """Tasks by name, each of which runs once for all that need its result now, in one event loop."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    def is_idle(self, name: str) -> bool:
        """Return whether no task of this name runs in this event loop."""
        task = self._tasks.get(name)
        return task is None or task.done() or task.get_loop() is not asyncio.get_running_loop()

    def start(self, name: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        """Return the running task of this name; start it if there is none. Await it shielded: others may, too."""
        if self.is_idle(name):
            self._tasks[name] = asyncio.create_task(work())
        return self._tasks[name]


@dataclass(slots=True)
class Switches:
    """What tests and the command line set for the whole process.

    Attributes:
        allowed: the origins that may be connected to; None for all.
        retries: how often a provider is asked again at the most, without waiting; None for what is configured.
        watched: the metrics that the environment asks for are served.
        patient: a server that restarts is waited for, also if LLM_PATIENCE is not set.
    """

    allowed: set[tuple[str, str, int]] | None = None
    retries: int | None = None
    watched: bool = True
    patient: bool = True


switches: Final = Switches()
