"""OpenTelemetry spans and metrics, by the semantic conventions for generative AI.

The extra ``[opentelemetry]`` installs only the API. The application configures the SDK, and calls ``attach`` or sets
``LLM_OPENTELEMETRY``. Prompts and answers are recorded only if OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT is
set.

Each request is a span. Each attempt is a child span of kind CLIENT. The conventions call an attempt an inference. Names
and buckets: https://opentelemetry.io/docs/specs/semconv/gen-ai/ (November 2026).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry import metrics, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from .. import events, settings
from ..errors import LLMError
from ..events import LogEvent
from ..providers.registry import SPECS, vendor_specs
from . import attach_once

_SCOPE_NAME: Final = "learnflow.llm"
_TOKEN_BUCKETS: Final = [4**power for power in range(14)]
_SECONDS_BUCKETS: Final = [0.01 * 2**power for power in range(14)]
_SAMPLING: Final = ("temperature", "max_tokens", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed")


def attach(
    tracers: trace.TracerProvider | None = None, meters: metrics.MeterProvider | None = None
) -> Callable[[], None]:
    """Emit spans and metrics for all later requests and attempts. A second call with the same arguments adds nothing.

    Args:
        tracers: the tracer provider; None for the global one.
        meters: the meter provider; None for the global one.

    Returns:
        A function that detaches the telemetry.
    """
    return attach_once(("opentelemetry", tracers, meters), lambda: _add_sinks(tracers, meters))


def _add_sinks(tracers: trace.TracerProvider | None, meters: metrics.MeterProvider | None) -> Callable[[], None]:
    tracer = trace.get_tracer(_SCOPE_NAME, tracer_provider=tracers)
    telemetry = Telemetry(tracer, metrics.get_meter(_SCOPE_NAME, meter_provider=meters))
    removers = [events.add_sink(telemetry)]
    if settings.load().otel_instrumentation_genai_capture_message_content:
        removers.append(events.add_content_sink(telemetry.record_content))

    def remove() -> None:
        for remover in removers:
            remover()

    return remove


class Telemetry:
    """Receives log events, and emits spans and metrics."""

    def __init__(self, tracer: trace.Tracer, meter: metrics.Meter) -> None:
        self._tracer = tracer
        self._request_spans: dict[int, Span] = {}
        self._attempt_spans: dict[tuple[int, int], tuple[Span, dict[str, Any]]] = {}

        def histogram(name: str, unit: str, description: str, buckets: Sequence[float]) -> metrics.Histogram:
            return meter.create_histogram(
                f"gen_ai.client.{name}", unit, description, explicit_bucket_boundaries_advisory=buckets
            )

        self._duration = histogram("operation.duration", "s", "GenAI operation duration.", _SECONDS_BUCKETS)
        self._first_token = histogram(
            "operation.time_to_first_chunk", "s", "Time to receive the first chunk.", _SECONDS_BUCKETS
        )
        self._usage = histogram("token.usage", "{token}", "Number of input and output tokens used.", _TOKEN_BUCKETS)

    def __call__(self, event: LogEvent) -> None:
        """Start or end a span. At the end of an attempt, also record its metrics."""
        match event:
            case events.RequestStarted():
                self._start_request(event)
            case events.AttemptStarted():
                self._start_attempt(event)
            case events.AttemptSucceeded():
                self._end_success(event)
            case events.AttemptFailed() | events.AttemptCancelled():
                self._end_failure(event)
            case events.RequestEnded():
                self._end_request(event)
            case _:
                pass

    def record_content(self, event: events.ContentRecorded) -> None:
        """Add the messages and the response to the span of the attempt."""
        span, _ = self._attempt_spans.get((event.request, event.attempt), (None, {}))
        if span:
            completion = event.completion
            text = [_text_part(completion.text)] if completion.text else []
            calls = [
                {"type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments}
                for call in completion.tool_calls
            ]
            answer = {"role": "assistant", "parts": [*text, *calls], "finish_reason": completion.finish}
            span.set_attribute("gen_ai.input.messages", _json([_message(message) for message in event.messages]))
            span.set_attribute("gen_ai.output.messages", _json([answer]))

    def _start_request(self, event: events.RequestStarted) -> None:
        attributes = {"learnflow_llm.providers": event.provider, **_metadata(event)}
        self._request_spans[event.request] = self._tracer.start_span(f"request {event.provider}", attributes=attributes)

    def _start_attempt(self, event: events.AttemptStarted) -> None:
        address = urlsplit(event.address)
        spec = SPECS.get(event.provider) or vendor_specs().get(event.provider)
        common_attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": (spec.otel_name or spec.name) if spec else event.provider,
            "server.address": address.hostname or "",
            "server.port": address.port or (443 if address.scheme == "https" else 80),
        }
        if event.model:
            common_attributes["gen_ai.request.model"] = event.model
        sampling = {f"gen_ai.request.{name}": event.sampling[name] for name in _SAMPLING if name in event.sampling}
        parent = self._request_spans.get(event.request)
        span = self._tracer.start_span(
            f"chat {event.model}" if event.model else "chat",
            context=trace.set_span_in_context(parent) if parent else None,
            kind=SpanKind.CLIENT,
            attributes={**common_attributes, **sampling, "learnflow_llm.attempt": event.attempt, **_metadata(event)},
        )
        self._attempt_spans[event.request, event.attempt] = span, common_attributes

    def _end_success(self, event: events.AttemptSucceeded) -> None:
        span, common_attributes = self._attempt_spans.pop((event.request, event.attempt), (None, {}))
        if span is None:
            return
        completion, model = event.completion, str(event.completion.model)
        attributes = {**common_attributes, "gen_ai.response.model": model}
        attributes.setdefault("gen_ai.request.model", model)
        tokens_by_type = {"input": completion.usage.prompt_tokens, "output": completion.usage.completion_tokens}
        span.set_attributes({**attributes, "gen_ai.response.finish_reasons": [completion.finish]})
        for kind, tokens in tokens_by_type.items():
            if tokens is not None:
                span.set_attribute(f"gen_ai.usage.{kind}_tokens", tokens)
                self._usage.record(tokens, {**attributes, "gen_ai.token.type": kind})
        if completion.cost is not None:
            span.set_attribute("learnflow_llm.cost_dollars", completion.cost)
        self._duration.record(event.total_s, attributes)
        if completion.first_token_s is not None:
            self._first_token.record(completion.first_token_s, attributes)
        span.end()

    def _end_failure(self, event: events.AttemptFailed | events.AttemptCancelled) -> None:
        span, common_attributes = self._attempt_spans.pop((event.request, event.attempt), (None, {}))
        if span is None:
            return
        error_type = type(event.error).__name__ if isinstance(event, events.AttemptFailed) else None
        attributes = {**common_attributes, **({"error.type": error_type} if error_type else {})}
        span.set_attributes(attributes)
        if error_type:
            span.set_status(Status(StatusCode.ERROR, error_type))
        self._duration.record(event.total_s, attributes)
        span.end()

    def _end_request(self, event: events.RequestEnded) -> None:
        span = self._request_spans.pop(event.request, None)
        if span is None:
            return
        outcome = event.outcome
        resumed = 0 if outcome is None or isinstance(outcome, LLMError) else outcome.resumed
        span.set_attributes({"learnflow_llm.attempts": event.attempts, "learnflow_llm.resumed": resumed})
        if outcome and outcome.provider:
            span.set_attribute("learnflow_llm.provider", outcome.provider)
        if isinstance(outcome, LLMError):
            span.set_attribute("error.type", type(outcome).__name__)
            span.set_status(Status(StatusCode.ERROR, type(outcome).__name__))
        span.end()


def _metadata(event: events.RequestStarted | events.AttemptStarted) -> dict[str, Any]:
    """Return the caller's metadata as attributes of a span."""
    return {f"learnflow_llm.metadata.{name}": value for name, value in event.metadata.items() if value is not None}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a message to the format of the conventions. Of a part that is not text, keep only the type."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
    converted: list[dict[str, Any]] = [
        _text_part(part["text"]) if part.get("type") == "text" else {"type": str(part.get("type"))} for part in parts
    ]
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        arguments = function.get("arguments")
        converted.append(
            {"type": "tool_call", "id": call.get("id"), "name": function.get("name"), "arguments": arguments}
        )
    if message.get("role") == "tool":
        converted = [{"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content}]
    return {"role": message.get("role"), "parts": converted}


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "content": text}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
