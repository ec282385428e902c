"""A model server on loopback that answers like five real ones, and fails by name.

Must never listen anywhere but on loopback.
Tests of this project and of applications use it; it needs nothing but the standard library.
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
from types import TracebackType
from typing import Any, Final, Literal, Self, get_args

from ..completion import ToolCallDelta
from ..transport.endpoint import origin
from .dialects import REFUSALS, Dialect, DialectName

FaultName = Literal[
    "cut",  # the stream ends properly in the middle
    "half_line",  # the stream ends properly in the middle of a line
    "drop",  # the connection closes in the middle, without the end of the body
    "reset",  # the connection is reset in the middle
    "stall",  # nothing more comes
    "slow",  # no fault, but ``seconds`` between the pieces
    "drip",  # pieces come for ever, one every ``seconds``
    "done_without_finish",  # [DONE], but no finish_reason (Ollama: "done": false)
    "no_finish",  # the last piece has no finish, and nothing follows
    "error_frame",  # an error object in the middle, as the dialect sends it
    "error_first",  # an error object before any text
    "error_after_finish",  # an error object after the finish
    "malformed",  # a line that is none
    "unknown_finish",  # a finish that does not mean whole
    "filtered",  # finish content_filter
    "silent",  # finished properly, and no text
    "empty",  # a 200 with nothing in it
    "error_body",  # a 200 with an error object
    "page",  # a 200 with a web page
    "lingers",  # no fault in the answer, but the connection is not ended
    "whole",  # no fault: the answer in one piece although a stream was asked for
    "whole_cut",  # in one piece, and the JSON is cut in half
    "whole_no_finish",  # in one piece, finish_reason null (Ollama: "done": false)
    "refuse",  # the status and body that ``refusal`` names
    "hang",  # nothing comes at all
    "close",  # the connection closes before a byte was sent
    "redirect",  # a 307 to elsewhere
]


# Where those listen that run now: scheme, host, port.
RUNNING: Final[set[tuple[str, str, int]]] = set()


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer.

    Attributes:
        name: see ``FaultName``.
        after: how many pieces come before it.
        refusal: for "refuse": key, model, overflow, rate, quota, busy, loading, failed, request, filter.
        headers: added to the answer.
        body: instead of the dialect's own body of a refusal.
        status: the HTTP status of a refusal, instead of its usual one.
        seconds: between two pieces, for "slow" and "drip".
    """

    name: FaultName
    after: int = 3
    refusal: str = "failed"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    status: int | None = None
    seconds: float = 0.01


@dataclass
class Seen:
    """A request that came, and what became of it."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    connection: int
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class FaultServer:
    """``async with FaultServer("vllm") as server:`` then ask ``server.base_url``.

    Args:
        dialect: openai, lmstudio, vllm, llamacpp or ollama.
        answer: the pieces of its answer; a text is cut into words.
        thinking: sent before, in the dialect's own field.
        calls: pieces of tool calls, sent after the answer; Ollama's come whole.
        fault: what goes wrong with each answer; None for none.
        slice_bytes: write the body in slices of so many bytes.
        key: a key that must be sent.
        reads: how many tokens of a question it says it has read; None for as many as there are words.
        tells: pages about itself beside its dialect's own: JSON, bytes, or a status and either, by path.

    Attributes:
        seen: the requests that came to the chat route.
        pages: those that came elsewhere, as method and path.
        tells: what it says of itself there; may be changed at any time.
        derailed: the pieces that it goes on with where the beginning that it is given is not its answer's.
        fault: may be changed at any time; ``script`` is used up first, one entry a request.
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
        tells: Mapping[str, Any] | None = None,
        reads: int | None = None,
    ) -> None:
        assert dialect in get_args(DialectName)  # noqa: S101  # a test's own mistake
        self.dialect: Final = Dialect(dialect)
        self.pieces: list[str] = [word + " " for word in answer.split(" ")] if isinstance(answer, str) else answer
        if isinstance(answer, str):
            self.pieces[-1] = self.pieces[-1][:-1]
        self.thinking = thinking
        self.calls = calls
        self.derailed = ["something ", "else"]
        self.fault = fault
        self.script: list[Fault | None] = []
        self.slice_bytes = slice_bytes
        self.key = key
        self.reads = reads
        self.seen: list[Seen] = []
        self.pages: list[tuple[str, str]] = []
        self.tells: dict[str, Any] = {**self.dialect.pages(), **(tells or {})}
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def root(self) -> str:
        """``http://127.0.0.1:PORT``."""
        assert self._server  # noqa: S101  # asked for after __aenter__
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def base_url(self) -> str:
        """As a client wants it."""
        return self.root if self.dialect.lines else f"{self.root}/v1"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        RUNNING.add(origin(self.root))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server  # noqa: S101
        RUNNING.discard(origin(self.root))
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:  # what nobody reads any more must not keep a socket open
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task  # noqa: S101
        self._tasks.add(task)
        self._writers.append(writer)
        self.connections += 1
        number = self.connections
        try:
            while (seen := await _read(reader, number)) is not None:
                if not await self._answer(seen, reader, writer):
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False closes the connection."""
        raw = self.dialect.lines and seen.method == "POST" and seen.path == "/api/generate" and "prompt" in seen.body
        if not raw and not seen.path.partition("?")[0].endswith(self.dialect.chat_path):
            self.pages.append((seen.method, seen.path))
            return await self._page(seen, writer)
        if seen.body and seen.body.get("_debug_render_only"):
            await _send(writer, 200, {"content-type": "application/json"}, self.dialect.rendered(seen.body["messages"]))
            return True
        if not isinstance(seen.body, dict):
            self.pages.append((seen.method, seen.path))
            return await self._page(seen, writer)
        self.seen.append(seen)
        fault = self.script.pop(0) if self.script else self.fault
        if self.key and f"Bearer {self.key}" != seen.headers.get("authorization"):
            fault = Fault("refuse", refusal="key")
        if fault and fault.name in ("refuse", "redirect", "hang", "close"):
            return await self._no_answer(fault, seen, reader, writer)
        if fault and fault.name in ("whole", "whole_cut", "whole_no_finish", "empty", "error_body", "page"):
            kind, body = self._one_piece(fault)
            await _send(writer, 200, {"content-type": kind}, body)
            return True
        return await self._stream(fault, seen, reader, writer)

    async def _page(self, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        """What it says of itself."""
        told = self.tells.get(seen.path.partition("?")[0], (404, {"error": "not found"}))
        status, said = told if isinstance(told, tuple) else (200, told)
        if self.key and f"Bearer {self.key}" != seen.headers.get("authorization") and not seen.path.endswith("/health"):
            status, said = REFUSALS[self.dialect.name]["key"]
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        kind = "text/html" if body.startswith(b"<") else "application/json"
        await _send(writer, status, {"content-type": kind, **self.dialect.headers}, body)
        return True

    async def _no_answer(
        self, fault: Fault, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if fault.name == "hang":
            await _gone(seen, reader)
        elif fault.name == "redirect":
            await _send(writer, 307, {"location": "http://example.org/v1/chat/completions", **fault.headers}, b"")
        elif fault.name == "refuse":
            status, said = REFUSALS[self.dialect.name].get(fault.refusal, (500, {"error": "?"}))
            body = fault.body if fault.body is not None else json.dumps(said).encode()
            await _send(writer, fault.status or status, {"content-type": "application/json", **fault.headers}, body)
            return True
        return False

    def _one_piece(self, fault: Fault) -> tuple[str, bytes]:
        say, text = self.dialect, "".join(self.pieces)
        if fault.name == "empty":
            return say.content_type, b""
        if fault.name == "page":
            return "text/html", b"<!DOCTYPE html><html><body>Sign in</body></html>"
        body = {
            "whole": say.whole(text, thinking=self.thinking),
            "whole_cut": say.whole(text)[:-25],
            "whole_no_finish": say.whole(text, finish=None),
            "error_body": say.error_body(),
        }[fault.name]
        return "application/json", body

    async def _stream(
        self, fault: Fault | None, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        kind = f"content-type: {self.dialect.content_type}"
        writer.write(f"HTTP/1.1 200 OK\r\n{kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        watcher = asyncio.ensure_future(_gone(seen, reader))
        try:
            for part in self._parts(fault, seen):
                await self._write(writer, part)
                if fault and fault.name == "slow":
                    await asyncio.sleep(fault.seconds)
            while fault and fault.name == "drip" and not seen.gone.is_set():
                await self._write(writer, self.dialect.piece("drop "))
                await asyncio.sleep(fault.seconds)
            if fault and fault.name in ("stall", "lingers"):
                await seen.gone.wait()
        except OSError:  # the client left while a part was written
            seen.gone.set()
            raise
        finally:
            watcher.cancel()  # before the end of the body: the next byte belongs to the next request
            with suppress(asyncio.CancelledError):
                await watcher
        if fault and fault.name == "reset":
            _reset(writer)
        if seen.gone.is_set() or (fault and fault.name in ("drop", "reset")):
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    def _goes_on(self, seen: Seen) -> list[str]:
        """The pieces of the answer, or of what follows the part that the request gives it."""
        begun, text = self.dialect.begun(seen.body), "".join(self.pieces)
        if begun is None:
            return self.pieces
        rest = text.removeprefix(begun)
        if rest == text and begun:
            return self.derailed  # what a model does with a beginning that is not its own
        return [each for each in re.split(r"(?<=\s)|(?=\s)", rest) if each]

    def _parts(self, fault: Fault | None, seen: Seen) -> Iterator[bytes]:
        """The stream, piece by piece, up to where it breaks."""
        say, name = self.dialect, fault.name if fault and fault.name != "slow" else ""
        all_pieces = self._goes_on(seen)
        if name == "error_first":
            yield say.error()
            return
        yield say.opening()
        if self.thinking and all_pieces is self.pieces:
            yield say.piece(thinking=self.thinking)
        asked = [each.get("content") for each in seen.body.get("messages", ())] or [seen.body.get("prompt")]
        prompt = self.reads or max(5, sum(len(str(text).split()) for text in asked))
        whole = ("", "error_after_finish", "unknown_finish", "filtered", "no_finish", "done_without_finish", "lingers")
        parts = [*map(say.piece, all_pieces), *map(say.call, self.calls)]
        parts = parts if not fault or name in whole else parts[: fault.after]
        yield from parts if name != "silent" else []
        finish = "tool_calls" if self.calls and not say.lines else "stop"
        breaks: dict[str, list[bytes]] = {
            "half_line": [say.piece("half")[:-9]],
            "error_frame": [say.error()],
            "malformed": [b"data: {not json}\n\n" if not say.lines else b"{not json}\n", say.end(), say.done()],
            "unknown_finish": [say.end("load" if say.lines else "abort"), say.done()],
            "filtered": [say.end("content_filter"), say.done()],
            "done_without_finish": [say.end(None) if say.lines else say.done()],
            "no_finish": [say.end(None)],
            "error_after_finish": [say.end(), say.error(), say.done()],
            "silent": [say.end(), say.done()],
            "lingers": [say.end()],
            "": [say.end(finish, prompt), say.usage(prompt), say.done()],
        }
        yield from breaks.get(name, [])

    async def _write(self, writer: asyncio.StreamWriter, part: bytes) -> None:
        size = self.slice_bytes or len(part) or 1
        for at in range(0, len(part), size):
            data = part[at : at + size]
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await writer.drain()
            if self.slice_bytes:
                await asyncio.sleep(0)


def closed_port() -> int:
    """A port of loopback where nobody listens, for a server that refuses connections.

    Returns:
        The number of the port.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def _read(reader: asyncio.StreamReader, connection: int) -> Seen | None:
    """One request, or None when the client has gone."""
    head = await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b""
    if not head:
        return None
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Seen(method, path, headers, json.loads(body) if body else None, connection)


async def _send(writer: asyncio.StreamWriter, status: int, headers: Mapping[str, str], body: bytes) -> None:
    lines = [f"HTTP/1.1 {status} Status", *(f"{name}: {value}" for name, value in headers.items())]
    writer.write("\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body)
    await writer.drain()


async def _gone(seen: Seen, reader: asyncio.StreamReader) -> None:
    """Wait until the client closes its end."""
    with suppress(OSError):
        await reader.read(1)
    seen.gone.set()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the client sees a reset, not an end."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
