"""``postroom peek``: messages of a queue, as a consumer would see them, left where they are."""

import asyncio
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from postroom.cli.endpoint import endpoint_option, use_endpoint
from postroom.cli.numbers import WholeNumber
from postroom.cli.tables import age, clipped, table

if TYPE_CHECKING:
    from postroom.message import Message

_VISIBILITY = 30.0


@click.command()
@click.argument("queue", envvar="POSTROOM_QUEUE")
@click.option("--count", default=10, show_default=True, type=WholeNumber(1, 100), envvar="POSTROOM_COUNT",
              show_envvar=True, help="How many messages, at most.")  # fmt: skip
@click.option("--body", is_flag=True, envvar="POSTROOM_SHOW_BODY", show_envvar=True,
              help="Print the bodies, too: they are the tenants' data.")  # fmt: skip
@click.option("--region", envvar="AWS_DEFAULT_REGION", show_envvar=True, help="The region of the queue.")
@endpoint_option
def peek(*, queue: str, count: int, body: bool, region: str | None, endpoint_url: str | None) -> None:
    """Show messages of QUEUE (or POSTROOM_QUEUE) without taking them away.

    To show a message is to receive it: SQS has no other way. Each receive counts towards the queue's maxReceiveCount.
    The messages are visible again as soon as they were shown; on a FIFO queue their groups wait for it.
    """
    use_endpoint(endpoint_url, region)
    messages, hidden = asyncio.run(_peek(queue, count))
    if not messages:
        click.echo(f"No visible messages; {hidden} are in flight or delayed." if hidden else "No messages.")
        return
    now = time.time()
    rows = ((each.id, each.group_id or "-", age(each.sent_at, now), each.receive_count, len(each.body.encode()))
            for each in messages)  # fmt: skip
    click.echo(table(("id", "group", "sent", "receives", "bytes"), rows))
    for message in messages if body else ():
        click.echo()
        for line in _shown(message):
            click.echo(line)


def _shown(message: "Message") -> Iterator[str]:
    yield message.id
    for name, value in sorted(message.message_attributes.items()):
        yield f"  {name}: {clipped(value.string_value or '<binary>', 200)}"
    yield message.body


async def _peek(queue: str, count: int) -> "tuple[list[Message], int]":
    """Receive up to so many messages, and make them visible again. Returns them, and how many are invisible."""
    from postroom.transports import AwsClient
    from postroom.transports.protocol import VisibilityChange

    found: list[Message] = []
    async with AwsClient() as client:
        opened = await client.queue(queue)
        try:
            while len(found) < count:
                got = await opened.receive(limit=min(10, count - len(found)), wait=1, visibility=_VISIBILITY)
                if not got:
                    break
                found += got
        finally:
            for at in range(0, len(found), 10):
                changes = [VisibilityChange(each.receipt_handle, 0) for each in found[at : at + 10]]
                await opened.change_visibility(changes)
        said = await opened.attributes()
    return found, sum(int(said.get(f"ApproximateNumberOfMessages{kind}", "0")) for kind in ("NotVisible", "Delayed"))
