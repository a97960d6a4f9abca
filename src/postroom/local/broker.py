"""The broker: every SQS action as a synchronous method over plain state. No I/O, no event loop, no threads.

Time comes from the clock that the broker is given; whatever time alone changes (a delay ends, a visibility timeout
ends, a message expires, a move task goes on) happens when the broker is next called. ``Broker.next_event`` says
when that is worth while for a caller that waits.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import TypeVar

from postroom.local.attributes import ALL_NAMES
from postroom.local.contents import md5_of_attributes
from postroom.local.delivery import Deliverer
from postroom.local.errors import BrokerError, missing_parameter
from postroom.local.ids import Ids
from postroom.local.journal import Journal
from postroom.local.messages import Stored
from postroom.local.mover import Mover
from postroom.local.options import BrokerOptions, Scope
from postroom.local.permissions import with_permission, without_permission
from postroom.local.queue import LocalQueue, Waiter
from postroom.local.receiving import (
    check_receive,
    describe,
    sequence_number,
)
from postroom.local.registry import Registry, page
from postroom.local.sending import (
    as_entry_error,
    check_batch,
    check_batch_ids,
    check_batch_size,
    deduplication_key,
    new_message,
)
from postroom.local.shapes import (
    AddPermission,
    BatchResult,
    ChangeVisibilityEntry,
    DeleteEntry,
    EntryDone,
    EntryError,
    MovedCount,
    MoveTask,
    Receive,
    Received,
    Send,
    SendEntry,
    Sent,
    SentBatch,
    SentEntry,
)
from postroom.local.tags import with_tags

_AnyEntry = TypeVar("_AnyEntry", SendEntry, DeleteEntry, ChangeVisibilityEntry)

DEFAULT_SCOPE = Scope()
PURGE_PAUSE = 60.0
"""Seconds after a purge in which SQS refuses another one of the same queue."""


class Broker:
    """SQS as a state machine.

    Every method raises ``BrokerError`` with SQS's own code when SQS would refuse.

    Args:
        clock: returns the time in seconds since the epoch; must not go back.
        options: how it behaves; as SQS by default. Time and persistence are the caller's business, not the engine's.
        rng: where ids come from, for a caller that makes several engines in a row; by default ``options.seed``.
        journal: is told every change before it is answered.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        options: BrokerOptions | None = None,
        *,
        rng: Random | None = None,
        journal: Journal | None = None,
    ) -> None:
        self._clock = clock
        self.options: BrokerOptions = options or BrokerOptions()
        self.ids: Ids = Ids(rng or Random(self.options.seed))  # noqa: S311 - ids, not secrets
        self.registry: Registry = Registry(self.options, self.ids)
        self.delivery: Deliverer = Deliverer(self.registry)
        if journal is not None:
            self.delivery.journal = journal
        self.mover: Mover = Mover(self.delivery, self.ids)
        self.on_waiting: Callable[[LocalQueue], None] | None = None
        """Called after anything that may change when a queue with waiting long polls has its next event."""

    @property
    def journal(self) -> Journal:
        """What is told every change."""
        return self.delivery.journal

    # -- queues --------------------------------------------------------------------------------------------------

    def create_queue(
        self,
        name: str | None,
        attributes: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        *,
        scope: Scope = DEFAULT_SCOPE,
    ) -> LocalQueue:
        """Create a queue; one that exists with the same attributes is returned as it is."""
        new_tags = with_tags({}, tags or {})
        queue, is_new = self.registry.create(name, attributes or {}, scope, self._clock())
        if is_new:
            queue.tags = new_tags
            self.journal.queue(queue)
            self.journal.flush()
        return queue

    def queue(self, url: str | None, scope: Scope = DEFAULT_SCOPE) -> LocalQueue:
        """Return a queue by URL, name or ARN."""
        return self.registry.by_url(url, scope)

    def queue_named(self, name: str | None, scope: Scope = DEFAULT_SCOPE, owner: str | None = None) -> LocalQueue:
        """Return a queue by name, as GetQueueUrl does; ``owner`` names another account."""
        if not name:
            raise missing_parameter("QueueName")
        return self.registry.by_name(name, Scope(owner, scope.region) if owner else scope)

    def list_queues(
        self,
        prefix: str | None = None,
        *,
        max_results: int | None = None,
        token: str | None = None,
        scope: Scope = DEFAULT_SCOPE,
    ) -> tuple[list[LocalQueue], str | None]:
        """Return one page of queues by name, and the token of the next page."""
        return self._page(self.registry.listed(scope, prefix), max_results, token)

    def dead_letter_sources(
        self, queue: LocalQueue, *, max_results: int | None = None, token: str | None = None
    ) -> tuple[list[LocalQueue], str | None]:
        """Return one page of the queues that use this one as their dead-letter queue."""
        return self._page(self.registry.sources(queue), max_results, token)

    @staticmethod
    def _page(queues: list[LocalQueue], size: int | None, token: str | None) -> tuple[list[LocalQueue], str | None]:
        by_name = {queue.name: queue for queue in queues}
        names, following = page(list(by_name), size, token)
        return [by_name[name] for name in names], following

    def delete_queue(self, queue: LocalQueue) -> None:
        """Delete a queue with all its messages. Long polls on it get nothing."""
        self.registry.delete(queue, self._clock())
        queue.deleted = True
        self.journal.queue_gone(queue)
        self.journal.flush()
        # After the queue is gone: a poll that is told may ask again in the same step.
        while (waiter := queue.next_waiter()) is not None:
            waiter.waits = False
            waiter.deliver([])

    def purge_queue(self, queue: LocalQueue) -> None:
        """Delete all messages of a queue. Raises PurgeQueueInProgress within 60 seconds of the last time."""
        now = self._begin(queue)
        if queue.purged_at is not None and now < queue.purged_at + PURGE_PAUSE:
            text = f"Only one PurgeQueue operation on {queue.name} is allowed every 60 seconds."
            raise BrokerError("PurgeQueueInProgress", text, status=403)
        queue.clear(now)
        queue.purged_at = now
        self.journal.purged(queue)
        self._end(queue, now)

    def get_attributes(self, queue: LocalQueue, names: Iterable[str]) -> dict[str, str]:
        """Return the attributes that are asked for; ``All`` for all of them; nothing for nothing."""
        self._begin(queue)
        asked = set(names)
        if unknown := sorted(asked - ALL_NAMES):
            raise BrokerError("InvalidAttributeName", f"Unknown Attribute {unknown[0]}.")
        everything = queue.all_attributes()
        if "All" in asked:
            return everything
        return {name: value for name, value in everything.items() if name in asked}

    def set_attributes(self, queue: LocalQueue, attributes: Mapping[str, str]) -> None:
        """Set attributes of a queue; all or none of them."""
        if not attributes:
            raise missing_parameter("Attributes")
        now = self._begin(queue)
        before = queue.settings.delay
        self.registry.set_attributes(queue, attributes, now)
        self.journal.queue(queue)
        # The new delay has moved the time of these messages, and the log has no record for that alone.
        if queue.fifo and queue.settings.delay != before:
            for message in queue.messages.values():
                if not message.receives_here:
                    self.journal.stored(queue, message)
        self._end(queue, now)

    def tag_queue(self, queue: LocalQueue, tags: Mapping[str, str]) -> None:
        """Add or replace tags."""
        if not tags:
            raise missing_parameter("Tags")
        queue.tags = with_tags(queue.tags, tags)
        self.journal.queue(queue)
        self.journal.flush()

    def untag_queue(self, queue: LocalQueue, keys: Iterable[str]) -> None:
        """Remove tags; one that is not there is no error."""
        gone = set(keys)
        if not gone:
            raise missing_parameter("TagKeys")
        queue.tags = {key: value for key, value in queue.tags.items() if key not in gone}
        self.journal.queue(queue)
        self.journal.flush()

    def add_permission(self, queue: LocalQueue, request: AddPermission) -> None:
        """Add a statement to the queue's policy."""
        self.set_attributes(queue, {"Policy": with_permission(queue, request)})

    def remove_permission(self, queue: LocalQueue, label: str | None) -> None:
        """Remove a statement from the queue's policy."""
        self.set_attributes(queue, {"Policy": without_permission(queue, label)})

    # -- messages ------------------------------------------------------------------------------------------------

    def send(self, queue: LocalQueue, request: Send, sender: str = "anonymous", *, trace: str | None = None) -> Sent:
        """Send one message. ``trace`` is the trace header of the caller, for a message that has none of its own."""
        now = self._begin(queue)
        message, message_id, seq = self._store(queue, request, sender, trace, now)
        self._end(queue, now)
        return Sent(
            message_id=message_id,
            md5_of_body=message.md5,
            md5_of_attributes=message.attributes_md5,
            md5_of_system_attributes=_trace_md5(request),
            sequence_number=sequence_number(seq) if queue.fifo else None,
        )

    def send_batch(
        self, queue: LocalQueue, entries: Sequence[SendEntry], sender: str = "anonymous", *, trace: str | None = None
    ) -> SentBatch:
        """Send up to ten messages; each is accepted or refused on its own.

        On a FIFO queue, one entry without a group or a deduplication id fails the whole request.
        """
        check_batch("SendMessageBatch", entries)
        check_batch_size(entries)
        if queue.fifo:
            check_batch_ids(queue, entries)
        now = self._begin(queue)

        def send(entry: SendEntry) -> SentEntry:
            message, message_id, seq = self._store(queue, entry, sender, trace, now)
            return SentEntry(
                id=entry.id or "",
                message_id=message_id,
                md5_of_body=message.md5,
                md5_of_attributes=message.attributes_md5,
                md5_of_system_attributes=_trace_md5(entry),
                sequence_number=sequence_number(seq) if queue.fifo else None,
            )

        sent: list[SentEntry] = []
        failed = _each(entries, lambda entry: sent.append(send(entry)))
        self._end(queue, now)
        return SentBatch(sent=sent, failed=failed)

    def receive(self, queue: LocalQueue, request: Receive) -> list[Received]:
        """Receive what is there now, without waiting."""
        check_receive(request, fifo=queue.fifo)
        now = self._begin(queue)
        received = self._take(queue, request, now, waits=self.wait_of(queue, request) > 0)
        self._end(queue, now)
        return received

    def wait_of(self, queue: LocalQueue, request: Receive) -> int:
        """Return how many seconds a receive may wait."""
        return queue.settings.wait if request.wait_time_seconds is None else request.wait_time_seconds

    def wait(self, queue: LocalQueue, request: Receive, deliver: Callable[[list[Received]], None]) -> Waiter:
        """Let a long poll wait, after ``receive`` found nothing for it.

        ``deliver`` is called at most once, from within the call that makes a message available, with what the poll
        got. A waiting poll never times out by itself: its caller calls ``cancel``. Of several polls only the
        one that waited longest is served with one message.
        """

        def hand_over(messages: list[Stored]) -> None:
            deliver([describe(queue, message, request) for message in messages])

        waiter = Waiter(request, hand_over)
        queue.waiters.append(waiter)
        if self.on_waiting is not None:
            self.on_waiting(queue)
        return waiter

    def cancel(self, queue: LocalQueue, waiter: Waiter) -> None:
        """End the wait of a long poll. Nothing happens if it was served already."""
        waiter.waits = False
        # Takes it out of the line, if it stands in front.
        queue.next_waiter()

    def next_event(self, queue: LocalQueue) -> float | None:
        """Return when time alone may next make a message of a queue available; None if it does not."""
        times = [time for time in (queue.next_due(), self.mover.next_at()) if time is not None]
        return min(times, default=None)

    def tick(self, queue: LocalQueue) -> None:
        """Let happen what is due, and serve those who wait for it."""
        self._end(queue, self._begin(queue))

    def delete(self, queue: LocalQueue, handle: str | None) -> None:
        """Delete a message by the handle of its latest receive; an older handle deletes nothing."""
        now = self._begin(queue)
        self.delivery.delete(queue, handle, now)
        self._end(queue, now)

    def delete_batch(self, queue: LocalQueue, entries: Sequence[DeleteEntry]) -> BatchResult:
        """Delete up to ten messages; each succeeds or fails on its own."""
        check_batch("DeleteMessageBatch", entries)
        now = self._begin(queue)
        failed = _each(entries, lambda entry: self.delivery.delete(queue, entry.receipt_handle, now))
        self._end(queue, now)
        return BatchResult(done=_done(entries, failed), failed=failed)

    def change_visibility(self, queue: LocalQueue, handle: str | None, timeout: int | None) -> None:
        """Let the visibility timeout of a message in flight end ``timeout`` seconds from now."""
        now = self._begin(queue)
        self.delivery.change(queue, handle, timeout, now)
        self._end(queue, now)

    def change_visibility_batch(self, queue: LocalQueue, entries: Sequence[ChangeVisibilityEntry]) -> BatchResult:
        """Change up to ten visibility timeouts; each succeeds or fails on its own."""
        check_batch("ChangeMessageVisibilityBatch", entries)
        now = self._begin(queue)
        change = self.delivery.change
        failed = _each(entries, lambda entry: change(queue, entry.receipt_handle, entry.visibility_timeout, now))
        self._end(queue, now)
        return BatchResult(done=_done(entries, failed), failed=failed)

    # -- move tasks ----------------------------------------------------------------------------------------------

    def start_move(self, source_arn: str | None, destination_arn: str | None = None, rate: int | None = None) -> str:
        """Start to move messages out of a dead-letter queue; returns the task handle."""
        return self.mover.start(source_arn, destination_arn, rate, self._moved())

    def list_moves(self, source_arn: str | None, max_results: int | None = None) -> list[MoveTask]:
        """Return the latest move tasks of a queue, the newest first."""
        self._moved()
        return self.mover.listed(source_arn, max_results)

    def cancel_move(self, handle: str | None) -> MovedCount:
        """Cancel a running move task; what was moved stays moved."""
        self._moved()
        return self.mover.cancel(handle)

    # -- the inside ----------------------------------------------------------------------------------------------

    def _begin(self, queue: LocalQueue) -> float:
        now = self._moved() if self.mover.active else self._clock()
        self.delivery.advance(queue, now)
        return now

    def _moved(self) -> float:
        """Bring the move tasks to where they should be now, and serve those who wait; return the time."""
        now = self._clock()
        self.mover.step(now)
        self.journal.flush()
        self._serve_reached(now)
        return now

    def _end(self, queue: LocalQueue, now: float) -> None:
        """Keep what was decided, then serve those who wait."""
        self.journal.flush()
        if queue.waiters:
            self._serve(queue, now)
        self._serve_reached(now)

    def _serve_reached(self, now: float) -> None:
        """Serve those who wait for what was moved to other queues."""
        while self.delivery.reached:
            # One at a time: serving a queue may move messages to the dead-letter queue of that one.
            queue = self.delivery.reached.pop()
            if queue.waiters:
                self._serve(queue, now)

    def _serve(self, queue: LocalQueue, now: float) -> None:
        """Hand available messages to waiting polls, the longest waiting first."""
        while queue.available and (waiter := queue.next_waiter()) is not None:
            messages = self.delivery.pick(queue, waiter.request, now, waits=True)
            if not messages:
                break
            # Out of the line, and on disk, before it is told: what it does next may come back here.
            waiter.waits = False
            queue.waiters.popleft()
            self.journal.flush()
            waiter.deliver(messages)
        if queue.waiters and self.on_waiting is not None:
            self.on_waiting(queue)

    def _store(
        self, queue: LocalQueue, request: Send, sender: str, trace: str | None, now: float
    ) -> tuple[Stored, str, int]:
        """Store a message, unless it is a duplicate. Returns it, and the id and sequence to answer with."""
        message = new_message(queue, request, sender=sender, now=now, ids=self.ids)
        message.trace = message.trace or trace
        if queue.fifo:
            key = deduplication_key(queue, message, now)
            known = queue.deduplication.find(key, now)
            if known is not None:
                return message, *known
            queue.deduplication.remember(key, message.id, message.seq, now)
            self.journal.sent_once(queue, key, message)
        self.ids.seq += 1
        queue.insert(message, now)
        self.journal.stored(queue, message)
        return message, message.id, message.seq

    def _take(self, queue: LocalQueue, request: Receive, now: float, *, waits: bool) -> list[Received]:
        if not queue.available and not request.receive_request_attempt_id:
            return []
        return [describe(queue, message, request) for message in self.delivery.pick(queue, request, now, waits=waits)]


def _each(entries: Sequence[_AnyEntry], act: Callable[[_AnyEntry], None]) -> list[EntryError]:
    """Act on each entry of a batch; return the errors of those that were refused."""
    failed: list[EntryError] = []
    for entry in entries:
        try:
            act(entry)
        except BrokerError as error:
            failed.append(as_entry_error(entry.id or "", error))
    return failed


def _done(entries: Sequence[DeleteEntry], failed: list[EntryError]) -> list[EntryDone]:
    refused = {entry.id for entry in failed}
    return [EntryDone(id=entry.id or "") for entry in entries if entry.id not in refused]


def _trace_md5(request: Send) -> str | None:
    return md5_of_attributes(request.message_system_attributes)
