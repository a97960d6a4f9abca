"""What an operator decided about tenants of one process, and whether the consumer obeys."""

import asyncio
from dataclasses import dataclass
from typing import Any

from postroom.consumer import Tenants

DIVERT = "divert "
"""Before the name of the queue."""
OWN_QUEUE = "orders"
"""The queue that messages come from: what is diverted there stays."""
ELSEWHERE = "elsewhere"
"""Another one that exists."""


@dataclass(slots=True)
class _Decision:
    stopped_at: float | None = None
    """Since when nothing of the tenant may start: a pause, or a quarantine."""
    concurrency: int | None = None
    limited_at: float = 0.0
    resumed_at: float | None = None
    quarantined: bool = False
    """Whether it ever was."""
    diverted: bool = False
    """Whether it is diverted to another queue than its own."""
    diverted_until: float = -1.0
    """When its last diversion to another queue ended."""


class Decisions:
    """Carries decisions out, and remembers them."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._of: dict[str, _Decision] = {}
        self._decided: set[str] = set()
        self.count = 0

    def decide(self, what: str, tenant: str, key: Any) -> None:
        """Carry a decision out, in the loop's own thread: it counts at once."""
        self.count += 1
        known = self._of.setdefault(tenant, _Decision())
        now = asyncio.get_running_loop().time()
        if what != "resume":
            self._decided.add(tenant)
        if known.diverted and not what.startswith("limit"):  # the next decision takes its place
            known.diverted, known.diverted_until = False, now
        match what:
            case "pause" | "drain":
                self._tenants.pause(key)
                known.stopped_at = now
            case "quarantine":
                self._tenants.quarantine(key, reason="quarantine: for a test")
                known.stopped_at = now
                known.quarantined = True
            case _ if what.startswith(DIVERT):
                self._tenants.divert(key, queue=what.removeprefix(DIVERT), reason="for a test")
                known.diverted = not what.endswith((OWN_QUEUE, f"{OWN_QUEUE}.fifo"))
                known.stopped_at = now if known.diverted else None  # also of a pause before it
            case "limit concurrency":
                self._tenants.limit(key, concurrency=1)
                known.concurrency = 1
                known.limited_at = now
            case "limit rate":
                self._tenants.limit(key, rate=2.0)
            case _:
                self._tenants.limit(key, concurrency=None, rate=None)
                self._tenants.resume(key)
                known.stopped_at = known.concurrency = None
                known.resumed_at = now

    def started(self, tenant: str, running: int) -> str | None:
        """Judge the start of a handler; ``running`` counts it."""
        known = self._of.get(tenant)
        if known is None:
            return None
        now = asyncio.get_running_loop().time()
        if known.stopped_at is not None and now > known.stopped_at:  # at that instant it had its slot already
            return f"starts a message of {tenant}, paused, diverted or in quarantine since {known.stopped_at:.3f}"
        if known.concurrency is not None and running > known.concurrency and now > known.limited_at:
            return f"runs {running} handlers of {tenant}, limited to {known.concurrency}"
        return None

    def is_stopped(self, tenant: str) -> bool:
        """Whether nothing of a tenant may start now."""
        known = self._of.get(tenant)
        return known is not None and known.stopped_at is not None

    def resumes(self, tenant: str) -> bool:
        """Whether a tenant is resumed in this very instant."""
        known = self._of.get(tenant)
        return known is not None and known.resumed_at == asyncio.get_running_loop().time()

    def has_decided(self, tenant: str) -> bool:
        """Whether anything was ever decided about a tenant here."""
        return tenant in self._decided

    def was_diverted(self, tenant: str, since: float = 0.0) -> bool:
        """Whether a tenant was diverted to another queue than its own at any time since."""
        known = self._of.get(tenant)
        return known is not None and (known.diverted or known.diverted_until >= since)

    def was_quarantined(self, tenant: str) -> bool:
        """Whether a tenant ever was in quarantine here."""
        known = self._of.get(tenant)
        return known is not None and known.quarantined
