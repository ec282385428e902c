"""The keywords of a call, checked: known, honoured by the row, and of a value that can be.

Must never change what a caller meant, or let one pass that nobody will honour.
The request asks it first.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ..base import Message, Options, Prompt
from ..errors import InvalidRequest, Unsupported
from ..spec import ProviderSpec

_KEYWORDS: Final = tuple(Options.__annotations__)
_ONE: Final = "Call it several times, with asyncio.gather for instance"
_NO_LOGPROBS: Final = "An answer may be continued by another model: probabilities of its tokens would mean nothing"
_ELSEWHERE: Final = {  # what people look for here
    "logprobs": _NO_LOGPROBS,
    "top_logprobs": _NO_LOGPROBS,
    "num_ctx": "Set {context_variable}, in tokens; otherwise it grows by itself if the server takes it with a request",
}
_NUMBERS: Final[Mapping[str, tuple[float, float]]] = {
    "temperature": (0, math.inf),
    "max_tokens": (1, math.inf),
    "top_p": (0, 1),
    "top_k": (-1, math.inf),  # vLLM: -1 for all
    "min_p": (0, 1),
    "frequency_penalty": (-math.inf, math.inf),
    "presence_penalty": (-math.inf, math.inf),
    "timeout": (0, math.inf),
}
_WHOLE: Final = ("max_tokens", "top_k", "seed")
_REASONING: Final = (True, False, "low", "medium", "high")
_FORMATS: Final = ("text", "json_object", "json_schema")
_SESSION: Final = 200  # characters


def checked(spec: ProviderSpec, sampling: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were given, None being not given.

    Args:
        spec: the row that shall honour them.
        sampling: those that every call has.
        more: the caller's others.

    Raises:
        InvalidRequest: an unknown keyword, or a value that cannot be.
        Unsupported: a keyword that this provider cannot honour.
    """
    more = {name: value for name, value in more.items() if value is not None or name not in _ELSEWHERE}
    number = more.pop("n", None)
    if number is not None and not (type(number) is int and number == 1):
        raise Unsupported("n= may be 1 only: there is one answer to a call", provider=spec.name, hint=_ONE)
    for name in more:
        if name in _ELSEWHERE:
            raise Unsupported(
                f"there is no {name}=",
                provider=spec.name,
                hint=_ELSEWHERE[name].format(context_variable=spec.variable("context")),
            )
        if name not in _KEYWORDS:
            near = difflib.get_close_matches(name, (*_KEYWORDS, "temperature", "max_tokens"), 1)
            hint = f"Did you mean {near[0]}=?" if near else f"Known are {', '.join(_KEYWORDS)}"
            raise InvalidRequest(
                f"there is no keyword {name}=",
                provider=spec.name,
                hint=f"{hint}; extra_body= takes what only this server knows",
            )
    given = {name: value for name, value in {**sampling, **more}.items() if value is not None}
    for name in given:
        if name not in spec.parameters:
            raise Unsupported(
                f"{spec.title} does not support {name}=", provider=spec.name, hint=f"Leave {name}= out here"
            )
    _check_values(spec, given)
    _check_choice(spec, given.get("tool_choice"), given.get("tools"))
    return given


def rows(value: Any) -> bool:
    """Whether this is a list of objects."""
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


def _check_values(spec: ProviderSpec, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        low, high = _NUMBERS.get(name, (-math.inf, math.inf))
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name in _WHOLE and not (number and isinstance(value, int) and value >= low):
            raise _bad(spec, name, f"a whole number{f' from {low:g}' if low > -math.inf else ''}")
        if name in _NUMBERS and not (number and low <= value <= high and value != math.inf):
            raise _bad(
                spec, name, f"a number from {low:g} to {high:g}" if high < math.inf else f"a number from {low:g}"
            )
    if given.get("timeout") == 0:
        raise _bad(spec, "timeout", "more than 0 seconds")
    for name, (fits, wanted) in _SHAPES.items():
        if name in given and not fits(given[name]):
            raise _bad(spec, name, wanted)
    reasoning = given.get("reasoning")
    if reasoning is not None and not (isinstance(reasoning, (bool, str)) and reasoning in _REASONING):
        raise _bad(spec, "reasoning", 'True, False, "low", "medium" or "high"')
    _check_format(spec, given.get("response_format"))


def _json(value: Any) -> bool:
    try:
        json.dumps(value, default=dict)
    except (TypeError, ValueError):
        return False
    return True


def _texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value))


_SHAPES: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
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


def _check_format(spec: ProviderSpec, wanted: Any) -> None:
    if isinstance(wanted, Mapping):
        kind = wanted.get("type")
        if kind not in _FORMATS:
            raise _bad(
                spec, "response_format", f"a pydantic class, or a dict whose type is one of {', '.join(_FORMATS)}"
            )
        if kind != "text" and kind not in spec.structured:
            raise Unsupported(
                f"{spec.title} does not know response_format {kind}",
                provider=spec.name,
                hint=f"Use {spec.structured[0]}, or a pydantic class",
            )
        if kind == "json_schema" and not isinstance(wanted.get("json_schema"), Mapping):
            raise _bad(spec, "response_format", 'given its schema under "json_schema"')
    elif wanted is not None and not (isinstance(wanted, type) and hasattr(wanted, "model_validate_json")):
        raise _bad(spec, "response_format", "a pydantic class or a dict")


def _check_choice(spec: ProviderSpec, choice: Any, tools: Any) -> None:
    if choice is None:
        return
    if not tools:
        raise InvalidRequest("tool_choice= without tools=", provider=spec.name, hint="Give tools=, or leave it out")
    if spec.tool_choices is not None and choice not in spec.tool_choices:
        raise Unsupported(
            f"{spec.title} does not support this tool_choice=",
            provider=spec.name,
            hint=f"It knows {', '.join(spec.tool_choices)}",
        )


def _bad(spec: ProviderSpec, name: str, wanted: str) -> InvalidRequest:
    return InvalidRequest(f"{name}= must be {wanted}", provider=spec.name)
