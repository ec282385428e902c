"""What a server says is data: JSON, counts and words from outside, read within bounds.

Nothing here raises anything but ValueError, and nothing looks at more than it is told to.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

MAX_JSON_BYTES: Final = 8 * 1024 * 1024  # of a page or an answer in one piece
MAX_EVENT_BYTES: Final = 1024 * 1024  # of a line or an event of a stream
_MAX_VALUES: Final = 100_000  # of one document: eight megabytes of brackets are gigabytes of lists
_MAX_COUNT: Final = 2**53  # tokens; what JSON's readers agree on (RFC 8259, section 6)
_MAX_NAME_CHARS: Final = 300
_KEY_WINDOW: Final = 8  # characters of a key in common that count as the key
# What looks like a key, whosever it is: with the beginnings that vendors give theirs, a JSON web token, long base64.
_LIKE_A_KEY: Final = re.compile(
    r"\b(?:sk|pk|rk|key|gsk|xai|hf|fw|pat|ghp|AIza)[-_]?[A-Za-z0-9_-]{12,}|\beyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)*"
    r"|(?i:bearer) +[^\s,;\"']{8,}|\b(?=[A-Za-z+/]*[0-9])[A-Za-z0-9+/]{32,}={0,2}"
)


def parse_json(data: bytes | str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is none, it is nested too deep, has too many values, or a number of thousands of digits.
    """
    text = data.decode() if isinstance(data, bytes) else data
    if len(text) > _MAX_VALUES and sum(map(text.count, ",[{")) > _MAX_VALUES:
        raise ValueError("JSON of too many values")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON that is nested too deep") from None


def json_object(data: bytes | str) -> dict[str, Any] | None:
    """The JSON object in these bytes; None where there is anything else."""
    try:
        said = parse_json(data)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def non_negative_int(value: Any) -> int | None:
    """Return a count, 0 included; None for anything else. If 0 means unknown, the caller adds ``or None``."""
    return value if type(value) is int and 0 <= value < _MAX_COUNT else None


def flag(value: Any) -> bool | None:
    """Return a boolean; None for anything else."""
    return value if isinstance(value, bool) else None


def text(value: Any) -> str | None:
    """Return a name that can be shown on a terminal; None for anything else."""
    return value if isinstance(value, str) and 0 < len(value) <= _MAX_NAME_CHARS and value.isprintable() else None


def texts(value: Any) -> tuple[str, ...]:
    """Return the texts of a JSON list; empty for anything else."""
    return tuple(each for each in value if isinstance(each, str)) if isinstance(value, list) else ()


def part(value: Any, *keys: str) -> Mapping[str, Any]:
    """Return the JSON object under these keys; empty if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def dollars(value: Any) -> float | None:
    """A price in US dollars, finite and not negative; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 <= value < _MAX_COUNT and math.isfinite(value) else None


def word(value: Any, most: int = 100) -> str:
    """A short text or whole number as text that can be shown; "" for anything else."""
    if type(value) is int and abs(value) < _MAX_COUNT:
        return str(value)
    return printable(value, most) if isinstance(value, str) else ""


def printable(text: str, most: int) -> str:
    """At most so many characters of a text, in one line and without control characters."""
    shown = text[: most + 1]
    shown = " ".join("".join(each if each.isprintable() else " " for each in shown).split())
    return shown if len(text) <= most else shown[:most] + "…"


def without_keys(text: str, key: str | None) -> str:
    """A text in which nothing looks like a key; all of it is masked where it repeats a part of ``key``."""
    size = min(_KEY_WINDOW, len(key or ""))
    if key and any(key[at : at + size] in text for at in range(len(key) - size + 1)):
        return "[masked]"
    return _LIKE_A_KEY.sub("[masked]", text)
