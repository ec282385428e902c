"""RouterProvider: several providers as one, with failover, load balancing and continuation of broken answers.

It runs an ``Execution`` for each request. ``decision`` decides what a failure means.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import Any, Final, cast

from .. import errors, events, settings
from ..adapter.capacity import CAPACITY
from ..base import AbstractProvider, Attempt, Call, LLMProvider, Resume
from ..capabilities import Capabilities, Health
from ..capabilities import unknown as unknown_capabilities
from ..completion import Completion
from ..errors import LLMError
from ..process import SharedTasks, switches
from ..providers import build
from ..providers.registry import check
from ..servers.model_catalog import LONG_PROBE_S
from ..stream import Emit, Work
from .breaker import REGISTRY, BreakerRegistry
from .execution import Execution
from .option import PROBE_S, Option, chain_name
from .progress import Progress
from .selection import Chain, Routing

Member = str | LLMProvider
Equals = Member | list[Member] | tuple[Member, ...]
Find = Callable[[], Coroutine[Any, Any, Sequence[LLMProvider]]]

_RESUMES: Final = ("continue", "raise")
_LONG_TOKENS: Final = 1500  # a prompt of this length requires the context lengths to be known


class RouterProvider(AbstractProvider):
    """Several providers as one. See ``LLMProvider``; every error carries ``attempts``.

    A router among the providers is flattened: its providers replace it, and its own settings are ignored. A router with
    ``find`` is not flattened.

    Args:
        primary: the first provider, as a name or an object. "gpu1+gpu2" or a list are equals: a request goes to the one
            that probably has the prompt in its cache, and waits only if all are full.
        fallback: the other providers, in order. Each may be several equals, too.
        resume: what to do if a stream breaks after pieces were emitted: "continue" it on the next provider, or
            "raise". A call may override it.
        retries: retries after a transient failure, if no other provider is left (LLM_RETRIES).
        routing: the order of the providers: "order", "latency", "cost", "local-first", "warm-first" (LLM_ROUTING).
        deadline: seconds for a request, all attempts together (LLM_DEADLINE).
        find: finds the providers at the first awaited call, instead of ``primary``.
        breakers: the circuit breakers; by default those of the process.

    Raises:
        NotConfigured: a name is unknown, or no provider can be used.
    """

    def __init__(
        self,
        primary: Equals | None = None,
        fallback: Sequence[Equals] | Member = (),
        *,
        resume: Resume = "continue",
        retries: int | None = None,
        routing: Routing | None = None,
        deadline: float | None = None,
        find: Find | None = None,
        breakers: BreakerRegistry = REGISTRY,
    ) -> None:
        _check_resume(resume, errors.NotConfigured)
        others = [fallback] if isinstance(fallback, (str, LLMProvider)) else list(fallback)
        ranks = [_members_of(member) for member in ([] if primary is None else [primary]) + others]
        self._registry = breakers
        flat = [
            (option, at) for at, equals in enumerate(ranks) for one in equals for option in _options_of(one, breakers)
        ]
        self._members = _with_ranks(flat)
        self._find = find
        self._tasks = SharedTasks()
        self._resume: Resume = resume
        self._settings = own = settings.load().model_copy()
        own.llm_retries = own.llm_retries if retries is None else retries
        own.llm_routing, own.llm_deadline = routing or own.llm_routing, deadline or own.llm_deadline
        if not switches.patient and "llm_patience" not in own.model_fields_set:
            own.llm_patience = 0.0
        if find is None and not self._members:
            raise errors.NotConfigured("a router needs a provider", hint="Give primary=")
        if self._members and all(option.broken for option in self._members):
            raise next(option.broken for option in self._members if option.broken)

    @property
    def _options(self) -> list[Option]:
        """Return copies of the options, with current facts."""
        return [option.at(option.rank) for option in self._members]

    def __repr__(self) -> str:
        members = (option.name if option.broken else repr(option.given) for option in self._options)
        return f"RouterProvider({', '.join(members)})"

    @property
    def name(self) -> str:
        """Return the names of the providers, as in LLM_PROVIDERS."""
        return chain_name(self._options)

    @property
    def providers(self) -> list[LLMProvider]:
        """Return the providers that could be created, in order."""
        return [option.given for option in self._options if option.given]

    def start(self, call: Call) -> Work:
        """Return the work of a call: attempts at providers until one succeeds."""
        request = Attempt(request=events.next_request(), metadata=call.metadata)
        options = dict(call.options)
        resume = options.pop("resume", None) or self._resume
        _check_resume(resume, errors.InvalidRequest)
        run = partial(self._run, replace(call, options=options), resume, request)
        return partial(events.run_request, self.name, call.model, request, run)

    async def _run(self, call: Call, resume: Resume, request: Attempt, emit: Emit) -> Completion:
        """Run a request through the chain. Raises nothing but LLMError."""
        progress = Progress(emit, asyncio.get_running_loop().time(), request.tried)
        try:
            return await Execution(call, resume, request, await self._build_chain(call), progress).run()
        except errors.Unavailable:
            if self._find:
                self._members = []  # the providers that were found are gone: find them again
            raise

    async def list_models(self) -> list[str]:
        """Return the models of all providers that respond. Raises the last LLMError if none does."""
        usable = await self._usable()
        listed = await asyncio.gather(*(option.provider.list_models() for option in usable), return_exceptions=True)
        _raise_failures(listed)
        return list(dict.fromkeys(name for models in listed if isinstance(models, list) for name in models))

    async def health_check(self) -> bool:
        """Return whether one of the providers would answer now. Raises nothing but NotRecorded."""
        try:
            usable = await self._usable()
        except errors.NotRecorded:
            raise
        except LLMError:
            return False
        return any(await asyncio.gather(*(option.provider.health_check() for option in usable)))

    def get_capabilities(self) -> Capabilities:
        """Return the best of each capability; ``local`` only if all providers are."""
        known = [option.provider.get_capabilities() for option in self._options if not option.broken]
        if not known:
            return unknown_capabilities(cost=None)
        best: dict[str, Any] = {}
        for name in known[0]:
            values = [value for one in known if (value := cast(Mapping[str, Any], one)[name]) is not None]
            best[name] = None if not values or (len(values) < len(known) and not any(values)) else max(values)
        best["local"], best["cost"] = all(one["local"] for one in known), known[0]["cost"]
        return cast(Capabilities, best)

    async def refresh(self, within: float = LONG_PROBE_S) -> Health:
        """Probe each provider and remember its state and capabilities. Never raises.

        Args:
            within: seconds, at most.

        Returns:
            The health of the first provider that is ready, else of the first that loads, else of the first.
        """
        try:
            usable = await self._usable()
        except LLMError as error:
            capabilities = self.get_capabilities()
            return Health(state="down", provider=self.name, base_url=None, detail=str(error), capabilities=capabilities)
        healths = await asyncio.gather(*(option.provider.refresh(within) for option in usable))
        return next((one for state in ("ready", "loading") for one in healths if one.state == state), healths[0])

    async def prepare(self) -> None:
        """Import LiteLLM now; see ``BaseProvider.prepare``."""
        for option in await self._usable():
            await option.provider.prepare()

    async def warm_up(self, model: str | None = None) -> None:
        """Load the models of local servers; see ``BaseProvider.warm_up``. Raises LLMError if none could be loaded."""
        loads = [option.provider.warm_up(model) for option in await self._usable() if option.distance == 0]
        _raise_failures(await asyncio.gather(*loads, return_exceptions=True))

    async def aclose(self) -> None:
        """Close idle connections of this event loop to its servers; see ``BaseProvider.aclose``."""
        for option in self._options:
            if not option.broken:
                await option.provider.aclose()

    def chain_now(self, call: Call) -> Chain:
        """Return the options for a call without sending anything. Even a sole option is checked."""
        chain = Chain(self._options, call, self._settings, explained=True)
        chain.choose_models()
        return chain

    def status(self) -> list[dict[str, Any]]:
        """Return the circuit breakers, recent failures and latencies of this process as one dict for each provider."""
        return [_describe(option) for option in self._options]

    async def _build_chain(self, call: Call) -> Chain:
        """Return the options for a call. Probe those that matter for it, unless their facts are new."""
        chain = Chain(await self._find_options(), call, self._settings)
        options = chain.options
        if len(options) > 1:
            needs = chain.needs
            curious = needs.capabilities or needs.tokens > _LONG_TOKENS or call.model
            within = min(PROBE_S, float(call.options.get("timeout") or self._settings.llm_deadline) / 4)
            closed = [option for option in options if not option.broken and option.gate == "closed"]
            equals = Counter(option.rank for option in options)  # equals share the load by their limits
            # an option that needs no probe gets the request, so that later ones do not matter
            doubtful = takewhile(lambda option: curious or option.facts.loads or equals[option.rank] > 1, closed)
            await asyncio.gather(*(option.update(within) for option in doubtful))
        chain.choose_models()
        return chain

    async def _usable(self) -> list[Option]:
        """Return the options that could be created. Raises LLMError if none is found."""
        return [option for option in await self._find_options() if not option.broken]

    async def _find_options(self) -> list[Option]:
        """Return its options. Without configured providers, find them now, once for concurrent first calls."""
        if not self._members and self._find:
            providers = await asyncio.shield(self._tasks.start("find", self._find))
            if not self._members:
                self._members = _with_ranks(
                    [(Option(one, registry=self._registry), at) for at, one in enumerate(providers)]
                )
        return self._options


def _with_ranks(flat: Sequence[tuple[Option, int]]) -> list[Option]:
    """Return copies of options in order, with their ranks; those of a flattened router keep their order."""
    ordered = sorted(flat, key=lambda one: (one[1], one[0].rank))
    ranks = list(dict.fromkeys((at, option.rank) for option, at in ordered))
    return [option.at(ranks.index((at, option.rank))) for option, at in ordered]


def _describe(option: Option) -> dict[str, Any]:
    """Return what ``status`` reports about an option."""
    now, target, opened, record = option.registry.clock(), option.target, option.opened, option.record
    return {
        "provider": option.name,
        "rank": option.rank,
        "in_flight": CAPACITY.in_flight(target.address),
        "room": option.limit,
        "cached": record.cached,
        "address": None if option.broken else target.address,
        "model": target.model,
        "breaker": "misconfigured" if option.broken else "open" if opened else "closed",
        "because": str(option.broken) if option.broken else type(opened[0].error).__name__ if opened else None,
        "opens_in_s": max(0.0, opened[0].until - now) if opened else None,
        "first_token_s": record.first_token_s,
        "answered": record.answered,
        "failed": record.failed,
        "recent_failures": [{"error": name, "seconds_ago": now - at} for at, name in record.recent],
    }


def _members_of(given: Equals) -> list[Member]:
    """Return the members of one rank of the chain: "gpu1+gpu2" is two equals."""
    if isinstance(given, str):
        return [*settings.parse_equals(given)]
    return [member for one in given for member in _members_of(one)] if isinstance(given, list | tuple) else [given]


def _options_of(member: Member, registry: BreakerRegistry) -> list[Option]:
    """Return the option of a member, or the options of a router without ``find``.

    A provider that cannot be created stays in the chain with its error.

    Raises:
        NotConfigured: the name is unknown.
    """
    if isinstance(member, RouterProvider) and member._find is None:  # noqa: SLF001  # its own kind
        return member._members  # noqa: SLF001
    if not isinstance(member, str):
        return [Option(member, registry=registry)]
    name = member.strip().lower()
    check(name)
    try:
        return [Option(build(name), registry=registry)]
    except LLMError as error:
        error.provider = error.provider or name
        events.emit(events.AttemptFailed(provider=name, model=None, error=error, total_s=0.0))
        return [Option(None, error, registry)]


def _raise_failures(outcomes: Sequence[object]) -> None:
    """Raise the last failure if all failed. Raise NotRecorded in any case."""
    failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    failed.sort(key=lambda error: isinstance(error, errors.NotRecorded))
    if failed and (len(failed) == len(outcomes) or isinstance(failed[-1], errors.NotRecorded)):
        raise failed[-1]


def _check_resume(resume: str, kind: type[LLMError]) -> None:
    if resume not in _RESUMES:
        raise kind(f"resume= must be one of {', '.join(_RESUMES)}", hint='Leave it out for "continue"')
