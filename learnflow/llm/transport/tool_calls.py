"""Assemble the tool calls and the further fields of an answer from their pieces.

A piece belongs to a call by what the server sends: an index, an id, or the position in the list. A name begins a call.
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
_MAX_CHECKS: Final = 100  # checks whether the arguments of a call are complete, which repeated names cause
_THINKING_FIELDS: Final = ("reasoning_content", "reasoning")
_TEXT_KEYS: Final = ("text", "summary", "data")  # of an entry of ``reasoning_details``


class ExtraFields:
    """The fields of a message or a tool call that OpenAI's API does not define. They arrive in pieces."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[Any]] = {}

    def add(self, fields: Mapping[str, Any], known: frozenset[str]) -> int:
        """Add a piece of each field that is not in ``known``. Return their length in characters."""
        size = 0
        for name in fields.keys() - known:
            if fields[name] is not None:
                self._pieces.setdefault(name, []).append(fields[name])
                size += len(name) + len(str(fields[name]))
        return size

    @property
    def values(self) -> dict[str, Any]:
        """Return the fields with joined pieces, without incomplete surrogate pairs and infinite numbers."""
        joined = {name: _join(name, pieces) for name, pieces in self._pieces.items()}
        text = json.dumps(joined, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        values: dict[str, Any] = json.loads(text, parse_constant=lambda _: None) if joined else {}
        return values


def _join(name: str, pieces: list[Any]) -> Any:
    """Join the pieces of a field. A text that every piece repeats counts once, unless it is thinking."""
    if all(isinstance(piece, str) for piece in pieces):
        return pieces[0] if name not in _THINKING_FIELDS and len(set(pieces)) == 1 else "".join(pieces)
    if all(isinstance(piece, dict) for piece in pieces):
        return {key: value for piece in pieces for key, value in piece.items()}
    if not all(isinstance(piece, list) for piece in pieces):
        return pieces[-1]
    groups: list[list[Any]] = []
    for entry in (entry for piece in pieces for entry in piece):
        if groups and _is_same_entry(groups[-1][0], entry):
            groups[-1].append(entry)
        else:
            groups.append([entry])
    return [_join_entry(group) if len(group) > 1 else group[0] for group in groups]


def _is_same_entry(first: Any, entry: Any) -> bool:
    both = isinstance(first, dict) and isinstance(entry, dict) and first.get("index") is not None
    return both and all(first.get(key) == entry.get(key) for key in ("index", "type"))


def _join_entry(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    entry = {key: value for piece in pieces for key, value in piece.items() if value is not None}
    texts = {key: [piece[key] for piece in pieces if isinstance(piece.get(key), str)] for key in _TEXT_KEYS}
    return entry | {key: "".join(text) for key, text in texts.items() if text}


class PartialCall:
    """A tool call while it arrives. Its deltas begin with its arguments. Later, its id and name do not change.

    Args:
        index: the index of the call in the answer, from 0.
        key: the server's index of the call, with that of the choice; None if the server sends none.

    Attributes:
        given_id: the id that the server sent; "" without one.
        extra: further fields of the call.
        batch: the list that contained the last piece.
        started: the first delta was returned.
        name_repeated: the name arrived again after complete arguments. Further arguments begin another call.
    """

    def __init__(self, index: int, key: Any) -> None:
        self.index, self.key = index, key
        self.given_id = self.name = ""
        self.id = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))
        self.extra = ExtraFields()
        self.batch: Any = None
        self.name_repeated = False
        self._pieces: list[str] = []
        self.started = False
        self._checks_left = _MAX_CHECKS

    @property
    def values(self) -> dict[str, str]:
        """Return the call so far: id, name, and the arguments as JSON text."""
        return {"id": self.id, "name": self.name, "arguments": "".join(self._pieces)}

    def add(self, arguments: str) -> tuple[ToolCallDelta, ...]:
        """Add a piece of the arguments. Return the delta."""
        if not arguments:
            return ()
        self._pieces.append(arguments)
        if self.started:
            return (ToolCallDelta(self.index, self.id, self.name, arguments),)
        return self.start()

    def start(self) -> tuple[ToolCallDelta, ...]:
        """Return the first delta if the call has a name and no delta yet."""
        if self.started or not self.name:
            return ()
        self.started = True
        return (ToolCallDelta(self.index, **self.values),)

    def add_name(self, call_id: str, name: str, *, is_unique: bool) -> None:
        """Add the id and a part of the name, unless a delta has both already."""
        self.given_id = self.given_id or call_id
        if not self.started:
            self.id = call_id if call_id and is_unique else self.id
            self.name += name if name != self.name else ""

    def is_other(self, call_id: str, name: str, arguments: str, batch: Any) -> bool:
        """Return whether a piece with the same index, or without one, begins another call."""
        if not name or not self.name:
            return self.name_repeated and bool(arguments.strip())
        if self._pieces:
            if not self._has_complete_arguments():
                return False
            self.name_repeated = True
            return bool(arguments.strip()) or name != self.name
        if self.key is None:
            return name != self.name or (batch is self.batch and not call_id)
        return name != self.name and call_id not in ("", self.given_id)

    def _has_complete_arguments(self) -> bool:
        self._checks_left -= 1
        return self._checks_left >= 0 and json_object("".join(self._pieces)) is not None


class CallList:
    """The tool calls of one answer, in the order of their beginnings."""

    def __init__(self) -> None:
        self.calls: list[PartialCall] = []
        self._by_key: dict[Any, PartialCall] = {}
        self._by_id: dict[str, PartialCall] = {}

    def find(self, key: Any, call_id: str, name: str, arguments: str, batch: Any) -> tuple[PartialCall, bool]:
        """Return the call of a piece, and whether the piece begins it.

        Args:
            key: the server's index of the call, with that of the choice; None without an index.
            call_id, name, arguments: the fields of the piece; "" if they are missing.
            batch: the list that contains the piece.
        """
        known = self._by_id.get(call_id) if call_id else None
        call = (self.calls[-1] if self.calls else None) if key is None else self._by_key.get(key)
        if key is None and known:
            call = known
        elif call_id and (call is None or call.given_id not in ("", call_id)):
            call = known if known and (known.key == key or not name) else None
        is_new = call is None or call.is_other(call_id, name, arguments, batch)
        if call is None or is_new:
            name = name or (call.name if call else "")
            call = PartialCall(len(self.calls), key)
            self.calls.append(call)
        call.add_name(call_id, name, is_unique=known is None)
        call.batch = batch
        if key is not None:
            self._by_key[key] = call
        if call_id:
            self._by_id[call_id] = call
        return call, is_new

    def add(self, call: PartialCall, arguments: str) -> tuple[ToolCallDelta, ...]:
        """Add a piece of the arguments of a call. Return the deltas, in the order of the calls."""
        earlier = () if call.started or not arguments else self.start(call.index)
        return earlier + call.add(arguments)

    def start(self, end: int | None = None) -> tuple[ToolCallDelta, ...]:
        """Return the first deltas of the calls before index ``end`` that have none."""
        return tuple(delta for call in self.calls[:end] for delta in call.start())
