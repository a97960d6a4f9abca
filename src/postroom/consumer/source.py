"""One queue of a consumer: what settles its messages, and the policies that apply to them."""

from typing import Any, Final

from postroom.consumer.attempts import Attempts
from postroom.consumer.choices import Choice, choice
from postroom.consumer.diversions import Diversions
from postroom.consumer.facts import QueueFacts
from postroom.consumer.job import Job
from postroom.consumer.settings import Settings
from postroom.consumer.step_health import Steps, steps_of
from postroom.message import Message
from postroom.options import Call, Faults, RetryPolicy, Visibility
from postroom.outages import Outages
from postroom.repeats import Repeats
from postroom.settlement import Settler, Tally
from postroom.transports.protocol import Queue

_SLIPPING: Final = 8.0
"""Seconds before the end of its visibility timeout, or a quarter of that if it is less, at which a message should have
been extended long ago: the heartbeat begins at a half. More than the core's sweep takes to come round."""
_LEAST_PATIENCE: Final = 0.1
_RETRY = RetryPolicy()
_FAULTS = Faults()


class Source:
    """A queue and what was configured for its messages.

    Several sources can share one core, and so slots and tenants. It makes the jobs of its messages for the settler.

    Args:
        settings: what the consumer was configured with.
        queue: the queue.
        facts: what the queue says of itself.
        tally: counts the bytes that are held, of all sources that share one memory.
        steps: what is known of the steps before a handler, of all sources, where there are several.
        outages: what the log says of steps that fail and work again.
        alone: whether it is the only source of its core: then its message groups need no other name.
    """

    def __init__(
        self,
        settings: Settings[Any, Any],
        queue: Queue,
        facts: QueueFacts,
        *,
        tally: Tally | None = None,
        steps: Steps | None = None,
        outages: Outages | None = None,
        alone: bool = True,
    ) -> None:
        self.settings = settings
        self.repeats: Repeats = Repeats()
        """Of functions within policies: what they get wrong is logged once a minute."""
        self._retry = choice("retry=", settings.retry, RetryPolicy)
        self._faults = choice("faults=", settings.faults, Faults)
        self._visibility = choice("visibility=", settings.visibility, Visibility)
        self.queue = queue
        self.facts = facts
        self.name: str = queue.info.name
        self.resolves: bool = settings.resolver is not None
        self.resolver, self.decoder = steps_of(self.name, steps, outages=Outages() if outages is None else outages)
        self.fifo: bool = queue.info.fifo
        self.attempts: Attempts = Attempts(facts)
        self.tally: Tally = Tally() if tally is None else tally
        self._alone = alone
        self.diversions: Diversions
        """Set once, by what opens the source."""
        self.settler: Settler[Job]
        """Set once, by what opens the source: the settler tells the core what becomes of each message."""

    def of(self, message: Message, received_at: float, visibility: float) -> Job:
        """Begin to hold a message that was received at a loop time, for ``visibility`` seconds."""
        # Nearly every message says "1", and for that no call is needed.
        said = message.system_attributes.get("ApproximateReceiveCount")
        return Job(
            message=message,
            receipt_handle=message.receipt_handle,
            received_at=received_at,
            deadline=received_at + visibility,
            receives=1 if said == "1" else message.receive_count,
            source=self,
        )

    def is_slipping(self, job: Job, now: float) -> bool:
        """Whether a message is about to be lost: its extensions are refused, or it was held for as long as SQS allows.

        Not while SQS cannot be reached: nothing else could be sent, and once it is back the extension goes first.
        """
        if job.out_of_reach:
            return False
        return job.deadline - now < self._slipping(job)

    def patience(self, job: Job, now: float) -> float:
        """Return the seconds for which a message may wait for its tenant's resources before it is looked at again.

        SQS deletes it at the end of its retention period, or moves it once it is lost at its last receive, and tells
        nothing: it must be rejected with its reason before.
        """
        left = self.facts.seconds_left(job)
        if self.attempts.is_last(job):
            left = min(left, job.deadline - now - self._slipping(job) / 2)
        return max(left, _LEAST_PATIENCE)

    def _slipping(self, job: Job) -> float:
        policy = job.visibility or self.settings.first_visibility
        return min(policy.timeout / 4, _SLIPPING)

    def is_called(self, queue: str) -> bool:
        """Whether a name, a URL or an ARN is this queue's."""
        info = self.queue.info
        return queue in {info.name, info.url, info.arn}

    def group_of(self, message: Message) -> str | None:
        """Return what a message's group is called here: two FIFO queues may each have a group of one name."""
        group = message.group_id
        return group if self._alone or group is None else f"{self.name} {group}"

    def retry_of(self, job: Job) -> RetryPolicy:
        """Return the retry policy for a message."""
        policy = self._retry
        return policy(self._call(job), _RETRY) if isinstance(policy, Choice) else policy

    def faults_of(self, job: Job) -> Faults:
        """Return what counts as broken for a message's tenant."""
        policy = self._faults
        return policy(self._call(job), _FAULTS) if isinstance(policy, Choice) else policy

    def resolved(self, job: Job) -> None:
        """Number the attempt, and apply the policies that can be chosen once a message's tenant is known."""
        job.attempt = self.attempts.number(job) if self.attempts.remembers else job.receives
        if isinstance(self._visibility, Choice):
            job.visibility = self._visibility(self._call(job), job.visibility or Visibility())

    def ours_until(self, job: Job) -> float:
        """Return the loop time until which a message can be held, if all of its extensions go well."""
        policy = job.visibility or self.settings.first_visibility
        return job.received_at + policy.max_extension if policy.heartbeat else job.deadline

    def _call(self, job: Job) -> Call:
        return Call(job.tenant, job.message, job.attempt)
