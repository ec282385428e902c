"""Answers are kept on tape while they are read: each piece as it comes, how it ended, and nothing that is secret.

Must never change what is read, or let a disk's failure cost an answer.
``net`` reads through it; ``deck`` inserts it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from .. import errors, events
from ..errors import LLMError
from . import cassette
from .cassette import Asked, Exchange


class Body(Protocol):
    """The bytes of an answer as they arrive."""

    async def read(self) -> bytes:
        """The next bytes, b"" at the end. Raises LLMError where the connection broke."""
        ...

    async def aclose(self) -> None:
        """Close the connection, or give it back where everything was read."""
        ...


class Take:
    """An answer that is being recorded.

    Args:
        keep: gets it when it has ended.
        asked: the request.

    Attributes:
        status, headers, pieces: the answer so far.
        secrets: what must not get onto the tape, and what stands there instead.
    """

    def __init__(self, keep: Callable[[Exchange], None], asked: Asked) -> None:
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.pieces: list[bytes] = []
        self.secrets: dict[bytes, bytes] = {}
        self._keep = keep
        self._asked = asked
        self._ended = False

    def end(self, *, failure: LLMError | None = None, left: bool = False) -> None:
        """It is over; only the first time counts."""
        if not self._ended:
            self._ended = True
            pieces = [self._discreet(piece) for piece in self.pieces]
            said = cassette.said(self.status, self.headers, pieces, failure=failure, left=left)
            self._keep(Exchange(self._asked, said))

    def _discreet(self, piece: bytes) -> bytes:
        for secret, instead in self.secrets.items():
            piece = piece.replace(secret, instead)
        return piece


class Copied:
    """A body that is kept while it is read."""

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


class Recorder:
    """Keeps what servers answer: ``DIR/<provider>/<page>.yaml``, a file for each request, numbered where it came again.

    What an earlier run kept of the same request is replaced.

    Args:
        folder: where; it is made.

    Raises:
        NotConfigured: it cannot be made.
    """

    providers = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._asked: dict[str, int] = {}
        self._began = time.time()
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"nothing can be recorded in {folder} ({type(error).__name__})"
        else:
            return
        raise errors.NotConfigured(what, hint="Set LLM_REPLAY to a folder that can be written")

    def play(self, asked: Asked) -> None:
        """It plays nothing."""

    def record(self, asked: Asked) -> Take:
        """Where the answer is kept; the file is written when it has ended, and numbered as it was asked."""
        name = _name(asked)
        with self._lock:
            number = self._asked[name] = self._asked.get(name, 0) + 1
        file = self.folder / f"{name}{f'.{number:04}' if number > 1 else ''}.yaml"
        origin = {"kind": "recorded", "server": f"the {asked.provider} provider of an application"}

        def keep(exchange: Exchange) -> None:
            try:
                if number == 1:
                    self._clear(file)
                _write(file, cassette.dump(origin, [exchange]))
            except OSError as error:
                events.emit(events.NotRecorded(file=str(file), error=type(error).__name__))

        return Take(keep, asked)

    def _clear(self, first: Path) -> None:
        """What an earlier run kept of the same request; another process's of this run stays."""
        for old in first.parent.glob(f"{first.stem}.[0-9][0-9][0-9][0-9].yaml"):
            if old.stat().st_mtime < self._began:
                old.unlink(missing_ok=True)


def _name(asked: Asked) -> str:
    path = asked.uri.partition(".example/")[2]
    page = re.sub(r"[^\w-]+", "-", path.partition("?")[0]) or "root"
    if asked.body is not None or asked.credentials or "?" in path:
        said = json.dumps([path, asked.method, dict(asked.credentials), asked.body], sort_keys=True)
        page += f"-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
    return f"{asked.provider}/{page}"


def _write(file: Path, text: str) -> None:
    """All of it or nothing: a run that is killed leaves no half tape."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)
