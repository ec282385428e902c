"""Redaction of error messages: API keys are masked, and a message that quotes a prompt or an answer is removed."""

from __future__ import annotations

import re
from typing import Final

from ..errors import LLMError
from ..transport.endpoint import Endpoint
from .request import Request

_MIN_TEXT_LETTERS: Final = 4  # letters and digits; a shorter text may occur in any message
_MIN_QUOTE_LETTERS: Final = 16  # consecutive letters and digits of a text that count as a quotation
_MAX_COMPARED_CHARS: Final = 200_000  # of each text, because an image has millions
_ESCAPE: Final = re.compile(r"(?<!\\)\\+(?:u([0-9a-fA-F]{4})|[nrtbf])")


def redact(error: LLMError, endpoint: Endpoint, request: Request | None, answer: str = "") -> None:
    """Mask secrets in the server's message. Exclude the message from the error if it quotes the request or the answer.

    Args:
        error: the error to change in place.
        endpoint: the endpoint with the secrets of the request.
        request: the request that failed; None for a probe.
        answer: the text received before the error.
    """
    if not error.server_message:
        return
    error.server_message = endpoint.mask(error.server_message)
    message = _normalize(error.server_message)
    conversation = [*request.texts, answer] if request else [answer]
    quotes = any(_quotes(message, text, match_short=True) for text in conversation)
    quotes = quotes or any(_quotes(message, text) for text in (request.all_texts if request else ()))
    error.quotable = not quotes
    if not error.quotable:
        error.what += " (the server's message repeats the request and is left out)"
        error.args = (error.what,)


def _normalize(text: str) -> str:
    """Return the letters and digits of a text. A quotation may differ in case, white space, punctuation and escapes."""
    plain = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)) if escape[1] else " ", text)
    return "".join(re.findall(r"[^\W_]+", plain)).lower()


def _quotes(message: str, text: str, *, match_short: bool = False) -> bool:
    """Return whether a message quotes a text.

    Args:
        message: the normalized message.
        text: the text of a request or an answer.
        match_short: the text counts as quoted also if it is shorter than a quotation, or too long to compare.
    """
    if match_short and len(text) > _MAX_COMPARED_CHARS:
        return True
    letters = _normalize(text[:_MAX_COMPARED_CHARS])
    if len(letters) < _MIN_QUOTE_LETTERS:
        return match_short and len(letters) >= _MIN_TEXT_LETTERS and letters in message
    return any(message[at : at + _MIN_QUOTE_LETTERS] in letters for at in range(len(message) - _MIN_QUOTE_LETTERS + 1))
