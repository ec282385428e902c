"""Load a model by the server's own means."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from .probe import Prober, read_page

Watch = Callable[[float], None]

AGAIN_S: Final = 0.5  # seconds between two looks at a server that is loading by itself
_TICK_S: Final = 1.0


async def load(prober: Prober, model: str, window: int | None, keep_alive: str | float | None) -> None:
    """Let the server load a model, however long that takes; the caller limits it. Raises LLMError.

    Args:
        prober: the server.
        model: its name there.
        window: the context to load it with, in tokens; None for the server's own.
        keep_alive: how long it shall stay loaded; None for the server's own.
    """
    spec = prober.spec
    path, body = str(spec.load_path), dict[str, Any](model=model)
    if spec.keep and keep_alive is not None:
        path, body = spec.keep(model, keep_alive)
    if window and spec.format_options:
        body["options"] = spec.format_options({}, window)
    await told(prober, path, body)


async def told(prober: Prober, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """What a page says, or what a body gets as answer; empty where it says nothing. Raises LLMError."""
    page = await prober.client.page(prober.request(f"{prober.endpoint.root}{path}", body))
    said, wrong = read_page(page.data) if page.data.strip() else ({}, None)
    if error := page.error or wrong:
        raise error
    return said


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
