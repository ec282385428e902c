"""Concurrency limits of server addresses, and the requests that wait for a slot.

A request holds a slot while it is in flight. All providers and routers of the process share the slots. Two providers
with one address therefore share its concurrency limit.

A router may choose among equal providers (joined by ``+`` in LLM_PROVIDERS). It sends prompts with a common prefix to
the same server, which has the prefix in its KV cache. Prefixes are compared by digests; no prompt is stored.
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
from ..process import after_fork, register
from .options import messages_of, parts_of, text_of

# An address is overloaded above this multiple of its share of the requests in flight. This is the c of "Consistent
# Hashing with Bounded Loads" (Mirrokni, Thorup, Zadimoghaddam 2016); 1.25 as in the paper's examples.
_MAX_LOAD_RATIO: Final = 1.25
_MAX_TIMES_OVERTAKEN: Final = 16  # then a request gets the next slot
_MAX_RECENT_PROMPTS: Final = 64  # recorded prompts of one address
_MAX_ADDRESSES: Final = 256  # addresses with recorded prompts
_MIN_DIGEST_CHARS: Final = 256
_MAX_COMPARED_REQUESTS: Final = 64  # the oldest waiting requests, which are considered for a free slot
_POLL_INTERVAL_S: Final = 0.5  # a waiting request checks for a free slot again after this time

InFlightCounts = WeakKeyDictionary[asyncio.AbstractEventLoop, Counter[str]]
PrefixDigests = tuple[str, ...]  # digests of the prefixes of one prompt, the shortest prefix first
Limits = Mapping[str, int | None]  # address -> concurrency limit; None if unlimited


@dataclass(slots=True)
class Ticket:
    """The place of a request in the queue. A request uses one ticket for all its waits."""

    number: int = field(default_factory=itertools.count().__next__)
    times_overtaken: int = 0  # slots that this request could have used, but another request got


@dataclass(slots=True, eq=False)
class _Waiter:
    """A waiting request, with the arguments of ``Capacity.wait``."""

    ticket: Ticket
    digests: PrefixDigests
    limits: Limits
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Slot]
    slot: Slot | None = None  # assigned by ``release``; None again after ``wait`` has returned it


@dataclass(slots=True)
class Capacity:
    """The slots of all addresses, and the queue of waiting requests.

    Attributes:
        in_flight_counts: event loop -> address -> number of requests in flight. Event loops that do not run are
            ignored, because a stopped one may never run again.
        recent_prompts: address -> digests of the last prompts sent there, the newest last.
    """

    in_flight_counts: InFlightCounts = field(default_factory=WeakKeyDictionary)
    recent_prompts: OrderedDict[str, OrderedDict[PrefixDigests, None]] = field(default_factory=OrderedDict)
    _waiters: list[_Waiter] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def in_flight(self, address: str) -> int:
        """Return the number of requests in flight at an address."""
        with self._lock:
            return sum(counts[address] for loop, counts in list(self.in_flight_counts.items()) if loop.is_running())

    def is_full(self, address: str, limit: int | None) -> bool:
        """Return whether an address has no free slot."""
        return limit is not None and self.in_flight(address) >= limit

    def sort_addresses(self, limits: Limits, digests: PrefixDigests) -> list[str]:
        """Sort the addresses of equal providers, the best one first.

        Prefer, in this order:

        - an address that is not full,
        - one that is not overloaded,
        - the longest prefix of the prompt in the server's cache, which is estimated,
        - the longest prefix in the last 64 prompts of the address,
        - the lowest hash of the prompt and the address (rendezvous hashing).
        """
        finite_limits = [limit for limit in limits.values() if limit is not None]
        has_unlimited = len(finite_limits) < len(limits)

        def key(address: str) -> tuple[bool, bool, int, int, str]:
            limit = limits[address]
            share = 1 / len(limits) if has_unlimited or limit is None else limit / sum(finite_limits)
            overloaded = self.in_flight(address) + 1 > math.ceil(_MAX_LOAD_RATIO * total * share)
            cached = _count_known(digests, self._recent_digests(address, limit))
            received = _count_known(digests, self._recent_digests(address, _MAX_RECENT_PROMPTS))
            tie_breaker = _digest(f"{digests[-1]} {address}")
            return self.is_full(address, limit), overloaded, -cached, -received, tie_breaker

        with self._lock:
            total = sum(self.in_flight(address) for address in limits) + 1
            return sorted(limits, key=key)

    def try_acquire(self, address: str, limit: int | None = None, digests: PrefixDigests = ()) -> Slot | None:
        """Acquire a slot without waiting. Return None if the address is full."""
        with self._lock:
            return (
                None if self.is_full(address, limit) else self._add_slot(address, digests, asyncio.get_running_loop())
            )

    def release(self, slot: Slot | None) -> None:
        """Release a slot, and give it to a waiting request. Do nothing if ``slot`` is None."""
        if slot is None:
            return
        with self._lock:
            counts = self.in_flight_counts.get(slot.loop, Counter())
            counts[slot.address] -= 1
            if counts[slot.address] <= 0:
                del counts[slot.address]
            self._waiters = [waiter for waiter in self._waiters if not waiter.loop.is_closed()]
            while waiter := self._choose_waiter(slot.address):
                self._waiters.remove(waiter)
                waiter.slot = self._add_slot(slot.address, waiter.digests, waiter.loop)
                with suppress(RuntimeError):  # the event loop was closed meanwhile: choose the next waiter
                    waiter.loop.call_soon_threadsafe(_resolve, waiter.future, waiter.slot)
                    return

    async def wait(self, limits: Limits, digests: PrefixDigests, ticket: Ticket, timeout_s: float) -> Slot | None:
        """Acquire a slot at one of several addresses, or wait for one. Return None after ``timeout_s`` seconds.

        The router calls it for equal providers.
        """
        loop = asyncio.get_running_loop()
        waiter = _Waiter(ticket, digests, limits, loop, loop.create_future())
        with self._lock:
            for address, limit in limits.items():
                if slot := self.try_acquire(address, limit, digests):
                    return slot
            bisect.insort(self._waiters, waiter, key=lambda waiter: waiter.ticket.number)
        try:
            async with asyncio.timeout(timeout_s):
                slot = await waiter.future
        except TimeoutError:
            return None
        else:
            waiter.slot = None  # from now on, the caller must release the slot
            return slot
        finally:
            with self._lock:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
            self.release(waiter.slot)

    async def acquire(self, address: str, limit: int | None, deadline: float) -> Slot:
        """Acquire a slot at one address, or wait for one. An attempt calls it if the router acquired no slot.

        Raises:
            TimeoutError: no slot was free before the deadline (in seconds, on the event loop's clock).
        """
        loop = asyncio.get_running_loop()
        began, ticket = loop.time(), Ticket()
        slot = self.try_acquire(address, limit)
        while slot is None:
            if (left_s := deadline - loop.time()) <= 0:
                raise TimeoutError
            # Check at intervals, because ``release`` skips a waiting request while its event loop does not run
            slot = await self.wait({address: limit}, (), ticket, min(_POLL_INTERVAL_S, left_s))
        return replace(slot, waited_s=loop.time() - began)

    def reset(self) -> None:
        """Clear the slots and the waiting requests. A child process calls this method after a fork."""
        self._lock = threading.RLock()
        self.in_flight_counts.clear()
        self._waiters.clear()

    def _add_slot(self, address: str, digests: PrefixDigests, loop: asyncio.AbstractEventLoop) -> Slot:
        """Count a request in flight, and record its prompt as the newest of the address."""
        self.in_flight_counts.setdefault(loop, Counter())[address] += 1
        if digests:
            prompts = self.recent_prompts.setdefault(address, OrderedDict())
            self.recent_prompts.move_to_end(address)
            prompts[digests] = None
            prompts.move_to_end(digests)
            if len(prompts) > _MAX_RECENT_PROMPTS:
                prompts.popitem(last=False)
            if len(self.recent_prompts) > _MAX_ADDRESSES:
                self.recent_prompts.popitem(last=False)
        return Slot(address, loop)

    def _recent_digests(self, address: str, count: int | None) -> set[str]:
        """Return the digests of the ``count`` newest prompts of an address; None means the newest one.

        With the concurrency limit as ``count``, the result is an estimate of the server's cache. The estimate assumes
        that the server caches one prompt for each slot.
        """
        newest = itertools.islice(reversed(self.recent_prompts.get(address, OrderedDict())), count or 1)
        return {digest for digests in newest for digest in digests}

    def _choose_waiter(self, address: str) -> _Waiter | None:
        """Choose the waiting request that gets a slot of an address. Return None if no request can use it."""
        eligible = (waiter for waiter in self._waiters if address in waiter.limits and waiter.loop.is_running())
        allowed = (waiter for waiter in eligible if not self.is_full(address, waiter.limits[address]))
        candidates = list(itertools.islice(allowed, _MAX_COMPARED_REQUESTS))
        limits = {server: limit for waiter in candidates for server, limit in waiter.limits.items()}
        cached = {server: self._recent_digests(server, limit) for server, limit in limits.items()}
        received = self._recent_digests(address, _MAX_RECENT_PROMPTS) if candidates else set()

        def key(waiter: _Waiter) -> tuple[bool, int, int, int, int]:
            """Return the sort key. Requests get the slot in this order.

            1. those that were overtaken too often,
            2. those with a longer cached prefix at this server than at any other,
            3. those without a cached prefix at any server,
            4. those with a cached prefix of at least the same length at another server.
            """
            if waiter.ticket.times_overtaken >= _MAX_TIMES_OVERTAKEN:
                return False, 0, 0, 0, waiter.ticket.number
            cached_here = _count_known(waiter.digests, cached[address])
            others = [_count_known(waiter.digests, cached[other]) for other in waiter.limits if other != address]
            advantage_elsewhere = max(others, default=0) - cached_here
            received_here = _count_known(waiter.digests, received)
            return True, advantage_elsewhere, cached_here, -received_here, waiter.ticket.number

        chosen = min(candidates, key=key, default=None)
        for waiter in candidates:
            waiter.ticket.times_overtaken += 1
        return chosen


def _resolve(future: asyncio.Future[Slot], slot: Slot) -> None:
    if not future.done():
        future.set_result(slot)


def _count_known(digests: PrefixDigests, known: set[str]) -> int:
    """Return the number of known digests. It grows with the length of the known prefix."""
    return sum(digest in known for digest in digests)


def prefix_digests(call: Call) -> PrefixDigests:
    """Return the digests of the first 256, 512, 1,024 ... characters of a prompt, up to half of a long prompt.

    Two questions about one long text have the same digests, because only the ends of the prompts differ. Two long texts
    after one system prompt differ in the digests of the longer prefixes.
    """
    text = "\n".join(text_of(part) for message in messages_of(call.prompt) for part in parts_of(message))
    length = _MIN_DIGEST_CHARS
    ends = [length]
    while length * 4 <= len(text):
        length *= 2
        ends.append(length)
    return tuple(_digest(text[:end]) for end in ends)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


CAPACITY: Final = Capacity(
    in_flight_counts=register("event loops that sent requests", cast(InFlightCounts, WeakKeyDictionary())),
    recent_prompts=register(
        "addresses with prompt digests", OrderedDict[str, OrderedDict[PrefixDigests, None]](), learned=True
    ),
)
after_fork(CAPACITY.reset)
