"""Check the keywords of a call: each must exist, be valid, and be supported by the provider. No value is changed."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeGuard

from ..base import Message, Options, Prompt
from ..errors import InvalidRequest, Unsupported
from ..provider_spec import ProviderSpec
from ..transport.endpoint import parse_headers

Rule: TypeAlias = tuple[Callable[[Any], bool], str]  # a check of a value; a description of valid values

_KEYWORDS: Final = ("temperature", "max_tokens", *Options.__annotations__)
_NO_LOGPROBS: Final = "Another model may continue an answer, so that the probabilities of its tokens mean nothing"
_UNSUPPORTED: Final = {  # hints for keywords of other libraries
    "logprobs": _NO_LOGPROBS,
    "top_logprobs": _NO_LOGPROBS,
    "num_ctx": "Set {context_variable}, in tokens. Without it, the context length grows if the server allows that",
}
_FORMATS: Final = ("text", "json_object", "json_schema")
_MAX_SESSION_CHARS: Final = 200


def check_keywords(spec: ProviderSpec, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords except ``n`` and those that are None.

    Args:
        spec: the provider's spec.
        keywords: the keywords of the call, including ``temperature`` and ``max_tokens``.

    Raises:
        InvalidRequest: a keyword does not exist, or its value is invalid.
        Unsupported: the provider does not support a keyword.
    """
    values = {name: value for name, value in keywords.items() if value is not None}
    number = values.pop("n", 1)
    if type(number) is not int or number != 1:
        hint = "Call it several times, with asyncio.gather for instance"
        raise Unsupported("n= must be 1: a call has one answer", hint=hint)
    for name in keywords:
        _check_name(spec, name, has_value=name in values)
    for name, value in values.items():
        if name not in spec.dialect.parameters:
            raise Unsupported(f"{spec.title} does not support {name}=", hint=f"Leave {name}= out")
        rule = _RULES.get(name)
        if rule and not rule[0](value):
            raise _invalid(name, rule[1])
    _check_format(spec, values.get("response_format"))
    _check_tool_choice(spec, values.get("tool_choice"), values.get("tools"))
    if "headers" in values:
        values["headers"] = parse_headers(spec, values["headers"], InvalidRequest)
    return values


def is_list_of_objects(value: Any) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    """Return whether a value is a list of JSON objects."""
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(row, Mapping) for row in value)


def messages_of(prompt: Prompt) -> Sequence[Message]:
    """Return the messages of a prompt. A text, or an invalid prompt, becomes the content of one user message."""
    return prompt if is_list_of_objects(prompt) else [{"role": "user", "content": prompt}]


def parts_of(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the valid parts of a message's content. A text is one part."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    return [part for part in parts if isinstance(part, Mapping)]


def text_of(part: Mapping[str, Any]) -> str:
    """Return the text of a part of a message; "" if the part has no text."""
    text = part.get("text")
    return text if isinstance(text, str) else ""


def _number(low: float = -math.inf, high: float = math.inf, *, integer: bool = False) -> Rule:
    kinds = (int,) if integer else (int, float)
    bounds = (f" from {low:g}" if low > -math.inf else "") + (f" to {high:g}" if high < math.inf else "")

    def is_valid(value: Any) -> bool:
        number = isinstance(value, kinds) and not isinstance(value, bool)
        return number and low <= value <= high and abs(value) != math.inf

    return is_valid, f"{'an integer' if integer else 'a number'}{bounds}"


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, default=dict)
    except (TypeError, ValueError):
        return False
    return True


def _is_text_or_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value))


def _is_format(value: Any) -> bool:
    """Return whether a value is a pydantic class, or OpenAI's dict."""
    if not isinstance(value, Mapping):
        return isinstance(value, type) and hasattr(value, "model_validate_json")
    has_schema = isinstance(value.get("json_schema"), Mapping)
    return value.get("type") in _FORMATS and (has_schema or value["type"] != "json_schema")


_RULES: Final[Mapping[str, Rule]] = {
    "temperature": _number(0),
    "max_tokens": _number(1, integer=True),
    "top_p": _number(0, 1),
    "top_k": _number(-1, integer=True),  # vLLM: -1 for all
    "min_p": _number(0, 1),
    "seed": _number(integer=True),
    "frequency_penalty": _number(),
    "presence_penalty": _number(),
    "reasoning": (
        lambda value: isinstance(value, bool) or value in ("low", "medium", "high"),
        'True, False, "low", "medium" or "high"',
    ),
    "stop": (_is_text_or_texts, "a text or a list of texts"),
    "system": (lambda value: isinstance(value, str), "a text"),
    "tools": (lambda value: is_list_of_objects(value) and _is_json(value), "a list of OpenAI-style tools"),
    "extra_body": (lambda value: isinstance(value, Mapping) and _is_json(value), "a dict that JSON can hold"),
    "response_format": (_is_format, "a pydantic class or a dict of type text, json_object, json_schema (with schema)"),
    "tool_choice": (lambda value: isinstance(value, (str, Mapping)), "a text or a dict"),
    "session": (
        lambda value: isinstance(value, str) and value.isprintable() and 0 < len(value) <= _MAX_SESSION_CHARS,
        f"a text of 1 to {_MAX_SESSION_CHARS} printable characters",
    ),
}


def _check_name(spec: ProviderSpec, name: str, *, has_value: bool) -> None:
    """Raise if the keyword does not exist. A keyword of another library may be None."""
    if name in _UNSUPPORTED and has_value:
        hint = _UNSUPPORTED[name].format(context_variable=spec.variable("context"))
        raise Unsupported(f"there is no {name}=", hint=hint)
    if name not in (*_KEYWORDS, *_UNSUPPORTED):
        similar = difflib.get_close_matches(name, _KEYWORDS, 1)
        hint = f"Did you mean {similar[0]}=?" if similar else f"The keywords are {', '.join(_KEYWORDS)}."
        hint += " Parameters of one server go into extra_body="
        raise InvalidRequest(f"there is no keyword {name}=", hint=hint)


def _check_format(spec: ProviderSpec, response_format: Any) -> None:
    kind = response_format["type"] if isinstance(response_format, Mapping) else "text"
    if kind != "text" and kind not in spec.dialect.schema_modes:
        hint = f"Use {spec.dialect.schema_modes[0]}, or a pydantic class"
        raise Unsupported(f"{spec.title} does not support response_format {kind}", hint=hint)


def _check_tool_choice(spec: ProviderSpec, choice: Any, tools: Any) -> None:
    if choice is None:
        return
    if not tools:
        raise InvalidRequest("tool_choice= without tools=", hint="Give tools=, or leave tool_choice= out")
    if spec.dialect.tool_choices is not None and choice not in spec.dialect.tool_choices:
        hint = f"Use {' or '.join(spec.dialect.tool_choices)}"
        raise Unsupported(f"{spec.title} does not support this tool_choice=", hint=hint)


def _invalid(name: str, valid_values: str) -> InvalidRequest:
    return InvalidRequest(f"{name}= must be {valid_values}")
