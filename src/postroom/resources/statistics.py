"""What a pool says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Counts since the pool was made. They only grow."""

    opened: int = 0
    closed: int = 0
    hits: int = 0
    misses: int = 0
    waits: int = 0
    timeouts: int = 0
    refusals: int = 0
    open_failures: int = 0
    permanent_failures: int = 0
    close_failures: int = 0
    checks: int = 0
    check_failures: int = 0
    revived: int = 0
    evictions: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatistics:
    """A snapshot of a pool. Counters first, then gauges; ``opened - closed == live`` always.

    Args:
        name: the pool's name.
        opened: providers entered successfully.
        closed: providers left, with or without an error.
        hits: leases handed out at once.
        misses: leases that had to wait for an open, a check or budget, or were refused.
        waits: keys that had to stand in line for budget or an opening.
        timeouts: leases that reached their deadline.
        refusals: leases refused at once, because the key or its host is left alone after failures.
        open_failures: providers that failed, permanent failures included.
        permanent_failures: those of them that trying again soon cannot help.
        close_failures: providers that raised or did not end in time when they were left.
        checks: health checks run.
        check_failures: health checks that failed.
        revived: entries that were drained for others and leased again before they closed.
        evictions: closes decided, by reason.
        budget: the limit of ``weight``.
        weight: the weights of everything open, opening or closing.
        live: resources open now.
        opening: providers being entered; also a resource that is checked before it is handed out at all.
        ready: entries that may be leased.
        draining: entries that close behind their last lease.
        closing: resources being closed.
        leased: leases out.
        waiting: calls that wait for a lease.
        cooling: keys left alone after a failure.
    """

    name: str
    opened: int
    closed: int
    hits: int
    misses: int
    waits: int
    timeouts: int
    refusals: int
    open_failures: int
    permanent_failures: int
    close_failures: int
    checks: int
    check_failures: int
    revived: int
    evictions: Mapping[str, int]
    budget: int
    weight: int
    live: int
    opening: int
    ready: int
    draining: int
    closing: int
    leased: int
    waiting: int
    cooling: int
