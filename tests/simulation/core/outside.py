"""The world outside the core in its schedules: a queue, a pool of resources, and what the queue says of itself.

Plain and synchronous, decided by the seed. The queue counts for itself what became of every message: the oracles
believe it, not the core.
"""

import math
from collections.abc import Callable, Hashable, Sequence, Sized
from dataclasses import dataclass, field
from random import Random
from typing import Any

from postroom.consumer.job import Job
from postroom.errors import PoolExhaustedError, ResourceOpenError
from postroom.message import Message
from postroom.transports.protocol import QueueInfo, RedrivePolicy

HIDDEN = 60.0
"""Seconds for which a receive hides a message."""
EPSILON = 1e-6


class Violation(AssertionError):
    """A promise is broken."""


@dataclass(eq=False, slots=True)
class Letter:
    """A message in the queue, and everything that happened to it."""

    number: int
    tenant: int
    group: str | None
    sent_at: float
    succeeds_at: int
    """The run of its handler that succeeds."""
    problem: bool = False
    """Whether its context cannot be resolved."""
    visible_at: float = 0.0
    receives: int = 0
    in_flight: bool = False
    fate: str | None = None
    """How it ended: acked, rejected, dead (by the queue, without a reason), or expired."""
    attempts: int = 0
    """Runs of the user's code that failed."""
    recent: int = 0
    """Of them, those that the present process has seen."""
    done: bool = False
    """Whether a handler has succeeded with it."""
    excused: int = 0
    """Receives that ended through a fault, a stop, or another consumer."""
    crowded: int = 0
    """Receives that were spent because too much was held."""
    parks: int = 0
    left_at: float = 0.0
    """When it was last decided to give it back, or when it was lost."""


class ModelQueue:
    """A queue: receive counts, visibility, redrive, retention, message groups."""

    def __init__(self, *, fifo: bool, most: int | None, retention: float) -> None:
        self.fifo = fifo
        self.most = most
        self.retention = retention
        self.letters: list[Letter] = []
        self.open: dict[int, Letter] = {}
        """What has not ended."""
        self.on_end: Callable[[Letter], None] = lambda _letter: None
        self.redrive: RedrivePolicy | None = None
        self.set_most(most)
        self.info = QueueInfo(name="q", url="http://q", arn="arn:q", fifo=fifo, redrive=self.redrive)

    def set_most(self, most: int | None) -> None:
        """Change the redrive policy."""
        self.most = most
        self.redrive = None if most is None else RedrivePolicy("arn:dead", most)

    def send(self, letter: Letter) -> None:
        """Put a message in."""
        letter.number = len(self.letters)
        self.letters.append(letter)
        self.open[letter.number] = letter

    def receive(self, limit: int, now: float) -> list[Message]:
        """Hand out what is visible, the oldest first; of a message group nothing while something of it is in flight."""
        found: list[Message] = []
        if not self.open:
            return found
        busy = {each.group for each in self.open.values() if self._is_hidden(each, now)} if self.fifo else set[Any]()
        visible = [
            letter
            for letter in self.open.values()
            if letter.visible_at <= now and letter.sent_at <= now and letter.group not in busy
        ]
        for letter in visible:
            if len(found) == limit:
                break
            if self._is_over(letter, now):
                continue
            letter.receives += 1
            letter.in_flight = True
            letter.visible_at = math.inf  # the heartbeat goes on while it is held
            found.append(self._message(letter))
        return found

    def _is_hidden(self, letter: Letter, now: float) -> bool:
        return letter.in_flight and letter.visible_at > now

    def _is_over(self, letter: Letter, now: float) -> bool:
        if now >= letter.sent_at + self.retention:
            self.end(letter, "expired")
            return True
        if self.most is not None and letter.receives >= self.most:
            self.end(letter, "dead")
            return True
        return False

    def _message(self, letter: Letter) -> Message:
        system = {"ApproximateReceiveCount": str(letter.receives), "SentTimestamp": str(int(letter.sent_at * 1000))}
        if letter.group is not None:
            system["MessageGroupId"] = letter.group
        handle = f"{letter.number}:{letter.receives}"
        return Message(id=str(letter.number), body="", receipt_handle=handle, system_attributes=system, queue="q")

    def next_visible(self, now: float) -> float:
        """Return when one more message is visible."""
        soonest = math.inf
        for letter in self.open.values():
            when = max(letter.sent_at, letter.visible_at)
            if now < when < soonest:
                soonest = when
        return soonest

    def expire(self, now: float) -> None:
        """Delete what is older than the retention period."""
        for letter in [each for each in self.open.values() if now >= each.sent_at + self.retention]:
            self.end(letter, "expired")

    def end(self, letter: Letter, fate: str) -> None:
        """Take a message out."""
        if self.open.pop(letter.number, None) is not None:
            letter.fate = fate
            letter.in_flight = False
            self.on_end(letter)

    def of(self, handle: str) -> Letter | None:
        """Return the message of a receipt handle, if that is the newest one."""
        number, _, receives = handle.partition(":")
        letter = self.open.get(int(number))
        return letter if letter is not None and letter.receives == int(receives) else None

    def show(self, handle: str, at: float, left_at: float | None = None) -> bool:
        """Make a message visible at a time. Returns whether the handle was good for it."""
        letter = self.of(handle)
        if letter is None or not letter.in_flight:
            return False
        letter.visible_at = at
        if left_at is not None:
            letter.left_at = left_at
        return True


class ModelFacts:
    """What the consumer knows of the queue: some time after it was changed, or never."""

    def __init__(self, queue: ModelQueue, *, known: bool) -> None:
        self._queue = queue
        self.known = known
        self.redrive = queue.redrive if known else None
        self.full_until = 0.0
        self.now = 0.0

    @property
    def max_receives(self) -> int | None:
        """Receives after which SQS makes a dead letter of a message."""
        return None if self.redrive is None else self.redrive.max_receive_count

    def seconds_left(self, job: Job) -> float:
        """Return the seconds until it is a minute before SQS deletes a message."""
        return (job.message.sent_at or 0.0) + self._queue.retention - 60.0 - self.now

    def keep_up(self, now: float) -> None:
        """Know what is known: the plan changes it."""

    def is_last_call(self, job: Job) -> bool:
        """Whether a message must not wait for a slot any longer."""
        return self.seconds_left(job) < -20.0

    def refusal(self) -> str | None:
        """Return why nothing may be made invisible now."""
        return "full" if self.now < self.full_until else None

    def hid(self) -> None:
        """Note that a message was made invisible."""


@dataclass(slots=True)
class Access:
    """The resources of one tenant."""

    host: int | None
    open: bool = False
    broken_until: float = 0.0
    alone_until: float = 0.0
    failures: int = 0
    waiters: list[Any] = field(default_factory=list[Any])
    opening: bool = False


class _Failures:
    """How many tenants have failed since their last success."""

    def __init__(self, tenants: dict[int, Access]) -> None:
        self._tenants = tenants

    def __len__(self) -> int:
        return sum(each.failures > 0 for each in self._tenants.values())


class ModelPool:
    """A pool: it opens with single flight, leaves what failed alone, and a whole host after a few of its tenants."""

    def __init__(self, rng: Random, hosts: dict[int, int | None], now: Callable[[], float]) -> None:
        self._rng = rng
        self._now = now
        self.tenants = {tenant: Access(host) for tenant, host in hosts.items()}
        self.host_down: dict[int, float] = {}
        self._failed_on: dict[int, set[int]] = {}
        self._alone: dict[int, float] = {}
        self._probing: dict[int, int] = {}
        self.exhausted_until = 0.0

    @property
    def troubles(self) -> Sequence[Sized]:
        """What is left alone, or has failed since its last success."""
        return self._failed_on, _Failures(self.tenants)

    def is_open(self, context: Any) -> bool:
        """Return whether a tenant's resources are open."""
        return self.tenants[context].open

    def host_of(self, context: Any) -> Hashable | None:
        """Return a tenant's host."""
        return self.tenants[context].host

    def retry_after(self, context: Any) -> float:
        """Return the seconds for which a tenant or its host is left alone."""
        now, access = self._now(), self.tenants[context]
        if access.open:
            return 0.0
        until = access.alone_until
        if access.host is not None:
            until = max(until, self._alone.get(access.host, 0.0))
            if self._probing.get(access.host, context) != context:
                until = max(until, now + 0.3)
        return max(0.0, until - now)

    def unknown_at(self, _context: Any) -> float | None:
        """Return nothing: every tenant exists."""

    def unknown(self, _key: Hashable) -> tuple[str, float] | None:
        """Return nothing: every tenant may exist."""
        return None

    def begin(self, tenant: int) -> None:
        """Note that an open begins."""
        access = self.tenants[tenant]
        access.opening = True
        if access.host is not None and access.host in self._alone:
            self._probing.setdefault(access.host, tenant)

    def refusal(self, tenant: int) -> Exception | None:
        """Return why a tenant cannot have its resources at once; None if it may try."""
        access = self.tenants[tenant]
        if (pause := self.retry_after(tenant)) > 0:
            host = access.host if access.host in self._alone else None
            return ResourceOpenError("left alone", context=tenant, retry_after=pause, host=host)
        if self._now() < self.exhausted_until and self._rng.random() < 0.5:
            return PoolExhaustedError("no budget", context=tenant)
        return None

    def opened(self, tenant: int) -> Exception | None:
        """End an open. Returns why it failed; None if it did not."""
        now, access = self._now(), self.tenants[tenant]
        access.opening = False
        host = access.host
        if host is not None and self._probing.get(host) == tenant:
            del self._probing[host]
        if now >= access.broken_until and (host is None or now >= self.host_down.get(host, 0.0)):
            access.open, access.failures, access.alone_until = True, 0, 0.0
            if host is not None:
                self._failed_on.pop(host, None)
                self._alone.pop(host, None)
            return None
        access.failures += 1
        pause = self._rng.uniform(0.0, min(30.0, 0.2 * 2.0 ** min(access.failures, 20)))
        access.alone_until = now + pause
        if host is not None and now < self.host_down.get(host, 0.0):
            failed = self._failed_on.setdefault(host, set())
            failed.add(tenant)
            if len(failed) >= 2:
                self._alone[host] = now + pause
                return ResourceOpenError("down", context=tenant, retry_after=pause, host=host)
        return ResourceOpenError("no", context=tenant, retry_after=pause, permanent=self._rng.random() < 0.1)

    def close(self, tenant: int) -> None:
        """Close what is open for a tenant: the next lease has to open it."""
        self.tenants[tenant].open = False

    def heal(self) -> None:
        """Let everything be reachable again. What is remembered of failures stays."""
        self.host_down.clear()
        self.exhausted_until = 0.0
        for access in self.tenants.values():
            access.broken_until = 0.0
