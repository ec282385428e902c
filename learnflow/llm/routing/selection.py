"""Choose the provider for the next attempt of a request. No function sends a request or waits.

A ``Candidate`` is one provider of the router's chain, for one request:

- Its rank is its position in the chain. Equal providers ("gpu1+gpu2") share one rank.
- Its distance is 0 if the provider is local, else 1.
- It is cold if the server must load the model first, else warm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

from .. import errors
from ..adapter.capacity import CAPACITY, prefix_digests
from ..adapter.context_window import Requirements, missing_requirements, requirements_of
from ..base import Call, Routing
from ..errors import LLMError
from ..settings import Settings
from . import decision
from .candidate import Candidate


class Chain:
    """The candidates of one request, in the operator's order.

    Attributes:
        digests: hashes of the prompt's beginning, to find a server that has it in its cache (``adapter.capacity``).
        interrupted_model_names: all names of the model that wrote the interrupted answer; empty if no answer was
            interrupted.
    """

    def __init__(self, candidates: Sequence[Candidate], call: Call, settings: Settings) -> None:
        self.candidates, self.call, self.settings = candidates, call, settings
        self.digests = prefix_digests(call)
        self.interrupted_model_names: frozenset[str] = frozenset()
        # The time at which all usable candidates began to refuse connections; inf unless all refuse.
        self._refused_since = math.inf

    @cached_property
    def requirements(self) -> Requirements:
        """Return the requirements of the call."""
        return requirements_of(self.call)

    def choose_models(self) -> None:
        """Set the model of each candidate: the requested one if the provider has it, else its default model.

        If no provider is known to have the requested model, set it for the candidates of the first rank.
        """
        requested = self.call.model
        for candidate in self.candidates:
            candidate.set_model(requested)
        with_model = [item for item in self.candidates if requested and item.facts.has_model]
        with_model = with_model or [item for item in self.candidates if item.rank == self.candidates[0].rank]
        for candidate in self.candidates:
            if not candidate.creation_error and (not requested or candidate not in with_model):
                vision_model = candidate.provider.vision_model
                candidate.set_model(vision_model if "vision" in self.requirements.capabilities else None)

    def choose(self, loading: Sequence[Candidate]) -> tuple[list[Candidate], Candidate | None]:
        """Return the candidates that can be tried, in order, and the chosen one.

        No candidate is chosen (None) if no circuit breaker allows a request.
        """
        for candidate in self.candidates:
            candidate.discard_facts()
        eligible = [item for item in self.sorted_candidates() if not item.failure and self.supports(item)]
        eligible = self.limit_distance(eligible, loading)
        return eligible, select(eligible, self.settings.llm_routing, self.interrupted_model_names)

    def sorted_candidates(self) -> list[Candidate]:
        """Return the candidates sorted by LLM_ROUTING.

        In a rank, servers that probably have the beginning of the prompt in their cache come first.
        """
        ranks = dict.fromkeys(candidate.rank for candidate in self.candidates)
        if self.settings.llm_routing == "order" and len(ranks) == len(self.candidates):
            return list(self.candidates)
        ordered: list[Candidate] = []
        for rank in ranks:
            same_rank = [candidate for candidate in self.candidates if candidate.rank == rank]
            limits = {item.facts.address: item.concurrency_limit for item in same_rank if item.ready}
            position = {address: index for index, address in enumerate(CAPACITY.sort_addresses(limits, self.digests))}
            ordered += sorted(same_rank, key=lambda item: position.get(item.facts.address, -1))
        ordered.sort(key=lambda candidate: candidate.creation_error is not None)
        return sort_candidates(ordered, self.settings.llm_routing)

    def missing(self, candidate: Candidate) -> list[str]:
        """Describe the requirements that a candidate certainly does not meet.

        A sole candidate is tried in any case. For it, describe only the capabilities that it lacks, because the
        server's error about the other requirements is more specific.
        """
        if candidate.creation_error:
            return [str(candidate.creation_error)]
        if not candidate.facts.permitted(local_only=self.settings.llm_local_only):
            return ["permission: LLM_LOCAL_ONLY is set, and the provider is not local"]
        if len(self.candidates) == 1:
            return [name for name in self.requirements.capabilities if name in candidate.facts.lacking_capabilities]
        return missing_requirements(self.requirements, candidate.facts.capabilities)

    def supports(self, candidate: Candidate) -> bool:
        """Return whether to try a candidate.

        A sole candidate is always tried, because the provider's error is more specific than the router's.
        """
        return len(self.candidates) == 1 or not self.missing(candidate)

    def remaining(self, excluded: Candidate | None) -> list[Candidate]:
        """Return the other candidates that support the request and have not failed."""
        others = [candidate for candidate in self.candidates if candidate is not excluded]
        return [candidate for candidate in others if not candidate.failure and self.supports(candidate)]

    def failed_with(self, error_class: type[LLMError]) -> list[Candidate]:
        """Return the candidates that failed with an error of this class."""
        return [candidate for candidate in self.candidates if isinstance(candidate.failure, error_class)]

    def retryable(self) -> list[Candidate]:
        """Return the candidates with a transient failure, except those that are loading a model."""
        failed = [candidate for candidate in self.candidates if candidate.failure and candidate.failure.retryable]
        return [candidate for candidate in failed if not isinstance(candidate.failure, errors.ModelLoading)]

    def may_be_restarting(self, now: float) -> bool:
        """Return whether all usable candidates are local, and have refused connections only for a short time.

        The limit is LLM_PATIENCE, in seconds.
        """
        usable = [candidate for candidate in self.candidates if self.supports(candidate)]
        refused = all(item.distance == 0 and decision.server_may_be_restarting(item.failure) for item in usable)
        self._refused_since = min(self._refused_since, now) if refused else math.inf
        return refused and now - self._refused_since < self.settings.llm_patience

    def limit_distance(self, candidates: list[Candidate], loading: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates that are no farther away than the nearest one that is loading a model.

        With LLM_ROUTING="warm-first", return all candidates.
        """
        if not loading or self.settings.llm_routing == "warm-first":
            return candidates
        max_distance = min(candidate.distance for candidate in loading)
        return [candidate for candidate in candidates if candidate.distance <= max_distance]

    def must_reserve_time(self, candidate: Candidate) -> bool:
        """Return whether an attempt at a candidate must leave time for other candidates.

        If the candidate is cold, farther ones need no time: they are not used during the load.
        """
        others = self.remaining(candidate)
        return bool(self.limit_distance(others, [candidate] if candidate.facts.cold else []))

    def unsupported_error(self) -> LLMError:
        """Return the error for a request that no candidate supports."""
        missing = "; ".join(
            str(item.creation_error or f"{item.name}: no {', no '.join(self.missing(item))}")
            for item in self.candidates
        )
        lengths = [candidate.facts.capabilities["context_served"] for candidate in self.candidates]
        too_long = all(length is not None and self.requirements.tokens > length for length in lengths)
        error_class = errors.ContextOverflow if too_long else errors.Unsupported
        hint = "Add a suitable provider to LLM_PROVIDERS"
        return error_class(f"no provider can serve this request ({missing})", hint=hint)


def sort_candidates(candidates: Sequence[Candidate], routing: Routing) -> list[Candidate]:
    """Sort candidates by a routing rule. Unknown values come last. Ties stay in the operator's order."""

    def key(candidate: Candidate) -> float:
        if routing == "latency":
            return math.inf if candidate.statistics.first_token_s is None else candidate.statistics.first_token_s
        if routing == "cost":
            return sum(candidate.facts.capabilities["cost"] or [math.inf])
        return candidate.distance if routing == "local-first" else 0

    return sorted(candidates, key=key)


def select(
    candidates: Sequence[Candidate], routing: Routing, interrupted_model_names: frozenset[str] = frozenset()
) -> Candidate | None:
    """Choose a candidate that is ready (its circuit breaker allows a request); None if no candidate is ready.

    The first one is chosen, with two exceptions:

    - If it is cold, choose the first warm one that is no farther away ("warm-first": at any distance). If no such
      candidate exists, choose the cold one. The router then waits for the load.
    - To continue an interrupted answer, prefer a warm one with the same model. It must be no farther away than the
      candidate that would be chosen for a new answer.
    """
    ready = [candidate for candidate in candidates if candidate.ready]
    if not ready:
        return None
    first = ready[0]
    max_distance = math.inf if routing == "warm-first" else first.distance
    warm = [candidate for candidate in ready if not candidate.facts.cold and candidate.distance <= max_distance]
    chosen = warm[0] if first.facts.cold and warm else first
    same_model = (candidate for candidate in warm if interrupted_model_names & candidate.facts.names)
    return next((candidate for candidate in same_model if candidate.distance <= chosen.distance), chosen)


def first_to_recover(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate that is ready first: its circuit breaker has the earliest end."""
    return min(candidates, key=lambda candidate: candidate.breaker.open_until if candidate.breaker else 0.0)
