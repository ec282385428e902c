"""Redaction of error messages: mask API keys, and exclude a message that quotes a prompt or an answer."""

from __future__ import annotations

import re
from typing import Final

from ..errors import LLMError
from ..transport.endpoint import Endpoint
from .request import Request

_MIN_TEXT_LETTERS: Final = 4  # letters and digits of a text. A shorter one may occur in any message
_MIN_QUOTE_LETTERS: Final = 16  # a message quotes a text if it contains so many consecutive letters and digits of it
_MAX_COMPARED_CHARS: Final = 200_000  # of each text: an image has millions
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
    quotes = any(_quotes(message, text, is_strict=True) for text in conversation)
    quotes = quotes or any(_quotes(message, text) for text in (request.all_texts if request else ()))
    error.quotable = not quotes
    if not error.quotable:
        error.what += " (the server's message repeats the request and is left out)"
        error.args = (error.what,)


def _normalize(text: str) -> str:
    """Return the letters and digits of a text. A quotation may differ in case, white space, punctuation and escapes."""
    plain = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)) if escape[1] else " ", text)
    return "".join(re.findall(r"[^\W_]+", plain)).lower()


def _quotes(message: str, text: str, *, is_strict: bool = False) -> bool:
    """Return whether a message quotes a text.

    Args:
        message: the normalized message.
        text: the text of a request or an answer.
        is_strict: return True for a text that is too long to compare, and compare also texts of 4 to 15 letters.
    """
    if is_strict and len(text) > _MAX_COMPARED_CHARS:
        return True
    letters = _normalize(text[:_MAX_COMPARED_CHARS])
    if len(letters) < _MIN_QUOTE_LETTERS:
        return is_strict and len(letters) >= _MIN_TEXT_LETTERS and letters in message
    return any(message[at : at + _MIN_QUOTE_LETTERS] in letters for at in range(len(message) - _MIN_QUOTE_LETTERS + 1))
