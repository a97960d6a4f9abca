"""How many receives are outstanding, after what the last ones brought."""

import asyncio
import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Self

import pytest

from postroom.consumer.crowd import Crowd
from postroom.consumer.demand import SPARSE, AdaptivePolicy
from postroom.consumer.loop_watch import LoopWatch
from postroom.consumer.poller import Poller
from postroom.consumer.scouting import Scouting
from postroom.errors import Throttled
from postroom.events import Observers
from postroom.message import Message
from postroom.options import Polling, Visibility
from postroom.settlement import Moment
from postroom.tasks import Tasks
from postroom.testing.loop import VirtualLoop, run_virtual, settle
from support.scripted import ScriptedQueue, message
from support.virtual import in_virtual_time

POLLERS = 8
BATCH = 10


class HandAnswered(ScriptedQueue):
    """A queue with receives that wait until the test answers them."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[asyncio.Future[list[Message]]] = []

    async def receive(
        self, *, limit: int, wait: float, visibility: float, attempt_id: str | None = None
    ) -> list[Message]:
        """Wait for an answer."""
        del limit, wait, visibility, attempt_id
        answer: asyncio.Future[list[Message]] = asyncio.get_running_loop().create_future()
        self.waiting.append(answer)
        return await answer


class Floor:
    """A consumer with room for everything."""

    slots = 1_000
    typical = 0.01
    waiting = 0
    fifo = False
    is_full = False

    def taken(self, capacity: int) -> int:
        """Take nothing."""
        del capacity
        return 0


class _Clock:
    """A settler that knows the time, and that the machine has slept."""

    def __init__(self) -> None:
        self.heartbeat = self
        self.slept = 7.0

    def moment(self) -> Moment:
        """Return the time."""
        return Moment(asyncio.get_running_loop().time(), self.slept)

    async def check_deletes(self) -> None:
        """Find that they work."""


class Pollers:
    """Pollers with room for everything. Of each receive ``stuck`` messages cannot run and ``held`` are held already."""

    def __init__(self, **polling: Any) -> None:
        self.queue = HandAnswered()
        self.floor = Floor()
        self.stuck = 0
        self.held = 0
        self._polling = Polling(pollers=POLLERS, batch=BATCH, **polling)

    async def __aenter__(self) -> Self:
        now = asyncio.get_running_loop().time()
        self._tasks = Tasks(lambda _error: None)
        crowd = Crowd()
        self.policy = policy = AdaptivePolicy(self._polling, Scouting(crowd, now, when=False), crowd)
        self.settler = _Clock()
        settings: Any = SimpleNamespace(polling=self._polling, first_visibility=Visibility(), observers=Observers())
        source: Any = SimpleNamespace(settings=settings, queue=self.queue, name="orders", settler=self.settler)
        floor: Any = self.floor
        self.watch = LoopWatch(self._tasks, dict, int)
        self.poller = Poller(source, floor, policy, self, self._tasks, watch=self.watch)
        for number in range(POLLERS):
            self._tasks.spawn(self.poller.run(number), f"poller-{number}")
        await settle()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.poller.stop()
        for each in self.queue.waiting:
            each.set_result([])
        await self._tasks.close(grace=1.0)

    def admit(self, messages: Sequence[Message], arrived: Moment) -> tuple[int, int]:
        """Take messages in."""
        self.arrived = arrived
        return max(0, len(messages) - self.stuck), self.held

    async def answer(self, brought: int, *, stuck: int = 0) -> int:
        """Answer the oldest receive, and return how many are outstanding then."""
        self.stuck = stuck
        if not brought:
            await asyncio.sleep(20)
        self.queue.waiting.pop(0).set_result([message(number) for number in range(brought)])
        await settle()
        return len(self.queue.waiting)


def outstanding(*answers: tuple[int, int]) -> list[int]:
    """Return how many receives are outstanding after each answer: of how many messages, how many of them stuck."""

    async def main() -> list[int]:
        async with Pollers() as pollers:
            assert len(pollers.queue.waiting) == 1
            return [await pollers.answer(brought, stuck=stuck) for brought, stuck in answers]

    return run_virtual(main())


@pytest.mark.parametrize("few", range(1, SPARSE + 1))
def test_while_receives_bring_a_few_messages_three_are_outstanding(few: int) -> None:
    """One of them waits at the queue while another is on its way back."""
    assert outstanding((few, 0), (few, 0)) == [SPARSE, SPARSE]


def test_an_empty_receive_ends_that() -> None:
    """What is outstanding then may end by itself; the first poller asks again, as always."""
    assert outstanding((1, 0), (0, 0), (0, 0), (0, 0)) == [SPARSE, SPARSE, SPARSE - 1, 1]


def test_more_messages_than_that_are_fetched_by_one_receive_until_one_comes_back_full() -> None:
    """They would not come sooner by several calls; behind a full batch there is more."""
    assert outstanding((SPARSE + 1, 0), (BATCH, 0)) == [1, POLLERS]


def test_messages_of_tenants_that_are_down_do_not_count() -> None:
    """Those of the others come as few by few as before."""
    assert outstanding((1 + 4, 4), (4, 4), (0, 0)) == [SPARSE, SPARSE, SPARSE - 1]


def receives(seconds: float, *, takes: float, **polling: Any) -> int:
    """Return how many receives are sent in some seconds to a queue that is empty and answers after ``takes``."""

    async def main() -> int:
        async with Pollers(**polling) as pollers:
            loop = asyncio.get_running_loop()
            end = loop.time() + seconds
            while loop.time() < end:
                await asyncio.sleep(takes or 0.001)
                for each in pollers.queue.waiting:
                    each.set_result([])
                pollers.queue.waiting.clear()
                await settle()
            return pollers.poller.receives

    return run_virtual(main())


def test_a_receive_that_its_transport_cancels_is_a_failed_receive() -> None:
    """The poller goes on after a pause, and counts it; otherwise it would end, and nothing would tell of it."""

    async def main() -> tuple[int, int]:
        async with Pollers() as pollers:
            pollers.queue.waiting.pop(0).cancel()
            await asyncio.sleep(5)
            return pollers.poller.failures, len(pollers.queue.waiting)

    assert run_virtual(main()) == (1, 1)


@in_virtual_time
async def test_receives_that_fail_now_and_then_are_told_in_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Where every second one is throttled, the log says so once, then once a minute, and at its end."""
    caplog.set_level(logging.INFO)
    async with Pollers() as pollers:
        loop = asyncio.get_running_loop()
        while loop.time() < 150:
            pollers.queue.waiting.pop(0).set_exception(Throttled("slow down"))
            await asyncio.sleep(2)
            await pollers.answer(BATCH)
        await asyncio.sleep(10)
    assert pollers.poller.failures > 50
    levels = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in levels] == [logging.ERROR, logging.INFO, logging.INFO, logging.WARNING]
    assert levels[0][1] == "Receiving from orders failed, next try in 0.5 s: slow down; tried again until it works"
    assert levels[1][1] == "Receiving from orders still fails, next try in 1 s: slow down"
    assert levels[3][1].startswith("Receiving from orders works again after ")


@in_virtual_time
async def test_a_receive_that_is_not_answered_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Ten seconds after its wait, long before its transport gives it up; and with others in the next trouble."""
    caplog.set_level(logging.INFO)
    async with Pollers() as pollers:
        await asyncio.sleep(29)
        assert not caplog.messages
        await asyncio.sleep(71)
        await pollers.answer(BATCH)
        await asyncio.sleep(5)
        for _ in range(POLLERS):
            await pollers.answer(1)
        await asyncio.sleep(40)
    silent = "Receiving from orders brings no answer: SQS has been silent for 30 s; tried again until it works"
    again = "again and again: Receiving from orders, 2 times in 115 s, for 10 s now (last: brings no answer: SQS"
    assert caplog.messages[0] == silent
    assert again in caplog.messages[2]
    assert caplog.messages[1] == "Receiving from orders works again after 70.0 s"
    assert len(caplog.messages) == 3


@in_virtual_time
async def test_time_in_which_the_loop_stood_still_makes_no_receive_overdue(caplog: pytest.LogCaptureFixture) -> None:
    """Its answer may be in the socket."""
    async with Pollers() as pollers:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        unread = 0.0

        def unread_since() -> float:
            return loop.time() - unread

        pollers.watch.unread_since = unread_since  # type: ignore[method-assign]
        await asyncio.sleep(19)
        unread = 40.0
        loop.block(unread)
        await asyncio.sleep(0.5)
        await pollers.answer(1)
    assert not caplog.messages


@in_virtual_time
async def test_receiving_goes_on_when_the_only_receive_that_is_out_fails() -> None:
    """Another poller had found that no room was left beside it, after the slots had become fewer, and waits."""
    async with Pollers() as pollers:
        pollers.floor.slots = 14
        seen = [await pollers.answer(BATCH)]
        pollers.floor.slots = 4  # there is room for a batch, and for a part of another
        seen.append(await pollers.answer(0))
        pollers.queue.waiting.pop(0).cancel()
        await asyncio.sleep(60)
        assert [*seen, len(pollers.queue.waiting)] == [2, 1, 1]


@pytest.mark.parametrize("wait", [0, 20])
def test_receives_that_are_answered_at_once_with_nothing_are_paced(wait: float) -> None:
    """A proxy that does not wait, or ``Polling(wait=0)``, must not make a hot loop."""
    assert receives(60, takes=0.0, wait=wait) <= 60


def test_receives_that_are_answered_at_once_with_what_is_held_are_paced() -> None:
    """A server that ignores the visibility timeout shows the same messages again and again."""

    async def main() -> tuple[int, int]:
        async with Pollers() as pollers:
            loop = asyncio.get_running_loop()
            counts: list[int] = []
            for again in (True, False):  # first all are held already; then all but one
                before, end = pollers.poller.receives, loop.time() + 20
                while loop.time() < end:
                    await asyncio.sleep(0.01)
                    for each in pollers.queue.waiting:
                        each.set_result([message(number) for number in range(BATCH)])
                        pollers.held = BATCH if again else BATCH - 1
                    pollers.queue.waiting.clear()
                    await settle()
                counts.append(pollers.poller.receives - before)
            return counts[0], counts[1]

    again, new = run_virtual(main())
    assert again < 20 * POLLERS
    assert new > 1_600


def test_a_long_poll_that_waits_is_not_paced() -> None:
    """The next one follows at once."""
    assert receives(60, takes=1.0, wait=1) >= 58


@in_virtual_time
async def test_messages_can_be_let_gather() -> None:
    """Ten receives a second instead of one for each message."""
    async with Pollers(gather=0.1) as pollers:
        for number in range(1_000):
            await asyncio.sleep(0.01)
            if pollers.queue.waiting:
                pollers.queue.waiting.pop(0).set_result([message(number)])
    assert 90 <= pollers.poller.receives <= 105


@pytest.mark.parametrize(("unread_since", "arrived"), [(20.0, 20.0), (12.0, 12.0), (-5.0, 3.0)])
@in_virtual_time
async def test_an_answer_counts_from_when_it_may_have_arrived(
    unread_since: float, arrived: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from when it was read, where the loop stood still meanwhile; and never from before it was asked for."""
    await asyncio.sleep(3)
    async with Pollers() as pollers:
        await asyncio.sleep(17)
        monkeypatch.setattr(pollers.watch, "unread_since", lambda: unread_since)
        await pollers.answer(1)
    assert pollers.arrived == Moment(arrived, 7.0)


@in_virtual_time
async def test_a_message_that_ends_on_a_quiet_queue_wakes_one_poller() -> None:
    """The others would find nothing to ask for, and each look costs as much as a message."""
    async with Pollers() as pollers:
        await pollers.answer(0)  # nothing comes: from now on one long poll is enough
        looks: list[int] = []
        policy: Any = pollers.policy
        look = policy.next

        def next_step(number: int, *rest: Any) -> Any:
            looks.append(number)
            return look(number, *rest)

        policy.next = next_step
        pollers.poller.wake()
        await settle()
        quiet = len(looks)
        policy._busy = True
        pollers.poller.wake()
        await settle()
        busy = len(looks) - quiet
    assert quiet <= 1
    assert busy >= POLLERS - 1
