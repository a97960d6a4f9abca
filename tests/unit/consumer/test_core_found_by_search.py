"""What the seeded schedules of the core found, one test for each."""

from typing import Any, cast

import pytest

from postroom.consumer import availability as availability_module
from postroom.consumer.actions import GiveBack, Reject, ReturnGroup
from postroom.consumer.core import AT_ONCE
from postroom.consumer.job import Job
from postroom.message import Message
from postroom.options import Faults
from postroom.scheduling import State
from postroom.types import Settlement
from support.core_scene import Scene


def test_a_message_behind_a_failed_one_of_its_group_ends_with_a_reason() -> None:
    """At its last receive it would become a dead letter that was never tried: it is rejected instead.

    The failed one goes back, since its backoff is too long to keep it here.
    """
    scene = Scene(fifo=True, most=3)
    head = scene.job("head", group="g")
    last, fresh = scene.job("last", group="g", receives=3), scene.job("fresh", group="g")
    scene.arrive(head, last, fresh)
    assert scene.core.next(0.0) is head
    scene.core.retry(head, ValueError(), 700.0, 0.0, tried=True)
    retried, rejected, returned, group = scene.core.actions
    assert isinstance(retried, GiveBack)
    assert isinstance(rejected, Reject)
    assert rejected.job is last
    assert "a message before it in its group was not done" in rejected.reason
    assert returned == GiveBack(fresh, Settlement.RETURNED)
    assert group == ReturnGroup("g", "head", behind=True)


def test_what_follows_in_a_receive_waits_for_a_rejection() -> None:
    """The first of a group is rejected as it arrives, which may fail: the rest of the receive must not overtake it."""
    scene = Scene(fifo=True, most=8, retention=10.0)
    scene.tenants.pause(0)
    scene.scheduler.control(0, paused=True)
    scene.now = scene.facts.now = 9.5
    first, second = scene.job("first", group="g"), scene.job("second", group="g", sent=5.0)
    other = scene.job("other", group="h", sent=5.0)
    receive = scene.core.scene()
    for job in (other, first, second):
        scene.core.arrive(job, scene.now, receive)
    rejected, group = scene.core.actions
    assert isinstance(rejected, Reject)
    assert rejected.job is first
    assert group == ReturnGroup("g", "first")
    assert (scene.scheduler.size, scene.core.halted) == (1, 1)
    scene.core.rejected(first, scene.now, taken=False)
    assert scene.core.actions[2:] == [GiveBack(second, Settlement.RETURNED), ReturnGroup("g", "first", behind=True)]


def test_a_message_that_came_again_is_not_given_back_behind_itself() -> None:
    """Its handler asked for a retry and went on for longer than the delay: that would cost a receive each time."""
    scene = Scene(fifo=True, most=3)
    first, last = scene.job("same", group="g"), scene.job("last", group="g")
    again = scene.job("same", group="g", receives=2)
    scene.arrive(first, again, last)
    assert scene.core.next(0.0) is first
    scene.core.give_group_back(first)
    assert scene.core.actions == []
    scene.core.finish(first, 1.0)
    assert scene.core.next(1.0) is again


def test_what_was_received_once_more_stays_behind_a_message_that_came_again() -> None:
    """Seed 92010266: it went back, and what came with it for the first time overtook it."""
    scene = Scene(fifo=True, most=3)
    first, held, new = scene.job("first", group="g"), scene.job("held", group="g"), scene.job("new", group="g")
    again = scene.job("first", group="g", receives=2)
    scene.arrive(first, held, again, new)  # a receive brought `first`, `held` and `new`; `held` is here already
    assert scene.core.next(0.0) is first
    scene.core.give_group_back(first)
    assert scene.core.actions == []
    for job, following in ((first, again), (again, held), (held, new)):
        scene.core.finish(job, 1.0)
        assert scene.core.next(1.0) is following


def test_what_is_still_resolved_goes_back_with_what_is_before_it_in_its_group() -> None:
    """It may begin with the message that came again: all the same it must not overtake what goes back."""
    scene = Scene(fifo=True, most=3)
    first, held = scene.job("first", group="g"), scene.job("held", group="g")
    scene.arrive(first, held)
    assert scene.core.next(0.0) is first
    scene.core.give_group_back(first)
    returned, group = scene.core.actions
    assert isinstance(returned, GiveBack)
    assert group == ReturnGroup("g", "first", behind=True)


def _crowd(scene: Scene, count: int = 30) -> list[Job]:
    """Let a paused tenant's messages fill the core, beyond its lane."""
    scene.tenants.pause(0)
    scene.scheduler.control(0, paused=True)
    jobs = [scene.job(str(number)) for number in range(count)]
    for job in jobs:
        scene.scheduler.add(job)
    return jobs


def test_room_is_not_made_beyond_what_may_be_away() -> None:
    """Nor while the queue has too many messages in flight: what waits stays here."""
    for full in (False, True):
        scene = Scene(most=None)
        _crowd(scene)
        scene.facts.full_until = 1e9 if full else 0.0
        away: dict[str, Any] = {} if full else dict.fromkeys(map(str, range(60_000)))
        scene.core.away.known = away
        scene.core.relieve(10.0)
        assert not scene.core.actions
    scene = Scene(most=None)
    _crowd(scene)
    scene.core.relieve(10.0)
    assert scene.core.actions


def test_what_makes_room_is_back_before_its_retention_period_ends() -> None:
    """It would be deleted while it is away; a message that is about to be deleted stays, for the sweep."""
    scene = Scene(most=8, retention=61.5)
    _crowd(scene)
    scene.core.relieve(0.0)
    scene.now = scene.facts.now = 0.2
    scene.core.relieve(10.0)
    delays = [action.delay for action in scene.core.actions if isinstance(action, GiveBack)]
    assert delays
    assert max(delays) <= 1.5


def test_a_group_makes_room_as_a_whole() -> None:
    """Also what is still being resolved of it; and not at all if one of its messages has no receive to spare."""
    for receives in (1, 8):
        scene = Scene(fifo=True, most=8)
        scene.tenants.pause(0)
        scene.scheduler.control(0, paused=True)
        for number in range(30):
            scene.arrive(scene.job(f"{number}a", group=str(number)))
            scene.arrive(scene.job(f"{number}b", group=str(number), receives=receives))
        scene.core.relieve(10.0)
        groups = [action.group for action in scene.core.actions if isinstance(action, ReturnGroup)]
        assert bool(groups) == (receives == 1)


def test_what_has_its_resources_in_hand_makes_no_room() -> None:
    """Its task waits for its turn, and would wait without end."""
    scene = Scene(most=None)
    jobs = _crowd(scene)
    for job in jobs:
        job.task = object()  # type: ignore[assignment]
    scene.core.relieve(10.0)
    assert not scene.core.actions


def test_a_probe_of_a_breaker_that_closed_is_no_probe_of_the_next_one() -> None:
    """Another message of its tenant succeeded meanwhile; it may not start while the next breaker is open."""
    scene = Scene(faults=Faults(breaker_after=1, messages=1))
    earlier, failing, probe = scene.job("earlier"), scene.job("failing"), scene.job("probe")
    core, availability = scene.core, scene.process.availability
    scene.arrive(earlier, failing, probe)
    assert [core.next(0.0), core.next(0.0)] == [earlier, failing]
    core.failed(failing, ValueError(), 0.0)
    core.finish(failing, 0.0)
    assert core.next(0.0) is None
    assert core.next(100.0) is probe
    core.suspend(probe, 100.0)
    core.succeeded(earlier, 100.0)
    core.finish(earlier, 100.0)
    scene.arrive(again := scene.job("again"))
    core.failed(again, ValueError(), 100.0)
    core.resume(probe)
    assert availability.wait(probe, 100.0) is not None
    assert core.next(100.0) is None


def test_the_end_of_a_probe_wakes_its_tenant_whose_breaker_was_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many tenants failed meanwhile that the oldest breaker is not remembered."""
    monkeypatch.setattr(availability_module, "REMEMBER", 1)
    scene = Scene(faults=Faults(breaker_after=1, messages=1))
    core = scene.core
    failing, probe, last = scene.job("failing"), scene.job("probe"), scene.job("last")
    scene.arrive(failing, probe, last)
    assert core.next(0.0) is failing
    other = scene.job("other", tenant=1)
    core.failed(failing, ValueError(), 0.0)
    core.finish(failing, 0.0)
    assert core.next(100.0) is probe
    core.failed(other, ValueError(), 100.0)
    assert core.next(100.0) is None
    core.finish(probe, 101.0)
    assert core.next(101.0) is last


def test_a_probe_that_goes_back_into_its_lane_is_none() -> None:
    """Its tenant was paused while its resources were opened: another message may be the probe after that."""
    scene = Scene(faults=Faults(breaker_after=1, messages=1))
    core = scene.core
    failing, probe, last = scene.job("failing"), scene.job("probe"), scene.job("last")
    scene.arrive(failing, probe, last)
    assert core.next(0.0) is failing
    core.failed(failing, ValueError(), 0.0)
    core.finish(failing, 0.0)
    assert core.next(100.0) is probe
    core.suspend(probe, 100.0)
    core.put_back(probe, 101.0)
    scene.scheduler.prefer(0, lambda job: job is last)
    assert core.next(101.0) is last


def test_a_probe_with_its_resources_does_not_wait_behind_what_waits_for_its_end() -> None:
    """A message that met an outage in its handler is put back in front of it: the tenant slept for good."""
    scene = Scene(faults=Faults(breaker_after=1, messages=1))
    core = scene.core
    meets, failing, probe = scene.job("meets"), scene.job("failing"), scene.job("probe")
    scene.arrive(meets, failing, probe)
    assert [core.next(0.0), core.next(0.0)] == [meets, failing]
    core.failed(failing, ValueError(), 0.0)
    core.finish(failing, 0.0)
    assert core.next(100.0) is probe
    core.suspend(probe, 100.0)
    core.resume(probe)
    meets.met_outage = True
    core.refused(meets, ConnectionError(), 100.0)
    assert core.next(200.0) is probe
    assert core.next(200.0) is None
    core.succeeded(probe, 201.0)
    core.finish(probe, 201.0)
    assert core.next(201.0) is meets


def test_the_last_receive_of_a_message_is_never_spent_on_a_deferral() -> None:
    """Also when it has had its promised attempts: away it would become a dead letter without a reason."""
    scene = Scene(most=5)
    job = scene.job("tried", receives=5)
    for _ in range(4):
        scene.source.attempts.failed(job)
    assert not scene.source.attempts.may_defer(job)
    assert scene.source.attempts.may_defer(scene.job("fresh"))


def test_what_follows_a_message_that_is_lost_while_it_is_resolved_goes_back() -> None:
    """It would overtake it in its group; the lost message itself is left alone."""
    scene = Scene(fifo=True, most=3)
    message = Message(id="lost", body="", system_attributes={"ApproximateReceiveCount": "3"})
    lost = scene.source.of(message, received_at=0.0, visibility=60.0)
    lost.group = "g"
    lost.lost = True
    scene.core.lost(lost, 0.0)
    assert scene.core.actions == [ReturnGroup("g")]
    scene.core.give_back(lost, Settlement.RETURNED)
    assert set(map(type, scene.core.actions)) == {ReturnGroup}


def test_nothing_waits_once_there_is_no_time_to_start_it() -> None:
    """Neither what arrives after that at its last receive, nor what could not have its resources."""
    scene = Scene(most=1)
    core = scene.core
    running, late = scene.job("running"), scene.job("late")
    scene.arrive(running)
    assert core.next(0.0) is running
    core.close()
    core.abandon()
    core.put_back(running, 1.0)
    core.finish(running, 1.0)
    scene.arrive(late)
    assert [type(action) for action in core.actions] == [Reject, Reject]
    assert scene.scheduler.size == 0


def test_a_message_whose_handler_met_an_outage_has_not_started() -> None:
    """It waits for its turn once more, and a stop need not give its handler time to finish."""
    scene = Scene()
    job = scene.job("first")
    scene.arrive(job)
    assert scene.core.next(0.0) is job
    job.started = True
    scene.core.refused(job, ConnectionError("too many connections"), 1.0)
    assert not job.started


@pytest.mark.parametrize("taken", [True, False])
def test_what_is_behind_a_message_that_expires_without_its_resources_waits_for_its_letter(*, taken: bool) -> None:
    """If the dead-letter queue does not take it, it comes back: nothing of its group may overtake it."""
    scene = Scene(fifo=True, retention=400.0)
    head, behind = scene.job("head", group="g"), scene.job("behind", group="g")
    scene.arrive(head, behind)
    assert scene.core.next(0.0) is head
    scene.known.now = 345.0
    scene.core.refused(head, ConnectionError("down"), 345.0)
    rejected, group = scene.core.actions
    assert isinstance(rejected, Reject)
    assert group == ReturnGroup("g", "head")  # what is still being resolved
    assert scene.core.halted == 1
    scene.core.rejected(head, 345.0, taken=taken)
    back = [GiveBack(behind, Settlement.RETURNED), ReturnGroup("g", "head", behind=True)]
    assert scene.core.actions[2:] == ([] if taken else back)
    assert scene.scheduler.size == 1 + taken


def test_what_is_behind_a_message_that_slips_at_its_last_receive_costs_no_receive() -> None:
    """Further seed 850001408: it went back while the letter of the first one was on its way."""
    scene = Scene(fifo=True, most=3)
    head, behind = scene.job("head", group="g", receives=3), scene.job("behind", group="g")
    behind.deadline = 90.0
    scene.scheduler.control(0, paused=True)
    scene.arrive(head, behind)
    scene.core.sweep(59.5)
    (rejected,) = _without_groups(scene)
    assert isinstance(rejected, Reject)
    assert rejected.job is head
    assert (scene.scheduler.size, scene.core.halted) == (0, 1)
    scene.core.rejected(head, 60.0, taken=False)
    assert len(_without_groups(scene)) == 1  # SQS moves it by itself: what is behind it is in order
    assert (scene.scheduler.size, scene.core.halted) == (1, 0)


def test_what_waits_behind_a_letter_is_rejected_before_its_own_last_receive_slips() -> None:
    """Seed 870004629: it waited for the letter of the first one, and SQS moved it meanwhile, without a reason."""
    scene = Scene(fifo=True, most=3)
    head, behind = scene.job("head", group="g", receives=3), scene.job("behind", group="g", receives=3)
    fresh = scene.job("fresh", group="g")
    behind.deadline = fresh.deadline = 90.0
    scene.scheduler.control(0, paused=True)
    scene.arrive(head, behind, fresh)
    scene.core.sweep(59.5)
    scene.core.sweep(80.0)
    assert len(_without_groups(scene)) == 1
    scene.core.sweep(89.5)
    first, second = _without_groups(scene)
    assert isinstance(first, Reject)
    assert isinstance(second, Reject)
    assert second.job is behind
    assert "a message before it in its group was still on its way to the dead-letter queue" in second.reason
    assert scene.core.halted == 1
    scene.core.rejected(head, 89.6, taken=True)
    assert scene.scheduler.size == 0  # the second one's is still out
    scene.core.rejected(behind, 89.7, taken=True)
    assert (scene.scheduler.size, len(_without_groups(scene))) == (1, 2)


def test_what_is_behind_a_letter_goes_back_with_what_ran_before_it() -> None:
    """The second of a group slips while the first one runs, and that fails: the third waited for the letter alone."""
    scene = Scene(fifo=True, most=3)
    head, slips, third = (
        scene.job(name, group="g", receives=n) for name, n in (("head", 1), ("slips", 3), ("third", 1))
    )
    scene.arrive(head, slips, third)
    assert scene.core.next(0.0) is head
    head.running = head.started = head.tried = True
    scene.core.sweep(59.5)
    scene.core.retry(head, ValueError(), 700.0, 59.6, tried=True)
    scene.core.finish(head, 59.6)
    rejected, *back = scene.core.actions
    assert isinstance(rejected, Reject)
    assert rejected.job is slips
    assert [each.job for each in back if isinstance(each, GiveBack)] == [head, third]
    scene.core.rejected(slips, 59.7, taken=True)
    assert scene.core.next(59.7) is None


def test_what_is_kept_in_a_stop_does_not_overtake_a_letter_that_was_not_taken() -> None:
    """It is at its last receive, and so a stop starts it; but not after what is before it went back."""
    scene = Scene(fifo=True, most=3)
    head, last = scene.job("head", group="g", receives=1), scene.job("last", group="g", receives=3)
    scene.arrive(head, last)
    scene.core.reject(head, "no")
    scene.core.give_group_back(head)
    scene.core.finish(head, 1.0)
    scene.core.close()
    scene.core.rejected(head, 2.0, taken=False)
    _, rejected = _without_groups(scene)
    assert isinstance(rejected, Reject)
    assert rejected.job is last
    assert scene.core.next(2.0) is None


def test_a_stop_keeps_nothing_behind_what_it_gives_back() -> None:
    """The second of a group slips while the first one waits for a slot, and the third is at its last receive."""
    scene = Scene(fifo=True, most=3)
    head, slips, last = (scene.job(name, group="g", receives=n) for name, n in (("head", 1), ("slips", 3), ("last", 3)))
    head.deadline = last.deadline = 90.0
    scene.scheduler.control(0, paused=True)
    scene.arrive(head, slips, last)
    scene.core.sweep(59.5)
    scene.scheduler.control(0, paused=False)
    scene.core.close()
    first, back, second = (each for each in scene.core.actions if isinstance(each, GiveBack | Reject))
    assert isinstance(first, Reject)
    assert first.job is slips
    assert isinstance(back, GiveBack)
    assert back.job is head
    assert isinstance(second, Reject)
    assert second.job is last
    for each in (slips, last):
        scene.core.rejected(each, 60.0, taken=True)
    assert scene.core.next(60.0) is None


def test_what_is_lost_behind_a_letter_is_not_rejected() -> None:
    """SQS has it."""
    scene = Scene(fifo=True, most=3)
    head, behind = scene.job("head", group="g", receives=3), scene.job("behind", group="g", receives=3)
    scene.scheduler.control(0, paused=True)
    scene.arrive(head, behind)
    behind.deadline = 90.0
    scene.core.sweep(59.5)
    behind.lost = True
    scene.core.sweep(89.5)
    assert len(_without_groups(scene)) == 1


def test_a_message_that_waits_for_a_slot_is_rejected_before_it_is_deleted() -> None:
    """All slots run for as long as SQS keeps a message: it becomes a dead letter with a reason, not nothing."""
    scene = Scene(total=1, per_tenant=1, retention=400.0)
    busy, late, fresh = scene.job("busy"), scene.job("late"), scene.job("fresh", sent=300.0)
    scene.arrive(busy, late, fresh)
    assert scene.core.next(0.0) is busy
    scene.known.now = 365.0
    scene.core.sweep(365.0)
    (rejected,) = scene.core.actions
    assert isinstance(rejected, Reject)
    assert rejected.job is late
    assert rejected.reason == "not tried: its retention period is nearly over and no slot was free for it"
    assert scene.scheduler.waiting_tickets() == [fresh]


def _rejecting(scene: Scene) -> Job:
    """Let the head of a group be on its way to the dead-letter queue."""
    head = scene.job("head", group="g")
    scene.arrive(head)
    assert scene.core.next(0.0) is head
    _reject(scene, head)
    scene.core.finish(head, 1.0)
    return head


def _reject(scene: Scene, job: Job) -> None:
    """Send a message to the dead-letter queue."""
    scene.core.reject(job, "no")
    rejected = scene.core.actions.pop()
    assert isinstance(rejected, Reject)
    assert rejected.job is job
    scene.core.actions.clear()


def test_what_comes_of_a_group_waits_while_a_message_before_it_is_rejected() -> None:
    """Seed 93001059: its extension was lost, so it came again, with others that overtook it.

    Given back, they would be received again at once, until their receives are used up.
    """
    scene = Scene(fifo=True)
    head = _rejecting(scene)
    early, late, other = scene.job("early", group="g"), scene.job("late", group="g"), scene.job("other", group="h")
    scene.arrive(early, late, other)
    assert scene.core.halted == 2
    assert scene.core.next(1.0) is other
    assert scene.core.next(1.0) is None
    assert scene.core.rejected(head, 2.0, taken=True)
    assert (scene.core.halted, scene.core.actions) == (0, [])
    assert scene.core.next(2.0) is early
    scene.core.finish(early, 3.0)
    assert scene.core.next(3.0) is late


def test_what_came_of_a_group_goes_back_with_a_message_that_could_not_be_rejected() -> None:
    """It comes back, and is before them."""
    scene = Scene(fifo=True)
    head = _rejecting(scene)
    early, late = scene.job("early", group="g"), scene.job("late", group="g")
    scene.arrive(early, late)
    scene.core.rejected(head, 2.0, taken=False)
    assert [action.job for action in scene.core.actions if isinstance(action, GiveBack)] == [early, late]
    assert scene.core.next(2.0) is None


def test_what_is_still_resolved_goes_back_with_a_message_that_could_not_be_rejected() -> None:
    """Core seed 95001295: its resolver took longer than the rejection."""
    scene = Scene(fifo=True)
    head = _rejecting(scene)
    assert scene.core.rejected(head, 2.0, taken=False)
    assert scene.core.actions == [ReturnGroup("g", "head")]


def test_a_message_that_came_again_while_it_could_not_be_rejected_runs_before_the_others() -> None:
    """It is the first of what came."""
    scene = Scene(fifo=True)
    head = _rejecting(scene)
    again, late = scene.job("head", group="g", receives=2), scene.job("late", group="g")
    scene.arrive(again, late)
    scene.core.rejected(head, 2.0, taken=False)
    assert scene.core.next(2.0) is again
    scene.core.finish(again, 3.0)
    assert scene.core.next(3.0) is late


def test_what_is_lost_while_it_waits_for_a_rejection_takes_the_others_with_it() -> None:
    """They would overtake it; as would what comes later, in a second rejection."""
    scene = Scene(fifo=True)
    head, second = _rejecting(scene), scene.job("second", group="g")
    _reject(scene, second)
    early, late = scene.job("early", group="g"), scene.job("late", group="g")
    scene.arrive(early, late)
    early.lost = True
    assert not scene.core.rejected(head, 2.0, taken=True)
    assert scene.core.rejected(second, 2.0, taken=True)
    assert scene.core.actions == [GiveBack(late, Settlement.RETURNED), ReturnGroup("g", behind=True)]


def test_a_stop_gives_back_what_waits_for_a_rejection_but_for_last_receives() -> None:
    """Those are started once the rejection is over; where there is no time for that, they get their reason."""
    scene = Scene(fifo=True, most=2)
    head = _rejecting(scene)
    last, fresh, more = (scene.job(name, group="g", receives=n) for name, n in (("last", 2), ("fresh", 1), ("more", 2)))
    scene.arrive(last, fresh, more)
    scene.core.close()
    returned, rejected = scene.core.actions
    assert returned == GiveBack(fresh, Settlement.RETURNED)
    assert isinstance(rejected, Reject)
    assert (rejected.job, scene.core.halted) == (more, 1)
    for job in (head, more):
        assert scene.core.next(2.0) is None
        scene.core.rejected(job, 2.0, taken=True)
    assert scene.core.next(2.0) is last


def test_what_waits_for_a_rejection_gets_its_reason_where_a_stop_has_no_time_left() -> None:
    """Nothing of it stays behind."""
    scene = Scene(fifo=True, most=1)
    _rejecting(scene)
    scene.arrive(last := scene.job("last", group="g"))
    scene.core.close()
    assert (scene.core.halted, scene.core.actions) == (1, [])
    scene.core.abandon()
    (rejected,) = scene.core.actions
    assert isinstance(rejected, Reject)
    assert (rejected.job, scene.core.halted) == (last, 0)


def test_a_stop_starts_a_message_that_waits_behind_its_own_earlier_run() -> None:
    """It came again, at its last receive, while its handler went on after ``ctx.retry()``."""
    scene = Scene(fifo=True, most=2)
    first, again = scene.job("same", group="g"), scene.job("same", group="g", receives=2)
    scene.arrive(first, again)
    assert scene.core.next(0.0) is first
    scene.core.close()
    assert scene.core.actions == []
    scene.core.finish(first, 1.0)
    assert scene.core.next(1.0) is again


def with_resources_in_hand(scene: Scene, *, until: float) -> Job:
    """Let a message wait for the only slot with its resources in hand, until a time."""
    late, busy = scene.job("late"), scene.job("busy", tenant=1)
    scene.arrive(late, busy)
    assert scene.core.next(0.0) is late
    late.task = cast("Any", object())  # its task has begun
    scene.core.suspend(late, 0.0)
    assert scene.core.next(0.0) is busy
    scene.core.resume(late)
    scene.known.now = until
    return late


def test_what_cannot_be_rejected_keeps_its_resources() -> None:
    """Without a dead-letter queue it waits for its slot until the end."""
    scene = Scene(total=1, per_tenant=1, retention=400.0, with_pool=True, most=None)
    late = with_resources_in_hand(scene, until=365.0)
    assert late.state is State.WAITING
    assert scene.core.sweep(365.0) == ([], [])


def test_a_message_that_waits_for_a_slot_with_resources_in_hand_is_rejected_before_it_is_deleted() -> None:
    """Seed 92000664: it lets go of them first, and ends when it would be put back in its lane."""
    scene = Scene(total=1, per_tenant=1, retention=400.0, with_pool=True)
    late = with_resources_in_hand(scene, until=365.0)
    assert scene.core.sweep(365.0) == ([late], [])
    assert scene.core.actions == []
    scene.core.put_back(late, 365.0)
    (rejected,) = scene.core.actions
    assert isinstance(rejected, Reject)
    assert rejected.job is late
    assert rejected.reason == "not tried: its retention period is nearly over and no slot was free for it"
    assert scene.scheduler.waiting_tickets() == []


def test_what_is_behind_a_rejected_message_goes_back_where_that_one_is_lost() -> None:
    """Its dead letter may be under way, or refused: it comes again, and what is behind it would overtake it."""
    scene = Scene(fifo=True)
    head, behind = scene.job("head", group="g"), scene.job("behind", group="g")
    scene.arrive(head, behind)
    assert scene.core.next(0.0) is head
    head.settlement, head.lost = Settlement.REJECTED, True
    scene.core.lost(head, 1.0)
    assert scene.core.actions == [GiveBack(behind, Settlement.RETURNED), ReturnGroup("g", "head", behind=True)]


def test_a_sweep_looks_at_a_part_of_what_waits_at_a_time() -> None:
    """With ten thousand messages of tenants that cannot run it would block the event loop for a tenth of a second."""
    scene = Scene(retention=400.0)
    count = 2 * AT_ONCE + 1
    jobs = [scene.job(str(number)) for number in range(count)]
    scene.arrive(*jobs)
    scene.known.now = 365.0
    left: list[int] = []
    rest: list[Job] | None = None
    while rest is None or rest:
        _idle, rest = scene.core.sweep(365.0, rest)
        left.append(len(rest))
    assert left == [AT_ONCE + 1, 1, 0]
    assert sum(isinstance(action, Reject) for action in scene.core.actions) == count
    assert scene.scheduler.waiting_tickets() == []


def _without_groups(scene: Scene) -> list[Any]:
    """Return what was decided of single messages."""
    return [each for each in scene.core.actions if not isinstance(each, ReturnGroup)]
