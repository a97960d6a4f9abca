"""The server as a user runs it: from code, in a thread, as a fixture, from the command line, with a file of queues."""

import asyncio
import errno
import gc
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import urllib3
from aiobotocore.session import get_session
from botocore.exceptions import ClientError
from click.testing import CliRunner

from postroom.cli.local import local
from postroom.errors import ClosedError, ConfigurationError, NotOpenError
from postroom.local import LocalBroker, LocalServer, persist
from postroom.local.config import load_queues, make_queues
from postroom.local.front import Access
from postroom.local.threaded import ThreadedServer

QUEUES = """
[queues.orders]
VisibilityTimeout = 60
dead_letter = "orders-dlq"
max_receive_count = 5
tags = { team = "billing" }

[queues.orders-dlq]
RedriveAllowPolicy = { redrivePermission = "allowAll" }

[queues."payments.fifo"]
ContentBasedDeduplication = true
"""


async def test_aiobotocore() -> None:
    """Aiobotocore works in the same loop as the server, its long polls included."""
    async with (
        LocalServer() as server,
        get_session().create_client("sqs", **server.client_options) as sqs,
    ):
        url = (await sqs.create_queue(QueueName="q"))["QueueUrl"]
        poll = asyncio.create_task(sqs.receive_message(QueueUrl=url, WaitTimeSeconds=20), name="poll")
        while not server.broker.polls:
            await asyncio.sleep(0)
        await sqs.send_message(QueueUrl=url, MessageBody="x")
        assert (await poll)["Messages"][0]["Body"] == "x"


async def test_stop_ends_polls() -> None:
    """Leaving the server answers polls that wait with nothing, and closes connections that are idle."""
    async with LocalServer() as server:
        server.broker.create_queue("q")
        port = int(server.endpoint_url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        body = b'{"QueueUrl": "q", "WaitTimeSeconds": 20}'
        head = f"POST / HTTP/1.1\r\nX-Amz-Target: AmazonSQS.ReceiveMessage\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        while not server.broker.polls:
            await asyncio.sleep(0)
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(b"{}")
    assert await idle.read() == b""
    for each in (writer, idle_writer):
        each.close()
        await each.wait_closed()


async def test_life_of_a_server() -> None:
    """A server serves a broker that is the caller's, and says how to open it."""
    broker = LocalBroker()
    server = LocalServer(broker)
    with pytest.raises(NotOpenError, match="async with LocalServer"):
        _ = server.endpoint_url
    async with broker:
        async with server:
            broker.create_queue("q")
        with pytest.raises(ClosedError):
            _ = server.endpoint_url
        async with server:
            assert server.endpoint_url
        assert [queue.name for queue in broker.list_queues()] == ["q"]


async def test_port_in_use() -> None:
    """A port that is taken is an error of the operating system, and leaves nothing open."""
    async with LocalServer() as server:
        broker = LocalBroker()
        port = int(server.endpoint_url.rpartition(":")[2])
        with pytest.raises(OSError, match="address already in use"):
            await LocalServer(broker, port=port).__aenter__()
        assert not broker.is_open


async def test_named_host() -> None:
    """An address can be chosen; only the default overlooks that a machine has no IPv6."""
    async with LocalServer(host="127.0.0.1") as server:
        assert server.endpoint_url.startswith("http://127.0.0.1:")
    with pytest.raises(OSError, match=r"'203\.0\.113\.1'$"):
        await LocalServer(host=["127.0.0.1", "203.0.113.1"]).__aenter__()


@pytest.mark.parametrize("host", ["", " ", [], ["127.0.0.1", ""], [5]])
def test_hosts_are_named(host: Any) -> None:
    """A socket takes an empty text for all interfaces, and this server asks no client who it is."""
    with pytest.raises(ConfigurationError, match=r'LocalServer\(host=...\) takes addresses: write host="127.0.0.1"'):
        LocalServer(host=host)


async def test_request_log() -> None:
    """Each request is told with its action, queue, status, code and time; a poll when it is answered."""
    lines: list[Access] = []
    async with (
        LocalServer(access=lines.append) as server,
        get_session().create_client("sqs", **server.client_options) as sqs,
    ):
        url = (await sqs.create_queue(QueueName="q"))["QueueUrl"]
        with pytest.raises(sqs.exceptions.ReceiptHandleIsInvalid):
            await sqs.delete_message(QueueUrl=url, ReceiptHandle="secret")
        poll = asyncio.create_task(sqs.receive_message(QueueUrl=url, WaitTimeSeconds=20), name="poll")
        while not server.broker.polls:
            await asyncio.sleep(0)
        assert len(lines) == 2
        await sqs.send_message(QueueUrl=url, MessageBody="x")
        await poll
    assert [(line.action, line.queue, line.status, line.code) for line in lines] == [
        ("CreateQueue", "", 200, ""),
        ("DeleteMessage", "q", 404, "ReceiptHandleIsInvalid"),
        ("ReceiveMessage", "q", 200, ""),
        ("SendMessage", "q", 200, ""),
    ]
    assert all(line.seconds >= 0 for line in lines)


def test_fixture(sqs_server: ThreadedServer) -> None:
    """The fixture serves code without an event loop, and looks into the broker."""
    url = sqs_server.create_queue("q", {"VisibilityTimeout": "5"})
    sqs = boto3.client("sqs", **sqs_server.client_options)
    sqs.send_message(QueueUrl=url, MessageBody="x")
    assert sqs_server.counts("q") == (1, 0, 0)
    assert sqs_server.call(lambda broker: broker.queue("q").settings.visibility) == 5
    with pytest.raises(ZeroDivisionError):
        sqs_server.call(lambda _: 1 // 0)
    sqs.close()


@pytest.mark.parametrize(
    ("service", "operation", "arguments"),
    [
        ("s3", "list_buckets", {}),
        ("s3", "get_object", {"Bucket": "bodies", "Key": "a"}),
        ("s3", "put_object", {"Bucket": "bodies", "Key": "a", "Body": b"\xff"}),
        ("s3", "delete_objects", {"Bucket": "bodies", "Delete": {"Objects": [{"Key": "a"}]}}),
        ("s3", "head_bucket", {"Bucket": "bodies"}),
        ("sns", "list_topics", {}),
        ("dynamodb", "list_tables", {}),
        ("lambda", "list_functions", {}),
    ],
)
def test_a_client_of_another_service_is_told(
    sqs_server: ThreadedServer, service: str, operation: str, arguments: dict[str, Any]
) -> None:
    """``AWS_ENDPOINT_URL`` points all of them here."""
    client: Any = boto3.client(service, **sqs_server.client_options)
    with pytest.raises(ClientError) as caught:
        getattr(client, operation)(**arguments)
    answer = caught.value.response
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 501
    if operation != "head_bucket":
        text = rf"is Amazon SQS only, and the request is for {service}\. AWS_ENDPOINT_URL_SQS"
        assert re.search(text, answer["Error"]["Message"])
    client.close()


def test_thread_that_cannot_start() -> None:
    """What keeps the server from starting is raised where it was started."""
    with pytest.raises(NotOpenError, match="with ThreadedServer"):
        _ = ThreadedServer().endpoint_url
    with ThreadedServer() as server:
        port = int(server.endpoint_url.rpartition(":")[2])
        with pytest.raises(OSError, match="address already in use"):
            ThreadedServer(port=port).__enter__()


async def test_a_server_is_entered_once_at_a_time() -> None:
    """A second `with` inside of the first would lose the ports, or the thread, of the first."""
    threaded, server = ThreadedServer(), LocalServer()
    for _ in range(2):
        async with server:
            with pytest.raises(ConfigurationError, match="this LocalServer is open already: make one for each"):
                await server.__aenter__()
            assert server.endpoint_url
        with threaded:
            with pytest.raises(ConfigurationError, match="this ThreadedServer is open already: make one for each"):
                threaded.__enter__()
            threaded.create_queue("q")


async def test_a_broker_of_another_event_loop_is_refused() -> None:
    """Its timers are that loop's: a long poll over HTTP would never end."""
    async with LocalBroker() as broker:
        server = ThreadedServer(lambda: broker)
        with pytest.raises(ConfigurationError, match="opened in another event loop: open it in the one that uses it"):
            await asyncio.to_thread(server.__enter__)
    with server:  # closed meanwhile, it is the server's
        server.create_queue("q")


@pytest.mark.parametrize(
    ("broker", "text"),
    [
        (LocalBroker(), r"makes the broker in the server's own thread: write ThreadedServer\(lambda: LocalBroker"),
        ("broker", r"takes a function \(\) -> LocalBroker; got str"),
        (lambda _: None, r"cannot be called as \(\) -> LocalBroker"),
        (lambda: None, r"takes LocalBroker: write ThreadedServer\(lambda: LocalBroker\(seed=1\)\); got None"),
    ],
)
def test_a_thread_makes_its_broker(broker: Any, text: str) -> None:
    """What makes none is refused with what to write."""
    with pytest.raises(ConfigurationError, match=text), ThreadedServer(broker):
        raise AssertionError("it started")


def test_a_call_within_a_call_is_answered() -> None:
    """It is in the broker's thread already."""
    with ThreadedServer() as server:
        server.create_queue("q")
        assert server.call(lambda _broker: server.counts("q")) == (0, 0, 0)


def test_an_interrupt_ends_a_thread_that_starts() -> None:
    """Ctrl-C waits for no server to end that nothing would end."""

    def interrupted() -> LocalBroker:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return LocalBroker()

    gc.collect()  # what former tests left: Python ignores an interrupt that comes while a finalizer runs
    before = threading.active_count()
    # A shell lets what it starts in the background ignore interrupts.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), ThreadedServer(interrupted):
            pass
    finally:
        signal.signal(signal.SIGINT, handler)
    assert threading.active_count() == before


def test_plugin_is_cheap() -> None:
    """Loading the pytest plugin imports neither the broker nor an SDK."""
    code = (
        "import postroom.testing.pytest_plugin, sys; print([m for m in sys.modules if m.startswith('postroom.local')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# -- queues.toml -------------------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> Path:
    """Write a file of queues."""
    path = folder / "queues.toml"
    path.write_text(text, "utf-8")
    return path


async def test_queues_from_a_file(tmp_path: Path) -> None:
    """The file makes queues with attributes, tags and dead-letter queues, in an order that works."""
    async with LocalBroker() as broker:
        specs = load_queues(write(tmp_path, QUEUES))
        make_queues(broker, specs)
        assert [queue.name for queue in broker.list_queues()] == ["orders", "orders-dlq", "payments.fifo"]
        orders = broker.queue("orders")
        assert orders.settings.visibility == 60
        assert orders.tags == {"team": "billing"}
        assert orders.settings.redrive == (broker.queue("orders-dlq").arn, 5)
        assert broker.queue("payments.fifo").settings.content_based
        broker.set_attributes("orders", {"VisibilityTimeout": "5"})
        make_queues(broker, specs)
        assert orders.settings.visibility == 60


@pytest.mark.parametrize(
    "text",
    ["[queues", "", "queues = 5", "[queues.q]\ndead_letter = 5", "orders = {}"],
)
def test_wrong_files(tmp_path: Path, text: str) -> None:
    """A file that is no list of queues says what to write."""
    with pytest.raises(ConfigurationError, match="queues"):
        load_queues(write(tmp_path, text))


@pytest.mark.parametrize("value", ["5", "true", "[]"])
def test_a_tag_is_a_text(tmp_path: Path, value: str) -> None:
    """The queue and the tag are named."""
    text = r'\[queues.q\]: a tag is a text: write tags = \{ team = "..." \}; got team = '
    with pytest.raises(ConfigurationError, match=text):
        load_queues(write(tmp_path, f"[queues.q]\ntags = {{ other = 'x', team = {value} }}"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[queues.q]\ndead_letter = 'none'", "queue 'q': its dead_letter 'none' is no queue"),
        ("[queues.q]\nVisibilityTimeout = 99999", "queue 'q': Invalid value for the parameter VisibilityTimeout"),
        ("[queues.'a b']", "queue 'a b': Can only include alphanumeric"),
    ],
)
async def test_queues_that_sqs_refuses(tmp_path: Path, text: str, problem: str) -> None:
    """A queue that SQS would refuse is named, with the reason."""
    async with LocalBroker() as broker:
        with pytest.raises(ConfigurationError, match=problem):
            make_queues(broker, load_queues(write(tmp_path, text)))


# -- the command line --------------------------------------------------------------------------------------------

Start = Callable[..., tuple["subprocess.Popen[str]", str, list[str]]]


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Start:
    """Return a function that runs the command and returns the process, its URL and what it printed."""

    def start(*arguments: str) -> tuple["subprocess.Popen[str]", str, list[str]]:
        command = [sys.executable, "-m", "postroom.cli.local", "--port", "0", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

        def end() -> None:
            process.kill()
            process.communicate()

        request.addfinalizer(end)
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or "receive-message" not in lines[-1]:
            line = process.stdout.readline()
            assert line, process.communicate()
            lines.append(line)
        return process, re.findall(r"http://[\w.:]+", lines[0])[0], lines

    return start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    """The command serves until a signal, keeps its queues in a file, and prints commands that work."""
    arguments = ("--queues", str(write(tmp_path, QUEUES)), "--persist", str(tmp_path / "log"), "--region", "eu-west-1")
    process, url, lines = start(*arguments)
    health = urllib3.request("GET", f"{url}/health").json()
    assert (health["status"], health["queues"]) == ("ok", 3)
    assert f"aws --endpoint-url {url} sqs send-message --queue-url {url}/000000000000/orders" in "".join(lines)
    body = b"Action=SendMessage&MessageBody=x"
    assert urllib3.request("POST", f"{url}/000000000000/orders", body=body).status == 200
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 0
    assert re.search(r"\d\d:\d\d:\d\d\.\d{3} SendMessage orders 200 [\d.]+ ms \d+ B", errors)
    process, url, _ = start(*arguments)
    assert urllib3.request("GET", f"{url}/health").json()["messages"] == 1


def test_command_without_anything(start: Start) -> None:
    """Without options there are no queues yet, nothing is kept, and the first command makes one."""
    _, _, lines = start("--no-log", "--host", "127.0.0.1")
    text = "".join(lines)
    assert "none yet" in text
    assert "memory only" in text
    assert "create-queue --queue-name orders" in text


def test_help_names_variables() -> None:
    """Every option can be set by an environment variable, which the help names."""
    result = CliRunner().invoke(local, ["--help"])
    for name in ("PORT", "HOST", "QUEUES", "PERSIST", "TIME_SCALE", "REGION", "FAIR_LAG", "RECREATE_AFTER", "LOG"):
        assert f"POSTROOM_LOCAL_{name}" in result.output


def test_a_full_disk_is_no_matter_of_the_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that cannot be written, at the start as at the stop, is named, with what to do."""
    path = tmp_path / "queues.log"
    path.write_bytes(persist._MAGIC)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(persist, "os", SimpleNamespace(**{**vars(os), "write": full}))
    arguments = ["--port", "0", "--persist", os.fspath(path), "--queues", os.fspath(write(tmp_path, QUEUES))]
    result = CliRunner().invoke(local, arguments)
    assert result.exit_code == 2
    assert f"{path} cannot be used: No space left on device. Make room" in result.output
    assert "port" not in result.output


async def test_command_that_cannot_start(tmp_path: Path) -> None:
    """What is wrong with the configuration is said in one line, with exit code 2."""
    async with LocalServer() as server:
        port = server.endpoint_url.rpartition(":")[2]
        refused = {
            ("--port", port): f"cannot listen on port {port}",
            ("--port", "0", "--host", "no-such-host.invalid"): (
                "cannot listen on no-such-host.invalid: the name cannot be resolved"
            ),
            ("--port", "0", "--host", "127.0.0.1", "--host", "203.0.113.1"): (
                "cannot listen on 203.0.113.1: it is no address of this machine. Give --host an address of this machine"
            ),
            ("--port", "0", "--persist", os.fspath(tmp_path / "none" / "log")): "cannot be opened",
            ("--port", "0", "--queues", os.fspath(tmp_path / "none.toml")): "cannot be read",
            ("--port", "0", "--queues", os.fspath(write(tmp_path, "[queues.'a b']"))): "queue 'a b'",
        }
        for arguments, problem in refused.items():
            result = await asyncio.to_thread(CliRunner().invoke, local, arguments)
            assert result.exit_code == 2
            assert problem in result.output
