"""One attempt at one provider: prepare, wait for a slot, send the request, read the response, complete the answer."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from .. import errors, events, log
from ..base import Attempt, Slot
from ..completion import Completion, ReasoningDelta, ServedModel, TextDelta, Usage, Waiting
from ..errors import LLMError
from ..provider_spec import ProviderSpec
from ..servers.model_catalog import QUICK_S, ModelCatalog
from ..stream import Emit, Transcript, Work
from ..timeouts import Times
from ..transport.client import Client, HttpRequest, HttpResponse
from ..transport.endpoint import Endpoint, addressed
from ..transport.error_mapping import failure_of
from ..transport.reader import AnswerReader
from ..transport.reasoning import OPENS_THINKING_ITSELF, Delta, ReasoningSplitter
from ..transport.sse_parser import SSEParser
from ..transport.stream_parser import StreamParser
from . import _litellm, structured_output
from .capacity import CAPACITY
from .context_window import ContextBudget
from .redaction import discreet
from .request import Request, Variant

_TURN_ADDED: Final = "with a turn of the user behind the last assistant message, which the server may continue"
_MAY_BE_OURS: Final = (errors.CapabilityError, errors.RequestError, errors.ServerFailed)


@dataclass(slots=True, eq=False)
class Runner:
    """Starts the attempts at one provider, and remembers what its server refused.

    Attributes:
        spec, client, times, catalog: of the provider.
        address: whose queue a request waits in.
        log_content: log prompts and answers, at DEBUG.
        reask: how often an answer that does not fit its schema is sent back.
        variants: model -> how a request to it is written after its refusals.
        held: models whose answer is held back until it is certain not to be thinking.
        unreachable: the last failure to connect, and its time.
    """

    spec: ProviderSpec
    client: Client
    times: Times
    catalog: ModelCatalog
    address: str
    log_content: bool
    reask: int
    variants: dict[str, Variant] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    unreachable: tuple[float, LLMError] | None = None

    @property
    def endpoint(self) -> Endpoint:
        """The address of the server."""
        return self.client.endpoint

    @property
    def concurrency_limit(self) -> int | None:
        """The concurrency limit: as configured, else the slots that the server reports, else the spec's."""
        server = self.catalog.server
        return self.times.max_concurrency or (server and server.slots) or self.spec.max_concurrency

    @property
    def continuation_spec(self) -> ProviderSpec | None:
        """The spec by which an answer is continued: its own, or that of the detected server if the dialect matches."""
        for spec in (self.spec, self.catalog.server and self.catalog.server.kind):
            if spec and spec.dialect.continues and spec.dialect.parser is self.spec.dialect.parser:
                return spec
        return None

    def start(self, request: Request, attempt: Attempt, *, buffered: bool) -> Work:
        """Return the work of an attempt, with its events. Nothing is sent before it runs.

        Args:
            request: the checked request.
            attempt: its number, and the text to continue.
            buffered: the caller does not read pieces.
        """
        hold = buffered or request.reasoning not in (None, False)  # what may be thinking, until that is certain
        if buffered and self.reask and attempt.prefix is None and structured_output.checks(request.wanted):
            once = partial(self._once, hold=True)
            limit_s = request.timeout or self.times.deadline
            return partial(structured_output.reasked, once, request, attempt, self.reask, limit_s, self.spec.name)
        return self._once(request, attempt, hold=hold)

    def _once(self, request: Request, attempt: Attempt, *, hold: bool) -> Work:
        one = _Attempt(self, request, attempt, hold=hold)
        about = events.About(self.spec.name, self.endpoint.base, request.sampling, attempt, one.sent)
        return partial(events.attempted, about, one.run)

    def explained(
        self, error: LLMError, model: str | None, request: Request | None = None, answer: Answer | None = None
    ) -> LLMError:
        """Add the provider, the model and what to do to an error. Remove what is private, add what arrived."""
        if isinstance(error, errors.ModelNotFound):
            error.hint = error.hint or self.catalog.alternatives(model)
        addressed(error, self.spec, self.endpoint, model)
        if isinstance(error, errors.ModelNotFound | errors.ConnectionFailed):
            self.catalog.forget()
        if isinstance(error, errors.ThinkingLeaked) and error.model:
            self.held.add(error.model)
        discreet(error, self.endpoint.key, request, answer.text if answer else "")
        if answer:
            answer.explain(error)
        return error


class _Attempt:
    """One attempt.

    Args:
        runner: of the provider.
        request, attempt: see ``Runner.start``.
        hold: emit no text before it is certain not to be thinking.
    """

    def __init__(self, runner: Runner, request: Request, attempt: Attempt, *, hold: bool) -> None:
        self._runner, self._request, self._attempt, self._hold = runner, request, attempt, hold
        self._spec, self._catalog, self._times = runner.spec, runner.catalog, runner.times
        self._model = request.model or ""
        self._budget: ContextBudget | None = None
        self._answer: Answer | None = None

    def sent(self) -> tuple[str | None, int | None]:
        """Return the model and the limit of tokens in the request, as far as they are decided."""
        lowered = self._budget and self._budget.answer
        return self._model or None, lowered or self._request.sampling.get("max_tokens")

    async def run(self, emit: Emit) -> Completion:
        """Return the completion. Raises nothing but LLMError."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self._request.timeout or self._times.deadline)
        failure: LLMError | None = None
        try:
            budget = await self._prepared(deadline)
            answer = self._answer = self._new_answer(emit)
            slot = await self._slot(deadline, emit)
            try:
                await self._converse(answer, budget, deadline, emit)
            finally:
                CAPACITY.release(slot)
        except Exception as error:  # noqa: BLE001  # an unforeseen exception gets a name, too
            failure = failure_of(error)
        try:
            if self._answer:
                self._answer.end(broken=failure is not None)
            if failure is None:
                return await self._completed(answer, budget)
        except Exception as error:  # noqa: BLE001  # as above: a schema's validator may raise anything
            failure = failure or failure_of(error)
        explained = self._runner.explained(failure, self._model or None, self._request, self._answer)
        raise explained.with_traceback(None)

    async def _prepared(self, deadline: float) -> ContextBudget:
        """Load LiteLLM, choose the model, and check that the request may fit it."""
        runner, spec, request = self._runner, self._spec, self._request
        if self._times.local_only and not (spec.local or runner.endpoint.near):  # the name is not even looked up
            raise errors.NotLocal(
                f"LLM_LOCAL_ONLY is set, and {spec.title} is not local; nothing was sent",
                hint="Set LLM_PROVIDER to a server of your own, or LLM_LOCAL_ONLY=false",
            )
        try:
            async with asyncio.timeout_at(deadline):
                model = self._model = await self._catalog.which(request.model)  # first: its errors need no LiteLLM
                base, begun = runner.endpoint.base, self._attempt.raw
                budget = self._budget = ContextBudget(spec, base, self._catalog, request, model, begun)
                self._adjusted(await budget.before(min(QUICK_S, self._times.first_token)), tight=budget.tight)
                if request.turn_added:
                    self._adjusted(_TURN_ADDED)
                await _litellm.prepare(spec, runner.endpoint)
        except TimeoutError:
            raise errors.DeadlineExceeded("the deadline was over before the request could be sent") from None
        return budget

    def _new_answer(self, emit: Emit) -> Answer:
        continues = self._attempt.prefix is not None
        closes = self._model in self._runner.held or bool(OPENS_THINKING_ITSELF.search(self._model))
        return Answer(self._request, emit, hold=self._hold, closes=closes, continues=continues)

    async def _slot(self, deadline: float, emit: Emit) -> Slot | None:
        """Wait for a slot of the server, unless the router has taken one. Waiting counts against the deadline only.

        Raises:
            DeadlineExceeded: no slot was free in time.
            ConnectionFailed, ConnectTimeout: another request found the server unreachable meanwhile.
        """
        runner, slot, limit = self._runner, self._attempt.slot, self._runner.concurrency_limit
        loop = asyncio.get_running_loop()
        began = loop.time()
        if slot is None:
            with emit.waiting(Waiting("queue", self._spec.name, self._model)), suppress(TimeoutError):
                slot = await CAPACITY.acquire(runner.address, limit, deadline)
        if limit is not None:
            waited_s = slot.waited_s if slot else loop.time() - began
            events.emit(events.RequestQueued(provider=self._spec.name, seconds=waited_s))
        if self._attempt.slot:
            return None  # the router releases it
        if runner.unreachable and runner.unreachable[0] >= began:
            CAPACITY.release(slot)
            error = runner.unreachable[1]
            raise type(error)(error.what)
        if slot is None:
            what = f"timed out waiting for a free slot (max_concurrency={limit})"
            variable = self._spec.variable("max_concurrency")
            hint = f"Raise timeout= or LLM_DEADLINE, or {variable} if the server can take more"
            raise errors.DeadlineExceeded(what, hint=hint)
        return slot

    async def _converse(self, answer: Answer, budget: ContextBudget, deadline: float, emit: Emit) -> None:
        """Send the request and read its response; again without a parameter of ours that the model refuses."""
        runner, model = self._runner, self._model
        before = variant = runner.variants.get(model) or self._first_variant()
        while True:
            reader = AnswerReader(self._parser(), self._patient(budget))
            answer.parser, answer.sent_at = reader.parser, asyncio.get_running_loop().time()
            try:
                with ExitStack() as load:
                    if budget.loads and emit.all_events:
                        load.enter_context(emit.waiting(Waiting("load", self._spec.name, model)))
                    send = partial(self._send, variant, budget, reader)
                    await reader.read(send, deadline, partial(_take, answer, load), emit.drain)
                break
            except _MAY_BE_OURS as error:
                if answer.first_delta_at is not None:
                    raise
                variant = self._otherwise(budget, variant, error)
        runner.variants[model] = self._request.lasting(variant, before)
        budget.answered()

    def _otherwise(self, budget: ContextBudget, variant: Variant, error: LLMError) -> Variant:
        """Return the next variant after a refusal. Raises the refusal if nothing of ours was refused."""
        why = budget.after(error)
        if why is None:
            other = self._request.otherwise(variant, error)
            if other is None:
                raise error
            variant, why = other
        self._adjusted(why)
        return variant

    def _adjusted(self, why: str | None, *, tight: bool = False) -> None:
        if why:
            events.emit(events.RequestAdjusted(provider=self._spec.name, model=self._model, why=why, tight=tight))

    def _parser(self) -> StreamParser:
        never = self._catalog.stated.get("finish") is False
        return (self._spec.dialect.parser or SSEParser)(self._request.sampling.get("max_tokens"), finish_missing=never)

    def _first_variant(self) -> Variant:
        """Return the variant before any refusal: a schema in words, if the operator states that the model has none."""
        none = self._catalog.stated.get("json_schema") is False
        return Variant(rung=1 if none and len(self._spec.dialect.schema_modes) > 1 else 0)

    def _patient(self, budget: ContextBudget) -> Times:
        """Return the time limits: a load has its own, and other providers may need a share."""
        times, patience = self._times, self._attempt.patience
        first = max(times.first_token, times.load) if budget.loads else times.first_token
        return replace(times, first_token=first if patience is None else min(first, patience))

    async def _send(self, variant: Variant, budget: ContextBudget, reader: AnswerReader) -> HttpResponse:
        runner = self._runner
        request = await self._written(variant, budget)
        request = replace(request, headers=self._request.headers, on_timeout=reader.on_timeout)
        try:
            return await runner.client.ask(request, partial(_litellm.judge, self._spec, self._model))
        except (errors.ConnectionFailed, errors.ConnectTimeout) as error:
            runner.unreachable = asyncio.get_running_loop().time(), error.with_traceback(None)
            raise

    async def _written(self, variant: Variant, budget: ContextBudget) -> HttpRequest:
        """Write the HTTP request: for a chat, or for the continuation of an answer."""
        attempt, spec, model = self._attempt, self._spec, self._model
        by = self._runner.continuation_spec if attempt.prefix is not None else None
        if attempt.prefix is not None and by is None:
            raise errors.Unsupported(f"{spec.title} cannot continue an answer")
        begun = attempt.raw if by and by.dialect.prefill else None
        messages, parameters = self._request.formatted(
            model, variant, context_length=budget.context_length, max_tokens=budget.answer, begun=begun
        )
        if by and by.dialect.continuation:
            body = parameters.get("extra_body", {})
            written: HttpRequest = await by.dialect.continuation(self._catalog.client, model, messages, body, attempt)
            return written
        return _litellm.write(spec, self._runner.endpoint, model, messages, parameters)

    async def _completed(self, answer: Answer, budget: ContextBudget) -> Completion:
        """Return the completion. Raises LLMError if it is none; one that does not fit its schema carries it."""
        request, attempt = self._request, self._attempt
        completion: Completion | None = None
        try:
            completion = answer.completion(self._spec.name, self._model)
            if loss := await budget.loss(completion.usage):
                raise loss
            completion = replace(completion, cost=self._cost(completion))
            if not completion.tool_calls:
                completion = replace(completion, parsed=structured_output.parsed(request.wanted, completion.text))
        except errors.BrokenAnswer as error:
            if answer.parser.finish == "length":
                what = f"{error.what}; it ended at {self._limit(answer.parser.usage)}"
                hint = error.hint if isinstance(error, errors.AnswerTruncated) else ""
                raise errors.AnswerTruncated(what, hint=hint) from None
            if isinstance(error, errors.SchemaMismatch):
                error.answer = completion  # it has a cost, too
                if request.sampling.get("temperature") == 0:
                    error.retryable = False  # without sampling, the same request gets the same answer again
            raise
        events.content(attempt.request, attempt.number, request.messages, completion)
        if self._runner.log_content:
            messages, text, reasoning = request.messages, completion.text, completion.reasoning
            log.line("debug", "llm.content", messages=messages, text=text, reasoning=reasoning)
        return completion

    def _cost(self, completion: Completion) -> float | None:
        if completion.cost is not None:
            return completion.cost  # as the server reports it
        if not self._spec.local:
            return _litellm.price(self._spec, self._model, completion.usage)
        return 0.0 if self._catalog.capabilities(self._model)["cost"] == (0.0, 0.0) else None

    def _limit(self, usage: Usage) -> str:
        """Return the name of the limit at which an answer ended."""
        limit, tokens = self.sent()[1], usage.completion_tokens
        if limit is None or (tokens or limit) < limit:
            return f"{tokens or '?'} tokens, where the context was full"
        return f"max_tokens={limit}"


class Answer(Transcript):
    """The answer of one attempt while it arrives: deltas of the wire in, events out, at the end a completion.

    Args:
        request: what it answers.
        emit: of the attempt.
        hold: emit no text before it is certain not to be thinking.
        closes: the model's template opens the thinking, so that the answer only closes it.
        continues: it is the rest of an answer, which may be empty and does not think.

    Attributes:
        parser: of the response.
        sent_at, first_delta_at: times of the event loop; the latter is None before the first delta.
        deltas: how many arrived; most servers send one for each token.
    """

    parser: StreamParser

    def __init__(self, request: Request, emit: Emit, *, hold: bool, closes: bool, continues: bool) -> None:
        super().__init__(emit)
        self.sent_at = self._ended_at = 0.0
        self.first_delta_at: float | None = None
        self.deltas = 0
        self._request, self._continues = request, continues
        self._splitter = ReasoningSplitter(hold=hold and not continues, closes=closes and not continues)

    def take(self, delta: Delta) -> None:
        """Add a delta of the wire. Raises ThinkingLeaked if emitted text turns out to be thinking."""
        self.deltas += 1
        if self.first_delta_at is None:
            self.first_delta_at = asyncio.get_running_loop().time()
        held = self._splitter.separated() if delta.thinking or delta.calls else ""
        split = self._splitter.feed(delta.text) if delta.text else Delta()
        self._show(Delta(held + split.text, delta.thinking + split.thinking, delta.calls))

    def end(self, *, broken: bool) -> None:
        """Emit what was held back: the response has ended; ``broken``: before the answer was complete."""
        self._ended_at = asyncio.get_running_loop().time()
        self._show(self._splitter.end(broken=broken))

    def _show(self, delta: Delta) -> None:
        if self._splitter.leaked and self.text:
            self.forget_text()
            self._thinking.append(delta.thinking)
            raise errors.ThinkingLeaked("the text so far was thinking: a closing </think> came without an opening one")
        if delta.thinking:
            self(ReasoningDelta(delta.thinking))
        if delta.text:
            self(TextDelta(delta.text))
        for call in delta.calls:
            self(call)

    def completion(self, provider: str, model: str) -> Completion:
        """Return the completion, without a schema's instance and without a cost that the server did not report.

        Raises:
            ContentFiltered: the model refused.
            EmptyAnswer: it finished without text or tool calls.
            MalformedAnswer, SchemaMismatch: the tool calls are not what was requested.
        """
        parser = self.parser
        calls, text, finish = parser.tool_calls(), self.text, parser.finish or "stop"
        if not text.strip() and not calls and not self._continues:
            raise self._empty()
        must_call = self._request.tool_choice not in (None, "auto", "none")
        if must_call and not calls:  # a server may accept the parameter and ignore it
            hint = "Use a model and a server with tools"
            raise errors.SchemaMismatch("tool_choice= required a tool call, and the answer has none", hint=hint)
        first = self.first_delta_at
        return Completion(
            text=text,
            reasoning=self.thinking or None,
            tool_calls=calls,
            finish="tool_calls" if calls and finish == "stop" else finish,
            provider=provider,
            model=ServedModel(model, parser.served),
            usage=parser.usage,
            cost=parser.cost,
            first_token_s=None if first is None else first - self.sent_at,
            total_s=self._ended_at - self.sent_at,
        )

    def explain(self, error: LLMError) -> None:
        """Add the partial answer to an error."""
        error.partial, error.thinking, error.tokens = self.text, self.thinking, self.deltas
        if self.sent_at:
            error.partial_calls, error.finished = self.parser.calls, bool(self.parser.finish)

    def _empty(self) -> LLMError:
        if self.parser.refused:
            return errors.ContentFiltered("the model refused to answer")
        if self.thinking and self.parser.finish == "length":
            return errors.AnswerTruncated("thinking used all tokens", hint="Raise max_tokens=, or set reasoning=False")
        what = "the model thought, and answered nothing" if self.thinking else "the answer is empty"
        return errors.EmptyAnswer(what, hint="Ask again; if it stays empty, look into the server's log or context size")


def _take(answer: Answer, load: ExitStack, delta: Delta) -> None:
    if answer.first_delta_at is None:
        load.close()  # the model is loaded
    answer.take(delta)
