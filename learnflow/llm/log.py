"""The log: structlog if the application configures it, else the module ``logging``.

A line contains a prompt or an answer only at DEBUG, and only if LLM_LOG_CONTENT is set. A line that cannot be written
is dropped, because a full disk must not fail a request.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from functools import cache
from typing import Any, Final, Literal

Level = Literal["debug", "info", "warning", "error"]

_LOGGER_NAME: Final = "learnflow.llm"
_STANDARD_LOGGER: Final = logging.getLogger(_LOGGER_NAME)
_format: Final = ["text"]  # one item, which ``set_format()`` replaces


def set_format(name: str) -> None:
    """Set the format of lines: JSON if ``name`` is "json", else text. A configured structlog ignores the format."""
    _format[:] = [name]


def write_line(level: Level, event: str, **fields: Any) -> None:
    """Write one line. Floats are rounded to three significant digits."""
    with suppress(Exception):
        logger = _logger_for(level)
        if logger is not None:
            rounded = {key: float(f"{value:.3g}") for key, value in fields.items() if isinstance(value, float)}
            getattr(logger, level)(event, **fields | rounded)


def _logger_for(level: Level) -> Any:
    """Return the logger; None if the level is disabled.

    If the application did not configure structlog, its default logger is not used, because it prints to stdout.
    """
    structlog: Any = sys.modules.get("structlog")  # an application that configures structlog has imported it
    if structlog and structlog.is_configured():
        return structlog.get_logger(_LOGGER_NAME)
    is_enabled = _STANDARD_LOGGER.isEnabledFor(logging.getLevelNamesMapping()[level.upper()])
    return _create_logger(_format[0]) if is_enabled else None


@cache
def _create_logger(format_name: str) -> Any:
    """Create a logger that formats lines with structlog, and writes them to the module ``logging``."""
    import structlog  # noqa: PLC0415  # the import takes 0.2 s
    from structlog import processors, stdlib  # noqa: PLC0415

    json_chain = [stdlib.add_log_level, processors.TimeStamper(fmt="iso"), processors.JSONRenderer()]
    text_chain = [processors.KeyValueRenderer(key_order=["event"])]
    chain: list[Any] = json_chain if format_name == "json" else text_chain
    return structlog.wrap_logger(_STANDARD_LOGGER, processors=chain, wrapper_class=stdlib.BoundLogger)
