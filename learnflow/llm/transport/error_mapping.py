"""The one place where a status, an error object or a cause becomes a leaf of the error tree.

Must never do I/O or know which provider it judges; status and codes are asked before any sentence.
``wire``, ``net``, the airlock and the probes ask it. The sentences are those of ``facts/providers.md`` 10.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final

from .. import errors
from ..errors import LLMError
from .exception_mapping import leaf_of

_SHOWN: Final = 300  # characters of a server's own words

_CONTEXT = re.compile(
    r"maximum context length|exceeds the available context size|tokens to keep from the initial prompt"
    r"|longer than the (maximum )?(model )?context length|context size has been exceeded|exceeds the context length"
    r"|input length .*exceeds|prompt is too long|max_tokens.*greater than max_model_len|context length is only",
    re.IGNORECASE,
)
# llama.cpp: "request (9 tokens) exceeds … size (8 tokens)"; vLLM: "maximum context length is 8 tokens. However, …
# contains at least 9 input tokens" or "Input length (9) exceeds … length (8)", before that "you requested 10 tokens (9
# in the messages, 1 in the completion)" or "You passed 9 input tokens …"; OpenAI: "resulted in 9 tokens".
_PROMPT_LENGTH = re.compile(
    r"(?:request \(|contains (?:at least )?|resulted in |input length \(|tokens \(|passed )"
    r"(\d+)\)?(?: input)?(?: tokens|\b)",
    re.IGNORECASE,
)
_WINDOW_LENGTH = re.compile(r"context (?:length|size) (?:is (?:only )?|\()(\d+)", re.IGNORECASE)
_UNSUPPORTED = re.compile(
    r"does not support|not supported|requires --|response_format\.type"
    r"|not a multimodal model|unrecognized request argument|no endpoints found that support",
    re.IGNORECASE,
)
_NO_IMAGES = re.compile(r"image input is not supported|mmproj", re.IGNORECASE)  # llama.cpp says it with a 500
_NO_MODEL = re.compile(
    r"model [`'\"]?[\w./:@-]+[`'\"]? (was )?(not found|does not exist)|no models? loaded|try pulling it"
    r"|deployment .*does not exist|^model not found|is not a valid model id|no endpoints found for",
    re.IGNORECASE,
)
_MONEY = re.compile(
    r"exceeded your (current )?quota|billing|credit balance|insufficient (credits|funds)", re.IGNORECASE
)
_KEY = re.compile(r"api[ _-]?key (is )?(not valid|invalid|incorrect)|(invalid|incorrect) api[ _-]?key", re.IGNORECASE)
_LOADING = re.compile(r"loading model|model is loading|still loading", re.IGNORECASE)
_SENTENCES: Final = (
    (_CONTEXT, errors.ContextOverflow),
    (_NO_MODEL, errors.ModelNotFound),
    (_LOADING, errors.ModelLoading),
    (_NO_IMAGES, errors.Unsupported),
    (_KEY, errors.AuthenticationFailed),
    (_MONEY, errors.QuotaExceeded),
)

_CODES: Final[Mapping[str, type[LLMError]]] = {
    "context_length_exceeded": errors.ContextOverflow,
    "exceed_context_size_error": errors.ContextOverflow,
    "content_filter": errors.ContentFiltered,
    "content_policy_violation": errors.ContentFiltered,
    "responsibleaipolicyviolation": errors.ContentFiltered,
    "model_not_found": errors.ModelNotFound,
    "deploymentnotfound": errors.ModelNotFound,
    "invalid_api_key": errors.AuthenticationFailed,
    "authentication_error": errors.AuthenticationFailed,
    "no_db_connection": errors.AuthenticationFailed,  # LiteLLM's proxy without a database, of any key but its master's
    "insufficient_quota": errors.QuotaExceeded,
    "credit_balance_exhausted": errors.QuotaExceeded,
    "unsupported_parameter": errors.Unsupported,
    "unsupported_value": errors.Unsupported,
    "not_supported_error": errors.Unsupported,
    "rate_limit_exceeded": errors.RateLimited,
    "server_is_overloaded": errors.Overloaded,
}
_STATUSES: Final[Mapping[int, type[LLMError]]] = {
    400: errors.InvalidRequest,
    401: errors.AuthenticationFailed,
    402: errors.QuotaExceeded,
    403: errors.AuthenticationFailed,
    404: errors.Misconfigured,
    405: errors.Misconfigured,
    407: errors.Misconfigured,
    408: errors.ServerFailed,
    409: errors.ServerFailed,
    413: errors.ContextOverflow,
    422: errors.InvalidRequest,
    425: errors.ServerFailed,
    429: errors.RateLimited,
    499: errors.ServerFailed,
    501: errors.Unsupported,
    503: errors.Overloaded,
    529: errors.Overloaded,
}

_DECISIVE: Final = (errors.ContextOverflow, errors.ContentFiltered)  # where LiteLLM's reading beats a bare status


@dataclass(frozen=True, slots=True)
class Complaint:
    """What a server's error body says, whatever its shape: OpenAI's, a string, FastAPI's ``detail``, nested JSON."""

    message: str = ""
    codes: tuple[str, ...] = ()
    param: str | None = None
    lengths: tuple[int | None, int | None] = (None, None)  # of the prompt and of the window, in tokens


def complaint(body: bytes) -> Complaint:
    """Read an error body, as far as it can be read."""
    text = body.decode("utf-8", "replace").strip()
    try:
        return _of(json.loads(text))
    except (ValueError, RecursionError):
        return Complaint(message=text)


def _of(said: Any) -> Complaint:
    if isinstance(said, str):
        nested = said[said.find("{") :] if "{" in said else ""
        try:
            inner = _of(json.loads(nested)) if nested else Complaint()
        except ValueError:
            inner = Complaint()
        return Complaint(inner.message or said, inner.codes, inner.param, inner.lengths)
    if isinstance(said, list):
        return _of(said[0]) if said else Complaint()
    if not isinstance(said, dict):
        return Complaint()
    for key in ("error", "detail", "errors"):
        if said.get(key):
            return _of(said[key])
    inner_code = (said.get("innererror") or {}).get("code") if isinstance(said.get("innererror"), dict) else None
    codes = tuple(str(code).lower() for code in (said.get("code"), said.get("type"), inner_code) if code is not None)
    inner = _of(said.get("message") or said.get("msg") or "")
    lengths = _count(said.get("n_prompt_tokens")), _count(said.get("n_ctx"))
    lengths = lengths if any(lengths) else inner.lengths if any(inner.lengths) else _lengths(inner.message)
    return Complaint(inner.message, codes + inner.codes, said.get("param") or inner.param, lengths)


def _count(said: Any) -> int | None:
    return said if type(said) is int else None


def _lengths(message: str) -> tuple[int | None, int | None]:
    """Of the prompt and of the window, where the sentence names them."""
    prompt, size = _PROMPT_LENGTH.search(message), _WINDOW_LENGTH.search(message)
    return (int(prompt[1]) if prompt else None), (int(size[1]) if size else None)


def refusal(
    status: int, body: bytes, headers: Mapping[str, str] | None = None, judged: BaseException | None = None
) -> LLMError:
    """The leaf for an answer that is none: a status that is not 200.

    Args:
        status: the HTTP status.
        body: what came with it, or its beginning.
        headers: for ``Retry-After``, ``Location`` and the content type.
        judged: what LiteLLM made of it.
    """
    headers = headers or {}
    if 300 <= status < 400:
        return errors.Misconfigured(
            "the address redirects", status=status, hint="Set the base URL to where the server really is"
        )
    page = web_page(body)
    if page and status < 500:  # a gateway's own error page is an outage
        return not_a_server(status)
    if status == 403 and not body.strip():
        return errors.Misconfigured(
            "refused without a word",
            status=status,
            hint="Ollama does so when the Host header is not its own: use localhost or an IP address as base URL, "
            "or let it listen on 0.0.0.0; otherwise look for a proxy in between",
        )
    said = Complaint() if page else complaint(body)
    error = _leaf(_kind(status, said, judged), said, status)
    error.retry_after = retry_after(headers) if isinstance(error, errors.Unavailable) else None
    return error


def error_object(said: Any, *, began: bool) -> LLMError:
    """The leaf for an error object inside a 200; ``began``: after the answer had begun."""
    told = _of(said)
    status = next((int(code) for code in told.codes if code.isdigit() and len(code) == 3), 0)
    kind = _kind(status, told, None) if status or told.codes or told.message else errors.ServerFailed
    vague = (errors.ServerFailed, errors.InvalidRequest, errors.Overloaded)
    if issubclass(kind, vague):
        kind = errors.ErrorInAnswer if began else errors.ErrorBody
    if not began and "unexpected endpoint" in told.message.lower():  # LM Studio answers any unknown route with a 200
        return not_a_server(200)
    return _leaf(kind, told)


def not_a_server(status: int | None = None) -> LLMError:
    """Something answers, but not the API."""
    return errors.Misconfigured(
        "what answers at this address is not the model's API, but a web page or another route",
        status=status,
        hint="Check the base URL: host, port, and the path (most servers want /v1 at the end), and proxies in between",
    )


def web_page(body: bytes) -> bool:
    """Whether this is HTML."""
    return body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: ``retry-after-ms``, or ``Retry-After`` in seconds or as a date, read against ``Date``."""
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
    except (ValueError, TypeError):
        return None


_WORDS: Final[Mapping[type[LLMError], str]] = {
    errors.InvalidRequest: "the server refused the request",
    errors.Unsupported: "the server or the model cannot do that",
    errors.AuthenticationFailed: "the key is missing, wrong, or not allowed to do this",
    errors.ModelNotFound: "the server does not have the model",
    errors.Misconfigured: "this is not an address of the model's API",
    errors.ContextOverflow: "the prompt is longer than the context that is served",
    errors.ContentFiltered: "a content filter refused",
    errors.QuotaExceeded: "the quota is used up",
    errors.RateLimited: "too many requests",
    errors.Overloaded: "the server is busy",
    errors.ServerFailed: "the server failed",
    errors.ModelLoading: "the model is loading",
    errors.ErrorInAnswer: "the server reported an error in the middle of its answer",
    errors.ErrorBody: "the server answered with an error object instead of an answer",
}


_HINTS: Final[Mapping[type[LLMError], str]] = {
    errors.InvalidRequest: "Change the request; the server's own words say what it does not take",
    errors.Unsupported: "Leave it out, or use a model or provider that can",
    errors.Misconfigured: "Check the base URL, its path (most servers want /v1 at the end) and proxies in between",
}


def _kind(status: int, said: Complaint, judged: BaseException | None) -> type[LLMError]:
    """Codes, then the statuses that say it all, then sentences, then LiteLLM's judgement, then the bare status."""
    for code in said.codes:
        if code in _CODES:
            return _CODES[code]
    if status in (401, 402, 407):
        return _STATUSES[status]
    if status == 429:  # one status for two things: only the words tell a used-up quota
        return errors.QuotaExceeded if _MONEY.search(said.message) else errors.RateLimited
    for pattern, kind in _SENTENCES:
        if pattern.search(said.message):
            return kind
    if status == 404 and said.param == "model":
        return errors.ModelNotFound
    if status < 500 and _UNSUPPORTED.search(said.message):
        return errors.Unsupported
    opinion = leaf_of(judged) if judged else None
    if opinion and issubclass(opinion, _DECISIVE):
        return opinion
    return _STATUSES.get(status, errors.ServerFailed if status >= 500 or not status else errors.InvalidRequest)


def _leaf(kind: type[LLMError], said: Complaint, status: int | None = None) -> LLMError:
    error = kind(_sentence(kind, said), status=status, hint=_HINTS.get(kind, ""))
    error.param = said.param
    if isinstance(error, errors.ContextOverflow):
        error.needed, error.window = said.lengths
    return error


def _sentence(kind: type[LLMError], said: Complaint) -> str:
    words = _WORDS.get(kind) or (kind.__doc__ or "").partition("\n")[0].partition(";")[0].strip().rstrip(".")
    message = "".join(each if each.isprintable() else " " for each in said.message)  # it may end up on a terminal
    message = " ".join(message.split())
    if web_page(message.encode()) or not message:
        return words
    shown = message if len(message) <= _SHOWN else message[:_SHOWN] + "…"
    return f"{words}: “{shown}”"
