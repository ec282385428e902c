"""Load a model by the request that its server has for that."""

from __future__ import annotations

from typing import Any, Final

from ..provider_spec import ProviderSpec
from ..transport.client import Client
from .probe import fetch

PROBE_INTERVAL_S: Final = 0.5  # between two probes of a server that is loading


async def load(
    spec: ProviderSpec, client: Client, model: str, context_length: int | None, keep_alive: str | float | None
) -> None:
    """Load a model. The caller limits the time.

    Args:
        spec: the provider.
        client: of its server.
        model: the name of the model on the server.
        context_length: to load it with, in tokens; None for the server's default.
        keep_alive: how long it stays loaded, in seconds or like "30m"; None for the server's default.

    Raises:
        LLMError: the server refused, or did not respond.
    """
    path, body = str(spec.server.load_path), dict[str, Any](model=model)
    if spec.server.load_for and keep_alive is not None:
        path, body = spec.server.load_for(model, keep_alive)
    if context_length and spec.dialect.format_options:
        body["options"] = spec.dialect.format_options({}, context_length)
    await fetch(client, path, {**body, **spec.server.launch_options})
