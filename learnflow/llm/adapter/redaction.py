"""Removes from errors what they must not repeat: keys, prompts and answers, in any spelling that a server quotes.

Must never let a doubtful sentence through: the whole sentence is left out.
"""

from __future__ import annotations

import re
from typing import Final

from ..errors import LLMError
from ..transport.untrusted import without_keys
from .request import Request

_TELLING: Final = 4  # letters and digits; a shorter text is no secret
_WINDOW: Final = 16  # letters and digits in common that count as a quotation
_LOOKED_AT: Final = 200_000  # characters of each text of a request: a picture is millions
_ESCAPE: Final = re.compile(r"(?<!\\)\\+(?:u([0-9a-fA-F]{4})|[nrtbf])")


def discreet(error: LLMError, key: str | None, request: Request | None, answer: str = "") -> None:
    """Let the error quote the server only if its words repeat neither the key, nor the prompt, nor the answer."""
    if not error.server_message:
        return
    error.server_message = without_keys(error.server_message, key)
    said = _letters(error.server_message)
    texts = [*request.texts, answer] if request else [answer]
    others = request.other_texts if request else []
    repeats = any(_repeats(said, text, short=True) for text in texts)
    error.quotable = not (repeats or any(_repeats(said, text, short=False) for text in others))
    if not error.quotable:
        error.what += " (the server's own words repeat the request and are left out)"
        error.args = (error.what,)


def _letters(text: str) -> str:
    """Return letters and digits only: white space, punctuation and escapes differ from echo to echo."""
    plain = _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else " ", text)
    return "".join(re.findall(r"[^\W_]+", plain)).lower()


def _repeats(said: str, text: str, *, short: bool) -> bool:
    if short and len(text) > _LOOKED_AT:
        return True  # not all of it is compared
    letters = _letters(text[:_LOOKED_AT])
    if len(letters) < _WINDOW:
        return short and len(letters) >= _TELLING and letters in said
    return any(said[at : at + _WINDOW] in letters for at in range(len(said) - _WINDOW + 1))
