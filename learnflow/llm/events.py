"""What happened: frozen events, handed to sinks; the first sink is one line of structlog for each request.

Must never hold a prompt or an answer (but for ``Said``), and never let a sink's failure reach a request.
The adapter and the router emit; applications add sinks.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self, TypeVar

from . import log
from .base import Attempt
from .completion import Completion, ToolCall, Usage
from .errors import ConfigError, LLMError
from .process import kept
from .stream import Emit, Work


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
    Replaying: "llm.replaying",
    RecordingFailed: "llm.recording_failed",
}
_UNSAID: Final = ("loud", "request", "asked")  # of interest to sinks only
_WARNINGS: Final = (Truncated, Moved, Resumed, Opened, Replaying)


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


class Attempting:
    """One attempt at an answer, told from its beginning to its end.

    Attributes:
        model, max_tokens: as it is asked in the end.
        outcome: a completion, an error; None while it is under way, and where its caller has left it.
    """

    def __init__(
        self, provider: str, model: str | None, address: str, sampling: Mapping[str, Any], attempt: Attempt
    ) -> None:
        self.provider, self.model, self.max_tokens = provider, model, sampling.get("max_tokens")
        self.outcome: Completion | LLMError | None = None
        self._same = {"attempt": attempt.number, "request": attempt.request, "metadata": dict(attempt.metadata)}
        self._started = time.monotonic()
        emit_lazily(Asked, provider=provider, model=model, address=address, sampling=sampling, **self._same)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        whose: dict[str, Any] = {"provider": self.provider, "total_s": time.monotonic() - self._started, **self._same}
        match self.outcome:
            case None:
                emit(Left(model=self.model, **whose))
            case LLMError() as error:
                loud = isinstance(error, ConfigError)
                emit(Failed(model=self.model, error=type(error).__name__, status=error.status, loud=loud, **whose))
            case Completion() as whole:
                told = {name: getattr(whole, name) for name in ("finish", "usage", "first_token_s", "cost")}
                emit(Answered(model=str(whole.model), asked=whole.model.asked, **told, **whose))
                if whole.finish == "length":
                    emit(Truncated(provider=self.provider, model=str(whole.model), max_tokens=self.max_tokens))


async def request(chain: Callable[[], str], model: str | None, attempt: Attempt, work: Work, tell: Emit) -> Completion:
    """A request that no other one sends, told from its beginning to its end."""
    outcome: Completion | LLMError | None = None
    emit_lazily(Began, request=attempt.request, provider=chain(), model=model, metadata=attempt.metadata)
    try:
        outcome = await work(tell)
    except LLMError as error:
        outcome = error
        raise
    finally:
        emit_lazily(Ended, request=attempt.request, **_ended(outcome, len(attempt.tried) + 1))
    return outcome


def _ended(outcome: Completion | LLMError | None, tried: int) -> dict[str, Any]:
    if outcome is None:
        return {"outcome": "left", "attempts": tried}
    if isinstance(outcome, LLMError):
        attempts = max(1, len(outcome.attempts))
        return {"outcome": type(outcome).__name__, "failed": True, "provider": outcome.provider, "attempts": attempts}
    same = {"provider": outcome.provider, "attempts": outcome.attempts, "resumed": outcome.resumed}
    return {"outcome": outcome.finish, **same}


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
    level: log.Level = "error" if loud else "warning" if isinstance(event, _WARNINGS) else "info"
    if log.wanted(level):
        fields = asdict(event)
        fields |= fields.pop("usage", {})
        told = {name: value for name, value in fields.items() if value not in (None, {}) and name not in _UNSAID}
        log.line(level, _NAMES[type(event)], **told)
