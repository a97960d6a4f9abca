"""What the consumer may do with a broken tenant and with a poison message, worked out independently of it."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from postroom import Faults

PAUSE, LONGEST = 0.5, 15.0
"""Seconds for which a tenant is left alone at the least after its handlers met an outage; doubles up to the longest."""
STOP_TRIES = 2.0
"""Seconds after which a stop tries a tenant once more, however long its pause is."""


@dataclass(slots=True)
class _Start:
    at: float
    tenant: str
    opening: int
    """How often the tenant's breaker had opened before this handler was started."""


@dataclass(slots=True)
class _Tenant:
    row: int = 0
    """Failures with no success in between."""
    messages: set[str] = field(default_factory=set[str])
    trips: int = 0
    openings: int = 0
    opened_at: float | None = None
    pause: float = 0.0
    """The shortest that the present pause may be."""
    probes: set[str] = field(default_factory=set[str])
    """Receipt handles of handlers that were started while the breaker was open, and run."""
    successes: Counter[int] = field(default_factory=Counter[int])
    """By queue."""
    failures: Counter[str] = field(default_factory=Counter[str])
    """Of single messages that have not succeeded since."""
    outages: list[float] = field(default_factory=list[float])
    """When its handlers met an outage of its resources, since the last success."""
    before: dict[str, int] = field(default_factory=dict[str, int])
    """Successes of the tenant when a message failed first."""


class Blame:
    """One process's record of handlers: who failed, how often, and what follows from it.

    Each method returns what the consumer did wrong, or None. Poison is judged beside the others of its own queue: of
    several, each may be for a kind of message of its own.
    """

    def __init__(self, options: Faults, queue_of: Callable[[str], int] = lambda _message: 0) -> None:
        self._options = options
        self._queue_of = queue_of
        self._tenants: defaultdict[str, _Tenant] = defaultdict(_Tenant)
        self._starts: dict[str, _Start] = {}
        self.poisonous: set[str] = set()
        """Messages that may be rejected as poison."""
        self.trips = self.probes = 0

    def started(self, tenant: str, handle: str, now: float, *, released: bool, stops: bool = False) -> str | None:
        """Note that a handler was called. ``released``: it has its slot from a quarantine that ends in this instant.

        ``stops``: it may have no other chance than this drain, and its tenant's pause may be longer than that.
        """
        known = self._tenants[tenant]
        released = released and known.opened_at is not None
        self._starts[handle] = _Start(now, tenant, known.openings - released)
        # It had its slot when the breaker opened, or to be sent away.
        if known.opened_at is None or now == known.opened_at or released:
            return None
        self.probes += 1
        known.probes.add(handle)
        if now < known.opened_at + known.pause - 1e-6 and not stops:
            return f"starts a message of {tenant} while that is left alone, {now - known.opened_at:.3f} s after"
        if len(known.probes) > 1:
            return f"tries {len(known.probes)} messages of {tenant} at once, although its breaker is open"
        return None

    def started_at(self, handle: str) -> float:
        """Return when a handler was called."""
        return self._starts[handle].at

    def ended(self, handle: str, *, cut_off: bool) -> None:
        """Note that a handler ended. One that an outage cut off did not fail, whatever becomes of its message."""
        self._tenants[self._starts[handle].tenant].probes.discard(handle)
        if cut_off:
            del self._starts[handle]

    def succeeded(self, handle: str, message: str) -> None:
        """Note that everything around a handler ended well."""
        known = self._tenants[self._starts[handle].tenant]
        known.row = known.trips = 0
        known.messages.clear()
        known.opened_at = None
        known.probes.clear()
        known.successes[self._queue_of(message)] += 1
        known.outages.clear()
        known.failures.pop(message, None)
        known.before.pop(message, None)

    def failed(self, handle: str, message: str, now: float) -> None:
        """Note that a handler's failure was reported, so that it counts."""
        # Taken: of a FIFO queue it may be tried again with this handle, and fail before its handler is called.
        start = self._starts.pop(handle, None)
        if start is None:  # it failed before its handler was called
            return
        known = self._tenants[start.tenant]
        self._judge_message(known, message)
        known.row += 1
        known.messages.add(message)
        options = self._options
        if options.breaker_after is None:
            return
        if known.opened_at is None:
            if known.row < options.breaker_after or len(known.messages) < options.messages:
                return
        elif start.opening < known.openings or start.at == known.opened_at:
            return  # it ran when the breaker opened: that was counted
        self.trips += 1
        known.openings += 1
        known.opened_at = now
        known.pause = min(options.cap, options.base * 2.0**known.trips) / 2
        known.trips += 1

    def met_outage(self, tenant: str, at_once: int, now: float, *, more: int = 0) -> str | None:
        """Note that a handler met an outage of its tenant's resources. A stop tries so many times more."""
        outages = self._tenants[tenant].outages
        outages.append(now)
        seconds, rounds, pause = now - outages[0], 2 + more, PAUSE
        while seconds >= pause:
            seconds, rounds, pause = seconds - pause, rounds + 1, min(2 * pause, LONGEST)
        if len(outages) <= at_once * rounds:
            return None
        return f"lets handlers of {tenant} meet an outage {len(outages)} times in {now - outages[0]:.3f} s"

    def is_open(self, tenant: str) -> bool:
        """Return whether a tenant's breaker is open."""
        return self._tenants[tenant].opened_at is not None

    def _judge_message(self, known: _Tenant, message: str) -> None:
        options = self._options
        known.failures[message] += 1
        successes = known.successes[self._queue_of(message)]
        others = successes - known.before.setdefault(message, successes)
        if (
            options.poison_after is not None
            and known.failures[message] >= options.poison_after
            and others >= options.poison_others
        ):
            self.poisonous.add(message)
