"""Who is asked: order, lacks, and who is asked now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from learnflow.llm.adapter.context_window import Needs, lacks
from learnflow.llm.routing import selection
from learnflow.llm.routing.breaker import Gate


@dataclass
class Option:
    position: int
    gate: Gate = "closed"
    cold: bool = False
    distance: int = 1
    latency_s: float | None = None
    cost: tuple[float, float] | None = None


def options(*said: str) -> list[Option]:
    """By words: "cold far", "probe near"."""
    gates = ("open", "probe", "trial")
    return [
        Option(
            at,
            gate=next((gate for gate in gates if gate in one), "closed"),  # type: ignore[arg-type]
            cold="cold" in one,
            distance=1 if "far" in one else 0,
        )
        for at, one in enumerate(said)
    ]


def places(found: list[Option]) -> list[int]:
    return [one.position for one in found]


def test_who_comes_first() -> None:
    chain = [
        Option(0, latency_s=2.0, cost=(2.5, 10.0)),
        Option(1, latency_s=None, cost=(0.0, 0.0), distance=0),
        Option(2, latency_s=0.5, cost=None, distance=0),
    ]
    assert places(selection.ranked(chain, "order")) == [0, 1, 2]
    assert places(selection.ranked(chain, "latency")) == [2, 0, 1]
    assert places(selection.ranked(chain, "cost")) == [1, 0, 2]
    assert places(selection.ranked(chain, "local-first")) == [1, 2, 0]


def test_what_is_not_known_is_no_lack() -> None:
    can: dict[str, Any] = {"vision": None, "tools": False, "json_schema": True, "context_served": None}
    assert lacks(Needs(images=True, schema=True, tokens=10**9), can) == []
    can["context_served"] = 8
    assert lacks(Needs(tools=True, tokens=9), can) == [
        "tools",
        "context (9 tokens or more needed, 8 served)",
    ]
    assert lacks(Needs(tokens=8), can) == []


@pytest.mark.parametrize(
    ("said", "routing", "chosen", "load", "probe"),
    [
        (["near", "near"], "order", 0, [], []),
        (["near cold", "far"], "order", 0, [], []),
        (["near cold", "far"], "warm-first", 1, [0], []),
        (["near cold", "far", "near"], "order", 2, [0], []),
        (["far cold", "near"], "order", 1, [0], []),
        (["near cold", "near cold", "far"], "order", 0, [], []),
        (["near probe", "near"], "order", 1, [], [0]),
        (["near open", "far"], "order", 1, [], []),
        (["near open", "near open"], "order", None, [], []),
        (["near trial", "near"], "order", 0, [], []),
    ],
)
def test_who_is_asked_now(said: list[str], routing: Any, chosen: int | None, load: list[int], probe: list[int]) -> None:
    found, loads, probes = selection.select(options(*said), routing, lambda _: False)
    assert (found and found.position, places(loads), places(probes)) == (chosen, load, probe)
