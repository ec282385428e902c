"""The keywords that a provider may support, and what ``reasoning=`` adds to the body of a request.

The documents of the vendors define the sets. Each file of ``providers`` names its document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Reasoning = Mapping[bool | str, Mapping[str, Any]]

ALWAYS: Final = frozenset(
    {"system", "response_format", "tools", "tool_choice", "timeout", "extra_body", "reasoning", "session", "headers"}
)
SAMPLING: Final = frozenset(
    {"temperature", "max_tokens", "top_p", "seed", "stop", "frequency_penalty", "presence_penalty"}
)
LOCAL_SAMPLING: Final = SAMPLING | {"top_k", "min_p"}
LEVELS: Final = ("low", "medium", "high")

# OpenAI's field, for each value of reasoning=.
REASONING_EFFORT: Final[Reasoning] = {
    False: {"reasoning_effort": "none"},
    True: {"reasoning_effort": "medium"},
    **{level: {"reasoning_effort": level} for level in LEVELS},
}
# The variable of the chat templates of Qwen3, Granite and DeepSeek-V3.1, for each value of reasoning=.
TEMPLATE_THINKING: Final[Reasoning] = {
    False: {"chat_template_kwargs": {"enable_thinking": False}},
    True: {"chat_template_kwargs": {"enable_thinking": True}},
    **{level: {"reasoning_effort": level, "chat_template_kwargs": {"enable_thinking": True}} for level in LEVELS},
}
