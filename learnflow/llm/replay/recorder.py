"""Keeps what servers answer in cassettes. A disk's failure costs no answer."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from pathlib import Path

from .. import errors, events
from . import cassette
from .cassette import Interaction, RecordedRequest
from .transport import Cassettes, Recording


class Recorder(Cassettes):
    """Keeps what servers answer: ``DIR/<provider>/<page>.yaml``, a file for each request, numbered where it came again.

    What an earlier run kept of the same request is replaced.

    Args:
        folder: where; it is made.

    Raises:
        NotConfigured: it cannot be made.
    """

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

    def record(self, request: RecordedRequest) -> Recording:
        """Where the answer is kept; the file is written when it has ended, and numbered as it was asked."""
        name = _name(request)
        with self._lock:
            number = self._asked[name] = self._asked.get(name, 0) + 1
        file = self.folder / f"{name}{f'.{number:04}' if number > 1 else ''}.yaml"
        origin = {"kind": "recorded", "server": f"the {request.provider} provider of an application"}

        def keep(interaction: Interaction) -> None:
            try:
                if number == 1:
                    self._clear(file)
                _write(file, cassette.dump(origin, [interaction]))
            except Exception as error:  # noqa: BLE001  # the answer is good, whatever becomes of its recording
                events.emit(events.RecordingFailed(file=str(file), error=type(error).__name__))

        return Recording(keep, request)

    def _clear(self, first: Path) -> None:
        """What an earlier run kept of the same request; another process's of this run stays."""
        for old in first.parent.glob(f"{first.stem}.[0-9][0-9][0-9][0-9].yaml"):
            if old.stat().st_mtime < self._began:
                old.unlink(missing_ok=True)


def _name(asked: RecordedRequest) -> str:
    path = asked.uri.partition(".example/")[2]
    page = re.sub(r"[^\w-]+", "-", path.partition("?")[0]) or "root"
    if asked.body is not None or asked.credentials or "?" in path:
        said = json.dumps([path, asked.method, dict(asked.credentials), asked.body], sort_keys=True)
        page += f"-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
    return f"{asked.provider}/{page}"


def _write(file: Path, text: str) -> None:
    """All of it or nothing: a run that is killed leaves no half cassette."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)
