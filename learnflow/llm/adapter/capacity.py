"""The queue of each server address: the requests in flight, and which waiting request is sent next.

The router acquires a slot when it chooses among equal providers. An attempt without one acquires its own. All providers
and routers of the process share the queues, so that two providers with one address share its concurrency limit.
No prompt is stored: digests of the beginnings of prompts are compared.
"""

from __future__ import annotations

import asyncio
import bisect
import hashlib
import itertools
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final, cast
from weakref import WeakKeyDictionary

from ..base import Call, Slot
from ..process import register
from .options import messages_of, parts_of, text_of

# The load of an address relative to the average, above which it is used last: the c of "Consistent Hashing with Bounded
# Loads" (Mirrokni, Thorup, Zadimoghaddam 2016), with the value of its examples.
_LOAD_BOUND: Final = 1.25
_MAX_PASSED: Final = 16  # later requests that are sent before a waiting one
_MAX_PROMPTS: Final = 64  # of each address
_MAX_ADDRESSES: Final = 256
_MIN_DIGEST_CHARS: Final = 256
_MAX_COMPARED: Final = 64  # waiting requests

Loops = WeakKeyDictionary[asyncio.AbstractEventLoop, Counter[str]]
Digests = tuple[str, ...]  # of beginnings of one prompt, the shortest first
Limits = Mapping[str, int | None]  # address -> concurrency limit; None if unlimited


@dataclass(slots=True)
class Ticket:
    """The place of a waiting request in the queues.

    Attributes:
        number: a smaller one has waited longer.
        passed: the number of slots that went to later requests.
    """

    number: int = field(default_factory=itertools.count().__next__)
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
        loops: event loop -> address -> requests in flight. Those of a closed event loop are ignored.
        prompts: address -> digests of its last prompts, the newest last.
    """

    loops: Loops = field(default_factory=WeakKeyDictionary)
    prompts: OrderedDict[str, OrderedDict[Digests, None]] = field(default_factory=OrderedDict)
    _waiters: list[_Waiter] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def in_flight(self, address: str) -> int:
        """Return the number of requests in flight at an address."""
        with self._lock:
            return sum(counts[address] for loop, counts in list(self.loops.items()) if not loop.is_closed())

    def is_full(self, address: str, limit: int | None) -> bool:
        """Return whether an address has no free slot."""
        return limit is not None and self.in_flight(address) >= limit

    def ordered(self, limits: Limits, digests: Digests) -> list[str]:
        """Sort the addresses of equal providers, the one to use first.

        An address that is full, or clearly above its share of the load, comes last. The others are sorted by the length
        of the beginning of this prompt that they were sent before, then by the hash of prompt and address (rendezvous
        hashing).

        Args:
            limits: address -> concurrency limit.
            digests: of the prompt.
        """
        known = [limit for limit in limits.values() if limit is not None]
        even = len(known) < len(limits)  # equal shares unless all limits are known

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
        """Acquire a slot for a request of the running event loop. Return None if the address is full."""
        with self._lock:
            return None if self.is_full(address, limit) else self._take(address, digests, asyncio.get_running_loop())

    def release(self, slot: Slot | None) -> None:
        """Release a slot to a waiting request, preferably to one with a prompt that only this server has cached."""
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
                with suppress(RuntimeError):  # its event loop has just been closed
                    waiter.loop.call_soon_threadsafe(_resolve, waiter.future, waiter.slot)
                    return

    async def wait(self, limits: Limits, digests: Digests, ticket: Ticket, timeout_s: float) -> Slot | None:
        """Wait for the next free slot at one of several addresses, and acquire it.

        Args:
            limits: address -> concurrency limit.
            digests: of the prompt.
            ticket: of the request.
            timeout_s: seconds.

        Returns:
            The slot; None after the timeout.
        """
        loop = asyncio.get_running_loop()
        waiter = _Waiter(ticket, digests, limits, loop, loop.create_future())
        with self._lock:
            for address, limit in limits.items():
                if slot := self.take(address, limit, digests):
                    return slot
            bisect.insort(self._waiters, waiter, key=lambda waiter: waiter.ticket.number)
        try:
            async with asyncio.timeout(timeout_s):
                slot = await waiter.future
        except TimeoutError:
            return None
        else:
            waiter.slot = None  # the caller releases it
            return slot
        finally:
            with self._lock:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
            self.release(waiter.slot)

    async def acquire(self, address: str, limit: int | None, deadline: float) -> Slot:
        """Acquire a slot at one address, or wait for one.

        Args:
            address: of the server.
            limit: its concurrency limit; None if unlimited.
            deadline: in seconds, on the clock of the event loop.

        Raises:
            TimeoutError: the deadline passed.
        """
        began = asyncio.get_running_loop().time()
        if slot := self.take(address, limit):
            return slot
        slot = await self.wait({address: limit}, (), Ticket(), max(0.0, deadline - began))
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

    def _next(self, address: str) -> _Waiter | None:
        """Choose the waiting request that gets a slot, among those that have waited longest."""
        eligible = (waiter for waiter in self._waiters if address in waiter.limits)
        fitting = (waiter for waiter in eligible if not self.is_full(address, waiter.limits[address]))
        candidates = list(itertools.islice(fitting, _MAX_COMPARED))
        limits = {other: limit for waiter in candidates for other, limit in waiter.limits.items()}
        cached = {other: self._recent(other, limit) for other, limit in limits.items()}
        seen = self._recent(address, _MAX_PROMPTS) if candidates else set()

        def key(waiter: _Waiter) -> tuple[bool, int, int, int, int]:
            """Sort prompts that only this server has cached first, and those that other servers have cached last."""
            if waiter.ticket.passed >= _MAX_PASSED:
                return False, 0, 0, 0, waiter.ticket.number
            here = _depth(waiter.digests, cached[address])
            elsewhere = [_depth(waiter.digests, cached[other]) for other in waiter.limits if other != address]
            lost = max(elsewhere, default=0) - here
            return True, lost, here, -_depth(waiter.digests, seen), waiter.ticket.number

        chosen = min(candidates, key=key, default=None)
        for waiter in candidates:
            waiter.ticket.passed += 1
        return chosen


def _resolve(future: asyncio.Future[Slot], slot: Slot) -> None:
    if not future.done():
        future.set_result(slot)


def _depth(digests: Digests, known: set[str]) -> int:
    """Return how many digests are known, which measures the known beginning of the prompt."""
    return sum(digest in known for digest in digests)


def digests_of(call: Call) -> Digests:
    """Return digests of beginnings of a conversation, each twice as long as the one before, up to about half of it.

    Two questions about one long text have the same digests. Two long texts after one system prompt have different ones.
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
    prompts=register("addresses with prompt digests", OrderedDict[str, OrderedDict[Digests, None]](), learned=True),
)
