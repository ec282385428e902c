"""``warm-up``: load a model into the memory of its server."""

from __future__ import annotations

import time
from typing import Any

import click

from .. import errors
from ..adapter.provider import BaseProvider
from ..capabilities import is_same_model
from ..discovery import find_providers
from ..errors import LLMError
from ..providers import build
from .command import ExitCode, command, exit_code, model_option, provider_option
from .status import chain_of
from .terminal import notify, progress, write


@command
@model_option
@click.option("--keep-alive", metavar="TIME", help="Time until a server unloads an idle model, such as 30m.")
@provider_option
async def warm_up(model: str | None, keep_alive: str | None, provider: str | None) -> int:
    """Load the model now, so that the first request does not wait for it."""
    targets = chain_of(provider) or await find_providers()
    failures: list[LLMError] = []
    for target in targets:
        try:
            write(await _load(build(target) if isinstance(target, str) else target, model, keep_alive))
        except errors.NotRecorded:
            raise
        except LLMError as error:
            notify(str(error))
            failures.append(error)
    return min(map(exit_code, failures)) if len(failures) == len(targets) else ExitCode.OK


async def _load(provider: BaseProvider, model: str | None, keep_alive: str | None) -> str:
    """Load the model unless it is loaded. Return the message for the user."""
    began = time.monotonic()
    health_before = await provider.refresh()
    if not provider.spec.local:
        return f"{provider.name}: a cloud needs no warm-up"
    if health_before.state == "down":  # raise now, because warm_up() would probe the server again
        raise errors.ConnectionFailed(health_before.detail.removesuffix("."), provider=provider.name)
    options: dict[str, Any] = {} if keep_alive is None else {"keep_alive": keep_alive}
    can_skip = health_before.cold is False and not options and model in (None, health_before.model)
    if not can_skip:  # skip warm_up() if possible, because it imports LiteLLM, which takes seconds
        with progress(f"{provider.name}: loading {model or health_before.model or 'the model'}"):
            await provider.warm_up(model, **options)
    requested = model or provider.model
    served = (await provider.catalog.probe_model(requested)).name
    description = served if not requested or is_same_model(requested, served) else f"{served} instead of {requested}"
    if health_before.model == served and health_before.cold is False and not options:
        return f"{provider.name}: {description} was already loaded"
    return f"{provider.name}: {description} is loaded ({time.monotonic() - began:.1f} s)"
