"""The log: structlog if the application configures it, else the standard logging.

A line contains a prompt or an answer only at DEBUG, and only if LLM_LOG_CONTENT is set. A line that cannot be written
is dropped, because a full disk must not fail a request.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import cache
from typing import Any, Final, Literal

import structlog  # not on first use: a log line about a failed import would need another import

Level = Literal["debug", "info", "warning", "error"]

_NAME: Final = "learnflow.llm"


def line(level: Level, event: str, **fields: Any) -> None:
    """Write one line."""
    with suppress(Exception):
        logger = _logger(level)
        if logger is not None:
            getattr(logger, level)(event, **fields)


def _logger(level: Level) -> Any:
    """Return the logger; None if the level is disabled. An unconfigured structlog is not used: it prints to stdout."""
    if structlog.is_configured():
        return structlog.get_logger(_NAME)
    enabled = logging.getLogger(_NAME).isEnabledFor(logging.getLevelNamesMapping()[level.upper()])
    return _standard_logger() if enabled else None


@cache
def _standard_logger() -> Any:
    return structlog.wrap_logger(
        logging.getLogger(_NAME),
        processors=[structlog.stdlib.filter_by_level, structlog.processors.KeyValueRenderer(key_order=["event"])],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
