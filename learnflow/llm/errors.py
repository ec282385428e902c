"""The tree of errors. A class states whether the same provider or another one may still help.

Must never know a server, a library or a status code: ``transport.error_mapping`` turns those into these classes.
Every exception that leaves the package is an ``LLMError``. ``make tables`` writes the tree from the classes:

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
    """One of the attempts at an answer that failed: who, the class of the error, the HTTP status, the seconds."""

    provider: str
    model: str | None
    error: str
    status: int | None
    seconds: float

    def __str__(self) -> str:
        status = f" {self.status}" if self.status else ""
        return f"{self.provider} {self.error}{status} after {self.seconds:.2f} s"


class LLMError(Exception):
    """Something went wrong between the caller and the model.

    ``str()`` is for the person who must act: who failed, what happened, what to do. It never holds a key, a prompt or
    an answer; what had arrived of the answer is in ``partial``, ``thinking`` and ``partial_calls``, which no message or
    repr shows.

    Attributes:
        provider, model: whom it happened to (None where that is not known).
        status: the HTTP status, where there was one.
        retryable: the same request to the same provider may work later.
        failover: another provider may be able to serve it.
        retry_after: seconds that the server asked to wait, where it did.
        hint: the sentence that says what to do.
        server_message: the server's own words, at most 300 characters in one line, without anything like a key. They
            may repeat the request, and are part of ``str()`` only where they do not.
        code: the server's own code for it ("context_length_exceeded"), where it gave one.
        params: the parameters that the server, or LiteLLM, named as the cause.
        partial: the text of the answer that had arrived.
        thinking: the thinking that had arrived.
        partial_calls: the tool calls that had arrived, each as far as it came: "id", "name", "arguments" (JSON text).
        tokens: about how many tokens had arrived.
        finished: the server had said that the answer is complete: what is wrong with it is not that it broke.
        attempts: what was tried before, where several providers or times were.
    """

    retryable: bool = False
    failover: ClassVar[bool] = True
    refusal: ClassVar[str] = "the server refused"  # what happened, if a server's refusal means this class
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
    """The error without what was being handled when it was raised: other libraries' errors quote what they were given.

    Asked where errors leave the package: ``TextStream``, and the other calls of a provider.
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
    advice = "Rephrase the prompt; asking again will not help"


class CapabilityError(LLMError):
    """This provider cannot serve the request; another one may."""


class ContextOverflow(CapabilityError):
    """The prompt, with ``max_tokens``, is longer than the context that is served.

    ``needed`` and ``window`` are both lengths in tokens, where the server or an estimate tells them.
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
        refused: no connection was made: no server listens, or its name has no address now. It may be restarting.
    """

    refused: bool = False


class ModelLoading(Unavailable):
    """The server is there and loads the model."""

    refusal = "the model is loading"
    advice = "Wait until the model is loaded"


class Overloaded(Unavailable):
    """The server is busy."""

    refusal = "the server is busy"
    advice = "Ask again later, or ask less at once"


class RateLimited(Unavailable):
    """Too many requests; ``retry_after`` has the seconds to wait, if the server sent them."""

    refusal = "too many requests"
    advice = "Ask again later, or ask less at once"


class QuotaExceeded(Unavailable):
    """Out of quota or money: waiting does not help, another provider does."""

    refusal = "the quota is used up"
    retryable = False
    advice = "Raise the quota or pay at the provider, or set LLM_PROVIDER to another one"


class ServerFailed(Unavailable):
    """The server failed (another 5xx)."""

    refusal = "the server failed"
    advice = "Look into the server's log"


class TimedOut(Unavailable):
    """A time limit was reached."""


class ConnectTimeout(TimedOut):
    """No connection within LLM_CONNECT_TIMEOUT seconds."""


class FirstTokenTimeout(TimedOut):
    """No token within LLM_FIRST_TOKEN_TIMEOUT seconds."""

    advice = "Raise LLM_FIRST_TOKEN_TIMEOUT if the model needs longer to load or to read the prompt"


class GapTimeout(TimedOut):
    """Nothing more within LLM_GAP_TIMEOUT seconds after the last token."""

    advice = "Look into the server's log, or raise LLM_GAP_TIMEOUT"


class DeadlineExceeded(TimedOut):
    """LLM_DEADLINE, or ``timeout=`` of the call, is over."""

    retryable = False
    failover = False
    advice = "Raise timeout= or LLM_DEADLINE, or ask for less with max_tokens="


class NotRecorded(LLMError):
    """The cassettes of ``LLM_REPLAY`` do not have this request, or a test forbids real calls.

    No fallback answers instead: what a test would show then is not what was recorded.

    Attributes:
        forgiven: the provider was being left alone, and need not have been asked when the cassette was made.
    """

    failover = False
    forgiven: bool = False


class BrokenAnswer(LLMError):
    """A 200 that is not a complete answer."""

    retryable = True
    advice = "What arrived is in .partial; ask again, and look into the server's log if it happens again"


class AnswerCut(BrokenAnswer):
    """The stream stopped in the middle."""


class NotContinued(AnswerCut):
    """The continuation does not begin with the end of the delivered text."""

    retryable = False
    advice = "What was delivered is in .partial; ask again for a whole answer"


class BodyCut(BrokenAnswer):
    """An answer in one piece stopped in the middle."""


class FinishMissing(BrokenAnswer):
    """The end was marked (``[DONE]``, a complete body), but no finish_reason was sent."""


class AnswerNotDone(BrokenAnswer):
    """The last line says ``"done": false``."""

    advice = (
        "A server gives up like this when its model's process dies or repeats one token; look into its log, ask again"
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
    advice = "The server does not stop at max_tokens: look into its log, or use another model"


class MalformedAnswer(BrokenAnswer):
    """A line or a body that is not of the dialect of the server."""


class AnswerTruncated(BrokenAnswer):
    """A schema, a tool call or an empty answer ended at ``max_tokens`` or a full context.

    It is a schema, a tool call, or empty: thinking used all tokens.

    The same request would end there again, so it is not sent again.
    """

    retryable = False
    advice = "Raise max_tokens=, ask for less, or serve the model with a larger context"


class EmptyStream(BrokenAnswer):
    """A 200 with nothing in it."""


class EmptyAnswer(BrokenAnswer):
    """Finished properly, without text."""


class ThinkingLeaked(BrokenAnswer):
    """The text that was delivered as answer was thinking."""

    advice = (
        "Drop what was shown and ask again: for this model the text is now held back until its thinking is over; "
        "reasoning=True does so from the start, generate() and complete() always do"
    )


class SchemaMismatch(BrokenAnswer):
    """Not what ``response_format`` requires.

    Attributes:
        reason: what is wrong with a whole answer, for the model that wrote it; it may quote the answer, and no message
            or repr shows it.
        answer: the completion that it was.
    """

    reason: str = ""
    answer: Any = None
    advice = "Ask again, raise max_tokens= if it was cut, or use a model that follows schemas better"
