"""Record responses in cassettes, which are YAML files. A failed write does not fail the request."""

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
from .transport import CassetteBackend, Recording


class Recorder(CassetteBackend):
    """Records each request and its response in a cassette, ``FOLDER/<provider>/<path and hash>.yaml``.

    Cassettes of a repeated request are numbered. A cassette replaces those that earlier runs recorded for the same
    request.

    Args:
        folder: the folder of the cassettes. It is created if missing.

    Raises:
        NotConfigured: the folder cannot be created.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._counts: dict[str, int] = {}
        self._started_at = time.time()
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"cassettes cannot be written to {folder} ({type(error).__name__})"
        else:
            return
        raise errors.NotConfigured(what, hint="Set LLM_REPLAY to a folder that can be written")

    def record(self, request: RecordedRequest) -> Recording:
        """Start to record the response to a request.

        The cassettes of a repeated request are numbered in the order of ``record`` calls.
        """
        name = _name(request)
        with self._lock:
            number = self._counts[name] = self._counts.get(name, 0) + 1
        file = self.folder / f"{name}{f'.{number:04}' if number > 1 else ''}.yaml"
        origin = {"kind": "recorded", "server": f"the {request.provider} provider of an application"}

        def write(interaction: Interaction) -> None:
            try:
                if number == 1:
                    self._remove_old(file)
                _write_atomically(file, cassette.dump(origin, [interaction]))
            except Exception as error:  # noqa: BLE001  # a failed recording must not fail the request
                events.emit(events.RecordingFailed(file=str(file), error=type(error).__name__))

        return Recording(write, request)

    def _remove_old(self, file: Path) -> None:
        """Remove the numbered cassettes of the same request from earlier runs."""
        for path in file.parent.glob(f"{file.stem}.[0-9][0-9][0-9][0-9].yaml"):
            if path.stat().st_mtime < self._started_at:  # newer files belong to another process of this run
                path.unlink(missing_ok=True)


def _name(request: RecordedRequest) -> str:
    """Return the name of the cassette: provider, path, and a hash if the request has a body, credentials or a query."""
    path = request.uri.partition(".example/")[2]
    name = re.sub(r"[^\w-]+", "-", path.partition("?")[0]) or "root"
    if request.body is not None or request.credentials or "?" in path:
        content = json.dumps([path, request.method, dict(request.credentials), request.body], sort_keys=True)
        name += f"-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    return f"{request.provider}/{name}"


def _write_atomically(file: Path, text: str) -> None:
    """Write a temporary file and rename it, so that a killed process leaves no partial cassette."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)
