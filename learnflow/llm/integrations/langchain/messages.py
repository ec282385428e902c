"""LangChain's messages: put for a provider, and made of its answers.

Must never ask a provider, or let what a message says into an error.
Only ``ChatLearnFlow`` uses it.
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

_APART: Final = 1000
_PARTS: Final = ("text", "image_url", "input_audio", "file")


def put(messages: list[BaseMessage]) -> list[dict[str, Any]]:
    """OpenAI-style messages. Raises InvalidRequest where a message holds what nobody can be told."""
    try:
        put: list[dict[str, Any]] = convert_to_openai_messages(messages)
    except (ValueError, TypeError, KeyError):  # its words hold the content
        put = []
    fits = bool(put)
    for message in put:
        if isinstance(message["content"], list):
            kept = [part for part in message["content"] if part.get("type") in _PARTS]
            # of an answer its thoughts are not told again, and its tool calls stand elsewhere
            fits = fits and (message["role"] == "assistant" or len(kept) == len(message["content"]))
            message["content"] = kept or ""
    if not fits:
        raise InvalidRequest(
            "a message cannot be converted to OpenAI's format",
            hint="Content is text, or a list of text and image parts, in the form of OpenAI or LangChain",
        )
    return put


def chunk(event: Event, called: set[int], *, apart: bool) -> AIMessageChunk | None:
    """An event of a stream as LangChain's chunk; None where it has none for it.

    Args:
        event: of the stream.
        called: the tool calls so far, by index, to be added to: LangChain joins the names of all pieces of a call.
        apart: with ``output_version="v1"`` LangChain counts the blocks of text and thinking from 0, and joins what has
            one index: calls are counted from ``_APART``.
    """
    if isinstance(event, TextDelta):
        return AIMessageChunk(content=event.text)
    if isinstance(event, ReasoningDelta):  # LangChain 1 makes content blocks of it
        return AIMessageChunk(content="", additional_kwargs={"reasoning_content": event.text})
    if isinstance(event, ToolCallDelta):
        first = event.index not in called
        called.add(event.index)
        own = (event.name, event.id) if first else (None, None)
        index = event.index + (_APART if apart else 0)
        piece = tool_call_chunk(name=own[0], args=event.arguments, id=own[1], index=index)
        return AIMessageChunk(content="", tool_call_chunks=[piece])
    if isinstance(event, Finished):
        return AIMessageChunk(content="", **{**told(event.completion), "additional_kwargs": {}})
    return None


def profile(can: Capabilities) -> dict[str, Any]:
    """A provider's capabilities as LangChain's ModelProfile; what is not known is left out."""
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


def told(done: Completion) -> dict[str, Any]:
    """What a message says beside its text."""
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
    """Tokens in LangChain's words; None where they were not counted."""
    read, written = usage.prompt_tokens, usage.completion_tokens
    if read is None or written is None:
        return None
    told = UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=usage.total_tokens or read + written)
    if usage.cached_tokens is not None:
        told["input_token_details"] = InputTokenDetails(cache_read=usage.cached_tokens)
    if usage.reasoning_tokens is not None:
        told["output_token_details"] = OutputTokenDetails(reasoning=usage.reasoning_tokens)
    return told


def as_chunk(message: AIMessage) -> AIMessageChunk:
    """The whole message as the only piece of a stream."""
    return AIMessageChunk(
        content=message.content,
        tool_calls=message.tool_calls,
        usage_metadata=message.usage_metadata,
        response_metadata=message.response_metadata,
        additional_kwargs=message.additional_kwargs,
    )
