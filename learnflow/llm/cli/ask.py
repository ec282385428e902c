"""``ask``: one question; the answer goes to stdout as it comes, everything else to stderr.

Must never print anything to stdout that is not the answer.
The command line calls it.
"""

from __future__ import annotations

import dataclasses
import sys
from contextlib import ExitStack, aclosing
from typing import Any

import click

from .. import errors, events
from ..adapter.provider import BaseProvider
from ..base import LLMProvider
from ..completion import Completion, Finished, TextDelta, Waiting
from ..errors import LLMError
from ..factory import get_provider
from ..routing.router import RouterProvider
from .command import ExitCode, command, json_option, model_option, provider_option
from .terminal import progress, say, shown, write_json


@command
@click.argument("prompt")
@model_option
@click.option("--temperature", "-t", type=float, help="0 for the same answer each time.")
@click.option("--system", "-s", help="The system prompt.")
@json_option(help="Print everything known about the answer as one JSON object.")
@provider_option
async def ask(
    prompt: str, model: str | None, temperature: float | None, system: str | None, as_json: bool, provider: str | None
) -> int:
    """Ask one question; the answer goes to stdout. A prompt - is read from stdin."""
    prompt = sys.stdin.read() if prompt == "-" else prompt
    more: dict[str, Any] = {"model": model}
    if temperature is not None:
        more["temperature"] = temperature
    if system:
        more["system"] = system
    router = get_provider(provider)
    remove = events.add_sink(_nothing_configured)
    try:
        if as_json:
            with progress(_waits(router)):
                done = await router.complete(prompt, **more)
            write_json(_plain(done))
        else:
            await _streamed(router, prompt, more)
    except errors.ModelNotFound as error:
        error.hint = await _instead(router, error) or error.hint
        raise
    finally:
        remove()
    return ExitCode.OK


def _nothing_configured(event: events.LogEvent) -> None:
    """Tell a person that a small model answers, because no other was named or found."""
    if isinstance(event, events.NothingConfigured):
        say(f"no server answers: using {event.provider} with the model {event.model}. {event.hint}")


async def _instead(router: RouterProvider, error: LLMError) -> str:
    """Which models are there, the nearest name, and the command that gets this one; "" where nobody knows."""
    for provider in router.providers:
        if isinstance(provider, BaseProvider) and provider.name == error.provider:
            await provider.refresh()
            return provider.catalog.alternatives(error.model)
    return ""


async def _streamed(provider: LLMProvider, prompt: str, more: dict[str, Any]) -> None:
    """The pieces as they come; a pipe gets them as they are, and one line end behind the answer."""
    clean = shown if sys.stdout.isatty() else str
    last = ""
    with ExitStack() as waiting:
        show = waiting.enter_context(progress(_waits(provider)))
        try:
            async with aclosing(provider.stream(prompt, **more).events()) as stream:
                async for event in stream:
                    match event:
                        case Waiting():
                            show(description=_waiting(event))
                        case TextDelta(last):
                            waiting.close()
                            sys.stdout.write(clean(last))
                            sys.stdout.flush()
                        case Finished(done) if done.finish == "length":
                            waiting.close()
                            say("the answer ended at max_tokens")
        finally:
            if last and not last.endswith("\n"):
                sys.stdout.write("\n")
                sys.stdout.flush()


def _waits(provider: LLMProvider) -> str:
    return f"{provider.name}: waiting for the first token"


def _waiting(event: Waiting) -> str:
    """What is waited for, for a person."""
    model = event.model or "the model"
    what = {"queue": "waiting for a free place", "load": f"loading {model}", "retry": "waiting to try again"}
    return shown(f"{event.provider}: {what[event.reason]}")


def _plain(done: Completion) -> dict[str, Any]:
    """A completion as JSON can hold it."""
    known = {each.name: getattr(done, each.name) for each in dataclasses.fields(done)}
    known["model"] = {"asked": done.model.asked, "served": done.model.served}
    known["usage"] = dataclasses.asdict(done.usage)
    known["tool_calls"] = [dataclasses.asdict(call) for call in done.tool_calls]
    return known
