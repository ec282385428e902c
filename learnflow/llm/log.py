"""The log: structlog if the application configures it, else the standard logging.

A line contains a prompt or an answer only at DEBUG, and only if LLM_LOG_CONTENT is set. A line that cannot be written
is dropped, because a full disk must not fail a request.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, Literal

Level = Literal["debug", "info", "warning", "error"]

_NAME: Final = "learnflow.llm"
_LOGGER: Final = logging.getLogger(_NAME)
_format: Final = ["text"]


def set_format(name: str) -> None:
    """Set the format of lines in the standard logging: "json", or text. A configured structlog has its own format."""
    _format[:] = [name]


def write_line(level: Level, event: str, **fields: Any) -> None:
    """Write one line. A float has three significant digits."""
    with suppress(Exception):
        structlog, number = _configured_structlog(), logging.getLevelNamesMapping()[level.upper()]
        if structlog or _LOGGER.isEnabledFor(number):
            fields |= {key: float(f"{value:.3g}") for key, value in fields.items() if isinstance(value, float)}
            if structlog:
                getattr(structlog.get_logger(_NAME), level)(event, **fields)
            else:
                _LOGGER.log(number, _render(level, {"event": event, **fields}))


def _configured_structlog() -> Any:
    """Return the module structlog; None unless it is configured. Unconfigured, it would print to stdout.

    It is not imported here, because that takes 0.2 s. An application that configures it has imported it.
    """
    structlog: Any = sys.modules.get("structlog")
    return structlog if structlog and structlog.is_configured() else None


def _render(level: Level, fields: dict[str, Any]) -> str:
    if _format == ["json"]:
        return json.dumps({**fields, "level": level, "timestamp": datetime.now(UTC).isoformat()}, default=repr)
    return " ".join(f"{key}={value!r}" for key, value in fields.items())
