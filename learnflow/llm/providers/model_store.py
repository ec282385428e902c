"""The model store of this machine: a folder of GGUF files, one per model.

``learnflow-llm pull`` writes to the store, and the embedded provider reads from it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from .. import settings, settings_sources
from ..errors import NotConfigured

DEFAULT_MODEL: Final = "smollm2"  # the embedded model if none is configured
SUFFIX: Final = ".gguf"
MAX_NAME_CHARS: Final = 200
_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_CHARS - 1}}}")


def folder() -> Path:
    """Return the folder of the store, even if it does not exist. Raise NotConfigured if the user has no home folder."""
    return settings.load().llm_models_dir or settings_sources.cache_folder() / "learnflow-llm" / "models"


def path_of(name: str) -> Path:
    """Return the path of a model in the store, even if no file exists. Raise NotConfigured if the name is invalid."""
    if not _NAME.fullmatch(name):
        hint = f"Use letters, digits, '.', '-' and '_', starting with a letter or digit, at most {MAX_NAME_CHARS}"
        raise NotConfigured(f"invalid model name {name[:MAX_NAME_CHARS]!r}", hint=hint)
    return folder() / f"{name}{SUFFIX}"


def models() -> list[Path]:
    """Return the files of the models in the store, sorted by name. Raise NotConfigured if they cannot be listed."""
    store = folder()
    try:
        files = [file for file in store.glob(f"*{SUFFIX}") if _NAME.fullmatch(file.stem) and file.is_file()]
    except OSError as error:
        what = f"the model store cannot be read ({type(error).__name__}): {str(store)[:MAX_NAME_CHARS]!r}"
        raise NotConfigured(what, hint="Set LLM_MODELS_DIR to a folder that can be read") from None
    return sorted(files, key=lambda file: file.stem)
