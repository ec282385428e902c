"""Sinks beside the log: Prometheus and OpenTelemetry, each an extra; attached by hand, or by the environment.

Must never be imported before somebody wants one, nor let the want of a library or a port stop an application.
``get_provider()`` asks for what the environment names.
"""

from __future__ import annotations

from functools import cache

from .. import log
from ..settings import Settings, in_container


def attach(common: Settings) -> None:
    """Attach what ``LLM_METRICS_PORT`` and ``LLM_OPENTELEMETRY`` ask for, once in a process."""
    if common.llm_metrics_port:
        # a container has a network of its own, and is watched from outside
        usual = "0.0.0.0" if in_container() else "127.0.0.1"  # noqa: S104
        _metrics(common.llm_metrics_host or usual, common.llm_metrics_port)
    if common.llm_opentelemetry:
        _opentelemetry()


@cache
def _metrics(host: str, port: int) -> None:
    try:
        from . import prometheus  # noqa: PLC0415  # an extra

        prometheus.serve(host, port)
        prometheus.attach()
    except ImportError:
        hint = "LLM_METRICS_PORT needs pip install 'learnflow-llm[prometheus]'"
        log.line("error", "llm_no_metrics", hint=hint)
    except OSError as error:  # several processes of one application want the same port
        log.line("error", "llm_no_metrics", error=str(error), hint=f"LLM_METRICS_PORT={port} cannot be listened on")


@cache
def _opentelemetry() -> None:
    try:
        from . import opentelemetry  # noqa: PLC0415  # an extra

        opentelemetry.attach()
    except ImportError:
        hint = "LLM_OPENTELEMETRY needs pip install 'learnflow-llm[opentelemetry]'"
        log.line("error", "llm_no_telemetry", hint=hint)
