"""In which order tenants are shown. It is kept from look to look: a look at calm tenants costs next to nothing."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from postroom.console.collecting import Collector
from postroom.consumer import TenantState, TenantStatus
from postroom.scheduling.tickets import Lane

SHORT: Final = 1.0
"""Seconds of waiting that count as none in the order of rows: a calm page does not flicker."""
_ALL_OVER: Final = 10.0
"""Seconds after which all tenants are put in order again, although nothing is known to have changed it."""
_FORGET: Final = 100
"""Looks after which every viewer has seen what was touched."""

Lanes = Mapping[Hashable, Lane[Any]]


class Entry(NamedTuple):
    """One tenant of one consumer."""

    id: str
    """What the page calls it: the place of its consumer among those that are shown, and its name."""
    name: str
    number: int
    key: Hashable


class Ranking:
    """Every tenant, and in front of them those that wait.

    Args:
        collectors: one per consumer.
    """

    def __init__(self, collectors: Sequence[Collector]) -> None:
        self._collectors = collectors
        self.everyone: list[Entry] = []
        """All tenants: first those that are unavailable, paused or sent away; then those of which messages were seen;
        then those with a limit or open resources only. By name."""
        self.version: int = 0
        """Changes whenever ``everyone`` does."""
        self.front: list[Entry] = []
        """Tenants with a message that waits for more than a second, the longest wait first; then held ones."""
        self.look: int = 0
        self.touched: dict[str, int] = {}
        """By id the last look at which something of a tenant was here, was decided, or happened."""
        self._known: list[dict[Hashable, Entry]] = [{} for _ in collectors]
        self._revisions = [-1 for _ in collectors]
        self._rules: list[dict[Hashable, TenantStatus]] = [{} for _ in collectors]
        self._troubled: list[list[Hashable]] = [[] for _ in collectors]
        self._tallied: list[int] = [0 for _ in collectors]
        self._here: set[str] = set()
        self._made: float | None = None

    def update(self, lanes: Sequence[Lanes], *, wall: float, loop: float) -> None:
        """Take a look."""
        self.look += 1
        # Also by time: a pool opens and closes resources without a word to this class.
        stale = self._made is None or loop - self._made >= _ALL_OVER
        changed: list[tuple[int, Hashable]] = []
        for number, collector in enumerate(self._collectors):
            stale |= self._notice(number, collector, lanes[number], changed)
        if stale:
            self._made = loop
            self._rank_all(lanes)
        for number, key in changed:
            self._touch(number, key)
        # After the order was made: what is new has its entry only now.
        self._touch_events()
        self._rank_front(lanes, wall)

    def _notice(self, number: int, collector: Collector, lanes: Lanes, changed: list[tuple[int, Hashable]]) -> bool:
        """Find what was decided since the last look. Returns whether the order has to be made again."""
        known, tenants = self._known[number], collector.consumer.tenants
        stale = False
        if tenants.revision != self._revisions[number]:
            rules, before = tenants.rules(), self._rules[number]
            self._revisions[number] = tenants.revision
            stale = True
            changed += ((number, key) for key, rule in rules.items() if before.get(key) is not rule)
            changed += ((number, key) for key in before.keys() - rules.keys())
            self._rules[number] = rules
        control = tenants.consumer if collector.consumer.running else None
        troubled = [] if control is None else control.troubled_tenants()
        if troubled != self._troubled[number]:
            stale = True
            self._troubled[number] = troubled
        # By the count: comparing the keys of 20,000 tenants at every look would cost more than the
        # order.
        if len(collector.tallies) != self._tallied[number]:
            stale = True
            self._tallied[number] = len(collector.tallies)
        return stale or not lanes.keys() <= known.keys() or not collector.away.keys() <= known.keys()

    def _rank_all(self, lanes: Sequence[Lanes]) -> None:
        ranked: list[tuple[int, str, Entry]] = []
        for number, collector in enumerate(self._collectors):
            pool = collector.consumer.pool
            rules = self._rules[number]
            stopped = (key for key, rule in rules.items() if rule.state is not TenantState.ACTIVE)
            first = dict.fromkeys([*stopped, *self._troubled[number]])
            seen = dict.fromkeys([*lanes[number], *collector.tallies, *collector.away])
            opened = [] if pool is None else pool.keys()
            known = self._known[number]
            self._known[number] = found = {}
            for key in dict.fromkeys([*first, *seen, *rules, *opened]):
                entry = known.get(key)
                if entry is None:
                    name = collector.name_of(key)
                    entry = Entry(f"{number}:{name}", name, number, key)
                found[key] = entry
                ranked.append((0 if key in first else 1 if key in seen else 2, entry.name, entry))
        ranked.sort(key=_place)
        everyone = [entry for _, _, entry in ranked]
        # Compared, so that viewers with an unchanged order are not sent all names again.
        if everyone != self.everyone:
            self.everyone = everyone
            self.version += 1
        self.touched = {name: look for name, look in self.touched.items() if look > self.look - _FORGET}

    def _touch_events(self) -> None:
        """Touch the tenants with events since the last look."""
        for number, collector in enumerate(self._collectors):
            for key in collector.heard:
                self._touch(number, key)
            collector.heard.clear()

    def _touch(self, number: int, key: Hashable) -> None:
        entry = self._known[number].get(key)
        if entry is not None:
            self.touched[entry.id] = self.look

    def _rank_front(self, lanes: Sequence[Lanes], wall: float) -> None:
        """Put those in front that wait; touch those that have something here, or had it at the last look."""
        waiting: list[tuple[int, float, str, Entry]] = []
        here: set[str] = set()
        for number, known in enumerate(self._known):
            for key, lane in lanes[number].items():
                entry = known[key]
                here.add(entry.id)
                oldest = oldest_of(lane)
                waited = 0.0 if oldest is None else wall - oldest
                if waited >= SHORT:
                    waiting.append((0, -waited, entry.name, entry))
                elif lane.blocked:
                    waiting.append((1, 0.0, entry.name, entry))
        # Those of the last look, too: a tenant that has nothing any longer must be shown once
        # without it.
        self.touched.update(dict.fromkeys(here | self._here, self.look))
        self._here = here
        waiting.sort(key=_wait)
        self.front = [item[3] for item in waiting]

    def first(self, *, top: int, search: str = "") -> tuple[list[Entry], list[Entry]]:
        """Return those in front, and the others behind them: ``top`` together; with ``search``, those of that name."""
        front, everyone = self.front, self.everyone
        if search:
            wanted = search.lower()
            front = [entry for entry in front if wanted in entry.name.lower()]
            everyone = [entry for entry in everyone if wanted in entry.name.lower()]
        front = front[:top]
        ids = {entry.id for entry in front}
        behind = [entry for entry in everyone[:top] if entry.id not in ids] if ids else everyone[:top]
        return front, behind[: top - len(front)]

    def ids(self, *, top: int, search: str = "") -> list[str]:
        """Return the ids of the first of all tenants, those in front among them."""
        wanted = search.lower()
        chosen = [entry.id for entry in self.everyone if wanted in entry.name.lower()] if search else None
        return [entry.id for entry in self.everyone[:top]] if chosen is None else chosen[:top]


def _place(item: tuple[int, str, Entry]) -> tuple[int, str]:
    return item[:2]


def _wait(item: tuple[int, float, str, Entry]) -> tuple[int, float, str]:
    return item[:3]


def oldest_of(lane: Lane[Any]) -> float | None:
    """Return when the first message in a lane was sent."""
    if not lane.waiting:
        return None
    sent: float | None = lane.waiting[0].message.sent_at
    return sent
