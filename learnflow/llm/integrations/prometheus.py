"""Prometheus metrics, updated by log events. Requires the extra ``[prometheus]``.

``attach()`` adds the metrics. If ``LLM_METRICS_PORT`` is set, ``get_provider()`` adds and serves them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Final, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from .. import events
from ..errors import ConfigError
from ..events import LogEvent
from . import attach_once

_PREFIX: Final = "learnflow_llm_"
_ALL_MODELS: Final = "all"  # the label of a circuit breaker for all models of an address
# Limits on the number of label values. A value beyond its limit becomes "other".
_MAX_MODELS: Final = 50  # for each provider
_MAX_NODES: Final = 50  # of metadata["node"]
_MAX_PROVIDERS: Final = 30
_SHORT_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180)
_LONG_BUCKETS_S: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)

_M = TypeVar("_M", Counter, Gauge, Histogram)


def attach(registry: CollectorRegistry = REGISTRY) -> Callable[[], None]:
    """Update the metrics for all later log events. A second call with the same registry has no effect.

    Args:
        registry: the registry for the metrics. The default is that of prometheus_client.

    Returns:
        A function that detaches the metrics and removes them from the registry.
    """
    return attach_once(("prometheus", registry), lambda: _add_sink(registry))


def _add_sink(registry: CollectorRegistry) -> Callable[[], None]:
    metrics = Metrics(registry)
    remove_sink = events.add_sink(metrics)

    def remove() -> None:
        remove_sink()
        for collector in metrics.collectors:
            registry.unregister(collector)

    return remove


def serve(host: str, port: int, registry: CollectorRegistry = REGISTRY) -> None:
    """Serve the metrics at ``http://host:port/metrics`` in a background thread.

    Raises:
        OSError: the port is in use.
    """
    start_http_server(port, addr=host, registry=registry)


class Metrics:
    """Receives log events, and updates the metrics.

    Attributes:
        collectors: the metrics.
        label_names: the label names by the name of the metric.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.collectors: list[Counter | Gauge | Histogram] = []
        self.label_names: dict[str, tuple[str, ...]] = {}

        def add_metric(metric: _M, name: str, label_names: tuple[str, ...]) -> _M:
            self.collectors.append(metric)
            self.label_names[f"{_PREFIX}{name}"] = label_names
            return metric

        def counter(name: str, description: str, *label_names: str) -> Counter:
            return add_metric(Counter(_PREFIX + name, description, label_names, registry=registry), name, label_names)

        def gauge(name: str, description: str, *label_names: str) -> Gauge:
            return add_metric(Gauge(_PREFIX + name, description, label_names, registry=registry), name, label_names)

        def histogram(name: str, description: str, buckets: tuple[float, ...], *label_names: str) -> Histogram:
            return add_metric(
                Histogram(_PREFIX + name, description, label_names, registry=registry, buckets=buckets),
                name,
                label_names,
            )

        model_labels = ("provider", "model")
        self._requests = counter(
            "requests_total", "Attempts at a provider, by outcome.", *model_labels, "outcome", "node"
        )
        self._duration = histogram(
            "request_seconds", "Duration of successful attempts in seconds.", _LONG_BUCKETS_S, *model_labels
        )
        self._first_token = histogram(
            "first_token_seconds", "Seconds to the first token.", _SHORT_BUCKETS_S, *model_labels
        )
        self._tokens = counter(
            "tokens_total", "Tokens of prompts (in) and answers (out).", *model_labels, "direction", "node"
        )
        self._cost = counter("cost_dollars_total", "Cost in US dollars, if known.", *model_labels, "node")
        self._failovers = counter("failovers_total", "Failovers to another provider.", "from", "to", "reason")
        self._failover_seconds = histogram(
            "failover_seconds",
            "Seconds from the first failure to the response of another provider.",
            _SHORT_BUCKETS_S,
            "from",
            "to",
        )
        self._ended_continuations = counter(
            "continuations_ended_total",
            "Ended continuations of interrupted answers, by outcome.",
            "provider",
            "outcome",
        )
        self._started_continuations = counter(
            "continuations_started_total",
            "Started continuations of interrupted answers, by source of the text.",
            "provider",
            "source",
        )
        self._configuration_errors = counter(
            "configuration_errors_total", "Failures that require a change of the configuration.", "provider", "error"
        )
        self._checks = counter("health_checks_total", "Health checks, by state.", "provider", "state")
        self._breaker_open = gauge("breaker_open", "1 while a circuit breaker is open, else 0.", *model_labels)
        self._in_flight = gauge("requests_in_flight", "Running attempts.", "provider")
        self._queue = histogram(
            "queue_seconds",
            "Seconds in the queue of a provider with a concurrency limit.",
            _SHORT_BUCKETS_S,
            "provider",
        )
        # The attempts that ``_in_flight`` counts, as (request, attempt)
        self._running_attempts: set[tuple[int, int]] = set()
        self._models: defaultdict[str, set[str]] = defaultdict(set)
        self._providers: set[str] = set()
        self._nodes: set[str] = set()

    def __call__(self, event: LogEvent) -> None:
        """Update the metrics for an event."""
        match event:
            case events.AttemptStarted():
                self._running_attempts.add((event.request, event.attempt))
                self._in_flight.labels(self._provider(event.provider)).inc()
            case events.AttemptSucceeded():
                self._count_success(event)
            case events.AttemptFailed():
                self._count_failure(event)
            case events.AttemptCancelled():
                self._count_end(event, event.model, "cancelled")
            case events.ProviderUnusable():
                self._count_configuration_error(event)
            case _:
                self._count_other(event)

    def _count_other(self, event: LogEvent) -> None:
        """Update the metrics for an event that neither starts nor ends an attempt."""
        match event:
            case events.RequestQueued():
                self._queue.labels(self._provider(event.provider)).observe(event.seconds)
            case events.Failover():
                providers = self._provider(event.provider), self._provider(event.to)
                self._failovers.labels(*providers, type(event.error).__name__).inc()
            case events.FailoverSucceeded():
                self._failover_seconds.labels(self._provider(event.provider), self._provider(event.to)).observe(
                    event.seconds
                )
            case events.ContinuationEnded():
                self._ended_continuations.labels(self._provider(event.provider), event.outcome).inc()
            case events.Resumed():
                self._started_continuations.labels(self._provider(event.provider), event.source).inc()
            case events.HealthChecked():
                self._checks.labels(self._provider(event.provider), event.state).inc()
            case events.BreakerOpened():
                self._breaker_open.labels(*self._model_labels(event.provider, event.model or _ALL_MODELS)).set(1)
            case events.BreakerClosed():
                for model in (event.model or _ALL_MODELS, _ALL_MODELS):  # the breaker for all models closes, too
                    self._breaker_open.labels(*self._model_labels(event.provider, model)).set(0)
            case _:
                pass

    def _count_success(self, event: events.AttemptSucceeded) -> None:
        completion = event.completion
        labels = self._count_end(event, completion.model.requested or completion.model, completion.finish)
        self._duration.labels(*labels).observe(event.total_s)
        if completion.first_token_s is not None:
            self._first_token.labels(*labels).observe(completion.first_token_s)
        usage = completion.usage
        for direction, tokens in (("in", usage.prompt_tokens), ("out", usage.completion_tokens)):
            if tokens is not None:
                self._tokens.labels(*labels, direction, self._node(event)).inc(tokens)
        if completion.cost is not None:
            self._cost.labels(*labels, self._node(event)).inc(completion.cost)

    def _count_failure(self, event: events.AttemptFailed) -> None:
        self._count_end(event, event.model, type(event.error).__name__)
        if isinstance(event.error, ConfigError):
            self._count_configuration_error(event)

    def _count_configuration_error(self, event: events.AttemptFailed | events.ProviderUnusable) -> None:
        self._configuration_errors.labels(self._provider(event.provider), type(event.error).__name__).inc()

    def _count_end(self, event: events.AttemptEnded, model: str | None, outcome: str) -> tuple[str, str]:
        labels = self._model_labels(event.provider, model, full_limit=isinstance(event, events.AttemptSucceeded))
        self._requests.labels(*labels, outcome, self._node(event)).inc()
        if (event.request, event.attempt) in self._running_attempts:
            self._running_attempts.remove((event.request, event.attempt))
            self._in_flight.labels(labels[0]).dec()
        return labels

    def _model_labels(self, provider: str, model: str | None, *, full_limit: bool = True) -> tuple[str, str]:
        """Return the labels ``provider`` and ``model``.

        ``full_limit`` is False for failed and cancelled attempts. They add models only up to ``_MAX_MODELS // 2``,
        because the rest is reserved for models that work.
        """
        limit = _MAX_MODELS if full_limit else _MAX_MODELS // 2
        provider = self._provider(provider)
        return provider, _limit_cardinality(self._models[provider], model or "unknown", limit)

    def _provider(self, name: str) -> str:
        return _limit_cardinality(self._providers, name, _MAX_PROVIDERS)

    def _node(self, event: events.AttemptEnded) -> str:
        """Return the ``node`` of the caller's metadata as a label, or "". Other metadata is not exported."""
        return _limit_cardinality(self._nodes, str(event.metadata.get("node") or ""), _MAX_NODES)


def _limit_cardinality(values: set[str], value: str, limit: int) -> str:
    """Return ``value``, and add it to ``values``. Return "other" if ``value`` is new and the limit is reached."""
    if value not in values and len(values) >= limit:
        return "other"
    values.add(value)
    return value
