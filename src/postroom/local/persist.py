"""A log that keeps the broker's state: every change is appended before it is answered.

The file is a sequence of records, each with its length and a check sum; a record that a kill left half-written is the
last one, was never answered, and is dropped. When the log has become much longer than what it keeps, it is rewritten
beside itself and put in its place in one step. Nothing is synced to the disk by default: the log survives the end of
the process, however sudden, not of the machine.
"""

import fcntl
import logging
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec

from postroom.errors import ConfigurationError
from postroom.local.broker import Broker
from postroom.local.journal import Journal
from postroom.local.messages import MessageState, Stored
from postroom.local.moves import Move
from postroom.local.options import Scope
from postroom.local.queue import INSTANT, LocalQueue

_log = logging.getLogger("postroom.local")

_MAGIC = b"postroom-queue-log 1\n"
_FRAME = struct.Struct(">II")
_COMPACT_ABOVE = 8 * 1024 * 1024
_COMPACT_FACTOR = 3


class _QueueRecord(msgspec.Struct, array_like=True, tag="queue"):
    uid: int
    name: str
    account: str
    region: str
    attributes: dict[str, str]
    tags: dict[str, str]
    created_at: float
    modified_at: float
    purged_at: float | None


class _QueueGone(msgspec.Struct, array_like=True, tag="queue-gone"):
    uid: int
    at: float


class _Purged(msgspec.Struct, array_like=True, tag="purged"):
    uid: int
    at: float


class _StoredRecord(msgspec.Struct, array_like=True, tag="stored"):
    uid: int
    message: Stored


class _SentOnce(msgspec.Struct, array_like=True, tag="once"):
    uid: int
    scope: str
    id: str
    message_id: str
    seq: int
    at: float


class _Changed(msgspec.Struct, array_like=True, tag="changed"):
    uid: int
    seq: int
    visible_at: float
    received_at: float
    first_received_at: float
    receives: int
    receives_here: int
    place: int = 0


class _Gone(msgspec.Struct, array_like=True, tag="gone"):
    uid: int
    seq: int


class _MoveRecord(msgspec.Struct, array_like=True, tag="move"):
    move: Move


class _Counter(msgspec.Struct, array_like=True, tag="counter"):
    seq: int


class _Deleted(msgspec.Struct, array_like=True, tag="deleted"):
    account: str
    region: str
    name: str
    at: float


_Record = (
    _QueueRecord
    | _QueueGone
    | _Purged
    | _StoredRecord
    | _SentOnce
    | _Changed
    | _Gone
    | _MoveRecord
    | _Counter
    | _Deleted
)
_decode = msgspec.msgpack.Decoder(_Record).decode
_encode = msgspec.msgpack.Encoder().encode


def _frame(record: msgspec.Struct) -> bytes:
    data = _encode(record)
    return _FRAME.pack(len(data), crc32(data)) + data


def read_records(data: bytes) -> tuple[list[Any], int]:
    """Return the records of a log, and the length of the part that is whole."""
    records: list[Any] = []
    at = len(_MAGIC)
    while at + _FRAME.size <= len(data):
        length, check = _FRAME.unpack_from(data, at)
        end = at + _FRAME.size + length
        part = data[at + _FRAME.size : end]
        # What follows would build on a change that is missing, so nothing behind a damaged record is read. An empty one
        # is none: a machine that crashed may leave zeros at the end.
        if end > len(data) or not part or crc32(part) != check:
            break
        records.append(_decode(part))
        at = end
    return records, at


def _is_damaged(data: bytes, at: int) -> bool:
    """Return whether what follows is more than the beginning of one record, which is all that a kill leaves."""
    return at + _FRAME.size <= len(data) and at + _FRAME.size + _FRAME.unpack_from(data, at)[0] <= len(data)


class _Replay:
    """Builds a broker's state from records. Only what is there at the end enters the queues' structures."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._queues: dict[int, LocalQueue] = {}
        self._messages: dict[int, dict[int, Stored]] = {}
        self.latest = 0.0
        """The latest time that the records tell: the broker's clock must not start before it."""

    def apply(self, records: list[Any]) -> None:
        """Apply records in order."""
        appliers: dict[type, Callable[[Any], None]] = {
            _QueueRecord: self._queue,
            _QueueGone: self._queue_gone,
            _Purged: self._purged,
            _StoredRecord: self._stored,
            _SentOnce: self._sent_once,
            _Changed: self._changed,
            _Gone: self._gone,
            _MoveRecord: lambda record: self._broker.mover.add(record.move),
            _Counter: self._counter,
            _Deleted: self._deleted,
        }
        for record in records:
            appliers[type(record)](record)

    def finish(self, now: float) -> None:
        """Put the messages that are left into their queues."""
        for uid, messages in self._messages.items():
            queue = self._queues[uid]
            for message in sorted(messages.values(), key=lambda each: each.visible_at):  # as they became available
                # Its timeout ended while the broker was closed.
                if message.state is MessageState.IN_FLIGHT and message.visible_at <= now + INSTANT:
                    message.state = MessageState.AVAILABLE
                queue.restore(message, now)

    def _queue(self, record: _QueueRecord) -> None:
        queue = self._queues.get(record.uid)
        if queue is None:
            queue = LocalQueue(
                record.name,
                Scope(record.account, record.region),
                uid=record.uid,
                attributes={},
                now=record.created_at,
                fair=self._broker.options.fair,
            )
            self._queues[record.uid] = queue
            self._messages[record.uid] = {}
            self._broker.registry.add(queue)
        queue.replace_attributes(record.attributes, record.modified_at)
        queue.tags = record.tags
        queue.purged_at = record.purged_at

    def _queue_gone(self, record: _QueueGone) -> None:
        self._broker.registry.delete(self._queues.pop(record.uid), record.at)
        del self._messages[record.uid]

    def _purged(self, record: _Purged) -> None:
        queue = self._queues[record.uid]
        queue.purged_at = record.at
        queue.deduplication.clear()  # as the purge did: an id that was sent again since must not be known twice
        self._messages[record.uid].clear()

    def _stored(self, record: _StoredRecord) -> None:
        self._broker.ids.seq = max(self._broker.ids.seq, record.message.seq)
        self.latest = max(self.latest, record.message.sent_at)
        self._messages[record.uid][record.message.seq] = record.message

    def _sent_once(self, record: _SentOnce) -> None:
        key = (record.scope, record.id)
        deduplication = self._queues[record.uid].deduplication
        deduplication.find(key, record.at)  # forgets what had expired by then, as it was then
        deduplication.remember(key, record.message_id, record.seq, record.at)

    def _changed(self, record: _Changed) -> None:
        self.latest = max(self.latest, record.received_at)
        message = self._messages[record.uid].get(record.seq)
        if message is not None:
            message.state = MessageState.IN_FLIGHT
            message.visible_at = record.visible_at
            message.received_at = record.received_at
            message.first_received_at = record.first_received_at
            message.receives = record.receives
            message.receives_here = record.receives_here
            message.place = record.place

    def _gone(self, record: _Gone) -> None:
        self._messages[record.uid].pop(record.seq, None)

    def _counter(self, record: _Counter) -> None:
        self._broker.ids.seq = max(self._broker.ids.seq, record.seq)

    def _deleted(self, record: _Deleted) -> None:
        self._broker.registry.deleted_at[Scope(record.account, record.region), record.name] = record.at


def _queue_record(queue: LocalQueue) -> _QueueRecord:
    return _QueueRecord(
        uid=queue.uid,
        name=queue.name,
        account=queue.scope.account,
        region=queue.scope.region,
        attributes=queue.attributes,
        tags=queue.tags,
        created_at=queue.created_at,
        modified_at=queue.modified_at,
        purged_at=queue.purged_at,
    )


def _snapshot(broker: Broker) -> Iterator[msgspec.Struct]:
    """Yield records that make the broker's state again."""
    yield _Counter(broker.ids.seq)
    for (scope, name), at in broker.registry.deleted_at.items():
        yield _Deleted(scope.account, scope.region, name, at)
    for queue in broker.registry:
        yield _queue_record(queue)
        for group, each, message_id, seq, at in queue.deduplication.entries():
            yield _SentOnce(queue.uid, group, each, message_id, seq, at)
        for message in queue.messages.values():
            yield _StoredRecord(queue.uid, message)
    for moves in broker.mover.tasks.values():
        for move in moves:
            yield _MoveRecord(move)


class Log(Journal):
    """The journal of one broker in one file.

    Args:
        path: the file; made if it does not exist.
        broker: the broker that it keeps the state of; it gets what the file holds, then is journalled to it.
        now: the time, for what had a deadline while the broker was closed. ``self.now`` is later if the log is: time in
            a broker never goes back, also where it passed faster than outside.

    Raises:
        ConfigurationError: the file is not such a log, or another process uses it.
    """

    def __init__(self, path: Path, broker: Broker, now: float) -> None:
        self._path = path
        self._broker = broker
        self._buffer = bytearray()
        self._file = _open_locked(path)
        try:
            self.now: float = now
            self._size = self._restore()
        except BaseException:
            os.close(self._file)
            raise
        self._compact_at = max(_COMPACT_ABOVE, _COMPACT_FACTOR * self._size)
        broker.delivery.journal = self

    def _restore(self) -> int:
        data = self._path.read_bytes()
        if not data:
            os.write(self._file, _MAGIC)
            return len(_MAGIC)
        if not data.startswith(_MAGIC):
            raise ConfigurationError(f"{self._path} is not a log of this broker: name another file, or remove it")
        try:
            records, whole = read_records(data)
            replay = _Replay(self._broker)
            replay.apply(records)
        except (msgspec.MsgspecError, KeyError) as error:
            raise ConfigurationError(f"{self._path} cannot be read by this version: remove it") from error
        self.now = max(self.now, replay.latest)
        replay.finish(self.now)
        if _is_damaged(data, whole):
            _log.warning("The log %s is damaged: its last %d bytes are dropped", self._path, len(data) - whole)
        if whole < len(data):  # the last write was cut off by a kill: no client was told that it succeeded
            os.ftruncate(self._file, whole)
        return whole

    # -- the journal ---------------------------------------------------------------------------------------------

    def queue(self, queue: LocalQueue) -> None:
        """Note a queue as it is."""
        self._buffer += _frame(_queue_record(queue))

    def queue_gone(self, queue: LocalQueue) -> None:
        """Note that a queue was deleted."""
        self._buffer += _frame(_QueueGone(queue.uid, self._broker.registry.deleted_at[queue.scope, queue.name]))

    def purged(self, queue: LocalQueue) -> None:
        """Note that a queue was purged."""
        self._buffer += _frame(_Purged(queue.uid, queue.purged_at or 0.0))

    def stored(self, queue: LocalQueue, message: Stored) -> None:
        """Note a message that came."""
        self._buffer += _frame(_StoredRecord(queue.uid, message))

    def sent_once(self, queue: LocalQueue, key: tuple[str, str], message: Stored) -> None:
        """Note a deduplication key."""
        self._buffer += _frame(_SentOnce(queue.uid, *key, message.id, message.seq, message.sent_at))

    def changed(self, queue: LocalQueue, message: Stored) -> None:
        """Note a receive, or a changed visibility timeout."""
        record = _Changed(
            uid=queue.uid,
            seq=message.seq,
            visible_at=message.visible_at,
            received_at=message.received_at,
            first_received_at=message.first_received_at,
            receives=message.receives,
            receives_here=message.receives_here,
            place=message.place,
        )
        self._buffer += _frame(record)

    def gone(self, queue: LocalQueue, message: Stored) -> None:
        """Note a message that left."""
        self._buffer += _frame(_Gone(queue.uid, message.seq))

    def move(self, move: Move) -> None:
        """Note a move task."""
        self._buffer += _frame(_MoveRecord(move))

    def flush(self) -> None:
        """Write what was noted. Raises OSError; what could not be written is tried again by the next flush."""
        while self._buffer:
            # A full disk may take a part. The rest stays in front: no other record gets between the halves.
            try:
                written = os.write(self._file, self._buffer)
            except OSError as error:
                error.filename = str(self._path)
                raise
            self._size += written
            del self._buffer[:written]
        if self._size > self._compact_at:
            self._compact_if_possible()

    # -- the file ------------------------------------------------------------------------------------------------

    def _compact_if_possible(self) -> None:
        try:
            self._compact()
        except (OSError, ConfigurationError) as error:
            # What was noted is in the log: a client that was told of a failure would send it again.
            self._compact_at = self._size + _COMPACT_ABOVE
            _log.warning("The log %s could not be shortened, and grows on (%s): is the disk full?", self._path, error)

    def _compact(self) -> None:
        """Write the state as it is beside the log, and put it in the log's place."""
        fresh = self._path.with_name(self._path.name + ".new")
        # Locked before it takes the log's place: at no moment could another process open an unlocked log.
        file = _open_locked(fresh)
        try:
            os.ftruncate(file, 0)
            part = bytearray(_MAGIC)
            size = 0
            for record in _snapshot(self._broker):
                part += _frame(record)
                if len(part) > 1_000_000:
                    size += _write_all(file, part)
                    part.clear()
            size += _write_all(file, part)
            # A rename may reach the disk before the data: after a power failure the log would be an empty file.
            os.fsync(file)
            fresh.replace(self._path)
        # The log is as it was. What lies beside it would take the last room of a full disk.
        except BaseException:
            os.close(file)
            with suppress(OSError):
                fresh.unlink()
            raise
        os.close(self._file)
        self._file = file
        self._size = size
        self._compact_at = max(_COMPACT_ABOVE, _COMPACT_FACTOR * size)

    def close(self) -> None:
        """Write what is left, and let the file go."""
        try:
            self.flush()
        finally:
            os.close(self._file)


def _write_all(file: int, data: bytearray) -> int:
    view = memoryview(data)
    at = 0
    while at < len(data):
        at += os.write(file, view[at:])
    view.release()
    return at


def _open_locked(path: Path) -> int:
    """Open a file to append to, for this process alone."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        raise ConfigurationError(f"{path} is in use by another broker: name another file, or stop that one") from error
    return file
