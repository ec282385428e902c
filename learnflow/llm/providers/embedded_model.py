"""The requirements of the embedded llama.cpp server: a model file, the package xllamacpp, and CPU cores."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Final

from ..errors import NotConfigured
from ..provider_spec import ProviderSpec
from ..transport.untrusted import printable
from . import model_store
from .model_store import DEFAULT_MODEL

INSTALL_COMMAND: Final = "pip install xllamacpp"
PULL_COMMAND: Final = "learnflow-llm pull"
_MAX_PATH_CHARS: Final = 300
_MAX_NAME_CHARS: Final = 60


def available_cores() -> int:
    """Return the number of cores that this process may use, by its CPU affinity and the container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota_us, period_us = map(int, Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split())
    except (OSError, ValueError):  # no cgroup v2, or "max", which means no quota
        return cores
    return min(cores, max(1, quota_us // period_us))


def find_file(spec: ProviderSpec, model: str) -> Path:
    """Return the GGUF file of ``model``, which is a path or a name in the store (``model_store``).

    Raises:
        NotConfigured: the file does not exist.
    """
    is_path, variable = _is_path(model), spec.variable("model")
    try:
        path = Path(model).expanduser().absolute() if is_path else model_store.path_of(model)
        if path.is_file():
            return path
    except (OSError, RuntimeError, ValueError):  # the path is too long, names an unknown user, or contains NUL
        path = Path(model)
    if is_path:
        what = f"the model file {printable(str(path), _MAX_PATH_CHARS)} does not exist"
        hint = f"Set {variable} to the path of a GGUF, or to a name in the store: {PULL_COMMAND} {DEFAULT_MODEL}"
    else:
        what = f"the model {printable(model, _MAX_NAME_CHARS)!r} is not in the store ({model_store.folder()})"
        hint = f"`{PULL_COMMAND} {DEFAULT_MODEL}` downloads a small model (98 MB), `{PULL_COMMAND} https://…` any GGUF"
        hint += f"; or set {variable} to another model"
    raise NotConfigured(what, provider=spec.name, hint=hint)


def _is_path(model: str) -> bool:
    return model.endswith(".gguf") or "/" in model or os.sep in model


def alias_of(model: str) -> str:
    """Return the model's name in requests: its name in the store, or the name of its file without the suffix."""
    return printable(Path(model).stem, _MAX_PATH_CHARS) if _is_path(model) else model


def require_xllamacpp(provider: str) -> None:
    """Raise NotConfigured if xllamacpp is not installed."""
    if not importlib.util.find_spec("xllamacpp"):
        raise NotConfigured(
            "xllamacpp, which runs the embedded model, is not installed",
            provider=provider,
            hint=f"Install it: {INSTALL_COMMAND}. If it has no wheel for this platform, start llama.cpp's own server "
            "and set LLM_PROVIDER=llamacpp",
        )
