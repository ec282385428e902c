"""The part file of a download. Only a complete, verified part file is renamed to ``NAME.gguf``."""

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
from .terminal import format_size, progress

CHUNK_BYTES: Final = 64 * 1024
SPARE_BYTES: Final = 64 * 1024 * 1024  # free space that a download leaves on the disk
_MAGIC: Final = b"GGUF"
_MAX_QUOTED_CHARS: Final = 40  # of the beginning of a file that is not a GGUF


def free_bytes(folder: Path) -> int:
    """Return the free space of a folder's disk in bytes."""
    return shutil.disk_usage(folder).free


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFile:
    """The files of one model in the store: ``NAME.gguf``, ``NAME.gguf.part``, and JSON metadata.

    Attributes:
        path: the path of the model.
        source: a hash of the URL or package, because the URL itself can contain a token.
        sha256: the required SHA-256 in hexadecimal digits; None to accept any GGUF.
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
    def _metadata_path(self) -> Path:
        return self.path.with_name(f".{self.name}.json")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the name of the model while the block runs. Wait for another process that holds the lock.

        The operating system releases the lock if the process dies.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.with_name(f".{self.name}.lock"))
        with progress(f"{self.name}: waiting for another process that pulls it"):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def stored_sha256(self) -> str | None:
        """Return the SHA-256 of the stored model; None if the model must be downloaded.

        Raises:
            LLMError: another model has this name, and ``sha256`` is None.
        """
        if not self.path.exists():
            return None
        actual_sha256 = self._hash(self.path, hashlib.sha256())
        if actual_sha256 == (self.sha256 or self._read_metadata("sha256")):
            return actual_sha256
        if self.sha256 is None:
            hint = f"Choose another --name, give --sha256 to replace it, or remove {self.path}"
            raise LLMError(f"another model is stored as {self.name} (SHA-256 {actual_sha256})", hint=hint)
        return None

    def resume_point(self) -> tuple[int, str]:
        """Return the size of the part file in bytes, and the HTTP validator (ETag or Last-Modified).

        The size is 0 if the download cannot be resumed.
        """
        validator = self._read_metadata("validator")
        return (self.part.stat().st_size, validator) if validator and self.part.exists() else (0, "")

    def begin(self, validator: str) -> None:
        """Remove the part file. Record the HTTP validator of the new download."""
        self.discard()
        self._write_metadata(validator=validator)

    def discard(self) -> None:
        """Remove the part file."""
        self.part.unlink(missing_ok=True)

    def require_space(self, needed_bytes: int) -> None:
        """Raise LLMError if the disk has less free space than ``needed_bytes + SPARE_BYTES``."""
        folder = self.path.parent
        free = free_bytes(folder)
        if free < needed_bytes + SPARE_BYTES:
            what = f"not enough disk space in {folder}: {format_size(needed_bytes)} to write, {format_size(free)} free"
            raise LLMError(what, hint="Free some space, or set LLM_MODELS_DIR to a folder on another disk")

    def write(self, chunks: Iterable[bytes], offset: int, total: int | None) -> str:
        """Append ``chunks`` to the part file, verify the file, and rename it to ``path``. Return the SHA-256.

        ``chunks`` is the content from byte ``offset`` on. ``total`` is the complete size in bytes; None if unknown.

        Raises:
            LLMError: the size or the SHA-256 is wrong, the file is not a GGUF, or the disk is full.
        """
        self.require_space((total or offset) - offset)
        digest = hashlib.sha256()
        if offset:
            self._hash(self.part, digest)
        with self.part.open("ab" if offset else "wb") as file:
            size = self._append(file, chunks, digest, offset, total)
            file.flush()
            os.fsync(file.fileno())
        if total is not None and size != total:
            if size > total:
                self.discard()
            what = f"the file of {self.name} has {size:,} bytes instead of {total:,}"
            raise LLMError(what, hint="Run the command again")
        actual_sha256 = digest.hexdigest()
        self._verify(actual_sha256)
        self._commit(actual_sha256)
        return actual_sha256

    def _append(self, file: IO[bytes], chunks: Iterable[bytes], digest: Any, size: int, total: int | None) -> int:
        with progress(f"{self.name}: downloading", total, in_bytes=True) as update:
            for chunk in chunks:
                if not size and not chunk.startswith(_MAGIC):
                    raise self._not_gguf(chunk)
                self.require_space(len(chunk))
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                update(completed=size)
                if total is not None and size > total:
                    break
        if not size:
            raise self._not_gguf(b"")
        return size

    def _not_gguf(self, chunk: bytes) -> LLMError:
        self.discard()
        beginning = printable(chunk[:_MAX_QUOTED_CHARS].decode(errors="replace"), _MAX_QUOTED_CHARS)
        what = f"the source of {self.name} is not a GGUF model: it begins with {beginning!r}"
        return LLMError(what, hint="Use the URL of the file, not of a web page about it")

    def _verify(self, actual_sha256: str) -> None:
        if self.sha256 and actual_sha256 != self.sha256:
            self.discard()
            what = f"the SHA-256 of {self.name} is {actual_sha256}, not {self.sha256}: nothing was stored"
            raise LLMError(what, hint="Check --sha256 and the source: the file may have changed or be damaged")

    def _commit(self, actual_sha256: str) -> None:
        """Rename the part file to ``path``, and record its SHA-256."""
        self.part.replace(self.path)
        self._write_metadata(sha256=actual_sha256)
        if os.name == "posix":  # Windows cannot open a folder
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _hash(self, path: Path, digest: Any) -> str:
        """Add the content of a file to ``digest``. Return the digest in hexadecimal digits."""
        with path.open("rb") as file, progress(f"{self.name}: verifying", path.stat().st_size, in_bytes=True) as update:
            while chunk := file.read(CHUNK_BYTES * 16):
                digest.update(chunk)
                update(completed=file.tell())
        return str(digest.hexdigest())

    def _read_metadata(self, field: str) -> str | None:
        """Return a field of the metadata; None if the field is missing or the metadata has another ``source``."""
        metadata = json_object(self._metadata_path.read_bytes()) if self._metadata_path.exists() else None
        value = metadata.get(field) if metadata and metadata.get("source") == self.source else None
        return value if isinstance(value, str) else None

    def _write_metadata(self, **fields: str) -> None:
        self._metadata_path.write_text(json.dumps({"source": self.source, **fields}), encoding="utf-8")
