"""Joining a broken text, over every cut: nothing lost, nothing twice, nothing invented."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnflow.llm.routing import continuation

WORDS = st.lists(
    st.one_of(
        st.text(alphabet='abcжзи中文🦊.,"{}', min_size=1, max_size=9),
        st.sampled_from([" ", "\n", "\n\n", "  ", "\t", "ha ha ha ", "\u2028"]),
    ),
    min_size=1,
    max_size=30,
)
TEXT = WORDS.map("".join).filter(lambda text: text.strip())


def pieces(text: str, sizes: list[int]) -> list[str]:
    """A text as another tokenizer would cut it."""
    found, at = [], 0
    while at < len(text):
        size = sizes[len(found) % len(sizes)]
        found.append(text[at : at + size])
        at += size
    return found


def joined(cut: continuation.Cut, parts: list[str], *, words: bool = False) -> tuple[str, bool]:
    joint = continuation.Joiner(cut, words=words)
    after = "".join([joint.feed(part) for part in parts]) + joint.end()
    return cut.delivered + after, joint.torn


@given(TEXT, st.data(), st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_every_cut_after_a_prefill(text: str, data: st.DataObject, sizes: list[int]) -> None:
    at = data.draw(st.integers(1, len(text)))
    cut = continuation.step_back(text[:at])
    assert cut.delivered == text[:at]
    assert not cut.prefix[-1:].isspace() or not cut.rest
    assert joined(cut, pieces(text[len(cut.prefix) :], sizes)) == (text, False)


@given(TEXT, st.data(), st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_an_echo_of_the_whole_prefix_is_removed(text: str, data: st.DataObject, sizes: list[int]) -> None:
    at = data.draw(st.integers(1, len(text)))
    cut = continuation.step_back(text[:at])
    if cut.prefix and cut.rest and not text.startswith(cut.rest):
        assert joined(cut, pieces(text, sizes)) == (text, False)


@given(TEXT, TEXT, st.data())
def test_what_is_not_what_was_delivered_is_torn_and_nothing_of_it_given_out(
    text: str, other: str, data: st.DataObject
) -> None:
    at = data.draw(st.integers(1, len(text)))
    cut = continuation.step_back(text[:at])
    after, torn = joined(cut, list(other))
    if torn:
        assert after == text[:at]
        assert not other.startswith(cut.rest)
        again = continuation.as_it_broke(cut.delivered)
        assert joined(again, list(other))[1] is False  # there is nothing to compare any more
    else:
        assert other.startswith((cut.rest, cut.delivered))


def test_where_it_steps_back_to() -> None:
    assert continuation.step_back("one two thr") == continuation.Cut("one two", " thr")
    assert continuation.step_back("one two ") == continuation.Cut("one two", " ")
    assert continuation.step_back("one\n\n") == continuation.Cut("one", "\n\n")
    assert continuation.step_back("on") == continuation.Cut("", "on")  # within the first word: begin again, and compare
    assert continuation.step_back("x" * 65) == continuation.Cut("x" * 65, "")  # no word to step back to
    assert continuation.step_back("one " + "中" * 200) == continuation.Cut("one " + "中" * 200, "")


def test_what_the_model_honestly_says_twice_stays() -> None:
    assert joined(continuation.step_back("ha ha"), [" ha", " ha", " ha"]) == ("ha ha ha ha", False)
    assert joined(continuation.as_it_broke("ha"), ["ha"]) == ("haha", False)
    assert joined(continuation.step_back("-" * 80), ["-" * 80, "-" * 9]) == ("-" * 169, False)  # a ruler
    text = "La la la la. La la la la. "
    assert joined(continuation.step_back(text), [" ", "La la la la."]) == (text + "La la la la.", False)


DELIVERED = "RSA is a public-key cryptosystem. A key pair is built from two large prime num"


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (DELIVERED + "bers.", DELIVERED + "bers."),  # it began again
        ("  " + DELIVERED + "bers.", DELIVERED + "bers."),
        ("built from two large prime numbers.", DELIVERED + "bers."),  # it repeats a long part of the end
        ("numbers.", DELIVERED + "bers."),  # it goes on at the last whole word, without the space
        (" numbers.", DELIVERED + "bers."),
    ],
)
def test_a_continuation_in_words(said: str, text: str) -> None:
    for size in (1, 3, 100):
        assert joined(continuation.step_back(DELIVERED), pieces(said, [size]), words=True) == (text, False)


def test_a_continuation_in_words_that_goes_elsewhere() -> None:
    after, torn = joined(
        continuation.step_back(DELIVERED), list("Sure! Here is the rest of the answer: bers."), words=True
    )
    assert (after, torn) == (DELIVERED, True)
    as_it_broke = continuation.as_it_broke(DELIVERED)
    assert joined(as_it_broke, list("bers, and so on for ever and ever."), words=True)[0] == DELIVERED + (
        "bers, and so on for ever and ever."
    )
    short = "built from two large"  # shorter than any overlap that counts
    assert len(short) < continuation.OVERLAP
    assert joined(as_it_broke, [short], words=True)[0] == DELIVERED + short


@given(TEXT, st.data())
def test_a_restart_in_words_over_every_cut(text: str, data: st.DataObject) -> None:
    text = text.strip()
    at = data.draw(st.integers(1, len(text)))
    cut = continuation.step_back(text[:at])
    if cut.prefix:
        assert joined(cut, re.split(r"(?<=\s)", text), words=True) == (text, False)
