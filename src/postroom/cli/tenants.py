"""``postroom tenants list | pause | resume | limit | drain | ...``: what the console's page can do, from a shell."""

import asyncio
import logging
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from postroom.cli import CommandError, CommandFailed
from postroom.cli.desk import console_options, consoles_options
from postroom.cli.interrupts import interrupts
from postroom.cli.numbers import Number, WholeNumber
from postroom.cli.tenant_rows import tenants_table
from postroom.display import counted
from postroom.errors import PostroomError

if TYPE_CHECKING:
    from postroom.console import MoveStep, RemoteConsole

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
_SECONDS: Final = Number(min=0, min_open=True, max=600)


@click.group()
def tenants() -> None:
    """See the tenants of a running consumer, and act on one of them with a reason.

    It talks to the console of the process: `postroom run ... --console 127.0.0.1:8081 --console-token ...`, or the one
    that your application mounts. Tenants are named as the page and the log name them.
    """


@tenants.command("list", short_help="List tenants, the longest wait first.")
@console_options
@click.option("--top", default=50, show_default=True, type=WholeNumber(1, 10_000), envvar="POSTROOM_TOP",
              show_envvar=True, help="How many.")  # fmt: skip
@click.option("--search", default="", envvar="POSTROOM_SEARCH", show_envvar=True, help="Only names with this text.")
def list_tenants(*, url: str, token: str | None, operator: str | None, top: int, search: str) -> None:
    """List tenants by the wait of their oldest message, the longest first."""
    from postroom.console import RemoteConsole

    said = RemoteConsole(url, token=token, operator=operator).state(top=top, search=search)
    now = time.time()
    click.echo(tenants_table(said, now))
    if 0 < len(said["rows"]) < said["total"]:
        click.echo(f"{len(said['rows'])} of {counted(said['total'], 'tenant')}")


def _action(function: F) -> F:
    """Add what every action takes."""
    for option in reversed((
        click.argument("tenant"),
        click.option("--reason", required=True, envvar="POSTROOM_REASON", show_envvar=True,
                     help="Why: it is logged, and told to observers."),
        click.option("--queue", envvar="POSTROOM_QUEUE", show_envvar=True,
                     help="Only in the consumer of this queue; else in every one that knows the tenant."),
        consoles_options,
    )):  # fmt: skip
        function = option(function)
    return function


@tenants.command(short_help="Start no further message of a tenant.")
@_action
def pause(**options: Any) -> None:
    """Start no further message of TENANT; what runs goes on."""
    _act("pause", options)


@tenants.command(short_help="End a pause, a quarantine or a diversion.")
@_action
def resume(**options: Any) -> None:
    """End a pause, a quarantine or a diversion of TENANT. Limits stay."""
    _act("resume", options)


@tenants.command(short_help="Limit a tenant's handlers.")
@_action
@click.option("--concurrency", type=WholeNumber(min=0), envvar="POSTROOM_CONCURRENCY", show_envvar=True,
              help="Handlers that may run at once; 0 ends the limit.")  # fmt: skip
@click.option("--rate", type=Number(min=0), envvar="POSTROOM_RATE", show_envvar=True,
              help="Handlers that may start per second; 0 ends the limit.")  # fmt: skip
def limit(**options: Any) -> None:
    """Limit how many handlers of TENANT run at once, and how many start per second."""
    _act("limit", options)


@tenants.command(short_help="Send a tenant's messages to the dead-letter queue.")
@_action
def quarantine(**options: Any) -> None:
    """Send the messages of TENANT to the dead-letter queue, with the reason, until it is resumed."""
    _act("quarantine", options)


@tenants.command(short_help="Pause a tenant, and wait for its handlers.")
@_action
@click.option("--timeout", default=30.0, show_default=True, type=Number(min=0, min_open=True, max=600),
              envvar="POSTROOM_TIMEOUT", show_envvar=True, help="Seconds to wait for running handlers.")  # fmt: skip
def drain(**options: Any) -> None:
    """Pause TENANT, and wait until none of its handlers runs."""
    _act("drain", options)


@tenants.command(short_help="Send a tenant's messages to another queue.")
@_action
@click.option("--to", required=True, envvar="POSTROOM_TO", show_envvar=True, help="Name, URL or ARN of a queue.")
def divert(**options: Any) -> None:
    """Send the messages of TENANT to another queue, until it is resumed."""
    _act("divert", options)


@tenants.command(short_help="Close what is open for a tenant.")
@_action
def invalidate(**options: Any) -> None:
    """Close what is open for TENANT behind its last lease; the next message opens it again."""
    _act("invalidate", options)


@tenants.command(short_help="Try a tenant at once that waits after failures.")
@_action
def retry(**options: Any) -> None:
    """Try TENANT at once, although it waits after failures."""
    _act("retry", options)


@tenants.command(short_help="Move a tenant to another database while messages flow.")
@click.argument("tenant")
@click.option("--reason", required=True, envvar="POSTROOM_REASON", show_envvar=True,
              help="Why: it is logged, and shown while the tenant is paused.")  # fmt: skip
@click.option("--switch", required=True, metavar="COMMAND", envvar="POSTROOM_SWITCH", show_envvar=True,
              help="Makes the registry point to the new database. No shell; has POSTROOM_TENANT.")  # fmt: skip
@click.option("--back", metavar="COMMAND", envvar="POSTROOM_BACK", show_envvar=True,
              help="Makes it point to the old one again, also after a switch that failed half-way.")  # fmt: skip
@click.option("--no-back", is_flag=True, envvar="POSTROOM_NO_BACK", show_envvar=True,
              help="There is no way back: what fails after the switch leaves the tenant paused.")  # fmt: skip
@click.option("--to", metavar="PLACE", envvar="POSTROOM_TO", show_envvar=True,
              help="Where the data has to be afterwards, such as db-2:5432/acme.")  # fmt: skip
@click.option("--go-on", is_flag=True, envvar="POSTROOM_GO_ON", show_envvar=True,
              help="Go on with a move that was killed; needs --to.")  # fmt: skip
@click.option("--drain", default=60.0, show_default=True, type=_SECONDS, envvar="POSTROOM_DRAIN", show_envvar=True,
              help="Seconds for running handlers to end.")  # fmt: skip
@click.option("--probe", default=30.0, show_default=True, type=_SECONDS, envvar="POSTROOM_PROBE", show_envvar=True,
              help="Seconds for the new database to open, and again to handle one message.")  # fmt: skip
@click.option("--timeout", default=600.0, show_default=True, envvar="POSTROOM_TIMEOUT", show_envvar=True,
              type=Number(min=0, min_open=True, max=86_400),
              help="Seconds from the pause to the end of the probe; then it goes back.")  # fmt: skip
@consoles_options
def move(
    *, tenant: str, reason: str, switch: str, back: str | None, no_back: bool, urls: tuple[str, ...],
    token: str | None, operator: str | None, **limits: Any,
) -> None:  # fmt: skip
    """Move TENANT to another database while messages flow.

    Pause and drain it everywhere, close what is open, run --switch, look that every registry says so, have one message
    handled by the new database, resume. What fails or takes too long goes back, and so does Ctrl-C. Without a fleet
    name the console of every process that consumes for the tenant.

    Exit codes: 0 moved, 1 not moved (the last line says where the tenant is), 2 something to change, 3 interrupted.
    """
    if (back is None) != no_back:
        text = "--back COMMAND says how the registry points to the old database again; or say --no-back"
        raise click.UsageError(text if back is None else "--back and --no-back exclude each other")
    from postroom.console import MoveFailed, move_tenant

    last = ""

    def tell(step: "MoveStep", text: str) -> None:
        nonlocal last
        last = text
        click.echo(f"{time.strftime('%H:%M:%S')}  {step:<7} {text}".rstrip(), err=True)

    work = move_tenant(
        tenant, *_consoles(urls, token, operator), switch=_command("switch", switch, tenant),
        back=None if back is None else _command("back", back, tenant), reason=reason, operator=operator,
        progress=tell, **limits,
    )  # fmt: skip
    logging.getLogger("postroom").addHandler(logging.NullHandler())  # each of its lines is a step that is told
    try:
        moved = _in_loop(work, "it goes back first; once more to end at once, which may leave the tenant paused")
    except MoveFailed as error:
        if str(error) != last:
            raise
        sys.exit(1)  # the last line has said it
    where = f" from {moved.before} to {moved.after}" if moved.after else ""
    click.echo(f"{tenant} was moved{where}; it was paused for {moved.seconds:.1f} s, the probe: {moved.probe}")


@tenants.command(short_help="End a tenant: its messages become dead letters.")
@click.argument("tenant")
@click.option("--reason", required=True, envvar="POSTROOM_REASON", show_envvar=True,
              help="Why: each of its dead letters carries it.")  # fmt: skip
@click.option("--drain", default=60.0, show_default=True, envvar="POSTROOM_DRAIN", show_envvar=True,
              type=Number(min=0, min_open=True, max=300),
              help="Seconds for running handlers to end.")  # fmt: skip
@consoles_options
def offboard(
    *, tenant: str, reason: str, drain: float, urls: tuple[str, ...], token: str | None, operator: str | None
) -> None:
    """End TENANT: drain it, close what is open, and send its messages to the dead-letter queue with the reason.

    `postroom tenants resume` takes it back. The decision is the process's: it ends with it, unless there is a fleet.
    """
    from postroom.console import offboard_tenant

    work = offboard_tenant(
        tenant, *_consoles(urls, token, operator), reason=reason, operator=operator, drain=drain
    )  # fmt: skip
    done = _in_loop(work, "it is resumed first; once more to end at once")
    remark = f" ({done.remark})" if done.remark else ""
    click.echo(f"{tenant} is offboarded in {', '.join(done.queues)}{remark}: its messages become dead letters")


def _consoles(urls: tuple[str, ...], token: str | None, operator: str | None) -> "list[RemoteConsole]":
    from postroom.console import RemoteConsole

    return [RemoteConsole(url, token=token, operator=operator) for url in dict.fromkeys(urls)]


def _act(action: str, options: dict[str, Any]) -> None:
    consoles = _consoles(options.pop("urls"), options.pop("token"), options.pop("operator"))
    order = {"action": action, **{name: value for name, value in options.items() if value is not None}}
    for console in consoles:
        try:
            done = console.act(order, patience=options.get("timeout", 0.0) + 10.0)
        except KeyboardInterrupt:
            text = f"interrupted: {console.url} goes on with it; `postroom tenants list` shows how the tenant is"
            click.echo(text, err=True)
            raise
        details = f" ({done['details']})" if done.get("details") else ""
        where = f" at {console.url}" if len(consoles) > 1 else ""
        click.echo(f"{action}: {done['tenant']}{details} in {', '.join(done['queues'])}{where}")


def _command(option: str, text: str, tenant: str) -> Callable[[], Awaitable[None]]:
    """Return what runs a command of the user's. It is stopped when the move is cancelled."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise CommandError(f"--{option} {text!r} cannot be read: {error}") from error
    if not words:
        raise CommandError(f"--{option} takes a command, such as './repoint.sh acme db-2'; got {text!r}")
    if shutil.which(words[0]) is None:  # found out before the tenant is paused
        raise CommandError(f"--{option}: there is no program {words[0]!r} here; give its path, such as ./repoint.sh")

    async def run() -> None:
        environment = {**os.environ, "POSTROOM_TENANT": tenant}
        try:
            process = await asyncio.create_subprocess_exec(
                *words, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=sys.stderr.fileno(),
                start_new_session=True,  # Ctrl-C reaches this program alone, which then ends the command
            )  # fmt: skip
        except OSError as error:
            raise PostroomError(f"--{option}: {words[0]} cannot be run: {error.strerror}") from error
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    await asyncio.wait_for(process.wait(), 10)
                except TimeoutError:
                    os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()
        if code:
            raise PostroomError(f"--{option}: {words[0]} ended with exit code {code}")

    return run


def _in_loop(work: Coroutine[Any, Any, T], once_more: str) -> T:
    """Run some work. The first SIGINT or SIGTERM cancels it, and it undoes what it did; the second ends the program."""

    async def main() -> T:
        task = asyncio.ensure_future(work)
        with interrupts(task.cancel, once_more):
            return await task

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        sys.exit(3)
    except TimeoutError as error:
        raise CommandFailed(str(error)) from error
