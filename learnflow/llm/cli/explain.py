"""``explain``: which provider would serve a request, and why not the others.

Must never send the prompt, or ask anybody unless told to look.
The command line calls it.
"""

from __future__ import annotations

from typing import Any, Final

import click

from ..factory import get_provider
from ..routing.router import Choice
from .command import ExitCode, command, model_option, provider_option
from .status import NOBODY
from .terminal import progress, say, table

_MAX_TOKENS: Final = 10_000_000  # a text of so many is made
_SERVES = {True: "yes", False: "no", None: "unknown"}
_DOT = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}


@command
@click.argument("prompt", default="")
@model_option
@click.option(
    "--tokens", type=click.IntRange(0, _MAX_TOKENS), default=0, metavar="N", help="As if the prompt had so many."
)
@click.option("--image", is_flag=True, help="As if the request needed image.")
@click.option("--tools", is_flag=True, help="As if the request needed tools.")
@click.option("--schema", is_flag=True, help="As if the request needed schema.")
@click.option("--look", is_flag=True, help="Ask the servers for their pages first.")
@provider_option
async def explain(
    prompt: str,
    model: str | None,
    tokens: int,
    image: bool,
    tools: bool,
    schema: bool,
    look: bool,
    provider: str | None,
) -> int:
    """Tell who would serve a request, and why not the others. Nothing of the prompt is sent."""
    router = get_provider(provider)
    look = look or not router.providers
    if look:
        with progress("looking"):
            await router.refresh()  # which finds them where none is named
    text = prompt + " word" * tokens
    request: Any = [{"role": "user", "content": [{"type": "text", "text": text}, _DOT]}] if image else text
    more: dict[str, Any] = {"tools": [{}]} if tools else {}
    if schema:
        more["response_format"] = {"type": "json_schema"}
    choices = router.explain(request, model, **more)
    if choices:
        rows = ((str(each.rank + 1), each.provider, each.model or "-", *_told(each, look)) for each in choices)
        table(("RANK", "PROVIDER", "MODEL", "SERVES", "WHY"), rows)
    else:
        say(NOBODY)
    return ExitCode.OK if any(each.serves is not False for each in choices) else ExitCode.NO_PROVIDER


def _told(choice: Choice, look: bool) -> tuple[str, str]:
    """Whether it would serve, and why; of one that was not looked at nobody knows."""
    if choice.serves and not look:
        return "unknown", "would be asked; --look asks the servers whether they could answer"
    return _SERVES[choice.serves], choice.why.removeprefix(f"{choice.provider}: ")
