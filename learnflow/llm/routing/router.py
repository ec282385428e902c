"""RouterProvider: several providers as one, with failover, load balancing and continuation of interrupted answers.

A candidate is one provider of the router. Its rank is its position in the order. Providers that share the
load have the same rank. A ``Chain`` has the candidates of one request. An ``Execution`` runs the request.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import Annotated, Any, Final, cast

from annotated_types import Predicate

from .. import errors, events, journal, settings
from ..adapter.capacity import CAPACITY
from ..base import AbstractProvider, Attempt, Call, LLMProvider, Resume, Routing
from ..capabilities import Capabilities, Health, default_capabilities
from ..completion import Completion
from ..errors import LLMError
from ..parameters import CountOrZero, Seconds, check_keywords, validated_as
from ..process import SharedTasks, switches
from ..providers import build
from ..providers.registry import check_provider_name
from ..servers.model_catalog import LONG_PROBE_S
from ..stream import Emit, Work
from .breaker import REGISTRY, BreakerRegistry
from .candidate import PROBE_S, Candidate, chain_name
from .execution import Execution
from .progress import Progress
from .selection import Chain


def _is_provider(value: object) -> bool:
    """Return whether a value has the methods of ``LLMProvider``. Return True if one of its attributes raises."""
    try:
        return isinstance(value, LLMProvider)
    except Exception:  # noqa: BLE001  # before Python 3.12, isinstance reads the attributes
        return True


_Provider = Annotated[LLMProvider, validated_as(Annotated[Any, Predicate(_is_provider)]), "a provider"]
Member = str | _Provider  # a provider by its name, or as an object
RankMembers = Member | list[Member] | tuple[Member, ...]  # one rank: a provider, or several that share the load
FindProviders = Callable[[], Coroutine[Any, Any, Sequence[LLMProvider]]]

_LONG_PROMPT_TOKENS: Final = 1500  # for a longer prompt, probe the context lengths, because the prompt may not fit


class RouterProvider(AbstractProvider):
    """Several providers as one ``LLMProvider``. The attribute ``attempts`` of an error has the failed attempts.

    A router among the providers is replaced by its providers, unless it has ``find``. Only two settings of the replaced
    router still apply: ``deadline`` and ``breakers``.

    Args:
        primary: the first provider, as a name or an object. "gpu1+gpu2" or a list means several providers that
            share the load. A request goes to the provider that probably has the prompt in its cache. The request waits
            only if all these providers are full.
        fallback: the next providers, in order. An entry can also be several providers that share the load.
        resume: the action if a stream breaks after text was emitted: "continue" it on the next provider, or "raise".
            The ``resume=`` of a call has precedence.
        retries: the number of retries after a transient failure, if no other provider is left (LLM_RETRIES).
        routing: the order of the providers: "order", "latency", "cost", "local-first", "warm-first" (LLM_ROUTING).
        deadline: the time limit of a request with all its attempts, in seconds (LLM_DEADLINE).
        find: a coroutine function that finds the providers if no provider is given. It is called at the first use, and
            again after a request that raised Unavailable.
        breakers: the circuit breakers; by default those of the process.

    Raises:
        NotConfigured: a name is unknown, or no provider can be used.
    """

    def __init__(
        self,
        primary: RankMembers | None = None,
        fallback: Sequence[RankMembers] | Member = (),
        *,
        resume: Resume = "continue",
        retries: CountOrZero | None = None,
        routing: Routing | None = None,
        deadline: Seconds | None = None,
        find: FindProviders | None = None,
        breakers: BreakerRegistry = REGISTRY,
    ) -> None:
        check_keywords(RouterProvider.__init__, locals(), errors.NotConfigured)
        ranks: list[RankMembers] = [] if primary is None else [primary]
        ranks += [fallback] if isinstance(fallback, str) or not isinstance(fallback, Sequence) else fallback
        self._registry = breakers
        self._candidates: list[Candidate] = []
        for members in ranks:
            next_rank = self._candidates[-1].rank + 1 if self._candidates else 0
            candidates = [
                candidate for member in _flatten(members) for candidate in _create_candidates(member, breakers)
            ]
            candidates.sort(key=lambda candidate: candidate.rank)  # a nested router may have several ranks
            self._candidates += [candidate.copy_at(next_rank + candidate.rank) for candidate in candidates]
        for candidate in self._candidates if deadline else ():  # the deadline of a nested router may be shorter
            candidate.deadline_s = min(filter(None, (deadline, candidate.deadline_s)))
        self._find = None if self._candidates else find
        self._tasks = SharedTasks()
        self._resume: Resume = resume
        overrides = {"llm_retries": retries, "llm_routing": routing, "llm_deadline": deadline}
        overrides = {name: value for name, value in overrides.items() if value is not None}
        self._settings = settings.load().model_copy(update=overrides)
        if switches.in_cli and "llm_patience" not in self._settings.model_fields_set:
            self._settings.llm_patience = 0.0  # a command does not wait for a server that restarts
        if find is None and not self._candidates:
            raise errors.NotConfigured("a router needs a provider", hint="Give primary=")
        creation_errors = [candidate.creation_error for candidate in self._candidates if candidate.creation_error]
        if creation_errors and len(creation_errors) == len(self._candidates):
            raise creation_errors[0]

    def _copy_candidates(self) -> list[Candidate]:
        """Return copies of the candidates for one request."""
        return [candidate.copy_at(candidate.rank) for candidate in self._candidates]

    def __repr__(self) -> str:
        members = (item.name if item.creation_error else repr(item.original) for item in self._candidates)
        return f"RouterProvider({', '.join(members) or 'find=…'})"

    @property
    def name(self) -> str:
        """Return the names of the providers, in the format of LLM_PROVIDERS."""
        return chain_name(self._candidates)

    @property
    def providers(self) -> list[LLMProvider]:
        """Return the providers that could be created, in order."""
        return [candidate.original for candidate in self._candidates if candidate.original]

    def start(self, call: Call) -> Work:
        """Return the coroutine function that runs a call."""
        attempt_template = Attempt(request_number=events.next_request_number(), metadata=call.metadata)
        options = dict(call.options)
        resume = options.pop("resume", self._resume)
        if options.get("headers") is not None:
            hint = "They are secrets of one server. Set <NAME>_HEADERS, or give headers= to the provider's class"
            raise errors.InvalidRequest("a router does not support headers=", hint=hint)
        run = partial(self._run, resume, attempt_template)
        call = replace(call, options=options)
        work: Work = partial(run, call)
        if resume == "continue":
            work = journal.with_journal(self._settings, self._settings.llm_deadline, run, call)
        return partial(events.run_request, self.name, call.model, attempt_template, work)

    async def _run(self, resume: Resume, attempt_template: Attempt, call: Call, emit: Emit) -> Completion:
        """Run the attempts of a request. Raise only LLMError."""
        progress = Progress(emit, asyncio.get_running_loop().time(), attempt_template.failed_attempts, call)
        try:
            return await Execution(call, resume, attempt_template, await self._build_chain(call), progress).run()
        except errors.Unavailable:
            if self._find:
                self._candidates = []  # the next request finds the providers again
            raise

    async def list_models(self) -> list[str]:
        """Return the models of all providers that respond. Raise LLMError if no provider responds."""
        candidates = await self._find_created_candidates()
        lists = (candidate.provider.list_models() for candidate in candidates)
        results = await asyncio.gather(*lists, return_exceptions=True)
        _raise_failure(results)
        return list(dict.fromkeys(name for models in results if isinstance(models, list) for name in models))

    async def health_check(self) -> bool:
        """Return whether a provider is ready for a request.

        Raises:
            NotRecorded: the cassettes have no response to the probe. No other error is raised.
        """
        return (await self.refresh()).ready

    def get_capabilities(self) -> Capabilities:
        """Return the best value of each capability among the providers.

        ``local`` is True only if all providers are local. ``cost`` is that of the first provider.
        """
        created = [candidate for candidate in self._candidates if not candidate.creation_error]
        all_capabilities = [candidate.provider.get_capabilities() for candidate in created]
        if not all_capabilities:
            return default_capabilities(cost=None)
        best: dict[str, Any] = {}
        for name in all_capabilities[0]:
            values = [cast(Mapping[str, Any], capabilities)[name] for capabilities in all_capabilities]
            known = [value for value in values if value is not None]
            best[name] = max(known) if any(known) or len(known) == len(values) else None
        best["local"] = all(capabilities["local"] for capabilities in all_capabilities)
        best["cost"] = all_capabilities[0]["cost"]
        return cast(Capabilities, best)

    async def refresh(self, within: float = LONG_PROBE_S) -> Health:
        """Probe the state and the capabilities of each provider, and cache them.

        Args:
            within: the timeout in seconds.

        Returns:
            The first health with the state "ready", else the first with "loading", else that of the first provider.

        Raises:
            NotRecorded: see ``health_check``.
        """
        try:
            candidates = await self._find_created_candidates()
        except errors.NotRecorded:
            raise
        except LLMError as error:
            capabilities = self.get_capabilities()
            return Health(state="down", provider=self.name, base_url=None, detail=str(error), capabilities=capabilities)
        healths = await asyncio.gather(*(candidate.provider.refresh(within) for candidate in candidates))
        return min(healths, key=lambda health: {"ready": 0, "loading": 1}.get(health.state, 2))

    async def prepare(self) -> None:
        """Import LiteLLM now; see ``BaseProvider.prepare``."""
        candidates = await self._find_created_candidates()
        await asyncio.gather(*(candidate.provider.prepare() for candidate in candidates))

    async def warm_up(self, model: str | None = None) -> None:
        """Load the models of local servers; see ``BaseProvider.warm_up``. Raise LLMError if all loads failed."""
        candidates = await self._find_created_candidates()
        loads = [candidate.provider.warm_up(model) for candidate in candidates if candidate.distance == 0]
        _raise_failure(await asyncio.gather(*loads, return_exceptions=True))

    async def aclose(self) -> None:
        """Close the idle connections of this event loop; see ``BaseProvider.aclose``."""
        for candidate in self._candidates:
            if candidate.original:
                await candidate.provider.aclose()

    def chain_without_probes(self, call: Call) -> Chain:
        """Return the candidates for a call, with the currently known properties. Send no request and no probe."""
        chain = Chain(self._copy_candidates(), call, self._settings)
        chain.choose_models()
        return chain

    def status(self) -> list[dict[str, Any]]:
        """Return one dict for each provider, with its circuit breaker, recent failures and latency in this process."""
        return [_describe(candidate) for candidate in self._copy_candidates()]

    async def _build_chain(self, call: Call) -> Chain:
        """Return the candidates for a call. First probe those with unknown or old properties that affect the choice."""
        chain = Chain(await self._find_candidates(), call, self._settings)
        candidates = chain.candidates
        if len(candidates) > 1:
            required = chain.requirements
            needs_facts = required.capabilities or required.tokens > _LONG_PROMPT_TOKENS or call.model
            timeout_s = min(PROBE_S, float(call.options.get("timeout") or self._settings.llm_deadline) / 4)
            unblocked = [candidate for candidate in candidates if candidate.breaker_state == "closed"]
            rank_sizes = Counter(candidate.rank for candidate in candidates)
            # Probe a candidate if the request has requirements, if the server loads models on demand, or if its rank
            # has several providers, which share the load by their concurrency limits. Stop at the first candidate that
            # needs no probe, because later candidates rarely get the request
            probed = takewhile(lambda item: needs_facts or item.facts.loads or rank_sizes[item.rank] > 1, unblocked)
            await asyncio.gather(*(candidate.probe_if_stale(timeout_s) for candidate in probed))
        chain.choose_models()
        return chain

    async def _find_created_candidates(self) -> list[Candidate]:
        """Return copies of the candidates that could be created. Raise LLMError if ``find`` fails."""
        return [candidate for candidate in await self._find_candidates() if not candidate.creation_error]

    async def _find_candidates(self) -> list[Candidate]:
        """Return copies of the candidates. If the router has no candidates yet, call ``find`` first.

        Concurrent calls share one search.
        """
        if not self._candidates and self._find:
            providers = await asyncio.shield(self._tasks.start("find", self._find))
            if not self._candidates:
                created = (Candidate(provider, self._registry) for provider in providers)
                self._candidates = [candidate.copy_at(rank) for rank, candidate in enumerate(created)]
        return self._copy_candidates()


def _describe(candidate: Candidate) -> dict[str, Any]:
    """Return the entry of ``status`` for a candidate."""
    now, target, failure = candidate.registry.clock(), candidate.target, candidate.creation_error
    breaker, statistics = candidate.breaker, candidate.statistics
    return {
        "provider": candidate.name,
        "rank": candidate.rank,
        "in_flight": CAPACITY.in_flight(target.address),
        "concurrency_limit": candidate.concurrency_limit,
        "cached_share": statistics.cached_share,
        "address": None if failure else target.address,
        "model": target.model,
        "breaker": "misconfigured" if failure else "open" if breaker else "closed",
        "because": str(failure) if failure else type(breaker.error).__name__ if breaker else None,
        "open_for_s": max(0.0, breaker.open_until - now) if breaker else None,
        "first_token_s": statistics.first_token_s,
        "answered": statistics.answered,
        "failed": statistics.failed,
        "recent_failures": [{"error": name, "seconds_ago": now - time} for time, name in statistics.recent_failures],
    }


def _flatten(members: RankMembers) -> list[Member]:
    """Return the providers of one rank as a flat list. The name "gpu1+gpu2" becomes two providers."""
    if isinstance(members, str):
        return [*settings.parse_rank(members)]
    return (
        [member for entry in members for member in _flatten(entry)] if isinstance(members, list | tuple) else [members]
    )


def _create_candidates(member: Member, registry: BreakerRegistry) -> list[Candidate]:
    """Return the candidate of a provider, or all candidates of a router. Raise NotConfigured for an unknown name.

    If a provider cannot be created, its candidate has the error.
    """
    if isinstance(member, RouterProvider) and member._find is None:  # noqa: SLF001
        return member._candidates  # noqa: SLF001
    if not isinstance(member, str):
        return [Candidate(member, registry=registry)]
    name = member.strip().lower()
    check_provider_name(name)
    try:
        return [Candidate(build(name), registry=registry)]
    except LLMError as error:
        error.provider = error.provider or name
        events.emit(events.ProviderUnusable(provider=name, error=error, hint=str(error)))
        return [Candidate(error, registry)]


def _raise_failure(results: Sequence[object]) -> None:
    """Raise the last error if all results are errors. Raise NotRecorded even if only one result is this error."""
    failures = [result for result in results if isinstance(result, BaseException)]
    failures.sort(key=lambda error: isinstance(error, errors.NotRecorded))
    if failures and (len(failures) == len(results) or isinstance(failures[-1], errors.NotRecorded)):
        raise failures[-1]
