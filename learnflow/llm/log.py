"""The log: structlog if the application configures it, else the standard logging.

A line contains a prompt or an answer only at DEBUG, and only if LLM_LOG_CONTENT is set. A line that cannot be written
is dropped, because a full disk must not fail a request.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any, Final, Literal

import structlog  # here, because a log line about a failed import cannot import it
from structlog import processors

Level = Literal["debug", "info", "warning", "error"]

_NAME: Final = "learnflow.llm"
_TEXT_PROCESSORS: Final[list[Any]] = [processors.KeyValueRenderer(key_order=["event"])]
_JSON_PROCESSORS: Final = [structlog.stdlib.add_log_level, processors.TimeStamper(fmt="iso"), processors.JSONRenderer()]
_processors: Final = [*_TEXT_PROCESSORS]
_STANDARD_LOGGER: Final = logging.getLogger(_NAME)
_STRUCTLOG_LOGGER: Final = structlog.wrap_logger(
    _STANDARD_LOGGER, processors=_processors, wrapper_class=structlog.stdlib.BoundLogger
)


def set_format(name: str) -> None:
    """Set the format of lines in the standard logging: "json", or text. A configured structlog has its own format."""
    _processors[:] = _JSON_PROCESSORS if name == "json" else _TEXT_PROCESSORS


def write_line(level: Level, event: str, **fields: Any) -> None:
    """Write one line. A float has three significant digits."""
    with suppress(Exception):
        logger = _logger_for(level)
        if logger is not None:
            rounded = {key: float(f"{value:.3g}") for key, value in fields.items() if isinstance(value, float)}
            getattr(logger, level)(event, **fields | rounded)


def _logger_for(level: Level) -> Any:
    """Return the logger; None if the level is disabled. An unconfigured structlog prints to stdout and is not used."""
    if structlog.is_configured():
        return structlog.get_logger(_NAME)
    return _STRUCTLOG_LOGGER if _STANDARD_LOGGER.isEnabledFor(logging.getLevelNamesMapping()[level.upper()]) else None
