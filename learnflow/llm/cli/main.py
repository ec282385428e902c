"""The command line: ``learnflow-llm``, with a command for each module beside this one.

Must never import anything heavy before it is needed, nor print anything to stdout that was not asked for.
Exit codes: 0 answered, ready or stored, 1 the answer or the download failed, 2 wrong usage, 3 no provider to ask,
130 interrupted.
Click, which LiteLLM brings: it completes words in bash, zsh and fish by itself, and checks numbers.
"""

from __future__ import annotations

import asyncio
import io
import logging
import math
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Final

import click

from .. import errors
from ..process import switches

FAILED: Final = 1
USAGE: Final = 2
NO_PROVIDER: Final = 3
INTERRUPTED: Final = 130
_NAME: Final = "learnflow-llm"
_NOBODY: Final = (errors.NotConfigured, errors.NotLocal, errors.ConnectionFailed, errors.ConnectTimeout)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    try:
        return int(group.main(arguments, _NAME, standalone_mode=False) or 0)
    except click.UsageError as error:
        if error.ctx:
            click.echo(error.ctx.get_usage(), err=True)
        _say(error.format_message())
        return USAGE
    except click.Abort:
        return INTERRUPTED


def _run(where: str, provider: str | None = None, **given: Any) -> int:
    """Run a command, which is a function of a module; it is imported now, so that --help needs none of it."""
    options = SimpleNamespace(provider=provider, **given)
    _prepare(verbose=options.verbose)
    switches.watched = False  # the port of the metrics is left to the application
    switches.patient = False  # a person who forgot to start the server learns it at once
    try:
        if provider:
            _check(provider)
        module, function = where.split(".")
        done = getattr(import_module(f".{module}", __package__), function)(options)
        return int(asyncio.run(done) if asyncio.iscoroutine(done) else done)
    except errors.LLMError as error:
        _say(str(error))
        return _code(error)
    finally:
        switches.watched = switches.patient = True


def _say(what: str) -> None:
    from .terminal import say  # noqa: PLC0415

    say(what)


def _check(provider: str) -> None:
    from ..providers.registry import check  # noqa: PLC0415

    try:
        check(provider)
    except errors.LLMError as error:
        raise click.BadParameter(str(error), param_hint="--provider") from None


def _prepare(*, verbose: bool) -> None:
    """Log to stderr, and let no terminal's or pipe's encoding break an answer in the middle."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO if verbose else logging.CRITICAL, format="%(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _code(error: errors.LLMError) -> int:
    """Usage, nobody to ask, and a failed answer are different things to a script."""
    if isinstance(error, errors.InvalidRequest):
        return USAGE
    return NO_PROVIDER if isinstance(error, _NOBODY) else FAILED


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from importlib import metadata  # noqa: PLC0415

    try:
        version = metadata.version(_NAME)
    except metadata.PackageNotFoundError:
        version = "(copied, not installed)"
    click.echo(f"{_NAME} {version}")
    context.exit()


def _providers(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    """What --provider may be, for the shell's completion."""
    from ..providers.registry import SPECS  # noqa: PLC0415

    return [name for name in SPECS if name.startswith(begun)]


def _option(*names: str, **more: Any) -> click.Option:
    return click.Option(names, **more)


def _finite(_: click.Context, __: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter("it must be a number of seconds")
    return value


_json = partial(_option, "--json", is_flag=True)
_MODEL: Final = _option("--model", "-m", help="Instead of the provider's own.")
_WITHIN: Final = _option(
    "--within",
    type=click.FloatRange(0, 3600, min_open=True),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    callback=_finite,
    help="For all of it.",
)
_EVERY: Final = (
    _option("--provider", "-p", help="Instead of LLM_PROVIDER.", shell_complete=_providers),
    _option("--verbose", "-v", is_flag=True, help="Log to stderr what happened."),
)
_TOKENS: Final = click.IntRange(0, 10_000_000)  # a text of so many is made


def _command(
    name: str, where: str, what: str, *more: click.Parameter, every: Sequence[click.Parameter] = _EVERY
) -> click.Command:
    return click.Command(name, callback=partial(_run, where), params=[*more, *every], help=what)


group: Final = click.Group(
    _NAME,
    help="Ask language models, cloud or local, through learnflow.llm.",
    epilog="Completion in bash (in zsh and fish likewise):\n\n\b\n"
    f'  eval "$(_LEARNFLOW_LLM_COMPLETE=bash_source {_NAME})"',
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[_option("--version", is_flag=True, expose_value=False, callback=_version, help="Show the version.")],
    commands=[
        _command(
            "ask",
            "ask.ask",
            "Ask one question; the answer goes to stdout. A prompt - is read from stdin.",
            click.Argument(["prompt"]),
            _MODEL,
            _option("--temperature", "-t", type=float, help="0 for the same answer each time."),
            _option("--system", "-s", help="The system prompt."),
            _json(help="Print everything known about the answer as one JSON object."),
        ),
        _command(
            "status",
            "status.status",
            "Show how the providers are. Those that are named or found, and what to do; * marks the one that would be "
            "used. Exit code 0 only if one is ready that would be.",
            _option("--all", "-a", "every", is_flag=True, help="Those that are neither, and LiteLLM's vendors, too."),
            _json(help="Print a list of objects, one for each."),
            _WITHIN,
        ),
        _command(
            "models",
            "status.models",
            "List the models of each server.",
            _option("--store", is_flag=True, help="Those in the store of this machine instead (learnflow-llm pull)."),
            _json(help="Print a list of objects."),
            _WITHIN,
        ),
        _command(
            "explain",
            "explain.explain",
            "Tell who would serve a request, and why not the others. Nothing of the prompt is sent.",
            click.Argument(["prompt"], required=False, default=""),
            _MODEL,
            _option(
                "--tokens",
                type=click.IntRange(0, 10_000_000),
                default=0,
                metavar="N",
                help="As if the prompt had so many.",
            ),
            *(
                _option(f"--{need}", is_flag=True, help=f"As if the request needed {need}.")
                for need in ("image", "tools", "schema")
            ),
            _option("--look", is_flag=True, help="Ask the servers for their pages first."),
        ),
        _command(
            "warm-up",
            "load.warm_up",
            "Load the model now. The first answer does not wait for it then.",
            _MODEL,
            _option("--keep-alive", metavar="TIME", help="How long it stays loaded without a request, like 30m."),
        ),
        _command(
            "pull",
            "pull.pull",
            "Download a model into the store of this machine: smollm2, or a GGUF file by its URL. Resumes if it was "
            "interrupted. Exit code 0 only if the model is stored.",
            click.Argument(["source"], metavar="smollm2|URL"),
            _option("--sha256", metavar="HEX", help="Required of the file at the URL; needed for http://."),
            _option("--name", metavar="NAME", help="Its name in the store, instead of the file's."),
            every=_EVERY[1:],
        ),
        _command(
            "check",
            "check.check",
            "Show what a server keeps of what answers rely on. Ten short questions are asked: finish reasons, "
            "streams, errors by name, schemas, tools, continuation. The last line is what to set.",
            _MODEL,
            _json(help="Print one object with the findings."),
        ),
        _command("doctor", "doctor.doctor", "Explain this machine: what is set, what answers, what to write.", _WITHIN),
    ],
)
