"""One attempt at one provider: prepare, wait for a slot, send the request, read the response, return the completion."""

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
from ..servers.model_catalog import QUICK_PROBE_S, ModelCatalog
from ..stream import Emit, Transcript, Work
from ..timeouts import Times
from ..transport.client import Client, HttpRequest, HttpResponse
from ..transport.endpoint import addressed
from ..transport.error_mapping import failure_of
from ..transport.reader import AnswerReader, IsLoading
from ..transport.reasoning import OPENS_THINKING_ITSELF, Delta, ReasoningSplitter
from ..transport.sse_parser import SSEParser
from ..transport.stream_parser import StreamParser
from . import _litellm, structured_output
from .capacity import CAPACITY
from .context_window import ContextBudget
from .redaction import redact
from .request import Request, Variant

# Some servers continue an assistant message that ends the prompt.
_TURN_ADDED: Final = "with a user message after the last assistant message, so that the server does not continue it"
_RETRIED_REFUSALS: Final = (errors.CapabilityError, errors.RequestError, errors.ServerFailed)


@dataclass(slots=True, eq=False)
class Runner:
    """Runs attempts at one provider. Caches the request formats that it accepts.

    Attributes:
        spec, client, times, catalog: the provider's spec, HTTP client, timeouts and model catalog.
        address: the server's address. Requests to the same address share a queue.
        log_content: log prompts and answers, at DEBUG.
        reask: the most corrections to ask for after an answer that does not match its schema.
        variants: the last accepted request format of each model.
        leaking_models: models that emitted thinking as text. Text is held back until it is known to be the answer.
        unreachable: the time and the error of the last failure to connect; None before.
    """

    spec: ProviderSpec
    client: Client
    times: Times
    catalog: ModelCatalog
    address: str
    log_content: bool
    reask: int
    variants: dict[str, Variant] = field(default_factory=dict)
    leaking_models: set[str] = field(default_factory=set)
    unreachable: tuple[float, LLMError] | None = None

    @property
    def concurrency_limit(self) -> int | None:
        """Return the configured concurrency limit, else the slots that the server reports, else the spec's limit."""
        server = self.catalog.server
        return self.times.max_concurrency or (server and server.slots) or self.spec.max_concurrency

    @property
    def continuation_spec(self) -> ProviderSpec | None:
        """Return the spec that defines how to continue an answer; None if the provider cannot.

        It is the provider's spec, else that of the detected server if both use the same parser.
        """
        for spec in (self.spec, self.catalog.server and self.catalog.server.kind):
            if spec and spec.dialect.continues and spec.dialect.parser is self.spec.dialect.parser:
                return spec
        return None

    def start(self, request: Request, attempt: Attempt, *, buffered: bool) -> Work:
        """Return a function that runs the attempt and emits its events. Nothing is sent before its call.

        Args:
            request: the checked request.
            attempt: the number of the attempt, and the text to continue.
            buffered: the caller does not stream the answer.
        """
        hold = buffered or request.reasoning not in (None, False)
        validated = structured_output.is_validated(request.response_format)
        if buffered and self.reask and validated and attempt.prefix is None:
            run_once = partial(self._single_attempt, hold=True)
            limit_s = request.timeout or self.times.deadline
            return partial(
                structured_output.run_with_corrections, run_once, request, attempt, self.reask, limit_s, self.spec.name
            )
        return self._single_attempt(request, attempt, hold=hold)

    def _single_attempt(self, request: Request, attempt: Attempt, *, hold: bool) -> Work:
        runnable = _Attempt(self, request, attempt, hold=hold)
        name, address = self.spec.name, self.client.endpoint.base
        return partial(
            events.run_attempt, name, address, request.sampling, attempt, runnable.model_and_limit, runnable.run
        )

    def explain(
        self, error: LLMError, model: str | None, request: Request | None = None, answer: Answer | None = None
    ) -> LLMError:
        """Add provider, model, hint and partial answer to an error, and redact it. Return the error.

        Args:
            error: changed in place.
            model: the requested model.
            request: the request that failed; None for a probe.
            answer: the answer received so far, if any.
        """
        if isinstance(error, errors.ModelNotFound):
            error.hint = error.hint or self.catalog.alternatives(model)
        addressed(error, self.spec, self.client.endpoint, model)
        if isinstance(error, errors.ModelNotFound | errors.ConnectionFailed | errors.NotLocal):
            self.catalog.forget()
        if isinstance(error, errors.ThinkingLeaked) and error.model:
            self.leaking_models.add(error.model)
        redact(error, self.client.endpoint.key, request, answer.text if answer else "")
        if answer:
            answer.explain(error)
        return error


class _Attempt:
    """One attempt.

    Args:
        runner: the provider's runner.
        request, attempt: see ``Runner.start``.
        hold: hold text back until it is known to be the answer, not thinking.
    """

    def __init__(self, runner: Runner, request: Request, attempt: Attempt, *, hold: bool) -> None:
        self._runner, self._request, self._attempt, self._hold = runner, request, attempt, hold
        self._spec, self._catalog, self._times = runner.spec, runner.catalog, runner.times
        self._model = request.model or ""
        self._budget: ContextBudget | None = None
        self._answer: Answer | None = None

    def model_and_limit(self) -> tuple[str | None, int | None]:
        """Return the model and ``max_tokens`` of the request; None for one that is not chosen yet."""
        lowered = self._budget and self._budget.answer
        return self._model or None, lowered or self._request.sampling.get("max_tokens")

    async def run(self, emit: Emit) -> Completion:
        """Run the attempt and return the completion. Raise only LLMError."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self._request.timeout or self._times.deadline)
        failure: LLMError | None = None
        try:
            budget = await self._prepare(deadline)
            leaks = self._model in self._runner.leaking_models or bool(OPENS_THINKING_ITSELF.search(self._model))
            continues = self._attempt.prefix is not None
            answer = self._answer = Answer(
                self._request, emit, hold=self._hold, only_closing_tag=leaks, continues=continues
            )
            slot = await self._acquire_slot(deadline, emit)
            try:
                await self._exchange(answer, budget, deadline, emit)
            finally:
                CAPACITY.release(slot)
        except Exception as error:  # noqa: BLE001  # every exception becomes an LLMError
            failure = failure_of(error)
        try:
            if self._answer:
                self._answer.end(broken=failure is not None)
            if failure is None:
                return await self._complete(answer, budget)
        except Exception as error:  # noqa: BLE001  # the validator of a schema may raise anything
            failure = failure or failure_of(error)
        explained = self._runner.explain(failure, self._model or None, self._request, self._answer)
        raise explained.with_traceback(None)

    async def _prepare(self, deadline: float) -> ContextBudget:
        """Choose the model, check whether the request fits it, and import LiteLLM. Return the budget."""
        runner, spec, request = self._runner, self._spec, self._request
        if self._times.local_only and not (spec.local or runner.client.endpoint.near):  # without a DNS query
            raise errors.NotLocal(
                f"LLM_LOCAL_ONLY is set, and {spec.title} is not local; nothing was sent",
                hint="Set LLM_PROVIDER to a server of your own, or LLM_LOCAL_ONLY=false",
            )
        try:
            async with asyncio.timeout_at(deadline):
                self._model = await self._catalog.choose_name(request.model)  # before the slow import of LiteLLM
                base, prefill = runner.client.endpoint.base, self._attempt.raw
                budget = self._budget = ContextBudget(spec, base, self._catalog, request, self._model, prefill)
                adjustment = await budget.prepare(min(QUICK_PROBE_S, self._times.first_token))
                self._report_adjusted(adjustment, tight=budget.tight)
                if request.turn_added:
                    self._report_adjusted(_TURN_ADDED)
                await _litellm.prepare(spec, runner.client.endpoint)
        except TimeoutError:
            raise errors.DeadlineExceeded("the deadline passed before the request was sent") from None
        return budget

    async def _acquire_slot(self, deadline: float, emit: Emit) -> Slot | None:
        """Wait for a slot of the server until the deadline. Return at once if the router has acquired the slot.

        Returns:
            The slot to release; None if the router releases it.

        Raises:
            DeadlineExceeded: no slot was free in time.
            ConnectionFailed, ConnectTimeout: another request could not connect to the server during the wait.
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
            return None
        if runner.unreachable and runner.unreachable[0] >= began:
            CAPACITY.release(slot)
            error = runner.unreachable[1]
            raise type(error)(error.what)
        if slot is None:
            what = f"timed out waiting for a free slot (max_concurrency={limit})"
            variable = self._spec.variable("max_concurrency")
            hint = f"Raise timeout= or LLM_DEADLINE, or {variable} if the server can serve more requests"
            raise errors.DeadlineExceeded(what, hint=hint)
        return slot

    async def _exchange(self, answer: Answer, budget: ContextBudget, deadline: float, emit: Emit) -> None:
        """Send the request and read the response. After a refusal, retry without the default that caused it."""
        runner, model = self._runner, self._model
        before = variant = runner.variants.get(model) or self._first_variant()
        make_parser = self._spec.dialect.parser or SSEParser
        finish_missing = self._catalog.stated.get("finish") is False
        while True:
            parser = make_parser(self._request.sampling.get("max_tokens"), finish_missing=finish_missing)
            reader = AnswerReader(parser, self._time_limits(budget), self._load_probe(budget))
            answer.parser, answer.sent_at = parser, asyncio.get_running_loop().time()
            try:
                with ExitStack() as load_wait:
                    if budget.loads and emit.all_events:
                        load_wait.enter_context(emit.waiting(Waiting("load", self._spec.name, model)))
                    send = partial(self._send, variant, budget, reader)
                    await reader.read(send, deadline, partial(self._feed, answer, load_wait), emit.drain)
                break
            except _RETRIED_REFUSALS as error:
                if answer.first_delta_at is not None:
                    raise
                variant = self._variant_after(budget, variant, error)
        runner.variants[model] = self._request.variant_to_cache(variant, before)
        budget.mark_loaded()

    def _variant_after(self, budget: ContextBudget, variant: Variant, error: LLMError) -> Variant:
        """Return the variant to retry with after a refusal. Raise the refusal if a retry cannot help."""
        adjustment = budget.adjust_after(error)
        if adjustment is None:
            change = self._request.variant_after(variant, error)
            if change is None:
                raise error
            variant, adjustment = change
        self._report_adjusted(adjustment)
        return variant

    def _report_adjusted(self, adjustment: str | None, *, tight: bool = False) -> None:
        if adjustment:
            name, model = self._spec.name, self._model
            events.emit(events.RequestAdjusted(provider=name, model=model, why=adjustment, tight=tight))

    def _first_variant(self) -> Variant:
        """Return the variant before any refusal. Skip JSON schemas if the operator configured them as unsupported."""
        no_schema = self._catalog.stated.get("json_schema") is False
        return Variant(fallback_level=1 if no_schema and len(self._spec.dialect.schema_modes) > 1 else 0)

    def _time_limits(self, budget: ContextBudget) -> Times:
        """Return the time limits: longer for a cold model, shorter if the router reserves time for other providers."""
        times, patience = self._times, self._attempt.patience
        first = max(times.first_token, times.load) if budget.loads else times.first_token
        return replace(times, first_token=first if patience is None else min(first, patience))

    def _feed(self, answer: Answer, load_wait: ExitStack, delta: Delta) -> None:
        """Add a delta to the answer. Raise NotLocal if another machine sent it, although LLM_LOCAL_ONLY is set."""
        if self._times.local_only and answer.parser.forwarded:
            raise errors.NotLocal(
                "LLM_LOCAL_ONLY is set, and the server forwarded the request to another machine",
                hint=f"Set {self._spec.variable('model')} to a model that runs on the server, or LLM_LOCAL_ONLY=false",
            )
        if answer.first_delta_at is None:
            load_wait.close()  # the model is loaded
        answer.feed(delta)

    def _load_probe(self, budget: ContextBudget) -> IsLoading | None:
        """Return a probe whether the server loads the model, if it may do so although it was loaded before."""
        if budget.loads or not self._catalog.loads_models or self._runner.client.replays:
            return None
        return partial(self._catalog.is_loading, self._model, QUICK_PROBE_S)

    async def _send(self, variant: Variant, budget: ContextBudget, reader: AnswerReader) -> HttpResponse:
        runner = self._runner
        request = await self._write(variant, budget)
        request = replace(request, headers=self._request.session_field(header=True), on_timeout=reader.on_timeout)
        try:
            return await runner.client.send(request, partial(_litellm.judge, self._spec, self._model))
        except (errors.ConnectionFailed, errors.ConnectTimeout) as error:
            runner.unreachable = asyncio.get_running_loop().time(), error.with_traceback(None)
            raise

    async def _write(self, variant: Variant, budget: ContextBudget) -> HttpRequest:
        """Return the HTTP request of a chat, or of a continuation."""
        attempt, spec, model = self._attempt, self._spec, self._model
        continuing = self._runner.continuation_spec if attempt.prefix is not None else None
        if attempt.prefix is not None and continuing is None:
            raise errors.Unsupported(f"{spec.title} cannot continue an answer")
        prefill = attempt.raw if continuing and continuing.dialect.prefill else None
        messages, parameters = self._request.formatted(
            model, variant, context_length=budget.context_length, max_tokens=budget.answer, prefill=prefill
        )
        if continuing and continuing.dialect.continuation:
            write, body = continuing.dialect.continuation, parameters.get("extra_body", {})
            request: HttpRequest = await write(self._catalog.client, model, messages, body, attempt)
            return request
        return _litellm.write(spec, self._runner.client.endpoint, model, messages, parameters)

    async def _complete(self, answer: Answer, budget: ContextBudget) -> Completion:
        """Return the completion.

        Raises:
            AnswerTruncated: the answer ended at a token limit, and is unusable.
            SchemaMismatch: the answer does not match its schema. The error contains the completion.
            LLMError: the answer is incomplete for another reason.
        """
        request, attempt = self._request, self._attempt
        completion: Completion | None = None
        try:
            completion = answer.completion(self._spec.name, self._model)
            if loss := await budget.loss(completion.usage):
                raise loss
            completion = replace(completion, cost=self._cost(completion))
            if not completion.tool_calls:
                parsed = structured_output.parse(request.response_format, completion.text)
                completion = replace(completion, parsed=parsed)
        except errors.BrokenAnswer as error:
            if answer.parser.finish == "length":
                what = f"{error.what}; it ended at {self._limit_reached(answer.parser.usage)}"
                hint = error.hint if isinstance(error, errors.AnswerTruncated) else ""
                raise errors.AnswerTruncated(what, hint=hint) from None
            if isinstance(error, errors.SchemaMismatch):
                error.answer = completion  # its tokens and cost count, too
                if request.sampling.get("temperature") == 0:
                    error.retryable = False  # without sampling, a retry returns the same answer
            raise
        events.emit_content(attempt.request, attempt.number, request.messages, completion)
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

    def _limit_reached(self, usage: Usage) -> str:
        """Return the limit at which an answer ended, for an error message."""
        limit, tokens = self.model_and_limit()[1], usage.completion_tokens
        if limit is None or (tokens or limit) < limit:
            return f"{tokens or '?'} tokens, because the context was full"
        return f"max_tokens={limit}"


class Answer(Transcript):
    """The answer of one attempt while it arrives. It receives deltas, emits events, and returns the completion.

    Args:
        request: the request.
        emit: receives the events.
        hold: hold text back until it is known to be the answer, not thinking.
        only_closing_tag: the response has </think> without <think>, because the model's template contains <think>.
        continues: the response is a continuation. It may be empty, and contains no thinking.

    Attributes:
        parser: parses the response.
        sent_at: when the request was sent, on the clock of the event loop.
        first_delta_at: when the first delta arrived, on the same clock; None before.
        deltas: the number of deltas. Most servers send one for each token.
    """

    parser: StreamParser

    def __init__(self, request: Request, emit: Emit, *, hold: bool, only_closing_tag: bool, continues: bool) -> None:
        super().__init__(emit)
        self.sent_at = self._ended_at = 0.0
        self.first_delta_at: float | None = None
        self.deltas = 0
        self._request, self._continues = request, continues
        closes = only_closing_tag and not continues
        self._splitter = ReasoningSplitter(hold=hold and not continues, closes=closes)

    def feed(self, delta: Delta) -> None:
        """Add a delta of the response. Raise ThinkingLeaked if emitted text turns out to be thinking."""
        self.deltas += 1
        if self.first_delta_at is None:
            self.first_delta_at = asyncio.get_running_loop().time()
        held = self._splitter.separated() if delta.thinking or delta.calls else ""
        split = self._splitter.feed(delta.text) if delta.text else Delta()
        self._emit_delta(Delta(held + split.text, delta.thinking + split.thinking, delta.calls))

    def end(self, *, broken: bool) -> None:
        """Emit the text that was held back. ``broken`` if the response ended before the answer was complete."""
        self._ended_at = asyncio.get_running_loop().time()
        self._emit_delta(self._splitter.end(broken=broken))

    def _emit_delta(self, delta: Delta) -> None:
        if self._splitter.leaked and self.text:
            self.forget_text()
            self._thinking.append(delta.thinking)
            raise errors.ThinkingLeaked("the text so far was thinking: </think> arrived without <think>")
        if delta.thinking:
            self(ReasoningDelta(delta.thinking))
        if delta.text:
            self(TextDelta(delta.text))
        for call in delta.calls:
            self(call)

    def completion(self, provider: str, model: str) -> Completion:
        """Return the completion, without ``parsed``, and without a cost unless the server reports it.

        Args:
            provider: the name of the provider.
            model: the name of the model in the request.

        Raises:
            ContentFiltered: the model refused to answer.
            EmptyAnswer: the response has neither text nor tool calls.
            MalformedAnswer: a tool call has no name, or its arguments are not a JSON object.
            SchemaMismatch: a required tool call is missing.
        """
        parser = self.parser
        calls, text, finish = parser.tool_calls(), self.text, parser.finish or "stop"
        if not text.strip() and not calls and not self._continues:
            raise self._empty()
        must_call = self._request.tool_choice not in (None, "auto", "none")
        if must_call and not calls:  # some servers ignore the parameter
            hint = "Use a model and a server that support tools"
            raise errors.SchemaMismatch("tool_choice= requires a tool call, but the answer has none", hint=hint)
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
        what = "the answer is empty after the thinking" if self.thinking else "the answer is empty"
        return errors.EmptyAnswer(what, hint="Retry. If it stays empty, check the server's log and its context length")
