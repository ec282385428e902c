"""Conversion between LangChain's messages and OpenAI's format. Errors do not quote messages."""

from __future__ import annotations

from typing import Any, Final

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.messages.utils import convert_to_openai_messages

from ...capabilities import Capabilities
from ...completion import (
    MESSAGE_FIELDS,
    ORIGIN_FIELD,
    Completion,
    Event,
    Finished,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
    add_extra,
)
from ...errors import InvalidRequest

_EXTRA: Final = "learnflow_extra"  # the key in ``additional_kwargs`` for ``Completion.extra`` and ``ToolCall.extra``
_FIRST_CALL_INDEX: Final = 1000  # above the indices of text and reasoning blocks
_SUPPORTED_PARTS: Final = ("text", "image_url", "input_audio", "file")


def to_openai(messages: list[BaseMessage]) -> list[dict[str, Any]]:
    """Convert messages to OpenAI's format.

    Raises:
        InvalidRequest: a message contains a part that providers do not support.
    """
    converted: list[dict[str, Any]] = []
    try:
        for message in messages:
            extra = message.additional_kwargs.get(_EXTRA)
            openai_messages: list[dict[str, Any]] = convert_to_openai_messages([message])
            converted += [add_extra(item, extra) for item in openai_messages] if extra else openai_messages
    except (ValueError, TypeError, KeyError, AttributeError):
        converted = []  # invalid. The error is dropped, because its text can contain the message
    is_valid = bool(converted)
    for message_dict in converted:
        if isinstance(message_dict["content"], list):
            parts = [part for part in message_dict["content"] if part.get("type") in _SUPPORTED_PARTS]
            # Only an assistant message may lose parts: reasoning is not sent, and tool calls are in another field.
            is_valid = is_valid and (message_dict["role"] == "assistant" or len(parts) == len(message_dict["content"]))
            message_dict["content"] = parts or ""
    if not is_valid:
        raise InvalidRequest(
            "a message cannot be converted to OpenAI's format",
            hint="Use text, or a list of text and image parts in the format of OpenAI or LangChain",
        )
    return converted


def chunk(event: Event, started_calls: set[int], *, has_blocks: bool) -> AIMessageChunk | None:
    """Convert an event of a stream to a chunk. Return None if LangChain has no chunk for it.

    Args:
        event: the event.
        started_calls: the indices of the tool calls so far. This function adds the index of a new call. Only the first
            chunk of a call has its name, because LangChain concatenates the names of all chunks.
        has_blocks: whether the LangChain chat model has ``output_version="v1"``. LangChain then numbers text and
            reasoning from 0, and merges chunks with the same index. Tool calls are therefore numbered from
            ``_FIRST_CALL_INDEX``.
    """
    if isinstance(event, TextDelta):
        return AIMessageChunk(content=event.text)
    if isinstance(event, ReasoningDelta):  # LangChain 1 converts it to a content block
        return AIMessageChunk(content="", additional_kwargs={"reasoning_content": event.text})
    if isinstance(event, ToolCallDelta):
        is_first = event.index not in started_calls
        started_calls.add(event.index)
        name, call_id = (event.name, event.id) if is_first else (None, None)
        index = event.index + (_FIRST_CALL_INDEX if has_blocks else 0)
        piece = tool_call_chunk(name=name, args=event.arguments, id=call_id, index=index)
        return AIMessageChunk(content="", tool_call_chunks=[piece])
    if isinstance(event, Finished):
        fields = metadata(event.completion)
        fields["additional_kwargs"].pop("reasoning_content", None)  # it was streamed
        return AIMessageChunk(content="", **fields)
    return None


def profile(capabilities: Capabilities) -> dict[str, Any]:
    """Convert the known capabilities of a provider to LangChain's ModelProfile."""
    fields = {
        "max_input_tokens": capabilities["context_served"] or capabilities["context"],
        "max_output_tokens": capabilities["max_output"],
        "image_inputs": capabilities["vision"],
        "image_url_inputs": capabilities["vision"],
        "tool_calling": capabilities["tools"],
        "tool_call_streaming": capabilities["tools"],
        "structured_output": capabilities["json_schema"],
        "reasoning_output": capabilities["reasoning"],
    }
    return {name: value for name, value in fields.items() if value is not None}


def metadata(completion: Completion) -> dict[str, Any]:
    """Return the fields of a LangChain message for an answer, except text and tool calls."""
    fields = {
        "finish_reason": completion.finish,
        "model_name": str(completion.model),
        "provider": completion.provider,
        "attempts": completion.attempts,
        "resumed": completion.resumed,
        "cost": completion.cost,
        "first_token_s": completion.first_token_s,
        "total_s": completion.total_s,
    }
    return {
        "response_metadata": {name: value for name, value in fields.items() if value is not None},
        "usage_metadata": _usage(completion.usage),
        "additional_kwargs": {
            **({"reasoning_content": completion.reasoning} if completion.reasoning else {}),
            **_extra(completion),
        },
    }


def _extra(completion: Completion) -> dict[str, Any]:
    """Return the extra fields of an answer, such as signatures. ``to_openai`` adds them to the next request."""
    message = completion.message()
    if ORIGIN_FIELD not in message:
        return {}
    calls = [{"id": str(call.id), **call.extra} for call in completion.tool_calls]
    extra = {name: value for name, value in message.items() if name not in MESSAGE_FIELDS}
    return {_EXTRA: {**extra, "tool_calls": calls}}


def _usage(usage: Usage) -> UsageMetadata | None:
    """Convert the token usage. Return None if the count of the prompt or of the answer is unknown."""
    prompt, answer = usage.prompt_tokens, usage.completion_tokens
    if prompt is None or answer is None:
        return None
    converted = UsageMetadata(
        input_tokens=prompt, output_tokens=answer, total_tokens=usage.total_tokens or prompt + answer
    )
    if usage.cached_tokens is not None:
        converted["input_token_details"] = InputTokenDetails(cache_read=usage.cached_tokens)
    if usage.reasoning_tokens is not None:
        converted["output_token_details"] = OutputTokenDetails(reasoning=usage.reasoning_tokens)
    return converted


def as_chunk(message: AIMessage) -> AIMessageChunk:
    """Return the message as the only chunk of a stream."""
    return AIMessageChunk(
        content=message.content,
        tool_calls=message.tool_calls,
        usage_metadata=message.usage_metadata,
        response_metadata=message.response_metadata,
        additional_kwargs=message.additional_kwargs,
    )
