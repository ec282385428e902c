"""What a server offers beside chat: loading a model; rendering its template and continuing the rendered text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from .. import errors
from ..base import Attempt
from ..health.probe import Door, complaint_of, read_page
from ..transport.client import HttpRequest

Watch = Callable[[float], None]

AGAIN_S: Final = 0.5  # seconds between two looks at a server that is loading by itself
RAW: Final = "/api/generate"
_TICK_S: Final = 1.0
_THINK: Final = "<think>"
_MARK: Final = "[learnflow: the answer begins here]"


async def load(door: Door, model: str, window: int | None, keep_alive: str | float | None) -> None:
    """Let the server load a model, however long that takes; the caller limits it. Raises LLMError.

    Args:
        door: the server.
        model: its name there.
        window: the context to load it with, in tokens; None for the server's own.
        keep_alive: how long it shall stay loaded; None for the server's own.
    """
    body: dict[str, Any] = {"model": model}
    if window and door.spec.window:
        body["options"] = {door.spec.window: window}
    if keep_alive is not None:
        body["keep_alive"] = keep_alive
    page = await door.client.page(door.request(f"{door.endpoint.root}{door.spec.load_path}", body))
    said = page.error or complaint_of(page.data)
    if said:
        raise said


async def continuation(
    door: Door, model: str, messages: list[dict[str, Any]], body: Mapping[str, Any], begun: Attempt
) -> HttpRequest:
    """The request that continues an answer: the server's own template, rendered, and the text as it is.

    Exact, whatever the template is: on Ollama 0.33 and 0.24, 224 of 224 cuts at chunk boundaries went on identically.

    Raises:
        Unsupported: pictures and tool calls are no text, or this version does not render.
    """
    if any(_more_than_words(each) for each in messages):
        raise errors.Unsupported("pictures and tool calls cannot be rendered as text, so the answer is not continued")
    plain = [{"role": each["role"], "content": _words(each.get("content"))} for each in messages]
    think = {"think": body["think"]} if "think" in body else {}
    same = {name: body[name] for name in ("options", "truncate", "shift") if name in body}  # other ones load it again
    text: str | None = None
    if begun.thinking:  # where the template places thinking itself, the mark shows where the answer begins
        marked = {"role": "assistant", "content": _MARK, "thinking": begun.thinking}
        rendered = await _rendered(door, {"model": model, "messages": [*plain, marked], **same, **think})
        if begun.thinking in rendered and _MARK in rendered:
            text = rendered[: rendered.rindex(_MARK)] + (begun.prefix or "")
    if text is None:
        text = await _rendered(door, {"model": model, "messages": plain, **same, **think})
        opened = text.rstrip().endswith(_THINK)
        text += begun.raw.removeprefix(_THINK) if opened else begun.raw
    raw = {"model": model, "prompt": text, "raw": True, "stream": True, **same}
    return HttpRequest(url=f"{door.endpoint.root}{RAW}", body=raw)


async def _rendered(door: Door, body: Mapping[str, Any]) -> str:
    """The prompt as the server's template makes it; nothing is generated. Raises LLMError."""
    asked = {**body, "stream": False, "_debug_render_only": True}
    page = await door.client.page(door.request(f"{door.endpoint.root}/api/chat", asked))
    if page.error:
        raise page.error
    said, wrong = read_page(page.data)
    info = said.get("_debug_info")
    text = info.get("rendered_template") if isinstance(info, dict) else None
    if wrong or not isinstance(text, str):
        raise errors.Unsupported("this version does not render its template, so it cannot continue an answer")
    return text


def _more_than_words(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    other = any(part.get("type") != "text" for part in parts)
    return other or bool(message.get("images") or message.get("tool_calls")) or message["role"] == "tool"


def _words(content: Any) -> str:
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    return "".join(str(part.get("text") or "") for part in parts)


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
