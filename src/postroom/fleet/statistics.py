"""A snapshot of what one replica knows of its fleet."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStatistics:
    """What a consumer has of its fleet (gauges), and what it did for that (counters of this run), at one moment."""

    name: str
    """Under which name the replicas meet."""
    reachable: bool
    """Whether the last exchange with the store succeeded."""
    degraded: bool
    """Whether the fallback applies: the slots that were granted have run out."""
    replicas: int
    """Replicas alive, this one included, as the store said last."""
    slots: int
    """Slots that this replica holds, for all tenants together."""
    tenants: int
    """Tenants for which it holds or wants some."""
    starved: int
    """Tenants that have messages here and no slot of the fleet's."""
    overruns: int
    """Handlers so far that went on after their slots were lost."""
    exchanges: int
    """Exchanges with the store that succeeded."""
    failed_exchanges: int
    """Exchanges that failed, or had no answer in time."""
    last_exchange_age: float | None
    """Seconds since the last one that succeeded was begun; None before the first."""
    last_exchange_seconds: float
    """Seconds that it took."""
    decisions: int
    """Version of the operators' decisions: the time of the last one by the store's clock, in milliseconds."""
    hosts_down: int
    """Hosts that a replica has said are down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSlots:
    """What a replica has of one tenant's limits over the fleet."""

    cap: int | None
    """Handlers of it that may run at once in the whole fleet; None for no such limit."""
    rate: float | None
    """Handlers of it that may start per second in the whole fleet; None for no such limit."""
    slots: int | None
    """How many of the cap this replica may use now; None for as many as its own limits allow."""
    share: int
    """Its part as the store said last: it gives back what it holds beyond that."""
    contended: bool
    """Whether another replica waits for slots of this tenant."""
