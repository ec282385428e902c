"""The log: the application's structlog if it is configured, else the standard logging.

Lines have no prompt or answer, except at DEBUG if the operator sets LLM_LOG_CONTENT. A line that cannot be written (a
closed stdout, a full disk, a failing processor) is dropped, and the request continues.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import cache
from typing import Any, Final, Literal

import structlog  # not later: an import may fail for the same reason as the request

Level = Literal["debug", "info", "warning", "error"]

_NAME: Final = "learnflow.llm"


def is_enabled(level: Level) -> bool:
    """Return whether a line of this level would be written."""
    with suppress(Exception):
        return _logger(level) is not None
    return False


def line(level: Level, event: str, **fields: Any) -> None:
    """Write one line. Drop it if that fails."""
    with suppress(Exception):
        logger = _logger(level)
        if logger is not None:
            getattr(logger, level)(event, **fields)


def _logger(level: Level) -> Any:
    """Return the logger; None if the level is off. An unconfigured structlog would print to stdout, into the answer."""
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
