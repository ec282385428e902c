"""Redaction of error messages: keys, prompts and answers are removed, in any spelling that a server quotes.

A server's message that may repeat one of them is left out completely.
"""

from __future__ import annotations

import re
from typing import Final

from ..errors import LLMError
from ..transport.untrusted import mask_keys
from .request import Request

_MIN_SECRET_LETTERS: Final = 4  # letters and digits; a shorter text is no secret
_QUOTE_LETTERS: Final = 16  # letters and digits in common that count as a quotation
_MAX_COMPARED_CHARS: Final = 200_000  # of each text of a request: an image has millions
_ESCAPE: Final = re.compile(r"(?<!\\)\\+(?:u([0-9a-fA-F]{4})|[nrtbf])")


def redact(error: LLMError, key: str | None, request: Request | None, answer: str = "") -> None:
    """Mask the key in the server's message. Remove the message if it repeats the request or the answer.

    Args:
        error: changed in place.
        key: the API key of the endpoint.
        request: the request that failed; None for a probe.
        answer: the text that had arrived.
    """
    if not error.server_message:
        return
    error.server_message = mask_keys(error.server_message, key)
    message = _letters(error.server_message)
    texts = [*request.texts, answer] if request else [answer]
    arguments = request.other_texts if request else []
    repeats = any(_repeats(message, text, short=True) for text in texts)
    error.quotable = not (repeats or any(_repeats(message, text, short=False) for text in arguments))
    if not error.quotable:
        error.what += " (the server's message repeats the request and is left out)"
        error.args = (error.what,)


def _letters(text: str) -> str:
    """Return the letters and digits of a text: quotations differ in white space, punctuation and escapes."""
    plain = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)) if escape[1] else " ", text)
    return "".join(re.findall(r"[^\W_]+", plain)).lower()


def _repeats(message: str, text: str, *, short: bool) -> bool:
    """Return whether a message repeats a part of a text; with ``short``, also if the text is a single word."""
    if short and len(text) > _MAX_COMPARED_CHARS:
        return True  # the rest of the text is not compared
    letters = _letters(text[:_MAX_COMPARED_CHARS])
    if len(letters) < _QUOTE_LETTERS:
        return short and len(letters) >= _MIN_SECRET_LETTERS and letters in message
    return any(message[at : at + _QUOTE_LETTERS] in letters for at in range(len(message) - _QUOTE_LETTERS + 1))
