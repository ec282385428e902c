"""Downloading, loading and unloading a model by the server's own means."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from typing import Any, Final

from .. import errors
from ..errors import LLMError
from ..spec import Progress
from ..transport import error_mapping
from ..transport.untrusted import json_object
from .probe import Prober, read_page

Watch = Callable[[float], None]

AGAIN_S: Final = 0.5  # seconds between two looks at a server that is loading by itself
RESUMES: Final = "Ask again: it goes on where it stopped"  # of a download
_TICK_S: Final = 1.0
_OTHER_FIELDS: Final = (b":", b"event:", b"id:", b"retry:")  # of server-sent events
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


async def lines(
    prober: Prober, path: str, body: Mapping[str, Any] | None = None
) -> AsyncGenerator[Mapping[str, Any], None]:
    """The JSON objects of an answer, a line or an event each. Raises LLMError where one complains or is none.

    Args:
        prober: the server.
        path: of the page.
        body: JSON to be sent; None for a GET.
    """
    response = await prober.client.ask(prober.request(f"{prober.endpoint.root}{path}", body))
    data = rest = b"\n"
    try:
        while data:
            data = await response.read()
            *whole, rest = (rest + (data or b"\n")).split(b"\n")
            if len(rest) > _LONGEST_LINE:
                raise errors.MalformedAnswer("a line of progress without end")
            for line in filter(bytes.strip, whole):
                if not line.startswith(_OTHER_FIELDS):
                    yield _object(line.removeprefix(b"data:"))
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
    async with AsyncExitStack() as stack:
        if watch is not None:
            await stack.enter_async_context(meanwhile(_tick(watch)))
        yield


@asynccontextmanager
async def meanwhile(work: Coroutine[Any, Any, None]) -> AsyncGenerator[asyncio.Task[None], None]:
    """Do this while the block runs, and not longer."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def report(prober: Prober, model: str, tell: Callable[[float], None]) -> None:
    """Tell how far the load of a model is, where the server tells."""
    assert prober.spec.load_progress  # noqa: S101  # asked only of those
    with suppress(LLMError):  # the answer itself will say what is wrong
        async with aclosing(prober.spec.load_progress(prober, model)) as steps:
            async for done in steps:
                tell(done)


async def _tick(watch: Watch) -> None:
    started = asyncio.get_running_loop().time()
    while True:
        await asyncio.sleep(_TICK_S)
        watch(asyncio.get_running_loop().time() - started)
