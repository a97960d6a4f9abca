"""An SQS that misbehaves as a test says, on a real socket of the test's own event loop."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from unittest import mock

from aiobotocore.session import AioSession
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials

from postroom.transports import AwsClient
from postroom.transports.aws.connection import Connection

ACCOUNT = "123456789012"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request that arrived."""

    operation: str
    head: dict[str, str]
    """Header names in lower case."""
    raw: bytes
    connection: int
    """Which connection it came over, counted from 1."""

    @property
    def body(self) -> dict[str, Any]:
        """The parameters."""
        parsed: dict[str, Any] = json.loads(self.raw)
        return parsed

    @property
    def hot(self) -> bool:
        """Whether it came by the hot path: botocore's own requests carry an invocation id."""
        return "amz-sdk-invocation-id" not in self.head


def connection_of(client: AwsClient, region: str = "us-east-1") -> Connection:
    """Return an open client's connection to a region."""
    assert client._regions is not None
    return client._regions._connections[region]


Script = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


def reply(body: object, *, status: int = 200, head: str = "") -> bytes:
    """Return an HTTP response with a JSON body, or with the bytes as they are."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (
        f"HTTP/1.1 {status} Whatever\r\nContent-Type: application/x-amz-json-1.0\r\n{head}"
        f"Content-Length: {len(content)}\r\n\r\n"
    ).encode() + content


def error(kind: str, *, status: int = 400, query_code: str = "") -> bytes:
    """Return an error as SQS writes it."""
    head = f"x-amzn-query-error: {query_code};Sender\r\n" if query_code else ""
    return reply({"__type": f"com.amazonaws.sqs#{kind}", "message": "said SQS"}, status=status, head=head)


def wire_message(number: int = 1, **members: Any) -> dict[str, Any]:
    """Return one message as SQS writes it."""
    return {
        "MessageId": f"id-{number}",
        "ReceiptHandle": f"handle-{number}",
        "MD5OfBody": "0" * 32,
        "Body": f"body {number}",
        "Attributes": {"ApproximateReceiveCount": "1", "SentTimestamp": "1763856000023"},
        **members,
    }


def healthy(request: Request) -> bytes:
    """Return what SQS answers when all is well: two messages, every batch entry confirmed."""
    if request.operation == "GetQueueUrl":
        return reply({"QueueUrl": f"https://sqs.us-east-1.amazonaws.com/{ACCOUNT}/{request.body['QueueName']}"})
    if request.operation == "GetQueueAttributes":
        return reply({"Attributes": {"QueueArn": f"arn:aws:sqs:us-east-1:{ACCOUNT}:orders"}})
    if request.operation == "ReceiveMessage":
        return reply({"Messages": [wire_message(1), wire_message(2)]})
    return reply({"Successful": [{"Id": entry["Id"], "MessageId": "m"} for entry in request.body["Entries"]]})


class FakeSqs:
    """The server. ``scripts`` maps an action to what is done with it; everything else is healthy.

    ::

        async with FakeSqs() as sqs:
            sqs.scripts["ReceiveMessage"] = some_script
    """

    def __init__(self, session: AioSession | None = None) -> None:
        self._session = session
        self.requests: list[Request] = []
        self.scripts: dict[str, Script] = {}
        self.connections = 0
        self.arrived = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def client(self, **options: Any) -> AwsClient:
        """Return a client of this server. Sharing one botocore session makes it cheap."""
        return AwsClient(**{"endpoint_url": self.url, "session": self._session, **options})

    def made(self, operation: str) -> list[Request]:
        """Return the requests of one action."""
        return [request for request in self.requests if request.operation == operation]

    async def wait_for(self, operation: str, count: int = 1) -> None:
        """Wait until so many requests of an action have arrived."""
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.made(operation)) >= count)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        number = self.connections
        try:
            while not writer.is_closing():
                await self._answer(await _read(reader, number), writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            writer.transport.abort()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        async with self.arrived:
            self.requests.append(request)
            self.arrived.notify_all()
        script = self.scripts.get(request.operation)
        if script is None:
            writer.write(healthy(request))
        else:
            await script(request, writer)


async def _read(reader: asyncio.StreamReader, connection: int) -> Request:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
    assert first == "POST / HTTP/1.1"
    head = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(head["content-length"]))
    operation = head["x-amz-target"].removeprefix("AmazonSQS.")
    return Request(operation=operation, head=head, raw=body, connection=connection)


def says(answer: bytes) -> Script:
    """Return a script that answers every request the same."""

    async def script(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    return script


def says_and_closes(answer: bytes) -> Script:
    """Return a script that answers and then closes the connection."""

    async def script(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    return script


def only_hot(script: Script) -> Script:
    """Return a script that does this to the hot path and is healthy to the ordinary client."""

    async def chosen(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.hot:
            await script(request, writer)
        else:
            writer.write(healthy(request))

    return chosen


async def resets(_request: Request, writer: asyncio.StreamWriter) -> None:
    """Reset the connection."""
    writer.transport.abort()


async def holds(_request: Request, _writer: asyncio.StreamWriter) -> None:
    """Never answer."""
    await asyncio.Event().wait()


def expected_authorization(request: Request, credentials: ReadOnlyCredentials, *, region: str = "us-east-1") -> str:
    """Return the Authorization header that botocore makes for a request of the hot path."""
    names = ("content-type", "x-amz-target")
    signed = AWSRequest(
        "POST", f"http://{request.head['host']}/", headers={n: request.head[n] for n in names}, data=request.raw
    )
    return sign_as_botocore(signed, credentials, date=request.head["x-amz-date"], region=region)


def sign_as_botocore(
    request: Any, credentials: ReadOnlyCredentials, *, date: str, region: str, service: str = "sqs"
) -> str:
    """Return the Authorization header that botocore makes at a given time (``20251123T000000Z``)."""
    with mock.patch("botocore.auth.get_current_datetime", return_value=_Fixed(date)):
        SigV4Auth(credentials, service, region).add_auth(request)
    return str(request.headers["Authorization"])


class _Fixed:
    def __init__(self, date: str) -> None:
        self._date = date

    def strftime(self, _format: str) -> str:
        return self._date
