"""The command line: ``postroom run``, ``demo``, ``local``, ``send``, and what operators need.

Exit codes: 0 clean, 1 something failed, 2 something to change (usage, configuration, a queue that does not exist), 3
work was cancelled, 130 Ctrl-C ended it. Every option can be given as an environment variable; ``--help`` names it.
"""

import sys
from importlib import import_module
from importlib.metadata import version
from io import TextIOWrapper
from typing import Any, ClassVar, cast

import click

from postroom.errors import AccessDenied, ConfigurationError, NotOpenError, PostroomError, QueueNotFound
from postroom.types import ExitCode

_COMMANDS = {
    "check": "look at consumers before they ship: code, queue, permissions, databases, stop",
    "completion": "print the completion script for a shell",
    "dead-letters": "list, show, redrive or purge dead letters, by tenant",
    "demo": "run the multi-tenant datasource example end to end, on this machine",
    "health": "ask a running process whether it is healthy",
    "local": "run Amazon SQS on this machine, for development and tests",
    "peek": "look at messages of a queue without taking them away",
    "run": "run consumers until a signal says stop",
    "send": "send messages to a queue",
    "status": "show what a running consumer's tenants do, as a live table",
    "tenants": "pause, resume, limit, drain, divert, move or offboard a tenant",
}
INTERRUPTED = 130
"""The exit code of what Ctrl-C ended, by the convention of shells."""
_TO_CHANGE = (ConfigurationError, NotOpenError, QueueNotFound, AccessDenied)


class CommandError(click.ClickException):
    """A command cannot do its work as it was asked to. The text says what to change."""

    exit_code: ClassVar[int] = int(ExitCode.CONFIGURATION)


class CommandFailed(click.ClickException):
    """A command did not do its work. The text says what failed."""

    exit_code: ClassVar[int] = int(ExitCode.FATAL)


class _Commands(click.Group):
    """Imports a command when it is used, so that ``--help`` and ``--version`` stay quick.

    Errors of postroom become one line on stderr and an exit code.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command. ``tenant move acme`` reads better than ``tenants move acme``, so both work."""
        cmd_name = "tenants" if cmd_name == "tenant" else cmd_name
        if cmd_name not in _COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(import_module(f"postroom.cli.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except _TO_CHANGE as error:
            raise CommandError(str(error)) from error
        except PostroomError as error:
            raise CommandFailed(str(error)) from error
        except KeyboardInterrupt:  # click would say "Aborted!", and exit as after an error
            sys.exit(INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("postroom"), prog_name="postroom")
def main() -> None:
    """Consume Amazon SQS in multi-tenant systems.

    Every option can be given as an environment variable; COMMAND --help names it.
    """
    out: object = sys.stdout
    if isinstance(out, TextIOWrapper):  # what tenants send may have characters that the terminal has not
        cast("TextIOWrapper[Any]", out).reconfigure(errors="backslashreplace")
