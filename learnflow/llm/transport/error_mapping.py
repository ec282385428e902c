"""Map statuses, error objects and exceptions of httpx to LLMError.

Codes and statuses decide before messages. Only the beginning of a message is searched.
"""

from __future__ import annotations

import math
import re
import socket
import ssl
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx

from .. import errors
from ..errors import LLMError
from .untrusted import json_object, non_negative_int, parse_json, printable, word

Judge = Callable[[int, bytes, Mapping[str, str]], type[LLMError] | None]
"""Classifies a refusal from its status, body and headers; returns None if it cannot."""

_MAX_SHOWN_CHARS: Final = 300  # of a server's message in an error
_MAX_SEARCHED_CHARS: Final = 2000  # of a server's message: regular expressions are slow on long texts
_MAX_DEPTH: Final = 8  # of nested objects

# llama.cpp: "request (9 tokens) exceeds … size (8 tokens)". vLLM: "maximum context length is 8 tokens. However, …
# contains at least 9 input tokens" or "Input length (9) exceeds … length (8)"; older versions: "you requested 10 tokens
# (9 in the messages, 1 in the completion)" or "You passed 9 input tokens …". OpenAI: "resulted in 9 tokens".
_PROMPT_LENGTH = re.compile(
    r"(?:request \(|contains (?:at least )?|resulted in |input length \(|tokens \(|passed )"
    r"([0-9]{1,12})\)?(?: input)?(?: tokens|\b)",
    re.IGNORECASE,
)
_WINDOW_LENGTH = re.compile(r"context (?:length|size) (?:is (?:only )?|\()([0-9]{1,12})", re.IGNORECASE)
_UNSUPPORTED = re.compile(
    r"does not support|not supported|requires --|response_format\.type"
    r"|not a multimodal model|unrecognized request argument|no endpoints found that support",
    re.IGNORECASE,
)
_NO_ROUTE = re.compile(
    "unexpected endpoint", re.IGNORECASE
)  # LM Studio's response to an unknown route, with status 200
_SENTENCES: Final[Mapping[type[LLMError], str]] = {
    errors.ContextOverflow: r"maximum context length|exceeds the available context size|prompt is too long"
    r"|tokens to keep from the initial prompt|longer than the (maximum )?(model )?context length"
    r"|context size has been exceeded|exceeds the context length|input length .{0,80}exceeds"
    r"|max_tokens.{0,80}greater than max_model_len|context length is only",
    errors.ModelNotFound: r"model [`'\"]?[\w./:@-]{1,200}[`'\"]? (was )?(not found|does not exist)|no models? loaded"
    r"|deployment .{0,200}does not exist|^model not found|is not a valid model id|no endpoints found for"
    r"|try pulling it",
    errors.ModelLoading: "loading model|model is loading|still loading",
    errors.Unsupported: "image input is not supported|mmproj",  # also with a 500
    errors.AuthenticationFailed: "api[ _-]?key (is )?(not valid|invalid|incorrect)|(invalid|incorrect) api[ _-]?key",
    errors.QuotaExceeded: r"exceeded your (current )?quota|billing|credit balance|insufficient (credits|funds)",
}
_PATTERNS: Final = {kind: re.compile(sentences, re.IGNORECASE) for kind, sentences in _SENTENCES.items()}

_CODES: Final[Mapping[type[LLMError], tuple[str, ...]]] = {
    errors.ContextOverflow: ("context_length_exceeded", "exceed_context_size_error"),
    errors.ContentFiltered: ("content_filter", "content_policy_violation", "responsibleaipolicyviolation"),
    errors.ModelNotFound: ("model_not_found", "deploymentnotfound"),
    # no_db_connection: LiteLLM's proxy without a database, for any key but its master key
    errors.AuthenticationFailed: ("invalid_api_key", "authentication_error", "no_db_connection"),
    errors.QuotaExceeded: ("insufficient_quota", "credit_balance_exhausted"),
    errors.Unsupported: ("unsupported_parameter", "unsupported_value", "not_supported_error"),
    errors.RateLimited: ("rate_limit_exceeded",),
    errors.Overloaded: ("server_is_overloaded",),
}
_KINDS_BY_CODE: Final = {code: kind for kind, codes in _CODES.items() for code in codes}
_STATUSES: Final[Mapping[int, type[LLMError]]] = {
    400: errors.InvalidRequest,
    401: errors.AuthenticationFailed,
    402: errors.QuotaExceeded,
    403: errors.AuthenticationFailed,
    404: errors.Misconfigured,
    405: errors.Misconfigured,
    407: errors.Misconfigured,
    413: errors.ContextOverflow,
    422: errors.InvalidRequest,
    429: errors.RateLimited,
    501: errors.Unsupported,
    503: errors.Overloaded,
    529: errors.Overloaded,
}

_DECISIVE: Final = (errors.ContextOverflow, errors.ContentFiltered)  # LiteLLM's classification wins over a bare status


@dataclass(frozen=True, slots=True)
class Complaint:
    """The content of an error body, in any shape: OpenAI's, a string, FastAPI's ``detail``, nested JSON."""

    message: str = ""
    codes: tuple[str, ...] = ()
    param: str | None = None
    lengths: tuple[int | None, int | None] = (None, None)  # of the prompt and the context, in tokens


def read_complaint(body: bytes) -> Complaint:
    """Parse an error body, as far as possible."""
    text = body.decode("utf-8", "replace").strip()
    try:
        return _parse(parse_json(text))
    except ValueError:
        return Complaint(message=text[:_MAX_SEARCHED_CHARS])


def _parse(value: Any, depth: int = 0) -> Complaint:
    if depth > _MAX_DEPTH:
        return Complaint()
    if isinstance(value, str):
        inner = _parse(json_object("".join(value.partition("{")[1:])), depth + 1)
        return replace(inner, message=inner.message or value[:_MAX_SEARCHED_CHARS])
    if isinstance(value, list):
        return _parse(value[0], depth + 1) if value else Complaint()
    if not isinstance(value, dict):
        return Complaint()
    for key in ("error", "detail", "errors"):
        if value.get(key):
            return _parse(value[key], depth + 1)
    inner_error = value.get("innererror")
    inner_code = inner_error.get("code") if isinstance(inner_error, dict) else None
    codes = tuple(filter(None, (word(code).lower() for code in (value.get("code"), value.get("type"), inner_code))))
    inner = _parse(value.get("message") or value.get("msg") or "", depth + 1)
    lengths = non_negative_int(value.get("n_prompt_tokens")), non_negative_int(value.get("n_ctx"))
    lengths = lengths if any(lengths) else inner.lengths if any(inner.lengths) else _parse_lengths(inner.message)
    return Complaint(inner.message, codes + inner.codes, word(value.get("param")) or inner.param, lengths)


def _parse_lengths(message: str) -> tuple[int | None, int | None]:
    """Return the lengths of the prompt and the context, if the message names them."""
    prompt, size = _PROMPT_LENGTH.search(message), _WINDOW_LENGTH.search(message)
    return (int(prompt[1]) if prompt else None), (int(size[1]) if size else None)


def refusal(status: int, body: bytes, headers: Mapping[str, str] | None = None, judge: Judge | None = None) -> LLMError:
    """Return the error for a response with a status other than 2xx.

    Args:
        status: the HTTP status.
        body: its body, or the beginning.
        headers: for ``Retry-After``; with lower-case names.
        judge: returns LiteLLM's classification. Called if codes, status and message do not decide.
    """
    headers = headers or {}
    if 300 <= status < 400:
        return errors.Misconfigured(
            "the address redirects", status=status, hint="Set the base URL to the address of the server"
        )
    page = is_web_page(body)
    if page and status < 500:  # a gateway's own error page is an outage
        return not_a_server(status)
    if status == 403 and not body.strip():
        return errors.Misconfigured(
            "the server refused with an empty response",
            status=status,
            hint="Some servers do this if the Host header is not theirs: use localhost or an IP address as base URL, "
            "or let the server listen on 0.0.0.0. Otherwise check proxies in between",
        )
    complaint = Complaint() if page else read_complaint(body)
    error = _build(_classify(status, complaint, judge and partial(judge, status, body, headers)), complaint, status)
    error.retry_after = retry_after(headers) if isinstance(error, errors.Unavailable) else None
    return error


def error_object(value: Any, *, began: bool) -> LLMError:
    """Return the error for an error object in a response with status 200.

    Args:
        value: the JSON value.
        began: a part of the answer had arrived before it.
    """
    complaint = _parse(value)
    status = next((int(code) for code in complaint.codes if re.fullmatch("[0-9]{3}", code)), 0)
    kind = _classify(status, complaint, None) if status or complaint.codes or complaint.message else errors.ServerFailed
    vague = (errors.ServerFailed, errors.InvalidRequest, errors.Overloaded)
    if issubclass(kind, vague):
        kind = errors.ErrorInAnswer if began else errors.ErrorBody
    if not began and _NO_ROUTE.search(complaint.message):
        return not_a_server(200)
    return _build(kind, complaint)


def not_a_server(status: int | None = None) -> LLMError:
    """Return the error for a response that is not from a model API."""
    what = "this address does not serve a model API, but a web page or another route"
    return errors.Misconfigured(what, status=status, hint=_HINTS[errors.Misconfigured])


def is_web_page(body: bytes) -> bool:
    """Return whether a body is HTML."""
    return body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait: ``retry-after-ms``, else ``Retry-After`` as seconds or as a date."""
    milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after", "")
    try:
        seconds = float(milliseconds) / 1000 if milliseconds else float(value)
    except ValueError:
        seconds = math.nan
    if 0 <= seconds < math.inf:
        return seconds
    try:
        until, now = parsedate_to_datetime(value), parsedate_to_datetime(headers.get("date", ""))
        return max(0.0, (until - now).total_seconds())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


_HINTS: Final[Mapping[type[LLMError], str]] = {
    errors.InvalidRequest: "Change the request as the server's message requires",
    errors.Unsupported: "Leave it out, or use a model or provider that supports it",
    errors.Misconfigured: "Check the base URL, its path (most servers require /v1 at the end) and proxies in between",
}


def _classify(status: int, complaint: Complaint, judge: Callable[[], type[LLMError] | None] | None) -> type[LLMError]:
    """Choose the error class by codes, unambiguous statuses, the message, LiteLLM, then the bare status."""
    for code in complaint.codes:
        if code in _KINDS_BY_CODE:
            return _KINDS_BY_CODE[code]
    if status in (401, 402, 407):
        return _STATUSES[status]
    if status == 429:  # two meanings: only the message distinguishes a used-up quota
        quota = _PATTERNS[errors.QuotaExceeded].search(complaint.message)
        return errors.QuotaExceeded if quota else errors.RateLimited
    for kind, pattern in _PATTERNS.items():
        if pattern.search(complaint.message):
            return kind
    if status == 404 and complaint.param == "model":
        return errors.ModelNotFound
    if status < 500 and _UNSUPPORTED.search(complaint.message):
        return errors.Unsupported
    opinion = judge() if judge else None
    if opinion and issubclass(opinion, _DECISIVE):
        return opinion
    return _STATUSES.get(status, errors.ServerFailed)  # an unknown refusal: the router tries the next provider


def _build(kind: type[LLMError], complaint: Complaint, status: int | None = None) -> LLMError:
    error = kind(kind.fault, status=status, hint=_HINTS.get(kind, ""))
    shown = printable(complaint.message, _MAX_SHOWN_CHARS)  # it may be printed to a terminal
    error.server_message = "" if is_web_page(shown.encode("utf-8", "replace")) else shown
    error.code = complaint.codes[0] if complaint.codes else None
    error.params = (complaint.param,) if complaint.param else ()
    if isinstance(error, errors.ContextOverflow):
        error.needed, error.window = complaint.lengths
    return error


def failure_of(error: Exception) -> LLMError:
    """Return the error for an exception raised between sending a request and reading its response.

    An LLMError is returned unchanged. The error does not quote the exception's message.
    """
    if isinstance(error, LLMError):
        return error
    if isinstance(error, httpx.ConnectTimeout):
        return errors.ConnectTimeout("no connection within LLM_CONNECT_TIMEOUT")
    if not isinstance(error, (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError)):
        what = f"the response cannot be parsed ({type(error).__name__} at {_location(error)})"
        return errors.MalformedAnswer(what)  # as a ValueError or RecursionError of a parser
    chain = _causes(error)
    for cause in chain:
        if isinstance(cause, ConnectionRefusedError):
            return _not_listening("connection refused: no server is listening at this address")
        if isinstance(cause, socket.gaierror):
            return unresolved()
        if isinstance(cause, ssl.SSLError):
            return errors.ConnectionFailed(
                f"TLS failed ({cause.reason or 'no reason given'})",
                hint="Check the certificate, the scheme and SSL_CERT_FILE",
            )
    if isinstance(error, httpx.ProxyError):
        hint = "Check HTTPS_PROXY, or name the host in NO_PROXY"
        return errors.Misconfigured("the proxy refused the connection", hint=hint)
    invalid = isinstance(error, (httpx.UnsupportedProtocol, httpx.InvalidURL))
    kind = errors.NotConfigured if invalid else errors.ConnectionFailed
    causes = [cause for cause in chain if not isinstance(cause, LookupError)]  # internal to anyio
    return kind(f"the connection broke ({type((causes or chain)[-1]).__name__})")


def unresolved() -> LLMError:
    """Return the error for a host name without an address."""
    hint = "Check its spelling, the network and its name server"
    return _not_listening("the host name cannot be resolved", hint)


def _not_listening(what: str, hint: str = "") -> LLMError:
    error = errors.ConnectionFailed(what, hint=hint)
    error.refused = True
    return error


def _location(error: BaseException) -> str:
    """Return the file and line that raised an exception: the fault may be in this package."""
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
