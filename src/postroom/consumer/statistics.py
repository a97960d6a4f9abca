"""A snapshot of one consumer."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from postroom.fleet import FleetStatistics
from postroom.resources import PoolStatistics
from postroom.types import Settlement


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatistics:
    """What a consumer did with the messages of one of its queues, and what it holds of them, at one moment."""

    received: int = 0
    """Messages received, repeated receives included."""
    receives: int = 0
    """ReceiveMessage requests."""
    poll_failures: int = 0
    """Receives that failed, or were not sent because no message can be deleted."""
    settled: Mapping[Settlement, int]
    """Messages by what became of them."""
    settlement_failures: int = 0
    """Deletes and visibility changes that were given up."""
    extensions: int = 0
    """Visibility timeouts that the heartbeat extended."""
    held: int = 0
    """Messages that the consumer owns now."""
    group_mismatches: int = 0
    """How often MessageGroupId and context disagreed about a message's tenant."""
    last_poll_age: float | None = None
    """Seconds since SQS last answered a receive of this queue; None before the first answer."""

    def plus(self, other: "QueueStatistics") -> "QueueStatistics":
        """Return both counted together; the later answer counts."""
        ages = [age for age in (self.last_poll_age, other.last_poll_age) if age is not None]
        return QueueStatistics(
            received=self.received + other.received,
            receives=self.receives + other.receives,
            poll_failures=self.poll_failures + other.poll_failures,
            settled=Counter(self.settled) + Counter(other.settled),
            settlement_failures=self.settlement_failures + other.settlement_failures,
            extensions=self.extensions + other.extensions,
            held=self.held + other.held,
            group_mismatches=self.group_mismatches + other.group_mismatches,
            last_poll_age=min(ages, default=None),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerStatistics:
    """What a consumer did (counters) and what it holds (gauges), at one moment.

    Counters count from the start of this run of the consumer.
    """

    received: int = 0
    """Messages received, repeated receives included."""
    receives: int = 0
    """ReceiveMessage requests, at $0.40 per million."""
    scouting_receives: int = 0
    """Those of them that looked for quiet tenants' messages although there was no room."""
    succeeded: int = 0
    """Handlers that returned."""
    duplicates: int = 0
    """Messages that their handlers found, in the inbox, to be handled before."""
    failed: Mapping[str, int]
    """Failed messages by the name of the error's type, such as ``ContextError``."""
    settled: Mapping[Settlement, int]
    """Messages by what became of them; deletes and visibility changes count once SQS confirmed them."""
    settlement_failures: int = 0
    """Deletes and visibility changes that were given up; the messages reappear after their visibility timeout."""
    extensions: int = 0
    """Visibility timeouts that the heartbeat extended."""
    poll_failures: int = 0
    """Receives that failed, or were not sent because no message can be deleted."""
    cancelled: int = 0
    """Handlers that had to be cancelled at stop."""
    slots: int = 0
    """Handlers that may run at once."""
    running: int = 0
    """Handlers that run now: slots in use."""
    waiting: int = 0
    """Messages that wait for a slot."""
    oldest_wait: float = 0.0
    """Seconds since the receive of the message here that has waited longest for its handler; 0.0 when none waits.
    Messages of tenants that cannot run are left out: more consumers would not help them."""
    suspended: int = 0
    """Messages that wait, without a slot, for their tenant's resources."""
    held: int = 0
    """Messages that this consumer owns now: running, waiting, and with an acknowledgement on its way."""
    held_bytes: int = 0
    """Bytes of their bodies."""
    tenants: int = 0
    """Tenants that have a message here now."""
    parked: int = 0
    """Messages of noisy tenants made invisible so far, so that those of quiet ones could be received."""
    deferred: int = 0
    """Messages made invisible so far because their tenant could not run."""
    away: int = 0
    """Messages that were parked or deferred, or that wait for a resolver or a payload type that fails for everything,
    and are invisible now; some may have reappeared."""
    outages: int = 0
    """Tenants, and hosts of tenants, with resources that cannot be used now; and tenants that are diverted to a queue
    that takes nothing. A tenant of which nothing has come for an hour is not among them, nor a host that nothing
    has needed for so long."""
    breakers: int = 0
    """Tenants that are paused because all of their handlers fail; those of which something came in the last hour."""
    scouting_stopped: str | None = None
    """Why quiet tenants' messages are not looked for when there is no room; None while they are."""
    group_mismatches: int = 0
    """How often MessageGroupId and context disagreed about a message's tenant, which keeps SQS's fair queues from
    telling tenants apart; 0 on FIFO queues."""
    last_poll_age: float | None = None
    """Seconds since SQS last answered a receive; None before the first answer. The measure of health."""
    loop_lag: float = 0.0
    """The longest time in seconds for which the event loop was blocked."""
    pool: PoolStatistics | None = None
    """The pool's own snapshot; None when the consumer has no resources."""
    utilisation: float = 0.0
    """The part of the slots that are in use. Tenants that may have no more of them cannot raise it."""
    oldest_wait_within_share: float = 0.0
    """Seconds for which the first waiting message of a tenant waits that has less than its share: since it was sent,
    if this is its first receive, else since it was received. With ``utilisation``, the signal to scale on: the backlog
    of a noisy tenant does not move it."""
    queues: Mapping[str, QueueStatistics] = field(default_factory=dict[str, QueueStatistics])
    """The figures of each queue by its name. Those of queues that were closed count only in the sums."""
    fleet: FleetStatistics | None = None
    """What this replica has of its fleet; None without ``fleet=``."""
