"""How ``status`` and ``tenants`` are told which console to ask."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
URL: Final = "http://127.0.0.1:8081/"


def _one(_context: click.Context, _option: click.Parameter, url: str) -> str:
    if len(named := url.split()) > 1:  # as POSTROOM_CONSOLE_URL may, for the commands that act
        raise click.BadParameter(f"this command looks at one console: say --url {named[0]}, or another of them")
    return url


def console_options(function: F) -> F:
    """Add what leads to a console."""
    return _access(
        click.option("--url", default=URL, show_default=True, envvar="POSTROOM_CONSOLE_URL", show_envvar=True,
                     callback=_one, help="The console: of `postroom run --console`, or where it is mounted.")(function)
    )  # fmt: skip


def consoles_options(function: F) -> F:
    """Add what leads to the consoles of several processes."""
    return _access(
        click.option("--url", "urls", multiple=True, default=(URL,), show_default=True, envvar="POSTROOM_CONSOLE_URL",
                     show_envvar=True, help="The console of a process, repeatable. With a fleet one is enough.")(
            function
        )
    )  # fmt: skip


def _access(function: F) -> F:
    for option in reversed((
        click.option("--token", envvar="POSTROOM_CONSOLE_TOKEN", show_envvar=True,
                     help="The console's token. Better set in the environment: other users can see a command line."),
        click.option("--operator", envvar="POSTROOM_OPERATOR", show_envvar=True,
                     help="Who acts; by default the user of this process."),
    )):  # fmt: skip
        function = option(function)
    return function
