"""Events as Prometheus metrics.

Must never let a label grow without bound: models beyond the first fifty of a provider are counted as "other".
An application attaches it, or ``LLM_METRICS_PORT`` does; needs the extra ``[prometheus]``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from .. import events
from ..events import LogEvent

_PREFIX: Final = "learnflow_llm_"
_ALL: Final = "all"  # models of an address whose key or connection is at fault
_MODELS: Final = 50  # of a provider
_PROVIDERS: Final = 30
_QUICK: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180)
_SLOW: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)

_M = TypeVar("_M", Counter, Gauge, Histogram)
_detach: Final[dict[CollectorRegistry, Callable[[], None]]] = {}
_Ended = events.AttemptSucceeded | events.AttemptFailed | events.AttemptCancelled


def attach(registry: CollectorRegistry = REGISTRY) -> Callable[[], None]:
    """Count every event from now on, where that is not done yet.

    Args:
        registry: where the metrics are kept; prometheus_client's own by default.

    Returns:
        A function that takes them off again, metrics and all.
    """
    if registry in _detach:
        return _detach[registry]
    metrics = Metrics(registry)
    remove = events.add_sink(metrics)

    def detach() -> None:
        remove()
        if _detach.pop(registry, None):
            for each in metrics.collectors:
                registry.unregister(each)

    _detach[registry] = detach
    return detach


def serve(host: str, port: int, registry: CollectorRegistry = REGISTRY) -> None:
    """Show the metrics at ``http://host:port/metrics``, from a thread. Raises OSError where the port is taken."""
    start_http_server(port, addr=host, registry=registry)


class Metrics:
    """The sink. A request's attempts at several providers are counted one by one; times in seconds."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.collectors: list[Counter | Gauge | Histogram] = []
        self.names: dict[str, tuple[str, ...]] = {}  # with their labels

        def kept(made: _M, name: str, labels: tuple[str, ...]) -> _M:
            self.collectors.append(made)
            self.names[f"{_PREFIX}{name}"] = labels
            return made

        def counter(name: str, says: str, *labels: str) -> Counter:
            return kept(Counter(_PREFIX + name, says, labels, registry=registry), name, labels)

        def gauge(name: str, says: str, *labels: str) -> Gauge:
            return kept(Gauge(_PREFIX + name, says, labels, registry=registry), name, labels)

        def histogram(name: str, says: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return kept(Histogram(_PREFIX + name, says, labels, registry=registry, buckets=buckets), name, labels)

        one = ("provider", "model")
        self._requests = counter(
            "requests_total", "Attempts at a provider, by how they ended.", *one, "outcome", "node"
        )
        self._whole = histogram("request_seconds", "Seconds of an answered attempt, to its end.", _SLOW, *one)
        self._first = histogram("first_token_seconds", "Seconds to the first token.", _QUICK, *one)
        self._tokens = counter("tokens_total", "Tokens of prompts (in) and answers (out).", *one, "direction", "node")
        self._cost = counter("cost_dollars_total", "Cost in US dollars, where it is known.", *one, "node")
        self._moved = counter("failovers_total", "Requests that went on to another provider.", "from", "to", "reason")
        self._switch = histogram(
            "switch_seconds", "Seconds from a failure to the next provider's first piece.", _QUICK, "from", "to"
        )
        self._resumed = counter("resumes_total", "Broken answers that were continued.", "provider", "outcome")
        self._loud = counter("configuration_errors_total", "Failures that a setting must mend.", "provider", "error")
        self._checks = counter("health_checks_total", "Looks at a provider, by its state.", "provider", "state")
        self._open = gauge("breaker_open", "Whether a provider is left alone (1) or asked (0).", *one)
        self._flying = gauge("requests_in_flight", "Attempts under way.", "provider")
        self._queue = histogram("queue_seconds", "Seconds of waiting for a place at a provider.", _QUICK, "provider")
        self._under_way: set[tuple[int, int]] = set()  # requests and attempts that were seen to begin
        self._models: defaultdict[str, set[str]] = defaultdict(set)
        self._providers: set[str] = set()
        self._nodes: set[str] = set()

        self._counts: dict[type[LogEvent], Callable[[Any], None]] = {
            events.AttemptStarted: self._asked,
            events.AttemptSucceeded: self._answered,
            events.AttemptFailed: self._failed,
            events.AttemptCancelled: self._left,
            events.RequestQueued: self._queued,
            events.Failover: self._moves,
            events.FailedOver: self._switches,
            events.StreamContinued: self._continued,
            events.HealthChecked: self._checked,
            events.BreakerOpened: self._turned,
            events.BreakerClosed: self._turned,
        }

    def __call__(self, event: LogEvent) -> None:
        """Count it."""
        count = self._counts.get(type(event))
        if count:
            count(event)

    def _asked(self, event: events.AttemptStarted) -> None:
        self._under_way.add((event.request, event.attempt))
        self._flying.labels(self._provider(event.provider)).inc()

    def _left(self, event: events.AttemptCancelled) -> None:
        self._ended(event, event.model, "left")

    def _queued(self, event: events.RequestQueued) -> None:
        self._queue.labels(self._provider(event.provider)).observe(event.seconds)

    def _moves(self, event: events.Failover) -> None:
        self._moved.labels(self._provider(event.provider), self._provider(event.to), type(event.error).__name__).inc()

    def _switches(self, event: events.FailedOver) -> None:
        self._switch.labels(self._provider(event.provider), self._provider(event.to)).observe(event.seconds)

    def _continued(self, event: events.StreamContinued) -> None:
        self._resumed.labels(self._provider(event.provider), event.outcome).inc()

    def _checked(self, event: events.HealthChecked) -> None:
        self._checks.labels(self._provider(event.provider), event.state).inc()

    def _turned(self, event: events.BreakerOpened | events.BreakerClosed) -> None:
        if isinstance(event, events.BreakerOpened):
            self._open.labels(*self._both(event.provider, event.model or _ALL)).set(1)
        else:
            for model in (event.model or _ALL, _ALL):
                self._open.labels(*self._both(event.provider, model)).set(0)

    def _answered(self, event: events.AttemptSucceeded) -> None:
        completion = event.completion
        labels = self._ended(event, completion.model.asked or completion.model, completion.finish)
        self._whole.labels(*labels).observe(event.total_s)
        if completion.first_token_s is not None:
            self._first.labels(*labels).observe(completion.first_token_s)
        usage = completion.usage
        for direction, tokens in (("in", usage.prompt_tokens), ("out", usage.completion_tokens)):
            if tokens is not None:
                self._tokens.labels(*labels, direction, self._node(event)).inc(tokens)
        if completion.cost is not None:
            self._cost.labels(*labels, self._node(event)).inc(completion.cost)

    def _failed(self, event: events.AttemptFailed) -> None:
        error = type(event.error).__name__
        self._ended(event, event.model, error)
        if event.is_configuration_error:
            self._loud.labels(self._provider(event.provider), error).inc()

    def _ended(self, event: _Ended, model: str | None, outcome: str) -> tuple[str, str]:
        labels = self._both(event.provider, model, answers=isinstance(event, events.AttemptSucceeded))
        self._requests.labels(*labels, outcome, self._node(event)).inc()
        if (event.request, event.attempt) in self._under_way:
            self._under_way.remove((event.request, event.attempt))
            self._flying.labels(labels[0]).dec()
        return labels

    def _both(self, provider: str, model: str | None, *, answers: bool = True) -> tuple[str, str]:
        """Provider and model as labels. A name that has never answered takes no place from those that do."""
        known, model = self._models[self._provider(provider)], model or "unknown"
        if model not in known and len(known) >= (_MODELS if answers else _MODELS // 2):
            model = "other"
        known.add(model)
        return self._provider(provider), model

    def _provider(self, name: str) -> str:
        if name not in self._providers and len(self._providers) >= _PROVIDERS:
            return "other"
        self._providers.add(name)
        return name

    def _node(self, event: _Ended) -> str:
        """The node of the graph that asked; empty where nobody said. Nothing else of the metadata becomes a label."""
        name = str(event.metadata.get("node") or "")
        if name not in self._nodes and len(self._nodes) >= _MODELS:
            return "other"
        self._nodes.add(name)
        return name
