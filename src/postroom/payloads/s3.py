"""Amazon S3's event notifications: typed, with the object's key as it is and not as it travels.

Formats: https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html and, through
EventBridge, https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html
"""

from collections.abc import Callable
from typing import Final
from urllib.parse import unquote_plus

import msgspec

from postroom.errors import Drop
from postroom.message import Message
from postroom.payloads.envelopes import opened, texts
from postroom.payloads.native import native_decoder
from postroom.payloads.problems import OwnWords

_TEST: Final = "s3:TestEvent"


class S3Bucket(msgspec.Struct, frozen=True):
    """The bucket of an event."""

    name: str
    arn: str | None = None


class S3Object(msgspec.Struct, frozen=True, rename="camel"):
    """The object of an event, as an S3 notification describes it."""

    encoded_key: str = msgspec.field(name="key")
    """The key as it travels: URL-encoded, with a plus for a space."""
    size: int | None = None
    """Bytes; None for an object that was removed."""
    e_tag: str | None = None
    version_id: str | None = None
    sequencer: str | None = None
    """Orders the events of one key: of two, the longer one is later, else the greater one."""

    @property
    def key(self) -> str:
        """The key of the object, decoded: what ``GetObject`` takes."""
        return unquote_plus(self.encoded_key)


class S3Entity(msgspec.Struct, frozen=True):
    """What an event is about."""

    bucket: S3Bucket
    object: S3Object


class S3Record(msgspec.Struct, frozen=True, rename="camel"):
    """One event of a notification."""

    event_name: str
    """Such as ``ObjectCreated:Put``."""
    event_time: str
    aws_region: str
    s3: S3Entity

    @property
    def bucket(self) -> str:
        """The name of the bucket."""
        return self.s3.bucket.name

    @property
    def key(self) -> str:
        """The key of the object, decoded."""
        return self.s3.object.key


class S3Event(msgspec.Struct, frozen=True):
    """A notification of S3, as a payload type: one event or more, or none for ``s3:TestEvent``.

    @uploads.handler
    async def index(event: S3Event, ctx: MessageContext[Tenant, Index]) -> None:
        for record in event.records:
            await ctx.resources.add(record.bucket, record.key)
    """

    records: tuple[S3Record, ...] = msgspec.field(name="Records", default=())
    event: str | None = msgspec.field(name="Event", default=None)

    def __post_init__(self) -> None:
        if not self.records and not self.is_test:
            raise OwnWords("neither Records nor s3:TestEvent")

    @property
    def is_test(self) -> bool:
        """Whether it is what S3 sends once, when notifications are switched on. It has no records."""
        return self.event == _TEST


class S3EventDetail(msgspec.Struct, frozen=True, rename="kebab"):
    """The ``detail`` of an S3 event that comes through EventBridge, as a payload type. Its key is not encoded."""

    bucket: S3Bucket
    object: "S3DetailObject"
    request_id: str | None = None
    reason: str | None = None
    """The operation, such as ``PutObject``."""


class S3DetailObject(msgspec.Struct, frozen=True, rename="kebab"):
    """The object of an event that comes through EventBridge."""

    key: str
    """The key of the object, as it is."""
    size: int | None = None
    etag: str | None = None
    version_id: str | None = None
    sequencer: str | None = None


_decode: Final = native_decoder(S3Event)
_SAID: Final[dict[str, Callable[[S3Record], str]]] = {
    "bucket": lambda record: record.bucket,
    "key": lambda record: record.key,
    "eventName": lambda record: record.event_name,
    "eventTime": lambda record: record.event_time,
    "awsRegion": lambda record: record.aws_region,
}


def unwrap_s3(message: Message, /) -> Message:
    """Read what an S3 notification says, so that its tenant can be told by bucket or key.

    The body stays: ``S3Event`` is the payload type for it. ``bucket``, ``key`` (decoded), ``eventName``,
    ``eventTime`` and ``awsRegion`` become String attributes, each where all records of the notification agree.

    Raises:
        Drop: it is ``s3:TestEvent``, which S3 sends once when notifications are switched on.
        PayloadError: the body is no S3 notification.
    """
    event: S3Event = opened(message, _decode, "an S3 notification")
    if event.is_test:
        raise Drop(f"{_TEST}: S3 notifications were switched on")
    found = {name: {tell(record) for record in event.records} for name, tell in _SAID.items()}
    said = {name: values.pop() for name, values in found.items() if len(values) == 1}
    return msgspec.structs.replace(message, message_attributes=texts(said))
