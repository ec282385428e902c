"""What happened: frozen events, handed to sinks; the first sink is one line of structlog for each request.

Must never hold a prompt or an answer (but for ``Said``), and never let a sink's failure reach a request.
The adapter and the router emit; applications add sinks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeVar

from . import log
from .completion import Completion, ToolCall, Usage
from .errors import ConfigError, LLMError
from .process import kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Began:
    """A request begins; ``provider`` names the whole chain, ``model`` what the caller named. Not logged."""

    request: int
    provider: str
    model: str | None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An attempt at a request begins: ``sampling`` is how it is asked, ``address`` where. Not logged."""

    request: int
    attempt: int
    provider: str
    model: str | None
    address: str
    sampling: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """A request waited ``seconds`` for a place among those that the provider takes at once. Not logged."""

    provider: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An attempt was answered in full; times in seconds, cost in US dollars (None where it is not known).

    ``model`` is the name that the server gave, ``asked`` the one that it was asked for.
    """

    provider: str
    model: str
    finish: str
    usage: Usage
    first_token_s: float | None
    total_s: float
    attempt: int = 1
    request: int = 0
    cost: float | None = None
    asked: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """An attempt failed: ``error`` is the class of the leaf; ``loud``: somebody must change a setting.

    Request 0: the provider could not even be made.
    """

    provider: str
    model: str | None
    error: str
    status: int | None
    loud: bool
    total_s: float
    attempt: int = 1
    request: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """The caller left before the answer had ended."""

    provider: str
    model: str | None
    total_s: float
    attempt: int = 1
    request: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A request is over: ``outcome`` is its finish, "left", or the class of the error (``failed``). Not logged."""

    request: int
    outcome: str
    failed: bool = False
    provider: str | None = None
    attempts: int
    resumed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncated:
    """An answer ended at the caller's ``max_tokens``: returned, but shorter than the model wanted."""

    provider: str
    model: str
    max_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjusted:
    """Something was left out or asked for otherwise, because the model refused it: ``why`` says what.

    ``tight``: less than a quarter of the caller's ``max_tokens`` is left for the answer; a warning.
    """

    provider: str
    model: str
    why: str
    tight: bool = False


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
class Switched:
    """``seconds`` after the failure of ``provider`` the first piece came from ``to``. Not logged."""

    provider: str
    to: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Continued:
    """How a continuation went: "whole"; "mismatched": it was another answer; "broken". Not logged."""

    provider: str
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A provider was looked at: see ``Health`` for its states. Not logged."""

    provider: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A provider is left alone for ``seconds``: ``error`` is the class of the failure; no model: for all of them."""

    provider: str
    model: str | None
    error: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A provider is asked again, this model and the whole address."""

    provider: str
    model: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NothingConfigured:
    """Nothing is configured and no server answers, so that a small model in a process of our own is used."""

    provider: str
    model: str | None
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaying:
    """From now on answers come from the cassettes in ``folder``, or are kept there (``mode`` "record")."""

    folder: str
    mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingFailed:
    """An answer could not be kept in a cassette."""

    file: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What was asked and answered; only for sinks that were added with ``content=True``. Its repr shows none of it."""

    request: int
    attempt: int
    messages: Sequence[Mapping[str, Any]] = field(repr=False)
    text: str = field(repr=False)
    tool_calls: Sequence[ToolCall] = field(default=(), repr=False)
    finish: str


_Sinks = Began | Asked | Queued | Ended | Switched | Continued | Checked  # these are for sinks, not for the log
Event = (
    Answered
    | Failed
    | Left
    | Truncated
    | Adjusted
    | Moved
    | Resumed
    | Opened
    | Closed
    | NothingConfigured
    | Replaying
    | RecordingFailed
    | _Sinks
)
Sink = Callable[[Event], None]
_S = TypeVar("_S")

_sinks: Final = kept("sinks", list[Sink]())
_content: Final = kept("sinks of content", list[Callable[[Said], None]]())
_numbers: Final = itertools.count(1)
# What the log calls them, to be searched for.
_NAMES: Final[dict[type[Event], str]] = {
    Answered: "llm.request_completed",
    Failed: "llm.request_failed",
    Left: "llm.request_left",
    Truncated: "llm.answer_truncated",
    Adjusted: "llm.request_adjusted",
    Moved: "llm.failover",
    Resumed: "llm.stream_continued",
    Opened: "llm.breaker_opened",
    Closed: "llm.breaker_closed",
    NothingConfigured: "llm.nothing_configured",
    Replaying: "llm.replaying",
    RecordingFailed: "llm.recording_failed",
}
_UNSAID: Final = ("loud", "request", "asked", "tight")  # of interest to sinks only
_WARNINGS: Final = (Truncated, Moved, Resumed, Opened, NothingConfigured, Replaying)


def next_request() -> int:
    """A number for a request, one of a kind in this process."""
    return next(_numbers)


def add_sink(sink: Sink) -> Callable[[], None]:
    """Let a function see every event from now on.

    Args:
        sink: called with the event, in the task or thread where it happens; what it raises fails no request.

    Returns:
        A function that takes it off again.
    """
    return _added(_sinks, sink)


def add_content_sink(sink: Callable[[Said], None]) -> Callable[[], None]:
    """Let a function see prompts and answers.

    Args:
        sink: called after each answered attempt with what was asked and said.

    Returns:
        A function that takes it off again.
    """
    return _added(_content, sink)


def _added(sinks: list[_S], sink: _S) -> Callable[[], None]:
    sinks.append(sink)

    def remove() -> None:
        with suppress(ValueError):
            sinks.remove(sink)

    return remove


def heard() -> bool:
    """Whether anybody but the log listens."""
    return bool(_sinks)


def emit_lazily(kind: type[Event], **fields: Any) -> None:
    """Emit what is not logged; made only where somebody listens."""
    if _sinks:
        emit(kind(**fields))


def said(request: int, attempt: int, messages: Sequence[Mapping[str, Any]], whole: Completion) -> None:
    """Hand prompt and answer to the sinks that asked for them."""
    for sink in _content:
        event = Said(
            request=request,
            attempt=attempt,
            messages=messages,
            text=whole.text,
            tool_calls=whole.tool_calls,
            finish=whole.finish,
        )
        _guarded(sink, event)


def over(request: int, outcome: Completion | LLMError | None, attempts: int = 1) -> Ended:
    """How a request ended, all its attempts together; ``attempts`` of one that its caller left."""
    if outcome is None:
        return Ended(request=request, outcome="left", attempts=attempts)
    if isinstance(outcome, LLMError):
        name, tried = type(outcome).__name__, max(1, len(outcome.attempts))
        return Ended(request=request, outcome=name, failed=True, provider=outcome.provider, attempts=tried)
    return Ended(
        request=request,
        outcome=outcome.finish,
        provider=outcome.provider,
        attempts=outcome.attempts,
        resumed=outcome.resumed,
    )


def ended(
    provider: str,
    model: str | None,
    outcome: Completion | LLMError | None,
    *,
    total_s: float,
    max_tokens: int | None,
    attempt: int = 1,
    request: int = 0,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Emit how an attempt ended: whole, failed, or left by its caller (None)."""
    whose = dict(metadata or {})
    if outcome is None:
        emit(Left(provider=provider, model=model, total_s=total_s, attempt=attempt, request=request, metadata=whose))
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
                request=request,
                metadata=whose,
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
                request=request,
                cost=outcome.cost,
                asked=outcome.model.asked,
                metadata=whose,
            )
        )
        if outcome.finish == "length":
            emit(Truncated(provider=provider, model=served, max_tokens=max_tokens))


def emit(event: Event) -> None:
    """Hand an event to the log and to every sink."""
    if not isinstance(event, _Sinks):
        _guarded(_log, event)
    for sink in tuple(_sinks):
        _guarded(sink, event)


def _guarded(sink: Callable[[Any], None], event: object) -> None:
    """A sink that fails must not fail a request, nor put what was said into the log."""
    try:
        sink(event)
    except Exception as error:  # noqa: BLE001  # whatever an application's sink raises
        log.line("error", "llm.sink_failed", on=type(event).__name__, error=type(error).__name__)


def _log(event: Event) -> None:
    loud = isinstance(event, RecordingFailed) or (isinstance(event, Failed) and event.loud)
    level: log.Level = (
        "error" if loud else "warning" if isinstance(event, _WARNINGS) or getattr(event, "tight", False) else "info"
    )
    if log.wanted(level):
        fields = asdict(event)
        fields |= fields.pop("usage", {})
        told = {name: value for name, value in fields.items() if value not in (None, {}) and name not in _UNSAID}
        log.line(level, _NAMES[type(event)], **told)
