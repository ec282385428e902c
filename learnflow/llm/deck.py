"""The deck that plays tapes instead of asking servers, and the one that makes them while servers are asked.

Must never send, or let a request that is not on tape pass for a failure of its provider.
``net`` asks it before every request; the adapter inserts the one that ``LLM_REPLAY`` names.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar

from . import errors, events, tape
from .errors import LLMError
from .tape import Asked, Exchange, Said

Mode = Literal["play", "record"]
D = TypeVar("D", bound="Deck")

# How the server is to run, not what it is asked: it depends on the order in which requests happened to come.
_CIRCUMSTANCE: Final = ("num_ctx", "keep_alive")
_SHOWN: Final = ("model", "temperature", "max_tokens", "num_predict", "seed", "stream")


class Body(Protocol):
    """The bytes of an answer as they arrive."""

    async def read(self) -> bytes:
        """The next bytes, b"" at the end. Raises LLMError where the connection broke."""
        ...

    async def aclose(self) -> None:
        """Close the connection, or give it back where everything was read."""
        ...


class Deck(Protocol):
    """What ``net`` asks before it asks a server.

    Attributes:
        providers: those that are on tape, where only tapes are played; None where servers are asked.
    """

    @property
    def providers(self) -> frozenset[str] | None:
        """Those that are on tape."""
        ...

    def play(self, asked: Asked) -> Said | None:
        """The answer that is on tape; None to ask the server. Raises NotOnTape."""
        ...

    def record(self, asked: Asked) -> Take:
        """Where the server's answer is to be kept."""
        ...


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


class Copied:
    """A body that is kept while it is read: each piece as it comes, and how it ended."""

    def __init__(self, body: Body, take: Take) -> None:
        self._body = body
        self._take = take

    async def read(self) -> bytes:
        """The next bytes, b"" at the end."""
        try:
            data = await self._body.read()
        except LLMError as error:
            self._take.end(failure=error)
            raise
        if data:
            self._take.pieces.append(data)
        else:
            self._take.end()
        return data

    async def aclose(self) -> None:
        """Close it; what was not read is not on tape, which says so."""
        self._take.end(left=True)
        await self._body.aclose()


class Take:
    """An answer that is being recorded; ``keep`` gets it when it has ended."""

    def __init__(self, keep: Callable[[Exchange], None], asked: Asked) -> None:
        self.pieces: list[bytes] = []
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self._keep = keep
        self._asked = asked
        self._ended = False

    def end(self, *, failure: LLMError | None = None, left: bool = False) -> None:
        """It is over; only the first time counts."""
        if self._ended:
            return
        self._ended = True
        said = tape.said(self.status or 0, self.headers, self.pieces, failure=failure, left=left)
        self._keep(Exchange(self._asked, replace(said, status=self.status)))


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
        missing: the requests that were not on tape, in words.
    """

    def __init__(self, tapes: Mapping[str, str]) -> None:
        self._tracks: list[_Track] = []
        self.missing: list[str] = []
        for name, text in tapes.items():
            failed: LLMError | None = None
            try:
                for each in tape.load(text)[1]:
                    self._add(each, name)
            except LLMError as error:
                failed = error
            if failed:
                raise errors.NotConfigured(f"{name}: {failed.what}", hint=failed.hint)

    @property
    def providers(self) -> frozenset[str]:
        """Those that are on tape."""
        return frozenset(track.asked.provider for track in self._tracks)

    @property
    def unplayed(self) -> list[str]:
        """What is on tape and was not asked for."""
        return [
            f"{track.name}: {track.asked.method} {track.asked.uri} ({len(track.answers) - track.played} left)"
            for track in self._tracks
            if track.played < len(track.answers)
        ]

    def play(self, asked: Asked) -> Said:
        """The next answer to this request; its last one, once all were played. Raises NotOnTape."""
        for same in (_same, _alike):
            for track in self._tracks:
                if same(track.asked, asked):
                    return track.next()
        missing = self._missing(asked)
        self.missing.append(str(missing))
        raise missing

    def record(self, asked: Asked) -> Take:
        """It records nothing."""
        raise AssertionError(asked)

    def _add(self, each: Exchange, name: str) -> None:
        for track in self._tracks:
            if track.asked == each.asked:
                track.answers.append(each.said)
                return
        self._tracks.append(_Track(each.asked, [each.said], name))

    def _missing(self, asked: Asked) -> LLMError:
        """Says what was asked for, and what of it is on tape; no prompt."""
        here = [track for track in self._tracks if track.asked.provider == asked.provider]
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


class Recorder:
    """Keeps what servers answer: ``DIR/<provider>/<page>.yaml``, a file for each request, its answers in order.

    What an earlier run kept of the same request is replaced.

    Args:
        folder: where; it is made.

    Raises:
        NotConfigured: it cannot be made.
    """

    providers = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept: dict[str, list[Exchange]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"nothing can be recorded in {folder} ({type(error).__name__})"
        else:
            return
        raise errors.NotConfigured(what, hint="Set LLM_REPLAY to a folder that can be written")

    @property
    def files(self) -> set[Path]:
        """What was kept so far."""
        return {self.folder / name for name in self._kept}

    def play(self, asked: Asked) -> None:
        """It plays nothing."""

    def record(self, asked: Asked) -> Take:
        """Where the answer is kept; the file is written when it has ended."""
        return Take(self._keep, asked)

    def _keep(self, exchange: Exchange) -> None:
        name = _file_name(exchange.asked)
        kept = self._kept.setdefault(name, [])
        kept.append(exchange)
        origin = {"kind": "recorded", "server": f"the {exchange.asked.provider} provider of an application"}
        try:
            _write(self.folder / name, tape.dump(origin, kept))
        except OSError as error:
            events.emit(events.NotRecorded(file=str(self.folder / name), error=type(error).__name__))


def inserted(folder: Path | None, mode: Mode) -> Deck | None:
    """The deck for the folder of ``LLM_REPLAY``, the same one for everybody in this process; None for no folder.

    Raises:
        NotConfigured: it cannot be played, or made.
    """
    if _instead:
        return _instead[-1]
    if folder is None:
        return None
    folder = folder.absolute()
    if (folder, mode) not in _decks:
        _decks[folder, mode] = Player(tapes(folder)) if mode == "play" else Recorder(folder)
        events.emit(events.Replaying(folder=str(folder), mode=mode))
    return _decks[folder, mode]


@contextmanager
def instead(deck: D) -> Iterator[D]:
    """Whatever the environment says, providers that are made inside use this deck. For tests."""
    _instead.append(deck)
    try:
        yield deck
    finally:
        _instead.remove(deck)


def forget() -> None:
    """The tapes are played from their beginning again. For tests."""
    _decks.clear()


_instead: list[Deck] = []
_decks: dict[tuple[Path, Mode], Deck] = {}


def tapes(folder: Path) -> dict[str, str]:
    """The texts of the tapes of a folder, or of the one that is named. Raises NotConfigured where there is none."""
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.yaml"))
    try:
        found = {str(file): file.read_text(encoding="utf-8") for file in files}
    except (OSError, UnicodeError) as error:
        found, what = {}, f"the tapes in {folder} cannot be read ({type(error).__name__})"
    else:
        what = f"there is no tape in {folder}"
    if not found:
        raise errors.NotConfigured(
            what, hint="Set LLM_REPLAY to a folder with tapes, or make them with LLM_REPLAY_MODE=record"
        )
    return found


def _file_name(asked: Asked) -> str:
    path = asked.uri.partition(".example/")[2]
    page = re.sub(r"[^\w.-]+", "-", path.partition("?")[0]) or "root"
    if asked.body is not None or asked.credentials or "?" in path:
        said = json.dumps([path, asked.method, dict(asked.credentials), asked.body], sort_keys=True)
        page += f"-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
    return f"{asked.provider}/{page}.yaml"


def _write(file: Path, text: str) -> None:
    """All of it or nothing: a run that is killed leaves no half tape."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def _same(on_tape: Asked, asked: Asked) -> bool:
    """The same request, with a key of the same class."""
    here, there = ((each.method, each.uri, each.body) for each in (on_tape, asked))
    return here == there and _same_key(on_tape, asked)


def _same_key(on_tape: Asked, asked: Asked) -> bool:
    """Without a key, the one on tape is assumed, unless that is a wrong one."""
    wrong = any("wrong-" in value for value in on_tape.credentials.values())
    return on_tape.credentials == asked.credentials or not (asked.credentials or wrong)


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
