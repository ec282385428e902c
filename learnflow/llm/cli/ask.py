"""``ask``: send one prompt and stream the answer to stdout. Notices and errors go to stderr."""

from __future__ import annotations

import sys
from contextlib import ExitStack, aclosing
from dataclasses import asdict
from functools import partial
from typing import Any

import click

from .. import errors, events
from ..adapter.provider import BaseProvider
from ..base import LLMProvider
from ..completion import Completion, TextDelta, Waiting
from ..errors import LLMError
from ..factory import get_provider
from ..routing.router import RouterProvider
from .command import ExitCode, command, json_option, model_option, provider_option
from .terminal import escape, notify, progress, read_stdin, write_json


@command
@click.argument("prompt")
@model_option
@click.option("--temperature", "-t", type=float, help="The sampling temperature. 0 is the most repeatable.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), metavar="N", help="The maximum length of the answer in tokens."
)
@click.option("--system", "-s", help="The system prompt.")
@json_option(help="Print the answer with its metadata as one JSON object.")
@provider_option
async def ask(prompt: str, as_json: bool, provider: str | None, **options: Any) -> int:
    """Ask one question. The answer goes to stdout. If PROMPT is -, the prompt is read from stdin."""
    prompt = read_stdin() if prompt == "-" else prompt
    options = {name: value for name, value in options.items() if value not in (None, "")}
    notices: list[str] = []  # printed after the last line of the answer
    remove_sink = events.add_sink(partial(_handle_event, notices))
    try:
        router = get_provider(provider)
        if as_json:
            with progress(_waiting_text(router)):
                completion = await router.complete(prompt, **options)
            write_json(_json_object(completion))
        else:
            await _print_stream(router, prompt, options)
    except errors.ModelNotFound as error:
        error.hint = await _model_hint(router, error) or error.hint
        raise
    finally:
        remove_sink()
        for notice in notices:
            notify(notice, options=("max_tokens",))
    return ExitCode.OK


def _handle_event(notices: list[str], event: events.LogEvent) -> None:
    """Print a notice about an unusable provider or the embedded model. Store other notices in ``notices``.

    The embedded model is a small model that this package runs itself if no server responds.
    """
    match event:
        case events.NothingConfigured():
            notify(f"no server responds: using {event.provider} with the model {event.model}. {event.hint}")
        case events.ProviderUnusable():
            notify(f"not used: {event.hint}", options=("api_key",))
        case events.OtherModelAnswered():
            notices.append(f"{event.provider} answered with the model {event.served} instead of {event.model}")
        case events.TokenLimitReached():
            notices.append(f"{event.provider}: {event.hint}")


async def _model_hint(router: RouterProvider, error: LLMError) -> str:
    """Return a hint with the server's models and the command to download the missing model; "" if no hint exists."""
    for provider in router.providers:
        if isinstance(provider, BaseProvider) and provider.name == error.provider:
            await provider.refresh()
            return provider.catalog.alternatives_hint(error.model)
    return ""


async def _print_stream(provider: LLMProvider, prompt: str, options: dict[str, Any]) -> None:
    """Print the answer as it arrives, then a newline. Escape control characters if stdout is a terminal."""
    text = ""
    with ExitStack() as progress_stack:  # closed before the first output
        update = progress_stack.enter_context(progress(_waiting_text(provider)))
        try:
            async with aclosing(provider.stream(prompt, **options).events()) as stream:
                async for event in stream:
                    match event:
                        case Waiting():
                            update(description=_reason_text(event))
                        case TextDelta(text):
                            progress_stack.close()
                            sys.stdout.write(escape(text) if sys.stdout.isatty() else text)
                            sys.stdout.flush()
        finally:
            if text and not text.endswith("\n"):
                sys.stdout.write("\n")
                sys.stdout.flush()


def _waiting_text(provider: LLMProvider) -> str:
    return f"{provider.name}: waiting for the first token"


def _reason_text(event: Waiting) -> str:
    model = event.model or "the model"
    reasons = {"queue": "waiting in the queue", "load": f"loading {model}", "retry": "waiting to retry"}
    return escape(f"{event.provider}: {reasons[event.reason]}")


def _json_object(completion: Completion) -> dict[str, Any]:
    model = {"requested": completion.model.requested, "served": completion.model.served}
    return {**asdict(completion), "model": model}
