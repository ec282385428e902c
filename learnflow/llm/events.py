"""Log events: frozen dataclasses that sinks receive. The first sink writes one log line for each attempt.

An event carries the completion or the error of an attempt, without text of a prompt or an answer. Only
``ContentRecorded`` has text. A failing sink never fails a request. The adapter and the router emit events, and
applications add sinks.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, TypeVar

from . import log
from .base import Attempt
from .completion import Completion
from .completion import Failover as Failover  # noqa: PLC0414  # one class for the log and for streams
from .completion import Resumed as Resumed  # noqa: PLC0414
from .errors import ConfigError, LLMError
from .process import register
from .stream import Emit, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseEvent:
    """Base of the events of this module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestStarted(BaseEvent):
    """A request begins. Not logged.

    Attributes:
        provider: the names of the chain.
        model: the requested model; None if the call names none.
    """

    request: int
    provider: str
    model: str | None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStarted(BaseEvent):
    """An attempt of a request begins, with these ``sampling`` parameters at this ``address``. Not logged."""

    request: int
    attempt: int
    provider: str
    model: str | None
    address: str
    sampling: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestQueued(BaseEvent):
    """A request waited ``seconds`` for a slot of a provider with a concurrency limit. Not logged."""

    provider: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded(BaseEvent):
    """Base of the events of an ended attempt. ``total_s`` includes its waiting."""

    provider: str
    total_s: float
    attempt: int = 1
    request: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSucceeded(AttemptEnded):
    """An attempt succeeded. ``completion.total_s`` excludes its waiting."""

    completion: Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed(AttemptEnded):
    """An attempt failed. In request 0 the provider could not be created."""

    model: str | None
    error: LLMError

    @property
    def is_configuration_error(self) -> bool:
        """Return whether a setting must be changed."""
        return isinstance(self.error, ConfigError)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptCancelled(AttemptEnded):
    """The caller left before the answer had ended."""

    model: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEnded(BaseEvent):
    """A request has ended. ``outcome``: None if the caller left. Not logged."""

    request: int
    outcome: Completion | LLMError | None
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCut(BaseEvent):
    """An answer ended at the caller's ``max_tokens``. It was returned, although the model did not finish it."""

    provider: str
    model: str
    max_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAdjusted(BaseEvent):
    """A request was changed because the model refused a part of it.

    Attributes:
        why: the refused part.
        tight: less than a quarter of the caller's ``max_tokens`` is left for the answer. Logged as a warning.
    """

    provider: str
    model: str
    why: str
    tight: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedOver(BaseEvent):
    """The first piece arrived from ``to``, ``seconds`` after ``provider`` failed. Not logged."""

    provider: str
    to: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamContinued(BaseEvent):
    """A continuation ended: "whole", "mismatched" (it did not fit the text), or "broken". Not logged."""

    provider: str
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthChecked(BaseEvent):
    """A provider was probed; see ``Health`` for its states. Not logged."""

    provider: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerOpened(BaseEvent):
    """A circuit breaker opened for ``seconds``. ``model``: None if it covers the whole address."""

    provider: str
    model: str | None
    error: LLMError | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerClosed(BaseEvent):
    """A circuit breaker closed, for this model and for the whole address."""

    provider: str
    model: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NothingConfigured(BaseEvent):
    """No provider is configured and no server responds. The embedded small model answers."""

    provider: str
    model: str | None
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaying(BaseEvent):
    """Responses now come from the cassettes in ``folder``, or are recorded there if ``mode`` is "record"."""

    folder: str
    mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingFailed(BaseEvent):
    """A response could not be written to a cassette."""

    file: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentRecorded:
    """A prompt and its answer, for the sinks of ``add_content_sink`` only. Its repr shows no text."""

    request: int
    attempt: int
    messages: Sequence[Mapping[str, Any]] = field(repr=False)
    completion: Completion


LogEvent = BaseEvent | Failover | Resumed
Sink = Callable[[LogEvent], None]
_S = TypeVar("_S")

_sinks: Final = register("sinks", list[Sink]())
_content_sinks: Final = register("sinks of content", list[Callable[[ContentRecorded], None]]())
_numbers: Final = itertools.count(1)
# The names and levels of the events that are logged; all others are for sinks only.
_LOGGED: Final[dict[type[LogEvent], tuple[str, log.Level]]] = {
    AttemptSucceeded: ("llm.request_completed", "info"),
    AttemptFailed: ("llm.request_failed", "info"),
    AttemptCancelled: ("llm.request_cancelled", "info"),
    AnswerCut: ("llm.answer_truncated", "warning"),
    RequestAdjusted: ("llm.request_adjusted", "info"),
    Failover: ("llm.failover", "warning"),
    Resumed: ("llm.stream_continued", "warning"),
    BreakerOpened: ("llm.breaker_opened", "warning"),
    BreakerClosed: ("llm.breaker_closed", "info"),
    NothingConfigured: ("llm.nothing_configured", "warning"),
    Replaying: ("llm.replaying", "warning"),
    RecordingFailed: ("llm.recording_failed", "error"),
}
_UNLOGGED: Final = ("request", "tight")  # for sinks only


def next_request() -> int:
    """Return the number of a new request, unique in this process."""
    return next(_numbers)


def add_sink(sink: Sink) -> Callable[[], None]:
    """Add a function that receives every event.

    Args:
        sink: called with each event, in the task or thread that emits it. If it raises, the request continues.

    Returns:
        A function that removes the sink.
    """
    return _add(_sinks, sink)


def add_content_sink(sink: Callable[[ContentRecorded], None]) -> Callable[[], None]:
    """Add a function that receives prompts and answers.

    Args:
        sink: called after each successful attempt.

    Returns:
        A function that removes the sink.
    """
    return _add(_content_sinks, sink)


def _add(sinks: list[_S], sink: _S) -> Callable[[], None]:
    sinks.append(sink)

    def remove() -> None:
        with suppress(ValueError):
            sinks.remove(sink)

    return remove


def emit_content(request: int, attempt: int, messages: Sequence[Mapping[str, Any]], completion: Completion) -> None:
    """Send a prompt and its answer to the sinks of ``add_content_sink``."""
    for sink in _content_sinks:
        _call_sink(sink, ContentRecorded(request=request, attempt=attempt, messages=messages, completion=completion))


async def run_attempt(
    provider: str,
    address: str,
    sampling: Mapping[str, Any],
    attempt: Attempt,
    model_and_limit: Callable[[], tuple[str | None, int | None]],
    work: Work,
    receiver: Emit,
) -> Completion:
    """Run an attempt, and emit the events of its beginning and its end.

    Args:
        provider: the name of the provider.
        address: the address of the server.
        sampling: the sampling parameters.
        attempt: the number of the attempt and of its request.
        model_and_limit: returns the model and ``max_tokens`` of the request; None for a value that is not chosen yet.
        work: runs the attempt.
        receiver: receives the events of the stream.
    """
    started = time.monotonic()
    labels: dict[str, Any] = {"provider": provider, "attempt": attempt.number, "request": attempt.request}
    labels["metadata"] = dict(attempt.metadata)
    emit(AttemptStarted(model=model_and_limit()[0], address=address, sampling=sampling, **labels))

    def ended() -> dict[str, Any]:
        return {**labels, "total_s": time.monotonic() - started}

    try:
        completion = await work(receiver)
    except LLMError as error:
        emit(AttemptFailed(model=model_and_limit()[0], error=error.without_text(), **ended()))
        raise
    except BaseException:
        emit(AttemptCancelled(model=model_and_limit()[0], **ended()))
        raise
    emit(AttemptSucceeded(completion=completion.without_text(), **ended()))
    if completion.finish == "length":
        emit(AnswerCut(provider=provider, model=str(completion.model), max_tokens=model_and_limit()[1]))
    return completion


async def run_request(chain: str, model: str | None, attempt: Attempt, work: Work, receiver: Emit) -> Completion:
    """Run a request, and emit the events of its beginning and its end.

    Args:
        chain: the names of the providers.
        model: the requested model.
        attempt: the first attempt.
        work: runs the request.
        receiver: receives the events of the stream.
    """
    emit(RequestStarted(request=attempt.request, provider=chain, model=model, metadata=attempt.metadata))
    outcome: Completion | LLMError | None = None
    attempts = 0
    try:
        completion = await work(receiver)
        outcome, attempts = completion.without_text(), completion.attempts
    except LLMError as error:
        outcome, attempts = error.without_text(), max(1, len(error.attempts))
        raise
    finally:
        emit(RequestEnded(request=attempt.request, outcome=outcome, attempts=attempts or len(attempt.tried) + 1))
    return completion


def emit(event: LogEvent) -> None:
    """Send an event to the log and to every sink."""
    if type(event) in _LOGGED:
        _call_sink(_log, event)
    for sink in tuple(_sinks):
        _call_sink(sink, event)


def _call_sink(sink: Callable[[Any], None], event: object) -> None:
    """Call a sink. If it raises, log the names of event and error only: their text may be a prompt."""
    try:
        sink(event)
    except Exception as error:  # noqa: BLE001  # whatever an application's sink raises
        log.line("error", "llm.sink_failed", on=type(event).__name__, error=type(error).__name__)


def _log(event: LogEvent) -> None:
    name, level = _LOGGED[type(event)]
    if isinstance(event, AttemptFailed) and event.is_configuration_error:
        level = "error"
    if isinstance(event, RequestAdjusted) and event.tight:
        level = "warning"
    if log.is_enabled(level):
        fields_ = log_fields(event).items()
        shown = {key: value for key, value in fields_ if value not in (None, {}) and key not in _UNLOGGED}
        log.line(level, name, **shown)


def log_fields(event: LogEvent) -> dict[str, Any]:
    """Return the fields of an event for a log: the numbers of a completion, the class of an error."""
    values = {field_.name: getattr(event, field_.name) for field_ in fields(event)}
    completion, error = values.pop("completion", None), values.get("error")
    if completion:
        values["model"] = str(completion.model)
        values |= {name: getattr(completion, name) for name in ("finish", "first_token_s", "cost")}
        values |= asdict(completion.usage)
    if isinstance(error, LLMError):
        values["error"] = type(error).__name__
        values["status"] = error.status if isinstance(event, AttemptFailed) else None
    return values
