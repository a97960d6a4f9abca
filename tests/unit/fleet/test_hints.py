"""Turns at a host that is down: one replica at a time, by every clock."""

import contextlib
from collections.abc import Callable
from random import Random
from typing import Any
from unittest.mock import patch

import pytest

from postroom.fleet.hints import Hints
from postroom.fleet.memory import Store
from postroom.fleet.protocol import Ask, Hint, Request

LEASE, TICK, WAY = 6.0, 1.0, 0.4
HOST = "t:db1"
Defect = Callable[[], contextlib.AbstractContextManager[object]]


class Replicas:
    """Some replicas that want to try one host at every moment, a store, and a way between them that takes time."""

    def __init__(self, count: int) -> None:
        self.now = 0.0
        self.store = Store(lambda: self.now)
        self.hints = [Hints(LEASE, Random(number)) for number in range(count)]
        self.most_at_once = 0
        self.first_try: dict[int, float] = {}

    def exchange(self, number: int) -> None:
        """Ask for the hints and for a turn; both ways take time."""
        hints, asked = self.hints[number], self.now
        self.now += WAY
        known = self.store.fleets["orders"].hints.items()
        said = [Hint(host, until - self.now, cause) for host, (until, cause) in known if until > self.now]
        mine = [host for host in hints.claims() if self.store.claim_probe("orders", host, f"r{number}", LEASE)]
        self.now += WAY
        for host in mine:
            hints.claimed(host, asked)
        hints.asked(HOST)
        hints.learn(said, asked, self.now)

    def look(self) -> None:
        """Note which of them would try the host now."""
        free = [number for number, hints in enumerate(self.hints) if hints.wait("db1", self.now) is None]
        self.most_at_once = max(self.most_at_once, len(free))
        for number in free:
            self.first_try.setdefault(number, self.now)


def turns(*, store_goes: bool) -> Replicas:
    """Report a host as down and let five replicas ask for turns, of which none finds out anything."""
    replicas = Replicas(5)
    replicas.store.report("orders", HOST, "refused", 8.0)
    for number in range(5):
        replicas.exchange(number)
    until = 40.0
    while replicas.now < until:
        replicas.look()
        if not store_goes:
            for number in range(5):
                replicas.exchange(number)
                replicas.look()
        else:
            replicas.now += 0.05
    return replicas


def violations() -> list[str]:
    """Return the ways in which turns were not kept."""
    found: list[str] = []
    if turns(store_goes=False).most_at_once > 1:
        found.append("two replicas had the turn at once")
    first = sorted(turns(store_goes=True).first_try.values())
    if first[0] < 8.0 or first[-1] > 8.0 + 2 * LEASE + 5 or first[-1] - first[0] < 0.3 * LEASE:
        found.append(f"the replicas came back at {first}")
    return found


def test_one_replica_at_a_time_has_the_turn() -> None:
    """F12: no two try at once, long after the hint ran out; without the store they come back one by one."""
    assert violations() == []


def a_turn_leaves_no_hint() -> contextlib.AbstractContextManager[object]:
    """Who gets a turn tells the others nothing: their patience ends while it tries."""
    original = Store.claim_probe

    def claim(self: Store, *arguments: Any) -> bool:
        before = dict(self.fleets["orders"].hints)
        claimed = original(self, *arguments)
        self.fleets["orders"].hints = before
        return claimed

    return patch.object(Store, "claim_probe", claim)


def a_hint_ends_for_all() -> contextlib.AbstractContextManager[object]:
    """When a hint has run out, every replica tries."""
    original = Hints.__init__

    def init(self: Any, lease: float, rng: Random) -> None:
        original(self, lease, rng)
        self._patience = 0.0

    return patch.object(Hints, "__init__", init)


def all_are_as_patient() -> contextlib.AbstractContextManager[object]:
    """When the store is gone, the replicas come back in the same moment."""
    return patch.object(Random, "random", lambda _self: 0.5)


@pytest.mark.parametrize("defect", [a_turn_leaves_no_hint, a_hint_ends_for_all, all_are_as_patient])
def test_a_planted_defect_is_found(defect: Defect) -> None:
    """F12: hints that end for all at once do not go unseen."""
    with defect():
        assert violations()


def test_a_host_that_is_back_is_tried_at_once() -> None:
    """A hint that is missing before its end was taken back: nothing waits for it any longer."""
    hints = Hints(LEASE, Random(1))
    hints.learn([Hint(HOST, 8.0, "refused")], 0.0, 0.1)
    assert hints.wait("db1", 1.0) is not None
    hints.learn([], 1.0, 1.1)
    assert hints.wait("db1", 1.1) is None
    assert len(hints) == 0


def test_a_turn_counts_from_before_the_request_left() -> None:
    """F12: whenever the answer comes, the turn is over a margin before the store may give it to another replica."""
    hints = Hints(LEASE, Random(1))
    hints.learn([Hint(HOST, 20.0, "refused")], 0.0, 0.1)
    hints.claimed(HOST, 1.0)
    assert hints.wait("db1", 1.0 + 0.94 * LEASE) is None
    assert hints.wait("db1", 1.0 + 0.95 * LEASE) is not None


def told(hints: Hints, now: float) -> list[tuple[str, str | None]]:
    """Tell the store everything, and return what that was."""
    reports = hints.reports(now)
    for host, report in reports:
        hints.told(host, report)
    return [(host, report.cause) for host, report in reports]


def test_a_report_stays_until_the_store_knows_it() -> None:
    """A call that failed loses none of what was to be told, and what was told is not told again."""
    hints = Hints(LEASE, Random(1))
    hints.found_down("db1", "refused", 5.0, 0.0)
    hints.found_down("db2", "silent", 5.0, 0.0)
    [(host, report), _] = hints.reports(0.1)
    hints.told(host, report)  # the second call fails
    assert told(hints, 1.0) == [("t:db2", "silent")]
    assert told(hints, 2.0) == []


def test_what_was_found_out_while_a_report_was_on_its_way_is_told_too() -> None:
    """The later report is not taken for the one that the store knows."""
    hints = Hints(LEASE, Random(1))
    hints.found_down("db1", "refused", 5.0, 0.0)
    [(host, report)] = hints.reports(0.1)
    hints.found_up("db1")
    hints.told(host, report)
    assert told(hints, 0.2) == [("t:db1", None)]


def test_an_outage_that_may_be_over_is_not_told() -> None:
    """A store that comes back after minutes is not told of a host that nothing was heard of since."""
    hints = Hints(LEASE, Random(1))
    hints.found_down("db1", "refused", 5.0, 0.0)
    hints.found_up("db2")
    assert told(hints, 10.1) == []


def test_a_host_that_is_back_is_not_down_again_by_an_older_answer() -> None:
    """The answer that was on its way while the store was told does not know it yet."""
    hints = Hints(LEASE, Random(1))
    hints.learn([Hint(HOST, 8.0, "refused")], 0.0, 0.1)
    hints.found_up("db1")
    assert told(hints, 1.0) == [(HOST, None)]
    hints.learn([Hint(HOST, 7.0, "refused")], 0.9, 1.1)
    assert hints.wait("db1", 1.2) is None
    assert told(hints, 2.0) == []
    hints.learn([Hint(HOST, 8.0, "refused")], 1.9, 2.1)  # another replica has found it down since
    assert hints.wait("db1", 2.2) is not None


def test_a_turn_that_could_not_be_asked_for_is_asked_for_again() -> None:
    """The call to the store failed: a try that sleeps until the hint's end does not have to ask once more."""
    hints = Hints(LEASE, Random(1))
    hints.learn([Hint(HOST, 8.0, "refused")], 0.0, 0.1)
    assert hints.wait("db1", 0.2) is not None
    assert hints.claims() == [HOST]
    assert hints.claims() == [HOST]
    hints.asked(HOST)
    assert hints.claims() == []


def test_a_store_in_memory_forgets_hosts_and_tenants_that_are_gone() -> None:
    """As Valkey does. The replica that had the slots was killed, and the hosts were tried in vain."""
    now = 1000.0
    store = Store(lambda: now)

    def exchange(replica: str, *asks: Ask) -> None:
        request = Request(replica, int(now), "", LEASE, TICK, asks)
        store.exchange("orders", request)

    for number in range(3):
        store.report("orders", f"t:db{number}", "ConnectionError", 60.0)
    exchange("killed", *(Ask(f"t:{number}", 5, 0, 1, 1) for number in range(3)))
    now += LEASE / 2
    exchange("alive", Ask("t:2", 5, 0, 1, 1))
    fleet = store.fleets["orders"]
    assert (len(fleet.probes), len(fleet.slots)) == (3, 3)
    now += LEASE * 0.75
    exchange("alive")
    assert {tenant: [*slots] for tenant, slots in fleet.slots.items()} == {"t:2": ["alive"]}
    now += 60.0
    exchange("alive")
    assert (fleet.probes, fleet.slots) == ({}, {})
