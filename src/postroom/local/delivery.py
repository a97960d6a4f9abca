"""What becomes of single messages: received, hidden, given back, deleted, moved to a dead-letter queue."""

from postroom.local.errors import BrokerError, invalid_receipt_handle, invalid_value, missing_parameter
from postroom.local.journal import Journal
from postroom.local.messages import MessageState, Stored
from postroom.local.queue import LocalQueue
from postroom.local.receiving import MAX_IN_FLIGHT, MAX_VISIBILITY, check_visibility
from postroom.local.registry import Registry
from postroom.local.shapes import Receive

_KEPT_BY_REDRIVE = (
    "seq",
    "id",
    "body",
    "md5",
    "sender",
    "attributes",
    "attributes_md5",
    "trace",
    "group",
    "deduplication_id",
    "first_received_at",
    "receives",
)


class Deliverer:
    """Acts on messages; tells the journal. Who waits is the broker's business, no caller is served here."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.journal: Journal = Journal()
        self.reached: list[LocalQueue] = []
        """The queues that got messages from other queues since the broker last looked."""

    def advance(self, queue: LocalQueue, now: float) -> None:
        """Let happen what time alone does to a queue."""
        for message in queue.advance(now):
            self.journal.gone(queue, message)

    def pick(self, queue: LocalQueue, request: Receive, now: float, *, waits: bool) -> list[Stored]:
        """Choose the messages of a receive, count it, and hide them."""
        timeout = queue.settings.visibility if request.visibility_timeout is None else request.visibility_timeout
        attempt = request.receive_request_attempt_id
        if attempt and (again := queue.attempts.replay(attempt, now)):
            # SQS hides the messages again for the whole timeout, and counts no receive.
            for message in again:
                self._hide(queue, message, timeout, now)
            queue.attempts.remember(attempt, again, now)
            return again
        limit = min(request.max_number_of_messages or 1, MAX_IN_FLIGHT - queue.in_flight)
        if limit <= 0:
            # SQS refuses a short poll of a standard queue only; the others get nothing.
            if queue.fifo or waits:
                return []
            raise BrokerError("OverLimit", f"Too many messages in flight: the limit is {MAX_IN_FLIGHT}.", status=403)
        picked = self._take(queue, limit, now)
        for message in picked:
            queue.fly(message, timeout, now)
        for message in picked:
            if timeout == 0:
                queue.give_back(message, now)
            self.journal.changed(queue, message)
        # With a timeout of 0 nothing stays in flight that a retry could get again.
        if timeout and attempt and picked:
            queue.attempts.remember(attempt, picked, now)
        return picked

    def _take(self, queue: LocalQueue, limit: int, now: float) -> list[Stored]:
        """Take up to ``limit`` messages; those received too often go to the dead-letter queue instead."""
        redrive = queue.settings.redrive
        target = self.registry.by_arn(redrive.target_arn) if redrive else None
        if redrive is None or target is None:
            return queue.take(limit, now)
        picked: list[Stored] = []
        # Again for each message that goes to the dead-letter queue: a receive is not shorter for it.
        while len(picked) < limit and (taken := queue.take(limit - len(picked), now)):
            for message in taken:
                if message.receives_here < redrive.max_receives:
                    picked.append(message)
                else:
                    self._redrive(queue, message, target, now)
        return picked

    def _redrive(self, queue: LocalQueue, message: Stored, target: LocalQueue, now: float) -> None:
        """Move a message to the dead-letter queue. On a standard queue it keeps its age, on a FIFO queue not."""
        queue.remove(message, now)
        moved = Stored(
            **{name: getattr(message, name) for name in _KEPT_BY_REDRIVE},
            sent_at=now if queue.fifo else message.sent_at,
            kept_since=now if queue.fifo else message.kept_since,
            source_arn=queue.arn,
        )
        # There first, then gone here: a kill between the two records leaves it in both queues, never in none.
        self.put(target, moved, now)
        self.journal.gone(queue, message)

    def put(self, queue: LocalQueue, message: Stored, now: float) -> None:
        """Store a message that comes from another queue."""
        # What time has done to the target comes first, so that its messages lie in the order in which they were there.
        self.advance(queue, now)
        queue.insert(message, now)
        self.journal.stored(queue, message)
        if queue not in self.reached:
            self.reached.append(queue)

    def delete(self, queue: LocalQueue, handle: str | None, now: float) -> None:
        """Delete the message of a handle. A stale one fails on a FIFO queue.

        On a standard queue it deletes nothing, unless the option ``old_handles_delete`` says otherwise.
        """
        message, is_latest = self._find(queue, handle)
        if message is None:
            return
        if queue.fifo and (not is_latest or message.state is not MessageState.IN_FLIGHT):
            raise invalid_value("ReceiptHandle", handle, "The receipt handle has expired.")
        if is_latest or self.registry.options.old_handles_delete:
            queue.remove(message, now)
            self.journal.gone(queue, message)

    def change(self, queue: LocalQueue, handle: str | None, timeout: int | None, now: float) -> None:
        """Set when the message of a handle becomes visible again.

        A standard queue takes every handle of the message, also that of an earlier receive, and also when the timeout
        is over. A FIFO queue takes the latest one, in time.
        """
        message, is_latest = self._find(queue, handle)
        seconds = check_visibility(timeout)
        if message is None or (queue.fifo and not is_latest):
            reason = "Message does not exist or is not available for visibility timeout change."
            raise invalid_value("ReceiptHandle", handle, reason)
        if message.state is not MessageState.IN_FLIGHT and queue.fifo:
            raise invalid_value("ReceiptHandle", handle, "The receipt handle has expired.")
        # A standard queue takes the handle after a timeout that ran out by itself, not after its receiver gave it back.
        if message.state is not MessageState.IN_FLIGHT and message.given_back:
            raise BrokerError("MessageNotInflight", "The message referred to isn't in flight.")
        # In whole seconds, as SQS counts: 43,200 is accepted within the first second.
        if int(now - message.received_at) + seconds > MAX_VISIBILITY:
            reason = f"Total VisibilityTimeout for the message is beyond the limit [{MAX_VISIBILITY} seconds]"
            raise invalid_value("VisibilityTimeout", seconds, reason)
        if message.state is MessageState.AVAILABLE:
            queue.recall(message, now)
        self._hide(queue, message, seconds, now)

    def _hide(self, queue: LocalQueue, message: Stored, seconds: int, now: float) -> None:
        queue.hide(message, seconds, now)
        if seconds == 0:
            message.given_back = True
            queue.give_back(message, now)
        self.journal.changed(queue, message)

    @staticmethod
    def _find(queue: LocalQueue, handle: str | None) -> tuple[Stored | None, bool]:
        """Return the message of a handle, None if it is gone; and whether the handle is of its latest receive."""
        if not handle:
            raise missing_parameter("ReceiptHandle")
        parts = queue.handles.read(handle)
        if parts is None:
            raise invalid_receipt_handle(handle)
        seq, receives = parts
        message = queue.messages.get(seq)
        return message, message is not None and message.receives == receives
