"""Oracles *attempts* and *expense*: who spent the receives of a message, its own failures or the library?

Every receive that a consumer sees is written down here, with what became of it. A receive is one of these:

* **tried**: a run of the user's code for it (resolver, decoder, handler) failed, or its handler was called at all. Its
  message has paid for itself.
* **excused**: the environment took it. The process died or was frozen, ownership was lost, the queue handed the message
  out twice, the answer never arrived, its group had to go back behind a failure (a FIFO queue gives out the first of a
  group only when nothing of the group is in flight), or a stop left no time to try it.
* **spent**: the library gave the message back although nothing of the user's failed: it was parked, deferred or
  returned. Only these are counted against the library, so whatever is in doubt is no violation.

With a redrive policy of M a message is promised ``promise(M)`` attempts, so the library may spend M less that many.
A receive is spent *under* a policy only if that policy was in force, unchanged, for the last ``NOTICE`` seconds: a
consumer has to look for a change now and then, and cannot know it before.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

NOTICE = 120.0
"""Seconds within which a consumer has to notice that the redrive policy changed."""
BETWEEN = 5
"""From this maxReceiveCount on the library may spend receives of its own."""
_LINGER = 0.105
"""Seconds after its decision by which a message is given back, while SQS answers."""


OVERTAKEN = "a later receive of it was answered before"
"""What becomes of the earlier one changes nothing for its message."""
HANDED_OUT_TWICE = "handed out twice"
IT_STOPS = "it stops"
GROUP_WENT_BACK = "its group went back"
NO_TENANT = "its tenant does not exist"
NO_LETTER = "no letter could be sent"
MEMORY_FULL = "bodies took all the memory that they may"
DIVERTED = "its tenant is diverted to a queue that did not take it"
CROWDED = "more messages of tenants that cannot run were held than may be"
LONG = 30.0
"""Seconds of a pause that no retry policy makes here: a step fails for everything."""
LONGEST_BACKOFF = 5.0
"""The longest pause that a retry policy makes here, or an open that failed for good."""
CROWDED_FOR = 900
"""Seconds for which a message is deferred at least, if that costs a promised attempt."""
_OF_ITS_OWN = frozenset({"", GROUP_WENT_BACK, MEMORY_FULL, CROWDED, DIVERTED})
"""Excuses of receives that the library has to count as its own all the same."""
_NO_REASON = frozenset({"", GROUP_WENT_BACK, NO_TENANT, MEMORY_FULL, CROWDED, DIVERTED})
"""Excuses that do not excuse a dead letter without a reason."""


def promise(most: int, promised: int | None = None) -> int:
    """Return how many attempts a message has with a maxReceiveCount, and with ``RetryPolicy(attempts=promised)``."""
    if promised is not None and promised <= most:
        return promised
    return most if most < BETWEEN else most - max(1, most // 4)


class Policies:
    """The redrive policy of the queue over time. Where it may not be read, it is never known.

    Where it may not be read at times, a change of it is never known: it is not asked for soon after it was denied.
    """

    def __init__(self, most: int | None, *, readable: bool = True, at_times: bool = False) -> None:
        self._readable = readable
        self._at_times = at_times
        self._changes: list[tuple[float, int | None]] = [(float("-inf"), most)]

    def change(self, at: float, most: int | None) -> None:
        """Note a change."""
        self._changes.append((at, most))

    def known_at(self, now: float) -> int | None:
        """Return the maxReceiveCount that a consumer has to know at a time; None if there is none to know."""
        since, most = next(change for change in reversed(self._changes) if change[0] <= now)
        noticed = since <= now - (math.inf if self._at_times else NOTICE)
        return most if self._readable and noticed else None

    def has_redrive(self, now: float) -> bool:
        """Return whether there was a redrive policy all the time in which a consumer may have read it last."""
        read = next(change for change in reversed(self._changes) if change[0] <= now - NOTICE)
        later = [most for at, most in self._changes if now - NOTICE < at <= now]
        return None not in (read[1], *later)

    def values(self) -> list[int]:
        """Return every maxReceiveCount that there ever was."""
        return sorted({most for _, most in self._changes if most is not None})


@dataclass(slots=True)
class Receive:
    """One receive of a message, as the process that got it sees it."""

    handle: str
    message: str
    process: str
    at: float
    number: int
    """SQS's count of receives."""
    failed: int = 0
    """Attempts that failed: on a FIFO queue a message may be tried again without another receive."""
    counted: bool = False
    """Whether the failure of its latest attempt is counted."""
    tried: bool = False
    reported: int = 0
    """Failures of it that the library reported."""
    told: tuple[int, int] = 0, 0
    """Which attempt its handler was told last, and how many of this receive had failed before."""
    unknown: int = 0
    """How often its tenant was said not to exist."""
    given_back: float | None = None
    delay: float = 0.0
    excuse: str = ""
    confirmed: bool = False
    """Whether SQS has confirmed that it was given back, or deleted."""
    cut_off: bool = False
    """Whether its handler was cut off because the message was lost, and had not failed before."""
    forgotten: bool = False
    """Whether SQS has confirmed since that its message is deleted: its process need not remember it."""


@dataclass(slots=True)
class Ledger:
    """All receives of a schedule, over all processes."""

    policies: Policies
    promised: int | None = None
    forgetful: bool = False
    """Whether a process may forget what it gave back untried: the queue was closed meanwhile, and opened again."""
    receives: dict[str, Receive] = field(default_factory=dict[str, Receive])
    """By receipt handle."""
    _of: defaultdict[str, list[Receive]] = field(default_factory=lambda: defaultdict[str, list[Receive]](list))

    def received(
        self, handle: str, message: str, process: str, number: int, now: float, *, overlaps: bool = False
    ) -> None:
        """Note that a process got a message. ``overlaps``: although it still has an earlier receive of it."""
        receive = self.receives[handle] = Receive(handle, message, process, now, number)
        if overlaps:
            for each in (receive, *self._here(receive)):
                each.excuse = each.excuse or HANDED_OUT_TWICE
        if any(each.number > number for each in self._of[message]):
            receive.excuse = receive.excuse or OVERTAKEN
        self._of[message].append(receive)

    def tries(self, handle: str) -> None:
        """Note that the handler was called for a receive. It may be settled under a newer receipt handle."""
        receive = self.receives[handle]
        receive.tried = True
        for each in self._here(receive):
            each.tried = True

    def begins(self, handle: str) -> None:
        """Note that an attempt begins."""
        self.receives[handle].counted = False

    def fails(self, handle: str) -> None:
        """Note that the latest attempt failed."""
        self.tries(handle)
        receive = self.receives[handle]
        receive.failed += not receive.counted
        receive.counted = True

    def _here(self, receive: Receive) -> list[Receive]:
        """Return the receives of the same message that the same process has not given back."""
        return [
            each for each in self._of[receive.message] if each.process == receive.process and each.given_back is None
        ]

    def gives_back(self, handle: str, now: float, delay: float) -> None:
        """Note that the library makes a message visible again, now or later."""
        receive = self.receives[handle]
        if receive.given_back is None:
            receive.given_back = now
            receive.delay = delay

    def excuses(self, handle: str, why: str) -> None:
        """Note that a receive is not the library's fault."""
        receive = self.receives[handle]
        if not receive.excuse or (receive.excuse in _NO_REASON and why not in _NO_REASON):
            receive.excuse = why

    # -- what follows ----------------------------------------------------------------------------------------------

    def of(self, message: str) -> list[Receive]:
        """Return the receives of a message, in order of arrival."""
        return self._of.get(message, [])

    def failures(self, message: str, process: str | None = None) -> int:
        """Return how many attempts of a message failed, in one process or in all."""
        return sum(each.failed for each in self.of(message) if process is None or each.process == process)

    def spent(self, message: str) -> list[Receive]:
        """Return the receives of a message that the library spent on its own account."""
        return [each for each in self.of(message) if each.given_back is not None and not each.tried and not each.excuse]

    def has_spare(self, message: str) -> bool:
        """Return whether the library may spend one more receive of a message, whatever policy is in force."""
        receives = len(self.of(message))
        return all(receives + promise(most, self.promised) <= most for most in self.policies.values())

    def overspent(self, message: str) -> tuple[int, int, int] | None:
        """Return the policy, the receives spent under it and the most that may be, if these were too many."""
        spent = self.spent(message)
        # On a FIFO queue one receive may have had several of the attempts that were promised: the others are spare.
        more = sum(max(0, each.failed - 1) for each in self.of(message))
        for most in self.policies.values():
            under = sum(self.policies.known_at(each.given_back or 0.0) == most for each in spent)
            allowance = most - promise(most, self.promised) + more
            if under > allowance:
                return most, under, allowance
        return None

    def is_used_up(self, message: str, process: str) -> bool:
        """Return whether a message has failed in a process as often as ``RetryPolicy(attempts=)`` says.

        Or as often as it may be received: it may have been tried more than once in a receive, or an earlier receive of
        it may have been answered after its last.
        """
        here = [each for each in self.of(message) if each.process == process]
        failures = sum(each.failed + each.unknown for each in here)
        if self.promised is not None and failures >= self.promised:
            return True
        return any(failures >= most for most in self.policies.values())

    def has_failed(self, message: str) -> bool:
        """Return whether an attempt at a message has failed, be it because there is no such tenant."""
        return any(each.failed or each.unknown for each in self.of(message))

    def took_back(self, message: str, process: str) -> int:
        """Return the receives of a message that a process counts as no attempts.

        They were given back untried, and SQS has confirmed it; or cut off.
        """
        return sum(
            each.cut_off or (each.confirmed and not each.tried and each.excuse in _OF_ITS_OWN)
            for each in self.of(message)
            if each.process == process
        )

    def has_untried(self, message: str, process: str) -> bool:
        """Return whether a process has had a receive of a message of which no failure was reported."""
        return any(not each.reported for each in self.of(message) if each.process == process)

    def cuts(self, handle: str) -> None:
        """Note that the handler of a receive was cut off, and the message counted as lost."""
        receive = self.receives[handle]
        receive.cut_off = not receive.failed

    def reports(self, handle: str, *, unknown: bool = False) -> None:
        """Note that the library reported a failure: it knows of it. ``unknown``: its tenant did not exist."""
        self.receives[handle].reported += 1
        self.receives[handle].unknown += unknown

    def confirms(self, handle: str) -> None:
        """Note that SQS has confirmed the end of a receive."""
        self.receives[handle].confirmed = True

    def forgets(self, handle: str) -> None:
        """Note that SQS has confirmed that a message is deleted: its process need not remember it."""
        deleted = self.receives[handle]
        for each in self.of(deleted.message):
            if each.process == deleted.process:
                each.confirmed = each.cut_off = False
                each.forgotten = True

    def judge_dead_letter(self, message: str) -> str | None:
        """Oracle *attempts*: judge a message that SQS moved to the dead-letter queue, so that it has no reason."""
        if (wrong := self._judge_untried(message)) is not None:
            return wrong
        if (over := self.overspent(message)) is None:
            return None
        most, spent, allowance = over
        failed = self.failures(message)
        if failed >= promise(most, self.promised):
            return None
        return (
            f"{message[:4]} is a dead letter without a reason after {failed} failed attempts; it was promised "
            f"{promise(most, self.promised)} of {most} receives, and {spent} were spent on it, {allowance} at most"
        )

    def _judge_untried(self, message: str) -> str | None:
        """Judge a message that was never tried, and given back at the last receive that it had."""
        receives = self.of(message)
        if not receives or any(each.tried for each in receives):
            return None
        last = max(receives, key=lambda each: each.number)
        most = None if last.given_back is None else self.policies.known_at(last.given_back)
        if most is None or last.number < most or last.excuse not in _NO_REASON:
            return None
        return f"{message[:4]} is a dead letter without a reason, given back at its last receive and never tried"

    def judge_expense(self) -> Iterator[str]:
        """Oracle *expense*: judge what was spent on each message, whatever became of it."""
        for message in self._of:
            if (over := self.overspent(message)) is not None:
                most, spent, allowance = over
                yield f"{spent} receives were spent on {message[:4]}, {allowance} at most with maxReceiveCount {most}"

    def judge_stops(self, stops: Mapping[str, float]) -> Iterator[str]:
        """Oracle *expense*: judge what each stop spent. It may give a message back, and not receive it again.

        ``stops`` has the time at which each process began to stop. What it sent just after, it may have decided before.
        """
        for process, since in stops.items():
            for message in self._of:
                here = [each for each in self._of[message] if each.process == process and not each.tried]
                sent = [each.given_back or 0.0 for each in here if each.excuse == IT_STOPS]
                count = sum(at > since + 0.05 for at in sent)
                before = any(since + 0.05 < at <= since + _LINGER for at in sent)
                if count - before > 1:
                    yield f"the stop of {process} spent {count} receives of {message[:4]}"

    def judge_attempt(self, handle: str, attempt: int | None) -> str | None:
        """Oracle *attempts*: judge what a handler is told of which attempt this is, where it is told that."""
        if attempt is None:
            return None
        receive = self.receives[handle]
        here = [each for each in self.of(receive.message) if each.process == receive.process]
        # A resolver may have failed for a message that went back with its group before that was looked at. Where its
        # queue was closed meanwhile, only SQS's count of receives is left, and one of them may have had several tries.
        once = 1 if self.forgetful else math.inf
        least = 1 + sum(min(each.failed, each.reported, once) for each in here if not each.forgotten)
        tries = min(receive.failed, receive.reported)
        if tries > receive.told[1]:
            least = max(least, receive.told[0] + 1)  # each failed try of one receive is an attempt
        receive.told = attempt, tries
        failed = 1 + sum(each.failed + each.unknown for each in here)
        most = max(each.number for each in here) + receive.failed + receive.unknown
        if not self.forgetful:
            most -= self.took_back(receive.message, receive.process)
        most = max(most, failed)
        if least <= attempt <= most:
            return None
        return f"{receive.message[:4]} is told attempt {attempt}: it is at least {least}, and at most {most}"
