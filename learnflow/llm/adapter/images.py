"""Pictures by URL, read by our own client for servers that take them inline only."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Any, Final

from .. import errors
from ..errors import LLMError
from ..transport.client import Client, HttpRequest
from ..transport.endpoint import Endpoint, origin

MAX_BYTES: Final = 20 * 1024 * 1024  # of one picture
# What the bytes of a picture begin with; a content type may say anything.
_FORMATS: Final = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))


async def inline(messages: list[dict[str, Any]], client: Client) -> list[dict[str, Any]]:
    """The messages with every picture that was given as an http URL read and put inline, all at once.

    Args:
        messages: OpenAI-style; not changed.
        client: of the provider: its locality and transport are used, its key is not sent.

    Raises:
        InvalidRequest: what is there is no picture, or larger than ``MAX_BYTES``.
        LLMError: it cannot be read; NotLocal under ``LLM_LOCAL_ONLY``.
    """
    urls = list(dict.fromkeys(url for message in messages for part in _parts(message) if (url := _url_of(part))))
    if not urls:
        return messages
    reading = [asyncio.ensure_future(_read(url, client)) for url in urls]
    try:
        read = dict(zip(urls, await asyncio.gather(*reading), strict=True))
    finally:
        for each in reading:
            each.cancel()
    return [
        {**message, "content": [_with(part, read) for part in message["content"]]} if _parts(message) else message
        for message in messages
    ]


def _parts(message: Mapping[str, Any]) -> list[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _url_of(part: Any) -> str | None:
    """The URL of a picture that has to be read; None for anything else."""
    picture = part.get("image_url") if part.get("type") == "image_url" else None
    url = picture.get("url") if isinstance(picture, Mapping) else picture
    if not isinstance(url, str) or url.startswith("data:"):
        return None
    if not url.strip().lower().startswith(("http://", "https://")):
        raise errors.InvalidRequest("a picture has neither an http address nor a data URL", hint="Give one of the two")
    return url.strip()


def _with(part: Mapping[str, Any], read: Mapping[str, str]) -> Mapping[str, Any]:
    url = _url_of(part)
    if url is None:
        return part
    picture = part["image_url"]
    more = {name: value for name, value in picture.items() if name != "url"} if isinstance(picture, Mapping) else {}
    return {**part, "image_url": {"url": read[url], **more}}


async def _read(url: str, client: Client) -> str:
    """One picture as a data URL."""
    try:
        origin(url)
        place = Endpoint(root="", base=url)  # no path of it is left out where it is recorded
        reader = Client(place, client.connect_timeout, client.local_only, client.transport, client.replays)
        response = await reader.ask(HttpRequest(url=url, direct=place.near))
        try:
            data = await response.beginning(MAX_BYTES + 1)
        finally:
            await response.aclose()
    except ValueError:
        raise errors.InvalidRequest(
            "the address of a picture is not a valid URL", hint="Give it as a data URL"
        ) from None
    except LLMError as error:
        raise _unread(error) from None
    kind = next((name for start, name in _FORMATS if data.startswith(start)), None)
    if not kind or len(data) > MAX_BYTES:
        what = f"is larger than {MAX_BYTES >> 20} MiB" if kind else "is none (PNG, JPEG, GIF and WebP are)"
        raise errors.InvalidRequest(f"what was read as a picture {what}", hint="Give a smaller one, as a data URL")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _unread(error: LLMError) -> LLMError:
    """Why a picture could not be read: the caller's affair, not an outage of the provider that was to see it."""
    if isinstance(error, errors.NotLocal | errors.NotRecorded):
        return error
    return errors.InvalidRequest(
        f"the picture could not be read from its address ({type(error).__name__})",
        hint="This server takes pictures inline only: give it as a data URL, or an address that answers",
    )
