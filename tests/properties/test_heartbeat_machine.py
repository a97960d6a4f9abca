"""The heartbeat against every order of receives, refusals, slow answers, renewals and settlements."""

import asyncio
from collections.abc import Sequence
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from postroom.errors import ServiceUnavailable
from postroom.options import Visibility
from postroom.settlement import Delivery, Heartbeat
from postroom.tasks import Tasks
from postroom.testing.loop import run_virtual
from postroom.transports.protocol import EntryFailure, VisibilityChange
from support.scripted import ScriptedQueue, message

TIMEOUT = 10.0
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("receive"), st.integers(1, 12)),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 0.1, 1.0, 4.9, 5.0, 5.1, 9.0, 30.0])),
        st.tuples(st.just("release"), st.integers(0, 30)),
        st.tuples(st.just("renew"), st.integers(0, 30)),
        st.tuples(st.just("answer"), st.sampled_from(["well", "slow", "hang", "down", "foreign", "refuse", "again"])),
        st.tuples(st.just("sleep"), st.sampled_from([0.1, 1.0, 4.0, 20.0])),
    ),
    max_size=25,
)


class Model:
    """A heartbeat, a queue that answers as told, and SQS's own idea of who owns what."""

    def __init__(self, *, beats: bool) -> None:
        self.queue = ScriptedQueue()
        self.queue.on_change = self._answer
        self.answers = "well"
        self.slept = 0.0
        self.fatal: list[BaseException] = []
        self.tasks = Tasks(self.fatal.append)
        self.heartbeat = Heartbeat(
            self.queue,
            Visibility(timeout=TIMEOUT, heartbeat=beats),
            tasks=self.tasks,
            holder=self,
            slept=lambda: self.slept,
            rng=Random(1),
        )
        self.deliveries: list[Delivery] = []
        self.owned_until: dict[str, float] = {}
        """Receipt handle to the time at which SQS shows the message to others."""
        self.lost: list[Delivery] = []
        self.releases: dict[str, float] = {}

    def expired(self, delivery: Delivery, cause: str) -> None:
        """Note a loss."""
        assert cause
        delivery.lost = True
        self.lost.append(delivery)

    def quiet(self, delivery: Delivery) -> None:
        """Learn that an extension was answered."""
        assert not delivery.beating

    @property
    def now(self) -> float:
        """SQS's time: it goes on while the machine sleeps."""
        return asyncio.get_running_loop().time() + self.slept

    async def _answer(self, changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        now = self.now
        answers = self.answers
        for change in changes:
            assert self.releases.get(change.receipt_handle, now) >= now, "extended after its release"
        if answers == "down":
            raise ServiceUnavailable("down")
        if answers == "foreign":
            raise OSError("foreign")
        refused = {0} if answers in {"refuse", "again"} else set[int]()
        for index, change in enumerate(changes):
            if index not in refused:
                self.owned_until[change.receipt_handle] = now + change.timeout
        if answers in {"slow", "hang"}:
            await asyncio.sleep(3.0 if answers == "slow" else 1000.0)
        return [EntryFailure(index, "Refused", sender_fault=answers == "refuse") for index in refused]

    async def step(self, what: str, value: object) -> None:
        """Do one step."""
        now = asyncio.get_running_loop().time()
        if what == "receive":
            assert isinstance(value, int)
            first = len(self.deliveries)
            fresh = [Delivery.of(message(first + n), received_at=now, visibility=TIMEOUT) for n in range(value)]
            self.deliveries += fresh
            self.owned_until.update({each.receipt_handle: self.now + TIMEOUT for each in fresh})
            self.heartbeat.cover(fresh)
        elif what == "wait":
            assert isinstance(value, float)
            await asyncio.sleep(value)
        elif what == "answer":
            self.answers = str(value)
        elif what == "sleep":
            assert isinstance(value, float)
            self.slept += value
            self.heartbeat.now()
        elif isinstance(value, int) and value < len(self.deliveries):
            self._touch(what, self.deliveries[value], now)

    def _touch(self, what: str, delivery: Delivery, now: float) -> None:
        if delivery.lost or not delivery.covered:
            return
        if what == "release":
            self.heartbeat.release(delivery)
            self.releases[delivery.receipt_handle] = self.now
        else:
            again = message(f"{delivery.message.id}-{len(self.owned_until)}")
            self.owned_until[again.receipt_handle] = self.now + TIMEOUT
            delivery.renew(again, received_at=now, visibility=TIMEOUT)
            self.heartbeat.moved(delivery)

    def check(self) -> None:
        """S4: no consumer believes that it owns a message for longer than SQS says, or loses it twice."""
        for delivery in self.deliveries:
            if not delivery.lost:
                # Sleep of less than a quarter of a second is not told from how exactly clocks are read.
                deadline = delivery.deadline + delivery.slept
                assert deadline <= self.owned_until[delivery.receipt_handle] + 0.25
                assert not delivery.covered or self.now < self.owned_until[delivery.receipt_handle] + 0.26
        assert len(set(map(id, self.lost))) == len(self.lost)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS, beats=st.booleans(), seed=st.integers(0, 1000))
def test_the_heartbeat_never_believes_too_much(steps: list[tuple[str, object]], beats: bool, seed: int) -> None:
    """Deadlines are never later than SQS's; what is covered is extended or lost, once; what is released is left."""

    async def main() -> None:
        model = Model(beats=beats)
        model.tasks.spawn(model.heartbeat.run(), "heartbeat")
        try:
            for what, value in steps:
                await model.step(what, value)
                model.check()
            model.answers = "refuse" if beats else "well"
            model.queue.on_change = _refuse_all
            await asyncio.sleep(8 * TIMEOUT)
            for delivery in model.deliveries:
                assert delivery.lost or not delivery.covered, "neither extended nor lost"
                assert not delivery.beating
        finally:
            await model.tasks.close(grace=1.0)
        assert model.fatal == []

    run_virtual(main(), seed=seed)


async def _refuse_all(changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
    return [EntryFailure(index, "Refused", sender_fault=True) for index, _ in enumerate(changes)]
