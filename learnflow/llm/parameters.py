"""The keyword arguments of calls and providers: their valid values, and the sets of keywords that providers support.

The sets follow the documentation of the vendors.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from inspect import getfullargspec
from itertools import groupby
from types import SimpleNamespace
from typing import Annotated, Any, Final, Literal, NotRequired, TypeAlias, TypeVar, get_args, get_type_hints

from annotated_types import Predicate
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    GetPydanticSchema,
    Strict,
    TypeAdapter,
    ValidationError,
    with_config,
)
from typing_extensions import TypedDict  # pydantic requires this one before Python 3.12

from .errors import LLMError

Reasoning = Mapping[bool | str, Mapping[str, Any]]

COMMON_KEYWORDS: Final = frozenset(
    {"system", "response_format", "tools", "tool_choice", "timeout", "extra_body", "reasoning", "session", "headers"}
)
SAMPLING: Final = frozenset(
    {"temperature", "max_tokens", "top_p", "seed", "stop", "frequency_penalty", "presence_penalty"}
)
LOCAL_SAMPLING: Final = SAMPLING | {"top_k", "min_p"}
REASONING_LEVELS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

# OpenAI's field, for each value of reasoning=.
REASONING_EFFORT: Final[Reasoning] = {
    False: {"reasoning_effort": "none"},
    True: {"reasoning_effort": "medium"},
    **{level: {"reasoning_effort": level} for level in REASONING_LEVELS},
}


def _template_variables(thinking: bool) -> dict[str, Any]:
    """Return the variables that switch thinking in chat templates. A template ignores unknown variables.

    Qwen3 reads ``enable_thinking``; Granite 3.2 and DeepSeek-V3.1 read ``thinking``
    (https://docs.vllm.ai/en/v0.26.0/features/reasoning_outputs/).
    """
    return {"chat_template_kwargs": {"enable_thinking": thinking, "thinking": thinking}}


# The fields that switch thinking in chat templates, for each value of reasoning=.
TEMPLATE_THINKING: Final[Reasoning] = {
    False: _template_variables(thinking=False),
    True: _template_variables(thinking=True),
    **{level: {"reasoning_effort": level, **_template_variables(level != "none")} for level in REASONING_LEVELS},
}


def _check_number_type(value: Any) -> Any:
    if not isinstance(value, int | float | str):  # pydantic accepts everything with ``__float__``
        raise ValueError("it is not an int or a float")  # noqa: TRY004  # pydantic expects ValueError
    return value


_T = TypeVar("_T")
# The valid values of keywords and environment variables. Counts are below 2**53, because every JSON parser represents
# these integers exactly.
Number: TypeAlias = Annotated[float, BeforeValidator(_check_number_type)]
Seconds: TypeAlias = Annotated[Number, Field(gt=0)]
Name: TypeAlias = Annotated[str, Field(max_length=1000), Predicate(str.isprintable), "a printable text"]
Count: TypeAlias = Annotated[int, Field(gt=0, lt=2**53)]
CountOrZero: TypeAlias = Annotated[int, Field(ge=0, lt=2**53)]
Fraction: TypeAlias = Annotated[Number, Field(ge=0, le=1)]
Temperature: TypeAlias = Annotated[Number, Field(ge=0)]
Seed: TypeAlias = Annotated[int, Field(ge=-(2**63), lt=2**63)]
TopK: TypeAlias = Annotated[int, Field(ge=-1, lt=2**53)]  # vLLM: -1 for all
ApiName: TypeAlias = Literal["chat", "responses"]
SingleAnswer: TypeAlias = Annotated[
    Literal[1], "1: a call returns one answer. Make several calls, for instance in parallel"
]
Stop: TypeAlias = Annotated[str | Sequence[str], "a text or a list of texts"]


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, default=dict, allow_nan=False)
    except Exception:  # noqa: BLE001  # the methods of an object may raise anything
        return False
    return True


def _has_declared_field(value: Any) -> bool:
    """Return whether a tool or a format has the key that its type requires.

    The types "function" and "json_schema" require a key with the same name. Other types require none.
    """
    return value["type"] in value or value["type"] not in ("function", "json_schema")


def validated_as(kind: Any) -> GetPydanticSchema:
    """Return an annotation that makes pydantic validate a value as ``kind``.

    In ``Annotated[T, validated_as(kind)]``, only type checkers use ``T``.
    """
    return GetPydanticSchema(lambda _, handler: handler(kind))


class _Function(TypedDict):
    name: Annotated[str, Field(min_length=1)]
    parameters: NotRequired[Mapping[str, Any] | None]


class _TypedPart(TypedDict):
    type: str
    function: NotRequired[Annotated[_Function, Strict(False)]]


class _Format(TypedDict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NotRequired[Mapping[str, Any]]


class _Message(TypedDict):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: NotRequired[str | Sequence[Annotated[_TypedPart, Strict(False)]] | None]
    tool_calls: NotRequired[Sequence[Mapping[str, Any]] | None]


_Tool: TypeAlias = Annotated[_TypedPart, Strict(False), Predicate(_has_declared_field)]
_Text: TypeAlias = Annotated[str, Field(max_length=200), Predicate(str.isprintable)]
ValidPrompt: TypeAlias = Annotated[
    str | Sequence[Mapping[str, Any]],
    validated_as(str | Annotated[Sequence[Annotated[_Message, Strict(False)]], Field(min_length=1)]),
    'a text or a list of {"role": "user" (or system, assistant, tool), "content": a text, or a list of parts}',
]
_LabelNumber: TypeAlias = Annotated[Number, Field(ge=-(2**63), lt=2**63)]  # OpenTelemetry's integers have 64 bits
ResponseFormat: TypeAlias = Annotated[
    dict[str, Any] | type[_T],
    validated_as(type[BaseModel] | Annotated[_Format, Predicate(_has_declared_field), Predicate(_is_json)]),
    "a pydantic class, or a dict of type text, json_object or json_schema (with its schema)",
]
Tools: TypeAlias = Annotated[
    Sequence[Mapping[str, Any]],
    validated_as(Annotated[Sequence[_Tool], Predicate(_is_json)]),
    'a list of tools that JSON can represent: {"type": "function", "function": {"name": "…", "parameters": {…}}}',
]
ToolChoice: TypeAlias = Annotated[str | Mapping[str, Any], validated_as(str | _Tool), "a text, or a dict with a type"]
Session: TypeAlias = Annotated[_Text, Field(min_length=1), "a text of 1 to 200 printable characters"]
JsonObject: TypeAlias = Annotated[Mapping[str, Any], Predicate(_is_json), "a dict that JSON can represent"]
Labels: TypeAlias = Annotated[
    Mapping[str, str | int | float | bool | None],
    validated_as(Mapping[Annotated[_Text, Predicate(str.isidentifier)], _Text | bool | _LabelNumber | None]),
    Field(max_length=16),
    "a dict of at most 16 entries: a name, and a printable text of at most 200 characters, a number or a bool",
]

_NO_LOGPROBS: Final = "They are not supported, because another model may continue an answer"
_NUM_CTX: Final = "Set <NAME>_CONTEXT, in tokens. By default, the context length grows if the server supports this"
# Hints for keywords that other libraries have.
_HINTS: Final = {"logprobs": _NO_LOGPROBS, "top_logprobs": _NO_LOGPROBS, "num_ctx": _NUM_CTX}
_MAX_FAULT_CHARS: Final = 500


def check_keywords(
    function: Any, arguments: Mapping[str, Any], error_class: type[LLMError], provider: str = ""
) -> None:
    """Check the arguments of a function against its annotations. Values are not converted.

    Args:
        function: the function. A text in an annotation describes the valid values.
        arguments: the function's ``locals()`` before any assignment. Each one except ``prompt`` may be None.
        error_class: the class of the error.
        provider: the name of the provider, for the error; "" without one.

    Raises:
        LLMError: a keyword does not exist, or its value is invalid. The error has the value's type, but not the value.
    """
    annotations, names, varkw_name, adapter = _keywords_of(function)
    others = arguments.get(varkw_name, {})
    for name in (name for name in others if name not in annotations):
        similar = difflib.get_close_matches(name, annotations, 1)
        hint = f"Did you mean {similar[0]}=?" if similar else f"The keywords are {', '.join(annotations)}."
        hint += " Parameters of one server go into extra_body=" if "extra_body" in annotations else ""
        raise error_class(f"there is no keyword {name}=", hint=_HINTS.get(name, hint), provider=provider or None)
    try:
        adapter.validate_python({name: arguments[name] for name in names} | others)
    except ValidationError as invalid:
        name, fault = next(iter(describe_faults(invalid, annotations).items()))
    else:
        return
    raise error_class(f"{name}= {fault}", hint="Change or remove it", provider=provider or None)


@cache
def _keywords_of(function: Any) -> tuple[dict[str, Any], list[str], str, TypeAdapter[Any]]:
    """Return all annotations, the names of the explicit parameters, the name of ``**``, and the validator."""
    # Annotations in ``base`` name this module, which ``base`` imports only for type checkers
    modules = {"parameters": sys.modules[__name__]}
    # The return type is omitted, because it may be unresolvable.
    hints = SimpleNamespace(__annotations__={**function.__annotations__, "return": None})
    annotations = get_type_hints(hints, function.__globals__, modules, include_extras=True)
    del annotations["return"]
    varkw_name, others = getfullargspec(function).varkw or "", dict[str, Any]()
    if varkw_name:
        (options,) = get_args(annotations.pop(varkw_name))
        others = get_type_hints(options, None, modules, include_extras=True)
    names = list(annotations)
    annotations |= others
    fields = {name: kind if name == "prompt" else kind | None for name, kind in annotations.items()}
    keywords: Any = TypedDict("keywords", fields, total=False)  # type: ignore[misc]  # mypy expects a dict literal
    strict = with_config(strict=True, extra="allow", allow_inf_nan=False, arbitrary_types_allowed=True)
    return annotations, names, varkw_name, TypeAdapter(strict(keywords))


def describe_faults(invalid: ValidationError, annotations: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return a description of each invalid value, by name: "must be a text or a list of texts (given: int)".

    A text in an annotation replaces pydantic's description of the valid values.
    """
    # pydantic reports a fault for each member of a union.
    groups = groupby(invalid.errors(include_url=False, include_context=False), lambda fault: str(fault["loc"][0]))
    return {name: _describe([*group], (annotations or {}).get(name)) for name, group in groups}


def _describe(faults: Sequence[Any], annotation: Any) -> str:
    deepest = max(faults, key=lambda fault: len(fault["loc"]))
    place = "".join(f"[{index}]" for index in deepest["loc"] if isinstance(index, int))
    given = f"(given: {type(deepest['input']).__name__}{place and f' at {place}'})"
    messages = dict.fromkeys(fault["msg"].partition(", unable to")[0] for fault in faults)
    message = " or ".join(text.removeprefix("Input should be ") for text in messages)[:_MAX_FAULT_CHARS]
    message = message.replace("a valid boolean", "true or false")
    rule = next((note for note in getattr(annotation, "__metadata__", ()) if isinstance(note, str)), None)
    if rule or faults[0]["msg"].startswith("Input should be "):
        return f"must be {rule or message} {given}"
    return f"is invalid: {message.removeprefix('Value error, ')} {given}"
