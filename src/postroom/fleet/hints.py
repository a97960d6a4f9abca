"""Outages that one replica found, as hints to the others: a hint may delay a try, it never fails a message.

While a hint lasts, one replica of the fleet at a time tries the host; the others wait for what it finds out. A hint
that is not repeated runs out, and then every replica tries for itself.
"""

from collections.abc import Hashable, Iterable
from typing import Final

from postroom.fleet.names import Unnamable, name_of
from postroom.fleet.protocol import Hint

_LEAST: Final = 2.0
_MOST: Final = 60.0
"""Seconds for which a hint lasts, at least and at most: twice the pause that the replica makes itself."""
_CAUSE: Final = 200
"""Letters of a cause that are told."""
_REMEMBER: Final = 1_000
"""Hosts that messages here wait for, or that are to be reported."""


class Hints:
    """What is known of hosts that are down, and what is to be told of them.

    Args:
        lease: seconds for which a replica that may try a host has to find out how it is.
    """

    def __init__(self, lease: float) -> None:
        self.turn = lease
        self.known: dict[str, float] = {}
        """Hosts that a replica has said are down, each with the time until which that holds. It stays one object."""
        self._mine: dict[str, float] = {}
        self._wanted: dict[str, None] = {}
        self._reports: dict[str, tuple[str | None, float]] = {}

    def __len__(self) -> int:
        """Count the hosts that a replica has said are down."""
        return len(self.known)

    def is_down(self, host: Hashable) -> bool:
        """Whether a replica has said that a host is down."""
        return bool(self.known) and _named(host) in self.known

    def wait(self, host: Hashable, now: float) -> float | None:
        """Return until when a try of a host should wait for another replica's; None where it need not."""
        if not self.known:
            return None
        name = _named(host)
        until = None if name is None else self.known.get(name)
        if name is None or until is None or until <= now or self._mine.get(name, 0.0) > now:
            return None
        if len(self._wanted) < _REMEMBER:
            self._wanted[name] = None
        return until

    def found_down(self, host: Hashable, cause: str, pause: float) -> None:
        """Note that a host was found to be down here: the others are told with the next exchange."""
        name = _named(host)
        if name is not None and len(self._reports) < _REMEMBER:
            self._mine.pop(name, None)
            self._reports[name] = (cause[:_CAUSE], min(_MOST, max(_LEAST, 2 * pause)))

    def found_up(self, host: Hashable) -> None:
        """Note that a host was reached: those that wait for it are told with the next exchange."""
        name = _named(host)
        if name is not None and (name in self.known or name in self._reports):
            self.known.pop(name, None)
            self._mine.pop(name, None)
            self._reports[name] = (None, _LEAST)

    def reports(self) -> list[tuple[str, tuple[str | None, float]]]:
        """Return what is to be told, once."""
        reports, self._reports = list(self._reports.items()), {}
        return reports

    def claims(self) -> list[str]:
        """Return the hosts of which this replica would be the one to try."""
        wanted, self._wanted = [host for host in self._wanted if host in self.known], {}
        return wanted

    def claimed(self, host: str, now: float) -> None:
        """Note that this replica may try a host."""
        self._mine[host] = now + self.turn

    def learn(self, hints: Iterable[Hint], now: float) -> None:
        """Take over what the store knows."""
        self.known.clear()
        self.known.update({hint.host: now + hint.seconds for hint in hints if hint.host not in self._reports})
        self._mine = {host: until for host, until in self._mine.items() if host in self.known and until > now}


def _named(host: Hashable) -> str | None:
    try:
        return name_of(host)
    except Unnamable:
        return None
