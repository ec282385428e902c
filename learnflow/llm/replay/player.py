"""Play recorded responses from cassettes.

A request that was not recorded raises NotRecorded. The error describes the most similar recorded request. It does not
count as a failure of the provider, so it causes no fallback.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import takewhile
from typing import Any, Final

from .. import errors
from ..errors import LLMError, NotRecorded
from . import cassette
from .cassette import RecordedRequest, RecordedResponse
from .transport import Cassettes

# Not compared: these options depend on which requests were sent before.
_IGNORED_OPTIONS: Final = ("num_ctx", "keep_alive")
_CHAT_PATH: Final = "/chat/completions"
_HINT: Final = "Record it with LLM_REPLAY_MODE=record while the server is running, or unset LLM_REPLAY"
_MAX_DIFFERENCES: Final = 5
# Errors contain only the values of these fields. Other fields may contain text of the prompt.
_SHOWN_FIELDS: Final = ("model", "temperature", "max_tokens", "num_predict", "seed", "stream")


@dataclass(slots=True)
class _Entry:
    """A recorded request and its responses, in the recorded order. ``name`` is the path of the cassette."""

    request: RecordedRequest
    responses: list[RecordedResponse]
    name: str
    played: int = 0

    def next(self) -> RecordedResponse:
        """Return the next response. Repeat the last one after the end."""
        self.played += 1
        return self.responses[min(self.played, len(self.responses)) - 1]


class Player(Cassettes):
    """Responds to requests from cassettes.

    Args:
        cassettes: path -> content of each cassette.
        hint: the hint of NotRecorded errors.

    Raises:
        NotConfigured: one of them is not a valid cassette.

    Attributes:
        providers: the names of the recorded providers.
    """

    def __init__(self, cassettes: Mapping[str, str], hint: str = _HINT) -> None:
        self._hint = hint
        self._entries: dict[str, _Entry] = {}
        self._missing: list[NotRecorded] = []
        for name, text in cassettes.items():
            try:
                for interaction in cassette.load(text)[1]:
                    request = interaction.request
                    entry = self._entries.setdefault(_key(request), _Entry(request, [], name))
                    entry.responses.append(interaction.response)
            except LLMError as error:
                raise errors.NotConfigured(f"{name}: {error.what}", hint=error.hint) from None
        self.providers = frozenset(entry.request.provider for entry in self._entries.values())

    @property
    def missing(self) -> list[str]:
        """Return the messages of the NotRecorded errors, except forgiven ones."""
        return [str(error) for error in self._missing if not error.forgiven]

    @property
    def unplayed(self) -> list[str]:
        """Return a line for each recorded request that has responses that were not played."""
        return [
            f"{entry.name}: {entry.request.method} {entry.request.uri} ({len(entry.responses) - entry.played} left)"
            for entry in self._entries.values()
            if entry.played < len(entry.responses)
        ]

    def play(self, request: RecordedRequest) -> RecordedResponse:
        """Return the next response to a request. Raise NotRecorded if there is none.

        An exact match wins, then one with a compatible API key, then one without the ignored options.
        """
        if exact := self._entries.get(_key(request)):
            return exact.next()
        for matches in (_matches, _matches_without_options):
            for entry in self._entries.values():
                if matches(entry.request, request):
                    return entry.next()
        missing = self._not_recorded(request)
        self._missing.append(missing)
        raise missing

    def address(self, provider: str, *, near: bool) -> str:
        """Return a base URL for a provider that has none configured: a fictitious host with the recorded chat path.

        Args:
            provider: the name of the provider.
            near: use a host name of this machine.
        """
        host = f"http://{provider}.{'localhost' if near else 'example'}"
        for entry in self._entries.values():
            path = entry.request.uri.partition(".example")[2].partition("?")[0]
            if entry.request.provider == provider and path.endswith(_CHAT_PATH):
                return host + path
        return host

    def _not_recorded(self, request: RecordedRequest) -> NotRecorded:
        """Return the error for a request, with the most similar recorded one. The error contains no prompt."""
        same_provider = [entry for entry in self._entries.values() if entry.request.provider == request.provider]
        same_uri = [
            entry
            for entry in same_provider
            if (entry.request.method, entry.request.uri) == (request.method, request.uri)
        ]
        if same_uri:
            entry = max(same_uri, key=lambda entry: _similarity(entry.request, request))
            differences = "; ".join(_differences(entry.request, request)) or "nothing"
            detail = f"the nearest request, in {entry.name}, differs in {differences}"
        else:
            recorded = "other paths" if same_provider else "no requests"
            detail = f"the cassettes have {recorded} of this provider"
        return errors.NotRecorded(
            f"{request.method} {request.uri} is not in a cassette: {detail}",
            provider=request.provider,
            hint=self._hint,
        )


def _key(request: RecordedRequest) -> str:
    """Return a key for exact matches. Other matches require a search: a different API key, or ignored options."""
    return json.dumps([request.method, request.uri, dict(request.credentials), request.body], sort_keys=True)


def _matches(recorded: RecordedRequest, request: RecordedRequest) -> bool:
    """Return whether two requests are the same, except for compatible API keys."""
    old, new = ((item.method, item.uri, item.body) for item in (recorded, request))
    return old == new and _keys_match(recorded, request)


def _keys_match(recorded: RecordedRequest, request: RecordedRequest) -> bool:
    """Return whether the API keys are equal, or one is missing and the other is valid.

    CI has no keys, and a local server may require none. Tests mark an invalid key with "wrong-".
    """
    if recorded.credentials == request.credentials:
        return True
    wrong = any("wrong-" in value for item in (recorded, request) for value in item.credentials.values())
    return not wrong and not (recorded.credentials and request.credentials)


def _matches_without_options(recorded: RecordedRequest, request: RecordedRequest) -> bool:
    """Return whether two requests match if the ignored options are removed."""
    old, new = replace(recorded, body=_comparable(recorded.body)), replace(request, body=_comparable(request.body))
    return _matches(old, new)


def _comparable(body: Any) -> Any:
    if not isinstance(body, dict):
        return body
    return {name: _comparable(value) for name, value in body.items() if name not in _IGNORED_OPTIONS}


def _similarity(recorded: RecordedRequest, request: RecordedRequest) -> float:
    old, new = (json.dumps(item.body, sort_keys=True, ensure_ascii=False) for item in (recorded, request))
    key_differs = not _keys_match(recorded, request)
    return SequenceMatcher(None, old, new, autojunk=False).quick_ratio() - 0.1 * key_differs


def _differences(recorded: RecordedRequest, request: RecordedRequest) -> list[str]:
    key = [] if _keys_match(recorded, request) else ["the key"]
    return (key + list(_body_differences(recorded.body, request.body, "")))[:_MAX_DIFFERENCES]


def _body_differences(old: Any, new: Any, path: str) -> Iterator[str]:
    """Yield the differences between two bodies. For a text, yield only the position of the first difference."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _body_differences(old.get(name), new.get(name), f"{path}.{name}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (old_item, new_item) in enumerate(zip(old, new, strict=True)):
            yield from _body_differences(old_item, new_item, f"{path}[{index}]")
    elif old != new:
        name = path.rpartition(".")[2]
        if old is None or new is None:
            yield f"{path} ({'only in the request' if old is None else 'only in the cassette'})"
        elif name in _SHOWN_FIELDS:
            yield f"{path} ({old!r} in the cassette, {new!r} in the request)"
        elif isinstance(old, str) and isinstance(new, str):
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
            yield f"{path} (from character {same} on)"
        else:
            yield path
