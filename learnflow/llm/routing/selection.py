"""The choice among the options of a chain: their order, what they lack for a request, and which one is next.

It sends nothing and does not wait.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

from .. import errors
from ..adapter.capacity import CAPACITY, digests_of
from ..adapter.context_window import Needs, lacks, needs_of
from ..base import Call
from ..errors import LLMError
from ..settings import Settings
from . import decision
from .option import Option

Routing = Literal["order", "latency", "cost", "local-first", "warm-first"]


class Chain:
    """The options of one request.

    Args:
        options: in the user's order.
        call: the call.
        settings: with the router's own retries, routing and deadline.
        explained: no request is sent. Even a sole option is checked.

    Attributes:
        digests: of the prompt.
        same_model: the names of the model that wrote the broken text.
    """

    def __init__(self, options: Sequence[Option], call: Call, settings: Settings, *, explained: bool = False) -> None:
        self.options, self.call, self.settings = options, call, settings
        self.digests = digests_of(call)
        self.same_model: frozenset[str] = frozenset()
        self._explained = explained
        self._refused_at = math.inf  # since when every option refuses connections

    @cached_property
    def needs(self) -> Needs:
        """Return what the call requires."""
        return needs_of(self.call)

    def choose_models(self) -> None:
        """Choose the model of each option: the requested one, unless other options are known to have it."""
        usable, wanted = [option for option in self.options if not option.broken], self.call.model
        for option in usable:
            option.use(wanted)
        having = [option for option in usable if option.facts.has_model] if wanted else []
        for option in usable:
            may_have = not having and option.rank == self.options[0].rank
            if not wanted or not (option in having or may_have or len(self.options) == 1):
                vision_model = option.provider.vision_model
                option.use(vision_model if "vision" in self.needs.capabilities else None)

    def next(self, loading: Sequence[Option]) -> tuple[list[Option], Option | None]:
        """Return the options that fit now, in order, and the one to use; None if all circuit breakers are open.

        Args:
            loading: the options that load a model. No option farther away is used meanwhile.
        """
        for option in self.options:
            option.use(option.model)
        fit = [other for other in self.order() if not other.failure and not self.lacks(other)]
        fit = self.within(fit, loading)
        return fit, select(fit, self.settings.llm_routing, self.same_model)

    def order(self) -> list[Option]:
        """Return the options in the order of use; broken ones come last.

        Ranks stay in the user's order. Within a rank, an option that probably has the prompt in its cache comes first.
        """
        if self.settings.llm_routing == "order" and len({option.rank for option in self.options}) == len(self.options):
            return list(self.options)
        usable = [option for option in self.options if not option.broken]
        ordered: list[Option] = []
        for rank in dict.fromkeys(option.rank for option in usable):
            equals = [option for option in usable if option.rank == rank]
            limits = {option.address: option.limit for option in equals if option.ready}
            order = CAPACITY.sort_addresses(limits, self.digests)
            ordered += sorted(equals, key=lambda option: order.index(option.address) if option.address in order else -1)
        return sort_options(ordered, self.settings.llm_routing) + [option for option in self.options if option.broken]

    def lacks(self, option: Option) -> list[str]:
        """Return the names of what an option certainly lacks for this request. A sole option is not checked."""
        if option.broken:
            return [str(option.broken)]
        if len(self.options) == 1 and not self._explained:
            return []
        if not option.facts.permitted(local_only=self.settings.llm_local_only):
            return ["permission: LLM_LOCAL_ONLY is set, and it is not local"]
        return lacks(self.needs, option.facts.capabilities)

    def others(self, option: Option | None) -> list[Option]:
        """Return the options that could be used after this one."""
        return [other for other in self.options if other is not option and not other.failure and not self.lacks(other)]

    def failures(self, kind: type[LLMError]) -> list[Option]:
        """Return the options that failed with this kind of error."""
        return [option for option in self.options if isinstance(option.failure, kind)]

    def passing(self) -> list[Option]:
        """Return the options with a transient failure. A load is not one: it is polled."""
        failed = [option for option in self.options if option.failure and option.failure.retryable]
        return [option for option in failed if not isinstance(option.failure, errors.ModelLoading)]

    def restarts(self, now: float) -> bool:
        """Return whether every option may be a local server that restarts, within LLM_PATIENCE."""
        used = [option for option in self.options if not self.lacks(option)]
        may = all(option.distance == 0 and decision.may_restart(option.failure) for option in used)
        self._refused_at = min(self._refused_at, now) if may else math.inf
        return may and now - self._refused_at < self.settings.llm_patience

    def within(self, options: list[Option], loading: Sequence[Option]) -> list[Option]:
        """Return the options that are no farther away than those that load; all of them with ``warm-first``."""
        if not loading or self.settings.llm_routing == "warm-first":
            return options
        reach = min(option.distance for option in loading)
        return [option for option in options if option.distance <= reach]

    def shares(self, option: Option) -> bool:
        """Return whether other options need a share of the time. Farther ones do not during a load."""
        cold = option.cold and self.settings.llm_routing != "warm-first"
        return any(not cold or other.distance <= option.distance for other in self.others(option))

    def unfit(self) -> LLMError:
        """Return the error for a request that no option can serve. It names what each option lacks."""
        lacking = "; ".join(f"{option.name}: no {', no '.join(self.lacks(option))}" for option in self.options)
        served = [None if option.broken else option.facts.capabilities["context_served"] for option in self.options]
        short = all(length is not None and self.needs.tokens > length for length in served)
        kind = errors.ContextOverflow if short else errors.Unsupported
        return kind(f"no provider can serve this request ({lacking})", hint="Add one that can to LLM_PROVIDERS")


def sort_options(options: Sequence[Option], routing: Routing) -> list[Option]:
    """Sort options by a routing rule. Unknown values come last, ties stay in the user's order."""

    def key(option: Option) -> float:
        if routing == "latency":
            return math.inf if option.record.first_token_s is None else option.record.first_token_s
        if routing == "cost":
            return math.inf if option.cost is None else sum(option.cost)
        return option.distance if routing == "local-first" else 0

    return sorted(options, key=key)


def select(options: Sequence[Option], routing: Routing, same_model: frozenset[str] = frozenset()) -> Option | None:
    """Choose the first option with a circuit breaker that allows a request; None if no breaker does.

    The user's order wins: the router waits for a cold option even if a farther one is warm. Meanwhile it uses a warm
    option that is no farther away; with ``warm-first``, any warm one.

    Args:
        options: in order.
        routing: the rule.
        same_model: the names of the model that wrote the broken text.
    """
    ready = [option for option in options if option.ready]
    if not ready:
        return None
    chosen = first = ready[0]
    reach = max(option.distance for option in options) if routing == "warm-first" else first.distance
    if first.cold:
        chosen = next((option for option in ready if not option.cold and option.distance <= reach), first)
    if not same_model or same_model & chosen.facts.names:
        return chosen
    near = (option for option in ready if not option.cold and option.distance <= chosen.distance)
    return next(
        (option for option in near if same_model & option.facts.names), chosen
    )  # the model continues its own text


def last_resort(options: Sequence[Option]) -> Option:
    """Return the option with the circuit breaker that closes first."""
    return min(options, key=lambda option: option.opened[0].until if option.opened else 0.0)
