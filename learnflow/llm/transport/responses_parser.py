"""The parser of OpenAI's Responses API.

A response has items: messages, reasoning and tool calls. Their content arrives in pieces, and again at the end of the
item. Unknown events are ignored.
"""

from __future__ import annotations

from typing import Any, Final

from . import error_mapping
from .reasoning import Delta
from .sse_parser import SSEParser
from .stream_parser import MAX_NAME_CHARS, dialect_error
from .tool_calls import collect_extra
from .untrusted import non_negative_int, part, word

REASONING_ITEMS: Final = "reasoning_items"  # the field of a message that LiteLLM writes as encrypted reasoning
_CALL: Final = "function_call"


class ResponsesParser(SSEParser):
    """A parser of server-sent events of a response, or of one ``response``. Only its last event has the status."""

    answer_key = "status"

    def __init__(self, max_tokens: int | None = None, *, finish_missing: bool = False) -> None:
        super().__init__(max_tokens, finish_missing=finish_missing)
        self._streamed: set[int | str | None] = set()  # the keys of the items whose content arrived in pieces
        self._item_ended = False  # the stream repeats each item at its end

    def _parse_chunk(self, chunk: dict[str, Any], name: str) -> None:
        if name == "message":  # one document
            self._parse_response(chunk, word(chunk.get("status")))
            return
        kind, item, piece = word(chunk.get("type")), part(chunk, "item"), chunk.get("delta")
        item_id = word(chunk.get("item_id") or item.get("id")) or None
        index = non_negative_int(chunk.get("output_index"))
        key = item_id if index is None else index  # of the item
        self._streamed |= {key, item_id or key} if kind.endswith(".delta") else set()
        match kind.removeprefix("response."):
            case "output_text.delta":
                self._add(key, text=piece)
            case "reasoning_summary_text.delta" | "reasoning_text.delta":
                self._add(key, thinking=piece)
            case "reasoning_summary_part.added" if chunk.get("summary_index"):
                self._add(key, thinking="\n\n")
            case "refusal.delta":
                self.refused = True
            case "function_call_arguments.delta":
                self._add(key, call={"function": {"arguments": piece}})
            case "output_item.added" if item.get("type") == _CALL:
                self._begin_call(key, item)
            case "output_item.done":
                self._item_ended = True
                self._parse_item(key, item)
            case "error":
                raise error_mapping.map_error_object(chunk, began=True)
            case status:
                self._parse_response(part(chunk, "response"), status)

    def _parse_response(self, response: Any, status: str) -> None:
        """Parse the response in an event, or in one document. Its status is complete if it has ended."""
        self.served_model = self.served_model or word(response.get("model"), MAX_NAME_CHARS) or None
        if status == "failed" or response.get("error"):
            raise error_mapping.map_error_object(response, began=not self._is_document)
        if not self._item_ended and (self._is_document or status in ("completed", "incomplete")):
            for index, item in enumerate(response.get("output") or ()):
                self._parse_item(index, part(item))
        if response.get("usage"):
            self._record_usage(response["usage"])
        if status in ("completed", "incomplete", "cancelled"):
            self.ended = True
            reason = part(response, "incomplete_details").get("reason")
            self._record_finish("stop" if status == "completed" else reason or status)

    def _parse_item(self, key: int | str | None, item: Any) -> None:
        """Parse an item at its end. Its content counts unless it arrived in pieces."""
        kind, is_new = item.get("type"), self._streamed.isdisjoint({key, word(item.get("id")) or key, None})
        if kind == "reasoning":
            carried = {REASONING_ITEMS: [item]} if item.get("encrypted_content") else {}
            self._spend(collect_extra(self.extra, carried, frozenset()))
        elif kind == _CALL:
            if is_new:
                self._begin_call(key, item)
            return
        elif "call_id" in item:  # of a tool that the caller must run
            raise dialect_error("a tool call of this type")
        for content in [*(item.get("summary") or ()), *(item.get("content") or ())] if is_new else ():
            self.refused = self.refused or bool(part(content).get("refusal"))
            self._add(key, **{"thinking" if kind == "reasoning" else "text": part(content).get("text")})

    def _begin_call(self, key: int | str | None, item: Any) -> None:
        function = {name: item.get(name) for name in ("name", "arguments")}
        self._add(key, call={"id": item.get("call_id"), "function": function})

    def _add(self, key: int | str | None, text: Any = None, thinking: Any = None, call: Any = None) -> None:
        """Add a piece of an item."""
        calls = self._add_call(key, call) if call else ()
        delta = Delta(self._parse_text(text, "text"), self._parse_text(thinking, "thinking"), calls)
        self._deltas += [delta] if any(delta) else []
