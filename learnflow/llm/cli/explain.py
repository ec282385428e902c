"""``explain``: which provider would serve a request, and why not the others.

Must never send the prompt, or ask anybody unless told to look.
The command line calls it.
"""

from __future__ import annotations

import argparse
from typing import Any

from .. import errors
from ..errors import LLMError
from ..factory import get_provider
from .status import NONE_READY, READY, table

_SERVES = {True: "yes", False: "no", None: "perhaps"}
_DOT = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}


async def explain(options: argparse.Namespace) -> int:
    """Print who would serve. Returns 0 only where somebody would."""
    router = get_provider(options.provider)
    if options.look or not router.providers:
        try:
            await router.refresh()
        except errors.NotRecorded:
            raise
        except LLMError:
            pass  # it says so itself
    text = options.prompt + " word" * options.tokens
    prompt: Any = [{"role": "user", "content": [{"type": "text", "text": text}, _DOT]}] if options.image else text
    more: dict[str, Any] = {"tools": [{}]} if options.tools else {}
    if options.schema:
        more["response_format"] = {"type": "json_schema"}
    choices = router.explain(prompt, options.model, **more)
    rows = [(str(each.rank + 1), each.provider, each.model or "-", _SERVES[each.serves], each.why) for each in choices]
    print(table([("RANK", "PROVIDER", "MODEL", "SERVES", "WHY"), *rows]))
    return READY if any(each.serves is not False for each in choices) else NONE_READY
