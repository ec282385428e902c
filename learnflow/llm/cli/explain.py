"""``explain``: which provider would serve a request, and why not the others.

Must never send the prompt, or ask anybody unless told to look.
The command line calls it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ..factory import get_provider
from ..routing.router import Choice
from .status import NOBODY, NONE_READY, READY
from .terminal import progress, say, table

_SERVES = {True: "yes", False: "no", None: "unknown"}
_DOT = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}


async def explain(options: SimpleNamespace) -> int:
    """Print who would serve. Returns 0 only where somebody would, or may."""
    router = get_provider(options.provider)
    look = options.look or not router.providers
    if look:
        with progress("looking"):
            await router.refresh()  # which finds them where none is named
    text = options.prompt + " word" * options.tokens
    prompt: Any = [{"role": "user", "content": [{"type": "text", "text": text}, _DOT]}] if options.image else text
    more: dict[str, Any] = {"tools": [{}]} if options.tools else {}
    if options.schema:
        more["response_format"] = {"type": "json_schema"}
    choices = router.explain(prompt, options.model, **more)
    if choices:
        rows = ((str(each.rank + 1), each.provider, each.model or "-", *_told(each, look)) for each in choices)
        table(("RANK", "PROVIDER", "MODEL", "SERVES", "WHY"), rows)
    else:
        say(NOBODY)
    return READY if any(each.serves is not False for each in choices) else NONE_READY


def _told(choice: Choice, look: bool) -> tuple[str, str]:
    """Whether it would serve, and why; of one that was not looked at nobody knows."""
    if choice.serves and not look:
        return "unknown", "would be asked; --look asks the servers whether they could answer"
    return _SERVES[choice.serves], choice.why.removeprefix(f"{choice.provider}: ")
