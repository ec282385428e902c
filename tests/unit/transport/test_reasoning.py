"""Thinking never reaches the answer, however it is split."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnflow.llm.transport.reasoning import ReasoningSplitter

PLAIN = st.text("ab <>/\n", max_size=30).filter(lambda text: "think" not in text)


def split(text: str, cuts: list[int], *, hold: bool = False) -> tuple[str, str, bool]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    splitter = ReasoningSplitter(hold=hold)
    pieces = [splitter.feed(text[a:b]) for a, b in pairwise(edges)]
    pieces.append(splitter.end())
    return "".join(p.text for p in pieces), "".join(p.thinking for p in pieces), splitter.leaked


@given(answer=PLAIN, cuts=st.lists(st.integers(0, 99), max_size=9), hold=st.booleans())
def test_answer_without_thinking_is_unchanged(answer: str, cuts: list[int], hold: bool) -> None:
    assert split(answer, cuts, hold=hold) == (answer, "", False)


@given(thought=PLAIN, answer=PLAIN, cuts=st.lists(st.integers(0, 99), max_size=9), hold=st.booleans())
def test_text_between_tags_is_thinking(thought: str, answer: str, cuts: list[int], hold: bool) -> None:
    text = f"\n<think>{thought}</think>\n{answer}"
    assert split(text, cuts, hold=hold) == (answer.lstrip(), thought, False)


@given(thought=PLAIN, cuts=st.lists(st.integers(0, 99), max_size=9), hold=st.booleans())
def test_text_after_unclosed_tag_is_thinking(thought: str, cuts: list[int], hold: bool) -> None:
    assert split(f"<think>{thought}", cuts, hold=hold) == ("", thought, False)


@given(thought=PLAIN, answer=PLAIN, cuts=st.lists(st.integers(0, 99), max_size=9))
def test_lone_closing_tag_makes_held_text_thinking(thought: str, answer: str, cuts: list[int]) -> None:
    thought = thought.rstrip()
    assert split(f"{thought}</think>{answer}", cuts, hold=True) == (answer.lstrip(), thought, False)


def test_lone_closing_tag_after_emitted_text_sets_leaked() -> None:
    assert split("I wonder</think>yes", [4]) == ("I woyes", "I wonder", True)


@pytest.mark.parametrize(
    "text",
    [
        "Use <think> and </think> to mark it",
        "The tag </think> closes the block",
        "It ends with </think>, always",
        "```\n</think>\n```\ndone",
        "The tag `</think>` closes it",
        'it says "</think>"',
        "Close with (</think>)",
        "Write:\n```\n</think>",
        "The tag that ends it is </think>\nand it stands alone",
        "It is written as </think>",
        "In code it is `a </think> b`, as ever",
        "a < b </b> <thin",
        "<thinker>",
    ],
)
@pytest.mark.parametrize("hold", [False, True])
def test_mentioned_tags_are_text(text: str, hold: bool) -> None:
    for cut in range(len(text)):
        assert split(text, [cut], hold=hold) == (text, "", False)


@pytest.mark.parametrize(
    "thought", ['So I say "yes"', "it is `x`", "I am sure. ", "```py\nx = 1\n", "(hm", "a\n", "so be it"]
)
def test_real_thinking_that_looks_like_mention_is_thinking(thought: str) -> None:
    text = f"{thought}</think>\n\nHi"
    for cut in range(len(text)):
        assert split(text, [cut], hold=True) == ("Hi", thought, False)


@pytest.mark.parametrize("text", ["I think so\n</think>\nHi", "I think so.\n</think>\n\nHi", "I think so.</think>\nHi"])
def test_closing_tag_on_own_line_or_after_sentence_ends_thinking(text: str) -> None:
    for cut in range(len(text)):
        answer, thinking, _ = split(text, [cut], hold=True)
        assert (answer, thinking.strip().rstrip(".")) == ("Hi", "I think so")


def test_any_closing_tag_counts_for_model_that_only_closes() -> None:
    splitter = ReasoningSplitter(only_closing_tag=True)
    got = [splitter.feed(piece) for piece in ("I think ", "</think>", " so")]
    got.append(splitter.end())
    assert ("".join(one.text for one in got), "".join(one.thinking for one in got)) == ("so", "I think ")


@pytest.mark.parametrize("cut", range(14))
def test_closing_tag_after_white_space_does_not_set_leaked(cut: int) -> None:
    text, thinking, leaked = split("\n</think>\n\nHi there", [cut])
    assert (text.lstrip(), thinking.strip(), leaked) == ("Hi there", "", False)


@given(st.text('ab \n`"(<', max_size=12), st.lists(st.integers(0, 99), max_size=6), st.booleans())
def test_splitter_adds_no_text(noise: str, cuts: list[int], hold: bool) -> None:
    for text in (f"{noise}</think>", f"{noise}</think>{noise}", f"<think>{noise}</think>{noise}"):
        answer, thinking, leaked = split(text, cuts, hold=hold)
        assert leaked or len(answer) + len(thinking) <= len(text)


def test_two_thinking_blocks_are_separated() -> None:
    assert split("<think>a</think>\n<think>b</think>c<think>", [5, 20]) == ("c<think>", "ab", False)


def test_held_text_is_released_when_server_separates_thinking() -> None:
    splitter = ReasoningSplitter(hold=True)
    assert splitter.feed("so far").text == ""
    assert splitter.stop_splitting() == "so far"
    assert splitter.feed(" and</think>\non").text == " and</think>\non"


def test_tags_are_text_when_server_separates_thinking() -> None:
    splitter = ReasoningSplitter()
    splitter.stop_splitting()
    assert splitter.feed("<think>x</think>y").text == "<think>x</think>y"
