"""The log: one line of the application's structlog, or of the standard logging where it configured none.

Must never be given a prompt or an answer, but at DEBUG where the operator wants them.
Only ``events`` and the engine write to it.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, Final, Literal

Level = Literal["debug", "info", "warning", "error"]

_NAME: Final = "learnflow.llm"


def wanted(level: Level) -> bool:
    """Whether anybody would read a line of this level."""
    return _logger(level) is not None


def line(level: Level, what: str, **fields: Any) -> None:
    """Write one line."""
    logger = _logger(level)
    if logger is not None:
        getattr(logger, level)(what, **fields)


def _logger(level: Level) -> Any:
    """A structlog that nobody configured would print to stdout, into the answer of a command line."""
    import structlog  # noqa: PLC0415  # not before somebody asks a model

    if structlog.is_configured():
        return structlog.get_logger(_NAME)
    listened = logging.getLogger(_NAME).isEnabledFor(logging.getLevelNamesMapping()[level.upper()])
    return _standard_logger() if listened else None


@cache
def _standard_logger() -> Any:
    import structlog  # noqa: PLC0415

    return structlog.wrap_logger(
        logging.getLogger(_NAME),
        processors=[structlog.stdlib.filter_by_level, structlog.processors.KeyValueRenderer(key_order=["event"])],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
