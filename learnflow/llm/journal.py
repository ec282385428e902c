"""The journal: the text of unfinished answers in files, so that a later call in any process continues them.

A file has the text of one answer, and is locked by the request that writes it. The lock ends with its process. The file
is deleted before a finished answer is returned, so that no later call uses it. Only answers of text are recorded. A
file contains a digest of the request, not the prompt.

Format: a line with the version, then lines of a CRC-32 and JSON: the digest, then ``[tokens, text]`` for each record.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import secrets
import stat
import time
import zlib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from . import errors, events
from .base import Call, Prior
from .completion import Completion, Event, Resumed, TextDelta
from .errors import LLMError
from .process import register
from .settings import Settings
from .stream import Emit, Relay, Work

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Run: TypeAlias = Callable[[Call, Emit], Coroutine[Any, Any, Completion]]

_MAGIC: Final = b"learnflow-llm journal "
_VERSION: Final = _MAGIC + b"1\n"
_NAME: Final = re.compile(r"\.?[0-9a-f]{32}-[0-9a-f]{16}\.journal")  # with a dot until its header is written
_MAX_FILE_BYTES: Final = 16 * 2**20
_MAX_UNWRITTEN_CHARS: Final = 512  # at most 2 KiB
_MAX_UNWRITTEN_S: Final = 1.0
_UNRELATED: Final = ("timeout", "session", "resume", "headers")  # keywords that do not change the answer
# After these errors, no provider can continue a text.
_NOT_CONTINUABLE: Final = (errors.NotContinued, errors.EmptyAnswer, errors.RequestError, errors.CapabilityError)

_files: Final = register("open files of the journal", set["JournalFile"]())
_warned: Final = register("warnings of the journal", set[tuple[Path, str]](), learned=True)
_recording: Final = ContextVar("_recording", default=False)


class JournalFile:
    """An open file of the journal.

    Args:
        path: its path.
        descriptor: its file descriptor.
        sync: write each record to the disk (fsync).

    Attributes:
        text: the text that it had when it was read.
        tokens: the tokens of this text.
    """

    def __init__(self, path: Path, descriptor: int, *, sync: bool = False) -> None:
        self.path, self.sync = path, sync
        self.descriptor = descriptor  # -1 after it was closed, and in the child of a fork
        self.text, self.tokens = "", 0
        self._header_bytes = self._bytes = 0
        self._is_locked = False
        self._unwritten: list[str] = []
        self._unwritten_chars = 0
        self._timer: asyncio.TimerHandle | None = None
        _files.add(self)

    def lock(self) -> None:
        """Lock the file. Raise OSError if it is locked or was deleted."""
        fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(self.descriptor).st_nlink:
            raise FileNotFoundError
        self._is_locked = True

    def read(self, digest: str, ttl_s: float) -> None:
        """Read the text of the request with this digest. A record that is incomplete at the end is ignored.

        Raises:
            OSError: the file is not one of the journal.
            ValueError: the file cannot be used.
        """
        status = os.fstat(self.descriptor)
        is_own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        data = os.pread(self.descriptor, min(status.st_size, _MAX_FILE_BYTES), 0) if is_own else b"-"
        if not _MAGIC.startswith(data[: len(_MAGIC)]):
            raise OSError(0, "it is not a file of this user's journal")
        if abs(time.time() - status.st_mtime) > ttl_s:
            raise ValueError("it is older than LLM_JOURNAL_TTL")
        if not data.startswith(_VERSION):
            raise ValueError("it is damaged, or of another version")
        try:
            (stored, self._header_bytes), *records = _decode(data)
            self.text = "".join([text for (_, text), _ in records])
            self.tokens = sum(tokens for (tokens, _), _ in records)
        except (ValueError, TypeError, RecursionError):
            stored = None
        if stored != digest:
            raise ValueError("it is damaged")
        self._bytes = records[-1][1] if records else self._header_bytes

    def begin(self, digest: str) -> None:
        """Write the header of a new file. The file is complete when it gets its name."""
        header = _VERSION + _encode(digest)
        self._write(header)
        self._header_bytes = self._bytes = len(header)
        self.path = self.path.rename(self.path.with_name(self.path.name.removeprefix(".")))

    def add(self, text: str) -> None:
        """Record text. It is written within a second, together with the text that follows."""
        self._unwritten.append(text)
        self._unwritten_chars += len(text)
        if self._unwritten_chars >= _MAX_UNWRITTEN_CHARS:
            self.write()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_MAX_UNWRITTEN_S, self.write)

    def write(self) -> None:
        """Write the recorded text. After a failure, the rest of the answer is not recorded."""
        record = _encode([len(self._unwritten), "".join(self._unwritten)]) if self._unwritten else b""
        self._drop_unwritten()
        if record and self.descriptor >= 0 and self._bytes:
            try:
                self._write(record)
                self._bytes += len(record)
            except OSError as error:
                _warn(self.path.parent, f"it cannot be written ({error.strerror})")
                self._bytes = 0
            if self.sync:
                with suppress(RuntimeError):  # without an event loop, the request was dropped
                    asyncio.get_running_loop().run_in_executor(None, _sync, self.path)

    def forget_text(self) -> None:
        """Drop all text, because the answer starts from the beginning."""
        self._drop_unwritten()
        if self.descriptor >= 0 and self._bytes != self._header_bytes:
            try:
                os.ftruncate(self.descriptor, self._header_bytes)
                self._bytes = self._header_bytes
            except OSError:
                self.close(deletes=True)  # the text must not be used again

    def close(self, *, deletes: bool = False) -> None:
        """Delete the file if required or if it has no text, and close it, which ends its lock."""
        if not deletes:
            self.write()
            deletes = 0 < self._bytes == self._header_bytes
        self._drop_unwritten()
        _files.discard(self)
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            try:
                if deletes and self._is_locked:
                    self.path.unlink(missing_ok=True)
            except OSError as error:
                _warn(self.path.parent, f"a file cannot be deleted ({error.strerror})")
            os.close(descriptor)

    def _write(self, data: bytes) -> None:
        if os.pwrite(self.descriptor, data, self._bytes) < len(data):
            raise OSError(0, "the disk is full")

    def _drop_unwritten(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer, self._unwritten, self._unwritten_chars = None, [], 0


class Journal:
    """A folder with the text of unfinished answers.

    Args:
        folder: the folder.
        sync: write each record to the disk (fsync).
        ttl_s: a file that was not written for so many seconds is not used.
    """

    def __init__(self, folder: Path, *, sync: bool, ttl_s: float) -> None:
        self.folder, self.sync, self.ttl_s = folder, sync, ttl_s

    def open(self, digest: str) -> JournalFile | None:
        """Open and lock a file with the text of this request, or a new one. Return None if that fails."""
        try:
            self.folder.mkdir(0o700, parents=True, exist_ok=True)
            if stat.S_IMODE(self.folder.stat().st_mode) & 0o077:
                _warn(self.folder, "other users have access to it. Set its mode to 700")
            for path in self.paths():
                if path.name.startswith(digest) or self._is_old(path):
                    file = self.reopen(path, digest)
                    if file:
                        return file
            return self._create(digest)
        except OSError as error:
            _warn(self.folder, f"it cannot be used ({error.strerror})")
            return None

    def paths(self) -> list[Path]:
        """Return the paths of all files, sorted by name. Raise OSError if the folder cannot be read."""
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))

    def reopen(self, path: Path, digest: str | None = None, *, locks: bool = True) -> JournalFile | None:
        """Open a file. Return None if it is in use or cannot be used. A file that cannot be used is deleted.

        Args:
            path: its path.
            digest: the digest of the request; None for any.
            locks: lock the file. Without a lock, it is not deleted.
        """
        file, is_useless = None, False
        try:
            descriptor = os.open(path, (os.O_RDWR if locks else os.O_RDONLY) | os.O_NOFOLLOW | os.O_NONBLOCK)
            file = JournalFile(path, descriptor, sync=self.sync)
            if locks:
                file.lock()
            file.read(digest or path.name[:32], self.ttl_s)
        except (FileNotFoundError, BlockingIOError):
            pass
        except OSError as error:
            _warn(path, f"it is not used ({error.strerror})")
        except ValueError as error:
            is_useless = True
            _warn(path, f"it is not used: {error}")
        else:
            return file
        if file:
            file.close(deletes=is_useless)
        return None

    def _create(self, digest: str) -> JournalFile:
        path = self.folder / f".{digest}-{secrets.token_hex(8)}.journal"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        file = JournalFile(path, descriptor, sync=self.sync)
        try:
            file.lock()
            file.begin(digest)
        except OSError:
            file.close(deletes=True)
            raise
        return file

    def _is_old(self, path: Path) -> bool:
        with suppress(OSError):
            return abs(time.time() - path.lstat().st_mtime) > self.ttl_s
        return False


class _Recorder(Relay):
    """Records the text of an answer. It emits the text of the file before the first new text.

    Args:
        emit: receives the events.
        file: the file of the answer.
    """

    def __init__(self, emit: Emit, file: JournalFile) -> None:
        super().__init__(emit)
        self.resumed = False
        self._file = file

    def __call__(self, event: Event) -> None:
        """Record and forward the event."""
        if isinstance(event, TextDelta):
            self._file.add(event.text)
        elif isinstance(event, Resumed) and event.source == "journal":
            self.resumed = True
            self._emit(TextDelta(self._file.text))
        self._emit(event)

    def forget_text(self) -> None:
        """See ``Emit``."""
        self._file.forget_text()


def configured(common: Settings) -> Journal | None:
    """Return the journal in ``LLM_JOURNAL``; None if it is unset."""
    folder = common.llm_journal
    if folder and fcntl is None:
        _warn(folder, "the journal is not supported on this system")
        return None
    return Journal(folder, sync=common.llm_journal_sync, ttl_s=common.llm_journal_ttl) if folder else None


def record(journal: Journal | None, run: Run, call: Call) -> Work:
    """Return the work of a call. With a journal, its text is recorded, and recorded text is continued."""
    if journal is None or call.format_keyword:
        return partial(run, call)
    return partial(_run_recorded, journal, run, replace(call, is_recorded=True))


async def _run_recorded(journal: Journal, run: Run, call: Call, emit: Emit) -> Completion:
    """Run a call. Keep its file after an error or a cancellation, unless the caller stopped the stream."""
    digest = None if _recording.get() else _digest(call)  # a router inside an application's provider records nothing
    file = journal.open(digest) if digest else None
    if file is None:
        return await run(call, emit)
    keeps, token = True, _recording.set(True)
    try:
        completion = await _run_with_file(run, call, file, emit)
        keeps = False
    except LLMError as error:
        keeps = not (error.discards_text or error.finished)
        raise
    except asyncio.CancelledError:
        keeps = not emit.stopped
        raise
    finally:
        file.close(deletes=not keeps)
        with suppress(ValueError):  # the coroutine was closed in another context
            _recording.reset(token)
    if journal.sync:
        await asyncio.to_thread(_sync, file.path)
    return completion


async def _run_with_file(run: Run, call: Call, file: JournalFile, emit: Emit) -> Completion:
    """Continue the text of the file. Begin the answer if there is none, or if no provider can continue it."""
    recorder, continues = _Recorder(emit, file), bool(file.text.strip())
    prior = replace(call.prior or Prior(), recorded=file.text, tokens=file.tokens)
    try:
        return await run(replace(call, prior=prior) if continues else call, recorder)
    except LLMError as error:
        is_shown = not call.buffered and (recorder.resumed or not continues)
        restarts = continues and (error.discards_text or isinstance(error, _NOT_CONTINUABLE))
        if is_shown or not (restarts or isinstance(error, errors.ThinkingLeaked)):
            raise
    file.forget_text()
    return await run(call, recorder)


def _digest(call: Call) -> str | None:
    """Return a digest of the request; None if it is no JSON, so that it will be refused."""
    prompt = [{"role": "user", "content": call.prompt}] if isinstance(call.prompt, str) else call.prompt
    options = {name: value for name, value in call.options.items() if value is not None and name not in _UNRELATED}
    values = prompt, call.model, call.temperature, call.max_tokens, call.prior and call.prior.after, options
    with suppress(TypeError, ValueError):
        data = json.dumps(values, sort_keys=True, default=dict).encode()
        return hashlib.blake2b(data, digest_size=16).hexdigest()
    return None


def _encode(value: Any) -> bytes:
    line = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return b"%08x %s\n" % (zlib.crc32(line), line)


def _decode(data: bytes) -> Iterator[tuple[Any, int]]:
    """Yield each value behind the version, and the position of its end. Raise ValueError if a line is damaged."""
    start = len(_VERSION)
    while end := data.find(b"\n", start) + 1:
        checksum, _, line = data[start : end - 1].partition(b" ")
        if checksum != b"%08x" % zlib.crc32(line):
            raise ValueError
        yield json.loads(line.decode("utf-8", "surrogatepass")), end
        start = end


def _sync(path: Path) -> None:
    """Write a file and its folder to the disk. The file may have been deleted."""
    for item in (path, path.parent):
        try:
            descriptor = os.open(item, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            pass
        except OSError as error:
            _warn(path.parent, f"it cannot be written to the disk ({error.strerror})")


def _warn(path: Path, fault: str) -> None:
    """Emit a warning, once for each path and fault."""
    if (path, fault) not in _warned:
        _warned.add((path, fault))
        events.emit(events.JournalFailed(file=str(path), fault=fault))


def _close_inherited() -> None:
    """Close the files in the child of a fork. Otherwise their locks would not end with the parent."""
    for file in _files:
        os.close(file.descriptor)
        file.descriptor = -1
    _files.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
