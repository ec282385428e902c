"""Removal of API keys, other secrets and host names from cassettes (recorded requests and responses)."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

MIN_SECRET_CHARS: Final = 8  # shorter secrets are not masked, because they may be ordinary words of the answer
PLACEHOLDER: Final = "masked-secret"
# Fields whose text is a secret, such as "api_key", "userToken" or "Authorization". A cache key is not secret.
_SECRET_FIELD: Final = re.compile(
    r"(?<!cache_)(?<!cache-)key$|(?:token|secret|password|passwd|authorization|credentials?|cookie)$", re.IGNORECASE
)
_SECRET_TEXT: Final = re.compile(
    r"(?:sk|pk|rk|gsk|xai|hf|fw|pat|ghp)[-_][A-Za-z0-9_-]{12,}|AIza[A-Za-z0-9_-]{12,}|eyJ[\w-]{8,}(?:\.[\w-]*)+"
    r"|(?:bearer|basic) +\S{8,}",
    re.IGNORECASE,
)
# A JSON field with a string. ``_mask_split_secrets`` joins the strings of fields with the same name.
_JSON_STRING_FIELD: Final = re.compile(r'"(\w{1,64})"[ \t]{0,8}:[ \t]{0,8}"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)


def find_secrets(value: Any) -> dict[str, str]:
    """Find the secrets in a JSON value by field name or by format. Return a placeholder for each secret."""
    secrets = {}
    if isinstance(value, Mapping):
        for name, item in value.items():
            is_secret = _SECRET_FIELD.search(str(name))
            for text in item if isinstance(item, list) else [item]:
                if isinstance(text, str) and (is_secret or _SECRET_TEXT.fullmatch(text.strip())):
                    secrets[text.split()[-1] if text.strip() else ""] = PLACEHOLDER  # without "Bearer"
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        secrets |= find_secrets(item)
    return {secret: placeholder for secret, placeholder in secrets.items() if len(secret) >= MIN_SECRET_CHARS}


def mask_secrets(value: Any) -> Any:
    """Return a copy of a JSON value with placeholders instead of secrets."""
    return Scrubber(find_secrets(value)).scrub(value)


class Scrubber:
    """Replaces secrets in texts, including escaped (JSON, URL) and encoded (base64) secrets.

    Args:
        secrets: the secrets, mapped to their placeholders.
        hosts: the hosts, mapped to their placeholders. An escaped or encoded host is not replaced.
    """

    def __init__(self, secrets: Mapping[str, str], hosts: Mapping[str, str] = MappingProxyType({})) -> None:
        longest_first = sorted(secrets, key=len, reverse=True)
        self._secrets = [(re.compile(pattern), secrets[text]) for text in longest_first for pattern in _patterns(text)]
        self._hosts = [(re.compile(re.escape(host)), hosts[host]) for host in sorted(hosts, key=len, reverse=True)]

    def scrub(self, value: Any) -> Any:
        """Return a copy of a request's JSON value without secrets.

        Hosts are not replaced, because that would change a prompt that names one.
        """
        if isinstance(value, str):
            return _substitute(value, self._secrets)
        if isinstance(value, Mapping):
            return {self.scrub(name): self.scrub(item) for name, item in value.items()}
        return [self.scrub(item) for item in value] if isinstance(value, list) else value

    def scrub_text(self, text: str) -> str:
        """Replace secrets and hosts in a text of a response."""
        return _substitute(text, [*self._secrets, *self._hosts])

    def scrub_pieces(self, pieces: Sequence[bytes]) -> tuple[bytes, ...]:
        """Replace secrets and hosts in a body. If something was replaced, return the body as one piece."""
        body = b"".join(pieces)
        clean = self._mask_split_secrets(self.scrub_text(body.decode("utf-8", "surrogateescape")))
        clean_body = clean.encode("utf-8", "surrogateescape")
        return tuple(pieces) if clean_body == body else (clean_body,)

    def _mask_split_secrets(self, body: str) -> str:
        """Replace each character of a secret with ``*`` if the secret is split over several events of a stream."""
        spans_by_field: dict[str, list[tuple[int, int]]] = {}
        for match in _JSON_STRING_FIELD.finditer(body) if self._secrets else ():
            spans_by_field.setdefault(match[1], []).append(match.span(2))
        for spans in spans_by_field.values():
            text = masked = "".join(body[start:end] for start, end in spans)
            for pattern, _ in self._secrets:
                masked = pattern.sub(lambda match: "*" * len(match[0]), masked)
            if masked != text:
                body = _replace(body, spans, masked)
        return body


def _substitute(text: str, replacements: Sequence[tuple[re.Pattern[str], str]]) -> str:
    for pattern, placeholder in replacements:
        text = pattern.sub(placeholder, text)
    return text


def _replace(body: str, spans: Sequence[tuple[int, int]], text: str) -> str:
    """Replace the spans of a body with consecutive parts of a text. All spans together are as long as the text."""
    parts, copied_to, used_chars = [], 0, 0
    for start, end in spans:
        parts += [body[copied_to:start], text[used_chars : used_chars + end - start]]
        copied_to, used_chars = end, used_chars + end - start
    return "".join([*parts, body[copied_to:]])


def _patterns(secret: str) -> Iterator[str]:
    """Yield regular expressions for a secret: one for its characters, and three for its base64 forms.

    The base64 form depends on the position of the secret in a group of three bytes (0, 1 or 2).
    """
    yield "".join(map(_character_pattern, secret))
    data = secret.encode()
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + data)
        # Skip base64 characters that also depend on the text before or after the secret.
        unambiguous = encoded[(offset * 8 + 5) // 6 : (offset + len(data)) * 8 // 6].decode()
        yield "".join({"+": "[+-]", "/": "[/_]"}.get(character, character) for character in unambiguous)


def _character_pattern(character: str) -> str:
    """Return a regular expression for a character: plain, or escaped as in JSON or in a URL."""
    plain = character if character.isalnum() else r"\\{0,4}" + re.escape(character)
    percent = "".join(f"%{byte:02x}" for byte in character.encode())
    return rf"(?:{plain}|(?i:\\{{1,4}}u{ord(character):04x}|{percent}))"
