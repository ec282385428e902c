"""Play the responses in cassettes (files of recorded requests and responses).

A request that was not recorded raises NotRecorded. The error describes the most similar recorded request.
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
from .scrubber import mask_secrets
from .transport import CassetteBackend

# Options that ``_matches_without_options`` ignores, because their values depend on earlier requests
_IGNORED_OPTIONS: Final = ("num_ctx", "keep_alive")
_CHAT_PATH: Final = "/chat/completions"
_HINT: Final = "Record it with LLM_REPLAY_MODE=record while the server is running, or unset LLM_REPLAY"
_MAX_DIFFERENCES: Final = 5
# Errors quote the values of these fields only, because other fields may contain text of the prompt.
_SHOWN_FIELDS: Final = ("model", "temperature", "max_tokens", "num_predict", "seed", "stream")


@dataclass(slots=True)
class _Entry:
    """A recorded request, its responses in order, and the path of its cassette."""

    request: RecordedRequest
    responses: list[RecordedResponse]
    path: str
    played_count: int = 0

    def play(self) -> RecordedResponse:
        """Return the next response. If all were returned before, return the last one again."""
        self.played_count += 1
        return self.responses[min(self.played_count, len(self.responses)) - 1]


class Player(CassetteBackend):
    """Returns the responses in cassettes instead of sending requests.

    Args:
        cassettes: the texts of the cassettes, by path.
        hint: the hint of NotRecorded errors.

    Raises:
        NotConfigured: a text is not a cassette.

    Attributes:
        providers: the names of the recorded providers.
    """

    def __init__(self, cassettes: Mapping[str, str], hint: str = _HINT) -> None:
        self._hint = hint
        self._entries: dict[str, _Entry] = {}
        self._missing: list[NotRecorded] = []
        for path, text in cassettes.items():
            try:
                for interaction in cassette.load(text)[1]:
                    request = replace(interaction.request, body=mask_secrets(interaction.request.body))
                    entry = self._entries.setdefault(_request_key(request), _Entry(request, [], path))
                    entry.responses.append(interaction.response)
            except LLMError as error:
                raise errors.NotConfigured(f"{path}: {error.what}", hint=error.hint) from None
        self.providers = frozenset(entry.request.provider for entry in self._entries.values())

    @property
    def missing(self) -> list[str]:
        """Return the messages of the NotRecorded errors, except those after which the router tried another provider."""
        return [str(error) for error in self._missing if not error.was_skipped]

    @property
    def unplayed(self) -> list[str]:
        """Return a line for each recorded request that has unplayed responses."""
        return [
            f"{entry.path}: {entry.request.method} {entry.request.uri} ({unplayed_count} left)"
            for entry in self._entries.values()
            if (unplayed_count := len(entry.responses) - entry.played_count) > 0
        ]

    def play(self, request: RecordedRequest) -> RecordedResponse:
        """Return the next response to a request. Raise NotRecorded if no recorded request matches.

        Prefer an identical request. The second choice is identical, except that an API key may be missing
        (``_credentials_match``). The third choice may also differ in ``_IGNORED_OPTIONS``.
        """
        if exact := self._entries.get(_request_key(request)):
            return exact.play()
        for matches in (_matches, _matches_without_options):
            for entry in self._entries.values():
                if matches(entry.request, request):
                    return entry.play()
        error = self._not_recorded(request)
        self._missing.append(error)
        raise error

    def base_url(self, provider: str, *, local: bool) -> str:
        """Return a fictitious URL for a provider. ``local`` selects a host on this machine.

        The URL has a fictitious host. If chat requests were recorded, their path follows.
        """
        host = f"http://{provider}.{'localhost' if local else 'example'}"
        for entry in self._entries.values():
            path = entry.request.uri.partition(".example")[2].partition("?")[0]
            if entry.request.provider == provider and path.endswith(_CHAT_PATH):
                return host + path
        return host

    def _not_recorded(self, request: RecordedRequest) -> NotRecorded:
        """Return the error for a request.

        The error describes the most similar recorded request, and quotes no prompt.
        """
        target = request.method, request.uri
        same_target = [entry for entry in self._entries.values() if (entry.request.method, entry.request.uri) == target]
        if same_target:
            entry = max(same_target, key=lambda entry: _similarity(entry.request, request))
            differences = "; ".join(_differences(entry.request, request)) or "nothing"
            detail = f"the nearest request, in {entry.path}, differs in {differences}"
        else:
            recorded = "other paths" if request.provider in (self.providers or ()) else "no requests"
            detail = f"the cassettes have {recorded} of this provider"
        return errors.NotRecorded(
            f"{request.method} {request.uri} is not in a cassette: {detail}",
            provider=request.provider,
            hint=self._hint,
        )


def _request_key(request: RecordedRequest) -> str:
    """Return a string that is the same for identical requests."""
    return json.dumps([request.method, request.uri, dict(request.credentials), request.body], sort_keys=True)


def _matches(recorded: RecordedRequest, request: RecordedRequest) -> bool:
    """Return whether method, URI and body are identical, and the API keys match."""
    old, new = ((item.method, item.uri, item.body) for item in (recorded, request))
    return old == new and _credentials_match(recorded, request)


def _credentials_match(recorded: RecordedRequest, request: RecordedRequest) -> bool:
    """Return whether the API keys match. A missing key matches every key, because CI replays without keys.

    Tests use invalid keys with "wrong-" in them. Such a key matches only itself.
    """
    if recorded.credentials == request.credentials:
        return True
    has_wrong_key = any("wrong-" in value for item in (recorded, request) for value in item.credentials.values())
    return not has_wrong_key and not (recorded.credentials and request.credentials)


def _matches_without_options(recorded: RecordedRequest, request: RecordedRequest) -> bool:
    """Return whether two requests match, apart from ``_IGNORED_OPTIONS``."""
    old, new = (
        replace(recorded, body=_remove_ignored(recorded.body)),
        replace(request, body=_remove_ignored(request.body)),
    )
    return _matches(old, new)


def _remove_ignored(body: Any) -> Any:
    if not isinstance(body, dict):
        return body
    return {name: _remove_ignored(value) for name, value in body.items() if name not in _IGNORED_OPTIONS}


def _similarity(recorded: RecordedRequest, request: RecordedRequest) -> float:
    old, new = (json.dumps(item.body, sort_keys=True, ensure_ascii=False) for item in (recorded, request))
    key_differs = not _credentials_match(recorded, request)
    return SequenceMatcher(None, old, new, autojunk=False).quick_ratio() - 0.1 * key_differs


def _differences(recorded: RecordedRequest, request: RecordedRequest) -> list[str]:
    key_difference = [] if _credentials_match(recorded, request) else ["the key"]
    return (key_difference + list(_body_differences(recorded.body, request.body, "")))[:_MAX_DIFFERENCES]


def _body_differences(old: Any, new: Any, path: str) -> Iterator[str]:
    """Describe each difference by its path in the JSON body. Quote the values of ``_SHOWN_FIELDS`` only."""
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
            common_chars = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
            yield f"{path} (from character {common_chars} on)"
        else:
            yield path
