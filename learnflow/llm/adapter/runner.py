"""How one request is served by one provider: prepared, written, sent, read, completed, told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final
from weakref import WeakKeyDictionary

from .. import errors, events, log
from ..base import Attempt
from ..completion import Completion, ReasoningDelta, TextDelta, Waiting
from ..errors import LLMError, Tried
from ..health import loading
from ..health.inventory import QUICK_S, Inventory
from ..spec import ProviderSpec
from ..stream import Emit, Work
from ..timeouts import Times
from ..transport.client import Client, HttpRequest, HttpResponse
from ..transport.endpoint import addressed
from ..transport.error_mapping import failure_of
from ..transport.reader import AnswerReader
from ..transport.reasoning import OPENS_THINKING_ITSELF, Delta
from ..transport.sse_parser import SSEParser
from ..transport.stream_parser import StreamParser
from . import _litellm, images, structured_output
from .answer import Answer
from .context_budget import ContextBudget
from .redaction import discreet
from .request import Request, Size, Variant

_MAY_BE_OURS: Final = (errors.CapabilityError, errors.RequestError, errors.ServerFailed)


class Runner:
    """One provider at work.

    Args:
        spec, client, times: who is asked, through whom, and for how long.
        inventory: of its models.
        log_content: log prompts and answers, at DEBUG.
        reask: how often an answer that fails its schema is sent back.
    """

    def __init__(
        self, spec: ProviderSpec, client: Client, times: Times, inventory: Inventory, *, log_content: bool, reask: int
    ) -> None:
        self.spec = spec
        self.client = client
        self.endpoint = client.endpoint
        self.times = times
        self.inventory = inventory
        self.elsewhere = (
            False  # something else answered than expected, or nobody: an endpoint is asked what it is again
        )
        self._log_content = log_content
        self._reask = reask
        self._variants: dict[str, Variant] = {}
        self._holds: set[str] = set()
        self._unreachable: tuple[float, LLMError] | None = None  # when no connection could be made last, and why
        self._places: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[int, asyncio.Semaphore]] = WeakKeyDictionary()

    @property
    def room(self) -> int | None:
        """How many requests there may be at once; None for any number."""
        server = self.inventory.server
        return self.times.max_concurrency or (server and server.slots) or self.spec.max_concurrency

    @property
    def continues_as(self) -> ProviderSpec | None:
        """By which row an answer is continued: its own, or that of what the server says it is, in the same dialect."""
        rows = self.spec, self.inventory.server and self.inventory.server.kind
        return next((row for row in rows if row and row.continues and row.parser is self.spec.parser), None)

    def start(self, asked: Request, attempt: Attempt, *, whole: bool) -> Work:
        """The request; nothing is sent before it is run.

        Args:
            asked: the request.
            attempt: which one it is, and what is to be continued.
            whole: nobody is watching the pieces.
        """
        hold = whole or asked.reasoning not in (None, False)  # what may be thinking, until that is certain
        again = whole and self._reask and attempt.prefix is None and structured_output.checks(asked.wanted)
        return partial(self._turns, asked, attempt) if again else partial(self._attempt, asked, attempt, hold=hold)

    async def _turns(self, asked: Request, attempt: Attempt, emit: Emit) -> Completion:
        """An answer that fits its schema; one that does not is sent back to the model, with the reason.

        Args:
            asked, attempt: the first turn.
            emit: gets the answer in one piece.

        Raises:
            LLMError: how the last turn failed; but where what was sent back is refused, which was our idea and not the
                caller's, how the turn before did.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        deadline = started + (asked.timeout or self.times.deadline)
        unfit, tried = list[Completion](), attempt.tried
        failed: LLMError | None = None
        while True:
            began = loop.time()
            try:
                turn = replace(asked, timeout=deadline - began)
                whole = await self._attempt(turn, attempt, Emit(), hold=True)
                emit(TextDelta(whole.text))
                return _together(whole, unfit, began - started)
            except LLMError as error:
                seconds = loop.time() - began
                tried.append(Tried(self.spec.name, error.model, type(error).__name__, error.status, seconds))
                ours = isinstance(error, (errors.CapabilityError, errors.RequestError))
                last, failed = error, failed if failed and ours else error
            left = deadline - loop.time()
            wrong = last.answer if isinstance(last, errors.SchemaMismatch) else None
            reason = failed.reason if isinstance(failed, errors.SchemaMismatch) else ""
            if wrong is None or not reason or len(tried) > self._reask or left <= 0:
                failed.attempts = tuple(tried) if len(tried) > 1 else ()
                raise failed.with_traceback(None)
            unfit.append(wrong)
            asked = asked.corrected(wrong.text, reason)
            patience = attempt.patience and min(attempt.patience, left / 2)  # others want a share of what is left
            attempt = replace(attempt, number=attempt.number + 1, patience=patience)

    async def _attempt(self, asked: Request, attempt: Attempt, emit: Emit, *, hold: bool) -> Completion:
        """The answer; tells what happened, and raises only LLMErrors."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        deadline = started + (asked.timeout or self.times.deadline)
        model, answer = asked.model, Answer(asked, hold=hold)
        failed: LLMError | None = None
        whole: Completion | None = None
        with events.Attempting(self.spec.name, model, self.endpoint.base, asked.sampling, attempt) as told:
            try:
                model, budget = await self._prepared(asked, attempt, deadline)
                asked = await self._readable(asked, deadline)
                goes_on = attempt.prefix is not None  # what follows is no thinking
                closes = self._closes_only(model) and not goes_on
                answer = Answer(asked, budget, hold=hold and not goes_on, closes=closes, goes_on=goes_on)
                before = variant = self._variants.get(model) or self._first_variant()
                async with AsyncExitStack() as place:
                    with emit.waiting(Waiting("queue", self.spec.name, model)):
                        await self._place(place, deadline)
                    while True:
                        reader = answer.reader = AnswerReader(self._parser(asked), self._patient(attempt, budget))
                        try:
                            async with self._loading(model, emit, loads=budget.loads) as loading_:
                                send = partial(self._sent, asked, attempt, model, variant, budget.sending(), reader)
                                await reader.read(send, deadline, partial(_take, answer, emit, loading_), emit.drain)
                            break
                        except _MAY_BE_OURS as error:
                            if reader.began:
                                raise
                            variant = self._otherwise(asked, budget, model, variant, error)
                    self._variants[model] = asked.lasting(variant, before)
                    budget.held()
            except Exception as error:  # noqa: BLE001  # nothing raw leaves: what nobody thought of has a name, too
                failed = failure_of(error)
            try:
                _show(answer.end(), emit)
                whole = None if failed else await self._completed(answer, model or "")
            except Exception as error:  # noqa: BLE001  # as above: a schema's validator may raise anything
                failed = failed or failure_of(error)
            told.model, told.outcome = model, failed or whole
            told.max_tokens = (answer.budget and answer.budget.answer) or told.max_tokens
            if whole:
                self._say(whole, asked, attempt)
        if whole:
            return whole
        assert failed  # noqa: S101  # one of the two
        raise self.explained(failed, model, asked, answer).with_traceback(None)

    async def _prepared(self, asked: Request, attempt: Attempt, deadline: float) -> tuple[str, ContextBudget]:
        """LiteLLM is loaded, the model's name is known, and the request may fit it."""
        try:
            async with asyncio.timeout_at(deadline):
                self._stays()
                model = await self.inventory.which(asked.model)  # first: what is wrong with it costs no seconds
                budget = ContextBudget(self.spec, self.endpoint.base, self.inventory, asked, model, attempt.raw)
                self._adjusted(model, await budget.before(min(QUICK_S, self.times.first_token)))
                await _litellm.prepare(self.spec, self.endpoint)
                return model, budget
        except TimeoutError:
            raise errors.DeadlineExceeded("the deadline was over before the request could be sent") from None

    def _stays(self) -> None:
        """Under LLM_LOCAL_ONLY a cloud's address is not even looked up. Raises NotLocal."""
        if self.times.local_only and not (self.spec.local or self.endpoint.near):
            raise errors.NotLocal(
                f"LLM_LOCAL_ONLY is set, and {self.spec.title} is not local; nothing was sent",
                hint="Set LLM_PROVIDER to a server of your own, or LLM_LOCAL_ONLY=false",
            )

    async def _place(self, stack: AsyncExitStack, deadline: float) -> None:
        """A place among the requests that this provider takes at once; waiting counts against the deadline only."""
        room = self.room
        if room is None:
            return
        loop = asyncio.get_running_loop()
        began = loop.time()
        known, places = self._places.get(loop, (None, asyncio.Semaphore(room)))
        if known != room:  # the server has told meanwhile
            places = asyncio.Semaphore(room)
            self._places[loop] = room, places
        late = False
        try:
            async with asyncio.timeout_at(deadline):
                await stack.enter_async_context(places)
        except TimeoutError:
            late = True
        finally:
            events.emit_lazily(events.Queued, provider=self.spec.name, seconds=loop.time() - began)
        if self._unreachable and self._unreachable[0] >= began:  # meanwhile the others found nobody there
            raise type(self._unreachable[1])(self._unreachable[1].what)
        if late:
            what = f"timed out waiting for a free slot (max_concurrency={room})"
            hint = f"Raise timeout= or LLM_DEADLINE, or {self.spec.env_concurrency} if the server can take more"
            raise errors.DeadlineExceeded(what, hint=hint)

    @asynccontextmanager
    async def _loading(self, model: str, emit: Emit, *, loads: bool) -> AsyncGenerator[list[ExitStack], None]:
        """Tells that the model loads, and how far, where the server tells: until what is yielded is closed."""
        async with AsyncExitStack() as report:
            with ExitStack() as load:
                if loads and emit.all_events:
                    load.enter_context(emit.waiting(Waiting("load", self.spec.name, model)))
                    if self.spec.load_progress and not self.client.replays:
                        watching = loading.report(self.inventory.prober, model, emit.load_progress)
                        load.callback((await report.enter_async_context(loading.meanwhile(watching))).cancel)
                yield [load]

    def _closes_only(self, model: str) -> bool:
        return model in self._holds or bool(OPENS_THINKING_ITSELF.search(model))

    async def _readable(self, asked: Request, deadline: float) -> Request:
        """The request with its pictures inline, where the server fetches none itself."""
        if self.spec.reads_urls or not asked.images:
            return asked
        limit = min(deadline, asyncio.get_running_loop().time() + self.times.first_token)
        try:
            async with asyncio.timeout_at(limit):
                return replace(asked, messages=await images.inline(asked.messages, self.client))
        except TimeoutError:
            what = "a picture was not read from its address in time"
            raise errors.InvalidRequest(what, hint="Give it as a data URL") from None

    def _otherwise(
        self, asked: Request, budget: ContextBudget, model: str, variant: Variant, error: LLMError
    ) -> Variant:
        """How it is put after this refusal, where something of ours was refused. Raises it where not."""
        why = budget.after(error)
        if why is None:
            other = asked.otherwise(variant, error)
            if other is None:
                raise error
            variant, why = other
        self._adjusted(model, why)
        return variant

    def _parser(self, asked: Request) -> StreamParser:
        never = self.inventory.stated.get("finish") is False
        return (self.spec.parser or SSEParser)(asked.sampling.get("max_tokens"), finish_missing=never)

    def _first_variant(self) -> Variant:
        """How it is put before anything was refused: a schema in words, where the operator says that it knows none."""
        none = self.inventory.stated.get("json_schema") is False
        return Variant(rung=1 if none and len(self.spec.structured) > 1 else 0)

    def _patient(self, attempt: Attempt, budget: ContextBudget) -> Times:
        """The budgets of this attempt: a model that has yet to be loaded has its own, and others may want a share."""
        first = max(self.times.first_token, self.times.load) if budget.loads else self.times.first_token
        if attempt.patience is not None:
            first = min(first, attempt.patience)
        return self.times if first == self.times.first_token else replace(self.times, first_token=first)

    async def _sent(
        self, asked: Request, attempt: Attempt, model: str, variant: Variant, size: Size, reader: AnswerReader
    ) -> HttpResponse:
        """Write the request and send it."""
        request = await self._written(asked, attempt, model, variant, size)
        request = replace(request, headers=asked.headers, on_timeout=reader.on_timeout)
        try:
            return await self.client.ask(request, partial(_litellm.judge, self.spec, model))
        except (errors.ConnectionFailed, errors.ConnectTimeout) as error:
            self._unreachable = asyncio.get_running_loop().time(), error.with_traceback(None)
            raise

    async def _written(self, asked: Request, attempt: Attempt, model: str, variant: Variant, size: Size) -> HttpRequest:
        """The request for a chat, or for what follows an answer that was begun."""
        row = self.continues_as if attempt.prefix is not None else None
        if attempt.prefix is not None and row is None:
            raise errors.Unsupported(f"{self.spec.title} cannot continue an answer")
        begun = attempt.raw if row and row.prefill else None
        messages, parameters = asked.put(model, variant, size, begun)
        if row and row.continuation:
            body = parameters.get("extra_body", {})
            written: HttpRequest = await row.continuation(self.inventory.prober, model, messages, body, attempt)
            return written
        return _litellm.write(self.spec, self.endpoint, model, messages, parameters)

    def _adjusted(self, model: str, why: str | None) -> None:
        if why:
            events.emit(events.Adjusted(provider=self.spec.name, model=model, why=why))

    async def _completed(self, answer: Answer, model: str) -> Completion:
        """The completion. Raises an LLMError where the answer is none after all; one that fails its schema has it."""
        whole = answer.completion(self.spec.name, model)
        loss = await answer.budget.loss(whole.usage) if answer.budget else None
        if loss:
            raise loss
        cost = whole.cost
        if cost is None and self.spec.local:
            cost = 0.0 if self.inventory.capabilities(model)["cost"] == (0.0, 0.0) else None
        elif cost is None:
            cost = _litellm.price(self.spec, model, whole.usage)
        whole = replace(whole, cost=cost)
        try:
            return answer.checked(whole)
        except errors.SchemaMismatch as error:
            error.answer = whole  # it has cost something, too
            raise

    def _say(self, whole: Completion, asked: Request, attempt: Attempt) -> None:
        """The content, where somebody wants it."""
        events.said(attempt.request, attempt.number, asked.messages, whole)
        if self._log_content:
            log.line("debug", "llm.content", messages=asked.messages, text=whole.text, reasoning=whole.reasoning)

    def explained(
        self, error: LLMError, model: str | None, asked: Request | None = None, answer: Answer | None = None
    ) -> LLMError:
        """Say who failed and which variable to set; leave out what is private; keep what had arrived."""
        if isinstance(error, errors.ModelNotFound):
            error.hint = error.hint or self.inventory.instead_of(model)
        addressed(error, self.spec, self.endpoint, model)
        if isinstance(error, errors.ModelNotFound | errors.ConnectionFailed):
            self.inventory.forget()
        self.elsewhere |= isinstance(error, errors.Misconfigured | errors.ConnectionFailed)
        if isinstance(error, errors.ThinkingLeaked) and error.model:
            self._holds.add(error.model)
        discreet(error, self.endpoint.key, asked, answer.text if answer else "")
        if answer:
            error.partial, error.thinking = answer.text, answer.thinking
        if answer and answer.reader:
            error.partial_calls = answer.reader.parser.calls
            error.tokens = answer.reader.deltas_read
            error.finished = bool(answer.reader.parser.finish)
        return error


def _take(answer: Answer, emit: Emit, loading_: list[ExitStack], delta: Delta) -> None:
    """What has arrived: the first of it ends the load."""
    if loading_:
        loading_.pop().close()
    _show(answer.add(delta), emit)


def _show(delta: Delta, emit: Emit) -> None:
    """Give out what may be."""
    if delta.thinking:
        emit(ReasoningDelta(delta.thinking))
    if delta.text:
        emit(TextDelta(delta.text))
    for call in delta.calls:
        emit(call)


def _together(whole: Completion, unfit: Sequence[Completion], later: float) -> Completion:
    """The completion with what the answers before it have cost; ``later``: seconds from the first turn to its own."""
    if not unfit:
        return whole
    costs = [each.cost for each in (*unfit, whole)]
    return replace(
        whole,
        usage=sum((each.usage for each in unfit), whole.usage),
        cost=None if None in costs else sum(cost for cost in costs if cost is not None),
        first_token_s=None if whole.first_token_s is None else later + whole.first_token_s,
        total_s=later + whole.total_s,
        attempts=len(unfit) + whole.attempts,
    )
