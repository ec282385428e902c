"""Events as OpenTelemetry spans and metrics, by its conventions for generative AI, on its API package alone.

Must never record what was said, unless OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT asks for it.
An application that configured the SDK attaches it, or ``LLM_OPENTELEMETRY`` does; needs the extra ``[opentelemetry]``.

One span a request; under it one of kind CLIENT an attempt, which is what the conventions call an inference. Names and
buckets: https://opentelemetry.io/docs/specs/semconv/gen-ai/ (November 2026).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry import metrics, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from .. import events, settings
from ..errors import LLMError
from ..events import LogEvent
from ..providers.registry import SPECS, table

_NAME: Final = "learnflow.llm"
_TOKENS: Final = [4**power for power in range(14)]
_SECONDS: Final = [0.01 * 2**power for power in range(14)]
_SAMPLING: Final = ("temperature", "max_tokens", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed")

_detach: Final[dict[tuple[object, object], Callable[[], None]]] = {}


def attach(
    tracers: trace.TracerProvider | None = None, meters: metrics.MeterProvider | None = None
) -> Callable[[], None]:
    """Make spans and metrics of every event from now on, where that is not done yet.

    Args:
        tracers: the application's provider of tracers; the global one where None.
        meters: the application's provider of meters; the global one where None.

    Returns:
        A function that takes it off again.
    """
    if (tracers, meters) in _detach:
        return _detach[tracers, meters]
    tracer = trace.get_tracer(_NAME, tracer_provider=tracers)
    telemetry = Telemetry(tracer, metrics.get_meter(_NAME, meter_provider=meters))
    removers = [events.add_sink(telemetry)]
    if settings.load().captures_content:
        removers.append(events.add_content_sink(telemetry.said))

    def detach() -> None:
        _detach.pop((tracers, meters), None)
        for remove in removers:
            remove()

    _detach[tracers, meters] = detach
    return detach


class Telemetry:
    """The sink. Times in seconds."""

    def __init__(self, tracer: trace.Tracer, meter: metrics.Meter) -> None:
        self._tracer = tracer
        self._requests: dict[int, Span] = {}
        self._attempts: dict[tuple[int, int], tuple[Span, dict[str, Any]]] = {}

        def histogram(name: str, unit: str, says: str, buckets: Sequence[float]) -> metrics.Histogram:
            return meter.create_histogram(
                f"gen_ai.client.{name}", unit, says, explicit_bucket_boundaries_advisory=buckets
            )

        self._duration = histogram("operation.duration", "s", "GenAI operation duration.", _SECONDS)
        self._first = histogram("operation.time_to_first_chunk", "s", "Time to receive the first chunk.", _SECONDS)
        self._usage = histogram("token.usage", "{token}", "Number of input and output tokens used.", _TOKENS)

    def __call__(self, event: LogEvent) -> None:
        """Begin or end a span, and measure."""
        match event:
            case events.RequestStarted():
                self._began(event)
            case events.AttemptStarted():
                self._asked(event)
            case events.AttemptSucceeded():
                self._answered(event)
            case events.AttemptFailed() | events.AttemptCancelled():
                self._failed(event)
            case events.RequestEnded():
                self._ended(event)
            case _:
                pass

    def said(self, event: events.ContentRecorded) -> None:
        """Keep what was asked and answered on the span of the attempt."""
        span, _ = self._attempts.get((event.request, event.attempt), (None, {}))
        if span:
            completion = event.completion
            said = [_part(completion.text)] if completion.text else []
            calls = [{"type": "tool_call", **asdict(call)} for call in completion.tool_calls]
            answer = {"role": "assistant", "parts": [*said, *calls], "finish_reason": completion.finish}
            span.set_attribute("gen_ai.input.messages", _json([_message(each) for each in event.messages]))
            span.set_attribute("gen_ai.output.messages", _json([answer]))

    def _began(self, event: events.RequestStarted) -> None:
        chain = {"learnflow_llm.providers": event.provider, **_whose(event)}
        self._requests[event.request] = self._tracer.start_span(f"request {event.provider}", attributes=chain)

    def _asked(self, event: events.AttemptStarted) -> None:
        where = urlsplit(event.address)
        row = SPECS.get(event.provider) or table().get(event.provider)
        common: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": (row.genai or row.name) if row else event.provider,
            "server.address": where.hostname or "",
            "server.port": where.port or (443 if where.scheme == "https" else 80),
        }
        if event.model:
            common["gen_ai.request.model"] = event.model
        sampling = {f"gen_ai.request.{name}": event.sampling[name] for name in _SAMPLING if name in event.sampling}
        above = self._requests.get(event.request)
        span = self._tracer.start_span(
            f"chat {event.model}" if event.model else "chat",
            context=trace.set_span_in_context(above) if above else None,
            kind=SpanKind.CLIENT,
            attributes={**common, **sampling, "learnflow_llm.attempt": event.attempt, **_whose(event)},
        )
        self._attempts[event.request, event.attempt] = span, common

    def _answered(self, event: events.AttemptSucceeded) -> None:
        span, common = self._attempts.pop((event.request, event.attempt), (None, {}))
        if span is None:
            return
        completion, model = event.completion, str(event.completion.model)
        told = {**common, "gen_ai.response.model": model}
        told.setdefault("gen_ai.request.model", model)
        counted = {"input": completion.usage.prompt_tokens, "output": completion.usage.completion_tokens}
        span.set_attributes({**told, "gen_ai.response.finish_reasons": [completion.finish]})
        for kind, tokens in counted.items():
            if tokens is not None:
                span.set_attribute(f"gen_ai.usage.{kind}_tokens", tokens)
                self._usage.record(tokens, {**told, "gen_ai.token.type": kind})
        if completion.cost is not None:
            span.set_attribute("learnflow_llm.cost_dollars", completion.cost)
        self._duration.record(event.total_s, told)
        if completion.first_token_s is not None:
            self._first.record(completion.first_token_s, told)
        span.end()

    def _failed(self, event: events.AttemptFailed | events.AttemptCancelled) -> None:
        span, common = self._attempts.pop((event.request, event.attempt), (None, {}))
        if span is None:
            return
        error = type(event.error).__name__ if isinstance(event, events.AttemptFailed) else None
        told = {**common, **({"error.type": error} if error else {})}
        span.set_attributes(told)
        if error:
            span.set_status(Status(StatusCode.ERROR, error))
        self._duration.record(event.total_s, told)
        span.end()

    def _ended(self, event: events.RequestEnded) -> None:
        span = self._requests.pop(event.request, None)
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


def _whose(event: events.RequestStarted | events.AttemptStarted) -> dict[str, Any]:
    """Whose request it is, as attributes of a span."""
    return {f"learnflow_llm.metadata.{name}": value for name, value in event.metadata.items() if value is not None}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message in the conventions' form; of pictures only that they were there."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
    put: list[dict[str, Any]] = [
        _part(part["text"]) if part.get("type") == "text" else {"type": str(part.get("type"))} for part in parts
    ]
    for call in message.get("tool_calls") or ():
        asked = call.get("function") or {}
        told = {"id": call.get("id"), "name": asked.get("name"), "arguments": asked.get("arguments")}
        put.append({"type": "tool_call", **told})
    if message.get("role") == "tool":
        put = [{"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content}]
    return {"role": message.get("role"), "parts": put}


def _part(text: str) -> dict[str, Any]:
    return {"type": "text", "content": text}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
