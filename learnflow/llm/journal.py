"""The journal: files with the text of unfinished answers. A later identical call, in any process, continues the text.

A request locks its file. The system releases the lock when the process ends. The file is deleted before a finished
answer is returned. Requests with tools or for JSON are not recorded. A file's name begins with a digest of the request.
The file does not contain the prompt.

Each line is a record: a checksum and a JSON list of pieces of the text. The checksum also covers the version of this
format and the digest of the request. A line of another version or request therefore counts as damaged.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from . import errors, events
from .base import Call
from .completion import Completion, Event, Resumed, TextDelta
from .errors import LLMError
from .process import after_fork, register
from .settings import Settings
from .stream import Emit, Relay, Work

RunCall: TypeAlias = Callable[[Call, Emit], Coroutine[Any, Any, Completion]]
"""A coroutine function that runs a call."""

_FILE_GLOB: Final = f"{'[0-9a-f]' * 32}-{'[0-9a-f]' * 16}.journal"  # a digest of the request, and a random number
_MAX_FILE_BYTES: Final = 16 * 2**20
_MAX_UNWRITTEN_CHARS: Final = 512  # at most 2 KiB in UTF-8
_MAX_UNWRITTEN_S: Final = 1.0
_IGNORED_KEYWORDS: Final = ("timeout", "session", "headers")  # keywords that do not change the answer
# After one of these errors, no provider can continue the recorded text.
_NOT_CONTINUABLE: Final = (errors.NotContinued, errors.EmptyAnswer, errors.RequestError, errors.CapabilityError)

_files: Final = register("open files of the journal", set["JournalFile"]())
_warned: Final = register("warnings of the journal", set[tuple[Path, str]](), learned=True)
_is_recording: Final = ContextVar("_is_recording", default=False)


class JournalFile(Relay):
    """A file of the journal, locked by one request. The object records text, and forwards all events to ``emit``.

    The file can contain text of an earlier call. This text is emitted when ``Resumed`` arrives, because this event
    shows that a provider continues the text.

    Args:
        sync: whether to write each record to the disk (fsync).
        flags: further flags for ``os.open``.

    Attributes:
        pieces: the pieces of the earlier text.
        has_emitted: whether new text was emitted.

    Raises:
        OSError: the file is locked, was deleted, or is not a regular file of this user.
    """

    def __init__(self, path: Path, emit: Emit, *, sync: bool = False, flags: int = 0) -> None:
        import fcntl  # noqa: PLC0415  # Windows does not have it

        super().__init__(emit)
        self.path, self.has_emitted = path, False
        self._sync, self._is_scheduled = sync, False
        self._unwritten: list[str] = []
        with ExitStack() as stack:
            # ``descriptor`` is -1 after ``close()``, and in a forked child
            self.descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o600)
            stack.callback(os.close, self.descriptor)
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(self.descriptor)
            if not status.st_nlink:
                raise FileNotFoundError
            if not path.is_file() or status.st_uid != os.geteuid():
                raise OSError("it is not a file of this user's journal")
            self.pieces, self._size = read(path)
            stack.pop_all()
        _files.add(self)

    def __call__(self, event: Event) -> None:
        """Record and forward the event. Text is written after at most one second."""
        if isinstance(event, TextDelta):
            self.has_emitted = True
            self._unwritten.append(event.text)
            if sum(map(len, self._unwritten)) >= _MAX_UNWRITTEN_CHARS:
                self.write()
            elif not self._is_scheduled:
                self._is_scheduled = True
                asyncio.get_running_loop().call_later(_MAX_UNWRITTEN_S, self.write)
        elif isinstance(event, Resumed) and event.source == "journal":
            self._emit(TextDelta("".join(self.pieces)))
        self._emit(event)

    def write(self) -> None:
        """Write the collected text to the file. After a failure, the next call tries again."""
        self._is_scheduled = False
        if self.descriptor < 0:
            return
        record = _encode(self.path, self._unwritten) if self._unwritten else b""
        with _warn_on_error(self.path.parent, "it cannot be written"):
            os.ftruncate(self.descriptor, self._size)
            if os.pwrite(self.descriptor, record, self._size) < len(record):
                raise OSError("the disk is full")
            self._size, self._unwritten = self._size + len(record), []
        if self._sync:
            with suppress(RuntimeError):  # a garbage-collected request ends without a running loop
                asyncio.get_running_loop().run_in_executor(None, _fsync, self.path)

    def drop_text(self) -> None:
        """Delete the text, because the answer starts again from the beginning."""
        self._unwritten, self._size = [], 0
        self.write()

    def close(self, *, deletes: bool = False) -> None:
        """Close the file and release its lock. Delete the file if ``deletes`` is True, or if it has no text."""
        if not deletes:
            self.write()
        _files.discard(self)
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            with _warn_on_error(self.path.parent, "a file cannot be deleted"):
                if deletes or not self._size:
                    self.path.unlink(missing_ok=True)
            os.close(descriptor)

    @staticmethod
    def close_inherited() -> None:
        """Close the files in a forked child, because open copies would keep the locks after the parent's end."""
        for file in _files:
            os.close(file.descriptor)
            file.descriptor = -1
        _files.clear()


after_fork(JournalFile.close_inherited)


def with_journal(settings: Settings, default_timeout_s: float, run: RunCall, call: Call) -> Work:
    """Return the coroutine function that runs a call. ``default_timeout_s`` applies if ``timeout=`` is missing.

    If ``LLM_JOURNAL`` is set, the function records the text of the answer, and continues the text of an earlier
    identical call.
    """
    if settings.llm_journal is None or call.format_keyword:
        return partial(run, call)
    return partial(_run_recorded, settings, default_timeout_s, run, call)


async def _run_recorded(
    settings: Settings, default_timeout_s: float, run: RunCall, call: Call, emit: Emit
) -> Completion:
    """Run a call with a file of the journal. Delete the file if the call succeeds.

    After an error or a cancellation, keep the file for a later call, unless the caller stopped the stream, or the text
    cannot become a valid answer.
    """
    deadline = asyncio.get_running_loop().time() + float(call.options.get("timeout") or default_timeout_s)
    # If an application's provider uses a router, this inner router records nothing. The outer one records the text
    file = None if _is_recording.get() else open_file(settings, _digest(call), emit)
    if file is None:
        return await run(call, emit)
    deletes = True
    _is_recording.set(True)
    try:
        completion = await _run_with_file(run, replace(call, recorded=file.pieces), file, deadline)
    except BaseException as error:
        deletes = emit.stopped or (isinstance(error, LLMError) and (error.discards_text or error.finished))
        raise
    finally:
        file.close(deletes=deletes)
        _is_recording.set(False)
    if settings.llm_journal_sync:
        await asyncio.to_thread(_fsync, file.path)
    return completion


async def _run_with_file(run: RunCall, call: Call, file: JournalFile, deadline: float) -> Completion:
    """Run a call, and continue the text of the file, if any.

    If the text cannot be continued, or is the model's thinking, run the call again from the beginning. Raise the error
    instead if a stream has already emitted new text.
    """
    try:
        return await run(call, file)
    except LLMError as error:
        reached_caller = file.has_emitted and not call.buffered
        cannot_continue = file.pieces and (error.discards_text or isinstance(error, _NOT_CONTINUABLE))
        if reached_caller or not (cannot_continue or isinstance(error, errors.ThinkingLeaked)):
            raise
    file.drop_text()
    left_s = max(0.001, deadline - asyncio.get_running_loop().time())
    return await run(replace(call, recorded=(), options={**call.options, "timeout": left_s}), file)


def open_file(settings: Settings, digest: str, emit: Emit) -> JournalFile | None:
    """Open the file with the unfinished answer to a request. If there is no such file, create one.

    Delete old files, and damaged files of this request. Return None if no file can be opened.
    """
    folder, sync = settings.llm_journal or Path(), settings.llm_journal_sync
    with _warn_on_error(folder, "it cannot be used"):
        folder.mkdir(0o700, parents=True, exist_ok=True)
        with _warn_on_error(folder, "other users have access to it"):
            if folder.stat().st_mode & 0o077:
                raise OSError("set its mode to 700")
        for path in paths(folder):
            with _warn_on_error(path, "it is not used"), suppress(FileNotFoundError, BlockingIOError):
                status = path.lstat()
                is_old = abs(time.time() - status.st_mtime) > settings.llm_journal_ttl
                # Skip an empty file of this request, because another call may have just created it
                if is_old or (status.st_size and path.name.startswith(digest)):
                    file = JournalFile(path, emit, sync=sync)
                    if "".join(file.pieces).strip() and not is_old:
                        return file
                    file.close(deletes=True)
                    raise OSError("older than LLM_JOURNAL_TTL" if is_old else "damaged, or of another version")
        path = folder / f"{digest}-{secrets.token_hex(8)}.journal"
        return JournalFile(path, emit, sync=sync, flags=os.O_CREAT | os.O_EXCL)
    return None


def paths(folder: Path) -> list[Path]:
    """Return the paths of the journal's files, sorted by name."""
    return sorted(folder.glob(_FILE_GLOB))


def read(path: Path) -> tuple[list[str], int]:
    """Return the pieces in a file, and the size of its records in bytes. Stop at an incomplete or damaged record.

    Raises:
        OSError: the file cannot be read.
    """
    pieces, size = list[str](), 0
    with path.open("rb") as file, suppress(ValueError, RecursionError):
        for line in file.read(_MAX_FILE_BYTES).splitlines(keepends=True):
            record = json.loads(line.partition(b" ")[2])
            if line != _encode(path, record):
                break
            pieces += record
            size += len(line)
    return pieces, size


def _encode(path: Path, pieces: list[str]) -> bytes:
    """Return a record as a line. The checksum also covers the version of the format (1) and the digest."""
    data, key = json.dumps(pieces).encode(), b"1" + path.name[:32].encode()
    return b"%s %s\n" % (hashlib.blake2b(data, digest_size=8, key=key).hexdigest().encode(), data)


def _digest(call: Call) -> str:
    """Return a digest of everything in a call that affects the answer."""
    options = {name: value for name, value in call.options.items() if name not in _IGNORED_KEYWORDS}
    values = call.prompt, call.model, call.temperature, call.max_tokens, call.after, options
    text = json.dumps(values, sort_keys=True, default=dict)  # ``dict`` converts the mappings that json rejects
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _fsync(path: Path) -> None:
    """Write a file and its folder to the disk. Ignore a deleted file."""
    for item in (path, path.parent):
        with _warn_on_error(path.parent, "fsync failed"), suppress(FileNotFoundError), ExitStack() as stack:
            descriptor = os.open(item, os.O_RDONLY | os.O_NOFOLLOW)
            stack.callback(os.close, descriptor)
            os.fsync(descriptor)


@contextmanager
def _warn_on_error(path: Path, fault: str) -> Iterator[None]:
    """Suppress an OSError, and the ImportError of ``fcntl`` on Windows. Emit one warning for each path and fault."""
    try:
        yield
    except (OSError, ImportError) as error:
        fault = f"{fault} ({getattr(error, 'strerror', None) or error})"
        if (path, fault) not in _warned:
            _warned.add((path, fault))
            events.emit(events.JournalFailed(file=str(path), fault=fault))
