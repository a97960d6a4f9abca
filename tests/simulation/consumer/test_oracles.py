"""Can the oracles fail? Each is given a history that is wrong, and one beside it that is right."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from postroom import MessageContext, Retry
from postroom.consumer.context import enter_message
from postroom.message import Message
from postroom.testing.loop import run_virtual
from postroom.transports.protocol import VisibilityChange
from simulation.consumer.attempts import GROUP_WENT_BACK, NO_TENANT, NOTICE, Ledger, Policies, promise
from simulation.consumer.bodies import GRACE, Bodies
from simulation.consumer.contexts import ContextWatch
from simulation.consumer.hardships import HARDSHIPS, make_plan
from simulation.consumer.liveness import bound
from simulation.consumer.plan import Kind, Plan, make_ordinary_plan
from simulation.consumer.process import Process
from simulation.consumer.schedule import run_consumer_schedule
from simulation.consumer.watch import History, Watch
from support.virtual import in_virtual_time

# -- attempts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "promised", "attempts"),
    [
        *[(1, None, 1), (4, None, 4), (5, None, 4), (7, None, 6), (8, None, 6), (20, None, 15)],
        *[(5, 2, 2), (5, 5, 5), (5, 9, 4), (3, 3, 3)],
    ],
)
def test_a_message_is_promised_attempts(most: int, promised: int | None, attempts: int) -> None:
    """What ``RetryPolicy(attempts=)`` says if the queue can keep it; else all receives, or three quarters of many."""
    assert promise(most, promised) == attempts


def _ledger(most: int | None, *ends: str, promised: int | None = None) -> Ledger:
    """Return the ledger of one message ``m`` with receives that ended as the words say."""
    ledger = Ledger(Policies(most), promised)
    for number, end in enumerate(ends, start=1):
        ledger.received(str(number), "m", "p", number, 10.0 * number)
        match end:
            case "failed":
                ledger.fails(str(number))
                ledger.reports(str(number))
            case "tried":
                ledger.tries(str(number))
            case "crash":
                continue
            case _:
                pass
        ledger.gives_back(str(number), 10.0 * number + 1, 0.0)
        if end == "stop":
            ledger.excuses(str(number), "it stops")
    return ledger


def test_a_dead_letter_that_the_library_made_of_a_message_is_a_violation() -> None:
    """Three of five receives spent on parking, and two attempts: four were promised."""
    ledger = _ledger(5, "parked", "parked", "failed", "parked", "failed")
    assert "after 2 failed attempts; it was promised 4 of 5" in str(ledger.judge_dead_letter("m"))


@pytest.mark.parametrize(
    "ends",
    [
        ("failed",) * 5,
        ("parked", "failed", "failed", "failed", "failed"),
        ("crash", "crash", "crash", "parked", "failed"),
        ("stop", "stop", "failed", "tried", "parked"),
    ],
    ids=["failures", "one-to-spend", "crashes", "stops"],
)
def test_a_dead_letter_that_its_own_failures_or_the_environment_made_is_none(ends: tuple[str, ...]) -> None:
    """Each receive is a failed attempt, excused, or the one that the library may spend."""
    assert _ledger(5, *ends).judge_dead_letter("m") is None


def test_a_queue_without_receives_to_spare_has_none_to_spend() -> None:
    """With a maxReceiveCount of 1 a single return dead-letters a message that was never tried."""
    assert _ledger(1, "returned").judge_dead_letter("m") is not None
    assert _ledger(1, "stop").judge_dead_letter("m") is None


def test_promised_attempts_leave_the_rest_to_the_library() -> None:
    """Of eight receives with two attempts promised, six may be spent."""
    assert _ledger(8, *["parked"] * 6, "failed", "failed", promised=2).judge_dead_letter("m") is None
    assert _ledger(8, *["parked"] * 7, "failed", promised=2).judge_dead_letter("m") is not None


def test_what_is_spent_before_a_policy_can_be_known_does_not_count() -> None:
    """A policy that was added is to be noticed within two minutes; from then on it binds."""
    ledger = _ledger(None, "parked", "parked", "parked")
    ledger.policies.change(0.0, 3)
    assert ledger.judge_dead_letter("m") is None
    for number in (4, 5):
        ledger.received(str(number), "m", "p", number, NOTICE + number)
        ledger.gives_back(str(number), NOTICE + number, 0.0)
    assert ledger.judge_dead_letter("m") is not None


def test_a_policy_that_may_not_be_read_binds_no_consumer() -> None:
    """A role without GetQueueAttributes: what it does not know, it cannot keep."""
    ledger = _ledger(5, *["parked"] * 5)
    assert ledger.judge_dead_letter("m") is not None
    ledger.policies = Policies(5, readable=False)
    assert ledger.judge_dead_letter("m") is None


def test_a_message_that_is_handed_out_twice_costs_the_library_nothing() -> None:
    """The earlier receive was overtaken while it was held; both end together."""
    ledger = Ledger(Policies(1))
    ledger.received("1", "m", "p", 1, 0.0)
    ledger.received("2", "m", "p", 2, 1.0, overlaps=True)
    ledger.gives_back("2", 2.0, 0.0)
    assert list(ledger.judge_expense()) == []


@pytest.mark.parametrize(("late", "excused"), [(1, True), (3, False)])
def test_a_receive_that_is_answered_after_a_later_one_changes_nothing(late: int, *, excused: bool) -> None:
    """The later one had failed at its end, and was the last."""
    ledger = Ledger(Policies(2 if excused else 3))
    ledger.received("b", "m", "p", 2, 1.0)
    ledger.fails("b")
    ledger.gives_back("b", 2.0, 0.0)
    ledger.received("a", "m", "p", late, 3.0)
    ledger.gives_back("a", 4.0, 18.0)
    assert (ledger.judge_dead_letter("m") is None) is excused
    assert (list(ledger.judge_expense()) == []) is excused


def test_an_attempt_is_numbered_between_its_failures_and_its_receives() -> None:
    """After one failure here, in the third receive, it is the second or the third."""
    ledger = _ledger(8, "failed", "parked")
    ledger.received("3", "m", "p", 3, 50.0)
    wrong = [attempt for attempt in (None, 1, 2, 3, 4) if ledger.judge_attempt("3", attempt) is not None]
    assert wrong == [1, 4]


# -- expense -----------------------------------------------------------------------------------------------------------


def test_a_message_that_survived_is_judged_by_what_was_spent_on_it() -> None:
    """Two receives of five spent, whatever became of it; one is allowed."""
    assert list(_ledger(5, "parked", "parked", "failed").judge_expense()) == [
        "2 receives were spent on m, 1 at most with maxReceiveCount 5"
    ]
    assert list(_ledger(5, "parked", "failed").judge_expense()) == []
    assert list(_ledger(None, *["parked"] * 30).judge_expense()) == []


# -- context -----------------------------------------------------------------------------------------------------------


def _message(name: str, body: str = "") -> Message:
    return Message(id=name, body=body, receipt_handle=name)


def _seen(play: Callable[[ContextWatch], None]) -> list[str]:
    """Return what a context watch says of a history in which ``a`` and ``b`` are messages of two tenants."""
    seen: list[str] = []

    async def main() -> None:
        watch = ContextWatch({"a1": "a", "a2": "a", "b1": "b"}, seen.append)
        play(watch)

    run_virtual(main())
    return seen


def test_another_message_s_mark_is_seen_by_every_function() -> None:
    """A resolver ran for one message, and a task for another one inherits its variables."""

    def play(watch: ContextWatch) -> None:
        watch.enters("the resolver", "a1")
        watch.enters("the handler", "a1")
        watch.enters("on_error", "b1")

    assert _seen(play) == ["on_error of b1 sees a1 in a context variable"]


def test_a_provider_may_see_a_message_of_its_own_tenant_only() -> None:
    """It is called for a tenant, not for a message."""

    def play(watch: ContextWatch) -> None:
        watch.enters("the handler", "a1")
        watch.enters_for("the provider", "a")
        watch.enters_for("the provider", "b")

    assert _seen(play) == ["the provider of b sees a1, of a, in a context variable"]


def test_the_current_message_is_the_right_one_or_none() -> None:
    """Also in a log record that names a message."""

    def play(watch: ContextWatch) -> None:
        settles: Any = None
        enter_message(MessageContext(_message("a1"), None, None, None, 1, settles))
        watch.enters("the decoder", "a2", leaves_mark=False)
        watch.logged(logging.LogRecord("postroom", logging.INFO, "", 0, "Message %s is back", ("b1",), None))
        watch.logged(logging.LogRecord("postroom", logging.INFO, "", 0, "Message %s is back", ("a1",), None))
        watch.logged(logging.LogRecord("postroom", logging.INFO, "", 0, "Consuming %s", ("orders",), None))

    assert _seen(play) == [
        "the decoder of a2 sees a1 in current_message()",
        "a log record of b1 is written with a1 in current_message(): Message %s is back",
    ]


def test_a_message_that_was_deleted_may_be_forgotten() -> None:
    """SQS may hand a deleted message out once more: its former failures need not be known then."""
    ledger = _ledger(8, "failed", "failed")
    ledger.received("3", "m", "p", 3, 50.0)
    assert ledger.judge_attempt("3", 1) is not None
    ledger.forgets("3")
    ledger.received("4", "m", "p", 4, 60.0)
    assert ledger.judge_attempt("4", 1) is None


def test_a_dead_letter_queue_that_took_nothing_excuses_more_than_an_unknown_tenant() -> None:
    """The message was given back at its last receive after it had been offered in vain; nothing else excuses that."""
    for first, second, excused in ((NO_TENANT, "it was not taken", True), (NO_TENANT, GROUP_WENT_BACK, False)):
        ledger = Ledger(Policies(1))
        ledger.received("1", "m", "p", 1, 0.0)
        ledger.gives_back("1", 1.0, 5.0)
        ledger.excuses("1", first)
        ledger.excuses("1", second)
        assert (ledger.judge_dead_letter("m") is None) is excused


def test_a_redrive_policy_that_was_removed_gives_nothing_to_reject_to() -> None:
    """From the moment on that a consumer may know it, and until it must know that there is one again."""
    policies = Policies(5)
    assert policies.has_redrive(0.0)
    policies.change(10.0, None)
    assert not policies.has_redrive(20.0)
    policies.change(30.0, 5)
    assert not policies.has_redrive(40.0)
    assert policies.has_redrive(30.0 + NOTICE)


# -- owner -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "extended", "violations"), [(8.0, False, 1), (8.0, True, 0), (5.5, False, 0)])
@in_virtual_time
async def test_a_handler_that_goes_on_without_its_message_is_a_violation(
    seconds: float, extended: bool, violations: int
) -> None:
    """Its visibility timeout of five seconds is over, and it was not cancelled; a second of grace is left."""
    history = History()
    watch = Watch(history, "p", make_ordinary_plan(3), lambda _: None, Ledger(Policies(None)))
    [message] = watch.received([_message("m")], 5.0, 0.0)
    if extended:
        changes = [VisibilityChange("m", 10)]
        watch.changes(changes, beat=True)
        watch.extended(changes, [], 0.0)
    await asyncio.sleep(seconds)
    assert watch.owns("m") is extended
    watch.judge_owner(message, lambda _when: 0.0)
    assert len(history.violations) == violations


@in_virtual_time
async def test_time_in_which_nothing_ran_is_no_fault_of_the_handler() -> None:
    """The event loop was blocked for longer than the visibility timeout."""
    history = History()
    watch = Watch(history, "p", make_ordinary_plan(3), lambda _: None, Ledger(Policies(None)))
    [message] = watch.received([_message("m")], 5.0, 0.0)
    await asyncio.sleep(9)
    watch.judge_owner(message, lambda when: 9.0 - when)
    assert history.violations == []


# -- liveness ----------------------------------------------------------------------------------------------------------


def test_the_bound_grows_with_the_tries_and_with_the_pauses() -> None:
    """A message that succeeds at its fifth try has four pauses of everything behind it."""
    plan = make_ordinary_plan(3)
    orders = [replace(each, kind=Kind.FAILS, attempts=1) for each in plan.orders]
    once = bound(plan, orders)
    often = bound(plan, [replace(each, attempts=4) for each in orders])
    assert 60 < once < often < 6_000
    assert bound(plan, []) < once


def _stuck(plan: Plan) -> Plan:
    """Return a plan with handlers that need more time than they are given."""
    concurrency = replace(plan.options["concurrency"], handler_timeout=1.5)
    order = replace(plan.orders[0], kind=Kind.WELL, seconds=0.0, attempts=0)
    return replace(
        plan,
        orders=(order,),
        events=(),
        broken=(),
        max_receives=None,
        options=plan.options | {"concurrency": concurrency},
        survivors_finish=True,
    )


def test_a_consumer_that_never_gets_done_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handler asks for a retry each time."""

    async def retries(self: Process, order: Any, ctx: Any) -> None:
        raise Retry(delay=1.0)

    monkeypatch.setattr(Process, "_act", retries)
    outcome = run_consumer_schedule(3, change=lambda plan: _stuck(make_ordinary_plan(plan.seed)))
    assert any(violation.startswith("liveness") for violation in outcome.violations)


# -- bytes -------------------------------------------------------------------------------------------------------------


def test_a_body_that_is_kept_after_its_end_is_found() -> None:
    """A held one is none; neither are a few, nor one that ended a moment ago."""
    ended: dict[str, float] = {}
    bodies = Bodies(ended.get)
    kept = bodies.marked([_message(str(number), "body") for number in range(5)])
    assert bodies.judge(100.0) is None
    ended.update(dict.fromkeys("0123", 100.0))
    assert bodies.judge(100.0 + GRACE) is None
    assert "keeps 4 bodies" in str(bodies.judge(101.0 + GRACE))
    assert bodies.judge(102.0 + GRACE) is None  # it is told once
    del kept


def test_a_body_that_was_let_go_is_not_found() -> None:
    """Nothing but the watcher knew it any longer."""
    bodies = Bodies(lambda _handle: 0.0)
    bodies.marked([_message(str(number)) for number in range(5)])
    assert bodies.judge(100.0) is None


def test_what_is_held_is_bounded_in_bytes() -> None:
    """Where an option says how much may be held."""
    bodies = Bodies(lambda _handle: None, most_bytes=10)
    kept = bodies.marked([_message("1", "x" * 6), _message("2", "x" * 6)])
    assert "holds 12 bytes" in str(bodies.judge(0.0))
    del kept


# -- the plans ---------------------------------------------------------------------------------------------------------


def test_every_hardship_happens_and_ordinary_schedules_stay() -> None:
    """Each alone and beside others; a third of all schedules has none, and is as it always was."""
    plans = [make_plan(seed) for seed in range(600)]
    counts = Counter(name for plan in plans for name in plan.hardships)
    assert set(counts) == {name for name, _, _ in HARDSHIPS}
    assert 180 < sum(not plan.hardships for plan in plans) < 300
    assert all(plan == make_ordinary_plan(plan.seed) for plan in plans if not plan.hardships)


def test_a_plan_follows_from_its_seed() -> None:
    """Twice the same; functions are compared by what they are."""
    assert [make_plan(seed) for seed in range(50)] == [make_plan(seed) for seed in range(50)]


def test_without_a_dead_letter_queue_every_message_ends_well() -> None:
    """Nothing could take it out of the queue otherwise."""
    for plan in map(make_plan, range(600)):
        if plan.max_receives is None:
            assert not [order for order in plan.orders if order.kind in {Kind.POISON, Kind.MALFORMED, Kind.STRANGER}]
