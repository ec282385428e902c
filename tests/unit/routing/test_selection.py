"""The order of the candidates of a chain, their missing capabilities, and the chosen candidate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from learnflow.llm.adapter.context_window import Requirements, missing_requirements
from learnflow.llm.adapter.routable import Facts
from learnflow.llm.capabilities import default_capabilities
from learnflow.llm.routing import selection
from learnflow.llm.routing.breaker import BreakerState, Statistics


@dataclass
class Candidate:
    position: int
    state: BreakerState = "closed"
    cold: bool = False
    distance: int = 1
    statistics: Statistics = field(default_factory=Statistics)
    cost: tuple[float, float] | None = None

    @property
    def facts(self) -> Facts:
        capabilities = default_capabilities(cost=self.cost)
        return Facts(address="", capabilities=capabilities, first_token_s=1.0, gap_s=1.0, cold=self.cold)

    @property
    def ready(self) -> bool:
        return self.state in ("closed", "trial")


def candidates(*descriptions: str) -> list[Candidate]:
    """Return candidates from descriptions like "cold far" or "probe near"."""
    states = ("open", "probe", "trial")
    return [
        Candidate(
            position,
            state=next((state for state in states if state in description), "closed"),  # type: ignore[arg-type]
            cold="cold" in description,
            distance=1 if "far" in description else 0,
        )
        for position, description in enumerate(descriptions)
    ]


def positions(ordered: list[Candidate]) -> list[int]:
    return [candidate.position for candidate in ordered]


def test_candidates_are_sorted_by_routing() -> None:
    chain = [
        Candidate(0, statistics=Statistics(first_token_s=2.0), cost=(2.5, 10.0)),
        Candidate(1, cost=(0.0, 0.0), distance=0),
        Candidate(2, statistics=Statistics(first_token_s=0.5), cost=None, distance=0),
    ]
    assert positions(selection.sort_candidates(chain, "order")) == [0, 1, 2]
    assert positions(selection.sort_candidates(chain, "latency")) == [2, 0, 1]
    assert positions(selection.sort_candidates(chain, "cost")) == [1, 0, 2]
    assert positions(selection.sort_candidates(chain, "local-first")) == [1, 2, 0]


def test_unknown_capability_is_not_lacking() -> None:
    capabilities: dict[str, Any] = {"vision": None, "tools": False, "json_schema": True, "context_served": None}
    assert missing_requirements(Requirements(capabilities=("vision", "json_schema"), tokens=10**9), capabilities) == []
    capabilities["context_served"] = 8
    assert missing_requirements(Requirements(capabilities=("tools",), tokens=9), capabilities) == [
        "tools",
        "context (9 tokens or more needed, 8 served)",
    ]
    assert missing_requirements(Requirements(tokens=8), capabilities) == []


@pytest.mark.parametrize(
    ("chain", "routing", "position"),
    [
        (["near", "near"], "order", 0),
        (["near cold", "far"], "order", 0),
        (["near cold", "far"], "warm-first", 1),
        (["near cold", "far", "near"], "order", 2),
        (["far cold", "near"], "order", 1),
        (["near cold", "near cold", "far"], "order", 0),
        (["near probe", "near"], "order", 1),
        (["near open", "far"], "order", 1),
        (["near open", "near open"], "order", None),
        (["near trial", "near"], "order", 0),
    ],
)
def test_next_candidate_is_first_that_is_ready_and_warm(chain: list[str], routing: Any, position: int | None) -> None:
    chosen = selection.select(candidates(*chain), routing)
    assert (chosen and chosen.position) == position
