"""Any bytes of a server become a complete response or an LLMError, in bounded time and memory."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, field_validator
from support import provider_for

from learnflow.llm import RouterProvider, errors
from learnflow.llm.adapter import structured_output
from learnflow.llm.adapter.joining import split_last_word
from learnflow.llm.errors import LLMError
from learnflow.llm.providers import CustomProvider, LlamaCppProvider, OllamaProvider
from learnflow.llm.providers.ollama import NDJSONParser
from learnflow.llm.routing.breaker import BreakerRegistry
from learnflow.llm.testing import FaultServer
from learnflow.llm.transport import error_mapping
from learnflow.llm.transport.reasoning import ReasoningSplitter
from learnflow.llm.transport.sse_parser import SSEParser
from learnflow.llm.transport.stream_parser import StreamParser
from learnflow.llm.transport.untrusted import MAX_JSON_BYTES, dollars_or_none, json_object, non_negative_int

DONE = b"data: [DONE]\n\n"


def event(text: str | None = None, finish: str | None = None, **delta: object) -> bytes:
    content = {**({} if text is None else {"content": text}), **delta}
    return b"data: " + json.dumps({"choices": [{"delta": content, "finish_reason": finish}]}).encode() + b"\n\n"


def sse(body: bytes, **how: Any) -> tuple[SSEParser, str]:
    parser = SSEParser(**how)
    text = "".join(delta.text for delta in [*parser.feed(body), *parser.end()])
    return parser, text


@asynccontextmanager
async def served(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """Run a server with this handler; close all of its connections at the end."""
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            try:
                await answer(reader, writer)
            finally:
                writer.close()
                await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.ensure_future(handle(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


@asynccontextmanager
async def raw_server(*answers: bytes, keep: bool = False) -> AsyncIterator[str]:
    """Return a handler that sends one of these responses for each request, the last one for all others."""
    left = list(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if length:
                await reader.readexactly(int(length[0].partition(b":")[2]))
            writer.write(left.pop(0) if len(left) > 1 else left[0])
            await writer.drain()
            if not keep:
                break

    async with served(answer) as root:
        yield root


def http(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    lines = b"".join(b"\r\n" + header for header in headers)
    return b"HTTP/1.1 " + status + lines + b"\r\ncontent-length: " + str(len(body)).encode() + b"\r\n\r\n" + body


# A response is complete only if the server reported so.


@pytest.mark.parametrize("place", ["every", "first", "thinking"])
def test_finish_before_more_text_is_ignored(place: str) -> None:
    """Gateways send "stop" with every chunk, with the first one, or with thinking."""
    on = {"every": (True, True), "first": (True, False), "thinking": (False, False)}[place]
    thought = event(None, "stop", reasoning="hm") if place == "thinking" else b""
    body = thought + event("a", "stop" if on[0] else None) + event("b", "stop" if on[1] else None)
    cut, text = sse(body)
    assert text == "ab"
    assert isinstance(cut.fault, errors.AnswerCut | errors.FinishMissing), cut.finish
    complete, text = sse(body + event(None, "stop") + DONE)
    assert (text, complete.fault, complete.finish) == ("ab", None, "stop")


async def test_response_cut_after_finish_with_every_chunk_is_answer_cut() -> None:
    body = event("The quick ", "stop") + event("brown ", "stop")
    async with raw_server(http(body, b"content-type: text/event-stream")) as root:
        with pytest.raises(errors.AnswerCut) as caught:
            await CustomProvider(base_url=root, model="m").generate("hi")
    assert caught.value.partial == "The quick brown "


def test_finish_with_last_text_is_enough_at_end_of_body() -> None:
    parser, text = sse(event("a") + event("b", "stop"))
    assert (text, parser.fault, parser.finish) == ("ab", None, "stop")


def test_finish_with_text_is_not_settled_before_end() -> None:
    parser = SSEParser()
    parser.feed(event("a", "stop"))
    assert not parser.is_complete
    parser.feed(DONE)
    assert parser.is_complete


async def test_missing_finish_can_be_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = http(event("fine") + DONE, b"content-type: text/event-stream")
    async with raw_server(answer) as root:
        with pytest.raises(errors.FinishMissing):
            await CustomProvider(base_url=root, model="m").generate("hi")
        monkeypatch.setenv("CUSTOM_CAPABILITIES", "no-finish")
        assert await CustomProvider(base_url=root, model="m").generate("hi") == "fine"


def test_end_without_done_is_answer_cut_even_if_finish_is_missing() -> None:
    assert isinstance(sse(event("a"), finish_optional=True)[0].fault, errors.AnswerCut)


# SSE according to its standard.


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_lines_may_end_with_lf_cr_or_both(end: bytes, cut: int) -> None:
    body = (b": hello\n" + event("a") + event("b", "stop") + DONE).replace(b"\n", end)
    parser = SSEParser()
    text = "".join(delta.text for data in (body[:cut], body[cut:]) if data for delta in parser.feed(data))
    assert text + "".join(delta.text for delta in parser.end()) == "ab"
    assert parser.fault is None


def test_carriage_return_and_line_feed_may_be_split() -> None:
    parser = SSEParser()
    body = (event("a", "stop") + DONE).replace(b"\n", b"\r\n")
    texts = [delta.text for at in range(len(body)) for delta in parser.feed(body[at : at + 1])]
    assert "".join(texts) == "a"
    assert parser.is_complete


def test_unknown_fields_are_ignored() -> None:
    parser, text = sse(b"retry: 1\nsomething: else\nx-vendor\n" + event("a", "stop") + DONE)
    assert (text, parser.fault) == ("a", None)


def test_content_may_be_list_of_parts() -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "a"},
        {"type": "reference", "reference_ids": [1]},
        {"type": "text", "text": "b"},
    ]
    parser = SSEParser()
    deltas = parser.feed(event(finish="stop", content=parts) + DONE)
    assert "".join(delta.text for delta in deltas) == "ab"
    assert "".join(delta.thinking for delta in deltas) == "hm"
    assert parser.fault is None


# Depth, digits, sizes.

DEEP = b"[" * 200_000
NESTED = b'{"a":' * 600 + b"1" + b"}" * 600
DIGITS = b"9" * 5000


@pytest.mark.parametrize("odd", [DEEP, NESTED, DIGITS, b'{"choices": ' + DIGITS + b"}", b'{"error": ' + NESTED + b"}"])
@pytest.mark.parametrize("parser", [SSEParser, NDJSONParser])
def test_json_that_is_deep_or_long_is_malformed_answer(odd: bytes, parser: type[StreamParser]) -> None:
    for body in (odd, b"data: " + odd + b"\n\n", odd + b"\n"):
        one = parser()
        one.feed(body)
        one.end()
        assert isinstance(one.fault, LLMError)


@pytest.mark.parametrize("arguments", [DEEP.decode(), NESTED.decode() + "]", DIGITS.decode(), "{'a': 1}", "[]"])
def test_tool_arguments_that_are_not_object_raise_malformed_answer(arguments: str) -> None:
    call = {"index": 0, "id": "a", "function": {"name": "look", "arguments": arguments}}
    parser, _ = sse(event(tool_calls=[call]) + event(None, "tool_calls") + DONE)
    if not isinstance(parser.fault, errors.MalformedAnswer):
        with pytest.raises(errors.MalformedAnswer):
            parser.tool_calls()


@pytest.mark.parametrize("indexes", [[0, "1"], [None, 2], ["0", None], [-1, 10**400], [True, 0], [{}, 0]])
def test_tool_call_index_may_be_anything(indexes: list[object]) -> None:
    calls = [
        {"index": index, "id": f"call {n}", "function": {"name": f"tool {n}", "arguments": "{}"}}
        for n, index in enumerate(indexes)
    ]
    parser, _ = sse(b"".join(event(tool_calls=[call]) for call in calls) + event(None, "tool_calls") + DONE)
    with suppress(errors.MalformedAnswer):  # two calls joined by one index are not JSON
        assert parser.fault or parser.tool_calls()


@pytest.mark.parametrize(
    ("value", "tokens", "price"),
    [
        (3, 3, 3.0),
        (0, 0, 0.0),
        (-1, None, None),
        (10**30, None, None),
        (True, None, None),
        ("3", None, None),
        (float("nan"), None, None),
        (float("inf"), None, None),
        (0.5, None, 0.5),
        (-0.5, None, None),
        (None, None, None),
    ],
)
def test_invalid_count_or_price_is_unknown(value: Any, tokens: int | None, price: float | None) -> None:
    assert (non_negative_int(value), dollars_or_none(value)) == (tokens, price)


@pytest.mark.parametrize("parser", [SSEParser, NDJSONParser])
def test_line_event_and_body_have_size_limit(parser: type[StreamParser]) -> None:
    lines: list[Callable[[int], bytes]] = [
        lambda _: b"data: " + b"x" * 100_000,
        lambda _: b'{"a": "' + b"x" * 100_000,
        lambda _: b"data: " + b"y" * 100_000 + b"\n",
    ]
    for line in lines[: 3 if parser is SSEParser else 2]:
        one = parser()
        tracemalloc.start()
        for n in range(2 * MAX_JSON_BYTES // 100_000):
            one.feed(line(n))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert isinstance(one.fault, errors.MalformedAnswer)
        assert most < 4 * MAX_JSON_BYTES


@pytest.mark.parametrize("kind", ["text", "thinking", "arguments"])
def test_endless_response_raises_answer_too_long(kind: str) -> None:
    parser = SSEParser(max_tokens=1000)
    call = [{"index": 0, "id": "a", "function": {"name": "n", "arguments": "x" * 10_000}}]
    content = {
        "text": {"content": "x" * 10_000},
        "thinking": {"reasoning": "x" * 10_000},
        "arguments": {"tool_calls": call},
    }
    for _ in range(1000):
        parser.feed(event(**content[kind]))
        if parser.fault:
            break
    assert isinstance(parser.fault, errors.AnswerTooLong)


def test_long_response_within_max_tokens_is_complete() -> None:
    parser = SSEParser(max_tokens=25_000)
    for _ in range(150):
        parser.feed(event("слово " * 1000))
    assert parser.fault is None


async def test_endless_response_is_not_continued() -> None:
    async with FaultServer(answer=["x" * 20_000] * 100) as first, FaultServer(answer="fine") as second:
        chain = RouterProvider(provider_for(first), [provider_for(second)])
        assert await chain.generate("hi") == "fine"  # nothing was shown: another provider may start again
        pieces = []
        with pytest.raises(errors.AnswerTooLong):
            async for piece in chain.stream("hi"):
                pieces.append(piece)
        assert pieces
        assert len(second.seen) == 1


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
async def test_compressed_response_is_inflated_in_bounded_pieces(compress: Callable[[bytes], bytes]) -> None:
    encoding = b"content-encoding: " + (b"gzip" if compress is gzip.compress else b"deflate")
    body = compress(event("fine", "stop") + DONE)
    bomb = compress(b"data: " + b"x" * 200_000_000)
    async with raw_server(http(body, encoding), http(body[: len(body) // 2], encoding), http(bomb, encoding)) as root:
        provider = CustomProvider(base_url=root, model="m")
        assert await provider.generate("hi") == "fine"
        with pytest.raises(errors.BrokenAnswer):
            await provider.generate("hi")
        tracemalloc.start()
        with pytest.raises(errors.MalformedAnswer):
            await provider.generate("hi")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 8 * MAX_JSON_BYTES


async def test_unknown_compression_is_malformed_answer() -> None:
    async with raw_server(http(b"x", b"content-encoding: br")) as root:
        with pytest.raises(errors.MalformedAnswer, match="compressed"):
            await CustomProvider(base_url=root, model="m").generate("hi")


# Refusals and pages.

REPEATED = [
    b"input length ",
    b"model ",
    b" ",
    b"deployment ",
    b"tokens (",
    b"max_tokens ",
    b"{",
    b'{"error":',
    b"\\u0041",
]


@pytest.mark.parametrize("words", REPEATED)
@pytest.mark.parametrize("status", [400, 404, 500])
def test_slow_body_of_refusal_is_not_waited_for(words: bytes, status: int) -> None:
    body = words * (256 * 1024 // len(words))
    wrapped = json.dumps({"error": {"message": body.decode(), "code": body.decode()}}).encode()
    for content in (body, wrapped):
        began = time.process_time()
        error = error_mapping.map_response(status, content)
        assert time.process_time() - began < 0.5
        assert len(str(error)) < 1000


@pytest.mark.parametrize(
    "headers",
    [
        {"retry-after": "²"},
        {"retry-after": "9" * 5000},
        {"retry-after": "Fri, 99 Nov 99999 99:99:99 GMT", "date": "x"},
        {"retry-after": "Sun, 22 Nov 2026 10:00:00", "date": "Sun, 22 Nov 2026 10:00:00 GMT"},
        {"retry-after": "Sun, 22 Nov 2026 10:00:00 +9999999", "date": "Sun, 22 Nov 2026 10:00:00 GMT"},
        {"retry-after-ms": "nan"},
        {"retry-after-ms": "-5"},
    ],
)
def test_invalid_retry_after_is_ignored(headers: dict[str, str]) -> None:
    assert error_mapping.map_response(429, b"", headers).retry_after in (None, 0.0)


@pytest.mark.parametrize("code", ["²³¹", 10**3000, ["a"], {"a": 1}, None, "x" * 100_000, 1.5, "٤٠٤"])
def test_code_of_refusal_may_be_anything(code: object) -> None:
    try:
        body = json.dumps({"error": {"message": "no", "code": code, "type": code, "param": code}}).encode()
    except ValueError:
        body = b'{"error": {"message": "no", "code": ' + b"9" * 3000 + b"}}"
    error = error_mapping.map_response(400, body)
    assert isinstance(error, LLMError)
    assert all(len(name) <= 101 for name in error.params)
    assert len(error.code or "") <= 101


@pytest.mark.parametrize(
    "page", [DEEP, NESTED, b'{"data": ' + NESTED + b"}", b'{"models": [{"name": ' + DIGITS + b"}]}", b"\x00"]
)
@pytest.mark.parametrize("provider", [CustomProvider, OllamaProvider])
async def test_probe_never_raises(page: bytes, provider: type[CustomProvider]) -> None:
    async with raw_server(http(page)) as root:
        one = provider(base_url=root, model="m")
        assert await one.health_check() is False
        with pytest.raises(LLMError):
            await one.list_models()


@pytest.mark.parametrize("host", ["exa mple", "h\u00e9\u2028llo", "a" * 70, "xn--", "[::1", "1.2.3.4.5:99999"])
async def test_invalid_host_raises_connection_failed_or_not_configured(host: str) -> None:
    with pytest.raises((errors.NotConfigured, errors.ConnectionFailed, errors.ConnectTimeout)):
        await CustomProvider(base_url=f"http://{host}/v1", model="m", connect_timeout=0.5).generate("hi")


# Connections.


async def test_extra_bytes_are_not_start_of_next_response() -> None:
    good = event("first", "stop") + DONE
    behind = http(event("STALE", "stop") + DONE)
    answers = http(good) + behind, http(event("second", "stop") + DONE)
    async with raw_server(*answers, keep=True) as root:
        provider = CustomProvider(base_url=root, model="m")
        assert await provider.generate("hi") == "first"
        assert await provider.generate("hi") == "second"


async def test_dead_name_server_does_not_delay_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def dead(host: str, *more: Any, **how: Any) -> Any:
        if host == "gpu.dead.example":
            lookups.append(host)
            over.wait(30)
            ended.append(host)
        return real(host, *more, **how)

    lookups, ended, over = list[str](), list[str](), threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", dead)
    async with FaultServer() as server:
        first = CustomProvider(base_url="http://gpu.dead.example/v1", model="m", connect_timeout=0.3)
        port = server.root.rpartition(":")[2]
        second = CustomProvider(base_url=f"http://localhost:{port}/v1", model="m")  # which is resolved, too
        chains = [RouterProvider(first, [second]) for _ in range(16)]
        answers = await asyncio.gather(*(chain.generate("hi") for chain in chains))
        assert ended == []  # every response arrived while the name server was silent
        over.set()
    assert set(answers) == {"The quick brown fox jumps over the lazy dog."}
    assert len(lookups) == 1  # one lookup for all requests


async def test_missing_file_descriptor_raises_connection_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer() as server:
        provider = provider_for(server)

        def none_left(*_: Any, **__: Any) -> Any:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(socket, "socket", none_left)
        with pytest.raises(errors.ConnectionFailed):
            await provider.generate("hi")


# Images by URL, for a server that accepts only inline images.


def picture(url: str) -> list[dict[str, Any]]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}]


async def test_ollama_gets_a_data_url_and_refuses_an_image_by_url_before_it_sends() -> None:
    async with FaultServer("ollama") as server:
        with pytest.raises(errors.Unsupported, match=r"Ollama.*data:image/png;base64"):
            await provider_for(server).generate(picture("http://127.0.0.1:9/cat.png"))
        assert not server.seen
        await provider_for(server).generate(picture("data:image/png;base64,iVBORw0KGgo="))
        assert server.seen[0].body["messages"][0]["images"] == ["iVBORw0KGgo="]


async def test_router_falls_back_to_a_provider_that_reads_an_image_by_url() -> None:
    async with FaultServer("ollama") as first, FaultServer() as second:
        router = RouterProvider(provider_for(first), [provider_for(second)])
        done = await router.complete(picture("https://example.org/cat.png"))
        assert done.provider == "custom"
        assert not first.seen
        assert second.seen[0].body["messages"][0]["content"][1]["image_url"]["url"] == "https://example.org/cat.png"
        assert router.status()[0]["breaker"] == "closed"


@pytest.mark.parametrize(
    "part",
    [{"type": "image", "url": "x"}, {"type": "input_image"}, {"type": "file", "file": {"file_id": "https://x/y"}}],
)
async def test_message_part_that_would_be_omitted_or_fetched_is_refused(part: dict[str, Any]) -> None:
    async with FaultServer() as server:
        with pytest.raises(errors.Unsupported):
            await provider_for(server).generate([{"role": "user", "content": [{"type": "text", "text": "a"}, part]}])
        assert not server.seen


# Bytes of any kind, in any reads.

SCRAPS = st.sampled_from(
    [
        *(b"data: ", b"event: error\n", b"\n", b"\r", b"\r\n", b"\n\n", b": x\n", b"[DONE]", b"{", b"}", b"[", b"]"),
        *(b'"', b'"choices":[', b'"delta":{"content":"a"}', b'"finish_reason":"stop"', b'"done":true', b'"error":'),
        *(b"null", b"\\ud83d", b"\xff", b"\xef\xbb\xbf", b"NaN", b"-1", b"1e999", b"<", b"<think>", b"</think>"),
        *(event("a"), event("b", "stop"), DONE, b'{"message":{"content":"a"},"done":false}\n', b'{"done":true}\n'),
    ]
)


@settings(max_examples=300)
@given(
    parts=st.lists(st.one_of(SCRAPS, st.binary(max_size=20)), max_size=12),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    kind=st.sampled_from([SSEParser, NDJSONParser]),
)
def test_any_bytes_are_complete_or_fault(parts: list[bytes], cuts: list[int], kind: type[StreamParser]) -> None:
    body = b"".join(parts)
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    parser = kind()
    deltas = [delta for a, b in pairwise(edges) if a < b for delta in parser.feed(body[a:b])] + parser.end()
    assert all(isinstance(part, str) for delta in deltas for part in (delta.text, delta.thinking))
    assert all(isinstance(call.arguments, str) and call.name for delta in deltas for call in delta.calls)
    assert parser.fault is not None or parser.finish is not None
    assert parser.fault is None or isinstance(parser.fault, LLMError)


@settings(max_examples=300)
@given(status=st.integers(200, 599), parts=st.lists(st.one_of(SCRAPS, st.binary(max_size=20)), max_size=8))
def test_any_refusal_and_any_page_is_parsed(status: int, parts: list[bytes]) -> None:
    body = b"".join(parts)
    error = error_mapping.map_response(status, body, {"retry-after": body[:9].decode("latin-1")})
    assert isinstance(error, LLMError)
    assert all(line.isprintable() for line in str(error).splitlines())
    assert json_object(body) is None or isinstance(json_object(body), dict)


# Found by a security review.


@pytest.mark.parametrize("text", ["[" * 1000, '{"a":' * 1000])
async def test_deeply_nested_answer_is_schema_mismatch(text: str) -> None:
    async with FaultServer(answer=text) as one, FaultServer(answer='{"a": 1}') as two:
        wanted = {"type": "json_object"}
        with pytest.raises(errors.SchemaMismatch):
            await provider_for(one).generate("hi", response_format=wanted)
        chain = RouterProvider(provider_for(one), [provider_for(two)])
        assert await chain.generate("hi", response_format=wanted) == '{"a": 1}'


async def test_exception_of_validator_is_schema_mismatch() -> None:
    class Odd(BaseModel):
        x: int

        @field_validator("x")
        @classmethod
        def inverse(cls, x: int) -> int:
            return 1 // x

    async with FaultServer(answer='{"x": 0}') as server:
        with pytest.raises(errors.SchemaMismatch, match="ZeroDivisionError"):
            await provider_for(server).complete("hi", response_format=Odd)


BLANKS = [" ", "\n", "\t"]


@pytest.mark.parametrize("blank", BLANKS)
def test_white_space_is_parsed_in_linear_time(blank: str) -> None:
    began = time.process_time()
    split_last_word("a" + blank * 300_000 + "b c")
    split_last_word("a" + blank * 300_000)
    for text in ("```" + blank * 300_000 + "x", "```json\n" + blank * 300_000):
        with suppress(errors.SchemaMismatch):
            structured_output.parse_json_answer(text)
    splitter = ReasoningSplitter()
    for _ in range(20_000):
        splitter.feed(blank)
    parser = SSEParser()
    for _ in range(50_000):
        parser.feed(blank.encode())
    assert time.process_time() - began < 2


def test_json_with_too_many_values_is_not_parsed() -> None:
    assert json_object(b'{"x":[' + b"[]," * 200_000 + b"[]]}") is None


async def test_empty_tool_call_piece_does_not_reset_gap_timeout() -> None:
    empty = event(tool_calls=[{"index": 0}])

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + event("a"))
        for _ in range(60):
            writer.write(empty)
            await writer.drain()
            await asyncio.sleep(0.05)

    async with served(answer) as root:
        provider = CustomProvider(base_url=root, model="m", gap_timeout=0.4)
        with pytest.raises(errors.GapTimeout):
            await provider.generate("hi")


def test_unknown_content_part_is_fault() -> None:
    assert sse(event(finish="stop", content=["ab", {"text": "cd"}]) + DONE)[1] == "abcd"
    parser, _ = sse(event(finish="stop", content=[{"type": "answer", "words": "ab"}]) + DONE)
    assert isinstance(parser.fault, errors.MalformedAnswer)


@pytest.mark.parametrize("status", [401, 429])
@pytest.mark.parametrize("headers", [[b"content-encoding: br"], [b"content-length: 999"]])
async def test_refusal_with_broken_body_has_its_status(status: int, headers: list[bytes]) -> None:
    head = b"HTTP/1.1 " + str(status).encode() + b" No\r\n" + b"\r\n".join(headers) + b"\r\n\r\n{}"
    async with raw_server(head) as root:
        with pytest.raises((errors.AuthenticationFailed, errors.RateLimited)) as caught:
            await CustomProvider(base_url=root, model="m").generate("hi")
    assert caught.value.status == status


async def test_queued_requests_fail_at_once_if_server_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def dead(host: str, *more: Any, **how: Any) -> Any:
        if host == "gpu.dead.example":
            over.wait(30)
            ended.append(host)
        return real(host, *more, **how)

    ended, over = list[str](), threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", dead)
    async with FaultServer() as server:
        first = LlamaCppProvider(base_url="http://gpu.dead.example/v1", model="m", connect_timeout=0.4)
        chain = RouterProvider(first, [provider_for(server)], breakers=BreakerRegistry())
        await asyncio.gather(*(chain.generate("hi") for _ in range(16)))
        assert ended == []  # every response arrived while the name server was silent
        over.set()


async def test_unread_extra_bytes_are_not_start_of_next_response() -> None:
    """asyncio reads more at once than httpcore: the rest waits in a buffer that neither h11 nor httpcore checks."""
    good = event("first", "stop") + DONE
    head = len(http(good + b"\n" * 65_000)) - len(good) - 65_000
    good += b"\n" * (65_536 - head - len(good))
    first = http(good)
    assert len(first) == 65_536
    second = http(event("second", "stop") + DONE)
    async with raw_server(first + http(event("STALE", "stop") + DONE), second, keep=True) as root:
        provider = CustomProvider(base_url=root, model="m")
        assert await provider.generate("hi") == "first"
        assert await provider.generate("hi") == "second"


async def test_request_is_not_sent_again_after_invalid_response() -> None:
    seen = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            seen += 1
            writer.write(b"NONSENSE 200\r\n\r\n" if seen > 1 else http(event("fine", "stop") + DONE))
            await writer.drain()

    async with served(answer) as root:
        provider = CustomProvider(base_url=root, model="m")
        await provider.generate("hi")
        with pytest.raises(LLMError):
            await provider.generate("hi")
    assert seen == 2


@pytest.mark.parametrize("again", [event(None, "stop"), event(None, "stop", reasoning="hm")])
def test_empty_chunk_does_not_settle_finish_with_text(again: bytes) -> None:
    parser = SSEParser()
    parser.feed(event("The quick ", "stop") + again)
    assert not parser.is_complete
    parser.feed(event("brown", "stop") + event(None, "stop") + DONE)
    assert parser.is_complete
    assert parser.fault is None


async def test_refusal_of_backslashes_is_parsed_in_linear_time() -> None:
    error = b'data: {"error": {"message": "it broke"}}\n\n'
    async with raw_server(http(event("\\" * 200_000) + error, b"content-type: text/event-stream")) as root:
        began = time.process_time()
        with pytest.raises(errors.ErrorInAnswer):
            await CustomProvider(base_url=root, model="m").generate("hi")
        assert time.process_time() - began < 2


async def test_body_in_tiny_pieces_yields_to_other_tasks() -> None:
    body = b"".join(b"1\r\nx\r\n" for _ in range(60_000)) + b"0\r\n\r\n"
    answer = b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n" + body
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.001)
            turns += 1

    async with raw_server(answer) as root:
        ticking = asyncio.create_task(tick())
        with pytest.raises(errors.ServerFailed):
            await CustomProvider(base_url=root, model="m").generate("hi")
        ticking.cancel()
    assert turns > 10  # one or two if the body blocked the loop


@pytest.mark.parametrize("encoding", ["gzip, gzip", "identity, br"])
async def test_list_of_encodings_is_refused_by_name(encoding: str) -> None:
    packed = gzip.compress(event("fine", "stop") + DONE)
    async with raw_server(http(packed, b"content-encoding: " + encoding.encode())) as root:
        with pytest.raises(errors.MalformedAnswer, match="compressed"):
            await CustomProvider(base_url=root, model="m").generate("hi")


async def test_identity_in_list_of_encodings_is_ignored() -> None:
    packed = gzip.compress(event("fine", "stop") + DONE)
    async with raw_server(http(packed, b"content-encoding: identity, gzip")) as root:
        assert await CustomProvider(base_url=root, model="m").generate("hi") == "fine"


def test_event_without_data_resets_event_type() -> None:
    assert sse(b"event: error\n\n" + event("fine", "stop") + DONE)[1] == "fine"


@pytest.mark.parametrize(
    "content",
    [
        "Das „</think>“ Tag endet es.",
        "Write x = '</think>\\n' there.",
        'The pattern r"</think>\\s*" finds it.',
        "|</think>|closes|",
        "You use a </think>-tag for it.",
    ],
)
def test_closing_tag_in_quotes_or_code_is_text(content: str) -> None:
    splitter = ReasoningSplitter(hold=True)
    pieces = [splitter.feed(letter) for letter in content] + [splitter.end()]
    assert "".join(piece.text for piece in pieces) == content
