"""What becomes of messages: the decisions of the core, without tasks or a queue."""

from random import Random
from typing import Any

import pytest
from msgspec import structs

from postroom import Polling, RetryPolicy
from postroom.consumer.actions import GiveBack, Reject
from postroom.consumer.attempts import Attempts, default_promise
from postroom.consumer.availability import Availability, Obstacle, ObstacleKind
from postroom.consumer.away import Absent, Away
from postroom.consumer.core import Core
from postroom.consumer.crowd import Crowd
from postroom.consumer.demand import AdaptivePolicy
from postroom.consumer.scouting import Scouting
from postroom.consumer.tenants import Tenants
from postroom.scheduling import Scheduler, State
from postroom.types import Settlement
from support.jobs import job, source


def core(**polling: Any) -> Core:
    """Make a core with two slots and no pool."""
    options = Polling(**polling)
    crowd = Crowd()
    policy = AdaptivePolicy(options, Scouting(crowd, 0.0, when=False), crowd)
    scheduler: Scheduler[Any] = Scheduler(total=2, per_tenant=2)
    return Core(scheduler, Availability(None, Random(1)), Tenants(), policy, polling=options, rng=Random(1))


def taken(away: Away, count: int, now: float) -> dict[Any, list[str]]:
    """Take messages out, and return their receipt handles by queue."""
    return {queue: [each.receipt_handle for each in absent] for queue, absent in away.take(count, now).items()}


class TestPromise:
    """How many attempts a message gets, and which receives the consumer may spend."""

    @pytest.mark.parametrize(
        ("receives", "promised"), [(1, 1), (2, 2), (4, 4), (5, 4), (8, 6), (10, 8), (20, 15), (1_000, 750)]
    )
    def test_a_quarter_of_the_receives_may_be_spent_and_none_of_fewer_than_five(
        self, receives: int, promised: int
    ) -> None:
        """The rest is promised to attempts."""
        assert default_promise(receives) == promised

    @pytest.mark.parametrize("most", [1, 2, 3, 4])
    def test_of_few_receives_none_is_spent(self, most: int) -> None:
        """Such a message is held."""
        queue = source(max_receives=most)
        attempts = Attempts(queue.facts)
        assert not attempts.may_park(job("a", of=queue))
        assert not attempts.may_defer(job("a", of=queue))

    def test_a_message_is_parked_once_at_its_first_receive(self) -> None:
        """Only then is it certain that no other replica has parked it."""
        queue = source(max_receives=5)
        attempts = Attempts(queue.facts)
        assert attempts.may_park(job("a", of=queue, receives=1))
        assert not attempts.may_park(job("a", of=queue, receives=2))

    def test_a_deferral_leaves_every_promised_attempt(self) -> None:
        """Attempts that were made are not promised any longer."""
        queue = source(max_receives=8)  # six promised
        attempts = Attempts(queue.facts)
        assert [attempts.may_defer(job("a", of=queue, receives=n)) for n in (1, 2, 3)] == [True, True, False]
        failed = job("a", of=queue, receives=3)
        attempts.failed(failed)
        assert attempts.may_defer(failed)

    def test_a_second_receive_while_it_is_held_counts(self) -> None:
        """It has one receive less to spare."""
        queue = source(max_receives=5)
        attempts = Attempts(queue.facts)
        held = job("a", of=queue)
        assert attempts.may_defer(held)
        again = structs.replace(held.message, system_attributes={"ApproximateReceiveCount": "2"})
        held.renew(again, received_at=1.0, visibility=60.0)
        assert not attempts.may_defer(held)

    def test_a_policy_of_attempts_is_a_promise(self) -> None:
        """What the queue allows beyond it may be spent; a queue that allows less wins."""
        few = source(max_receives=20, retry=RetryPolicy(attempts=3))
        assert Attempts(few.facts).promised(job("a", of=few)) == 3
        many = source(max_receives=4, retry=RetryPolicy(attempts=10))
        assert Attempts(many.facts).promised(job("a", of=many)) == 4

    def test_nothing_is_spent_where_the_redrive_policy_is_not_known(self) -> None:
        """It may allow a single receive."""
        queue = source(known=False)
        attempts = Attempts(queue.facts)
        assert not attempts.may_park(job("a", of=queue))
        assert not attempts.may_defer(job("a", of=queue))

    def test_receives_that_were_spent_are_no_attempts(self) -> None:
        """Those of which nothing is known count as attempts."""
        queue = source(max_receives=20)
        attempts = Attempts(queue.facts)
        for receives in (1, 2, 3):
            attempts.spent(job("a", of=queue, receives=receives))
        assert attempts.number(job("a", of=queue, receives=4)) == 1
        attempts.failed(job("a", of=queue, receives=4))
        assert attempts.number(job("a", of=queue, receives=5)) == 2
        assert attempts.number(job("a", 1, of=queue, receives=5)) == 5


class TestOutcomes:
    """What a message that was not handled becomes."""

    def test_an_untried_message_at_its_last_receive_is_rejected_with_the_reason(self) -> None:
        """SQS would make a dead letter of it that tells nothing."""
        queue = source(max_receives=3)
        made = core()
        queue.attempts = Attempts(queue.facts)
        made.give_back(job("a", of=queue, receives=2), Settlement.RETURNED)
        made.give_back(job("a", 1, of=queue, receives=3), Settlement.RETURNED)
        first, second = made.actions
        assert isinstance(first, GiveBack)
        assert isinstance(second, Reject)
        assert second.reason == "the consumer stopped, at its last receive, not tried by this consumer"

    def test_attempts_that_are_used_up_end_in_a_rejection_with_the_reason(self) -> None:
        """``RetryPolicy(attempts=2)``: before the queue's own count does it without one."""
        queue = source(max_receives=10, retry=RetryPolicy(attempts=2))
        queue.attempts = Attempts(queue.facts)
        made = core()
        failing = job("a", of=queue)
        queue.attempts.failed(failing)
        made.retry(failing, ValueError(), 5.0, 0.0, tried=True)
        again = job("a", of=queue, receives=2)
        queue.attempts.failed(again)
        made.retry(again, ValueError(), 5.0, 0.0, tried=True)
        first, second = made.actions
        assert isinstance(first, GiveBack)
        assert first.delay == 5.0
        assert isinstance(second, Reject)
        assert second.reason == "2 failed attempts, the last one with ValueError"

    def test_only_what_sqs_confirmed_to_be_invisible_is_called_back(self) -> None:
        """What was lost, or refused, may be with another consumer."""
        queue = source()
        queue.attempts = Attempts(queue.facts)
        queue.queue = object()
        made = core()
        for number, settlement in enumerate((Settlement.DEFERRED, Settlement.LEFT, Settlement.LOST)):
            made.settled(job("a", number, of=queue), settlement, 10.0, now=0.0)
        assert taken(made.away, 10, 1.0) == {queue.queue: ["r0"]}

    def test_a_stop_keeps_what_has_no_receive_to_spare(self) -> None:
        """It is started within the time to drain; the rest goes back at once."""
        made = core()
        last, other = source(max_receives=1), source(max_receives=2)
        last.attempts, other.attempts = Attempts(last.facts), Attempts(other.facts)
        last.resolves = other.resolves = False
        for number in range(4):
            made.arrive(job("a", number, of=last if number % 2 else other), 0.0)
        made.close()
        assert [action.job.message.id for action in made.actions if isinstance(action, GiveBack)] == ["m0", "m2"]
        assert made.scheduler.waiting == 2
        kept = made.next(1.0)
        assert kept is not None
        assert kept.state is State.RUNNING


class TestAway:
    """What was made invisible, and is called back."""

    def test_what_an_obstacle_kept_away_waits_for_its_end(self) -> None:
        """It is called back before what was parked, oldest first."""
        away = Away()
        queue: Any = object()
        down = Obstacle(ObstacleKind.HOST, "db-1")
        for number in range(3):
            away.add(Absent(queue, f"parked-{number}", f"parked-{number}", 100.0), None)
            away.add(Absent(queue, f"deferred-{number}", f"deferred-{number}", 100.0), down)
        assert away.recallable(0.0) == 3
        assert away.over(down)
        assert taken(away, 4, 0.0) == {queue: ["deferred-0", "deferred-1", "deferred-2", "parked-0"]}
        assert len(away) == 2

    def test_the_end_of_an_obstacle_is_remembered_for_what_is_on_its_way_out(self) -> None:
        """And only where something may be: every open tells that its tenant has no outage."""
        away = Away()
        queue: Any = object()
        down, well = Obstacle(ObstacleKind.TENANT, "down"), Obstacle(ObstacleKind.TENANT, "well")
        away.stands(down)
        for obstacle in (down, well):
            assert not away.over(obstacle)
        assert list(away._over) == [down]
        away.add(Absent(queue, "late", "late", 100.0), down)
        assert away.recallable(0.0) == 1
        away.stands(down)
        away.add(Absent(queue, "later", "later", 100.0), down)
        assert away.recallable(0.0) == 1

    def test_what_reappears_by_itself_is_not_called_back(self) -> None:
        """Another consumer may have it by then."""
        away = Away()
        queue: Any = object()
        for number in range(5):
            away.add(Absent(queue, str(number), str(number), 10.0 + number), None)
        assert taken(away, 5, 11.5) == {queue: ["3", "4"]}
        away.add(Absent(queue, "5", "5", 20.0), Obstacle(ObstacleKind.TENANT, "a"))
        away.tidy(30.0)
        assert len(away) == 0


class TestCounting:
    """One receive is one attempt."""

    def test_a_failure_that_is_told_twice_counts_once(self) -> None:
        """A handler that asks for a retry and raises, or an ``on_error`` that raises ``Retry``."""
        queue = source(max_receives=10)
        attempts = Attempts(queue.facts)
        failing = job("a", of=queue)
        attempts.failed(failing)
        attempts.failed(failing)
        assert attempts.known(failing) == 1
