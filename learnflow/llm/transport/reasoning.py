"""Separate thinking in ``<think>`` tags from the answer of a stream. A tag can be missing, or split between chunks."""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

from ..completion import ToolCallDelta

_OPEN: Final = "<think>"
_CLOSE: Final = "</think>"
_QUOTES: Final = dict(zip("`'\"(*_|«“„\u2018", "`'\")*_|»”“\u2019", strict=True))  # opening to closing quotes
_SENTENCE_CONTINUES: Final = re.compile(r" \S|[.,;:!?)…]|-\w")
_NEXT_LINE: Final = re.compile(r"\n[^\n]")  # the paragraph continues on the line after a tag
_SENTENCE_ENDS: Final = ".!?…:;"
# The chat template of these models adds <think> to the prompt (model cards of DeepSeek-R1 and Qwen3-Thinking). Their
# responses have only </think>, unless the server separates the thinking itself.
MODELS_WITHOUT_OPENING_TAG: Final = re.compile(
    r"deepseek[-_]?r1|r1[-_]distill|qwq|qwen3.*thinking|-thinking-", re.IGNORECASE
)
_MAX_BLANK_CHARS: Final = 1000  # longer white space at the start is a part of the answer
_LOOKAHEAD_CHARS: Final = 2  # length of the text after a closing tag that ``_is_mention`` needs


class Delta(NamedTuple):
    """A part of a response: text of the answer, thinking, and pieces of tool calls."""

    text: str = ""
    thinking: str = ""
    calls: tuple[ToolCallDelta, ...] = ()


class ReasoningSplitter:
    """A splitter of one answer into text and thinking.

    An opening tag counts only before the first text. A closing tag counts even without an opening one: the text before
    it was thinking. A tag in quotes, in code or inside a sentence is only a mention, and stays in the text. White space
    before an opening tag and after a closing tag is removed.

    Args:
        hold: hold text back until no closing tag can turn the text into thinking.
        only_closing_tag: the response has no opening tag. Its first closing tag ends the thinking. Implies ``hold``.

    Attributes:
        leaked: whether text was returned before a closing tag showed that it was thinking.
    """

    def __init__(self, *, hold: bool = False, only_closing_tag: bool = False) -> None:
        self.leaked = False
        self._hold = hold or only_closing_tag
        self._only_closing_tag = only_closing_tag
        self._state: Literal["start", "thinking", "answer"] = "start"
        self._pending = ""  # text that is not classified yet
        self._possible_thinking: list[str] = []  # text, held or returned, that a closing tag would turn into thinking
        self._ignores_closing_tags = False

    def feed(self, piece: str) -> Delta:
        """Add a piece of the answer. Return the text and the thinking that are certain now."""
        if self._state == "answer" and not self._pending and "<" not in piece:  # fast path
            return self._emit_text(piece)
        self._pending += piece
        text, thinking = "", ""
        before = None
        while before != (self._state, self._pending):
            before = (self._state, self._pending)
            parse = {"start": self._parse_start, "thinking": self._parse_thinking, "answer": self._parse_answer}
            delta = parse[self._state]()
            text += delta.text
            thinking += delta.thinking
        return Delta(text, thinking)

    def stop_splitting(self) -> str:
        """Treat tags as text from now on. Return the held text.

        The caller does this if the server separates the thinking itself, or if a tool call arrives. Inside ``<think>``
        nothing changes: its closing tag still counts.
        """
        if self._state == "thinking":
            return ""
        self._state = "answer"
        return self._ignore_closing_tags() + self._take(len(self._pending))

    def end(self, *, broken: bool = False) -> Delta:
        """End the answer, and return the rest. If ``broken``, drop an incomplete opening tag at the end."""
        if broken and self._state == "start" and self._pending.strip():
            return Delta()
        if self._state == "answer" and not self._ignores_closing_tags and self._pending.startswith(_CLOSE):
            closed = self._close_thinking(0, at_end=True)
            return Delta(closed.text + self._take(len(self._pending)).lstrip(), closed.thinking)
        rest = self._take(len(self._pending))
        if self._state == "thinking":
            return Delta(thinking=rest)
        if self._state == "start" and self._ignores_closing_tags:  # after a closing tag
            return Delta(rest.lstrip())
        return Delta(self._ignore_closing_tags() + rest)

    def _emit_text(self, text: str) -> Delta:
        """Return text of the answer, unless it is held."""
        if self._ignores_closing_tags:
            return Delta(text)
        self._possible_thinking.append(text)
        return Delta() if self._hold else Delta(text)

    def _ignore_closing_tags(self) -> str:
        """Treat closing tags without an opening tag as text from now on. Return the held text."""
        held = "".join(self._possible_thinking) if self._hold and not self._ignores_closing_tags else ""
        self._ignores_closing_tags, self._possible_thinking = True, []
        return held

    def _parse_start(self) -> Delta:
        """Parse the start of the answer, or the text after thinking. In both places, an opening tag counts."""
        start = self._pending.lstrip()
        if start.startswith(_OPEN):
            self._pending, self._state = start[len(_OPEN) :], "thinking"
        elif (start and not _OPEN.startswith(start)) or len(self._pending) > _MAX_BLANK_CHARS:
            self._pending = start if self._ignores_closing_tags else self._pending
            self._state = "answer"
        return Delta()

    def _parse_thinking(self) -> Delta:
        """Parse thinking up to the closing tag."""
        thought, tag, rest = self._pending.partition(_CLOSE)
        if tag:
            self._pending, self._state = rest, "start"
            self._ignore_closing_tags()
            return Delta(thinking=thought)
        return Delta(thinking=self._take(len(self._pending) - _overlap(self._pending, _CLOSE)))

    def _parse_answer(self) -> Delta:
        """Parse the answer up to a closing tag."""
        if self._ignores_closing_tags:
            return Delta(self._take(len(self._pending)))
        close_at = self._pending.find(_CLOSE)
        open_at = self._pending.find(_OPEN)
        if open_at >= 0 and (close_at < 0 or open_at < close_at):  # an opening tag after text is only a mention
            return Delta(self._ignore_closing_tags() + self._take(len(self._pending)))
        if close_at < 0:
            tag_chars = max(_overlap(self._pending, _CLOSE), _overlap(self._pending, _OPEN))
            return self._emit_text(self._take(len(self._pending) - tag_chars))
        if len(self._pending) < close_at + len(_CLOSE) + _LOOKAHEAD_CHARS:  # wait for the text after the tag
            has_text = self._pending[:close_at].strip() or self._possible_thinking
            return self._emit_text(self._take(close_at)) if has_text else Delta()
        return self._close_thinking(close_at)

    def _close_thinking(self, close_at: int, *, at_end: bool = False) -> Delta:
        """Handle a closing tag without an opening one. It is a mention, or the end of the thinking.

        The tag is at ``close_at`` in the pending text. ``at_end`` is True if the answer ends with the pending text.
        """
        before, after = (
            "".join(self._possible_thinking) + self._pending[:close_at],
            self._pending[close_at + len(_CLOSE) :],
        )
        if not self._only_closing_tag and _is_mention(before, after, at_end=at_end):
            return Delta(self._ignore_closing_tags() + self._take(len(self._pending)))
        self.leaked = not self._hold and any(piece.strip() for piece in self._possible_thinking)
        self._ignore_closing_tags()
        self._pending, self._state = after, "start"
        return Delta(thinking=before)

    def _take(self, length: int) -> str:
        taken, self._pending = self._pending[:length], self._pending[length:]
        return taken


def _is_mention(before: str, after: str, *, at_end: bool) -> bool:
    """Return whether the answer only mentions a closing tag: in quotes, in code, or inside a sentence.

    A tag that ends thinking is alone on its line, or follows the thinking without a space. ``after`` has at least two
    characters, unless the answer ends with it (``at_end``).
    """
    line = before.rpartition("\n")[2]
    last_character = before[-1:]
    quoted = _QUOTES.get(last_character) == after[:1] != ""
    is_quote = last_character == '"' or (last_character == "'" and not before[-2:-1].isalnum())  # not an apostrophe
    quoted = quoted or (is_quote and line.count(last_character) % 2 == 1 and not after.startswith("\n"))
    fenced = any(before.count(fence) % 2 for fence in ("```", "~~~")) and not after.startswith("\n\n")
    in_code = fenced or (line.replace("```", "").count("`") % 2 == 1 and not after.startswith("\n"))
    unfinished = before.rstrip()[-1:] not in ("", *_SENTENCE_ENDS)
    in_sentence = before[-1:] == " " and bool(
        _SENTENCE_CONTINUES.match(after) or (unfinished and line.strip() and (at_end or _NEXT_LINE.match(after)))
    )
    return quoted or in_code or in_sentence


def _overlap(text: str, tag: str) -> int:
    """Return the length of the incomplete tag at the end of the text; 0 without such a tag."""
    return next((length for length in range(len(tag) - 1, 0, -1) if text.endswith(tag[:length])), 0)
