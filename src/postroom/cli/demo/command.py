"""The command: starts everything, sends the example's messages, reads back what came of them."""

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import click

from postroom.cli.demo import databases as sites
from postroom.cli.demo.application import example
from postroom.cli.demo.story import DEAD, ORDERS, ROWS, Finding, Order
from postroom.cli.logs import log_to_stderr
from postroom.errors import PostroomError
from postroom.types import ExitCode

QUEUE = "tenant-orders"
DEAD_LETTERS = "tenant-orders-dlq"
PATIENCE = 60.0
"""Seconds until the demo gives up waiting for its own messages."""


@click.command()
@click.option("--database", type=click.Choice(["sqlite", "postgres"]), default="sqlite", show_default=True,
              envvar="POSTROOM_DEMO_DATABASE", show_envvar=True, help="What the tenants' databases are.")  # fmt: skip
@click.option("--dsn", envvar="POSTROOM_DEMO_DSN", show_envvar=True,
              help="An existing PostgreSQL server for --database postgres; by default one is started.")  # fmt: skip
@click.option("--keep", is_flag=True, help="Stay up after the demo's messages, until Ctrl-C.")
@click.option("--port", type=click.IntRange(0, 65535), envvar="POSTROOM_DEMO_PORT", show_envvar=True,
              help="Port of the local SQS. By default 4566 with --keep, otherwise a free one.")  # fmt: skip
@click.option("--endpoint-url", envvar="AWS_ENDPOINT_URL_SQS", show_envvar=True,
              help="Consume from another endpoint instead; nothing is sent there.")  # fmt: skip
@click.option("--queue", envvar="POSTROOM_DEMO_QUEUE", show_envvar=True,
              help="Consume an existing queue instead; nothing is sent to it.")  # fmt: skip
def demo(
    *, database: str, dsn: str | None, keep: bool, port: int | None, endpoint_url: str | None, queue: str | None
) -> None:
    """Run the multi-tenant datasource example end to end, on this machine.

    Starts a local SQS and the tenants' databases, consumes, sends the example's five messages over the SQS protocol,
    and reads back what came of them. Exit code 0 only if that is right.
    """
    if dsn is not None and database != "postgres":
        raise click.UsageError("--dsn goes with --database postgres")
    log_to_stderr("DEBUG", stream=sys.stdout)
    site = sites.sqlite_databases() if database == "sqlite" else sites.postgres_databases(dsn)
    elsewhere = endpoint_url is not None or queue is not None
    try:
        if elsewhere:
            code = asyncio.run(_consume_elsewhere(site, queue or QUEUE, endpoint_url))
        else:
            code = asyncio.run(_tell_the_story(site, keep=keep, port=port if port is not None else 4566 * keep))
    except PostroomError as error:
        raise _Failure(str(error)) from error
    except OSError as error:
        raise _Failure(f"{error}; choose another port with --port, or 0 for a free one") from error
    sys.exit(int(code))


class _Failure(click.ClickException):
    """It cannot start: something to change is named."""

    exit_code = int(ExitCode.CONFIGURATION)


async def _consume_elsewhere(site: Any, queue: str, endpoint_url: str | None) -> ExitCode:
    """Consume a queue that is there already, with the demo's databases, until a signal."""
    from postroom import AwsClient, serve

    async with site as databases:
        manager = example("tenant_datasource_manager").TenantDataSourceManager(databases.locations)
        client = AwsClient(endpoint_url=endpoint_url)
        orders = example("order_module").create_orders(manager, queue=queue, client=client)
        click.echo(f"Databases: {databases.kind}. Consuming {queue}; Ctrl-C stops.")
        return await serve(orders)


async def _tell_the_story(site: Any, *, keep: bool, port: int) -> ExitCode:
    from postroom import AwsClient
    from postroom.local import LocalServer

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(LocalServer(port=port))
        databases = await stack.enter_async_context(site)
        _create_queues(server)
        click.echo(f"Local SQS: {server.endpoint_url}\nDatabases: {databases.kind}\n")
        client = await stack.enter_async_context(_client(server, AwsClient))
        manager = example("tenant_datasource_manager").TenantDataSourceManager(databases.locations)
        orders = example("order_module").create_orders(manager, queue=QUEUE, client=client)
        async with orders:
            await _send(client, ORDERS[:2])
            await _until(lambda: orders.statistics().succeeded == 2)
            await _send(client, ORDERS[2:])
            await _until(lambda: _in(server, QUEUE) == 0 and _in(server, DEAD_LETTERS) == len(DEAD))
            if keep:
                await _stay(server)
        findings = await _read_back(orders, databases, client)
    if keep:
        return ExitCode.CLEAN
    return _report(findings)


def _client(server: Any, kind: Any) -> Any:
    """Make an AWS client for the local server: the real one, with credentials that nobody checks."""
    import os

    os.environ.setdefault("AWS_ACCESS_KEY_ID", "local")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "local")
    return kind(region=server.broker.scope.region, endpoint_url=server.endpoint_url)


def _create_queues(server: Any) -> None:
    dead = server.broker.create_queue(DEAD_LETTERS)
    policy = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": "3"})
    server.broker.create_queue(QUEUE, {"RedrivePolicy": policy, "VisibilityTimeout": "30"})


async def _send(client: Any, orders: Sequence[Order]) -> None:
    """Send messages of the example, over the SQS protocol."""
    queue = await client.queue(QUEUE)
    for result, order in zip(await queue.send([order.outgoing() for order in orders]), orders, strict=True):
        click.echo(f"Sent {order.order_id} as message {result.message_id}: {order.remark}")


def _in(server: Any, queue: str) -> int:
    return _total(server.broker.attributes(queue))


async def _until(happened: Callable[[], bool]) -> None:
    """Wait until something has happened; what is read back will show it if it has not."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not happened():  # noqa: ASYNC110 - the broker and the consumer are asked, nobody tells
                await asyncio.sleep(0.05)
    except TimeoutError:
        click.echo(f"Not everything was settled within {PATIENCE:g} s", err=True)


async def _stay(server: Any) -> None:
    """Print the example's own commands, and wait for a signal."""
    url = f"{server.endpoint_url}/{server.broker.scope.account}/{QUEUE}"
    click.echo(f"\nThe consumer goes on. Send more, from another terminal:\n\n{_EXPORTS}\n")
    for order in ORDERS:
        click.echo(f"# {order.remark}\n{order.command(url, server.endpoint_url)}\n")
    click.echo("Ctrl-C stops.")
    sys.stdout.flush()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()


_EXPORTS = "export AWS_DEFAULT_REGION=us-east-1 AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local"


async def _read_back(orders: Any, databases: Any, client: Any) -> list[Finding]:
    """Ask the databases, the queues and the statistics what happened."""
    first, second, _down = sites.tenants()
    findings = [
        Finding(f"rows in the database of {tenant.tenant_id}", await databases.orders(tenant), ROWS[tenant.tenant_id])
        for tenant in (first, second)
    ]
    pool = orders.statistics().pool
    findings += [
        Finding("datasources opened", pool.opened, 2),
        Finding("pool hits, by order-003", pool.hits, 1),
        Finding("datasources closed", pool.closed, pool.opened),
        Finding("datasources still open", pool.live, 0),
    ]
    left = await (await client.queue(QUEUE)).attributes()
    findings.append(Finding("messages left in the queue", _total(left), 0))
    letters = await (await client.queue(DEAD_LETTERS)).receive(limit=10, wait=0, visibility=1)
    dead = {json.loads(letter.body)["orderId"]: letter.attributes.get("postroom.reason") for letter in letters}
    findings.append(Finding("orders in the dead-letter queue", set(dead), DEAD))
    reason = (dead.get("order-999") or "").partition(":")[0]
    findings.append(Finding("the reason that order-999 carries", reason, "Missing required tenant attributes"))
    return findings


def _total(said: Any) -> int:
    return int(said["ApproximateNumberOfMessages"]) + int(said["ApproximateNumberOfMessagesNotVisible"])


def _report(findings: list[Finding]) -> ExitCode:
    click.echo("\nRead back from the databases, the queues and the statistics:")
    for finding in findings:
        mark = click.style("right", fg="green") if finding.right else click.style("WRONG", fg="red")
        click.echo(
            f"  {mark}  {finding.what}: {finding.shown}" + ("" if finding.right else f" (must be {finding.expected})")
        )
    return ExitCode.CLEAN if all(finding.right for finding in findings) else ExitCode.FATAL
