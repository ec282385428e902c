"""Parse and check what servers send: JSON, numbers and short texts. Sizes are bounded.

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

MAX_JSON_BYTES: Final = 8 * 1024 * 1024  # size of a response that is not a stream
MAX_EVENT_BYTES: Final = 1024 * 1024  # size of a line or an event of a stream
_MAX_VALUES: Final = 100_000  # values in a JSON document: 8 MB of brackets become gigabytes of lists
_BOM: Final = "\ufeff"
_MAX_COUNT: Final = 2**53  # integers below it are exact in every JSON parser (RFC 8259, section 6)
_MAX_NAME_CHARS: Final = 300  # length of a name that a server reports
_MIN_SECRET_CHARS: Final = 3  # a shorter header value is not a secret, but a flag such as "1"
_KEY_OVERLAP_CHARS: Final = 8  # a text that contains this many successive characters of the key is masked
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
        return json.loads(text, strict=False)  # models write line ends into strings
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
    """Return a value that is an integer of at least 0; None for anything else."""
    return value if type(value) is int and 0 <= value < _MAX_COUNT else None


def parse_date(value: Any) -> date | None:
    """Return the day of a date or time in ISO 8601; None for anything else."""
    with suppress(ValueError, TypeError):
        return date.fromisoformat(value[:10])
    return None


def bool_or_none(value: Any) -> bool | None:
    """Return a value that is a boolean; None for anything else."""
    return value if isinstance(value, bool) else None


def text_or_none(value: Any) -> str | None:
    """Return a value that is a printable text of 1 to 300 characters; None for anything else."""
    return value if isinstance(value, str) and 0 < len(value) <= _MAX_NAME_CHARS and value.isprintable() else None


def text_list(value: Any) -> tuple[str, ...]:
    """Return the texts in a JSON list; empty for anything else."""
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def object_at(value: Any, *keys: str) -> Mapping[str, Any]:
    """Return the JSON object at a path of keys; empty if it is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def dollars_or_none(value: Any) -> float | None:
    """Return a value that is a finite number of at least 0, such as a price; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 <= value < _MAX_COUNT and math.isfinite(value) else None


def short_text(value: Any, max_chars: int = 100) -> str:
    """Convert a text or an integer into a printable text of at most ``max_chars``. Return "" for anything else."""
    if type(value) is int and abs(value) < _MAX_COUNT:
        return str(value)
    return printable(value, max_chars) if isinstance(value, str) else ""


def printable(text: str, max_chars: int) -> str:
    """Return the first ``max_chars`` characters of a text, in one line and without control characters."""
    shown = text[: max_chars + 1]
    shown = " ".join("".join(character if character.isprintable() else " " for character in shown).split())
    return shown if len(text) <= max_chars else shown[:max_chars] + "…"


def mask_keys(text: str, key: str | None, values: Iterable[str] = ()) -> str:
    """Mask the parts of a text that look like API keys, and the words of the secret ``values``.

    Mask the whole text if it contains a part of ``key``.
    """
    size = min(_KEY_OVERLAP_CHARS, len(key or ""))
    if key and any(key[start : start + size] in text for start in range(len(key) - size + 1)):
        return "[masked]"
    words = [word for value in values for word in (value.strip(), *value.split()) if len(word) >= _MIN_SECRET_CHARS]
    for word in words:
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "[masked]", text)
    return _LIKE_A_KEY.sub("[masked]", text)
