"""The parser of OpenAI's Responses API.

A response has items: messages, reasoning and tool calls. The content of an item arrives in pieces, then in full when
the item ends, and again in the last event. Repetitions are ignored, as are unknown events. Only the last event has the
final status.
"""

from __future__ import annotations

from typing import Any, Final

from . import error_mapping
from .reasoning import Delta
from .sse_parser import SSEParser
from .stream_parser import MAX_NAME_CHARS, malformed_error
from .tool_calls import collect_extra
from .untrusted import non_negative_int, object_at, short_text

# The message field with the encrypted items of reasoning. LiteLLM sends them back to the server.
REASONING_ITEMS: Final = "reasoning_items"
_CALL: Final = "function_call"


class ResponsesParser(SSEParser):
    """A parser of a stream of events, or of one ``response`` object in a JSON document."""

    required_document_key = "status"

    def __init__(self, max_tokens: int | None = None, *, finish_optional: bool = False) -> None:
        super().__init__(max_tokens, finish_optional=finish_optional)
        self._streamed_items: set[int | str | None] = set()  # keys of the items that arrive in pieces
        self._has_complete_items = False  # complete items have arrived; the last event repeats them

    def _parse_chunk(self, chunk: dict[str, Any], message_key: str) -> None:
        if message_key == "message":  # the chunk is a JSON document, not an event
            self._parse_response(chunk, short_text(chunk.get("status")))
            return
        event_type, item, piece = short_text(chunk.get("type")), object_at(chunk, "item"), chunk.get("delta")
        item_id = short_text(chunk.get("item_id") or item.get("id")) or None
        index = non_negative_int(chunk.get("output_index"))
        item_key = item_id if index is None else index  # some servers send no index
        self._streamed_items |= {item_key, item_id or item_key} if event_type.endswith(".delta") else set()
        match event_type.removeprefix("response."):
            case "output_text.delta":
                self._add_delta(item_key, text=piece)
            case "reasoning_summary_text.delta" | "reasoning_text.delta":
                self._add_delta(item_key, thinking=piece)
            case "reasoning_summary_part.added" if chunk.get("summary_index"):
                self._add_delta(item_key, thinking="\n\n")
            case "refusal.delta":
                self.refused = True
            case "function_call_arguments.delta":
                self._add_delta(item_key, call={"function": {"arguments": piece}})
            case "output_item.added" if item.get("type") == _CALL:
                self._begin_call(item_key, item)
            case "output_item.done":
                self._has_complete_items = True
                self._parse_item(item_key, item)
            case "error":
                raise error_mapping.map_error_object(chunk, answer_started=True)
            case status:  # "completed", "failed" …, or an unknown event, which has no effect
                self._parse_response(object_at(chunk, "response"), status)

    def _parse_response(self, response: Any, status: str) -> None:
        """Parse a ``response`` object. Record its usage, and a final status as the finish reason."""
        self.served_model = self.served_model or short_text(response.get("model"), MAX_NAME_CHARS) or None
        if status == "failed" or response.get("error"):
            raise error_mapping.map_error_object(response, answer_started=not self._is_document)
        if not self._has_complete_items and (self._is_document or status in ("completed", "incomplete")):
            for index, item in enumerate(response.get("output") or ()):
                self._parse_item(index, object_at(item))
        if response.get("usage"):
            self._record_usage(response["usage"])
        if status in ("completed", "incomplete", "cancelled"):
            self.has_end_mark = True
            reason = object_at(response, "incomplete_details").get("reason")
            self._record_finish("stop" if status == "completed" else reason or status)

    def _parse_item(self, item_key: int | str | None, item: Any) -> None:
        """Parse a complete item. Ignore content that arrived in pieces before."""
        item_type, has_new_content = (
            item.get("type"),
            self._streamed_items.isdisjoint({item_key, short_text(item.get("id")) or item_key, None}),
        )
        if item_type == "reasoning":
            encrypted_items = {REASONING_ITEMS: [item]} if item.get("encrypted_content") else {}
            self._deduct_chars(collect_extra(self.extra, encrypted_items, frozenset()))
        elif item_type == _CALL:
            if has_new_content:
                self._begin_call(item_key, item)
            return
        elif "call_id" in item:  # an unsupported type of tool call, which the application would have to execute
            raise malformed_error(f"a tool call of type {short_text(item_type, MAX_NAME_CHARS)}")
        for content in [*(item.get("summary") or ()), *(item.get("content") or ())] if has_new_content else ():
            self.refused = self.refused or bool(object_at(content).get("refusal"))
            self._add_delta(
                item_key, **{"thinking" if item_type == "reasoning" else "text": object_at(content).get("text")}
            )

    def _begin_call(self, item_key: int | str | None, item: Any) -> None:
        function = {name: item.get(name) for name in ("name", "arguments")}
        self._add_delta(item_key, call={"id": item.get("call_id"), "function": function})

    def _add_delta(self, item_key: int | str | None, text: Any = None, thinking: Any = None, call: Any = None) -> None:
        """Add a piece of an item to the answer and to the deltas."""
        calls = self._add_call(item_key, call) if call else ()
        delta = Delta(self._parse_text(text, "text"), self._parse_text(thinking, "thinking"), calls)
        self._deltas += [delta] if any(delta) else []
