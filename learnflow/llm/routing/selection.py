"""The choice of the next option of a chain for one request.

Sends no request and does not wait.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

from .. import errors
from ..adapter.capacity import CAPACITY, prefix_digests
from ..adapter.context_window import Needs, missing_requirements, needs_of
from ..base import Call, Routing
from ..errors import LLMError
from ..settings import Settings
from . import decision
from .option import Option


class Chain:
    """The options of one request.

    Args:
        options: the options in the operator's order.
        call: the arguments of the call.
        settings: the settings of the router.

    Attributes:
        digests: the digests of the prompt, see ``adapter.capacity``.
        interrupted_model_names: the names of the model that wrote the interrupted text; empty without such a text.
    """

    def __init__(self, options: Sequence[Option], call: Call, settings: Settings) -> None:
        self.options, self.call, self.settings = options, call, settings
        self.digests = prefix_digests(call)
        self.interrupted_model_names: frozenset[str] = frozenset()
        self._refused_since = math.inf  # the time since which all servers refuse connections

    @cached_property
    def needs(self) -> Needs:
        """Return the requirements of the call."""
        return needs_of(self.call)

    def choose_models(self) -> None:
        """Set the model of each option.

        An option uses the requested model if its provider has it. If no provider is known to have it, the options of
        the first rank use it. All other options use their default model.
        """
        usable, requested = [option for option in self.options if not option.creation_error], self.call.model
        for option in usable:
            option.set_model(requested)
        owners = [option for option in usable if requested and option.facts.has_model]
        owners = owners or [option for option in usable if option.rank == self.options[0].rank]
        for option in usable:
            if not requested or option not in owners:
                vision_model = option.provider.vision_model
                option.set_model(vision_model if "vision" in self.needs.capabilities else None)

    def choose(self, loading: Sequence[Option]) -> tuple[list[Option], Option | None]:
        """Choose the next option.

        Args:
            loading: the options that are loading a model. Meanwhile, no option farther away is used.

        Returns:
            The options that can be tried, in order, and the chosen one; None instead if all circuit breakers are open.
        """
        for option in self.options:
            option.set_model(option.model)
        candidates = [option for option in self.sorted_options() if not option.failure and self.supports(option)]
        candidates = self.limit_distance(candidates, loading)
        return candidates, select(candidates, self.settings.llm_routing, self.interrupted_model_names)

    def sorted_options(self) -> list[Option]:
        """Return the options sorted by LLM_ROUTING. With "order", ranks stay in the operator's order.

        Within a rank, an option that probably has the prompt in its cache comes first.
        """
        if self.settings.llm_routing == "order" and len({option.rank for option in self.options}) == len(self.options):
            return list(self.options)
        usable = [option for option in self.options if not option.creation_error]
        ordered: list[Option] = []
        for rank in dict.fromkeys(option.rank for option in usable):
            equals = [option for option in usable if option.rank == rank]
            limits = {option.address: option.limit for option in equals if option.ready}
            order = CAPACITY.sort_addresses(limits, self.digests)
            ordered += sorted(equals, key=lambda option: order.index(option.address) if option.address in order else -1)
        not_created = [option for option in self.options if option.creation_error]
        return sort_options(ordered, self.settings.llm_routing) + not_created

    def missing(self, option: Option) -> list[str]:
        """Return descriptions of the requirements that an option certainly does not meet.

        If it is the sole option, its server decides, unless the provider refuses the request itself.
        """
        if option.creation_error:
            return [str(option.creation_error)]
        if not option.facts.permitted(local_only=self.settings.llm_local_only):
            return ["permission: LLM_LOCAL_ONLY is set, and it is not local"]
        if len(self.options) == 1:
            return [name for name in self.needs.capabilities if name in option.facts.denied]
        return missing_requirements(self.needs, option.facts.capabilities)

    def supports(self, option: Option) -> bool:
        """Return whether an option may get the request. A sole option may, because its error is more specific."""
        return len(self.options) == 1 or not self.missing(option)

    def alternatives(self, failed: Option | None) -> list[Option]:
        """Return the options that could be tried after this one has failed."""
        others = [option for option in self.options if option is not failed]
        return [option for option in others if not option.failure and self.supports(option)]

    def failed_with(self, kind: type[LLMError]) -> list[Option]:
        """Return the options that failed with this kind of error."""
        return [option for option in self.options if isinstance(option.failure, kind)]

    def retryable(self) -> list[Option]:
        """Return the options with a transient failure, except those that are loading a model."""
        failed = [option for option in self.options if option.failure and option.failure.retryable]
        return [option for option in failed if not isinstance(option.failure, errors.ModelLoading)]

    def may_be_restarting(self, now: float) -> bool:
        """Return whether all options are local servers that refuse connections, for less than LLM_PATIENCE seconds."""
        used = [option for option in self.options if self.supports(option)]
        refused = all(option.distance == 0 and decision.may_be_restarting(option.failure) for option in used)
        self._refused_since = min(self._refused_since, now) if refused else math.inf
        return refused and now - self._refused_since < self.settings.llm_patience

    def limit_distance(self, options: list[Option], loading: Sequence[Option]) -> list[Option]:
        """Return the options that are no farther away than those that are loading a model.

        Return all options if no option is loading a model, or with ``warm-first``.
        """
        if not loading or self.settings.llm_routing == "warm-first":
            return options
        max_distance = min(option.distance for option in loading)
        return [option for option in options if option.distance <= max_distance]

    def must_reserve_time(self, option: Option) -> bool:
        """Return whether an attempt must leave time for other options.

        While a server loads its model, options farther away are not used and need no time.
        """
        waits = option.cold and self.settings.llm_routing != "warm-first"
        return any(not waits or other.distance <= option.distance for other in self.alternatives(option))

    def unsupported(self) -> LLMError:
        """Return the error for a request that no option supports. It names the missing requirements of each option."""
        missing = "; ".join(f"{option.name}: no {', no '.join(self.missing(option))}" for option in self.options)
        lengths = [
            None if option.creation_error else option.facts.capabilities["context_served"] for option in self.options
        ]
        too_long = all(length is not None and self.needs.tokens > length for length in lengths)
        kind = errors.ContextOverflow if too_long else errors.Unsupported
        return kind(f"no provider can serve this request ({missing})", hint="Add one that can to LLM_PROVIDERS")


def sort_options(options: Sequence[Option], routing: Routing) -> list[Option]:
    """Sort options by a routing rule. Options with an unknown value come last. Ties stay in the operator's order."""

    def key(option: Option) -> float:
        if routing == "latency":
            return math.inf if option.statistics.first_token_s is None else option.statistics.first_token_s
        if routing == "cost":
            return math.inf if option.cost is None else sum(option.cost)
        return option.distance if routing == "local-first" else 0

    return sorted(options, key=key)


def select(
    options: Sequence[Option], routing: Routing, interrupted_model_names: frozenset[str] = frozenset()
) -> Option | None:
    """Choose the first option with a circuit breaker that allows a request; None if no breaker does.

    If the model of that option is cold, choose a warm option instead that is no farther away, or with ``warm-first``
    any warm option. Without a warm option, the cold one is chosen, and the router waits for the load.

    Args:
        options: the options in order.
        routing: the routing rule.
        interrupted_model_names: the names of the model that wrote the interrupted text. This model is preferred.
    """
    ready = [option for option in options if option.ready]
    if not ready:
        return None
    first = ready[0]
    max_distance = math.inf if routing == "warm-first" else first.distance
    warm = [option for option in ready if not option.cold and option.distance <= max_distance]
    chosen = warm[0] if first.cold and warm else first
    same = (option for option in warm if interrupted_model_names and interrupted_model_names & option.facts.names)
    return next((option for option in same if option.distance <= chosen.distance), chosen)


def last_resort(options: Sequence[Option]) -> Option:
    """Return the option with the circuit breaker that closes first, for the case that all are open."""
    return min(options, key=lambda option: option.breaker.open_until if option.breaker else 0.0)
