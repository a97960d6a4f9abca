"""``postroom run module:consumer``: consumers as the main job of a process."""

import logging
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from postroom.cli import CommandError
from postroom.cli.endpoint import endpoint_option, use_endpoint
from postroom.cli.logs import log_to_stderr

if TYPE_CHECKING:
    from postroom.consumer import Consumer


@click.command()
@click.argument("consumers", nargs=-1, required=True, metavar="MODULE:CONSUMER...")
@click.option("--directory", default=".", show_default=True, envvar="POSTROOM_DIRECTORY", show_envvar=True,
              type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Where modules are looked for first.")  # fmt: skip
@click.option("--log-level", default="INFO", show_default=True, envvar="POSTROOM_LOG_LEVEL", show_envvar=True,
              type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
              help="What is logged to stderr.")  # fmt: skip
@click.option("--wait", metavar="SECONDS", envvar="POSTROOM_WAIT", show_envvar=True, type=click.FloatRange(min=0),
              help="How long to wait for a queue that cannot be reached yet; else until it answers.")  # fmt: skip
@click.option("--health-port", type=click.IntRange(0, 65_535), envvar="POSTROOM_HEALTH_PORT", show_envvar=True,
              help="Serve /livez, /readyz and /healthz there; else nowhere. 0: any free port.")  # fmt: skip
@click.option("--health-host", metavar="ADDRESS", envvar="POSTROOM_HEALTH_HOST", show_envvar=True,
              help="The address to serve them at; else all of this machine.")  # fmt: skip
@endpoint_option
def run(
    *,
    consumers: tuple[str, ...],
    directory: Path,
    log_level: str,
    wait: float | None,
    health_port: int | None,
    health_host: str | None,
    endpoint_url: str | None,
) -> None:
    """Run consumers until SIGINT or SIGTERM; then drain. A second signal cancels what runs.

    MODULE:CONSUMER names a Consumer in a module, such as shop.orders:orders, a list of them, or a function without
    parameters that returns one or the other. When one consumer stops, all do.
    Exit codes: 0 clean, 1 a consumer died, 2 it could not be started as configured, 3 work was cancelled; the one of
    a handler that calls sys.exit.
    """
    from postroom.consumer.runner import run_to_exit
    from postroom.integrations.health import HealthServer

    log_to_stderr(log_level)
    use_endpoint(endpoint_url)
    sys.path.insert(0, str(directory.resolve()))
    loaded = [consumer for name in consumers for consumer in load(name)]
    beside = None if health_port is None else HealthServer(*loaded, port=health_port, host=health_host)
    sys.exit(int(run_to_exit(loaded, wait=wait, beside=beside)))


def load(name: str) -> "list[Consumer[Any, Any]]":
    """Import the consumers that ``module:attribute`` names. Raises ``CommandError`` that says what to write."""
    from postroom.consumer import Consumer

    found = _find(name)
    if callable(found) and not isinstance(found, Consumer):
        found = found()
    several: list[Any] = list(cast("list[Any]", found)) if isinstance(found, list | tuple) else [found]
    for consumer in several:
        if not isinstance(consumer, Consumer):
            kind = type(consumer).__name__
            raise CommandError(f"{name!r} is a {kind}, not a Consumer, a list of them or a function that makes them")
    logging.getLogger("postroom.cli").debug("Loaded %s", name)
    return several


def _find(name: str) -> Any:
    module, colon, path = name.partition(":")
    if not colon or not module or not path:
        raise CommandError(f"{name!r} is not MODULE:CONSUMER, such as shop.orders:orders")
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not, and its traceback says where
        raise CommandError(f"there is no module {module!r} in {sys.path[0]}; say --directory") from error
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise CommandError(f"{module!r} has no {path!r}")
        found = getattr(found, attribute)
    return found
