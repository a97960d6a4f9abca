"""The command line: ``postroom run | demo | local | send``.

Exit codes: 0 clean, 1 fatal, 2 configuration or usage, 3 work was cancelled.
"""

from importlib import import_module
from importlib.metadata import version

import click

_COMMANDS = {
    "demo": "run the multi-tenant datasource example end to end, on this machine",
    "local": "run Amazon SQS on this machine, for development and tests",
    "run": "run consumers until a signal says stop",
    "send": "send messages to a queue",
}


class _Commands(click.Group):
    """Imports a command when it is used, so that ``--help`` and ``--version`` stay quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"postroom.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("postroom"), prog_name="postroom")
def main() -> None:
    """Consume Amazon SQS in multi-tenant systems."""
