"""A fake model server for tests. It sends the wire formats of real servers, with a fault if the test sets one.

It listens on loopback only. A *piece* is the part of the answer in one streamed event.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self, get_args

from ..completion import ToolCallDelta
from ..transport.endpoint import origin
from .dialects import ERROR_RESPONSES, DialectName
from .responses_dialect import dialect_of

FaultName = Literal[
    "cut",  # the body ends after some pieces
    "half_line",  # the body ends in the middle of a line
    "drop",  # the connection closes before the end of the body
    "reset",  # a TCP reset before the end of the body
    "stall",  # the stream stops, and the connection stays open
    "slow",  # a complete stream with a pause of ``seconds`` between the pieces
    "drip",  # an endless stream with a piece every ``seconds``
    "done_without_finish",  # [DONE] without a finish reason (Ollama: "done": false)
    "no_finish",  # neither a finish reason nor [DONE]
    "error_frame",  # an error object in the stream, after some pieces
    "error_first",  # an error object before any text
    "error_after_finish",  # an error object after the finish reason
    "malformed",  # a line that is not valid JSON
    "unknown_finish",  # finish reason abort (Ollama: load)
    "filtered",  # finish reason content_filter
    "silent",  # no text, only a finish reason
    "empty",  # status 200 with an empty body
    "error_body",  # status 200 with an error object
    "page",  # status 200 with an HTML page
    "lingers",  # after the finish reason, neither [DONE] nor the end of the body
    "whole",  # a complete answer as one JSON object instead of a stream
    "whole_cut",  # the same, with incomplete JSON
    "whole_no_finish",  # the same, without a finish reason (Ollama: "done": false)
    "refuse",  # the error response for ``refusal``
    "hang",  # no response, and the connection stays open
    "close",  # the connection closes before the first byte
    "redirect",  # status 307 to another host
]
_WITHOUT_ANSWER: Final = ("refuse", "redirect", "hang", "close")
_NOT_STREAMED: Final = ("whole", "whole_cut", "whole_no_finish", "empty", "error_body", "page")
_AFTER_PIECES: Final = ("cut", "half_line", "drop", "reset", "stall", "drip", "error_frame", "malformed")

# Scheme, host and port of the running servers. ``no_model_calls`` allows requests to them.
RUNNING_ORIGINS: Final[set[tuple[str, str, int]]] = set()


@dataclass(frozen=True)
class Fault:
    """A fault of one response.

    Attributes:
        name: the kind of fault.
        after: the number of pieces before a fault in the middle of the answer, such as "cut".
        refusal: the reason, for "refuse": key, model, overflow, rate, quota, busy, loading, failed, request or filter.
        headers: additional headers, for "refuse" and "redirect".
        body: the body, for "refuse"; None for the body of the real server.
        status: the HTTP status, for "refuse"; None for the status of the real server.
        seconds: the pause between two pieces in seconds, for "slow" and "drip".
    """

    name: FaultName
    after: int = 3
    refusal: str = "failed"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    status: int | None = None
    seconds: float = 0.01


@dataclass
class ReceivedRequest:
    """A request that the server received.

    Attributes:
        body: the parsed JSON; None if the request has no body.
        connection: the number of the connection, from 1.
        gone: an event that is set when the client closes the connection.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    connection: int
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class FaultServer:
    """A fake model server.

    Example: ``async with FaultServer("vllm") as server:``, then send requests to ``server.base_url``.

    Args:
        dialect: the wire format: openai (chat completions), responses (OpenAI's Responses API), lmstudio, vllm,
            llamacpp or ollama.
        answer: the answer as a text, which is streamed in words, or as a list of pieces.
        thinking: the reasoning before the answer.
        calls: the pieces of tool calls after the answer. For Ollama, each call must be one piece.
        fault: the fault of every response; None for complete responses.
        slice_bytes: the maximum size of an HTTP chunk in bytes; None to send each piece as one chunk.
        key: the API key that requests must have; None to accept all.
        prompt_tokens: the number of prompt tokens to report; None to count the words of the prompt (at least 5).
        responses: responses to requests other than chat, by path. A response is JSON or bytes, or a tuple of a status
            and JSON or bytes. It overrides the default page of the server, such as the list of models.

    Attributes:
        seen: the chat requests so far.
        pages: the method and path of each other request so far.
        responses: the responses to other requests, by path. Tests may change it at any time.
        derailed: what the server sends if a request continues a text that is not the beginning of ``answer``.
        fault: like the argument. Tests may change it at any time.
        script: the faults of the next chat requests, in order; None for no fault. They override ``fault``.
    """

    def __init__(
        self,
        dialect: DialectName = "openai",
        answer: str | list[str] = "The quick brown fox jumps over the lazy dog.",
        *,
        thinking: str = "",
        calls: Sequence[ToolCallDelta] = (),
        fault: Fault | None = None,
        slice_bytes: int | None = None,
        key: str | None = None,
        responses: Mapping[str, Any] | None = None,
        prompt_tokens: int | None = None,
    ) -> None:
        assert dialect in get_args(DialectName)  # noqa: S101  # an unknown name is a fault of the test
        self.dialect: Final = dialect_of(dialect)
        self.pieces: list[str] = re.split(r"(?<= )", answer) if isinstance(answer, str) else answer
        self.thinking = thinking
        self.calls = calls
        self.derailed = ["something ", "else"]
        self.fault = fault
        self.script: list[Fault | None] = []
        self.slice_bytes = slice_bytes
        self.key = key
        self.prompt_tokens = prompt_tokens
        self.seen: list[ReceivedRequest] = []
        self.pages: list[tuple[str, str]] = []
        self.responses: dict[str, Any] = {**self.dialect.pages(), **(responses or {})}
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def root(self) -> str:
        """Return ``http://127.0.0.1:PORT``."""
        assert self._server  # noqa: S101  # the server is running
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def base_url(self) -> str:
        """Return the base URL for a client."""
        return self.root if self.dialect.is_ndjson else f"{self.root}/v1"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve_connection, "127.0.0.1", 0)
        RUNNING_ORIGINS.add(origin(self.root))
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server  # noqa: S101
        RUNNING_ORIGINS.discard(origin(self.root))
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:  # closes the socket even if the client does not read
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task  # noqa: S101
        self._tasks.add(task)
        self._writers.append(writer)
        self.connections += 1
        connection_number = self.connections
        try:
            while (request := await _read(reader, connection_number)) is not None:
                if not await self._respond(request, reader, writer):
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _respond(
        self, request: ReceivedRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Respond to a request. Return whether the connection stays open."""
        if not self._is_chat(request):
            return await self._respond_to_page(request, writer)
        if request.body.get("_debug_render_only"):
            await _send(
                writer,
                200,
                {"content-type": "application/json"},
                self.dialect.rendered_prompt(request.body["messages"]),
            )
            return True
        self.seen.append(request)
        fault = self.script.pop(0) if self.script else self.fault
        if not self._is_authorized(request):
            fault = Fault("refuse", refusal="key")
        if fault and fault.name in _WITHOUT_ANSWER:
            return await self._respond_without_answer(fault, request, reader, writer)
        if fault and fault.name in _NOT_STREAMED:
            content_type, body = self._not_streamed_response(fault)
            await _send(writer, 200, {"content-type": content_type}, body)
            return True
        return await self._stream(fault, request, reader, writer)

    def _is_chat(self, request: ReceivedRequest) -> bool:
        if not isinstance(request.body, dict):
            return False
        is_raw = self.dialect.is_ndjson and request.path == "/api/generate" and "prompt" in request.body
        return is_raw or request.path.partition("?")[0].endswith(self.dialect.chat_path)

    def _is_authorized(self, request: ReceivedRequest) -> bool:
        return not self.key or request.headers.get("authorization") == f"Bearer {self.key}"

    async def _respond_to_page(self, request: ReceivedRequest, writer: asyncio.StreamWriter) -> bool:
        self.pages.append((request.method, request.path))
        page = self.responses.get(request.path.partition("?")[0], (404, {"error": "not found"}))
        status, content = page if isinstance(page, tuple) else (200, page)
        if not self._is_authorized(request) and not request.path.endswith("/health"):
            status, content = ERROR_RESPONSES[self.dialect.name]["key"]
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        content_type = "text/html" if body.startswith(b"<") else "application/json"
        await _send(writer, status, {"content-type": content_type, **self.dialect.headers}, body)
        return True

    async def _respond_without_answer(
        self, fault: Fault, request: ReceivedRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if fault.name == "hang":
            await _watch_disconnect(request, reader)
        elif fault.name == "redirect":
            await _send(writer, 307, {"location": "http://example.org/v1/chat/completions", **fault.headers}, b"")
        elif fault.name == "refuse":
            status, content = ERROR_RESPONSES[self.dialect.name].get(fault.refusal, (500, {"error": "?"}))
            body = fault.body if fault.body is not None else json.dumps(content).encode()
            await _send(writer, fault.status or status, {"content-type": "application/json", **fault.headers}, body)
            return True
        return False

    def _not_streamed_response(self, fault: Fault) -> tuple[str, bytes]:
        dialect, text = self.dialect, "".join(self.pieces)
        if fault.name == "empty":
            return dialect.content_type, b""
        if fault.name == "page":
            return "text/html", b"<!DOCTYPE html><html><body>Sign in</body></html>"
        body = {
            "whole": dialect.answer_body(text, thinking=self.thinking),
            "whole_cut": dialect.answer_body(text)[:-25],
            "whole_no_finish": dialect.answer_body(text, finish=None),
            "error_body": dialect.error_body(),
        }[fault.name]
        return "application/json", body

    async def _stream(
        self, fault: Fault | None, request: ReceivedRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {self.dialect.content_type}\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head.encode())
        watcher = asyncio.ensure_future(_watch_disconnect(request, reader))
        try:
            for part in self._stream_parts(fault, request):
                await self._write(writer, part)
                if fault and fault.name == "slow":
                    await asyncio.sleep(fault.seconds)
            while fault and fault.name == "drip" and not request.gone.is_set():
                await self._write(writer, self.dialect.piece("drop "))
                await asyncio.sleep(fault.seconds)
            if fault and fault.name in ("stall", "lingers"):
                await request.gone.wait()
        except OSError:  # the client disconnected during a write
            request.gone.set()
            raise
        finally:
            # Stop the watcher before the body ends, so that it does not read a byte of the next request
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
        if fault and fault.name == "reset":
            _reset(writer)
        if request.gone.is_set() or (fault and fault.name in ("drop", "reset")):
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    def _answer_pieces(self, request: ReceivedRequest) -> list[str]:
        """Return the pieces of the answer. If the request continues a partial answer, return the rest."""
        prefill, text = self.dialect.prefill(request.body), "".join(self.pieces)
        if prefill is None:
            return self.pieces
        rest = text.removeprefix(prefill)
        if rest == text and prefill:
            return self.derailed
        return [piece for piece in re.split(r"(?<=\s)|(?=\s)", rest) if piece]

    def _stream_parts(self, fault: Fault | None, request: ReceivedRequest) -> Iterator[bytes]:
        """Yield the parts of the stream's body. A fault changes or omits parts, but "slow" only delays them."""
        dialect, name = self.dialect, fault.name if fault and fault.name != "slow" else ""
        pieces = self._answer_pieces(request)
        if name == "error_first":
            yield dialect.error()
            return
        yield dialect.opening()
        if self.thinking and pieces is self.pieces:  # not before a continuation
            yield dialect.piece(thinking=self.thinking)
        texts = dialect.prompt_texts(request.body)
        prompt_tokens = self.prompt_tokens or max(5, sum(len(text.split()) for text in texts))
        parts = [*map(dialect.piece, pieces), *map(dialect.call, self.calls)]
        if fault and name in _AFTER_PIECES:
            parts = parts[: fault.after]
        yield from parts if name != "silent" else []
        finish = "tool_calls" if self.calls and not dialect.is_ndjson else "stop"
        bad_line = b"{not json}\n" if dialect.is_ndjson else b"data: {not json}\n\n"
        ends: dict[str, list[bytes]] = {
            "half_line": [dialect.piece("half")[:-9]],
            "error_frame": [dialect.error()],
            "malformed": [bad_line, dialect.last_piece(), dialect.terminator()],
            "unknown_finish": [dialect.last_piece("load" if dialect.is_ndjson else "abort"), dialect.terminator()],
            "filtered": [dialect.last_piece("content_filter"), dialect.terminator()],
            "done_without_finish": [dialect.last_piece(None) if dialect.is_ndjson else dialect.terminator()],
            "no_finish": [dialect.last_piece(None)],
            "error_after_finish": [dialect.last_piece(), dialect.error(), dialect.terminator()],
            "silent": [dialect.last_piece(), dialect.terminator()],
            "lingers": [dialect.last_piece()],
            "": [dialect.last_piece(finish, prompt_tokens), dialect.usage(prompt_tokens), dialect.terminator()],
        }
        yield from ends.get(name, [])

    async def _write(self, writer: asyncio.StreamWriter, part: bytes) -> None:
        size = self.slice_bytes or len(part) or 1
        for offset in range(0, len(part), size):
            data = part[offset : offset + size]
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await writer.drain()
            if self.slice_bytes:
                await asyncio.sleep(0)


def closed_port() -> int:
    """Return a loopback port that refuses connections. It stays reserved until this process ends."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))  # the socket does not listen
    port = int(bound.getsockname()[1])
    bound.detach()  # leaves the port bound
    return port


async def _read(reader: asyncio.StreamReader, connection_number: int) -> ReceivedRequest | None:
    """Read a request. Return None if the client closed the connection."""
    head = await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b""
    if not head:
        return None
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    while headers.get("transfer-encoding") == "chunked":
        size = int(await reader.readline(), 16)
        body += (await reader.readexactly(size + 2))[:size]
        if not size:
            break
    return ReceivedRequest(method, path, headers, json.loads(body) if body else None, connection_number)


async def _send(writer: asyncio.StreamWriter, status: int, headers: Mapping[str, str], body: bytes) -> None:
    lines = [f"HTTP/1.1 {status} Status", *(f"{name}: {value}" for name, value in headers.items())]
    writer.write("\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body)
    await writer.drain()


async def _watch_disconnect(request: ReceivedRequest, reader: asyncio.StreamReader) -> None:
    """Set ``request.gone`` when the client closes the connection."""
    with suppress(OSError):
        await reader.read(1)
    request.gone.set()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Send a TCP reset instead of closing the connection."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
