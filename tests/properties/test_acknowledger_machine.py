"""The acknowledger against every order of decisions, refusals, errors, duplicates and expiries."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from postroom.errors import AccessDenied, ClosedError, InvalidRequest, PostroomError, ServiceUnavailable
from postroom.events import Observers
from postroom.message import Message
from postroom.options import Visibility
from postroom.settlement import DeadLetters, Delivery, Ending, Settler
from postroom.settlement.batcher import Batcher, Fate
from postroom.settlement.trouble import Trouble
from postroom.tasks import Tasks
from postroom.testing.loop import run_virtual
from postroom.transports.protocol import EntryFailure, Queue, VisibilityChange
from postroom.types import Settlement
from support.scripted import ScriptedQueue

TIMEOUT = 20.0
STRETCH = 33
"""Seconds that an extension on request asks for; the other changes ask for less."""
ANSWERS = st.sampled_from(
    ["well", "well", "slow", "down", "foreign", "cancelled", "denied", "wrong", "refuse", "again", "closed"]
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 5)),
        st.tuples(
            st.sampled_from(["ack", "give back", "leave", "lose", "ours", "ack now", "retry now", "extend now"]),
            st.integers(0, 12),
        ),
        st.tuples(st.just("cancel"), st.integers(0, 12)),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 0.05, 0.1, 0.5, 3.0, 12.0, 25.0])),
        st.tuples(st.just("sleep"), st.sampled_from([0.1, 1.0, 9.0, 30.0])),
        st.tuples(st.just("answer"), ANSWERS),
    ),
    max_size=30,
)


class Model:
    """A settler over a queue that answers as told, and a count of what each receipt was asked for."""

    redrive = None

    def __init__(self, *, beats: bool) -> None:
        self.queue = ScriptedQueue()
        self.queue.on_delete = self._on_delete
        self.queue.on_change = self._on_change
        self.answers = "well"
        self.slept = 0.0
        self.receives: Counter[str] = Counter()
        self.deliveries: list[Delivery] = []
        self.deletes: Counter[str] = Counter()
        self.returns: Counter[str] = Counter()
        self.refused_for_good: set[str] = set()
        self.told: Counter[Delivery] = Counter()
        self.losses: Counter[Delivery] = Counter()
        self.waits: list[asyncio.Task[None]] = []
        self.fatal: list[BaseException] = []
        self.tasks = Tasks(self.fatal.append)
        self.settler = Settler(
            self.queue,
            Visibility(timeout=TIMEOUT, heartbeat=beats),
            tasks=self.tasks,
            listener=self,
            dead_letters=DeadLetters(self, self._no_queue, tasks=self.tasks),
            observers=Observers(),
            slept=lambda: self.slept,
            rng=Random(1),
        )

    async def _no_queue(self, _name: str) -> Queue:
        raise AssertionError("there is no dead-letter queue")

    def lost(self, delivery: Delivery) -> None:
        """Note a loss."""
        self.losses[delivery] += 1
        assert self.losses[delivery] == 1, "told of a loss twice"
        assert not self.told[delivery], "lost after it was settled"

    def settled(self, endings: Sequence[Ending]) -> None:
        """Note ends."""
        for each in endings:
            self.told[each.delivery] += 1
            assert self.told[each.delivery] == 1, "S1: settled twice"
            assert each.delivery.confirmed or each.settlement in {Settlement.LEFT, Settlement.LOST}

    async def _on_delete(self, handles: Sequence[str]) -> list[EntryFailure]:
        assert len(handles) == len(set(handles)), "S6: one receipt twice in a call"
        for handle in handles:
            assert not self.returns[handle], "S1: deleted after it was given back"
            assert handle not in self.refused_for_good, "S5"
            self._still_ours(handle)
        return await self._counted(handles, self.deletes)

    async def _on_change(self, changes: Sequence[VisibilityChange]) -> list[EntryFailure]:
        handles = [change.receipt_handle for change in changes]
        assert len(handles) == len(set(handles)), "S6: one receipt twice in a call"
        returned = [change.receipt_handle for change in changes if change.timeout == 1]
        for handle in handles:
            self._still_ours(handle)
        for handle in returned:
            assert not self.deletes[handle], "S1: given back after a delete"
        for change in changes:
            if change.timeout > 1:
                assert not self.returns[change.receipt_handle], "S3: extended after it was given back"
        return await self._counted(returned, self.returns)

    async def _counted(self, handles: Sequence[str], counts: Counter[str]) -> list[EntryFailure]:
        """Answer, and count what may have taken effect."""
        counts.update(handles)
        try:
            failures = await _answer(self.answers)
        except (InvalidRequest, AccessDenied):
            counts.subtract(handles)
            raise
        for failure in failures[: len(handles)]:
            counts[handles[failure.index]] -= 1
        return failures

    def _still_ours(self, handle: str) -> None:
        now = asyncio.get_running_loop().time()
        assert any(each.receipt_handle == handle and now < each.deadline for each in self.deliveries), "S4"

    async def step(self, what: str, value: object) -> None:
        """Do one step."""
        match what, value:
            case "take", int(number):
                self.receives[f"m{number}"] += 1
                count = self.receives[f"m{number}"]
                again = Message(
                    id=f"m{number}",
                    body="{}",
                    receipt_handle=f"r{number}-{count}",
                    system_attributes={"ApproximateReceiveCount": str(count)},
                )
                self.deliveries += self.settler.take([again])
            case "wait", float(seconds):
                await asyncio.sleep(seconds)
            case "sleep", float(seconds):
                self.slept += seconds
            case "cancel", int(place):
                if place < len(self.waits):
                    self.waits[place].cancel()
            case "answer", str(answers):
                self.answers = answers
            case _, int(place) if place < len(self.deliveries):
                self._decide(what, self.deliveries[place])

    def _decide(self, what: str, delivery: Delivery) -> None:
        match what:
            case "ack":
                self.settler.ack(delivery)
            case "give back":
                self.settler.give_back(delivery, Settlement.RETRIED, delay=1.0)
            case "leave":
                self.settler.leave(delivery)
            case "lose":
                self.settler.lose(delivery)
            case "ours":
                now = asyncio.get_running_loop().time()
                assert not self.settler.ours(delivery) or now < delivery.deadline
            case "extend now":
                self._wait_for(self.settler.extend_now(delivery, STRETCH))
            case "ack now":
                self._wait_for(self.settler.ack_now(delivery))
            case _:
                self._wait_for(self.settler.give_back_now(delivery, Settlement.RETRIED, delay=1.0))

    def _wait_for(self, decision: object) -> None:
        async def wait() -> None:
            try:
                assert asyncio.iscoroutine(decision)
                await decision
            except PostroomError:
                pass

        self.waits.append(asyncio.create_task(wait(), name="wait"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS, beats=st.booleans(), end=st.sampled_from(["drain", "abandon", "hang"]), seed=st.integers(0, 1000))
def test_every_decision_is_sent_at_most_once_and_never_too_late(
    steps: list[tuple[str, object]], beats: bool, end: str, seed: int
) -> None:
    """S1, S3 to S6, whatever SQS answers; every caller that waits is answered, and each delivery is told of once."""

    async def main() -> None:
        model = Model(beats=beats)
        model.tasks.spawn(model.settler.heartbeat.run(), "heartbeat")
        for what, value in steps:
            await model.step(what, value)
        if end == "drain":
            model.answers = "well"
            async with asyncio.timeout(130):
                await model.settler.drain()
                if model.waits:
                    await asyncio.wait(model.waits)
        elif end == "hang":
            model.queue.on_delete = model.queue.on_change = _hang
            await asyncio.sleep(1)
        await model.settler.abandon()
        if model.waits:
            async with asyncio.timeout(5):
                await asyncio.wait(model.waits)
        assert model.settler.held == model.settler.bytes == 0
        assert all(model.told[delivery] == 1 for delivery in model.deliveries)
        assert sum(model.losses.values()) <= model.settler.counts().get(Settlement.LOST, 0)
        assert model.fatal == []
        for wait in model.waits:
            assert wait.cancelled() or wait.exception() is None
        await model.tasks.close(grace=1.0)

    run_virtual(main(), seed=seed)


async def _answer(how: str, *, place: int = 0) -> list[EntryFailure]:
    """Answer a call as it is said; what is refused is the entry at a place."""
    match how:
        case "slow":
            await asyncio.sleep(1.0)
        case "down":
            raise ServiceUnavailable("down")
        case "foreign":
            raise OSError("foreign")
        case "cancelled":
            raise asyncio.CancelledError
        case "denied":
            raise AccessDenied("denied")
        case "closed":
            raise ClosedError("closed")
        case "wrong":
            raise InvalidRequest("wrong")
        case "refuse" | "again":
            return [EntryFailure(place, "Refused", sender_fault=how == "refuse")]
    return []


async def _hang(_entries: Sequence[object]) -> list[EntryFailure]:
    await asyncio.Event().wait()
    return []


class Sender:
    """What a batcher works for: it answers by a script, and counts."""

    def __init__(self, answers: list[str]) -> None:
        self.ended: Counter[int] = Counter()
        self._script = iter(answers)

    async def send(self, entries: Sequence[int]) -> Sequence[EntryFailure]:
        """Answer as the script says."""
        assert 1 <= len(entries) <= 10
        return await _answer(next(self._script, "well"), place=len(entries) - 1)

    def fate(self, entry: int, now: float) -> Fate:
        """Send everything, once."""
        assert not self.ended[entry], "sent after its end"
        return Fate.SEND

    def done(self, entries: Sequence[int], error: PostroomError | None) -> None:
        """Count ends."""
        self.ended.update(entries)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 25), st.booleans(), st.sampled_from([0.0, 0.05, 2.0])), max_size=6),
    answers=st.lists(ANSWERS, max_size=40),
)
def test_the_batcher_ends_every_entry_once(sizes: list[tuple[int, bool, float]], answers: list[str]) -> None:
    """Whatever is refused: at most ten per call, and one answer for every entry, once calls go well again."""

    async def main() -> None:
        fatal: list[BaseException] = []
        tasks = Tasks(fatal.append)
        sender = Sender(answers)
        trouble = Trouble("Deleting", "tried again", tasks=tasks)
        batcher = Batcher[int]("delete", sender, tasks=tasks, linger=0.1, trouble=trouble, rng=Random(1))
        total = 0
        for size, urgent, pause in sizes:
            for _ in range(size):
                batcher.add(total, urgent=urgent)
                total += 1
            await asyncio.sleep(pause)
        async with asyncio.timeout(200):
            await batcher.drain()
        assert sender.ended == Counter(range(total))
        assert fatal == []

    run_virtual(main())
