"""Places at equals: who of them is asked, how many requests are under way at each, and who waits for a place.

Must never ask anybody, or know what a request says: it is told digests of its beginning.
The execution takes a place for each attempt, and leaves it; shared by all routers of the process.
"""

from __future__ import annotations

import asyncio
import bisect
import hashlib
import itertools
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, cast
from weakref import WeakKeyDictionary

from ..process import kept

# How far above the average one may be before it gives way: the c of "Consistent Hashing with Bounded Loads" (Mirrokni,
# Thorup, Zadimoghaddam 2016), with the value of its authors' examples.
_BOUND: Final = 1.25
_PASSED: Final = 16  # so often a waiting request lets others go first
_HELD: Final = 64  # beginnings remembered for each address
_ADDRESSES: Final = 256
_LOOKED_AT: Final = 64  # of those that wait, at once

Loops = WeakKeyDictionary[asyncio.AbstractEventLoop, Counter[str]]
Head = tuple[str, ...]  # digests of longer and longer beginnings
Rooms = Mapping[str, int | None]  # address -> requests that it takes at once; None for any number


@dataclass(frozen=True, slots=True)
class Place:
    """A place that is taken: where, and by which event loop."""

    address: str
    loop: asyncio.AbstractEventLoop


@dataclass(slots=True)
class Turn:
    """The turn of a request that waits; who has a smaller number has waited longer.

    Attributes:
        passed: places that others were given meanwhile.
    """

    number: int
    passed: int = 0


@dataclass(slots=True, eq=False)
class _Waiting:
    turn: Turn
    head: Head
    rooms: Rooms
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Place]
    given: Place | None = None


@dataclass(slots=True)
class Places:
    """What is under way, in this process.

    Attributes:
        loops: event loop -> address -> requests under way. What a loop that is closed never ended is over.
        held: address -> the beginnings that it was sent, the newest last.
    """

    loops: Loops = field(default_factory=WeakKeyDictionary)
    held: OrderedDict[str, OrderedDict[Head, None]] = field(default_factory=OrderedDict)
    _waiting: list[_Waiting] = field(default_factory=list)
    _turns: Iterator[int] = field(default_factory=itertools.count)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def flying(self, address: str) -> int:
        """Requests under way there."""
        with self._lock:
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

        def key(address: str) -> tuple[bool, bool, int, int, str]:
            room, flying = rooms[address], self.flying(address)
            share = 1 / len(rooms) if even or room is None else room / sum(known)
            over = flying + 1 > math.ceil(_BOUND * under_way * share)
            hot, held = _depth(head, self._hot(address, room)), _depth(head, self._hot(address, _HELD))
            return room is not None and flying >= room, over, -hot, -held, _score(head, address)

        with self._lock:
            under_way = sum(self.flying(address) for address in rooms) + 1
            return sorted(rooms, key=key)

    def take(self, address: str, head: Head) -> Place:
        """A place there, for a request of the running loop, whether or not it is full."""
        with self._lock:
            return self._take(address, head, asyncio.get_running_loop())

    def take_free(self, address: str, room: int | None, head: Head) -> Place | None:
        """The same; None where it is full."""
        with self._lock:
            return None if self.full(address, room) else self.take(address, head)

    def leave(self, place: Place) -> None:
        """It is over; the place goes to one that waits for it, first to one whose beginning only it holds."""
        with self._lock:
            counts = self.loops.get(place.loop, Counter())
            counts[place.address] -= 1
            if counts[place.address] <= 0:
                del counts[place.address]
            self._waiting = [each for each in self._waiting if not each.loop.is_closed()]
            while waiting := self._waits_for(place.address):
                self._waiting.remove(waiting)
                waiting.given = self._take(place.address, waiting.head, waiting.loop)
                with suppress(RuntimeError):  # its loop was closed at this very moment: what it has is over
                    waiting.loop.call_soon_threadsafe(_tell, waiting.future, waiting.given)
                    return

    def turn(self) -> Turn:
        """For one that begins to wait; it keeps it while it waits again."""
        return Turn(next(self._turns))

    async def wait(self, rooms: Rooms, head: Head, turn: Turn, within: float) -> Place | None:
        """The place that is free next, which is taken; None where none was, for so many seconds."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(turn, head, rooms, loop, loop.create_future())
        with self._lock:
            for address, room in rooms.items():
                if place := self.take_free(address, room, head):
                    return place
            bisect.insort(self._waiting, waiting, key=lambda each: each.turn.number)
        kept = False
        try:
            async with asyncio.timeout(within):
                place = await waiting.future
        except TimeoutError:
            return None
        else:
            kept = True
            return place
        finally:
            with self._lock:
                if waiting in self._waiting:
                    self._waiting.remove(waiting)
            if waiting.given and not kept:
                self.leave(waiting.given)

    def _take(self, address: str, head: Head, loop: asyncio.AbstractEventLoop) -> Place:
        self.loops.setdefault(loop, Counter())[address] += 1
        held = self.held.setdefault(address, OrderedDict())
        self.held.move_to_end(address)
        held[head] = None
        held.move_to_end(head)
        if len(held) > _HELD:
            held.popitem(last=False)
        if len(self.held) > _ADDRESSES:
            self.held.popitem(last=False)
        return Place(address, loop)

    def _hot(self, address: str, room: int | None) -> set[str]:
        """The beginnings that it was sent last, as many as it has places: a server keeps the last prompt of each."""
        last = itertools.islice(reversed(self.held.get(address, OrderedDict())), room or 1)
        return {digest for head in last for digest in head}

    def _suits(self, waiting: _Waiting, address: str) -> bool:
        return address in waiting.rooms and not self.full(address, waiting.rooms[address])

    def _waits_for(self, address: str) -> _Waiting | None:
        """Who is given this place; those who have waited longest are looked at."""
        able = list(itertools.islice((each for each in self._waiting if self._suits(each, address)), _LOOKED_AT))
        rooms = {other: room for each in able for other, room in each.rooms.items()}
        hot = {other: self._hot(other, room) for other, room in rooms.items()}
        held = self._hot(address, _HELD) if able else set()

        def key(one: _Waiting) -> tuple[bool, int, int, int, int]:
            """First what only this one holds, then what nobody does; what others hold, too, or alone, can wait."""
            if one.turn.passed >= _PASSED:
                return False, 0, 0, 0, one.turn.number
            here = _depth(one.head, hot[address])
            others = [_depth(one.head, hot[other]) for other in one.rooms if other != address]
            return True, max(others, default=0) - here, here, -_depth(one.head, held), one.turn.number

        chosen = min(able, key=key, default=None)
        for each in able:
            each.turn.passed += 1
        return chosen


def _tell(future: asyncio.Future[Place], place: Place) -> None:
    if not future.done():
        future.set_result(place)


def _depth(head: Head, digests: set[str]) -> int:
    """How much of a beginning is among these."""
    return sum(digest in digests for digest in head)


def _score(head: Head, address: str) -> str:
    return digest(f"{head[-1]} {address}")


def digest(text: str) -> str:
    """A beginning, as it is known here."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


PLACES: Final = Places(
    loops=kept("event loops that sent requests", cast(Loops, WeakKeyDictionary())),
    held=kept("beginnings held", OrderedDict[str, OrderedDict[Head, None]](), learned=True),
)
