"""Events: frozen dataclasses that describe requests, attempts and changes of state.

Every event is sent to the sinks, which are functions that an application adds. Some events are also logged. Only
``ContentRecorded`` contains text of prompts and answers. It is sent only to the sinks of ``add_content_sink``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal, TypeVar, dataclass_transform

from . import log
from .base import Attempt, describe_limit
from .completion import Completion
from .completion import Failover as Failover  # noqa: PLC0414  # one class for the log and for streams
from .completion import Resumed as Resumed  # noqa: PLC0414
from .errors import ConfigError, LLMError, RequestRefused
from .process import register
from .stream import Emit, Work


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
@dataclass(frozen=True, kw_only=True)
class BaseEvent:
    """Base of the events. Each subclass becomes a frozen dataclass."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)


class RequestStarted(BaseEvent):
    """A request begins. Not logged.

    Attributes:
        request: a number that is unique in this process.
        provider: the names of the router's providers, in order of preference.
        model: the requested model; None for the default models.
        metadata: the caller's labels, see ``base.Options``.
    """

    request: int
    provider: str
    model: str | None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class AttemptStarted(BaseEvent):
    """An attempt of a request begins. Not logged.

    Attributes:
        attempt: the number of the attempt in its request, from 1.
        model: the model of the attempt; None if it is not chosen yet.
    """

    request: int
    attempt: int
    provider: str
    model: str | None
    address: str
    sampling: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)


class RequestQueued(BaseEvent):
    """A request waited ``seconds`` for a slot within the provider's concurrency limit. Not logged."""

    provider: str
    seconds: float


class AttemptEnded(BaseEvent):
    """Base of the events at the end of an attempt.

    Attributes:
        total_s: the duration of the attempt in seconds. It includes the attempt's own wait for a slot (see
            ``RequestQueued``), but not a wait in the router before the attempt.
    """

    provider: str
    total_s: float
    attempt: int = 1
    request: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)


class AttemptSucceeded(AttemptEnded):
    """An attempt succeeded. ``completion.total_s`` does not include the wait for a slot."""

    completion: Completion


class AttemptFailed(AttemptEnded):
    """An attempt failed."""

    model: str | None
    error: LLMError


class ProviderRefused(AttemptFailed):
    """A server refused a request for an unknown reason. A router sends the request to the next provider."""


class AttemptCancelled(AttemptEnded):
    """The caller cancelled the request or closed the stream before the attempt had ended."""

    model: str | None


class RequestEnded(BaseEvent):
    """A request has ended. Not logged.

    Attributes:
        outcome: the completion or the error; None if the caller cancelled the request.
    """

    request: int
    outcome: Completion | LLMError | None
    attempts: int


class TokenLimitReached(BaseEvent):
    """A text ended at a token limit, and was returned to the caller. It is possibly incomplete.

    Attributes:
        max_tokens: the limit of the request; None if the request has no limit. The context was then full.
        hint: the reached limit, and what to do.
    """

    provider: str
    model: str
    max_tokens: int | None
    hint: str


class OtherModelAnswered(BaseEvent):
    """The response names another model than the requested one. Emitted once for each provider object and model.

    Attributes:
        model, served: the requested model, and the model in the response.
    """

    provider: str
    model: str
    served: str


class RequestAdjusted(BaseEvent):
    """A request was changed, for example because the model refused a parameter.

    Attributes:
        is_limit_low: whether ``max_tokens`` was lowered to less than a quarter of the requested one. The event is then
            logged as a warning.
    """

    provider: str
    model: str
    change: str
    is_limit_low: bool = False


class FailoverSucceeded(BaseEvent):
    """After a ``Failover``, another provider responded: it sent text, or completed the answer. Not logged.

    Attributes:
        provider, to: the provider that failed first, and the one that responded.
        seconds: the time from that failure to the response.
    """

    provider: str
    to: str
    seconds: float


class ContinuationEnded(BaseEvent):
    """The continuation of an interrupted text has ended. Not logged.

    Attributes:
        outcome: "complete" if the answer is complete. "mismatched" if the continuation did not begin with the
            last words of the interrupted text, as required. "broken" if the attempt failed for another reason.
    """

    provider: str
    outcome: Literal["complete", "mismatched", "broken"]


class HealthChecked(BaseEvent):
    """A provider was probed. ``state`` is ``Health.state``. Not logged."""

    provider: str
    state: str


class BreakerOpened(BaseEvent):
    """A circuit breaker opened.

    Attributes:
        model: the model that the breaker covers; None for all models of the server's address.
        seconds: how long the breaker stays open.
    """

    provider: str
    model: str | None
    error: LLMError | None
    seconds: float


class BreakerClosed(BaseEvent):
    """The circuit breakers of this model and of its address are closed again."""

    provider: str
    model: str | None


class ProviderUnusable(BaseEvent):
    """A provider of a router has an invalid or missing setting. Only the other providers get requests.

    Attributes:
        hint: the message of ``error``, with the advice.
    """

    provider: str
    error: LLMError
    hint: str


class NothingConfigured(BaseEvent):
    """No provider is configured and no local server responds. This package runs its embedded model instead."""

    provider: str
    model: str | None
    hint: str


class Replaying(BaseEvent):
    """The cassettes (files of recorded responses) in ``folder`` are active. ``mode`` is "play" or "record"."""

    folder: str
    mode: str


class RecordingFailed(BaseEvent):
    """A response could not be written to a cassette."""

    file: str
    error: str


class JournalFailed(BaseEvent):
    """``LLM_JOURNAL``, or a file in it, cannot be used. The request continues. Emitted once for each file and fault."""

    file: str
    fault: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentRecorded:
    """A prompt and its answer. Only sinks of ``add_content_sink`` receive it."""

    request: int
    attempt: int
    messages: Sequence[Mapping[str, Any]] = field(repr=False)
    completion: Completion


# Failover and Resumed are not subclasses of BaseEvent, because streams yield them, too
LogEvent = BaseEvent | Failover | Resumed
Sink = Callable[[LogEvent], None]
_S = TypeVar("_S")

_sinks: Final = register("sinks", list[Sink]())
_content_sinks: Final = register("sinks of content", list[Callable[[ContentRecorded], None]]())
_request_numbers: Final = itertools.count(1)
# The name and the level of each event that is logged; docs/generate.py shows them
_LOGGED: Final[dict[type[LogEvent], tuple[str, log.Level]]] = {
    AttemptSucceeded: ("llm.attempt_succeeded", "info"),
    AttemptFailed: ("llm.attempt_failed", "info"),
    ProviderRefused: ("llm.provider_refused", "warning"),
    AttemptCancelled: ("llm.attempt_cancelled", "info"),
    TokenLimitReached: ("llm.token_limit_reached", "warning"),
    OtherModelAnswered: ("llm.other_model_answered", "warning"),
    RequestAdjusted: ("llm.request_adjusted", "info"),
    Failover: ("llm.failover", "warning"),
    Resumed: ("llm.resumed", "warning"),
    BreakerOpened: ("llm.breaker_opened", "warning"),
    BreakerClosed: ("llm.breaker_closed", "info"),
    ProviderUnusable: ("llm.provider_unusable", "error"),
    NothingConfigured: ("llm.nothing_configured", "warning"),
    Replaying: ("llm.replaying", "warning"),
    RecordingFailed: ("llm.recording_failed", "error"),
    JournalFailed: ("llm.journal_failed", "warning"),
}


def next_request_number() -> int:
    """Return the number of a new request, unique in this process."""
    return next(_request_numbers)


def add_sink(sink: Sink) -> Callable[[], None]:
    """Add a function that receives every event.

    Args:
        sink: called in the task or thread that emits the event. If it raises, the request still continues.

    Returns:
        A function that removes the sink.
    """
    return _add(_sinks, sink)


def add_content_sink(sink: Callable[[ContentRecorded], None]) -> Callable[[], None]:
    """Add a function that receives prompts and answers.

    Args:
        sink: called after each successful attempt. If it raises, the request still continues.

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
    model_and_max_tokens: Callable[[], tuple[str | None, int | None]],
    work: Work,
    receiver: Emit,
    context_setting: str = "",
) -> Completion:
    """Run an attempt, and emit the events of its beginning and its end.

    ``receiver`` gets the events of the stream. ``model_and_max_tokens`` is a function, because the values can
    change during the attempt. ``context_setting`` names the setting that increases the context length, for a hint.
    """
    started = time.monotonic()
    labels: dict[str, Any] = {"provider": provider, "attempt": attempt.number, "request": attempt.request_number}
    labels["metadata"] = dict(attempt.metadata)
    emit(AttemptStarted(model=model_and_max_tokens()[0], address=address, sampling=sampling, **labels))

    def end_fields() -> dict[str, Any]:
        return {**labels, "total_s": time.monotonic() - started}

    try:
        completion = await work(receiver)
    except LLMError as error:
        event_class = ProviderRefused if isinstance(error, RequestRefused) else AttemptFailed
        emit(event_class(model=model_and_max_tokens()[0], error=error.without_text(), **end_fields()))
        raise
    except BaseException:
        emit(AttemptCancelled(model=model_and_max_tokens()[0], **end_fields()))
        raise
    emit(AttemptSucceeded(completion=completion.without_text(), **end_fields()))
    if completion.finish == "length":
        limit = model_and_max_tokens()[1]
        hint = "The answer ended at {}. {}".format(*describe_limit(limit, completion.usage, context_setting))
        emit(TokenLimitReached(provider=provider, model=str(completion.model), max_tokens=limit, hint=hint))
    return completion


async def run_request(chain: str, model: str | None, attempt: Attempt, work: Work, receiver: Emit) -> Completion:
    """Run a request, and emit the events of its beginning and its end.

    ``receiver`` gets the events of the stream. ``chain`` names the providers, in order of preference. ``attempt`` is
    the first attempt. All attempts of the request share its ``failed_attempts``.
    """
    emit(RequestStarted(request=attempt.request_number, provider=chain, model=model, metadata=attempt.metadata))
    outcome: Completion | LLMError | None = None
    attempts = 0
    try:
        completion = await work(receiver)
        outcome, attempts = completion.without_text(), completion.attempts
    except LLMError as error:
        outcome, attempts = error.without_text(), max(1, len(error.attempts))
        raise
    finally:
        emit(
            RequestEnded(
                request=attempt.request_number, outcome=outcome, attempts=attempts or len(attempt.failed_attempts) + 1
            )
        )
    return completion


def emit(event: LogEvent) -> None:
    """Send an event to the log and to every sink."""
    if type(event) in _LOGGED:
        _call_sink(_log, event)
    for sink in tuple(_sinks):
        _call_sink(sink, event)


def _call_sink(sink: Callable[[Any], None], event: object) -> None:
    """Call a sink. If the sink raises, log the classes of the event and the error.

    The text of the error is not logged, because it can contain a prompt.
    """
    try:
        sink(event)
    except Exception as error:  # noqa: BLE001  # an application's sink may raise anything
        log.write_line("error", "llm.sink_failed", event_class=type(event).__name__, error=type(error).__name__)


def _log(event: LogEvent) -> None:
    name, level = _LOGGED[type(event)]
    if isinstance(event, AttemptFailed) and isinstance(event.error, ConfigError):
        level = "error"
    if isinstance(event, RequestAdjusted) and event.is_limit_low:
        level = "warning"
    log.write_line(level, name, **log_fields(event))


def log_fields(event: LogEvent) -> dict[str, Any]:
    """Return the fields of the log line of an event, without those that are None or {}.

    An error is replaced by the name of its class, and a completion by its model, finish reason, first-token time, cost
    and usage.
    """
    values = {field_.name: getattr(event, field_.name) for field_ in fields(event)}
    completion, error = values.pop("completion", None), values.get("error")
    if completion:
        values["model"] = str(completion.model)
        values |= {name: getattr(completion, name) for name in ("finish", "first_token_s", "cost")}
        values |= asdict(completion.usage)
    if isinstance(error, LLMError):
        values["error"] = type(error).__name__
        values["status"] = error.status if isinstance(event, AttemptFailed) else None
        values["message"] = error.server_message if isinstance(event, ProviderRefused) else None
    excluded = ("request", "is_limit_low")
    return {key: value for key, value in values.items() if value not in (None, {}) and key not in excluded}
