"""``postroom run module:consumer``: consumers as the main job of a process."""

import asyncio
import logging
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import click

from postroom.cli.logs import log_to_stderr
from postroom.types import ExitCode

if TYPE_CHECKING:
    from postroom.consumer import Consumer


@click.command()
@click.argument("consumers", nargs=-1, required=True, metavar="MODULE:CONSUMER...")
@click.option("--log-level", default="INFO", show_default=True, envvar="POSTROOM_LOG_LEVEL", show_envvar=True,
              type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
              help="What is logged to stderr.")  # fmt: skip
def run(*, consumers: tuple[str, ...], log_level: str) -> None:
    """Run consumers until SIGINT or SIGTERM; then drain. A second signal cancels what runs.

    MODULE:CONSUMER names a Consumer in a module, such as shop.orders:orders. The current directory is importable.
    Exit codes: 0 clean, 1 a consumer died, 2 it could not be started as configured, 3 work was cancelled.
    """
    from postroom.consumer import serve

    log_to_stderr(log_level)
    if "" not in sys.path:
        sys.path.insert(0, "")
    sys.exit(int(asyncio.run(serve(*map(load, consumers)))))


def load(name: str) -> "Consumer[Any, Any]":
    """Import a consumer by ``module:attribute``. Raises ``click.ClickException`` that says what to write."""
    from postroom.consumer import Consumer

    module, colon, path = name.partition(":")
    if not colon or not module or not path:
        raise _Failure(f"{name!r} is not MODULE:CONSUMER, such as shop.orders:orders")
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise _Failure(f"there is no module {module!r}; run it where the module can be imported from") from error
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise _Failure(f"{module!r} has no {path!r}")
        found = getattr(found, attribute)
    if not isinstance(found, Consumer):
        raise _Failure(f"{name!r} is a {type(found).__name__}, not a Consumer")
    logging.getLogger("postroom.cli").debug("Loaded %s", name)
    return cast("Consumer[Any, Any]", found)


class _Failure(click.ClickException):
    """It cannot start: something to change is named."""

    exit_code = int(ExitCode.CONFIGURATION)
