"""What holds for each option: an environment variable that ``--help`` names, and numbers that are checked."""

from typing import Any

import click
import pytest
from click.testing import CliRunner

from postroom.cli import main
from postroom.cli.numbers import Number, WholeNumber


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
    shared = {"POSTROOM_HEALTH_PORT", "POSTROOM_HEALTH_HOST", "POSTROOM_CONSOLE_TOKEN", "POSTROOM_CONSOLE_URL"}
    assert {name for name, options in meanings.items() if len(options) > 1} <= shared


NUMBERS = [
    (name, parameter.opts[0])
    for name, command in commands().items()
    for parameter in command.params
    if isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType)
]


@pytest.mark.parametrize(("name", "option"), NUMBERS)
@pytest.mark.parametrize("value", ["abc", "nan", ""])
def test_what_is_no_number_is_refused_with_the_range(name: str, option: str, value: str) -> None:
    """One line, exit code 2, and nothing of click's own "integer range"."""
    done = CliRunner().invoke(main, [*name.split(), option, value])
    assert done.exit_code == 2
    line = done.stderr.splitlines()[-1]
    assert f"'{option}'" in line
    assert "it takes a " in line
    assert line.endswith(f"; got {value!r}")


@pytest.mark.parametrize("name", sorted({name for name, _ in NUMBERS}))
def test_help_names_the_limits_of_a_number(name: str) -> None:
    """And not those that it has not: click shows them as None."""
    assert "<=None" not in CliRunner().invoke(main, [*name.split(), "--help"]).output


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (WholeNumber(0, 65_535), "65536", "it takes a whole number from 0 to 65535; got '65536'"),
        (WholeNumber(min=1), "1.5", "it takes a whole number of at least 1; got '1.5'"),
        (WholeNumber(), "x", "it takes a whole number; got 'x'"),
        (Number(min=0, min_open=True), "0", "it takes a number above 0; got '0'"),
        (Number(min=0, min_open=True, max=600), "601", "it takes a number above 0 and up to 600; got '601'"),
        (Number(min=0), "inf", "it takes a number of at least 0; got 'inf'"),
    ],
)
def test_the_limits_of_a_number_are_words(kind: "click.ParamType[Any]", value: str, text: str) -> None:
    """They say what to write instead."""
    with pytest.raises(click.BadParameter) as refused:
        kind.convert(value, None, None)
    assert refused.value.message == text
