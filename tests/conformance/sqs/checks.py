"""What the checks share: naming their AWS page, reading refusals, receiving, waiting, and the documented digests."""

import hashlib
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from botocore.exceptions import ClientError

MIB = 1_048_576
SETTLE = 5.0
"""Seconds within which an eventually consistent answer must have become consistent."""

PROMPT = 1.0
"""Seconds that "at once" may take: far above a server's own latency, far below any waiting time in these checks."""

UNKNOWN_ACTION = {"InvalidAction", "UnknownOperationException", "NotImplemented"}
"""Codes of a server that does not have the action at all: that is no refusal of what a check asked."""

Attributes = Mapping[str, Mapping[str, Any]]
MakeQueue = Callable[..., str]


def page(slug: str, *, recorded: bool = False, recording: str = "") -> pytest.MarkDecorator:
    """Name the AWS page that a check is written from.

    `recorded` says that the page leaves a detail open (mostly the code of a refusal) and that the check takes it from
    published recordings of what SQS itself answers; `recording` says so and names which.
    """
    return pytest.mark.page(slug, recorded=recorded or bool(recording), recording=recording)


def page_url(slug: str) -> str:
    """Return the address of the page with this name."""
    root = "https://docs.aws.amazon.com/"
    if "/" in slug:
        return f"{root}{slug}.html"
    book = "APIReference" if slug.startswith(("API_", "CommonErrors")) else "SQSDeveloperGuide"
    return f"{root}AWSSimpleQueueService/latest/{book}/{slug}.html"


def unique(label: str = "q") -> str:
    """Return a queue name that no other check uses."""
    return f"pc-{label}-{uuid.uuid4().hex[:12]}"


@dataclass(frozen=True)
class Refusal:
    """Hold how a server refused a request."""

    error: ClientError
    code: str
    status: int
    sender: bool
    message: str


def refused(call: Callable[..., Any], /, **params: Any) -> Refusal:
    """Make the call and return its refusal; fail if it succeeded or if the server blamed itself."""
    with pytest.raises(ClientError) as caught:
        call(**params)
    response: Any = caught.value.response
    detail = response["Error"]
    status = response["ResponseMetadata"]["HTTPStatusCode"]
    assert 400 <= status < 500, f"the server blamed itself: {status} {detail}"
    assert detail.get("Code") not in UNKNOWN_ACTION, f"the server does not know the action: {detail}"
    return Refusal(
        error=caught.value,
        code=detail.get("Code", ""),
        status=status,
        sender=detail.get("Type") == "Sender",
        message=detail.get("Message", ""),
    )


def receive(sqs: Any, url: str, count: int = 10, *, wait: int = 1, **options: Any) -> list[dict[str, Any]]:
    """Receive once, waiting up to `wait` seconds, and return the messages."""
    answer = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=count, WaitTimeSeconds=wait, **options)
    messages: list[dict[str, Any]] = answer.get("Messages", [])
    assert len(messages) <= count
    return messages


def receive_one(sqs: Any, url: str, *, wait: int = 5, **options: Any) -> dict[str, Any]:
    """Receive one message, which must come within `wait` seconds."""
    messages = receive(sqs, url, 1, wait=wait, **options)
    assert len(messages) == 1, "no message came"
    return messages[0]


def nothing(sqs: Any, url: str) -> bool:
    """Tell whether a receive without waiting finds nothing."""
    return not receive(sqs, url, wait=0, VisibilityTimeout=0)


def collect(sqs: Any, url: str, count: int, **options: Any) -> list[dict[str, Any]]:
    """Receive until `count` messages came; fail if they do not come in time."""
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + SETTLE
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} messages came"
        found += receive(sqs, url, **options)
    return found


def bodies(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the bodies of the messages, in their order."""
    return [message["Body"] for message in messages]


def send_all(sqs: Any, url: str, texts: Iterable[str], **options: Any) -> None:
    """Send the bodies in order, ten to a batch, each with the same options."""
    items = list(texts)
    for start in range(0, len(items), 10):
        chunk = items[start : start + 10]
        entries = [{"Id": str(n), "MessageBody": text, **options} for n, text in enumerate(chunk)]
        assert not sqs.send_message_batch(QueueUrl=url, Entries=entries).get("Failed")


def attribute(sqs: Any, url: str, name: str) -> str | None:
    """Return one attribute of the queue, or None when the queue has none of that name."""
    found: dict[str, str] = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=[name]).get("Attributes", {})
    return found.get(name)


def arn(sqs: Any, url: str) -> str:
    """Return the ARN of the queue."""
    found = attribute(sqs, url, "QueueArn")
    assert found is not None
    return found


def eventually(probe: Callable[[], Any], expected: Any, *, within: float = SETTLE) -> None:
    """Ask until the answer is the expected one; fail with the last answer."""
    deadline = time.monotonic() + within
    pause = threading.Event()
    while (answer := probe()) != expected and time.monotonic() < deadline:
        pause.wait(0.05)
    assert answer == expected


@dataclass(frozen=True)
class Woken:
    """Hold what a waiting receive returned, and when."""

    messages: list[dict[str, Any]]
    after_trigger: float
    waited: float


def woken_by(sqs: Any, url: str, trigger: Callable[[], Any], *, delay: float = 0.3, **options: Any) -> Woken:
    """Park a long poll, pull the trigger after `delay` seconds, and tell how the poll ended."""
    fired: list[float] = []

    def fire() -> None:
        trigger()
        fired.append(time.monotonic())

    timer = threading.Timer(delay, fire)
    start = time.monotonic()
    timer.start()
    try:
        messages = receive(sqs, url, wait=10, **options)
    finally:
        end = time.monotonic()
        timer.join()
    return Woken(messages, after_trigger=end - fired[0], waited=end - start)


def md5(text: str) -> str:
    """Return the digest that SQS gives of a body: of its UTF-8 bytes."""
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def md5_of_attributes(attributes: Attributes) -> str:
    """Return the digest of message attributes as the Developer Guide's sqs-message-metadata defines it."""
    digest = hashlib.md5(usedforsecurity=False)
    for name in sorted(attributes):
        value = attributes[name]
        binary = "BinaryValue" in value
        content: bytes = value["BinaryValue"] if binary else value["StringValue"].encode()
        for part in (name.encode(), value["DataType"].encode()):
            digest.update(struct.pack("!I", len(part)) + part)
        digest.update(b"\x02" if binary else b"\x01")
        digest.update(struct.pack("!I", len(content)) + content)
    return digest.hexdigest()


def text(value: str, data_type: str = "String") -> dict[str, Any]:
    """Return a message attribute with a text value."""
    return {"DataType": data_type, "StringValue": value}


def binary(value: bytes, data_type: str = "Binary") -> dict[str, Any]:
    """Return a message attribute with a binary value."""
    return {"DataType": data_type, "BinaryValue": value}
