"""The queue of each server address: how many requests are in flight there, and which waiting request is sent next.

Must never send anything, or see a prompt: it compares digests of how prompts begin.
The router takes a slot when it chooses among equal providers; an attempt without one waits for its own. Shared by all
providers and routers of the process, so that two provider objects of one address share its concurrency limit.
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
from dataclasses import dataclass, field, replace
from typing import Final, cast
from weakref import WeakKeyDictionary

from ..base import Call, Slot
from ..process import register
from .options import messages_of, parts_of, text_of

# How far above the average load an address may be before it gives way: the c of "Consistent Hashing with Bounded Loads"
# (Mirrokni, Thorup, Zadimoghaddam 2016), with the value of its authors' examples.
_LOAD_BOUND: Final = 1.25
_MAX_PASSED: Final = 16  # times that a waiting request lets others go first
_MAX_PROMPTS: Final = 64  # prompts remembered for each address
_MAX_ADDRESSES: Final = 256
_MIN_DIGEST_CHARS: Final = 256
_MAX_COMPARED: Final = 64  # waiting requests that are compared at once

Loops = WeakKeyDictionary[asyncio.AbstractEventLoop, Counter[str]]
Digests = tuple[str, ...]  # of longer and longer beginnings of one prompt
Limits = Mapping[str, int | None]  # address -> concurrency limit; None if unlimited


@dataclass(slots=True)
class Ticket:
    """The turn of a waiting request; a smaller number has waited longer.

    Attributes:
        passed: slots that went to later requests meanwhile.
    """

    number: int
    passed: int = 0


@dataclass(slots=True, eq=False)
class _Waiter:
    ticket: Ticket
    digests: Digests
    limits: Limits
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Slot]
    slot: Slot | None = None


@dataclass(slots=True)
class Capacity:
    """The slots and queues of all addresses.

    Attributes:
        loops: event loop -> address -> requests in flight. Those of a closed event loop do not count.
        prompts: address -> digests of the prompts that it was sent, the newest last.
    """

    loops: Loops = field(default_factory=WeakKeyDictionary)
    prompts: OrderedDict[str, OrderedDict[Digests, None]] = field(default_factory=OrderedDict)
    _waiters: list[_Waiter] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def in_flight(self, address: str) -> int:
        """Return how many requests are in flight at an address."""
        with self._lock:
            return sum(counts[address] for loop, counts in list(self.loops.items()) if not loop.is_closed())

    def is_full(self, address: str, limit: int | None) -> bool:
        """Return whether an address has no free slot."""
        return limit is not None and self.in_flight(address) >= limit

    def ordered(self, limits: Limits, digests: Digests) -> list[str]:
        """Sort the addresses of equal providers: the one to use first comes first.

        An address that was sent the longest beginning of this prompt comes first, then the order is by the hash of
        prompt and address (rendezvous hashing). An address that is full, or clearly above its share, gives way.
        """
        known = [limit for limit in limits.values() if limit is not None]
        even = len(known) < len(limits)  # shares by size only if all sizes are known

        def key(address: str) -> tuple[bool, bool, int, int, str]:
            limit, in_flight = limits[address], self.in_flight(address)
            share = 1 / len(limits) if even or limit is None else limit / sum(known)
            over = in_flight + 1 > math.ceil(_LOAD_BOUND * total * share)
            cached = _depth(digests, self._recent(address, limit))
            seen = _depth(digests, self._recent(address, _MAX_PROMPTS))
            return limit is not None and in_flight >= limit, over, -cached, -seen, _digest(f"{digests[-1]} {address}")

        with self._lock:
            total = sum(self.in_flight(address) for address in limits) + 1
            return sorted(limits, key=key)

    def take(self, address: str, limit: int | None = None, digests: Digests = ()) -> Slot | None:
        """Take a slot for a request of the running event loop; None if the address is full."""
        with self._lock:
            return None if self.is_full(address, limit) else self._take(address, digests, asyncio.get_running_loop())

    def release(self, slot: Slot | None) -> None:
        """Free a slot. It goes to a waiting request, first to one that only this server has cached."""
        if slot is None:
            return
        with self._lock:
            counts = self.loops.get(slot.loop, Counter())
            counts[slot.address] -= 1
            if counts[slot.address] <= 0:
                del counts[slot.address]
            self._waiters = [waiter for waiter in self._waiters if not waiter.loop.is_closed()]
            while waiter := self._next(slot.address):
                self._waiters.remove(waiter)
                waiter.slot = self._take(slot.address, waiter.digests, waiter.loop)
                with suppress(RuntimeError):  # its event loop was closed at this moment
                    waiter.loop.call_soon_threadsafe(_resolve, waiter.future, waiter.slot)
                    return

    def ticket(self) -> Ticket:
        """Return a ticket for a request that begins to wait. It keeps the ticket if it waits again."""
        return Ticket(next(self._numbers))

    async def wait(self, limits: Limits, digests: Digests, ticket: Ticket, timeout_s: float) -> Slot | None:
        """Wait for the next free slot at one of the addresses, and take it; None after ``timeout_s`` seconds."""
        loop = asyncio.get_running_loop()
        waiter = _Waiter(ticket, digests, limits, loop, loop.create_future())
        with self._lock:
            for address, limit in limits.items():
                if slot := self.take(address, limit, digests):
                    return slot
            bisect.insort(self._waiters, waiter, key=lambda waiter: waiter.ticket.number)
        accepted = False
        try:
            async with asyncio.timeout(timeout_s):
                slot = await waiter.future
        except TimeoutError:
            return None
        else:
            accepted = True
            return slot
        finally:
            with self._lock:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
            if not accepted:
                self.release(waiter.slot)

    async def acquire(self, address: str, limit: int | None, deadline: float) -> Slot:
        """Take a slot at one address, or wait for one. Raises TimeoutError at the deadline, in the loop's time."""
        began = asyncio.get_running_loop().time()
        if slot := self.take(address, limit):
            return slot
        slot = await self.wait({address: limit}, (), self.ticket(), max(0.0, deadline - began))
        if slot is None:
            raise TimeoutError
        return replace(slot, waited_s=asyncio.get_running_loop().time() - began)

    def _take(self, address: str, digests: Digests, loop: asyncio.AbstractEventLoop) -> Slot:
        self.loops.setdefault(loop, Counter())[address] += 1
        if digests:
            prompts = self.prompts.setdefault(address, OrderedDict())
            self.prompts.move_to_end(address)
            prompts[digests] = None
            prompts.move_to_end(digests)
            if len(prompts) > _MAX_PROMPTS:
                prompts.popitem(last=False)
            if len(self.prompts) > _MAX_ADDRESSES:
                self.prompts.popitem(last=False)
        return Slot(address, loop)

    def _recent(self, address: str, count: int | None) -> set[str]:
        """Return the digests of the newest prompts of an address. A server caches the last prompt of each slot."""
        newest = itertools.islice(reversed(self.prompts.get(address, OrderedDict())), count or 1)
        return {digest for digests in newest for digest in digests}

    def _fits(self, waiter: _Waiter, address: str) -> bool:
        return address in waiter.limits and not self.is_full(address, waiter.limits[address])

    def _next(self, address: str) -> _Waiter | None:
        """Choose the waiting request that gets this slot, among those that have waited longest."""
        able = list(
            itertools.islice((waiter for waiter in self._waiters if self._fits(waiter, address)), _MAX_COMPARED)
        )
        limits = {other: limit for waiter in able for other, limit in waiter.limits.items()}
        cached = {other: self._recent(other, limit) for other, limit in limits.items()}
        seen = self._recent(address, _MAX_PROMPTS) if able else set()

        def key(waiter: _Waiter) -> tuple[bool, int, int, int, int]:
            """First prompts that only this server has cached, then those of no server, last those of other servers."""
            if waiter.ticket.passed >= _MAX_PASSED:
                return False, 0, 0, 0, waiter.ticket.number
            here = _depth(waiter.digests, cached[address])
            elsewhere = [_depth(waiter.digests, cached[other]) for other in waiter.limits if other != address]
            away = max(elsewhere, default=0) - here
            return True, away, here, -_depth(waiter.digests, seen), waiter.ticket.number

        chosen = min(able, key=key, default=None)
        for waiter in able:
            waiter.ticket.passed += 1
        return chosen


def _resolve(future: asyncio.Future[Slot], slot: Slot) -> None:
    if not future.done():
        future.set_result(slot)


def _depth(digests: Digests, known: set[str]) -> int:
    """Return how many of the digests are known: how much of the prompt's beginning."""
    return sum(digest in known for digest in digests)


def digests_of(call: Call) -> Digests:
    """Return digests of beginnings of a conversation, each twice as long as the one before, up to about half of it.

    Two questions about one text have the same digests, wherever the text stands. Two texts after one long system prompt
    have not.
    """
    text = "\n".join(text_of(part) for message in messages_of(call.prompt) for part in parts_of(message))
    length = _MIN_DIGEST_CHARS
    ends = [length]
    while length * 4 <= len(text):
        length *= 2
        ends.append(length)
    return tuple(_digest(text[:end]) for end in ends)


def _digest(text: str) -> str:
    """Return the digest of a beginning of a prompt."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


CAPACITY: Final = Capacity(
    loops=register("event loops that sent requests", cast(Loops, WeakKeyDictionary())),
    prompts=register("beginnings held", OrderedDict[str, OrderedDict[Digests, None]](), learned=True),
)
