"""Large bodies travel through S3, to and from the real ``amazon-sqs-extended-client``."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import boto3
import msgspec
import pytest
import sqs_extended_client  # noqa: F401 - it changes boto3's clients
from aiobotocore.session import AioSession

from postroom import (
    AccessDenied,
    AckMode,
    AwsClient,
    ConfigurationError,
    Consumer,
    DecodeError,
    InvalidRequest,
    Message,
    MessageAttribute,
    MessageContext,
    NotOpenError,
    OutgoingMessage,
    Retry,
    ServiceUnavailable,
    Settlement,
    Shutdown,
    TransportError,
)
from postroom.integrations.claim_check import ClaimCheck
from postroom.local.threaded import ThreadedServer
from postroom.payloads import KeyRing, SnsEnvelope, sign, signed
from postroom.testing import deliver
from support.envelopes import sns
from support.shop import Tenant

BUCKET = "amzn-s3-demo-bucket"
LARGE = "ü" * 200_000
TEN = {f"a{number}": MessageAttribute(string_value="x") for number in range(10)}
LEGACY = "com.amazon.sqs.javamessaging.MessageS3Pointer"
Ctx = MessageContext[Any, Any]


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """A server that behaves as S3, in a process of its own: moto changes botocore where it is imported."""
    program = (
        "from moto.server import ThreadedMotoServer\n"
        "server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)\n"
        "server.start()\n"
        "print(server.get_host_and_port()[1], flush=True)\n"
        "input()\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        yield f"http://127.0.0.1:{port}"
        server.terminate()


@pytest.fixture
def endpoint(moto: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Credentials for it, and an empty bucket."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3 = s3_of(moto)
    s3.create_bucket(Bucket=BUCKET)
    for key in keys_of(moto):
        s3.delete_object(Bucket=BUCKET, Key=key)
    return moto


@cache
def session() -> AioSession:
    """Return one session: its second client is made in a tenth of the time."""
    return AioSession()


@cache
def s3_of(endpoint: str) -> Any:
    """Return boto3's client."""
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")


def keys_of(endpoint: str) -> list[str]:
    """Return the keys in the bucket."""
    return [each["Key"] for each in s3_of(endpoint).list_objects_v2(Bucket=BUCKET).get("Contents", [])]


def store(endpoint: str, body: bytes, key: str = "k") -> str:
    """Store a body, and return the pointer to it."""
    s3_of(endpoint).put_object(Bucket=BUCKET, Key=key, Body=body)
    return pointer(key)


def pointer(key: str, bucket: str = BUCKET, kind: str = LEGACY) -> str:
    """Return a pointer as the legacy clients write it."""
    return msgspec.json.encode([kind, {"s3BucketName": bucket, "s3Key": key}]).decode()


def extended(endpoint: str, server: ThreadedServer, *, legacy: bool = False) -> Any:
    """Return boto3's client for SQS with the extension of AWS."""
    sqs: Any = boto3.client("sqs", **server.client_options)
    sqs.s3_client = s3_of(endpoint)
    sqs.large_payload_support = BUCKET
    sqs.use_legacy_attribute = legacy
    return sqs


class Handled:
    """A consumer that collects what its handler is given, until it has enough."""

    def __init__(self, server: ThreadedServer, unwrap: Any, **options: Any) -> None:
        self.bodies: list[str] = []
        self.done = asyncio.Event()
        self.consumer: Consumer[Any, Any] = Consumer(
            "orders",
            **{
                "context": Tenant,
                "unwrap": unwrap,
                "client": AwsClient(endpoint_url=server.endpoint_url, region="us-east-1", session=session()),
                "shutdown": Shutdown(poll=0),
                **options,
            },
        )

        @self.consumer.handler
        async def handle(body: str, ctx: Ctx) -> None:
            self.bodies.append(body)
            self.done.set()

    async def one(self) -> str:
        """Consume one message."""
        async with self.consumer, asyncio.timeout(20):
            await self.done.wait()
        return self.bodies[0]


@pytest.mark.parametrize("legacy", [False, True])
async def test_what_the_extended_client_sends_is_handled(
    endpoint: str, sqs_server: ThreadedServer, *, legacy: bool
) -> None:
    """Both pointer classes and both attributes; the object stays where deletion is not asked for."""
    url = sqs_server.create_queue("orders")
    attributes = {"tenant_id": {"DataType": "String", "StringValue": "acme"}}
    sqs = extended(endpoint, sqs_server, legacy=legacy)
    await asyncio.to_thread(sqs.send_message, QueueUrl=url, MessageBody=LARGE, MessageAttributes=attributes)
    assert (
        await Handled(sqs_server, ClaimCheck(buckets=[BUCKET], endpoint_url=endpoint, session=session())).one() == LARGE
    )
    assert sqs_server.counts("orders") == (0, 0, 0)
    assert len(keys_of(endpoint)) == 1


async def test_what_is_sent_here_is_received_and_deleted_by_the_extended_client(
    endpoint: str, sqs_server: ThreadedServer
) -> None:
    """Its body, its size, and the object itself."""
    url = sqs_server.create_queue("orders")
    client = AwsClient(endpoint_url=sqs_server.endpoint_url, region="us-east-1", session=session())
    claim = ClaimCheck(BUCKET, prefix="orders/", endpoint_url=endpoint, session=session())
    async with client, claim:
        queue = await client.queue("orders")
        await queue.send([await claim.offload(OutgoingMessage(body=LARGE))])
    [key] = keys_of(endpoint)
    assert key.startswith("orders/")
    sqs = extended(endpoint, sqs_server)
    sqs.delete_payload_from_s3 = True

    def receive() -> str:
        answer = sqs.receive_message(QueueUrl=url, MessageAttributeNames=["All"], WaitTimeSeconds=5)
        [message] = answer["Messages"]
        sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return str(message["Body"])

    assert await asyncio.to_thread(receive) == LARGE
    assert sqs_server.counts("orders") == (0, 0, 0)
    assert keys_of(endpoint) == []


async def test_a_body_is_deleted_after_its_message_and_only_then(endpoint: str) -> None:
    """A failed message keeps its body, an acknowledged one does not; two consumers share one claim check."""
    claim = ClaimCheck(BUCKET, endpoint_url=endpoint, session=session(), delete=True, always=True)
    fails = [True]
    consumer: Consumer[Any, Any] = Consumer("orders", unwrap=claim)

    @consumer.handler
    async def handle(body: str, ctx: Ctx) -> None:
        if fails:
            raise RuntimeError("not yet")

    async with claim:
        sent = await claim.offload(OutgoingMessage(body="small"))
        assert (await deliver(consumer, sent)).settlement is Settlement.RETRIED
        assert len(keys_of(endpoint)) == 1
        fails.clear()
        assert (await deliver(consumer, sent)).settlement is Settlement.ACKED
    assert keys_of(endpoint) == []


async def test_a_body_that_is_not_deleted_is_logged(
    endpoint: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is handled all the same."""
    claim = ClaimCheck(BUCKET, endpoint_url=endpoint, session=session(), delete=True)
    consumer: Consumer[Any, Any] = Consumer("orders", unwrap=claim)
    consumer.handler(_does_nothing)
    async with claim:

        async def refuse(**_: object) -> None:
            raise OSError("network")

        monkeypatch.setattr(claim._s3.opened(), "delete_object", refuse)
        assert (await deliver(consumer, store(endpoint, b"x"))).settlement is Settlement.ACKED
        while claim._deleting:
            await asyncio.wait(claim._deleting)
    assert "The body k of a deleted message stays in bucket amzn-s3-demo-bucket: OSError" in caplog.text


async def _does_nothing(body: str, ctx: Ctx) -> None: ...


async def fetched(claim: ClaimCheck, body: str, **attributes: str) -> str:
    """Fetch the body of a message."""
    made = {name: MessageAttribute(string_value=value) for name, value in attributes.items()}
    return (await claim(Message(id="m-1", body=body, message_attributes=made))).body


async def test_messages_without_a_pointer_pass(endpoint: str) -> None:
    """Nothing is asked of S3, which need not even be open."""
    claim = ClaimCheck(BUCKET)
    plain = Message(id="m-1", body='["x", {}]')
    assert await claim(plain) is plain
    small = OutgoingMessage(body="x" * 1000)
    assert await claim.offload(small) is small


async def test_a_pointer_inside_of_an_sns_notification_is_followed(endpoint: str) -> None:
    """As the extended client for SNS sends it."""
    consumer: Consumer[Any, Any] = Consumer(
        "orders", context=Tenant, unwrap=[SnsEnvelope(), ClaimCheck(BUCKET, endpoint_url=endpoint, session=session())]
    )
    seen: list[str] = []

    @consumer.handler
    async def handle(body: str, ctx: Ctx) -> None:
        seen.append(body)

    notification = sns(store(endpoint, b"from S3"), tenantId="acme", ExtendedPayloadSize="7")
    assert (await deliver(consumer, notification)).context == Tenant("acme")
    assert seen == ["from S3"]


async def test_what_cannot_be_followed_is_a_decode_error(endpoint: str) -> None:
    """Each says why, and quotes nothing of the message."""
    sealed = "k.sha256-" + "0" * 64
    cases: list[tuple[str, str]] = [
        (pointer("k", bucket="attacker-bucket"), r"a bucket that ClaimCheck\(buckets=...\) does not"),
        (pointer("no-such-key"), "the body is gone from S3"),
        (store(endpoint, b"\xff\xfe", "binary"), r"no UTF-8 text \(byte 0\)"),
        (store(endpoint, b"x" * 101, "large"), r"has 101 bytes, more than ClaimCheck\(most=100\)"),
        (store(endpoint, b"other", sealed), "not the one that was sent"),
        ("not a pointer", "it is none"),
        ('["x", {"s3BucketName": "b", "s3Key": "k"}]', "it is none"),
    ]
    async with ClaimCheck(BUCKET, endpoint_url=endpoint, session=session(), most=100) as claim:
        for body, text in cases:
            with pytest.raises(DecodeError, match=text) as caught:
                await fetched(claim, body, SQSLargePayloadSize="7")
            assert "attacker" not in str(caught.value)
            assert caught.value.message_id == "m-1"


async def test_while_s3_is_away_messages_are_retried_and_the_log_stays_short(
    endpoint: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line for all of them; nothing is blamed on the message."""
    monkeypatch.setattr("postroom.integrations.claim_check._PATIENCE", 0.0)
    consumer: Consumer[Any, Any] = Consumer(
        "orders",
        unwrap=ClaimCheck(BUCKET, endpoint_url="http://127.0.0.1:1", session=session(), timeout=0.5),
        ack=AckMode.ALWAYS,
    )
    consumer.handler(_does_nothing)
    for _ in range(2):
        found = await deliver(consumer, pointer("k"))
        assert (found.settlement, found.handled) == (Settlement.RETRIED, False)
        assert found.delay is not None
        assert 45 <= found.delay <= 60
    lines = [record.getMessage() for record in caplog.records if record.name == "postroom.claim_check"]
    assert len(lines) == 1
    assert lines[0].endswith("such messages wait, and are retried")


async def test_a_refusal_of_s3_is_no_fault_of_the_message(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A missing permission is mended, and then the messages are handled. Sending says it at once."""
    from botocore.exceptions import ClientError

    async def refuse(**_: object) -> None:
        said = "User: u is not authorized to perform: kms:Decrypt on resource: key"
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": said}}, "GetObject")

    async with ClaimCheck(BUCKET, endpoint_url=endpoint, session=session()) as claim:
        monkeypatch.setattr(claim._s3.opened(), "get_object", refuse)
        monkeypatch.setattr(claim._s3.opened(), "put_object", refuse)
        with pytest.raises(Retry, match="AccessDenied"):
            await fetched(claim, pointer("k"))
        with pytest.raises(AccessDenied, match=r"kms:Decrypt.*the message was not sent"):
            await claim.offload(OutgoingMessage(body=LARGE))
    assert "not authorized to perform: kms:Decrypt on resource: key); such messages wait" in caplog.text


@pytest.mark.parametrize(
    ("options", "message", "error", "text"),
    [
        ({"bucket": None, "buckets": [BUCKET]}, {}, ConfigurationError, "must name the bucket that large bodies"),
        ({"bucket": "no-such-bucket-here"}, {}, TransportError, r"bucket no-such-bucket-here \(NoSuchBucket: An error"),
        ({"endpoint_url": "http://127.0.0.1:1", "timeout": 0.5}, {}, ServiceUnavailable, "was not sent"),
        ({}, {"body": LARGE + "\ud800"}, InvalidRequest, "lone surrogates"),
        (
            {},
            {"message_attributes": {f"a{n}": MessageAttribute(string_value="x") for n in range(10)}},
            InvalidRequest,
            "10",
        ),
    ],
)
async def test_what_cannot_be_stored_is_not_sent(
    endpoint: str, options: dict[str, Any], message: dict[str, Any], error: type[Exception], text: str
) -> None:
    """The sender hears of it."""
    arguments = {"bucket": BUCKET, "endpoint_url": endpoint, "session": session(), **options}
    async with ClaimCheck(**arguments) as claim:
        with pytest.raises(error, match=text):
            await claim.offload(OutgoingMessage(**{"body": LARGE, **message}))


async def test_the_threshold_counts_attributes_and_bytes(endpoint: str) -> None:
    """A body of two-byte characters, and what stands beside it."""
    attribute = {"a": MessageAttribute(string_value="b")}  # 1 + 6 ("String") + 1 bytes
    async with ClaimCheck(BUCKET, endpoint_url=endpoint, session=session(), threshold=28) as claim:
        fits = OutgoingMessage(body="ü" * 10, message_attributes=attribute)
        assert await claim.offload(fits) is fits
        over = await claim.offload(OutgoingMessage(body="ü" * 10 + "x", message_attributes=attribute))
    assert over.message_attributes["ExtendedPayloadSize"] == MessageAttribute("Number", "21")
    assert over.body.startswith('["software.amazon.payloadoffloading.PayloadS3Pointer"')


async def test_a_signature_over_the_pointer_covers_the_body(endpoint: str) -> None:
    """Another body at the same key is refused."""
    keys = KeyRing({"k": b"2" * 32})
    claim = ClaimCheck(BUCKET, endpoint_url=endpoint, session=session(), always=True)
    consumer: Consumer[Any, Any] = Consumer(
        "orders", context=signed(_tenant, keys=keys, queue="orders", attributes=["tenant_id"]), unwrap=claim
    )
    consumer.handler(_does_nothing)
    async with claim:
        attributes = {"tenant_id": MessageAttribute(string_value="acme")}
        stored = await claim.offload(OutgoingMessage(body="pay 1", message_attributes=attributes))
        message = sign(stored, keys=keys, queue="orders", attributes=["tenant_id"])
        assert (await deliver(consumer, message)).context == "acme"
        [key] = keys_of(endpoint)
        store(endpoint, b"pay 100", key)
        assert isinstance((await deliver(consumer, message)).error, DecodeError)


def _tenant(message: Message) -> str:
    return message.attributes["tenant_id"]


async def test_it_must_be_open() -> None:
    """The text shows the line to write."""
    with pytest.raises(NotOpenError, match="async with claim_check"):
        await ClaimCheck(BUCKET).offload(OutgoingMessage(body=LARGE))
    assert not issubclass(NotOpenError, TransportError)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "must name the buckets"),
        ({"bucket": "Not A Bucket"}, "'Not A Bucket' is no name of a bucket"),
        ({"buckets": BUCKET}, r"write buckets=\['amzn-s3-demo-bucket'\]"),
        ({"bucket": BUCKET, "threshold": 2_000_000}, "SQS takes 1 MiB"),
        ({"bucket": BUCKET, "most": 0}, r"ClaimCheck\(most=...\) takes a whole number"),
        ({"bucket": BUCKET, "timeout": 0}, r"ClaimCheck\(timeout=...\) takes seconds"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], text: str) -> None:
    """With what to write instead."""
    with pytest.raises(ConfigurationError, match=text):
        ClaimCheck(**arguments)


def test_its_repr_says_which_buckets(caplog: pytest.LogCaptureFixture) -> None:
    """And nothing else."""
    assert repr(ClaimCheck(BUCKET)) == f"ClaimCheck('{BUCKET}', buckets=['{BUCKET}'])"
    assert caplog.get_records("call") == []
    assert logging.getLogger("postroom.claim_check").name
