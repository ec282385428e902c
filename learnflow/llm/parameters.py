"""The keywords that a provider may honour, and what ``reasoning=`` adds to a request's body.

Source of the sets: the documents of the vendors, which each file of ``providers`` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

ALWAYS: Final = frozenset(
    {"system", "response_format", "tools", "tool_choice", "timeout", "extra_body", "reasoning", "session"}
)
SAMPLING: Final = frozenset(
    {"temperature", "max_tokens", "top_p", "seed", "stop", "frequency_penalty", "presence_penalty"}
)
LOCAL_SAMPLING: Final = SAMPLING | {"top_k", "min_p"}
LEVELS: Final = ("low", "medium", "high")


def effort(off: str = "none", on: str = "medium", **more: Any) -> Mapping[bool | str, Mapping[str, Any]]:
    """Return OpenAI's ``reasoning_effort`` for each value of ``reasoning=``."""
    values: dict[bool | str, str] = {False: off, True: on, **{level: level for level in LEVELS}}
    return {value: {"reasoning_effort": effort, **more} for value, effort in values.items()}


def template_switch() -> Mapping[bool | str, Mapping[str, Any]]:
    """Return the chat template's variable (Qwen3, Granite, DeepSeek-V3.1) for each value of ``reasoning=``."""
    levels: Mapping[bool | str, Mapping[str, Any]] = {
        level: {"reasoning_effort": level, "chat_template_kwargs": {"enable_thinking": True}} for level in LEVELS
    }
    return {
        False: {"chat_template_kwargs": {"enable_thinking": False}},
        True: {"chat_template_kwargs": {"enable_thinking": True}},
        **levels,
    }
