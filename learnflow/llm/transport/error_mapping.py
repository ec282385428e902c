"""Map error responses, error objects and exceptions of httpx to LLMError.

An error object is JSON that describes an error. A response with status 200 can contain an error object, too. The
error codes decide the error class, else a status of 401, 402, 407 or 429, else the message, else any other status.
"""

from __future__ import annotations

import math
import re
import socket
import ssl
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final

import httpx

from .. import errors
from ..errors import LLMError
from .untrusted import json_object, non_negative_int, object_at, parse_json, printable, short_text, text_list

_MAX_SHOWN_CHARS: Final = 300  # length of a server's message in an LLMError
# Limit for the part of a server's message that is searched, because regular expressions are slow on long texts.
_MAX_SEARCHED_CHARS: Final = 2000
_MAX_BODY_CHARS: Final = 8000  # limit for the part of a body that is searched for a retry delay
_CODE_KEYS: Final = ("code", "type", "status_code", "error_type")
_MESSAGE_KEYS: Final = ("message", "msg", "status_msg", "error_message")
_MAX_DEPTH: Final = 8  # nested objects in an error object

# Example messages for a prompt of 9 tokens and a context length of 8.
# llama.cpp: "request (9 tokens) exceeds … size (8 tokens)". vLLM: "maximum context length is 8 tokens. However, …
# contains at least 9 input tokens" or "Input length (9) exceeds … length (8)"; older versions: "you requested 10 tokens
# (9 in the messages, 1 in the completion)" or "You passed 9 input tokens …". OpenAI: "resulted in 9 tokens".
_PROMPT_TOKENS = re.compile(
    r"(?:request \(|contains (?:at least )?|resulted in |input length \(|tokens \(|passed )"
    r"([0-9]{1,12})\)?(?: input)?(?: tokens|\b)",
    re.IGNORECASE,
)
_CONTEXT_TOKENS = re.compile(r"context (?:length|size) (?:is (?:only )?|\()([0-9]{1,12})", re.IGNORECASE)
# "Please try again in 1m30s", "retry after 12 seconds", and "retryDelay": "19s" of Google's RetryInfo.
_RETRY_DELAY_PATTERN = re.compile(
    r"(?:retry|try again) ?(?:after|in|delay)\"?:? ?\"?((?:[0-9]{1,9}(?:\.[0-9]{1,12})? ?(?:milli|ms|s|m|h)[a-z]* ?)+)",
    re.IGNORECASE,
)
_DELAY_PART_PATTERN = re.compile(r"([0-9.]+) ?(milli|ms|s|m|h)", re.IGNORECASE)
_UNIT_SECONDS: Final = {"milli": 0.001, "ms": 0.001, "s": 1, "m": 60, "h": 3600}
_DAILY_QUOTA: Final = "PerDay"  # in names of Google's daily quotas. Google's retry delays for them are too short
_UNSUPPORTED = re.compile(
    r"does not support|not supported|requires --|response_format\.type"
    r"|not a multimodal model|unrecognized request argument|no endpoints found that support",
    re.IGNORECASE,
)
# Messages of servers without the requested route. A 404 or 405 with another message becomes RequestRefused, because
# its cause can be a policy, for example.
_WRONG_ROUTE = re.compile(
    r"^[^a-z]*(\w+ )?not found[^a-z]*$|\b(urls?|path|route|method)\b|cannot (get|post)|^[^a-z]*$", re.IGNORECASE
)
_LMSTUDIO_NO_ROUTE: Final = "unexpected endpoint"  # LM Studio's message for an unknown route, with status 200
# Patterns in error codes, error types and messages.
_PATTERNS: Final[Mapping[type[LLMError], re.Pattern[str]]] = {
    error_class: re.compile(pattern, re.IGNORECASE)
    for error_class, pattern in {
        errors.RateLimited: r"rate[ _]limit|too many requests|throttl"
        r"|(?:tokens|requests) per (?:second|minute|hour|day)",
        # The name of a length and a word such as "exceeds", in either order
        errors.ContextOverflow: r"(?:context|prompt\b|input (?:length|tokens?|\()|requested tokens).{0,80}?"
        r"(?:exceed|overflow|too long|longer than|超长)|input (?:is )?too long"
        r"|(?:exceed|greater than|longer than).{0,60}?(?:context|model token limit|max_model_len|max_seq_len)"
        r"|maximum (?:context|prompt|model|input) length|tokens to keep from the initial prompt"
        r"|range of input length|context length is only",
        errors.ContentFiltered: "content_filter|content_policy_violation|responsibleaipolicyviolation",
        errors.ModelNotFound: r"model [`'\"]?[\w./:@-]{1,200}[`'\"]? (was )?(not found|does not exist)"
        r"|no models? loaded|deployment .{0,200}does not exist|^model not found|is not a valid model id"
        r"|no endpoints found for|try pulling it|model_not_found|deploymentnotfound|decommissioned",
        errors.ModelLoading: "loading model|model is loading|still loading",
        # The first two alternatives are llama.cpp's, with status 500
        errors.Unsupported: "image input is not supported|mmproj|unsupported_(parameter|value)|not_supported_error",
        # LiteLLM's proxy without a database sends no_db_connection for every key except its master key
        errors.AuthenticationFailed: "api[ _-]?key (is )?(not valid|invalid|incorrect)"
        "|(invalid|incorrect)[ _]api[ _-]?key|authentication_error|no_db_connection",
        errors.QuotaExceeded: r"exceeded your (current )?quota|billing|credit[ _]balance|arrear"
        r"|insufficient[ _](quota|credits?|funds|balance)",
        errors.Overloaded: "overloaded",
    }.items()
}
_DROP_REASON_SUFFIX: Final = "-request-dropped-reason"  # suffix of a header that load balancers such as llm-d send
# The error class of each status.
_STATUSES: Final[Mapping[int, type[LLMError]]] = {
    401: errors.AuthenticationFailed,
    402: errors.QuotaExceeded,
    403: errors.AuthenticationFailed,
    407: errors.Misconfigured,
    408: errors.ServerFailed,
    429: errors.RateLimited,
    501: errors.Unsupported,
    503: errors.Overloaded,
    529: errors.Overloaded,
}


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """The content of an error object. Values that the server did not send are None or empty.

    Attributes:
        codes: the error codes and types, in lower case.
        param: the name of the parameter that caused the error.
        lengths: the length of the prompt and the context length, in tokens.
        retry_after_s: the delay before a retry, in seconds.
    """

    message: str = ""
    codes: tuple[str, ...] = ()
    param: str | None = None
    lengths: tuple[int | None, int | None] = (None, None)
    retry_after_s: float | None = None


def parse_error_body(body: bytes) -> ErrorDetails:
    """Parse the body of an error response. If the body is not JSON, it is the message."""
    text = body.decode("utf-8", "replace").strip()
    try:
        details = _parse_error_object(parse_json(text))
    except ValueError:
        details = ErrorDetails(message=text[:_MAX_SEARCHED_CHARS])
    return replace(details, retry_after_s=_parse_retry_delay(text[:_MAX_BODY_CHARS]))


def _parse_error_object(value: Any, depth: int = 0) -> ErrorDetails:
    """Parse an error object: OpenAI's, FastAPI's ``detail``, a string, a list, or JSON in a string."""
    if depth > _MAX_DEPTH:
        return ErrorDetails()
    if isinstance(value, str):  # a message. It can contain JSON, because gateways quote the error of a server
        inner = _parse_error_object(json_object("".join(value.partition("{")[1:])), depth + 1)
        message = inner.message or value[:_MAX_SEARCHED_CHARS]
        return replace(inner, message=message, retry_after_s=_parse_retry_delay(message))
    if isinstance(value, list):
        return _parse_error_object(value[0], depth + 1) if value else ErrorDetails()
    if not isinstance(value, dict):
        return ErrorDetails()
    for key in ("error", "detail", "errors", "base_resp"):  # OpenAI, FastAPI, GraphQL gateways, MiniMax
        if value.get(key):
            return _parse_error_object(value[key], depth + 1)
    raw_codes = [value.get(key) for key in _CODE_KEYS] + [object_at(value, "innererror").get("code")]
    inner = _parse_error_object(next((value[key] for key in _MESSAGE_KEYS if value.get(key)), ""), depth + 1)
    location = ".".join(name for name in text_list(value.get("loc")) if name != "body")  # FastAPI, Mistral
    message = f"{location}: {inner.message}" if location else inner.message
    lengths = non_negative_int(value.get("n_prompt_tokens")), non_negative_int(value.get("n_ctx"))
    lengths = lengths if any(lengths) else inner.lengths if any(inner.lengths) else _parse_lengths(inner.message)
    codes = tuple(filter(None, (short_text(code).lower() for code in raw_codes)))
    param = short_text(value.get("param")) or location or inner.param
    return ErrorDetails(message, codes + inner.codes, param, lengths, inner.retry_after_s)


def error_message(value: Any) -> str:
    """Return the error message in parsed JSON; "" if there is no message."""
    return _parse_error_object(value).message


def _parse_lengths(message: str) -> tuple[int | None, int | None]:
    """Find the ``ErrorDetails.lengths`` in a message."""
    prompt, size = _PROMPT_TOKENS.search(message), _CONTEXT_TOKENS.search(message)
    return (int(prompt[1]) if prompt else None), (int(size[1]) if size else None)


def _parse_retry_delay(text: str) -> float | None:
    """Find the delay before a retry in a text, in seconds."""
    match = None if _DAILY_QUOTA in text else _RETRY_DELAY_PATTERN.search(text)
    parts = _DELAY_PART_PATTERN.findall(match[1]) if match else ()
    return sum(float(number) * _UNIT_SECONDS[unit.lower()] for number, unit in parts) if match else None


def map_response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> LLMError:
    """Return the error for a response with a status other than 2xx.

    ``body`` may be only the beginning of the body. The names in ``headers`` are in lower case.
    """
    headers = headers or {}
    if 300 <= status < 400:
        return errors.Misconfigured(
            "the address redirects", status=status, hint="Set the base URL to the address of the server"
        )
    is_web_page = body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<"
    # 413, 429 and 5xx are excluded, because a web page with such a status is the error page of a gateway
    if is_web_page and status < 500 and status not in (413, 429):
        return no_model_api_error(status)
    if status == 403 and not body.strip():
        return errors.Misconfigured(
            "the server refused with an empty response",
            status=status,
            hint="Some servers do this if the Host header is not theirs: use localhost or an IP address as base URL, "
            "or let the server listen on 0.0.0.0. If that does not help, check proxies in between",
        )
    details = ErrorDetails() if is_web_page else parse_error_body(body)
    error_class = _classify(status, details) or _class_of_status(status, details)
    drop_reason = next((value for name, value in headers.items() if name.endswith(_DROP_REASON_SUFFIX)), "")
    if drop_reason and status in (429, 503):  # a load balancer dropped the request from its queue
        error_class, details = errors.Overloaded, replace(details, message=f"{details.message} ({drop_reason})".strip())
    error = _build_error(error_class, details, status)
    if isinstance(error, errors.Unavailable) and (retry_after_s := retry_after(headers)) is not None:
        error.retry_after = retry_after_s
    return error


def map_error_object(value: Any, *, answer_started: bool) -> LLMError:
    """Return the error for parsed JSON with an error object, from a response with status 200.

    ``answer_started`` is True if a part of the answer arrived before the error object.
    """
    details = _parse_error_object(value)
    status = next((int(code) for code in details.codes if re.fullmatch("[0-9]{3}", code)), 0)
    if not answer_started and _LMSTUDIO_NO_ROUTE in details.message.lower():
        return no_model_api_error(200)
    error_class = _classify(status, details) or _class_of_status(status, details)
    refused_after_start = answer_started and error_class is errors.RequestRefused
    if refused_after_start or issubclass(error_class, errors.ServerFailed | errors.Overloaded):
        error_class = errors.ErrorInAnswer if answer_started else errors.ErrorBody
    return _build_error(error_class, details)


def with_class(error: LLMError, error_class: type[LLMError]) -> LLMError:
    """Return an error of another class with the same message, code, parameter and status."""
    codes, param, lengths = (error.code or "",), next(iter(error.params), None), _parse_lengths(error.server_message)
    return _build_error(error_class, ErrorDetails(error.server_message, codes, param, lengths), error.status)


def no_model_api_error(status: int | None = None) -> LLMError:
    """Return the error for an address that does not serve a model API.

    Omit ``status`` if the error follows from several responses.
    """
    what = "this address does not serve a model API, but a web page or another route"
    return errors.Misconfigured(what, status=status)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the delay in seconds that the server requires before a retry; None if it requires no delay.

    The headers are ``retry-after-ms``, and ``Retry-After`` with seconds or a date. The date is compared with the
    ``Date`` header, not with the local clock.
    """
    milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after", "")
    try:
        seconds = float(milliseconds) / 1000 if milliseconds else float(value)
    except ValueError:
        seconds = math.nan
    if 0 <= seconds < math.inf:
        return seconds
    try:
        retry_at, sent_at = parsedate_to_datetime(value), parsedate_to_datetime(headers.get("date", ""))
        return max(0.0, (retry_at - sent_at).total_seconds())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _classify(status: int, details: ErrorDetails) -> type[LLMError] | None:
    """Choose the error class by the codes, an unambiguous status or the message; None if it remains unknown."""
    if error_class := _find_class(" ".join(details.codes)):
        return error_class
    if status in (401, 402, 407):
        return _STATUSES[status]
    if status == 429:  # a quota is used up if the message mentions it and the server requires no delay
        quota_exceeded = details.retry_after_s is None and _PATTERNS[errors.QuotaExceeded].search(details.message)
        return errors.QuotaExceeded if quota_exceeded else errors.RateLimited
    if error_class := _find_class(details.message):
        return error_class
    if status < 500 and _UNSUPPORTED.search(details.message):
        return errors.Unsupported
    return None


def _find_class(text: str) -> type[LLMError] | None:
    """Return the first error class with a pattern that matches a text; None if no pattern matches."""
    return next((error_class for error_class, pattern in _PATTERNS.items() if pattern.search(text)), None)


def _class_of_status(status: int, details: ErrorDetails) -> type[LLMError]:
    """Choose the error class by the status, and for 404 and 405 also by the message."""
    if status in (404, 405) and _WRONG_ROUTE.search(details.message):
        return errors.Misconfigured
    return _STATUSES.get(status, errors.RequestRefused if 400 <= status < 500 else errors.ServerFailed)


def _build_error(error_class: type[LLMError], details: ErrorDetails, status: int | None = None) -> LLMError:
    error = error_class(error_class.fault, status=status)
    message = printable(details.message, _MAX_SHOWN_CHARS)
    error.server_message = "" if message.startswith("<") else message  # a web page is not quoted
    error.code = next(iter(details.codes), None) or None
    error.params = (details.param,) if details.param else ()
    if isinstance(error, errors.Unavailable):
        error.retry_after = details.retry_after_s
    if isinstance(error, errors.ContextOverflow):
        error.prompt_tokens, error.context_length = details.lengths
    return error


def map_exception(error: Exception) -> LLMError:
    """Return the error for an exception that was raised while a request was sent or its response was read.

    An LLMError is returned unchanged. Messages of other exceptions are not quoted, because they may contain keys or
    prompts.
    """
    if isinstance(error, LLMError):
        return error
    if isinstance(error, httpx.ConnectTimeout):
        return errors.ConnectTimeout("no connection within LLM_CONNECT_TIMEOUT")
    if not isinstance(error, (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError)):
        what = f"the response cannot be parsed ({type(error).__name__} at {_location(error)})"
        return errors.MalformedAnswer(what)
    chain = _causes(error)
    for cause in chain:
        if isinstance(cause, ConnectionRefusedError):
            return _unreachable_error("connection refused: no server is listening at this address")
        if isinstance(cause, socket.gaierror):
            return unresolved_host_error()
        if isinstance(cause, ssl.SSLError):
            return errors.ConnectionFailed(
                f"TLS failed ({cause.reason or 'no reason given'})",
                hint="Check the certificate, the scheme and SSL_CERT_FILE",
            )
    if isinstance(error, httpx.ProxyError):
        hint = "Check HTTPS_PROXY, or name the host in NO_PROXY"
        return errors.Misconfigured("the proxy refused the connection", hint=hint)
    if isinstance(error, (httpx.UnsupportedProtocol, httpx.InvalidURL)):
        what = f"the address is invalid ({type(error).__name__})"
        return errors.NotConfigured(what, hint="Check the host in the base URL")
    causes = [cause for cause in chain if not isinstance(cause, LookupError)]  # anyio raises LookupError internally
    return errors.ConnectionFailed(f"the connection broke ({type((causes or chain)[-1]).__name__})")


def unresolved_host_error() -> LLMError:
    """Return the error for a host name that has no address."""
    hint = "Check its spelling, the network and its name server"
    return _unreachable_error("the host name cannot be resolved", hint)


def _unreachable_error(what: str, hint: str = "") -> LLMError:
    error = errors.ConnectionFailed(what, hint=hint)
    error.refused = True
    return error


def _location(error: BaseException) -> str:
    """Return the file and line that raised an exception, because the fault may be in this package."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"


def _causes(error: BaseException) -> list[BaseException]:
    """Return an exception, its causes and contexts, and the members of exception groups."""
    causes: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        cause = queue.pop(0)
        if cause is not None and cause not in causes:
            causes.append(cause)
            queue += [cause.__cause__, cause.__context__]
            queue += cause.exceptions if isinstance(cause, BaseExceptionGroup) else ()
    return causes
