"""``postroom tenants list | pause | resume | limit | drain | ...``: what the console's page can do, from a shell."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from postroom.cli.desk import Console, console_options
from postroom.cli.tables import table
from postroom.cli.tenant_rows import HEAD, cells

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def tenants() -> None:
    """See the tenants of a running consumer, and act on one of them with a reason.

    It talks to the console of the process: `postroom run ... --console 127.0.0.1:8081 --console-token ...`, or the one
    that your application mounts. Tenants are named as the page and the log name them.
    """


@tenants.command("list")
@console_options
@click.option("--top", default=50, show_default=True, type=click.IntRange(1, 10_000), envvar="POSTROOM_TOP",
              show_envvar=True, help="How many.")  # fmt: skip
@click.option("--search", default="", envvar="POSTROOM_SEARCH", show_envvar=True, help="Only names with this text.")
def list_tenants(*, url: str, token: str | None, operator: str | None, top: int, search: str) -> None:
    """List tenants by the wait of their oldest message, the longest first."""
    said = Console(url, token, operator).state(top=top, search=search)
    now = time.time()
    click.echo(table(HEAD, (cells(row, now) for row in said["rows"])))
    if len(said["rows"]) < said["total"]:
        click.echo(f"{len(said['rows'])} of {said['total']} tenants")


def _action(function: F) -> F:
    """Add what every action takes."""
    for option in reversed((
        click.argument("tenant"),
        click.option("--reason", required=True, envvar="POSTROOM_REASON", show_envvar=True,
                     help="Why: it is logged, and told to observers."),
        click.option("--queue", envvar="POSTROOM_QUEUE", show_envvar=True,
                     help="Only in the consumer of this queue; else in every one that knows the tenant."),
        console_options,
    )):  # fmt: skip
        function = option(function)
    return function


@tenants.command()
@_action
def pause(**options: Any) -> None:
    """Start no further message of TENANT; what runs goes on."""
    _act("pause", options)


@tenants.command()
@_action
def resume(**options: Any) -> None:
    """End a pause, a quarantine or a diversion of TENANT. Limits stay."""
    _act("resume", options)


@tenants.command()
@_action
@click.option("--concurrency", type=click.IntRange(min=0), envvar="POSTROOM_CONCURRENCY", show_envvar=True,
              help="Handlers that may run at once; 0 ends the limit.")  # fmt: skip
@click.option("--rate", type=click.FloatRange(min=0), envvar="POSTROOM_RATE", show_envvar=True,
              help="Handlers that may start per second; 0 ends the limit.")  # fmt: skip
def limit(**options: Any) -> None:
    """Limit how many handlers of TENANT run at once, and how many start per second."""
    _act("limit", options)


@tenants.command()
@_action
def quarantine(**options: Any) -> None:
    """Send the messages of TENANT to the dead-letter queue, with the reason, until it is resumed."""
    _act("quarantine", options)


@tenants.command()
@_action
@click.option("--timeout", default=30.0, show_default=True, type=click.FloatRange(min=0, min_open=True, max=600),
              envvar="POSTROOM_TIMEOUT", show_envvar=True, help="Seconds to wait for running handlers.")  # fmt: skip
def drain(**options: Any) -> None:
    """Pause TENANT, and wait until none of its handlers runs."""
    _act("drain", options)


@tenants.command()
@_action
@click.option("--to", required=True, envvar="POSTROOM_TO", show_envvar=True, help="Name, URL or ARN of a queue.")
def divert(**options: Any) -> None:
    """Send the messages of TENANT to another queue, until it is resumed."""
    _act("divert", options)


@tenants.command()
@_action
def invalidate(**options: Any) -> None:
    """Close what is open for TENANT behind its last lease; the next message opens it again."""
    _act("invalidate", options)


@tenants.command()
@_action
def retry(**options: Any) -> None:
    """Try TENANT at once, although it waits after failures."""
    _act("retry", options)


def _act(action: str, options: dict[str, Any]) -> None:
    console = Console(options.pop("url"), options.pop("token"), options.pop("operator"))
    order = {"action": action, **{name: value for name, value in options.items() if value is not None}}
    done = console.act(order, patience=options.get("timeout", 0.0) + 10.0)
    details = f" ({done['details']})" if done.get("details") else ""
    click.echo(f"{action}: {done['tenant']}{details} in {', '.join(done['queues'])}")
