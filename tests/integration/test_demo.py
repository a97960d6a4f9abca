"""``postroom demo`` as a user runs it: a process, a real protocol, real databases, an exit code."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest

from postroom.cli.demo import command
from postroom.cli.demo.story import Finding
from postroom.local.threaded import ThreadedServer
from postroom.testing.postgres import PostgresServer
from support.output import read_until

RESOURCES = "Resources created for key: {}:{}"
LOG_LINES = [
    RESOURCES.format("tenant-a", "us-east-1"),
    RESOURCES.format("tenant-b", "eu-west-1"),
    "Processing order order-001 for tenant tenant-a using datasource tenant-a-us-east-1-db",
    "Processing order order-002 for tenant tenant-b using datasource tenant-b-eu-west-1-db",
    "Resources retrieved from pool for key: tenant-a:us-east-1",
    "Processing order order-003 for tenant tenant-a using datasource tenant-a-us-east-1-db",
    "Context resolution failed for message ",
    "Missing required tenant attributes",
    "Resource provisioning failed for message ",
]
"""What a user of the original expects to read."""


@contextmanager
def _demo(*arguments: str) -> "Iterator[subprocess.Popen[str]]":
    """Run the demo in a fresh environment: no AWS settings of any kind."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "POSTROOM_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "postroom", "demo", *arguments],
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _run(*arguments: str) -> str:
    """Run the demo to its end, which must be a good one."""
    with _demo(*arguments) as process:
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output
    return output


def _stop(process: "subprocess.Popen[str]") -> str:
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    return output


def _in_order(output: str, lines: Sequence[str]) -> None:
    position = 0
    for line in lines:
        position = output.find(line, position)
        assert position >= 0, f"{line!r} is missing, or too early, in:\n{output}"


def _right(output: str) -> None:
    """What was read back is right, line by line; nothing is coloured where there is no terminal."""
    assert output.count("  right  ") == 11
    assert "WRONG" not in output
    assert "order-001 cust-123 99.99; order-003 cust-789 199.99" in output
    assert "orders that are not handled, and not lost: order-998, order-999" in output
    assert re.search(r"in tenant-orders-dlq: .*order-999", output)
    assert "\x1b" not in output


def test_with_sqlite_it_prints_what_the_original_does_and_reads_back_what_is_right() -> None:
    """The promise of `make demo`."""
    output = _run()
    _in_order(output, [LOG_LINES[0], LOG_LINES[2], *LOG_LINES[4:6]])
    assert all(line in output for line in LOG_LINES)
    _right(output)


@pytest.mark.postgres
def test_with_postgres_every_tenant_has_a_database_on_a_server_of_its_own() -> None:
    """Started for the demo, and gone after it."""
    output = _run("--database", "postgres")
    assert "on a server started for this demo" in output
    _right(output)


@pytest.mark.postgres
def test_with_a_dsn_the_given_server_is_left_as_it_was(postgres_server: PostgresServer) -> None:
    """Databases are made and dropped; no password is printed."""
    before = postgres_server.execute("SELECT datname FROM pg_database ORDER BY 1")
    output = _run("--dsn", postgres_server.dsn())
    _right(output)
    assert postgres_server.password not in output
    assert postgres_server.execute("SELECT datname FROM pg_database ORDER BY 1") == before


def test_keep_stays_up_and_its_commands_work() -> None:
    """The printed `aws` commands, sent by boto3; Ctrl-C stops it in order."""
    with _demo("--keep", "--port", "0") as process:
        output = read_until(process, "Ctrl-C stops.")
        blocks = output.split("aws sqs send-message")[1:]
        first = shlex.split(blocks[0].split("\n\n")[0].replace("\\\n", " "))
        options = dict(zip(first[::2], first[1::2], strict=True))
        _send(options["--endpoint-url"], options["--queue-url"], options["--message-body"].replace("001", "500"), "b")
        output = read_until(process, "Processing order order-500 for tenant tenant-b")
        output = _stop(process)
    assert len(blocks) == 5
    assert "order-002 cust-456 149.99; order-500 cust-123 99.99" in output
    assert "datasources opened 2, closed 2, open 0" in output


def _send(endpoint_url: str, queue_url: str, body: str, tenant: str) -> None:
    regions = {"a": "us-east-1", "b": "eu-west-1"}
    attributes: Any = {
        "tenantId": {"DataType": "String", "StringValue": f"tenant-{tenant}"},
        "region": {"DataType": "String", "StringValue": regions[tenant]},
    }
    client = boto3.client(
        "sqs",
        endpoint_url=endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="local",
        aws_secret_access_key="local",
    )
    client.send_message(QueueUrl=queue_url, MessageBody=body, MessageAttributes=attributes)
    client.close()


def test_an_existing_queue_is_consumed_and_nothing_is_sent_to_it() -> None:
    """Anybody's endpoint and queue."""
    with ThreadedServer() as server:
        url = server.create_queue("mine")
        with _demo("--endpoint-url", server.endpoint_url, "--queue", "mine") as process:
            read_until(process, "Ctrl-C stops.")
            body = '{"orderId":"order-7","customerId":"cust-7","amount":7.00}'
            _send(server.endpoint_url, url, body, "a")
            read_until(process, "Processing order order-7 for tenant tenant-a")
            output = _stop(process)
        assert server.counts("mine") == (0, 0, 0)
    assert "rows in the database of tenant-a: order-7 cust-7 7.00" in output
    assert "received 1, handled 1, failed: none" in output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--dsn", "postgresql://x@127.0.0.1:1/secret", "--database", "sqlite"], "--dsn goes with"),
        (["--dsn", "postgresql://x:secret@127.0.0.1:1/y"], "does not let us in (ConnectionRefusedError)"),
        (["--dsn", "secret"], "does not let us in"),
        (["--database", "oracle"], "oracle"),
    ],
)
def test_what_cannot_start_says_what_to_change(arguments: list[str], text: str) -> None:
    """Exit code 2, no traceback, no password."""
    with _demo(*arguments) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert text in output
    assert "secret" not in output
    assert "Traceback" not in output


def test_a_missing_queue_and_a_taken_port_are_things_to_change() -> None:
    """Exit code 2 for both."""
    with ThreadedServer() as server:
        port = server.endpoint_url.rpartition(":")[2]
        for arguments in (["--endpoint-url", server.endpoint_url, "--queue", "nowhere"], ["--port", port]):
            with _demo(*arguments) as process:
                output, _ = process.communicate(timeout=60)
            assert process.returncode == 2, output
            assert "Error: " in output


@pytest.mark.parametrize(
    ("arguments", "consumes"),
    [
        ([], None),
        (["--queue", "mine"], ("mine", "http://127.0.0.1:9")),
        (["--endpoint-url", "http://127.0.0.1:8"], (command.QUEUE, "http://127.0.0.1:8")),
    ],
)
def test_the_variable_for_other_commands_leaves_the_demo_as_it_is(
    arguments: list[str], consumes: tuple[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README has it exported before the demo is tried: nothing need listen there any longer."""
    found: list[object] = []

    async def tell_the_story(_: object, **__: object) -> int:
        found.append(None)
        return 0

    async def consume_elsewhere(_: object, *where: str) -> int:
        found.append(where)
        return 0

    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", "http://127.0.0.1:9")
    monkeypatch.setattr(command, "_tell_the_story", tell_the_story)
    monkeypatch.setattr(command, "_consume_elsewhere", consume_elsewhere)
    monkeypatch.setattr(command, "log_to_stderr", lambda *_, **__: None)
    with pytest.raises(SystemExit):
        command.demo.main(arguments, standalone_mode=False)
    assert found == [consumes]


def test_a_wrong_finding_ends_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is judged by what was read back, and by nothing else."""

    async def read_back(_: object) -> list[Finding]:
        return [Finding("rows in the database of tenant-a", None, [("order-001",)])]

    monkeypatch.setattr(command, "_read_back", read_back)
    monkeypatch.setattr(command, "log_to_stderr", lambda *_, **__: None)
    with pytest.raises(SystemExit) as ended:
        command.demo.main(["--port", "0"], standalone_mode=False)
    assert ended.value.code == 1
    assert "WRONG  rows in the database of tenant-a: no table (must be order-001)" in capsys.readouterr().out


def test_it_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is interrupted in the middle."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with _demo() as process:
        read_until(process, "Sent order-001")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "WRONG" not in output
    assert list(tmp_path.iterdir()) == []
