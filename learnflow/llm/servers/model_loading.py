"""Load a model by the server's own means."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from ..spec import ProviderSpec
from ..transport.client import Client
from .probe import fetch

Watch = Callable[[float], None]

AGAIN_S: Final = 0.5  # seconds between two looks at a server that is loading by itself
_TICK_S: Final = 1.0


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
    path, body = str(spec.load_path), dict[str, Any](model=model)
    if spec.keep and keep_alive is not None:
        path, body = spec.keep(model, keep_alive)
    if window and spec.window:
        body["options"] = {spec.window: window}
    await fetch(client, path, body)


@asynccontextmanager
async def ticking(watch: Watch | None) -> AsyncGenerator[None, None]:
    """Call ``watch`` once a second with the seconds so far, while the block runs."""
    if watch is None:
        yield
        return
    task = asyncio.create_task(_tick(watch))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _tick(watch: Watch) -> None:
    started = asyncio.get_running_loop().time()
    while True:
        await asyncio.sleep(_TICK_S)
        watch(asyncio.get_running_loop().time() - started)
