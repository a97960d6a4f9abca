"""The command line as a whole: help, version, environment variables, exit codes."""

import socket
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import click
import pytest
from click.testing import CliRunner

from postroom.cli import main
from postroom.errors import AccessDenied, ConfigurationError, PostroomError, QueueNotFound, ServiceUnavailable

COMMANDS = ["demo", "local", "run", "send"]


def test_the_version_is_that_of_the_package() -> None:
    """One place says which."""
    result = CliRunner().invoke(main, ["--version"])
    assert result.output.strip().endswith(version("postroom"))


@pytest.mark.parametrize("module", ["postroom", "postroom.cli"])
def test_it_runs_as_a_module(module: str) -> None:
    """For environments with scripts that are not on the path."""
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
    assert "postroom" in done.stdout


def test_help_lists_every_command_and_imports_none() -> None:
    """So that it is quick."""
    script = (
        "import sys\n"
        "from postroom.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "assert not {'postroom.cli.run', 'postroom.cli.demo', 'aiobotocore', 'asyncpg'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_an_environment_variable_and_shows_it(name: str) -> None:
    """Containers are configured by their environment."""
    command = main.get_command(click.Context(main), name)
    assert command is not None
    shown = CliRunner().invoke(command, ["--help"]).output
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert options
    for option in options:
        assert option.envvar, option.name
        assert isinstance(option.envvar, str)
        assert option.envvar in "".join(shown.split()), option.name


def test_an_unknown_command_is_a_usage_error() -> None:
    """Exit code 2, and the words of the command line."""
    result = CliRunner().invoke(main, ["deliver"])
    assert result.exit_code == 2
    assert "No such command 'deliver'" in result.output


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("say another"), 2),
        (QueueNotFound("there is no such queue"), 2),
        (AccessDenied("no credentials"), 2),
        (ServiceUnavailable("no answer"), 1),
        (PostroomError("it broke"), 1),
    ],
)
def test_an_error_of_postroom_is_one_line_and_an_exit_code(
    error: PostroomError, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 for something to change, 1 for something that failed; no traceback."""

    @click.command()
    def failing() -> None:
        raise error

    def get_command(*_: Any) -> click.Command:
        return failing

    monkeypatch.setattr(type(main), "get_command", get_command)
    result = CliRunner().invoke(main, ["run"])
    assert result.exit_code == code
    assert result.output == f"Error: {error}\n"


def test_what_is_interrupted_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is no error; the exit code is the shells' own."""

    @click.command()
    def waiting() -> None:
        raise KeyboardInterrupt

    def get_command(*_: Any) -> click.Command:
        return waiting

    monkeypatch.setattr(type(main), "get_command", get_command)
    result = CliRunner().invoke(main, ["waiting"])
    assert (result.exit_code, result.output) == (130, "")


def test_a_process_that_does_not_answer_is_named_with_its_port() -> None:
    """Of several on one machine, the port tells which."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = CliRunner().invoke(main, ["health", "--port", str(port)])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"no answer from 127.0.0.1:{port}: ")
