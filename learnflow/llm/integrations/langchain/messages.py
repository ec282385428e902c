"""Conversion between LangChain's messages and those of a provider. ``ChatLearnFlow`` uses it.

It sends no request, and its errors repeat nothing of a message.
"""

from __future__ import annotations

from typing import Any, Final

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.messages.utils import convert_to_openai_messages

from ...capabilities import Capabilities
from ...completion import Completion, Event, Finished, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from ...errors import InvalidRequest

_FIRST_CALL_INDEX: Final = 1000
_PARTS: Final = ("text", "image_url", "input_audio", "file")


def to_openai(messages: list[BaseMessage]) -> list[dict[str, Any]]:
    """Convert messages to OpenAI's format. Raise InvalidRequest if one contains a part that providers do not accept."""
    try:
        converted: list[dict[str, Any]] = convert_to_openai_messages(messages)
    except (ValueError, TypeError, KeyError):  # its text contains the message
        converted = []
    fits = bool(converted)
    for message in converted:
        if isinstance(message["content"], list):
            parts = [part for part in message["content"] if part.get("type") in _PARTS]
            # an answer's reasoning is not sent back, and its tool calls are in another field
            fits = fits and (message["role"] == "assistant" or len(parts) == len(message["content"]))
            message["content"] = parts or ""
    if not fits:
        raise InvalidRequest(
            "a message cannot be converted to OpenAI's format",
            hint="Give text, or a list of text and image parts in the format of OpenAI or LangChain",
        )
    return converted


def chunk(event: Event, called: set[int], *, apart: bool) -> AIMessageChunk | None:
    """Convert an event of a stream to a chunk. Return None if LangChain has no chunk for it.

    Args:
        event: the event.
        called: the indices of the tool calls so far; it is updated. Only the first chunk of a call has its name,
            because LangChain concatenates the names of all chunks.
        apart: number tool calls from ``_FIRST_CALL_INDEX``. With ``output_version="v1"`` LangChain numbers the blocks
            of text and reasoning from 0, and would merge a tool call with the same index.
    """
    if isinstance(event, TextDelta):
        return AIMessageChunk(content=event.text)
    if isinstance(event, ReasoningDelta):  # LangChain 1 converts it to content blocks
        return AIMessageChunk(content="", additional_kwargs={"reasoning_content": event.text})
    if isinstance(event, ToolCallDelta):
        first = event.index not in called
        called.add(event.index)
        name, call_id = (event.name, event.id) if first else (None, None)
        index = event.index + (_FIRST_CALL_INDEX if apart else 0)
        piece = tool_call_chunk(name=name, args=event.arguments, id=call_id, index=index)
        return AIMessageChunk(content="", tool_call_chunks=[piece])
    if isinstance(event, Finished):
        return AIMessageChunk(content="", **{**metadata(event.completion), "additional_kwargs": {}})
    return None


def profile(can: Capabilities) -> dict[str, Any]:
    """Return a provider's capabilities as LangChain's ModelProfile, without the unknown ones."""
    known = {
        "max_input_tokens": can["context_served"] or can["context"],
        "max_output_tokens": can["max_output"],
        "image_inputs": can["vision"],
        "image_url_inputs": can["vision"],
        "tool_calling": can["tools"],
        "tool_call_streaming": can["tools"],
        "structured_output": can["json_schema"],
        "reasoning_output": can["reasoning"],
    }
    return {name: value for name, value in known.items() if value is not None}


def metadata(done: Completion) -> dict[str, Any]:
    """Return the fields of a response besides its text and tool calls."""
    known = {
        "finish_reason": done.finish,
        "model_name": str(done.model),
        "provider": done.provider,
        "attempts": done.attempts,
        "resumed": done.resumed,
        "cost": done.cost,
        "first_token_s": done.first_token_s,
        "total_s": done.total_s,
    }
    return {
        "response_metadata": {name: value for name, value in known.items() if value is not None},
        "usage_metadata": _usage(done.usage),
        "additional_kwargs": {"reasoning_content": done.reasoning} if done.reasoning else {},
    }


def _usage(usage: Usage) -> UsageMetadata | None:
    """Return the tokens as LangChain's ``UsageMetadata``, or None if the server did not report them."""
    prompt, answer = usage.prompt_tokens, usage.completion_tokens
    if prompt is None or answer is None:
        return None
    metadata = UsageMetadata(
        input_tokens=prompt, output_tokens=answer, total_tokens=usage.total_tokens or prompt + answer
    )
    if usage.cached_tokens is not None:
        metadata["input_token_details"] = InputTokenDetails(cache_read=usage.cached_tokens)
    if usage.reasoning_tokens is not None:
        metadata["output_token_details"] = OutputTokenDetails(reasoning=usage.reasoning_tokens)
    return metadata


def as_chunk(message: AIMessage) -> AIMessageChunk:
    """Return the message as the only chunk of a stream."""
    return AIMessageChunk(
        content=message.content,
        tool_calls=message.tool_calls,
        usage_metadata=message.usage_metadata,
        response_metadata=message.response_metadata,
        additional_kwargs=message.additional_kwargs,
    )
