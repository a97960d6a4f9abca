"""How many receives are outstanding, after what the last ones brought."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Self

import pytest

from postroom.consumer.inflight import InFlight
from postroom.consumer.parking import Parking
from postroom.consumer.poller import SPARSE, Poller
from postroom.consumer.scouting import Scouting
from postroom.events import Observers
from postroom.message import Message
from postroom.options import Polling, Visibility
from postroom.settlement import Settler
from postroom.testing.loop import run_virtual, settle
from support.scripted import ScriptedQueue, message, no_queue

POLLERS = 8
BATCH = 10


class HandAnswered(ScriptedQueue):
    """A queue whose receives wait until the test answers them."""

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


class Pollers:
    """Pollers with room for everything; ``stuck`` of each receive's messages are of tenants that are down."""

    def __init__(self) -> None:
        self.queue = HandAnswered()
        self.stuck = 0
        self._running = AsyncExitStack()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        visibility = Visibility()
        settler = Settler(
            self.queue, visibility, dead_letter_queue=no_queue, on_lost=lambda _lost: None, observers=Observers()
        )
        parking = Parking(self.queue, settler, clock=loop.time, in_flight=InFlight(self.queue, clock=loop.time))
        self._poller = Poller(
            self.queue,
            Polling(pollers=POLLERS, batch=BATCH),
            visibility,
            capacity=lambda: 1_000,
            scouting=Scouting(parking, clock=loop.time, alone=lambda: False, enabled=False),
            held=lambda: 0,
            starving=lambda: True,
            admit=self._admit,
            on_over_limit=lambda: None,
            observers=Observers(),
        )
        group = await self._running.enter_async_context(asyncio.TaskGroup())
        for number in range(POLLERS):
            group.create_task(self._poller.run(number))
        await settle()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._poller.stop()
        for each in self.queue.waiting:
            each.set_result([])
        await self._running.aclose()

    def _admit(self, messages: Sequence[Message]) -> int:
        return max(0, len(messages) - self.stuck)

    async def answer(self, brought: int, *, stuck: int = 0) -> int:
        """Answer the oldest receive, and return how many are outstanding then."""
        self.stuck = stuck
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
