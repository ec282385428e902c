"""What a library raised, by the names of its classes, as leaves of the error tree.

Must never import the libraries that it names: tests walk them and fail when one grows a class that is not here.
``diagnosis`` and the airlock ask ``leaf_of``, ``net`` asks ``failure_of``.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from typing import Final

from .. import errors
from ..errors import LLMError

# What a library raised, by its own name: LiteLLM's judgement is asked where the status and the codes leave it open
# (its class is the raw material of ours), httpx's and the system's where no answer came at all.
CAUSES: Final[Mapping[str, type[LLMError]]] = {
    "litellm.AuthenticationError": errors.AuthenticationFailed,
    "litellm.PermissionDeniedError": errors.AuthenticationFailed,
    "litellm.NotFoundError": errors.ModelNotFound,
    "litellm.ContextWindowExceededError": errors.ContextOverflow,
    "litellm.ContentPolicyViolationError": errors.ContentFiltered,
    "litellm.RejectedRequestError": errors.ContentFiltered,
    "litellm.GuardrailRaisedException": errors.ContentFiltered,
    "litellm.BlockedPiiEntityError": errors.ContentFiltered,
    "litellm.SensitiveDataRouteException": errors.ContentFiltered,
    "litellm.ModifyResponseException": errors.ContentFiltered,
    "litellm.UnsupportedParamsError": errors.Unsupported,
    "litellm.LiteLLMUnknownProvider": errors.NotConfigured,
    "litellm.ModelNotMappedError": errors.ModelNotFound,
    "litellm.ImageFetchError": errors.InvalidRequest,
    "litellm.VectorStoreSearchError": errors.InvalidRequest,
    "litellm.UnprocessableEntityError": errors.InvalidRequest,
    "litellm.InvalidRequestError": errors.InvalidRequest,
    "litellm.BadRequestError": errors.InvalidRequest,
    "litellm.Timeout": errors.TimedOut,
    "litellm.RateLimitError": errors.RateLimited,
    "litellm.PaymentRequiredError": errors.QuotaExceeded,
    "litellm.BudgetExceededError": errors.QuotaExceeded,
    "litellm.ServiceUnavailableError": errors.Overloaded,
    "litellm.MidStreamFallbackError": errors.AnswerCut,
    "litellm.BadGatewayError": errors.ServerFailed,
    "litellm.InternalServerError": errors.ServerFailed,
    "litellm.APIConnectionError": errors.ConnectionFailed,
    "litellm.JSONSchemaValidationError": errors.SchemaMismatch,
    "litellm.APIResponseValidationError": errors.MalformedAnswer,
    "litellm.APIError": errors.ServerFailed,
    "litellm.MockException": errors.ServerFailed,
    "litellm.OpenAIError": errors.InvalidRequest,
    "httpx.ConnectTimeout": errors.ConnectTimeout,
    "httpx.PoolTimeout": errors.Overloaded,
    "httpx.ReadTimeout": errors.GapTimeout,
    "httpx.WriteTimeout": errors.ConnectionFailed,
    "httpx.ProxyError": errors.Misconfigured,
    "httpx.UnsupportedProtocol": errors.NotConfigured,
    "httpx.DecodingError": errors.MalformedAnswer,
    "httpx.TooManyRedirects": errors.Misconfigured,
    "httpx.InvalidURL": errors.NotConfigured,
    "httpx.HTTPStatusError": errors.ServerFailed,
    "httpx.CookieConflict": errors.InvalidRequest,
    "httpx.StreamError": errors.AnswerCut,
    "httpx.TransportError": errors.ConnectionFailed,
    "httpx.RequestError": errors.ConnectionFailed,
    "httpx.HTTPError": errors.ConnectionFailed,
    "socket.gaierror": errors.ConnectionFailed,
    "ssl.SSLError": errors.ConnectionFailed,
    "builtins.OSError": errors.ConnectionFailed,
}


def leaf_of(cause: BaseException) -> type[LLMError]:
    """The leaf for what a library raised, by the names of its class and its bases."""
    for kind in type(cause).__mro__:
        leaf = CAUSES.get(f"{kind.__module__.partition('.')[0]}.{kind.__name__}")
        if leaf:
            return leaf
    return errors.ServerFailed


def failure_of(error: Exception) -> LLMError:
    """The leaf for what the transport met; the sentence says what it was, not which library said it."""
    chain = list(_chain(error))
    kind = leaf_of(error)
    if issubclass(kind, errors.TimedOut):
        return errors.ConnectTimeout("no connection within LLM_CONNECT_TIMEOUT")
    for cause in chain:
        if isinstance(cause, ConnectionRefusedError):
            return errors.ConnectionFailed("the connection was refused: nobody listens there")
        if isinstance(cause, socket.gaierror):
            return errors.ConnectionFailed("the host name cannot be resolved")
        if isinstance(cause, ssl.SSLError):
            return errors.ConnectionFailed(
                f"TLS failed ({cause.reason or 'no reason given'})",
                hint="Check the certificate, the scheme and SSL_CERT_FILE",
            )
    if kind is errors.Misconfigured:
        return kind("the proxy refused the connection", hint="Check HTTPS_PROXY, or name the host in NO_PROXY")
    return kind(f"the connection broke ({type(chain[-1]).__name__})")


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop(0)
        if one is not None and one not in found:
            found.append(one)
            todo += [one.__cause__, one.__context__]
            todo += one.exceptions if isinstance(one, BaseExceptionGroup) else ()
    return found
