"""Assemble streamed tool calls, and extra fields (fields that OpenAI's API does not define), from their pieces.

``find_or_add_call`` matches a piece to its call by the server's key, else by the id, else by order. The key is the
index in a chat completion, and the item in the Responses API. A new id or name usually begins another call; some
servers differ.
"""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Mapping
from typing import Any, Final

from ..completion import ToolCallDelta
from .untrusted import json_object

_ID_CHARACTERS: Final = string.ascii_letters + string.digits
_ID_LENGTH: Final = 9  # the templates of Mistral's models accept no other length
_MAX_CHECKS: Final = 100  # limit of checks for complete arguments, because each check parses all arguments so far
_STREAMED_FIELDS: Final = ("reasoning_content", "reasoning", "text", "summary", "data")  # their values arrive in pieces

Extra = dict[str, list[Any]]
"""The pieces of each extra field of a message or tool call."""


def collect_extra(extra: Extra, fields: Mapping[str, Any], known: frozenset[str]) -> int:
    """Add to ``extra`` the fields that are not in ``known``. Return their length as text, in characters."""
    added = {name: fields[name] for name in fields.keys() - known if fields[name] is not None}
    for name, value in added.items():
        extra.setdefault(name, []).append(value)
    return len(str(added)) if added else 0


def join_extra(extra: Extra) -> dict[str, Any]:
    """Join the pieces of each field. Incomplete surrogate pairs become U+FFFD. NaN and infinite numbers become None."""
    joined = {name: _join(name, pieces) for name, pieces in extra.items()}
    text = json.dumps(joined, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return dict(json.loads(text, parse_constant=lambda _: None))


def _join(name: str, pieces: list[Any]) -> Any:
    """Join the pieces of a field. If all pieces are the same text, use it once, except in ``_STREAMED_FIELDS``."""
    if all(isinstance(piece, str) for piece in pieces):
        return pieces[0] if name not in _STREAMED_FIELDS and len(set(pieces)) == 1 else "".join(pieces)
    if all(isinstance(piece, dict) for piece in pieces):
        names = dict.fromkeys(key for piece in pieces for key in piece)
        present = {key: [piece[key] for piece in pieces if piece.get(key) is not None] for key in names}
        return {key: _join(key, values) if values else None for key, values in present.items()}
    if not all(isinstance(piece, list) for piece in pieces):
        return pieces[-1]
    entries: dict[str, list[Any]] = {}
    for number, entry in enumerate(entry for piece in pieces for entry in piece):
        is_piece = isinstance(entry, dict) and entry.get("index") is not None
        key = str([entry.get(key) for key in ("index", "type", "id")]) if is_piece else str(number)
        entries.setdefault(key, []).append(entry)
    return [_join(name, group) for group in entries.values()]


class PartialCall:
    """A tool call that is arriving. Its id and name do not change after the first delta.

    Attributes:
        index: the position of the call in the answer, from 0.
        call_key: the server's key of the call (see the module); None if the server sent no key.
        id: the server's id, or a generated one.
        server_id: the id that the server sent; "" if it sent no id.
        started: whether the first delta was returned.
    """

    def __init__(self, index: int, call_key: Any) -> None:
        self.index, self.call_key = index, call_key
        self.server_id = self.name = ""
        self.id = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))
        self.extra: Extra = {}
        self.started = False
        # The name was repeated after complete arguments. Further arguments begin another call.
        self._name_repeated = False
        self._pieces: list[str] = []
        self._checks_left = _MAX_CHECKS

    @property
    def values(self) -> dict[str, str]:
        """Return id, name and the arguments so far (JSON text)."""
        return {"id": self.id, "name": self.name, "arguments": "".join(self._pieces)}

    def add(self, arguments: str) -> tuple[ToolCallDelta, ...]:
        """Add a piece of the arguments. Return its delta."""
        self._pieces += [arguments] if arguments else []
        if not self.started:
            return self.start() if arguments else ()
        return (ToolCallDelta(self.index, self.id, self.name, arguments),) if arguments else ()

    def start(self) -> tuple[ToolCallDelta, ...]:
        """Return the first delta; () if it was returned before, or the call has no name yet."""
        if self.started or not self.name:
            return ()
        self.started = True
        return (ToolCallDelta(self.index, **self.values),)

    def is_repeated_by(self, call_key: Any, call_id: str, name: str, arguments: str) -> bool:
        """Return whether a piece is the whole call again. Some servers repeat calls in their last chunk."""
        is_same = (
            bool(call_id)
            and call_key is not None
            and (call_key, call_id, name) == (self.call_key, self.server_id, self.name)
        )
        return is_same and arguments == self.values["arguments"] and json_object(arguments) is not None

    def is_continued_by(self, call_key: Any, name: str, arguments: str) -> bool:
        """Return whether a nameless piece with a new id continues the call.

        This is possible, because some servers send a new id with every piece.
        """
        if call_key is None or name or not (self.name and arguments) or self._checks_left <= 0:
            return False
        self._checks_left -= 1
        return json_object(self.values["arguments"]) is None

    def begins_other_call(self, call_id: str, name: str, arguments: str) -> bool:
        """Return whether a piece with the same key, or without a key, begins another call."""
        if not name or not self.name:
            return self._name_repeated and bool(arguments.strip())
        # Before the first arguments, a different name begins another call, unless the call has a key and the piece has
        # no new id. The name is then a piece of the call's name.
        if not self._pieces:
            return name != self.name and (self.call_key is None or call_id not in ("", self.server_id))
        self._checks_left -= 1
        if self._checks_left < 0 or json_object("".join(self._pieces)) is None:
            return False
        self._name_repeated = True
        return bool(arguments.strip()) or name != self.name


def find_or_add_call(calls: list[PartialCall], call_key: Any, call_id: str, name: str, arguments: str) -> PartialCall:
    """Return the call to which a piece belongs. If the piece begins a call, add a new one to ``calls``.

    ``call_key`` is None if the piece lacks it. ``call_id``, ``name`` and ``arguments`` are "" if the piece lacks them.
    """
    call_with_id = next((call for call in reversed(calls) if call_id and call.server_id == call_id), None)
    call = next((call for call in reversed(calls) if call_key in (None, call.call_key)), None)
    # Match by id in three cases: no call was found by key or order, the found call has another id, or a piece without
    # a key has a known id
    if call_id and (call is None or call.server_id not in ("", call_id) or (call_key is None and call_with_id)):
        if call_with_id:
            call = call_with_id if call_key in (None, call_with_id.call_key) or not name else None
        elif call and not call.is_continued_by(call_key, name, arguments):
            call = None
    if call is None or call.begins_other_call(call_id, name, arguments):
        name = name or (call.name if call else "")
        call = PartialCall(len(calls), call_key)
        calls.append(call)
    if not call.started:
        # If an earlier call has ``call_id``, keep the generated id, because some servers send one id for two calls
        call.id = call_id if call_id and not (call_with_id or call.server_id) else call.id
        call.name += name if name != call.name else ""
    call.server_id = call.server_id or call_id
    return call
