"""Load a model by the server's own means."""

from __future__ import annotations

from typing import Any, Final

from ..provider_spec import ProviderSpec
from ..transport.client import Client
from .probe import fetch

AGAIN_S: Final = 0.5  # seconds between two probes of a server that is loading


async def load(
    spec: ProviderSpec, client: Client, model: str, window: int | None, keep_alive: str | float | None
) -> None:
    """Load a model by the server's own request; the caller limits the time. Raise LLMError.

    Args:
        spec: the provider.
        client: of its server.
        model: its name there.
        window: the context length to load it with, in tokens; None for the server's own.
        keep_alive: how long it stays loaded; None for the server's own.
    """
    path, body = str(spec.server.load_path), dict[str, Any](model=model)
    if spec.server.load_for and keep_alive is not None:
        path, body = spec.server.load_for(model, keep_alive)
    if window and spec.dialect.format_options:
        body["options"] = spec.dialect.format_options({}, window)
    await fetch(client, path, body)
