"""Answers from cassettes instead of servers: the next one for this very request, or a word about the nearest.

A request that is not recorded must not pass for a failure of its provider.
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

# How the server is to run, not what it is asked: it depends on the order in which requests happened to come.
_CIRCUMSTANCE: Final = ("num_ctx", "keep_alive")
_CHAT: Final = "/chat/completions"
_RECORD: Final = "Record it: LLM_REPLAY_MODE=record, with the server there; or unset LLM_REPLAY"
_SHOWN: Final = ("model", "temperature", "max_tokens", "num_predict", "seed", "stream")


@dataclass(slots=True)
class _Track:
    """The answers to one request, in the order in which they came; the last one stays."""

    request: RecordedRequest
    answers: list[RecordedResponse]
    name: str
    played: int = 0

    def next(self) -> RecordedResponse:
        self.played += 1
        return self.answers[min(self.played, len(self.answers)) - 1]


class Player(Cassettes):
    """Answers from cassettes.

    Args:
        cassettes: the text of each, by a name that tells where it is.
        hint: what to do about a request that is in none of them.

    Raises:
        NotConfigured: one of them is no cassette.

    Attributes:
        providers: those that were recorded.
    """

    def __init__(self, cassettes: Mapping[str, str], hint: str = _RECORD) -> None:
        self._hint = hint
        self._tracks: dict[str, _Track] = {}
        self._missing: list[NotRecorded] = []
        for name, text in cassettes.items():
            try:
                for each in cassette.load(text)[1]:
                    track = self._tracks.setdefault(_key(each.request), _Track(each.request, [], name))
                    track.answers.append(each.response)
            except LLMError as error:
                raise errors.NotConfigured(f"{name}: {error.what}", hint=error.hint) from None
        self.providers = frozenset(track.request.provider for track in self._tracks.values())

    @property
    def missing(self) -> list[str]:
        """The requests that were not in a cassette, in words."""
        return [str(error) for error in self._missing if not error.forgiven]

    @property
    def unplayed(self) -> list[str]:
        """What is in a cassette and was not asked for."""
        return [
            f"{track.name}: {track.request.method} {track.request.uri} ({len(track.answers) - track.played} left)"
            for track in self._tracks.values()
            if track.played < len(track.answers)
        ]

    def play(self, request: RecordedRequest) -> RecordedResponse:
        """The next answer to this request; its last one, once all were played. Raises NotRecorded."""
        very = self._tracks.get(_key(request))
        if very:
            return very.next()
        for same in (_same, _alike):
            for track in self._tracks.values():
                if same(track.request, request):
                    return track.next()
        missing = self._nearest(request)
        self._missing.append(missing)
        raise missing

    def address(self, provider: str, *, near: bool) -> str:
        """A base URL for a provider whose own nobody told: the recorded path of its chat API, at no host."""
        host = f"http://{provider}.{'localhost' if near else 'example'}"
        for track in self._tracks.values():
            path = track.request.uri.partition(".example")[2].partition("?")[0]
            if track.request.provider == provider and path.endswith(_CHAT):
                return host + path
        return host

    def _nearest(self, asked: RecordedRequest) -> NotRecorded:
        """Says what was asked for, and what of it is in a cassette; no prompt."""
        here = [track for track in self._tracks.values() if track.request.provider == asked.provider]
        near = [track for track in here if track.request.uri == asked.uri and track.request.method == asked.method]
        if near:
            track = max(near, key=lambda one: _likeness(one.request, asked))
            said = f"the nearest, {track.name}, differs in {'; '.join(_differences(track.request, asked)) or 'nothing'}"
        else:
            said = f"of this provider there is {'another page' if here else 'nothing'}"
        return errors.NotRecorded(
            f"{asked.method} {asked.uri} is not in a cassette: {said}",
            provider=asked.provider,
            hint=self._hint,
        )


def _key(asked: RecordedRequest) -> str:
    """By which a request is found at once; one that is the same but for a key or a circumstance is searched."""
    return json.dumps([asked.method, asked.uri, dict(asked.credentials), asked.body], sort_keys=True)


def _same(recorded: RecordedRequest, asked: RecordedRequest) -> bool:
    """The same request, with a key of the same class."""
    here, there = ((each.method, each.uri, each.body) for each in (recorded, asked))
    return here == there and _same_key(recorded, asked)


def _same_key(recorded: RecordedRequest, asked: RecordedRequest) -> bool:
    """A key that is not there stands for any but a wrong one: CI has none, and a server may want none."""
    if recorded.credentials == asked.credentials:
        return True
    wrong = any("wrong-" in value for each in (recorded, asked) for value in each.credentials.values())
    return not wrong and not (recorded.credentials and asked.credentials)


def _alike(recorded: RecordedRequest, asked: RecordedRequest) -> bool:
    """The same but for circumstances."""
    return _same(replace(recorded, body=_bare(recorded.body)), replace(asked, body=_bare(asked.body)))


def _bare(body: Any) -> Any:
    if not isinstance(body, dict):
        return body
    return {name: _bare(value) for name, value in body.items() if name not in _CIRCUMSTANCE}


def _likeness(one: RecordedRequest, other: RecordedRequest) -> float:
    old, new = (json.dumps(each.body, sort_keys=True, ensure_ascii=False) for each in (one, other))
    return SequenceMatcher(None, old, new, autojunk=False).quick_ratio() - 0.1 * (not _same_key(one, other))


def _differences(recorded: RecordedRequest, asked: RecordedRequest) -> list[str]:
    key = [] if _same_key(recorded, asked) else ["the key"]
    return (key + list(_different(recorded.body, asked.body, "")))[:5]


def _different(old: Any, new: Any, where: str) -> Iterator[str]:
    """Where two bodies differ; a text is not shown, only from which character on it is another one."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _different(old.get(name), new.get(name), f"{where}.{name}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for at, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _different(one, other, f"{where}[{at}]")
    elif old != new:
        name = where.rpartition(".")[2]
        if old is None or new is None:
            yield f"{where} ({'only asked for' if old is None else 'only in a cassette'})"
        elif name in _SHOWN:
            yield f"{where} ({old!r} in a cassette, {new!r} asked for)"
        elif isinstance(old, str) and isinstance(new, str):
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
            yield f"{where} (from character {same} on)"
        else:
            yield where
