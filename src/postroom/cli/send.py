"""``postroom send``: messages to a queue, from options, a file or a pipe."""

import asyncio
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import click
import msgspec

from postroom.cli import CommandError, CommandFailed
from postroom.cli.attributes import once
from postroom.cli.endpoint import endpoint_option, use_endpoint
from postroom.cli.interrupts import ENDS, interrupts
from postroom.cli.numbers import WholeNumber
from postroom.display import counted
from postroom.message import MessageAttribute, OutgoingMessage
from postroom.sending.batches import batches

_ABOVE: Final = "the ids above were sent, and no other"


@click.command()
@click.argument("queue", envvar="POSTROOM_QUEUE")
@click.option("--body", envvar="POSTROOM_BODY", show_envvar=True,
              help="The body of one message. Without it, one message per line of --file.")  # fmt: skip
@click.option("--file", "lines", type=click.File("r", encoding="utf-8"), default="-", show_default=True,
              envvar="POSTROOM_FILE", show_envvar=True, help="One body per line; - is standard input.")  # fmt: skip
@click.option("--json-lines", is_flag=True, envvar="POSTROOM_JSON_LINES", show_envvar=True,
              help="Each line of --file is a message as a JSON object: body, and if need be attributes, group_id, "
              "deduplication_id, delay. A body that is not text is sent as JSON.")  # fmt: skip
@click.option("--attribute", "attributes", multiple=True, metavar="NAME[:TYPE]=VALUE",
              envvar="POSTROOM_ATTRIBUTES", show_envvar=True,
              help="An attribute of every message, repeatable: tenantId=tenant-a, count:Number=5.")  # fmt: skip
@click.option("--group-id", envvar="POSTROOM_GROUP_ID", show_envvar=True,
              help="MessageGroupId: required on FIFO queues; on standard ones the tenant of fair queues.")  # fmt: skip
@click.option("--deduplication-id", envvar="POSTROOM_DEDUPLICATION_ID", show_envvar=True,
              help="MessageDeduplicationId, for --body on a FIFO queue.")  # fmt: skip
@click.option("--delay", type=WholeNumber(0, 900), envvar="POSTROOM_DELAY", show_envvar=True,
              help="Seconds until the messages are visible.")  # fmt: skip
@click.option("--region", envvar="AWS_DEFAULT_REGION", show_envvar=True, help="The region of the queue.")
@endpoint_option
def send(
    *,
    queue: str,
    body: str | None,
    lines: Iterable[str],
    json_lines: bool,
    attributes: Sequence[str],
    region: str | None,
    endpoint_url: str | None,
    **message: Any,
) -> None:
    """Send messages to QUEUE (a name, URL or ARN; also as POSTROOM_QUEUE), and print their ids.

    Lines are sent as they come, in batches. What a JSON line does not say is taken from the options.
    """
    if body is not None and json_lines:
        raise click.UsageError("--json-lines reads --file; leave out --body")
    lines = _utf8(lines)
    common = OutgoingMessage(body="", message_attributes=once(map(parse_attribute, attributes)), **message)
    if json_lines:
        outgoing = read_json_lines(lines, common)
    else:
        bodies = [body] if body is not None else (text for line in lines if (text := line.rstrip("\r\n")))
        outgoing = (msgspec.structs.replace(common, body=text) for text in bodies)
    use_endpoint(endpoint_url, region)
    sent, refused = asyncio.run(_send(queue, outgoing))
    if refused:
        raise CommandFailed(f"SQS refused {refused} of {counted(sent + refused, 'message')}")
    if not sent:
        raise click.UsageError("nothing to send: give --body, or bodies on standard input")


def _utf8(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines. Raises ``CommandError`` at what is no text."""
    try:
        # `yield from` would close the file when this ends early, and click has detached that by then.
        for number, line in enumerate(lines):
            yield line if number else line.removeprefix("\ufeff")  # which PowerShell writes
    except UnicodeDecodeError as error:
        byte = f"0x{error.object[error.start]:02x}"
        raise CommandError(f"--file is not UTF-8 text ({error.reason}: {byte}); {_ABOVE}") from None


def parse_attribute(text: str) -> tuple[str, MessageAttribute]:
    """Read ``NAME=VALUE`` or ``NAME:TYPE=VALUE``."""
    declared, equals, value = text.partition("=")
    name, colon, kind = declared.partition(":")
    if not equals or not name or not value or (colon and not kind):
        raise click.UsageError(f"--attribute takes NAME=VALUE, such as tenantId=tenant-a; got {text!r}")
    return name, MessageAttribute(kind or "String", string_value=value)


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """One line of ``--json-lines``."""

    body: Any
    attributes: dict[str, str | int | float] = {}
    group_id: str | None = None
    deduplication_id: str | None = None
    delay: int | None = None


def read_json_lines(lines: Iterable[str], common: OutgoingMessage) -> Iterator[OutgoingMessage]:
    """Yield the message of each line that is not empty. Raises ``CommandError`` with the number of a bad one."""
    decode = msgspec.json.Decoder(_Line).decode
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = decode(text)
        except (msgspec.MsgspecError, UnicodeError) as error:  # it names fields and types, and no value
            raise CommandError(f"line {number} is not a message: {error}; {_ABOVE}") from None
        own = {
            name: MessageAttribute("String" if isinstance(value, str) else "Number", string_value=str(value))
            for name, value in line.attributes.items()
        }
        yield OutgoingMessage(
            body=line.body if isinstance(line.body, str) else msgspec.json.encode(line.body).decode(),
            message_attributes={**common.message_attributes, **own},
            group_id=line.group_id or common.group_id,
            deduplication_id=line.deduplication_id or common.deduplication_id,
            delay=common.delay if line.delay is None else line.delay,
        )


async def _send(queue: str, messages: Iterable[OutgoingMessage]) -> tuple[int, int]:
    """Send all and print their ids. Returns how many were sent and how many refused."""
    from postroom.transports import AwsClient, EntryFailure

    sent = refused = 0
    grouped = batches(messages)
    reading = False

    def end_or_finish() -> None:
        if reading:
            # Nothing is under way, and a thread that waits for a line can only end with the program.
            click.echo(_sent(sent), err=True)
            signal.raise_signal(signal.SIGINT)

    async with AwsClient() as client:
        opened = await client.queue(queue)
        with interrupts(end_or_finish, ENDS) as interrupted:
            while not interrupted.came:
                reading = True
                # The next line may be long in coming; the connection is kept alive meanwhile.
                batch = await asyncio.to_thread(next, grouped, None)
                reading = False
                if batch is None:
                    break
                before = sent + refused
                for result in await opened.send(batch):
                    if isinstance(result, EntryFailure):
                        refused += 1
                        place = before + result.index + 1
                        click.echo(f"message {place} was refused: {result.code} {result.text}", err=True)
                    else:
                        sent += 1
                        click.echo(result.message_id)
    if interrupted.came:
        raise CommandFailed(f"it was interrupted: {_sent(sent)}")
    return sent, refused


def _sent(count: int) -> str:
    return f"{counted(count, 'message')} {'was' if count == 1 else 'were'} sent, and none that follows"
