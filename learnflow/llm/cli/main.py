"""The command line ``learnflow-llm``."""

from __future__ import annotations

import errno
import sys
from importlib import import_module
from typing import Final

import click

from .. import __version__
from .command import ExitCode
from .terminal import drop_unwritten, notify, open_closed_streams

_NAME: Final = "learnflow-llm"
# Module and help of each command. The module has a function with the name of the command.
COMMANDS: Final = {
    "ask": ("ask", "Ask one question."),
    "status": ("status", "Show the state of the providers."),
    "models": ("status", "List the models of each server."),
    "explain": ("explain", "Show which provider would serve a request."),
    "warm-up": ("warm_up", "Load the model now."),
    "pull": ("pull", "Download a model into the store of this machine."),
    "check": ("check", "Check a server for the features that this package depends on."),
    "journal": ("journal", "List or delete the unfinished answers in LLM_JOURNAL."),
    "doctor": ("doctor", "Show the settings, the servers that respond, common mistakes, and lines for .env."),
}


class _Commands(click.Group):
    """A group that imports a command only to run it. Help and the completion of command names need no import."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Import the command that the first argument names."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            command = getattr(import_module(f".{COMMANDS[name][0]}", __package__), name.replace("-", "_"))
        return name, command, rest


@click.group(
    _NAME,
    cls=_Commands,
    commands=[click.Command(name, help=text) for name, (_, text) in COMMANDS.items()],
    epilog=f"""Completion in bash (in zsh and fish likewise):

        \b
          eval "$(_LEARNFLOW_LLM_COMPLETE=bash_source {_NAME})"
    """,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, message="%(prog)s %(version)s", help="Show the version.")
def group() -> None:
    """Ask language models, cloud or local, through learnflow.llm."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return the exit code."""
    open_closed_streams()
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.EPIPE:
            notify(f"reading or writing failed: {error}. Check stdin, stdout and the disk")
        code = ExitCode.FAILED
    finally:
        drop_unwritten(sys.stdout)
        drop_unwritten(sys.stderr)
    return code


def _run(arguments: list[str]) -> int:
    try:
        return int(group.main(arguments or ["--help"], _NAME, standalone_mode=False) or ExitCode.OK)
    except click.UsageError as error:
        if error.ctx:
            notify(error.ctx.get_usage(), prefix="")
        notify(error.format_message())
        return ExitCode.USAGE
    except click.Abort:
        return ExitCode.INTERRUPTED
