"""Places at equals: who of them is asked, how many requests are under way at each, and who waits for a place.

Must never ask anybody, or know what a request says: it is told digests of its beginning.
The execution takes a place for each attempt, and leaves it; shared by all routers of the process.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import eq
from typing import Final, cast
from weakref import WeakKeyDictionary

from ..process import kept

# How far above the average one may be before it gives way: the c of "Consistent Hashing with Bounded Loads" (Mirrokni,
# Thorup, Zadimoghaddam 2016), with the value of its authors' examples.
_BOUND: Final = 1.25
_PASSED: Final = 16  # so often a waiting request lets others go first
_HELD: Final = 64  # beginnings remembered for each address

Loops = WeakKeyDictionary[asyncio.AbstractEventLoop, Counter[str]]
Head = tuple[str, ...]  # digests of longer and longer beginnings
Rooms = Mapping[str, int | None]  # address -> requests that it takes at once; None for any number


@dataclass(slots=True, eq=False)
class _Waiting:
    head: Head
    rooms: Rooms
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[str]
    given: str | None = None
    passed: int = 0  # places that others were given


@dataclass(slots=True)
class Places:
    """What is under way, in this process.

    Attributes:
        loops: event loop -> address -> requests under way. What a loop that is closed never ended is over.
        held: address -> the beginnings that it was sent, the newest last.
    """

    loops: Loops = field(default_factory=WeakKeyDictionary)
    held: dict[str, OrderedDict[Head, None]] = field(default_factory=dict)
    _waiting: list[_Waiting] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def flying(self, address: str) -> int:
        """Requests under way there."""
        return sum(counts[address] for loop, counts in list(self.loops.items()) if not loop.is_closed())

    def full(self, address: str, room: int | None) -> bool:
        """Whether it has no free place."""
        return room is not None and self.flying(address) >= room

    def ordered(self, rooms: Rooms, head: Head) -> list[str]:
        """The addresses of equals in the order in which they are asked.

        Those that were sent the most of this beginning before, then by the hash of beginning and address (rendezvous
        hashing); one that is full, or clearly busier than its share, gives way.
        """
        known = [room for room in rooms.values() if room is not None]
        even = len(known) < len(rooms)  # shares by size only where all sizes are known
        under_way = sum(self.flying(address) for address in rooms) + 1

        def key(address: str) -> tuple[bool, bool, int, int, str]:
            room = rooms[address]
            share = 1 / len(rooms) if even or room is None else room / sum(known)
            over = self.flying(address) + 1 > math.ceil(_BOUND * under_way * share)
            hot, held = self._holds(address, room, head)
            return self.full(address, room), over, -hot, -held, _score(head, address)

        return sorted(rooms, key=key)

    def take(self, address: str, head: Head) -> None:
        """A request is sent there, from the running loop."""
        with self._lock:
            self._take(address, head, asyncio.get_running_loop())

    def leave(self, address: str) -> None:
        """It is over; the place goes to one that waits for it, first to one whose beginning it holds."""
        with self._lock:
            counts = self.loops[asyncio.get_running_loop()]
            counts[address] -= 1
            if not counts[address]:
                del counts[address]
            self._waiting = [each for each in self._waiting if not each.loop.is_closed()]
            waiting = self._waits_for(address)
            if waiting:
                self._waiting.remove(waiting)
                waiting.given = address
                self._take(address, waiting.head, waiting.loop)
        if waiting:
            waiting.loop.call_soon_threadsafe(_tell, waiting.future, address)

    async def wait(self, rooms: Rooms, head: Head) -> str:
        """The address of the place that is free next, which is taken."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(head, rooms, loop, loop.create_future())
        with self._lock:
            free = next((each for each in rooms if not self.full(each, rooms[each])), None)
            if free:
                self._take(free, head, loop)
                return free
            self._waiting.append(waiting)
        try:
            return await waiting.future
        except asyncio.CancelledError:
            with self._lock:
                if waiting in self._waiting:
                    self._waiting.remove(waiting)
            if waiting.given:
                self.leave(waiting.given)
            raise

    def _take(self, address: str, head: Head, loop: asyncio.AbstractEventLoop) -> None:
        self.loops.setdefault(loop, Counter())[address] += 1
        held = self.held.setdefault(address, OrderedDict())
        held[head] = None
        held.move_to_end(head)
        if len(held) > _HELD:
            held.popitem(last=False)

    def _holds(self, address: str, room: int | None, head: Head) -> tuple[int, int]:
        """How much of this beginning is at the address: in what it was sent last, in as many as it has places; in all.

        A server keeps the last prompt of each slot, and some of the others.
        """
        depths = [sum(map(eq, head, other)) for other in reversed(self.held.get(address, ()))]
        return max(depths[: room or 1], default=0), max(depths, default=0)

    def _waits_for(self, address: str) -> _Waiting | None:
        able = [each for each in self._waiting if address in each.rooms and not self.full(address, each.rooms[address])]

        def key(one: _Waiting) -> tuple[bool, int, int, int]:
            """First what only this one holds, then what nobody does; what others hold, too, or alone, can wait."""
            hot, held = self._holds(address, one.rooms[address], one.head)
            others = [self._holds(each, one.rooms[each], one.head)[0] for each in one.rooms if each != address]
            return one.passed < _PASSED, max(others, default=0) - hot, hot, -held

        chosen = min(able, key=key, default=None)
        for each in able:
            each.passed += 1
        return chosen


def _tell(future: asyncio.Future[str], address: str) -> None:
    if not future.done():
        future.set_result(address)


def _score(head: Head, address: str) -> str:
    return digest(f"{head[-1]} {address}")


def digest(text: str) -> str:
    """A beginning, as it is known here."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


PLACES: Final = Places(
    loops=kept("event loops that sent requests", cast(Loops, WeakKeyDictionary())),
    held=kept("beginnings held", dict[str, OrderedDict[Head, None]](), learned=True),
)
