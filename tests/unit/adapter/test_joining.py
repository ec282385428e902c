"""Joining of a broken text and its continuation: nothing is lost or repeated, whatever the cut."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from learnflow.llm.adapter import joining
from learnflow.llm.completion import Completion, Event, Resumed, ServedModel, TextDelta, ToolCallDelta
from learnflow.llm.stream import Emit, Relay

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
    """Split a text into pieces, like another tokenizer."""
    parts, at = [], 0
    while at < len(text):
        size = sizes[len(parts) % len(sizes)]
        parts.append(text[at : at + size])
        at += size
    return parts


def join(cut: joining.SplitText, parts: list[str], *, by_instruction: bool = False) -> tuple[str, bool]:
    joint = joining.ContinuationFilter(cut, by_instruction=by_instruction)
    after = "".join([joint.feed(part) for part in parts]) + joint.end()
    return cut.text + after, joint.mismatched


@given(TEXT, st.data(), st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_continuation_after_prefill_is_joined_at_every_cut(text: str, data: st.DataObject, sizes: list[int]) -> None:
    at = data.draw(st.integers(1, len(text)))
    cut = joining.split_last_word(text[:at])
    assert cut.text == text[:at]
    assert not cut.prefix[-1:].isspace() or not cut.rest
    assert join(cut, pieces(text[len(cut.prefix) :], sizes)) == (text, False)


@given(TEXT, st.data(), st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_echo_of_prefill_is_removed(text: str, data: st.DataObject, sizes: list[int]) -> None:
    at = data.draw(st.integers(1, len(text)))
    cut = joining.split_last_word(text[:at])
    if cut.prefix and cut.rest and not text.startswith(cut.rest):
        assert join(cut, pieces(text, sizes)) == (text, False)


@given(TEXT, TEXT, st.data())
def test_continuation_with_other_text_is_mismatched_and_not_emitted(text: str, other: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(text)))
    cut = joining.split_last_word(text[:at])
    assume(cut.text.strip())
    after, mismatched = join(cut, list(other))
    if mismatched:
        assert after == text[:at]
        assert not other.startswith(cut.rest)
        again = joining.SplitText(cut.text)
        assert join(again, list(other))[1] is False  # nothing is compared
    else:
        assert other.startswith((cut.rest, cut.text))


def test_text_is_split_before_last_word() -> None:
    assert joining.split_last_word("one two thr") == joining.SplitText("one two", " thr")
    assert joining.split_last_word("one two ") == joining.SplitText("one two", " ")
    assert joining.split_last_word("one\n\n") == joining.SplitText("one", "\n\n")
    assert joining.split_last_word("on") == joining.SplitText("", "on")  # one word: begin again, and compare
    assert joining.split_last_word("x" * 65) == joining.SplitText("x" * 65, "")  # no word to split at
    assert joining.split_last_word("one " + "中" * 200) == joining.SplitText("one " + "中" * 200, "")


def test_repeated_words_of_model_are_not_removed() -> None:
    assert join(joining.split_last_word("ha ha"), [" ha", " ha", " ha"]) == ("ha ha ha ha", False)
    assert join(joining.SplitText("ha"), ["ha"]) == ("haha", False)
    assert join(joining.split_last_word("-" * 80), ["-" * 80, "-" * 9]) == ("-" * 169, False)  # a ruler
    text = "La la la la. La la la la. "
    assert join(joining.split_last_word(text), [" ", "La la la la."]) == (text + "La la la la.", False)


EMITTED = "RSA is a public-key cryptosystem. A key pair is built from two large prime num"


END = "key pair is built from two large prime num"  # the last eight whole words, and the broken one


@pytest.mark.parametrize(
    "continuation",
    [
        END + "bers.",
        "  \n" + END + "bers.",
        END.replace(" ", "\n") + "bers.",
        END.replace(" ", "  ") + "bers.",
        "A " + END + "bers.",  # from the beginning of the sentence
        EMITTED + "bers.",  # from the beginning
        "\n" + EMITTED + "bers.",
    ],
)
def test_instructed_continuation_that_begins_with_end_is_join(continuation: str) -> None:
    for size in (1, 3, 100):
        assert join(joining.split_last_word(EMITTED), pieces(continuation, [size]), by_instruction=True) == (
            EMITTED + "bers.",
            False,
        )


# Deviations of models: a preface, another beginning, a contradiction, a false overlap, no overlap.
DEVIATIONS = {
    "a preface": f"Sure, here is the rest: {END}bers.",
    "a preface on its own line": f"Of course!\n\n{END}bers.",
    "an apology": f"I apologize for the interruption. {END}bers.",
    "Markdown around it": f"**{END}**bers.",
    "quoted": f"\u201c{END}\u201dbers.",
    "an ellipsis": f"...{END}bers.",
    "the next characters, which cannot be verified": "bers.",
    "the next words": "bers. Then the product n is made public.",
    "the last word only": "numbers.",
    "fewer words": "large prime numbers.",
    "other words": END.replace("large", "big") + "bers.",
    "a word left out": END.replace("two ", "") + "bers.",
    "a correction of the broken word": END.removesuffix("num") + "numerals.",
    "another beginning": "RSA is an algorithm. " + END + "bers.",
    "another language": "RSA est un algorithme de chiffrement.",
    "a refusal": "I'm sorry, but I can't continue an answer that I did not write.",
    "a question": "Would you like me to go on?",
    "the end of another text": "Photosynthesis turns light into sugar.",
}


@pytest.mark.parametrize("continuation", DEVIATIONS.values(), ids=DEVIATIONS)
def test_instructed_continuation_that_deviates_is_mismatched(continuation: str) -> None:
    for size in (1, 5, 1000):
        right = (EMITTED, True)
        if continuation.startswith(END.removesuffix("num") + "num"):  # the broken word has another end, which is valid
            right = (EMITTED + "erals.", False)
        assert join(joining.split_last_word(EMITTED), pieces(continuation, [size]), by_instruction=True) == right


@pytest.mark.parametrize(
    ("emitted", "continuation", "text"),
    [
        # white space at the seam
        ("one two three four five six seven eight ", "one two three four five six seven eight nine", " nine"),
        ("one two three four five six seven eight\n", "one two three four five six seven eight nine", "\nnine"),
        ("one two three four five six seven eight ", "one two three four five six seven eight\n\nNine", " \n\nNine"),
        ("one two three four five six seven eight", "one two three four five six seven eight  ", "  "),
        (
            "one two three four five six seven eight:\n\n",
            "one two three four five six seven eight:\n    nine",
            "\n\n    nine",
        ),
        # Unicode forms: composed, then decomposed, and vice versa
        ("Die Schl\u00fcssell\u00e4nge ist", "Die Schlu\u0308ssella\u0308nge ist 2048", " 2048"),
        ("Die Schlu\u0308ssella\u0308nge ist", "Die Schl\u00fcssell\u00e4nge ist 2048", " 2048"),
        ("Он читает книгу и й", "Он читает книгу и \u0438\u0306\u043e\u0434", "\u043e\u0434"),
        ("It ends within an e", "It ends within an \u00e9t\u00e9", "\u0301t\u00e9"),
        # quotation marks
        ("He continuation \u201chello\u201d and", 'He continuation "hello" and left', " left"),
        ("It\u2019s called \u00abRSA\u00bb and", 'It\'s called "RSA" and works', " works"),
    ],
)
def test_comparison_ignores_white_space_unicode_form_and_quotation_marks(
    emitted: str, continuation: str, text: str
) -> None:
    for size in (1, 2, 1000):
        expected = emitted.rstrip() + text
        assert join(joining.SplitText(emitted), pieces(continuation, [size]), by_instruction=True) == (expected, False)


def test_longer_word_at_seam_is_mismatched() -> None:
    emitted = "The cat sat, and then it saw a "
    assert join(joining.SplitText(emitted), list("The cat sat, and then it saw another."), by_instruction=True) == (
        emitted,
        True,
    )


def test_echo_of_text_without_spaces_is_removed() -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E60)))
    assert join(joining.SplitText(text), list(text + "\u5b57")) == (text + "\u5b57", False)


def test_end_of_text_has_enough_words_to_be_recognised() -> None:
    assert joining.last_words(EMITTED) == "pair is built from two large prime num"
    assert joining.last_words("one two") == "one two"  # the whole text
    assert joining.last_words("a b c d e f g h i j k l m n o p q") == "e f g h i j k l m n o p q"  # 24 characters
    assert joining.last_words("中" * 300) == "中" * 300  # the text begins with it, too
    assert joining.last_words("".join(map(chr, range(0x4E00, 0x4F00)))) == "".join(map(chr, range(0x4EC0, 0x4F00)))
    twice = "one two three four five six seven eight "
    assert joining.last_words(twice + "and " + twice.rstrip()).startswith(
        "and one"
    )  # otherwise it might be a new beginning


def test_emitted_white_space_alone_is_removed_once() -> None:
    for continuation, text in (("\n\nHello", "\n\nHello"), ("Hello", "\nHello"), (" Hello", "\n Hello")):
        assert join(joining.SplitText("", "\n"), list(continuation)) == (text, False)


def test_words_that_also_begin_the_text_do_not_identify_its_end() -> None:
    text = "ha ha ha \n\nha ha ha ha ha ha a"
    assert join(joining.split_last_word(text[:29]), re.split(r"(?<=\s)", text), by_instruction=True) == (text, False)


@given(TEXT, st.data())
def test_instructed_continuation_that_begins_again_is_joined_at_every_cut(text: str, data: st.DataObject) -> None:
    text = text.strip()
    at = data.draw(st.integers(1, len(text)))
    cut = joining.split_last_word(text[:at])
    if cut.prefix.strip():
        assert join(cut, re.split(r"(?<=\s)", text), by_instruction=True) == (text, False)


def test_endless_white_space_takes_linear_time() -> None:
    began = time.process_time()
    for cut, by_instruction in ((joining.SplitText(EMITTED + " "), True), (joining.SplitText("", "\n"), False)):
        joiner = joining.ContinuationFilter(cut, by_instruction=by_instruction)
        joiner.feed(EMITTED if by_instruction else "")
        for _ in range(200_000):
            joiner.feed(" ")
        assert not joiner.mismatched
    assert time.process_time() - began < 3


async def test_tool_call_before_new_text_is_emitted_in_order() -> None:
    pieces = [ToolCallDelta(0, "a", "weather", piece) for piece in ('{"city":', ' "Rome"}')]

    async def work(emit: Emit) -> Completion:
        for event in (pieces[0], TextDelta(" three four"), pieces[1]):
            emit(event)
        return Completion(text="", finish="tool_calls", provider="x", model=ServedModel("m"))

    class Recorder(Relay):
        def __call__(self, event: Event) -> None:
            events.append(event)

    events: list[Event] = []
    await joining.join_continuation(
        work, joining.ContinuationFilter(joining.split_last_word("one two three")), "x", Recorder(Emit())
    )
    assert events == [Resumed("x", 13), TextDelta(" four"), *pieces]
