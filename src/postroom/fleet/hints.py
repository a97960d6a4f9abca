"""Outages that one replica found, as hints to the others: a hint may delay a try, it never fails a message.

While a hint lasts, one replica of the fleet at a time tries the host; the others wait for what it finds out. Who gets
a turn makes the hint last for it. A hint that is not repeated runs out. A try still asks for a turn for one to two more
leases then, another time in each replica, so that not all of them try at once; after that each tries for itself.
"""

from collections.abc import Hashable, Iterable
from random import Random
from typing import Final, NamedTuple

from postroom.fleet.ledger import MARGIN
from postroom.fleet.names import name_or_none
from postroom.fleet.protocol import Hint

_LEAST: Final = 2.0
MOST: Final = 60.0
"""Seconds for which a hint lasts, at least and at most: twice the pause that the replica makes itself."""
_CAUSE: Final = 200
"""Letters of a cause that are told."""
_REMEMBER: Final = 1_000
"""Hosts that messages here wait for, or that are to be reported."""


class Report(NamedTuple):
    """What is to be told of a host."""

    cause: str | None
    """Why it is down; None: it is back."""
    until: float
    """Then it is worth nothing, if the store could not be told before."""


class Hints:
    """What is known of hosts that are down, and what is to be told of them.

    Args:
        lease: seconds for which a replica that may try a host has to find out how it is.
        rng: says how much longer than others this replica waits when a hint has run out.
    """

    def __init__(self, lease: float, rng: Random) -> None:
        self.turn = lease
        self._patience = lease * (1 + rng.random())
        self.known: dict[str, float] = {}
        """Hosts that a replica has said are down, each with the time until which a try here waits for its turn.
        It stays one object."""
        self._ends: dict[str, float] = {}
        self._mine: dict[str, float] = {}
        self._wanted: dict[str, None] = {}
        self._reports: dict[str, Report] = {}
        self._told: set[str] = set()
        """Hosts that were told to be back since the last request left: its answer does not know that yet."""

    def __len__(self) -> int:
        """Count the hosts that a replica has said are down."""
        return len(self.known)

    def is_down(self, host: Hashable) -> bool:
        """Whether a replica has said that a host is down."""
        return bool(self.known) and name_or_none(host) in self.known

    def wait(self, host: Hashable, now: float) -> float | None:
        """Return until when a try of a host should wait for another replica's; None where it need not."""
        if not self.known:
            return None
        name = name_or_none(host)
        until = None if name is None else self.known.get(name)
        if name is None or until is None or until <= now or self._mine.get(name, 0.0) > now:
            return None
        if len(self._wanted) < _REMEMBER:
            self._wanted[name] = None
        return until

    def found_down(self, host: Hashable, cause: str, pause: float, now: float) -> None:
        """Note that a host was found to be down here: the others are told with the next exchange."""
        name = name_or_none(host)
        if name is not None and (name in self._reports or len(self._reports) < _REMEMBER):
            self._mine.pop(name, None)
            self._reports[name] = Report(cause[:_CAUSE], now + min(MOST, max(_LEAST, 2 * pause)))

    def found_up(self, host: Hashable) -> None:
        """Note that a host was reached: those that wait for it are told with the next exchange."""
        name = name_or_none(host)
        if name is not None and (name in self.known or name in self._reports):
            self.known.pop(name, None)
            self._mine.pop(name, None)
            self._reports[name] = Report(None, float("inf"))

    def reports(self, now: float) -> list[tuple[str, Report]]:
        """Return what is to be told of each host, until ``told`` says that the store knows it, or it is too late."""
        self._told.clear()
        self._reports = {host: report for host, report in self._reports.items() if report.until > now}
        return list(self._reports.items())

    def told(self, host: str, report: Report) -> None:
        """Note that the store knows a report. What was found out meanwhile is still to be told."""
        if report.cause is None:
            self._told.add(host)
        if self._reports.get(host) is report:
            del self._reports[host]

    def claims(self) -> list[str]:
        """Return the hosts of which this replica would be the one to try, until ``asked`` says that the store said."""
        self._wanted = {host: None for host in self._wanted if host in self.known}
        return list(self._wanted)

    def asked(self, host: str) -> None:
        """Note that the store has said whether this replica may try a host. A try that still waits asks again."""
        self._wanted.pop(host, None)

    def claimed(self, host: str, asked: float) -> None:
        """Note that this replica may try a host: from before the request left, less the margin of a lease.

        The store counts the turn from when the request came, so it has not given it to another one by then.
        """
        self._mine[host] = asked + self.turn * (1 - MARGIN)

    def learn(self, hints: Iterable[Hint], asked: float, now: float) -> None:
        """Take over what the store said to a request that left at ``asked``.

        A hint that is missing before its end was taken back: the host is up. One that has run out says nothing, and
        a replica that wants to try the host still asks for a turn, for a while.
        """
        ran_out = {host: end for host, end in self._ends.items() if end <= now < end + self._patience}
        told = {hint.host: asked + hint.seconds * (1 - MARGIN) for hint in hints}
        # A host that was found down meanwhile stays known: its next try waits for a turn, as of all others.
        later = self._told | {host for host, report in self._reports.items() if report.cause is None}
        ends = {host: end for host, end in (ran_out | told).items() if host not in later}
        self._ends = {host: end for host, end in ends.items() if host in told or host in self.known}
        self.known.clear()
        self.known.update({host: end + self._patience for host, end in self._ends.items()})
        self._mine = {host: until for host, until in self._mine.items() if host in self.known and until > now}
