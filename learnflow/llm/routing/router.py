"""The router: a chain of providers that is itself a provider; loses no answer that one of them could have given.

Must never decide (``decision``), join (``continuation``) or know a server: it runs executions over candidates.
The factory hands it out; routers nest.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Unpack, cast

from .. import errors, events, settings
from ..adapter.routable import RoutableProvider
from ..base import AbstractProvider, Attempt, Call, LLMProvider, Options, Prompt, Resume
from ..capabilities import Capabilities, Health
from ..capabilities import unknown as unknown_capabilities
from ..errors import LLMError
from ..health.inventory import LOOK_S
from ..providers.registry import build, check
from ..stream import Work
from .breaker import REGISTRY, BreakerRegistry
from .candidate import PROBE_S, Candidate, chain_name
from .execution import Execution, Rules, last_resort
from .places import PLACES
from .selection import Needs, Routing, needs_of, unknown

Member = str | LLMProvider
Equals = Member | list[Member] | tuple[Member, ...]
Find = Callable[[], Awaitable[Sequence[LLMProvider]]]

_RESUMES: Final = ("continue", "raise")
_LONG: Final = 1500  # tokens: from here on it is worth knowing how much each can take


@dataclass(frozen=True, slots=True)
class Choice:
    """What ``explain`` says of one provider: whether it would serve (None: nobody knows whether it can), and why.

    Attributes:
        rank: equals have the same; 0 is asked first.
        in_flight: requests under way there in this process.
        cached: the share of prompt tokens that came from cache, from 0 to 1; None where nobody told.
    """

    provider: str
    model: str | None
    serves: bool | None
    why: str
    rank: int = 0
    in_flight: int = 0
    cached: float | None = None


class RouterProvider(AbstractProvider, RoutableProvider):
    """Several providers as one. See ``LLMProvider``; every error carries ``attempts``.

    Args:
        primary: the first one, by its name or as an object; several are equals: "gpu1+gpu2", or a list. Among equals
            a request goes to the one that has probably read its beginning before, and waits only where all are full.
        fallback: the others, in order; each may be several, likewise.
        resume: when a stream breaks after pieces were delivered: "continue" it on the next provider, or "raise". A
            call may say so too.
        retries: how often a provider is asked again after a failure that may pass, when nobody else can help
            (LLM_RETRIES).
        routing: who is asked first: "order", "latency", "cost", "local-first" (LLM_ROUTING).
        deadline: seconds for a request, all attempts together (LLM_DEADLINE).
        find: finds the providers at the first awaited call, instead of ``primary``.
        breakers: what is known of the providers' places; the process's own where none is given.

    Raises:
        NotConfigured: an unknown name, or nobody who can be asked.
    """

    reports = False  # its providers report their attempts themselves

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
        common = settings.load()
        _check_resume(resume, errors.NotConfigured)
        others = [fallback] if isinstance(fallback, (str, LLMProvider)) else list(fallback)
        ranks = [_equals(each) for each in ([] if primary is None else [primary]) + others]
        members = [(member, rank) for rank, equals in enumerate(ranks) for member in equals]
        self._registry = breakers
        self._candidates = [_candidate(member, at, rank, breakers) for at, (member, rank) in enumerate(members)]
        self._find = find
        self._finding: dict[asyncio.AbstractEventLoop, asyncio.Future[Sequence[LLMProvider]]] = {}
        self._resume: Resume = resume
        self._rules = Rules(
            retries=common.llm_retries if retries is None else retries,
            routing=routing or common.llm_routing,
            deadline=deadline or common.llm_deadline,
            load=common.llm_load_timeout,
            local_only=common.llm_local_only,
            spill=common.llm_spill,
        )
        if find is None and not members:
            raise errors.NotConfigured("a router needs a provider", hint="Give primary=")
        if self._candidates and all(candidate.broken for candidate in self._candidates):
            raise next(candidate.broken for candidate in self._candidates if candidate.broken)

    def __repr__(self) -> str:
        members = (each.name if each.broken else repr(each.given) for each in self._candidates)
        return f"RouterProvider({', '.join(members)})"

    @property
    def name(self) -> str:
        """The names of its providers."""
        return chain_name(self._candidates)

    @property
    def providers(self) -> list[LLMProvider]:
        """Those that can be asked, in order."""
        return [candidate.given for candidate in self._candidates if candidate.given]

    def start(self, call: Call) -> Work:
        """The answer, whoever gives it; one text, even if it breaks on the way. See ``AbstractProvider``."""
        attempt = Attempt(request=events.next_request(), metadata=call.metadata)
        return partial(events.request, lambda: self.name, call.model, attempt, self.work(call, attempt))

    def work(self, call: Call, attempt: Attempt) -> Work:
        """The same; as one provider of another router, whose request it is. See ``RoutableProvider``."""
        options = dict(call.options)
        resume = options.pop("resume", None) or self._resume
        _check_resume(resume, errors.InvalidRequest)
        limit = options.get("timeout")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0):
            raise errors.InvalidRequest("timeout= must be a number of seconds, more than 0")
        call = replace(call, options=options)
        execution = Execution(self._rules, call, self._needs(call), resume, attempt=attempt)
        return partial(execution.run, self._looked, self._lost)

    async def list_models(self) -> list[str]:
        """The models of all providers that answer. Raises the last LLMError where none does."""
        candidates = [candidate for candidate in await self._chain() if not candidate.broken]
        listed = await asyncio.gather(
            *(candidate.provider.list_models() for candidate in candidates), return_exceptions=True
        )
        _raise_all(listed)
        return list(dict.fromkeys(name for each in listed if isinstance(each, list) for name in each))

    async def health_check(self) -> bool:
        """Whether one of them would answer now; never raises."""
        try:
            candidates = [candidate for candidate in await self._chain() if not candidate.broken]
        except errors.NotRecorded:
            raise
        except LLMError:
            return False
        return any(await asyncio.gather(*(candidate.provider.health_check() for candidate in candidates)))

    def get_capabilities(self) -> Capabilities:
        """What one of them can, the best of each; ``local`` only where all are."""
        known = [candidate.provider.get_capabilities() for candidate in self._candidates if not candidate.broken]
        if not known:
            return unknown_capabilities(cost=None)
        best: dict[str, Any] = {}
        for name in known[0]:
            said = [value for each in known if (value := cast(Mapping[str, Any], each)[name]) is not None]
            best[name] = None if not said or (len(said) < len(known) and not any(said)) else max(said)
        best["local"], best["cost"] = all(each["local"] for each in known), known[0]["cost"]
        return cast(Capabilities, best)

    async def refresh(self, within: float = LOOK_S) -> Health:
        """Ask each of the providers how it is and what it can, and remember; never raises.

        Args:
            within: seconds, at most.

        Returns:
            How the first is that is ready; where none is, that loads; else the first.
        """
        try:
            chain = [each.provider for each in await self._chain() if not each.broken]
        except LLMError as error:
            capabilities = self.get_capabilities()
            return Health(state="down", provider=self.name, base_url=None, detail=str(error), capabilities=capabilities)
        found = await asyncio.gather(*(each.refresh(within) for each in chain))
        return min(
            found,
            key=lambda health: ("ready", "loading").index(health.state) if health.state in ("ready", "loading") else 2,
        )

    @property
    def loads(self) -> bool:
        """Whether one of them may have to load a model. See ``RoutableProvider``, as for what follows."""
        return any(each.provider.loads for each in self._candidates if not each.broken)

    def cold(self, model: str | None) -> bool:
        """Whether the first of them would have to load the model first."""
        first = next((each for each in self._candidates if not each.broken), None)
        return first is not None and first.provider.cold(model)

    def permitted(self, *, local_only: bool) -> bool:
        """Whether one of them may be asked; it keeps to those itself."""
        return any(each.provider.permitted(local_only=local_only) for each in self._candidates if not each.broken)

    def has(self, model: str) -> bool:
        """Whether one of them has it."""
        return any(each.provider.has(model) for each in self._candidates if not each.broken)

    @property
    def waits(self) -> tuple[float, float]:
        """The longest of theirs; a load is waited for."""
        theirs = [each.provider.waits for each in self._candidates if not each.broken]
        first, gap = (max(column, default=0.0) for column in zip(*theirs, strict=True)) if theirs else (0.0, 0.0)
        return max(first, self._rules.load), gap

    async def prepare(self) -> None:
        """Import LiteLLM now; see ``BaseProvider.prepare``."""
        for candidate in await self._chain():
            if not candidate.broken:
                await candidate.provider.prepare()

    async def warm_up(self, model: str | None = None) -> None:
        """Let the servers of one's own load their models; see ``BaseProvider.warm_up``. Raises where none could."""
        own = [each.provider for each in await self._chain() if not each.broken and each.local]
        _raise_all(await asyncio.gather(*(provider.warm_up(model) for provider in own), return_exceptions=True))

    async def aclose(self) -> None:
        """Close the connections of this event loop to its servers that nobody uses; see ``BaseProvider.aclose``."""
        for each in self._candidates:
            if not each.broken:
                await each.provider.aclose()

    def explain(self, prompt: Prompt, model: str | None = None, **more: Unpack[Options]) -> list[Choice]:
        """Which provider would serve this request, and why not the others; nobody is asked, and nothing is sent.

        By what is known now: ``refresh()`` of a provider lets it know more.
        """
        call, choices = Call(prompt, model, options=more), list[Choice]()
        needs = self._needs(call, explained=True)
        execution = Execution(self._rules, call, needs, self._resume, explained=True)
        execution.over(self._candidates)
        order = execution.order()
        trouble = {each.number: None if each.broken else each.provider.trouble(each.model) for each in order}
        fit = [each for each in order if not execution.lacks(each) and not trouble[each.number]]
        chosen = execution.select(fit)[0] or (last_resort(fit) if fit else None)
        for each in order:
            serves: bool | None = False
            if lacking := execution.lacks(each):
                why = lacking[0] if each.broken else f"lacks {', '.join(lacking)}"
            elif trouble[each.number]:
                why = str(trouble[each.number])
            elif each is not chosen and not each.ready:
                why = f"left alone after {type(each.opened[0].error).__name__}"
            elif each is not chosen:
                why = "would be asked if those before it fail"
            elif doubt := unknown(needs, each.provider.can(each.target.model)):
                serves, why = None, f"would be asked; nobody knows whether it has {', '.join(doubt)}"
            else:
                serves, why = True, "would serve"
            if serves is not False and each.cold:
                why += ", once it has loaded the model"
            flying = PLACES.flying(each.address)
            choices.append(Choice(each.name, each.target.model, serves, why, each.rank, flying, each.record.cached))
        return choices

    def status(self) -> list[dict[str, Any]]:
        """Breakers, recent failures and latencies of this process, a dict for each provider; JSON can hold it."""
        return [self._state(candidate) for candidate in self._candidates]

    def _state(self, candidate: Candidate) -> dict[str, Any]:
        now, target, opened, record = candidate.clock(), candidate.target, candidate.opened, candidate.record
        return {
            "provider": candidate.name,
            "rank": candidate.rank,
            "in_flight": PLACES.flying(target.address),
            "room": candidate.room,
            "cached": record.cached,
            "address": None if candidate.broken else target.address,
            "model": target.model,
            "breaker": "misconfigured" if candidate.broken else "open" if opened else "closed",
            "because": str(candidate.broken)
            if candidate.broken
            else type(opened[0].error).__name__
            if opened
            else None,
            "opens_in_s": max(0.0, opened[0].until - now) if opened else None,
            "first_token_s": record.first_token_s,
            "answered": record.answered,
            "failed": record.failed,
            "recent_failures": [{"error": name, "seconds_ago": now - at} for at, name in record.recent],
        }

    def _needs(self, call: Call, *, explained: bool = False) -> Needs:
        """What it needs of a provider; nothing where there is only one: it is asked, whatever it lacks."""
        own = self._candidates[0] if len(self._candidates) == 1 and self._find is None and not explained else None
        whatever = own is not None and (own.broken or not own.provider.vision_model)
        return Needs() if whatever else needs_of(call)

    async def _looked(self, call: Call, needs: Needs) -> Sequence[Candidate]:
        """The candidates, and what has to be known of them for this call."""
        candidates = await self._chain()
        if len(candidates) > 1:
            curious = needs.images or needs.tools or needs.schema or needs.tokens > _LONG or call.model is not None
            within = min(PROBE_S, float(call.options.get("timeout") or self._rules.deadline) / 4)
            wanted, equals = list[Candidate](), Counter(each.rank for each in candidates)
            for each in candidates:
                if each.broken or each.gate != "closed":
                    continue
                if curious or each.provider.loads or equals[each.rank] > 1:  # how much it takes at once is to be known
                    wanted.append(each)
                else:
                    break  # it will be asked, whatever those after it are like
            await asyncio.gather(*(each.look(within) for each in wanted))
        return candidates

    def _lost(self, error: LLMError) -> None:
        if self._find and isinstance(error, errors.Unavailable):
            self._candidates = []  # whoever was found has gone: look again

    async def _chain(self) -> list[Candidate]:
        """The candidates; found now, where none was named. Many first calls look once."""
        if not self._candidates and self._find:
            loop = asyncio.get_running_loop()
            finding = self._finding.get(loop)
            if finding is None:
                finding = self._finding[loop] = asyncio.ensure_future(self._find())
                finding.add_done_callback(lambda _: self._finding.pop(loop, None))
            providers = await asyncio.shield(finding)
            if not self._candidates:
                self._candidates = [_candidate(each, at, at, self._registry) for at, each in enumerate(providers)]
        return self._candidates


def _equals(given: Equals) -> list[Member]:
    """One rank of the chain: "gpu1+gpu2" is two equals."""
    if isinstance(given, str):
        return [name for name in given.split("+") if name.strip()] or [given]
    return [each for one in given for each in _equals(one)] if isinstance(given, list | tuple) else [given]


def _candidate(member: Member, at: int, rank: int, registry: BreakerRegistry) -> Candidate:
    """A provider of the chain; one that cannot be asked is kept, and said to be so, unless its name is unknown."""
    if not isinstance(member, str):
        return Candidate(member, at, rank, registry=registry)
    name = member.strip().lower()
    check(name)  # which says what is wrong with it
    try:
        return Candidate(build(name), at, rank, registry=registry)
    except LLMError as error:
        error.provider = error.provider or name
        events.emit(
            events.Failed(provider=name, model=None, error=type(error).__name__, status=None, loud=True, total_s=0.0)
        )
        return Candidate(None, at, rank, error, registry)


def _raise_all(outcomes: Sequence[object]) -> None:
    """The last failure, where all failed; one that is no provider's always."""
    failed = [each for each in outcomes if isinstance(each, BaseException)]
    failed.sort(key=lambda error: isinstance(error, errors.NotRecorded))
    if failed and (len(failed) == len(outcomes) or isinstance(failed[-1], errors.NotRecorded)):
        raise failed[-1]


def _check_resume(resume: str, kind: type[LLMError]) -> None:
    if resume not in _RESUMES:
        raise kind(f"resume= must be one of {', '.join(_RESUMES)}", hint='Leave it out for "continue"')
