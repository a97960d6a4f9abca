"""What is fuzzed: functions that take any bytes and may raise nothing. What they may answer is decided here.

They need no fuzzer: any bytes will do, so the test suite calls them as well.
"""

import contextlib
import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal
from uuid import UUID

from postroom.errors import ContextError, MessageError, PayloadError
from postroom.local import LocalBroker
from postroom.local.front import Front
from postroom.local.hosts import HostPolicy
from postroom.local.http import MAX_HEAD, Chunks, HttpError, Request, Response, parse_head
from postroom.message import Message, MessageAttribute
from postroom.payloads import context_from_attributes, decoder_for
from postroom.payloads.envelopes import unwrap_eventbridge, unwrap_sns
from postroom.testing.loop import VirtualLoop


class Region(enum.Enum):
    """A choice."""

    EAST = "east"
    WEST = "west"


@dataclass(frozen=True)
class Tenant:
    """A context with every kind of field."""

    tenant_id: str
    number: int = 0
    live: bool = False
    region: Region = Region.EAST
    tier: Literal["free", "paid"] = "free"
    key: UUID | None = None


@dataclass(frozen=True)
class Line:
    """A part of an order."""

    sku: str
    count: int


@dataclass(frozen=True)
class Order:
    """A payload with parts."""

    order_id: str
    lines: list[Line]
    tags: dict[str, str | int | None]
    total: float = 0.0


_NAMES = ("tenantId", "tenant_id", "number", "live", "region", "tier", "key", "other")
_TYPES = ("String", "Number", "Binary", "Number.int", "String.x", "")
_resolve = context_from_attributes(Tenant)
_decode = decoder_for(Order)


def attributes(data: bytes) -> None:
    """Fill a context from any attributes: a context comes out, or a ``ContextError``."""
    found: dict[str, MessageAttribute] = {}
    for part in data.split(b"\xff")[:10]:
        name, kind, value = _NAMES[(part[:1] or b"\0")[0] % 8], _TYPES[(part[1:2] or b"\0")[0] % 6], part[2:]
        text = None if kind == "Binary" else value.decode("utf-8", "surrogateescape")
        found[name] = MessageAttribute(kind, text, value if kind == "Binary" else None)
    with contextlib.suppress(ContextError):
        hash(_resolve(Message(id="m", body="", message_attributes=found)))


def payload(data: bytes) -> None:
    """Decode any body: a payload comes out, or a ``PayloadError``; and never a quotation of the body."""
    message = Message(id="m", body=data.decode("utf-8", "surrogateescape"))
    with contextlib.suppress(PayloadError):
        _decode(message)
    for unwrap in (unwrap_sns, unwrap_eventbridge):
        with contextlib.suppress(MessageError):
            _decode(unwrap(message))


@cache
def _front() -> Front:
    logging.disable(logging.CRITICAL)
    loop = VirtualLoop()
    broker = LocalBroker(seed=1, epoch=1_800_000_000.0)
    loop.run_until_complete(broker.__aenter__())
    broker.create_queue("q")
    broker.create_queue("q.fifo", {"FifoQueue": "true"})
    return Front(broker, lambda: "http://localhost", None)


_ACTIONS = (
    *("CreateQueue", "DeleteQueue", "GetQueueUrl", "ListQueues", "GetQueueAttributes", "SetQueueAttributes"),
    *("SendMessage", "SendMessageBatch", "ReceiveMessage", "DeleteMessage", "DeleteMessageBatch", "PurgeQueue"),
    *("ChangeMessageVisibility", "ChangeMessageVisibilityBatch", "TagQueue", "UntagQueue", "ListQueueTags"),
    *("AddPermission", "RemovePermission", "ListDeadLetterSourceQueues", "StartMessageMoveTask"),
    *("ListMessageMoveTasks", "CancelMessageMoveTask", "Nothing"),
)


def json_front(data: bytes) -> None:
    """Send any body to any action in the JSON protocol: no answer says that the broker itself failed."""
    action = _ACTIONS[(data[:1] or b"\0")[0] % len(_ACTIONS)]
    _ask(Request("POST", "/", {b"x-amz-target": f"AmazonSQS.{action}".encode()}, data[1:]))


def query_front(data: bytes) -> None:
    """Send any form to any action in the query protocol: no answer says that the broker itself failed."""
    action = _ACTIONS[(data[:1] or b"\0")[0] % len(_ACTIONS)]
    path, _, form = data[1:].partition(b"\xff")
    target = "/000000000000/q" if not form else "/" + path.decode("latin-1")
    _ask(Request("POST", target, {}, f"Action={action}&".encode() + (form or data[1:])))


def _ask(request: Request) -> None:
    answer = _front()(request, lambda _response: None)
    if isinstance(answer, Response):
        if answer.status >= 500:
            raise AssertionError(f"{answer.status}: {answer.body[:300]!r}")
    else:
        answer.cancel()


def http(data: bytes) -> None:
    """Parse any head and any chunks: they are parsed, or refused with an ``HttpError``; any origin is judged."""
    with contextlib.suppress(HttpError):
        _hosts.refusal(parse_head(data).headers)
    with contextlib.suppress(HttpError):
        _feed(data)


_hosts = HostPolicy()


def _feed(data: bytes) -> None:
    """Feed a chunked body in pieces as long as its first byte says: what is kept is no more than what is allowed."""
    chunks, buffer = Chunks(), bytearray()
    step = 1 + (data[:1] or b"\xff")[0]
    for start in range(1, len(data), step):
        buffer += data[start : start + step]
        if chunks.feed(buffer) is not None:
            return
        if len(buffer) > MAX_HEAD:
            raise AssertionError(f"{len(buffer)} bytes kept")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "attributes": attributes,
    "payload": payload,
    "json": json_front,
    "query": query_front,
    "http": http,
}
SEEDS: dict[str, tuple[bytes, ...]] = {
    "attributes": (b"\x00\x00tenant-a\xff\x02\x0142\xff\x05\x00east", b"\x06\x002f1c7a52-4c3b-4ac3-9c39-6c0c4f0d8b11"),
    "payload": (
        b'{"order_id": "1", "lines": [{"sku": "a", "count": 2}], "tags": {"a": null}, "total": 1.5}',
        b'{"Type": "Notification", "Message": "{}", "MessageAttributes": {"a": {"Type": "String", "Value": "b"}}}',
        b'{"detail-type": "x", "source": "y", "detail": {"order_id": "1", "lines": [], "tags": {}}}',
    ),
    "json": (
        (
            b'\x06{"QueueUrl": "http://localhost/000000000000/q", "MessageBody": "b", "MessageAttributes": {"a": '
            b'{"DataType": "String", "StringValue": "x"}}}'
        ),
        b'\x08{"QueueUrl": "http://localhost/000000000000/q", "MaxNumberOfMessages": 10, "WaitTimeSeconds": 20}',
        b'\x0a{"QueueUrl": "http://localhost/000000000000/q", "Entries": [{"Id": "a", "ReceiptHandle": "b"}]}',
        b'\x00{"QueueName": "n", "Attributes": {"VisibilityTimeout": "30", "RedrivePolicy": "{}"}}',
    ),
    "query": (
        (
            b"\x06MessageBody=b&MessageAttribute.1.Name=a&MessageAttribute.1.Value.DataType=String"
            b"&MessageAttribute.1.Value.StringValue=x"
        ),
        b"\x0aDeleteMessageBatchRequestEntry.1.Id=a&DeleteMessageBatchRequestEntry.1.ReceiptHandle=b",
        b"\x06000000000000/q?a=b\xffMessageBody=b",
        b"\x00QueueName=n&Attribute.1.Name=VisibilityTimeout&Attribute.1.Value=30",
    ),
    "http": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue",
        b"GET / HTTP/1.1\r\nHost: [::1]:80\r\nOrigin: http://a:80\r\nReferer: http://a/\r\nSec-Fetch-Site: none",
        b"5\r\nhello\r\n0\r\n\r\n",
    ),
}
