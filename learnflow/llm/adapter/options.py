"""Check a call's keywords against a provider's spec, and read the messages of a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..base import Call, Message, Prompt
from ..errors import InvalidRequest, Unsupported
from ..provider_spec import ProviderSpec
from ..transport.endpoint import parse_headers


def checked_keywords(spec: ProviderSpec, call: Call) -> dict[str, Any]:
    """Check the keywords of a call, including ``temperature`` and ``max_tokens``. Return those that are not None.

    Raises:
        InvalidRequest: ``tool_choice`` without ``tools``, a model in ``extra_body``, or an invalid header.
        Unsupported: the provider does not support a keyword.
    """
    values = {"temperature": call.temperature, "max_tokens": call.max_tokens, **call.options}
    values = {name: value for name, value in values.items() if value is not None}
    for name in values:
        if name not in spec.dialect.parameters:
            raise Unsupported(f"{spec.title} does not support {name}=", hint=f"Leave {name}= out")
    if "reasoning" in values and values["reasoning"] not in spec.dialect.reasoning:
        levels = ", ".join(map(str, spec.dialect.reasoning))
        hint = f"Use {levels}, or set the vendor's own field in extra_body="
        raise Unsupported(f"{spec.title} does not support this reasoning=", hint=hint)
    if "model" in values.get("extra_body", ()):
        raise InvalidRequest("extra_body= cannot set the model", hint="Use model=")
    _check_format(spec, values.get("response_format"))
    _check_tool_choice(spec, values.get("tool_choice"), values.get("tools"))
    if "headers" in values:
        values["headers"] = parse_headers(spec, values["headers"], InvalidRequest)
    return values


def messages_of(prompt: Prompt) -> Sequence[Message]:
    """Return the messages of a prompt. A text becomes the content of one user message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def parts_of(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the parts of a message's content. A text is one part."""
    content = message.get("content")
    return [{"type": "text", "text": content}] if content is None or isinstance(content, str) else [*content]


def text_of(part: Mapping[str, Any]) -> str:
    """Return the text of a part of a message; "" if the part has no text."""
    text = part.get("text")
    return text if isinstance(text, str) else ""


def strings_of(value: Any, *, with_keys: bool = True) -> Iterator[str]:
    """Yield the strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from strings_of([*(value if with_keys else ()), *value.values()], with_keys=with_keys)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings_of(item, with_keys=with_keys)


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
