"""Runs message move tasks: takes messages out of a dead-letter queue, as fast as the task says.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-configure-dead-letter-queue-redrive.html
"""

from collections import deque
from typing import TYPE_CHECKING

from postroom.local.errors import BrokerError, invalid_parameter, invalid_value, missing_parameter
from postroom.local.messages import Stored
from postroom.local.moves import Move
from postroom.local.queue import LocalQueue
from postroom.local.sending import new_id
from postroom.local.shapes import MovedCount, MoveTask

if TYPE_CHECKING:
    from postroom.local.broker import Broker

MAX_RATE = 500
KEPT = 10
"""Tasks that are remembered per source queue."""


class Mover:
    """The move tasks of a broker."""

    def __init__(self, broker: "Broker") -> None:
        self._broker = broker
        self.tasks: dict[str, deque[Move]] = {}
        self.active: list[Move] = []

    def start(self, source_arn: str | None, destination_arn: str | None, rate: int | None, now: float) -> str:
        """Start a task and return its handle."""
        source = self._resource("SourceArn", source_arn)
        if not self._broker.registry.sources(source):
            raise invalid_parameter("Source queue must be configured as a Dead Letter Queue.")
        if destination_arn is not None:
            destination = self._resource("DestinationArn", destination_arn)
            if destination is source or destination.fifo != source.fifo:
                reason = "The destination must be another queue of the same type."
                raise invalid_value("DestinationArn", destination_arn, reason)
        if rate is not None and not 1 <= rate <= MAX_RATE:
            raise invalid_value("MaxNumberOfMessagesPerSecond", rate, f"Must be between 1 and {MAX_RATE}.")
        self.step(now)
        if any(move.source_arn == source.arn for move in self.active):
            text = (
                "There is already a task running. "
                "Only one active task is allowed for a source queue arn at a given time."
            )
            raise invalid_parameter(text)
        self._broker.delivery.advance(source, now)
        move = Move(new_id(self._broker.rng), source.arn, destination_arn, rate, now, source.available)
        self.add(move)
        self._broker.journal.move(move)
        self._broker.journal.flush()
        return move.handle

    def add(self, move: Move) -> None:
        """Enter a task, in the place of one with the same id."""
        tasks = self.tasks.setdefault(move.source_arn, deque(maxlen=KEPT))
        for known in [known for known in tasks if known.id == move.id]:
            tasks.remove(known)
        tasks.append(move)
        self.active = [move for tasks in self.tasks.values() for move in tasks if move.running]

    def listed(self, source_arn: str | None, max_results: int | None, now: float) -> list[MoveTask]:
        """Return the latest tasks of a queue, the newest first; one unless ``max_results`` says more."""
        source = self._resource("SourceArn", source_arn)
        if max_results is not None and not 1 <= max_results <= KEPT:
            raise invalid_value("MaxResults", max_results, f"Must be between 1 and {KEPT}.")
        self.step(now)
        newest = list(reversed(self.tasks.get(source.arn, ())))
        return [move.shape() for move in newest[: max_results or 1]]

    def cancel(self, handle: str | None, now: float) -> MovedCount:
        """Cancel a running task."""
        if not handle:
            raise missing_parameter("TaskHandle")
        self.step(now)
        for move in [move for tasks in self.tasks.values() for move in tasks if move.handle == handle]:
            if not move.running:
                raise BrokerError("UnsupportedOperation", "Only active tasks can be cancelled.")
            self._finish(move, "CANCELLED")
            self.active.remove(move)
            self._broker.journal.flush()
            return MovedCount(approximate_number_of_messages_moved=move.moved)
        raise _not_found("TaskHandle")

    def next_at(self) -> float | None:
        """Return when the next message should move; None without a running task."""
        return min((move.next_at() for move in self.active), default=None)

    def step(self, now: float) -> None:
        """Bring every running task to where it should be now."""
        for move in self.active:
            self._step(move, now)
        self.active = [move for move in self.active if move.running]
        self._broker.journal.flush()
        self._broker.serve_reached(now)

    def _step(self, move: Move, now: float) -> None:
        """Move what is due of one task."""
        source = self._broker.registry.by_arn(move.source_arn)
        if source is None:
            self._finish(move, "FAILED", "AWS.SimpleQueueService.NonExistentQueue")
            return
        due = move.due(now)
        taken = source.take(due, now) if due > 0 else []
        for message in taken:
            target = self._broker.registry.by_arn(move.destination_arn or message.source_arn or "")
            if target is None or not move.running:
                source.land(message, now)
                self._finish(move, "FAILED", "CouldNotDetermineMessageSource")
                continue
            self._hand_over(source, message, target, now)
            move.moved += 1
        if move.running and (move.moved >= move.to_move or (due > 0 and not taken)):
            self._finish(move, "COMPLETED")
        elif taken:
            self._broker.journal.move(move)

    def _hand_over(self, source: LocalQueue, message: Stored, target: LocalQueue, now: float) -> None:
        """Move one message. To SQS it is a new one, with an id, an age and receive counts of its own."""
        source.remove(message, now)
        self._broker.seq += 1
        new = Stored(
            seq=self._broker.seq,
            id=new_id(self._broker.rng),
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
        self._broker.delivery.put(target, new, now)
        self._broker.journal.gone(source, message)

    def _finish(self, move: Move, status: str, failure: str | None = None) -> None:
        move.status = status
        move.failure = failure
        self._broker.journal.move(move)

    def _resource(self, name: str, arn: str | None) -> LocalQueue:
        if not arn:
            raise missing_parameter(name)
        queue = self._broker.registry.by_arn(arn)
        if queue is None:
            raise _not_found(name)
        return queue


def _not_found(name: str) -> BrokerError:
    text = f"The resource that you specified for the {name} parameter doesn't exist."
    return BrokerError("ResourceNotFoundException", text, status=404)
