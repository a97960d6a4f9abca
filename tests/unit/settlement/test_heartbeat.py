"""Messages in flight stay ours, from receive until somebody settles them, and losing one is noticed."""

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from postroom.errors import ServiceUnavailable
from postroom.options import Visibility
from postroom.settlement import Delivery, Heartbeat
from postroom.testing.loop import run_virtual
from postroom.transports.protocol import EntryFailure, VisibilityChange
from support.scripted import ScriptedQueue, message


class Covered:
    """A heartbeat that runs over a scripted queue, with deliveries that it covers."""

    def __init__(self, queue: ScriptedQueue, options: Visibility) -> None:
        self.queue = queue
        self.options = options
        self.lost: list[tuple[float, str]] = []
        self.heartbeat = Heartbeat(queue, options, on_lost=self._lost)

    def _lost(self, delivery: Delivery) -> None:
        self.lost.append((asyncio.get_running_loop().time(), delivery.message.id))

    def receive(self, count: int, *, first: int = 0) -> list[Delivery]:
        """Make deliveries of one receive and cover them."""
        now = asyncio.get_running_loop().time()
        deliveries = [
            Delivery.of(message(first + n), received_at=now, visibility=self.options.timeout) for n in range(count)
        ]
        self.heartbeat.cover(deliveries)
        return deliveries


@asynccontextmanager
async def beating(queue: ScriptedQueue, **options: Any) -> AsyncIterator[Covered]:
    """Run a heartbeat with the given visibility options."""
    covered = Covered(queue, Visibility(**options))
    task = asyncio.create_task(covered.heartbeat.run(), name="heartbeat")
    try:
        yield covered
    finally:
        task.cancel()
        await asyncio.wait([task])


def test_a_message_is_extended_when_half_of_its_timeout_is_over() -> None:
    """Again and again, with the whole timeout each time."""

    async def main() -> ScriptedQueue:
        queue = ScriptedQueue()
        async with beating(queue, timeout=30) as covered:
            covered.receive(1)
            await asyncio.sleep(50)
        return queue

    assert run_virtual(main()).changes == [(15.0, [("r0", 30)]), (30.0, [("r0", 30)]), (45.0, [("r0", 30)])]


def test_messages_of_a_receive_are_extended_in_batches_of_ten() -> None:
    """Twelve messages take two calls, not twelve."""

    async def main() -> ScriptedQueue:
        queue = ScriptedQueue()
        async with beating(queue, timeout=30) as covered:
            covered.receive(12)
            await asyncio.sleep(16)
        return queue

    assert sorted(len(changes) for _, changes in run_virtual(main()).changes) == [2, 10]


def test_a_released_message_is_not_extended() -> None:
    """Nor is one that was released while the others of its receive go on."""

    async def main() -> ScriptedQueue:
        queue = ScriptedQueue()
        async with beating(queue, timeout=30) as covered:
            first, _second = covered.receive(2)
            covered.heartbeat.release(first)
            await asyncio.sleep(20)
        return queue

    assert run_virtual(main()).changed == [("r1", 30)]


def test_the_newest_receipt_handle_is_used() -> None:
    """After a second receive of the message, extensions name the new handle."""

    async def main() -> ScriptedQueue:
        queue = ScriptedQueue()
        async with beating(queue, timeout=30) as covered:
            [delivery] = covered.receive(1)
            delivery.renew(message("0-again"), received_at=0, visibility=30)
            await asyncio.sleep(16)
        return queue

    assert run_virtual(main()).changed == [("r0-again", 30)]


def test_a_refused_message_is_lost() -> None:
    """SQS does not know the handle any more: whoever handles the message is told, once."""

    async def main() -> Covered:
        queue = ScriptedQueue()

        async def refuse(_changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
            return [EntryFailure(0, "ReceiptHandleIsInvalid", sender_fault=True)]

        queue.on_change = refuse
        async with beating(queue, timeout=30) as covered:
            covered.receive(2)
            await asyncio.sleep(16)
            queue.on_change = None
            await asyncio.sleep(100)
            return covered

    covered = run_virtual(main())
    assert covered.lost == [(15.0, "m0")]


def test_a_passing_failure_is_tried_again_before_the_deadline() -> None:
    """One failed call loses nobody."""

    async def main() -> Covered:
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
            return covered

    covered = run_virtual(main())
    assert covered.lost == []
    assert [time for time, _ in covered.queue.changes] == [15.0, 16.0]


@pytest.mark.parametrize("start", [0.0, 0.1, 1 / 3, 12_345.6])
def test_a_message_is_lost_when_its_deadline_passes_unconfirmed(start: float) -> None:
    """Only the local clock knows: SQS would answer success to the delete. The tries do not grow ever more numerous."""

    async def main() -> Covered:
        await asyncio.sleep(start)
        queue = ScriptedQueue()

        async def fail(_changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
            raise ServiceUnavailable("down")

        queue.on_change = fail
        async with beating(queue, timeout=30) as covered:
            [delivery] = covered.receive(1)
            await asyncio.sleep(40)
            assert delivery.lost
            return covered

    covered = run_virtual(main())
    [(time, name)] = covered.lost
    assert name == "m0"
    assert time - start == pytest.approx(30)
    assert len(covered.queue.changes) < 25


def test_a_refusal_after_release_is_nobodys_trouble() -> None:
    """The message was settled while the extension was on its way: no false alarm."""

    async def main() -> Covered:
        queue = ScriptedQueue()
        async with beating(queue, timeout=30) as covered:
            [delivery] = covered.receive(1)

            async def settle_meanwhile(_changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
                covered.heartbeat.release(delivery)
                return [EntryFailure(0, "ReceiptHandleIsInvalid", sender_fault=True)]

            queue.on_change = settle_meanwhile
            await asyncio.sleep(100)
            return covered

    assert run_virtual(main()).lost == []


def test_quiesce_waits_for_an_extension_on_its_way() -> None:
    """So that nothing arrives after the caller's own change."""

    async def main() -> list[str]:
        queue = ScriptedQueue()
        order: list[str] = []

        async def slow(_changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
            await asyncio.sleep(3)
            order.append("extension answered")
            return []

        queue.on_change = slow
        async with beating(queue, timeout=30) as covered:
            deliveries = covered.receive(1)
            await asyncio.sleep(15.5)
            covered.heartbeat.release(deliveries[0])
            await covered.heartbeat.quiesce(deliveries)
            order.append("quiet")
        return order

    assert run_virtual(main()) == ["extension answered", "quiet"]


def test_the_longest_total_is_respected() -> None:
    """Extensions shrink towards max_extension; then the message is let go, and counts as lost."""

    async def main() -> Covered:
        queue = ScriptedQueue()
        async with beating(queue, timeout=30, max_extension=50) as covered:
            covered.receive(1)
            await asyncio.sleep(120)
            return covered

    covered = run_virtual(main())
    assert covered.queue.changes[0] == (15.0, [("r0", 30)])
    assert all(time + seconds <= 50 for time, changes in covered.queue.changes for _, seconds in changes)
    assert covered.lost == [(50.0, "m0")]


def test_without_heartbeat_nothing_is_extended_but_loss_is_noticed() -> None:
    """Visibility(heartbeat=False) sends no call and still keeps the deadline."""

    async def main() -> Covered:
        queue = ScriptedQueue()
        async with beating(queue, timeout=30, heartbeat=False) as covered:
            covered.receive(1)
            await asyncio.sleep(60)
            return covered

    covered = run_virtual(main())
    assert covered.queue.changes == []
    assert covered.lost == [(30.0, "m0")]


def test_a_later_receive_with_an_earlier_deadline_wakes_it() -> None:
    """It sleeps until the earliest deadline, also when that one came last."""

    async def main() -> ScriptedQueue:
        queue = ScriptedQueue()
        async with beating(queue, timeout=100) as covered:
            covered.receive(1)
            await asyncio.sleep(10)
            early = Delivery.of(message("early"), received_at=10, visibility=4)
            covered.heartbeat.cover([early])
            await asyncio.sleep(3)
        return queue

    assert run_virtual(main()).changes == [(12.0, [("rearly", 100)])]


def test_a_refusal_of_an_older_receipt_does_not_lose_what_was_received_meanwhile() -> None:
    """An extension on its way with the first receipt handle is refused, because a second receive overtook it."""

    async def main() -> tuple[Covered, ScriptedQueue]:
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
        return covered, queue

    covered, queue = run_virtual(main())
    assert covered.lost == []
    assert queue.changed[0] == ("r0", 30)
    assert {handle for handle, _ in queue.changed[1:]} == {"r0-newer"}


def test_a_released_message_is_not_kept_until_it_would_have_been_due() -> None:
    """A fast consumer would otherwise hold every message of the last half timeout."""

    async def main() -> tuple[int, int]:
        async with beating(ScriptedQueue(), timeout=30) as covered:
            kept, *done = covered.receive(10)
            before = _alive()
            for delivery in done:
                covered.heartbeat.release(delivery)
            del done, delivery
            after = _alive()
            covered.heartbeat.release(kept)
        return before, after

    assert run_virtual(main()) == (10, 1)


def _alive() -> int:
    gc.collect()  # deliveries of other tests
    return sum(isinstance(thing, Delivery) for thing in gc.get_objects())
