"""A message as a queue stores it, and its receipt handles."""

import struct
from base64 import b64decode, b64encode
from enum import IntEnum
from zlib import crc32

import msgspec

from postroom.local.shapes import AttributeValue


class MessageState(IntEnum):
    """Where a stored message is. Every message is in exactly one of these."""

    DELAYED = 0
    """Sent with a delay that is not over."""
    AVAILABLE = 1
    """A receive may return it."""
    IN_FLIGHT = 2
    """Received, not deleted, its visibility timeout not over."""
    GONE = 3
    """Deleted, expired, purged or moved to another queue: what still points to it skips it."""


class Stored(msgspec.Struct, array_like=True, gc=False):
    """One message in one queue. Times are seconds of the broker's clock."""

    seq: int
    """Unique in the broker, growing with every send: the order of FIFO queues."""
    id: str
    body: str
    md5: str
    sender: str
    sent_at: float
    kept_since: float
    """From when the retention period counts."""
    attributes: dict[str, AttributeValue] = {}
    attributes_md5: str | None = None
    trace: str | None = None
    group: str | None = None
    deduplication_id: str | None = None
    source_arn: str | None = None
    """The queue from which a redrive policy moved it here."""
    state: MessageState = MessageState.AVAILABLE
    visible_at: float = 0.0
    """When a delay or a visibility timeout is over."""
    received_at: float = 0.0
    """The latest receive."""
    first_received_at: float = 0.0
    receives: int = 0
    """Over all queues, as ApproximateReceiveCount tells it."""
    receives_here: int = 0
    """In this queue, as its redrive policy counts."""
    given_back: bool = False
    """Its latest receive ended by a visibility timeout of 0, not by time."""
    order: int = 0
    """Which of its entries in the order of a standard queue counts; the others are stale."""
    due: int = 0
    """Which of its entries among the queue's deadlines counts; the others are stale."""
    place: int = 0
    """Its place in the order of a standard queue, which it keeps when its visibility timeout ends by itself."""


_LAYOUT = struct.Struct(">QQI")
_PREFIX = "AQEB"
_CHECKED = struct.Struct(">I")


class Handles:
    """Makes and reads the receipt handles of one queue.

    A handle says which queue, which message and which receive of it, with a check sum: so a handle that was never
    one, a handle of another queue and a stale one can be told apart without remembering any. Its alphabet is that of
    SQS, with ``+`` and ``/``: clients that put something before a handle split at ``-``.
    """

    __slots__ = ("_uid",)

    def __init__(self, uid: int) -> None:
        self._uid = uid

    def make(self, message: Stored) -> str:
        """Return the handle of the latest receive of a message."""
        raw = _LAYOUT.pack(self._uid, message.seq, message.receives & 0xFFFFFFFF)
        return _PREFIX + b64encode(raw + _CHECKED.pack(crc32(raw))).decode("ascii")

    def read(self, handle: str) -> tuple[int, int] | None:
        """Return the sequence and the receive that a handle stands for; None if it is not one of this queue."""
        if len(handle) != 36 or not handle.startswith(_PREFIX):
            return None
        try:
            raw = b64decode(handle[4:], validate=True)
            uid, seq, receives = _LAYOUT.unpack_from(raw)
            (check,) = _CHECKED.unpack_from(raw, _LAYOUT.size)
        except (ValueError, struct.error):  # not base64, not ASCII, too short
            return None
        if uid != self._uid or check != crc32(raw[: _LAYOUT.size]):
            return None
        return seq, receives
