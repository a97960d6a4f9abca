"""How often a message was tried, and which of its receives the consumer may spend on its own account.

SQS counts receives and moves a message to the dead-letter queue when they run out. Users count *attempts*: runs of
their code (resolver, decoder, handler) that ended in failure. A receive that ended without an attempt was spent by the
consumer itself: the message was parked, deferred, or returned at a stop.

Only this process knows what it spent. Receives that it knows nothing about, of another replica or of a former process,
count as attempts where that is the careful reading (backoff), and as spent where that is (the allowance).
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

from postroom.consumer.facts import QueueFacts
from postroom.consumer.job import Job
from postroom.display import counted
from postroom.options import Faults

REMEMBER: Final = 100_000
"""Messages remembered; those that came longest ago are forgotten first."""
LEAST_FOR_PARKING: Final = 5
"""The smallest ``maxReceiveCount`` with which the consumer spends receives of a message."""
_FREE: Final = 2
"""Receives per message that may be spent on a queue without a redrive policy: one may be added at any time."""


def default_promise(max_receives: int) -> int:
    """Return the attempts that a message gets where ``RetryPolicy.attempts`` says nothing.

    All receives of a queue that allows fewer than five; otherwise all but a quarter, and at least one less.
    """
    if max_receives < LEAST_FOR_PARKING:
        return max_receives
    return max_receives - max(1, max_receives // 4)


class Attempts:
    """Counts attempts and spent receives per message, and says what may be spent."""

    def __init__(self, facts: QueueFacts) -> None:
        self._facts = facts
        self._failed: OrderedDict[str, int] = OrderedDict()
        self._spent: OrderedDict[str, int] = OrderedDict()
        self._poison: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """Failures of a message's handler, and how many of its tenant had succeeded at the first of them."""
        self._successes: dict[Hashable, int] = {}
        self.remembers: bool = False
        """Whether anything is remembered of any message. While it is not, ``number`` is SQS's count of receives, and
        ``succeeded`` and ``forget`` do nothing: asked for every message, before they are called."""

    def number(self, job: Job) -> int:
        """Return which attempt at a message the next one is, the first one being 1."""
        known = self._failed.get(job.message.id, 0)
        return max(known + 1, job.receives - self._spent.get(job.message.id, 0) + job.tries, 1)

    def failed(self, job: Job) -> None:
        """Note a failed attempt. A second note of the same receive does nothing."""
        job.tried = True
        if not job.counted:
            job.counted = self.remembers = True
            _add(self._failed, job.message.id)

    def spent(self, job: Job) -> None:
        """Note that a receive ended without an attempt."""
        self.remembers = True
        _add(self._spent, job.message.id)

    def succeeded(self, job: Job) -> None:
        """Note that a message succeeded: it is no poison, and others of its tenant that fail may be."""
        if self._poison:
            self._forget_poison(job)
        if self._poison:
            self._successes[job.tenant] = self._successes.get(job.tenant, 0) + 1

    def poison(self, job: Job, options: Faults) -> str | None:
        """Return why a message that failed is poison: it fails again and again, others of its tenant succeed."""
        if options.poison_after is None:
            return None
        done = self._successes.setdefault(job.tenant, 0)
        failures, before = self._poison.pop(job.message.id, (0, done))
        before = min(before, done)  # what succeeded may have been forgotten since
        failures, others = failures + 1, done - before
        self.remembers = True
        # Also of what is poison: it may be lost before it is rejected.
        self._poison[job.message.id] = failures, before
        if len(self._poison) > REMEMBER:
            self._poison.popitem(last=False)
        if failures >= options.poison_after and others >= options.poison_others:
            return f"poison: {failures} failed attempts while {others} other messages of its tenant succeeded"
        return None

    def ended(self, job: Job) -> None:
        """Note receives of a message while it was held: they made no attempt."""
        for _ in range(job.receives - job.message.receive_count):
            self.spent(job)

    def forget(self, job: Job) -> None:
        """Forget a message that is gone from the queue."""
        self._failed.pop(job.message.id, None)
        self._spent.pop(job.message.id, None)
        self._forget_poison(job)
        self.remembers = bool(self._failed or self._spent or self._poison)

    def known(self, job: Job) -> int:
        """Return the failed attempts that this process has seen."""
        return self._failed.get(job.message.id, 0)

    # -- the allowance ------------------------------------------------------------------------------------------

    def promised(self, job: Job) -> int | None:
        """Return how many attempts a message was promised; None on a queue that counts no receives."""
        most = self._facts.max_receives
        wanted = job.source.retry_of(job).attempts
        if most is None:
            return wanted
        return default_promise(most) if wanted is None else min(wanted, most)

    def may_park(self, job: Job) -> bool:
        """Whether a message may be made invisible in favour of others: once, at its first receive."""
        if job.receives != 1 or not (self._facts.known and job.message.is_counted):
            return False
        most = self._facts.max_receives
        if most is None:
            return True
        return most >= LEAST_FOR_PARKING and most - 1 >= (self.promised(job) or 0)

    def may_defer(self, job: Job) -> bool:
        """Whether a receive of a message may be spent: those that are left suffice for every promised attempt."""
        if not (self._facts.known and job.message.is_counted):
            return False
        return self._has_spare(job, (self.promised(job) or 0) - self.known(job))

    def may_be_taken_along(self, job: Job) -> bool:
        """Whether a message may go back for one before it in its group, whatever it has failed itself.

        Always where nothing is known of the queue: only SQS's count ends the attempts of that one then.
        """
        if not (self._facts.known and job.message.is_counted):
            return True
        return self._has_spare(job, self.promised(job) or 0)

    def _has_spare(self, job: Job, needed: int) -> bool:
        most = self._facts.max_receives
        return job.receives <= _FREE if most is None else most - job.receives >= max(1, needed)

    def is_last(self, job: Job) -> bool:
        """Whether one more receive makes a dead letter of a message."""
        most = self._facts.max_receives
        return most is not None and job.receives >= most

    def is_overdue(self, job: Job) -> bool:
        """Whether a message came back after its last receive: SQS has made no dead letter of it."""
        most = self._facts.max_receives
        return most is not None and job.receives > most

    def is_short_of(self, job: Job) -> bool:
        """Whether a message that is given back untried would become a dead letter short of a promised attempt."""
        return self.is_last(job) and self.known(job) < (self.promised(job) or 0)

    def is_cut_short(self, job: Job) -> bool:
        """Whether a message that failed has no receive left because some of them were spent without an attempt."""
        return self._spent.get(job.message.id, 0) > 0 and self.is_short_of(job)

    def is_over(self, job: Job) -> bool:
        """Whether a message has had all the attempts that ``RetryPolicy.attempts`` gives it.

        And never more than the queue allows receives: one that backs off here takes several for one receive.
        """
        known, wanted, most = self.known(job), job.source.retry_of(job).attempts, self._facts.max_receives
        if wanted is not None and known >= wanted:
            return True
        return most is not None and known >= most and not self.is_last(job)

    def why_over(self, job: Job, cause: str) -> str | None:
        """Return why a message that failed of a cause is not tried again: attempts or receives are used up.

        None: it is tried again, or there is no dead-letter queue.
        """
        if self._facts.redrive is None:
            return None
        reason = f"{counted(self.known(job), 'failed attempt')}, the last one with {cause}"
        if self.is_over(job):
            return reason
        return f"{reason}; other receives ended without an attempt" if self.is_cut_short(job) else None

    def _forget_poison(self, job: Job) -> None:
        self._poison.pop(job.message.id, None)
        if not self._poison or len(self._successes) > REMEMBER:
            self._successes.clear()


def _add(counts: OrderedDict[str, int], message_id: str) -> None:
    # Taken out first: an assignment alone would leave the key at its old place, to be forgotten
    # early.
    counts[message_id] = counts.pop(message_id, 0) + 1
    if len(counts) > REMEMBER:
        counts.popitem(last=False)
