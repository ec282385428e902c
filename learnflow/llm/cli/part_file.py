"""The part file of a download: verified, then renamed to the model. ``pull`` writes through this module.

An incomplete model never has the model's name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from filelock import FileLock

from ..errors import LLMError
from ..transport.untrusted import json_object, printable
from .terminal import progress, size

CHUNK_BYTES: Final = 64 * 1024
SPARE_BYTES: Final = 64 * 1024 * 1024  # what a download leaves free on the disk
_MAGIC: Final = b"GGUF"
_MAX_QUOTED_CHARS: Final = 40  # of a file that is not a model


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk that holds a folder."""
    return shutil.disk_usage(folder).free


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFile:
    """The files of one model in the store: ``NAME.gguf``, ``NAME.gguf.part``, and a record of their source.

    Attributes:
        path: the model.
        source: a hash that identifies the source; the URL itself may contain a token.
        sha256: the required SHA-256 of the model; None if any file is accepted.
    """

    path: Path
    source: str
    sha256: str | None = None

    @property
    def name(self) -> str:
        """Return the name of the model."""
        return self.path.stem

    @property
    def part(self) -> Path:
        """Return the path of the part file."""
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def _record(self) -> Path:
        return self.path.with_name(f".{self.name}.json")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the name while the block runs. Other pulls of the same name wait. The lock ends with its process."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.with_name(f".{self.name}.lock"))
        with progress(f"{self.name}: waiting for another pull of it"):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def stored(self) -> str | None:
        """Return the SHA-256 of the stored model if it is the right one. Return None if a download is needed.

        Raises:
            LLMError: another model has the name, and no SHA-256 is required.
        """
        if not self.path.exists():
            return None
        actual = self._hash(self.path, hashlib.sha256())
        if actual == (self.sha256 or self._recorded("sha256")):
            return actual
        if self.sha256 is None:
            hint = f"Choose another --name, give --sha256 to replace it, or remove {self.path}"
            raise LLMError(f"another model is stored as {self.name} (SHA-256 {actual})", hint=hint)
        return None

    def resumable(self) -> tuple[int, str]:
        """Return the size of the part file and its HTTP validator; 0 if this source cannot resume it."""
        validator = self._recorded("validator")
        return (self.part.stat().st_size, validator) if validator and self.part.exists() else (0, "")

    def begin(self, validator: str) -> None:
        """Discard the part file and record the HTTP validator of the next one."""
        self.discard()
        self._write_record(validator=validator)

    def discard(self) -> None:
        """Remove the part file."""
        self.part.unlink(missing_ok=True)

    def require_space(self, needed_bytes: int) -> None:
        """Raise LLMError if the disk has less free space."""
        folder = self.path.parent
        free = free_bytes(folder)
        if free < needed_bytes + SPARE_BYTES:
            what = f"not enough disk space in {folder}: {size(needed_bytes)} to write, {size(free)} free"
            raise LLMError(what, hint="Free some, or set LLM_MODELS_DIR to a folder on another disk")

    def write(self, chunks: Iterable[bytes], begun: int, total: int | None) -> str:
        """Write the part file to its end, verify it, and rename it.

        Args:
            chunks: the bytes after the first ``begun``.
            begun: the bytes that the part file already has.
            total: the size of the complete file in bytes; None if unknown.

        Returns:
            The SHA-256 of the model.

        Raises:
            LLMError: the size or the SHA-256 is wrong, the file is not a GGUF, or the disk is full.
        """
        self.require_space((total or begun) - begun)
        digest = hashlib.sha256()
        if begun:
            self._hash(self.part, digest)
        with self.part.open("ab" if begun else "wb") as file:
            done = self._append(file, chunks, digest, begun, total)
            file.flush()
            os.fsync(file.fileno())
        if total is not None and done != total:
            if done > total:
                self.discard()
            what = f"the file of {self.name} has {done:,} bytes of {total:,}"
            raise LLMError(what, hint="Run the command again")
        actual = digest.hexdigest()
        self._verify(actual)
        self._commit(actual)
        return actual

    def _append(self, file: IO[bytes], chunks: Iterable[bytes], digest: Any, done: int, total: int | None) -> int:
        with progress(f"{self.name}: downloading", total, size=True) as show:
            for chunk in chunks:
                if not done and not chunk.startswith(_MAGIC):
                    raise self._not_gguf(chunk)
                self.require_space(len(chunk))
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                show(completed=done)
                if total is not None and done > total:
                    break
        if not done:
            raise self._not_gguf(b"")
        return done

    def _not_gguf(self, chunk: bytes) -> LLMError:
        self.discard()
        begins = printable(chunk[:_MAX_QUOTED_CHARS].decode(errors="replace"), _MAX_QUOTED_CHARS)
        what = f"the source of {self.name} is not a GGUF model: it begins with {begins!r}"
        return LLMError(what, hint="Give the URL of the file itself, not of a page about it")

    def _verify(self, actual: str) -> None:
        if self.sha256 and actual != self.sha256:
            self.discard()
            what = f"the SHA-256 of {self.name} is {actual}, not {self.sha256}: nothing was stored"
            raise LLMError(what, hint="Check --sha256 and the source: the file may have changed or be damaged")

    def _commit(self, actual: str) -> None:
        self.part.replace(self.path)
        self._write_record(sha256=actual)
        if os.name == "posix":  # Windows cannot open a folder
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _hash(self, path: Path, digest: Any) -> str:
        with path.open("rb") as file, progress(f"{self.name}: verifying", path.stat().st_size, size=True) as show:
            while chunk := file.read(CHUNK_BYTES * 16):
                digest.update(chunk)
                show(completed=file.tell())
        return str(digest.hexdigest())

    def _recorded(self, field: str) -> str | None:
        """Return a field of the record. Return None if the record belongs to another source."""
        record = json_object(self._record.read_bytes()) if self._record.exists() else None
        value = record.get(field) if record and record.get("source") == self.source else None
        return value if isinstance(value, str) else None

    def _write_record(self, **fields: str) -> None:
        self._record.write_text(json.dumps({"source": self.source, **fields}), encoding="utf-8")
