"""The player: it answers requests from cassettes.

A request that was not recorded raises NotRecorded, which names the nearest recorded one. It is not a failure of the
provider, so it causes no fallback.
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

# Options that configure the server. They depend on the order of earlier requests, so they are not compared.
_IGNORED_OPTIONS: Final = ("num_ctx", "keep_alive")
_CHAT_PATH: Final = "/chat/completions"
_HINT: Final = "Record it with LLM_REPLAY_MODE=record while the server is running, or unset LLM_REPLAY"
_MAX_DIFFERENCES: Final = 5
# The values of these fields may be in an error. Other fields may have text of a prompt.
_SHOWN_FIELDS: Final = ("model", "temperature", "max_tokens", "num_predict", "seed", "stream")


@dataclass(slots=True)
class _Track:
    """The responses to one request in the recorded order. ``name`` is the cassette."""

    request: RecordedRequest
    responses: list[RecordedResponse]
    name: str
    played: int = 0

    def next(self) -> RecordedResponse:
        """Return the next response, and the last one again after the end."""
        self.played += 1
        return self.responses[min(self.played, len(self.responses)) - 1]


class Player(Cassettes):
    """Cassettes that answer requests.

    Args:
        cassettes: the texts of the cassettes by their paths.
        hint: the hint of errors about requests that were not recorded.

    Raises:
        NotConfigured: a text is not a cassette.

    Attributes:
        providers: the names of the recorded providers.
    """

    def __init__(self, cassettes: Mapping[str, str], hint: str = _HINT) -> None:
        self._hint = hint
        self._tracks: dict[str, _Track] = {}
        self._missing: list[NotRecorded] = []
        for name, text in cassettes.items():
            try:
                for interaction in cassette.load(text)[1]:
                    request = interaction.request
                    track = self._tracks.setdefault(_key(request), _Track(request, [], name))
                    track.responses.append(interaction.response)
            except LLMError as error:
                raise errors.NotConfigured(f"{name}: {error.what}", hint=error.hint) from None
        self.providers = frozenset(track.request.provider for track in self._tracks.values())

    @property
    def missing(self) -> list[str]:
        """Return the errors of the requests that were not in a cassette."""
        return [str(error) for error in self._missing if not error.forgiven]

    @property
    def unplayed(self) -> list[str]:
        """Return a description of the requests with responses that were not played."""
        return [
            f"{track.name}: {track.request.method} {track.request.uri} ({len(track.responses) - track.played} left)"
            for track in self._tracks.values()
            if track.played < len(track.responses)
        ]

    def play(self, request: RecordedRequest) -> RecordedResponse:
        """Return the next response to this request, and the last one again after the end. Raise NotRecorded."""
        if exact := self._tracks.get(_key(request)):
            return exact.next()
        for matches in (_is_same, _is_similar):
            for track in self._tracks.values():
                if matches(track.request, request):
                    return track.next()
        missing = self._nearest(request)
        self._missing.append(missing)
        raise missing

    def address(self, provider: str, *, near: bool) -> str:
        """Return a base URL for a provider without one: a host that does not exist, with the recorded chat path."""
        host = f"http://{provider}.{'localhost' if near else 'example'}"
        for track in self._tracks.values():
            path = track.request.uri.partition(".example")[2].partition("?")[0]
            if track.request.provider == provider and path.endswith(_CHAT_PATH):
                return host + path
        return host

    def _nearest(self, request: RecordedRequest) -> NotRecorded:
        """Return the error for a request that was not recorded, with the nearest one. It repeats no prompt."""
        own = [track for track in self._tracks.values() if track.request.provider == request.provider]
        page = [track for track in own if (track.request.method, track.request.uri) == (request.method, request.uri)]
        if page:
            track = max(page, key=lambda track: _similarity(track.request, request))
            differences = "; ".join(_differences(track.request, request)) or "nothing"
            detail = f"the nearest, {track.name}, differs in {differences}"
        else:
            detail = f"of this provider there is {'another page' if own else 'nothing'}"
        return errors.NotRecorded(
            f"{request.method} {request.uri} is not in a cassette: {detail}",
            provider=request.provider,
            hint=self._hint,
        )


def _key(request: RecordedRequest) -> str:
    """Return the key of the exact request. Requests with another API key or ignored options are searched."""
    return json.dumps([request.method, request.uri, dict(request.credentials), request.body], sort_keys=True)


def _is_same(recorded: RecordedRequest, request: RecordedRequest) -> bool:
    """Return whether two requests are the same, with compatible API keys."""
    old, new = ((item.method, item.uri, item.body) for item in (recorded, request))
    return old == new and _has_same_key(recorded, request)


def _has_same_key(recorded: RecordedRequest, request: RecordedRequest) -> bool:
    """Return whether the API keys are compatible: equal, or one is missing and the other is not a wrong key.

    CI has no keys, and a local server may need none.
    """
    if recorded.credentials == request.credentials:
        return True
    wrong = any("wrong-" in value for item in (recorded, request) for value in item.credentials.values())
    return not wrong and not (recorded.credentials and request.credentials)


def _is_similar(recorded: RecordedRequest, request: RecordedRequest) -> bool:
    """Return whether two requests are the same without the ignored options."""
    old, new = replace(recorded, body=_comparable(recorded.body)), replace(request, body=_comparable(request.body))
    return _is_same(old, new)


def _comparable(body: Any) -> Any:
    if not isinstance(body, dict):
        return body
    return {name: _comparable(value) for name, value in body.items() if name not in _IGNORED_OPTIONS}


def _similarity(recorded: RecordedRequest, request: RecordedRequest) -> float:
    old, new = (json.dumps(item.body, sort_keys=True, ensure_ascii=False) for item in (recorded, request))
    other_key = not _has_same_key(recorded, request)
    return SequenceMatcher(None, old, new, autojunk=False).quick_ratio() - 0.1 * other_key


def _differences(recorded: RecordedRequest, request: RecordedRequest) -> list[str]:
    key = [] if _has_same_key(recorded, request) else ["the key"]
    return (key + list(_body_differences(recorded.body, request.body, "")))[:_MAX_DIFFERENCES]


def _body_differences(old: Any, new: Any, path: str) -> Iterator[str]:
    """Yield the differences between two bodies. Of a text only the position of the first one is shown."""
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
