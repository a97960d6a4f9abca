"""The scheduler grants slots by turns, within its caps, and keeps message groups in order."""

from collections.abc import Callable
from typing import Any

import pytest

from postroom.scheduling import Pace, Scheduler, State, Ticket


class Work(Ticket, eq=False):
    """A ticket with a name."""

    name: str = ""

    def is_again(self, earlier: Ticket) -> bool:
        """Whether a ticket of the same name is its earlier one."""
        return isinstance(earlier, Work) and self.name == earlier.name


def work(name: str, *, group: str | None = None) -> Work:
    """Make a ticket; its name without the digits is its tenant."""
    return Work(name.rstrip("0123456789"), group, name=name)


def scheduler(
    *names: str, total: int = 100, per_tenant: int = 100, reserved: int = 0
) -> tuple[Scheduler[Work], dict[str, Work]]:
    """Make a scheduler that holds the named tickets; a name without its digits is its tenant."""
    made = Scheduler[Work](total=total, per_tenant=per_tenant, reserved=reserved)
    tickets = {name: work(name) for name in names}
    for ticket in tickets.values():
        made.add(ticket)
    return made, tickets


def granted(made: Scheduler[Work]) -> list[str]:
    """Grant everything that may run now, and return the names in order."""
    names: list[str] = []
    while (ticket := made.grant()) is not None:
        names.append(ticket.name)
    return names


def test_tenants_take_turns() -> None:
    """A tenant with many messages gets one slot per turn, like everybody."""
    made, _ = scheduler("a1", "a2", "a3", "b1", "c1", "c2")
    assert granted(made) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_total_is_never_exceeded() -> None:
    """With all slots in use none is granted, until one is freed."""
    made, tickets = scheduler("a1", "b1", "c1", total=2)
    assert granted(made) == ["a1", "b1"]
    made.finish(tickets["a1"])
    assert granted(made) == ["c1"]


def received(made: Scheduler[Work], *names: str) -> list[str]:
    """Take in what one receive brings, and return the names of what has a slot at once."""
    room = made.has_room(len(names))
    tickets = [work(name) for name in names]
    for ticket in tickets:
        if not (room and made.seat(ticket)):
            made.add(ticket)
    return [ticket.name for ticket in tickets if ticket.state is State.RUNNING]


def test_what_arrives_is_seated_where_there_are_slots_for_all() -> None:
    """Otherwise all of it waits for its turn: the first of a receive must not have the slots of the others."""
    made, _ = scheduler(total=5, reserved=1)
    assert received(made, "a1", "a2", "b1") == ["a1", "a2", "b1"]
    assert received(made, "a3", "c1") == []  # one slot is left beside the reserve
    assert granted(made) == ["c1"]


def test_nothing_is_seated_before_what_waits() -> None:
    """Slots are free, and what waits may not have one, since its tenant has its cap."""
    made, _ = scheduler(per_tenant=2)
    assert received(made, "a1", "a2", "a3", "b1") == ["a1", "a2", "b1"]
    assert received(made, "b2") == []
    assert granted(made) == ["b2"]


def test_what_is_seated_counts_like_what_is_granted() -> None:
    """Its seconds are its tenant's: one that had much of them is behind the others."""
    made, tickets = scheduler("a1", "b1", total=4)
    seated = {name: work(name) for name in ("a2", "b2")}
    assert granted(made) == ["a1", "b1"]
    assert made.has_room(2)
    assert all(map(made.seat, seated.values()))
    for name in ("a3", "a4", "b3", "b4"):
        made.add(work(name))
    made.finish(seated["a2"], seconds=10.0)
    made.finish(seated["b2"], seconds=0.01)
    assert granted(made) == ["b3", "b4"]
    made.finish(tickets["a1"], seconds=0.01)
    assert granted(made) == ["a3"]


@pytest.mark.parametrize(
    "decide",
    [
        lambda made: made.control("a", paused=True),
        lambda made: made.control("a", cap=1),
        lambda made: made.adjust(total=1, per_tenant=1),
    ],
)
def test_nothing_is_seated_after_a_decision(decide: Callable[[Scheduler[Work]], None]) -> None:
    """By what a receive calls for each of its messages, as a resolver: what follows stands in line."""
    made, _ = scheduler()
    assert made.has_room(3)
    assert made.seat(work("b1"))
    decide(made)
    assert not any(made.seat(work(name)) for name in ("a1", "b2"))


def test_one_tenant_is_capped_and_the_others_take_the_rest() -> None:
    """The per-tenant cap holds one tenant back, never the slots."""
    made, tickets = scheduler("a1", "a2", "a3", "b1", total=4, per_tenant=2)
    assert granted(made) == ["a1", "b1", "a2"]
    made.finish(tickets["a2"])
    assert granted(made) == ["a3"]


def test_a_slot_is_freed_per_message() -> None:
    """One slow message keeps one slot; everything else flows past it."""
    made, tickets = scheduler("slow", *(f"a{n}" for n in range(50)), total=2)
    assert granted(made) == ["slow", "a0"]
    for number in range(49):
        made.finish(tickets[f"a{number}"])
        assert granted(made) == [f"a{number + 1}"]


def test_a_message_group_has_one_in_flight_and_keeps_its_order() -> None:
    """The second message of a group waits for the first, other groups do not."""
    made = Scheduler[Work](total=10, per_tenant=10)
    first, second, other = work("a1", group="g"), work("a2", group="g"), work("a3", group="h")
    for ticket in (first, second, other):
        made.add(ticket)
    assert granted(made) == ["a1", "a3"]
    made.finish(first)
    assert granted(made) == ["a2"]


def test_a_group_goes_on_with_another_tenant() -> None:
    """A group with messages that belong to two tenants is still served one at a time."""
    made = Scheduler[Work](total=10, per_tenant=10)
    first, second = work("a1", group="g"), work("b1", group="g")
    made.add(first)
    made.add(second)
    assert granted(made) == ["a1"]
    made.finish(first)
    assert granted(made) == ["b1"]
    made.finish(second)
    assert made.size == 0


def test_the_rest_of_a_failed_group_is_withdrawn_in_order() -> None:
    """What waits behind a failed message is handed back in order, and the group is free again."""
    made = Scheduler[Work](total=10, per_tenant=10)
    tickets = [work(f"a{n}", group="g") for n in range(4)]
    for ticket in tickets:
        made.add(ticket)
    assert granted(made) == ["a0"]
    assert [ticket.name for ticket in made.withdraw_group(tickets[0])] == ["a1", "a2", "a3"]
    made.finish(tickets[0])
    again = work("a9", group="g")
    made.add(again)
    assert granted(made) == ["a9"]


def test_work_that_comes_again_is_first_of_what_waits_behind_its_head() -> None:
    """What is behind it is in order, although the head is not done."""
    made = Scheduler[Work](total=10, per_tenant=10)
    head, behind, again = (work(name, group="g") for name in ("a1", "a2", "a1"))
    for ticket in (head, behind, again):
        made.add(ticket)
    assert granted(made) == ["a1"]
    assert made.has_again(head)
    made.finish(head)
    assert granted(made) == ["a1"]
    assert not made.has_again(again)
    made.finish(again)
    assert granted(made) == ["a2"]


def test_only_the_head_withdraws_its_group() -> None:
    """A ticket that is not the head of a group, or has none, withdraws nothing."""
    made = Scheduler[Work](total=10, per_tenant=10)
    head, behind, single = work("a1", group="g"), work("a2", group="g"), work("a3")
    for ticket in (head, behind, single):
        made.add(ticket)
    assert made.withdraw_group(behind) == []
    assert made.withdraw_group(single) == []


def test_a_suspended_ticket_holds_no_slot_and_closes_its_lane() -> None:
    """While a tenant's resources open, its slot serves others and its lane grants nothing."""
    made, tickets = scheduler("a1", "a2", "b1", total=1)
    assert granted(made) == ["a1"]
    made.suspend(tickets["a1"])
    assert made.statistics().running == 0
    assert granted(made) == ["b1"]
    made.finish(tickets["b1"])
    assert granted(made) == []


def test_a_resumed_ticket_is_first_in_its_lane() -> None:
    """The message that waited for the resources runs before those that came after it."""
    made, tickets = scheduler("a1", "a2", total=1)
    granted(made)
    made.suspend(tickets["a1"])
    made.resume(tickets["a1"])
    assert granted(made) == ["a1"]
    made.finish(tickets["a1"])
    assert granted(made) == ["a2"]


def test_a_suspended_ticket_that_ends_opens_its_lane() -> None:
    """When the resources could not be opened, the next message of the tenant gets its turn."""
    made, tickets = scheduler("a1", "a2", total=1)
    granted(made)
    made.suspend(tickets["a1"])
    made.finish(tickets["a1"])
    assert granted(made) == ["a2"]


def test_a_lane_that_is_blocked_for_long_sheds_its_surplus_newest_first() -> None:
    """It keeps so many; other lanes, and those that were blocked only now, keep all."""
    made, tickets = scheduler(*(f"a{n}" for n in range(5)), "b1", "b2", "b3", total=2)
    assert granted(made) == ["a0", "b1"]
    made.suspend(tickets["a0"], now=10)
    made.suspend(tickets["b1"], now=11)
    assert [ticket.name for ticket in made.shed(keep=2, blocked_before=10)] == ["a4", "a3", "a2"]
    assert made.shed(keep=2, blocked_before=10) == []
    assert made.waiting == 3
    made.resume(tickets["a0"])
    assert made.shed(keep=0, blocked_before=10) == []


def test_shedding_takes_a_message_group_along() -> None:
    """What waits behind a shed message goes with it, after it: nothing overtakes."""
    made = Scheduler[Work](total=1, per_tenant=1)
    blocked = work("a0")
    made.add(blocked)
    granted(made)
    for number in range(1, 4):
        made.add(work(f"a{number}", group="g"))
    made.suspend(blocked, now=0)
    assert [ticket.name for ticket in made.shed(keep=1, blocked_before=0)] == ["a1", "a2", "a3"]
    made.finish(blocked)
    assert (made.size, len(made._groups), made._blocked) == (0, 0, {})


def test_finish_is_idempotent() -> None:
    """Finishing twice frees one slot."""
    made, tickets = scheduler("a1", "a2", "a3", total=1)
    granted(made)
    made.finish(tickets["a1"])
    made.finish(tickets["a1"])
    assert granted(made) == ["a2"]
    assert made.statistics().running == 1


def test_a_waiting_ticket_can_be_struck_off() -> None:
    """A ticket that never got a slot is removed from its lane."""
    made, tickets = scheduler("a1", "a2", total=1)
    made.finish(tickets["a1"])
    assert granted(made) == ["a2"]


def test_stopping_withdraws_what_waits_and_nothing_else() -> None:
    """Waiting tickets come back once; running and suspended ones stay."""
    made, tickets = scheduler("a1", "b1", "c1", "c2", total=2)
    granted(made)
    made.suspend(tickets["a1"])
    withdrawn = {ticket.name for ticket in made.withdraw_waiting()}
    assert withdrawn == {"c1", "c2"}
    assert made.withdraw_waiting() == []
    assert made.statistics().running == 1
    assert made.statistics().suspended == 1


def test_stopping_withdraws_groups_in_order() -> None:
    """Within a message group, the withdrawn tickets keep their order, the waiting head first."""
    made = Scheduler[Work](total=10, per_tenant=10)
    for number in range(3):
        made.add(work(f"a{number}", group="g"))
    assert [ticket.name for ticket in made.withdraw_waiting()] == ["a0", "a1", "a2"]
    made.add(work("a7", group="g"))
    assert granted(made) == ["a7"]


def test_no_memory_is_kept_of_tenants_that_left() -> None:
    """A lane and a group exist only while they have work."""
    made = Scheduler[Work](total=10, per_tenant=10)
    for number in range(1000):
        ticket = work(f"tenant-{number}-", group=f"g{number}")
        made.add(ticket)
        assert made.grant() is ticket
        made.finish(ticket)
    assert made.statistics().tenants == 0
    assert len(made._groups) == 0
    assert (len(made._fresh), len(made._within), len(made._over)) == (0, 0, 0)


def test_a_ticket_that_was_never_added_is_refused() -> None:
    """Suspending a stranger is an error, not a corrupted count."""
    made = Scheduler[Work](total=1, per_tenant=1)
    with pytest.raises(ValueError, match="never added"):
        made.suspend(work("a1"))


def test_states_follow_the_life_of_a_ticket() -> None:
    """WAITING, RUNNING, SUSPENDED, WAITING, RUNNING, DONE."""
    made, tickets = scheduler("a1")
    ticket = tickets["a1"]
    seen = [ticket.state]
    for step in (made.grant, lambda: made.suspend(ticket), lambda: made.resume(ticket), made.grant):
        step()
        seen.append(ticket.state)
    made.finish(ticket)
    seen.append(ticket.state)
    assert seen == [State.WAITING, State.RUNNING, State.SUSPENDED, State.WAITING, State.RUNNING, State.DONE]


def test_a_tenant_with_slow_handlers_gets_fewer_turns() -> None:
    """Turns are paid in handler seconds: ten jobs of 10 ms for one of 100 ms."""
    made = Scheduler[Work](total=1, per_tenant=1)
    seconds = {"slow": 0.1, "fast": 0.01}
    turns = {"slow": 0, "fast": 0}
    for name in seconds:
        for number in range(200):
            made.add(work(f"{name}{number}"))
    for _ in range(110):
        ticket = made.grant()
        assert ticket is not None
        turns[str(ticket.tenant)] += 1
        made.finish(ticket, seconds=seconds[str(ticket.tenant)])
    assert abs(turns["fast"] - 10 * turns["slow"]) <= 12


def test_the_reserve_is_kept_from_tenants_over_their_share() -> None:
    """Noisy tenants together leave it free, and a quiet one finds a slot at once."""
    made, _ = scheduler(*(f"a{n}" for n in range(20)), *(f"b{n}" for n in range(20)), total=10, reserved=2)
    assert len(granted(made)) == 8
    quiet = work("c1")
    made.add(quiet)
    assert granted(made) == ["c1"]


def test_a_tenant_that_has_long_been_alone_uses_the_reserve() -> None:
    """No other tenant would: it is work-conserving, until another tenant comes."""
    made = Scheduler[Work](total=4, per_tenant=4, reserved=2)
    for number in range(8):
        made.add(work(f"a{number}"))
    assert len(granted(made)) == 2
    made._alone = 1_000_000
    assert len(granted(made)) == 2


def test_caps_may_differ_and_change_at_any_time() -> None:
    """A mapping or a function says who may have more or less; changing it takes effect with the next decision."""
    caps = {"a": 1}
    made = Scheduler[Work](total=10, per_tenant=2, caps=caps)
    tickets = [work(f"{name}{number}") for name in "ab" for number in range(5)]
    for ticket in tickets:
        made.add(ticket)
    assert granted(made) == ["a0", "b0", "b1"]
    caps["a"] = 3
    made.finish(tickets[0])
    assert granted(made) == ["a1", "a2", "a3"]


@pytest.mark.parametrize("choice", [lambda tenant: 1 / 0, lambda tenant: None, lambda tenant: 0])
def test_a_choice_that_makes_no_sense_is_the_default(choice: Any) -> None:
    """A function of the user's that fails must not stop the consumer."""
    made = Scheduler[Work](total=10, per_tenant=2, caps=choice)
    for number in range(5):
        made.add(work(f"a{number}"))
    assert granted(made) == ["a0", "a1"]


def test_a_newcomer_goes_first_and_the_others_are_not_forgotten() -> None:
    """The first ticket of a tenant that had nothing here is next, but not without end."""
    made, tickets = scheduler(*(f"old{n}" for n in range(50)), total=2)
    assert granted(made) == ["old0", "old1"]
    running = [tickets["old0"], tickets["old1"]]
    seen: list[str] = []
    for number in range(34):
        made.add(work(f"new{number}-"))
        made.finish(running.pop(0))
        ticket = made.grant()
        assert ticket is not None
        running.append(ticket)
        seen.append(str(ticket.tenant))
    assert seen.count("old") == 2
    assert seen[0] == "new0-"


def test_a_returning_tenant_has_neither_credit_nor_debt() -> None:
    """Who was away for long does not get all slots; who used much before it left does not wait."""
    made, _ = scheduler(*(f"a{n}" for n in range(100)), total=1)
    for _ in range(50):
        ticket = made.grant()
        assert ticket is not None
        made.finish(ticket, seconds=1.0)
    for number in range(10):
        made.add(work(f"b{number}"))
    turns: list[str] = []
    for _ in range(10):
        ticket = made.grant()
        assert ticket is not None
        turns.append(str(ticket.tenant))
        made.finish(ticket, seconds=1.0)
    assert abs(turns.count("a") - turns.count("b")) <= 2


def test_a_paused_tenant_gets_no_slot_until_it_is_resumed() -> None:
    """Its tickets wait, and count as blocked; what runs goes on."""
    made, _ = scheduler("a1", "a2", "b1", total=1)
    assert granted(made) == ["a1"]
    made.control("a", paused=True, pace=None)
    assert made.blocked == 1
    made.finish(_["a1"])
    assert granted(made) == ["b1"]
    made.control("a", paused=False, pace=None)
    made.finish(_["b1"])
    assert granted(made) == ["a2"]
    assert made.blocked == 0


def test_a_pace_spreads_grants_over_time() -> None:
    """Two per second, two at once: the third comes half a second later."""
    made, _ = scheduler(*(f"a{n}" for n in range(5)))
    made.control("a", paused=False, pace=Pace(2.0))
    assert made.grant(10.0) is not None
    assert made.grant(10.0) is not None
    assert made.grant(10.0) is None
    assert made.next_wake() == pytest.approx(10.5)
    assert made.grant(10.4) is None
    assert made.grant(10.5) is not None


def test_a_part_of_a_pace_is_a_part_of_its_burst_and_of_its_rate() -> None:
    """A quarter of eight per second, and all of it again from the next call on."""
    pace = Pace(8.0)
    assert [pace.take(1000.0, 0.25) for _ in range(3)] == [0.0, 0.0, pytest.approx(0.5)]
    assert pace.take(1000.5, 0.25) == 0.0
    assert pace.take(1000.5) == pytest.approx(0.125)
    assert pace.take(1000.625) == 0.0


def test_a_ticket_that_was_put_back_is_first_in_its_lane_and_waits_until_it_may() -> None:
    """It keeps its place while its tenant sleeps, and others use the slot."""
    made, tickets = scheduler("a1", "a2", "b1", total=1)
    assert made.grant() is tickets["a1"]
    made.sleep("a", 5.0)
    made.put_back(tickets["a1"])
    ticket = made.grant(1.0)
    assert ticket is tickets["b1"]
    made.finish(ticket)
    assert made.grant(4.9) is None
    assert made.grant(5.0) is tickets["a1"]


def test_a_stop_withdraws_what_waits_but_for_what_it_keeps() -> None:
    """Behind a ticket that goes, nothing of its group is kept: it would overtake."""
    made = Scheduler[Work](total=1, per_tenant=1)
    names = ["a1", "a2", "a3", "b1", "c1", "c2", "c3"]
    groups = {"a1": "g", "a2": "g", "c1": "h", "c2": "h", "c3": "h"}
    for name in names:
        made.add(work(name, group=groups.get(name)))
    kept = {"a2", "b1", "c1", "c2"}
    withdrawn = made.withdraw_waiting(lambda ticket: ticket.name in kept)
    assert sorted(ticket.name for ticket in withdrawn) == ["a1", "a2", "a3", "c3"]
    assert made.size == 3
    assert made.waiting == 3


def test_enough_is_a_tenants_part_of_what_may_wait() -> None:
    """The room is divided by the tenants that are here; a stranger never has enough."""
    made, _ = scheduler(*(f"a{n}" for n in range(10)), *(f"b{n}" for n in range(3)))
    assert made.standing("a", room=20)[0]
    assert not made.standing("b", room=20)[0]
    assert made.standing("c", room=20) == (False, False)


def test_a_ticket_behind_the_head_of_its_group_can_be_struck_off() -> None:
    """It was lost while it waited: it leaves its group, and only what is behind it can be withdrawn with it."""
    made = Scheduler[Work](total=2, per_tenant=2)
    head, lost, last = (work(name, group="g") for name in ("a1", "a2", "a3"))
    for ticket in (head, lost, last):
        made.add(ticket)
    assert made.withdraw_group(lost) == [last]
    made.finish(lost)
    assert (lost.state, made.waiting, made.behind) == (State.DONE, 1, 0)
    assert granted(made) == ["a1"]
    made.finish(head)
    assert (made.size, made.tenants()) == (0, [])
