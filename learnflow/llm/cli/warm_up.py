"""``warm-up``: load a model into the server's memory.

Must never be silent at the end: it says what it did.
The command line calls it.
"""

from __future__ import annotations

import time
from typing import Any

import click

from .. import errors
from ..adapter.provider import BaseProvider
from ..discovery import find_providers
from ..errors import LLMError
from ..providers import build
from .command import ExitCode, command, model_option, provider_option
from .status import chain_of
from .terminal import progress, say, write


@command
@model_option
@click.option("--keep-alive", metavar="TIME", help="How long it stays loaded without a request, like 30m.")
@provider_option
async def warm_up(model: str | None, keep_alive: str | None, provider: str | None) -> int:
    """Load the model now. The first answer does not wait for it then."""
    providers = chain_of(provider) or await find_providers()
    loaded = 0
    for each in providers:
        try:
            write(await _loaded(build(each) if isinstance(each, str) else each, model, keep_alive))
            loaded += 1
        except errors.NotRecorded:
            raise
        except LLMError as error:
            say(str(error))
    return ExitCode.OK if loaded else ExitCode.NO_PROVIDER


async def _loaded(provider: BaseProvider, model: str | None, keep_alive: str | None) -> str:
    """What was done."""
    began = time.monotonic()
    before = await provider.refresh()
    if not provider.spec.local:
        return f"{provider.name}: a cloud loads its models itself"
    more: dict[str, Any] = {} if keep_alive is None else {"keep_alive": keep_alive}
    with progress(f"{provider.name}: loading {model or before.model or 'the model'}"):
        await provider.warm_up(model, **more)
    model = model or (await provider.refresh()).model
    if before.model == model and before.cold is False and not more:
        return f"{provider.name}: {model} was loaded already"
    return f"{provider.name}: {model} is loaded ({time.monotonic() - began:.1f} s)"
