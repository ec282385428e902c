"""Answers from tapes instead of servers: the next one for this very request, or a word about the nearest.

Must never send, or let a request that is not on tape pass for a failure of its provider.
``net`` asks it before every request; ``deck`` inserts it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import takewhile
from typing import Any, Final

from .. import errors
from ..errors import LLMError, NotOnTape
from . import cassette
from .cassette import Asked, Said
from .recorder import Take

# How the server is to run, not what it is asked: it depends on the order in which requests happened to come.
_CIRCUMSTANCE: Final = ("num_ctx", "keep_alive")
_CHAT: Final = "/chat/completions"
_SHOWN: Final = ("model", "temperature", "max_tokens", "num_predict", "seed", "stream")


class Played:
    """The body of an answer on tape."""

    def __init__(self, said: Said) -> None:
        self._pieces = iter(said.pieces)
        self._end = said.end

    async def read(self) -> bytes:
        """The next piece, b"" at the end. Raises what the client met when it was recorded."""
        await asyncio.sleep(0)  # as a server's would, it lets others go on
        for piece in self._pieces:
            return piece
        if self._end:
            raise self._end
        return b""

    async def aclose(self) -> None:
        """Nothing to close."""


@dataclass(slots=True)
class _Track:
    """The answers to one request, in the order in which they came; the last one stays."""

    asked: Asked
    answers: list[Said]
    name: str
    played: int = 0

    def next(self) -> Said:
        self.played += 1
        return self.answers[min(self.played, len(self.answers)) - 1]


class Player:
    """Answers from tapes.

    Args:
        tapes: the text of each, by a name that tells where it is.

    Raises:
        NotConfigured: one of them is no tape.

    Attributes:
        providers: those that are on tape.
    """

    def __init__(self, tapes: Mapping[str, str]) -> None:
        self._tracks: dict[str, _Track] = {}
        self._missing: list[NotOnTape] = []
        for name, text in tapes.items():
            failed: LLMError | None = None
            try:
                for each in cassette.load(text)[1]:
                    track = self._tracks.setdefault(_key(each.asked), _Track(each.asked, [], name))
                    track.answers.append(each.said)
            except LLMError as error:
                failed = error
            if failed:
                raise errors.NotConfigured(f"{name}: {failed.what}", hint=failed.hint)
        self.providers = frozenset(track.asked.provider for track in self._tracks.values())

    @property
    def missing(self) -> list[str]:
        """The requests that were not on tape, in words."""
        return [str(error) for error in self._missing if not error.forgiven]

    @property
    def unplayed(self) -> list[str]:
        """What is on tape and was not asked for."""
        return [
            f"{track.name}: {track.asked.method} {track.asked.uri} ({len(track.answers) - track.played} left)"
            for track in self._tracks.values()
            if track.played < len(track.answers)
        ]

    def play(self, asked: Asked) -> Said:
        """The next answer to this request; its last one, once all were played. Raises NotOnTape."""
        very = self._tracks.get(_key(asked))
        if very:
            return very.next()
        for same in (_same, _alike):
            for track in self._tracks.values():
                if same(track.asked, asked):
                    return track.next()
        missing = self._nearest(asked)
        self._missing.append(missing)
        raise missing

    def address(self, provider: str, *, near: bool) -> str:
        """A base URL for a provider whose own nobody told: the path of its chat API on tape, at a host that is none."""
        host = f"http://{provider}.{'localhost' if near else 'example'}"
        for track in self._tracks.values():
            path = track.asked.uri.partition(".example")[2].partition("?")[0]
            if track.asked.provider == provider and path.endswith(_CHAT):
                return host + path
        return host

    def record(self, asked: Asked) -> Take:
        """It records nothing."""
        raise AssertionError(asked)

    def _nearest(self, asked: Asked) -> NotOnTape:
        """Says what was asked for, and what of it is on tape; no prompt."""
        here = [track for track in self._tracks.values() if track.asked.provider == asked.provider]
        near = [track for track in here if track.asked.uri == asked.uri and track.asked.method == asked.method]
        if near:
            track = max(near, key=lambda one: _likeness(one.asked, asked))
            said = f"the nearest, {track.name}, differs in {'; '.join(_differences(track.asked, asked)) or 'nothing'}"
        else:
            said = f"of this provider there is {'another page' if here else 'nothing'}"
        return errors.NotOnTape(
            f"{asked.method} {asked.uri} is not on tape: {said}",
            provider=asked.provider,
            hint="Record it: LLM_REPLAY_MODE=record, with the server there; or unset LLM_REPLAY",
        )


def _key(asked: Asked) -> str:
    """By which a request is found at once; one that is the same but for a key or a circumstance is searched."""
    return json.dumps([asked.method, asked.uri, dict(asked.credentials), asked.body], sort_keys=True)


def _same(on_tape: Asked, asked: Asked) -> bool:
    """The same request, with a key of the same class."""
    here, there = ((each.method, each.uri, each.body) for each in (on_tape, asked))
    return here == there and _same_key(on_tape, asked)


def _same_key(on_tape: Asked, asked: Asked) -> bool:
    """A key that is not there stands for any but a wrong one: CI has none, and a server may want none."""
    if on_tape.credentials == asked.credentials:
        return True
    wrong = any("wrong-" in value for each in (on_tape, asked) for value in each.credentials.values())
    return not wrong and not (on_tape.credentials and asked.credentials)


def _alike(on_tape: Asked, asked: Asked) -> bool:
    """The same but for circumstances."""
    return _same(replace(on_tape, body=_bare(on_tape.body)), replace(asked, body=_bare(asked.body)))


def _bare(body: Any) -> Any:
    if not isinstance(body, dict):
        return body
    return {name: _bare(value) for name, value in body.items() if name not in _CIRCUMSTANCE}


def _likeness(one: Asked, other: Asked) -> float:
    old, new = (json.dumps(each.body, sort_keys=True, ensure_ascii=False) for each in (one, other))
    return SequenceMatcher(None, old, new, autojunk=False).quick_ratio() - 0.1 * (not _same_key(one, other))


def _differences(on_tape: Asked, asked: Asked) -> list[str]:
    key = [] if _same_key(on_tape, asked) else ["the key"]
    return (key + list(_different(on_tape.body, asked.body, "")))[:5]


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
            yield f"{where} ({'only asked for' if old is None else 'only on tape'})"
        elif name in _SHOWN:
            yield f"{where} ({old!r} on tape, {new!r} asked for)"
        elif isinstance(old, str) and isinstance(new, str):
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
            yield f"{where} (from character {same} on)"
        else:
            yield where
