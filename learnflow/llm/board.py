"""What this process knows of each place: breakers, latencies, recent failures; shared by all routers.

Must never ask anybody or decide anything: ``policy`` does.
The router reads and writes it; ``status()`` shows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .errors import LLMError
from .policy import Breaker, Gate, Record, verdict

_WORST: tuple[Gate, ...] = ("shut", "probe", "trial", "go")


@dataclass(frozen=True, slots=True)
class Place:
    """An address, and a model there."""

    address: str
    model: str | None


@dataclass(slots=True)
class Board:
    """Breakers per address and model; connection and key faults are those of the whole address.

    Attributes:
        clock: seconds that only go forward.
    """

    clock: Callable[[], float] = time.monotonic
    breakers: dict[Place, Breaker] = field(default_factory=dict)
    records: dict[Place, Record] = field(default_factory=dict)

    def gate(self, place: Place) -> Gate:
        """What may be done with it now."""
        now = self.clock()
        return min((each.gate(now) for each in self._both(place)), key=_WORST.index, default="go")

    def shut(self, place: Place) -> list[Breaker]:
        """The breakers that keep it shut; the first is the one that is over last."""
        return sorted((each for each in self._both(place) if each.open), key=lambda each: -each.until)

    def due(self, place: Place) -> float:
        """When it may be asked again, by the clock."""
        return max((each.until for each in self.shut(place)), default=0.0)

    def fail(self, place: Place, error: LLMError) -> bool:
        """It failed. Returns whether this opened a breaker."""
        now = self.clock()
        self.record(place).failure(error, now)
        self.settle(place)  # whatever trial this was: one breaker's failure is the end of it for the others
        meant = verdict(error)
        if meant.opens is None:
            return False
        where = Place(place.address, None) if meant.whole_address else place
        return self.breakers.setdefault(where, Breaker()).fail(error, now)

    def answer(self, place: Place, first_token_s: float | None, began: float) -> bool:
        """It answered a request that began then. Returns whether this closed a breaker."""
        self.record(place).answer(first_token_s)
        over = [each for each in self.shut(place) if each.opened <= began]  # an older answer says nothing of now
        for each in over:
            each.close()
        return bool(over)

    def settle(self, place: Place) -> None:
        """A trial ended without saying anything of the place."""
        for each in self.shut(place):
            each.abandon()

    def forget(self) -> None:
        """Nothing has happened yet. For tests."""
        self.breakers.clear()
        self.records.clear()

    def record(self, place: Place) -> Record:
        """What happened there."""
        return self.records.setdefault(place, Record())

    def _both(self, place: Place) -> list[Breaker]:
        places = dict.fromkeys((place, Place(place.address, None)))
        return [self.breakers[each] for each in places if each in self.breakers]


BOARD = Board()
