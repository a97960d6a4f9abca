"""Everything that the command line takes can be given as an environment variable, and ``--help`` says its name."""

from typing import Any

import click
import pytest
from click.testing import CliRunner

from postroom.cli import main


def commands() -> dict[str, click.Command]:
    """Return all commands by name, with those of groups."""
    found: dict[str, click.Command] = {}

    def add(group: click.Group, before: str) -> None:
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            found[before + name] = command
            if isinstance(command, click.Group):
                add(command, f"{before}{name} ")

    add(main, "")
    return found


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_option_has_a_variable_that_its_help_names(name: str) -> None:
    """Of an argument, the text names it. Which tenant or letter is acted on is always said."""
    command = commands()[name]
    shown = "".join(CliRunner().invoke(command, ["--help"], terminal_width=200).output.split())
    for parameter in command.params:
        if parameter.name in {"tenant", "letter_id"} and isinstance(parameter, click.Argument):
            continue
        variable = parameter.envvar
        assert isinstance(variable, str), f"{name}: {parameter.name} has none"
        assert variable.startswith(("POSTROOM_", "AWS_")), variable
        assert variable in shown, f"{name} --help does not name {variable}"


def test_one_variable_means_one_thing() -> None:
    """Two commands share a variable only where it means the same option."""
    meanings: dict[Any, set[str]] = {}
    for command in commands().values():
        for parameter in command.params:
            if parameter.envvar is None:
                continue
            assert parameter.name is not None
            meanings.setdefault(parameter.envvar, set()).add(parameter.name)
    # Where run serves is where others ask: one of them, or several.
    shared = {"POSTROOM_HEALTH_PORT", "POSTROOM_CONSOLE_TOKEN", "POSTROOM_CONSOLE_URL"}
    assert {name for name, options in meanings.items() if len(options) > 1} <= shared
