"""The keywords of a call, checked: known, supported by the provider, and valid.

Must never change what a caller meant, or let a keyword pass that the provider ignores.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from ..base import Message, Options, Prompt
from ..errors import InvalidRequest, Unsupported
from ..provider_spec import ProviderSpec

Rule: TypeAlias = tuple[Callable[[Any], bool], str]  # whether a value is valid, and what it must be

_KEYWORDS: Final = tuple(Options.__annotations__)
_ONE: Final = "Call it several times, with asyncio.gather for instance"
_NO_LOGPROBS: Final = "An answer may be continued by another model: probabilities of its tokens would mean nothing"
_ELSEWHERE: Final = {  # what people look for here
    "logprobs": _NO_LOGPROBS,
    "top_logprobs": _NO_LOGPROBS,
    "num_ctx": "Set {context_variable}, in tokens; otherwise it grows by itself if the server takes it with a request",
}
_FORMATS: Final = ("text", "json_object", "json_schema")
_SESSION: Final = 200  # characters


def checked(spec: ProviderSpec, sampling: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that were given; None counts as not given.

    Args:
        spec: of the provider.
        sampling: those that every call has.
        more: the caller's others.

    Raises:
        InvalidRequest: an unknown keyword, or an invalid value.
        Unsupported: a keyword that this provider does not support.
    """
    given = {name: value for name, value in {**sampling, **more}.items() if value is not None}
    number = given.pop("n", 1)
    if type(number) is not int or number != 1:
        raise Unsupported("n= may be 1 only: there is one answer to a call", hint=_ONE)
    for name in more:
        _check_known(spec, name, given=name in given)
    for name, value in given.items():
        if name not in spec.dialect.parameters:
            raise Unsupported(f"{spec.title} does not support {name}=", hint=f"Leave {name}= out here")
        fits, wanted = _RULES.get(name, (None, ""))
        if fits and not fits(value):
            raise _invalid(name, wanted)
    _check_format(spec, given.get("response_format"))
    _check_choice(spec, given.get("tool_choice"), given.get("tools"))
    return given


def rows(value: Any) -> bool:
    """Return whether this is a list of objects."""
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(one, Mapping) for one in value)


def messages_of(prompt: Prompt) -> Sequence[Message]:
    """Return the messages of a prompt. The request raises for an invalid prompt."""
    return prompt if not isinstance(prompt, str) and rows(prompt) else [{"role": "user", "content": prompt}]


def parts_of(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the parts of a message's content; a text is one part. The request raises for an invalid part."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    return [part for part in parts if isinstance(part, Mapping)]


def text_of(part: Mapping[str, Any]) -> str:
    """Return the text of a part of a message; "" if it has none."""
    text = part.get("text")
    return text if isinstance(text, str) else ""


def _number(low: float = -math.inf, high: float = math.inf, *, whole: bool = False) -> Rule:
    kinds = (int,) if whole else (int, float)
    bounds = (f" from {low:g}" if low > -math.inf else "") + (f" to {high:g}" if high < math.inf else "")

    def fits(value: Any) -> bool:
        number = isinstance(value, kinds) and not isinstance(value, bool)
        return number and low <= value <= high and abs(value) != math.inf

    return fits, f"a {'whole ' if whole else ''}number{bounds}"


def _json(value: Any) -> bool:
    try:
        json.dumps(value, default=dict)
    except (TypeError, ValueError):
        return False
    return True


def _texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value))


_RULES: Final[Mapping[str, Rule]] = {
    "temperature": _number(0),
    "max_tokens": _number(1, whole=True),
    "top_p": _number(0, 1),
    "top_k": _number(-1, whole=True),  # vLLM: -1 for all
    "min_p": _number(0, 1),
    "seed": _number(whole=True),
    "frequency_penalty": _number(),
    "presence_penalty": _number(),
    "reasoning": (
        lambda value: isinstance(value, bool) or value in ("low", "medium", "high"),
        'True, False, "low", "medium" or "high"',
    ),
    "stop": (_texts, "a text or a list of texts"),
    "system": (lambda value: isinstance(value, str), "a text"),
    "tools": (lambda value: rows(value) and _json(value), "a list of OpenAI-style tools"),
    "extra_body": (lambda value: isinstance(value, Mapping) and _json(value), "a dict that JSON can hold"),
    "tool_choice": (lambda value: isinstance(value, (str, Mapping)), "a text or a dict"),
    "session": (
        lambda value: isinstance(value, str) and value.isprintable() and 0 < len(value) <= _SESSION,
        f"a text of 1 to {_SESSION} printable characters",
    ),
}


def _check_known(spec: ProviderSpec, name: str, *, given: bool) -> None:
    if name in _ELSEWHERE and given:
        hint = _ELSEWHERE[name].format(context_variable=spec.variable("context"))
        raise Unsupported(f"there is no {name}=", hint=hint)
    if name not in (*_KEYWORDS, *_ELSEWHERE):
        near = difflib.get_close_matches(name, (*_KEYWORDS, "temperature", "max_tokens"), 1)
        hint = f"Did you mean {near[0]}=?" if near else f"Known are {', '.join(_KEYWORDS)}"
        raise InvalidRequest(
            f"there is no keyword {name}=", hint=f"{hint}; extra_body= takes what only this server knows"
        )


def _check_format(spec: ProviderSpec, wanted: Any) -> None:
    if isinstance(wanted, Mapping):
        kind = wanted.get("type")
        if kind not in _FORMATS:
            formats = f"a pydantic class, or a dict whose type is one of {', '.join(_FORMATS)}"
            raise _invalid("response_format", formats)
        if kind != "text" and kind not in spec.dialect.schema_modes:
            hint = f"Use {spec.dialect.schema_modes[0]}, or a pydantic class"
            raise Unsupported(f"{spec.title} does not know response_format {kind}", hint=hint)
        if kind == "json_schema" and not isinstance(wanted.get("json_schema"), Mapping):
            raise _invalid("response_format", 'given its schema under "json_schema"')
    elif wanted is not None and not (isinstance(wanted, type) and hasattr(wanted, "model_validate_json")):
        raise _invalid("response_format", "a pydantic class or a dict")


def _check_choice(spec: ProviderSpec, choice: Any, tools: Any) -> None:
    if choice is None:
        return
    if not tools:
        raise InvalidRequest("tool_choice= without tools=", hint="Give tools=, or leave it out")
    if spec.dialect.tool_choices is not None and choice not in spec.dialect.tool_choices:
        known = f"It knows {', '.join(spec.dialect.tool_choices)}"
        raise Unsupported(f"{spec.title} does not support this tool_choice=", hint=known)


def _invalid(name: str, wanted: str) -> InvalidRequest:
    return InvalidRequest(f"{name}= must be {wanted}")
