"""``postroom run module:consumer``: consumers as the main job of a process."""

import logging
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from postroom.cli import CommandError
from postroom.cli.endpoint import endpoint_option, use_endpoint
from postroom.cli.loading import CannotLoad, load
from postroom.cli.logs import FORMATS, log_to_stderr
from postroom.cli.numbers import Number, WholeNumber
from postroom.log_fields import Log, Step
from postroom.redaction import log_error

if TYPE_CHECKING:
    from postroom.consumer import Consumer


@click.command()
@click.argument("consumers", nargs=-1, required=True, metavar="MODULE:CONSUMER...", envvar="POSTROOM_CONSUMERS")
@click.option("--directory", default=".", show_default=True, envvar="POSTROOM_DIRECTORY", show_envvar=True,
              type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Where modules are looked for first.")  # fmt: skip
@click.option("--log-level", default="INFO", show_default=True, envvar="POSTROOM_LOG_LEVEL", show_envvar=True,
              type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
              help="What is logged to stderr.")  # fmt: skip
@click.option("--log-format", default="text", show_default=True, envvar="POSTROOM_LOG_FORMAT", show_envvar=True,
              type=click.Choice(FORMATS, case_sensitive=False),
              help="Lines for people, or one JSON object per line with the fields of each record.")  # fmt: skip
@click.option("--wait", metavar="SECONDS", envvar="POSTROOM_WAIT", show_envvar=True, type=Number(min=0),
              help="How long to wait for a queue that cannot be reached yet; else until it answers.")  # fmt: skip
@click.option("--health-port", type=WholeNumber(0, 65_535), envvar="POSTROOM_HEALTH_PORT", show_envvar=True,
              help="Serve /livez, /readyz and /healthz there; else nowhere. 0: any free port.")  # fmt: skip
@click.option("--health-host", metavar="ADDRESS", envvar="POSTROOM_HEALTH_HOST", show_envvar=True,
              help="The address to serve them at; else all of this machine.")  # fmt: skip
@click.option(
    "--console",
    "console_at",
    metavar="[HOST:]PORT",
    envvar="POSTROOM_CONSOLE",
    show_envvar=True,
    help="Serve the operator's page there, such as 127.0.0.1:8081. This machine only, without HOST.",
)
@click.option(
    "--console-token",
    envvar="POSTROOM_CONSOLE_TOKEN",
    show_envvar=True,
    help="With this token an operator may act on tenants; without one the page is read-only. Better set in the "
    "environment.",
)
@click.option(
    "--console-host",
    "console_hosts",
    multiple=True,
    envvar="POSTROOM_CONSOLE_HOST",
    show_envvar=True,
    help="Another name by which browsers may reach the page, repeatable; .NAME allows all under it.",
)
@click.option(
    "--usage",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="POSTROOM_USAGE",
    show_envvar=True,
    metavar="FILE",
    help="Append what each tenant costs to this CSV file, once a minute.",
)
@click.option("--reload", "reloads", is_flag=True, envvar="POSTROOM_RELOAD", show_envvar=True,
              help="Start again when a Python file under --directory changes. For development.")  # fmt: skip
@endpoint_option
def run(
    *,
    consumers: tuple[str, ...],
    directory: Path,
    log_level: str,
    log_format: str,
    wait: float | None,
    health_port: int | None,
    health_host: str | None,
    console_at: str | None,
    console_token: str | None,
    console_hosts: tuple[str, ...],
    usage: Path | None,
    reloads: bool,
    endpoint_url: str | None,
) -> None:
    """Run consumers until SIGINT or SIGTERM; then drain. A second signal cancels what runs.

    MODULE:CONSUMER names a Consumer in a module, such as shop.orders:orders, a list of them, or a function without
    parameters that returns one or the other (also as POSTROOM_CONSUMERS, separated by spaces). When one consumer
    stops, all do.
    --log-level and --log-format apply where MODULE does not set up logging itself.
    Exit codes: 0 clean, 1 a consumer died, 2 it could not be started as configured, 3 work was cancelled; the one of
    a handler that calls sys.exit.
    """
    if reloads:
        from postroom.cli.reloading import run_reloading

        sys.exit(run_reloading(directory))
    use_endpoint(endpoint_url)
    with _ends_at_sigterm():  # around all of it: until the consumers' own handlers are there, something has to listen
        from postroom.consumer.runner import run_to_exit
        from postroom.integrations.health import HealthServer

        # Behind these imports: a `queue.py` of the application's is not the module that they need.
        sys.path.insert(0, str(directory.resolve()))
        try:
            loaded = [consumer for name in consumers for consumer in load(name)]
            _check_once(loaded)
        except CommandError as refused:
            if log_format != "json":
                raise
            _set_up_logs(log_level, log_format)
            _say_in_the_log(refused)
            sys.exit(refused.exit_code)
        _set_up_logs(log_level, log_format)
        beside: list[AbstractAsyncContextManager[object]] = []
        if health_port is not None:
            beside.append(HealthServer(*loaded, port=health_port, host=health_host))
        if console_at is not None:
            beside.append(_console(loaded, console_at, console_token, console_hosts))
        if usage is not None:
            from postroom.console import UsageMeter

            beside.append(UsageMeter(*loaded, path=usage))
        sys.exit(int(run_to_exit(loaded, wait=wait, beside=_together(beside) if beside else None)))


@contextmanager
def _ends_at_sigterm() -> Generator[None]:
    """End at SIGTERM, with the code that shells know: 128 and the signal's number.

    To process 1 of a container the kernel passes no signal that has no handler, and imports may take seconds.
    """

    def end(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is None:  # not of Python: it could not be put back
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_once(consumers: "list[Consumer[Any, Any]]") -> None:
    """Refuse a consumer that several names lead to, such as one that stands in a list as well."""
    for number, consumer in enumerate(consumers):
        if any(consumer is each for each in consumers[:number]):
            raise CommandError(f"the consumer of {consumer.queue!r} is named twice: name each once")


def _console(
    consumers: "list[Consumer[Any, Any]]", at: str, token: str | None, hosts: tuple[str, ...]
) -> AbstractAsyncContextManager[object]:
    from postroom.console import ConsoleServer, allow_token
    from postroom.console.server import SHORTEST_TOKEN

    host, colon, port = at.rpartition(":")
    if not port.isdecimal() or (colon and not host):
        raise CommandError(f"--console takes PORT or HOST:PORT, such as 127.0.0.1:8081; got {at!r}")
    if token is not None and len(token) < SHORTEST_TOKEN:
        text = f"--console-token (POSTROOM_CONSOLE_TOKEN) takes a secret of at least {SHORTEST_TOKEN} characters"
        raise CommandError(f"{text}, such as that of `openssl rand -hex 16`; leave it out for a read-only page")
    allow = None if token is None else allow_token(token)
    host = host.strip("[]") or "127.0.0.1"
    return ConsoleServer(*consumers, port=int(port), host=host, allow=allow, allow_hosts=hosts)


@asynccontextmanager
async def _together(parts: Sequence[AbstractAsyncContextManager[object]]) -> AsyncGenerator[None, None]:
    """Enter several things in order."""
    async with AsyncExitStack() as stack:
        for part in parts:
            await stack.enter_async_context(part)
        yield


def _say_in_the_log(refused: CommandError) -> None:
    """Log why nothing was started: what reads JSON reads no text beside it."""
    log, text = Log("postroom.consumer", Step.START), "Cannot start: %s"
    if isinstance(refused, CannotLoad):
        log_error(log, logging.CRITICAL, text, refused.message, error=refused.error)
    else:
        log.critical(text, refused.message)


def _set_up_logs(level: str, form: str) -> None:
    """Log to stderr, unless the modules of the consumers have set up logging: theirs is the one that counts then."""
    if not logging.getLogger().handlers:
        log_to_stderr(level, form=form)
    log = logging.getLogger("postroom.run")  # it is new, so logging.config has not disabled it
    if logging.getLogger("postroom.consumer").disabled:
        log.warning("postroom's loggers are disabled: pass disable_existing_loggers=False to logging.config")
