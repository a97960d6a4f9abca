"""The command: starts everything, sends the example's messages, reads back what came of them."""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from postroom.cli import INTERRUPTED, CommandError
from postroom.cli.demo.application import example
from postroom.cli.demo.databases import Databases, postgres_databases, sqlite_databases
from postroom.cli.demo.story import FAILING, NOBODYS, REASON, SERVED, Finding, Order, rows_of
from postroom.cli.endpoint import endpoint_option
from postroom.cli.logs import log_to_stderr
from postroom.cli.numbers import Number, WholeNumber
from postroom.transports.aws.addresses import is_loopback
from postroom.types import ExitCode, Settlement

if TYPE_CHECKING:
    from postroom.consumer import Consumer
    from postroom.message import Message
    from postroom.transports import AwsClient, Queue

QUEUE: Final = "tenant-orders"
DEAD_LETTERS: Final = "tenant-orders-dlq"
MAX_RECEIVES: Final = 10
"""So many that a message which cannot be tried for now goes back to the queue, instead of being held."""
PATIENCE: Final = 30.0
"""Seconds until the demo gives up waiting for its own messages."""
LONGEST_DELAY: Final = 10
"""Seconds to wait until a deferred message is visible again, when the queue is read back."""


@click.command()
@click.option("--database", type=click.Choice(["sqlite", "postgres"]), envvar="POSTROOM_DEMO_DATABASE",
              show_envvar=True, help="What the tenants' databases are: SQLite by default.")  # fmt: skip
@click.option("--dsn", envvar="POSTROOM_DEMO_DSN", show_envvar=True, metavar="URL",
              help="An existing PostgreSQL server; with --database postgres alone one is started. The tenants' "
              "databases are created there, and dropped at the end.")  # fmt: skip
@click.option("--keep", is_flag=True, envvar="POSTROOM_DEMO_KEEP", show_envvar=True,
              help="Stay up after the demo's messages, until Ctrl-C, and print commands that send more.")  # fmt: skip
@click.option("--port", type=WholeNumber(0, 65535), envvar="POSTROOM_DEMO_PORT", show_envvar=True,
              help="Port of the local SQS. By default 4566 with --keep, otherwise a free one.")  # fmt: skip
@click.option("--queue", envvar="POSTROOM_DEMO_QUEUE", show_envvar=True, metavar="NAME",
              help="Consume an existing queue (a name, URL or ARN) instead; nothing is sent to it.")  # fmt: skip
@click.option(
    "--noisy",
    "is_noisy",
    is_flag=True,
    envvar="POSTROOM_DEMO_NOISY",
    show_envvar=True,
    help="Another story: one of six tenants floods, one loses its PostgreSQL; rows are counted at the end.",
)
@click.option(
    "--seconds",
    type=Number(min=10),
    default=60.0,
    show_default=True,
    envvar="POSTROOM_DEMO_SECONDS",
    show_envvar=True,
    help="How long messages are sent, with --noisy.",
)
@click.option(
    "--flood",
    type=WholeNumber(min=0),
    default=6_000,
    show_default=True,
    envvar="POSTROOM_DEMO_FLOOD",
    show_envvar=True,
    help="Messages of the flood, with --noisy.",
)
@click.option("--console-port", type=WholeNumber(0, 65535), default=8081, show_default=True,
              envvar="POSTROOM_DEMO_CONSOLE_PORT", show_envvar=True,
              help="Port of the page, with --noisy; 0 takes a free one.")  # fmt: skip
@endpoint_option
def demo(
    *,
    database: str | None,
    dsn: str | None,
    keep: bool,
    port: int | None,
    endpoint_url: str | None,
    queue: str | None,
    is_noisy: bool,
    seconds: float,
    flood: int,
    console_port: int,
) -> None:
    """Run the multi-tenant datasource example end to end, on this machine.

    Starts a local SQS and the tenants' databases, consumes, sends the example's five messages over the SQS protocol,
    and reads back what came of them. Exit code 0 only if that is right. With --queue or --endpoint-url it consumes an
    existing queue until SIGINT or SIGTERM instead; the variable alone says where SQS is for other commands.
    """
    source = click.get_current_context().get_parameter_source("endpoint_url")
    if source is ParameterSource.ENVIRONMENT and queue is None:
        endpoint_url = None
    if is_noisy:
        from postroom.cli.demo.noisy import noisy

        if database is not None or dsn is not None or keep or queue is not None or endpoint_url is not None:
            raise click.UsageError("--noisy starts everything itself; leave the other options out")
        log_to_stderr("CRITICAL")  # the view tells of the outage; a traceback would tear it up
        sys.exit(int(asyncio.run(noisy(seconds=seconds, flood=flood, port=console_port))))
    if dsn is not None and database == "sqlite":
        raise click.UsageError("--dsn goes with --database postgres")
    log_to_stderr("DEBUG", stream=sys.stdout, brief=["postroom.pool"])  # one of its databases is down: no news
    site = sqlite_databases() if dsn is None and database != "postgres" else postgres_databases(dsn)
    if endpoint_url is not None or queue is not None:
        code: int = asyncio.run(_consume_elsewhere(site, queue or QUEUE, endpoint_url))
    else:
        code = asyncio.run(_tell_the_story(site, keep=keep, port=port if port is not None else 4566 * keep))
    sys.exit(int(code))


@dataclass(frozen=True)
class _Stage:
    """What the demo started."""

    orders: "Consumer[Any, Any]"
    databases: Databases
    queue: "Queue"
    dead_letters: "Queue"
    endpoint_url: str


async def _consume_elsewhere(
    site: AbstractAsyncContextManager[Databases], queue: str, endpoint_url: str | None
) -> ExitCode:
    """Consume a queue that is there already, with the demo's databases, until a signal."""
    from postroom.consumer import serve

    async with site as databases, client_for(endpoint_url) as client:
        opened = await client.queue(queue)
        orders = _orders(databases, opened, client)
        click.echo(f"Databases: {databases.kind}\n")
        _print_commands(opened, endpoint_url)
        code = await serve(orders)
        await _report_as_it_is(orders, databases)
    return code


async def _tell_the_story(site: AbstractAsyncContextManager[Databases], *, keep: bool, port: int) -> int:
    async with _stage(site, port) as stage:
        click.echo(f"Local SQS: {stage.endpoint_url}\nDatabases: {stage.databases.kind}\n")
        code, whole = await _serve(stage, keep=keep)
        if not whole:  # a signal: there is nothing to judge
            return INTERRUPTED if code is ExitCode.CLEAN else code
        if keep:
            await _report_as_it_is(stage.orders, stage.databases)
            return code
        findings = await _read_back(stage)
    right = _report(findings)
    return code if right or code is not ExitCode.CLEAN else ExitCode.FATAL


@asynccontextmanager
async def _stage(site: AbstractAsyncContextManager[Databases], port: int) -> AsyncGenerator[_Stage]:
    """Start the local SQS with its queues, and the databases; make the consumer."""
    from postroom.local import LocalServer

    server = LocalServer(port=port)
    try:
        await server.__aenter__()
    except OSError as error:
        text = f"cannot listen on port {port}: {error.strerror}. Choose another one with --port, or 0 for a free one."
        raise CommandError(text) from error
    try:
        dead = server.broker.create_queue(DEAD_LETTERS)
        policy = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": MAX_RECEIVES})
        server.broker.create_queue(QUEUE, {"RedrivePolicy": policy})
        async with site as databases, client_for(server.endpoint_url) as client:
            queue, dead_letters = await client.queue(QUEUE), await client.queue(DEAD_LETTERS)
            yield _Stage(_orders(databases, queue, client), databases, queue, dead_letters, server.endpoint_url)
    finally:
        await server.__aexit__(None, None, None)


def _orders(databases: Databases, queue: "Queue", client: "AwsClient") -> "Consumer[Any, Any]":
    """Make the example's consumer; what cannot be served comes back quickly, so that the demo is quick."""
    from postroom.options import RetryPolicy

    manager = example("tenant_datasource_manager").TenantDataSourceManager(databases.locations)
    made: Consumer[Any, Any] = example("order_module").create_orders(
        manager, queue=queue.info.url, client=client, retry=RetryPolicy(base=0.1, cap=1.0)
    )
    return made


def client_for(endpoint_url: str | None) -> "AwsClient":
    """Make a client. A server on this machine takes any credentials, so it is given some; AWS never sees them."""
    from postroom.transports import AwsClient

    if endpoint_url is None or not is_loopback(endpoint_url):
        return AwsClient(endpoint_url=endpoint_url)
    from aiobotocore.session import AioSession

    session: Any = AioSession()
    session.set_credentials("local", "local")
    return AwsClient(endpoint_url=endpoint_url, region="us-east-1", session=session)


async def _serve(stage: _Stage, *, keep: bool) -> tuple[ExitCode, bool]:
    """Run the consumer and play the story; then stop, or go on until a signal. Return whether all was told."""
    from postroom.consumer import serve

    serving = asyncio.create_task(serve(stage.orders), name="postroom-demo-consumer")
    playing = asyncio.create_task(_play(stage), name="postroom-demo-story")
    try:
        await asyncio.wait([serving, playing], return_when=asyncio.FIRST_COMPLETED)
        if playing.done():
            playing.result()
            if keep:
                _print_commands(stage.queue, stage.endpoint_url)
                await asyncio.wait([serving])
            if stage.orders.running:
                stage.orders.stop()
        else:
            click.echo("Stopped before everything was tried", err=True)
        return await serving, playing.done()
    finally:
        playing.cancel()
        if stage.orders.running:
            stage.orders.stop()
        await asyncio.wait([serving, playing])


async def _play(stage: _Stage) -> None:
    """Send the messages, and return when each was tried, or when that takes too long: what is read back tells."""
    try:
        async with asyncio.timeout(PATIENCE):
            await _until(lambda: stage.orders.running)
            for number, order in enumerate(SERVED, start=1):
                await _send(stage.queue, order)
                # One after the other: the third must find its tenant's datasource open.
                await _until(partial(_acknowledged, stage.orders, number))
            for order in FAILING:
                await _send(stage.queue, order)
            await _until(lambda: {"ContextError", "ResourceOpenError"} <= stage.orders.statistics().failed.keys())
            while not sum(counts(await stage.dead_letters.attributes())):  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # the queue tells only when it is asked
    except TimeoutError:
        click.echo(f"Not everything was tried within {PATIENCE:g} s", err=True)


async def _send(queue: "Queue", order: Order) -> None:
    """Send one message, over the SQS protocol."""
    (result,) = await queue.send([order.outgoing()])
    if message_id := getattr(result, "message_id", None):
        click.echo(f"Sent {order.order_id} as message {message_id}: {order.remark}")


def _acknowledged(orders: "Consumer[Any, Any]", number: int) -> bool:
    return orders.statistics().settled.get(Settlement.ACKED, 0) >= number


async def _until(happened: Callable[[], bool]) -> None:
    while not happened():  # noqa: ASYNC110 - the consumer tells only when it is asked
        await asyncio.sleep(0.01)


def counts(attributes: Mapping[str, str]) -> tuple[int, int, int]:
    """Return how many messages of a queue are visible, in flight and delayed."""
    name = "ApproximateNumberOfMessages"
    return int(attributes[name]), int(attributes[f"{name}NotVisible"]), int(attributes[f"{name}Delayed"])


def _print_commands(queue: "Queue", endpoint_url: str | None) -> None:
    """Print the example's own commands for this queue."""
    click.echo("\nThe consumer goes on. Send more, from another terminal:\n")
    if endpoint_url is not None and is_loopback(endpoint_url):
        click.echo("export AWS_DEFAULT_REGION=us-east-1 AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local\n")
    for order in (*SERVED, *FAILING):
        click.echo(f"# {order.remark}\n{order.command(queue.info.url, endpoint_url)}\n")
    click.echo("Ctrl-C stops.\n")
    sys.stdout.flush()


async def _read_back(stage: _Stage) -> list[Finding]:
    """Ask the databases, the queues and the statistics what happened."""
    findings = [
        Finding(f"rows in the database of {tenant.tenant_id}", await stage.databases.orders(tenant), expected)
        for tenant in stage.databases.locations
        for expected in [rows_of(tenant.tenant_id)]
    ]
    statistics = stage.orders.statistics()
    pool = statistics.pool
    assert pool is not None  # noqa: S101 - the example has resources
    findings += [
        Finding("orders handled", statistics.succeeded, len(SERVED)),
        Finding("datasources opened", pool.opened, 2),
        Finding("pool hits, by order-003", pool.hits, 1),
        Finding("datasources closed", pool.closed, 2),
        Finding("datasources still open", pool.live, 0),
        Finding("datasources that could not be opened", pool.open_failures > 0, expected=True),
    ]
    # The queue first: a message that is moved meanwhile is seen in one of the two.
    waiting = {order_id_of(letter) for letter in await _peek(stage.queue, wait=LONGEST_DELAY)}
    dead = {order_id_of(letter): letter.attributes.get("postroom.reason") for letter in await _peek(stage.dead_letters)}
    click.echo(f"\nLeft in {QUEUE}: {_list(waiting)}; in {DEAD_LETTERS}: {_list(dead)}")
    kept = waiting | dead.keys()
    findings += [
        Finding("orders that are not handled, and not lost", kept, {order.order_id for order in FAILING}),
        Finding(f"the reason that {NOBODYS.order_id} carries", _reason(dead.get(NOBODYS.order_id)), REASON),
    ]
    return findings


async def _peek(queue: "Queue", wait: float = 0) -> "list[Message]":
    """Look at what is in a queue, or comes into sight in time; it stays visible to everybody."""
    return await queue.receive(limit=10, wait=wait if any(counts(await queue.attributes())) else 0, visibility=0)


def order_id_of(message: "Message") -> str:
    """Return which order a message is about."""
    return str(json.loads(message.body)["orderId"])


def _reason(text: str | None) -> str | None:
    return None if text is None else text.partition(":")[0]


def _list(order_ids: Iterable[str]) -> str:
    return ", ".join(sorted(order_ids)) or "nothing"


def _report(findings: list[Finding]) -> bool:
    """Print what was read back. Returns whether all of it is right."""
    click.echo("\nRead back from the databases, the queues and the statistics:")
    for finding in findings:
        mark = click.style("right", fg="green") if finding.right else click.style("WRONG", fg="red")
        click.echo(f"  {mark}  {finding}")
    return all(finding.right for finding in findings)


async def _report_as_it_is(orders: "Consumer[Any, Any]", databases: Databases) -> None:
    """Print what was read back where anybody may have sent anything."""
    click.echo("\nRead back from the databases and the statistics:")
    for tenant in databases.locations:
        rows = await databases.orders(tenant)
        click.echo(f"  {Finding(f'rows in the database of {tenant.tenant_id}', rows, rows)}")
    statistics = orders.statistics()
    failed = ", ".join(f"{number} {name}" for name, number in statistics.failed.items()) or "none"
    click.echo(f"  received {statistics.received}, handled {statistics.succeeded}, failed: {failed}")
    if (pool := statistics.pool) is not None:
        click.echo(f"  datasources opened {pool.opened}, closed {pool.closed}, open {pool.live}, hits {pool.hits}")
