"""Sinks beside the log: Prometheus and OpenTelemetry, each an extra; attached by hand, or by the environment.

Must never be imported before somebody wants one, nor let the want of a library or a port stop an application.
``get_provider()`` asks for what the environment names.
"""

from __future__ import annotations

import os
from typing import Final

from .. import log
from ..process import register
from ..settings import Settings
from ..settings_sources import in_container

_done: Final = register("ports of metrics", set[object]())
_said: Final = register("hints that were said", set[str]())


def attach(common: Settings) -> None:
    """Attach what ``LLM_METRICS_PORT`` and ``LLM_OPENTELEMETRY`` ask for, once in a process."""
    if common.llm_metrics_port:
        # a container has a network of its own, and is watched from outside
        usual = "0.0.0.0" if in_container() else "127.0.0.1"  # noqa: S104
        _metrics(common.llm_metrics_host or usual, common.llm_metrics_port)
    if common.llm_opentelemetry:
        _opentelemetry()


def _metrics(host: str, port: int) -> None:
    """Count, and show it; a port that is taken is tried again the next time."""
    if (host, port) in _done:
        return
    try:
        from . import prometheus  # noqa: PLC0415  # an extra

        prometheus.attach()
        prometheus.serve(host, port)
        _done.add((host, port))
    except ImportError:
        _say(
            "llm.metrics_unavailable",
            "LLM_METRICS_PORT needs the package prometheus_client (pip install prometheus_client)",
        )
    except (OSError, ValueError) as error:  # several processes of one application want the same port
        _say(
            "llm.metrics_unavailable",
            f"{host}:{port} cannot be listened on (LLM_METRICS_HOST, LLM_METRICS_PORT): {error}",
        )


def _opentelemetry() -> None:
    try:
        from . import opentelemetry  # noqa: PLC0415  # an extra

        opentelemetry.attach()
    except ImportError:
        _say(
            "llm_no_telemetry", "LLM_OPENTELEMETRY needs the package opentelemetry-api (pip install opentelemetry-api)"
        )


def _say(what: str, hint: str) -> None:
    """Once in a process."""
    if hint not in _said:
        _said.add(hint)
        log.line("error", what, hint=hint)


if hasattr(os, "register_at_fork"):  # the thread that shows the metrics stays behind
    os.register_at_fork(after_in_child=_done.clear)
