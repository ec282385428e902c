"""The tree of errors.

``transport.error_mapping`` maps responses of servers and exceptions of httpx to these classes. Every exception that
leaves the package is an ``LLMError``. ``make tables`` writes the tree from the classes:

    LLMError
     ├─ ConfigError               A setting must be changed. Another provider may serve the request meanwhile
     │   ├─ NotConfigured         No provider or no address is configured, or a variable is invalid
     │   │   └─ KeyMissing        No key is configured for the address
     │   ├─ AuthenticationFailed  The key is missing, wrong, or does not permit the request
     │   ├─ ModelNotFound         The server does not have the model
     │   ├─ Misconfigured         The address does not serve a model API. It may be a web page, a wrong path, or a proxy
     │   └─ NotLocal              LLM_LOCAL_ONLY forbids the destination. Nothing was sent
     ├─ RequestError              The request itself is invalid. No other provider is tried
     │   ├─ InvalidRequest        A keyword or a value is invalid
     │   └─ ContentFiltered       A content filter, or the model itself, refused to answer
     ├─ CapabilityError           The provider does not support the request. Another one may
     │   ├─ ContextOverflow       The prompt, with ``max_tokens``, is longer than the served context length
     │   ├─ RequestRefused        The server refused the request for an unknown reason. Another provider may accept it
     │   └─ Unsupported           The provider does not support images, tools, a schema, or a keyword
     ├─ Unavailable               The provider cannot serve the request now. It may be able to later
     │   ├─ ConnectionFailed      The connection was refused or reset, or DNS or TLS failed. No answer began
     │   ├─ ModelLoading          The server is loading the model
     │   ├─ Overloaded            The server is busy
     │   ├─ RateLimited           Too many requests. ``retry_after`` has the delay that the server requested
     │   ├─ QuotaExceeded         The quota or the credit is used up. A retry does not help
     │   ├─ ServerFailed          The server failed (408, or a 5xx without a more specific class)
     │   └─ TimedOut              A time limit was reached
     │       ├─ ConnectTimeout    No connection within LLM_CONNECT_TIMEOUT seconds
     │       ├─ FirstTokenTimeout No token within LLM_FIRST_TOKEN_TIMEOUT seconds
     │       ├─ GapTimeout        No further token within LLM_GAP_TIMEOUT seconds
     │       └─ DeadlineExceeded  LLM_DEADLINE, or ``timeout=`` of the call, has passed
     ├─ NotRecorded               The cassettes of ``LLM_REPLAY`` lack the request, or a test forbids real requests
     └─ BrokenAnswer              A response with status 200 that is not a complete answer
         ├─ AnswerCut             The stream stopped before the answer was complete
         │   └─ NotContinued      The continuation does not repeat the end of the delivered text
         ├─ BodyCut               The body of a response without streaming stopped before its end
         ├─ FinishMissing         The response has an end (``[DONE]``, a complete body), but no finish_reason
         ├─ AnswerNotDone         The stream of Ollama's API ended with ``"done": false``
         ├─ TokenRepeated         The server stopped after more than thirty equal tokens
         ├─ UnknownFinish         The finish_reason does not mean a complete answer ("abort", "error", "load")
         ├─ ErrorInAnswer         The server sent an error object after the answer had begun
         ├─ ErrorBody             The server sent an error object instead of an answer
         ├─ AnswerTooLong         The answer is many times as long as ``max_tokens``, and has no end
         ├─ MalformedAnswer       A line or a body of the response does not have the format of the API
         ├─ AnswerTruncated       The answer ended at a token limit: within JSON or a tool call, or before any text
         ├─ EmptyStream           The response is empty
         ├─ EmptyAnswer           The answer is complete, but has no text
         ├─ ThinkingLeaked        Thinking was delivered as the text of the answer
         └─ SchemaMismatch        The answer does not match ``response_format``
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, ClassVar, Self


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """A failed attempt: provider, model, class of the error, HTTP status, and duration in seconds."""

    provider: str
    model: str | None
    error: str
    status: int | None
    seconds: float

    @classmethod
    def of(cls, error: LLMError, provider: str, model: str | None, seconds: float) -> Self:
        """Return the failed attempt of an error. ``model`` is used if the error has no model."""
        return cls(provider, error.model or model, type(error).__name__, error.status, seconds)

    def __str__(self) -> str:
        status = f" {self.status}" if self.status else ""
        return f"{self.provider} {self.error}{status} after {self.seconds:.2f} s"


def _describe_attempts(attempts: Iterable[FailedAttempt]) -> Iterator[str]:
    """Yield a text for each failed attempt. Successive attempts with the same error have one text."""
    for _, group in groupby(attempts, lambda attempt: replace(attempt, seconds=0.0)):
        first, *others = group
        seconds = sum(attempt.seconds for attempt in (first, *others))
        yield str(replace(first, seconds=seconds)) + (f" ({len(others) + 1} times)" if others else "")


class LLMError(Exception):
    """Base class of all errors of this package.

    ``str()`` and ``repr()`` state the provider, the model, the fault, the HTTP status and the action. They contain no
    key, prompt or answer. The answer so far is in ``partial``, ``thinking`` and ``partial_calls``.

    Attributes:
        what: the fault, without the provider and the model, which ``str()`` adds.
        hint: the action that corrects the fault.
        provider, model: the provider that failed and its model; None if unknown.
        status: the HTTP status; None without a response.
        retryable: whether the same request to the same provider may succeed later.
        failover: whether another provider may be able to serve the request.
        retry_after: the delay that the server requested, in seconds; None if it sent none.
        server_message: the server's message, in one line of at most 300 characters, with keys removed. It may quote
            the prompt.
        quotable: whether ``server_message`` certainly contains no text of the request. If not, ``str()`` omits it.
        code: the server's error code ("context_length_exceeded"); None if it sent none.
        params: the parameters that the server or LiteLLM named as the cause.
        partial, thinking: the text and the thinking that arrived.
        partial_calls: the tool calls that arrived, with "id", "name" and "arguments" (JSON text). The last one may be
            incomplete.
        tokens: the approximate number of tokens that arrived.
        discards_text: whether ``partial`` must be discarded, because no continuation makes it a valid answer.
        finished: whether the server sent a finish reason. If so, the error concerns the content of the answer.
        attempts: the failed attempts of the request.
    """

    retryable: bool = False
    failover: bool = True
    discards_text: ClassVar[bool] = False
    fault: ClassVar[str] = "the server refused"  # the default of ``what`` for an error response
    advice: ClassVar[str] = ""  # the default of ``hint``
    server_message: str = ""
    quotable: bool = False
    code: str | None = None
    params: tuple[str, ...] = ()
    partial: str = ""
    thinking: str = ""
    partial_calls: tuple[dict[str, str], ...] = ()
    tokens: int = 0
    finished: bool = False
    attempts: tuple[FailedAttempt, ...] = ()

    def __init__(
        self,
        what: str,
        *,
        hint: str = "",
        provider: str | None = None,
        model: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(what)
        self.what, self.hint = what, hint or self.advice
        self.provider, self.model, self.status, self.retry_after = provider, model, status, retry_after

    def __str__(self) -> str:
        subject = ", ".join(filter(None, [self.provider, f"model {self.model}" if self.model else ""]))
        status = f" (HTTP {self.status})" if self.status else ""
        attempts = "; ".join(_describe_attempts(self.attempts) if len(self.attempts) > 1 else ())
        quote = f": “{self.server_message}”" if self.quotable and self.server_message else ""
        sentences = [
            f"{self.what}{quote}{status}".rstrip("."),
            self.hint.rstrip("."),
            attempts and f"Tried: {attempts}",
        ]
        return (f"{subject}: " if subject else "") + ". ".join(filter(None, sentences)) + "."

    def without_text(self) -> Self:
        """Return a copy without text of a prompt or an answer, for log events."""
        copied = copy.copy(self)
        quoted = self.server_message if self.quotable else ""
        vars(copied).update(partial="", thinking="", partial_calls=(), answer=None, reason="", server_message=quoted)
        return copied

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.what,), self.__dict__.copy())


def clear_cause(error: LLMError) -> LLMError:
    """Remove the cause and the context of an error, which may quote prompts and keys. Return the error."""
    error.__cause__ = error.__context__ = None
    return error


class ConfigError(LLMError):
    """A setting must be changed. Another provider may serve the request meanwhile."""


class NotConfigured(ConfigError):
    """No provider or no address is configured, or a variable is invalid."""


class KeyMissing(NotConfigured):
    """No key is configured for the address."""


class AuthenticationFailed(ConfigError):
    """The key is missing, wrong, or does not permit the request."""

    fault = "the key is missing, wrong, or not allowed to do this"


class ModelNotFound(ConfigError):
    """The server does not have the model."""

    fault = "the server does not have the model"


class Misconfigured(ConfigError):
    """The address does not serve a model API. It may be a web page, a wrong path, or a proxy."""

    fault = "this is not an address of the model's API"
    advice = "Check the base URL, its path (most servers require /v1 at the end) and proxies in between"


class NotLocal(ConfigError):
    """LLM_LOCAL_ONLY forbids the destination. Nothing was sent."""


class RequestError(LLMError):
    """The request itself is invalid. No other provider is tried."""

    failover = False


class InvalidRequest(RequestError):
    """A keyword or a value is invalid."""


class ContentFiltered(RequestError):
    """A content filter, or the model itself, refused to answer."""

    fault = "a content filter refused"
    advice = "Rephrase the prompt; a retry will not help"


class CapabilityError(LLMError):
    """The provider does not support the request. Another one may."""


class ContextOverflow(CapabilityError):
    """The prompt, with ``max_tokens``, is longer than the served context length.

    Attributes:
        prompt_tokens: the length of the prompt in tokens; None if unknown.
        context_length: the served context length in tokens; None if unknown.
    """

    discards_text = True
    fault = "the prompt is longer than the context that is served"
    prompt_tokens: int | None = None
    context_length: int | None = None
    advice = "Shorten the prompt, serve the model with a larger context, or use a provider with a larger one"

    @property
    def prompt_fits(self) -> bool:
        """Return whether the prompt may fit with a smaller ``max_tokens``."""
        return self.context_length is None or (self.prompt_tokens or 0) < self.context_length


class RequestRefused(CapabilityError):
    """The server refused the request for an unknown reason. Another provider may accept it."""

    fault = "the server refused the request"
    advice = "Change the request as the server's message requires, or use another provider"


class Unsupported(CapabilityError):
    """The provider does not support images, tools, a schema, or a keyword."""

    fault = "the server or the model does not support a feature of the request"
    advice = "Omit the feature, or use a model or provider that supports it"


class Unavailable(LLMError):
    """The provider cannot serve the request now. It may be able to later."""

    retryable = True


class ConnectionFailed(Unavailable):
    """The connection was refused or reset, or DNS or TLS failed. No answer began.

    Attributes:
        refused: True if no server listens at the address, or if its host name does not resolve. The server may be
            restarting.
    """

    refused: bool = False


class ModelLoading(Unavailable):
    """The server is loading the model."""

    fault = "the model is loading"
    advice = "Wait until the model is loaded"


class Overloaded(Unavailable):
    """The server is busy."""

    fault = "the server is busy"
    advice = "Retry later, or send fewer requests at once"


class RateLimited(Unavailable):
    """Too many requests. ``retry_after`` has the delay that the server requested."""

    fault = "too many requests"
    advice = "Retry later, or send fewer requests at once"


class QuotaExceeded(Unavailable):
    """The quota or the credit is used up. A retry does not help."""

    fault = "the quota is used up"
    retryable = False
    advice = "Raise the quota or pay at the provider, or set LLM_PROVIDER to another one"


class ServerFailed(Unavailable):
    """The server failed (408, or a 5xx without a more specific class)."""

    fault = "the server failed"
    advice = "Check the server's log"


class TimedOut(Unavailable):
    """A time limit was reached."""


class ConnectTimeout(TimedOut):
    """No connection within LLM_CONNECT_TIMEOUT seconds."""


class FirstTokenTimeout(TimedOut):
    """No token within LLM_FIRST_TOKEN_TIMEOUT seconds."""

    advice = "Raise LLM_FIRST_TOKEN_TIMEOUT if the model needs longer to load or to read the prompt"


class GapTimeout(TimedOut):
    """No further token within LLM_GAP_TIMEOUT seconds."""

    advice = "Check the server's log, or raise LLM_GAP_TIMEOUT"


class DeadlineExceeded(TimedOut):
    """LLM_DEADLINE, or ``timeout=`` of the call, has passed."""

    retryable = False
    failover = False
    advice = "Raise timeout= or LLM_DEADLINE, or lower max_tokens="


class NotRecorded(LLMError):
    """The cassettes of ``LLM_REPLAY`` lack the request, or a test forbids real requests.

    Cassettes are files of recorded responses. In a replay, a router tries the next provider if the cassettes may have
    its response, although ``failover`` is False.

    Attributes:
        was_skipped: whether the router tried another provider after this error. If so, the error does not fail a test.
    """

    failover = False
    was_skipped: bool = False


class BrokenAnswer(LLMError):
    """A response with status 200 that is not a complete answer."""

    retryable = True
    advice = "The text that arrived is in .partial; retry, and check the server's log if it happens again"


class AnswerCut(BrokenAnswer):
    """The stream stopped before the answer was complete."""


class NotContinued(AnswerCut):
    """The continuation does not repeat the end of the delivered text.

    Without this repetition, the two texts cannot be joined.
    """

    retryable = False
    advice = "The delivered text is in .partial; send the request again for a complete answer"


class BodyCut(BrokenAnswer):
    """The body of a response without streaming stopped before its end."""


class FinishMissing(BrokenAnswer):
    """The response has an end (``[DONE]``, a complete body), but no finish_reason."""


class AnswerNotDone(BrokenAnswer):
    """The stream of Ollama's API ended with ``"done": false``."""

    advice = "The process of the model has died, or the model repeats one token. Check the log of the server, and retry"


class TokenRepeated(BrokenAnswer):
    """The server stopped after more than thirty equal tokens."""

    advice = "The model is stuck: raise temperature= or frequency_penalty=, change the prompt, or use another model"


class UnknownFinish(BrokenAnswer):
    """The finish_reason does not mean a complete answer ("abort", "error", "load")."""


class ErrorInAnswer(BrokenAnswer):
    """The server sent an error object after the answer had begun."""

    fault = "the server reported an error in the middle of its answer"


class ErrorBody(BrokenAnswer):
    """The server sent an error object instead of an answer."""

    fault = "the server answered with an error object instead of an answer"


class AnswerTooLong(BrokenAnswer):
    """The answer is many times as long as ``max_tokens``, and has no end."""

    discards_text = True
    retryable = False
    advice = "The server does not stop at max_tokens: check its log, or use another model"


class MalformedAnswer(BrokenAnswer):
    """A line or a body of the response does not have the format of the API."""


class AnswerTruncated(BrokenAnswer):
    """The answer ended at a token limit: within JSON or a tool call, or before any text.

    An answer has no text if thinking used all tokens, or if the server dropped an incomplete tool call. A retry would
    end at the same limit. ``failover`` is False if JSON or a tool call was cut by ``max_tokens``.
    """

    discards_text = True
    retryable = False
    advice = "Raise max_tokens=, request a shorter answer, or serve the model with a larger context length"


class EmptyStream(BrokenAnswer):
    """The response is empty."""


class EmptyAnswer(BrokenAnswer):
    """The answer is complete, but has no text."""


class ThinkingLeaked(BrokenAnswer):
    """Thinking was delivered as the text of the answer."""

    discards_text = True
    advice = (
        "Discard the text and retry: from now on, streams of this model hold the text back until the thinking has "
        "ended. To prevent the leak in the first request, too, use reasoning=True, generate() or complete()"
    )


class SchemaMismatch(BrokenAnswer):
    """The answer does not match ``response_format``.

    Attributes:
        reason: why a complete answer does not match. It is sent to the model, which corrects the answer. ``str()``
            does not show it, because it may quote the answer.
        answer: the completion that does not match; None if the answer is incomplete.
    """

    discards_text = True
    reason: str = ""
    answer: Any = None
    advice = "Retry, raise max_tokens= if the answer was cut, or use a model that follows schemas better"
