"""Read the context length of the training from the header of a GGUF file.

Source: ggml's docs/gguf.md, version 3.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import BinaryIO, Final

# The bytes of a value by its type; 8 is a string, 9 an array.
_SIZES: Final[Mapping[int, int]] = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_MAX_TEXT_BYTES: Final = 1 << 20  # a chat template may be long
_MAX_ENTRIES: Final = 1000  # of the header, and of a list of texts; the vocabulary is longer, and stands last


def trained_context(file: BinaryIO) -> int | None:
    """Return the value of ``<architecture>.context_length``; None if the header lacks it or is damaged."""
    try:
        _number(file, 4)  # the version
        _number(file, 8)  # the number of tensors
        for _ in range(min(_number(file, 8), _MAX_ENTRIES)):
            key, kind = _text(file), _number(file, 4)
            if key.endswith(b".context_length") and kind in _SIZES:
                return _number(file, _SIZES[kind]) or None
            if not _skip(file, kind):
                break
    except (OSError, ValueError, OverflowError):
        pass  # a damaged header: llama.cpp will report it
    return None


def _number(file: BinaryIO, size: int) -> int:
    return int.from_bytes(file.read(size), "little")


def _text(file: BinaryIO) -> bytes:
    return file.read(min(_number(file, 8), _MAX_TEXT_BYTES))


def _skip(file: BinaryIO, kind: int) -> bool:
    """Skip a value. Return False if its length is unknown."""
    if kind in _SIZES:
        file.seek(_SIZES[kind], os.SEEK_CUR)
        return True
    if kind == _STRING:
        _text(file)
        return True
    element, length = (_number(file, 4), _number(file, 8)) if kind == _ARRAY else (-1, 0)
    if element in _SIZES:
        file.seek(_SIZES[element] * length, os.SEEK_CUR)
    elif element == _STRING and length <= _MAX_ENTRIES:
        for _ in range(length):
            _text(file)
    else:
        return False
    return True
