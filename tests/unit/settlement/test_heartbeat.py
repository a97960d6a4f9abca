"""Messages in flight stay ours, from receive until they are settled, and losing one is noticed."""

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from postroom.errors import AccessDenied, InvalidRequest, QueueNotFound, ServiceUnavailable, TransportError
from postroom.options import Visibility
from postroom.settlement import Delivery, Heartbeat
from postroom.tasks import Tasks
from postroom.testing.loop import run_virtual
from postroom.transports.protocol import EntryFailure, VisibilityChange
from support.scripted import ScriptedQueue, answer, message
from support.virtual import in_virtual_time


class Covered:
    """A heartbeat over a scripted queue, with deliveries that it covers, and a machine that can be suspended."""

    def __init__(self, queue: ScriptedQueue, options: Visibility, tasks: Tasks) -> None:
        self.queue = queue
        self.options = options
        self.lost: list[tuple[float, str]] = []
        self.causes: list[str] = []
        self.quieted: list[str] = []
        self.slept = 0.0
        self.heartbeat = Heartbeat(queue, options, tasks=tasks, holder=self, slept=lambda: self.slept, rng=Random(1))

    def expired(self, delivery: Delivery, cause: str) -> None:
        """Note a loss."""
        delivery.lost = True
        self.lost.append((asyncio.get_running_loop().time(), delivery.message.id))
        self.causes.append(cause)

    def quiet(self, delivery: Delivery) -> None:
        """Note that an extension is answered."""
        self.quieted.append(delivery.message.id)

    def receive(self, count: int, *, first: int = 0) -> list[Delivery]:
        """Make deliveries of one receive and cover them."""
        now = asyncio.get_running_loop().time()
        deliveries = [
            Delivery.of(message(first + n), received_at=now, visibility=self.options.timeout) for n in range(count)
        ]
        self.heartbeat.cover(deliveries)
        return deliveries


def _fatal(error: BaseException) -> None:
    raise error


@asynccontextmanager
async def beating(queue: ScriptedQueue, **options: Any) -> AsyncGenerator[Covered]:
    """Run a heartbeat with the given visibility options."""
    tasks = Tasks(_fatal)
    covered = Covered(queue, Visibility(**options), tasks)
    tasks.spawn(covered.heartbeat.run(), "heartbeat")
    try:
        yield covered
    finally:
        await tasks.close(grace=1.0)


@in_virtual_time
async def test_a_message_is_extended_when_half_of_its_timeout_is_over() -> None:
    """Again and again, with the whole timeout each time."""
    queue = ScriptedQueue()
    async with beating(queue, timeout=30) as covered:
        covered.receive(1)
        await asyncio.sleep(50)
    assert queue.changes == [(15.0, [("r0", 30)]), (30.0, [("r0", 30)]), (45.0, [("r0", 30)])]


@in_virtual_time
async def test_messages_of_a_receive_are_extended_in_batches_of_ten() -> None:
    """Twelve messages take two calls, not twelve."""
    queue = ScriptedQueue()
    async with beating(queue, timeout=30) as covered:
        covered.receive(12)
        await asyncio.sleep(16)
    assert sorted(len(changes) for _, changes in queue.changes) == [2, 10]


@in_virtual_time
async def test_a_released_message_is_not_extended() -> None:
    """Nor is one that was released while the others of its receive go on."""
    queue = ScriptedQueue()
    async with beating(queue, timeout=30) as covered:
        first, _second = covered.receive(2)
        covered.heartbeat.release(first)
        await asyncio.sleep(20)
    assert queue.changed == [("r1", 30)]


@in_virtual_time
async def test_the_newest_receipt_handle_is_used() -> None:
    """After a second receive of the message, extensions name the new handle."""
    queue = ScriptedQueue()
    async with beating(queue, timeout=30) as covered:
        [delivery] = covered.receive(1)
        delivery.renew(message("0-again"), received_at=0, visibility=30)
        await asyncio.sleep(16)
    assert queue.changed == [("r0-again", 30)]


@in_virtual_time
async def test_a_refused_message_is_lost() -> None:
    """SQS does not know the handle any longer: the handler of the message is told, once."""
    queue = ScriptedQueue()

    queue.on_change = answer(EntryFailure(0, "ReceiptHandleIsInvalid", sender_fault=True))
    async with beating(queue, timeout=30) as covered:
        covered.receive(2)
        await asyncio.sleep(16)
        queue.on_change = None
        await asyncio.sleep(100)
    assert covered.lost == [(15.0, "m0")]


@in_virtual_time
async def test_a_passing_failure_is_tried_again_before_the_deadline() -> None:
    """One failed call loses no message."""
    queue = ScriptedQueue()
    failures = [ServiceUnavailable("later")]

    async def fail_once(_changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        if failures:
            raise failures.pop()
        return []

    queue.on_change = fail_once
    async with beating(queue, timeout=30) as covered:
        covered.receive(1)
        await asyncio.sleep(29)
    assert covered.lost == []
    [first, second] = [time for time, _ in covered.queue.changes]
    assert first == 15.0
    assert 15.5 < second <= 16.0


@pytest.mark.parametrize("start", [0.0, 0.1, 1 / 3, 12_345.6])
@in_virtual_time
async def test_a_message_is_lost_when_its_deadline_passes_unconfirmed(start: float) -> None:
    """Only the local clock knows: SQS would answer success to the delete. The tries do not grow ever more numerous."""
    await asyncio.sleep(start)
    queue = ScriptedQueue()

    queue.on_change = answer(error=ServiceUnavailable("down"))
    async with beating(queue, timeout=30) as covered:
        [delivery] = covered.receive(1)
        await asyncio.sleep(40)
        assert delivery.lost
    [(time, name)] = covered.lost
    assert name == "m0"
    assert time - start == pytest.approx(30)
    assert len(covered.queue.changes) < 15


@in_virtual_time
async def test_a_refusal_after_release_is_nobodys_trouble() -> None:
    """The message was settled while the extension was on its way: no false alarm."""
    queue = ScriptedQueue()
    async with beating(queue, timeout=30) as covered:
        [delivery] = covered.receive(1)

        async def settle_meanwhile(_changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
            covered.heartbeat.release(delivery)
            return [EntryFailure(0, "ReceiptHandleIsInvalid", sender_fault=True)]

        queue.on_change = settle_meanwhile
        await asyncio.sleep(100)
    assert covered.lost == []


@in_virtual_time
async def test_it_tells_when_an_extension_is_answered() -> None:
    """So that a change that waits for it, lest it be overwritten, can go."""
    queue = ScriptedQueue()

    queue.on_change = answer(after=3)
    async with beating(queue, timeout=30) as covered:
        [delivery] = covered.receive(1)
        await asyncio.sleep(15.5)
        covered.heartbeat.uncover(delivery)
        early = list(covered.quieted) if delivery.beating else ["answered too early"]
        await asyncio.sleep(3)
        assert not delivery.beating
    assert (early, covered.quieted) == ([], ["m0"])


@in_virtual_time
async def test_the_longest_total_is_respected() -> None:
    """Extensions shrink towards max_extension; then the message is let go, and counts as lost."""
    queue = ScriptedQueue()
    async with beating(queue, timeout=30, max_extension=50) as covered:
        covered.receive(1)
        await asyncio.sleep(120)
    assert covered.queue.changes[0] == (15.0, [("r0", 30)])
    assert all(time + seconds <= 50 for time, changes in covered.queue.changes for _, seconds in changes)
    assert covered.lost == [(50.0, "m0")]


@in_virtual_time
async def test_without_heartbeat_nothing_is_extended_but_loss_is_noticed() -> None:
    """Visibility(heartbeat=False) sends no call and still keeps the deadline."""
    queue = ScriptedQueue()
    async with beating(queue, timeout=30, heartbeat=False) as covered:
        covered.receive(1)
        await asyncio.sleep(60)
    assert covered.queue.changes == []
    assert covered.lost == [(30.0, "m0")]


@in_virtual_time
async def test_a_later_receive_with_an_earlier_deadline_wakes_it() -> None:
    """It sleeps until the earliest deadline, also when that one came last."""
    queue = ScriptedQueue()
    async with beating(queue, timeout=100) as covered:
        covered.receive(1)
        await asyncio.sleep(10)
        early = Delivery.of(message("early"), received_at=10, visibility=4)
        covered.heartbeat.cover([early])
        await asyncio.sleep(3)
    assert queue.changes == [(12.0, [("rearly", 100)])]


@in_virtual_time
async def test_a_refusal_of_an_older_receipt_does_not_lose_what_was_received_meanwhile() -> None:
    """An extension on its way with the first receipt handle is refused, because a second receive overtook it."""
    queue = ScriptedQueue()

    async def refuse_the_old(changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        await asyncio.sleep(1)
        old = [index for index, change in enumerate(changes) if change.receipt_handle == "r0"]
        return [EntryFailure(index, "ReceiptHandleIsInvalid", sender_fault=True) for index in old]

    queue.on_change = refuse_the_old
    async with beating(queue, timeout=30) as covered:
        [delivery] = covered.receive(1)
        await asyncio.sleep(15.5)
        delivery.renew(message("0-newer"), received_at=15.5, visibility=30)
        await asyncio.sleep(60)
    assert covered.lost == []
    assert queue.changed[0] == ("r0", 30)
    assert {handle for handle, _ in queue.changed[1:]} == {"r0-newer"}


@in_virtual_time
async def test_a_released_message_is_not_kept_until_it_would_have_been_due() -> None:
    """A fast consumer would otherwise hold every message of the last half timeout."""
    async with beating(ScriptedQueue(), timeout=30) as covered:
        others = _alive()
        kept, *done = covered.receive(10)
        before = _alive() - others
        for delivery in done:
            covered.heartbeat.release(delivery)
        del done, delivery
        after = _alive() - others
        covered.heartbeat.release(kept)
    assert (before, after) == (10, 1)


def _alive() -> int:
    gc.collect()  # deliveries of other tests
    return sum(issubclass(type(thing), Delivery) for thing in gc.get_objects())


@in_virtual_time
async def test_the_deadline_is_seen_while_an_extension_hangs() -> None:
    """The call is never answered: the message is lost at its deadline, and another one's extension goes out."""
    queue = ScriptedQueue()

    async def hang(changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        if changes[0].receipt_handle == "r0":
            await asyncio.Event().wait()
        return []

    queue.on_change = hang
    async with beating(queue, timeout=3) as covered:
        covered.receive(1)
        await asyncio.sleep(1)
        covered.receive(1, first=1)
        await asyncio.sleep(20)
    assert covered.lost == [(3.0, "m0")]
    assert "not answered" in covered.causes[0]
    assert len([handle for handle, _ in covered.queue.changed if handle == "r1"]) > 8


@in_virtual_time
async def test_an_answer_after_the_deadline_changes_nothing() -> None:
    """The extension was confirmed, but too late: the message may be with another consumer already."""
    queue = ScriptedQueue()

    queue.on_change = answer(after=12)
    async with beating(queue, timeout=3) as covered:
        [delivery] = covered.receive(1)
        await asyncio.sleep(40)
        deadline = delivery.deadline
    assert covered.lost == [(3.0, "m0")]
    assert deadline == 3.0
    assert len(covered.queue.changes) == 1


@pytest.mark.parametrize("error", [OSError("reset"), RuntimeError("a driver's defect"), asyncio.CancelledError()])
def test_what_the_protocol_does_not_name_is_a_failure_that_may_pass(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """The heartbeat goes on, and the log tells of it once."""

    async def main() -> Covered:
        queue = ScriptedQueue()
        errors = [error, error]

        async def fail_twice(_changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
            if errors:
                raise errors.pop()
            return []

        queue.on_change = fail_twice
        async with beating(queue, timeout=30) as covered:
            covered.receive(1)
            await asyncio.sleep(100)
            return covered

    with caplog.at_level(logging.INFO, "postroom"):
        covered = run_virtual(main())
    assert covered.lost == []
    failed, again = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert type(error).__name__ in failed
    assert "works again" in again


def test_an_outage_costs_tens_of_calls_and_two_lines_for_a_thousand_messages(caplog: pytest.LogCaptureFixture) -> None:
    """One backoff for the queue, one line when extensions begin to fail and one when they work again."""

    async def main() -> tuple[int, Covered]:
        queue = ScriptedQueue()
        loop = asyncio.get_running_loop()
        failed = 0

        async def down(_changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
            nonlocal failed
            await asyncio.sleep(0.02)
            if 25 <= loop.time() < 50:
                failed += 1
                raise ServiceUnavailable("503")
            return []

        queue.on_change = down
        async with beating(queue, timeout=60) as covered:
            for first in range(0, 1000, 10):
                covered.receive(10, first=first)
            await asyncio.sleep(200)
            return failed, covered

    with caplog.at_level(logging.INFO, "postroom"):
        failed, covered = run_virtual(main())
    assert covered.lost == []
    assert failed < 50
    assert len(caplog.records) == 2


@pytest.mark.parametrize("timeout", [1, 3, 60])
@pytest.mark.parametrize("error", [AccessDenied("ExpiredToken"), QueueNotFound("not yet"), InvalidRequest("odd")])
@in_virtual_time
async def test_refused_extensions_are_tried_until_the_deadline(timeout: int, error: TransportError) -> None:
    """Credentials that are renewed, or a queue that is found meanwhile, save the message, also with a short timeout."""
    queue = ScriptedQueue()
    loop = asyncio.get_running_loop()

    async def deny(_changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        if loop.time() < 0.75 * timeout:
            raise error
        return []

    queue.on_change = deny
    async with beating(queue, timeout=timeout) as covered:
        covered.receive(1)
        await asyncio.sleep(5 * timeout)
    assert covered.lost == []


def test_a_suspended_machine_loses_what_its_sleep_outlasted() -> None:
    """The loop's clock stood still for 50 s; SQS's did not. It is noticed within a second."""

    async def main() -> Covered:
        async with beating(ScriptedQueue(), timeout=30) as covered:
            covered.receive(1)
            await asyncio.sleep(5)
            covered.slept = 50.0
            await asyncio.sleep(1.1)
            return covered

    [(time, name)] = run_virtual(main()).lost
    assert (name, time <= 6.0) == ("m0", True)


@in_virtual_time
async def test_a_short_sleep_brings_the_extension_forward() -> None:
    """After 20 of 30 s asleep more than half of the timeout is over."""
    async with beating(ScriptedQueue(), timeout=30) as covered:
        covered.receive(1)
        await asyncio.sleep(5)
        covered.slept = 20.0
        await asyncio.sleep(2)
    assert covered.lost == []
    assert [time for time, _ in covered.queue.changes] == [pytest.approx(6, abs=1)]


@in_virtual_time
async def test_a_tenants_own_policy_counts_once_it_is_known() -> None:
    """A shorter timeout than that of the receive does not lose the message, and a longer one is asked for."""
    async with beating(ScriptedQueue(), timeout=60) as covered:
        short, long, none = covered.receive(3)
        short.visibility = Visibility(timeout=10)
        long.visibility = Visibility(timeout=600)
        none.visibility = Visibility(timeout=60, heartbeat=False)
        await asyncio.sleep(300)
    assert covered.lost == [(60.0, "m2")]
    assert covered.queue.changes[0] == (30.0, [("r1", 600)])
    assert covered.queue.changes[1] == (55.0, [("r0", 10)])
    assert [time for time, changes in covered.queue.changes if changes[0][0] == "r1"] == [30.0]


@in_virtual_time
async def test_what_was_released_does_not_pile_up_for_hours() -> None:
    """With a timeout of 12 hours, plans for messages that ended long ago are dropped, not kept for six hours."""
    async with beating(ScriptedQueue(), timeout=43_200) as covered:
        for n in range(5_000):
            [delivery] = covered.receive(1, first=n)
            covered.heartbeat.release(delivery)
        assert len(covered.heartbeat._looks._heap) < 200


@in_virtual_time
async def test_an_extension_that_sqs_will_not_grant_leaves_the_message_ours_until_its_deadline() -> None:
    """Only an unknown receipt handle says that it is not ours: a total beyond 12 hours does not."""
    queue = ScriptedQueue()

    queue.on_change = answer(EntryFailure(0, "InvalidParameterValue", sender_fault=True))
    async with beating(queue, timeout=30) as covered:
        covered.receive(1)
        await asyncio.sleep(100)
    assert covered.lost == [(30.0, "m0")]
    assert len(covered.queue.changes) == 1
