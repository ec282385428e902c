"""Optional sinks (receivers of log events) besides the log: Prometheus and OpenTelemetry.

``get_provider()`` attaches the sinks that the environment enables. If a library is missing or a port is in use, an
error is logged and the application continues. An application may also call ``prometheus.attach()`` and
``opentelemetry.attach()``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .. import log
from ..process import after_fork, register
from ..settings import Settings
from ..settings_sources import in_container

_served: Final = register("ports of metrics", set[object]())  # the host and the port of each metrics server
_logged_hints: Final = register("hints that were logged", set[str]())
_detachers: Final[dict[tuple[object, ...], Callable[[], None]]] = {}


def attach(common: Settings) -> None:
    """Attach the sinks that ``LLM_METRICS_PORT`` and ``LLM_OPENTELEMETRY`` enable, each once in a process."""
    if common.llm_metrics_port:
        # Listen on all interfaces in a container, because Prometheus scrapes it from outside
        default_host = "0.0.0.0" if in_container() else "127.0.0.1"  # noqa: S104
        _serve_metrics(common.llm_metrics_host or default_host, common.llm_metrics_port)
    if common.llm_opentelemetry:
        _attach_opentelemetry()


def attach_once(key: tuple[object, ...], add: Callable[[], Callable[[], None]]) -> Callable[[], None]:
    """Add a sink, unless a sink with the same key is attached. Return the function that detaches the sink.

    Args:
        key: the name of the sink, and the objects to which the sink reports.
        add: a function that adds the sink and returns a function that removes it.
    """
    if key in _detachers:
        return _detachers[key]
    remove = add()

    def detach() -> None:
        if _detachers.pop(key, None):
            remove()

    _detachers[key] = detach
    return detach


def _serve_metrics(host: str, port: int) -> None:
    """Attach Prometheus and serve its metrics. If this fails, log an error. The next call tries again."""
    if (host, port) in _served:
        return
    try:
        from . import prometheus  # noqa: PLC0415  # an extra

        prometheus.attach()
        prometheus.serve(host, port)
        _served.add((host, port))
    except ImportError:
        _log_once(
            "llm.metrics_unavailable",
            "LLM_METRICS_PORT needs the package prometheus_client (pip install prometheus_client)",
        )
    except (OSError, ValueError) as error:  # for example, another process of the application uses the port
        _log_once(
            "llm.metrics_unavailable",
            f"{host}:{port} cannot be used (LLM_METRICS_HOST, LLM_METRICS_PORT): {error}",
        )


def _attach_opentelemetry() -> None:
    try:
        from . import opentelemetry  # noqa: PLC0415  # an extra

        opentelemetry.attach()
    except ImportError:
        _log_once(
            "llm.telemetry_unavailable",
            "LLM_OPENTELEMETRY needs the package opentelemetry-api (pip install opentelemetry-api)",
        )


def _log_once(event: str, hint: str) -> None:
    """Log an error with this hint once in a process."""
    if hint not in _logged_hints:
        _logged_hints.add(hint)
        log.write_line("error", event, hint=hint)


after_fork(_served.clear)  # a child process does not inherit the thread that serves the metrics
