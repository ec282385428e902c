"""The router: a chain of providers that is itself a provider. It loses no answer that one of them could have given.

Must never decide what a failure means (``decision``), or know a server: it runs executions over options.
The factory returns it. A router that is a member of another one is flattened into it.
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

    A router among the providers is flattened: its providers take its place, and its own options count no more. One that
    finds its providers is used like an application's own.

    Args:
        primary: the first provider, by its name or as an object. Several are equals: "gpu1+gpu2", or a list. Among
            equals, a request goes to the one that probably has its beginning in cache, and waits only if all are full.
        fallback: the others, in order; each may be several equals, too.
        resume: what to do if a stream breaks after pieces were emitted: "continue" it on the next provider, or
            "raise". A call may override it.
        retries: how often a provider is tried again after a failure that may pass, if no other can help (LLM_RETRIES).
        routing: the order of the providers: "order", "latency", "cost", "local-first" (LLM_ROUTING).
        deadline: seconds for a request, all attempts together (LLM_DEADLINE).
        find: finds the providers at the first awaited call, instead of ``primary``.
        breakers: the circuit breakers; by default those of the process.

    Raises:
        NotConfigured: an unknown name, or no provider that can be used.
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
        ranks = [_equals(member) for member in ([] if primary is None else [primary]) + others]
        self._registry = breakers
        flat = [
            (option, at) for at, equals in enumerate(ranks) for one in equals for option in _options_of(one, breakers)
        ]
        self._members = _placed(flat)
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
        """Copies of its options, with the facts of now."""
        return [option.at(option.rank) for option in self._members]

    def __repr__(self) -> str:
        members = (option.name if option.broken else repr(option.given) for option in self._options)
        return f"RouterProvider({', '.join(members)})"

    @property
    def name(self) -> str:
        """The names of its providers."""
        return chain_name(self._options)

    @property
    def providers(self) -> list[LLMProvider]:
        """The providers that could be created, in order."""
        return [option.given for option in self._options if option.given]

    def start(self, call: Call) -> Work:
        """Return the request for a call. Its text is one text, even if it breaks on the way."""
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
            return await Execution(call, resume, request, await self._chain_for(call), progress).run()
        except errors.Unavailable:
            if self._find:
                self._members = []  # the providers that were found are gone: find them again
            raise

    async def list_models(self) -> list[str]:
        """Return the models of all providers that respond. Raises the last LLMError if none does."""
        usable = await self._usable()
        listed = await asyncio.gather(*(option.provider.list_models() for option in usable), return_exceptions=True)
        _raise_all(listed)
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
        _raise_all(await asyncio.gather(*loads, return_exceptions=True))

    async def aclose(self) -> None:
        """Close idle connections of this event loop to its servers; see ``BaseProvider.aclose``."""
        for option in self._options:
            if not option.broken:
                await option.provider.aclose()

    def chain_now(self, call: Call) -> Chain:
        """Return the options for a call, by what is known now. Nothing is sent; even a sole option is checked."""
        chain = Chain(self._options, call, self._settings, explained=True)
        chain.choose_models()
        return chain

    def status(self) -> list[dict[str, Any]]:
        """Return circuit breakers, recent failures and latencies of this process, a JSON object for each provider."""
        return [_status(option) for option in self._options]

    async def _chain_for(self, call: Call) -> Chain:
        """Return the options for a call. Those that matter for it are probed first, if they never were."""
        chain = Chain(await self._found(), call, self._settings)
        options = chain.options
        if len(options) > 1:
            needs = chain.needs
            curious = needs.capabilities or needs.tokens > _LONG_TOKENS or call.model
            within = min(PROBE_S, float(call.options.get("timeout") or self._settings.llm_deadline) / 4)
            closed = [option for option in options if not option.broken and option.gate == "closed"]
            equals = Counter(option.rank for option in options)  # equals share the load by their limits
            # any other option gets the request, whatever those after it support
            doubtful = takewhile(lambda option: curious or option.facts.loads or equals[option.rank] > 1, closed)
            await asyncio.gather(*(option.look(within) for option in doubtful))
        chain.choose_models()
        return chain

    async def _usable(self) -> list[Option]:
        """Return the options that could be created. Raises LLMError if none is found."""
        return [option for option in await self._found() if not option.broken]

    async def _found(self) -> list[Option]:
        """Return its options. If no provider is named they are found now, once for many first calls."""
        if not self._members and self._find:
            providers = await asyncio.shield(self._tasks.start("find", self._find))
            if not self._members:
                self._members = _placed(
                    [(Option(one, registry=self._registry), at) for at, one in enumerate(providers)]
                )
        return self._options


def _placed(flat: Sequence[tuple[Option, int]]) -> list[Option]:
    """Return copies of options in order, with their ranks; those of a flattened router keep their order."""
    ordered = sorted(flat, key=lambda one: (one[1], one[0].rank))
    ranks = list(dict.fromkeys((at, option.rank) for option, at in ordered))
    return [option.at(ranks.index((at, option.rank))) for option, at in ordered]


def _status(option: Option) -> dict[str, Any]:
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


def _equals(given: Equals) -> list[Member]:
    """Return the members of one rank of the chain: "gpu1+gpu2" is two equals."""
    if isinstance(given, str):
        return [*settings.parse_equals(given)]
    return [member for one in given for member in _equals(one)] if isinstance(given, list | tuple) else [given]


def _options_of(member: Member, registry: BreakerRegistry) -> list[Option]:
    """Return the option of a member; the options of a router, unless they are yet to be found.

    A provider that cannot be created stays in the chain with its fault.

    Raises:
        NotConfigured: its name is unknown.
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


def _raise_all(outcomes: Sequence[object]) -> None:
    """Raise the last failure if all failed, and one that is not the provider's in any case."""
    failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    failed.sort(key=lambda error: isinstance(error, errors.NotRecorded))
    if failed and (len(failed) == len(outcomes) or isinstance(failed[-1], errors.NotRecorded)):
        raise failed[-1]


def _check_resume(resume: str, kind: type[LLMError]) -> None:
    if resume not in _RESUMES:
        raise kind(f"resume= must be one of {', '.join(_RESUMES)}", hint='Leave it out for "continue"')
