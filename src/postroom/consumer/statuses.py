"""What became of a tenant, and what was decided about it."""

from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from postroom.fleet import TenantSlots
from postroom.message import Message
from postroom.scheduling import Scheduler


class TenantState(StrEnum):
    """What was decided about a tenant, or what became of it."""

    ACTIVE = "active"
    """Its messages are handled as they come, within its limits."""
    UNAVAILABLE = "unavailable"
    """Its resources cannot be opened, or its handlers fail: its messages wait. ``reason`` has the cause."""
    PAUSED = "paused"
    """Nothing of it starts: its messages wait, here and deferred in the queue."""
    QUARANTINED = "quarantined"
    """Its messages go to the dead-letter queue, with the reason."""
    DIVERTED = "diverted"
    """Its messages go to another queue, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantStatus:
    """One tenant: what was decided about it, and what it has here now."""

    key: Hashable
    """Its context, or what the pool's ``key=`` made of it."""
    state: TenantState = TenantState.ACTIVE
    """The decision of an operator, if there is one; else whether it can run."""
    reason: str | None = None
    """Why it is unavailable, or why it was paused, limited, put in quarantine or diverted, or why that fails."""
    since: float | None = None
    """For how many seconds it has been unavailable, or the queue that it is diverted to."""
    concurrency: int | None = None
    """Its own limit of running handlers, if it has one."""
    rate: float | None = None
    """Its own limit of handler starts per second, if it has one."""
    diverted_to: str | None = None
    """The queue that its messages go to, if it is diverted."""
    running: int = 0
    """Its handlers that run now."""
    waiting: int = 0
    """Its messages that wait here for a slot."""
    suspended: int = 0
    """Messages that wait, without a slot, for its resources."""
    handler_seconds: float = 0.0
    """What one of its messages takes, as a recent average."""
    fleet: TenantSlots | None = None
    """What this replica has of its limits over the fleet; None without ``fleet=``, or while the consumer is stopped."""


class Controlled(Protocol):
    """The consumer, as far as decisions about its tenants go."""

    @property
    def scheduler(self) -> Scheduler[Any]:
        """Where tenants have their lanes."""
        ...

    def decided(self, tenant: Hashable, *, paused: bool) -> None:
        """Carry out what was decided about a tenant: start, call back, give up resources."""
        ...

    def is_sent_away(self, job: Any) -> bool:
        """Whether a message goes to another queue, and to no handler."""
        ...

    def is_handling(self, tenant: Hashable, batched: Message | None) -> bool:
        """Whether the current task handles a message of a tenant, be it the first of a batch."""
        ...

    def retry_now(self, tenant: Hashable) -> None:
        """End a tenant's pause after failures."""
        ...

    def unavailable(self, tenant: Hashable) -> tuple[str, float] | None:
        """Return why a tenant cannot run, or go where it is diverted, and for how many seconds, if it cannot."""
        ...

    def troubled_tenants(self) -> list[Hashable]:
        """Return the tenants with an outage of their own, whether or not they have messages here."""
        ...
