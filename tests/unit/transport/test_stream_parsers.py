"""The wire, by property: any answer in any reads gives the same text; cut off anywhere, never a complete answer."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnflow.llm import errors
from learnflow.llm.providers.ollama import NDJSONParser
from learnflow.llm.testing.dialects import Dialect
from learnflow.llm.transport.sse_parser import SSEParser
from learnflow.llm.transport.stream_parser import StreamParser


def whole(parser: StreamParser) -> bool:
    return parser.finish is not None and parser.fault is None


DIALECTS = ["openai", "lmstudio", "vllm", "llamacpp", "ollama"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PIECES = st.lists(TEXT, max_size=8)


def reader(dialect: str) -> StreamParser:
    return NDJSONParser() if dialect == "ollama" else SSEParser()


def stream(dialect: str, pieces: list[str], thinking: str = "") -> bytes:
    say = Dialect(dialect)  # type: ignore[arg-type]
    thought = say.piece(thinking=thinking) if thinking else b""
    return say.opening() + thought + b"".join(map(say.piece, pieces)) + say.end() + say.usage() + say.done()


def read(wire: StreamParser, body: bytes, cuts: list[int]) -> tuple[str, str]:
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    pieces = [piece for a, b in pairwise(edges) for piece in wire.feed(body[a:b])]
    pieces += wire.end()
    return "".join(piece.text for piece in pieces), "".join(piece.thinking for piece in pieces)


@pytest.mark.parametrize("dialect", DIALECTS)
@given(pieces=PIECES, thinking=TEXT, cuts=st.lists(st.integers(0, 10**6), max_size=12))
def test_any_answer_in_any_reads_gives_the_same_text(
    dialect: str, pieces: list[str], thinking: str, cuts: list[int]
) -> None:
    wire = reader(dialect)
    assert read(wire, stream(dialect, pieces, thinking), cuts) == ("".join(pieces), thinking)
    assert whole(wire)
    assert wire.finish == "stop"
    assert wire.usage.completion_tokens == 7


@pytest.mark.parametrize("dialect", DIALECTS)
@given(pieces=PIECES, cut=st.integers(0, 10**6))
def test_an_answer_cut_before_its_finish_is_never_whole(dialect: str, pieces: list[str], cut: int) -> None:
    say = Dialect(dialect)  # type: ignore[arg-type]
    until_finish = say.opening() + b"".join(map(say.piece, pieces)) + say.end()
    # the finish counts from the last character of its JSON on; a cut before that may lose nothing else
    body = until_finish[: cut % (len(until_finish.rstrip()))]
    wire = reader(dialect)
    text, _ = read(wire, body, [])
    assert not whole(wire)
    assert isinstance(wire.fault, errors.BrokenAnswer)
    assert "".join(pieces).startswith(text)


@pytest.mark.parametrize("dialect", DIALECTS)
@given(text=TEXT, cuts=st.lists(st.integers(0, 10**6), max_size=5), cut=st.integers(1, 10**6))
def test_an_answer_in_one_piece_is_whole_or_named(dialect: str, text: str, cuts: list[int], cut: int) -> None:
    body = Dialect(dialect).answer_body(text)  # type: ignore[arg-type]
    wire = reader(dialect)
    assert read(wire, body, cuts)[0] == text
    assert whole(wire)
    short = body.rstrip()[: -(cut % (len(body.rstrip()) - 1) + 1)]
    wire = reader(dialect)
    read(wire, short, cuts)
    assert isinstance(wire.fault, errors.BodyCut if short else errors.EmptyStream)


@given(body=st.binary(max_size=200), cuts=st.lists(st.integers(0, 10**6), max_size=4))
@pytest.mark.parametrize("dialect", ["openai", "ollama"])
def test_rubbish_is_a_named_failure_and_no_exception(dialect: str, body: bytes, cuts: list[int]) -> None:
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


@pytest.mark.parametrize("dialect", ["openai", "ollama"])
@given(said=st.lists(_SHAPES, max_size=3))
def test_json_of_any_shape_is_read_or_named(dialect: str, said: list[object]) -> None:
    lines = [json.dumps(one).encode() for one in said]
    body = b"".join(line + b"\n" if dialect == "ollama" else b"data: " + line + b"\n\n" for line in lines)
    wire = reader(dialect)
    read(wire, body, [])
    assert whole(wire) or isinstance(wire.fault, errors.LLMError)
    for line in lines:  # and as one document
        wire = reader(dialect)
        read(wire, line, [])
        assert whole(wire) or isinstance(wire.fault, errors.LLMError)


def chunk(**delta: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}).encode() + b"\n\n"


FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def heard(body: bytes) -> SSEParser:
    wire = SSEParser()
    read(wire, body, [])
    return wire


def test_comments_event_names_and_carriage_returns_are_no_text() -> None:
    body = (
        b": ping\r\n\r\nid: 1\r\nevent: message\r\nretry: 5\r\n" + chunk(content="a").replace(b"\n", b"\r\n") + FINISH
    )
    wire = SSEParser()
    assert read(wire, body, [3, 9, 20])[0] == "a"
    assert whole(wire)


def test_data_lines_of_one_event_belong_together() -> None:
    body = b'data: {"choices":[{"index":0,\ndata: "delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'
    wire = SSEParser()
    assert read(wire, body, [])[0] == "a"
    assert whole(wire)


def test_a_pair_of_surrogates_split_over_two_chunks_is_one_character() -> None:
    one = b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n'
    two = b'data: {"choices":[{"delta":{"content":"\\udd10b"}}]}\n\n'
    assert read(SSEParser(), one + two + FINISH, [])[0] == "a🔐b"


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_thinking_has_its_own_field(key: str) -> None:
    assert read(SSEParser(), chunk(**{key: "hm"}) + chunk(content="a") + FINISH, []) == ("a", "hm")


def test_a_first_chunk_without_choices_is_azures_filter_result() -> None:
    assert whole(heard(b'data: {"choices":[],"prompt_filter_results":[]}\n\n' + chunk(content="a") + FINISH))


@pytest.mark.parametrize("finish", ["abort", "error", "load", "repetition", "STOP", 7])
def test_an_unknown_finish_is_not_whole(finish: object) -> None:
    body = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":' + json.dumps(finish).encode() + b"}]}\n\n"
    assert isinstance(heard(body + b"data: [DONE]\n\n").fault, errors.UnknownFinish)


def test_an_empty_finish_is_none() -> None:
    body = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":""}]}\n\n'
    assert whole(heard(body + FINISH))
    assert isinstance(heard(body + b"data: [DONE]\n\n").fault, errors.FinishMissing)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_byte_order_mark_may_be_split(dialect: str) -> None:
    for cuts in ([1], [2], [1, 2, 3]):
        wire = reader(dialect)
        assert read(wire, b"\xef\xbb\xbf" + stream(dialect, ["a"]), cuts)[0] == "a"
        assert whole(wire)


def test_text_after_the_end_is_not_swallowed_or_added() -> None:
    wire = SSEParser()
    assert read(wire, chunk(content="a") + FINISH + chunk(content="b"), [])[0] == "a"
    assert isinstance(wire.fault, errors.MalformedAnswer)


def test_only_the_first_choice_is_the_answer() -> None:
    other = b'data: {"choices":[{"index":1,"delta":{"content":"B"}}]}\n\n'
    assert read(SSEParser(), other + chunk(content="a") + other + FINISH, [])[0] == "a"


@pytest.mark.parametrize(
    "usage", [{"completion_tokens": "3", "completion_tokens_details": [1]}, [1], "x", {"prompt_tokens": 2.5}]
)
def test_odd_usage_spoils_no_answer(usage: object) -> None:
    wire = heard(
        chunk(content="a") + b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n" + FINISH
    )
    assert whole(wire)
    assert wire.usage.completion_tokens is None


def test_half_a_character_at_the_end_is_shown_as_lost() -> None:
    half = b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n'
    assert read(SSEParser(), half + FINISH, [])[0] == "a\ufffd"
    text, _ = read(SSEParser(), half + chunk(content="b") + FINISH, [])
    assert text.encode() == "a\ufffdb".encode()


def test_the_words_of_a_stream_error_decide_its_class() -> None:
    said = {
        "error": {"message": "The number of tokens to keep from the initial prompt is greater than the context length."}
    }
    wire = heard(b"event: error\ndata: " + json.dumps(said).encode() + b"\n\n")
    assert isinstance(wire.fault, errors.ContextOverflow)  # LM Studio says it in a 200


def test_tool_calls_come_in_fragments() -> None:
    def call(**function: object) -> dict[str, object]:
        return {"index": 0, "function": function}

    body = (
        chunk(tool_calls=[{**call(name="weather", arguments=""), "id": "c1"}])
        + chunk(tool_calls=[call(arguments='{"city": ')])
        + chunk(tool_calls=[call(arguments='"Париж"}')])
        + FINISH
    )
    wire = heard(body)
    assert wire.finish == "tool_calls"
    (only,) = wire.tool_calls()
    assert (only.id, only.name, only.arguments) == ("c1", "weather", {"city": "Париж"})


def test_tool_calls_without_index_are_told_apart_by_their_ids() -> None:
    one = {"id": "a", "function": {"name": "f", "arguments": "{}"}}
    two = {"id": "b", "function": {"name": "g", "arguments": {"x": 1}}}
    wire = heard(chunk(tool_calls=[one]) + chunk(tool_calls=[two]) + FINISH)
    assert [(call.name, call.arguments) for call in wire.tool_calls()] == [("f", {}), ("g", {"x": 1})]


def test_arguments_that_are_no_json_are_named() -> None:
    wire = heard(chunk(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{half"}}]) + FINISH)
    with pytest.raises(errors.MalformedAnswer, match="'f'"):
        wire.tool_calls()


def test_ollamas_tool_calls_come_whole() -> None:
    line = {
        "message": {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
        "done": False,
    }
    wire = NDJSONParser()
    read(wire, json.dumps(line).encode() + b'\n{"message":{"content":""},"done":true,"done_reason":"stop"}\n', [])
    assert wire.finish == "tool_calls"
    assert wire.tool_calls()[0].arguments == {"x": 1}


def test_a_line_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learnflow.llm.transport.stream_parser.MAX_EVENT_BYTES", 1000)
    wire = SSEParser()
    for _ in range(200):
        wire.feed(b"data: xxxxxxxx")
    assert isinstance(wire.fault, errors.MalformedAnswer)
