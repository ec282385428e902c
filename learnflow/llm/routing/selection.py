"""The choice among the options of a chain: their order, what they lack for a request, and which one is next.

Must never send or wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from .. import errors
from ..adapter.capacity import CAPACITY, digests_of
from ..adapter.context_window import Needs, lacks
from ..base import Call
from ..errors import LLMError
from . import decision
from .option import Option

Routing = Literal["order", "latency", "cost", "local-first", "warm-first"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a chain is run.

    Attributes:
        retries: of the same provider, after a failure that may pass.
        patience: seconds to wait for servers that restart.
        routing: the order of the options.
        deadline, load: seconds for a request, and for a load.
        local_only: use local providers only.
        spill: where a request goes if a rank is full: nowhere else, to an option as near, or to any.
    """

    retries: int
    patience: float
    routing: Routing
    deadline: float
    load: float
    local_only: bool
    spill: Literal["no", "local", "cloud"] = "no"


class Chain:
    """The options of one request.

    Args:
        options: in the user's order.
        call: the call.
        needs: what it requires.
        rules: of the router.
        explained: no request is sent, so that even a sole option is checked.

    Attributes:
        digests: of the prompt.
        same_model: the names of the model that wrote the broken text.
    """

    def __init__(
        self, options: Sequence[Option], call: Call, needs: Needs, rules: Rules, *, explained: bool = False
    ) -> None:
        self.options, self.rules, self.needs = options, rules, needs
        self.digests = digests_of(call)
        self.same_model: frozenset[str] = frozenset()
        self._explained = explained
        self._refused_at = math.inf  # since when every option refuses connections
        listed = [bool(call.model) and _lists(other, call.model) for other in options]
        for option, has_model in zip(options, listed, strict=True):
            first = option.rank == options[0].rank and not any(listed)  # it may have the model, and none is known to
            if call.model and (has_model or first or len(options) == 1):
                option.use(call.model)
            else:
                option.use(option.provider.vision_model if needs.images and not option.broken else None)

    def next(self, reach: int | None) -> tuple[list[Option], Option | None, list[Option], list[Option]]:
        """Return the options that fit now, the one to use, those to load, and those to probe meanwhile.

        Args:
            reach: the distance beyond which no option is used now; None for any.
        """
        for option in self.options:
            option.update()
        fit = [other for other in self.order() if not other.failure and not self.lacks(other)]
        fit = self.within(fit, reach)
        return fit, *select(fit, self.rules.routing, self._is_same)

    def order(self) -> list[Option]:
        """Return the options in the order of use; those that are broken come last.

        Ranks stay in the user's order. Within a rank, an option that probably has this prompt in its cache comes first.
        """
        if self.rules.routing == "order" and len({option.rank for option in self.options}) == len(self.options):
            return list(self.options)
        usable = [option for option in self.options if not option.broken]
        ordered: list[Option] = []
        for rank in dict.fromkeys(option.rank for option in usable):
            equals = [option for option in usable if option.rank == rank]
            limits = {option.address: option.limit for option in equals if option.ready}
            order = CAPACITY.ordered(limits, self.digests)
            ordered += sorted(equals, key=lambda option: order.index(option.address) if option.address in order else -1)
        return ranked(ordered, self.rules.routing) + [option for option in self.options if option.broken]

    def lacks(self, option: Option) -> list[str]:
        """Return what an option certainly lacks for this request, in words. A sole option is not checked."""
        if option.broken:
            return [str(option.broken)]
        if len(self.options) == 1 and not self._explained:
            return []
        if not option.facts.permitted(local_only=self.rules.local_only):
            return ["permission: LLM_LOCAL_ONLY is set, and it is not local"]
        return lacks(self.needs, option.facts.capabilities)

    def others(self, option: Option | None) -> list[Option]:
        """Return the options that could be used after this one."""
        return [other for other in self.options if other is not option and not other.failure and not self.lacks(other)]

    def failures(self, kind: type[LLMError]) -> list[Option]:
        """Return the options that failed with this kind of error."""
        return [option for option in self.options if isinstance(option.failure, kind)]

    def passing(self) -> list[Option]:
        """Return the options with a failure that may pass by itself; a load is watched instead."""
        loading = self.failures(errors.ModelLoading)
        failed = [option for option in self.options if option.failure and option.failure.retryable]
        return [option for option in failed if option not in loading]

    def restarts(self, now: float) -> bool:
        """Return whether every option may be a local server that restarts, within LLM_PATIENCE."""
        used = [option for option in self.options if not self.lacks(option)]
        may = all(option.distance == 0 and decision.may_restart(option.failure) for option in used)
        self._refused_at = min(self._refused_at, now) if may else math.inf
        return may and now - self._refused_at < self.rules.patience

    def within(self, options: list[Option], reach: int | None) -> list[Option]:
        """Return the options that are no farther away; all if the user prefers a warm one."""
        if reach is None or self.rules.routing == "warm-first":
            return options
        return [option for option in options if option.distance <= reach]

    def shares(self, option: Option) -> bool:
        """Return whether a part of the time is reserved for other options: not for a farther one during a load."""
        cold = option.cold and self.rules.routing != "warm-first"
        return any(not cold or other.distance <= option.distance for other in self.others(option))

    def unfit(self) -> LLMError:
        """Return the error for a request that no option can serve: what each of them lacks."""
        broken = [option.broken for option in self.options if option.broken]
        if len(broken) == len(self.options):
            return broken[-1]
        lacking = "; ".join(f"{option.name}: no {', no '.join(self.lacks(option))}" for option in self.options)
        short = all(not option.broken and _overflows(self.needs, option) for option in self.options)
        kind = errors.ContextOverflow if short else errors.Unsupported
        return kind(f"no provider can serve this request ({lacking})", hint="Add one that can to LLM_PROVIDERS")

    def _is_same(self, option: Option) -> bool:
        return bool(self.same_model) and bool(self.same_model & option.facts.names)


def _lists(option: Option, model: str | None) -> bool:
    """Return whether an option has a model."""
    if option.broken:
        return False
    option.use(model)
    return option.facts.has_model


def _overflows(needs: Needs, option: Option) -> bool:
    served = option.facts.capabilities["context_served"]
    return served is not None and needs.tokens > served


def ranked(options: Sequence[Option], routing: Routing) -> list[Option]:
    """Sort options by a routing rule. Unknown values come last, ties stay in the user's order."""

    def key(option: Option) -> float:
        if routing == "latency":
            return math.inf if option.latency_s is None else option.latency_s
        if routing == "cost":
            return math.inf if option.cost is None else sum(option.cost)
        return option.distance if routing == "local-first" else 0

    return sorted(options, key=key)


def select(
    options: Sequence[Option], routing: Routing, same: Callable[[Option], bool]
) -> tuple[Option | None, list[Option], list[Option]]:
    """Choose the first option whose circuit breaker allows it; of those before it, which to load and which to probe.

    The order is the user's: a cold option is waited for, however warm a farther one is. Only one that is warm and no
    farther away is used meanwhile; ``warm-first`` lifts that.

    Args:
        options: in order.
        routing: the rule.
        same: returns whether an option has the model that wrote the broken text.
    """
    ready = [option for option in options if option.gate in ("closed", "trial")]
    if not ready:
        return None, [], []
    chosen = first = ready[0]
    reach = max(option.distance for option in options) if routing == "warm-first" else first.distance
    if first.cold:
        chosen = next((option for option in ready if not option.cold and option.distance <= reach), first)
    if not same(chosen):  # the same model continues its text; another one would write a different one
        alike = (option for option in ready if same(option) and not option.cold and option.distance <= chosen.distance)
        chosen = next(alike, chosen)
    before = options[: options.index(chosen)]
    load = [option for option in before if option.gate == "closed" and option.cold]
    return chosen, load, [option for option in before if option.gate == "probe"]


def last_resort(options: Sequence[Option]) -> Option:
    """Return the option whose circuit breaker closes first."""
    return min(options, key=lambda option: option.opened[0].until if option.opened else 0.0)
