"""A poison message, or a broken tenant? Told apart by what else of the tenant succeeds."""

import logging
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from random import Random
from typing import Final

from postroom.errors import Reject
from postroom.options import Faults

_log = logging.getLogger("postroom.consumer")

REMEMBER: Final = 10_000
"""Tenants and messages remembered at the most; those that failed longest ago are forgotten first."""


@dataclass(slots=True)
class _Tenant:
    failures: int = 0
    """In a row, with no success in between."""
    messages: set[str] = field(default_factory=set[str])
    trips: int = 0
    until: float = 0.0
    """Not 0.0: the breaker is open until then, and then lets one message through as a probe."""
    succeeded: int = 0
    """Since its first failure."""


class FaultWatch:
    """Counts handler failures per tenant and per message. Pure: it says what follows, others act on it.

    Everything of a tenant fails: its breaker opens. Nothing of it is started then, and nothing fails, until a pause is
    over; one message is tried, and its end decides. The same message fails again and again while others of its tenant
    succeed: that message is poison.
    """

    def __init__(self, options: Faults, *, rng: Random) -> None:
        self._options = options
        self._rng = rng
        self._tenants: OrderedDict[Hashable, _Tenant] = OrderedDict()
        self._messages: OrderedDict[str, tuple[int, int]] = OrderedDict()  # failures, successes at the first of them
        self._open: dict[Hashable, _Tenant] = {}

    @property
    def open(self) -> int:
        """How many tenants' breakers are open."""
        return len(self._open)

    def until(self, tenant: Hashable) -> float:
        """Return the time before which nothing of a tenant may start; 0.0 while its breaker is closed."""
        known = self._open.get(tenant) if self._open else None
        return 0.0 if known is None else known.until

    def succeeded(self, tenant: Hashable, message: str) -> bool:
        """Note a success. Returns whether it closes the tenant's breaker."""
        if not self._tenants:
            return False
        self._messages.pop(message, None)
        known = self._tenants.get(tenant)
        if known is None:
            return False
        known.succeeded += 1
        known.failures = known.trips = 0
        known.messages.clear()
        known.until = 0.0
        return self._open.pop(tenant, None) is not None

    def failed(
        self, tenant: Hashable, message: str, error: Exception, now: float, *, probe: bool = False
    ) -> Reject | None:
        """Note a failure, of a probe or of any other message. Returns a rejection if the message is poison."""
        known = self._remember(tenant)
        known.failures += 1
        if len(known.messages) < self._options.messages:
            known.messages.add(message)
        self._judge_tenant(tenant, known, now, probe=probe)
        return self._judge_message(message, known, error)

    def _judge_tenant(self, tenant: Hashable, known: _Tenant, now: float, *, probe: bool) -> None:
        options = self._options
        if options.breaker_after is None or (known.until and not probe):
            return  # what ran when the breaker opened was counted then: only the probe's end decides
        enough = known.failures >= options.breaker_after and len(known.messages) >= options.messages
        if not (probe or enough):
            return
        ceiling = min(options.cap, options.base * 2.0 ** min(known.trips, 60))
        known.trips += 1
        known.until = now + self._rng.uniform(ceiling / 2, ceiling)
        self._open[tenant] = known
        _log.warning("All of a tenant fails (%d in a row): left alone for %.3g s", known.failures, known.until - now)

    def _judge_message(self, message: str, known: _Tenant, error: Exception) -> Reject | None:
        options = self._options
        if options.poison_after is None:
            return None
        failures, before = self._messages.pop(message, (0, known.succeeded))
        failures += 1
        others = known.succeeded - before
        if failures >= options.poison_after and others >= options.poison_others:
            kind = type(error).__name__
            return Reject(f"poison: failed {failures} times, last with {kind}; {others} others of its tenant succeeded")
        if len(self._messages) >= REMEMBER:
            self._messages.popitem(last=False)
        self._messages[message] = (failures, before)
        return None

    def _remember(self, tenant: Hashable) -> _Tenant:
        known = self._tenants.get(tenant)
        if known is None:
            if len(self._tenants) >= REMEMBER:
                forgotten, _ = self._tenants.popitem(last=False)
                self._open.pop(forgotten, None)
            known = self._tenants[tenant] = _Tenant()
        self._tenants.move_to_end(tenant)
        return known
