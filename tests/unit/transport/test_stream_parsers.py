"""The parsers: any split of a response gives the same text, and a cut response is never complete."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnflow.llm import errors
from learnflow.llm.providers.ollama import NDJSONParser
from learnflow.llm.testing.responses_dialect import dialect_of
from learnflow.llm.transport.responses_parser import ResponsesParser
from learnflow.llm.transport.sse_parser import SSEParser
from learnflow.llm.transport.stream_parser import StreamParser


def is_complete(parser: StreamParser) -> bool:
    return parser.finish is not None and parser.fault is None


DIALECTS = ["openai", "lmstudio", "vllm", "llamacpp", "ollama", "responses"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PIECES = st.lists(TEXT, max_size=8)


def reader(dialect: str) -> StreamParser:
    kinds: dict[str, type[StreamParser]] = {"ollama": NDJSONParser, "responses": ResponsesParser}
    return kinds.get(dialect, SSEParser)()


def stream(dialect: str, pieces: list[str], thinking: str = "") -> bytes:
    say = dialect_of(dialect)  # type: ignore[arg-type]
    thought = say.piece(thinking=thinking) if thinking else b""
    return (
        say.opening() + thought + b"".join(map(say.piece, pieces)) + say.last_piece() + say.usage() + say.terminator()
    )


def read(wire: StreamParser, body: bytes, cuts: list[int]) -> tuple[str, str]:
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    pieces = [piece for a, b in pairwise(edges) for piece in wire.feed(body[a:b])]
    pieces += wire.end()
    return "".join(piece.text for piece in pieces), "".join(piece.thinking for piece in pieces)


@pytest.mark.parametrize("dialect", DIALECTS)
@given(pieces=PIECES, thinking=TEXT, cuts=st.lists(st.integers(0, 10**6), max_size=12))
def test_any_response_in_any_reads_gives_same_text(
    dialect: str, pieces: list[str], thinking: str, cuts: list[int]
) -> None:
    wire = reader(dialect)
    assert read(wire, stream(dialect, pieces, thinking), cuts) == ("".join(pieces), thinking)
    assert is_complete(wire)
    assert wire.finish == "stop"
    assert wire.usage.completion_tokens == 7


@pytest.mark.parametrize("dialect", DIALECTS)
@given(pieces=PIECES, cut=st.integers(0, 10**6))
def test_response_cut_before_finish_is_never_complete(dialect: str, pieces: list[str], cut: int) -> None:
    say = dialect_of(dialect)  # type: ignore[arg-type]
    until_finish = say.opening() + b"".join(map(say.piece, pieces)) + say.last_piece()
    # the finish reason is read with the last character of its JSON
    body = until_finish[: cut % (len(until_finish.rstrip()))]
    wire = reader(dialect)
    text, _ = read(wire, body, [])
    assert not is_complete(wire)
    assert isinstance(wire.fault, errors.BrokenAnswer)
    assert "".join(pieces).startswith(text)


@pytest.mark.parametrize("dialect", DIALECTS)
@given(text=TEXT, cuts=st.lists(st.integers(0, 10**6), max_size=5), cut=st.integers(1, 10**6))
def test_document_is_complete_or_body_cut(dialect: str, text: str, cuts: list[int], cut: int) -> None:
    body = dialect_of(dialect).answer_body(text)  # type: ignore[arg-type]
    wire = reader(dialect)
    assert read(wire, body, cuts)[0] == text
    assert is_complete(wire)
    short = body.rstrip()[: -(cut % (len(body.rstrip()) - 1) + 1)]
    wire = reader(dialect)
    read(wire, short, cuts)
    assert isinstance(wire.fault, errors.BodyCut if short else errors.EmptyStream)


@given(body=st.binary(max_size=200), cuts=st.lists(st.integers(0, 10**6), max_size=4))
@pytest.mark.parametrize("dialect", ["openai", "ollama", "responses"])
def test_random_bytes_are_fault_and_not_exception(dialect: str, body: bytes, cuts: list[int]) -> None:
    wire = reader(dialect)
    read(wire, body, cuts)
    assert isinstance(wire.fault, errors.LLMError)


_SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "x", "stop"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "delta",
                    "message",
                    "content",
                    "tool_calls",
                    "function",
                    "arguments",
                    "usage",
                    "done",
                    "error",
                    "index",
                    "id",
                    "finish_reason",
                    "done_reason",
                    "completion_tokens_details",
                    "name",
                    "model",
                    "detail",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("dialect", ["openai", "ollama", "responses"])
@given(values=st.lists(_SHAPES, max_size=3))
def test_json_of_any_shape_is_complete_or_fault(dialect: str, values: list[object]) -> None:
    lines = [json.dumps(one).encode() for one in values]
    body = b"".join(line + b"\n" if dialect == "ollama" else b"data: " + line + b"\n\n" for line in lines)
    wire = reader(dialect)
    read(wire, body, [])
    assert is_complete(wire) or isinstance(wire.fault, errors.LLMError)
    for line in lines:  # as one document
        wire = reader(dialect)
        read(wire, line, [])
        assert is_complete(wire) or isinstance(wire.fault, errors.LLMError)


def chunk(**delta: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}).encode() + b"\n\n"


FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def parse(body: bytes) -> SSEParser:
    wire = SSEParser()
    read(wire, body, [])
    return wire


def test_comments_event_names_and_carriage_returns_are_not_text() -> None:
    body = (
        b": ping\r\n\r\nid: 1\r\nevent: message\r\nretry: 5\r\n" + chunk(content="a").replace(b"\n", b"\r\n") + FINISH
    )
    wire = SSEParser()
    assert read(wire, body, [3, 9, 20])[0] == "a"
    assert is_complete(wire)


def test_data_lines_of_one_event_are_joined() -> None:
    body = b'data: {"choices":[{"index":0,\ndata: "delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'
    wire = SSEParser()
    assert read(wire, body, [])[0] == "a"
    assert is_complete(wire)


def test_surrogate_pair_split_over_two_chunks_is_one_character() -> None:
    one = b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n'
    two = b'data: {"choices":[{"delta":{"content":"\\udd10b"}}]}\n\n'
    assert read(SSEParser(), one + two + FINISH, [])[0] == "a🔐b"


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_reasoning_field_is_thinking(key: str) -> None:
    assert read(SSEParser(), chunk(**{key: "hm"}) + chunk(content="a") + FINISH, []) == ("a", "hm")


def test_first_chunk_without_choices_is_ignored() -> None:
    assert is_complete(parse(b'data: {"choices":[],"prompt_filter_results":[]}\n\n' + chunk(content="a") + FINISH))


@pytest.mark.parametrize("finish", ["abort", "error", "load", "repetition", 7])
def test_unknown_finish_reason_is_fault(finish: object) -> None:
    body = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":' + json.dumps(finish).encode() + b"}]}\n\n"
    assert isinstance(parse(body + b"data: [DONE]\n\n").fault, errors.UnknownFinish)


def test_empty_finish_reason_is_ignored() -> None:
    body = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":""}]}\n\n'
    assert is_complete(parse(body + FINISH))
    assert isinstance(parse(body + b"data: [DONE]\n\n").fault, errors.FinishMissing)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_split_byte_order_mark_is_skipped(dialect: str) -> None:
    for cuts in ([1], [2], [1, 2, 3]):
        wire = reader(dialect)
        assert read(wire, b"\xef\xbb\xbf" + stream(dialect, ["a"]), cuts)[0] == "a"
        assert is_complete(wire)


def test_text_after_end_mark_is_fault() -> None:
    wire = SSEParser()
    assert read(wire, chunk(content="a") + FINISH + chunk(content="b"), [])[0] == "a"
    assert isinstance(wire.fault, errors.MalformedAnswer)


def test_only_first_choice_is_read() -> None:
    other = b'data: {"choices":[{"index":1,"delta":{"content":"B"}}]}\n\n'
    assert read(SSEParser(), other + chunk(content="a") + other + FINISH, [])[0] == "a"


@pytest.mark.parametrize(
    "usage", [{"completion_tokens": "3", "completion_tokens_details": [1]}, [1], "x", {"prompt_tokens": 2.5}]
)
def test_invalid_usage_is_not_fault(usage: object) -> None:
    wire = parse(
        chunk(content="a") + b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n" + FINISH
    )
    assert is_complete(wire)
    assert wire.usage.completion_tokens is None


def test_lone_surrogate_at_end_becomes_replacement_character() -> None:
    half = b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n'
    assert read(SSEParser(), half + FINISH, [])[0] == "a\ufffd"
    text, _ = read(SSEParser(), half + chunk(content="b") + FINISH, [])
    assert text.encode() == "a\ufffdb".encode()


def test_stream_error_is_classified_by_message() -> None:
    values = {
        "error": {"message": "The number of tokens to keep from the initial prompt is greater than the context length."}
    }
    wire = parse(b"event: error\ndata: " + json.dumps(values).encode() + b"\n\n")
    assert isinstance(wire.fault, errors.ContextOverflow)  # LM Studio sends it with status 200


def test_fragments_of_tool_call_are_joined() -> None:
    def call(**function: object) -> dict[str, object]:
        return {"index": 0, "function": function}

    body = (
        chunk(tool_calls=[{**call(name="weather", arguments=""), "id": "c1"}])
        + chunk(tool_calls=[call(arguments='{"city": ')])
        + chunk(tool_calls=[call(arguments='"Париж"}')])
        + FINISH
    )
    wire = parse(body)
    assert wire.finish == "tool_calls"
    (only,) = wire.tool_calls()
    assert (only.id, only.name, only.arguments) == ("c1", "weather", {"city": "Париж"})


def test_tool_calls_without_index_are_distinguished_by_id() -> None:
    one = {"id": "a", "function": {"name": "f", "arguments": "{}"}}
    two = {"id": "b", "function": {"name": "g", "arguments": {"x": 1}}}
    wire = parse(chunk(tool_calls=[one]) + chunk(tool_calls=[two]) + FINISH)
    assert [(call.name, call.arguments) for call in wire.tool_calls()] == [("f", {}), ("g", {"x": 1})]


def test_tool_arguments_that_are_not_json_raise_malformed_answer() -> None:
    wire = parse(chunk(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{half"}}]) + FINISH)
    with pytest.raises(errors.MalformedAnswer, match="'f'"):
        wire.tool_calls()


def test_ollama_tool_call_arrives_in_one_piece() -> None:
    line = {
        "message": {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
        "done": False,
    }
    wire = NDJSONParser()
    read(wire, json.dumps(line).encode() + b'\n{"message":{"content":""},"done":true,"done_reason":"stop"}\n', [])
    assert wire.finish == "tool_calls"
    assert wire.tool_calls()[0].arguments == {"x": 1}


def test_endless_line_is_malformed_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learnflow.llm.transport.stream_parser.MAX_EVENT_BYTES", 1000)
    wire = SSEParser()
    for _ in range(200):
        wire.feed(b"data: xxxxxxxx")
    assert isinstance(wire.fault, errors.MalformedAnswer)
