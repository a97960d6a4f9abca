"""``postroom send``: messages to a queue, from options, a file or a pipe."""

import asyncio
import sys
from collections.abc import Sequence
from typing import IO, Any

import click

from postroom.errors import PostroomError
from postroom.message import MessageAttribute, OutgoingMessage
from postroom.types import ExitCode


@click.command()
@click.argument("queue", envvar="POSTROOM_QUEUE")
@click.option("--body", help="The body of one message. Without it, one message per line of --file.")
@click.option("--file", "lines", type=click.File("r", encoding="utf-8"), default="-", show_default=True,
              help="One body per line; - is standard input.")  # fmt: skip
@click.option("--attribute", "attributes", multiple=True, metavar="NAME=VALUE",
              help="A String attribute of every message, repeatable, such as tenantId=tenant-a.")  # fmt: skip
@click.option("--group-id", envvar="POSTROOM_GROUP_ID", show_envvar=True,
              help="MessageGroupId: required on FIFO queues; on standard ones the tenant of fair queues.")  # fmt: skip
@click.option("--deduplication-id", help="MessageDeduplicationId, for --body on a FIFO queue.")
@click.option("--delay", type=click.IntRange(0, 900), help="Seconds until the messages are visible.")
@click.option("--region", envvar="AWS_DEFAULT_REGION", show_envvar=True, help="The region of the queue.")
@click.option("--endpoint-url", envvar="AWS_ENDPOINT_URL_SQS", show_envvar=True,
              help="Another endpoint than AWS's, such as that of postroom local.")  # fmt: skip
def send(
    *,
    queue: str,
    body: str | None,
    lines: IO[str],
    attributes: Sequence[str],
    region: str | None,
    endpoint_url: str | None,
    **message: Any,
) -> None:
    """Send messages to QUEUE (a name, URL or ARN), and print their ids."""
    bodies = [body] if body is not None else [line.rstrip("\n") for line in lines if line.strip()]
    if not bodies:
        raise click.UsageError("nothing to send: give --body, or bodies on standard input")
    made = dict(map(_attribute, attributes))
    outgoing = [OutgoingMessage(body=text, message_attributes=made, **message) for text in bodies]
    try:
        refused = asyncio.run(_send(queue, outgoing, region, endpoint_url))
    except PostroomError as error:
        raise _Failure(str(error)) from error
    if refused:
        sys.exit(int(ExitCode.FATAL))


async def _send(queue: str, messages: list[OutgoingMessage], region: str | None, endpoint_url: str | None) -> int:
    """Send in batches of ten. Returns how many were refused."""
    from postroom.options import MAX_BATCH
    from postroom.transports import AwsClient, EntryFailure

    refused = 0
    async with AwsClient(region=region, endpoint_url=endpoint_url) as client:
        opened = await client.queue(queue)
        for start in range(0, len(messages), MAX_BATCH):
            for result in await opened.send(messages[start : start + MAX_BATCH]):
                if isinstance(result, EntryFailure):
                    refused += 1
                    place = start + result.index + 1
                    click.echo(f"message {place} was refused: {result.code} {result.text}", err=True)
                else:
                    click.echo(result.message_id)
    return refused


def _attribute(text: str) -> tuple[str, MessageAttribute]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise click.UsageError(f"--attribute takes NAME=VALUE, such as tenantId=tenant-a; got {text!r}")
    return name, MessageAttribute("String", string_value=value)


class _Failure(click.ClickException):
    """It cannot be sent: something to change is named."""

    exit_code = int(ExitCode.CONFIGURATION)
