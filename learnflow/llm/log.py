"""The log: one line of the application's structlog, or of the standard logging where it configured none.

It is given no prompt and no answer, but at DEBUG where the operator wants them. A line that cannot be written (a closed
stdout, a full disk, a processor of the application's that raises) costs no answer.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import cache
from typing import Any, Final, Literal

import structlog  # here, not at the first failure: an import may fail for want of what the failure is about

Level = Literal["debug", "info", "warning", "error"]

_NAME: Final = "learnflow.llm"


def wanted(level: Level) -> bool:
    """Whether anybody would read a line of this level."""
    with suppress(Exception):
        return _logger(level) is not None
    return False


def line(level: Level, what: str, **fields: Any) -> None:
    """Write one line, if that can be done."""
    with suppress(Exception):
        logger = _logger(level)
        if logger is not None:
            getattr(logger, level)(what, **fields)


def _logger(level: Level) -> Any:
    """A structlog that nobody configured would print to stdout, into the answer of a command line."""
    if structlog.is_configured():
        return structlog.get_logger(_NAME)
    listened = logging.getLogger(_NAME).isEnabledFor(logging.getLevelNamesMapping()[level.upper()])
    return _standard_logger() if listened else None


@cache
def _standard_logger() -> Any:
    return structlog.wrap_logger(
        logging.getLogger(_NAME),
        processors=[structlog.stdlib.filter_by_level, structlog.processors.KeyValueRenderer(key_order=["event"])],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
