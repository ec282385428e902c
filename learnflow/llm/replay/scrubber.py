"""Removal of secrets from cassettes: API keys, hosts, and secret fields of a request."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

MIN_SECRET_CHARS: Final = 8  # a shorter secret may be an ordinary word of the answer
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
# A field of JSON with a text. Texts of a stream with the same field name are joined to find a split secret.
_JSON_TEXT: Final = re.compile(r'"(\w{1,64})"[ \t]{0,8}:[ \t]{0,8}"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)


def find_secrets(value: Any) -> dict[str, str]:
    """Return a placeholder for each secret in a JSON value. A secret has a secret field name or a known format."""
    secrets = {}
    if isinstance(value, Mapping):
        for name, item in value.items():
            is_secret = _SECRET_FIELD.search(str(name))
            for text in item if isinstance(item, list) else [item]:
                if isinstance(text, str) and (is_secret or _SECRET_TEXT.fullmatch(text.strip())):
                    secrets[text.split()[-1] if text.strip() else ""] = PLACEHOLDER  # without "Bearer"
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        secrets |= find_secrets(item)
    return {secret: text for secret, text in secrets.items() if len(secret) >= MIN_SECRET_CHARS}


def mask_secrets(value: Any) -> Any:
    """Return a copy of a JSON value with placeholders for its secrets."""
    return Scrubber(find_secrets(value)).scrub(value)


class Scrubber:
    """Replaces secrets in texts, including escaped (JSON, URL) and encoded (base64) secrets.

    Args:
        secrets: the placeholder of each secret.
        hosts: the placeholder of each host. An escaped or encoded host is not replaced.
    """

    def __init__(self, secrets: Mapping[str, str], hosts: Mapping[str, str] = MappingProxyType({})) -> None:
        longest_first = sorted(secrets, key=len, reverse=True)
        self._secrets = [(re.compile(pattern), secrets[text]) for text in longest_first for pattern in _patterns(text)]
        self._hosts = [(re.compile(re.escape(host)), hosts[host]) for host in sorted(hosts, key=len, reverse=True)]

    def scrub(self, value: Any) -> Any:
        """Return a copy of a request's JSON value without its secrets. Hosts stay, because the prompt may name them."""
        if isinstance(value, str):
            return _substitute(value, self._secrets)
        if isinstance(value, Mapping):
            return {self.scrub(name): self.scrub(item) for name, item in value.items()}
        return [self.scrub(item) for item in value] if isinstance(value, list) else value

    def scrub_text(self, text: str) -> str:
        """Return a text of a response without secrets and hosts."""
        return _substitute(text, [*self._secrets, *self._hosts])

    def scrub_pieces(self, pieces: Sequence[bytes]) -> tuple[bytes, ...]:
        """Return the pieces of a body without secrets and hosts. They become one piece if the body contains any."""
        body = b"".join(pieces)
        clean = self._mask_split(self.scrub_text(body.decode("utf-8", "surrogateescape")))
        clean_body = clean.encode("utf-8", "surrogateescape")
        return tuple(pieces) if clean_body == body else (clean_body,)

    def _mask_split(self, body: str) -> str:
        """Mask secrets that are split over several events of a stream. Replace each character with ``*``."""
        fields: dict[str, list[tuple[int, int]]] = {}
        for match in _JSON_TEXT.finditer(body) if self._secrets else ():
            fields.setdefault(match[1], []).append(match.span(2))
        for spans in fields.values():
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
    """Replace the spans of a body with a text. The spans and the text have the same total length."""
    parts, copied_to, used = [], 0, 0
    for start, end in spans:
        parts += [body[copied_to:start], text[used : used + end - start]]
        copied_to, used = end, used + end - start
    return "".join([*parts, body[copied_to:]])


def _patterns(secret: str) -> Iterator[str]:
    """Yield the patterns of a secret: its characters, escaped or not, and its base64 at the three alignments."""
    yield "".join(map(_character, secret))
    data = secret.encode()
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + data)
        # The first and the last character may depend on the neighbours of the secret.
        certain = encoded[(offset * 8 + 5) // 6 : (offset + len(data)) * 8 // 6].decode()
        yield "".join({"+": "[+-]", "/": "[/_]"}.get(character, character) for character in certain)


def _character(character: str) -> str:
    """Return the pattern of a character: plain, or escaped as in JSON or in a URL."""
    plain = character if character.isalnum() else r"\\{0,4}" + re.escape(character)
    percent = "".join(f"%{byte:02x}" for byte in character.encode())
    return rf"(?:{plain}|(?i:\\{{1,4}}u{ord(character):04x}|{percent}))"
