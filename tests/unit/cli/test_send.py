"""``postroom send``: what is read, how it is batched, what is printed."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from postroom.cli import main
from postroom.local.threaded import ThreadedServer
from postroom.message import OutgoingMessage
from postroom.sending.batches import MAX_BYTES, batches
from postroom.transports.aws.queue import AwsQueue
from support.signals import interrupt


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> ThreadedServer:
    """A local SQS with one queue; what the command writes into the environment is undone afterwards."""
    for name in ("AWS_ENDPOINT_URL_SQS", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "for the record")
        monkeypatch.delenv(name)
    return ThreadedServer()


def _send(server: ThreadedServer, *arguments: str, stdin: str = "") -> Result:
    command = ["send", "orders", "--endpoint-url", server.endpoint_url, *arguments]
    return CliRunner().invoke(main, command, input=stdin)


def _received(server: ThreadedServer, queue: str = "orders") -> list[dict[str, object]]:
    client = boto3.client("sqs", **server.client_options)
    try:
        url = server.queue_url(queue)
        found: list[dict[str, object]] = []
        while batch := client.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"], MessageSystemAttributeNames=["All"]
        ).get("Messages"):
            found += [dict(message) for message in batch]
        return found
    finally:
        client.close()


def test_one_message_with_everything(server: ThreadedServer) -> None:
    """Body, attributes with types, and the group that makes a queue a fair one; the id is printed."""
    with server:
        server.create_queue("orders")
        result = _send(
            server, "--body", '{"orderId":"order-001"}', "--attribute", "tenantId=tenant-a",
            "--attribute", "count:Number=5", "--attribute", "note=a=b", "--group-id", "tenant-a",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        (message,) = _received(server)
    assert message["MessageId"] == result.output.strip()
    assert message["Body"] == '{"orderId":"order-001"}'
    assert message["MessageAttributes"] == {
        "tenantId": {"StringValue": "tenant-a", "DataType": "String"},
        "count": {"StringValue": "5", "DataType": "Number"},
        "note": {"StringValue": "a=b", "DataType": "String"},
    }
    attributes = message["Attributes"]
    assert isinstance(attributes, dict)
    assert attributes["MessageGroupId"] == "tenant-a"


def test_each_line_of_stdin_is_a_message(server: ThreadedServer) -> None:
    """Empty lines are none; more than a batch holds is several batches."""
    with server:
        server.create_queue("orders")
        result = _send(server, stdin="\n".join(["", *map(str, range(25)), ""]))
        assert result.exit_code == 0, result.output
        bodies = sorted(int(str(message["Body"])) for message in _received(server))
    assert bodies == list(range(25))
    assert len(result.output.split()) == 25


def test_json_lines_say_more_than_a_body(server: ThreadedServer) -> None:
    """What a line says wins over the options; a body that is not text is sent as JSON."""
    lines = [
        {"body": {"n": 1}, "attributes": {"tenantId": "tenant-b", "n": 1}, "group_id": "b"},
        {"body": "text"},
    ]
    with server:
        server.create_queue("orders")
        options = ["--json-lines", "--attribute", "tenantId=tenant-a", "--group-id", "a"]
        result = _send(server, *options, stdin="\n\n".join(map(json.dumps, lines)))
        assert result.exit_code == 0, result.output
        found = {str(message["Body"]): message for message in _received(server)}
    assert set(found) == {'{"n":1}', "text"}
    own, common = (found[body]["MessageAttributes"] for body in ('{"n":1}', "text"))
    assert isinstance(own, dict)
    assert isinstance(common, dict)
    assert (own["tenantId"]["StringValue"], own["n"]["DataType"]) == ("tenant-b", "Number")
    assert common["tenantId"]["StringValue"] == "tenant-a"


def test_a_fifo_queue_takes_group_and_deduplication(server: ThreadedServer) -> None:
    """The same deduplication id twice is one message."""
    with server:
        server.create_queue("orders.fifo", {"FifoQueue": "true"})
        for _ in range(2):
            arguments = ["send", "orders.fifo", "--endpoint-url", server.endpoint_url, "--body", "x"]
            result = CliRunner().invoke(main, [*arguments, "--group-id", "g", "--deduplication-id", "d"])
            assert result.exit_code == 0, result.output
        assert server.counts("orders.fifo") == (1, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "text"),
    [
        (["--attribute", "tenantId"], "x", 2, "NAME=VALUE"),
        (["--attribute", "n:=5"], "x", 2, "NAME=VALUE"),
        (["--attribute", "a=1", "--attribute", "a:Number=2"], "x", 2, "--attribute a=... is given twice"),
        (["--attribute", "=5"], "x", 2, "NAME=VALUE"),
        (["--body", "x", "--json-lines"], "", 2, "leave out --body"),
        ([], "", 2, "nothing to send"),
        (["--json-lines"], '{"body": "a"}\n{"bodi": "secret"}', 2, "line 2"),
        (["--json-lines"], "{secret", 2, "line 1"),
        (["--body", "x", "--delay", "901"], "", 2, "delay"),
        (["--body", "\x00secret"], "", 1, "refused"),
    ],
)
def test_bad_input_is_refused_with_what_to_change(
    server: ThreadedServer, arguments: list[str], stdin: str, code: int, text: str
) -> None:
    """No payload is repeated."""
    with server:
        server.create_queue("orders")
        result = _send(server, *arguments, stdin=stdin)
    assert result.exit_code == code
    assert text in result.output
    assert "secret" not in result.output


def test_a_queue_that_does_not_exist_is_something_to_change(server: ThreadedServer) -> None:
    """Exit code 2, one line."""
    with server:
        result = _send(server, "--body", "x")
    assert result.exit_code == 2
    assert result.output.startswith("Error: ")


ABOVE = "the ids above were sent, and no other"
messages = st.builds(OutgoingMessage, body=st.sampled_from(["x", "y" * 300_000, "z" * 1_000_000, "ä" * 200_000]))


def test_lines_that_are_no_text_are_one_line_of_error(server: ThreadedServer, tmp_path: Path) -> None:
    """Not a traceback."""
    (tmp_path / "bodies").write_bytes(b"a\n\xff\xfe\n")
    with server:
        server.create_queue("orders")
        result = _send(server, "--file", str(tmp_path / "bodies"))
    assert result.exit_code == 2
    assert result.output == f"Error: --file is not UTF-8 text (invalid start byte: 0xff); {ABOVE}\n"


def test_a_wrong_line_of_stdin_leaves_one_line_of_error(server: ThreadedServer) -> None:
    """Also when the interpreter ends, and with it what read the lines."""
    with server:
        server.create_queue("orders")
        done = subprocess.run(
            [sys.executable, "-m", "postroom", "send", "orders", "--json-lines", "--endpoint-url", server.endpoint_url],
            input='{"body": 1}\n{"text": 2}\n{"body": 3}\n',
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    said = f"Error: line 2 is not a message: Object contains unknown field `text`; {ABOVE}\n"
    assert (done.stdout, done.stderr) == ("", said)


@pytest.mark.parametrize(("options", "line"), [(["--json-lines"], '{"body": "x"}'), ([], "x")])
def test_a_byte_order_mark_is_no_part_of_a_message(server: ThreadedServer, options: list[str], line: str) -> None:
    """PowerShell writes one in front of the first line."""
    with server:
        server.create_queue("orders")
        result = _send(server, *options, stdin=f"\ufeff{line}\n{line}\n")
        assert result.exit_code == 0, result.output
        assert [message["Body"] for message in _received(server)] == ["x", "x"]


def test_a_signal_ends_it_behind_the_batch_that_is_under_way(
    server: ThreadedServer, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids that are printed are those that were sent, and the last line counts them: a file can be gone on with."""
    post = AwsQueue.send
    calls: list[None] = []

    async def interrupted(queue: AwsQueue, messages: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            await interrupt(number)
        return await post(queue, messages)

    monkeypatch.setattr(AwsQueue, "send", interrupted)
    with server:
        server.create_queue("orders")
        result = _send(server, stdin="".join(f"{each}\n" for each in range(45)))
        assert server.counts("orders") == (20, 0, 0)
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[-1] == "Error: it was interrupted: 20 messages were sent, and none that follows"
    assert len([each for each in lines if len(each) == 36]) == 20


async def test_a_signal_ends_it_while_it_waits_for_a_line(server: ThreadedServer, number: signal.Signals) -> None:
    """One is enough: nothing is under way, and the thread that reads could only end with a line."""
    with server:
        server.create_queue("orders")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "postroom", "send", "orders", "--endpoint-url", server.endpoint_url,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            process.stdin.write(b"x\n" * 11)  # one batch, and a line that waits for others
            async with asyncio.timeout(60):
                for _ in range(10):
                    await process.stdout.readline()
                process.send_signal(number)
                assert await process.wait() == -signal.SIGINT
            said = (await process.stderr.read()).decode()
            assert said.splitlines()[-1] == "10 messages were sent, and none that follows"
        finally:
            if process.returncode is None:
                process.kill()
            process.stdin.close()


@given(st.lists(messages, max_size=40))
def test_batches_keep_order_and_limits(sent: list[OutgoingMessage]) -> None:
    """Up to 10 messages and 1 MiB; nothing lost, nothing twice."""
    made = list(batches(sent))
    assert [message for batch in made for message in batch] == sent
    assert all(1 <= len(batch) <= 10 for batch in made)
    assert all(len(batch) == 1 or sum(len(m.body.encode()) for m in batch) <= MAX_BYTES for batch in made)
