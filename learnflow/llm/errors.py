"""The tree of errors. A class states whether the same provider or another one may still help.

``transport.error_mapping`` maps status codes, responses of servers and exceptions of httpx to these classes. Every
exception that leaves the package is an ``LLMError``. ``make tables`` writes the tree from the classes:

    LLMError
     ├─ ConfigError               A setting must be changed; another provider may serve meanwhile
     │   ├─ NotConfigured         Nothing is named, there is no address, or a variable is invalid
     │   │   └─ KeyMissing        There is no key for this address
     │   ├─ AuthenticationFailed  The key is missing, wrong, or not allowed to do this
     │   ├─ ModelNotFound         The server does not have the model
     │   ├─ Misconfigured         Something else answers at this address: a web page, an unknown route, a proxy
     │   └─ NotLocal              LLM_LOCAL_ONLY refused the destination before a byte was sent
     ├─ RequestError              The request is wrong in itself: no other provider is tried
     │   ├─ InvalidRequest        A keyword or a value is invalid
     │   └─ ContentFiltered       A content filter, or the model itself, refused to answer
     ├─ CapabilityError           This provider cannot serve the request; another one may
     │   ├─ ContextOverflow       The prompt, with ``max_tokens``, is longer than the context that is served
     │   └─ Unsupported           No vision, tools or schema, or a keyword that this provider does not honour
     ├─ Unavailable               The provider cannot serve now; that may pass by itself
     │   ├─ ConnectionFailed      Refused, reset, name not found, or TLS failed: no answer began
     │   ├─ ModelLoading          The server is there and loads the model
     │   ├─ Overloaded            The server is busy
     │   ├─ RateLimited           Too many requests; ``retry_after`` has the seconds to wait, if the server sent them
     │   ├─ QuotaExceeded         Out of quota or money: waiting does not help, another provider does
     │   ├─ ServerFailed          The server failed (another 5xx)
     │   └─ TimedOut              A time limit was reached
     │       ├─ ConnectTimeout    No connection within LLM_CONNECT_TIMEOUT seconds
     │       ├─ FirstTokenTimeout No token within LLM_FIRST_TOKEN_TIMEOUT seconds
     │       ├─ GapTimeout        Nothing more within LLM_GAP_TIMEOUT seconds after the last token
     │       └─ DeadlineExceeded  LLM_DEADLINE, or ``timeout=`` of the call, is over
     ├─ NotRecorded               The cassettes of ``LLM_REPLAY`` do not have this request, or a test forbids real calls
     └─ BrokenAnswer              A 200 that is not a complete answer
         ├─ AnswerCut             The stream stopped in the middle
         │   └─ NotContinued      The continuation does not begin with the end of the delivered text
         ├─ BodyCut               An answer in one piece stopped in the middle
         ├─ FinishMissing         The end was marked (``[DONE]``, a complete body), but no finish_reason was sent
         ├─ AnswerNotDone         The last line says ``"done": false``
         ├─ TokenRepeated         The server gave up after more than thirty equal tokens
         ├─ UnknownFinish         A finish that does not mean complete ("abort", "error", "load")
         ├─ ErrorInAnswer         An error object after the answer began
         ├─ ErrorBody             An error object in a 200, instead of an answer
         ├─ AnswerTooLong         Many times as long as ``max_tokens``, without an end
         ├─ MalformedAnswer       A line or a body that is not of the dialect of the server
         ├─ AnswerTruncated       A schema, a tool call or an empty answer ended at ``max_tokens`` or a full context
         ├─ EmptyStream           A 200 with nothing in it
         ├─ EmptyAnswer           Finished properly, without text
         ├─ ThinkingLeaked        The text that was delivered as answer was thinking
         └─ SchemaMismatch        Not what ``response_format`` requires
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self


@dataclass(frozen=True, slots=True)
class Tried:
    """A failed attempt: provider, model, class of the error, HTTP status, and duration in seconds."""

    provider: str
    model: str | None
    error: str
    status: int | None
    seconds: float

    def __str__(self) -> str:
        status = f" {self.status}" if self.status else ""
        return f"{self.provider} {self.error}{status} after {self.seconds:.2f} s"


class LLMError(Exception):
    """Base class of all errors of this package.

    ``str()`` has the provider, the model, the fault, the HTTP status and what to do. It contains no key, prompt or
    answer. The text that arrived is in ``partial``, ``thinking`` and ``partial_calls``, which no message or repr shows.

    Attributes:
        provider, model: the provider that failed and its model; None if unknown.
        status: the HTTP status; None without a response.
        retryable: the same request to the same provider may succeed later.
        failover: another provider may be able to serve the request.
        retry_after: seconds to wait according to the server; None if it sent none.
        hint: the sentence that states what to do.
        server_message: the server's message, in one line of at most 300 characters, with keys removed. It may repeat
            the request; ``str()`` shows it only if it does not.
        code: the server's error code ("context_length_exceeded"); None if it sent none.
        params: the parameters that the server, or LiteLLM, named as the cause.
        partial: the text that arrived.
        thinking: the thinking that arrived.
        partial_calls: the tool calls that arrived, maybe incomplete: "id", "name", "arguments" (JSON text).
        tokens: about how many tokens arrived.
        finished: the server marked the answer as complete, so that the fault is its content.
        attempts: the failed attempts of the request.
    """

    retryable: bool = False
    failover: ClassVar[bool] = True
    refusal: ClassVar[str] = "the server refused"  # the fault, if a server's refusal has this class
    advice: ClassVar[str] = ""

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
        self.what = what
        self.hint = hint or self.advice
        self.provider = provider
        self.model = model
        self.status = status
        self.retry_after = retry_after
        self.server_message = ""
        self.quotable = False
        self.code: str | None = None
        self.params: tuple[str, ...] = ()
        self.partial = ""
        self.thinking = ""
        self.partial_calls: tuple[dict[str, str], ...] = ()
        self.tokens = 0
        self.finished = False
        self.attempts: tuple[Tried, ...] = ()

    def __str__(self) -> str:
        who = ", ".join(filter(None, [self.provider, f"model {self.model}" if self.model else ""]))
        status = f" (HTTP {self.status})" if self.status else ""
        before = "; ".join(map(str, self.attempts[:-1]))
        quote = f": “{self.server_message}”" if self.quotable and self.server_message else ""
        sentences = [
            f"{self.what}{quote}{status}".rstrip("."),
            self.hint.rstrip("."),
            before and f"Tried before: {before}",
        ]
        return (f"{who}: " if who else "") + ". ".join(filter(None, sentences)) + "."

    def without_text(self) -> Self:
        """Return a copy without text of a prompt or an answer, for events."""
        twin = copy.copy(self)
        quoted = self.server_message if self.quotable else ""
        vars(twin).update(partial="", thinking="", partial_calls=(), answer=None, reason="", server_message=quoted)
        return twin

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.what,), self.__dict__.copy())


def bare(error: LLMError) -> LLMError:
    """Return the error without its cause and context: errors of other libraries quote prompts and keys.

    ``TextStream`` and the calls of a provider use it when an error leaves the package.
    """
    error.__cause__ = error.__context__ = None
    return error


class ConfigError(LLMError):
    """A setting must be changed; another provider may serve meanwhile."""


class NotConfigured(ConfigError):
    """Nothing is named, there is no address, or a variable is invalid."""


class KeyMissing(NotConfigured):
    """There is no key for this address."""


class AuthenticationFailed(ConfigError):
    """The key is missing, wrong, or not allowed to do this."""

    refusal = "the key is missing, wrong, or not allowed to do this"


class ModelNotFound(ConfigError):
    """The server does not have the model."""

    refusal = "the server does not have the model"


class Misconfigured(ConfigError):
    """Something else answers at this address: a web page, an unknown route, a proxy."""

    refusal = "this is not an address of the model's API"


class NotLocal(ConfigError):
    """LLM_LOCAL_ONLY refused the destination before a byte was sent."""


class RequestError(LLMError):
    """The request is wrong in itself: no other provider is tried."""

    failover = False


class InvalidRequest(RequestError):
    """A keyword or a value is invalid."""

    refusal = "the server refused the request"


class ContentFiltered(RequestError):
    """A content filter, or the model itself, refused to answer."""

    refusal = "a content filter refused"
    advice = "Rephrase the prompt; a retry will not help"


class CapabilityError(LLMError):
    """This provider cannot serve the request; another one may."""


class ContextOverflow(CapabilityError):
    """The prompt, with ``max_tokens``, is longer than the context that is served.

    Attributes:
        needed: the length of the prompt with ``max_tokens``, in tokens; None if unknown.
        window: the served context length, in tokens; None if unknown.
    """

    refusal = "the prompt is longer than the context that is served"
    needed: int | None = None
    window: int | None = None
    advice = "Shorten the prompt, serve the model with a larger context, or use a provider with a larger one"


class Unsupported(CapabilityError):
    """No vision, tools or schema, or a keyword that this provider does not honour."""

    refusal = "the server or the model cannot do that"


class Unavailable(LLMError):
    """The provider cannot serve now; that may pass by itself."""

    retryable = True


class ConnectionFailed(Unavailable):
    """Refused, reset, name not found, or TLS failed: no answer began.

    Attributes:
        refused: no server listens at the address, or its name has no address now. The server may be restarting.
    """

    refused: bool = False


class ModelLoading(Unavailable):
    """The server is there and loads the model."""

    refusal = "the model is loading"
    advice = "Wait until the model is loaded"


class Overloaded(Unavailable):
    """The server is busy."""

    refusal = "the server is busy"
    advice = "Retry later, or send fewer requests at once"


class RateLimited(Unavailable):
    """Too many requests; ``retry_after`` has the seconds to wait, if the server sent them."""

    refusal = "too many requests"
    advice = "Retry later, or send fewer requests at once"


class QuotaExceeded(Unavailable):
    """Out of quota or money: waiting does not help, another provider does."""

    refusal = "the quota is used up"
    retryable = False
    advice = "Raise the quota or pay at the provider, or set LLM_PROVIDER to another one"


class ServerFailed(Unavailable):
    """The server failed (another 5xx)."""

    refusal = "the server failed"
    advice = "Check the server's log"


class TimedOut(Unavailable):
    """A time limit was reached."""


class ConnectTimeout(TimedOut):
    """No connection within LLM_CONNECT_TIMEOUT seconds."""


class FirstTokenTimeout(TimedOut):
    """No token within LLM_FIRST_TOKEN_TIMEOUT seconds."""

    advice = "Raise LLM_FIRST_TOKEN_TIMEOUT if the model needs longer to load or to read the prompt"


class GapTimeout(TimedOut):
    """Nothing more within LLM_GAP_TIMEOUT seconds after the last token."""

    advice = "Check the server's log, or raise LLM_GAP_TIMEOUT"


class DeadlineExceeded(TimedOut):
    """LLM_DEADLINE, or ``timeout=`` of the call, is over."""

    retryable = False
    failover = False
    advice = "Raise timeout= or LLM_DEADLINE, or lower max_tokens="


class NotRecorded(LLMError):
    """The cassettes of ``LLM_REPLAY`` do not have this request, or a test forbids real calls.

    There is no fallback: a test would otherwise show another answer than the recorded one.

    Attributes:
        forgiven: the circuit breaker of the provider was open, so that the recording may lack the request.
    """

    failover = False
    forgiven: bool = False


class BrokenAnswer(LLMError):
    """A 200 that is not a complete answer."""

    retryable = True
    advice = "The text that arrived is in .partial; retry, and check the server's log if it happens again"


class AnswerCut(BrokenAnswer):
    """The stream stopped in the middle."""


class NotContinued(AnswerCut):
    """The continuation does not begin with the end of the delivered text."""

    retryable = False
    advice = "The delivered text is in .partial; send the request again for a complete answer"


class BodyCut(BrokenAnswer):
    """An answer in one piece stopped in the middle."""


class FinishMissing(BrokenAnswer):
    """The end was marked (``[DONE]``, a complete body), but no finish_reason was sent."""


class AnswerNotDone(BrokenAnswer):
    """The last line says ``"done": false``."""

    advice = (
        "A server ends an answer so when the process of its model dies, or repeats one token; check its log, and retry"
    )


class TokenRepeated(BrokenAnswer):
    """The server gave up after more than thirty equal tokens."""

    advice = "The model is stuck: raise temperature= or frequency_penalty=, change the prompt, or use another model"


class UnknownFinish(BrokenAnswer):
    """A finish that does not mean complete ("abort", "error", "load")."""


class ErrorInAnswer(BrokenAnswer):
    """An error object after the answer began."""

    refusal = "the server reported an error in the middle of its answer"


class ErrorBody(BrokenAnswer):
    """An error object in a 200, instead of an answer."""

    refusal = "the server answered with an error object instead of an answer"


class AnswerTooLong(BrokenAnswer):
    """Many times as long as ``max_tokens``, without an end."""

    retryable = False
    advice = "The server does not stop at max_tokens: check its log, or use another model"


class MalformedAnswer(BrokenAnswer):
    """A line or a body that is not of the dialect of the server."""


class AnswerTruncated(BrokenAnswer):
    """A schema, a tool call or an empty answer ended at ``max_tokens`` or a full context.

    An empty answer means that thinking used all tokens. The request is not retried: it would end there again.
    """

    retryable = False
    advice = "Raise max_tokens=, request a shorter answer, or serve the model with a larger context length"


class EmptyStream(BrokenAnswer):
    """A 200 with nothing in it."""


class EmptyAnswer(BrokenAnswer):
    """Finished properly, without text."""


class ThinkingLeaked(BrokenAnswer):
    """The text that was delivered as answer was thinking."""

    advice = (
        "Discard the text and retry: for this model the text is now delivered only after its thinking; "
        "reasoning=True does so from the start, generate() and complete() always do"
    )


class SchemaMismatch(BrokenAnswer):
    """Not what ``response_format`` requires.

    Attributes:
        reason: the fault of a complete answer, which is sent back to the model. It may quote the answer; no message or
            repr shows it.
        answer: the completion that does not match.
    """

    reason: str = ""
    answer: Any = None
    advice = "Retry, raise max_tokens= if the answer was cut, or use a model that follows schemas better"
