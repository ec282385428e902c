"""An OpenAI-compatible list of models, and nothing that anybody could tell a server by."""

from __future__ import annotations

from ..capabilities import Model, Server
from .kind import Page, count, text


def listed(page: Page, key: str, name: str) -> Server | None:
    """The server behind a list of models; None where the page is no such list. OpenRouter's tells the context too."""
    rows = page.rows(key)
    if rows is None:
        return None
    models = []
    for row in rows:
        called = text(row.get(name))
        if called:
            context = count(row.get("context_length")) or count(row.get("max_model_len"))
            known = {"context": context, "context_served": context}
            models.append(Model(name=called, chat="embed" not in called.lower(), known=known))
    return Server(kind=None, models=tuple(models))
