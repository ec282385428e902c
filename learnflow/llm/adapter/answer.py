"""An answer in the making: deltas in, the caller's text out, in the end a Completion or the reason why it is none."""

from __future__ import annotations

from dataclasses import replace

from .. import errors
from ..completion import Completion, ServedModel, Usage
from ..errors import LLMError
from ..transport.reader import AnswerReader
from ..transport.reasoning import Delta, ReasoningSplitter
from ..transport.stream_parser import StreamParser
from . import structured_output
from .context_budget import ContextBudget
from .request import Request


class Answer:
    """What has been read of one answer.

    Args:
        asked: the request.
        budget: how it fits the model's context; None while that is not known.
        hold: give no text out before it is certain not to be thinking.
        closes: the model opens its thinking itself, and only closes it.
        goes_on: it is the rest of an answer, which may be nothing.
    """

    def __init__(
        self,
        asked: Request,
        budget: ContextBudget | None = None,
        *,
        hold: bool,
        closes: bool = False,
        goes_on: bool = False,
    ) -> None:
        self._goes_on = goes_on
        self.budget = budget
        self.reader: AnswerReader | None = None
        self._asked = asked
        self._splitter = ReasoningSplitter(hold=hold, closes=closes)
        self._text: list[str] = []
        self._thinking: list[str] = []

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._text)

    @property
    def thinking(self) -> str:
        """The thinking so far."""
        return "".join(self._thinking)

    def add(self, piece: Delta) -> Delta:
        """Take a piece; returns what may be given out. Raises ThinkingLeaked where too much was."""
        held = self._splitter.separated() if piece.thinking or piece.calls else ""
        split = self._splitter.feed(piece.text) if piece.text else Delta()
        return self._take(Delta(held + split.text, piece.thinking + split.thinking, piece.calls))

    def end(self) -> Delta:
        """The wire has ended, whole or not; returns what was still held back."""
        return self._take(self._splitter.end())

    def completion(self, provider: str, model: str) -> Completion:
        """The whole answer, yet to be ``checked``; a cost that the server did not say is the caller's to add.

        Raises:
            ContentFiltered: the model refused.
            EmptyAnswer: it finished and said nothing.
            MalformedAnswer, SchemaMismatch: tool calls are not what was asked for.
        """
        assert self.reader is not None  # noqa: S101  # there was an answer
        parser = self.reader.parser
        calls, text, finish = parser.tool_calls(), self.text, parser.finish or "stop"
        if not text.strip() and not calls and not self._goes_on:
            raise self._empty(parser)
        must_call = self._asked.tool_choice not in (None, "auto", "none")
        if must_call and not calls:  # llama.cpp takes the word, and may ignore it
            hint = "Use a model and a server with tools"
            raise errors.SchemaMismatch("tool_choice= required a tool call, and the answer has none", hint=hint)
        return Completion(
            text=text,
            reasoning=self.thinking or None,
            tool_calls=calls,
            finish="tool_calls" if calls and finish == "stop" else finish,
            provider=provider,
            model=ServedModel(model, parser.served),
            usage=parser.usage,
            cost=parser.cost,
            first_token_s=self.reader.first_token_s,
            total_s=self.reader.total_s,
        )

    def checked(self, whole: Completion) -> Completion:
        """The answer with what its schema makes of it. Raises SchemaMismatch, AnswerTruncated."""
        if whole.tool_calls:
            return whole
        try:
            with structured_output.cut(whole.finish):
                return replace(whole, parsed=structured_output.parsed(self._asked.wanted, whole.text))
        except errors.AnswerTruncated as error:
            error.what = f"{error.what}; it ended at {self._limit(whole.usage)}"
            raise

    def _limit(self, usage: Usage) -> str:
        """Name the limit at which an answer ended."""
        limit = (self.budget and self.budget.answer) or self._asked.sampling.get("max_tokens")
        if limit is None or (usage.completion_tokens or limit) < limit:
            return f"{usage.completion_tokens or '?'} tokens, where the context was full"
        return f"max_tokens={limit}"

    def _take(self, piece: Delta) -> Delta:
        self._thinking.append(piece.thinking)
        if self._splitter.leaked and self._text:
            self._text = []  # it was thinking, all of it, and is among the thinking now
            raise errors.ThinkingLeaked("the text so far was thinking: a closing </think> came without an opening one")
        self._text.append(piece.text)
        return piece

    def _empty(self, parser: StreamParser) -> LLMError:
        if parser.refused:
            return errors.ContentFiltered("the model refused to answer")
        if self.thinking and parser.finish == "length":
            return errors.EmptyAnswer(
                "thinking used all of max_tokens", hint="Raise max_tokens=, or set reasoning=False"
            )
        what = "the model thought, and answered nothing" if self.thinking else "the answer is empty"
        return errors.EmptyAnswer(what, hint="Ask again; if it stays empty, look into the server's log or context size")
