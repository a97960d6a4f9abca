"""Runs message move tasks: takes messages out of a dead-letter queue, as fast as the task says.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-configure-dead-letter-queue-redrive.html
"""

from collections import deque

from postroom.local.delivery import Deliverer
from postroom.local.errors import BrokerError, invalid_parameter, invalid_value, missing_parameter
from postroom.local.ids import Ids
from postroom.local.messages import Stored
from postroom.local.moves import Move, source_of
from postroom.local.queue import LocalQueue
from postroom.local.shapes import MovedCount, MoveTask

MAX_RATE = 500
KEPT = 10
"""Tasks that are remembered per source queue."""
_QUEUE_GONE = "AWS.SimpleQueueService.NonExistentQueue"


class Mover:
    """The move tasks of a broker. The broker calls ``step`` before it asks anything, and serves who waits."""

    def __init__(self, delivery: Deliverer, ids: Ids) -> None:
        self._delivery = delivery
        self._registry = delivery.registry
        self._ids = ids
        self.tasks: dict[str, deque[Move]] = {}
        self.active: list[Move] = []

    def start(self, source_arn: str | None, destination_arn: str | None, rate: int | None, now: float) -> str:
        """Start a task and return its handle."""
        source = self._resource("SourceArn", source_arn)
        if not self._registry.sources(source):
            raise invalid_parameter("Source queue must be configured as a Dead Letter Queue.")
        if destination_arn is not None:
            destination = self._resource("DestinationArn", destination_arn)
            if destination is source or destination.fifo != source.fifo:
                reason = "The destination must be another queue of the same type."
                raise invalid_value("DestinationArn", destination_arn, reason)
        if rate is not None and not 1 <= rate <= MAX_RATE:
            raise invalid_value("MaxNumberOfMessagesPerSecond", rate, f"Must be between 1 and {MAX_RATE}.")
        if any(move.source_arn == source.arn for move in self.active):
            text = (
                "There is already a task running. "
                "Only one active task is allowed for a source queue arn at a given time."
            )
            raise invalid_parameter(text)
        self._delivery.advance(source, now)
        move = Move(self._ids.unique(), source.arn, destination_arn, rate, now, source.available)
        self.add(move)
        self._delivery.journal.move(move)
        self._delivery.journal.flush()
        return move.handle

    def add(self, move: Move) -> None:
        """Enter a task, in the place of one with the same id."""
        tasks = self.tasks.setdefault(move.source_arn, deque(maxlen=KEPT))
        for known in [known for known in tasks if known.id == move.id]:
            tasks.remove(known)
        tasks.append(move)
        self.active = [move for tasks in self.tasks.values() for move in tasks if move.running]

    def listed(self, source_arn: str | None, max_results: int | None) -> list[MoveTask]:
        """Return the latest tasks of a queue, the newest first; one unless ``max_results`` says more."""
        source = self._resource("SourceArn", source_arn)
        if max_results is not None and not 1 <= max_results <= KEPT:
            raise invalid_value("MaxResults", max_results, f"Must be between 1 and {KEPT}.")
        newest = list(reversed(self.tasks.get(source.arn, ())))
        return [move.shape() for move in newest[: max_results or 1]]

    def cancel(self, handle: str | None) -> MovedCount:
        """Cancel a running task."""
        if not handle:
            raise missing_parameter("TaskHandle")
        source_arn = source_of(handle)
        if source_arn is None:
            raise invalid_parameter("Value for parameter TaskHandle is invalid.")
        self._resource("SourceArn", source_arn)
        for move in [move for tasks in self.tasks.values() for move in tasks if move.handle == handle]:
            if not move.running:
                raise BrokerError("UnsupportedOperation", "Only active tasks can be cancelled.")
            self._finish(move, "CANCELLED")
            self.active.remove(move)
            self._delivery.journal.flush()
            return MovedCount(approximate_number_of_messages_moved=move.moved)
        raise BrokerError("ResourceNotFoundException", "Task does not exist.", status=404)

    def next_at(self) -> float | None:
        """Return when the next message should move; None without a running task."""
        return min((move.next_at() for move in self.active), default=None)

    def step(self, now: float) -> None:
        """Bring every running task to where it should be now."""
        for move in self.active:
            self._step(move, now)
        self.active = [move for move in self.active if move.running]

    def _step(self, move: Move, now: float) -> None:
        """Move what is due of one task."""
        source = self._registry.by_arn(move.source_arn)
        if source is None:
            self._finish(move, "FAILED", _QUEUE_GONE)
            return
        if move.destination_arn and self._registry.by_arn(move.destination_arn) is None:
            self._finish(move, "FAILED", _QUEUE_GONE)
            return
        due = move.due(now)
        taken = source.take(due, now) if due > 0 else []
        for message in taken:
            target = self._target(move, message)
            # The task ended at this message, or at one before it: what was taken goes back to its place.
            if target is None or not move.running:
                source.land(message, now)
                continue
            self._hand_over(source, message, target, now)
            move.moved += 1
        # Nothing was available: what is in flight now was not there to be moved when the task began.
        if move.running and (move.moved >= move.to_move or (due > 0 and not taken)):
            self._finish(move, "COMPLETED")
        elif taken:
            self._delivery.journal.move(move)

    def _target(self, move: Move, message: Stored) -> LocalQueue | None:
        """Return the queue that a message goes to; None ends the task with the reason."""
        arn = move.destination_arn or message.source_arn
        target = self._registry.by_arn(arn) if arn else None
        if target is None and move.running:
            self._finish(move, "FAILED", _QUEUE_GONE if arn else "CouldNotDetermineMessageSource")
        return target

    def _hand_over(self, source: LocalQueue, message: Stored, target: LocalQueue, now: float) -> None:
        """Move one message. To SQS it is a new one, with an id, an age and receive counts of its own."""
        source.remove(message, now)
        self._ids.seq += 1
        new = Stored(
            seq=self._ids.seq,
            id=self._ids.unique(),
            body=message.body,
            md5=message.md5,
            sender=message.sender,
            sent_at=now,
            kept_since=now,
            attributes=message.attributes,
            attributes_md5=message.attributes_md5,
            trace=message.trace,
            group=message.group,
            deduplication_id=message.deduplication_id,
        )
        # There first, then gone here, as in a redrive.
        self._delivery.put(target, new, now)
        self._delivery.journal.gone(source, message)

    def _finish(self, move: Move, status: str, failure: str | None = None) -> None:
        move.status = status
        move.failure = failure
        self._delivery.journal.move(move)

    def _resource(self, name: str, arn: str | None) -> LocalQueue:
        if not arn:
            raise missing_parameter(name)
        queue = self._registry.by_arn(arn)
        if queue is None:
            raise _not_found(name)
        return queue


def _not_found(name: str) -> BrokerError:
    text = f"The resource that you specified for the {name} parameter doesn't exist."
    return BrokerError("ResourceNotFoundException", text, status=404)
