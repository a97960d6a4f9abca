"""Everything that the command line takes can be given as an environment variable, and ``--help`` says its name."""

from typing import Any

import click
import pytest
from click.testing import CliRunner

from postroom.cli import main


def commands() -> dict[str, click.Command]:
    """Return all commands by name."""
    context = click.Context(main)
    found = {name: main.get_command(context, name) for name in main.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_option_has_a_variable_that_its_help_names(name: str) -> None:
    """Of an argument, the text names it."""
    command = commands()[name]
    shown = "".join(CliRunner().invoke(command, ["--help"], terminal_width=200).output.split())
    for parameter in command.params:
        variable = parameter.envvar
        assert isinstance(variable, str), f"{name}: {parameter.name} has none"
        assert variable.startswith(("POSTROOM_", "AWS_")), variable
        assert variable in shown, f"{name} --help does not name {variable}"


def test_one_variable_means_one_thing() -> None:
    """Two commands share a variable only where it means the same option."""
    meanings: dict[Any, set[str]] = {}
    for command in commands().values():
        for parameter in command.params:
            assert parameter.name is not None
            meanings.setdefault(parameter.envvar, set()).add(parameter.name)
    shared = {"POSTROOM_HEALTH_PORT", "POSTROOM_CONSOLE_TOKEN"}  # where run serves is where others ask
    assert {name for name, options in meanings.items() if len(options) > 1} <= shared
