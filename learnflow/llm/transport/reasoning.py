"""Separate inline thinking from the answer in a stream: ``<think>`` tags that are split, unclosed, or closing only."""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

from ..completion import ToolCallDelta

_OPEN: Final = "<think>"
_CLOSE: Final = "</think>"
_QUOTES: Final = dict(zip("`'\"(*_|«“„\u2018", "`'\")*_|»”“\u2019", strict=True))
_SENTENCE_CONTINUES: Final = re.compile(r" \S|[.,;:!?)…]|-\w")  # text after a tag in the middle of a sentence
_NEXT_LINE: Final = re.compile(r"\n[^\n]")  # the same, if the sentence continues in the next line
_SENTENCE_ENDS: Final = ".!?…:;"
# Models with the opening tag in their template (model cards of DeepSeek-R1 and Qwen3-Thinking). If the server does not
# separate thinking, the answer has only </think>. Its text is held back until then.
MODELS_WITHOUT_OPENING_TAG: Final = re.compile(
    r"deepseek[-_]?r1|r1[-_]distill|qwq|qwen3.*thinking|-thinking-", re.IGNORECASE
)
_MAX_BLANK_CHARS: Final = 1000  # more white space is answer text
_LOOKAHEAD_CHARS: Final = 2  # after a closing tag, to classify it


class Delta(NamedTuple):
    """A part of a response: text of the answer, thinking, pieces of tool calls, or several of them."""

    text: str = ""
    thinking: str = ""
    calls: tuple[ToolCallDelta, ...] = ()


class ReasoningSplitter:
    """Splits one answer into text and thinking.

    ``<think>`` counts before any answer text, ``</think>`` after it or alone. Tags that the answer only mentions are
    text: quoted, inside a sentence, or in a code block. White space around the tags is not part of the answer.

    Args:
        hold: hold text back until it is certain not to be thinking, for callers that do not stream.
        only_closing_tag: the model matches ``MODELS_WITHOUT_OPENING_TAG``. Implies ``hold``; every closing tag counts.

    Attributes:
        leaked: a lone closing tag arrived after text had been returned as answer.
    """

    def __init__(self, *, hold: bool = False, only_closing_tag: bool = False) -> None:
        self.leaked = False
        self._hold = hold or only_closing_tag
        self._only_closing_tag = only_closing_tag
        self._state: Literal["begin", "think", "answer"] = "begin"
        self._rest = ""  # received, not yet classified
        self._before: list[str] = []  # the text before the rest, while a lone closing tag may arrive
        self._settled = False  # lone closing tags do not count any more

    def feed(self, piece: str) -> Delta:
        """Return what is certain of the text so far. The rest waits for the next piece."""
        if self._state == "answer" and not self._rest and "<" not in piece:  # most pieces
            return self._emit_text(piece)
        self._rest += piece
        text, thinking = "", ""
        before = None
        while before != (self._state, self._rest):
            before = (self._state, self._rest)
            parse = {"begin": self._parse_start, "think": self._parse_thinking, "answer": self._parse_answer}
            delta = parse[self._state]()
            text += delta.text
            thinking += delta.thinking
        return Delta(text, thinking)

    def stop_splitting(self) -> str:
        """Stop splitting, because the server separates thinking: tags are text from now on. Return the held text."""
        if self._state == "think":
            return ""
        self._state = "answer"
        return self._settle() + self._take(len(self._rest))

    def end(self, *, broken: bool = False) -> Delta:
        """Return the rest: thinking if a tag is open, else answer.

        Args:
            broken: the answer is incomplete. A part of an opening tag is dropped then: a continuation would complete
                the tag.
        """
        if broken and self._state == "begin" and self._rest.strip():
            return Delta()
        if self._state == "answer" and not self._settled and self._rest.startswith(_CLOSE):
            closed = self._close_thinking(0, over=True)
            return Delta(closed.text + self._take(len(self._rest)).lstrip(), closed.thinking)
        rest = self._take(len(self._rest))
        if self._state == "think":
            return Delta(thinking=rest)
        if self._state == "begin" and self._settled:  # white space after a closing tag is no text
            return Delta(rest.lstrip())
        return Delta(self._settle() + rest)

    def _emit_text(self, text: str) -> Delta:
        """Return text of the answer, or hold it."""
        if self._settled:
            return Delta(text)
        self._before.append(text)
        return Delta() if self._hold else Delta(text)

    def _settle(self) -> str:
        """Ignore lone closing tags from now on. Return the held text."""
        held = "".join(self._before) if self._hold and not self._settled else ""
        self._settled, self._before = True, []
        return held

    def _parse_start(self) -> Delta:
        """Parse the start of the answer, or the text after a closing tag: an opening tag may follow white space."""
        start = self._rest.lstrip()
        if start.startswith(_OPEN):
            self._rest, self._state = start[len(_OPEN) :], "think"
        elif (start and not _OPEN.startswith(start)) or len(self._rest) > _MAX_BLANK_CHARS:
            self._rest = start if self._settled else self._rest
            self._state = "answer"
        return Delta()

    def _parse_thinking(self) -> Delta:
        """Parse text between the tags."""
        thought, tag, rest = self._rest.partition(_CLOSE)
        if tag:
            self._rest, self._state = rest, "begin"
            self._settle()
            return Delta(thinking=thought)
        return Delta(thinking=self._take(len(self._rest) - _overlap(self._rest, _CLOSE)))

    def _parse_answer(self) -> Delta:
        """Parse the answer up to a lone closing tag."""
        if self._settled:
            return Delta(self._take(len(self._rest)))
        at = self._rest.find(_CLOSE)
        opened = self._rest.find(_OPEN)
        if opened >= 0 and (at < 0 or opened < at):  # the answer mentions the tags
            return Delta(self._settle() + self._take(len(self._rest)))
        if at < 0:
            unsure = max(_overlap(self._rest, _CLOSE), _overlap(self._rest, _OPEN))
            return self._emit_text(self._take(len(self._rest) - unsure))
        if len(self._rest) < at + len(_CLOSE) + _LOOKAHEAD_CHARS:  # the text after the tag decides
            return self._emit_text(self._take(at)) if self._rest[:at].strip() or self._before else Delta()
        return self._close_thinking(at)

    def _close_thinking(self, at: int, *, over: bool = False) -> Delta:
        """Treat a lone closing tag at this index of the rest as a mention, or as the end of thinking."""
        before, after = "".join(self._before) + self._rest[:at], self._rest[at + len(_CLOSE) :]
        if not self._only_closing_tag and _is_mention(before, after, over=over):
            return Delta(self._settle() + self._take(len(self._rest)))
        self.leaked = not self._hold and any(piece.strip() for piece in self._before)
        self._settle()
        self._rest, self._state = after, "begin"
        return Delta(thinking=before)

    def _take(self, length: int) -> str:
        taken, self._rest = self._rest[:length], self._rest[length:]
        return taken


def _is_mention(before: str, after: str, *, over: bool = False) -> bool:
    """Return whether an answer only mentions the closing tag.

    A mention is quoted, in code, or inside a sentence, which may continue in the next line. A real tag is alone on its
    line, or directly follows the thinking.
    """
    begun = before.rpartition("\n")[2]
    quote = before[-1:]
    quoted = _QUOTES.get(quote) == after[:1] != ""
    opens = quote == '"' or (quote == "'" and not before[-2:-1].isalnum())  # not an apostrophe
    quoted = quoted or (opens and begun.count(quote) % 2 == 1 and not after.startswith("\n"))
    fenced = any(before.count(fence) % 2 for fence in ("```", "~~~")) and not after.startswith("\n\n")
    in_code = fenced or (begun.replace("```", "").count("`") % 2 == 1 and not after.startswith("\n"))
    unfinished = before.rstrip()[-1:] not in ("", *_SENTENCE_ENDS)
    in_sentence = before[-1:] == " " and bool(
        _SENTENCE_CONTINUES.match(after) or (unfinished and begun.strip() and (over or _NEXT_LINE.match(after)))
    )
    return quoted or in_code or in_sentence


def _overlap(text: str, tag: str) -> int:
    """Return how many characters at the end of the text may be the beginning of the tag."""
    return next((length for length in range(len(tag) - 1, 0, -1) if text.endswith(tag[:length])), 0)
