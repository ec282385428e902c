"""Run one attempt at one provider: choose the model, wait for a slot, send the request, check the answer.

``AttemptRunner`` has the state of a provider, and ``_RunningAttempt`` that of one attempt. A slot is a place within the
concurrency limit of a server.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, cast

from .. import errors, events, log
from ..base import Attempt, Slot, describe_limit
from ..capabilities import is_same_model
from ..completion import CallId, Completion, Waiting
from ..errors import LLMError
from ..parameters import ApiName
from ..provider_spec import ProviderSpec
from ..servers import model_prices
from ..servers.model_catalog import QUICK_PROBE_S, ModelCatalog
from ..stream import Emit, Work
from ..timeouts import Timeouts
from ..transport.client import Client, HttpRequest, HttpResponse
from ..transport.endpoint import add_error_context
from ..transport.error_mapping import map_exception, with_class
from ..transport.reader import AnswerReader, IsLoading
from ..transport.reasoning import MODELS_WITHOUT_OPENING_TAG, Delta
from ..transport.responses_parser import ResponsesParser
from ..transport.sse_parser import SSEParser
from . import _litellm, structured_output
from .answer import Answer, redact
from .capacity import CAPACITY
from .context_window import ContextBudget
from .request import Request, RequestFormat, build_without_litellm

# The ``change`` of the RequestAdjusted event that reports an added user message.
_MESSAGE_ADDED: Final = "with a user message after the last assistant message, so that the server does not continue it"
_BAD_REQUEST: Final = 400
_ADJUST_REQUEST_AFTER: Final = (errors.CapabilityError, errors.ServerFailed, errors.Misconfigured)
# ``error_mapping`` did not recognise the server's message in these errors. LiteLLM may recognise it.
_UNEXPLAINED_ERRORS: Final = (errors.RequestRefused, errors.ErrorBody, errors.ErrorInAnswer)


@dataclass(slots=True, eq=False)
class AttemptRunner:
    """Runs attempts at one provider. Caches the request format that each model accepts.

    Attributes:
        address: the key of the queue and the circuit breakers; see ``BaseProvider.address``.
        log_content: log prompts and answers at DEBUG.
        reask: the maximum number of requests to correct an answer that does not match its schema.
        api: the configured API; None if the model and the request decide.
        request_formats: model name -> the format that the model last accepted.
        leaking_models: the models that sent thinking as text. Their text is held back until </think>.
        reported_mismatches: pairs (requested model, model in the response) for which an event was emitted.
        last_connect_failure: time (event loop's clock) and error of the last failed connection.
    """

    spec: ProviderSpec
    client: Client
    timeouts: Timeouts
    catalog: ModelCatalog
    address: str
    log_content: bool
    reask: int
    api: ApiName | None = None
    request_formats: dict[str, RequestFormat] = field(default_factory=dict)
    leaking_models: set[str] = field(default_factory=set)
    reported_mismatches: set[tuple[str, str | None]] = field(default_factory=set)
    last_connect_failure: tuple[float, LLMError] | None = None

    @property
    def origin(self) -> str:
        """Return ``Completion.origin``, an id of the provider and its base URL.

        It is a digest, because later prompts contain it, and must not reveal the address.
        """
        return hashlib.sha256(f"{self.spec.name} {self.client.endpoint.base_url}".encode()).hexdigest()[:16]

    @property
    def concurrency_limit(self) -> int | None:
        """Return the configured concurrency limit, else the slots that the server reports, else the spec's limit."""
        server = self.catalog.server
        return self.timeouts.max_concurrency or (server and server.slots) or self.spec.max_concurrency

    @property
    def continuation_spec(self) -> ProviderSpec | None:
        """Return a spec with a ``Dialect`` (format of requests) that can continue a broken answer; else None.

        The provider's own spec comes first. The spec of the detected server must have the same parser.
        """
        if self.api == "responses":
            return None
        for spec in (self.spec, self.catalog.server and self.catalog.server.spec):
            if spec and spec.dialect.can_continue and spec.dialect.parser is self.spec.dialect.parser:
                return spec
        return None

    def start(self, request: Request, attempt: Attempt) -> Work:
        """Return a coroutine function that runs the attempt.

        If ``request.buffered``, the caller receives the whole answer at the end. If this answer does not match its
        schema, the function also requests corrections.
        """
        # Thinking may arrive as text. Hold text back if thinking was requested, or if the caller gets no stream anyway
        hold_text = (request.buffered and not request.is_journaled) or request.reasoning not in (None, False)
        validated = structured_output.is_validated(request.response_format)
        if request.buffered and self.reask and validated and attempt.prefix is None:
            run_once = partial(self._start_once, hold_text=True)
            limit_s = request.timeout or self.timeouts.deadline
            return partial(
                structured_output.run_with_corrections, run_once, request, attempt, self.reask, limit_s, self.spec.name
            )
        return self._start_once(request, attempt, hold_text=hold_text)

    def _start_once(self, request: Request, attempt: Attempt, *, hold_text: bool) -> Work:
        running = _RunningAttempt(self, request, attempt, hold_text=hold_text)
        name, base_url = self.spec.name, self.client.endpoint.base_url
        run = partial(events.run_attempt, context_setting=self.spec.context_setting)
        return partial(run, name, base_url, request.sampling, attempt, running.model_and_max_tokens, running.run)

    def record_failure(self, error: LLMError, model: str | None) -> LLMError:
        """Add the provider, the model and a hint to an error, and return the error.

        Clear the catalog if its models may have changed. Record a model that sent thinking as text.
        """
        if isinstance(error, errors.ModelNotFound):
            error.hint = error.hint or self.catalog.alternatives_hint(model)
        add_error_context(error, self.spec, self.client.endpoint, model)
        if isinstance(error, errors.ModelNotFound | errors.ConnectionFailed | errors.NotLocal):
            self.catalog.clear()
        if isinstance(error, errors.ThinkingLeaked) and error.model:
            self.leaking_models.add(error.model)
        return error


@asynccontextmanager
async def _before_deadline(deadline: float) -> AsyncIterator[None]:
    """Return a context manager that raises DeadlineExceeded at the deadline (on the event loop's clock)."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise errors.DeadlineExceeded("the deadline passed before the request was sent") from None


class _RunningAttempt:
    """One running attempt. If ``hold_text``, it holds back text that may be thinking.

    The ``ContextBudget`` of the attempt chooses the context length and the token limit of the answer.
    """

    def __init__(self, runner: AttemptRunner, request: Request, attempt: Attempt, *, hold_text: bool) -> None:
        self._runner, self._request, self._attempt, self._hold_text = runner, request, attempt, hold_text
        self._spec, self._catalog, self._timeouts = runner.spec, runner.catalog, runner.timeouts
        self._model = request.model or ""
        endpoint = runner.client.endpoint.with_call_headers(request.headers, request.session)
        self._client = replace(runner.client, endpoint=endpoint)
        self._budget = ContextBudget(runner.spec, runner.catalog, self._client, request, attempt.prefill_with_thinking)
        self._answer: Answer | None = None
        self._responses_api_error: LLMError | None = None  # raised if the retry as a chat completion also fails

    def model_and_max_tokens(self) -> tuple[str | None, int | None]:
        """Return the model (None if not yet chosen) and the ``max_tokens`` to send (None if unlimited)."""
        return self._model or None, self._budget.answer_limit or self._request.sampling.get("max_tokens")

    async def run(self, emit: Emit) -> Completion:
        """Run the attempt and return the completion. Raise only LLMError."""
        deadline = asyncio.get_running_loop().time() + (self._request.timeout or self._timeouts.deadline)
        try:
            await self._prepare(deadline)
            slot = await self._acquire_slot(deadline, emit)
            try:
                answer = await self._exchange(deadline, emit)
            finally:
                CAPACITY.release(slot)
            return await self._complete(answer)
        except Exception as error:  # noqa: BLE001  # every exception becomes an LLMError
            failure = self._runner.record_failure(map_exception(error), self._model or None)
        redact(failure, self._client.endpoint, self._request, self._answer.text if self._answer else "")
        if self._answer:
            self._answer.add_details(failure)
        raise failure.with_traceback(None)

    async def _prepare(self, deadline: float) -> None:
        """Choose the model, check whether the request fits it, and import LiteLLM."""
        runner, spec, budget = self._runner, self._spec, self._budget
        # This early check reads only the host name. ``network.Backend`` checks the resolved address
        if self._timeouts.local_only and not (spec.local or runner.client.endpoint.looks_local):
            hint = "Set LLM_PROVIDER to a server of your own, or LLM_LOCAL_ONLY=false"
            raise errors.NotLocal(f"LLM_LOCAL_ONLY is set, and {spec.title} is not local; nothing was sent", hint=hint)
        async with _before_deadline(deadline):
            self._model = await self._catalog.choose_name(self._request.model)
            adjustment = await budget.prepare(self._model, min(QUICK_PROBE_S, self._timeouts.first_token))
            self._report_adjusted(adjustment, is_limit_low=budget.is_answer_limit_low)
            if self._request.user_message_added:
                self._report_adjusted(_MESSAGE_ADDED)
            if not self._request.can_bypass_litellm:
                # Import LiteLLM last: the import is slow, and not needed if a check above fails
                await _litellm.prepare(spec, runner.client.endpoint)

    async def _acquire_slot(self, deadline: float, emit: Emit) -> Slot | None:
        """Wait for a slot. Return the slot to release; None if the router acquired a slot, and releases it itself.

        Raises:
            DeadlineExceeded: no slot was free before the deadline.
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
        if runner.last_connect_failure and runner.last_connect_failure[0] >= began:
            CAPACITY.release(slot)
            error = runner.last_connect_failure[1]
            raise type(error)(error.what)
        if slot is None:
            what = f"timed out waiting for a free slot (max_concurrency={limit})"
            variable = self._spec.variable("max_concurrency")
            hint = f"Raise timeout= or LLM_DEADLINE, or {variable} if the server can serve more requests at once"
            raise errors.DeadlineExceeded(what, hint=hint)
        return slot

    async def _exchange(self, deadline: float, emit: Emit) -> Answer:
        """Send the request and read the response. If the server rejects the request, adjust it and retry."""
        runner, model, name = self._runner, self._model, self._spec.name
        first_format = request_format = runner.request_formats.get(model) or self._initial_format()
        finish_optional = self._catalog.overrides.get("finish") is False
        only_closing_tag = model in runner.leaking_models or bool(MODELS_WITHOUT_OPENING_TAG.search(model))
        is_continuation = self._attempt.prefix is not None
        while True:
            api = request_format.api or self._choose_api()
            async with _before_deadline(deadline):
                # Raise NotLocal if the model is no longer local, because the wait for a slot may have taken minutes
                await self._catalog.choose_name(self._model)
                if api == "responses":  # the Responses API always requires LiteLLM
                    await _litellm.prepare(self._spec, self._client.endpoint)
            make_parser = ResponsesParser if api == "responses" else self._spec.dialect.parser or SSEParser
            parser = make_parser(self._request.sampling.get("max_tokens"), finish_optional=finish_optional)
            reader = AnswerReader(parser, self._time_limits(request_format), self._load_probe())
            answer = Answer(
                self._request,
                emit,
                parser,
                hold_text=self._hold_text,
                only_closing_tag=only_closing_tag,
                is_continuation=is_continuation,
            )
            self._answer = answer
            try:
                with answer.loading_context as loading_context:
                    if self._budget.must_load_model:
                        loading_context.enter_context(emit.waiting(Waiting("load", name, model)))
                    feed = partial(self._feed, answer)
                    send = partial(self._send, replace(request_format, api=api), reader)
                    await reader.read(send, deadline, feed, emit.drain)
            except Exception as failure:  # noqa: BLE001  # ``run`` converts every exception
                error = await self._classify(failure, deadline)
                if isinstance(error, _ADJUST_REQUEST_AFTER) and answer.first_delta_at is None:
                    request_format = self._adjust_or_raise(request_format, error, api)
                    continue
                with suppress(Exception):  # raise ``error``, not an exception of ``end``
                    answer.end(broken=True)
                raise error from None
            runner.request_formats[model] = self._request.format_to_cache(request_format, first_format)
            self._budget.mark_loaded()
            answer.end()
            return answer

    def _choose_api(self) -> ApiName:
        """Choose the API. LiteLLM's price map lists the models that require the Responses API."""
        request, may_think = self._request, self._request.reasoning not in (False, "none")
        needs_responses = model_prices.needs_responses(
            self._spec, self._model, tools=bool(request.tools), reasoning=may_think
        )
        return "responses" if needs_responses else "chat"

    def _adjust_or_raise(self, request_format: RequestFormat, error: LLMError, api: ApiName) -> RequestFormat:
        """Return the format of the retry after an error response. Raise the error if a retry cannot help."""
        adjustment = self._budget.adjust_after(error)
        if adjustment is None:
            change = self._request.next_format(request_format, error, api=api)
            if change is None:
                raise self._responses_api_error or error
            request_format, adjustment = change
            if (api, request_format.api) == ("responses", "chat"):
                self._responses_api_error = error
        self._report_adjusted(adjustment)
        return request_format

    async def _classify(self, error: Exception, deadline: float) -> Exception:
        """Return a more specific error if LiteLLM recognises the server's message; else the error itself."""
        if not (isinstance(error, _UNEXPLAINED_ERRORS) and error.server_message):
            return error
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await _litellm.prepare(self._spec, self._client.endpoint)
        if not _litellm.is_prepared(self._spec):
            return error
        status, message = error.status or _BAD_REQUEST, error.server_message
        error_class = _litellm.classify_error(self._spec, self._model, status, message)
        if error_class in (errors.ContextOverflow, errors.ContentFiltered):
            return with_class(error, error_class)
        return error

    def _report_adjusted(self, adjustment: str | None, *, is_limit_low: bool = False) -> None:
        if adjustment:
            labels = {"provider": self._spec.name, "model": self._model}
            events.emit(events.RequestAdjusted(**labels, change=adjustment, is_limit_low=is_limit_low))

    def _initial_format(self) -> RequestFormat:
        """Derive the format of the first request to a model from the configuration and LiteLLM's price map."""
        requires_responses = model_prices.needs_responses(self._spec, self._model, tools=False, reasoning=True)
        api = self._runner.api or ("responses" if requires_responses else None)
        no_schema = self._catalog.overrides.get("json_schema") is False
        index = 1 if no_schema and len(self._spec.dialect.schema_modes) > 1 else 0
        return RequestFormat(unsupported=self._catalog.rejected(self._model), schema_mode_index=index, api=api)

    def _time_limits(self, request_format: RequestFormat) -> Timeouts:
        """Return the time limits of the response.

        The limit for the first token is longer if the server must load the model. It is shorter if the router reserves
        time for other providers. A response that is not streamed may take until the deadline.
        """
        timeouts, max_first_token_s = self._timeouts, self._attempt.max_first_token_s
        first = max(timeouts.first_token, timeouts.load) if self._budget.must_load_model else timeouts.first_token
        first = first if self._request.streams(request_format) else timeouts.deadline
        return replace(timeouts, first_token=first if max_first_token_s is None else min(first, max_first_token_s))

    def _load_probe(self) -> IsLoading | None:
        """Return a function that checks whether the server is loading the model; None if the check is not needed.

        The check is not needed if the time limits already include a load, or if the server never loads a model.
        """
        if self._budget.must_load_model or not self._catalog.loads_models:
            return None
        return partial(self._catalog.is_loading, self._model, QUICK_PROBE_S)

    def _feed(self, answer: Answer, delta: Delta) -> None:
        """Add a delta to the answer. Raise NotLocal if LLM_LOCAL_ONLY is set and another machine answers."""
        if self._timeouts.local_only and answer.parser.is_forwarded:
            raise errors.NotLocal(
                "LLM_LOCAL_ONLY is set, and the server forwarded the request to another machine",
                hint=f"Set {self._spec.variable('model')} to a model that runs on the server, or LLM_LOCAL_ONLY=false",
            )
        answer.feed(delta)

    async def _send(self, request_format: RequestFormat, reader: AnswerReader) -> HttpResponse:
        """Send the request. Record a failed connection, so that requests that wait for a slot fail, too."""
        runner = self._runner
        request = replace(await self._build_http_request(request_format), on_timeout=reader.on_timeout)
        try:
            return await self._client.send(request)
        except (errors.ConnectionFailed, errors.ConnectTimeout) as error:
            runner.last_connect_failure = asyncio.get_running_loop().time(), error.with_traceback(None)
            raise

    async def _build_http_request(self, request_format: RequestFormat) -> HttpRequest:
        """Return the HTTP request that starts or continues an answer.

        An answer is continued as a prefill (the last assistant message), or with ``Dialect.build_continuation``.
        """
        attempt, spec, model, budget = self._attempt, self._spec, self._model, self._budget
        continuation_spec = self._runner.continuation_spec if attempt.prefix is not None else None
        if attempt.prefix is not None and continuation_spec is None:
            hint = "Use a router (get_provider() or RouterProvider): it instructs the model to continue"
            raise errors.Unsupported(f"{spec.title} cannot continue an answer with after=", hint=hint)
        prefill = (
            attempt.prefill_with_thinking if continuation_spec and continuation_spec.dialect.supports_prefill else None
        )
        messages, parameters = self._request.to_openai(
            request_format, context_length=budget.context_length, max_tokens=budget.answer_limit, prefill=prefill
        )
        if continuation_spec and continuation_spec.dialect.build_continuation:
            build, body = continuation_spec.dialect.build_continuation, parameters.get("extra_body", {})
            request: HttpRequest = await build(self._client, model, messages, body, attempt)
            return request
        arguments = spec, self._client.endpoint, model, messages, parameters
        if request_format.api == "responses":
            return _litellm.build_http_request(*arguments, "responses")
        build_request = _litellm.build_http_request if _litellm.is_prepared(spec) else build_without_litellm
        return build_request(*arguments)

    async def _complete(self, answer: Answer) -> Completion:
        """Check the answer, and return the completion.

        Raises:
            AnswerTruncated: the answer is empty or invalid because it ended at a token limit.
            SchemaMismatch: the answer does not match its schema. The error contains the completion.
            LLMError: another check failed.
        """
        request, attempt = self._request, self._attempt
        completion: Completion | None = None
        try:
            completion = answer.completion(self._spec.name, self._model)
            await self._budget.check_usage(completion.usage)
            completion = replace(completion, cost=self._find_cost(completion), origin=self._runner.origin)
            for call in completion.tool_calls:
                # Attach the message to the id. ``restore_extra`` adds its extra fields to the next prompt
                cast(CallId, call.id).answer = completion.message()
            if not completion.tool_calls:
                parsed = await structured_output.parse_async(request.response_format, completion.text)
                completion = replace(completion, parsed=parsed)
                if completion.finish == "length":
                    structured_output.check_complete(request.response_format, completion.text)
        except errors.BrokenAnswer as error:
            limit, tokens = self.model_and_max_tokens()[1], answer.parser.usage.completion_tokens
            if answer.parser.finish == "length" or (limit and tokens == limit):
                reached, remedy = describe_limit(limit, answer.parser.usage, self._spec.context_setting)
                has_specific_hint = isinstance(error, errors.AnswerTruncated) and error.hint != error.advice
                hint = error.hint if has_specific_hint else remedy
                failure = errors.AnswerTruncated(f"{error.what}; it ended at {reached}", hint=hint)
                is_empty = not (answer.text or answer.parser.partial_calls)
                is_context_full = not limit or (tokens or limit) < limit
                # No failover if text used all of max_tokens, because another provider would also stop at this limit
                failure.failover = is_empty or is_context_full
                raise failure from None
            if isinstance(error, errors.SchemaMismatch):
                error.answer = completion  # ``run_with_corrections`` adds the usage and cost of this answer
                if request.sampling.get("temperature") == 0:
                    error.retryable = False  # a retry would return the same answer
            raise
        self._report_other_model(completion.model.served)
        events.emit_content(attempt.request_number, attempt.number, request.messages, completion)
        if self._runner.log_content:
            messages, text, reasoning = request.messages, completion.text, completion.reasoning
            log.write_line("debug", "llm.content", messages=messages, text=text, reasoning=reasoning)
        return completion

    def _find_cost(self, completion: Completion) -> float | None:
        if completion.cost is not None:
            return completion.cost  # reported by the server
        if not self._spec.local:
            return _litellm.price(self._spec, self._model, completion.usage)
        return 0.0 if self._catalog.capabilities(self._model)["cost"] == (0.0, 0.0) else None

    def _report_other_model(self, served: str | None) -> None:
        """Emit an event if another model answered, once for each pair of names.

        Emit nothing if the server has aliases (``Api.has_aliases``), because a response may contain another name.
        """
        runner, name = self._runner, self._spec.name
        served = self._catalog.other_model_name(self._model, served)
        server_spec = (self._catalog.server and self._catalog.server.spec) or self._spec
        pair = (self._model, served)
        if served and not (
            server_spec.api.has_aliases or pair in runner.reported_mismatches or is_same_model(self._model, served)
        ):
            runner.reported_mismatches.add(pair)
            events.emit(events.OtherModelAnswered(provider=name, model=self._model, served=served))
