"""Message move tasks: bringing messages of a dead-letter queue back.

A task has no thread: how far it must be by now is worked out whenever anybody looks.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_StartMessageMoveTask.html
"""

from base64 import b64decode, b64encode

import msgspec

from postroom.local.shapes import MoveTask

CHUNK = 1_000
"""Messages that a task without a rate moves at once."""
CHUNK_PAUSE = 0.01
"""Seconds between chunks, so that a large task does not hold up everybody else."""


class _Handle(msgspec.Struct, rename="camel"):
    """What a task handle says."""

    task_id: str
    source_arn: str


def source_of(handle: str) -> str | None:
    """Return the ARN of the source queue that a task handle names; None if it is no task handle."""
    try:
        return msgspec.json.decode(b64decode(handle, validate=True), type=_Handle).source_arn
    except (ValueError, msgspec.MsgspecError):  # not base64, not ASCII, not JSON in UTF-8, not a handle's JSON
        return None


class Move(msgspec.Struct, array_like=True):
    """One move task."""

    id: str
    source_arn: str
    destination_arn: str | None
    rate: int | None
    started_at: float
    to_move: int
    moved: int = 0
    status: str = "RUNNING"
    failure: str | None = None

    @property
    def handle(self) -> str:
        """The task handle: opaque for clients, readable in a debugger."""
        text = msgspec.json.encode(_Handle(self.id, self.source_arn))
        return b64encode(text).decode()

    @property
    def running(self) -> bool:
        """Whether there is something left to do."""
        return self.status == "RUNNING"

    def due(self, now: float) -> int:
        """Return how many messages should move now."""
        left = self.to_move - self.moved
        if self.rate is not None:
            return min(left, int((now - self.started_at + 1e-6) * self.rate) - self.moved)
        chunks = int((now - self.started_at + 1e-6) / CHUNK_PAUSE) + 1
        return min(left, chunks * CHUNK - self.moved)

    def next_at(self) -> float:
        """Return when the next message should move."""
        if self.rate is not None:
            return self.started_at + (self.moved + 1) / self.rate
        return self.started_at + self.moved // CHUNK * CHUNK_PAUSE

    def shape(self) -> MoveTask:
        """Return it as ListMessageMoveTasks shows it."""
        return MoveTask(
            status=self.status,
            source_arn=self.source_arn,
            started_timestamp=int(self.started_at * 1000),
            approximate_number_of_messages_moved=self.moved,
            approximate_number_of_messages_to_move=self.to_move,
            task_handle=self.handle if self.running else None,
            destination_arn=self.destination_arn,
            max_number_of_messages_per_second=self.rate,
            failure_reason=self.failure,
        )
