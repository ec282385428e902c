"""Ollama (0.24 and 0.33 were run): what is there (tags), what is loaded and how wide (ps), what one model can (show).

The tags tell capabilities only since 0.30; ``/api/show`` reads the model's file and loads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ..capabilities import Model, Server
from .kind import Kind, Page, count, part, text

_NUM_CTX: Final = re.compile(r"^num_ctx[ \t]+([0-9]{1,9})[ \t]*$", re.MULTILINE)
_NEWEST: Final = ":latest"


def _read(pages: Mapping[str, Page]) -> Server | None:
    version, rows = text(pages["/api/version"].said.get("version")), pages["/api/tags"].rows("models")
    if version is None or rows is None or pages["/api/version"].headers.get("server") == "llama.cpp":
        return None
    running = pages["/api/ps"].rows("models")
    windows = {str(row.get("name")): count(row.get("context_length")) for row in running or []}
    models = []
    for row in rows:
        name = text(row.get("name"))
        if not name:
            continue
        known = _can(row.get("capabilities"))
        known |= {"context": count(part(row, "details").get("context_length")), "context_served": windows.get(name)}
        remote = bool(row.get("remote_host") or row.get("remote_model"))
        models.append(
            Model(
                name=name,
                aliases=(name.removesuffix(_NEWEST),) if name.endswith(_NEWEST) else (),
                loaded=None if remote or running is None else name in windows,
                chat=_chats(row.get("capabilities"), name),
                remote=remote,
                known=known,
            )
        )
    return Server(kind="ollama", version=version, models=tuple(models))


def _can(said: Any) -> dict[str, Any]:
    if not isinstance(said, list):
        return {}
    return {"vision": "vision" in said, "tools": "tools" in said, "reasoning": "thinking" in said}


def _chats(said: Any, name: str) -> bool:
    return "completion" in said if isinstance(said, list) else "embed" not in name.lower()


def _learn(model: Model, shown: Mapping[str, Any]) -> Model:
    info, said = part(shown, "model_info"), shown.get("capabilities")
    trained = next((count(value) for key, value in info.items() if key.endswith(".context_length")), None)
    parameters = shown.get("parameters")
    asked = _NUM_CTX.search(parameters) if isinstance(parameters, str) else None
    return replace(
        model,
        chat=_chats(said, model.name) if isinstance(said, list) else model.chat,
        remote=model.remote or bool(shown.get("remote_host") or shown.get("remote_model")),
        window=int(asked[1]) if asked else None,
        known={**model.known, **_can(said), "context": trained or model.known.get("context")},
    )


OLLAMA = Kind(
    name="ollama",
    pages=("/api/version", "/api/tags", "/api/ps"),
    read=_read,
    question=lambda model: ("/api/show", {"model": model.name}),
    learn=_learn,
)
