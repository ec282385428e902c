"""Downloading, loading and unloading a model by the server's own means."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Final

from .. import errors
from ..spec import Progress
from ..transport import error_mapping
from ..transport.untrusted import json_object
from .probe import Prober, read_page

Watch = Callable[[float], None]

AGAIN_S: Final = 0.5  # seconds between two looks at a server that is loading by itself
RESUMES: Final = "Ask again: it goes on where it stopped"  # of a download
_TICK_S: Final = 1.0
_LONGEST_LINE: Final = 64 * 1024  # bytes of a line of progress


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
    if window and spec.window:
        body["options"] = {spec.window: window}
    await told(prober, path, body)


async def told(prober: Prober, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """What a page says, or what a body gets as answer; empty where it says nothing. Raises LLMError."""
    page = await prober.client.page(prober.request(f"{prober.endpoint.root}{path}", body))
    said, wrong = read_page(page.data) if page.data.strip() else ({}, None)
    if error := page.error or wrong:
        raise error
    return said


async def lines(prober: Prober, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Mapping[str, Any], None]:
    """The JSON objects of an answer, one on each line. Raises LLMError where one complains, or is none."""
    response = await prober.client.ask(prober.request(f"{prober.endpoint.root}{path}", body))
    data = rest = b"\n"
    try:
        while data:
            data = await response.read()
            *whole, rest = (rest + (data or b"\n")).split(b"\n")
            if len(rest) > _LONGEST_LINE:
                raise errors.MalformedAnswer("a line of progress without end")
            for line in filter(bytes.strip, whole):
                yield _object(line)
    finally:
        await response.aclose()


def _object(line: bytes) -> Mapping[str, Any]:
    said = json_object(line)
    if said is None:
        raise errors.MalformedAnswer("a line of progress is not JSON")
    if said.get("error"):
        raise error_mapping.error_object(said, began=False)
    return said


async def pull(prober: Prober, model: str, patience: float) -> AsyncGenerator[Progress, None]:
    """Let the server download a model; what it tells, where that is new.

    Args:
        prober: the server.
        model: its name there.
        patience: seconds without anything new after which it is given up.

    Raises:
        LLMError: why the model is not there.
    """
    assert prober.spec.pull  # noqa: S101  # asked only of those
    loop, last = asyncio.get_running_loop(), None
    moved = loop.time()
    async with aclosing(prober.spec.pull(prober, model)) as steps:
        while True:
            try:
                async with asyncio.timeout_at(moved + patience):
                    progress = await anext(steps, None)
            except errors.Misconfigured:  # it has no such page
                raise errors.Unsupported(f"this {prober.spec.title} downloads no models") from None
            except TimeoutError:
                what = f"the download has made no progress for {patience:g} s"
                raise errors.GapTimeout(what, hint=f"{RESUMES}. LLM_LOAD_TIMEOUT says how long to wait") from None
            if progress is None:
                return
            if progress != last:
                yield progress
                last, moved = progress, loop.time()


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
