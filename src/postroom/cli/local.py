"""``postroom local``: Amazon SQS on this machine, for development and tests."""

import asyncio
import errno
import signal
import socket
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from postroom.cli.numbers import Number, WholeNumber
from postroom.types import ExitCode

if TYPE_CHECKING:
    from postroom.local import LocalServer
    from postroom.local.config import QueueSpec
    from postroom.local.front import Access


@click.command()
@click.option("--port", default=4566, show_default=True, envvar="POSTROOM_LOCAL_PORT", show_envvar=True,
              type=WholeNumber(0, 65535), help="Port to listen on; 0 takes a free one.")  # fmt: skip
@click.option("--host", "hosts", multiple=True, envvar="POSTROOM_LOCAL_HOST", show_envvar=True,
              help="Address to listen on, repeatable. Default: loopback only, IPv4 and IPv6.")  # fmt: skip
@click.option("--queues", "queues_file", envvar="POSTROOM_LOCAL_QUEUES", show_envvar=True,
              type=click.Path(path_type=Path, dir_okay=False), help="TOML file with the queues to create.")  # fmt: skip
@click.option("--persist", envvar="POSTROOM_LOCAL_PERSIST", show_envvar=True,
              type=click.Path(path_type=Path, dir_okay=False), help="File that keeps everything.")  # fmt: skip
@click.option("--time-scale", default=1.0, show_default=True, envvar="POSTROOM_LOCAL_TIME_SCALE", show_envvar=True,
              type=Number(min=0, min_open=True), help="SQS seconds that pass in one second.")  # fmt: skip
@click.option("--region", default="us-east-1", show_default=True, envvar="POSTROOM_LOCAL_REGION", show_envvar=True,
              help="Region of requests that are not signed, and of --queues.")  # fmt: skip
@click.option("--fair-lag", default=0.0, show_default=True, envvar="POSTROOM_LOCAL_FAIR_LAG", show_envvar=True,
              type=Number(min=0), help="Seconds until fair queues notice a noisy tenant.")  # fmt: skip
@click.option("--recreate-after", default=60.0, show_default=True, envvar="POSTROOM_LOCAL_RECREATE_AFTER",
              show_envvar=True, type=Number(min=0),
              help="Seconds until the name of a deleted queue can be used again.")  # fmt: skip
@click.option("--visibility-timeout", type=WholeNumber(0, 43_200), envvar="POSTROOM_LOCAL_VISIBILITY_TIMEOUT",
              show_envvar=True, help="Seconds, for new queues that do not set it (30).")  # fmt: skip
@click.option("--max-message-size", type=WholeNumber(1024, 1_048_576), envvar="POSTROOM_LOCAL_MAX_MESSAGE_SIZE",
              show_envvar=True, help="Bytes, for new queues that do not set it (1048576).")  # fmt: skip
@click.option("--retention", type=WholeNumber(60, 1_209_600), envvar="POSTROOM_LOCAL_RETENTION", show_envvar=True,
              help="Seconds that messages are kept in new queues that do not set it (345600).")  # fmt: skip
@click.option("--delay", type=WholeNumber(0, 900), envvar="POSTROOM_LOCAL_DELAY", show_envvar=True,
              help="Seconds that messages are delayed in new queues that do not set it (0).")  # fmt: skip
@click.option("--wait-time", type=WholeNumber(0, 20), envvar="POSTROOM_LOCAL_WAIT_TIME", show_envvar=True,
              help="Seconds that a receive waits in new queues that do not set it (0).")  # fmt: skip
@click.option("--allow-host", "allow_hosts", multiple=True, envvar="POSTROOM_LOCAL_ALLOW_HOST", show_envvar=True,
              help="Another name under which clients reach it, repeatable; .NAME allows all under it.")  # fmt: skip
@click.option("--old-handles-delete", is_flag=True, envvar="POSTROOM_LOCAL_OLD_HANDLES_DELETE", show_envvar=True,
              help="Let DeleteMessage delete with the handle of an earlier receive.")  # fmt: skip
@click.option("--log/--no-log", default=True, show_default=True, envvar="POSTROOM_LOCAL_LOG", show_envvar=True,
              help="Write one line per request, with its time, to stderr.")  # fmt: skip
def local(
    *,
    port: int,
    hosts: Sequence[str],
    queues_file: Path | None,
    persist: Path | None,
    time_scale: float,
    region: str,
    fair_lag: float,
    recreate_after: float,
    visibility_timeout: int | None,
    max_message_size: int | None,
    retention: int | None,
    delay: int | None,
    wait_time: int | None,
    allow_hosts: Sequence[str],
    old_handles_delete: bool,
    log: bool,
) -> None:
    """Run Amazon SQS on this machine, for development and tests.

    boto3, aiobotocore and the aws command line work unchanged with its endpoint URL. Ctrl-C and SIGTERM stop it.
    """
    from postroom.errors import ConfigurationError
    from postroom.local import BrokerOptions, FairPolicy, LocalBroker, LocalServer, Scope
    from postroom.local.config import load_queues
    from postroom.local.server import LOOPBACK

    defaults = {
        "VisibilityTimeout": visibility_timeout,
        "MaximumMessageSize": max_message_size,
        "MessageRetentionPeriod": retention,
        "DelaySeconds": delay,
        "ReceiveMessageWaitTimeSeconds": wait_time,
    }
    try:
        specs = load_queues(queues_file) if queues_file is not None else []
        options = BrokerOptions(
            scope=Scope(region=region),
            fair=FairPolicy(lag=fair_lag),
            recreate_after=recreate_after,
            old_handles_delete=old_handles_delete,
            queue_defaults={name: str(value) for name, value in defaults.items() if value is not None},
            time_scale=time_scale,
            persist=persist,
        )
        access = _log_access if log else None
        server = LocalServer(
            LocalBroker(options), host=tuple(hosts) or LOOPBACK, port=port, access=access, allow_hosts=allow_hosts
        )
        asyncio.run(_serve(server, specs, persist))
    except ConfigurationError as error:
        raise _Failure(str(error)) from error
    except OSError as error:
        raise _Failure(_unusable(error, port, persist)) from error


def _unusable(error: OSError, port: int, persist: Path | None) -> str:
    if persist is not None and error.filename == str(persist):
        return f"{persist} cannot be used: {error.strerror}. Make room, or name another file with --persist."
    own = "Give --host an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all of them."
    if isinstance(error, socket.gaierror):
        return f"cannot listen on {error.filename}: the name cannot be resolved ({error.strerror}). {own}"
    # Since Python 3.13 asyncio passes such an address over, and its own error of having none has no number.
    if error.errno in {None, errno.EADDRNOTAVAIL}:
        return f"cannot listen on {error.filename}: it is no address of this machine. {own}"
    return f"cannot listen on port {port}: {error.strerror}. Choose another one with --port, or 0 for a free one."


class _Failure(click.ClickException):
    """It cannot start: something to change is named."""

    exit_code = int(ExitCode.CONFIGURATION)


async def _serve(server: "LocalServer", specs: "list[QueueSpec]", persist: Path | None) -> None:
    """Serve until a signal says stop."""
    from postroom.local.config import make_queues

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with server:
        make_queues(server.broker, specs)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        try:
            click.echo(_welcome(server, persist))  # it flushes, and passes over a stdout that is closed
            await stop.wait()
            click.echo("stopping", err=True)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


def _welcome(server: "LocalServer", persist: Path | None) -> str:
    url = server.endpoint_url
    scope = server.broker.scope
    queues = server.broker.list_queues()
    name = queues[0].name if queues else "orders"
    queue_url = f"{url}/{scope.account}/{name}"
    aws = f"aws --endpoint-url {url} sqs"
    fifo = " --message-group-id group-1 --message-deduplication-id 1" if name.endswith(".fifo") else ""
    lines = [
        f"postroom local: Amazon SQS for development, at {url}",
        f"  queues: {', '.join(queue.name for queue in queues) or 'none yet'}",
        f"  kept in: {persist or 'memory only (--persist FILE keeps it)'}",
        "",
        f"  export AWS_ENDPOINT_URL_SQS={url} AWS_DEFAULT_REGION={scope.region}",
        "  export AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local",
        *([] if queues else [f"  {aws} create-queue --queue-name {name}"]),
        f'  {aws} send-message --queue-url {queue_url} --message-body \'{{"hello": "world"}}\'{fifo}',
        f"  {aws} receive-message --queue-url {queue_url} --wait-time-seconds 20",
        "",
    ]
    return "\n".join(lines)


def _log_access(access: "Access") -> None:
    now = datetime.now().astimezone().strftime("%H:%M:%S.%f")[:-3]
    code = f" {access.code}" if access.code else ""
    click.echo(
        f"{now} {access.action or '-'} {access.queue or '-'} {access.status}{code} "
        f"{access.seconds * 1000:.1f} ms {access.size} B",
        err=True,
    )


if __name__ == "__main__":
    local()
