"""A server that responds to each chat request with the bytes of a test, and helpers that build and read them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import pytest

from learnflow.llm import Completion, Finished, LLMProvider
from learnflow.llm.errors import LLMError
from learnflow.llm.providers import CustomProvider
from learnflow.llm.testing import FaultServer
from learnflow.llm.testing.fault_server import ReceivedRequest

MODEL: Final = "study-7b"
KEY: Final = "k-0123456789abcdef"
PIXEL: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SECOND: Final = "From the second."
DONE: Final = b"data: [DONE]\n\n"
HOWS: Final = ("complete", "events")
_SSE: Final = "text/event-stream"
_JSON: Final = "application/json"


@dataclass(frozen=True)
class Reply:
    """A response: status, body, content type (None for no header), further headers, and the size of its slices."""

    status: int
    body: bytes
    content_type: str | None = _JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    slice_bytes: int | None = None


class OddServer(FaultServer):
    """A server of OpenAI's dialect: ``async with OddServer(sse(...)) as server:``.

    Args:
        reply: the response to every chat request, or a function that returns it for the request's body.
        models: the page of ``/v1/models``.

    Attributes:
        bodies: the bodies of the chat requests.
    """

    def __init__(self, reply: Reply | Callable[[dict[str, Any]], Reply], models: Any = None) -> None:
        super().__init__("openai")
        self.reply = reply
        rows = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        self.responses = {"/v1/models": rows if models is None else models}

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [seen.body for seen in self.seen]

    async def _respond(self, seen: ReceivedRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if not (seen.method == "POST" and seen.path.partition("?")[0].endswith(("/chat/completions", "/responses"))):
            return await super()._respond(seen, reader, writer)
        self.seen.append(seen)
        reply = self.reply(seen.body) if callable(self.reply) else self.reply
        headers = {"content-type": reply.content_type, "content-length": str(len(reply.body)), **reply.headers}
        lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
        writer.write("\r\n".join([f"HTTP/1.1 {reply.status} Status", *lines, "", ""]).encode())
        size = reply.slice_bytes or len(reply.body) or 1
        for at in range(0, len(reply.body), size):
            writer.write(reply.body[at : at + size])
            await writer.drain()
            await asyncio.sleep(0)
        return True


class Call(NamedTuple):
    """A tool call as a test expects it. ``id`` is None if any unique id is right."""

    id: str | None
    name: str
    arguments: dict[str, Any]


def event(content: Any) -> bytes:
    """Return a server-sent event with JSON. Bytes are returned unchanged."""
    return content if isinstance(content, bytes) else b"data: " + json.dumps(content).encode() + b"\n\n"


def wire(*parts: Any) -> bytes:
    return b"".join(map(event, parts))


def sse(*parts: Any, **more: Any) -> Reply:
    """Return a stream of events."""
    return Reply(200, wire(*parts), more.pop("content_type", _SSE), **more)


def body(content: Any, status: int = 200, **more: Any) -> Reply:
    """Return a response in one piece."""
    return Reply(status, content if isinstance(content, bytes) else json.dumps(content).encode(), **more)


def chunk(delta: Any = None, finish: Any = None, *, choice: Mapping[str, Any] | None = None, **more: Any) -> Any:
    """Return a chunk of a stream. ``choice`` adds fields to its choice, ``more`` to the chunk."""
    one = {"index": 0, "delta": {} if delta is None else delta, "finish_reason": finish, **(choice or {})}
    return {"id": "r1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [one], **more}


def said(text: str, **more: Any) -> Any:
    return chunk({"content": text}, **more)


def calls(*pieces: Mapping[str, Any], **delta: Any) -> Any:
    """Return a chunk with pieces of tool calls."""
    return chunk({"tool_calls": list(pieces), **delta})


def piece(
    index: int | None = None, id_: Any = ..., name: Any = ..., arguments: Any = ..., **more: Any
) -> dict[str, Any]:
    """Return a piece of a tool call. An ellipsis omits the field; so does an index of None."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not ...}
    top = {"index": ... if index is None else index, "id": id_, "type": "function", "function": function, **more}
    return {key: value for key, value in top.items() if value is not ...}


def whole(message: Mapping[str, Any], finish: Any = "stop", **more: Any) -> Any:
    """Return a complete response body."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {"id": "r1", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice], **more}


def good(text: str = "Two keys.") -> Reply:
    """Return an ordinary stream."""
    return sse(chunk({"role": "assistant", "content": ""}), said(text), chunk(finish="stop"), DONE)


def refusal(status: int, content: Any, **headers: str) -> Reply:
    return body(content, status, headers=headers)


def openai_error(message: str, **more: Any) -> Any:
    """Return an error in OpenAI's format."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **more}}


def unless(bad: Callable[[dict[str, Any]], Any], refused: Reply, text: str = "Two keys.") -> Callable[..., Reply]:
    """Return a server's rule: it refuses the requests for which ``bad`` is true."""
    return lambda request: refused if bad(request) else good(text)


def tool(name: str, *arguments: str) -> dict[str, Any]:
    """Return the definition of a tool with arguments of type string."""
    parameters = {"type": "object", "properties": {argument: {"type": "string"} for argument in arguments}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS: Final = [tool("define", "term")]


def rows(*table: Any) -> pytest.MarkDecorator:
    """Return the parameter ``row`` for the rows of a table, with their ids."""
    assert all(row.seen for row in table)
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in table])


def custom(url: str) -> LLMProvider:
    """Return a provider of an OpenAI-compatible server."""
    return CustomProvider(url, MODEL)


async def answered(provider: LLMProvider, how: str, prompt: Any = "Why two keys?", **options: Any) -> Completion:
    """Return the completion of ``complete()``, or of the events of ``stream()``."""
    if how == "complete":
        return await provider.complete(prompt, **options)
    seen = [event async for event in provider.stream(prompt, **options).events()]
    last = seen[-1]
    assert isinstance(last, Finished)
    return last.completion


async def outcome(provider: LLMProvider, how: str, prompt: Any = "Why two keys?", **options: Any) -> Any:
    """Return the completion, or the error."""
    try:
        return await answered(provider, how, prompt, **options)
    except LLMError as error:
        return error


def ran(completion: Completion) -> list[tuple[str, dict[str, Any]]]:
    """Return what an application would run: the names and arguments of the calls."""
    return [(call.name, call.arguments) for call in completion.tool_calls]
