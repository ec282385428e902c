"""Parse and check what servers send: JSON, numbers and short texts of bounded size. Mask API keys in texts.

The functions raise only ValueError.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import date
from typing import Any, Final

MAX_JSON_BYTES: Final = 8 * 1024 * 1024  # limit for a response that is not a stream
MAX_EVENT_BYTES: Final = 1024 * 1024  # limit for a line or an event of a stream
_MAX_VALUES: Final = 100_000  # limit for a document, because 8 MB of brackets would become gigabytes of lists
_BOM: Final = "\ufeff"
_MAX_COUNT: Final = 2**53  # smaller integers are exact in every JSON parser (RFC 8259, section 6)
_MAX_TEXT_CHARS: Final = 300
_MIN_SECRET_CHARS: Final = 3  # a shorter value of a secret header is probably a flag such as "1"
_KEY_OVERLAP_CHARS: Final = 8  # a text with this many successive characters of the key is masked
# A key with a vendor's prefix, a JSON web token, a bearer token, or long base64.
_LIKE_A_KEY: Final = re.compile(
    r"\b(?:sk|pk|rk|key|gsk|xai|hf|fw|pat|ghp|AIza)[-_]?[A-Za-z0-9_-]{12,}|\beyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)*"
    r"|(?i:bearer) +[^\s,;\"']{8,}|\b(?=[A-Za-z+/]*[0-9])[A-Za-z0-9+/]{32,}={0,2}"
)


def parse_json(data: bytes | str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: the data is not JSON, is nested too deeply, or has too many values or digits.
    """
    text = (data.decode() if isinstance(data, bytes) else data).removeprefix(_BOM)
    if len(text) > _MAX_VALUES and sum(map(text.count, ",[{")) > _MAX_VALUES:
        raise ValueError("JSON with too many values")
    try:
        return json.loads(text, strict=False)  # strict=False, because models write line ends into strings
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def json_object(data: bytes | str) -> dict[str, Any] | None:
    """Parse a JSON object. Return None for anything else."""
    try:
        value = parse_json(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def non_negative_int(value: Any) -> int | None:
    """Return an integer of at least 0; None for anything else."""
    return value if type(value) is int and 0 <= value < _MAX_COUNT else None


def parse_date(value: Any) -> date | None:
    """Return the day of a date or time in ISO 8601; None for anything else."""
    with suppress(ValueError, TypeError):
        return date.fromisoformat(value[:10])
    return None


def bool_or_none(value: Any) -> bool | None:
    """Return a boolean; None for anything else."""
    return value if isinstance(value, bool) else None


def text_or_none(value: Any) -> str | None:
    """Return a printable text of 1 to 300 characters; None for anything else."""
    return value if isinstance(value, str) and 0 < len(value) <= _MAX_TEXT_CHARS and value.isprintable() else None


def text_list(value: Any) -> tuple[str, ...]:
    """Return the texts in a JSON list; empty for anything else."""
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def object_at(value: Any, *keys: str) -> Mapping[str, Any]:
    """Return the JSON object at a path of keys; empty if it is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def dollars_or_none(value: Any) -> float | None:
    """Return a finite number of at least 0, such as a price; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 <= value < _MAX_COUNT and math.isfinite(value) else None


def short_text(value: Any, max_chars: int = 100) -> str:
    """Return a text, shortened by ``printable``, or an integer as text. Return "" for anything else."""
    if type(value) is int and abs(value) < _MAX_COUNT:
        return str(value)
    return printable(value, max_chars) if isinstance(value, str) else ""


def printable(text: str, max_chars: int) -> str:
    """Return the first ``max_chars`` characters in one line, without control characters. Add "…" to a longer text."""
    line = text[: max_chars + 1]
    line = " ".join("".join(character if character.isprintable() else " " for character in line).split())
    return line if len(text) <= max_chars else line[:max_chars] + "…"


def mask_keys(text: str, key: str | None, values: Iterable[str] = ()) -> str:
    """Mask parts of a text that look like an API key, and the words of the secret ``values``.

    If the text contains a part of ``key`` (8 successive characters), mask the whole text.
    """
    size = min(_KEY_OVERLAP_CHARS, len(key or ""))
    if key and any(key[start : start + size] in text for start in range(len(key) - size + 1)):
        return "[masked]"
    words = [word for value in values for word in (value.strip(), *value.split()) if len(word) >= _MIN_SECRET_CHARS]
    for word in words:
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "[masked]", text)
    return _LIKE_A_KEY.sub("[masked]", text)
