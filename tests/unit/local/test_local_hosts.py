"""What a web page may have sent is refused: by its Host, by its origin, whatever the method."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
import urllib3

from postroom.local.front import Front
from postroom.local.hosts import HostPolicy
from postroom.local.http import Request, Response
from postroom.local.inprocess import LocalBroker
from postroom.local.server import LocalServer
from postroom.local.threaded import ThreadedServer

OWN = [
    *("localhost", "localhost:4566", "LOCALHOST", "localhost.", "a.localhost", "127.0.0.1:4566", "127.8.8.8"),
    *("[::1]:4566", "192.168.1.7:80", "sqs", "sqs:4566", "sqs.internal:9324", "host.docker.internal"),
    *("printer.local", "x.test"),
]
FOREIGN = [
    *("evil.example", "evil.example:4566", "evil.example.", "localhost.evil.example", "127.0.0.1.evil.example:80"),
    *("internal.example", "xlocalhost.com", "1.2.3", "127.0.0.1.nip.io"),
]


def asked(policy: HostPolicy, headers: Mapping[str, str]) -> str | None:
    """Return what a policy says of headers."""
    return policy.refusal({name.encode(): value.encode() for name, value in headers.items()})


def refusal(policy: HostPolicy, host: str) -> str | None:
    """Return what a policy says of a Host header."""
    return asked(policy, {"host": host})


@pytest.mark.parametrize("host", OWN)
def test_names_that_no_stranger_can_point_here(host: str) -> None:
    """Addresses, loopback names, names without a dot and names under private suffixes are served, again and again."""
    policy = HostPolicy()
    assert [refusal(policy, host=host) for _ in range(2)] == [None, None]


@pytest.mark.parametrize("host", FOREIGN)
def test_names_that_a_stranger_can_point_here(host: str) -> None:
    """A public name is refused until it is allowed, and the refusal says how."""
    policy = HostPolicy()
    for _ in range(2):
        assert "--allow-host" in (refusal(policy, host=host) or "")
    name = host.partition(":")[0].rstrip(".")
    assert refusal(HostPolicy([name]), host=host) is None
    assert refusal(HostPolicy(["*"]), host=host) is None


def test_names_under_an_allowed_suffix() -> None:
    """A name with a leading dot allows what is under it, and nothing else."""
    policy = HostPolicy([".corp.example"])
    assert refusal(policy, host="sqs.CORP.example:80") is None
    assert refusal(policy, host="corp.example") is not None
    assert refusal(policy, host="evilcorp.example") is not None


def test_without_a_host() -> None:
    """A request without a Host header comes from no browser."""
    assert asked(HostPolicy(), {}) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://localhost:3000"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://[x"},
        {"origin": "file://localhost:4566"},
        {"origin": "chrome-extension://localhost:4566"},
        {"referer": "http://evil.example/page"},
        {"referer": "http://localhost:3000/"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://localhost:4566", "sec-fetch-site": "cross-site"},
    ],
)
def test_other_origins(headers: dict[str, Any]) -> None:
    """What says that it comes from another origin is refused, another port of this machine included."""
    assert asked(HostPolicy(), {"host": "localhost:4566", **headers}) is not None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://localhost:4566"},
        {"origin": "https://LOCALHOST:4566"},
        {"referer": "http://localhost:4566/health"},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
    ],
)
def test_own_origin(headers: dict[str, Any]) -> None:
    """What an SDK sends is served, and what a person types into the address bar."""
    assert asked(HostPolicy(), {"host": "localhost:4566", **headers}) is None


def test_remembered_names_are_bounded() -> None:
    """Names that were accepted are remembered, a bounded number of them."""
    policy = HostPolicy()
    for number in range(5_000):
        assert refusal(policy, host=f"h{number}") is None
    assert len(policy._good) <= 1_000


BROWSER = {"Host": "evil.example:4566"}
PAGE = {"Origin": "https://evil.example"}
QUERY = "Action=ReceiveMessage"


@pytest.mark.parametrize(
    ("method", "target", "body", "headers"),
    [
        ("GET", f"?{QUERY}", None, BROWSER),
        ("GET", f"?{QUERY}", None, PAGE),
        ("GET", "?Action=DeleteQueue", None, {"Sec-Fetch-Site": "cross-site"}),
        ("GET", "?Action=DeleteQueue", None, {"Referer": "https://evil.example/"}),
        ("POST", "", QUERY, {**PAGE, "Content-Type": "application/x-www-form-urlencoded"}),
        ("POST", "", "Action=DeleteQueue", {"Origin": "null", "Content-Type": "text/plain"}),
        ("POST", "", "{}", {**BROWSER, "Origin": "http://evil.example:4566", "X-Amz-Target": "AmazonSQS.ListQueues"}),
        ("POST", "", "{}", {**PAGE, "X-Amz-Target": "AmazonSQS.ListQueues"}),
        ("OPTIONS", "", None, {**PAGE, "Access-Control-Request-Method": "POST"}),
        ("HEAD", "?Action=DeleteQueue", None, PAGE),
    ],
)
def test_a_page_reads_and_changes_nothing(
    sqs_server: ThreadedServer, method: str, target: str, body: str | None, headers: Mapping[str, str]
) -> None:
    """Whatever a page sends, in either protocol, is refused before it is read; and nothing invites it to CORS."""
    url = sqs_server.create_queue("orders")
    sqs_server.call(lambda broker: broker.send("orders", "secret body"))
    answer = urllib3.request(method, url + target, body=body, headers=headers)
    assert answer.status == 403
    assert b"secret" not in answer.data
    assert [name for name in answer.headers if name.lower().startswith("access-control")] == []
    assert sqs_server.counts("orders") == (1, 0, 0)


def test_no_cors_for_the_own_origin_either(sqs_server: ThreadedServer) -> None:
    """A preflight is not answered even from the server's own origin: its pages need none."""
    answer = urllib3.request("OPTIONS", sqs_server.endpoint_url, headers={"Origin": sqs_server.endpoint_url})
    assert answer.status == 405
    assert [name for name in answer.headers if name.lower().startswith("access-control")] == []


async def test_an_allowed_host() -> None:
    """A host that was allowed is served, and named in queue URLs."""
    async with LocalServer(allow_hosts=["sqs.example"]) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.endpoint_url.rpartition(":")[2]))
        body = b'{"QueueName": "q"}'
        head = f"Host: sqs.example\r\nX-Amz-Target: AmazonSQS.CreateQueue\r\nContent-Length: {len(body)}"
        writer.write(f"POST / HTTP/1.0\r\n{head}\r\n\r\n".encode() + body)
        answer = await reader.read()
        writer.close()
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"QueueUrl": "http://sqs.example/000000000000/q"}


async def test_a_refusal_is_noted() -> None:
    """The request log tells of a refused request."""
    noted: list[tuple[int, str]] = []
    async with LocalBroker() as broker:
        front = Front(broker, lambda: "http://x", lambda line: noted.append((line.status, line.code)))
        answer = front(Request("GET", "/?Action=ListQueues", {b"host": b"evil.example"}, b""), lambda _: None)
    assert isinstance(answer, Response)
    assert (answer.status, noted) == (403, [(403, "Forbidden")])
