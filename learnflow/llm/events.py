"""What happened: frozen events, handed to sinks; the first sink is one line of structlog for each request.

Must never hold a prompt or an answer, and never let a sink's failure reach a request.
The adapter and the router emit; applications add sinks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Final

from .base import Completion, Usage
from .errors import ConfigError, LLMError


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A request was answered in full; times in seconds."""

    provider: str
    model: str
    finish: str
    usage: Usage
    first_token_s: float | None
    total_s: float
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A request failed: ``error`` is the class of the leaf; ``loud``: somebody must change a setting."""

    provider: str
    model: str | None
    error: str
    status: int | None
    loud: bool
    total_s: float
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """The caller left before the answer had ended."""

    provider: str
    model: str | None
    total_s: float
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncated:
    """An answer ended at the caller's ``max_tokens``: returned, but shorter than the model wanted."""

    provider: str
    model: str
    max_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjusted:
    """Something was left out or asked for otherwise, because the model refused it: ``why`` says what."""

    provider: str
    model: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A request went on to another provider: ``error`` is the class of the failure that made it."""

    provider: str
    to: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """An answer that broke after ``characters`` is continued by ``provider``; ``in_words``: asked for in words."""

    provider: str
    characters: int
    in_words: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A provider is left alone for ``seconds``: ``error`` is the class of the failure."""

    provider: str
    model: str | None
    error: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A provider is asked again."""

    provider: str
    model: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaying:
    """From now on answers come from the tapes in ``folder``, or are kept there (``mode`` "record")."""

    folder: str
    mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRecorded:
    """An answer could not be kept on tape."""

    file: str
    error: str


Event = Answered | Failed | Left | Truncated | Adjusted | Moved | Resumed | Opened | Closed | Replaying | NotRecorded
Sink = Callable[[Event], None]

_sinks: Final[list[Sink]] = []
_WARNINGS: Final = (Truncated, Moved, Resumed, Opened, Replaying)


def add_sink(sink: Sink) -> Callable[[], None]:
    """Let ``sink`` see every event from now on. Returns a function that takes it off again."""
    _sinks.append(sink)

    def remove() -> None:
        with suppress(ValueError):
            _sinks.remove(sink)

    return remove


def ended(
    provider: str,
    model: str | None,
    outcome: Completion | LLMError | None,
    *,
    total_s: float,
    max_tokens: int | None,
    attempt: int = 1,
) -> None:
    """Emit how a request ended: whole, failed, or left by its caller (None)."""
    if outcome is None:
        emit(Left(provider=provider, model=model, total_s=total_s, attempt=attempt))
    elif isinstance(outcome, LLMError):
        name, loud = type(outcome).__name__, isinstance(outcome, ConfigError)
        emit(
            Failed(
                provider=provider,
                model=model,
                error=name,
                status=outcome.status,
                loud=loud,
                total_s=total_s,
                attempt=attempt,
            )
        )
    else:
        served = str(outcome.model)
        emit(
            Answered(
                provider=provider,
                model=served,
                finish=outcome.finish,
                usage=outcome.usage,
                first_token_s=outcome.first_token_s,
                total_s=outcome.total_s,
                attempt=attempt,
            )
        )
        if outcome.finish == "length":
            emit(Truncated(provider=provider, model=served, max_tokens=max_tokens))


def emit(event: Event) -> None:
    """Hand an event to the log and to every sink."""
    for sink in (_log, *_sinks):
        try:
            sink(event)
        except Exception:  # a sink that fails must not fail a request
            logging.getLogger(__name__).exception("a sink failed on %s", type(event).__name__)


def content(what: str, **fields: Any) -> None:
    """Log prompts or answers, at DEBUG; callers ask ``LLM_LOG_CONTENT`` first."""
    logger = _logger("debug")
    if logger is not None:
        logger.debug(what, **fields)


def _log(event: Event) -> None:
    loud = isinstance(event, NotRecorded) or (isinstance(event, Failed) and event.loud)
    level = "error" if loud else "warning" if isinstance(event, _WARNINGS) else "info"
    logger = _logger(level)
    if logger is not None:
        fields = asdict(event)
        fields |= fields.pop("usage", {})
        said = {name: value for name, value in fields.items() if value is not None and name != "loud"}
        getattr(logger, level)(f"llm_{type(event).__name__.lower()}", **said)


def _logger(level: str) -> Any:
    """The application's structlog where it configured one, else the standard logging; None where nobody listens.

    A structlog that nobody configured would print to stdout, into the answer of a command line.
    """
    import structlog  # noqa: PLC0415  # not before somebody asks a model

    if structlog.is_configured():
        return structlog.get_logger("learnflow.llm")
    wanted = logging.getLogger("learnflow.llm").isEnabledFor(logging.getLevelNamesMapping()[level.upper()])
    return _standard_logger() if wanted else None


@cache
def _standard_logger() -> Any:
    import structlog  # noqa: PLC0415

    return structlog.wrap_logger(
        logging.getLogger("learnflow.llm"),
        processors=[structlog.stdlib.filter_by_level, structlog.processors.KeyValueRenderer(key_order=["event"])],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
