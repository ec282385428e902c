"""Conversion of LangChain's schemas and tool choices, and parsing of structured answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import BaseModel

from ...adapter import structured_output
from ...errors import AnswerTruncated, InvalidRequest, LLMError, SchemaMismatch, clear_cause


def tool_choice(choice: dict[str, Any] | str | bool | None, names: list[str]) -> Any:
    """Convert LangChain's ``tool_choice`` to OpenAI's. Raise InvalidRequest if it names an unknown tool."""
    if choice in (True, "any", "required"):
        return "required"
    if not choice or choice in ("auto", "none") or isinstance(choice, dict):
        return choice or None
    if choice not in names:
        raise InvalidRequest("tool_choice= names none of the tools", hint=f"Use one of {', '.join(names)}")
    return {"type": "function", "function": {"name": choice}}


def response_format(schema: dict[str, Any] | type, strict: bool | None) -> Any:
    """Convert a schema to a provider's ``response_format``.

    A pydantic class is returned unchanged. ``strict`` is then ignored, because the schema of a class is always strict.
    """
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema
    body = _convert(convert_to_json_schema, schema)
    strictness = {} if strict is None else {"strict": strict}
    return {"type": "json_schema", "json_schema": {"name": body.get("title", "answer"), "schema": body, **strictness}}


def function_name(schema: dict[str, Any] | type) -> Any:
    """Return the tool name that LangChain gives to a schema. Raise InvalidRequest if LangChain cannot convert it."""
    return _convert(convert_to_openai_tool, schema)["function"]["name"]


def _convert(convert: Callable[[Any], dict[str, Any]], schema: Any) -> dict[str, Any]:
    try:
        return convert(schema)
    except Exception:  # noqa: BLE001  # the class of LangChain's error depends on the schema
        hint = "Use a pydantic class, a TypedDict, or a JSON schema with a title"
    raise InvalidRequest(f"LangChain cannot convert the schema ({type(schema).__name__})", hint=hint)


def parse(schema: Any, message: AIMessage) -> Any:
    """Parse an answer into an instance of a pydantic class, or into a dict.

    Raises:
        SchemaMismatch: the answer does not fit the schema.
        AnswerTruncated: the answer ended at a token limit, and does not fit the schema.
    """
    try:
        return _parse(schema, message)
    except SchemaMismatch as error:
        is_truncated = message.response_metadata.get("finish_reason") == "length"
        failure: LLMError = AnswerTruncated(error.what) if is_truncated else error
    raise clear_cause(failure)


def _parse(schema: Any, message: AIMessage) -> Any:
    text = json.dumps(message.tool_calls[0]["args"]) if message.tool_calls else _text(message)
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return structured_output.parse(schema, text)
    value = structured_output.parse_json_answer(text)
    if not isinstance(value, dict):
        raise SchemaMismatch("the answer is not a JSON object")
    if not hasattr(schema, "parse_obj"):
        return value
    # ``schema`` is a class of pydantic 1
    try:
        structured_output.check_step_count(schema.schema(), value)
        return schema.parse_obj(value)
    except ValueError:
        raise SchemaMismatch(f"the answer does not match {schema.__name__}") from None


def _text(message: AIMessage) -> str:
    """Return the text of a message. Its content is a list of blocks if the model has ``output_version="v1"``."""
    blocks = [message.content] if isinstance(message.content, str) else message.content
    return "".join(block if isinstance(block, str) else block.get("text", "") for block in blocks)


def with_raw(
    model: Runnable[LanguageModelInput, AIMessage], parse_message: Callable[[AIMessage], Any]
) -> Runnable[LanguageModelInput, dict[str, Any]]:
    """Return a runnable for ``include_raw=True``.

    The runnable returns the message, the parsed value and the parsing error.
    """

    def parse_result(message: AIMessage) -> dict[str, Any]:
        try:
            return {"raw": message, "parsed": parse_message(message), "parsing_error": None}
        except SchemaMismatch as error:
            return {"raw": message, "parsed": None, "parsing_error": error}

    def failure_result(error: SchemaMismatch) -> dict[str, Any]:
        metadata = {"provider": error.provider, "model_name": error.model}
        raw = AIMessage(content=error.partial, response_metadata=metadata)
        return {"raw": raw, "parsed": None, "parsing_error": error}

    def invoke(model_input: LanguageModelInput, config: RunnableConfig) -> dict[str, Any]:
        try:
            return parse_result(model.invoke(model_input, config))
        except SchemaMismatch as error:
            return failure_result(error)

    async def ainvoke(model_input: LanguageModelInput, config: RunnableConfig) -> dict[str, Any]:
        try:
            message = await model.ainvoke(model_input, config)
            return await asyncio.to_thread(parse_result, message)
        except SchemaMismatch as error:
            return failure_result(error)

    return RunnableLambda(invoke, ainvoke)
