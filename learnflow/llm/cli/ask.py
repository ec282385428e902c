"""``ask``: send one prompt. The answer is streamed to stdout, everything else goes to stderr."""

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
from .terminal import escape, notify, progress, write_json


@command
@click.argument("prompt")
@model_option
@click.option("--temperature", "-t", type=float, help="0 for the same answer every time.")
@click.option("--system", "-s", help="The system prompt.")
@json_option(help="Print the answer with its metadata as one JSON object.")
@provider_option
async def ask(
    prompt: str, model: str | None, temperature: float | None, system: str | None, as_json: bool, provider: str | None
) -> int:
    """Ask one question. The answer goes to stdout. The prompt - is read from stdin."""
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
            with progress(_waiting_text(router)):
                done = await router.complete(prompt, **more)
            write_json(_json_object(done))
        else:
            await _stream(router, prompt, more)
    except errors.ModelNotFound as error:
        error.hint = await _alternatives(router, error) or error.hint
        raise
    finally:
        remove()
    return ExitCode.OK


def _nothing_configured(event: events.LogEvent) -> None:
    """Print that a small model answers, because no other was named or found."""
    if isinstance(event, events.NothingConfigured):
        notify(f"no server answers: using {event.provider} with the model {event.model}. {event.hint}")


async def _alternatives(router: RouterProvider, error: LLMError) -> str:
    """Return a hint with the models of the server and the command to get the missing one; "" if they are unknown."""
    for provider in router.providers:
        if isinstance(provider, BaseProvider) and provider.name == error.provider:
            await provider.refresh()
            return provider.catalog.alternatives(error.model)
    return ""


async def _stream(provider: LLMProvider, prompt: str, more: dict[str, Any]) -> None:
    """Print the pieces as they arrive, and a line end after the answer. A pipe gets them unchanged."""
    clean = escape if sys.stdout.isatty() else str
    last = ""
    with ExitStack() as waiting:
        show = waiting.enter_context(progress(_waiting_text(provider)))
        try:
            async with aclosing(provider.stream(prompt, **more).events()) as stream:
                async for event in stream:
                    match event:
                        case Waiting():
                            show(description=_event_text(event))
                        case TextDelta(last):
                            waiting.close()
                            sys.stdout.write(clean(last))
                            sys.stdout.flush()
                        case Finished(done) if done.finish == "length":
                            waiting.close()
                            notify("the answer ended at max_tokens")
        finally:
            if last and not last.endswith("\n"):
                sys.stdout.write("\n")
                sys.stdout.flush()


def _waiting_text(provider: LLMProvider) -> str:
    return f"{provider.name}: waiting for the first token"


def _event_text(event: Waiting) -> str:
    """Return what the request waits for."""
    model = event.model or "the model"
    reasons = {"queue": "waiting in the queue", "load": f"loading {model}", "retry": "waiting to retry"}
    return escape(f"{event.provider}: {reasons[event.reason]}")


def _json_object(done: Completion) -> dict[str, Any]:
    """Return a completion as a JSON object."""
    fields = {field.name: getattr(done, field.name) for field in dataclasses.fields(done)}
    fields["model"] = {"requested": done.model.requested, "served": done.model.served}
    fields["usage"] = dataclasses.asdict(done.usage)
    fields["tool_calls"] = [dataclasses.asdict(call) for call in done.tool_calls]
    return fields
